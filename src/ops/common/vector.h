/*
 * vector.h - 16 fp32 lanes as the compiler's vector type, and what is built on it.
 *
 * A sum over a row is kept in 16 lanes: element i is added to lane i % 16. At the end one fixed tree adds
 * up the lanes. The order is the same for every tile shape and vector width, so results do not depend on
 * the batch. Rows are padded with zeros to whole vectors.
 */
#ifndef MB_OPS_COMMON_VECTOR_H
#define MB_OPS_COMMON_VECTOR_H

#include "ops/common/exp.h"

enum { MB_LANES = 16 };

typedef float mb_f32x16 __attribute__((vector_size(64)));
/* The same in memory that is aligned as floats are. */
typedef float mb_f32x16_unaligned __attribute__((vector_size(64), aligned(4), may_alias));

static inline int64_t mb_pad_lanes(int64_t n) {
    return (n + MB_LANES - 1) / MB_LANES * MB_LANES;
}

/* Lane i + 8 is added to lane i, then 4 to 0, 2 to 0, 1 to 0. */
static inline float mb_sum_lanes(const mb_f32x16 *sums) {
    typedef float f32x8 __attribute__((vector_size(32)));
    typedef float f32x4 __attribute__((vector_size(16)));
    f32x8 eights[2];
    f32x4 fours[2];
    memcpy(eights, sums, sizeof eights);
    eights[0] += eights[1];
    memcpy(fours, eights, sizeof fours);
    fours[0] += fours[1];
    return (fours[0][0] + fours[0][2]) + (fours[0][1] + fours[0][3]);
}

#endif
