/*
 * router_whole.cuh - router GEMM of bf16 by bf16 where all of a CTA's x and weight fit into shared memory:
 * everything is asked for at once, the weight before the wait for the kernel in front.
 *
 *   CTA    `tokens` x `experts` outputs, 8 warps; warp w has the runs w, w + 8, ... of H
 *   run    its columns of x and of the weight by cp.async, 128-byte swizzle; ldmatrix, and 4 mma for each
 *          16 x 8 outputs; the sums take the place of what was read
 *   end    for each output a thread adds the runs' sums, in order
 *
 * The order of a sum is that of router_gemm_sm90.cu. (front/block_front_sm90.cu multiplies by the same code.)
 */
#ifndef MB_OPS_MOE_ROUTER_WHOLE_CUH
#define MB_OPS_MOE_ROUTER_WHOLE_CUH

#include "ops/hopper/cp_async.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/memory.cuh"
#include "ops/hopper/mma.cuh"
#include "ops/moe/plain/router_parts.cuh"

#include "moebius/ops.h"

enum { WHOLE_SHARED_BYTES = 227 << 10 }; /* of a CTA, at most */

typedef struct router_params {
    const void *x, *weight; /* weight: [E, H], or the parts [W, E, pitch] in bf16 */
    const float *bias;
    float *logits;
    int32_t n_tokens, hidden, n_experts;
    int32_t pitch; /* elements from row to row of the parts */
} router_params;

template <int tokens, int experts> struct whole_map {
    static constexpr int THREADS = 256, WARPS = THREADS / 32, RUN = 64;
    static constexpr int RUN_BYTES = (tokens + experts) * 128;
    static constexpr int PITCH = experts == 8 ? 8 : experts + 8; /* of the sums: rows in different banks */
    static_assert(tokens % 16 == 0 && experts % 8 == 0 && tokens * PITCH * 4 <= RUN_BYTES, "a run's sums");
};

/* The columns of this warp's runs, of up to `rows` rows. What lies behind column H is 0; rows that are not
 * there are left alone, since a row of mma's operands touches its own sums only. */
template <int rows, int run_bytes>
static __device__ __forceinline__ void copy_runs(const __nv_bfloat16 *from, int32_t hidden, int32_t n_rows,
                                                 uint32_t to) {
    const int warp = threadIdx.x / 32, row0 = threadIdx.x % 32 / 8, chunk = threadIdx.x % 8;
    const int32_t n_runs = (hidden + 63) / 64, n_warps = blockDim.x / 32;
    for (int32_t run = warp; run < n_runs; run += n_warps) {
        const int32_t column = run * 64 + chunk * 8, inside = column < hidden;
        const __nv_bfloat16 *source = from + (inside ? column : 0) + (int64_t)row0 * hidden;
#pragma unroll
        for (int row = 0; row < rows; row += 4)
            if (row0 + row < n_rows)
                mb_cp_async_16(to + run * run_bytes + chunk_offset(row0 + row, chunk),
                               source + (int64_t)row * hidden, inside ? 16 : 0);
    }
}

