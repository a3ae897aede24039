/* saving_f16_sm90.cu - the experts' kernel for a training step, which keeps p, and one kind of numbers; a
 * file each, so that they compile side by side. */
#include "ops/moe/experts/kernel.cuh"

cudaError_t mb_saving_launch_f16(const experts_params *params, int tile, int n_processors, mb_stream stream) {
    return launch_tile<KIND_F16, MB_MOE_16BIT, USE_SAVING_P>(params, tile, n_processors, stream);
}
