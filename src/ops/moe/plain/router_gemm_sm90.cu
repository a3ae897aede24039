/*
 * router_gemm_sm90.cu - logits = x weight^T in fp32 quality on the tensor cores.
 *
 * Factors are split into bf16 parts that add up to them: bf16 is one part, fp16 two, fp32 three (24 bits).
 * The products of parts i and j with i + j <= 2 are summed; what is left out is below 2^-24 of the product.
 *
 * The order of every output's sum is given by H alone: runs of 64 columns, each a chain of mma (16 columns at
 * a time, smallest parts first), then the runs' sums one after another, then the bias. All kernels keep to
 * it, so a token's logits have the same bits whatever T is:
 *
 *   few tokens    cluster of 8 CTAs = 16 tokens x 8 experts; a warp splits and multiplies a run of H; the
 *                 runs' sums go to the CTA that owns the token, which adds them up in order
 *   many tokens   the weight is split once into the workspace; CTA = 128 tokens x 128 (or 32) experts in
 *                 stages of 64 columns by cp.async, ldmatrix, mma
 *   bf16 by bf16, up to 1024 tokens and H to which shared memory reaches: router_whole.cuh
 */
#include "ops/common/workspace.h"
#include "ops/hopper/cluster.cuh"
#include "ops/hopper/cp_async.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/memory.cuh"
#include "ops/hopper/mma.cuh"
#include "ops/moe/moe_sm90.h"
#include "ops/moe/plain/router_whole.cuh"

enum {
    RUN = 64,   /* columns of one chain */
    MMA_K = 16, /* columns of one mma */
    STEPS = RUN / MMA_K,
    MAX_ORDER = 2, /* products of parts i + j up to this */
    SMALL_TOKENS = 16,
    SMALL_EXPERTS = 8,
    SMALL_CLUSTER = 8,
    SMALL_MAX_WARPS = 8,
    OWNED_TOKENS = SMALL_TOKENS / SMALL_CLUSTER, /* whose runs a CTA of the cluster adds up */
    OWNED = OWNED_TOKENS * SMALL_EXPERTS,
    LARGE_TOKENS = 128,
    LARGE_THREADS = 256,
    LARGE_SHARED_BYTES = 216 << 10, /* at most, for the stages */
    WHOLE_TOKENS = 1024,            /* up to here it is quicker */
    SPLIT_THREADS = 256,
    MAX_HIDDEN = 16384,
};

/* ---- few tokens ---- */

