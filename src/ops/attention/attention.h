/*
 * attention.h - causal attention over the paged KV cache, for a batch of sequences of different lengths;
 * prefill chunks and single decode tokens may be mixed. softmax(q k^T * scale) v in fp32.
 *
 * Sequence s owns the query rows [q_start[s], q_start[s+1]); they are the last ones of its kv_len[s] cached
 * positions. Row order in a cached sequence: position p lives in block block_table[s][p / 64] at offset p
 * % 64. A query's result does not depend on how its prompt was cut into chunks, bit for bit.
 */
#ifndef MB_OPS_ATTENTION_H
#define MB_OPS_ATTENTION_H

#include "moebius/ops.h"
#include "ops/common/cost.h"

typedef struct mb_attention_args {
    const void *q;                 /* [T, Hq * D] dtype */
    const void *k_cache, *v_cache; /* [n_blocks, Hkv, 64, D] cache_dtype */
    const int32_t *q_start;        /* [S + 1] */
    const int32_t *kv_len;         /* [S], this step's tokens included */
    const int32_t *block_table;    /* [S, max_blocks] */
    void *out;                     /* [T, Hq * D] dtype */
    int64_t n_tokens;
    int32_t n_sequences, max_blocks;
    int32_t max_q_len, max_kv_len;         /* largest of the batch, known on the host */
    int32_t n_heads, n_kv_heads, head_dim; /* Hq a multiple of Hkv; D <= 512 */
    float scale;
    mb_dtype dtype, cache_dtype; /* dtype: MB_F32, MB_BF16 or MB_F16; cache_dtype: also MB_F8_E4M3 */
    /* With MB_F8_E4M3: a cached value is its fp8 number times its kv head's scale, above 0. [Hkv] each;
     * NULL: 1. */
    const float *k_scale, *v_scale;
} mb_attention_args;

#ifdef __cplusplus
extern "C" {
#endif

/* What must hold on every device: of the sizes, for the workspace, and of all but what arrays hold. */
mb_status mb_attention_check_sizes(const mb_attention_args *args);
mb_status mb_attention_check(const mb_attention_args *args);

/* Reads q_start and kv_len. */
mb_op_cost mb_attention_cost(const mb_attention_args *args);

mb_status mb_attention_ref_workspace(const mb_attention_args *most, size_t *bytes);
mb_status mb_attention_ref(const mb_attention_args *args, void *workspace, size_t workspace_bytes,
                           mb_stream stream);

mb_status mb_attention_sm90_workspace(const mb_attention_args *most, size_t *bytes);
mb_status mb_attention_sm90(const mb_attention_args *args, void *workspace, size_t workspace_bytes,
                            mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
