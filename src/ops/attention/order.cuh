/*
 * order.cuh - the order in which a row's sums are formed, and every rounding on the way. (A row: one query
 * head of one token.) All attention kernels with tensor cores follow it, so that a row has the same bits in
 * a prompt, in a chunk, in decode and in any batch. README.md states the order in words.
 *
 *   score      D products in chains of 16 (a k step of the tensor cores), from nothing, in fp32
 *   step       128 positions, counted from position 0: one maximum, one rescaling, P rounded to 16 bits
 *   span       256 positions: starts from nothing, two steps; then the four partial totals become one
 *   row        spans are merged in order; the sums are multiplied by v_scale / total and rounded once
 *
 * Of a step's positions, lane c = p / 2 % 4 of a quad has its own total, which is how the tensor cores hand
 * out columns; and each quarter of 32 positions is added up by itself, so that four warps may have one each.
 */
#ifndef MB_OPS_ATTENTION_ORDER_CUH
#define MB_OPS_ATTENTION_ORDER_CUH

#include "ops/attention/attention.h"
#include "ops/hopper/math.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

enum { BLOCK = 64, STEP = 128, SPAN = 256, SPAN_STEPS = SPAN / STEP, STEP_BLOCKS = STEP / BLOCK };
enum { QUARTERS = 4, QUARTER = STEP / QUARTERS };

/* Scores times this are in powers of two. Above 0. */
static __device__ __forceinline__ float score_factor(const mb_attention_args *args, int32_t kv_head) {
    const float scale = args->k_scale ? __fmul_rn(args->scale, args->k_scale[kv_head]) : args->scale;
    return __fmul_rn(scale, 1.4426950408889634f);
}

/* ---- a step */

typedef struct step_factors {
    float maximum;    /* of scores times the factor, so far; -infinity: nothing was visible yet */
    float shift;      /* taken off the exponents */
    float correction; /* what the sums and the total so far are multiplied by */
} step_factors;

/* largest: of the visible scores of the step, as they left the tensor cores; -infinity: none is visible. */
static __device__ __forceinline__ step_factors next_step(float maximum, float largest, float factor) {
    step_factors f;
    f.maximum = fmaxf(maximum, __fmul_rn(largest, factor));
    f.shift = f.maximum == -CUDART_INF_F ? 0 : f.maximum;
    f.correction = mb_exp2(maximum - f.shift);
    return f;
}

/* A visible position's P; of others it is 0. */
static __device__ __forceinline__ float probability(float score, float factor, float shift) {
    return mb_exp2(fmaf(score, factor, -shift));
}

/* A lane's total after the step. A quarter: the P of the lane's columns, before they are rounded, each added
 * to the sum of those in front of it, in order of positions: ((p0 + p1) + p8) + p9 ... */
static __device__ __forceinline__ float add_step(float total, float correction,
                                                 const float (&quarter)[QUARTERS]) {
    return fmaf(total, correction,
                __fadd_rn(__fadd_rn(quarter[0], quarter[1]), __fadd_rn(quarter[2], quarter[3])));
}

template <int dtype> static __device__ __forceinline__ uint32_t pack(float low, float high) {
    if constexpr (dtype == MB_BF16) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return *(const uint32_t *)&pair;
    } else {
        const __half2 pair = __floats2half2_rn(low, high);
        return *(const uint32_t *)&pair;
    }
}

/* ---- a span */

/* The total of a span: of the four lanes of a quad, (c0 + c1) + (c2 + c3). */
static __device__ __forceinline__ float total_of_lanes(float total) {
    total = __fadd_rn(total, __shfl_xor_sync(0xffffffff, total, 1));
    return __fadd_rn(total, __shfl_xor_sync(0xffffffff, total, 2));
}

/* What two finished spans are multiplied by when they become one. */
typedef struct merge_factors {
    float former, next, maximum;
} merge_factors;

static __device__ __forceinline__ merge_factors factors_of(float former_maximum, float next_maximum) {
    const float maximum = fmaxf(former_maximum, next_maximum);
    const float shift = maximum == -CUDART_INF_F ? 0 : maximum;
    return {mb_exp2(former_maximum - shift), mb_exp2(next_maximum - shift), maximum};
}

/* Of totals and of sums. */
static __device__ __forceinline__ float merge(const merge_factors *f, float former, float next) {
    return fmaf(next, f->next, __fmul_rn(former, f->former));
}

/* ---- a row's end */

/* What the sums are multiplied by (__fmul_rn) before they are rounded to dtype. */
static __device__ __forceinline__ float output_factor(const mb_attention_args *args, int32_t kv_head,
                                                      float total) {
    return __fdiv_rn(args->v_scale ? args->v_scale[kv_head] : 1, total);
}

#endif