/* grid: (8 CTAs for every 8 experts, token tiles); shared: [runs][OWNED] sums. */
template <class x_type, class w_type>
static __global__ void __launch_bounds__(32 * SMALL_MAX_WARPS)
    router_gemm_small(const __grid_constant__ router_params p) {
    constexpr int X = parts_of<x_type>, W = parts_of<w_type>;
    extern __shared__ __align__(16) float sums[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    const int row = lane / 4, pair = lane % 4 * 2;
    const uint32_t rank = mb_cluster_rank();
    const int32_t expert0 = blockIdx.x / SMALL_CLUSTER * SMALL_EXPERTS;
    const int32_t token0 = blockIdx.y * SMALL_TOKENS;
    const int32_t n_runs = (p.hidden + RUN - 1) / RUN;
    const w_type *weight = (const w_type *)p.weight + (int64_t)(expert0 + row) * p.hidden + pair;
    const x_type *x = (const x_type *)p.x + (int64_t)(token0 + row) * p.hidden + pair;
    const int has_expert = expert0 + row < p.n_experts;
    const int has_token[2] = {token0 + row < p.n_tokens, token0 + row + 8 < p.n_tokens};
    const float2 zero = {0, 0};

    mb_cluster_arrive_relaxed(); /* "I have started": until then nobody may write this CTA's shared memory */
    mb_grid_launch_dependents();
    for (int32_t run = rank * n_warps + warp, first = 1; run < n_runs;
         run += SMALL_CLUSTER * n_warps, first = 0) {
        float2 b[STEPS][2], a[STEPS][4];
#pragma unroll
        for (int i = 0; i < 2 * STEPS; i++) {
            const int32_t column = run * RUN + i * 8;
            b[i / 2][i % 2] = has_expert && column + pair < p.hidden ? load_pair(weight + column) : zero;
        }
        if (first)
            mb_grid_wait(); /* the weight is nobody's output; x may be */
#pragma unroll
        for (int i = 0; i < 2 * STEPS; i++) {
            const int32_t column = run * RUN + i * 8;
            const int inside = column + pair < p.hidden;
            a[i / 2][i % 2 * 2] = inside && has_token[0] ? load_pair(x + column) : zero;
            a[i / 2][i % 2 * 2 + 1] =
                inside && has_token[1] ? load_pair(x + (int64_t)8 * p.hidden + column) : zero;
        }
        float sum[4] = {0, 0, 0, 0};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            uint32_t b_parts[2][W], a_parts[X][4];
            split<W>(b[step][0], b_parts[0]);
            split<W>(b[step][1], b_parts[1]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t parts[X];
                split<X>(a[step][i], parts);
#pragma unroll
                for (int part = 0; part < X; part++)
                    a_parts[part][i] = parts[part];
            }
#pragma unroll
            for (int order = MAX_ORDER; order >= 0; order--)
#pragma unroll
                for (int part = 0; part < X; part++)
                    if (order >= part && order - part < W)
                        mb_mma_bf16(sum, a_parts[part], b_parts[0][order - part], b_parts[1][order - part]);
        }
        if (first)
            mb_cluster_wait();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int mine = row + 8 * i;
            if (has_token[i])
                mb_store_cluster_8(sums + run * OWNED + mine % OWNED_TOKENS * SMALL_EXPERTS + pair,
                                   mine / OWNED_TOKENS, sum[2 * i], sum[2 * i + 1]);
        }
    }
    if ((int32_t)(rank * n_warps + warp) >= n_runs) { /* no run was this warp's */
        mb_grid_wait();
        mb_cluster_wait();
    }
    mb_cluster_sync();

    for (int i = threadIdx.x; i < OWNED; i += blockDim.x) {
        const int32_t expert = expert0 + i % SMALL_EXPERTS;
        const int32_t token = token0 + (int32_t)rank * OWNED_TOKENS + i / SMALL_EXPERTS;
        if (expert >= p.n_experts || token >= p.n_tokens)
            continue;
        float total = 0;
#pragma unroll 16
        for (int32_t run = 0; run < n_runs; run++)
            total += sums[run * OWNED + i];
        p.logits[(int64_t)token * p.n_experts + expert] = p.bias ? total + p.bias[expert] : total;
    }
}

/* ---- many tokens ---- */

/* parts[part][expert][column], zeros behind column H. */
template <class w_type> static __global__ void split_weight(router_params p, uint32_t *parts) {
    constexpr int W = parts_of<w_type>;
    mb_grid_launch_dependents();
    mb_grid_wait();
    const int64_t n = (int64_t)p.n_experts * p.pitch,
                  at = (blockIdx.x * (int64_t)SPLIT_THREADS + threadIdx.x) * 2;
    if (at >= n)
        return;
    const int32_t expert = (int32_t)(at / p.pitch), column = (int32_t)(at % p.pitch);
    float2 value = {0, 0};
    if (column < p.hidden)
        value = load_pair((const w_type *)p.weight + (int64_t)expert * p.hidden + column);
    uint32_t out[W];
    split<W>(value, out);
#pragma unroll
    for (int part = 0; part < W; part++)
        parts[(part * n + at) / 2] = out[part];
}

/* The parts of 16 rows and 16 columns of x, as mma's A. panels: [H of the stage in 128 bytes][rows][128]. */
template <class x_type>
static __device__ __forceinline__ void load_a(uint32_t (&parts)[parts_of<x_type>][4], uint32_t panels,
                                              int row0, int step) {
    constexpr int X = parts_of<x_type>;
    const int lane = threadIdx.x % 32;
    float2 values[4];
    if constexpr (sizeof(x_type) == 4) {
        const uint32_t panel = panels + step / 2 * LARGE_TOKENS * 128;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = row0 + lane / 4 + i % 2 * 8, column = step % 2 * MMA_K + lane % 4 * 2 + i / 2 * 8;
            const uint32_t from = panel + chunk_offset(row, column / 4) + column % 4 * 4;
            values[i] = mb_load_shared_8(from);
        }
    } else {
        uint32_t raw[4];
        mb_load_matrix_x4(raw, panels + chunk_offset(row0 + lane % 16, step * 2 + lane / 16));
        if constexpr (X == 1) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                parts[0][i] = raw[i];
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++)
                values[i] = __half22float2(*(const __half2 *)&raw[i]);
        }
    }
    if constexpr (X > 1) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t of_one[X];
            split<X>(values[i], of_one);
