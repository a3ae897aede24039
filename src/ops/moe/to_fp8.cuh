/*
 * to_fp8.cuh - units of 128 values of 16 bits, eight in each of half a warp's lanes, to e4m3 with a scale
 * each. The quotient is IEEE's, rounded once more to e4m3, so that a host gets the same bits.
 */
#ifndef MB_OPS_MOE_TO_FP8_CUH
#define MB_OPS_MOE_TO_FP8_CUH

#include "ops/hopper/fp8.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

static __device__ __forceinline__ void unpack(uint32_t packed, int is_f16, float *v) {
    const float2 pair = is_f16 ? __half22float2(*(const __half2 *)&packed)
                               : __bfloat1622float2(*(const __nv_bfloat162 *)&packed);
    v[0] = pair.x;
    v[1] = pair.y;
}

static __device__ __forceinline__ void widen(uint4 packed, int is_f16, float (&v)[8]) {
    unpack(packed.x, is_f16, v);
    unpack(packed.y, is_f16, v + 2);
    unpack(packed.z, is_f16, v + 4);
    unpack(packed.w, is_f16, v + 6);
}

/* The largest size of a unit, eight of whose values this lane holds. */
static __device__ __forceinline__ float largest_of_unit(const float (&v)[8]) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        largest = fmaxf(largest, fabsf(v[i]));
#pragma unroll
    for (int distance = 1; distance < 16; distance *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, distance));
    return largest;
}

/* amax / 448; 1 when all are 0. */
static __device__ __forceinline__ float scale_of_unit(float largest) {
    return largest > 0 ? __fdiv_rn(largest, 448.0f) : 1.0f;
}

/* The quotient with IEEE's bits, one step from a rounded reciprocal: that does for values of 11 bits of
 * mantissa and any scale (all 2^33 pairs were tried), unless something overflows or gets subnormal. */
static __device__ __forceinline__ float refined_quotient(float v, float scale, float reciprocal) {
    const float about = v * reciprocal;
    const float excess = __fmaf_rn(about, scale, -v);
    return __fmaf_rn(-excess, reciprocal, about);
}

/* What divides a unit's values by its own scale, amax / 448, without a branch: a power of two brings both
 * away from the ends of the range. An infinite scale leaves 0, and NaN of what is infinite itself. */
typedef struct unit_divisor {
    float factor, scale, reciprocal;
} unit_divisor;

static __device__ __forceinline__ unit_divisor divisor_of_unit(float scale) {
    unit_divisor d;
    d.factor = scale < 0x1p-90f ? 0x1p100f : scale > 0x1p90f ? 0x1p-100f : 1.0f;
    const int is_finite = scale <= 0x1.fffffep127f;
    d.scale = is_finite ? scale * d.factor : 1.0f;
    d.reciprocal = is_finite ? __frcp_rn(d.scale) : 0.0f;
    return d;
}

static __device__ __forceinline__ float quotient_in_unit(float v, unit_divisor d) {
    return refined_quotient(v * d.factor, d.scale, d.reciprocal);
}

/* By the unit's own scale. */
static __device__ __forceinline__ uint2 divide_unit_to_e4m3(const float (&v)[8], float scale) {
    const unit_divisor d = divisor_of_unit(scale);
    float q[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        q[i] = quotient_in_unit(v[i], d);
    return make_uint2(mb_to_e4m3x2(q[0], q[1]) | mb_to_e4m3x2(q[2], q[3]) << 16,
                      mb_to_e4m3x2(q[4], q[5]) | mb_to_e4m3x2(q[6], q[7]) << 16);
}

/* By any scale. The general division takes three times as long as the memory does. */
static __device__ __forceinline__ uint2 divide_to_e4m3(const float (&v)[8], float scale, int is_tame) {
    float q[8];
    if (is_tame) {
        const float reciprocal = __frcp_rn(scale);
#pragma unroll
        for (int i = 0; i < 8; i++)
            q[i] = refined_quotient(v[i], scale, reciprocal);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            q[i] = __fdiv_rn(v[i], scale);
    }
    return make_uint2(mb_to_e4m3x2(q[0], q[1]) | mb_to_e4m3x2(q[2], q[3]) << 16,
                      mb_to_e4m3x2(q[4], q[5]) | mb_to_e4m3x2(q[6], q[7]) << 16);
}

/* No quotient of a value that is no larger than `largest` overflows, and the scale is far from the ends of
 * the range. Quotients so small that they lose bits are 0 in e4m3. */
static __device__ __forceinline__ int is_tame(float scale, float largest) {
    return scale > 0x1p-90f && scale < 0x1p90f && largest < 0x1p126f * fminf(scale, 1.0f);
}

#endif
