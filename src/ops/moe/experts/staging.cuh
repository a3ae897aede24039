/*
 * staging.cuh - how a finished tile gets from the consumers' registers to the storing warps: through shared
 * memory, so that the next tile is multiplied while this one is stored.
 *
 * A region holds 64 outputs of 16 bits (or 128 of fp8) of every token: a row of 128 bytes a token, swizzled
 * as a stage is. A tile is staged in one or more rounds; rounds take slots in turn, of which there are one
 * or two. A slot is a pair of barriers:
 *
 *    consumers   wait for staged_empty[slot], write, arrive at staged_full[slot]
 *    storers     wait for staged_full[slot], copy to memory, arrive at staged_empty[slot]
 *
 * Where a round's regions are depends on the tile. In the drawings time goes to the right, A and B are
 * tiles.
 *
 *
 * STAGING_WHOLE: tiles of 64 and 128 weight rows, which leave room for all of a tile's outputs.
 *
 *    layout   weight_rows / 64 regions beside the stages; a tile is one round, one slot
 *    waits    the consumers, with tile B finished, while tile A is still being stored
 *    frees    the storers, by staged_empty
 *
 *    consumers   | multiply A          |stage A| multiply B          |stage B|
 *    storers                                   | store A    |                | store B    |
 *
 *
 * STAGING_TURNS: the large tile of fp8 with block scales, which leaves room for two regions.
 *
 *    layout   a round is one region: 64 outputs of 16 bits, or 128 of fp8; two slots, a region each. A CTA
 *             with at most FEW_TOKENS cuts a region in four, and all outputs in 16 bits are one round
 *    waits    the consumers, before round i, until round i - 2 is stored
 *    frees    the storers, by staged_empty
 *
 *    consumers   | multiply A          | A0 | A1 | A2 | A3 | multiply B          | B0 | B1 |
 *    storers                                | A0 | A1 | A2 | A3 |                     | B0 | B1 |
 *
 *
 * STAGING_STAGES: the other tiles of 256 weight rows, which leave no room. Their outputs lie where the
 * tile's own last k steps were: in stages that are held back.
 *
 *    layout   a round is 128 outputs in one stage: 64 in place of its weights, 64 in place of its tokens. A
 *             gated tile is one round, in the last stage; a plain tile two, in the last two. Two slots
 *    waits    the producers of both CTAs at a held stage, since stages are a ring: storing must be quick. The
 *             consumers before the epilogue, for each other: no wgmma may still read a held stage. (Where K
 *             is one k step both rounds are in the same stage: round 1 waits until round 0 is stored.)
 *    frees    the storers: staged_empty for the consumers, `empty` of the held stage for the producers
 *    p kept   two more rounds: gated one of the gates and one of the ups, else 128 rows each. Rounds use the
 *             last two stages in turns, as they use the slots. So no more stages are held than without p
 *
 *    producers   | A: .. 2 3 | B: 0 1 | wait for stage 2     | 2 | 3 0 1 ...      (numbers are stages)
 *    consumers     | multiply A       | A0 | A1 | multiply B: 0 1 ...
 *    storers                               | A0: frees 2     | A1: frees 3 |
 *
 *
 * STAGING_NONE: fp32 results go from registers to memory, 32 bytes of a row by eight lanes. The slot's
 * barriers only say when a tile is finished.
 */
#ifndef MB_OPS_MOE_EXPERTS_STAGING_CUH
#define MB_OPS_MOE_EXPERTS_STAGING_CUH

#include "ops/moe/experts/work.cuh"

enum experts_staging { STAGING_NONE, STAGING_WHOLE, STAGING_TURNS, STAGING_STAGES };

template <int kind, int weight_rows>
constexpr int staging_of = kind == KIND_TF32        ? STAGING_NONE
                           : weight_rows < 256      ? STAGING_WHOLE
                           : kind == KIND_FP8_BLOCK ? STAGING_TURNS
                                                    : STAGING_STAGES;

enum {
    STAGED_OUTPUTS = 64, /* of 16 bits, in a region */
    P_ROUNDS = 2,        /* USE_SAVING_P: rounds of an item's p, after those of its h */
    MOST_HELD = 2,       /* USE_SAVING_P: an item has two rounds at least */
};

/* ---- How an item's tile is cut into rounds, and where they are */

typedef struct staging_rounds {
    int32_t n, outputs;        /* rounds, outputs of each */
    int32_t n_k_steps, n_held; /* STAGING_STAGES: of the item; how many of the last ones' stages are held */
    uint32_t stride;           /* bytes from one region to the next */
} staging_rounds;

