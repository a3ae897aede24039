/* Checkpoints that contradict their config.json, devices and memory that fail: each is refused and released.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/check_weights.h"
#include "support/fake_device.h"
#include "support/tiny_checkpoint.h"

typedef struct broken_case {
    const char *remove; /* tensor to leave out, or NULL */
    const char *add;    /* tensor to add: name, or NULL */
    const char *add_dtype;
    int64_t shape[3];  /* of the added one; zeros behind the rank */
    const char *dtype; /* of the checkpoint */
    const char *hide;  /* member of config.json to rename, or NULL */
    mb_status status;
    const char *sentence;
} broken_case;

#define L0 "model.layers.0."
#define E1 L0 "mlp.experts.1."

static const broken_case broken_cases[] = {
    {"model.norm.weight", NULL, NULL, {0}, "F32", NULL, MB_ERR_CONFIG, "\"model.norm.weight\" is missing"},
    {"lm_head.weight", NULL, NULL, {0}, "F32", NULL, MB_ERR_CONFIG, "\"lm_head.weight\" is missing"},
    {"model.embed_tokens.weight",
     NULL,
     NULL,
     {0},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "embed_tokens.weight\" is missing"},
    {L0 "self_attn.k_proj.weight", NULL, NULL, {0}, "F32", NULL, MB_ERR_CONFIG, "k_proj.weight\" is missing"},
    {L0 "self_attn.q_norm.weight", NULL, NULL, {0}, "F32", NULL, MB_ERR_CONFIG, "q_norm.weight\" is missing"},
    {L0 "mlp.gate.weight", NULL, NULL, {0}, "F32", NULL, MB_ERR_CONFIG, "mlp.gate.weight\" is missing"},
    {E1 "up_proj.weight",
     NULL,
     NULL,
     {0},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "experts.1.up_proj.weight\" is missing"},
    {NULL, "we\x01ird", "F32", {1}, "F32", NULL, MB_ERR_FORMAT, "control character"},
    {"model.norm.weight",
     "model.norm.weight",
     "F32",
     {33},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "has the shape [33], but config.json makes it [32]"},
    {"model.norm.weight",
     "model.norm.weight",
     "F32",
     {1, 32},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "has the shape [1, 32]"},
    {"model.norm.weight",
     "model.norm.weight",
     "I32",
     {32},
     "F32",
     NULL,
     MB_ERR_UNSUPPORTED,
     "is I32; weights may be"},
    {"model.norm.weight",
     "model.norm.weight",
     "F64",
     {32},
     "F32",
     NULL,
     MB_ERR_UNSUPPORTED,
     "is F64; weights may be"},
    {"model.norm.weight",
     "model.norm.weight",
     "F8_E5M2",
     {32},
     "F32",
     NULL,
     MB_ERR_UNSUPPORTED,
     "is F8_E5M2"},
    {"model.norm.weight",
     "model.norm.weight",
     "F8_E4M3",
     {32},
     "F8_E4M3",
     NULL,
     MB_ERR_UNSUPPORTED,
     "only linear layers may be"},
    {"model.embed_tokens.weight",
     "model.embed_tokens.weight",
     "F8_E4M3",
     {64, 32},
     "F8_E4M3",
     NULL,
     MB_ERR_UNSUPPORTED,
     "only linear layers may be"},
    {"model.embed_tokens.weight",
     "model.embed_tokens.weight",
     "F32",
     {32, 64},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "has the shape [32, 64], but config.json makes it [64, 32]"},
    {E1 "down_proj.weight",
     E1 "down_proj.weight",
     "F32",
     {32, 25},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "has the shape [32, 25], but config.json makes it [32, 24]"},
    {NULL,
     L0 "mlp.experts.gate_up_proj",
     "F32",
     {4, 48, 31},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "has the shape [4, 48, 31]"},
    {NULL,
     L0 "mlp.experts.gate_up_proj",
     "F32",
     {4, 48, 32},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "experts.down_proj\" is missing"},
    {NULL,
     L0 "mlp.experts.gate_up_proj",
     "F8_E4M3",
     {4, 48, 32},
     "F8_E4M3",
     NULL,
     MB_ERR_UNSUPPORTED,
     "not merged experts"},
    {E1 "up_proj.weight_scale_inv",
     NULL,
     NULL,
     {0},
     "F8_E4M3",
     NULL,
     MB_ERR_CONFIG,
     "experts.1.up_proj.weight_scale_inv\" is missing"},
    {E1 "up_proj.weight_scale_inv",
     E1 "up_proj.weight_scale_inv",
     "F32",
     {2, 1},
     "F8_E4M3",
     NULL,
     MB_ERR_CONFIG,
     "has the shape [2, 1], but config.json makes it [1, 1]"},
    {E1 "up_proj.weight_scale_inv",
     E1 "up_proj.weight_scale_inv",
     "F32",
     {1},
     "F8_E4M3",
     NULL,
     MB_ERR_CONFIG,
     "has the shape [1], but"},
    {E1 "up_proj.weight_scale_inv",
     E1 "up_proj.weight_scale_inv",
     "F64",
     {1, 1},
     "F8_E4M3",
     NULL,
     MB_ERR_UNSUPPORTED,
     "is F64; block scales may be F32, BF16, F16 or F8_E8M0"},
    {NULL,
     NULL,
     NULL,
     {0},
     "F8_E4M3",
     "quantization_config",
     MB_ERR_CONFIG,
     "is F8_E4M3, but config.json has no \"quantization_config\""},
    {E1 "up_proj.weight_scale_inv",
     E1 "up_proj.weight_scale_inv",
     "F8_E4M3",
     {1, 1},
     "F8_E4M3",
     NULL,
     MB_ERR_UNSUPPORTED,
     "is F8_E4M3; block scales may be"},
    {E1 "up_proj.weight_scale_inv",
     E1 "up_proj.weight_scale",
     "F32",
     {24, 1},
     "F8_E4M3",
     NULL,
     MB_ERR_CONFIG,
     "weight_scale\" has the shape [24, 1], but config.json makes it [1, 1]"},
    {L0 "self_attn.v_proj.weight",
     L0 "self_attn.v_proj.weight",
     "F8_E8M0",
     {32, 32},
     "F8_E4M3",
     NULL,
     MB_ERR_UNSUPPORTED,
     "is F8_E8M0; weights may be"},
    {L0 "self_attn.v_proj.weight",
     L0 "self_attn.v_proj.weight",
     "F8_E4M3",
     {32, 32},
     "BF16",
     NULL,
     MB_ERR_CONFIG,
     "v_proj.weight\" is F8_E4M3, but config.json has no \"quantization_config\""},
    /* other names: the sentence says what is there */
    {E1 "up_proj.weight",
     E1 "up_proj.weight_packed",
     "I32",
     {24, 4},
     "BF16",
     NULL,
     MB_ERR_UNSUPPORTED,
     "experts.1.up_proj.weight\" is stored as \"model.layers.0.mlp.experts.1.up_proj.weight_packed\""},
    {L0 "self_attn.q_proj.weight",
     L0 "self_attn.q_proj.qweight",
     "I32",
     {4, 64},
     "F16",
     NULL,
     MB_ERR_UNSUPPORTED,
     "is stored as \"model.layers.0.self_attn.q_proj.qweight\"; of quantised weights only fp8"},
    {"model.embed_tokens.weight",
     "model.language_model.embed_tokens.weight",
     "F32",
     {64, 32},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "the tensors' names begin with \"model.language_model.\" where \"model.\" is expected"},
    {"model.embed_tokens.weight",
     "_orig_mod.model.embed_tokens.weight",
     "F32",
     {64, 32},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "the tensors' names begin with \"_orig_mod.model.\" where"},
    {"model.embed_tokens.weight",
     "embed_tokens.weight",
     "F32",
     {64, 32},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "the tensors' names begin with \"\" where \"model.\" is expected"},
    {"lm_head.weight",
     "language_model.lm_head.weight",
     "F32",
     {64, 32},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "\"lm_head.weight\" is missing, but \"language_model.lm_head.weight\" is there"},
    {"lm_head.weight",
     "my_lm_head.weight",
     "F32",
     {64, 32},
     "F32",
     NULL,
     MB_ERR_CONFIG,
     "\"lm_head.weight\" is missing, and config.json needs it"},
};

