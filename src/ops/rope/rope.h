/*
 * rope.h - what happens to q, k and v between the projection and the attention, in one pass:
 * RMSNorm of each q and k head (Qwen3), rotary position embedding (Su et al. 2021, in the "rotate half" form
 * of Hugging Face: of R rotated dimensions i pairs with i + R/2), and the store of k and v into the paged cache.
 */
#ifndef MB_OPS_ROPE_H
#define MB_OPS_ROPE_H

#include "moebius/ops.h"
#include "ops/common/cost.h"

/* Tokens in one block of the paged KV cache. A layer's K (and V) cache is [n_blocks, n_kv_heads, 64, D]: one
 * head's block is one contiguous tile. */
enum { MB_KV_BLOCK = 64 };

typedef struct mb_qk_norm_rope_store_args {
    const void *qkv;          /* [T, (Hq + 2 Hkv) * D] dtype: q heads, k heads, v heads */
    mb_weight q_norm, k_norm; /* [1, 1, D] any dtype; data NULL: no norm */
    const int32_t *positions; /* [T] */
    const int32_t *slots;     /* [T] cache row: block * 64 + offset; -1: do not store */
    const float *inv_freq;    /* [R/2] rotary frequencies, YaRN and linear scaling already applied */
    void *q;                  /* [T, Hq * D] dtype, out */
    void *k_cache, *v_cache;  /* [n_blocks, Hkv, 64, D] cache_dtype */
    int64_t n_tokens;
    int32_t n_heads, n_kv_heads, head_dim; /* head_dim even, <= 512 */
    /* R: the first dimensions of a head that are rotated, an even number up to head_dim; the others are normed
     * and stay. 0: all. */
    int32_t rotary_dim;
    float eps;
    float rope_scale;            /* multiplies cos and sin (YaRN's attention factor); 1 otherwise */
    mb_dtype dtype, cache_dtype; /* dtype: MB_F32, MB_BF16 or MB_F16; cache_dtype: also MB_F8_E4M3 */
    /* With MB_F8_E4M3: values are divided by their kv head's scale before they are rounded; what is then
     * beyond 448 becomes 448. [Hkv] each; NULL: 1. */
    const float *k_scale, *v_scale;
} mb_qk_norm_rope_store_args;

#ifdef __cplusplus
extern "C" {
#endif

/* How many dimensions of a head are rotated. */
int32_t mb_rotated_dims(int32_t rotary_dim, int32_t head_dim);

/* What must hold on every device. */
mb_status mb_qk_norm_rope_store_check(const mb_qk_norm_rope_store_args *args);

mb_op_cost mb_qk_norm_rope_store_cost(const mb_qk_norm_rope_store_args *args);

mb_status mb_qk_norm_rope_store_ref(const mb_qk_norm_rope_store_args *args, mb_stream stream);

mb_status mb_qk_norm_rope_store_sm90(const mb_qk_norm_rope_store_args *args, mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
