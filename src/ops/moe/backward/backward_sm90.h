/*
 * backward_sm90.h - mb_moe_backward on Hopper: what it refuses there, how it divides its workspace, and its
 * launch. README.md tells the steps. All but the launch is plain C, so that
 * tests/unit/test_moe_backward_layout.c can look at it without a GPU.
 */
#ifndef MB_OPS_MOE_BACKWARD_SM90_H
#define MB_OPS_MOE_BACKWARD_SM90_H

#include "base/arena.h"
#include "moebius/train.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Sizes and types, without pointers; then pointers too. */
mb_status mb_moe_backward_sm90_check_sizes(const mb_moe_backward_args *args);
mb_status mb_moe_backward_sm90_check(const mb_moe_backward_args *args);

typedef struct mb_moe_backward_layout {
    int64_t n_rows, width13, n_parts; /* R; rows of w13; parts of dot */
    mb_moe_plan_args plan;
    mb_grouped_gemm_args gemm; /* gives p; not asked when p was saved */
    float *row_weight;         /* [R] */
    float *ones;               /* [T, K] */
    float *dot;                /* [n_parts, R] */
    void *dp;                  /* [R, width13] */
    const void *p;             /* [R, width13]; the caller's where given */
    void *hs;                  /* [R, I] */
    void *dx_rows;             /* [R, H]; lies where p and hs were */
    void *shared;              /* the workspace of one operator after another */
} mb_moe_backward_layout;

/* shared_bytes: the largest workspace of the operators that it calls. The arguments were checked. */
mb_moe_backward_layout mb_moe_backward_sm90_layout(const mb_moe_backward_args *args, size_t shared_bytes,
                                                   mb_arena *arena);

mb_status mb_moe_backward_sm90_workspace(const mb_moe_backward_args *most, size_t *bytes);
mb_status mb_moe_backward_sm90(const mb_moe_backward_args *args, void *workspace, size_t workspace_bytes,
                               mb_stream stream);

#ifdef __cplusplus
}
#endif
#endif
