#include "ops/embed/embed.h"

mb_op_cost mb_embed_cost(const mb_embed_args *args) {
    double T = (double)args->n_tokens, H = (double)args->table.cols;
    double row = (double)mb_dtype_row_bytes(args->table.dtype, args->table.cols);
    double ids = args->draw_of ? 2 * sizeof(int32_t) : sizeof(int32_t);
    return (mb_op_cost){.bytes = T * (row + H * (double)mb_dtype_bytes(args->dtype) + ids),
                        .tflops = MB_TFLOPS_F32};
}
