/*
 * plan.cuh - the stable counting sort of choices by expert, as one CTA does its part of it.
 *
 * A CTA's choices are divided into one contiguous part per warp. Each warp counts its choices per expert, the
 * counts are turned into first rows (experts outside, then CTAs, then warps), and each warp walks its choices
 * again to give each its row. A choice's rank among the 32 of its step comes from ballots over the bits of
 * the expert, so no order ever depends on timing.
 */
#ifndef MB_OPS_MOE_PLAN_CUH
#define MB_OPS_MOE_PLAN_CUH

#include "ops/moe/front/plan_sizes.h"
#include "ops/moe/front/tiles.cuh"

static_assert((int)PLAN_THREADS == (int)MAX_THREADS, "choices of a CTA");

typedef struct plan_params {
    mb_moe_plan_args plan;
    int32_t *counts;   /* [CTAs, n_local_experts], with more than one CTA */
    int32_t *counters; /* to set to 0 */
    int32_t n_counters;
    uint32_t n_choices;
    uint32_t choices_per_warp; /* a multiple of 32 */
    uint32_t n_parts;          /* warps of a CTA that have choices */
} plan_params;

/* The lanes of `among` whose values have the same low n_bits as this lane's. match_any would do: with 32
 * different values it takes 32 rounds. */
template <int n_bits> static __device__ __forceinline__ uint32_t lanes_alike(uint32_t value, uint32_t among) {
#pragma unroll
    for (int bit = 0; bit < n_bits; bit++) {
        const int is_set = value >> bit & 1;
        const uint32_t set = __ballot_sync(EVERY_LANE, is_set);
        among &= is_set ? set : ~set;
    }
    return among;
}

/* The expert of a choice as a number among the local ones; MAX_UINT when it is not local. */
static __device__ __forceinline__ uint32_t local_expert(const mb_moe_plan_args *plan, int32_t id) {
    const uint32_t expert = (uint32_t)id - (uint32_t)plan->first_expert;
    return expert < (uint32_t)plan->n_local_experts ? expert : UINT32_MAX;
}

static __device__ __forceinline__ uint32_t expert_of_choice(const plan_params *params, const int32_t *ids,
                                                            uint32_t choice) {
    return choice < params->n_choices ? local_expert(&params->plan, ids[choice]) : UINT32_MAX;
}

static __device__ __forceinline__ void set_counters_zero(int32_t *counters, int32_t n_counters, uint32_t cta,
                                                         uint32_t n_ctas) {
    for (uint32_t i = cta * blockDim.x + threadIdx.x; i < (uint32_t)n_counters; i += n_ctas * blockDim.x)
        counters[i] = 0;
}

static __device__ __forceinline__ void clear_first_rows(const plan_params *params, uint32_t *first_rows) {
    const uint32_t n = params->n_parts * (uint32_t)params->plan.n_local_experts;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
        first_rows[i] = 0;
}

/* Thread e of a CTA that has all counts: offsets and tiles. */
static __device__ __forceinline__ void write_offsets_and_tiles(const mb_moe_plan_args *plan, row_sum mine,
                                                               row_sum before, uint32_t n_tiles) {
    const uint32_t n_experts = (uint32_t)plan->n_local_experts, expert = threadIdx.x;
    if (expert < n_experts && plan->offsets) {
        plan->offsets[expert] = (int32_t)before.rows;
        if (expert == n_experts - 1)
            plan->offsets[n_experts] = (int32_t)(before.rows + mine.rows);
    }
    if (!plan->tiles)
        return;
    const tile_cut cut = {plan->tiles, (uint32_t)plan->tile_rows, (uint32_t)plan->tile_step, 0, 0, 0, 1};
    if (threadIdx.x == 0)
        *plan->n_tiles = (int32_t)n_tiles;
    write_tiles(&cut, before.rows, mine.rows, mine.tiles, before.tiles, n_tiles);
}

/* All threads of the CTA, of which there is one for each expert at least. ids: global or shared memory.
 * first_rows: [n_parts, n_local_experts] in shared memory, 0. */
