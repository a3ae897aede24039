/*
 * front_sm90.cu - all that comes before the experts: router, plan, x to fp8, counters to 0.
 *
 *   few choices     one launch: CTA 0 routes (a token a warp), sorts in shared memory and cuts tiles; the other
 *                   CTAs quantise, which needs no order
 *   more            router and x to fp8 side by side in one launch, then the plan's one, two or three
 */
#include "base/status.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/arguments.h"
#include "ops/moe/front/plan_warp.cuh"
#include "ops/moe/front/quantize.cuh"
#include "ops/moe/front/route.cuh"

enum {
    FEW_ROUTED_EXPERTS = 256, /* more do not fit into the registers of a CTA of 1024 threads */
    FEW_ROUTED_TOKENS = 16,   /* one SM routes 32 tokens in 2 us, all SMs together in less */
    TOKENS_THREADS = 128,
    ROUTE_CTAS_PER_SM = 12,
};

typedef struct few_params {
    mb_moe_route_args route; /* ids NULL: no router */
    plan_params plan;
    quantize_params quantize;
} few_params;

template <int experts_per_lane>
static __global__ void __launch_bounds__(MAX_THREADS) few(const __grid_constant__ few_params params) {
    extern __shared__ uint32_t shared[]; /* first rows, then ids */
    const uint32_t n_warps = blockDim.x / 32, warp = threadIdx.x / 32, n_others = gridDim.x - 1;
    mb_grid_launch_dependents();
    if (blockIdx.x > 0) {
        mb_grid_wait();
        quantize_units(&params.quantize, (blockIdx.x - 1) * n_warps + warp, n_others * n_warps);
        set_counters_zero(params.plan.counters, params.plan.n_counters, blockIdx.x - 1, n_others);
        return;
    }
    const int is_of_warp = params.plan.n_choices <= WARP_CHOICES;
    if (!is_of_warp)
        clear_first_rows(&params.plan, shared);
    mb_grid_wait();
    if (n_others == 0 && is_of_warp)
        set_counters_zero(params.plan.counters, params.plan.n_counters, 0, 1);
    const int32_t *ids = params.plan.plan.ids;
    if (params.route.ids) {
        int32_t *shared_ids = (int32_t *)(shared + params.plan.n_parts * params.plan.plan.n_local_experts);
        route_tokens<experts_per_lane>(&params.route, warp, n_warps, shared_ids);
        ids = shared_ids;
    }
    __syncthreads();
    if (is_of_warp) {
        const uint32_t expert = expert_of_choice(&params.plan, ids, threadIdx.x % 32);
        if (warp == 0)
            place_by_lanes(&params.plan, expert);
        if (n_warps == 1)
            write_offsets_by_lanes(&params.plan, expert, 0, 1);
        else if (warp > 0) /* beside the first one */
            write_offsets_by_lanes(&params.plan, expert, warp - 1, n_warps - 1);
        return;
    }
    if (n_others == 0)
        set_counters_zero(params.plan.counters, params.plan.n_counters, 0, 1);
    place_choices(&params.plan, ids, shared, 0, 1);
}

typedef struct token_params {
    mb_moe_route_args route;
    quantize_params quantize;
    uint32_t n_route_ctas;
} token_params;

template <int experts_per_lane>
static __global__ void __launch_bounds__(TOKENS_THREADS)
    route_and_quantize(const __grid_constant__ token_params params) {
    const uint32_t n_warps = TOKENS_THREADS / 32, warp = threadIdx.x / 32;
    mb_grid_launch_dependents();
    mb_grid_wait();
    if (blockIdx.x < params.n_route_ctas)
        route_tokens<experts_per_lane>(&params.route, blockIdx.x * n_warps + warp,
                                       params.n_route_ctas * n_warps, NULL);
    else
        quantize_units(&params.quantize, (blockIdx.x - params.n_route_ctas) * n_warps + warp,
                       (gridDim.x - params.n_route_ctas) * n_warps);
}

static int is_few(const mb_moe_front_args *args) {
    return args->plan.n_tokens * args->plan.top_k <= ONE_CTA_CHOICES &&
           args->plan.n_local_experts <= FEW_EXPERTS &&
           (!args->route ||
            (args->route->n_experts <= FEW_ROUTED_EXPERTS && args->plan.n_tokens <= FEW_ROUTED_TOKENS));
}

