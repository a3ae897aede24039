/* Broken config.json and generation_config.json: each case must give its own status and sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/config.h"

/* A valid configuration; every case changes one member of it. */
static const char *const base[][2] = {
    {"architectures", "[\"Qwen3MoeForCausalLM\"]"},
    {"model_type", "\"qwen3_moe\""},
    {"hidden_size", "32"},
    {"num_hidden_layers", "2"},
    {"num_attention_heads", "4"},
    {"num_key_value_heads", "2"},
    {"head_dim", "16"},
    {"vocab_size", "64"},
    {"max_position_embeddings", "512"},
    {"num_experts", "4"},
    {"num_experts_per_tok", "2"},
    {"moe_intermediate_size", "24"},
    {"intermediate_size", "48"},
    {"rope_theta", "10000.0"},
    {"torch_dtype", "\"bfloat16\""},
};

typedef struct config_case {
    const char *key, *value; /* value NULL: the key is removed; key NULL: value is the whole document */
    mb_status status;
    const char *sentence; /* part of it */
} config_case;

#define IS(key, shown) "\"" key "\" is " shown

static const config_case config_cases[] = {
    /* not a configuration */
    {NULL, "", MB_ERR_FORMAT, "not valid JSON"},
    {NULL, "{", MB_ERR_FORMAT, "not valid JSON at line 1"},
    {NULL, "{}", MB_ERR_CONFIG, "neither \"model_type\" nor \"architectures\""},
    {NULL, "[1, 2]", MB_ERR_CONFIG, "holds an array; it must be a JSON object"},
    {NULL, "17", MB_ERR_CONFIG, "holds 17; it must be a JSON object"},
    {NULL, "{\"a\": 1} x", MB_ERR_FORMAT, "end of file expected"},
    {NULL, "{\"a\": 1, \"a\": 2}", MB_ERR_CONFIG, "neither \"model_type\""},
    {NULL, "{\"a\": \"\xff\xfe\"}", MB_ERR_FORMAT, "unable to decode byte 0xff"},
    {NULL, "{\"a\": \"\\ud800\"}", MB_ERR_FORMAT, "not valid JSON"},
    {NULL, "{\"a\\u0000b\": 1}", MB_ERR_FORMAT, "not valid JSON"},
    {NULL, "\xef\xbb\xbf{}", MB_ERR_FORMAT,
     "config.json: begins with a byte order mark (BOM); save it as UTF-8 without one"},
    {NULL, "\xff\xfe{", MB_ERR_FORMAT, "begins with a byte order mark (BOM)"}, /* UTF-16, little-endian */
    {NULL, "\xfe\xff", MB_ERR_FORMAT, "begins with a byte order mark (BOM)"},  /* big-endian */
    {NULL, "\xef\xbb", MB_ERR_FORMAT, "not valid JSON"},
    {NULL, "{\"hidden_size\": 0x20}", MB_ERR_FORMAT, "not valid JSON"},
    {NULL, "{\"hidden_size\": 32,}", MB_ERR_FORMAT, "not valid JSON"},
    /* another model */
    {"model_type", "\"llama\"", MB_ERR_UNSUPPORTED, IS("model_type", "\"llama\"")},
    {"model_type", "\"bad\\ntype\"", MB_ERR_UNSUPPORTED, IS("model_type", "\"bad?type\"")},
    {"model_type", "3", MB_ERR_CONFIG, IS("model_type", "3; it must be a string")},
    {"architectures", "[\"Qwen2MoeForCausalLM\"]", MB_ERR_UNSUPPORTED,
     IS("architectures", "\"Qwen2MoeForCausalLM\"")},
    {"architectures", "[]", MB_ERR_UNSUPPORTED, IS("architectures", "an array")},
    {"architectures", "\"Qwen3MoeForCausalLM\"", MB_ERR_UNSUPPORTED, "\"architectures\" is"},
    /* sizes */
    {"hidden_size", NULL, MB_ERR_CONFIG, "\"hidden_size\" is missing"},
    {"hidden_size", "null", MB_ERR_CONFIG, "\"hidden_size\" is missing"},
    {"hidden_size", "0", MB_ERR_CONFIG, IS("hidden_size", "0; it must be an integer from 1 to 65536")},
    {"hidden_size", "-32", MB_ERR_CONFIG, IS("hidden_size", "-32")},
    {"hidden_size", "65537", MB_ERR_CONFIG, IS("hidden_size", "65537")},
    {"hidden_size", "4294967328", MB_ERR_CONFIG, IS("hidden_size", "4294967328")},
    {"hidden_size", "99999999999999999999", MB_ERR_CONFIG,
     IS("hidden_size", "99999999999999999999; it must")},
    {"hidden_size", "32.0", MB_ERR_CONFIG, IS("hidden_size", "32.0; it must be an integer")},
    {"hidden_size", "\"32\"", MB_ERR_CONFIG, IS("hidden_size", "\"32\"")},
    {"hidden_size", "true", MB_ERR_CONFIG, IS("hidden_size", "true")},
    {"hidden_size", "[32]", MB_ERR_CONFIG, IS("hidden_size", "an array")},
    {"hidden_size", "NaN", MB_ERR_CONFIG, IS("hidden_size", "NaN; it must be")},
    {"hidden_size", "Infinity", MB_ERR_CONFIG, IS("hidden_size", "Infinity; it must be")},
    {"num_hidden_layers", NULL, MB_ERR_CONFIG, "\"num_hidden_layers\" is missing"},
    {"num_hidden_layers", "0", MB_ERR_CONFIG, IS("num_hidden_layers", "0")},
    {"num_hidden_layers", "1025", MB_ERR_CONFIG, IS("num_hidden_layers", "1025")},
    {"num_attention_heads", NULL, MB_ERR_CONFIG, "\"num_attention_heads\" is missing"},
    {"num_attention_heads", "0", MB_ERR_CONFIG, IS("num_attention_heads", "0")},
    {"num_attention_heads", "3", MB_ERR_CONFIG, "\"num_attention_heads\" (3) is not a multiple"},
    {"num_attention_heads", "2000", MB_ERR_CONFIG, IS("num_attention_heads", "2000")},
    {"num_key_value_heads", NULL, MB_ERR_CONFIG, "\"num_key_value_heads\" is missing"},
    {"num_key_value_heads", "0", MB_ERR_CONFIG, IS("num_key_value_heads", "0")},
    {"num_key_value_heads", "8", MB_ERR_CONFIG, "not a multiple of \"num_key_value_heads\" (8)"},
    {"head_dim", "15", MB_ERR_CONFIG, "\"head_dim\" is 15; it must be an even number"},
    {"head_dim", "0", MB_ERR_CONFIG, IS("head_dim", "0")},
    {"head_dim", "514", MB_ERR_CONFIG, IS("head_dim", "514")},
    {"head_dim", "-16", MB_ERR_CONFIG, IS("head_dim", "-16")},
    {"vocab_size", NULL, MB_ERR_CONFIG, "\"vocab_size\" is missing"},
    {"vocab_size", "0", MB_ERR_CONFIG, IS("vocab_size", "0")},
    {"vocab_size", "16777217", MB_ERR_CONFIG, IS("vocab_size", "16777217")},
    {"max_position_embeddings", "0", MB_ERR_CONFIG, IS("max_position_embeddings", "0")},
    {"max_position_embeddings", "1e3", MB_ERR_CONFIG, IS("max_position_embeddings", "1000.0")},
    /* experts */
    {"num_experts", NULL, MB_ERR_CONFIG, "\"num_experts\" (or \"num_local_experts\") is missing"},
    {"num_experts", "1025", MB_ERR_CONFIG, IS("num_experts", "1025")},
    {"num_experts", "-1", MB_ERR_CONFIG, IS("num_experts", "-1")},
    {"num_local_experts", "8", MB_ERR_CONFIG, "\"num_experts\" is 4 but \"num_local_experts\" is 8"},
    {"num_local_experts", "{}", MB_ERR_CONFIG, IS("num_local_experts", "an object")},
    {"num_experts_per_tok", NULL, MB_ERR_CONFIG, "\"num_experts_per_tok\" is missing"},
    {"num_experts_per_tok", "0", MB_ERR_CONFIG, IS("num_experts_per_tok", "0")},
    {"num_experts_per_tok", "5", MB_ERR_CONFIG, "\"num_experts_per_tok\" is 5, more than the 4 experts"},
    {"num_experts_per_tok", "33", MB_ERR_CONFIG, IS("num_experts_per_tok", "33")},
    {"moe_intermediate_size", NULL, MB_ERR_CONFIG, "\"moe_intermediate_size\" is missing"},
    {"moe_intermediate_size", "0", MB_ERR_CONFIG, IS("moe_intermediate_size", "0")},
    {"moe_intermediate_size", "1048577", MB_ERR_CONFIG, IS("moe_intermediate_size", "1048577")},
    {"intermediate_size", "0", MB_ERR_CONFIG, IS("intermediate_size", "0")},
    {"decoder_sparse_step", "0", MB_ERR_CONFIG, IS("decoder_sparse_step", "0")},
    {"decoder_sparse_step", "-1", MB_ERR_CONFIG, IS("decoder_sparse_step", "-1")},
    {"mlp_only_layers", "3", MB_ERR_CONFIG, IS("mlp_only_layers", "3; it must be an array")},
    {"mlp_only_layers", "[2]", MB_ERR_CONFIG, "\"mlp_only_layers\" has 2; layers are integers from 0 to 1"},
    {"mlp_only_layers", "[-1]", MB_ERR_CONFIG, "\"mlp_only_layers\" has -1"},
    {"mlp_only_layers", "[0, \"1\"]", MB_ERR_CONFIG, "\"mlp_only_layers\" has \"1\""},
    {"layer_types", "\"full_attention\"", MB_ERR_CONFIG,
     IS("layer_types", "\"full_attention\"; it must be an array")},
    {"layer_types", "[\"full_attention\"]", MB_ERR_CONFIG,
     "the length of \"layer_types\" is 1; it must be 2, a name for each layer"},
    {"layer_types", "[]", MB_ERR_CONFIG,
     "the length of \"layer_types\" is 0; it must be 2, a name for each layer"},
    {"layer_types", "[\"full_attention\", \"linear_attention\"]", MB_ERR_UNSUPPORTED,
     "\"layer_types\" has \"linear_attention\" for layer 1"},
    {"layer_types", "[\"full_attention\", 1]", MB_ERR_UNSUPPORTED, "\"layer_types\" has 1 for layer 1"},
    {"norm_topk_prob", "1", MB_ERR_CONFIG, IS("norm_topk_prob", "1; it must be true or false")},
    {"attention_bias", "\"no\"", MB_ERR_CONFIG, IS("attention_bias", "\"no\"")},
    {"tie_word_embeddings", "0", MB_ERR_CONFIG, IS("tie_word_embeddings", "0")},
    {"hidden_act", "\"gelu\"", MB_ERR_UNSUPPORTED, IS("hidden_act", "\"gelu\"")},
    {"hidden_act", "[]", MB_ERR_CONFIG, IS("hidden_act", "an array")},
    {"use_sliding_window", "true, \"sliding_window\": 511", MB_ERR_UNSUPPORTED,
     "\"use_sliding_window\" is true and \"sliding_window\" is 511, less than the 512 positions"},
    {"use_sliding_window", "true, \"sliding_window\": 0", MB_ERR_UNSUPPORTED, "\"sliding_window\" is 0"},
    {"use_sliding_window", "true, \"sliding_window\": -1", MB_ERR_CONFIG, IS("sliding_window", "-1")},
    {"use_sliding_window", "true, \"sliding_window\": \"4k\"", MB_ERR_CONFIG, IS("sliding_window", "\"4k\"")},
    {"use_sliding_window", "1", MB_ERR_CONFIG, IS("use_sliding_window", "1")},
    /* numbers */
    {"rms_norm_eps", "0", MB_ERR_CONFIG, IS("rms_norm_eps", "0")},
    {"rms_norm_eps", "-1e-6", MB_ERR_CONFIG, IS("rms_norm_eps", "-1e-06")},
    {"rms_norm_eps", "2", MB_ERR_CONFIG, IS("rms_norm_eps", "2")},
    {"rms_norm_eps", "NaN", MB_ERR_CONFIG, IS("rms_norm_eps", "NaN; it must be")},
    {"rms_norm_eps", "1e999", MB_ERR_FORMAT, "real number overflow"},
    {"rms_norm_eps", "\"1e-6\"", MB_ERR_CONFIG, IS("rms_norm_eps", "\"1e-6\"")},
    {"eos_token_id", "\"1\"", MB_ERR_CONFIG,
     "\"eos_token_id\" has \"1\"; token ids are integers from 0 to 63"},
    {"eos_token_id", "[1, 2.0]", MB_ERR_CONFIG, "\"eos_token_id\" has 2.0"},
    {"eos_token_id", "{}", MB_ERR_CONFIG, "\"eos_token_id\" has an object"},
    /* rope */
    {"rope_theta", "0", MB_ERR_CONFIG, IS("rope_theta", "0")},
    {"rope_theta", "-10000", MB_ERR_CONFIG, IS("rope_theta", "-10000")},
    {"rope_theta", "1e16", MB_ERR_CONFIG, IS("rope_theta", "1e+16")},
    {"rope_theta", "\"1e6\"", MB_ERR_CONFIG, IS("rope_theta", "\"1e6\"")},
    {"rope_scaling", "\"yarn\"", MB_ERR_CONFIG, IS("rope_scaling", "\"yarn\"; it must be an object")},
    {"rope_scaling", "{\"rope_type\": 5}", MB_ERR_CONFIG, IS("rope_type", "5")},
    {"rope_scaling", "{\"rope_type\": \"dynamic\", \"factor\": 2.0}", MB_ERR_UNSUPPORTED,
     "\"rope_scaling\" has the type \"dynamic\""},
    {"rope_scaling", "{\"type\": \"longrope\"}", MB_ERR_UNSUPPORTED, "has the type \"longrope\""},
    {"rope_parameters", "{\"rope_type\": \"llama3\", \"factor\": 8.0}", MB_ERR_UNSUPPORTED,
     "\"rope_parameters\" has the type \"llama3\""},
    {"rope_parameters", "{\"rope_theta\": 0.5}", MB_ERR_CONFIG, IS("rope_theta", "0.5")},
    {"rope_parameters", "{\"partial_rotary_factor\": 0.5}", MB_ERR_UNSUPPORTED,
     "\"partial_rotary_factor\" is 0.5"},
    {"rope_scaling", "{\"type\": \"linear\"}", MB_ERR_CONFIG, "\"linear\" has no \"factor\""},
    {"rope_scaling", "{\"type\": \"linear\", \"factor\": 0}", MB_ERR_CONFIG, IS("factor", "0")},
    {"rope_scaling", "{\"type\": \"linear\", \"factor\": -2}", MB_ERR_CONFIG, IS("factor", "-2")},
    {"rope_scaling", "{\"type\": \"yarn\", \"factor\": 1e9}", MB_ERR_CONFIG, IS("factor", "1e+09")},
    {"rope_scaling", "{\"type\": \"yarn\", \"factor\": \"4\"}", MB_ERR_CONFIG, IS("factor", "\"4\"")},
    {"rope_scaling", "{\"type\": \"yarn\", \"original_max_position_embeddings\": 0}", MB_ERR_CONFIG,
     IS("original_max_position_embeddings", "0")},
    {"rope_scaling", "{\"type\": \"yarn\", \"original_max_position_embeddings\": 1.5}", MB_ERR_CONFIG,
     IS("original_max_position_embeddings", "1.5")},
    {"rope_scaling", "{\"type\": \"yarn\", \"beta_fast\": -1}", MB_ERR_CONFIG, IS("beta_fast", "-1")},
    {"rope_scaling", "{\"type\": \"yarn\", \"attention_factor\": -1}", MB_ERR_CONFIG,
     IS("attention_factor", "-1")},
    {"rope_scaling", "{\"type\": \"yarn\", \"truncate\": 1}", MB_ERR_CONFIG, IS("truncate", "1")},
    /* quantisation */
    {"quantization_config", "\"fp8\"", MB_ERR_CONFIG, IS("quantization_config", "\"fp8\"")},
    {"quantization_config", "{}", MB_ERR_UNSUPPORTED, "\"quant_method\" \"(none)\""},
    {"quantization_config", "{\"quant_method\": \"awq\", \"bits\": 4}", MB_ERR_UNSUPPORTED,
     "\"quant_method\" \"awq\""},
    {"quantization_config", "{\"quant_method\": \"fp8\"}", MB_ERR_UNSUPPORTED, "no \"weight_block_size\""},
    {"quantization_config", "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 64]}",
     MB_ERR_UNSUPPORTED, "no \"weight_block_size\" [128, 128]"},
    {"quantization_config",
     "{\"quant_method\": \"fp8\", \"fmt\": \"e5m2\", \"weight_block_size\": [128, 128]}", MB_ERR_UNSUPPORTED,
     "\"fmt\" \"e5m2\""},
    {"quantization_config",
     "{\"quant_method\": \"fp8\", \"activation_scheme\": \"static\", \"weight_block_size\": [128, 128]}",
     MB_ERR_UNSUPPORTED, "\"activation_scheme\" \"static\""},
    {"quantization_config",
     "{\"quant_method\": \"compressed-tensors\", "
     "\"config_groups\": {\"group_0\": {\"weights\": {\"num_bits\": 4, \"type\": \"int\", \"strategy\": \"group\", \"block_structure\": null}}}}",
     MB_ERR_UNSUPPORTED, "weights of 4 bits, type \"int\", strategy \"group\""},
    {"quantization_config",
     "{\"quant_method\": \"compressed-tensors\", "
     "\"config_groups\": {\"group_0\": {\"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"channel\", \"block_structure\": null}}}}",
     MB_ERR_UNSUPPORTED, "strategy \"channel\"; of compressed-tensors only"},
    {"quantization_config",
     "{\"quant_method\": \"compressed-tensors\", "
     "\"config_groups\": {\"group_0\": {\"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"block\", \"block_structure\": [64, 64]}}}}",
     MB_ERR_UNSUPPORTED, "strategy \"block\" of 128x128 is supported"},
    {"quantization_config",
     "{\"quant_method\": \"compressed-tensors\", "
     "\"config_groups\": {\"group_0\": {\"weights\": {\"num_bits\": 8, \"type\": \"int\", \"strategy\": \"block\", \"block_structure\": [128, 128]}}}}",
     MB_ERR_UNSUPPORTED, "type \"int\""},
    {"quantization_config",
     "{\"quant_method\": \"compressed-tensors\", "
     "\"config_groups\": {\"group_0\": {}}}",
     MB_ERR_UNSUPPORTED, "type \"(none)\""},
    {"quantization_config",
     "{\"quant_method\": \"compressed-tensors\", "
     "\"config_groups\": {\"group_0\": {\"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"block\", \"block_structure\": [128, 128]}, \"input_activations\": {\"dynamic\": false}}}}",
     MB_ERR_UNSUPPORTED, "only dynamic ones"},
    {"quantization_config",
     "{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", "
     "\"config_groups\": {\"group_0\": {\"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"block\", \"block_structure\": [128, 128]}}}}",
     MB_ERR_UNSUPPORTED, "\"format\" \"pack-quantized\""},
    {"quantization_config",
     "{\"quant_method\": \"compressed-tensors\", \"transform_config\": {\"config_groups\": {}}, "
     "\"config_groups\": {\"group_0\": {\"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"block\", \"block_structure\": [128, 128]}}}}",
     MB_ERR_UNSUPPORTED, "\"transform_config\""},
    {"quantization_config", "{\"quant_method\": \"compressed-tensors\"}", MB_ERR_CONFIG,
     "no \"config_groups\""},
};

