/*
 * The scales of an fp8 KV cache (kv_scales.h): no value is beyond what they allow, they do not leave room
 * unused, every operator gets its layer's, and values of any size keep their accuracy.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/session.h"
#include "model/kv_scales.h"
#include "model/model.h"
#include "ops/common/dtype.h"
#include "ops/common/tensor.h"
#include "support/generation.h"

enum { HIDDEN = 96, DIM = 64, N_Q = 6, N_KV = 3, LAYERS = 2, VOCAB = 64, PROMPT = 20 };

/* v_proj begins within a block of 128 rows. */
static tiny_checkpoint checkpoint(const char *dtype) {
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.hidden = HIDDEN;
    options.n_heads = N_Q;
    options.n_kv_heads = N_KV;
    options.head_dim = DIM;
    options.n_layers = LAYERS;
    options.vocab = VOCAB;
    options.dtype = dtype;
    return options;
}

static mb_model *open_with(const tiny_checkpoint *options, const tiny_tensors *tensors,
                           mb_model_options how) {
    char directory[TINY_PATH];
    tiny_directory_make(directory);
    if (tensors)
        tiny_checkpoint_write_tensors(options, tensors, directory);
    else
        tiny_checkpoint_write(options, directory);
    mb_model *model;
    how.device = "cpu";
    how.n_threads = 1;
    mb_status status = mb_model_open(directory, &how, &model);
    tiny_directory_remove(directory);
    if (status != MB_OK)
        fail_msg("%s", mb_last_error());
    return model;
}

/* ---- Nothing is beyond them -------------------------------------------------------------------------- */

/* The largest element of K that a head of this many inputs gives, in a cache of fp32. */
static double largest_of_head(const mb_model *model, const mb_layer_weights *w, const float *k,
                              int32_t position) {
    const mb_config *c = &model->config;
    float qkv[3 * DIM] = {0}, q[DIM], caches[2][MB_KV_BLOCK * DIM] = {{0}};
    const int32_t slot = 0;
    memcpy(qkv + DIM, k, DIM * sizeof *k);
    const mb_qk_norm_rope_store_args args = {.qkv = qkv,
                                             .q_norm = w->q_norm,
                                             .k_norm = w->k_norm,
                                             .positions = &position,
                                             .slots = &slot,
                                             .inv_freq = c->inv_freq,
                                             .q = q,
                                             .k_cache = caches[0],
                                             .v_cache = caches[1],
                                             .n_tokens = 1,
                                             .n_heads = 1,
                                             .n_kv_heads = 1,
                                             .head_dim = DIM,
                                             .eps = c->rms_eps,
                                             .rope_scale = c->rope_scale,
                                             .dtype = MB_F32,
                                             .cache_dtype = MB_F32};
    mb_stream stream;
    assert_int_equal(model->device->stream_open(model->device, &stream), MB_OK);
    assert_int_equal(mb_qk_norm_rope_store_ref(&args, stream), MB_OK);
    model->device->stream_close(model->device, stream);
    double largest = 0;
    for (int i = 0; i < DIM; i++)
        largest = fmax(largest, fabs((double)caches[0][i]));
    return largest;
}

/* Heads of random numbers, and those that have all in one element or in a pair of them. */
static double largest_k(const mb_model *model, const mb_layer_weights *w) {
    uint64_t seed = 3;
    double largest = 0;
    for (int i = 0; i < 4 * DIM; i++) {
        float k[DIM] = {0};
        for (int d = 0; d < DIM && i >= 2 * DIM; d++)
            k[d] = tiny_random_float(&seed) * 50;
        k[i % DIM] = i < 2 * DIM ? 1000 : k[i % DIM];
        k[(i + DIM / 2) % DIM] = i >= DIM && i < 2 * DIM ? -1000 : k[(i + DIM / 2) % DIM];
        largest = fmax(largest, largest_of_head(model, w, k, i < DIM ? 0 : i * 37));
    }
    return largest;
}

/* What the normed row x, of length sqrt(H) in front of the norm's weight, makes of one row of v_proj. */
static double product(const float *row, const float *norm, const float *x) {
    double squares = 0, sum = 0;
    for (int i = 0; i < HIDDEN; i++) {
        squares += (double)x[i] * (double)x[i];
        sum += (double)row[i] * (double)norm[i] * (double)x[i];
    }
    return sum * sqrt(HIDDEN / squares);
}