static void check_broken(const tiny_checkpoint *options, const tiny_tensors *tensors, const mb_config *config,
                         mb_status wanted, const char *sentence) {
    char directory[TINY_PATH];
    tiny_directory_make(directory);
    tiny_checkpoint_write_tensors(options, tensors, directory);
    fake_device fake = fake_device_make(0);
    mb_weights w;
    mb_status status =
        mb_weights_load(directory, config, &fake.device, (mb_weight_types){0}, 2, NULL, NULL, &w);
    if (status != wanted || !strstr(mb_last_error(), sentence) || !strstr(mb_last_error(), directory))
        fail_msg("gave   %s: %s\n  wanted %s: ...%s...", mb_status_name(status), mb_last_error(),
                 mb_status_name(wanted), sentence);
    assert_int_equal(fake.n_allocations, 0);
    assert_null(w.layers);
    tiny_directory_remove(directory);
}

static void test_broken_checkpoints(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof broken_cases / sizeof *broken_cases; i++) {
        const broken_case *c = &broken_cases[i];
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.dtype = c->dtype;
        tiny_tensors tensors;
        tiny_checkpoint_tensors(&options, &tensors);
        if (c->remove)
            tiny_tensors_remove(&tensors, c->remove);
        int rank = c->shape[2] ? 3 : c->shape[1] ? 2 : 1;
        if (c->add)
            tiny_tensors_add(&tensors, c->add, c->add_dtype, rank, c->shape);
        mb_config config;
        tiny_config_parse(&options, &config);
        if (c->hide)
            config.fp8_blocks = 0;
        check_broken(&options, &tensors, &config, c->status, c->sentence);
        tiny_tensors_free(&tensors);
    }
    print_message("%zu broken checkpoints\n", sizeof broken_cases / sizeof *broken_cases);
}

