/*
 * decode_attention.h - what follows the projection to q, k and v in a decode step, as one operator: head
 * norms, rotary embedding, the store of k and v into the paged cache, attention. Its result is that of
 * qk_norm_rope_store and then attention, bit for bit.
 *
 * A sequence has up to 8 tokens, the last ones of its kv_len positions. A token's slot is its own position's
 * row of the cache, or -1: then what the cache has there is used.
 *
 * On a GPU the operator may begin while the kernels in front of it still run. So what those write must not be
 * positions, q_start, kv_len, span_start, block_table, q_norm, k_norm, inv_freq or rows of the cache that
 * belong to the sequences' earlier tokens.
 */
#ifndef MB_OPS_DECODE_ATTENTION_H
#define MB_OPS_DECODE_ATTENTION_H

#include "moebius/ops.h"
#include "ops/common/cost.h"

/* Most tokens of a sequence; positions that are added up at a time; query rows that are walked together. */
enum { MB_DECODE_TOKENS = 8, MB_DECODE_SPAN = 256, MB_DECODE_ROWS = 16 };

typedef struct mb_decode_attention_args {
    const void *qkv;          /* [T, (Hq + 2 Hkv) * D] dtype: q heads, k heads, v heads; 4-byte aligned */
    mb_weight q_norm, k_norm; /* [1, 1, D] any dtype; data NULL: no norm */
    const int32_t *positions; /* [T] for the rotation */
    const int32_t *slots;     /* [T] cache row: block * 64 + offset; -1: do not store */
    const float *inv_freq;    /* [R/2] */
    void *k_cache, *v_cache;  /* [n_blocks, Hkv, 64, D] cache_dtype */
    const int32_t *q_start;   /* [S + 1] */
    const int32_t *kv_len;    /* [S], this step's tokens included */
    /* [S + 1] how many spans of MB_DECODE_SPAN positions, counted from each sequence's position 0, the
     * sequences in front have: the last of a sequence may be partial. Sequences without tokens have none. */
    const int32_t *span_start;
    const int32_t *block_table; /* [S, max_blocks] */
    /* [mb_decode_attention_counters] zeros before the first call, which leaves zeros: calls of one stream may
     * share them. */
    int32_t *counters;
    void *out; /* [T, Hq * D] dtype */
    int64_t n_tokens;
    int32_t n_sequences, max_blocks;
    int32_t max_q_len,
        max_kv_len; /* largest of the batch, known on the host; max_q_len <= MB_DECODE_TOKENS */
    int32_t n_heads, n_kv_heads, head_dim; /* Hq a multiple of Hkv; D even, <= 512 */
    int32_t rotary_dim;                    /* R, as in rope.h; 0: D */
    float eps;
    float rope_scale;            /* multiplies cos and sin */
    float scale;                 /* of the scores; above 0 */
    mb_dtype dtype, cache_dtype; /* dtype: MB_F32, MB_BF16 or MB_F16; cache_dtype: also MB_F8_E4M3 */
    /* With MB_F8_E4M3, as in rope.h and attention.h. [Hkv] each; NULL: 1. */
    const float *k_scale, *v_scale;
} mb_decode_attention_args;

#ifdef __cplusplus
extern "C" {
#endif

/* What must hold on every device: of the sizes, for the workspace, and of all but what arrays hold. */
mb_status mb_decode_attention_check_sizes(const mb_decode_attention_args *args);
mb_status mb_decode_attention_check(const mb_decode_attention_args *args);

/* Counters that are enough for `most` and for calls with smaller counts. */
int64_t mb_decode_attention_counters(const mb_decode_attention_args *most);

/* Reads q_start and kv_len. */
mb_op_cost mb_decode_attention_cost(const mb_decode_attention_args *args);

mb_status mb_decode_attention_ref_workspace(const mb_decode_attention_args *most, size_t *bytes);
mb_status mb_decode_attention_ref(const mb_decode_attention_args *args, void *workspace,
                                  size_t workspace_bytes, mb_stream stream);

mb_status mb_decode_attention_sm90_workspace(const mb_decode_attention_args *most, size_t *bytes);
mb_status mb_decode_attention_sm90(const mb_decode_attention_args *args, void *workspace,
                                   size_t workspace_bytes, mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
