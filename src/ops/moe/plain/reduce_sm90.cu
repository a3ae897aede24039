/*
 * reduce_sm90.cu - each token's K expert rows, weighted and summed in the order of k; 16 bytes of y a thread.
 *
 * A thread starts the loads of eight rows before it adds the first, so that their latencies overlap. y is
 * read once and out is written once: T H (K + 1) elements, at DRAM's speed when T is large.
 */
#include "ops/hopper/launch.cuh"
#include "ops/moe/moe_sm90.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

enum { THREADS = 128 };

/* Columns that one thread adds up: 16 bytes of y. */
template <class type> constexpr int columns_of = 16 / sizeof(type);

static __device__ __forceinline__ float2 widen(uint32_t pair, const __nv_bfloat16 *) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
static __device__ __forceinline__ float2 widen(uint32_t pair, const __half *) {
    return __half22float2(*(const __half2 *)&pair);
}
static __device__ __forceinline__ uint32_t narrow(float low, float high, const __nv_bfloat16 *) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&pair;
}
static __device__ __forceinline__ uint32_t narrow(float low, float high, const __half *) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *(const uint32_t *)&pair;
}

/* sum += weight * the 16 bytes. */
template <class type>
static __device__ __forceinline__ void add_scaled(float *sum, uint4 bytes, float weight) {
    const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if constexpr (sizeof(type) == 4) {
            sum[i] = fmaf(weight, __uint_as_float(words[i]), sum[i]);
        } else {
            const float2 pair = widen(words[i], (const type *)NULL);
            sum[2 * i] = fmaf(weight, pair.x, sum[2 * i]);
            sum[2 * i + 1] = fmaf(weight, pair.y, sum[2 * i + 1]);
        }
    }
}

/* sum += the columns of residual or shared. */
template <class type, int n>
static __device__ __forceinline__ void add_term(float (&sum)[n], const void *term, int64_t at) {
    const uint4 *from = (const uint4 *)((const type *)term + at);
#pragma unroll
    for (int i = 0; i < n / columns_of<type>; i++)
        add_scaled<type>(sum + i * columns_of<type>, from[i], 1.0f);
}

template <class type, int n>
static __device__ __forceinline__ void store(void *out, int64_t at, const float (&sum)[n]) {
    uint32_t words[n * sizeof(type) / 4];
#pragma unroll
    for (int i = 0; i < (int)(n * sizeof(type) / 4); i++) {
        if constexpr (sizeof(type) == 4)
            words[i] = __float_as_uint(sum[i]);
        else
            words[i] = narrow(sum[2 * i], sum[2 * i + 1], (const type *)NULL);
    }
    uint4 *to = (uint4 *)((type *)out + at);
#pragma unroll
    for (int i = 0; i < n / columns_of<type>; i++)
        to[i] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
}

/* n of a token's choices. */
template <int n> struct choices {
    int32_t rows[n];
    float weights[n];
};

/* before_wait: from L2, since L1 may still have the numbers of an earlier call. */
template <int n, int before_wait = 0>
static __device__ __forceinline__ choices<n> load_choices(const int32_t *token_row, const float *weights) {
    choices<n> c;
#pragma unroll
    for (int i = 0; i < n; i++) {
        c.rows[i] = before_wait ? __ldcg(token_row + i) : token_row[i];
        c.weights[i] = before_wait ? __ldcg(weights + i) : weights[i];
    }
    return c;
}

/* All loads first. */
template <class y_type, int n>
static __device__ __forceinline__ void add_rows(float *sum, const y_type *y, int32_t hidden,
                                                const choices<n> &c) {
    uint4 values[n];
#pragma unroll
    for (int i = 0; i < n; i++)
        values[i] =
            c.rows[i] >= 0 ? *(const uint4 *)(y + (int64_t)c.rows[i] * hidden) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < n; i++)
        add_scaled<y_type>(sum, values[i], c.rows[i] >= 0 ? c.weights[i] : 0);
}

/* choices_are_ready: token_row and weights are older than the kernel in front of this one, so that they can
 * be read before its end. */
template <class y_type, class out_type>
static __global__ void __launch_bounds__(THREADS)
    reduce(const __grid_constant__ mb_moe_reduce_args args, int choices_are_ready) {
    constexpr int COLUMNS = columns_of<y_type>;
    mb_grid_launch_dependents();
    const int32_t ctas_per_token = (args.hidden + THREADS * COLUMNS - 1) / (THREADS * COLUMNS);
    const int64_t token = blockIdx.x / ctas_per_token;
    const int32_t column = (blockIdx.x % ctas_per_token * THREADS + threadIdx.x) * COLUMNS;
    const int32_t *token_row = args.token_row + token * args.top_k;
    const float *weights = args.weights + token * args.top_k;
    choices<8> first = {};
    if (choices_are_ready && args.top_k >= 8)
        first = load_choices<8, 1>(token_row, weights);
    mb_grid_wait();
    if (column >= args.hidden)
        return;
    if (!choices_are_ready && args.top_k >= 8)
        first = load_choices<8>(token_row, weights);
    const y_type *y = (const y_type *)args.y + column;
    const int64_t at = token * args.hidden + column;

    float sum[COLUMNS] = {};
    if (args.residual)
        add_term<out_type>(sum, args.residual, at);
    if (args.shared)
        add_term<out_type>(sum, args.shared, at);
    int k = 0;
    if (args.top_k >= 8) {
        add_rows<y_type, 8>(sum, y, args.hidden, first);
        k = 8;
    }
    for (; k + 8 <= args.top_k; k += 8)
        add_rows<y_type, 8>(sum, y, args.hidden, load_choices<8>(token_row + k, weights + k));
    if (args.top_k & 4) {
        add_rows<y_type, 4>(sum, y, args.hidden, load_choices<4>(token_row + k, weights + k));
        k += 4;
    }
    if (args.top_k & 2) {
        add_rows<y_type, 2>(sum, y, args.hidden, load_choices<2>(token_row + k, weights + k));
        k += 2;
    }
    if (args.top_k & 1)
        add_rows<y_type, 1>(sum, y, args.hidden, load_choices<1>(token_row + k, weights + k));
    store<out_type>(args.out, at, sum);
}

