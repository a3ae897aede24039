/* config.json and generation_config.json that are right: values, both spellings, defaults, rope frequencies.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "model/config.h"

#define SHAPE                                                                                            \
    "\"model_type\": \"qwen3_moe\", \"hidden_size\": 32, \"num_hidden_layers\": 4, \"vocab_size\": 64, " \
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"num_experts_per_tok\": 2, "               \
    "\"moe_intermediate_size\": 24"

static void parse(const char *text, mb_config *config) {
    if (mb_config_parse("config.json", text, strlen(text), config) != MB_OK)
        fail_msg("%s\n%s", text, mb_last_error());
}

/* Qwen3-30B-A3B's, as published. */
static void test_published(void **state) {
    (void)state;
    mb_config c;
    parse(
        "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"attention_bias\": false, \"attention_dropout\": "
        "0.0,"
        "\"bos_token_id\": 151643, \"decoder_sparse_step\": 1, \"eos_token_id\": 151645, \"head_dim\": 128,"
        "\"hidden_act\": \"silu\", \"hidden_size\": 2048, \"initializer_range\": 0.02,"
        "\"intermediate_size\": 6144, \"max_position_embeddings\": 40960, \"max_window_layers\": 48,"
        "\"mlp_only_layers\": [], \"model_type\": \"qwen3_moe\", \"moe_intermediate_size\": 768,"
        "\"norm_topk_prob\": true, \"num_attention_heads\": 32, \"num_experts\": 128,"
        "\"num_experts_per_tok\": 8, \"num_hidden_layers\": 48, \"num_key_value_heads\": 4,"
        "\"output_router_logits\": false, \"rms_norm_eps\": 1e-06, \"rope_scaling\": null,"
        "\"rope_theta\": 1000000.0, \"router_aux_loss_coef\": 0.001, \"sliding_window\": null,"
        "\"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\", \"transformers_version\": \"4.51.0\","
        "\"use_cache\": true, \"use_sliding_window\": false, \"vocab_size\": 151936}",
        &c);
    assert_int_equal(c.hidden, 2048);
    assert_int_equal(c.n_layers, 48);
    assert_int_equal(c.n_heads, 32);
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(c.vocab, 151936);
    assert_int_equal(c.max_positions, 40960);
    assert_int_equal(c.n_experts, 128);
    assert_int_equal(c.top_k, 8);
    assert_int_equal(c.moe_intermediate, 768);
    assert_int_equal(c.intermediate, 6144);
    for (int l = 0; l < 48; l++)
        assert_int_equal(c.is_moe[l], 1);
    assert_int_equal(c.norm_topk_prob, 1);
    assert_int_equal(c.attention_bias, 0);
    assert_int_equal(c.tie_embeddings, 0);
    assert_int_equal(c.fp8_blocks, 0);
    assert_true(c.rms_eps == 1e-6f);
    assert_int_equal(c.activation, MB_ACT_SWIGLU);
    assert_int_equal(c.dtype, MB_BF16);
    assert_int_equal(c.n_eos_ids, 1);
    assert_int_equal(c.eos_ids[0], 151645);
    assert_true(c.rope_scale == 1);
}

static void test_both_spellings(void **state) {
    (void)state;
    mb_config old_keys, new_keys, both;
    memset(&old_keys, 0xAB, sizeof old_keys);
    parse("{" SHAPE ", \"num_experts\": 6, \"rope_theta\": 5e5, \"torch_dtype\": \"float16\", "
          "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": "
          "1024}}",
          &old_keys);
    parse("{" SHAPE
          ", \"num_local_experts\": 6, \"dtype\": \"float16\", \"rope_parameters\": {\"rope_type\": "
          "\"yarn\", \"rope_theta\": 5e5, \"factor\": 4.0, \"original_max_position_embeddings\": 1024}}",
          &new_keys);
    parse("{" SHAPE ", \"num_experts\": 6, \"num_local_experts\": 6, \"dtype\": \"float16\", "
          "\"torch_dtype\": \"float32\", \"rope_theta\": 1e4, \"rope_scaling\": null, \"rope_parameters\": "
          "{\"rope_type\": \"yarn\", \"rope_theta\": 5e5, \"factor\": 4.0, "
          "\"original_max_position_embeddings\": 1024}}",
          &both);
    assert_int_equal(old_keys.n_experts, 6);
    assert_int_equal(old_keys.dtype, MB_F16);
    assert_true(old_keys.rope_scale > 1.1f && old_keys.rope_scale < 1.2f);
    assert_memory_equal(&old_keys, &new_keys, sizeof old_keys);
    assert_memory_equal(&old_keys, &both, sizeof old_keys);
}

