/* math.cuh - the special-function unit, where its 2 units in the last place are enough, and a maximum. */
#ifndef MB_OPS_HOPPER_MATH_CUH
#define MB_OPS_HOPPER_MATH_CUH

static __device__ __forceinline__ float mb_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ float mb_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* The larger one; NaN if either is. (fmaxf gives the other one.) */
static __device__ __forceinline__ float mb_max_nan(float x, float y) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(x), "f"(y));
    return larger;
}

#endif