#pragma unroll
            for (int part = 0; part < X; part++)
                parts[part][i] = of_one[part];
        }
    }
}

template <class x_type, int W, int experts> struct large_map {
    static constexpr int X_PANELS = sizeof(x_type) * RUN / 128;
    static constexpr int X_BYTES = X_PANELS * LARGE_TOKENS * 128, W_BYTES = W * experts * 128;
    static constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
    static constexpr int STAGES = LARGE_SHARED_BYTES / STAGE_BYTES < 4 ? LARGE_SHARED_BYTES / STAGE_BYTES : 4;
    static constexpr int BYTES = STAGES * STAGE_BYTES;
};

/* One run's columns of x and of the weight's parts; what lies outside of the matrices is 0. */
template <class x_type, int W, int experts>
static __device__ __forceinline__ void copy_run(const router_params *p, uint32_t stage, int32_t run,
                                                int32_t token0, int32_t expert0) {
    using map = large_map<x_type, W, experts>;
    enum { ROWS = LARGE_THREADS / 8, ELEMENTS = 16 / sizeof(x_type) };
    const int row0 = threadIdx.x / 8, chunk = threadIdx.x % 8;
    const uint32_t to = stage + chunk_offset(row0, chunk); /* ROWS is a multiple of 8 */
    const x_type *x =
        (const x_type *)p->x + (int64_t)(token0 + row0) * p->hidden + run * RUN + chunk * ELEMENTS;
    const int64_t x_step = (int64_t)ROWS * p->hidden;
#pragma unroll
    for (int row = 0; row < LARGE_TOKENS; row += ROWS) {
        const int has_token = token0 + row0 + row < p->n_tokens;
#pragma unroll
        for (int panel = 0; panel < map::X_PANELS; panel++) {
            const int valid = has_token && run * RUN + (panel * 8 + chunk) * ELEMENTS < p->hidden;
            mb_cp_async_16(to + (panel * LARGE_TOKENS + row) * 128,
                           valid ? (const void *)(x + panel * 8 * ELEMENTS) : p->x, valid ? 16 : 0);
        }
        x += x_step;
    }
    const int inside = run * RUN + chunk * 8 < p->pitch;
#pragma unroll
    for (int part = 0; part < W; part++) {
        const __nv_bfloat16 *w = (const __nv_bfloat16 *)p->weight +
                                 ((int64_t)part * p->n_experts + expert0 + row0) * p->pitch + run * RUN +
                                 chunk * 8;
#pragma unroll
        for (int row = 0; row < experts; row += ROWS) {
            const int valid = inside && expert0 + row0 + row < p->n_experts;
            mb_cp_async_16(to + map::X_BYTES + (part * experts + row) * 128,
                           valid ? (const void *)w : p->weight, valid ? 16 : 0);
            w += (int64_t)ROWS * p->pitch;
        }
    }
}

