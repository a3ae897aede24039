/*
 * router_whole.cuh - router GEMM of bf16 by bf16 where all of a CTA's x and weight fit into shared memory:
 * everything is asked for at once, the weight before the wait for the kernel in front.
 *
 *   CTA    `tokens` x `experts` outputs, 8 warps; warp w has the runs w, w + 8, ... of H
 *   run    its columns of x and of the weight by cp.async, 128-byte swizzle; ldmatrix, and 4 mma for each
 *          16 x 8 outputs; the sums take the place of what was read
 *   end    for each output a thread adds the runs' sums, in order
 *
 * The order of a sum is that of router_gemm_sm90.cu.
 */
#ifndef MB_OPS_MOE_ROUTER_WHOLE_CUH
#define MB_OPS_MOE_ROUTER_WHOLE_CUH

#include "ops/common/element.cuh"
#include "ops/common/packed.cuh"
#include "ops/hopper/cp_async.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/memory.cuh"
#include "ops/hopper/mma.cuh"
#include "ops/moe/plain/router_parts.cuh"
#include "ops/moe/to_fp8.cuh"

#include "moebius/ops.h"

typedef struct router_params {
    const void *x, *weight; /* weight: [E, H], or the parts [W, E, pitch] in bf16 */
    const float *bias;
    float *logits;
    int32_t n_tokens, hidden, n_experts;
    int32_t pitch; /* elements from row to row of the parts */
    /* With a norm in front, in router_gemm_whole: x is what goes into it. */
    const void *norm_weight; /* [H] bf16 */
    void *normed;            /* [T, H] bf16 */
    void *out8;              /* [T, H] the same in e4m3, and its scales; or NULL */
    float *out8_scale;
    float eps;
    int32_t row_warps; /* warps that share a row: a power of two */
} router_params;

template <int tokens, int experts> struct whole_map {
    static constexpr int THREADS = 256, WARPS = THREADS / 32, RUN = 64;
    static constexpr int RUN_BYTES = (tokens + experts) * 128;
    static constexpr int PITCH = experts == 8 ? 8 : experts + 8; /* of the sums: rows in different banks */
    static_assert(tokens % 16 == 0 && experts % 8 == 0 && tokens * PITCH * 4 <= RUN_BYTES, "a run's sums");
};

/* The columns of this warp's runs, of up to `rows` rows. What lies behind column H is 0; rows that are not there
 * are left alone, since a row of mma's operands touches its own sums only. */
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

/* The norm in front of up to a CTA's 8 rows: every CTA norms all of them, with the bits of ops/norm/norm_sm90.cu. The
 * warps of a row each add up all of its squares and norm a part of its pieces of 256 columns. One CTA for each piece
 * stores it for the experts. */
enum { NORM_TOKENS = 8 };

template <int n_pieces>
static __device__ __forceinline__ void load_norm_weight(const router_params *p, uint4 (&weight)[n_pieces]) {
    const int lane = threadIdx.x % 32, last = p->row_warps - 1, part = threadIdx.x / 32 & last,
              n = p->hidden / 8;
#pragma unroll
    for (int i = 0; i < n_pieces; i++)
        if ((i & last) == part && lane + 32 * i < n)
            weight[i] = ((const uint4 *)p->norm_weight)[lane + 32 * i];
}

template <int n_pieces, int run_bytes>
static __device__ __forceinline__ void norm_rows(const router_params *p, const uint4 (&weight)[n_pieces],
                                                 uint32_t to) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, last = p->row_warps - 1, part = warp & last;
    const int n = p->hidden / 8, row = warp >> __popc(last), n_chunks = (p->hidden + 63) / 64 * 8;
    if (row >= p->n_tokens)
        return;
    const uint4 *from = (const uint4 *)p->x + (int64_t)row * n;
    uint4 packed[n_pieces];
#pragma unroll
    for (int i = 0; i < n_pieces; i++)
        packed[i] = lane + 32 * i < n ? from[lane + 32 * i] : make_uint4(0, 0, 0, 0);
    float sums[8] = {};
#pragma unroll
    for (int i = 0; i < n_pieces; i++) {
        float v[8];
        mb_unpack<MB_BF16>(packed[i], v);
#pragma unroll
        for (int e = 0; e < 8; e++)
            sums[e] = fmaf(v[e], v[e], sums[e]);
    }
    const float of_four = mb_four_lanes_sum(sums);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        sum += __shfl_sync(0xffffffff, of_four, 4 * i);
    const float scale = 1.0f / sqrtf(sum / (float)p->hidden + p->eps);
#pragma unroll
    for (int i = 0; i < n_pieces; i++) {
        if ((i & last) != part)
            continue;
        const int at = lane + 32 * i;
        int owner = i;
        while (owner >= (int)gridDim.x)
            owner -= (int)gridDim.x;
        const int is_mine = owner == (int)blockIdx.x;
        float v[8], w[8];
        uint4 normed = make_uint4(0, 0, 0, 0); /* behind the end of H */
        if (at < n) {
            mb_unpack<MB_BF16>(packed[i], v);
            mb_unpack<MB_BF16>(weight[i], w);
#pragma unroll
            for (int e = 0; e < 8; e++)
                v[e] = mb_element_round(MB_BF16, v[e] * scale) * w[e];
            normed = mb_pack<MB_BF16>(v);
        }
        if (at < n_chunks)
            mb_store_shared_16(to + at / 8 * run_bytes + chunk_offset(row, at % 8), normed);
        if (is_mine && at < n)
            ((uint4 *)p->normed)[(int64_t)row * n + at] = normed;
        if (is_mine && p->out8) {
            mb_unpack<MB_BF16>(normed, v);
            const float largest = largest_of_unit(v), unit_scale = scale_of_unit(largest);
            if (at < n)
                ((uint2 *)p->out8)[(int64_t)row * n + at] =
                    divide_to_e4m3(v, unit_scale, is_tame(unit_scale, largest));
            if (at < n && lane % 16 == 0)
                p->out8_scale[row * ((n + 15) / 16) + at / 16] = unit_scale;
        }
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

/* grid: (tiles of experts, tiles of tokens). norm_pieces: 0, or pieces of 256 columns that the norm in front has. */
template <int tokens, int experts, int norm_pieces>
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
    if constexpr (norm_pieces > 0) {
        mb_cp_async_commit();
        uint4 norm_weight[norm_pieces];
        load_norm_weight(&p, norm_weight);
        mb_grid_wait();
        norm_rows<norm_pieces, map::RUN_BYTES>(&p, norm_weight, runs);
        mb_cp_async_wait<0>();
        __syncthreads();
    } else {
        mb_grid_wait(); /* the weight is nobody's output; x may be */
        copy_runs<tokens, map::RUN_BYTES>((const __nv_bfloat16 *)p.x + (int64_t)token0 * p.hidden, p.hidden,
                                          p.n_tokens - token0, runs);
        mb_cp_async_commit();
        mb_cp_async_wait<0>();
        __syncwarp();
    }
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

template <int tokens, int experts, int norm_pieces = 0>
static cudaError_t launch_whole_tiles(const router_params *p, mb_stream stream) {
    const int shared_bytes = whole_bytes<tokens, experts>(p->hidden);
    const auto kernel = router_gemm_whole<tokens, experts, norm_pieces>;
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
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
