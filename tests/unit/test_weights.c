/* Weights: every element arrives at its place in the merged layout. */
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

#include "model/weights/weights.h"
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

/* Rows [first, first + rows) of matrix `matrix` must be the tensor's bytes. */
static void check_rows(const tiny_tensors *tensors, const char *name, const mb_weight *weight, int64_t matrix,
                       int64_t first, int64_t rows) {
    const tiny_tensor *tensor = tiny_tensors_find(tensors, name);
    assert_non_null(tensor);
    size_t row_bytes = mb_dtype_row_bytes(weight->dtype, weight->cols);
    assert_int_equal(tensor->n_bytes, (size_t)rows * row_bytes);
    const char *at = (const char *)weight->data + (size_t)(matrix * weight->rows + first) * row_bytes;
    if (memcmp(at, tensor->data, tensor->n_bytes) != 0)
        fail_msg("%s is not at matrix %lld, row %lld", name, (long long)matrix, (long long)first);
    char scale_name[TINY_NAME + 16];
    snprintf(scale_name, sizeof scale_name, "%s_scale_inv", name);
    const tiny_tensor *scale = tiny_tensors_find(tensors, scale_name);
    assert_int_equal(scale != NULL, weight->scale != NULL);
    if (!scale)
        return;
    assert_int_equal(weight->scale_cols, MB_F8_BLOCK);
    int64_t scale_cols = (weight->cols + MB_F8_BLOCK - 1) / MB_F8_BLOCK;
    int64_t scale_height = (weight->rows + weight->scale_rows - 1) / weight->scale_rows;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < scale_cols; c++) {
            size_t i = (size_t)(r / 128 * scale_cols + c);
            float wanted = 0;
            if (strcmp(scale->dtype, "F32") == 0) {
                wanted = ((const float *)scale->data)[i];
            } else {
                uint32_t bits = (uint32_t)((const uint16_t *)scale->data)[i] << 16;
                memcpy(&wanted, &bits, sizeof wanted);
            }
            int64_t row = matrix * scale_height + (first + r) / weight->scale_rows;
            if (((const float *)weight->scale)[row * scale_cols + c] != wanted)
                fail_msg("%s: wrong scale for row %lld, block %lld", name, (long long)r, (long long)c);
        }
    }
}

static void check_vector(const tiny_tensors *tensors, const char *name, const mb_weight *weight) {
    assert_int_equal(weight->rows, 1);
    check_rows(tensors, name, weight, 0, 0, 1);
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
    if (mb_weights_load(directory, &config, &fake.device, n_threads, log_progress, &log, &w) != MB_OK)
        fail_msg("%s", mb_last_error());
    size_t file_bytes = 0, n_parameters = 0;
    for (size_t i = 0; i < tensors->count; i++) {
        const tiny_tensor *tensor = &tensors->items[i];
        size_t count = 1;
        for (int d = 0; d < tensor->rank; d++)
            count *= (size_t)tensor->shape[d];
        file_bytes += tensor->n_bytes;
        n_parameters += strstr(tensor->name, "scale_inv") ? 0 : count;
    }
    assert_int_equal(log.total, file_bytes);
    assert_int_equal(log.done, file_bytes);
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
    assert_int_equal(mb_weights_load(directory, &config, &fake.device, 0, NULL, NULL, &w), MB_OK);
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
    assert_int_equal(mb_weights_load(directory, &config, &fake.device, 1, NULL, NULL, &w), MB_OK);
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
    tiny_tensors_add(&tensors, "lm_head.weight", "F32", 2, (int64_t[]){64, 32});
    char directory[TINY_PATH], path[TINY_PATH + 64];
    tiny_directory_make(directory);
    tiny_checkpoint_write_tensors(&options, &tensors, directory);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", directory);
    assert_int_equal(unlink(path), 0);
    fake_device fake = fake_device_make(1);
    mb_config config;
    mb_weights w;
    parse_config(&options, &config);
    assert_int_equal(mb_weights_load(directory, &config, &fake.device, 1, NULL, NULL, &w), MB_OK);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),          cmocka_unit_test(test_fp8_scales),
        cmocka_unit_test(test_large_tensor),     cmocka_unit_test(test_counts),
        cmocka_unit_test(test_mixed_dtypes),     cmocka_unit_test(test_accepted_extras),
        cmocka_unit_test(test_nan_weights_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
