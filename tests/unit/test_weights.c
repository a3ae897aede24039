/* Weights: every element arrives at its place in the merged layout. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "ops/common/dtype.h"
#include "ops/common/tensor.h"
#include "support/check_weights.h"
#include "support/fake_device.h"

#if defined(__SANITIZE_THREAD__)
enum { FEWEST_THREADS = 5, FP8_CASE_STEP = 5 }; /* every dtype, height and arrangement once */
#else
enum { FEWEST_THREADS = 1, FP8_CASE_STEP = 1 };
#endif

static void check_options(const tiny_checkpoint *options) {
    char directory[TINY_PATH];
    tiny_tensors tensors;
    tiny_directory_make(directory);
    tiny_checkpoint_tensors(options, &tensors);
    tiny_checkpoint_write_tensors(options, &tensors, directory);
    for (int host_memory = 0; host_memory < 2; host_memory++)
        for (int n_threads = FEWEST_THREADS; n_threads <= 5; n_threads += 4)
            check_load(options, &tensors, directory, host_memory, n_threads);
    tiny_tensors_free(&tensors);
    tiny_directory_remove(directory);
}

/* ---- What loads --------------------------------------------------------------------------------------- */

static void test_layouts_by_threads(void **state) {
    (void)state;
    static const char *const dtypes[] = {"F32", "BF16", "F16", "F8_E4M3"};
    static const int dense[] = {0};
    for (int d = 0; d < 4; d++) {
        for (int variant = 0; variant < 4; variant++) {
            tiny_checkpoint options;
            tiny_checkpoint_init(&options);
            options.dtype = dtypes[d];
            options.seed = (uint64_t)(100 + 4 * d + variant);
            options.n_shards = variant == 1 ? 3 : 0;
            options.tied = variant == 1;
            options.attention_bias = variant == 2;
            options.mlp_only_layers = dense;
            options.n_mlp_only_layers = variant == 2;
            options.merged_experts = variant == 3 && d < 3;
            options.scale_dtype = variant == 1 ? "BF16" : "F32";
            check_options(&options);
        }
    }
}

/* Heights that are, and are not, multiples of 128; gcds of 128, 32, 8 and 1. */
static void test_fp8_scales(void **state) {
    (void)state;
    static const int intermediates[] = {256, 160, 200, 131};
    for (int i = 0; i < 4; i++) {
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.dtype = "F8_E4M3";
        options.hidden = 300;
        options.head_dim = 48;
        options.n_experts = 3;
        options.n_layers = 1;
        options.moe_intermediate = intermediates[i];
        options.seed = (uint64_t)i;
        check_options(&options);
    }
}

/* What kernels ask for: every matrix in one type. Vectors and the router keep theirs, and
 * fp8 stays beside bf16. */
static void test_matrix_dtype(void **state) {
    (void)state;
    static const char *const dtypes[] = {"F32", "BF16", "F16", "F8_E4M3"};
    static const mb_dtype wanted[] = {MB_F32, MB_BF16};
    for (int i = 0; i < 8; i++)
        for (int merged = 0; merged < 2; merged++) {
            tiny_checkpoint options;
            tiny_tensors tensors;
            char directory[TINY_PATH];
            tiny_checkpoint_init(&options);
            options.dtype = dtypes[i % 4];
            options.merged_experts = merged && i % 4 < 3;
            tiny_directory_make(directory);
            tiny_checkpoint_tensors(&options, &tensors);
            tiny_checkpoint_write_tensors(&options, &tensors, directory);
            fake_device fake = fake_device_make(0);
            mb_config config;
            mb_weights w;
            tiny_config_parse(&options, &config);
            assert_int_equal(mb_weights_load(directory, &config, &fake.device,
                                             (mb_weight_types){.matrix_dtype = &wanted[i / 4]}, 2, NULL, NULL,
                                             &w),
                             MB_OK);
            const mb_layer_weights *layer = &w.layers[0];
            mb_dtype held = i % 4 == 3 && wanted[i / 4] == MB_BF16 ? MB_F8_E4M3 : wanted[i / 4];
            assert_int_equal(layer->qkv.dtype, held);
            assert_int_equal(layer->o.dtype, held);
            assert_int_equal(layer->w13.dtype, held);
            assert_int_equal(layer->w2.dtype, held);
            if (wanted[i / 4] == MB_F32 || held == MB_F8_E4M3) /* nothing was rounded */
                check_layer(&options, &tensors, 0, config.is_moe[0], layer);
            float stored_value, value;
            if (i == 4) {
                const tiny_tensor *q = tiny_tensors_find(&tensors, "model.layers.0.self_attn.q_proj.weight");
                stored_value = tiny_tensor_value(q, 7);
                mb_round_f32(MB_BF16, 1, &stored_value);
                mb_load_f32(MB_BF16, layer->qkv.data, 7, 1, &value);
                assert_true(value == stored_value);
            }
            mb_weights_free(&w);
            tiny_tensors_free(&tensors);
            tiny_directory_remove(directory);
        }
}

