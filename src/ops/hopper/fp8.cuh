/* fp8.cuh - conversion to OCP e4m3, saturating, two at a time. */
#ifndef MB_OPS_HOPPER_FP8_CUH
#define MB_OPS_HOPPER_FP8_CUH

#include <stdint.h>

/* low in bits 0 .. 7. Round to nearest even; beyond 448 saturates. */
static __device__ __forceinline__ uint32_t mb_to_e4m3x2(float low, float high) {
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

#endif
