/* Weights: every element arrives at its place in the merged layout. */
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/weights/weight_plan.h"
#include "model/weights/weight_read.h"
#include "model/weights/weights.h"
#include "ops/common/dtype.h"
#include "ops/common/tensor.h"
#include "support/fake_device.h"
#include "support/tiny_checkpoint.h"

/* ---- Helpers ------------------------------------------------------------------------------------------ */

typedef struct progress_log {
    uint64_t done, total;
    int calls;
    pthread_t owner;
} progress_log;

static void log_progress(void *user, uint64_t done, uint64_t total) {
    progress_log *log = user;
    assert_true(pthread_equal(log->owner, pthread_self()));
    assert_true(done <= total);
    assert_true(log->calls == 0 || (done > log->done && total == log->total));
    log->done = done;
    log->total = total;
    log->calls++;
}

static void parse_config(const tiny_checkpoint *options, mb_config *config) {
    char *text = tiny_checkpoint_config(options);
    if (mb_config_parse("config.json", text, strlen(text), config) != MB_OK)
        fail_msg("%s", mb_last_error());
    free(text);
}

/* Element i of a tensor of the file. */
static float stored(const tiny_tensor *tensor, size_t i) {
    const uint8_t *bytes = tensor->data;
    const uint16_t *halves = tensor->data;
    if (strcmp(tensor->dtype, "F32") == 0)
        return ((const float *)tensor->data)[i];
    if (strcmp(tensor->dtype, "BF16") == 0)
        return mb_f32_of_bf16(halves[i]);
    if (strcmp(tensor->dtype, "F16") == 0)
        return mb_f32_of_f16(halves[i]);
    if (strcmp(tensor->dtype, "F8_E8M0") == 0)
        return ldexpf(1, bytes[i] - 127);
    assert_string_equal(tensor->dtype, "F8_E4M3");
    return mb_f32_of_f8(bytes[i]);
}

/* The block scales of a tensor; NULL: none. */
static const tiny_tensor *find_scale(const tiny_tensors *tensors, const tiny_tensor *tensor) {
    char name[TINY_NAME + 16];
    snprintf(name, sizeof name, "%s_scale_inv", tensor->name);
    const tiny_tensor *scale = tiny_tensors_find(tensors, name);
    snprintf(name, sizeof name, "%s_scale", tensor->name);
    return scale ? scale : tiny_tensors_find(tensors, name);
}

/* The rectangle of a tensor (seen as a matrix) must be rows [at, at + rows.count) of matrix `matrix`. */
static void check_rectangle(const tiny_tensors *tensors, const char *name, const mb_weight *weight,
                            int64_t matrix, int64_t at, mb_range rows, mb_range cols) {
    const tiny_tensor *tensor = tiny_tensors_find(tensors, name);
    assert_non_null(tensor);
    const tiny_tensor *scale = find_scale(tensors, tensor);
    int64_t width = tensor->rank > 1 ? tensor->shape[tensor->rank - 1] : 1;
    assert_int_equal(cols.count, weight->cols);
    float *values = malloc((size_t)cols.count * sizeof *values);
    assert_non_null(values);
    for (int64_t r = 0; r < rows.count; r++) {
        mb_weight_load(weight, matrix, at + r, 0, cols.count, values);
        for (int64_t c = 0; c < cols.count; c++) {
            int64_t row = rows.first + r, col = cols.first + c;
            float wanted = stored(tensor, (size_t)(row * width + col));
            if (scale)
                wanted *= stored(scale, (size_t)(row / 128 * scale->shape[1] + col / 128));
            if (weight->dtype != MB_F8_E4M3)
                mb_round_f32(weight->dtype, 1, &wanted);
            if (values[c] != wanted && !(isnan(values[c]) && isnan(wanted)))
                fail_msg("%s: row %lld, column %lld is %g, wanted %g", name, (long long)row, (long long)col,
                         (double)values[c], (double)wanted);
        }
    }
    free(values);
}

/* All of a tensor. */
static void check_rows(const tiny_tensors *tensors, const char *name, const mb_weight *weight, int64_t matrix,
                       int64_t first, int64_t rows) {
    check_rectangle(tensors, name, weight, matrix, first, (mb_range){0, rows}, (mb_range){0, weight->cols});
}

