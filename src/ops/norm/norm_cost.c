#include "ops/norm/norm.h"

/* An element: its square, the sum, and two factors; with a residual an addition more. */
mb_op_cost mb_rms_norm_cost(const mb_rms_norm_args *args) {
    double n = (double)args->n_rows, H = args->hidden, element = (double)mb_dtype_bytes(args->dtype);
    mb_op_cost cost = {.tflops = MB_TFLOPS_F32};
    if (args->n_rows <= 0)
        return cost;
    cost.bytes = n * H * element + mb_weight_bytes(&args->weight, 1);
    cost.bytes += args->out || !args->out8 ? n * H * element : 0;
    cost.bytes += args->out8 ? mb_f8_rows_bytes(n, args->hidden) : 0;
    cost.bytes += args->rows ? n * sizeof *args->rows : 0;
    cost.bytes += args->residual ? 2 * n * H * element : 0; /* read, and the sum written */
    cost.flops = (args->residual ? 5 : 4) * n * H;
    return cost;
}