static float value_at(const mb_weight *w, int64_t matrix, int64_t row, int64_t col) {
    float value;
    mb_weight_load(w, matrix, row, col, 1, &value);
    return value;
}

/* The padded matrices hold the plain ones, and 0 everywhere else. */
static void check_padded(const mb_layer_weights *padded, const mb_layer_weights *plain, int64_t inner,
                         int64_t held) {
    const mb_weight *w13 = &padded->w13, *w2 = &padded->w2;
    assert_int_equal(w13->rows, 2 * held);
    assert_int_equal(w13->cols, plain->w13.cols);
    assert_int_equal(w2->cols, held);
    assert_int_equal(w2->rows, plain->w2.rows);
    assert_int_equal(w13->dtype, plain->w13.dtype);
    if (w13->dtype == MB_F8_E4M3)
        assert_int_equal(w13->scale_rows % 16, 0);
    for (int64_t e = 0; e < w13->count; e++) {
        for (int64_t r = 0; r < 2 * held; r++)
            for (int64_t c = 0; c < w13->cols; c++) {
                int64_t half = r / held, row = r % held;
                float wanted = row < inner ? value_at(&plain->w13, e, half * inner + row, c) : 0;
                assert_true(value_at(w13, e, r, c) == wanted);
            }
        for (int64_t r = 0; r < w2->rows; r++)
            for (int64_t c = 0; c < held; c++)
                assert_true(value_at(w2, e, r, c) == (c < inner ? value_at(&plain->w2, e, r, c) : 0));
    }
}

/* Kernels want the experts' intermediate size as a multiple of 16. */
static void test_padded_experts(void **state) {
    (void)state;
    static const char *const dtypes[] = {"F32", "BF16", "F8_E4M3"};
    static const int sizes[][2] = {{8, 16}, {100, 112}, {131, 144}, {48, 48}};
    for (int i = 0; i < 48; i++) {
        int merged = i / 12 % 2, to_fp8 = i / 24;
        tiny_checkpoint options;
        tiny_tensors tensors;
        char directory[TINY_PATH];
        tiny_checkpoint_init(&options);
        options.dtype = dtypes[i % 3];
        options.merged_experts = merged && i % 3 < 2;
        options.hidden = 40;
        options.n_experts = 2;
        options.n_layers = 1;
        options.moe_intermediate = sizes[i / 3 % 4][0];
        options.seed = (uint64_t)i;
        tiny_directory_make(directory);
        tiny_checkpoint_tensors(&options, &tensors);
        tiny_checkpoint_write_tensors(&options, &tensors, directory);
        mb_config config;
        tiny_config_parse(&options, &config);
        for (int host_memory = 0; host_memory < 2; host_memory++) {
            fake_device fake = fake_device_make(host_memory);
            mb_weights plain, padded;
            mb_weight_types types = {.to_fp8 = to_fp8};
            assert_int_equal(mb_weights_load(directory, &config, &fake.device, types, 2, NULL, NULL, &plain),
                             MB_OK);
            types.inner_multiple = 16;
            if (mb_weights_load(directory, &config, &fake.device, types, 2, NULL, NULL, &padded) != MB_OK)
                fail_msg("%s", mb_last_error());
            check_padded(&padded.layers[0], &plain.layers[0], sizes[i / 3 % 4][0], sizes[i / 3 % 4][1]);
            assert_int_equal(padded.n_parameters, plain.n_parameters);
            assert_int_equal(padded.n_active_parameters, plain.n_active_parameters);
            mb_weights_free(&plain);
            mb_weights_free(&padded);
        }
        tiny_tensors_free(&tensors);
        tiny_directory_remove(directory);
    }
}

