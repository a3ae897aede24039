#include "support/check_weights.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ops/common/dtype.h"
#include "ops/common/tensor.h"
#include "support/fake_device.h"

void log_progress(void *user, uint64_t done, uint64_t total) {
    progress_log *log = user;
    assert_true(pthread_equal(log->owner, pthread_self()));
    assert_true(done <= total);
    assert_true(log->calls == 0 || (done > log->done && total == log->total));
    log->done = done;
    log->total = total;
    log->calls++;
}

void tiny_config_parse(const tiny_checkpoint *options, mb_config *config) {
    char *text = tiny_checkpoint_config(options);
    if (mb_config_parse("config.json", text, strlen(text), config) != MB_OK)
        fail_msg("%s", mb_last_error());
    free(text);
}

/* Element i of a tensor of the file. */
float tiny_tensor_value(const tiny_tensor *tensor, size_t i) {
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

/* Scales of one block of rows of a tensor whose blocks of 128x128 became fp8. */
typedef struct made_scales {
    int64_t first_row, end_row; /* of the tensor that is in `values`; end 0: none yet */
    float values[512];          /* by blocks of columns */
} made_scales;

static void make_scales(const tiny_tensor *tensor, int64_t row, made_scales *scales) {
    int64_t width = tensor->shape[tensor->rank - 1], height = tensor->shape[tensor->rank - 2];
    if (strstr(tensor->name, "gate_up_proj"))
        height /= 2;
    int64_t matrix = row / height * height;
    scales->first_row = matrix + (row - matrix) / 128 * 128;
    scales->end_row = scales->first_row + 128 < matrix + height ? scales->first_row + 128 : matrix + height;
    for (int64_t c = 0; c < width; c++) {
        float *largest = &scales->values[c / 128];
        if (c % 128 == 0)
            *largest = 0;
        for (int64_t r = scales->first_row; r < scales->end_row; r++)
            *largest = fmaxf(*largest, fabsf(tiny_tensor_value(tensor, (size_t)(r * width + c))));
    }
    for (int64_t block = 0; block * 128 < width; block++)
        scales->values[block] = scales->values[block] > 0 ? scales->values[block] / 448 : 1;
}

/* The value that stands for one of the tensor's when it became fp8. */
static float quantised_value(const tiny_tensor *tensor, int64_t row, int64_t col, made_scales *scales) {
    if (row < scales->first_row || row >= scales->end_row)
        make_scales(tensor, row, scales);
    float scale = scales->values[col / 128];
    float value = tiny_tensor_value(tensor, (size_t)(row * tensor->shape[tensor->rank - 1] + col)) / scale;
    mb_round_f32(MB_F8_E4M3, 1, &value);
    return value * scale;
}

/* The rectangle of a tensor (seen as a matrix) must be rows [at, at + rows.count) of matrix `matrix`. */
void check_rectangle(const tiny_tensors *tensors, const char *name, const mb_weight *weight, int64_t matrix,
                     int64_t at, mb_range rows, mb_range cols) {
    const tiny_tensor *tensor = tiny_tensors_find(tensors, name);
    assert_non_null(tensor);
    const tiny_tensor *scale = find_scale(tensors, tensor);
    int64_t width = tensor->rank > 1 ? tensor->shape[tensor->rank - 1] : 1;
    assert_int_equal(cols.count, weight->cols);
    float *values = malloc((size_t)cols.count * sizeof *values);
    made_scales made = {0};
    assert_non_null(values);
    for (int64_t r = 0; r < rows.count; r++) {
        mb_weight_load(weight, matrix, at + r, 0, cols.count, values);
        for (int64_t c = 0; c < cols.count; c++) {
            int64_t row = rows.first + r, col = cols.first + c;
            float wanted = tiny_tensor_value(tensor, (size_t)(row * width + col));
            if (scale)
                wanted *= tiny_tensor_value(scale, (size_t)(row / 128 * scale->shape[1] + col / 128));
            if (weight->dtype != MB_F8_E4M3)
                mb_round_f32(weight->dtype, 1, &wanted);
            else if (!scale)
                wanted = quantised_value(tensor, row, col, &made);
            if (values[c] != wanted && !(isnan(values[c]) && isnan(wanted)))
                fail_msg("%s: row %lld, column %lld is %g, wanted %g", name, (long long)row, (long long)col,
                         (double)values[c], (double)wanted);
        }
    }
    free(values);
}

/* All of a tensor. */
void check_rows(const tiny_tensors *tensors, const char *name, const mb_weight *weight, int64_t matrix,
                int64_t first, int64_t rows) {
    check_rectangle(tensors, name, weight, matrix, first, (mb_range){0, rows}, (mb_range){0, weight->cols});
}

void check_vector(const tiny_tensors *tensors, const char *name, const mb_weight *weight) {
    assert_int_equal(weight->rows, 1);
    const mb_weight column = {
        .data = weight->data, .count = 1, .rows = weight->cols, .cols = 1, .dtype = weight->dtype};
    check_rows(tensors, name, &column, 0, 0, column.rows);
}

void check_layer(const tiny_checkpoint *o, const tiny_tensors *tensors, int layer, int is_moe,
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
        for (int64_t e = 0; e < experts; e++) {
            const mb_range rows13 = {e * 2 * inner, 2 * inner}, rows2 = {e * o->hidden, o->hidden};
            check_rectangle(tensors, NAME("model.layers.%d.mlp.experts.gate_up_proj", layer), &w->w13, e, 0,
                            rows13, (mb_range){0, o->hidden});
            check_rectangle(tensors, NAME("model.layers.%d.mlp.experts.down_proj", layer), &w->w2, e, 0,
                            rows2, (mb_range){0, inner});
        }
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
void check_load(const tiny_checkpoint *o, const tiny_tensors *tensors, const char *directory, int host_memory,
                int n_threads) {
    fake_device fake = fake_device_make(host_memory);
    progress_log log = {.owner = pthread_self()};
    mb_config config;
    mb_weights w;
    tiny_config_parse(o, &config);
    if (mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, n_threads, log_progress, &log,
                        &w) != MB_OK)
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

void tiny_tensor_retype(tiny_tensors *tensors, const char *name, const char *dtype) {
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
