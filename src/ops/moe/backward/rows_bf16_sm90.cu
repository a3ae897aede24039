/* rows_bf16_sm90.cu - the experts' kernel for the backward's gradients of rows, one kind of numbers; a
 * file each, so that they compile side by side. */
#include "ops/moe/backward/rows_tiles.h"
#include "ops/moe/experts/kernel.cuh"

cudaError_t mb_rows_launch_bf16(const experts_params *params, int n_processors, mb_stream stream) {
    return launch<KIND_BF16, ROWS_OUTPUTS, ROWS_WARPGROUPS, ROWS_TOKENS / ROWS_CTAS, ROWS_STAGES, ROWS_CTAS,
                  USE_GRADIENT>(params, n_processors, stream);
}

cudaError_t mb_dx_launch_bf16(const experts_params *params, int n_processors, mb_stream stream) {
    return launch<KIND_BF16, DX_OUTPUTS, ROWS_WARPGROUPS, DX_TOKENS / ROWS_CTAS, ROWS_STAGES, ROWS_CTAS,
                  USE_ACROSS>(params, n_processors, stream);
}
