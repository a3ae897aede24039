/*
 * plan_sm90.cu - the stable counting sort of the T*K choices by expert, and the experts' kernel's list of
 * tiles.
 *
 * The choices are cut into one contiguous part per CTA, and that into one per warp. `place` counts each
 * warp's choices per expert, turns the counts into first rows (experts outside, then CTAs, then warps), and
 * walks its choices again to give each its row: a choice's place among the 32 of its step comes from
 * match_any, so no order ever depends on timing. With several CTAs `count` runs before and leaves each CTA's
 * counts; with one CTA it is not needed.
 */
#include "ops/hopper/launch.cuh"
#include "ops/moe/moe_sm90.h"

enum {
    MAX_THREADS = 1024,
    MAX_WARPS = MAX_THREADS / 32,
    MAX_EXPERTS = 1024, /* one thread each in the scan */
    MAX_CTAS = 128,
    ONE_CTA_CHOICES = 1024, /* up to here one CTA is quicker than two launches */
};

static const uint32_t EVERY_LANE = 0xffffffff;

typedef struct plan_params {
    mb_moe_plan_args plan;
    mb_moe_schedule schedule; /* tiles NULL: none wanted */
    int32_t *counts;          /* [n_ctas, n_local_experts], with more than one CTA */
    int32_t n_choices;
    int32_t choices_per_warp; /* a multiple of 32 */
} plan_params;

/* The local expert of a choice, or -1. */
static __device__ __forceinline__ int32_t local_expert(const plan_params *params, int32_t choice) {
    if (choice >= params->n_choices)
        return -1;
    int32_t expert = params->plan.ids[choice] - params->plan.first_expert;
    return expert >= 0 && expert < params->plan.n_local_experts ? expert : -1;
}

static __global__ void __launch_bounds__(MAX_THREADS) count(const __grid_constant__ plan_params params) {
    __shared__ int32_t counts[MAX_EXPERTS];
    mb_grid_launch_dependents();
    mb_grid_wait();
    for (int32_t e = threadIdx.x; e < params.plan.n_local_experts; e += blockDim.x)
        counts[e] = 0;
    __syncthreads();
    const int32_t choices_per_cta = params.choices_per_warp * (blockDim.x / 32);
    const int32_t first = blockIdx.x * choices_per_cta;
    for (int32_t i = threadIdx.x; i < choices_per_cta; i += blockDim.x) {
        int32_t expert = local_expert(&params, first + i);
        if (expert >= 0)
            atomicAdd(&counts[expert], 1);
    }
    __syncthreads();
    for (int32_t e = threadIdx.x; e < params.plan.n_local_experts; e += blockDim.x)
        params.counts[(int64_t)blockIdx.x * params.plan.n_local_experts + e] = counts[e];
}

/* The sum over the threads before this one; all threads of the CTA call it. */
static __device__ int32_t exclusive_scan(int32_t value, int32_t *warp_sums) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int32_t sum = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        int32_t left = __shfl_up_sync(EVERY_LANE, sum, distance);
        if (lane >= distance)
            sum += left;
    }
    if (lane == 31)
        warp_sums[warp] = sum;
    __syncthreads();
    int32_t before = 0;
    for (int w = 0; w < warp; w++)
        before += warp_sums[w];
    __syncthreads();
    return before + sum - value;
}

/* Cuts an expert's rows into tiles of nearly equal size. */
static __device__ void write_tiles(const mb_moe_schedule *schedule, int32_t expert, int32_t first_row,
                                   int32_t n_rows, int32_t n_tiles, int32_t first_tile) {
    if (n_tiles == 0)
        return;
    int32_t step = schedule->tile_step;
    int32_t rows_per_tile = ((n_rows + n_tiles - 1) / n_tiles + step - 1) / step * step;
    for (int32_t i = 0; i < n_tiles; i++) {
        int32_t begin = i * rows_per_tile;
        int32_t rest = n_rows - begin;
        mb_moe_token_tile tile = {expert, first_row + begin, max(0, min(rest, rows_per_tile)), 0};
        schedule->tiles[first_tile + i] = tile;
        schedule->ready[first_tile + i] = 0;
    }
}

