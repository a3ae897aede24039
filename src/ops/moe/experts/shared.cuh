/*
 * shared.cuh - what the roles of the experts' kernel share: sizes, the shared memory's map, the ring
 * of work items.
 */
#ifndef MB_OPS_MOE_EXPERTS_SHARED_CUH
#define MB_OPS_MOE_EXPERTS_SHARED_CUH

#include "ops/hopper/barrier.cuh"
#include "ops/hopper/cluster.cuh"
#include "ops/hopper/memory.cuh"
#include "ops/moe/experts/params.cuh"

enum {
    ROW_BYTES = 128, /* of one row of a stage: the width of the swizzle */
    WARPGROUP = 128,
    GATHER_WARPS = 3,
    GATHER_THREADS = 32 * GATHER_WARPS,
    GATHER_ROWS = GATHER_THREADS / 8, /* rows that one pass of the gather warps covers, 8 lanes a row */
    STORE_WARPS = 4,
    STORE_THREADS = 32 * STORE_WARPS,
    STORE_BARRIER = 1,         /* named barrier of the storing warps */
    CONSUMER_BARRIER = 2,      /* of the consumers */
    RING = 6,                  /* items handed out ahead */
    TOKEN_STEP_OF_PAIR = 8,    /* a pair of CTAs cuts a tile's tokens at multiples of it */
    SCALE_BLOCK = MB_F8_BLOCK, /* columns of one fp8 scale */
    FEW_TOKENS = 32,           /* up to so many of a CTA's are wgmma's N in any tile */
};

enum { GEMM_FIRST, GEMM_SECOND, NO_MORE };

/* One work item: a piece of an expert's matrix times a token tile. */
typedef struct item {
    int32_t gemm, expert, token_tile, piece, first_row, n_rows;
} item;

template <int kind> struct traits {
    static constexpr int element_bytes = kind == KIND_TF32                                   ? 4
                                         : kind == KIND_FP8_TENSOR || kind == KIND_FP8_BLOCK ? 1
                                                                                             : 2;
    static constexpr int k_step = ROW_BYTES / element_bytes; /* elements of K in a stage */
};

/*
 * A finished tile is staged in 16 bits: regions of 64 outputs, in each a row of 128 bytes a token. Usually
 * there is room for all of a tile. Tiles of 256 weight rows are staged in rounds:
 *
 * fp8 with block scales (consume_tokens.cuh) has two regions, used in turns: a round is one, 64
 * outputs of 16 bits or 128 of fp8. Where a CTA has up to FEW_TOKENS of the tile's, all outputs in 16 bits
 * fit into one: a region is cut into four, and there is one round.
 *
 * The others have no room. They are staged in the stages that their own last steps of K came in, which are
 * given back when they have been stored: 128 outputs a round, the first 64 in the stage's weights, the others
 * in its tokens. A gated tile is one round, in the last stage; a plain one two, in the last two.
 */
template <int kind, int weight_rows, int n_groups, int cta_tokens, int n_stages> struct shared_map {
    static constexpr int by_tokens = kind == KIND_FP8_BLOCK && weight_rows == 256;
    static constexpr int in_stages = weight_rows == 256 && !by_tokens;
    static constexpr int staged_regions = kind == KIND_TF32 || in_stages ? 0
                                          : by_tokens                    ? 2
                                                                         : weight_rows / 64;
    static constexpr int few_tokens = by_tokens ? FEW_TOKENS : 0;
    static constexpr int n_rounds = weight_rows == 256 ? 2 : 1; /* that can wait for being stored */
    static constexpr int region_bytes = cta_tokens * ROW_BYTES;
    unsigned char weights[n_stages][weight_rows * ROW_BYTES];
    unsigned char tokens[n_stages][cta_tokens * ROW_BYTES];
    unsigned char staging[staged_regions > 0 ? staged_regions *region_bytes : 16];
    float token_scale[kind == KIND_FP8_BLOCK ? n_stages : 1][cta_tokens];
    float row_scale[by_tokens ? n_stages : 1][by_tokens ? weight_rows / 8 : 1]; /* of eight rows each */
    uint32_t row_scale_at[by_tokens ? weight_rows / 8 : 1];                     /* where the item's begin */
    uint64_t full[n_stages], empty[n_stages];
    uint64_t staged_full[n_rounds], staged_empty[n_rounds];
    uint64_t ring_full[RING], ring_empty[RING];
    uint64_t index_full[2], index_empty[2];
    int32_t index[2]; /* of items, from the CTA of a pair that takes them to the other */
    int32_t n_done;   /* the storing warps': pieces of a block before this one */
    item ring[RING];
};