/* What Hugging Face takes for keys that are missing. */
static void test_defaults(void **state) {
    (void)state;
    mb_config c;
    parse("{" SHAPE ", \"num_experts\": 6, \"head_dim\": null, \"eos_token_id\": null}", &c);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.max_positions, 32768);
    assert_true(c.rms_eps == 1e-6f);
    assert_int_equal(c.norm_topk_prob, 0);
    assert_int_equal(c.attention_bias, 0);
    assert_int_equal(c.tie_embeddings, 0);
    assert_int_equal(c.activation, MB_ACT_SWIGLU);
    assert_int_equal(c.n_eos_ids, 0);
    assert_true(c.rope_scale == 1);
    assert_true(fabsf(c.inv_freq[1] - 0.1f) < 1e-7f); /* 10000^(-2/8) */
    for (int l = 0; l < 4; l++)
        assert_int_equal(c.is_moe[l], 1);
}

static void test_layer_types(void **state) {
    (void)state;
    mb_config c;
    memset(&c, 0xff, sizeof c);
    parse("{" SHAPE ", \"num_experts\": 4}", &c);
    for (int l = 0; l < 4; l++)
        assert_int_equal(c.kinds[l], MB_LAYER_ATTENTION);
    parse("{" SHAPE ", \"num_experts\": 4, \"layer_types\": [\"full_attention\", \"full_attention\", "
          "\"full_attention\", \"full_attention\"]}",
          &c);
    for (int l = 0; l < 4; l++)
        assert_int_equal(c.kinds[l], MB_LAYER_ATTENTION);
}