/* The base with `key` replaced, added or (value NULL) removed; free() it. */
static char *document(const char *key, const char *value) {
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    const char *separator = "{";
    int replaced = 0;
    for (size_t i = 0; i < sizeof base / sizeof *base; i++) {
        int same = key && strcmp(base[i][0], key) == 0;
        replaced |= same;
        if (same && !value)
            continue;
        fprintf(f, "%s\"%s\": %s", separator, base[i][0], same ? value : base[i][1]);
        separator = ",\n";
    }
    if (key && !replaced)
        fprintf(f, "%s\"%s\": %s", separator, key, value);
    fprintf(f, "}");
    assert_int_equal(fclose(f), 0);
    return text;
}

static void expect(mb_status status, const char *what, mb_status wanted, const char *sentence) {
    if (status != wanted || !strstr(mb_last_error(), sentence) || strncmp(mb_last_error(), "DIR/", 4) != 0)
        fail_msg("%s\n  gave   %s: %s\n  wanted %s: ...%s...", what, mb_status_name(status), mb_last_error(),
                 mb_status_name(wanted), sentence);
}

static void test_base_is_valid(void **state) {
    (void)state;
    char *text = document(NULL, NULL);
    mb_config config;
    assert_int_equal(mb_config_parse("DIR/config.json", text, strlen(text), &config), MB_OK);
    free(text);
}