static cudaError_t launch_few(const mb_moe_front_args *args, const quantize_params *quantize,
                              mb_stream stream) {
    few_params params = {};
    if (args->route)
        params.route = *args->route;
    params.plan = cut_plan(&args->plan, NULL);
    params.plan.counters = args->counters;
    params.plan.n_counters = args->n_counters;
    params.quantize = *quantize;
    /* A thread for every expert, a warp for every part and, up to 32, for every token. */
    unsigned n_threads = ((unsigned)args->plan.n_local_experts + 31) / 32 * 32;
    if (n_threads < 32 * params.plan.n_parts)
        n_threads = 32 * params.plan.n_parts;
    if (args->route && n_threads < 32 * args->plan.n_tokens)
        n_threads = args->plan.n_tokens < MAX_WARPS ? 32 * (unsigned)args->plan.n_tokens : MAX_THREADS;
    const size_t shared_bytes =
        first_rows_bytes(&params.plan) + (args->route ? sizeof(int32_t) * params.plan.n_choices : 0);
    const int32_t n_routed = args->route ? args->route->n_experts : 0;
    void (*kernel)(few_params) = n_routed <= 128 ? few<4> : few<8>;
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)(sizeof(uint32_t) * (MAX_WARPS * FEW_EXPERTS + ONE_CTA_CHOICES)));
    if (error != cudaSuccess)
        return error;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3(1 + quantize_ctas(quantize, n_threads)), n_threads,
                     shared_bytes, stream);
    return cudaLaunchKernelEx(&config, kernel, params);
}

static cudaError_t launch_route_and_quantize(const mb_moe_route_args *route, const quantize_params *quantize,
                                             mb_stream stream) {
    enum { TOKENS_PER_CTA = TOKENS_THREADS / 32 };
    const int64_t wanted = (route->n_tokens + TOKENS_PER_CTA - 1) / TOKENS_PER_CTA;
    const int64_t most = ROUTE_CTAS_PER_SM * mb_n_processors();
    token_params params = {};
    params.route = *route;
    params.quantize = *quantize;
    params.n_route_ctas = (uint32_t)(wanted < most ? wanted : most);
    void (*kernel)(token_params) = route->n_experts <= 128   ? route_and_quantize<4>
                                   : route->n_experts <= 256 ? route_and_quantize<8>
                                   : route->n_experts <= 512 ? route_and_quantize<16>
                                                             : route_and_quantize<32>;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3(params.n_route_ctas + quantize_ctas(quantize, TOKENS_THREADS)),
                     TOKENS_THREADS, 0, stream);
    return cudaLaunchKernelEx(&config, kernel, params);
}

static mb_status check(const mb_moe_front_args *args, quantize_params *quantize) {
    const mb_moe_plan_args *plan = &args->plan;
    const mb_moe_route_args *route = args->route;
    MB_TRY(mb_moe_plan_sm90_check(plan));
    if (route) {
        MB_TRY(mb_moe_route_check(route));
        if (route->ids != plan->ids || route->n_tokens != plan->n_tokens || route->top_k != plan->top_k ||
            route->n_experts != plan->n_experts)
            return mb_fail(MB_ERR_ARGUMENT,
                           "moe_front: the router's ids, n_tokens, top_k or n_experts are not the plan's");
    }
    *quantize = quantize_params();
    if (args->quantize.x) {
        MB_TRY(mb_moe_quantize_prepare(&args->quantize, quantize));
        if (args->quantize.n_tokens != plan->n_tokens)
            return mb_fail(MB_ERR_ARGUMENT, "moe_front: %lld tokens to quantise, %lld in the plan",
                           (long long)args->quantize.n_tokens, (long long)plan->n_tokens);
    }
    if (args->n_counters < 0 || (args->n_counters > 0 && !args->counters))
        return mb_fail(MB_ERR_ARGUMENT, "moe_front: n_counters is %d, and counters %s", args->n_counters,
                       args->counters ? "is given" : "NULL");
    return MB_OK;
}

extern "C" mb_status mb_moe_front_sm90_workspace(const mb_moe_front_args *most, size_t *bytes) {
    return mb_moe_plan_sm90_workspace(&most->plan, bytes); /* few choices, done in one launch, need none */
}

extern "C" mb_status mb_moe_front_sm90(const mb_moe_front_args *args, void *workspace, size_t workspace_bytes,
                                       mb_stream stream) {
    quantize_params quantize;
    MB_TRY(check(args, &quantize));
    const int is_routed = args->route && args->plan.n_tokens > 0;
    cudaError_t error = cudaSuccess;
    if (is_few(args) && args->plan.n_tokens > 0)
        error = launch_few(args, &quantize, stream);
    else if (is_routed && quantize.n_units > 0)
        error = launch_route_and_quantize(args->route, &quantize, stream);
    else if (is_routed)
        MB_TRY(mb_moe_route_sm90(args->route, stream));
    else if (quantize.n_units > 0)
        MB_TRY(mb_moe_quantize_sm90(&args->quantize, stream));
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_front: launch failed: %s", cudaGetErrorString(error));
    if (is_few(args) && args->plan.n_tokens > 0)
        return MB_OK;
    return mb_moe_plan_launch(&args->plan, args->counters, args->n_counters, workspace, workspace_bytes,
                              stream);
}