/* Matrices of attention and experts become fp8 while they load; what does not fit is refused. */
static void test_to_fp8_by_threads(void **state) {
    (void)state;
    static const char *const dtypes[] = {"F32", "BF16", "F16", "F8_E4M3"};
    for (int i = 0; i < 16; i += FP8_CASE_STEP) {
        tiny_checkpoint options;
        tiny_tensors tensors;
        char directory[TINY_PATH];
        tiny_checkpoint_init(&options);
        options.dtype = dtypes[i % 4];
        options.merged_experts = (i / 4) % 2 && i % 4 < 3;
        options.hidden = 300;
        options.head_dim = 48;
        options.moe_intermediate = i / 8 ? 131 : 256;
        options.n_layers = 1;
        tiny_directory_make(directory);
        tiny_checkpoint_tensors(&options, &tensors);
        tiny_checkpoint_write_tensors(&options, &tensors, directory);
        mb_config config;
        tiny_config_parse(&options, &config);
        for (int host_memory = 0; host_memory < 2; host_memory++) {
            fake_device fake = fake_device_make(host_memory);
            mb_weights w;
            progress_log log = {.owner = pthread_self()};
            mb_weight_types types = {.to_fp8 = 1};
            assert_int_equal(
                mb_weights_load(directory, &config, &fake.device, types, 3, log_progress, &log, &w), MB_OK);
            assert_int_equal(log.done, log.total);
            assert_int_equal(w.layers[0].qkv.dtype, MB_F8_E4M3);
            assert_int_equal(w.layers[0].w2.dtype, MB_F8_E4M3);
            assert_int_not_equal(w.lm_head.dtype, MB_F8_E4M3);
            assert_string_equal(w.dtype_name, "fp8_e4m3 (128x128 blocks)");
            check_layer(&options, &tensors, 0, 1, &w.layers[0]);
            mb_weights_free(&w);
        }
        tiny_tensors_free(&tensors);
        tiny_directory_remove(directory);
    }
}

static void test_to_fp8_refuses(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        tiny_checkpoint options;
        tiny_tensors tensors;
        char directory[TINY_PATH];
        tiny_checkpoint_init(&options);
        options.n_layers = 1;
        options.hidden = i ? 32770 : 64;
        options.vocab = 16;
        options.moe_intermediate = 16;
        tiny_directory_make(directory);
        tiny_checkpoint_tensors(&options, &tensors);
        if (i == 0)
            ((float *)tiny_tensors_find(&tensors, "model.layers.0.self_attn.k_proj.weight")->data)[5] = NAN;
        tiny_checkpoint_write_tensors(&options, &tensors, directory);
        mb_config config;
        tiny_config_parse(&options, &config);
        fake_device fake = fake_device_make(0);
        mb_weights w;
        mb_weight_types types = {.to_fp8 = 1};
        assert_int_equal(mb_weights_load(directory, &config, &fake.device, types, 3, NULL, NULL, &w),
                         i ? MB_ERR_UNSUPPORTED : MB_ERR_FORMAT);
        assert_non_null(strstr(mb_last_error(), i ? "32768" : "k_proj"));
        assert_int_equal(fake.n_allocations, 0);
        tiny_tensors_free(&tensors);
        tiny_directory_remove(directory);
    }
}

