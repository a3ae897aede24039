/*
 * block_front_sm90.cu - norm, router, choice, plan and x to fp8 of up to four tokens, all that comes before
 * the experts, by one cluster of eight CTAs in one launch. With so few tokens each of these steps is a chain
 * of latencies, and each launch adds one.
 *
 *   every CTA     norms all rows, multiplies them with the router's weight of 16 experts (router_whole.cuh),
 *                 which it asked for before the kernels in front ended
 *   the first     has the others' logits in its shared memory then; a warp a token chooses, a warp plans
 *
 * The bits are those of the launches that it stands for.
 */
#include "base/status.h"
#include "ops/common/norm_row.cuh"
#include "ops/hopper/cluster.cuh"
#include "ops/moe/arguments.h"
#include "ops/moe/front/block_front.h"
#include "ops/moe/front/plan_warp.cuh"
#include "ops/moe/front/route.cuh"
#include "ops/moe/plain/router_whole.cuh"
#include "ops/moe/to_fp8.cuh"

enum { BLOCK_CTAS = 8, BLOCK_EXPERTS = 16, BLOCK_TOKENS = 4, MOST_EXPERTS = BLOCK_CTAS * BLOCK_EXPERTS };

typedef whole_map<16, BLOCK_EXPERTS> block_map;

typedef struct block_params {
    router_params router;    /* x: what goes into the norm */
    const void *norm_weight; /* [H] bf16 */
    void *normed;            /* [T, H] bf16 */
    void *out8;              /* [T, H] the same in e4m3, and its scales; or NULL */
    float *out8_scale;
    float eps;
    int32_t row_warps; /* warps that share a row's norm: a power of two */
    mb_moe_route_args route;
    plan_params plan;
} block_params;

/* What this warp's pieces need. */
template <int n_pieces>
static __device__ __forceinline__ void load_norm_weight(const block_params *p, uint4 (&weight)[n_pieces]) {
    const int lane = threadIdx.x % 32, last = p->row_warps - 1, part = threadIdx.x / 32 & last;
    const int n = p->router.hidden / 8;
#pragma unroll
    for (int i = 0; i < n_pieces; i++)
        if ((i & last) == part && lane + 32 * i < n)
            weight[i] = ((const uint4 *)p->norm_weight)[lane + 32 * i];
}

/* The norm of all rows by every CTA, with the bits of ops/norm/norm_sm90.cu. The warps of a row each add up
 * all of its squares and norm a part of its pieces of 256 columns. One CTA for each piece stores it for the
 * experts. */
template <int n_pieces>
static __device__ __forceinline__ void norm_rows(const block_params *p, const uint4 (&weight)[n_pieces],
                                                 uint32_t to) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, last = p->row_warps - 1, part = warp & last;
    const int n = p->router.hidden / 8, row = warp >> __popc(last),
              n_chunks = (p->router.hidden + 63) / 64 * 8;
    if (row >= p->router.n_tokens)
        return;
    const uint4 *from = (const uint4 *)p->router.x + (int64_t)row * n;
    uint4 packed[n_pieces];
#pragma unroll
    for (int i = 0; i < n_pieces; i++)
        packed[i] = lane + 32 * i < n ? from[lane + 32 * i] : make_uint4(0, 0, 0, 0);
    float sums[8] = {};
#pragma unroll
    for (int i = 0; i < n_pieces; i++)
        mb_add_squares<MB_BF16>(sums, packed[i]);
    const float scale = mb_row_scale(sums, p->router.hidden, p->eps);