static __device__ __forceinline__ void place_choices(const plan_params *params, const int32_t *ids,
                                                     uint32_t *first_rows, uint32_t cta, uint32_t n_ctas) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_parts = params->n_parts;
    const uint32_t n_experts = (uint32_t)params->plan.n_local_experts;
    const uint32_t n_steps = warp < n_parts ? params->choices_per_warp : 0;
    const uint32_t first = (cta * n_parts + warp) * params->choices_per_warp;
    uint32_t *next_row = first_rows + (warp < n_parts ? warp * n_experts : 0);

    for (uint32_t i = lane; i < n_steps; i += 32) {
        const uint32_t expert = expert_of_choice(params, ids, first + i);
        if (expert != UINT32_MAX)
            atomicAdd(&next_row[expert], 1);
    }
    __syncthreads();

    /* Thread e: rows of expert e in the CTAs before this one, and in all. */
    const uint32_t expert = threadIdx.x;
    uint32_t n_before = 0, n_rows = 0;
    if (expert < n_experts) {
        if (n_ctas == 1) {
            for (uint32_t w = 0; w < n_parts; w++)
                n_rows += first_rows[w * n_experts + expert];
        } else {
#pragma unroll 32
            for (uint32_t b = 0; b < n_ctas; b++) {
                const uint32_t n = (uint32_t)params->counts[b * n_experts + expert];
                n_before += b < cta ? n : 0;
                n_rows += n;
            }
        }
    }
    const int cuts_tiles = cta == 0 && params->plan.tiles;
    const row_sum mine = {n_rows, cuts_tiles ? count_tiles(n_rows, (uint32_t)params->plan.tile_rows) : 0};
    row_sum all = {0, 0};
    const row_sum before = exclusive_scan(mine, &all);
    if (expert < n_experts) {
        uint32_t next = before.rows + n_before;
        for (uint32_t w = 0; w < n_parts; w++) {
            const uint32_t n = first_rows[w * n_experts + expert];
            first_rows[w * n_experts + expert] = next;
            next += n;
        }
    }
    __syncthreads();

    for (uint32_t i = lane; i < n_steps; i += 32) {
        const uint32_t choice = first + i;
        const uint32_t e = expert_of_choice(params, ids, choice);
        const uint32_t alike = lanes_alike<FEW_EXPERT_BITS>(e, __ballot_sync(EVERY_LANE, e != UINT32_MAX));
        const uint32_t rank = __popc(alike & ((1u << lane) - 1));
        int32_t row = -1;
        if (e != UINT32_MAX)
            row = (int32_t)(next_row[e] + rank);
        __syncwarp();
        if (e != UINT32_MAX) {
            params->plan.row_token[row] = (int32_t)(choice / (uint32_t)params->plan.top_k);
            if (alike >> lane == 1) /* the last of them */
                next_row[e] = (uint32_t)row + 1;
        }
        __syncwarp();
        if (choice < params->n_choices)
            params->plan.token_row[choice] = row;
    }
    if (cta == 0)
        write_offsets_and_tiles(&params->plan, mine, before, all.tiles);
}

/* Host side. How a plan of few experts is divided. */
static inline plan_params cut_plan(const mb_moe_plan_args *args, void *workspace) {
    plan_params params = {};
    const int64_t n_choices = args->n_tokens * args->top_k, n_ctas = mb_plan_ctas(n_choices);
    const int64_t parts = n_ctas > 1 ? MAX_WARPS : (n_choices + 31) / 32;
    params.plan = *args;
    params.counts = (int32_t *)workspace;
    params.n_choices = (uint32_t)n_choices;
    params.n_parts = parts < 1 ? 1 : (uint32_t)parts;
    params.choices_per_warp =
        (uint32_t)((n_choices + 32 * n_ctas * params.n_parts - 1) / (32 * n_ctas * params.n_parts) * 32);
    return params;
}

static inline size_t first_rows_bytes(const plan_params *params) {
    return sizeof(uint32_t) * params->n_parts * (size_t)params->plan.n_local_experts;
}

/* The plan, and counters set to 0 on the way. The arguments were checked. */
mb_status mb_moe_plan_launch(const mb_moe_plan_args *args, int32_t *counters, int32_t n_counters,
                             void *workspace, size_t workspace_bytes, mb_stream stream);

/* The same for more than FEW_EXPERTS. */
mb_status mb_moe_plan_many_launch(const mb_moe_plan_args *args, int32_t *counters, int32_t n_counters,
                                  void *workspace, mb_stream stream);

mb_status mb_moe_plan_sm90_check(const mb_moe_plan_args *args);

#endif