/* The same random weights every time, of the config's shape and types, on a device. */
static void test_random_weights(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.dtype = i == 0 ? "BF16" : "F8_E4M3";
        mb_device *device;
        mb_config config;
        mb_weights a, b;
        tiny_config_parse(&options, &config);
        assert_int_equal(mb_device_open_cpu(1, &device), MB_OK);
        assert_int_equal(mb_weights_random(&config, device, (mb_weight_types){0}, &a), MB_OK);
        assert_int_equal(mb_weights_random(&config, device, (mb_weight_types){0}, &b), MB_OK);
        const mb_weight *w13 = &a.layers[1].w13;
        size_t n = (size_t)(w13->count * w13->rows * w13->cols);
        assert_int_equal(w13->dtype, i == 0 ? config.dtype : MB_F8_E4M3);
        assert_memory_equal(w13->data, b.layers[1].w13.data, n * mb_dtype_bytes(w13->dtype));
        assert_memory_not_equal(w13->data, a.layers[0].w13.data, n * mb_dtype_bytes(w13->dtype));
        double sum = 0, squares = 0;
        for (size_t j = 0; j < n; j++) {
            float value;
            mb_load_f32(w13->dtype, w13->data, (int64_t)j, 1, &value);
            value *= w13->scale ? *(const float *)w13->scale : 1;
            sum += (double)value;
            squares += (double)value * (double)value;
        }
        assert_true(fabs(sum / (double)n) < 0.002);
        assert_true(fabs(sqrt(squares / (double)n) - 0.02) < 0.002);
        assert_int_equal(a.n_parameters, b.n_parameters);
        mb_weights_free(&a);
        mb_weights_free(&b);
        /* Kernels get them in the type that they compute with, as the weights of a checkpoint. */
        const mb_dtype wanted[] = {MB_F16, MB_F32};
        for (int j = 0; j < 2; j++) {
            assert_int_equal(
                mb_weights_random(&config, device, (mb_weight_types){.matrix_dtype = &wanted[j]}, &a), MB_OK);
            assert_int_equal(a.lm_head.dtype, wanted[j]);
            assert_int_equal(a.layers[1].input_norm.dtype,
                             wanted[j]); /* some kernels have norms of 16 bits */
            float one, tenth;
            mb_load_f32(wanted[j], a.final_norm.data, config.hidden - 1, 1, &one);
            mb_load_f32(wanted[j], a.layers[1].post_norm.data, config.hidden - 1, 1, &tenth);
            assert_true(one == 1 && fabsf(tenth - 0.1f) < 1e-4f);
            assert_int_equal(a.layers[1].w13.dtype, i == 1 && wanted[j] == MB_F16 ? MB_F8_E4M3 : wanted[j]);
            mb_weights_free(&a);
        }
        mb_weight_types to_fp8 = {.matrix_dtype = &wanted[0], .to_fp8 = 1};
        assert_int_equal(mb_weights_random(&config, device, to_fp8, &a), MB_OK);
        assert_int_equal(a.lm_head.dtype, MB_F16);
        assert_int_equal(a.layers[1].router.dtype, MB_F16);
        assert_int_equal(a.layers[1].qkv.dtype, MB_F8_E4M3);
        mb_weights_free(&a);
        mb_device_close(device);
    }
}

/* A matrix larger than the pieces that threads read (8 MiB), and not a multiple of them. */
static void test_large_tensor_by_threads(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = 100001;
    options.hidden = 64;
    options.tied = 1;
    check_options(&options);
}

static void test_counts(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.dtype = "F8_E4M3";
    char directory[TINY_PATH];
    tiny_directory_make(directory);
    tiny_checkpoint_write(&options, directory);
    fake_device fake = fake_device_make(1);
    mb_config config;
    mb_weights w;
    tiny_config_parse(&options, &config);
    assert_int_equal(
        mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, 0, NULL, NULL, &w), MB_OK);
    /* hidden 32, 2 layers, qkv 128 rows, o 64 columns, 4 experts of 24, vocabulary 64 */
    uint64_t layer = 32 + 32 + 16 + 16 + 128 * 32 + 32 * 64 + 4 * 32, expert = 3 * 24 * 32;
    assert_int_equal(w.n_parameters, 2 * (layer + 4 * expert) + 2 * 64 * 32 + 32);
    assert_int_equal(w.n_active_parameters, 2 * (layer + 2 * expert) + 64 * 32 + 32 + 32);
    assert_string_equal(w.dtype_name, "fp8_e4m3 (128x128 blocks)");
    mb_weights_free(&w);
    tiny_directory_remove(directory);
}

