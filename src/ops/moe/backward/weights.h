/* weights.h - gradients of the experts' weights on Hopper: a grouped GEMM whose K are the rows of an
 * expert. */
#ifndef MB_OPS_MOE_BACKWARD_WEIGHTS_H
#define MB_OPS_MOE_BACKWARD_WEIGHTS_H

#include "moebius/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * For each expert e
 *     out[e][i, j] = sum over rows r = offsets[e] .. offsets[e + 1] - 1, in order, of a[a(r), i] * b[b(r), j]
 * with a(r) = a_index[r] or r, b(r) alike. At most one of the operands has an index. Sums are fp32.
 *     dw13 [2I or I, H]: a = dp, b = x,   b_index = row_token
 *     dw2  [H, I]:       a = d_out,       b = hs, a_index = row_token
 *
 * Experts without rows get zeros; with accumulate they are left as they are. The same inputs give the same
 * bits, and an expert's gradient does not depend on the other experts.
 *
 * accumulate: the sum is added to what is there in fp32 and rounded once. (out in fp32: a result below the
 * smallest normal number becomes 0.)
 *
 * All arrays are on the GPU, a, b and out 16-byte aligned. Nothing is allocated, no workspace is needed.
 * Rows of 2^30 columns or more, and experts of as many rows, are for the caller to refuse.
 */
typedef struct mb_moe_backward_weights_args {
    const void *a, *b;       /* [rows, m] and [rows, n] dtype */
    const int32_t *a_index;  /* [offsets[n_experts]], or NULL */
    const int32_t *b_index;  /* the same of b */
    const int32_t *offsets;  /* [n_experts + 1], not falling */
    void *out;               /* [n_experts, m, n] out_dtype */
    int32_t n_experts, m, n; /* m and n: multiples of 8 */
    mb_dtype dtype;          /* MB_BF16 or MB_F16 */
    mb_dtype out_dtype;      /* MB_F32 or dtype */
    int32_t accumulate;
} mb_moe_backward_weights_args;
mb_status mb_moe_backward_weights_sm90(const mb_moe_backward_weights_args *args, mb_stream stream);

#ifdef __cplusplus
}
#endif
#endif
