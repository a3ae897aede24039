/*
 * vector.h - 16 fp32 lanes as the compiler's vector type, and what is built on it.
 *
 * Sums over a row are kept as 16 lanes (element i goes to lane i % 16) that are added up by one fixed tree at
 * the end. This one order holds for every tile shape and vector width, which makes results independent of the
 * batch. Rows are padded with zeros to whole vectors.
 */
#ifndef MB_OPS_COMMON_VECTOR_H
#define MB_OPS_COMMON_VECTOR_H

#include "ops/common/dtype.h"

#include <math.h>

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

/* e^x within 2 units in the last place; 0 below -86.6 (no subnormal results), infinity above 88.7, NaN for
 * NaN. Written so that loops over it vectorise, and independent of the C library. */
static inline float mb_exp(float x) {
    const float round_shift = 0x1.8p23f; /* adding it rounds to an integer and leaves it in the low bits */
    float shifted = x * 0x1.715476p+0f + round_shift;
    float n = shifted - round_shift;
    float r = (x - n * 0x1.62e400p-1f) - n * 0x1.7f7d1cp-20f; /* x - n ln 2, |r| <= ln(2) / 2 */
    float p = 0x1.a01a02p-13f;                                /* Taylor: the next term is below 2^-27 */
    p = p * r + 0x1.6c16c2p-10f;
    p = p * r + 0x1.111112p-7f;
    p = p * r + 0x1.555556p-5f;
    p = p * r + 0x1.555556p-3f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    /* times 2^n by adding to the exponent, in two halves since n may be 128 */
    uint32_t exponent = mb_bits_of_f32(shifted) << 23;
    float scaled = mb_f32_of_bits(mb_bits_of_f32(p * 0.5f) + exponent) * 2.0f;
    scaled = x < -86.6f ? 0.0f : scaled;
    scaled = x > 88.72283f ? INFINITY : scaled;
    return x != x ? x : scaled;
}

/* x / (1 + e^-x) */
static inline float mb_silu(float x) {
    return x / (1.0f + mb_exp(-x));
}

#endif
