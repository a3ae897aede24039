/*
 * gemm.h - dense linear layer: out = x W^T [+ bias] [+ residual], with an RMSNorm of x in front if wanted.
 *
 * x may be given in fp8 (x8), by what made it: e4m3 times one scale for each row and 128 columns, amax /
 * 448, 1 when all are 0. A GPU multiplies that as it is; the CPU widens it.
 *
 * The norm has the bits of rms_norm, whose rows are rounded to x's type before they are multiplied.
 *
 * fp8 weights: on a GPU, beside x in bf16 or fp16, x is quantised to such fp8 too, where the weight has block
 * scales of 8 rows or more, its rows are a multiple of 8 and its columns one of 16. The CPU leaves x as it
 * is.
 *
 * On a GPU the weight, its scales and norm_weight may be read before the kernels in front of this call have
 * ended: none of those that let the next one start early may write them.
 *
 * A row of out depends on the same row of x alone, bit for bit: batches and chunks do not change results.
 */
#ifndef MB_OPS_GEMM_H
#define MB_OPS_GEMM_H

#include "moebius/ops.h"
#include "ops/common/cost.h"
#include "ops/norm/norm.h"

typedef struct mb_gemm_args {
    const void *x; /* [T, K] dtype; may be NULL with x8 */
    /* Or x in fp8; not with a norm. dtype is that of the rows that became x8. A GPU takes it where it would
     * quantise x itself, and the result has the same bits. */
    const void *x8;        /* [T, K] e4m3, or NULL */
    const float *x8_scale; /* [T, ceil(K / 128)] */
    mb_weight weight;      /* [1, N, K], any dtype; accumulation in fp32 */
    const void *bias;      /* [N] bias_dtype, or NULL */
    const void *residual;  /* [T, N] out_dtype, or NULL; may be out */
    void *out;             /* [T, N] out_dtype */
    int64_t n_tokens;
    mb_dtype dtype, out_dtype, bias_dtype;
    mb_weight norm_weight; /* [1, 1, K] any dtype without scales: x is normed first; data NULL: it is not */
    const int32_t *norm_rows; /* [T] row of x that is normed for each row, or NULL: the same row */
    float eps;                /* of the norm */
    /* The rows of x are still to be added up: the call does what mb_moe_reduce does with these, and x is
     * their out. NULL: x is there. Choices and weights must be older than the kernel in front of the call. They and
     * the rows may lie in the call's workspace: they are read before anything is written there. */
    const mb_moe_reduce_args *x_sum;
} mb_gemm_args;

#ifdef __cplusplus
extern "C" {
#endif

/* What must hold on every device: of the sizes, for the workspace, and of all. */
mb_status mb_gemm_check_sizes(const mb_gemm_args *args);
mb_status mb_gemm_check(const mb_gemm_args *args);

/* The norm in front, with its rows to `normed`; and the layer that then takes them. */
mb_rms_norm_args mb_gemm_norm(const mb_gemm_args *args, void *normed);
mb_gemm_args mb_gemm_of_normed(const mb_gemm_args *args, const void *normed);

mb_op_cost mb_gemm_cost(const mb_gemm_args *args);

mb_status mb_gemm_ref_workspace(const mb_gemm_args *most, size_t *bytes);
mb_status mb_gemm_ref(const mb_gemm_args *args, void *workspace, size_t workspace_bytes, mb_stream stream);

mb_status mb_gemm_sm90_workspace(const mb_gemm_args *most, size_t *bytes);
/* Whether x8 in place of x spares a launch: so many tokens beside such a weight. (mb_ops: wants_x8.) */
int mb_gemm_sm90_wants_x8(mb_dtype dtype, const mb_weight *weight, int64_t n_tokens);
mb_status mb_gemm_sm90(const mb_gemm_args *args, void *workspace, size_t workspace_bytes, mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
