/*
 * norm.h - RMSNorm (Zhang and Sennrich 2019), as Qwen3MoeRMSNorm: y = w * (x / sqrt(mean(x^2) + eps)); of x, or of
 * x + residual, whose sum is written too.
 */
#ifndef MB_OPS_NORM_H
#define MB_OPS_NORM_H

#include "moebius/ops.h"
#include "ops/common/cost.h"

typedef struct mb_rms_norm_args {
    const void *x;       /* [*, H] dtype */
    const int32_t *rows; /* [n_rows] row of x for each row of out, or NULL: the same row */
    mb_weight weight;    /* [1, 1, H] any dtype without scales. A GPU may read it early, as gemm.h says */
    void *out;           /* [n_rows, H] dtype; may be x when rows is NULL; may be NULL with out8 */
    int64_t n_rows;
    int32_t hidden;
    float eps;
    mb_dtype dtype; /* arithmetic is fp32; x / rms is rounded to dtype before it is scaled by w, as in HF */
    /* The rows of out, rounded to dtype, in fp8 too, as gemm.h's x8; or NULL. dtype is MB_BF16 or MB_F16 then. */
    void *out8;        /* [n_rows, H] e4m3 */
    float *out8_scale; /* [n_rows, ceil(H / 128)] */
    /* x is added to residual first: in fp32, the sum rounded to dtype once. What is normed is the sum as rounded,
     * so out has the bits of the norm alone of sum's rows. Not beside rows. Both are NULL, or neither is.
     * sum may be x or residual, and so may out, but out is not sum: vLLM's fused_add_rms_norm has sum =
     * residual and out = x. */
    const void *residual; /* [n_rows, H] dtype */
    void *sum;            /* [n_rows, H] dtype */
} mb_rms_norm_args;

#ifdef __cplusplus
extern "C" {
#endif

/* What must hold on every device. */
mb_status mb_rms_norm_check(const mb_rms_norm_args *args);

mb_op_cost mb_rms_norm_cost(const mb_rms_norm_args *args);

mb_status mb_rms_norm_ref(const mb_rms_norm_args *args, mb_stream stream);

mb_status mb_rms_norm_sm90(const mb_rms_norm_args *args, mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