static void test_layer_kinds(void **state) {
    (void)state;
    static const struct {
        const char *members;
        uint8_t is_moe[4];
    } cases[] = {
        {"\"num_experts\": 4, \"decoder_sparse_step\": 2", {0, 1, 0, 1}},
        {"\"num_experts\": 4, \"decoder_sparse_step\": 3", {0, 0, 1, 0}},
        {"\"num_experts\": 4, \"mlp_only_layers\": [0, 3]", {0, 1, 1, 0}},
        {"\"num_experts\": 4, \"decoder_sparse_step\": 2, \"mlp_only_layers\": [1, 1]", {0, 0, 0, 1}},
        {"\"num_experts\": 0", {0, 0, 0, 0}},
        {"\"num_experts\": 4, \"mlp_only_layers\": null", {1, 1, 1, 1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[1024];
        mb_config c;
        snprintf(text, sizeof text, "{" SHAPE ", \"intermediate_size\": 48, %s}", cases[i].members);
        parse(text, &c);
        assert_memory_equal(c.is_moe, cases[i].is_moe, 4);
    }
}

static void test_activations_and_quantization(void **state) {
    (void)state;
    mb_config c;
    parse("{" SHAPE ", \"num_experts\": 4, \"hidden_act\": \"gelu_pytorch_tanh\", \"eos_token_id\": [3, 5], "
          "\"quantization_config\": {\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\", "
          "\"quant_method\": \"fp8\", "
          "\"modules_to_not_convert\": [\"lm_head\"], \"weight_block_size\": [128, 128]}}",
          &c);
    assert_int_equal(c.activation, MB_ACT_GEGLU);
    assert_int_equal(c.fp8_blocks, 1);
    assert_int_equal(c.n_eos_ids, 2);
    assert_int_equal(c.eos_ids[1], 5);
    parse("{" SHAPE ", \"num_experts\": 4, \"hidden_act\": \"relu\", \"quantization_config\": null}", &c);
    assert_int_equal(c.activation, MB_ACT_REGLU);
    assert_int_equal(c.fp8_blocks, 0);
}

/* Reference values of transformers 5.17 (float32): frequencies i = 0, D/8, D/4, 3D/8, D/2 - 1, and the factor
 * on cos and sin. Powers of other libraries may differ from ours in the last bit. */
static const struct rope_case {
    const char *members;
    int32_t head_dim;
    double scale, inv_freq[5];
} rope_cases[] = {
    {"\"rope_theta\": 1000000.0, \"max_position_embeddings\": 40960",
     128,
     1.0,
     {1, 0.0316227786, 0.00100000005, 3.16227743e-05, 1.24093776e-06}},
    {"\"rope_theta\": 10000.0, \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 3.0}",
     64,
     1.0,
     {0.333333343, 0.0333333351, 0.00333333318, 0.000333333359, 4.44507168e-05}},
    {"\"rope_theta\": 1000000.0, \"max_position_embeddings\": 131072, \"rope_scaling\": {\"rope_type\": "
     "\"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": 32768}",
     128,
     1.138629436111989,
     {1, 0.0316227786, 0.000602941145, 7.90569356e-06, 3.10234441e-07}},
    {"\"rope_theta\": 10000.0, \"max_position_embeddings\": 4096, \"rope_scaling\": {\"type\": \"yarn\", "
     "\"factor\": 8.0}",
     64,
     1.2079441541679836,
     {1, 0.100000001, 0.00596153876, 0.000125000006, 1.66690188e-05}},
    {"\"rope_theta\": 500000.0, \"max_position_embeddings\": 163840, \"rope_scaling\": {\"type\": \"yarn\", "
     "\"factor\": 40, \"original_max_position_embeddings\": 4096, \"mscale\": 1.0, \"mscale_all_dim\": "
     "0.707, \"beta_fast\": 16, \"beta_slow\": 2}",
     64,
     1.0857263992561355,
     {1, 0.0376060307, 3.53553369e-05, 1.32957393e-06, 7.53464491e-08}},
    {"\"rope_theta\": 10000.0, \"max_position_embeddings\": 512, \"rope_scaling\": {\"rope_type\": \"yarn\", "
     "\"factor\": 2.5, \"original_max_position_embeddings\": 64, \"truncate\": false}",
     16,
     1.0916290731874154,
     {1, 0.0404761992, 0.00400000019, 0.00039999999, 0.000126491112}},
    {"\"rope_parameters\": {\"rope_theta\": 12345.5, \"rope_type\": \"yarn\", \"factor\": 1.5, "
     "\"original_max_position_embeddings\": 1024, \"attention_factor\": 0.75}",
     32,
     0.75,
     {1, 0.0858335644, 0.00642861798, 0.000569216209, 9.73014612e-05}},
    {"\"rope_theta\": 1000000.0, \"max_position_embeddings\": 65536, \"rope_scaling\": {\"rope_type\": "
     "\"yarn\", \"factor\": null, \"original_max_position_embeddings\": 16384}",
     128,
     1.138629436111989,
     {1, 0.0316227786, 0.000470588217, 7.90569356e-06, 3.10234441e-07}},
};

static void test_rope(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof rope_cases / sizeof *rope_cases; i++) {
        const struct rope_case *r = &rope_cases[i];
        char text[2048];
        mb_config c;
        snprintf(text, sizeof text, "{" SHAPE ", \"num_experts\": 4, \"head_dim\": %d, %s}", r->head_dim,
                 r->members);
        parse(text, &c);
        int half = r->head_dim / 2;
        int at[5] = {0, half / 4, half / 2, 3 * half / 4, half - 1};
        if (fabs(c.rope_scale - r->scale) > 1e-7 * r->scale)
            fail_msg("%s: scale %.9g, wanted %.9g", r->members, c.rope_scale, r->scale);
        for (int k = 0; k < 5; k++)
            if (fabs(c.inv_freq[at[k]] - r->inv_freq[k]) > 1.2e-7 * r->inv_freq[k])
                fail_msg("%s: frequency %d is %.9g, wanted %.9g", r->members, at[k], c.inv_freq[at[k]],
                         r->inv_freq[k]);
    }
}

