/* weights_f16_sm90.cu - the kernel of the weights' gradients for f16. */
#include "ops/moe/backward/weights_kernel.cuh"

cudaError_t mb_backward_weights_launch_f16(const weights_params *params, int out_is_f32, int n_processors,
                                           mb_stream stream) {
    return launch_weights<MB_F16>(params, out_is_f32, n_processors, stream);
}