/* Each row meets its worst x, and a random one. */
static double largest_v(const mb_layer_weights *w, int head) {
    uint64_t seed = 4;
    float row[HIDDEN], norm[HIDDEN], x[HIDDEN];
    double largest = 0;
    mb_weight_load(&w->input_norm, 0, 0, 0, HIDDEN, norm);
    for (int d = 0; d < DIM; d++) {
        const int64_t at = (N_Q + N_KV + head) * DIM + d;
        float bias = 0;
        mb_weight_load(&w->qkv, 0, at, 0, HIDDEN, row);
        if (w->qkv_bias.data)
            mb_weight_load(&w->qkv_bias, 0, 0, at, 1, &bias);
        for (int i = 0; i < HIDDEN; i++)
            x[i] = row[i] * norm[i] * (bias < 0 ? -1 : 1);
        largest = fmax(largest, fabs(product(row, norm, x) + (double)bias));
        for (int i = 0; i < HIDDEN; i++)
            x[i] = tiny_random_float(&seed);
        largest = fmax(largest, fabs(product(row, norm, x) + (double)bias));
    }
    return largest;
}

/* The largest value is below 448 scales, and above what half the scale would hold. `slack`: of the bound. */
static void check_scale(float scale, double largest, double slack) {
    int exponent;
    assert_true(frexpf(scale, &exponent) == 0.5f); /* a power of two */
    assert_true(largest <= 448 * (double)scale * (1 + 1e-6));
    assert_true(largest * slack > 224 * (double)scale);
}

static void check_model(mb_model *model) {
    assert_non_null(model->kv_scales);
    for (int l = 0; l < LAYERS; l++) {
        const mb_layer_weights *w = &model->weights.layers[l];
        const float *scales = model->kv_scales + l * 2 * N_KV;
        for (int h = 0; h < N_KV; h++) {
            check_scale(scales[h], largest_k(model, w), 1.001);
            check_scale(scales[N_KV + h], largest_v(w, h), 17.0 / 16 + 1e-6);
        }
    }
    mb_model_close(model);
}

/* The norms' and heads' sizes differ, so that a scale in the wrong place shows. */
static void make_uneven(tiny_tensors *tensors) {
    for (int l = 0; l < LAYERS; l++) {
        char name[TINY_NAME];
        snprintf(name, sizeof name, "model.layers.%d.self_attn.v_proj.weight", l);
        tiny_tensor *v = tiny_tensors_find(tensors, name);
        assert_true(v && strcmp(v->dtype, "F32") == 0);
        for (int64_t i = 0; i < N_KV * DIM * HIDDEN; i++)
            ((float *)v->data)[i] *= ldexpf(1, 3 * (int)(i / (DIM * HIDDEN)) - 6 * l);
        snprintf(name, sizeof name, "model.layers.%d.self_attn.k_norm.weight", l);
        tiny_tensor *k = tiny_tensors_find(tensors, name);
        assert_true(k && strcmp(k->dtype, "F32") == 0);
        for (int i = 0; i < DIM; i++)
            ((float *)k->data)[i] *= l ? 300 : 0.01f;
    }
}

