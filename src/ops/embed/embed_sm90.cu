/* embed_sm90.cu - token embedding lookup: one CTA a token copies the token's row of the table, 16 bytes a thread
 * where the types are the same. */
#include "ops/common/element.cuh"
#include "ops/embed/embed.h"
#include "ops/hopper/launch.cuh"

#include <math_constants.h>

enum { N_THREADS = 128, AT_ONCE = 2 };

/* The row of the table, -1 for an id that is none. */
static __device__ __forceinline__ int64_t row_of_token(const mb_embed_args *args, int64_t token) {
    const int32_t draw = args->draw_of ? args->draw_of[token] : -1;
    const int32_t id = draw >= 0 ? args->draws[draw] : args->ids[token];
    const int is_known = id >= 0 && id < args->table.rows;
    return is_known ? id : draw >= 0 ? 0 : -1;
}

static __global__ void __launch_bounds__(N_THREADS) embed(mb_embed_args args) {
    mb_grid_launch_dependents();
    mb_grid_wait();
    const int64_t token = blockIdx.x, cols = args.table.cols, row = row_of_token(&args, token);
    for (int64_t i = threadIdx.x; i < cols; i += N_THREADS) {
        const float value =
            row >= 0 ? mb_element_load(args.table.dtype, args.table.data, row * cols + i) : CUDART_NAN_F;
        mb_element_store(args.dtype, args.out, token * cols + i, value);
    }
}

/* The table has the activations' type. n_pieces: of 16 bytes, of a row. */
typedef struct copy_params {
    mb_embed_args args;
    int32_t n_pieces;
} copy_params;

static __global__ void __launch_bounds__(N_THREADS) embed_copy(copy_params p) {
    mb_grid_launch_dependents();
    mb_grid_wait();
    const int64_t token = blockIdx.x, row = row_of_token(&p.args, token);
    const uint4 *from = (const uint4 *)p.args.table.data + row * p.n_pieces;
    uint4 *to = (uint4 *)p.args.out + token * p.n_pieces;
    const uint32_t nan = 0x7fff7fff; /* of every type of activations */
    for (int i = threadIdx.x; i < p.n_pieces; i += AT_ONCE * N_THREADS) {
        uint4 pieces[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            pieces[j] = row >= 0 && i + j * N_THREADS < p.n_pieces ? from[i + j * N_THREADS]
                                                                   : make_uint4(nan, nan, nan, nan);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            if (i + j * N_THREADS < p.n_pieces)
                to[i + j * N_THREADS] = pieces[j];
    }
}

mb_status mb_embed_sm90(const mb_embed_args *args, mb_stream stream) {
    MB_TRY(mb_embed_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    const size_t row_bytes = (size_t)args->table.cols * mb_dtype_bytes(args->dtype);
    const uintptr_t addresses = (uintptr_t)args->table.data | (uintptr_t)args->out;
    const dim3 grid((unsigned)args->n_tokens);
    if (args->table.dtype == args->dtype && (addresses | row_bytes) % 16 == 0) {
        const copy_params params = {*args, (int32_t)(row_bytes / 16)};
        return mb_launch("embed", embed_copy, grid, N_THREADS, 0, stream, &params);
    }
    return mb_launch("embed", embed, grid, N_THREADS, 0, stream, args);
}