static void check_vector(const tiny_tensors *tensors, const char *name, const mb_weight *weight) {
    assert_int_equal(weight->rows, 1);
    const mb_weight column = {
        .data = weight->data, .count = 1, .rows = weight->cols, .cols = 1, .dtype = weight->dtype};
    check_rows(tensors, name, &column, 0, 0, column.rows);
}

static void check_layer(const tiny_checkpoint *o, const tiny_tensors *tensors, int layer, int is_moe,
                        const mb_layer_weights *w) {
    char name[TINY_NAME];
    int64_t q = o->n_heads * o->head_dim, kv = o->n_kv_heads * o->head_dim, total = q + 2 * kv;
#define NAME(...) (snprintf(name, sizeof name, __VA_ARGS__), name)
    assert_int_equal(w->qkv.count * w->qkv.rows * w->qkv.cols, total * o->hidden);
    check_rows(tensors, NAME("model.layers.%d.self_attn.q_proj.weight", layer), &w->qkv, 0, 0, q);
    check_rows(tensors, NAME("model.layers.%d.self_attn.k_proj.weight", layer), &w->qkv, 0, q, kv);
    check_rows(tensors, NAME("model.layers.%d.self_attn.v_proj.weight", layer), &w->qkv, 0, q + kv, kv);
    check_rows(tensors, NAME("model.layers.%d.self_attn.o_proj.weight", layer), &w->o, 0, 0, o->hidden);
    check_vector(tensors, NAME("model.layers.%d.input_layernorm.weight", layer), &w->input_norm);
    check_vector(tensors, NAME("model.layers.%d.post_attention_layernorm.weight", layer), &w->post_norm);
    check_vector(tensors, NAME("model.layers.%d.self_attn.q_norm.weight", layer), &w->q_norm);
    check_vector(tensors, NAME("model.layers.%d.self_attn.k_norm.weight", layer), &w->k_norm);
    assert_int_equal(w->qkv_bias.data != NULL, o->attention_bias);
    if (o->attention_bias) {
        assert_int_equal(w->qkv_bias.cols, total);
        const mb_weight bias = {.data = w->qkv_bias.data,
                                .count = 1,
                                .rows = total,
                                .cols = 1,
                                .dtype = w->qkv_bias.dtype}; /* seen as a column */
        check_rows(tensors, NAME("model.layers.%d.self_attn.q_proj.bias", layer), &bias, 0, 0, q);
        check_rows(tensors, NAME("model.layers.%d.self_attn.k_proj.bias", layer), &bias, 0, q, kv);
        check_rows(tensors, NAME("model.layers.%d.self_attn.v_proj.bias", layer), &bias, 0, q + kv, kv);
        check_vector(tensors, NAME("model.layers.%d.self_attn.o_proj.bias", layer), &w->o_bias);
    }
    int64_t experts = is_moe ? o->n_experts : 1, inner = is_moe ? o->moe_intermediate : o->intermediate;
    assert_int_equal(w->w13.count, experts);
    assert_int_equal(w->w13.rows, 2 * inner);
    assert_int_equal(w->w2.count, experts);
    assert_int_equal(w->w2.rows, o->hidden);
    assert_int_equal(w->router.data != NULL, is_moe);
    if (is_moe)
        check_rows(tensors, NAME("model.layers.%d.mlp.gate.weight", layer), &w->router, 0, 0, o->n_experts);
    if (is_moe && o->merged_experts) {
        const mb_weight all13 = {.data = w->w13.data,
                                 .count = 1,
                                 .rows = experts * 2 * inner,
                                 .cols = o->hidden,
                                 .dtype = w->w13.dtype};
        const mb_weight all2 = {
            .data = w->w2.data, .count = 1, .rows = experts * o->hidden, .cols = inner, .dtype = w->w2.dtype};
        check_rows(tensors, NAME("model.layers.%d.mlp.experts.gate_up_proj", layer), &all13, 0, 0,
                   all13.rows);
        check_rows(tensors, NAME("model.layers.%d.mlp.experts.down_proj", layer), &all2, 0, 0, all2.rows);
        return;
    }
    for (int64_t e = 0; e < experts; e++) {
        char prefix[TINY_NAME / 2];
        if (is_moe)
            snprintf(prefix, sizeof prefix, "model.layers.%d.mlp.experts.%d", layer, (int)e);
        else
            snprintf(prefix, sizeof prefix, "model.layers.%d.mlp", layer);
        check_rows(tensors, NAME("%s.gate_proj.weight", prefix), &w->w13, e, 0, inner);
        check_rows(tensors, NAME("%s.up_proj.weight", prefix), &w->w13, e, inner, inner);
        check_rows(tensors, NAME("%s.down_proj.weight", prefix), &w->w2, e, 0, o->hidden);
    }
#undef NAME
}

