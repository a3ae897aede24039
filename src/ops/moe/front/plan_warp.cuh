/*
 * plan_warp.cuh - the plan of at most 32 choices: a lane has a choice and compares it with all others.
 * Nothing is counted in shared memory, and no sums go from warp to warp.
 */
#ifndef MB_OPS_MOE_PLAN_WARP_CUH
#define MB_OPS_MOE_PLAN_WARP_CUH

#include "ops/moe/front/plan.cuh"

enum { WARP_CHOICES = 32 };

/* What one warp writes: rows, and tiles. expert: of the choice that is this lane's; UINT32_MAX when it is not
 * local, or when the lane has none. */
static __device__ __forceinline__ void place_by_lanes(const plan_params *params, uint32_t expert) {
    const mb_moe_plan_args *plan = &params->plan;
    const uint32_t lane = threadIdx.x % 32, n = params->n_choices;
    uint32_t smaller = 0, alike = 0; /* the choices of smaller experts, and of this one: a bit each */
#pragma unroll 8
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t other = __shfl_sync(EVERY_LANE, expert, i);
        smaller |= (uint32_t)(other < expert) << i;
        alike |= (uint32_t)(other == expert) << i;
    }
    const int is_local = expert != UINT32_MAX;
    const uint32_t earlier = alike & ((1u << lane) - 1), first_row = __popc(smaller);
    const uint32_t row = first_row + __popc(earlier);
    if (is_local)
        plan->row_token[row] = (int32_t)(lane / (uint32_t)plan->top_k);
    if (lane < n)
        plan->token_row[lane] = is_local ? (int32_t)row : -1;
    if (!plan->tiles)
        return;
    /* An expert's first choice cuts its tiles. */
    const int is_first = is_local && earlier == 0;
    const uint32_t n_rows = __popc(alike), tile_rows = (uint32_t)plan->tile_rows;
    const uint32_t mine = is_first ? count_tiles(n_rows, tile_rows) : 0;
    const uint32_t firsts = __ballot_sync(EVERY_LANE, is_first);
    uint32_t before = __popc(smaller & firsts), n_tiles = __popc(firsts), size = n_rows;
    if (__any_sync(EVERY_LANE, mine > 1)) {
        n_tiles = __reduce_add_sync(EVERY_LANE, mine);
        before = 0;
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t other = __shfl_sync(EVERY_LANE, mine, i);
            before += smaller >> i & 1 ? other : 0;
        }
        size = tile_size(n_rows, mine, (uint32_t)plan->tile_step);
    }
    if (lane == 0)
        *plan->n_tiles = (int32_t)n_tiles;
    const tile_cut cut = {plan->tiles, tile_rows, (uint32_t)plan->tile_step, 0, 0, 0, 1};
    for (uint32_t i = 0; i < mine; i++)
        store_tile(&cut, before + i, expert, first_row + i * size, min(n_rows - i * size, size));
}

/* Warp `part` of n_parts writes its experts' offsets; expert: as above. */
static __device__ __forceinline__ void write_offsets_by_lanes(const plan_params *params, uint32_t expert,
                                                              uint32_t part, uint32_t n_parts) {
    const uint32_t lane = threadIdx.x % 32, n = params->n_choices;
    const uint32_t n_experts = (uint32_t)params->plan.n_local_experts;
    for (uint32_t first = 32 * part; params->plan.offsets && first <= n_experts; first += 32 * n_parts) {
        uint32_t n_before = 0;
#pragma unroll 8
        for (uint32_t i = 0; i < n; i++)
            n_before += __shfl_sync(EVERY_LANE, expert, i) < first + lane;
        if (first + lane <= n_experts)
            params->plan.offsets[first + lane] = (int32_t)n_before;
    }
}

#endif