/* How an item's tile is cut into rounds of staging, and which stages they hold. */
typedef struct rounds {
    int32_t n, outputs;      /* rounds, outputs of each */
    int32_t n_steps, n_held; /* steps of K; how many of the last ones' stages are held back */
    uint32_t stride;         /* bytes from one region to the next */
} rounds;

template <int kind, class shared>
static __device__ __forceinline__ rounds rounds_of(const gemm_params *g, const item *work,
                                                   int32_t tile_outputs) {
    rounds r = {1, tile_outputs, 0, 0, shared::region_bytes};
    if (shared::by_tokens && work->n_rows <= shared::few_tokens) {
        r.stride = shared::few_tokens * ROW_BYTES;
    } else if constexpr (shared::by_tokens) {
        r.outputs = g->store == STORE_FP8_BLOCK ? 128 : 64;
        r.n = tile_outputs / r.outputs;
    } else if constexpr (shared::in_stages) {
        r.outputs = 128;
        r.n = tile_outputs / 128;
        r.n_steps = (g->k_size + traits<kind>::k_step - 1) / traits<kind>::k_step;
        r.n_held = min(r.n, r.n_steps);
    }
    return r;
}

/* The stage that round i is in; `end` is the stage behind the item's last. */
static __device__ __forceinline__ int32_t stage_of_round(const rounds *r, int i, uint32_t end, int n_stages) {
    const int32_t back = min(r->n - i, r->n_held);
    return ((int32_t)end + n_stages - back) % n_stages;
}

/* Where the regions of a round are: `stride` bytes apart, the first one holds the tile's outputs from
 * `first`. */
typedef struct staging_area {
    uint32_t base, stride;
    int32_t first;
} staging_area;

/* Where round i of a tile is staged; stage_end: the stage behind the item's last; at: which of the rounds
 * that can wait it is. */
template <class shared>
static __device__ __forceinline__ staging_area staging_of(shared *s, const rounds *r, int32_t i,
                                                          uint32_t stage_end, uint32_t at) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    if (shared::in_stages) {
        const int32_t stage = stage_of_round(r, i, stage_end, n_stages);
        const uint32_t base = mb_shared_address(s->weights[stage]);
        return {base, mb_shared_address(s->tokens[stage]) - base, i * r->outputs};
    }
    return {mb_shared_address(s->staging) + (shared::by_tokens ? at * shared::region_bytes : 0), r->stride,
            i * r->outputs};
}

/* The region of an output of the tile. */
static __device__ __forceinline__ uint32_t region_of(staging_area area, int32_t output) {
    return area.base + (output - area.first) / 64 * area.stride;
}

/* Position in a circle of n buffers, with the parity of the pass. */
typedef struct cursor {
    uint32_t at, parity;
} cursor;

template <int n> static __device__ __forceinline__ void advance(cursor *c) {
    if (++c->at == n) {
        c->at = 0;
        c->parity ^= 1;
    }
}

/* The next item of the ring, in shared memory: it stays there until release_item. (Who reads it again after a
 * long loop keeps no registers for it.) */
template <class shared>
static __device__ __forceinline__ const item *wait_item(shared *s, const cursor *ring) {
    mb_mbarrier_wait(&s->ring_full[ring->at], ring->parity);
    return &s->ring[ring->at];
}

/* Every lane says itself that it has read: quicker than one for its warp. */
template <class shared> static __device__ __forceinline__ void release_item(shared *s, cursor *ring) {
    mb_mbarrier_arrive(&s->ring_empty[ring->at]);
    advance<RING>(ring);
}

template <class shared> static __device__ __forceinline__ item next_item(shared *s, cursor *ring) {
    const item work = *wait_item(s, ring);
    release_item(s, ring);
    return work;
}

/* Says to all CTAs of the cluster that a stage has been read, in the place of n consumer threads. Every lane
 * says it for itself here too. */
template <int n_ctas, int n> static __device__ __forceinline__ void release(uint64_t *empty) {
    static_assert(n_ctas > 1 || n == 1, "stages are held in pairs only");
    if constexpr (n_ctas == 1)
        mb_mbarrier_arrive(empty);
    else
#pragma unroll
        for (int cta = 0; cta < n_ctas; cta++)
            mb_mbarrier_arrive_cluster_n(empty, cta, n);
}

#endif