/* Loads onto a fake device and compares everything. */
static void check_load(const tiny_checkpoint *o, const tiny_tensors *tensors, const char *directory,
                       int host_memory, int n_threads) {
    fake_device fake = fake_device_make(host_memory);
    progress_log log = {.owner = pthread_self()};
    mb_config config;
    mb_weights w;
    parse_config(o, &config);
    if (mb_weights_load(directory, &config, &fake.device, NULL, n_threads, log_progress, &log, &w) != MB_OK)
        fail_msg("%s", mb_last_error());
    size_t file_bytes = 0, n_parameters = 0;
    for (size_t i = 0; i < tensors->count; i++) {
        const tiny_tensor *tensor = &tensors->items[i];
        size_t count = 1;
        for (int d = 0; d < tensor->rank; d++)
            count *= (size_t)tensor->shape[d];
        file_bytes += tensor->n_bytes;
        n_parameters += strstr(tensor->name, "_scale") ? 0 : count;
    }
    assert_int_equal(log.done, log.total);
    if (host_memory)
        assert_true(w.n_maps > 0 && log.total < file_bytes); /* what is mapped is not read */
    else
        assert_int_equal(log.total, file_bytes);
    assert_int_equal(w.n_parameters, n_parameters);
    check_rows(tensors, "model.embed_tokens.weight", &w.embedding, 0, 0, o->vocab);
    check_vector(tensors, "model.norm.weight", &w.final_norm);
    if (o->tied)
        assert_ptr_equal(w.lm_head.data, w.embedding.data);
    else
        check_rows(tensors, "lm_head.weight", &w.lm_head, 0, 0, o->vocab);
    assert_int_equal(w.n_layers, o->n_layers);
    for (int l = 0; l < o->n_layers; l++)
        check_layer(o, tensors, l, config.is_moe[l], &w.layers[l]);
    assert_int_equal(fake.n_allocations, 1);
    mb_weights_free(&w);
    assert_int_equal(fake.n_allocations, 0);
}

static void check_options(const tiny_checkpoint *options) {
    char directory[TINY_PATH];
    tiny_tensors tensors;
    tiny_directory_make(directory);
    tiny_checkpoint_tensors(options, &tensors);
    tiny_checkpoint_write_tensors(options, &tensors, directory);
    for (int host_memory = 0; host_memory < 2; host_memory++)
        for (int n_threads = 1; n_threads <= 5; n_threads += 4)
            check_load(options, &tensors, directory, host_memory, n_threads);
    tiny_tensors_free(&tensors);
    tiny_directory_remove(directory);
}

/* ---- What loads --------------------------------------------------------------------------------------- */

static void test_layouts(void **state) {
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

/* What kernels ask for: every matrix in one type. Vectors and the router keep theirs, and fp8 stays beside bf16. */
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
            parse_config(&options, &config);
            assert_int_equal(
                mb_weights_load(directory, &config, &fake.device, &wanted[i / 4], 2, NULL, NULL, &w), MB_OK);
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
                stored_value = stored(q, 7);
                mb_round_f32(MB_BF16, 1, &stored_value);
                mb_load_f32(MB_BF16, layer->qkv.data, 7, 1, &value);
                assert_true(value == stored_value);
            }
            mb_weights_free(&w);
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
        parse_config(&options, &config);
        assert_int_equal(mb_device_open_cpu(1, &device), MB_OK);
        assert_int_equal(mb_weights_random(&config, device, &a), MB_OK);
        assert_int_equal(mb_weights_random(&config, device, &b), MB_OK);
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
        mb_device_close(device);
    }
}

