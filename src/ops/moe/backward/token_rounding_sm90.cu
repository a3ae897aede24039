/*
 * token_rounding_sm90.cu - token rounding in four launches:
 *
 *   look_at_tokens    32 tokens a CTA   ids, who chose which expert, scores with the experts' as rows
 *   rank_candidates   an expert a CTA   its count; the last token to drop; the first 1024 tokens to add
 *   round_experts     one CTA           experts in order: up or down; listed tokens that have a free place
 *   settle_tokens     a token a warp    drops, and the weights
 *
 * Experts depend on each other by two things alone: the carry of balanced rounding, and the free places,
 * which only additions take. So which tokens would be dropped is known without the other experts, and of
 * the tokens to add the order is. An expert's turn then is a look at 1024 listed tokens, a thread each.
 * Where these are not enough (most were full, or more are missing) the CTA searches among all tokens.
 */
#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/backward/router_sm90.h"
#include "ops/moe/backward/token_rounding.cuh"
#include "ops/moe/front/route.cuh"
#include "ops/moe/routing_arguments.h"

enum { LOOK_WARPS = 8, LOOK_THREADS = 32 * LOOK_WARPS, SETTLE_WARPS = 4, SETTLE_THREADS = 32 * SETTLE_WARPS };

/* ---- Every token --------------------------------------------------------------------------------------- */

/* The token's choice of this lane, or -1. Only the first of equal ids is a choice. */
static __device__ __forceinline__ int32_t load_choice(const mb_moe_token_rounding_args *args, int64_t token) {
    const int lane = threadIdx.x % 32;
    int32_t id = lane < args->top_k ? args->ids[token * args->top_k + lane] : -1;
    id = id >= 0 && id < args->n_experts ? id : -1;
    return lane == __ffs((int)__match_any_sync(ALL_LANES, id)) - 1 ? id : -1;
}

template <int per_lane>
static __global__ void __launch_bounds__(LOOK_THREADS, 2)
    look_at_tokens(const __grid_constant__ rounding_params p) {
    __shared__ uint32_t chosen[MOST_EXPERTS];
    __shared__ uint64_t keys[WORD][32 + 1];
    __shared__ double log_sums[WORD];
    const mb_moe_token_rounding_args *args = &p.args;
    const int32_t n_experts = args->n_experts;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t first = (int64_t)blockIdx.x * WORD;
    const int n_tokens = (int)min(args->n_tokens - first, (int64_t)WORD);
    mb_grid_launch_dependents();
    mb_grid_wait();
    for (int e = threadIdx.x; e < n_experts; e += LOOK_THREADS)
        chosen[e] = 0;
    __syncthreads();
#pragma unroll 1
    for (int t = warp; t < n_tokens; t += LOOK_WARPS) {
        float row[per_lane];
        load_row(args->logits, args->logits_dtype, first + t, n_experts, row);
        const double log_sum = log_sum_exp(row);
        const int32_t id = load_choice(args, first + t);
        if (lane < args->max_choices)
            args->out_ids[(first + t) * args->max_choices + lane] = id;
        if (id >= 0)
            atomicOr(&chosen[id], 1u << t);
        if (lane == 0) {
            log_sums[t] = p.at.log_sums[first + t] = log_sum;
            p.at.n_added[first + t] = 0;
        }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < n_experts; e += LOOK_THREADS)
        p.at.chosen[e * p.at.n_words + blockIdx.x] = chosen[e];
    if (args->rounding == MB_ROUNDING_NONE)
        return;
#pragma unroll 1
    for (int first_expert = 0; first_expert < n_experts; first_expert += 32) {
        for (int t = warp; t < n_tokens; t += LOOK_WARPS)
            if (first_expert + lane < n_experts)
                keys[t][lane] =
                    key_of_score(mb_rounding_score(load_logit(args->logits, args->logits_dtype,
                                                              (first + t) * n_experts + first_expert + lane),
                                                   log_sums[t]));
        __syncthreads();
        for (int i = warp; i < 32; i += LOOK_WARPS)
            if (first_expert + i < n_experts && lane < n_tokens)
                p.at.score_keys[(first_expert + i) * p.at.n_words * WORD + first + lane] = keys[lane][i];
        __syncthreads();
    }
}

/* ---- Every expert -------------------------------------------------------------------------------------- */

typedef struct sorting {
    rank ranks[LISTED];
    int32_t n;
} sorting;