static void test_config_cases(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof config_cases / sizeof *config_cases; i++) {
        const config_case *c = &config_cases[i];
        char *text = c->key ? document(c->key, c->value) : strdup(c->value);
        mb_config config;
        expect(mb_config_parse("DIR/config.json", text, strlen(text), &config), text, c->status, c->sentence);
        free(text);
    }
    print_message("%zu broken config.json\n", sizeof config_cases / sizeof *config_cases);
}

/* Each value alone is in range, and together they are not. */
static void test_products(void **state) {
    (void)state;
    static const char text[] =
        "{\"model_type\": \"qwen3_moe\", \"hidden_size\": 65536, \"num_hidden_layers\": 1024, "
        "\"num_attention_heads\": 1024, \"num_key_value_heads\": 1024, \"head_dim\": 512, \"vocab_size\": "
        "16777216, "
        "\"num_experts\": 1024, \"num_experts_per_tok\": 32, \"moe_intermediate_size\": 1048576}";
    mb_config config;
    expect(mb_config_parse("DIR/config.json", text, strlen(text), &config), text, MB_ERR_CONFIG,
           "more than 2^48");
}

/* Brackets nested deeper than the stack could follow must be refused before anything recurses. */
static void test_deep_json(void **state) {
    (void)state;
    enum { DEPTH = 250000 };
    static const char *const openings[] = {"[", "{\"a\":"};
    for (int i = 0; i < 2; i++) {
        size_t n = strlen(openings[i]);
        char *text = malloc(DEPTH * n + 1);
        assert_non_null(text);
        for (size_t k = 0; k < DEPTH; k++)
            memcpy(text + k * n, openings[i], n);
        mb_config config;
        expect(mb_config_parse("DIR/config.json", text, DEPTH * n, &config), "deep JSON", MB_ERR_FORMAT,
               "nested deeper than 100");
        free(text);
    }
}