/* The sums of this warp's runs, in their place. */
template <int tokens, int experts>
static __device__ __forceinline__ void multiply_runs(uint32_t runs, unsigned char *whole, int32_t n_runs) {
    using map = whole_map<tokens, experts>;
    constexpr int ROWS = tokens / 16, BLOCKS = experts / 8, STEPS_OF_RUN = map::RUN / 16;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int32_t run = warp; run < n_runs; run += map::WARPS) {
        const uint32_t at = runs + run * map::RUN_BYTES;
        uint32_t a[STEPS_OF_RUN][ROWS][4], b[BLOCKS][2][4]; /* b: of two steps each */
#pragma unroll
        for (int step = 0; step < STEPS_OF_RUN; step++)
#pragma unroll
            for (int m = 0; m < ROWS; m++)
                mb_load_matrix_x4(a[step][m], at + chunk_offset(16 * m + lane % 16, step * 2 + lane / 16));
#pragma unroll
        for (int block = 0; block < BLOCKS; block++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                mb_load_matrix_x4(b[block][half],
                                  at + tokens * 128 +
                                      chunk_offset(block * 8 + lane % 8, half * 4 + lane / 8));
        float sum[ROWS][BLOCKS][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS_OF_RUN; step++)
#pragma unroll
            for (int m = 0; m < ROWS; m++)
#pragma unroll
                for (int block = 0; block < BLOCKS; block++)
                    mb_mma_bf16(sum[m][block], a[step][m], b[block][step / 2][step % 2 * 2],
                                b[block][step / 2][step % 2 * 2 + 1]);
        __syncwarp(); /* all lanes have read the run */
        float *const sums = (float *)(whole + run * map::RUN_BYTES) + lane / 4 * map::PITCH + lane % 4 * 2;
#pragma unroll
        for (int m = 0; m < ROWS; m++)
#pragma unroll
            for (int block = 0; block < BLOCKS; block++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    *(float2 *)(sums + (16 * m + 8 * i) * map::PITCH + 8 * block) =
                        make_float2(sum[m][block][2 * i], sum[m][block][2 * i + 1]);
    }
}

/* grid: (tiles of experts, tiles of tokens) */
template <int tokens, int experts>
static __global__ void __launch_bounds__(whole_map<tokens, experts>::THREADS)
    router_gemm_whole(const __grid_constant__ router_params p) {
    using map = whole_map<tokens, experts>;
    extern __shared__ __align__(1024) unsigned char whole[];
    const int32_t expert0 = blockIdx.x * experts, token0 = blockIdx.y * tokens;
    const int32_t n_runs = (p.hidden + map::RUN - 1) / map::RUN;
    const uint32_t runs = mb_shared_address(whole);

    mb_grid_launch_dependents();
    copy_runs<experts, map::RUN_BYTES>((const __nv_bfloat16 *)p.weight + (int64_t)expert0 * p.hidden,
                                       p.hidden, p.n_experts - expert0, runs + tokens * 128);
    mb_grid_wait(); /* the weight is nobody's output; x may be */
    copy_runs<tokens, map::RUN_BYTES>((const __nv_bfloat16 *)p.x + (int64_t)token0 * p.hidden, p.hidden,
                                      p.n_tokens - token0, runs);
    mb_cp_async_commit();
    mb_cp_async_wait<0>();
    __syncwarp();
    multiply_runs<tokens, experts>(runs, whole, n_runs);
    __syncthreads();
    for (int i = threadIdx.x; i < tokens * experts; i += map::THREADS) {
        const int32_t token = token0 + i / experts, expert = expert0 + i % experts;
        if (token >= p.n_tokens || expert >= p.n_experts)
            continue;
        const unsigned char *from = whole + (i / experts * map::PITCH + i % experts) * 4;
        float total = 0;
#pragma unroll 16
        for (int32_t run = 0; run < n_runs; run++)
            total += *(const float *)(from + run * map::RUN_BYTES);
        p.logits[(int64_t)token * p.n_experts + expert] = p.bias ? total + p.bias[expert] : total;
    }
}

template <int tokens, int experts> static inline int whole_bytes(int32_t hidden) {
    using map = whole_map<tokens, experts>;
    return (hidden + map::RUN - 1) / map::RUN * map::RUN_BYTES;
}

template <int tokens, int experts>
static cudaError_t launch_whole_tiles(const router_params *p, mb_stream stream) {
    const int shared_bytes = whole_bytes<tokens, experts>(p->hidden);
    const auto kernel = router_gemm_whole<tokens, experts>;
    /* A constant: another thread may launch the same kernel for another hidden. */
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, WHOLE_SHARED_BYTES);
    if (error != cudaSuccess)
        return error;
    const dim3 grid((unsigned)((p->n_experts + experts - 1) / experts),
                    (unsigned)((p->n_tokens + tokens - 1) / tokens));
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, grid, whole_map<tokens, experts>::THREADS, (size_t)shared_bytes,
                     stream);
    return cudaLaunchKernelEx(&config, kernel, *p);
}

#endif