template <class x_type, int W, int experts>
static __global__ void __launch_bounds__(LARGE_THREADS)
    router_gemm_large(const __grid_constant__ router_params p) {
    using map = large_map<x_type, W, experts>;
    constexpr int X = parts_of<x_type>;
    /* Warps side by side along the experts. Four load the fewest bytes from shared memory, two split an x of
     * several parts less often. */
    constexpr int WARPS_N = experts == 128 && X == 1 ? 4 : 2, WARPS_M = LARGE_THREADS / 32 / WARPS_N;
    constexpr int BLOCKS = experts / WARPS_N / 8,
                  ROWS = LARGE_TOKENS / WARPS_M / 16; /* a warp's, of 8 and 16 */
    extern __shared__ __align__(1024) unsigned char shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row0 = warp / WARPS_N * ROWS * 16, column0 = warp % WARPS_N * BLOCKS * 8;
    const int32_t expert_tiles = (p.n_experts + experts - 1) / experts;
    const int32_t token0 = blockIdx.x / expert_tiles * LARGE_TOKENS,
                  expert0 = blockIdx.x % expert_tiles * experts;
    const int32_t n_runs = (p.hidden + RUN - 1) / RUN;
    const uint32_t stages = mb_shared_address(shared);
    mb_grid_launch_dependents();
    mb_grid_wait();

    float total[ROWS][BLOCKS][4] = {};
#pragma unroll
    for (int i = 0; i < map::STAGES - 1; i++) {
        if (i < n_runs)
            copy_run<x_type, W, experts>(&p, stages + i * map::STAGE_BYTES, i, token0, expert0);
        mb_cp_async_commit();
    }
    uint32_t read = 0, write = map::STAGES - 1;
    for (int32_t run = 0; run < n_runs; run++) {
        mb_cp_async_wait<map::STAGES - 2>();
        __syncthreads(); /* this run has landed for all, and all are done with the run before */
        if (run + map::STAGES - 1 < n_runs)
            copy_run<x_type, W, experts>(&p, stages + write * map::STAGE_BYTES, run + map::STAGES - 1, token0,
                                         expert0);
        mb_cp_async_commit();
        const uint32_t stage = stages + read * map::STAGE_BYTES;
        float sum[ROWS][BLOCKS][4] = {};
#pragma unroll(X == 3 ? 2 : STEPS) /* as many as the registers hold */
        for (int step = 0; step < STEPS; step++) {
            uint32_t a[ROWS][X][4];
#pragma unroll
            for (int m = 0; m < ROWS; m++)
                load_a<x_type>(a[m], stage, row0 + m * 16, step);
#pragma unroll
            for (int block = 0; block < BLOCKS; block += 2) {
                uint32_t b[W][4]; /* blocks `block` and + 1: two registers each */
#pragma unroll
                for (int part = 0; part < W; part++)
                    mb_load_matrix_x4(b[part],
                                      stage + map::X_BYTES + part * experts * 128 +
                                          chunk_offset(column0 + block * 8 + lane / 16 * 8 + lane % 8,
                                                       step * 2 + lane / 8 % 2));
#pragma unroll
                for (int order = MAX_ORDER; order >= 0; order--)
#pragma unroll
                    for (int part = 0; part < X; part++)
                        if (order >= part && order - part < W)
#pragma unroll
                            for (int i = 0; i < 2 * ROWS; i++)
                                mb_mma_bf16(sum[i / 2][block + i % 2], a[i / 2][part],
                                            b[order - part][i % 2 * 2], b[order - part][i % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS * BLOCKS * 4; i++)
            total[i / (4 * BLOCKS)][i / 4 % BLOCKS][i % 4] += sum[i / (4 * BLOCKS)][i / 4 % BLOCKS][i % 4];
        read = read + 1 == map::STAGES ? 0 : read + 1;
        write = write + 1 == map::STAGES ? 0 : write + 1;
    }

#pragma unroll
    for (int i = 0; i < ROWS * BLOCKS * 4; i++) {
        const int m = i / (4 * BLOCKS), block = i / 4 % BLOCKS, n = i % 4;
        const int32_t token = token0 + row0 + m * 16 + n / 2 * 8 + lane / 4;
        const int32_t expert = expert0 + column0 + block * 8 + lane % 4 * 2 + n % 2;
        if (token < p.n_tokens && expert < p.n_experts)
            p.logits[(int64_t)token * p.n_experts + expert] =
                p.bias ? total[m][block][n] + p.bias[expert] : total[m][block][n];
    }
}

/* ---- host ---- */

/* From here on the kernel for many tokens is quicker. */
enum { LARGE_FROM = 512 };

static int is_large(const mb_moe_router_gemm_args *args) {
    return args->n_tokens >= LARGE_FROM;
}

static int n_parts(mb_dtype dtype) {
    return dtype == MB_BF16 ? 1 : dtype == MB_F16 ? 2 : 3;
}

static int is_float(mb_dtype dtype) {
    return dtype == MB_F32 || dtype == MB_BF16 || dtype == MB_F16;
}

static int32_t pitch_of(const mb_moe_router_gemm_args *args) {
    return (args->hidden + 7) / 8 * 8;
}

static mb_status check_shape(const mb_moe_router_gemm_args *args) {
    if (!is_float(args->dtype))
        return mb_fail(MB_ERR_ARGUMENT, "moe_router_gemm: dtype %s is not fp32, bf16 or fp16",
                       mb_dtype_name(args->dtype));
    if (!is_float(args->weight_dtype))
        return mb_fail(MB_ERR_ARGUMENT, "moe_router_gemm: weight_dtype %s is not fp32, bf16 or fp16",
                       mb_dtype_name(args->weight_dtype));
    const int step = args->dtype == MB_F32 && args->weight_dtype == MB_F32 ? 4 : 8;
    if (args->hidden < step || args->hidden % step != 0 || args->hidden > MAX_HIDDEN)
        return mb_fail(MB_ERR_ARGUMENT, "moe_router_gemm: hidden %d must be a multiple of %d, at most %d",
                       args->hidden, step, MAX_HIDDEN);
    if (args->n_experts < 1 || args->n_experts > 1024)
        return mb_fail(MB_ERR_ARGUMENT, "moe_router_gemm: n_experts %d is not in 1 .. 1024", args->n_experts);
    if (args->n_tokens < 0 || args->n_tokens > INT32_MAX / 2)
        return mb_fail(MB_ERR_ARGUMENT, "moe_router_gemm: n_tokens %lld is not in 0 .. 2^30",
                       (long long)args->n_tokens);
    return MB_OK;
}

static size_t workspace_of(const mb_moe_router_gemm_args *args) {
    if (!is_large(args) || args->weight_dtype == MB_BF16)
        return 0;
    return (size_t)n_parts(args->weight_dtype) * (size_t)args->n_experts * (size_t)pitch_of(args) * 2;
}

extern "C" mb_status mb_moe_router_gemm_sm90_workspace(const mb_moe_router_gemm_args *most, size_t *bytes) {
    MB_TRY(check_shape(most));
    *bytes = workspace_of(most);
    return MB_OK;
}

static mb_status check_pointers(const mb_moe_router_gemm_args *args) {
    const struct {
        const char *name;
        const void *pointer;
        int needed;
        uintptr_t alignment;
    } all[] = {{"x", args->x, 1, 16},
               {"weight", args->weight, 1, 16},
               {"logits", args->logits, 1, sizeof(float)},
               {"bias", args->bias, 0, sizeof(float)}};
    for (const auto &one : all)
        if ((one.needed && !one.pointer) || (uintptr_t)one.pointer % one.alignment != 0)
            return mb_fail(MB_ERR_ARGUMENT,
                           one.pointer ? "moe_router_gemm: %s is not %d-byte aligned"
                                       : "moe_router_gemm: %s is NULL",
                           one.name, (int)one.alignment);
    return MB_OK;
}

template <class x_type, class w_type>
static cudaError_t launch_small(const router_params *p, mb_stream stream) {
    const int32_t n_runs = (p->hidden + RUN - 1) / RUN;
    const size_t shared_bytes = sizeof(float) * (size_t)n_runs * OWNED;
    int32_t n_warps = (n_runs + SMALL_CLUSTER - 1) / SMALL_CLUSTER;
    n_warps = n_warps < SMALL_MAX_WARPS ? n_warps : SMALL_MAX_WARPS;
    const dim3 grid((unsigned)((p->n_experts + SMALL_EXPERTS - 1) / SMALL_EXPERTS * SMALL_CLUSTER),
                    (unsigned)((p->n_tokens + SMALL_TOKENS - 1) / SMALL_TOKENS));
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, grid, 32 * (unsigned)n_warps, shared_bytes, stream);
    mb_launch_clusters(&config, SMALL_CLUSTER);
    return cudaLaunchKernelEx(&config, router_gemm_small<x_type, w_type>, *p);
}

template <class x_type, int W, int experts>
static cudaError_t launch_tiles(const router_params *p, mb_stream stream) {
    constexpr int shared_bytes = large_map<x_type, W, experts>::BYTES;
    const auto kernel = router_gemm_large<x_type, W, experts>;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess)
        return error;
    const int64_t n_ctas =
        (int64_t)((p->n_tokens + LARGE_TOKENS - 1) / LARGE_TOKENS) * ((p->n_experts + experts - 1) / experts);
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3((unsigned)n_ctas), LARGE_THREADS, (size_t)shared_bytes,
                     stream);
    return cudaLaunchKernelEx(&config, kernel, *p);
}

