/* softmax_row.h - one token's logits in fp64, for the references of training. */
#ifndef MB_OPS_MOE_SOFTMAX_ROW_H
#define MB_OPS_MOE_SOFTMAX_ROW_H

#include "ops/common/dtype.h"
#include "ops/moe/routing_arguments.h"

#include <math.h>

/* log of the sum of e^value. -infinity when all are. */
static inline double mb_log_sum_exp(int32_t n, const double *values) {
    double largest = values[0], sum = 0;
    for (int32_t i = 1; i < n; i++)
        largest = values[i] > largest ? values[i] : largest;
    if (isinf(largest))
        return largest;
    for (int32_t i = 0; i < n; i++)
        sum += exp(values[i] - largest);
    return largest + log(sum);
}

/* Row t of [T, n] logits, NaN as -infinity. Returns the log of the sum of their exponentials. */
static inline double mb_logits_row(mb_dtype dtype, const void *array, int64_t t, int32_t n, double *logits) {
    float row[MB_SOFTMAX_EXPERTS];
    mb_load_f32(dtype, array, t * n, n, row);
    for (int32_t e = 0; e < n; e++)
        logits[e] = isnan(row[e]) ? -(double)INFINITY : (double)row[e];
    return mb_log_sum_exp(n, logits);
}

#endif
