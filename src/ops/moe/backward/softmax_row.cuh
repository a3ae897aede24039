/* softmax_row.cuh - one token's logits by one warp, in fp64: what softmax_row.h of the references does. */
#ifndef MB_OPS_MOE_BACKWARD_SOFTMAX_ROW_CUH
#define MB_OPS_MOE_BACKWARD_SOFTMAX_ROW_CUH

#include "moebius/ops.h"
#include "ops/common/element.cuh"

#include <cuda_bf16.h>
#include <stdint.h>

enum { MOST_EXPERTS = 1024 }; /* that a router may have */
static const uint32_t ALL_LANES = 0xffffffff;

static __device__ __forceinline__ float load_logit(const void *logits, mb_dtype dtype, int64_t i) {
    return dtype == MB_F32 ? ((const float *)logits)[i]
                           : __bfloat162float(((const __nv_bfloat16 *)logits)[i]);
}

/* Lane l: the logits of experts l, l + 32, ...; behind the last expert -infinity. NaN stays. */
template <int per_lane>
static __device__ __forceinline__ void load_row(const void *logits, mb_dtype dtype, int64_t token,
                                                int32_t n_experts, float (&row)[per_lane]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < per_lane; i++)
        row[i] = lane + 32 * i < n_experts ? load_logit(logits, dtype, token * n_experts + lane + 32 * i)
                                           : -INFINITY;
}

static __device__ __forceinline__ float without_nan(float logit) {
    return logit == logit ? logit : -INFINITY;
}

/* log of the sum of e^value over the warp's values, NaN as -infinity. -infinity when all are. */
template <int n> static __device__ __forceinline__ double log_sum_exp(const float (&values)[n]) {
    float largest = -INFINITY; /* fmaxf passes over NaN */
#pragma unroll
    for (int i = 0; i < n; i++)
        largest = fmaxf(largest, values[i]);
    largest = mb_warp_max(largest);
    if (isinf(largest))
        return largest;
    double sum = 0;
#pragma unroll
    for (int i = 0; i < n; i++)
        sum += exp((double)without_nan(values[i]) - (double)largest);
    return (double)largest + log(mb_warp_sum(sum));
}

/* A kernel for the number of experts that a lane has; a template of one number. */
#define FOR_EXPERTS(kernel, n_experts) \
    ((n_experts) <= 128   ? kernel<4>  \
     : (n_experts) <= 256 ? kernel<8>  \
     : (n_experts) <= 512 ? kernel<16> \
                          : kernel<32>)

#endif