template <class x_type, class w_type>
static cudaError_t launch_large(const router_params *p, void *workspace, mb_stream stream) {
    constexpr int W = parts_of<w_type>;
    router_params large = *p;
    if (W > 1) {
        const int64_t n_pairs = (int64_t)p->n_experts * p->pitch / 2;
        cudaLaunchConfig_t config;
        cudaLaunchAttribute attributes[2];
        mb_launch_config(&config, attributes, dim3((unsigned)((n_pairs + SPLIT_THREADS - 1) / SPLIT_THREADS)),
                         SPLIT_THREADS, 0, stream);
        cudaError_t error = cudaLaunchKernelEx(&config, split_weight<w_type>, *p, (uint32_t *)workspace);
        if (error != cudaSuccess)
            return error;
        large.weight = workspace;
    }
    /* Where 128 x 128 tiles would leave half of the SMs idle, tiles of 32 experts. */
    const int64_t tiles =
        (int64_t)((p->n_tokens + LARGE_TOKENS - 1) / LARGE_TOKENS) * ((p->n_experts + 127) / 128);
    return tiles <= mb_n_processors() / 2 ? launch_tiles<x_type, W, 32>(&large, stream)
                                          : launch_tiles<x_type, W, 128>(&large, stream);
}

/* bf16 by bf16. Of the tiles that fit, those that were the quickest. */
static int takes_whole(const mb_moe_router_gemm_args *args) {
    return args->dtype == MB_BF16 && args->weight_dtype == MB_BF16 && args->n_tokens <= WHOLE_TOKENS &&
           whole_bytes<16, 8>(args->hidden) <= WHOLE_SHARED_BYTES;
}
static cudaError_t launch_whole(const router_params *p, mb_stream stream) {
    const int is_wide = p->n_tokens > 256 && whole_bytes<32, 16>(p->hidden) <= WHOLE_SHARED_BYTES;
    return is_wide ? launch_whole_tiles<32, 16>(p, stream) : launch_whole_tiles<16, 8>(p, stream);
}