static void test_scales_must_be_finite(void **state) {
    (void)state;
    static const uint32_t bad[] = {0x7FC00000, 0x7F800000, 0xFF800000};
    for (int i = 0; i < 3; i++) {
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.dtype = "F8_E4M3";
        tiny_tensors tensors;
        tiny_checkpoint_tensors(&options, &tensors);
        memcpy(tiny_tensors_find(&tensors, E1 "up_proj.weight_scale_inv")->data, &bad[i], sizeof bad[i]);
        mb_config config;
        tiny_config_parse(&options, &config);
        check_broken(&options, &tensors, &config, MB_ERR_FORMAT, "holds a scale that is not a finite number");
        tiny_tensors_free(&tensors);
    }
}

static void test_e8m0_scales_must_be_numbers(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.dtype = "F8_E4M3";
    options.scale_dtype = "F8_E8M0";
    tiny_tensors tensors;
    tiny_checkpoint_tensors(&options, &tensors);
    memset(tiny_tensors_find(&tensors, E1 "up_proj.weight_scale_inv")->data, 0xff, 1);
    mb_config config;
    tiny_config_parse(&options, &config);
    check_broken(&options, &tensors, &config, MB_ERR_FORMAT, "holds a scale that is not a finite number");
    tiny_tensors_free(&tensors);
}

/* An upload that fails stops everything, whichever one it is. */
static void test_device_errors(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    char directory[TINY_PATH];
    tiny_directory_make(directory);
    tiny_checkpoint_write(&options, directory);
    mb_config config;
    tiny_config_parse(&options, &config);
    for (int k = 0; k < 40; k += 13) {
        fake_device fake = fake_device_make(0);
        fake.uploads_before_failure = k;
        mb_weights w;
        assert_int_equal(
            mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, 3, NULL, NULL, &w),
            MB_ERR_DEVICE);
        assert_int_equal(fake.n_allocations, 0);
    }
    tiny_directory_remove(directory);
}

/* Fails the k-th allocation, and all behind it when `for_good`. */
typedef struct failing_allocator {
    long countdown;
    int for_good, n_failed;
    pthread_mutex_t lock;
} failing_allocator;

static void *allocate_or_fail(void *user, void *pointer, size_t n_bytes) {
    failing_allocator *failing = user;
    if (n_bytes == 0) {
        free(pointer);
        return NULL;
    }
    pthread_mutex_lock(&failing->lock);
    long left = --failing->countdown;
    int fails = left == 0 || (left < 0 && failing->for_good);
    failing->n_failed += fails;
    pthread_mutex_unlock(&failing->lock);
    return fails ? NULL : realloc(pointer, n_bytes);
}

static void test_every_allocation_fails(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.dtype = "F8_E4M3";
    options.n_layers = 1;
    options.n_experts = 2;
    options.n_shards = 2;
    tiny_tensors tensors;
    tiny_checkpoint_tensors(&options, &tensors);
    tiny_tensors_remove(&tensors, L0 "self_attn.v_proj.weight"); /* so that q_proj and k_proj are converted */
    tiny_tensors_remove(&tensors, L0 "self_attn.v_proj.weight_scale_inv");
    tiny_tensors_add(&tensors, L0 "self_attn.v_proj.weight", "BF16", 2, (int64_t[]){32, 32});
    char directory[TINY_PATH];
    tiny_directory_make(directory);
    tiny_checkpoint_write_tensors(&options, &tensors, directory);
    tiny_tensors_free(&tensors);
    mb_config config;
    tiny_config_parse(&options, &config);
    for (int variant = 0; variant < 4; variant++) {
        int for_good = variant % 2, host_memory = variant / 2;
        long k = 1;
        for (int failed = 1; failed; k++) {
            failing_allocator failing = {k, for_good, 0, PTHREAD_MUTEX_INITIALIZER};
            fake_device fake = fake_device_make(host_memory);
            mb_weights w;
            mb_set_allocator(allocate_or_fail, &failing);
            mb_status status =
                mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, 2, NULL, NULL, &w);
            failed = failing.n_failed > 0;
            if (status != (failed ? MB_ERR_MEMORY : MB_OK))
                fail_msg("allocation %ld: %s: %s", k, mb_status_name(status), mb_last_error());
            mb_weights_free(&w);
            mb_set_allocator(NULL, NULL);
            assert_int_equal(fake.n_allocations, 0);
        }
        print_message("%ld allocations failed in turn\n", k - 2);
    }
    tiny_directory_remove(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_broken_checkpoints),          cmocka_unit_test(test_scales_must_be_finite),
        cmocka_unit_test(test_e8m0_scales_must_be_numbers), cmocka_unit_test(test_device_errors),
        cmocka_unit_test(test_every_allocation_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
