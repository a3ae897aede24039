/* exp.h - e^x with the same bits on the CPU and on the GPU. */
#ifndef MB_OPS_COMMON_EXP_H
#define MB_OPS_COMMON_EXP_H

#include "ops/common/dtype.h"
#include "ops/common/host_device.h"

#include <math.h>

/* e^x within 2 units in the last place; 0 below -86.6 (no subnormal results), infinity above 88.7, NaN for
 * NaN. Written so that loops over it vectorise, and independent of the C library. */
static inline MB_HOST_DEVICE float mb_exp(float x) {
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

#endif
