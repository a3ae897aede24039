#include "ops/gemm/gemm.h"

mb_op_cost mb_gemm_cost(const mb_gemm_args *args) {
    double T = (double)args->n_tokens, N = (double)args->weight.rows, K = (double)args->weight.cols;
    double out = T * N * (double)mb_dtype_bytes(args->out_dtype);
    mb_op_cost cost = {.tflops = mb_product_tflops(args->dtype, args->weight.dtype, MB_F32_EXACT)};
    if (args->n_tokens <= 0)
        return cost;
    cost.bytes = mb_weight_bytes(&args->weight, 1) + out;
    cost.bytes +=
        args->x8 ? mb_f8_rows_bytes(T, args->weight.cols) : T * K * (double)mb_dtype_bytes(args->dtype);
    cost.bytes += args->bias ? N * (double)mb_dtype_bytes(args->bias_dtype) : 0;
    cost.bytes += args->residual ? out : 0;
    cost.flops = 2 * T * N * K + (args->bias ? T * N : 0) + (args->residual ? T * N : 0);
    if (args->norm_weight.data) { /* the normed rows are not moved */
        cost.bytes += mb_weight_bytes(&args->norm_weight, 1);
        cost.bytes += args->norm_rows ? T * sizeof *args->norm_rows : 0;
        cost.flops += 4 * T * K;
    }
    return cost;
}