/* The ranks, those that come first in front; bitonic. */
static __device__ __forceinline__ void sort_ranks(sorting *s) {
    const int i = threadIdx.x;
    for (int size = 2; size <= LISTED; size *= 2)
        for (int distance = size / 2; distance > 0; distance /= 2) {
            const int other = i ^ distance;
            if (other > i) {
                const rank a = s->ranks[i], b = s->ranks[other];
                if ((i & size) == 0 ? is_before(b, a) : is_before(a, b)) {
                    s->ranks[i] = b;
                    s->ranks[other] = a;
                }
            }
            __syncthreads();
        }
}

/* The first n candidates of expert e in order, n <= LISTED, were they all to have a free place. */
static __device__ __forceinline__ void list_candidates(const rounding_params *p, int32_t e, int32_t n,
                                                       rank_search *search, sorting *s) {
    static_assert(LISTED == RANK_THREADS, "a rank is a thread's");
    const uint64_t *keys = keys_of(p, e);
    const uint32_t *chosen = chosen_of(p, e), n_tokens = (uint32_t)p->args.n_tokens;
    const auto is_candidate = [=](uint32_t t) { return !has_chosen(chosen, t); };
    const rank last = nth_rank(keys, n_tokens, ADDING, n, is_candidate, search);
    s->ranks[threadIdx.x] = {0, 0}; /* after all others */
    if (threadIdx.x == 0)
        s->n = 0;
    __syncthreads();
    for (uint32_t t = threadIdx.x; t < n_tokens; t += RANK_THREADS) {
        const rank r = rank_of(keys[t], t, ADDING);
        if (is_candidate(t) && !is_before(last, r))
            s->ranks[atomicAdd(&s->n, 1)] = r;
    }
    __syncthreads();
    sort_ranks(s);
    if ((int32_t)threadIdx.x < n)
        p->at.candidates[(int64_t)e * LISTED + threadIdx.x] = (int32_t)~s->ranks[threadIdx.x].token;
}

static __global__ void __launch_bounds__(RANK_THREADS, 1)
    rank_candidates(const __grid_constant__ rounding_params p) {
    __shared__ rank_search search;
    __shared__ sorting sort;
    __shared__ int32_t of_warps[RANK_THREADS / 32];
    const mb_moe_token_rounding_args *args = &p.args;
    const int32_t e = (int32_t)blockIdx.x, n_tokens = (int32_t)args->n_tokens;
    mb_grid_launch_dependents();
    mb_grid_wait();
    const int64_t n_words = p.at.n_words;
    const uint32_t *chosen = chosen_of(&p, e);
    int32_t mine = 0;
    for (int64_t i = threadIdx.x; i < n_words; i += RANK_THREADS)
        mine += __popc(chosen[i]);
    const int32_t count = count_of_threads(mine, of_warps), over = count % args->tile_rows;
    if (threadIdx.x == 0)
        args->counts[e] = count;
    const int may_go_up =
        args->max_choices > args->top_k &&
        (args->rounding == MB_ROUNDING_BALANCED || goes_up(args->rounding, over, 0, args->tile_rows));
    const int32_t n = may_go_up && over > 0 ? min(n_tokens - count, (int32_t)LISTED) : 0;
    if (threadIdx.x == 0 && n_tokens > 0)
        p.at.n_candidates[e] = n;
    if (args->rounding == MB_ROUNDING_NONE || over == 0)
        return;
    const rank last = nth_rank(
        keys_of(&p, e), (uint32_t)n_tokens, DROPPING, over, [=](uint32_t t) { return has_chosen(chosen, t); },
        &search);
    if (threadIdx.x == 0)
        p.at.last_dropped[e] = last;
    if (n > 0)
        list_candidates(&p, e, n, &search, &sort);
}

/* ---- Experts in order ---------------------------------------------------------------------------------- */

static __device__ __forceinline__ void add_choice(const rounding_params *p, int32_t e, int32_t token) {
    const mb_moe_token_rounding_args *args = &p->args;
    const int32_t place = args->top_k + p->at.n_added[token]++;
    args->out_ids[(int64_t)token * args->max_choices + place] = e;
}

/* Adds the n first candidates of all that have a free place. Returns 0, and adds none, when there are
 * fewer. */
