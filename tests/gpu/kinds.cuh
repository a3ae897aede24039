/* kinds.cuh - the ways in which the operators multiply: dtypes, how exact they must be, how fast they can be.
 */
#ifndef MB_TESTS_KINDS_CUH
#define MB_TESTS_KINDS_CUH

#include "bench/modes.h"

enum kind_name {
#define ID(id, name, activations, weights, math, per_tensor, tflops) id,
    MB_BENCH_MODES(ID)
#undef ID
        N_KINDS
};

typedef struct kind {
    const char *name;     /* as in result files */
    mb_dtype activations; /* fp8: of half the cases */
    mb_dtype weights;
    mb_f32_math math;
    double largest_difference; /* calc_diff */
    double tflops;             /* the floor's; 3.0 TB/s is the other */
} kind;

static const kind kinds[N_KINDS] = {
#define KIND(id, name, activations, weights, math, per_tensor, tflops)       \
    {name,                                                                   \
     activations,                                                            \
     weights,                                                                \
     math,                                                                   \
     (weights) == MB_F8_E4M3 ? 1e-3 : (math) == MB_F32_EXACT ? 1e-10 : 1e-5, \
     tflops},
    MB_BENCH_MODES(KIND)
#undef KIND
};
static const double FLOOR_GBPS = 3000;

/* The least time that this many bytes and flops take, in us. */
static inline double floor_us(const kind *k, double bytes, double flops) {
    const double of_bytes = bytes / FLOOR_GBPS * 1e-3, of_flops = flops / k->tflops * 1e-6;
    return of_bytes > of_flops ? of_bytes : of_flops;
}

#endif