template <int kind, class shared>
static __device__ __forceinline__ staging_rounds rounds_of(const experts_gemm *g, const item *work,
                                                           int32_t tile_outputs) {
    staging_rounds r = {1, tile_outputs, 0, 0, shared::region_bytes};
    if (shared::staging == STAGING_TURNS && work->n_rows <= FEW_TOKENS) {
        r.stride = FEW_TOKENS * ROW_BYTES;
    } else if constexpr (shared::staging == STAGING_TURNS) {
        r.outputs = g->store == STORE_FP8_BLOCK ? 2 * STAGED_OUTPUTS : STAGED_OUTPUTS;
        r.n = tile_outputs / r.outputs;
    } else if constexpr (shared::staging == STAGING_STAGES) {
        r.outputs = 2 * STAGED_OUTPUTS;
        r.n = tile_outputs / r.outputs;
        r.n_k_steps = (g->k_size + traits<kind>::k_step - 1) / traits<kind>::k_step;
        if constexpr (shared::is_dense)
            r.n_k_steps += g->late_steps;
        if constexpr (shared::saves_p)
            if (work->gemm == GEMM_FIRST)
                r.n += P_ROUNDS;
        r.n_held = min(shared::saves_p ? MOST_HELD : r.n, r.n_k_steps);
    }
    return r;
}

/* The stage that holds round i. stage_end: the stage behind the item's last. */
template <int saves_p>
static __device__ __forceinline__ int32_t held_stage(const staging_rounds *r, int i, uint32_t stage_end,
                                                     int n_stages) {
    const int32_t back = saves_p ? min(1 + (r->n - 1 - i) % MOST_HELD, r->n_held) : min(r->n - i, r->n_held);
    return ((int32_t)stage_end + n_stages - back) % n_stages;
}

/* The regions of a round, `stride` bytes apart; the first one begins with the tile's output `first`. */
typedef struct staging_area {
    uint32_t base, stride;
    int32_t first;
} staging_area;

template <class shared>
static __device__ __forceinline__ staging_area area_of_round(shared *s, const staging_rounds *r, int32_t i,
                                                             uint32_t stage_end, uint32_t slot) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    if (shared::staging == STAGING_STAGES) {
        const int32_t stage = held_stage<shared::saves_p>(r, i, stage_end, n_stages);
        const uint32_t base = mb_shared_address(s->weights[stage]);
        return {base, mb_shared_address(s->tokens[stage]) - base, i * r->outputs};
    }
    return {mb_shared_address(s->regions) +
                (shared::staging == STAGING_TURNS ? slot * shared::region_bytes : 0),
            r->stride, i * r->outputs};
}

/* The region of an output of the tile. */
static __device__ __forceinline__ uint32_t region_at(staging_area area, int32_t output) {
    return area.base + (output - area.first) / STAGED_OUTPUTS * area.stride;
}

/* Chunk number `chunk` of a token in a region: 16 bytes, 8 outputs of 16 bits. */
static __device__ __forceinline__ uint32_t chunk_at(uint32_t region, int token, int chunk) {
    return region + token * ROW_BYTES + (chunk ^ (token % 8)) * 16;
}

/* ---- The consumers' side */

/* Until the slot's regions may be written. is_same_stage: they are those of the round before. */
template <class shared>
static __device__ __forceinline__ void wait_to_stage(shared *s, const mb_ring_cursor *slot,
                                                     int is_same_stage) {
    mb_mbarrier_wait(&s->staged_empty[slot->at], slot->parity ^ 1);
    if (shared::staging == STAGING_STAGES && is_same_stage) {
        const mb_ring_cursor before = mb_ring_before<shared::n_slots>(slot);
        mb_mbarrier_wait(&s->staged_empty[before.at], before.parity);
    }
}

template <class shared> static __device__ __forceinline__ void say_staged(shared *s, mb_ring_cursor *slot) {
    mb_mbarrier_arrive(&s->staged_full[slot->at]);
    mb_ring_advance<shared::n_slots>(slot);
}

/* ---- The storing warps' side */

template <class shared>
static __device__ __forceinline__ void wait_staged(shared *s, const mb_ring_cursor *slot) {
    mb_mbarrier_wait(&s->staged_full[slot->at], slot->parity);
}

/* Round i is stored. A held stage goes back to the producers of all CTAs, for all consumers of this one. */
template <int n_warpgroups, int n_ctas, class shared>
static __device__ __forceinline__ void say_stored(shared *s, const staging_rounds *r, int32_t i,
                                                  uint32_t stage_end, mb_ring_cursor *slot) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    if constexpr (shared::staging == STAGING_STAGES)
        if (shared::saves_p ? i >= r->n - r->n_held : r->n_held == r->n || i == r->n - 1) {
            mb_fence_async_shared(); /* ordinary accesses before what the copy engine writes next */
            release_stage<n_ctas, n_warpgroups>(
                &s->empty[held_stage<shared::saves_p>(r, i, stage_end, n_stages)]);
        }
    mb_mbarrier_arrive(&s->staged_empty[slot->at]);
    mb_ring_advance<shared::n_slots>(slot);
}

#endif