static void test_generation(void **state) {
    (void)state;
    static const char text[] =
        "{\"bos_token_id\": 1, \"do_sample\": true, \"eos_token_id\": [9, 7], \"pad_token_id\": 1,"
        "\"temperature\": 0.6, \"top_k\": 20, \"top_p\": 0.95, \"min_p\": 0.05,"
        "\"repetition_penalty\": 1.05, \"transformers_version\": \"4.51.0\"}";
    mb_config config = {.vocab = 64, .eos_ids = {5}, .n_eos_ids = 1};
    mb_generation g;
    assert_int_equal(mb_generation_parse("g.json", text, strlen(text), &config, &g), MB_OK);
    assert_int_equal(g.do_sample, 1);
    assert_true(g.temperature == 0.6f && g.top_p == 0.95f && g.min_p == 0.05f &&
                g.repetition_penalty == 1.05f);
    assert_int_equal(g.top_k, 20);
    assert_int_equal(g.n_eos_ids, 2);
    assert_int_equal(g.eos_ids[0], 9);
    assert_int_equal(g.eos_ids[1], 7);
    const char *const without[] = {NULL, "{}", "{\"eos_token_id\": null, \"temperature\": null}"};
    for (int i = 0; i < 3; i++) {
        size_t n = without[i] ? strlen(without[i]) : 0;
        assert_int_equal(mb_generation_parse("g.json", without[i], n, &config, &g), MB_OK);
        assert_int_equal(g.do_sample, 0);
        assert_true(g.temperature == 1 && g.top_p == 1 && g.min_p == 0 && g.repetition_penalty == 1);
        assert_int_equal(g.top_k, 0);
        assert_int_equal(g.n_eos_ids, 1);
        assert_int_equal(g.eos_ids[0], 5);
    }
}

/* Values that other programs write for "off", "no limit" or "none". */
static void test_generation_as_others_write_it(void **state) {
    (void)state;
    static const struct {
        const char *text;
        float temperature, top_p, min_p, repetition_penalty;
        int32_t top_k, do_sample;
    } cases[] = {
        {"{\"top_k\": -1}", 1, 1, 0, 1, 0, 0},
        {"{\"top_k\": 0}", 1, 1, 0, 1, 0, 0},
        {"{\"top_k\": 20.0}", 1, 1, 0, 1, 20, 0},
        {"{\"top_k\": 1000000000000000000000}", 1, 1, 0, 1, INT32_MAX, 0},
        {"{\"top_k\": null, \"top_p\": null}", 1, 1, 0, 1, 0, 0},
        {"{\"top_p\": 0}", 1, 0, 0, 1, 0, 0},
        {"{\"top_p\": 0.0, \"do_sample\": true}", 1, 0, 0, 1, 0, 1},
        {"{\"min_p\": 1}", 1, 1, 1, 1, 0, 0},
        {"{\"temperature\": 0, \"do_sample\": true}", 0, 1, 0, 1, 0, 1},
        {"{\"temperature\": 0.5, \"temperature\": 0.75}", 0.75f, 1, 0, 1, 0, 0},
        {"{\"max_length\": 1000000000000000019884624838656, \"penalty_alpha\": NaN}", 1, 1, 0, 1, 0, 0},
        /* wrong: opens, and is refused where it is used */
        {"{\"temperature\": -0.1}", NAN, 1, 0, 1, 0, 0},
        {"{\"temperature\": NaN}", NAN, 1, 0, 1, 0, 0},
        {"{\"temperature\": Infinity}", NAN, 1, 0, 1, 0, 0},
        {"{\"temperature\": \"hot\"}", NAN, 1, 0, 1, 0, 0},
        {"{\"top_p\": 1.01}", 1, NAN, 0, 1, 0, 0},
        {"{\"min_p\": -1}", 1, 1, NAN, 1, 0, 0},
        {"{\"repetition_penalty\": 0}", 1, 1, 0, NAN, 0, 0},
        {"{\"top_k\": -5}", 1, 1, 0, 1, -1, 0},
        {"{\"top_k\": 2.5}", 1, 1, 0, 1, -1, 0},
        {"{\"top_k\": true}", 1, 1, 0, 1, -1, 0},
        {"{\"top_k\": NaN}", 1, 1, 0, 1, -1, 0},
        {"{\"do_sample\": \"yes\"}", NAN, 1, 0, 1, 0, 1},
    };
    mb_config config = {.vocab = 64, .eos_ids = {5}, .n_eos_ids = 1};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_generation g;
        if (mb_generation_parse("g.json", cases[i].text, strlen(cases[i].text), &config, &g) != MB_OK)
            fail_msg("%s: %s", cases[i].text, mb_last_error());
        const float is[] = {g.temperature, g.top_p, g.min_p, g.repetition_penalty};
        const float wanted[] = {cases[i].temperature, cases[i].top_p, cases[i].min_p,
                                cases[i].repetition_penalty};
        for (int k = 0; k < 4; k++)
            if (is[k] != wanted[k] && !(isnan(is[k]) && isnan(wanted[k])))
                fail_msg("%s: setting %d is %g, wanted %g", cases[i].text, k, is[k], wanted[k]);
        if (g.top_k != cases[i].top_k || g.do_sample != cases[i].do_sample)
            fail_msg("%s: top_k %d, do_sample %d", cases[i].text, g.top_k, g.do_sample);
    }
}

