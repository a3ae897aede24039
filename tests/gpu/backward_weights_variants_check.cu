/*
 * backward_weights_variants_check.cu - times of the weights' gradients with other numbers of stages and of
 * pieces, and leads of the first warpgroup. For the choice alone: it does not stay.
 */
#include "backward_weights_times.cuh"

#include "ops/moe/backward/weights_kernel.cuh"
#include "ops/moe/backward/weights_sm90.cu" /* the host side, whose launches are the two below */

static int variant;
static const char *const names[] = {"4 2 1", "4 2 0", "4 2 2", "3 4 1", "3 4 0"};
enum { N_VARIANTS = sizeof names / sizeof *names };

template <int f32>
static cudaError_t launch_variant(const weights_params *p, int n_processors, mb_stream stream) {
    switch (variant) {
    case 0:
        return launch_weights<MB_BF16, f32, 4, 2, 1>(p, n_processors, stream);
    case 1:
        return launch_weights<MB_BF16, f32, 4, 2, 0>(p, n_processors, stream);
    case 2:
        return launch_weights<MB_BF16, f32, 4, 2, 2>(p, n_processors, stream);
    case 3:
        return launch_weights<MB_BF16, f32, 3, 4, 1>(p, n_processors, stream);
    default:
        return launch_weights<MB_BF16, f32, 3, 4, 0>(p, n_processors, stream);
    }
}

cudaError_t mb_backward_weights_launch_bf16(const weights_params *p, int out_is_f32, int n_processors,
                                            mb_stream stream) {
    return out_is_f32 ? launch_variant<1>(p, n_processors, stream)
                      : launch_variant<0>(p, n_processors, stream);
}

cudaError_t mb_backward_weights_launch_f16(const weights_params *, int, int, mb_stream) {
    return cudaErrorInvalidValue;
}

int main(void) {
    static const int shapes[] = {0, 2, 3};
    void *flush = allocate(FLUSH_BYTES);
    print_times_head();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (variant = 0; variant < N_VARIANTS; variant++) {
            printf("%s: ", names[variant]);
            time_layer(&layers[shapes[i]], flush);
        }
    printf(wrong ? "%d WRONG\n" : "all right\n", wrong);
    return wrong ? 1 : 0;
}