static __device__ __forceinline__ int add_searched(const rounding_params *p, int32_t e, int32_t n,
                                                   rank_search *search, int32_t *of_warps) {
    const uint64_t *keys = keys_of(p, e);
    const uint32_t *chosen = chosen_of(p, e), n_tokens = (uint32_t)p->args.n_tokens;
    const int32_t n_free = p->args.max_choices - p->args.top_k;
    const uint8_t *n_added = p->at.n_added;
    const auto is_candidate = [=](uint32_t t) { return !has_chosen(chosen, t) && n_added[t] < n_free; };
    int32_t mine = 0;
    for (uint32_t t = threadIdx.x; t < n_tokens; t += RANK_THREADS)
        mine += is_candidate(t);
    if (count_of_threads(mine, of_warps) < n)
        return 0;
    const rank last = nth_rank(keys, n_tokens, ADDING, n, is_candidate, search);
    for (uint32_t t = threadIdx.x; t < n_tokens; t += RANK_THREADS)
        if (is_candidate(t) && !is_before(last, rank_of(keys[t], t, ADDING)))
            add_choice(p, e, (int32_t)t);
    __syncthreads();
    return 1;
}

/* The same by the list of candidates, of which this thread's is `listed`, or -1. n_all: tokens that had
 * not chosen the expert. */
static __device__ __forceinline__ int add_listed(const rounding_params *p, int32_t e, int32_t n,
                                                 int32_t listed, int32_t n_listed, int32_t n_all,
                                                 rank_search *search, int32_t *of_warps) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int has_place = listed >= 0 && p->at.n_added[listed] < p->args.max_choices - p->args.top_k;
    const uint32_t in_warp = __ballot_sync(ALL_LANES, has_place);
    if (lane == 0)
        of_warps[warp] = __popc(in_warp);
    __syncthreads();
    const int32_t of_lane = of_warps[lane], found = __reduce_add_sync(ALL_LANES, of_lane);
    const int32_t before =
        __reduce_add_sync(ALL_LANES, lane < warp ? of_lane : 0) + __popc(in_warp & ((1u << lane) - 1));
    if (found >= n && has_place && before < n)
        add_choice(p, e, listed);
    __syncthreads();
    if (found >= n || n_listed == n_all)
        return found >= n;
    return add_searched(p, e, n, search, of_warps);
}

static __global__ void __launch_bounds__(RANK_THREADS, 1)
    round_experts(const __grid_constant__ rounding_params p) {
    __shared__ rank_search search;
    __shared__ int32_t of_warps[RANK_THREADS / 32], counts[MOST_EXPERTS], n_candidates[MOST_EXPERTS];
    const mb_moe_token_rounding_args *args = &p.args;
    const int32_t n_experts = args->n_experts, n_tokens = (int32_t)args->n_tokens;
    const int32_t tile = args->tile_rows;
    mb_grid_launch_dependents();
    mb_grid_wait();
    for (int e = threadIdx.x; e < n_experts; e += RANK_THREADS) {
        counts[e] = args->counts[e];
        n_candidates[e] = n_tokens > 0 ? p.at.n_candidates[e] : 0;
    }
    __syncthreads();
    const auto listed_of = [&](int32_t e) {
        return e < n_experts && (int32_t)threadIdx.x < n_candidates[e]
                   ? p.at.candidates[(int64_t)e * LISTED + threadIdx.x]
                   : -1;
    };
    mb_moe_rounding_report report = {};
    int64_t carry = 0;
    int32_t next_listed = listed_of(0);
#pragma unroll 1
    for (int32_t e = 0; e < n_experts; e++) {
        const int32_t listed = next_listed;
        next_listed = listed_of(e + 1); /* on its way meanwhile */
        const int32_t count = counts[e], over = count % tile, missing = tile - over;
        int32_t change = 0;
        if (args->rounding != MB_ROUNDING_NONE && over > 0) {
            const int is_up =
                n_candidates[e] > 0 && goes_up(args->rounding, over, carry, tile) &&
                add_listed(&p, e, missing, listed, n_candidates[e], n_tokens - count, &search, of_warps);
            change = is_up ? missing : -over;
        }
        carry -= change;
        report.routed += count;
        report.added += change > 0 ? change : 0;
        report.dropped += change < 0 ? -change : 0;
        report.processed += count + change;
        report.hardware +=
            (int64_t)count + change + (args->rounding == MB_ROUNDING_NONE && over > 0 ? missing : 0);
        if (threadIdx.x == 0 && n_tokens > 0) {
            args->counts[e] = count + change;
            p.at.goes_down[e] = change < 0;
        }
    }
    if (report.hardware > 0)
        report.wasted_ratio = 1 - (double)report.processed / (double)report.hardware;
    if (threadIdx.x == 0 && args->report)
        *args->report = report;
}

/* ---- Every token again --------------------------------------------------------------------------------- */

