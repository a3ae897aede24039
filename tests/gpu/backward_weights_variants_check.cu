/*
 * backward_weights_variants_check.cu - times of the weights' gradients with other numbers of stages and of pieces.
 * For the choice alone: it does not stay.
 */
#include "backward_weights_times.cuh"

#include "ops/moe/backward/weights_kernel.cuh"
#include "ops/moe/backward/weights_sm90.cu" /* the host side, whose launches are the two below */

static int variant;

cudaError_t mb_backward_weights_launch_bf16(const weights_params *p, int out_is_f32, int n_processors,
                                            mb_stream stream) {
    if (out_is_f32)
        return variant == 0 ? launch_weights<MB_BF16, 1, 3, 4>(p, n_processors, stream)
                            : launch_weights<MB_BF16, 1, 4, 2>(p, n_processors, stream);
    return variant == 0   ? launch_weights<MB_BF16, 0, 3, 4>(p, n_processors, stream)
           : variant == 1 ? launch_weights<MB_BF16, 0, 4, 2>(p, n_processors, stream)
                          : launch_weights<MB_BF16, 0, 4, 1>(p, n_processors, stream);
}

cudaError_t mb_backward_weights_launch_f16(const weights_params *, int, int, mb_stream) {
    return cudaErrorInvalidValue;
}

int main(void) {
    static const int shapes[] = {0, 2, 3, 7};
    void *flush = allocate(FLUSH_BYTES);
    print_times_head();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (variant = 0; variant < 3; variant++) {
            printf("%s: ", variant == 0 ? "3 x 4" : variant == 1 ? "4 x 2" : "4 x 1");
            time_layer(&layers[shapes[i]], flush);
        }
    printf(wrong ? "%d WRONG\n" : "all right\n", wrong);
    return wrong ? 1 : 0;
}
