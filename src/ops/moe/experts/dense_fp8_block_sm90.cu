/* dense_fp8_block_sm90.cu - the experts' kernel for one group and one kind of numbers; a file each, so that
 * they compile side by side. */
#include "ops/moe/experts/kernel.cuh"

cudaError_t mb_dense_launch_fp8_block(const experts_params *params, int tile, int n_processors,
                                      mb_stream stream) {
    return launch_tile<KIND_FP8_BLOCK, MB_MOE_FP8, USE_DENSE>(params, tile, n_processors, stream);
}
