/* log_sum_exp.h - log of the sum of e^logits, the denominator of a softmax, without overflow. */
#ifndef MB_OPS_SAMPLE_LOG_SUM_EXP_H
#define MB_OPS_SAMPLE_LOG_SUM_EXP_H

#include "ops/common/vector.h"

/* NaN when a logit is NaN or +infinity, or when all are -infinity. */
static inline double mb_log_sum_exp(const float *logits, int32_t n) {
    enum { SUM_LANES = 8 };
    float maximum = logits[0];
    for (int32_t i = 0; i < n; i++)
        maximum = logits[i] > maximum ? logits[i] : maximum;
    double lanes[SUM_LANES] = {0}, sum = 0;
    int32_t i = 0;
    for (; i + SUM_LANES <= n; i += SUM_LANES)
        for (int lane = 0; lane < SUM_LANES; lane++)
            lanes[lane] += (double)mb_exp(logits[i + lane] - maximum);
    for (; i < n; i++)
        sum += (double)mb_exp(logits[i] - maximum);
    for (int lane = 0; lane < SUM_LANES; lane++)
        sum += lanes[lane];
    return (double)maximum + log(sum);
}

#endif