/* Norms and biases may have another dtype than the matrices, and a matrix another than its neighbours. */
static void test_mixed_dtypes(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    tiny_tensors tensors;
    tiny_checkpoint_tensors(&options, &tensors);
    static const char *const changed[] = {"model.norm.weight", "model.layers.1.self_attn.q_norm.weight",
                                          "model.layers.0.mlp.gate.weight",
                                          "model.layers.1.self_attn.o_proj.weight"};
    for (int i = 0; i < 4; i++) {
        tiny_tensor *tensor = tiny_tensors_find(&tensors, changed[i]);
        tensor->dtype = "BF16";
        tensor->n_bytes /= 2; /* half of the random bits are as random */
    }
    char directory[TINY_PATH];
    tiny_directory_make(directory);
    tiny_checkpoint_write_tensors(&options, &tensors, directory);
    check_load(&options, &tensors, directory, 0, 2);
    fake_device fake = fake_device_make(1);
    mb_config config;
    mb_weights w;
    tiny_config_parse(&options, &config);
    assert_int_equal(
        mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, 1, NULL, NULL, &w), MB_OK);
    assert_string_equal(w.dtype_name, "mixed");
    mb_weights_free(&w);
    tiny_tensors_free(&tensors);
    tiny_directory_remove(directory);
}

/* Files without an index; harmless extras; a copy of the tied head. */
static void test_accepted_extras(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.tied = 1;
    options.n_shards = 2;
    tiny_tensors tensors;
    tiny_checkpoint_tensors(&options, &tensors);
    tiny_tensors_add(&tensors, "model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 1, (int64_t[]){8});
    tiny_tensor *head = tiny_tensors_add(&tensors, "lm_head.weight", "F32", 2, (int64_t[]){64, 32});
    memcpy(head->data, tiny_tensors_find(&tensors, "model.embed_tokens.weight")->data, head->n_bytes);
    tiny_tensors_add(&tensors, "v_head.summary.weight", "I64", 1, (int64_t[]){3});
    tiny_tensors_add(&tensors, "mtp.layers.0.weight", "F32", 1, (int64_t[]){4});
    tiny_tensors_add(&tensors, "model.layers.2.input_layernorm.weight", "F32", 1, (int64_t[]){32});
    tiny_tensors_add(&tensors, "model.layers.0.self_attn.q_proj.bias", "F32", 1, (int64_t[]){64});
    tiny_tensors_add(&tensors, "model.layers.0.self_attn.q_proj.weight_scale_inv", "F32", 2,
                     (int64_t[]){1, 1});
    char directory[TINY_PATH], path[TINY_PATH + 64];
    tiny_directory_make(directory);
    tiny_checkpoint_write_tensors(&options, &tensors, directory);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", directory);
    assert_int_equal(unlink(path), 0);
    fake_device fake = fake_device_make(1);
    mb_config config;
    mb_weights w;
    tiny_config_parse(&options, &config);
    assert_int_equal(
        mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, 1, NULL, NULL, &w), MB_OK);
    assert_ptr_equal(w.lm_head.data, w.embedding.data);
    mb_weights_free(&w);
    tiny_tensors_free(&tensors);
    tiny_directory_remove(directory);
}

/* NaN weights are legal in the format: they are loaded as they are. */
static void test_nan_weights_load(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    char directory[TINY_PATH];
    tiny_tensors tensors;
    tiny_directory_make(directory);
    tiny_checkpoint_tensors(&options, &tensors);
    float nan_value = NAN;
    memcpy(tiny_tensors_find(&tensors, "lm_head.weight")->data, &nan_value, sizeof nan_value);
    tiny_checkpoint_write_tensors(&options, &tensors, directory);
    check_load(&options, &tensors, directory, 1, 1);
    tiny_tensors_free(&tensors);
    tiny_directory_remove(directory);
}

/* ---- Other dtypes than their neighbours --------------------------------------------------------------- */

#define L0 "model.layers.0."
#define EXPERT(e) L0 "mlp.experts." #e "."

