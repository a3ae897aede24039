/* fp8.cuh - conversion to OCP e4m3, saturating, and from it, two or four at a time. */
#ifndef MB_OPS_HOPPER_FP8_CUH
#define MB_OPS_HOPPER_FP8_CUH

#include <stdint.h>

/* low in bits 0 .. 7. Round to nearest even; beyond 448 saturates. */
static __device__ __forceinline__ uint32_t mb_to_e4m3x2(float low, float high) {
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

/* Two numbers in fp16, exactly; the first one in the low half. NaN stays NaN. */
static __device__ __forceinline__ uint32_t mb_from_e4m3x2(uint16_t pair) {
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
    return halves;
}

/* Four numbers likewise: low has the first two. (The upper half of a register needs no shift.) */
static __device__ __forceinline__ void mb_from_e4m3x4(uint32_t four, uint32_t *low, uint32_t *high) {
    asm("{\n"
        ".reg .b16 first, second;\n"
        "mov.b32 {first, second}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, first;\n"
        "cvt.rn.f16x2.e4m3x2 %1, second;\n"
        "}"
        : "=r"(*low), "=r"(*high)
        : "r"(four));
}

#endif
