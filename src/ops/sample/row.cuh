/* row.cuh - what a CTA computes of one row of logits: shared by the sampler and log-softmax. */
#ifndef MB_OPS_SAMPLE_ROW_CUH
#define MB_OPS_SAMPLE_ROW_CUH

#include "ops/common/element.cuh"
#include "ops/common/exp.h"
#include "ops/sample/sample.h"

#include <math_constants.h>

enum { SAMPLE_THREADS = 1024, SAMPLE_WARPS = SAMPLE_THREADS / 32 };

typedef union row_scratch {
    float floats[SAMPLE_WARPS];
    double doubles[SAMPLE_WARPS];
    unsigned long long words[SAMPLE_WARPS];
} row_scratch;

/* log of the sum of e^logits. NaN when a logit is NaN or +infinity, or when all are -infinity. */
static __device__ __forceinline__ double log_sum_exp(const float *logits, int32_t vocab,
                                                     row_scratch *scratch) {
    float maximum = -CUDART_INF_F;
    for (int32_t i = threadIdx.x; i < vocab; i += SAMPLE_THREADS)
        maximum = fmaxf(maximum, logits[i]);
    maximum = mb_cta_max<SAMPLE_THREADS>(maximum, scratch->floats);
    double sum = 0;
    for (int32_t i = threadIdx.x; i < vocab; i += SAMPLE_THREADS)
        sum += (double)mb_exp(logits[i] - maximum);
    return (double)maximum + log(mb_cta_sum<SAMPLE_THREADS>(sum, scratch->doubles));
}

#endif
