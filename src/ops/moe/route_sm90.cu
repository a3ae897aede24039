/*
 * route_sm90.cu - softmax and top-k of the router's logits, one warp a token.
 *
 * Lane l holds the logits of experts l, l + 32, ... as keys: unsigned integers in the order of the floats, so
 * that redux finds a maximum in one instruction. K rounds: the largest key of the warp, the lowest expert
 * that has it, and that one is struck out. Only the K chosen (and, without renormalisation, the sum over all)
 * need an exponential.
 */
#include "ops/hopper/launch.cuh"
#include "ops/moe/moe_sm90.h"

#include <cuda_bf16.h>

enum { WARPS_PER_CTA = 4 };

static const uint32_t EVERY_LANE = 0xffffffff;

static const uint32_t KEY_TAKEN = 0, KEY_MINUS_INFINITY = 0x007fffff;

/* NaN counts as -infinity: it is chosen last, and ids stay in range. */
static __device__ __forceinline__ uint32_t key_of(float logit, int *saw_nan) {
    uint32_t bits = __float_as_uint(logit);
    if (logit != logit) {
        *saw_nan = 1;
        return KEY_MINUS_INFINITY;
    }
    if (logit == 0.0f)
        bits = 0; /* -0 equals 0 */
    return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float logit_of(uint32_t key) {
    return __uint_as_float((key & 0x80000000u) ? key & 0x7fffffffu : ~key);
}

/* The maximum's own is 1, also where the difference of infinities would be NaN. */
static __device__ __forceinline__ float relative_exp(float logit, float maximum) {
    return logit == maximum ? 1.0f : expf(logit - maximum);
}

static __device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_xor_sync(EVERY_LANE, value, distance);
    return value;
}

template <int experts_per_lane>
static __global__ void __launch_bounds__(WARPS_PER_CTA * 32) route(mb_moe_route_args args) {
    const int lane = threadIdx.x % 32;
    const int64_t token = (int64_t)blockIdx.x * WARPS_PER_CTA + threadIdx.x / 32;
    mb_grid_launch_dependents();
    mb_grid_wait();
    if (token >= args.n_tokens)
        return;

    uint32_t keys[experts_per_lane];
    int saw_nan = 0;
#pragma unroll
    for (int i = 0; i < experts_per_lane; i++) {
        int expert = lane + 32 * i;
        keys[i] = KEY_TAKEN;
        if (expert < args.n_experts) {
            int64_t at = token * args.n_experts + expert;
            float logit = args.logits_dtype == MB_F32
                              ? ((const float *)args.logits)[at]
                              : __bfloat162float(((const __nv_bfloat16 *)args.logits)[at]);
            keys[i] = key_of(logit, &saw_nan);
        }
    }
    if (__any_sync(EVERY_LANE, saw_nan) && lane == 0 && args.nan_flag)
        *args.nan_flag = 1;

    float all = 0; /* this lane's part of the sum over all experts */
    if (args.order == MB_ROUTE_SOFTMAX_TOPK && !args.renormalize) {
        uint32_t largest = 0;
#pragma unroll
        for (int i = 0; i < experts_per_lane; i++)
            largest = max(largest, keys[i]);
        float maximum = logit_of(__reduce_max_sync(EVERY_LANE, largest));
#pragma unroll
        for (int i = 0; i < experts_per_lane; i++)
            if (keys[i] != KEY_TAKEN)
                all += relative_exp(logit_of(keys[i]), maximum);
    }

    int32_t my_id = 0; /* lane k keeps the k-th choice */
    float my_weight = 0;
    float maximum = 0;
    for (int k = 0; k < args.top_k; k++) {
        uint32_t best = 0;
        int32_t best_at = 0;
#pragma unroll
        for (int i = 0; i < experts_per_lane; i++)
            if (keys[i] > best) {
                best = keys[i];
                best_at = i;
            }
        uint32_t winner = __reduce_max_sync(EVERY_LANE, best);
        uint32_t candidate = best == winner ? lane + 32 * best_at : UINT32_MAX;
        uint32_t expert = __reduce_min_sync(EVERY_LANE, candidate);
#pragma unroll
        for (int i = 0; i < experts_per_lane; i++)
            if (candidate == expert && i == best_at)
                keys[i] = KEY_TAKEN;
        float logit = logit_of(winner);
        if (k == 0)
            maximum = logit;
        if (lane == k) {
            my_id = (int32_t)expert;
            my_weight = relative_exp(logit, maximum);
        }
    }
    float sum = warp_sum(args.order == MB_ROUTE_TOPK_SOFTMAX || args.renormalize ? my_weight : all);
    if (lane < args.top_k) {
        args.ids[token * args.top_k + lane] = my_id;
        args.weights[token * args.top_k + lane] = my_weight / sum;
    }
}

extern "C" mb_status mb_moe_route_sm90(const mb_moe_route_args *args, mb_stream stream) {
    if (args->n_tokens < 0 || args->n_experts < 1 || args->n_experts > 1024 || args->top_k < 1 ||
        args->top_k > 32 || args->top_k > args->n_experts)
        return mb_fail(MB_ERR_ARGUMENT,
                       "moe_route: n_tokens %lld, n_experts %d, top_k %d; needed are n_tokens >= 0, "
                       "1 <= top_k <= min(n_experts, 32), n_experts <= 1024",
                       (long long)args->n_tokens, args->n_experts, args->top_k);
    if (args->logits_dtype != MB_F32 && args->logits_dtype != MB_BF16)
        return mb_fail(MB_ERR_ARGUMENT, "moe_route: logits_dtype must be fp32 or bf16");
    if (args->order != MB_ROUTE_SOFTMAX_TOPK && args->order != MB_ROUTE_TOPK_SOFTMAX)
        return mb_fail(MB_ERR_ARGUMENT, "moe_route: order %d is unknown", (int)args->order);
    if (args->n_tokens == 0)
        return MB_OK;
    if (!args->logits || !args->weights || !args->ids)
        return mb_fail(MB_ERR_ARGUMENT, "moe_route: logits, weights or ids is NULL");

    int64_t n_ctas = (args->n_tokens + WARPS_PER_CTA - 1) / WARPS_PER_CTA;
    if (n_ctas > INT32_MAX)
        return mb_fail(MB_ERR_ARGUMENT, "moe_route: n_tokens %lld is too large", (long long)args->n_tokens);
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3((unsigned)n_ctas), WARPS_PER_CTA * 32, 0, stream);
    cudaError_t error;
    if (args->n_experts <= 128)
        error = cudaLaunchKernelEx(&config, route<4>, *args);
    else if (args->n_experts <= 256)
        error = cudaLaunchKernelEx(&config, route<8>, *args);
    else if (args->n_experts <= 512)
        error = cudaLaunchKernelEx(&config, route<16>, *args);
    else
        error = cudaLaunchKernelEx(&config, route<32>, *args);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_route: launch failed: %s", cudaGetErrorString(error));
    return MB_OK;
}