static void test_merged_of_different_dtypes(void **state) {
    (void)state;
    static const struct {
        const char *model, *name, *dtype;
        mb_dtype qkv, w13, w2; /* of layer 0 */
    } cases[] = {
        {"BF16", L0 "self_attn.v_proj.weight", "F32", MB_F32, MB_BF16, MB_BF16},
        {"BF16", L0 "self_attn.q_proj.weight", "F32", MB_F32, MB_BF16, MB_BF16},
        {"BF16", L0 "self_attn.k_proj.weight", "F16", MB_F32, MB_BF16, MB_BF16}, /* neither holds the other */
        {"F32", L0 "self_attn.k_proj.weight", "BF16", MB_F32, MB_F32, MB_F32},
        {"BF16", L0 "self_attn.o_proj.weight", "F16", MB_BF16, MB_BF16, MB_BF16},
        {"BF16", EXPERT(1) "up_proj.weight", "F32", MB_BF16, MB_F32, MB_BF16},
        {"F16", EXPERT(3) "down_proj.weight", "F32", MB_F16, MB_F16, MB_F32},
        {"F16", EXPERT(0) "gate_proj.weight", "BF16", MB_F16, MB_F32, MB_F16},
        {"F8_E4M3", L0 "self_attn.v_proj.weight", "BF16", MB_BF16, MB_F8_E4M3, MB_F8_E4M3},
        {"F8_E4M3", L0 "self_attn.o_proj.weight", "BF16", MB_F8_E4M3, MB_F8_E4M3, MB_F8_E4M3},
        {"F8_E4M3", EXPERT(2) "gate_proj.weight", "BF16", MB_F8_E4M3, MB_BF16, MB_F8_E4M3},
        {"F8_E4M3", EXPERT(2) "down_proj.weight", "F32", MB_F8_E4M3, MB_F8_E4M3, MB_F32},
        {"F8_E4M3", L0 "self_attn.q_proj.weight", "F16", MB_F16, MB_F8_E4M3, MB_F8_E4M3},
        {"BF16", L0 "self_attn.k_proj.bias", "F32", MB_BF16, MB_BF16, MB_BF16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.dtype = cases[i].model;
        options.hidden = 160; /* more than one block of scales in each direction */
        options.moe_intermediate = 136;
        options.attention_bias = 1;
        tiny_tensors tensors;
        tiny_checkpoint_tensors(&options, &tensors);
        tiny_tensor_retype(&tensors, cases[i].name, cases[i].dtype);
        char directory[TINY_PATH];
        tiny_directory_make(directory);
        tiny_checkpoint_write_tensors(&options, &tensors, directory);
        check_load(&options, &tensors, directory, 0, 2);
        check_load(&options, &tensors, directory, 1, 2);
        fake_device fake = fake_device_make(1);
        mb_config config;
        mb_weights w;
        tiny_config_parse(&options, &config);
        assert_int_equal(
            mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, 1, NULL, NULL, &w),
            MB_OK);
        assert_int_equal(w.layers[0].qkv.dtype, cases[i].qkv);
        assert_int_equal(w.layers[0].w13.dtype, cases[i].w13);
        assert_int_equal(w.layers[0].w2.dtype, cases[i].w2);
        mb_weights_free(&w);
        tiny_tensors_free(&tensors);
        tiny_directory_remove(directory);
    }
}

/* The router's kernel takes no fp8, so a router in fp8 becomes fp32. */
static void test_fp8_router(void **state) {
    (void)state;
    static const mb_dtype wanted[] = {MB_F32, MB_BF16};
    for (int i = 0; i < 3; i++) {
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.dtype = "F8_E4M3";
        options.hidden = 144;
        tiny_tensors tensors;
        tiny_checkpoint_tensors(&options, &tensors);
        for (int layer = 0; layer < options.n_layers; layer++) {
            char name[TINY_NAME];
            snprintf(name, sizeof name, "model.layers.%d.mlp.gate.weight", layer);
            tiny_tensor_retype(&tensors, name, "F8_E4M3");
            snprintf(name, sizeof name, "model.layers.%d.mlp.gate.weight_scale_inv", layer);
            float *scales = tiny_tensors_add(&tensors, name, "F32", 2, (int64_t[]){1, 2})->data;
            scales[0] = 0.75f;
            scales[1] = 0.015625f;
        }
        char directory[TINY_PATH];
        tiny_directory_make(directory);
        tiny_checkpoint_write_tensors(&options, &tensors, directory);
        fake_device fake = fake_device_make(0);
        mb_config config;
        mb_weights w;
        tiny_config_parse(&options, &config);
        assert_int_equal(mb_weights_load(directory, &config, &fake.device,
                                         (mb_weight_types){.matrix_dtype = i < 2 ? &wanted[i] : NULL}, 1,
                                         NULL, NULL, &w),
                         MB_OK);
        assert_int_equal(w.layers[0].router.dtype, MB_F32);
        for (int layer = 0; layer < options.n_layers; layer++)
            check_layer(&options, &tensors, layer, config.is_moe[layer], &w.layers[layer]);
        mb_weights_free(&w);
        tiny_tensors_free(&tensors);
        tiny_directory_remove(directory);
    }
}