template <class x_type>
static cudaError_t launch(const router_params *p, mb_dtype weight_dtype, int large, void *workspace,
                          mb_stream stream) {
    switch (weight_dtype) {
    case MB_BF16:
        return large ? launch_large<x_type, __nv_bfloat16>(p, workspace, stream)
                     : launch_small<x_type, __nv_bfloat16>(p, stream);
    case MB_F16:
        return large ? launch_large<x_type, __half>(p, workspace, stream)
                     : launch_small<x_type, __half>(p, stream);
    default:
        return large ? launch_large<x_type, float>(p, workspace, stream)
                     : launch_small<x_type, float>(p, stream);
    }
}

extern "C" mb_status mb_moe_router_gemm_sm90(const mb_moe_router_gemm_args *args, void *workspace,
                                             size_t workspace_bytes, mb_stream stream) {
    MB_TRY(check_shape(args));
    if (args->n_tokens == 0)
        return MB_OK;
    MB_TRY(check_pointers(args));
    const size_t needed = workspace_of(args);
    MB_TRY(mb_workspace_check("moe_router_gemm", workspace, workspace_bytes, needed));
    if (needed && (uintptr_t)workspace % 256 != 0)
        return mb_fail(MB_ERR_ARGUMENT, "moe_router_gemm: workspace is not 256-byte aligned");

    router_params p;
    p.x = args->x;
    p.weight = args->weight;
    p.bias = (const float *)args->bias;
    p.logits = args->logits;
    p.n_tokens = (int32_t)args->n_tokens;
    p.hidden = args->hidden;
    p.n_experts = args->n_experts;
    p.pitch = pitch_of(args);
    const int large = is_large(args);
    const cudaError_t error =
        takes_whole(args)        ? launch_whole(&p, stream)
        : args->dtype == MB_BF16 ? launch<__nv_bfloat16>(&p, args->weight_dtype, large, workspace, stream)
        : args->dtype == MB_F16  ? launch<__half>(&p, args->weight_dtype, large, workspace, stream)
                                 : launch<float>(&p, args->weight_dtype, large, workspace, stream);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_router_gemm: launch failed: %s", cudaGetErrorString(error));
    return MB_OK;
}