static void test_end_tokens(void **state) {
    (void)state;
    mb_config config = {.vocab = 2000, .eos_ids = {5}, .n_eos_ids = 1};
    mb_generation g;
    char text[8192];
    size_t n = (size_t)snprintf(text, sizeof text, "{\"eos_token_id\": [");
    for (int i = 0; i < MB_MAX_EOS; i++) /* each twice: that is no second token */
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%d, %d", i ? ", " : "", i + 100, i + 100);
    snprintf(text + n, sizeof text - n, ", -1, 2000, 151645]}"); /* never drawn */
    assert_int_equal(mb_generation_parse("g.json", text, strlen(text), &config, &g), MB_OK);
    assert_int_equal(g.n_eos_ids, MB_MAX_EOS);
    for (int i = 0; i < MB_MAX_EOS; i++)
        assert_int_equal(g.eos_ids[i], i + 100);
    snprintf(text + n, sizeof text - n, ", 1]}"); /* one too many: those of config.json count */
    assert_int_equal(mb_generation_parse("g.json", text, strlen(text), &config, &g), MB_OK);
    assert_int_equal(g.n_eos_ids, 1);
    assert_int_equal(g.eos_ids[0], 5);
}

static void test_config_as_others_write_it(void **state) {
    (void)state;
    mb_config plain, other;
    parse("{" SHAPE ", \"num_experts\": 6}", &plain);
    static const char *const members[] = {
        "\"hidden_size\": 32", /* there already */
        "\"initializer_range\": NaN, \"router_aux_loss_coef\": -Infinity, \"pad_token_id\": Infinity",
        "\"max_length\": 1000000000000000019884624838656, \"bos_token_id\": 151643",
        "\"use_sliding_window\": true, \"sliding_window\": null",
        "\"use_sliding_window\": true, \"sliding_window\": 32768",
        "\"use_sliding_window\": true",
        "\"torch_dtype\": \"auto\", \"dtype\": 64", /* the tensors tell their types */
        "\"use_sliding_window\": false, \"sliding_window\": 128, \"max_window_layers\": 0",
        "\"eos_token_id\": 151645, \"eos_token_id\": null"};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        char text[1024];
        snprintf(text, sizeof text, "{" SHAPE ", \"num_experts\": 6, %s}", members[i]);
        parse(text, &other);
        assert_memory_equal(&plain, &other, sizeof plain);
    }
    static const char *const quantized[] = {
        "\"strategy\": \"block\", \"block_structure\": [128, 128]}, \"input_activations\": {\"dynamic\": true}",
        "\"strategy\": \"block\", \"block_structure\": \"128x128\"}, \"input_activations\": null"};
    for (int i = 0; i < 2; i++) {
        char text[1024];
        snprintf(text, sizeof text,
                 "{" SHAPE ", \"num_experts\": 6, \"quantization_config\": {\"quant_method\": "
                 "\"compressed-tensors\", \"format\": \"float-quantized\", \"ignore\": [\"lm_head\"], "
                 "\"transform_config\": {}, \"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], "
                 "\"weights\": {\"num_bits\": 8, \"type\": \"float\", %s}}}}",
                 quantized[i]);
        parse(text, &other);
        assert_int_equal(other.fp8_blocks, 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published),
        cmocka_unit_test(test_both_spellings),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_layer_types),
        cmocka_unit_test(test_layer_kinds),
        cmocka_unit_test(test_activations_and_quantization),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_generation),
        cmocka_unit_test(test_generation_as_others_write_it),
        cmocka_unit_test(test_end_tokens),
        cmocka_unit_test(test_config_as_others_write_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
