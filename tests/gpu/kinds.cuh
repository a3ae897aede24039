/* kinds.cuh - the ways in which the operators multiply: dtypes, how exact they must be, how fast they can be.
 */
#ifndef MB_TESTS_KINDS_CUH
#define MB_TESTS_KINDS_CUH

#include "moebius/ops.h"

enum kind_name { BF16, FP16, TF32, FP32, FP8_TENSOR, FP8_BLOCK, N_KINDS };

typedef struct kind {
    const char *name;     /* as in result files */
    mb_dtype activations; /* fp8: of half the cases */
    mb_dtype weights;
    mb_f32_math math;
    double largest_difference; /* calc_diff */
    double tflops;             /* the floor's, 88 % of cuBLAS (fp8 97 %); 3.0 TB/s is the other */
} kind;

static const kind kinds[N_KINDS] = {
    {"bf16", MB_BF16, MB_BF16, MB_F32_TF32, 1e-5, 700},
    {"fp16", MB_F16, MB_F16, MB_F32_TF32, 1e-5, 700},
    {"tf32", MB_F32, MB_F32, MB_F32_TF32, 1e-5, 350},
    {"fp32", MB_F32, MB_F32, MB_F32_EXACT, 1e-10, 45},
    {"fp8_tensor", MB_BF16, MB_F8_E4M3, MB_F32_TF32, 1e-3, 1400},
    {"fp8_block", MB_BF16, MB_F8_E4M3, MB_F32_TF32, 1e-3, 1400},
};
static const double FLOOR_GBPS = 3000;

/* The least time that this many bytes and flops take, in us. */
static inline double floor_us(const kind *k, double bytes, double flops) {
    const double of_bytes = bytes / FLOOR_GBPS * 1e-3, of_flops = flops / k->tflops * 1e-6;
    return of_bytes > of_flops ? of_bytes : of_flops;
}

#endif
