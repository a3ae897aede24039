/*
 * router_losses_sm90.cu - the router's losses and counts, in two launches: the tokens in contiguous parts, a
 * part a CTA, whose warps take tokens in turn and keep each expert's sum in registers; then the sums of all
 * parts, in order, an expert a thread. How the tokens are cut depends on their number alone.
 */
#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/backward/router_layout.h"
#include "ops/moe/backward/router_sm90.h"
#include "ops/moe/backward/softmax_row.cuh"
#include "ops/moe/routing_arguments.h"

enum {
    PART_WARPS = 8,
    PART_THREADS = 32 * PART_WARPS,
    SUM_THREADS = MOST_EXPERTS,
};

typedef struct losses_params {
    mb_moe_router_losses_args args;
    mb_losses_layout parts;
} losses_params;

/* ptxas lets as many exponentials overlap as it believes to have registers for, and then spills a few:
 * without the second bound those of 8 and 16, with it those of 32. */
template <int per_lane>
static __global__ void __launch_bounds__(PART_THREADS, per_lane < 32 ? 1 : 0)
    sum_part(const __grid_constant__ losses_params p) {
    __shared__ int32_t counts[MOST_EXPERTS];
    __shared__ double probabilities[MOST_EXPERTS], squares;
    const mb_moe_router_losses_args *args = &p.args;
    const int32_t n_experts = args->n_experts;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    mb_grid_launch_dependents();
    mb_grid_wait();
    for (int e = threadIdx.x; e < n_experts; e += PART_THREADS)
        counts[e] = 0;
    __syncthreads();
    const int64_t first = blockIdx.x * p.parts.part_tokens,
                  end = min(first + p.parts.part_tokens, args->n_tokens);
    for (int64_t i = first * args->top_k + threadIdx.x; i < end * args->top_k; i += PART_THREADS) {
        const int32_t id = args->ids[i];
        if (id >= 0 && id < n_experts)
            atomicAdd(&counts[id], 1);
    }

    double sums[per_lane], my_squares = 0;
#pragma unroll
    for (int i = 0; i < per_lane; i++)
        sums[i] = 0;
#pragma unroll 1
    for (int64_t t = first + warp; t < end; t += PART_WARPS) {
        float row[per_lane];
        load_row(args->logits, args->logits_dtype, t, n_experts, row);
        const double log_sum = log_sum_exp(row);
#pragma unroll
        for (int i = 0; i < per_lane; i++)
            sums[i] += exp((double)row[i] - log_sum);
        my_squares += log_sum * log_sum;
    }
    for (int turn = 0; turn < PART_WARPS; turn++) {
        __syncthreads();
        if (warp != turn)
            continue;
#pragma unroll
        for (int i = 0; i < per_lane; i++)
            if (lane + 32 * i < n_experts)
                probabilities[lane + 32 * i] = (turn > 0 ? probabilities[lane + 32 * i] : 0) + sums[i];
        if (lane == 0)
            squares = (turn > 0 ? squares : 0) + my_squares;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < n_experts; e += PART_THREADS) {
        p.parts.probabilities[blockIdx.x * n_experts + e] = probabilities[e];
        p.parts.counts[blockIdx.x * n_experts + e] = counts[e];
    }
    if (threadIdx.x == 0)
        p.parts.squares[blockIdx.x] = squares;
}

/* Over the CTA; thread 0 has it. */
static __device__ __forceinline__ double sum_of_threads(double value, double *of_warps) {
    value = mb_warp_sum(value);
    __syncthreads(); /* of_warps may be read still */
    if (threadIdx.x % 32 == 0)
        of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    return threadIdx.x < 32 ? mb_warp_sum(of_warps[threadIdx.x]) : 0;
}

static __global__ void __launch_bounds__(SUM_THREADS) sum_parts(const __grid_constant__ losses_params p) {
    __shared__ double of_warps[SUM_THREADS / 32];
    const mb_moe_router_losses_args *args = &p.args;
    const int32_t n_experts = args->n_experts, e = (int32_t)threadIdx.x;
    const double n_tokens = (double)args->n_tokens;
    mb_grid_launch_dependents();
    mb_grid_wait();
    int32_t count = 0;
    double probabilities = 0;
    if (e < n_experts) {
#pragma unroll 8
        for (int part = 0; part < p.parts.n_parts; part++) {
            count += p.parts.counts[part * n_experts + e];
            probabilities += p.parts.probabilities[part * n_experts + e];
        }
        args->counts[e] = count;
    }
    const double term =
        e < n_experts && args->n_tokens > 0 ? count / n_tokens * (probabilities / n_tokens) * n_experts : 0;
    const double balance = sum_of_threads(term, of_warps);
    const double z = sum_of_threads(e < p.parts.n_parts ? p.parts.squares[e] / n_tokens : 0, of_warps);
    if (e == 0 && args->load_balance)
        *args->load_balance = (float)balance;
    if (e == 0 && args->z)
        *args->z = (float)z;
}

extern "C" mb_status mb_moe_router_losses_sm90(const mb_moe_router_losses_args *args, void *workspace,
                                               size_t workspace_bytes, mb_stream stream) {
    MB_TRY(mb_moe_router_losses_check(args));
    mb_arena arena = {(char *)workspace, SIZE_MAX, 0, 0, 0}; /* its end is looked at when all is taken */
    const losses_params p = {*args, mb_moe_router_losses_layout(args, &arena)};
    MB_TRY(mb_workspace_check_arena("moe_router_losses", workspace, workspace_bytes, &arena));
    if (p.parts.n_parts > 0)
        MB_TRY(mb_launch("moe_router_losses", FOR_EXPERTS(sum_part, args->n_experts),
                         dim3((unsigned)p.parts.n_parts), PART_THREADS, 0, stream, &p));
    return mb_launch("moe_router_losses", sum_parts, dim3(1), SUM_THREADS, 0, stream, &p);
}