/* A matrix larger than the pieces that threads read (8 MiB), and not a multiple of them. */
static void test_large_tensor(void **state) {
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
    parse_config(&options, &config);
    assert_int_equal(mb_weights_load(directory, &config, &fake.device, NULL, 0, NULL, NULL, &w), MB_OK);
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
    parse_config(&options, &config);
    assert_int_equal(mb_weights_load(directory, &config, &fake.device, NULL, 1, NULL, NULL, &w), MB_OK);
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
    parse_config(&options, &config);
    assert_int_equal(mb_weights_load(directory, &config, &fake.device, NULL, 1, NULL, NULL, &w), MB_OK);
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

/* The tensor with other random values of another dtype; scales of a former fp8 tensor go. */
static void retype(tiny_tensors *tensors, const char *name, const char *dtype) {
    tiny_tensor *tensor = tiny_tensors_find(tensors, name);
    assert_non_null(tensor);
    char scale[TINY_NAME + 16];
    snprintf(scale, sizeof scale, "%s_scale_inv", name);
    int rank = tensor->rank;
    int64_t shape[4];
    memcpy(shape, tensor->shape, sizeof shape);
    if (tiny_tensors_find(tensors, scale))
        tiny_tensors_remove(tensors, scale);
    tiny_tensors_remove(tensors, name);
    tensor = tiny_tensors_add(tensors, name, dtype, rank, shape);
    uint64_t state = tensor->n_bytes + (uint64_t)name[strlen(name) / 2];
    for (size_t i = 0; i < tensor->n_bytes; i += 2)
        ((uint16_t *)tensor->data)[i / 2] = (uint16_t)(tiny_random(&state) & 0xbfff);
    if (strcmp(dtype, "F32") == 0)
        for (size_t i = 0; i < tensor->n_bytes / 4; i++)
            ((float *)tensor->data)[i] = tiny_random_float(&state);
}

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
        retype(&tensors, cases[i].name, cases[i].dtype);
        char directory[TINY_PATH];
        tiny_directory_make(directory);
        tiny_checkpoint_write_tensors(&options, &tensors, directory);
        check_load(&options, &tensors, directory, 0, 2);
        check_load(&options, &tensors, directory, 1, 2);
        fake_device fake = fake_device_make(1);
        mb_config config;
        mb_weights w;
        parse_config(&options, &config);
        assert_int_equal(mb_weights_load(directory, &config, &fake.device, NULL, 1, NULL, NULL, &w), MB_OK);
        assert_int_equal(w.layers[0].qkv.dtype, cases[i].qkv);
        assert_int_equal(w.layers[0].w13.dtype, cases[i].w13);
        assert_int_equal(w.layers[0].w2.dtype, cases[i].w2);
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

/* ---- Shares ------------------------------------------------------------------------------------------- */

static void check_share_of_layer(const tiny_checkpoint *o, const tiny_tensors *tensors,
                                 const mb_weight_share *share, int is_moe, const mb_layer_weights *w) {
    const mb_range q = {share->heads.first * o->head_dim, share->heads.count * o->head_dim};
    const mb_range kv = {share->kv_heads.first * o->head_dim, share->kv_heads.count * o->head_dim};
    const mb_range hidden = {0, o->hidden}, inner = is_moe ? share->moe_inner : share->inner;
    check_rectangle(tensors, L0 "self_attn.q_proj.weight", &w->qkv, 0, 0, q, hidden);
    check_rectangle(tensors, L0 "self_attn.k_proj.weight", &w->qkv, 0, q.count, kv, hidden);
    check_rectangle(tensors, L0 "self_attn.v_proj.weight", &w->qkv, 0, q.count + kv.count, kv, hidden);
    check_rectangle(tensors, L0 "self_attn.o_proj.weight", &w->o, 0, 0, hidden, q);
    const mb_weight bias = {.data = w->qkv_bias.data,
                            .count = 1,
                            .rows = w->qkv_bias.cols,
                            .cols = 1,
                            .dtype = w->qkv_bias.dtype};
    check_rectangle(tensors, L0 "self_attn.v_proj.bias", &bias, 0, q.count + kv.count, kv, (mb_range){0, 1});
    if (!is_moe) {
        check_rectangle(tensors, L0 "mlp.gate_proj.weight", &w->w13, 0, 0, inner, hidden);
        check_rectangle(tensors, L0 "mlp.up_proj.weight", &w->w13, 0, inner.count, inner, hidden);
        check_rectangle(tensors, L0 "mlp.down_proj.weight", &w->w2, 0, 0, hidden, inner);
        return;
    }
    assert_int_equal(w->w13.count, share->experts.count);
    assert_int_equal(w->router.rows, o->n_experts);
    for (int64_t e = 0; e < share->experts.count; e++) {
        int64_t expert = share->experts.first + e, all = o->moe_intermediate;
        char name[TINY_NAME];
        if (o->merged_experts) {
            const mb_range gate = {expert * 2 * all + inner.first, inner.count},
                           up = {gate.first + all, inner.count};
            const mb_range down = {expert * o->hidden, o->hidden};
            check_rectangle(tensors, L0 "mlp.experts.gate_up_proj", &w->w13, e, 0, gate, hidden);
            check_rectangle(tensors, L0 "mlp.experts.gate_up_proj", &w->w13, e, inner.count, up, hidden);
            check_rectangle(tensors, L0 "mlp.experts.down_proj", &w->w2, e, 0, down, inner);
            continue;
        }
        snprintf(name, sizeof name, L0 "mlp.experts.%d.gate_proj.weight", (int)expert);
        check_rectangle(tensors, name, &w->w13, e, 0, inner, hidden);
        snprintf(name, sizeof name, L0 "mlp.experts.%d.up_proj.weight", (int)expert);
        check_rectangle(tensors, name, &w->w13, e, inner.count, inner, hidden);
        snprintf(name, sizeof name, L0 "mlp.experts.%d.down_proj.weight", (int)expert);
        check_rectangle(tensors, name, &w->w2, e, 0, hidden, inner);
    }
}

/* Plans and reads a share of a one-layer model; wanted: what planning gives. */
static void check_share(const tiny_checkpoint *o, const tiny_tensors *tensors, const mb_weight_share *share,
                        int host_memory, mb_status wanted) {
    char directory[TINY_PATH];
    mb_config config;
    mb_checkpoint checkpoint;
    mb_weight_plan plan;
    mb_layer_weights layer = {0};
    mb_weights w = {.layers = &layer, .n_layers = 1};
    fake_device fake = fake_device_make(host_memory);
    tiny_directory_make(directory);
    tiny_checkpoint_write_tensors(o, tensors, directory);
    parse_config(o, &config);
    assert_int_equal(mb_checkpoint_open(directory, &checkpoint), MB_OK);
    if (host_memory)
        assert_int_equal(mb_checkpoint_map(&checkpoint), MB_OK);
    mb_status status = mb_weight_plan_make(&checkpoint, &config, share, &w, &plan);
    if (status != wanted)
        fail_msg("%s: %s", mb_status_name(status), mb_last_error());
    if (status == MB_OK) {
        void *memory;
        progress_log log = {.owner = pthread_self()};
        assert_int_equal(fake.device.allocate(&fake.device, plan.n_bytes, &memory), MB_OK);
        assert_int_equal(mb_weight_plan_read(&plan, &checkpoint, &fake.device, memory, 3, log_progress, &log),
                         MB_OK);
        assert_int_equal(log.done, plan.read_bytes);
        mb_weight_plan_place(&plan, memory);
        check_share_of_layer(o, tensors, share, config.is_moe[0], &layer);
        check_rows(tensors, "model.embed_tokens.weight", &w.embedding, 0, 0, o->vocab);
        fake.device.free(&fake.device, memory);
    }
    mb_weight_plan_free(&plan);
    mb_checkpoint_close(&checkpoint);
    tiny_directory_remove(directory);
}

static void test_shares(void **state) {
    (void)state;
    static const mb_weight_share shares[] = {
        {{0, 4}, {0, 2}, {0, 256}, {0, 384}, {0, 4}, NULL},     /* all of it */
        {{0, 2}, {0, 1}, {0, 128}, {0, 128}, {0, 4}, NULL},     /* the first of two */
        {{2, 2}, {1, 1}, {128, 128}, {128, 256}, {0, 4}, NULL}, /* the second, and more */
        {{0, 4}, {0, 2}, {0, 256}, {0, 384}, {1, 2}, NULL},     /* experts in the middle */
        {{3, 1}, {1, 1}, {128, 128}, {256, 128}, {3, 1}, NULL}, /* one of each */
        {{0, 4},
         {0, 2},
         {0, 100},
         {0, 100},
         {2, 2},
         NULL}, /* from the first column: no block begins earlier */
        {{0, 4}, {0, 2}, {128, 72}, {128, 72}, {0, 1}, NULL}, /* heights that are no blocks */
        {{0, 4}, {0, 2}, {64, 64}, {96, 96}, {0, 4}, NULL},   /* columns that begin within a block */
    };
    static const char *const dtypes[] = {"F32", "BF16", "F8_E4M3"};
    static const int dense[] = {0};
    for (int variant = 0; variant < 9; variant++) {
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.dtype = dtypes[variant % 3];
        options.n_layers = 1;
        options.hidden = 130;
        options.head_dim = 128;
        options.intermediate = 256;
        options.moe_intermediate = 384;
        options.attention_bias = 1;
        options.mlp_only_layers = dense;
        options.n_mlp_only_layers = variant / 3 == 1;
        options.merged_experts = variant / 3 == 2 && variant % 3 < 2;
        tiny_tensors tensors;
        tiny_checkpoint_tensors(&options, &tensors);
        for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
            int is_cut = i == 7 && variant % 3 == 2; /* only fp8 has blocks */
            check_share(&options, &tensors, &shares[i], 0, is_cut ? MB_ERR_UNSUPPORTED : MB_OK);
            check_share(&options, &tensors, &shares[i], 1, is_cut ? MB_ERR_UNSUPPORTED : MB_OK);
        }
        tiny_tensors_free(&tensors);
    }
}

