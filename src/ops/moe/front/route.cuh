/*
 * route.cuh - softmax and top-k of one token by one warp.
 *
 * An expert is a 64-bit key: its logit as an unsigned integer in the order of the floats, and below it the
 * expert counted downwards, so that the larger key is the better choice and ties go to the lower expert. Lane
 * l sorts the keys of experts l, l + 32, ... once; then K rounds take the best of the 32 heads with two
 * redux, and the lane that held it moves up. Exponentials are only of the K chosen (and, without
 * renormalisation, of all).
 */
#ifndef MB_OPS_MOE_ROUTE_CUH
#define MB_OPS_MOE_ROUTE_CUH

#include "moebius/ops.h"
#include "ops/common/element.cuh"

#include <cuda_bf16.h>
#include <stdint.h>

static const uint32_t ROUTE_LANES = 0xffffffff;
static const uint32_t KEY_MINUS_INFINITY = 0x007fffff;

/* NaN counts as -infinity: it is chosen last, and ids stay in range. -0 equals 0. */
static __device__ __forceinline__ uint32_t key_of(float logit) {
    const uint32_t bits = logit == 0.0f ? 0 : __float_as_uint(logit);
    const uint32_t key = bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
    return logit != logit ? KEY_MINUS_INFINITY : key;
}

static __device__ __forceinline__ float logit_of(uint32_t key) {
    return __uint_as_float((key & 0x80000000u) ? key & 0x7fffffffu : ~key);
}

/* The maximum's own is 1, also where the difference of infinities would be NaN. */
static __device__ __forceinline__ float relative_exp(float logit, float maximum) {
    return logit == maximum ? 1.0f : expf(logit - maximum);
}

/* Lane l: the logits of experts l, l + 32, ... of a token; what lies behind the last expert is left out. */
template <int experts_per_lane>
static __device__ __forceinline__ void load_logits(const mb_moe_route_args *args, int64_t token,
                                                   float (&logits)[experts_per_lane]) {
    const int lane = threadIdx.x % 32, n_experts = args->n_experts;
    const int64_t first = token * n_experts + lane;
    if (args->logits_dtype == MB_F32) {
        const float *from = (const float *)args->logits + first;
#pragma unroll
        for (int i = 0; i < experts_per_lane; i++)
            logits[i] = lane + 32 * i < n_experts ? from[32 * i] : 0;
    } else {
        const __nv_bfloat16 *from = (const __nv_bfloat16 *)args->logits + first;
#pragma unroll
        for (int i = 0; i < experts_per_lane; i++)
            logits[i] = lane + 32 * i < n_experts ? __bfloat162float(from[32 * i]) : 0;
    }
}

/* Keys i and i + step in order, if they are a pair of this step. */
template <int n, int size, int step, int i>
static __device__ __forceinline__ void order_keys(uint64_t (&keys)[n]) {
    if constexpr (i + step < n) {
        if constexpr ((i - step % size) / step % 2 == 0 && i / (2 * size) == (i + step) / (2 * size)) {
            const uint64_t a = keys[i], b = keys[i + step];
            keys[i] = a > b ? a : b;
            keys[i + step] = a > b ? b : a;
        }
        order_keys<n, size, step, i + 1>(keys);
    }
}

/* Largest first: Batcher's odd-even merges of sorted pieces of 1, 2, 4, ... Templates instead of loops, which
 * the compiler does not unroll for 16 keys and more. */
template <int n, int size = 1, int step = 1>
static __device__ __forceinline__ void sort_keys(uint64_t (&keys)[n]) {
    if constexpr (size < n) {
        order_keys<n, size, step, step % size>(keys);
        if constexpr (step > 1)
            sort_keys<n, size, step / 2>(keys);
        else
            sort_keys<n, 2 * size, 2 * size>(keys);
    }
}

/* ids: where the token's K ids go besides args->ids, or NULL. */
template <int experts_per_lane>
static __device__ __forceinline__ void route_token(const mb_moe_route_args *args, int64_t token,
                                                   const float (&logits)[experts_per_lane], int32_t *ids) {
    const int lane = threadIdx.x % 32;
    uint64_t keys[experts_per_lane]; /* 0: none */
    int saw_nan = 0;
#pragma unroll
    for (int i = 0; i < experts_per_lane; i++) {
        const int expert = lane + 32 * i;
        const uint64_t key = (uint64_t)key_of(logits[i]) << 32 | (UINT32_MAX - (uint32_t)expert);
        keys[i] = expert < args->n_experts ? key : 0;
        saw_nan |= logits[i] != logits[i]; /* what is no expert's is 0 */
    }
    if (__any_sync(ROUTE_LANES, saw_nan) && lane == 0 && args->nan_flag)
        *args->nan_flag = 1;
    sort_keys(keys);

    const int over_chosen = args->order == MB_ROUTE_TOPK_SOFTMAX || args->renormalize;
    float all = 0; /* this lane's part of the sum over all experts */
    if (!over_chosen) {
        const float maximum = logit_of(__reduce_max_sync(ROUTE_LANES, (uint32_t)(keys[0] >> 32)));
#pragma unroll
        for (int i = 0; i < experts_per_lane; i++)
            if (keys[i] != 0)
                all += relative_exp(logit_of((uint32_t)(keys[i] >> 32)), maximum);
    }

    uint32_t my_key = 0, my_expert = 0; /* lane k keeps the k-th choice */
#pragma unroll 1
    for (int k = 0; k < args->top_k; k++) {
        const uint32_t best = __reduce_max_sync(ROUTE_LANES, (uint32_t)(keys[0] >> 32));
        const uint32_t mine = (uint32_t)(keys[0] >> 32) == best ? (uint32_t)keys[0] : 0;
        const uint32_t chosen = __reduce_max_sync(ROUTE_LANES, mine);
        if (mine == chosen) {
#pragma unroll
            for (int i = 0; i + 1 < experts_per_lane; i++)
                keys[i] = keys[i + 1];
            keys[experts_per_lane - 1] = 0;
        }
        if (lane == k) {
            my_key = best;
            my_expert = UINT32_MAX - chosen;
        }
    }
    const float logit = logit_of(my_key), maximum = __shfl_sync(ROUTE_LANES, logit, 0);
    const float weight = lane < args->top_k ? relative_exp(logit, maximum) : 0;
    const float sum = mb_warp_sum(over_chosen ? weight : all);
    if (lane < args->top_k) {
        args->ids[token * args->top_k + lane] = (int32_t)my_expert;
        args->weights[token * args->top_k + lane] = weight / sum;
        if (ids)
            ids[lane] = (int32_t)my_expert;
    }
}

/* Tokens first, first + stride, ...; the next one's logits are on their way while one is routed. */
template <int experts_per_lane>
static __device__ __forceinline__ void route_tokens(const mb_moe_route_args *args, int64_t first,
                                                    int64_t stride, int32_t *shared_ids) {
    float next[experts_per_lane];
    if (first < args->n_tokens)
        load_logits(args, first, next);
#pragma unroll 1
    for (int64_t token = first; token < args->n_tokens; token += stride) {
        float logits[experts_per_lane];
#pragma unroll
        for (int i = 0; i < experts_per_lane; i++)
            logits[i] = next[i];
        if (token + stride < args->n_tokens)
            load_logits(args, token + stride, next);
        route_token(args, token, logits, shared_ids ? shared_ids + token * args->top_k : NULL);
    }
}

#endif
