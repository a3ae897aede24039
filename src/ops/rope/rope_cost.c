#include "ops/rope/rope.h"

/* Of an element of q and k: norm 4 (norm_cost.c), rotation 3 if it is rotated. All tokens are counted as stored. */
mb_op_cost mb_qk_norm_rope_store_cost(const mb_qk_norm_rope_store_args *args) {
    double T = (double)args->n_tokens, D = args->head_dim, q = args->n_heads * D, kv = args->n_kv_heads * D;
    double element = (double)mb_dtype_bytes(args->dtype), cached = (double)mb_dtype_bytes(args->cache_dtype);
    double rotated = mb_rotated_dims(args->rotary_dim, args->head_dim);
    mb_op_cost cost = {.tflops = MB_TFLOPS_F32};
    if (args->n_tokens <= 0)
        return cost;
    cost.bytes =
        T * ((2 * q + 2 * kv) * element + 2 * kv * cached + 2 * sizeof(int32_t)); /* position, slot */
    cost.bytes += rotated / 2 * sizeof *args->inv_freq;
    cost.flops = T * 3 * (args->n_heads + args->n_kv_heads) * rotated;
    if (args->q_norm.data) {
        cost.bytes += mb_weight_bytes(&args->q_norm, 1);
        cost.flops += T * 4 * q;
    }
    if (args->k_norm.data) {
        cost.bytes += mb_weight_bytes(&args->k_norm, 1);
        cost.flops += T * 4 * kv;
    }
    return cost;
}
