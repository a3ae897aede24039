/* decode_parts.h - the two operators that decode_attention stands for: their arguments. */
#ifndef MB_OPS_DECODE_PARTS_H
#define MB_OPS_DECODE_PARTS_H

#include "ops/op_table.h"

/* q: [T, Hq * D] dtype, between the two; NULL where none is needed. */
static inline mb_qk_norm_rope_store_args mb_decode_rope_part(const mb_decode_attention_args *args, void *q) {
    mb_qk_norm_rope_store_args part = {0};
    part.qkv = args->qkv;
    part.q_norm = args->q_norm;
    part.k_norm = args->k_norm;
    part.positions = args->positions;
    part.slots = args->slots;
    part.inv_freq = args->inv_freq;
    part.q = q;
    part.k_cache = args->k_cache;
    part.v_cache = args->v_cache;
    part.n_tokens = args->n_tokens;
    part.n_heads = args->n_heads;
    part.n_kv_heads = args->n_kv_heads;
    part.head_dim = args->head_dim;
    part.rotary_dim = args->rotary_dim;
    part.eps = args->eps;
    part.rope_scale = args->rope_scale;
    part.dtype = args->dtype;
    part.cache_dtype = args->cache_dtype;
    part.k_scale = args->k_scale;
    part.v_scale = args->v_scale;
    return part;
}

static inline mb_attention_args mb_decode_attention_part(const mb_decode_attention_args *args,
                                                         const void *q) {
    mb_attention_args part = {0};
    part.q = q;
    part.k_cache = args->k_cache;
    part.v_cache = args->v_cache;
    part.q_start = args->q_start;
    part.kv_len = args->kv_len;
    part.block_table = args->block_table;
    part.out = args->out;
    part.n_tokens = args->n_tokens;
    part.n_sequences = args->n_sequences;
    part.max_blocks = args->max_blocks;
    part.max_q_len = args->max_q_len;
    part.max_kv_len = args->max_kv_len;
    part.n_heads = args->n_heads;
    part.n_kv_heads = args->n_kv_heads;
    part.head_dim = args->head_dim;
    part.scale = args->scale;
    part.dtype = args->dtype;
    part.cache_dtype = args->cache_dtype;
    part.k_scale = args->k_scale;
    part.v_scale = args->v_scale;
    return part;
}

/* mb_decode_attention_check_sizes says that they fit into a size_t. */
static inline size_t mb_decode_q_bytes(const mb_decode_attention_args *args) {
    return (size_t)args->n_tokens * (size_t)args->n_heads * (size_t)args->head_dim *
           mb_dtype_bytes(args->dtype);
}

#endif