#pragma unroll
    for (int i = 0; i < n_pieces; i++) {
        if ((i & last) != part)
            continue;
        const int at = lane + 32 * i;
        const int is_mine = i % BLOCK_CTAS == (int)mb_cluster_rank();
        uint4 normed = make_uint4(0, 0, 0, 0); /* columns after H are 0 */
        if (at < n)
            normed = mb_norm_eight<MB_BF16>(packed[i], scale, weight[i]);
        if (at < n_chunks)
            mb_store_shared_16(to + at / 8 * block_map::RUN_BYTES + chunk_offset(row, at % 8), normed);
        if (is_mine && at < n)
            ((uint4 *)p->normed)[(int64_t)row * n + at] = normed;
        if (is_mine && p->out8) {
            float v[8];
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

/* norm_pieces: pieces of 256 columns that the norm has. */
template <int norm_pieces>
static __global__ void __launch_bounds__(block_map::THREADS)
    block_front(const __grid_constant__ block_params p) {
    extern __shared__ __align__(1024) unsigned char whole[];
    __shared__ __align__(16) float logits[BLOCK_TOKENS * MOST_EXPERTS];
    __shared__ int32_t ids[WARP_CHOICES];
    const router_params *router = &p.router;
    const uint32_t rank = mb_cluster_rank(), warp = threadIdx.x / 32;
    const int32_t expert0 = (int32_t)rank * BLOCK_EXPERTS, n_experts = router->n_experts;
    const int32_t n_runs = (router->hidden + block_map::RUN - 1) / block_map::RUN;
    const uint32_t runs = mb_shared_address(whole);

    mb_cluster_arrive_relaxed(); /* "I have started": until then nobody may write this CTA's shared memory */
    mb_grid_launch_dependents();
    copy_runs<BLOCK_EXPERTS, block_map::RUN_BYTES>((const __nv_bfloat16 *)router->weight +
                                                       (int64_t)expert0 * router->hidden,
                                                   router->hidden, n_experts - expert0, runs + 16 * 128);
    mb_cp_async_commit();
    uint4 norm_weight[norm_pieces];
    load_norm_weight(&p, norm_weight);
    mb_grid_wait();
    norm_rows<norm_pieces>(&p, norm_weight, runs);
    mb_cp_async_wait<0>();
    __syncthreads();
    multiply_runs<16, BLOCK_EXPERTS>(runs, whole, n_runs);
    __syncthreads();

    mb_cluster_wait();
    for (int i = threadIdx.x; i < router->n_tokens * BLOCK_EXPERTS / 2; i += block_map::THREADS) {
        const int32_t token = i / (BLOCK_EXPERTS / 2), expert = i % (BLOCK_EXPERTS / 2) * 2;
        if (expert0 + expert >= n_experts)
            continue;
        const unsigned char *from = whole + (token * block_map::PITCH + expert) * 4;
        float2 total = {0, 0};
#pragma unroll 16
        for (int32_t run = 0; run < n_runs; run++) {
            const float2 sum = *(const float2 *)(from + run * block_map::RUN_BYTES);
            total.x += sum.x;
            total.y += sum.y;
        }
        const int32_t at = token * n_experts + expert0 + expert;
        if (router->bias)
            total = make_float2(total.x + router->bias[expert0 + expert],
                                total.y + router->bias[expert0 + expert + 1]);
        mb_store_cluster_8(logits + at, 0, total.x, total.y);
        *(float2 *)(router->logits + at) = total;
    }
    set_counters_zero(p.plan.counters, p.plan.n_counters, rank, BLOCK_CTAS);
    mb_cluster_sync();
    if (rank > 0)
        return;
    mb_moe_route_args route = p.route;
    route.logits = logits;
    route_tokens<MOST_EXPERTS / 32>(&route, warp, block_map::WARPS, ids);
    __syncthreads();
    const uint32_t expert = expert_of_choice(&p.plan, ids, threadIdx.x % 32);
    if (warp == 0)
        place_by_lanes(&p.plan, expert);
    else /* beside the first one */
        write_offsets_by_lanes(&p.plan, expert, warp - 1, block_map::WARPS - 1);
}

enum { BLOCK_SHARED_BYTES = 200 << 10 };

int mb_moe_block_front_takes(const mb_rms_norm_args *norm, const mb_moe_router_gemm_args *score,
                             const mb_moe_front_args *front) {
    const mb_moe_quantize_args *q = &front->quantize;
    const uintptr_t addresses =
        (uintptr_t)norm->x | (uintptr_t)norm->out | (uintptr_t)norm->weight.data | (uintptr_t)score->weight;
    return score->n_tokens >= 1 && score->n_tokens <= BLOCK_TOKENS &&
           score->n_tokens * front->plan.top_k <= WARP_CHOICES && score->n_experts % BLOCK_EXPERTS == 0 &&
           score->n_experts <= MOST_EXPERTS && front->plan.n_local_experts <= MOST_EXPERTS &&
           score->dtype == MB_BF16 && score->weight_dtype == MB_BF16 && score->hidden % 8 == 0 &&
           whole_bytes<16, BLOCK_EXPERTS>(score->hidden) <= BLOCK_SHARED_BYTES &&
           norm->weight.dtype == MB_BF16 && !norm->rows && !norm->out8 &&
           (!q->x || (!q->per_tensor && score->hidden % 16 == 0)) && addresses % 16 == 0 &&
           (uintptr_t)score->logits % 8 == 0;
}

template <int norm_pieces> static cudaError_t launch(const block_params *p, mb_stream stream) {
    const int shared_bytes = whole_bytes<16, BLOCK_EXPERTS>(p->router.hidden);
    const auto kernel = block_front<norm_pieces>;
    /* A constant: another thread may launch the same kernel for another hidden. */
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BLOCK_SHARED_BYTES);
    if (error != cudaSuccess)
        return error;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3(BLOCK_CTAS), block_map::THREADS, (size_t)shared_bytes, stream);
    mb_launch_clusters(&config, BLOCK_CTAS);
    return cudaLaunchKernelEx(&config, kernel, *p);
}

mb_status mb_moe_block_front_sm90(const mb_rms_norm_args *norm, const mb_moe_router_gemm_args *score,
                                  const mb_moe_front_args *front, mb_stream stream) {
    MB_TRY(mb_rms_norm_check(norm));
    MB_TRY(mb_moe_router_gemm_check(score));
    MB_TRY(mb_moe_route_check(front->route));
    MB_TRY(mb_moe_plan_sm90_check(&front->plan));
    block_params p = {};
    p.router.x = norm->x;
    p.router.weight = score->weight;
    p.router.bias = (const float *)score->bias;
    p.router.logits = score->logits;
    p.router.n_tokens = (int32_t)score->n_tokens;
    p.router.hidden = score->hidden;
    p.router.n_experts = score->n_experts;
    p.norm_weight = norm->weight.data;
    p.normed = norm->out;
    p.eps = norm->eps;
    if (front->quantize.x) {
        p.out8 = front->quantize.out;
        p.out8_scale = front->quantize.scale;
    }
    p.row_warps = block_map::WARPS;
    while (p.row_warps * p.router.n_tokens > block_map::WARPS)
        p.row_warps /= 2;
    p.route = *front->route;
    p.plan = cut_plan(&front->plan, NULL);
    p.plan.counters = front->counters;
    p.plan.n_counters = front->n_counters;
    const cudaError_t error = p.router.hidden <= 8 * 256 ? launch<8>(&p, stream) : launch<16>(&p, stream);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_block: launch of a cluster of %d CTAs failed: %s", BLOCK_CTAS,
                       cudaGetErrorString(error));
    return MB_OK;
}
