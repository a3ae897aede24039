#include "ops/attention/attention.h"

/* A query head and an attended position: 2 D of q k^T and 2 D of the sum of v. */
mb_op_cost mb_attention_cost(const mb_attention_args *args) {
    double D = args->head_dim, kv_row = args->n_kv_heads * D * (double)mb_dtype_bytes(args->cache_dtype);
    double positions = 0, attended = 0; /* attended: by all query rows together */
    for (int32_t s = 0; s < args->n_sequences && args->n_tokens > 0; s++) {
        double n_rows = args->q_start[s + 1] - args->q_start[s], before = args->kv_len[s] - n_rows;
        if (n_rows <= 0)
            continue;
        positions += args->kv_len[s];
        attended += n_rows * before + n_rows * (n_rows + 1) / 2;
    }
    double q = (double)args->n_tokens * args->n_heads * D * (double)mb_dtype_bytes(args->dtype);
    return (mb_op_cost){.bytes = 2 * positions * kv_row + 2 * q,
                        .flops = 4 * D * args->n_heads * attended,
                        .tflops = args->dtype == MB_F32 ? MB_TFLOPS_F32 : MB_TFLOPS_16BIT};
}