/* ---- Files and memory --------------------------------------------------------------------------------- */

/* A tensor of one byte in front: nothing behind it is aligned, so nothing with larger elements is mapped. */
static void test_unaligned_tensors_are_copied(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    tiny_tensors first = {0}, tensors;
    tiny_tensors_add(&first, "odd", "U8", 1, (int64_t[]){1});
    tiny_checkpoint_tensors(&options, &tensors);
    for (size_t i = 0; i < tensors.count; i++) {
        const tiny_tensor *tensor = &tensors.items[i];
        memcpy(tiny_tensors_add(&first, tensor->name, tensor->dtype, tensor->rank, tensor->shape)->data,
               tensor->data, tensor->n_bytes);
    }
    char directory[TINY_PATH];
    tiny_directory_make(directory);
    tiny_checkpoint_write_tensors(&options, &first, directory);
    fake_device fake = fake_device_make(1);
    mb_config config;
    mb_weights w;
    parse_config(&options, &config);
    assert_int_equal(mb_weights_load(directory, &config, &fake.device, NULL, 1, NULL, NULL, &w), MB_OK);
    assert_int_equal(w.n_maps, 0);
    assert_int_equal((uintptr_t)w.lm_head.data % 256, 0);
    check_rows(&tensors, "lm_head.weight", &w.lm_head, 0, 0, options.vocab);
    check_layer(&options, &tensors, 1, 1, &w.layers[1]);
    mb_weights_free(&w);
    tiny_tensors_free(&first);
    tiny_tensors_free(&tensors);
    tiny_directory_remove(directory);
}