static void test_largest_values(void **state) {
    (void)state;
    static const char *const types[] = {"F32", "BF16", "F8_E4M3"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        for (int has_bias = 0; has_bias < 2; has_bias++) {
            tiny_checkpoint options = checkpoint(types[i]);
            options.attention_bias = has_bias;
            check_model(open_with(&options, NULL, (mb_model_options){.kv_dtype = "fp8"}));
        }
    tiny_checkpoint options = checkpoint("F32");
    tiny_tensors tensors;
    tiny_checkpoint_tensors(&options, &tensors);
    make_uneven(&tensors);
    check_model(open_with(&options, &tensors, (mb_model_options){.kv_dtype = "fp8", .quant = "fp8"}));
    mb_model *model = open_with(&options, &tensors, (mb_model_options){.kv_dtype = "fp8"});
    model->config.rope_scale = 1.9f;
    model->device->free(model->device, model->kv_scales);
    assert_int_equal(mb_kv_scales_make(&model->config, &model->weights, model->device, &model->kv_scales),
                     MB_OK);
    check_model(model);
    tiny_tensors_free(&tensors);
    for (int to_fp8 = 0; to_fp8 < 2; to_fp8++)
        check_model(open_with(
            &options, NULL,
            (mb_model_options){.kv_dtype = "fp8", .quant = to_fp8 ? "fp8" : NULL, .load = MB_LOAD_RANDOM}));
}

static void test_none_without_fp8_or_weights(void **state) {
    (void)state;
    tiny_checkpoint options = checkpoint("F32");
    const mb_model_options without[] = {{0}, {.kv_dtype = "fp8", .load = MB_LOAD_SIZES}};
    for (int i = 0; i < 2; i++) {
        mb_model *model = open_with(&options, NULL, without[i]);
        assert_null(model->kv_scales);
        mb_model_close(model);
    }
}

/* A head that is all zeros, and one that is not finite, have scale 1. */
static void test_scale_of_nothing(void **state) {
    (void)state;
    tiny_checkpoint options = checkpoint("F32");
    tiny_tensors tensors;
    tiny_checkpoint_tensors(&options, &tensors);
    float *v = tiny_tensors_find(&tensors, "model.layers.0.self_attn.v_proj.weight")->data;
    memset(v, 0, DIM * HIDDEN * sizeof *v);
    v[DIM * HIDDEN] = INFINITY;
    v[2 * DIM * HIDDEN] = NAN;
    for (int i = 1; i < DIM * HIDDEN; i++)
        v[2 * DIM * HIDDEN + i] = 0;
    mb_model *model = open_with(&options, &tensors, (mb_model_options){.kv_dtype = "fp8"});
    for (int h = 0; h < N_KV; h++)
        assert_true(model->kv_scales[N_KV + h] == 1);
    mb_model_close(model);
    tiny_tensors_free(&tensors);
}

static struct { long long n_calls, n_live, refused; } memory;

static void *failing_allocate(void *user, void *pointer, size_t n_bytes) {
    (void)user;
    if (n_bytes > 0 && ++memory.n_calls == memory.refused)
        return NULL;
    memory.n_live += n_bytes == 0 ? -1 : !pointer;
    if (n_bytes > 0)
        return realloc(pointer, n_bytes);
    free(pointer);
    return NULL;
}

static void test_every_allocation_fails_once(void **state) {
    (void)state;
    tiny_checkpoint options = checkpoint("F8_E4M3");
    options.attention_bias = 1;
    mb_model *model = open_with(&options, NULL, (mb_model_options){0});
    float *scales;
    mb_status status = MB_ERR_MEMORY;
    mb_set_allocator(failing_allocate, NULL);
    for (memory.refused = 1; status != MB_OK; memory.refused++) {
        memory.n_calls = memory.n_live = 0;
        status = mb_kv_scales_make(&model->config, &model->weights, model->device, &scales);
        if (status != MB_OK) {
            assert_int_equal(status, MB_ERR_MEMORY);
            assert_null(scales);
            assert_int_equal(memory.n_live, 0);
        }
    }
    mb_set_allocator(NULL, NULL);
    assert_true(memory.refused > 10);
    model->kv_scales = scales;
    check_model(model);
}

/* ---- Operators --------------------------------------------------------------------------------------- */

static const mb_ops *true_ops;
static struct { int stores, attentions, decodes; } calls;
static const float *all_scales; /* that the model has */

/* The first layer's cache is not fp8. */
static void check_given(mb_dtype cache_dtype, const float *k, const float *v, int call) {
    const int layer = call % LAYERS;
    assert_int_equal(cache_dtype, layer == 0 ? MB_F32 : MB_F8_E4M3);
    assert_ptr_equal(k, layer == 0 ? NULL : all_scales + layer * 2 * N_KV);
    assert_ptr_equal(v, layer == 0 ? NULL : all_scales + (layer * 2 + 1) * N_KV);
}

static mb_status watched_store(const mb_qk_norm_rope_store_args *args, mb_stream stream) {
    check_given(args->cache_dtype, args->k_scale, args->v_scale, calls.stores++);
    return true_ops->qk_norm_rope_store(args, stream);
}

static mb_status watched_attention(const mb_attention_args *args, void *workspace, size_t workspace_bytes,
                                   mb_stream stream) {
    check_given(args->cache_dtype, args->k_scale, args->v_scale, calls.attentions++);
    return true_ops->attention(args, workspace, workspace_bytes, stream);
}

static mb_status watched_decode(const mb_decode_attention_args *args, void *workspace, size_t workspace_bytes,
                                mb_stream stream) {
    check_given(args->cache_dtype, args->k_scale, args->v_scale, calls.decodes++);
    return true_ops->decode_attention(args, workspace, workspace_bytes, stream);
}

static generation answer_of(mb_model *model) {
    generation g;
    generation_init_random(&g, model, 7, VOCAB, -1, PROMPT, 5);
    generation_keep_logprobs(&g, 1);
    mb_session *session = session_with(model, 0, 0, 0, 0);
    generation_run_alone(&g, session);
    mb_session_close(session);
    assert_int_equal(g.state, MB_FINISHED_LENGTH);
    return g;
}

static void test_operators_get_them(void **state) {
    (void)state;
    tiny_checkpoint options = checkpoint("F32");
    mb_model *model = open_with(&options, NULL, (mb_model_options){.kv_dtype = "fp8"});
    mb_model_info info;
    mb_model_get_info(model, &info);
    /* Of a value of each head, K and V of the first layer, then of the others; rounded up to whole floats. */
    const size_t n_bytes = 2 * sizeof(float) + 2 * (LAYERS - 1);
    assert_int_equal(info.kv_bytes_per_token,
                     N_KV * DIM * ((n_bytes + sizeof(float) - 1) / sizeof(float) * sizeof(float)));
    true_ops = model->device->ops;
    all_scales = model->kv_scales;
    mb_ops watched = *true_ops;
    watched.qk_norm_rope_store = watched_store;
    watched.attention = watched_attention;
    watched.decode_attention = watched_decode;
    model->device->ops = &watched;
    generation g = answer_of(model);
    assert_int_equal(calls.stores, LAYERS);
    assert_int_equal(calls.attentions, LAYERS);
    assert_true(calls.decodes >= 4 * LAYERS);
    generation_free(&g);
    model->device->ops = true_ops;
    mb_model_close(model);
}

/* ---- Values of any size ------------------------------------------------------------------------------ */

static void multiply(tiny_tensors *tensors, int layer, const char *name, int exponent) {
    char full[TINY_NAME];
    snprintf(full, sizeof full, "model.layers.%d.self_attn.%s.weight", layer, name);
    tiny_tensor *tensor = tiny_tensors_find(tensors, full);
    assert_true(tensor && strcmp(tensor->dtype, "F32") == 0);
    for (size_t i = 0; i < tensor->n_bytes / sizeof(float); i++)
        ((float *)tensor->data)[i] = ldexpf(((float *)tensor->data)[i], exponent);
}

/* The model with V and K so many times as large, of which what follows takes the factor out again. */
static generation answer_with(int v_exponent, int k_exponent) {
    tiny_checkpoint options = checkpoint("F32");
    tiny_tensors tensors;
    tiny_checkpoint_tensors(&options, &tensors);
    for (int l = 0; l < LAYERS; l++) {
        multiply(&tensors, l, "v_proj", v_exponent);
        multiply(&tensors, l, "o_proj", -v_exponent);
        multiply(&tensors, l, "k_norm", k_exponent);
        multiply(&tensors, l, "q_norm", -k_exponent);
    }
    mb_model *model = open_with(&options, &tensors, (mb_model_options){.kv_dtype = "fp8"});
    generation g = answer_of(model);
    mb_model_close(model);
    tiny_tensors_free(&tensors);
    return g;
}

/* With scale 1, V of 1e-4 is 0 in e4m3, and V or K of 1e4 is 448. Factors of two change no bit otherwise. */
static void test_values_of_any_size(void **state) {
    (void)state;
    static const int exponents[][2] = {{-13, 0}, {12, 0}, {0, -12}, {0, 12}};
    generation expected = answer_with(0, 0);
    for (size_t i = 0; i < sizeof exponents / sizeof *exponents; i++) {
        generation got = answer_with(exponents[i][0], exponents[i][1]);
        assert_true(generation_same_tokens(&got, &expected));
        assert_int_equal(got.n_rows, expected.n_rows);
        assert_memory_equal(got.rows, expected.rows, (size_t)(got.n_rows * VOCAB) * sizeof *got.rows);
        generation_free(&got);
    }
    generation_free(&expected);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_largest_values),     cmocka_unit_test(test_none_without_fp8_or_weights),
        cmocka_unit_test(test_scale_of_nothing),   cmocka_unit_test(test_every_allocation_fails_once),
        cmocka_unit_test(test_operators_get_them), cmocka_unit_test(test_values_of_any_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
