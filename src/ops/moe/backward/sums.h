/* sums.h - what the backward on Hopper does beside its GEMMs: weights by row, and sums that read memory
 * once. The caller has checked the arguments (backward_layout.c). */
#ifndef MB_OPS_MOE_BACKWARD_SUMS_H
#define MB_OPS_MOE_BACKWARD_SUMS_H

#include "moebius/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Each choice's weight to the row that computes it. A choice without a row gets dweights 0. */
typedef struct mb_moe_row_weights_args {
    const float *weights;     /* [n_choices] */
    const int32_t *token_row; /* [n_choices], -1: no row */
    float *row_weight;        /* [R] out */
    float *ones;              /* [n_choices] out: 1, the weights of a plain sum */
    float *dweights;          /* [n_choices] out, or NULL */
    int64_t n_choices;
} mb_moe_row_weights_args;
mb_status mb_moe_row_weights_sm90(const mb_moe_row_weights_args *args, mb_stream stream);

/* dweights[t, k] = sum over parts, in order, of dot[part, token_row[t, k]] + bias2[e] . d_out[t], with
 * e = ids[t, k] - first_expert; left alone where there is no row. */
typedef struct mb_moe_dweights_args {
    const float *dot;         /* [n_parts, n_rows] */
    const int32_t *token_row; /* [T, K] */
    const int32_t *ids;       /* [T, K]; read with bias2 only */
    const void *bias2;        /* [n_local_experts, H] dtype, or NULL */
    const void *d_out;        /* [T, H] dtype */
    float *dweights;          /* [T, K] out */
    int64_t n_tokens, n_rows; /* n_rows: of dot's parts */
    int32_t n_parts, top_k, hidden, first_expert;
    mb_dtype dtype; /* MB_BF16 or MB_F16 */
} mb_moe_dweights_args;
mb_status mb_moe_dweights_sm90(const mb_moe_dweights_args *args, mb_stream stream);

/* out[e, c] = sum over rows r of expert e of scale[r] * a[index[r], c], in an order that the expert's number
 * of rows alone decides. Sums are fp32. With accumulate it is added to what is there, and rounded once. */
typedef struct mb_moe_bias_gradient_args {
    const void *a;            /* [any, width] dtype, 16-byte aligned */
    const int32_t *index;     /* [R], or NULL: r */
    const float *scale;       /* [R], or NULL: 1 */
    const int32_t *offsets;   /* [n_experts + 1] */
    void *out;                /* [n_experts, width] out_dtype */
    int32_t n_experts, width; /* width: a multiple of 8 */
    mb_dtype dtype;           /* MB_BF16 or MB_F16 */
    mb_dtype out_dtype;       /* MB_F32 or dtype */
    int32_t accumulate;
} mb_moe_bias_gradient_args;
mb_status mb_moe_bias_gradient_sm90(const mb_moe_bias_gradient_args *args, mb_stream stream);

#ifdef __cplusplus
}
#endif
#endif
