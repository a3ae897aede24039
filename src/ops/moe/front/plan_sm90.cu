/*
 * plan_sm90.cu - the plan of up to FEW_EXPERTS local experts. `place` does the work (plan.cuh); with several
 * CTAs `count` runs before and leaves each CTA's counts.
 */
#include "base/status.h"
#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/arguments.h"
#include "ops/moe/front/plan.cuh"
#include "ops/moe/moe_sm90.h"

static __global__ void __launch_bounds__(MAX_THREADS) count(const __grid_constant__ plan_params params) {
    __shared__ int32_t counts[FEW_EXPERTS];
    mb_grid_launch_dependents();
    const uint32_t n_experts = (uint32_t)params.plan.n_local_experts;
    for (uint32_t e = threadIdx.x; e < n_experts; e += blockDim.x)
        counts[e] = 0;
    __syncthreads();
    mb_grid_wait();
    const uint32_t choices_per_cta = params.choices_per_warp * params.n_parts;
    const uint32_t first = blockIdx.x * choices_per_cta;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < choices_per_cta; i += blockDim.x) {
        const uint32_t expert = expert_of_choice(&params, params.plan.ids, first + i);
        if (expert != UINT32_MAX)
            atomicAdd(&counts[expert], 1);
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < n_experts; e += blockDim.x)
        params.counts[blockIdx.x * n_experts + e] = counts[e];
}

static __global__ void __launch_bounds__(MAX_THREADS) place(const __grid_constant__ plan_params params) {
    extern __shared__ uint32_t first_rows[];
    mb_grid_launch_dependents();
    clear_first_rows(&params, first_rows);
    __syncthreads();
    mb_grid_wait();
    set_counters_zero(params.counters, params.n_counters, blockIdx.x, gridDim.x);
    place_choices(&params, params.plan.ids, first_rows, blockIdx.x, gridDim.x);
}

extern "C" mb_status mb_moe_plan_sm90_workspace(const mb_moe_plan_args *most, size_t *bytes) {
    MB_TRY(mb_moe_plan_check_sizes(most));
    *bytes = mb_plan_most_bytes(most, mb_n_processors());
    return MB_OK;
}

mb_status mb_moe_plan_sm90_check(const mb_moe_plan_args *args) {
    MB_TRY(mb_moe_plan_check(args));
    if (args->tiles &&
        mb_moe_max_tiles(args->n_tokens * args->top_k, args->n_local_experts, args->tile_rows) > INT32_MAX)
        return mb_fail(MB_ERR_ARGUMENT, "moe_plan: tile_rows is %d: there can be more than 2^31 - 1 tiles",
                       args->tile_rows);
    if ((uintptr_t)args->tiles % 16)
        return mb_fail(MB_ERR_ARGUMENT, "moe_plan: tiles is not 16-byte aligned");
    return MB_OK;
}

static cudaError_t launch(const plan_params *params, mb_stream stream) {
    const unsigned n_ctas = mb_plan_ctas(params->n_choices);
    const unsigned n_experts = (unsigned)params->plan.n_local_experts;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    if (n_ctas > 1) {
        mb_launch_config(&config, attributes, dim3(n_ctas), MAX_THREADS, 0, stream);
        const cudaError_t error = cudaLaunchKernelEx(&config, count, *params);
        if (error != cudaSuccess)
            return error;
    }
    const cudaError_t error = cudaFuncSetAttribute(place, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   (int)(sizeof(uint32_t) * MAX_WARPS * FEW_EXPERTS));
    if (error != cudaSuccess)
        return error;
    /* A warp for every part, and a thread for every expert. */
    const unsigned n_threads =
        params->n_parts * 32 > n_experts ? params->n_parts * 32 : (n_experts + 31) / 32 * 32;
    mb_launch_config(&config, attributes, dim3(n_ctas), n_threads, first_rows_bytes(params), stream);
    return cudaLaunchKernelEx(&config, place, *params);
}

mb_status mb_moe_plan_launch(const mb_moe_plan_args *args, int32_t *counters, int32_t n_counters,
                             void *workspace, size_t workspace_bytes, mb_stream stream) {
    MB_TRY(
        mb_workspace_check("moe_plan", workspace, workspace_bytes, mb_plan_bytes(args, mb_n_processors())));
    if (mb_plan_is_of_many(args))
        return mb_moe_plan_many_launch(args, counters, n_counters, workspace, stream);
    plan_params params = cut_plan(args, workspace);
    params.counters = counters;
    params.n_counters = n_counters;
    const cudaError_t error = launch(&params, stream);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_plan: launch failed: %s", cudaGetErrorString(error));
    return MB_OK;
}

extern "C" mb_status mb_moe_plan_sm90(const mb_moe_plan_args *args, void *workspace, size_t workspace_bytes,
                                      mb_stream stream) {
    MB_TRY(mb_moe_plan_sm90_check(args));
    return mb_moe_plan_launch(args, NULL, 0, workspace, workspace_bytes, stream);
}