static __global__ void __launch_bounds__(MAX_THREADS) place(const __grid_constant__ plan_params params) {
    extern __shared__ int32_t
        first_rows[]; /* [n_warps, n_local_experts]: counts, then the next row of each */
    __shared__ int32_t warp_sums[MAX_WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    const int32_t n_experts = params.plan.n_local_experts;
    const int32_t first = (blockIdx.x * n_warps + warp) * params.choices_per_warp;
    int32_t *mine = first_rows + warp * n_experts;
    mb_grid_launch_dependents();
    for (int32_t i = threadIdx.x; i < n_warps * n_experts; i += blockDim.x)
        first_rows[i] = 0;
    __syncthreads();
    mb_grid_wait();

    for (int32_t i = lane; i < params.choices_per_warp; i += 32) {
        int32_t expert = local_expert(&params, first + i);
        uint32_t same = __match_any_sync(EVERY_LANE, expert);
        if (expert >= 0 && lane == __ffs(same) - 1)
            mine[expert] += __popc(same);
        __syncwarp();
    }
    __syncthreads();

    /* Thread e: rows of expert e in the CTAs before this one, and in all. */
    const int32_t expert = threadIdx.x;
    int32_t n_before = 0, n_rows = 0;
    if (expert < n_experts) {
        if (gridDim.x == 1) {
            for (int w = 0; w < n_warps; w++)
                n_rows += first_rows[w * n_experts + expert];
        } else {
#pragma unroll 8
            for (int b = 0; b < gridDim.x; b++) {
                int32_t n = params.counts[(int64_t)b * n_experts + expert];
                n_before += b < blockIdx.x ? n : 0;
                n_rows += n;
            }
        }
    }
    const int32_t offset = exclusive_scan(n_rows, warp_sums);
    if (expert < n_experts) {
        int32_t next = offset + n_before;
        for (int w = 0; w < n_warps; w++) {
            int32_t n = first_rows[w * n_experts + expert];
            first_rows[w * n_experts + expert] = next;
            next += n;
        }
    }
    if (blockIdx.x == 0) {
        if (expert < n_experts) {
            params.plan.offsets[expert] = offset;
            if (expert == n_experts - 1)
                params.plan.offsets[n_experts] = offset + n_rows;
        }
        if (params.schedule.tiles) {
            int32_t n_tiles = (n_rows + params.schedule.tile_tokens - 1) / params.schedule.tile_tokens;
            int32_t first_tile = exclusive_scan(n_tiles, warp_sums);
            if (expert < n_experts)
                write_tiles(&params.schedule, expert, offset, n_rows, n_tiles, first_tile);
            if (expert == n_experts - 1) {
                *params.schedule.n_tiles = first_tile + n_tiles;
                *params.schedule.next_item = 0;
            }
        }
    }
    __syncthreads();

    for (int32_t i = lane; i < params.choices_per_warp; i += 32) {
        int32_t choice = first + i;
        int32_t e = local_expert(&params, choice);
        uint32_t same = __match_any_sync(EVERY_LANE, e);
        int32_t row = -1;
        if (e >= 0)
            row = mine[e] + __popc(same & ((1u << lane) - 1));
        __syncwarp();
        if (e >= 0) {
            params.plan.row_token[row] = choice / params.plan.top_k;
            if (lane == __ffs(same) - 1)
                mine[e] += __popc(same);
        }
        __syncwarp();
        if (choice < params.n_choices)
            params.plan.token_row[choice] = row;
    }
}

static int32_t n_plan_ctas(const mb_moe_plan_args *args) {
    int64_t n_choices = args->n_tokens * args->top_k;
    if (n_choices <= ONE_CTA_CHOICES)
        return 1;
    int64_t n_ctas = (n_choices + MAX_THREADS - 1) / MAX_THREADS;
    return n_ctas < MAX_CTAS ? (int32_t)n_ctas : MAX_CTAS;
}

extern "C" size_t mb_moe_plan_sm90_workspace(const mb_moe_plan_args *args) {
    int32_t n_ctas = n_plan_ctas(args);
    return n_ctas == 1 ? 0 : sizeof(int32_t) * (size_t)n_ctas * (size_t)args->n_local_experts;
}

extern "C" mb_status mb_moe_plan_sm90(const mb_moe_plan_args *args, const mb_moe_schedule *schedule,
                                      void *workspace, size_t workspace_bytes, mb_stream stream) {
    int64_t n_choices = args->n_tokens * args->top_k;
    if (args->n_tokens < 0 || args->top_k < 1 || n_choices > INT32_MAX / 2)
        return mb_fail(MB_ERR_ARGUMENT, "moe_plan: n_tokens %lld times top_k %d is not in 0 .. 2^30",
                       (long long)args->n_tokens, args->top_k);
    if (args->n_local_experts < 1 || args->n_local_experts > MAX_EXPERTS)
        return mb_fail(MB_ERR_UNSUPPORTED, "moe_plan: %d local experts; 1 .. %d are supported",
                       args->n_local_experts, MAX_EXPERTS);
    if (workspace_bytes < mb_moe_plan_sm90_workspace(args))
        return mb_fail(MB_ERR_CAPACITY, "moe_plan: workspace of %zu bytes, %zu are needed", workspace_bytes,
                       mb_moe_plan_sm90_workspace(args));

    const int32_t n_ctas = n_plan_ctas(args), n_experts = args->n_local_experts;
    int32_t n_threads = MAX_THREADS;
    if (n_ctas == 1) { /* a warp for every 32 choices, and a thread for every expert */
        int64_t wanted = n_choices > n_experts ? n_choices : n_experts;
        n_threads = wanted >= MAX_THREADS ? MAX_THREADS : (int32_t)(wanted + 31) / 32 * 32;
    }
    const int32_t n_warps = n_threads / 32;
    plan_params params = {};
    params.plan = *args;
    if (schedule)
        params.schedule = *schedule;
    params.counts = (int32_t *)workspace;
    params.n_choices = (int32_t)n_choices;
    params.choices_per_warp =
        (int32_t)((n_choices + 32 * n_ctas * n_warps - 1) / (32 * n_ctas * n_warps) * 32);

    const size_t shared_bytes = sizeof(int32_t) * (size_t)n_warps * (size_t)n_experts;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    cudaError_t error = cudaSuccess;
    if (n_ctas > 1) {
        mb_launch_config(&config, attributes, dim3(n_ctas), MAX_THREADS, 0, stream);
        error = cudaLaunchKernelEx(&config, count, params);
    }
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute(place, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     (int)(sizeof(int32_t) * MAX_WARPS * MAX_EXPERTS));
    if (error == cudaSuccess) {
        mb_launch_config(&config, attributes, dim3(n_ctas), n_threads, shared_bytes, stream);
        error = cudaLaunchKernelEx(&config, place, params);
    }
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_plan: launch failed: %s", cudaGetErrorString(error));
    return MB_OK;
}
