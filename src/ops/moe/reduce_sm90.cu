/*
 * reduce_sm90.cu - each token's K expert rows, weighted and summed in the order of k; 16 bytes a thread.
 *
 * A thread starts the loads of eight rows before it adds the first, so that their latencies overlap. K rows
 * are read and one is written: 2 H (K + 1) bytes a token.
 */
#include "ops/hopper/launch.cuh"
#include "ops/moe/moe_sm90.h"

#include <cuda_bf16.h>

enum { THREADS = 128, COLUMNS_PER_THREAD = 8, ROWS_IN_FLIGHT = 8 };

static __device__ __forceinline__ void add_scaled(float (&sum)[COLUMNS_PER_THREAD], uint4 row, float weight) {
    const uint32_t pairs[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum[2 * i] += weight * __uint_as_float(pairs[i] << 16);
        sum[2 * i + 1] += weight * __uint_as_float(pairs[i] & 0xffff0000u);
    }
}

static __device__ __forceinline__ uint32_t pack(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

static __global__ void __launch_bounds__(THREADS) reduce(mb_moe_reduce_args args) {
    mb_grid_launch_dependents();
    mb_grid_wait();
    const int32_t ctas_per_token =
        (args.hidden + THREADS * COLUMNS_PER_THREAD - 1) / (THREADS * COLUMNS_PER_THREAD);
    const int64_t token = blockIdx.x / ctas_per_token;
    const int32_t column = (blockIdx.x % ctas_per_token * THREADS + threadIdx.x) * COLUMNS_PER_THREAD;
    if (column >= args.hidden)
        return;
    const __nv_bfloat16 *y = (const __nv_bfloat16 *)args.y + column;
    const int64_t at = token * args.hidden + column;

    float sum[COLUMNS_PER_THREAD] = {0};
    if (args.residual)
        add_scaled(sum, *(const uint4 *)((const __nv_bfloat16 *)args.residual + at), 1.0f);
    if (args.shared)
        add_scaled(sum, *(const uint4 *)((const __nv_bfloat16 *)args.shared + at), 1.0f);
    for (int k0 = 0; k0 < args.top_k; k0 += ROWS_IN_FLIGHT) {
        uint4 rows[ROWS_IN_FLIGHT];
        float weights[ROWS_IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < ROWS_IN_FLIGHT; i++) {
            weights[i] = 0;
            rows[i] = make_uint4(0, 0, 0, 0);
            if (k0 + i < args.top_k) {
                int32_t row = args.token_row[token * args.top_k + k0 + i];
                if (row >= 0) {
                    rows[i] = *(const uint4 *)(y + (int64_t)row * args.hidden);
                    weights[i] = args.weights[token * args.top_k + k0 + i];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS_IN_FLIGHT; i++)
            add_scaled(sum, rows[i], weights[i]);
    }
    uint4 packed =
        make_uint4(pack(sum[0], sum[1]), pack(sum[2], sum[3]), pack(sum[4], sum[5]), pack(sum[6], sum[7]));
    *(uint4 *)((__nv_bfloat16 *)args.out + at) = packed;
}

extern "C" mb_status mb_moe_reduce_sm90(const mb_moe_reduce_args *args, mb_stream stream) {
    if (args->n_tokens < 0 || args->n_tokens > INT32_MAX || args->hidden < 8 || args->hidden % 8 != 0 ||
        args->top_k < 1)
        return mb_fail(MB_ERR_ARGUMENT,
                       "moe_reduce: n_tokens %lld, hidden %d, top_k %d; hidden must be a multiple of 8",
                       (long long)args->n_tokens, args->hidden, args->top_k);
    if (args->n_tokens == 0)
        return MB_OK;
    const int32_t columns_per_cta = THREADS * COLUMNS_PER_THREAD;
    const int64_t n_ctas = args->n_tokens * ((args->hidden + columns_per_cta - 1) / columns_per_cta);
    if (n_ctas > INT32_MAX)
        return mb_fail(MB_ERR_ARGUMENT, "moe_reduce: n_tokens %lld is too large", (long long)args->n_tokens);
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3((unsigned)n_ctas), THREADS, 0, stream);
    cudaError_t error = cudaLaunchKernelEx(&config, reduce, *args);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_reduce: launch failed: %s", cudaGetErrorString(error));
    return MB_OK;
}