/* A mapped weight is the file: what another program writes there shows. */
static void test_mapped_weights_are_the_file(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    char directory[TINY_PATH], path[TINY_PATH + 64];
    tiny_directory_make(directory);
    tiny_checkpoint_write(&options, directory);
    fake_device fake = fake_device_make(1);
    mb_config config;
    mb_weights w;
    parse_config(&options, &config);
    assert_int_equal(mb_weights_load(directory, &config, &fake.device, NULL, 1, NULL, NULL, &w), MB_OK);
    assert_int_equal(w.n_maps, 1);
    float before = *(const float *)w.embedding.data, after = before + 1;
    mb_checkpoint checkpoint;
    assert_int_equal(mb_checkpoint_open(directory, &checkpoint), MB_OK);
    const mb_tensor *tensor = mb_checkpoint_find(&checkpoint, "model.embed_tokens.weight");
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, &after, sizeof after, (off_t)tensor->offset), sizeof after);
    close(fd);
    assert_true(*(const volatile float *)w.embedding.data == after);
    mb_checkpoint_close(&checkpoint);
    mb_weights_free(&w);
    tiny_directory_remove(directory);
}

/* A file that becomes shorter between its header and its map is refused while nobody reads it. */
static void test_file_that_shrinks_is_not_mapped(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    char directory[TINY_PATH], path[TINY_PATH + 64], byte;
    tiny_directory_make(directory);
    tiny_checkpoint_write(&options, directory);
    mb_checkpoint checkpoint;
    assert_int_equal(mb_checkpoint_open(directory, &checkpoint), MB_OK);
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    assert_int_equal(truncate(path, (off_t)checkpoint.shards[0].n_bytes - 1), 0);
    assert_int_equal(mb_checkpoint_map(&checkpoint), MB_ERR_IO);
    assert_non_null(strstr(mb_last_error(), "size changed"));
    const mb_tensor *last = mb_checkpoint_find(&checkpoint, "lm_head.weight");
    assert_int_equal(mb_checkpoint_read(&checkpoint, last, last->n_bytes - 1, &byte, 1), MB_ERR_IO);
    mb_checkpoint_close(&checkpoint);
    tiny_directory_remove(directory);
}

