#include "ops/rope/rope.h"

#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/tensor.h"

#include <inttypes.h>
#include <math.h>

enum { MAX_HEAD_DIM = 512 };

int32_t mb_rotated_dims(int32_t rotary_dim, int32_t head_dim) {
    return rotary_dim > 0 ? rotary_dim : head_dim;
}

static void norm_head(const mb_weight *weight, float eps, int32_t head_dim, float *head) {
    if (!weight->data)
        return;
    float w[MAX_HEAD_DIM];
    mb_weight_load(weight, 0, 0, 0, head_dim, w);
    double sum = 0;
    for (int32_t i = 0; i < head_dim; i++)
        sum += (double)head[i] * (double)head[i];
    float scale = (float)(1.0 / sqrt(sum / head_dim + (double)eps));
    for (int32_t i = 0; i < head_dim; i++)
        head[i] = head[i] * scale * w[i];
}

static void rotate_head(const float *cosines, const float *sines, int32_t half, float *head) {
    for (int32_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + half] = b * cosines[i] + a * sines[i];
    }
}

/* Into the cache's row, divided by the head's scale if there is one. */
static void store_head(const mb_qk_norm_rope_store_args *args, void *cache, int64_t at, const float *scale,
                       float *head) {
    for (int32_t i = 0; scale && i < args->head_dim; i++)
        head[i] /= *scale;
    mb_store_f32(args->cache_dtype, cache, at, args->head_dim, head);
}

static int64_t cache_index(const mb_qk_norm_rope_store_args *args, int32_t slot, int32_t head) {
    int64_t block = slot / MB_KV_BLOCK, offset = slot % MB_KV_BLOCK;
    return ((block * args->n_kv_heads + head) * MB_KV_BLOCK + offset) * args->head_dim;
}

static void process_token(const void *context, int64_t t) {
    const mb_qk_norm_rope_store_args *args = context;
    int32_t n_q = args->n_heads, n_kv = args->n_kv_heads, d = args->head_dim, slot = args->slots[t];
    int32_t half = mb_rotated_dims(args->rotary_dim, d) / 2;
    float head[MAX_HEAD_DIM], cosines[MAX_HEAD_DIM / 2], sines[MAX_HEAD_DIM / 2];
    for (int32_t i = 0; i < half; i++) {
        float angle = (float)args->positions[t] * args->inv_freq[i]; /* rounded to fp32, as in HF */
        cosines[i] = cosf(angle) * args->rope_scale;
        sines[i] = sinf(angle) * args->rope_scale;
    }
    int64_t row = t * (n_q + 2 * n_kv);
    for (int32_t h = 0; h < n_q; h++) {
        mb_load_f32(args->dtype, args->qkv, (row + h) * d, d, head);
        norm_head(&args->q_norm, args->eps, d, head);
        rotate_head(cosines, sines, half, head);
        mb_store_f32(args->dtype, args->q, (t * n_q + h) * d, d, head);
    }
    if (slot < 0)
        return;
    for (int32_t h = 0; h < n_kv; h++) {
        mb_load_f32(args->dtype, args->qkv, (row + n_q + h) * d, d, head);
        norm_head(&args->k_norm, args->eps, d, head);
        rotate_head(cosines, sines, half, head);
        store_head(args, args->k_cache, cache_index(args, slot, h), args->k_scale ? &args->k_scale[h] : NULL,
                   head);
        mb_load_f32(args->dtype, args->qkv, (row + n_q + n_kv + h) * d, d, head);
        store_head(args, args->v_cache, cache_index(args, slot, h), args->v_scale ? &args->v_scale[h] : NULL,
                   head);
    }
}

int mb_lies_in_qkv(const void *array, const mb_qk_norm_rope_store_args *args) {
    const size_t n_heads = (size_t)args->n_heads + 2 * (size_t)args->n_kv_heads;
    const size_t bytes =
        (size_t)args->n_tokens * n_heads * (size_t)args->head_dim * mb_dtype_bytes(args->dtype);
    return (uintptr_t)array >= (uintptr_t)args->qkv && (uintptr_t)array - (uintptr_t)args->qkv < bytes;
}

mb_status mb_qk_norm_rope_store_check(const mb_qk_norm_rope_store_args *args) {
    MB_REQUIRE(args->n_tokens >= 0 && args->n_tokens <= INT32_MAX, "qk_norm_rope_store: n_tokens is %" PRId64,
               args->n_tokens);
    MB_REQUIRE(args->n_heads > 0 && args->n_kv_heads > 0,
               "qk_norm_rope_store: n_heads is %d, n_kv_heads is %d", args->n_heads, args->n_kv_heads);
    MB_REQUIRE(args->head_dim > 0 && args->head_dim <= MAX_HEAD_DIM && args->head_dim % 2 == 0,
               "qk_norm_rope_store: head_dim is %d, not an even number up to %d", args->head_dim,
               MAX_HEAD_DIM);
    MB_REQUIRE(args->rotary_dim >= 0 && args->rotary_dim <= args->head_dim && args->rotary_dim % 2 == 0,
               "qk_norm_rope_store: rotary_dim is %d, not an even number up to head_dim, which is %d",
               args->rotary_dim, args->head_dim);
    MB_REQUIRE(mb_dtype_is_activation(args->dtype),
               "qk_norm_rope_store: dtype %s (%d) is not one of activations", mb_dtype_name(args->dtype),
               (int)args->dtype);
    MB_REQUIRE(mb_dtype_is_activation(args->cache_dtype) || args->cache_dtype == MB_F8_E4M3,
               "qk_norm_rope_store: cache_dtype %s (%d) is not one of fp32, bf16, fp16, fp8_e4m3",
               mb_dtype_name(args->cache_dtype), (int)args->cache_dtype);
    MB_REQUIRE(args->cache_dtype == MB_F8_E4M3 || (!args->k_scale && !args->v_scale),
               "qk_norm_rope_store: k_scale or v_scale is set, but a cache of %s has none",
               mb_dtype_name(args->cache_dtype));
    if (args->q_norm.data)
        MB_TRY(mb_weight_check(&args->q_norm, "qk_norm_rope_store: q_norm", 1, 1, args->head_dim, 0));
    if (args->k_norm.data)
        MB_TRY(mb_weight_check(&args->k_norm, "qk_norm_rope_store: k_norm", 1, 1, args->head_dim, 0));
    if (args->n_tokens == 0)
        return MB_OK;
    MB_REQUIRE(args->qkv && args->positions && args->slots && args->inv_freq && args->q && args->k_cache &&
                   args->v_cache,
               "qk_norm_rope_store: one of qkv, positions, slots, inv_freq, q, k_cache, v_cache is NULL");
    MB_REQUIRE(!mb_lies_in_qkv(args->q, args), "qk_norm_rope_store: q lies in qkv");
    return MB_OK;
}

mb_status mb_qk_norm_rope_store_ref(const mb_qk_norm_rope_store_args *args, mb_stream stream) {
    MB_TRY(mb_qk_norm_rope_store_check(args));
    /* Each angle costs about as much as 64 multiply-adds. */
    double work_per_token = args->head_dim * (32 + 4.0 * (args->n_heads + 2.0 * args->n_kv_heads));
    mb_parallel_for(stream, (double)args->n_tokens * work_per_token, args->n_tokens, process_token, args);
    return MB_OK;
}