static void test_scale_types(void **state) {
    (void)state;
    static const char *const dtypes[] = {"F32", "BF16", "F16", "F8_E8M0"};
    for (int i = 0; i < 8; i++) {
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.dtype = "F8_E4M3";
        options.hidden = 144;
        options.moe_intermediate = 136;
        options.scale_dtype = dtypes[i % 4];
        options.scale_name = i < 4 ? "weight_scale_inv" : "weight_scale";
        check_options(&options);
    }
}

/* ---- tie_word_embeddings ------------------------------------------------------------------------------ */

static void test_tied_heads(void **state) {
    (void)state;
    for (int variant = 0; variant < 4;
         variant++) { /* head: the same, other values, another dtype, the only one */
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.tied = 1;
        options.dtype = "BF16";
        tiny_tensors tensors;
        tiny_checkpoint_tensors(&options, &tensors);
        const int64_t shape[] = {options.vocab, options.hidden};
        tiny_tensor *head =
            tiny_tensors_add(&tensors, "lm_head.weight", variant == 2 ? "F32" : "BF16", 2, shape);
        const tiny_tensor *embedding = tiny_tensors_find(&tensors, "model.embed_tokens.weight");
        if (variant != 2)
            memcpy(head->data, embedding->data, head->n_bytes);
        if (variant == 1)
            ((uint8_t *)head->data)[head->n_bytes - 1] ^= 1;
        if (variant == 3)
            tiny_tensors_remove(&tensors, "model.embed_tokens.weight");
        char directory[TINY_PATH];
        tiny_directory_make(directory);
        tiny_checkpoint_write_tensors(&options, &tensors, directory);
        fake_device fake = fake_device_make(0);
        mb_config config;
        mb_weights w;
        tiny_config_parse(&options, &config);
        assert_int_equal(
            mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, 1, NULL, NULL, &w),
            MB_OK);
        assert_int_equal(w.is_tied, variant % 3 == 0);
        assert_int_equal(w.lm_head.data == w.embedding.data, variant % 3 == 0);
        check_rows(&tensors, "lm_head.weight", &w.lm_head, 0, 0, options.vocab);
        if (variant < 3)
            check_rows(&tensors, "model.embed_tokens.weight", &w.embedding, 0, 0, options.vocab);
        mb_weights_free(&w);
        tiny_tensors_free(&tensors);
        tiny_directory_remove(directory);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts_by_threads),
        cmocka_unit_test(test_fp8_scales),
        cmocka_unit_test(test_fp8_router),
        cmocka_unit_test(test_large_tensor_by_threads),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_mixed_dtypes),
        cmocka_unit_test(test_accepted_extras),
        cmocka_unit_test(test_nan_weights_load),
        cmocka_unit_test(test_merged_of_different_dtypes),
        cmocka_unit_test(test_scale_types),
        cmocka_unit_test(test_matrix_dtype),
        cmocka_unit_test(test_padded_experts),
        cmocka_unit_test(test_to_fp8_by_threads),
        cmocka_unit_test(test_to_fp8_refuses),
        cmocka_unit_test(test_random_weights),
        cmocka_unit_test(test_tied_heads),
    };
#if defined(__SANITIZE_THREAD__)
    cmocka_set_test_filter("*_by_threads"); /* the other tests have one thread */
#endif
    return cmocka_run_group_tests(tests, NULL, NULL);
}
