/* weights_params.cuh - what the host gives to the kernel of the weights' gradients. */
#ifndef MB_OPS_MOE_BACKWARD_WEIGHTS_PARAMS_CUH
#define MB_OPS_MOE_BACKWARD_WEIGHTS_PARAMS_CUH

#include "moebius/ops.h"

#include <cuda.h>
#include <cuda_runtime.h>

/*
 * P is the operand whose rows are gathered (or a, where none is), Q the other one. P is wgmma's M and Q its
 * N, so where b is gathered the product is that of the transposed gradient, and `turned` is set.
 *
 * The map of q has an expert's rows end where they end. Its dimensions are: column, row x of 2^30, row y, a
 * step back by 2^30 rows. The row first + r of an expert of n rows that begin at `first` is x = 2^30 - n +
 * r, y = first + n, and one step back: sums of addresses wrap around at 2^64. Rows r >= n have x >= 2^30,
 * so they lie outside of the tensor and become 0. (The idea is Triton's, triton/tools/ragged_tma.py.)
 */
typedef struct weights_params {
    CUtensorMap q, out;
    const unsigned char *p;
    const int32_t *p_index; /* or NULL */
    const int32_t *offsets;
    const void *old; /* out, where it is 16-bit and added to, or NULL */
    int32_t p_columns, q_columns;
    int32_t p_row_bytes;
    int32_t n_tiles_q; /* pair tiles along Q */
    int32_t n_tiles;   /* pair tiles of an expert, Q first */
    int32_t n_items;   /* of all experts */
    int32_t turned, accumulate;
} weights_params;

/* Of x, in the map of q, so an expert has ROWS_END rows at most. In the layer it has no more than T, when a
 * token's ids differ, and T is 2^27 at most: x has 2^32 bytes at most, and 32 a row at least. All experts
 * have 0x7fff0000 rows at most in the map; the workspace of as many is 192 GiB at least. Beyond these numbers
 * gradients would be zeros. */
enum { ROWS_END = 1 << 30 };

cudaError_t mb_backward_weights_launch_bf16(const weights_params *params, int out_is_f32, int n_processors,
                                            mb_stream stream);
cudaError_t mb_backward_weights_launch_f16(const weights_params *params, int out_is_f32, int n_processors,
                                           mb_stream stream);

#endif
