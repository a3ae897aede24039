/*
 * dtype.h - between fp32 and the narrower types: single values inline, runs of values in dtype.c.
 *
 * Widening is exact. Narrowing rounds to nearest, ties to even. A value that is too large becomes infinity
 * (bf16, fp16) or the largest finite value (fp8 E4M3, which has no infinity). The code has no branches, so
 * loops over it vectorise.
 */
#ifndef MB_OPS_COMMON_DTYPE_H
#define MB_OPS_COMMON_DTYPE_H

#include "moebius/ops.h"
#include "ops/common/host_device.h"

#include <string.h>

static inline MB_HOST_DEVICE float mb_f32_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline MB_HOST_DEVICE uint32_t mb_bits_of_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* condition ? a : b without a branch. (Compilers do not turn ?: into a selection when one value comes from a
 * floating-point operation, and then do not vectorise.) */
static inline uint32_t mb_select(int condition, uint32_t a, uint32_t b) {
    uint32_t mask = 0u - (uint32_t)condition;
    return (a & mask) | (b & ~mask);
}

static inline float mb_f32_of_bf16(uint16_t half) {
    return mb_f32_of_bits((uint32_t)half << 16);
}

/* Normal numbers: exponent and mantissa move to their places in fp32, and the difference of the two biases
 * is added. Subnormal numbers: the mantissa counts steps of 2^-24. No fp32 subnormals appear, since some
 * CPUs are slow with them. */
static inline float mb_f32_of_f16(uint16_t half) {
    uint32_t magnitude = half & 0x7fff;
    uint32_t normal = (magnitude << 13) + 0x38000000u;
    uint32_t subnormal = mb_bits_of_f32((float)(int32_t)magnitude * 0x1p-24f);
    uint32_t bits = mb_select(magnitude < 0x0400, subnormal, normal);
    bits = mb_select(magnitude >= 0x7c00, magnitude << 13 | 0x7f800000u, bits); /* infinity, NaN */
    return mb_f32_of_bits(bits | (uint32_t)(half & 0x8000) << 16);
}

static inline float mb_f32_of_f8(uint8_t byte) {
    uint32_t magnitude = byte & 0x7f;
    uint32_t normal = (magnitude << 20) + 0x3c000000u;
    uint32_t subnormal = mb_bits_of_f32((float)(int32_t)magnitude * 0x1p-9f);
    uint32_t bits = mb_select(magnitude < 0x08, subnormal, normal);
    bits = mb_select(magnitude == 0x7f, 0x7fc00000u, bits);
    return mb_f32_of_bits(bits | (uint32_t)(byte & 0x80) << 24);
}

/* 2^(byte - 127): the byte is fp32's exponent, but for 2^-127, which is subnormal there, and NaN. */
static inline float mb_f32_of_e8m0(uint8_t byte) {
    uint32_t bits = (uint32_t)byte << 23;
    return mb_f32_of_bits(byte == 0 ? 0x00400000u : byte == 0xff ? 0x7fc00000u : bits);
}

static inline uint16_t mb_bf16_of_f32(float value) {
    uint32_t bits = mb_bits_of_f32(value);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    return (uint16_t)mb_select((bits & 0x7fffffffu) > 0x7f800000u, bits >> 16 | 0x40,
                               rounded); /* quiet NaN */
}

/* Subnormal results: 0.5 has the result's step as its last place, so adding 0.5 rounds the value to a
 * multiple of the step and leaves the multiple in the low bits. */
static inline uint16_t mb_f16_of_f32(float value) {
    uint32_t bits = mb_bits_of_f32(value), magnitude = bits & 0x7fffffffu;
    uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
    uint32_t subnormal = mb_bits_of_f32(mb_f32_of_bits(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t result = mb_select(magnitude < 0x38800000u, subnormal, normal);
    result = mb_select(magnitude >= 0x477ff000u, 0x7c00u, result);
    result = mb_select(magnitude > 0x7f800000u, 0x7e00u, result);
    return (uint16_t)(result | (bits >> 16 & 0x8000u));
}

static inline uint8_t mb_f8_of_f32(float value) {
    uint32_t bits = mb_bits_of_f32(value), magnitude = bits & 0x7fffffffu;
    uint32_t normal = (magnitude - 0x3c000000u + 0x7ffffu + (magnitude >> 20 & 1)) >> 20;
    uint32_t subnormal = mb_bits_of_f32(mb_f32_of_bits(magnitude) + 0x1p14f) - 0x46800000u;
    uint32_t result = mb_select(magnitude < 0x3c800000u, subnormal, normal);
    result = mb_select(magnitude >= 0x43e00000u, 0x7eu, result);
    result = mb_select(magnitude > 0x7f800000u, 0x7fu, result);
    return (uint8_t)(result | (bits >> 24 & 0x80u));
}

/* a / b, rounded up. */
static inline int64_t mb_ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* How many scale blocks n columns have. */
static inline int64_t mb_f8_blocks(int64_t n) {
    return mb_ceil_div(n, MB_F8_BLOCK);
}

/* Elements [first, first + n) of an array, widened. */
void mb_load_f32(mb_dtype dtype, const void *array, int64_t first, int64_t n, float *values);

/* values[i] to element first + i of an array, rounded. */
void mb_store_f32(mb_dtype dtype, void *array, int64_t first, int64_t n, const float *values);

/* The same of fp8 with one scale for each 128 elements, the last of which may be fewer: amax / 448, 1 when all are
 * 0. `first` is where a scale begins, and scale[0] is that one. */
void mb_load_f8_blocks(const void *array, int64_t first, int64_t n, const float *scale, float *values);
void mb_store_f8_blocks(void *array, int64_t first, int64_t n, float *scale, const float *values);

/* Each value becomes the nearest one that dtype can hold. */
void mb_round_f32(mb_dtype dtype, int64_t n, float *values);

#endif