static mb_status check(const mb_moe_reduce_args *args) {
    if (args->dtype != MB_F32 && args->dtype != MB_BF16 && args->dtype != MB_F16)
        return mb_fail(MB_ERR_ARGUMENT, "moe_reduce: dtype %s is not fp32, bf16 or fp16",
                       mb_dtype_name(args->dtype));
    if (args->out_dtype != args->dtype && args->out_dtype != MB_F32)
        return mb_fail(MB_ERR_ARGUMENT, "moe_reduce: out_dtype %s must be fp32 or dtype, which is %s",
                       mb_dtype_name(args->out_dtype), mb_dtype_name(args->dtype));
    const int step = args->dtype == MB_F32 ? 4 : 8;
    if (args->hidden < step || args->hidden % step != 0)
        return mb_fail(MB_ERR_ARGUMENT, "moe_reduce: hidden %d must be a multiple of %d", args->hidden, step);
    if (args->top_k < 1)
        return mb_fail(MB_ERR_ARGUMENT, "moe_reduce: top_k %d must be 1 or more", args->top_k);
    if (args->n_tokens < 0)
        return mb_fail(MB_ERR_ARGUMENT, "moe_reduce: n_tokens %lld is negative", (long long)args->n_tokens);
    if (args->n_tokens == 0)
        return MB_OK;
    const struct {
        const char *name;
        const void *pointer;
        int needed;
        uintptr_t alignment;
    } all[] = {
        {"y", args->y, 0, 16},     {"weights", args->weights, 1, 4},    {"token_row", args->token_row, 1, 4},
        {"out", args->out, 1, 16}, {"residual", args->residual, 0, 16}, {"shared", args->shared, 0, 16}};
    for (const auto &one : all)
        if ((one.needed && !one.pointer) || (uintptr_t)one.pointer % one.alignment != 0)
            return mb_fail(MB_ERR_ARGUMENT,
                           one.pointer ? "moe_reduce: %s is not %d-byte aligned" : "moe_reduce: %s is NULL",
                           one.name, (int)one.alignment);
    return MB_OK;
}

template <class y_type, class out_type>
static mb_status launch(const mb_moe_reduce_args *args, int choices_are_ready, mb_stream stream) {
    constexpr int32_t columns_per_cta = THREADS * columns_of<y_type>;
    const int64_t ctas_per_token = (args->hidden + columns_per_cta - 1) / columns_per_cta;
    if (args->n_tokens > INT32_MAX / ctas_per_token)
        return mb_fail(MB_ERR_ARGUMENT, "moe_reduce: n_tokens %lld is more than one launch can take",
                       (long long)args->n_tokens);
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3((unsigned)(args->n_tokens * ctas_per_token)), THREADS, 0,
                     stream);
    cudaError_t error = cudaLaunchKernelEx(&config, reduce<y_type, out_type>, *args, choices_are_ready);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_reduce: launch failed: %s", cudaGetErrorString(error));
    return MB_OK;
}

static mb_status launch_any(const mb_moe_reduce_args *args, int choices_are_ready, mb_stream stream) {
    MB_TRY(check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    mb_moe_reduce_args sum = *args;
    if (!args->y)
        sum.top_k = 0; /* no rows: residual and shared alone */
    if (args->dtype == MB_F32)
        return launch<float, float>(&sum, choices_are_ready, stream);
    if (args->dtype == MB_BF16)
        return args->out_dtype == MB_BF16
                   ? launch<__nv_bfloat16, __nv_bfloat16>(&sum, choices_are_ready, stream)
                   : launch<__nv_bfloat16, float>(&sum, choices_are_ready, stream);
    return args->out_dtype == MB_F16 ? launch<__half, __half>(&sum, choices_are_ready, stream)
                                     : launch<__half, float>(&sum, choices_are_ready, stream);
}

extern "C" mb_status mb_moe_reduce_sm90(const mb_moe_reduce_args *args, mb_stream stream) {
    return launch_any(args, 0, stream);
}

extern "C" mb_status mb_moe_reduce_experts_sm90(const mb_moe_reduce_args *args, mb_stream stream) {
    return launch_any(args, 1, stream);
}
