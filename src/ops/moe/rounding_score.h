/* rounding_score.h - how token rounding ranks the tokens of an expert, with the same bits on the CPU and on
 * the GPU. */
#ifndef MB_OPS_MOE_ROUNDING_SCORE_H
#define MB_OPS_MOE_ROUNDING_SCORE_H

#include "ops/common/host_device.h"

#include <math.h>

/* The log of the probability: as the probability, but small ones do not become equal zeros. log_sum, the log
 * of the sum of the token's exponentials, is put on a grid first. So its last bits, which depend on the order
 * of the sum and on the library's exp, do not decide between equal probabilities. */
static inline MB_HOST_DEVICE double mb_rounding_score(float logit, double log_sum) {
    const double score = (double)logit - rint(log_sum * 0x1p36) * 0x1p-36;
    return score != score ? -(double)INFINITY : score;
}

#endif
