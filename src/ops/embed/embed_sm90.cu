/* embed_sm90.cu - token embedding lookup: one CTA a token copies the token's row of the table. */
#include "ops/common/element.cuh"
#include "ops/embed/embed.h"
#include "ops/hopper/launch.cuh"

#include <math_constants.h>

enum { N_THREADS = 256 };

static __global__ void __launch_bounds__(N_THREADS) embed(mb_embed_args args) {
    mb_grid_wait();
    const int64_t token = blockIdx.x, cols = args.table.cols;
    const int32_t draw = args.draw_of ? args.draw_of[token] : -1;
    int32_t id = draw >= 0 ? args.draws[draw] : args.ids[token];
    int is_known = id >= 0 && id < args.table.rows;
    if (draw >= 0 && !is_known) {
        id = 0;
        is_known = 1;
    }
    for (int64_t i = threadIdx.x; i < cols; i += N_THREADS) {
        const float value =
            is_known ? mb_element_load(args.table.dtype, args.table.data, id * cols + i) : CUDART_NAN_F;
        mb_element_store(args.dtype, args.out, token * cols + i, value);
    }
    mb_grid_launch_dependents();
}

mb_status mb_embed_sm90(const mb_embed_args *args, mb_stream stream) {
    MB_TRY(mb_embed_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    return mb_launch("embed", embed, dim3((unsigned)args->n_tokens), N_THREADS, 0, stream, args);
}
