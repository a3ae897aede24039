/*
 * route_backward_sm90.cu - the gradient of the router's logits: a warp takes one token after the other, a
 * lane every 32nd expert. All in fp64, rounded once, as the reference does.
 */
#include "ops/hopper/launch.cuh"
#include "ops/moe/backward/router_sm90.h"
#include "ops/moe/backward/softmax_row.cuh"
#include "ops/moe/routing_arguments.h"

enum { TOKEN_WARPS = 4, TOKEN_THREADS = 32 * TOKEN_WARPS, CTAS_PER_SM = 12 };

/* The token's choice of this lane. */
typedef struct choice {
    int32_t expert; /* -1: none */
    double slope;   /* the gradient of its weight */
} choice;

static __device__ __forceinline__ choice load_choice(const mb_moe_route_backward_args *args, int64_t token) {
    const int lane = threadIdx.x % 32;
    choice c = {-1, 0};
    if (lane >= args->top_k)
        return c;
    const int32_t id = args->ids[token * args->top_k + lane];
    c.expert = id >= 0 && id < args->n_experts ? id : -1;
    c.slope = args->dweights ? (double)args->dweights[token * args->top_k + lane] : 0;
    return c;
}

/* out of each choice's expert += that lane's value, choices in order. */
template <int per_lane>
static __device__ __forceinline__ void add_to_experts(int32_t top_k, int32_t expert, double value,
                                                      double (&out)[per_lane]) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int k = 0; k < top_k; k++) {
        const int32_t e = __shfl_sync(ALL_LANES, expert, k);
        const double added = __shfl_sync(ALL_LANES, value, k);
        const int i = e >= 0 && e % 32 == lane ? e / 32 : -1;
#pragma unroll
        for (int j = 0; j < per_lane; j++)
            out[j] += i == j ? added : 0;
    }
}

/* A lane's part of the gradient through a softmax over the chosen logits alone. */
static __device__ __forceinline__ double through_chosen(const mb_moe_route_backward_args *args, int64_t token,
                                                        const choice *c) {
    const float logit[1] = {c->expert >= 0 ? without_nan(load_logit(args->logits, args->logits_dtype,
                                                                    token * args->n_experts + c->expert))
                                           : -INFINITY};
    const double log_sum = log_sum_exp(logit); /* what is no choice adds e^-infinity */
    const double q = c->expert >= 0 ? exp((double)logit[0] - log_sum) : 0;
    const double mean = mb_warp_sum(c->expert >= 0 ? q * c->slope : 0);
    return q * (c->slope - mean);
}

template <int per_lane>
static __global__ void __launch_bounds__(TOKEN_THREADS, per_lane < 32 ? 2 : 3)
    route_backward(const __grid_constant__ mb_moe_route_backward_args args) {
    const int lane = threadIdx.x % 32;
    const int32_t n_experts = args.n_experts;
    const int over_chosen = args.order == MB_ROUTE_TOPK_SOFTMAX || args.renormalize;
    const int over_all = (args.dweights && !over_chosen) || args.d_load_balance || args.d_z;
    const double n_tokens = (double)args.n_tokens;
    mb_grid_launch_dependents();
    mb_grid_wait();
    const double d_balance =
        args.d_load_balance ? (double)*args.d_load_balance * n_experts / (n_tokens * n_tokens) : 0;
    const double d_z = args.d_z ? (double)*args.d_z : 0;
#pragma unroll 1
    for (int64_t t = blockIdx.x * TOKEN_WARPS + threadIdx.x / 32; t < args.n_tokens;
         t += gridDim.x * TOKEN_WARPS) {
        const choice mine = load_choice(&args, t);
        double out[per_lane];
#pragma unroll
        for (int i = 0; i < per_lane; i++)
            out[i] =
                args.d_load_balance && lane + 32 * i < n_experts ? d_balance * args.counts[lane + 32 * i] : 0;
        if (over_all) {
            float row[per_lane];
            double q[per_lane], mean = 0;
            load_row(args.logits, args.logits_dtype, t, n_experts, row);
            const double log_sum = log_sum_exp(row);
            if (args.dweights && !over_chosen)
                add_to_experts(args.top_k, mine.expert, mine.slope, out);
#pragma unroll
            for (int i = 0; i < per_lane; i++) {
                q[i] = lane + 32 * i < n_experts ? exp((double)without_nan(row[i]) - log_sum) : 0;
                mean += q[i] * out[i];
            }
            mean = mb_warp_sum(mean);
            const double of_z = args.d_z ? d_z * 2 * log_sum / n_tokens : 0;
#pragma unroll
            for (int i = 0; i < per_lane; i++)
                out[i] = q[i] * (out[i] - mean) + of_z * q[i];
        }
        if (args.dweights && over_chosen && __any_sync(ALL_LANES, mine.expert >= 0))
            add_to_experts(args.top_k, mine.expert, through_chosen(&args, t, &mine), out);
#pragma unroll
        for (int i = 0; i < per_lane; i++)
            if (lane + 32 * i < n_experts)
                args.dlogits[t * n_experts + lane + 32 * i] = (float)out[i];
    }
}

extern "C" mb_status mb_moe_route_backward_sm90(const mb_moe_route_backward_args *args, mb_stream stream) {
    MB_TRY(mb_moe_route_backward_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    const int64_t wanted = (args->n_tokens + TOKEN_WARPS - 1) / TOKEN_WARPS;
    const int64_t most = CTAS_PER_SM * mb_n_processors();
    return mb_launch("moe_route_backward", FOR_EXPERTS(route_backward, args->n_experts),
                     dim3((unsigned)(wanted < most ? wanted : most)), TOKEN_THREADS, 0, stream, args);
}
