#include "ops/attention/decode_parts.h"
#include "ops/common/dtype.h"

/* The sum of the two parts, less what goes from one to the other: q, and k and v of the new tokens. */
mb_op_cost mb_decode_attention_cost(const mb_decode_attention_args *args) {
    mb_qk_norm_rope_store_args rope = mb_decode_rope_part(args, NULL);
    mb_attention_args attend = mb_decode_attention_part(args, NULL);
    mb_op_cost first = mb_qk_norm_rope_store_cost(&rope), cost = mb_attention_cost(&attend);
    double kv_row = 2.0 * args->n_kv_heads * args->head_dim * (double)mb_dtype_bytes(args->cache_dtype);
    if (args->n_tokens <= 0)
        return cost;
    cost.bytes += first.bytes - 2 * (double)mb_decode_q_bytes(args) - (double)args->n_tokens * kv_row;
    cost.flops += first.flops;
    return cost;
}