/* The sum of the exponentials of all logits, in the order in which the router adds them (route.cuh). */
template <int per_lane>
static __device__ __forceinline__ float sum_of_all(const float (&row)[per_lane], int32_t n_experts,
                                                   float *maximum) {
    uint64_t keys[per_lane];
#pragma unroll
    for (int i = 0; i < per_lane; i++) {
        const int expert = threadIdx.x % 32 + 32 * i;
        keys[i] = expert < n_experts ? (uint64_t)key_of(row[i]) << 32 | (UINT32_MAX - (uint32_t)expert) : 0;
    }
    sort_keys(keys);
    *maximum = logit_of(__reduce_max_sync(ROUTE_LANES, (uint32_t)(keys[0] >> 32)));
    float mine = 0;
#pragma unroll
    for (int i = 0; i < per_lane; i++)
        if (keys[i] != 0)
            mine += relative_exp(logit_of((uint32_t)(keys[i] >> 32)), *maximum);
    return mb_warp_sum(mine);
}

/* Whether this lane's choice, one of the router's, is dropped. */
static __device__ __forceinline__ int is_dropped(const rounding_params *p, int64_t token, int32_t id,
                                                 float logit) {
    if (!p->at.goes_down[id])
        return 0;
    const uint64_t key = key_of_score(mb_rounding_score(logit, p->at.log_sums[token]));
    return !is_before(p->at.last_dropped[id], rank_of(key, (uint32_t)token, DROPPING));
}

/* The weights have the bits of the router's where nothing was rounded. */
template <int per_lane>
static __global__ void __launch_bounds__(SETTLE_THREADS)
    settle_tokens(const __grid_constant__ rounding_params p) {
    const mb_moe_token_rounding_args *args = &p.args;
    const int lane = threadIdx.x % 32, max_choices = args->max_choices;
    const int over_chosen = args->order == MB_ROUTE_TOPK_SOFTMAX || args->renormalize;
    const int64_t token = (int64_t)blockIdx.x * SETTLE_WARPS + threadIdx.x / 32;
    mb_grid_launch_dependents();
    mb_grid_wait();
    if (token >= args->n_tokens)
        return;
    const int64_t place = token * max_choices + lane, first = token * args->n_experts;
    int32_t id = lane < max_choices ? args->out_ids[place] : -1;
    const float logit = id >= 0 ? load_logit(args->logits, args->logits_dtype, first + id) : -INFINITY;
    if (id >= 0 && lane < args->top_k && is_dropped(&p, token, id, logit)) {
        id = -1;
        args->out_ids[place] = id;
    }
    const float chosen = id >= 0 ? without_nan(logit) : -INFINITY;
    float maximum = mb_warp_max(chosen), sum_of_others = 0;
    if (!over_chosen) {
        float row[per_lane];
        load_row(args->logits, args->logits_dtype, token, args->n_experts, row);
        sum_of_others = sum_of_all(row, args->n_experts, &maximum);
    }
    const float weight = id >= 0 ? relative_exp(chosen, maximum) : 0;
    const float sum = over_chosen ? mb_warp_sum(weight) : sum_of_others;
    if (lane < max_choices)
        args->out_weights[place] = id >= 0 ? weight / sum : 0;
}

/* ---- Host ---------------------------------------------------------------------------------------------- */

extern "C" mb_status mb_moe_token_rounding_sm90(const mb_moe_token_rounding_args *args, void *workspace,
                                                size_t workspace_bytes, mb_stream stream) {
    const char *op = "moe_token_rounding";
    MB_TRY(mb_moe_token_rounding_check(args));
    mb_arena arena = {(char *)workspace, SIZE_MAX, 0, 0, 0}; /* its end is looked at when all is taken */
    const rounding_params p = {*args, mb_moe_token_rounding_layout(args, &arena)};
    MB_TRY(mb_workspace_check_arena(op, workspace, workspace_bytes, &arena));
    if (args->n_tokens > 0)
        MB_TRY(mb_launch(op, FOR_EXPERTS(look_at_tokens, args->n_experts), dim3((unsigned)p.at.n_words),
                         LOOK_THREADS, 0, stream, &p));
    MB_TRY(mb_launch(op, rank_candidates, dim3((unsigned)args->n_experts), RANK_THREADS, 0, stream, &p));
    MB_TRY(mb_launch(op, round_experts, dim3(1), RANK_THREADS, 0, stream, &p));
    if (args->n_tokens == 0)
        return MB_OK;
    const unsigned n_settled = (unsigned)((args->n_tokens + SETTLE_WARPS - 1) / SETTLE_WARPS);
    return mb_launch(op, FOR_EXPERTS(settle_tokens, args->n_experts), dim3(n_settled), SETTLE_THREADS, 0,
                     stream, &p);
}