/* A config.json that is cut off at any byte is an error, never a crash and never accepted. */
static void test_every_truncation(void **state) {
    (void)state;
    char *text = document(NULL, NULL);
    size_t n = strlen(text);
    for (size_t k = 0; k < n; k++) {
        char *part = malloc(k ? k : 1); /* exactly k bytes, so that a sanitizer sees reads behind them */
        assert_non_null(part);
        memcpy(part, text, k);
        mb_config config;
        expect(mb_config_parse("DIR/config.json", part, k, &config), "truncated", MB_ERR_FORMAT,
               "not valid JSON");
        free(part);
    }
    free(text);
}

static const struct generation_case {
    const char *text;
    mb_status status;
    const char *sentence;
} generation_cases[] = {
    {"", MB_ERR_FORMAT, "not valid JSON"},
    {"[]", MB_ERR_CONFIG, "holds an array"},
    {"{\"temperature\": 0.6", MB_ERR_FORMAT, "not valid JSON"},
    {"{\"temperature\": 1e999}", MB_ERR_FORMAT, "real number overflow"},
};

static void test_generation_cases(void **state) {
    (void)state;
    mb_config config = {.vocab = 64};
    for (size_t i = 0; i < sizeof generation_cases / sizeof *generation_cases; i++) {
        const struct generation_case *c = &generation_cases[i];
        mb_generation generation;
        expect(
            mb_generation_parse("DIR/generation_config.json", c->text, strlen(c->text), &config, &generation),
            c->text, c->status, c->sentence);
    }
    print_message("%zu broken generation_config.json\n", sizeof generation_cases / sizeof *generation_cases);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base_is_valid),    cmocka_unit_test(test_config_cases),
        cmocka_unit_test(test_products),         cmocka_unit_test(test_deep_json),
        cmocka_unit_test(test_every_truncation), cmocka_unit_test(test_generation_cases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
