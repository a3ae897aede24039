/* gated_activation_sm90.cu - act(gate) * up over the halves of each row, one output a thread. */
#include "ops/common/element.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/moe/activation_value.h"
#include "ops/moe/moe.h"

enum { N_THREADS = 256 };

typedef struct gated_activation_params {
    mb_gated_activation_args args;
    int is_gated;
} gated_activation_params;

static __global__ void __launch_bounds__(N_THREADS) gated_activation(gated_activation_params p) {
    mb_grid_wait();
    const mb_gated_activation_args &args = p.args;
    const int64_t width = args.intermediate, at = (int64_t)blockIdx.x * N_THREADS + threadIdx.x;
    if (at < args.n_rows * width) {
        const int64_t row = at / width, column = at % width, start = row * width * (1 + p.is_gated);
        float value =
            mb_activation_value(args.activation, mb_element_load(args.dtype, args.x, start + column));
        if (p.is_gated)
            value *= mb_element_load(args.dtype, args.x, start + width + column);
        mb_element_store(args.dtype, args.out, at, value);
    }
    mb_grid_launch_dependents();
}

mb_status mb_gated_activation_sm90(const mb_gated_activation_args *args, mb_stream stream) {
    MB_TRY(mb_gated_activation_check(args));
    const int64_t n = args->n_rows * args->intermediate;
    if (n == 0)
        return MB_OK;
    const gated_activation_params params = {*args, mb_activation_is_gated(args->activation)};
    return mb_launch("gated_activation", gated_activation, dim3((unsigned)((n + N_THREADS - 1) / N_THREADS)),
                     N_THREADS, 0, stream, &params);
}
