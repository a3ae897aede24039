/*
 * rows.h - the two GEMMs of the backward that give gradients of rows, on sm_90. README.md tells how they
 * work. Words as in moebius/train.h; R rows sorted by expert, of which only offsets[0] .. offsets[E]
 * exist. (In the layer offsets[0] is 0.) Rows that do not exist are neither read nor written.
 */
#ifndef MB_OPS_MOE_BACKWARD_ROWS_H
#define MB_OPS_MOE_BACKWARD_ROWS_H

#include "moebius/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * For each row r of expert e, with t = row_token[r] and s = row_weight[r]
 *     dh = w2[e]^T d_out[t]
 *     dp = s dh act'(p), gated: (s dh up act'(gate), s dh act(gate))
 *     hs = s h,  h = act(p), gated: act(gate) up
 *     dot[i, r] = sum of h dh over the outputs 64 i .. 64 i + 63
 * h . dh is the sum of dot[0 .. parts, r]; who adds them in order gets the same bits for a row in any
 * company.
 *
 * MB_ERR_UNSUPPORTED: dtypes other than bf16 and fp16; d_out of more than 2^32 bytes. MB_ERR_ARGUMENT: H
 * or I that are no multiples of 8; arrays of 16 bits that are not aligned to 16 bytes. Rows of 2^30
 * columns or more are for the caller to refuse.
 */
typedef struct mb_moe_backward_rows_args {
    const void *d_out;        /* [T, H] dtype */
    const int32_t *row_token; /* [R] */
    const float *row_weight;  /* [R] */
    const int32_t *offsets;   /* [E + 1] */
    const void *w2;           /* [E, H, I] dtype */
    const void *p;            /* [R, 2I or I] dtype */
    void *dp;                 /* [R, 2I or I] dtype out; not p itself */
    void *hs;                 /* [R, I] dtype out */
    float *dot;               /* [mb_moe_backward_dot_parts(I), R] out */
    int64_t n_tokens, n_rows; /* T, by which the size of d_out is checked; R */
    int32_t hidden, intermediate, n_experts;
    mb_dtype dtype;
    mb_activation activation;
} mb_moe_backward_rows_args;
static inline int64_t mb_moe_backward_dot_parts(int64_t intermediate) {
    return (intermediate + 63) / 64;
}
mb_status mb_moe_backward_rows_sm90_workspace(const mb_moe_backward_rows_args *most, size_t *bytes);
mb_status mb_moe_backward_rows_sm90(const mb_moe_backward_rows_args *args, void *workspace,
                                    size_t workspace_bytes, mb_stream stream);

/* dx_rows[r] = w13[e]^T dp[r] for each row r of expert e. The same limits. */
typedef struct mb_moe_backward_dx_args {
    const void *dp;         /* [R, width13] dtype */
    const int32_t *offsets; /* [E + 1] */
    const void *w13;        /* [E, width13, H] dtype */
    void *dx_rows;          /* [R, H] dtype out */
    int64_t n_rows;
    int32_t hidden, width13, n_experts; /* width13: 2I or I */
    mb_dtype dtype;
} mb_moe_backward_dx_args;
mb_status mb_moe_backward_dx_sm90_workspace(const mb_moe_backward_dx_args *most, size_t *bytes);
mb_status mb_moe_backward_dx_sm90(const mb_moe_backward_dx_args *args, void *workspace,
                                  size_t workspace_bytes, mb_stream stream);

#ifdef __cplusplus
}
#endif
#endif
