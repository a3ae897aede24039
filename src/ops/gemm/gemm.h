/*
 * gemm.h - dense linear layer; its parameters are public (moebius/layers.h). "Old" there is: not written by
 * kernels in front of the call that let the next one start early.
 */
#ifndef MB_OPS_GEMM_H
#define MB_OPS_GEMM_H

#include "moebius/layers.h"
#include "ops/common/cost.h"
#include "ops/norm/norm.h"

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