static void test_too_little_memory(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = 40000;
    char directory[TINY_PATH];
    tiny_directory_make(directory);
    tiny_checkpoint_write(&options, directory);
    for (int host_memory = 0; host_memory < 2; host_memory++) {
        fake_device fake = fake_device_make(host_memory);
        mb_config config;
        mb_weights w;
        parse_config(&options, &config);
        fake.free_bytes = 60000; /* on the CPU the embedding and lm_head are mapped, the rest is some 80 kB */
        assert_int_equal(mb_weights_load(directory, &config, &fake.device, NULL, 1, NULL, NULL, &w),
                         MB_ERR_MEMORY);
        assert_int_equal(fake.n_allocations, 0);
        const char *const words[] = {directory,
                                     "the weights need ",
                                     " GB of memory",
                                     "68.7 GB here (fake)",
                                     "6e-05 GB are free",
                                     host_memory ? "more memory" : "GPU with more memory",
                                     "fp8"};
        for (size_t i = 0; i < sizeof words / sizeof *words; i++)
            if (!strstr(mb_last_error(), words[i]))
                fail_msg("\"%s\" does not say \"%s\"", mb_last_error(), words[i]);
        fake.free_bytes = 1000000; /* enough for what is copied on the CPU */
        mb_status status = mb_weights_load(directory, &config, &fake.device, NULL, 1, NULL, NULL, &w);
        assert_int_equal(status, host_memory ? MB_OK : MB_ERR_MEMORY);
        mb_weights_free(&w);
    }
    tiny_directory_remove(directory);
}

/* Headers alone tell the same as loading. */
static void test_measure(void **state) {
    (void)state;
    static const char *const dtypes[] = {"BF16", "F8_E4M3"};
    for (int i = 0; i < 4; i++) {
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.dtype = dtypes[i % 2];
        options.tied = i / 2;
        char directory[TINY_PATH];
        tiny_directory_make(directory);
        tiny_checkpoint_write(&options, directory);
        fake_device fake = fake_device_make(0);
        mb_config config;
        mb_weights loaded, measured;
        parse_config(&options, &config);
        assert_int_equal(mb_weights_load(directory, &config, &fake.device, NULL, 1, NULL, NULL, &loaded),
                         MB_OK);
        assert_int_equal(mb_weights_measure(directory, &config, NULL, &measured), MB_OK);
        assert_int_equal(measured.n_bytes, loaded.n_bytes);
        assert_int_equal(measured.n_parameters, loaded.n_parameters);
        assert_int_equal(measured.n_active_parameters, loaded.n_active_parameters);
        assert_string_equal(measured.dtype_name, loaded.dtype_name);
        assert_int_equal(measured.is_tied, options.tied);
        assert_null(measured.memory);
        assert_null(measured.layers[0].qkv.data);
        assert_null(measured.lm_head.data);
        mb_weights_free(&loaded);
        mb_weights_free(&measured);
        tiny_directory_remove(directory);
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
        parse_config(&options, &config);
        assert_int_equal(mb_weights_load(directory, &config, &fake.device, NULL, 1, NULL, NULL, &w), MB_OK);
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
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_fp8_scales),
        cmocka_unit_test(test_matrix_dtype),
        cmocka_unit_test(test_random_weights),
        cmocka_unit_test(test_large_tensor),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_mixed_dtypes),
        cmocka_unit_test(test_accepted_extras),
        cmocka_unit_test(test_nan_weights_load),
        cmocka_unit_test(test_merged_of_different_dtypes),
        cmocka_unit_test(test_scale_types),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_unaligned_tensors_are_copied),
        cmocka_unit_test(test_mapped_weights_are_the_file),
        cmocka_unit_test(test_file_that_shrinks_is_not_mapped),
        cmocka_unit_test(test_too_little_memory),
        cmocka_unit_test(test_measure),
        cmocka_unit_test(test_tied_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
