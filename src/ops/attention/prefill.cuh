/* prefill.cuh - shared memory of prefill_sm90.cu, its rings and its producer. */
#ifndef MB_OPS_ATTENTION_PREFILL_CUH
#define MB_OPS_ATTENTION_PREFILL_CUH

#include "ops/attention/rows.cuh"
#include "ops/attention/softmax.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/tma.cuh"

enum { WARPGROUP = 128, N_CONSUMERS = 2, GROUP_ROWS = TILE_ROWS / N_CONSUMERS };
enum { N_STAGES = 2 }; /* of the rings */
enum { N_THREADS = (N_CONSUMERS + 1) * WARPGROUP, PANEL_BYTES = 128, PANEL_DIMS = PANEL_BYTES / 2 };

/* Named barriers: a turn of each consumer warpgroup, and each of them alone. */
enum { TURN_BARRIER = 1, GROUP_BARRIER = TURN_BARRIER + N_CONSUMERS };

typedef struct prefill_params {
    mb_attention_args args;
    CUtensorMap k, v;
    uint32_t n_places, n_items; /* an item: a place and a kv head */
    uint32_t n_together;        /* kv heads whose K and V are in the L2 cache together */
    uint32_t *next_item;        /* NULL: CTAs take them in turns */
    float heads_inverse;        /* 1 / query heads of a kv head */
} prefill_params;

/* Where a tile begins, for nobody else to divide. */
typedef struct tile_start {
    int32_t token, head; /* the first row's, of the sequence's and of the kv head's */
    int32_t n_steps;     /* until the last row has seen all it sees */
} tile_start;

/* Matrices lie in panels of 64 dimensions: rows of 128 bytes, swizzled by 128 bytes. */
template <int dim> struct shared_map {
    unsigned char q[2][N_CONSUMERS][GROUP_ROWS * dim * 2]; /* of this tile and the next */
    unsigned char k[N_STAGES][STEP * dim * 2], v[N_STAGES][STEP * dim * 2];
    /* The sums of former spans, each thread's own; at a tile's end the warp's 16 rows of the output. */
    float4 former[N_CONSUMERS * WARPGROUP / 32][dim / 16][32];
    uint64_t k_full[N_STAGES], k_empty[N_STAGES], v_full[N_STAGES], v_empty[N_STAGES];
    uint64_t tile_full, tile_empty; /* the next tile's: tiles[i % 2] is in use until tile i + 1 begins */
    uint64_t fresh;                 /* see keep_order */
    query_rows tiles[2];            /* sequence -1: there are no more */
    tile_start starts[2];
};

/* Where a step is in its ring: steps are counted on through all tiles of a CTA. */
static __device__ __forceinline__ uint32_t stage_of(uint32_t count) {
    static_assert(N_STAGES == 2, "the rule is for two");
    return count % 2;
}
static __device__ __forceinline__ uint32_t parity_of(uint32_t count) {
    return count / 2 % 2;
}

/* ---- tiles */

/* The CTA's next tile, from the last place on, where a sequence's rows are longest. Sequence -1: there are no
 * more. round: in turns, how often the CTA has asked; the turns go forth and back. */
static __device__ __forceinline__ query_rows next_tile(const prefill_params *p, uint32_t *round) {
    query_rows tile;
    for (;;) {
        uint32_t item;
        if (p->next_item) {
            item = atomicAdd(p->next_item, 1);
        } else {
            const uint32_t i = (*round)++;
            item = i * gridDim.x + (i % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
            if (i % 2 && item >= p->n_items) /* one of the last turn; the next is no more one of any */
                continue;
        }
        if (item >= p->n_items) {
            tile.sequence = -1;
            return tile;
        }
        const uint32_t section = item / (p->n_places * p->n_together),
                       i = item % (p->n_places * p->n_together);
        if (tile_of_place(&p->args, (int32_t)(p->n_places - 1 - i / p->n_together),
                          (int32_t)(section * p->n_together + i % p->n_together), &tile))
            return tile;
    }
}

static __device__ __forceinline__ int32_t count_steps(const query_rows *tile) {
    return (visible_to(tile, TILE_ROWS - 1) + STEP - 1) / STEP;
}

/* ---- producer */

/* The blocks of a step: dim / 64 boxes of each. A block that the sequence does not have is left out. */
template <int dim>
static __device__ __forceinline__ void load_step(unsigned char *to, const CUtensorMap *map, uint64_t *full,
                                                 int32_t n_blocks,
                                                 const int32_t (&row_of_block)[STEP_BLOCKS]) {
    mb_mbarrier_arrive_expect(full, (uint32_t)n_blocks * BLOCK * dim * 2);
#pragma unroll
    for (int b = 0; b < STEP_BLOCKS; b++)
        if (b < n_blocks)
#pragma unroll
            for (int panel = 0; panel < dim / PANEL_DIMS; panel++)
                mb_tma_load_5d(to + (panel * STEP + b * BLOCK) * PANEL_BYTES, map, full, panel * PANEL_DIMS,
                               0, 0, 0, row_of_block[b]);
}

/* Takes tiles for all others. */
template <int dim>
static __device__ __forceinline__ void find_tiles(const prefill_params *p, shared_map<dim> *s) {
    uint32_t round = 0;
    for (uint32_t i_tile = 0;; i_tile++) {
        mb_mbarrier_wait(&s->tile_empty, i_tile % 2 ^ 1);
        const query_rows tile = next_tile(p, &round);
        s->tiles[i_tile % 2] = tile;
        if (tile.sequence >= 0) {
            const int32_t token = tile.first / tile.group;
            s->starts[i_tile % 2] = {token, tile.first - token * tile.group, count_steps(&tile)};
        }
        mb_mbarrier_arrive(&s->tile_full);
        if (tile.sequence < 0)
            break;
    }
}

template <int dim>
static __device__ __forceinline__ void produce(const prefill_params *p, shared_map<dim> *s) {
    uint32_t at = 0;
    for (uint32_t i_tile = 0;; i_tile++) {
        mb_mbarrier_wait(&s->tile_full, i_tile % 2);
        const query_rows tile = s->tiles[i_tile % 2];
        const int32_t n_steps = s->starts[i_tile % 2].n_steps;
        mb_mbarrier_arrive(&s->tile_empty);
        if (tile.sequence < 0)
            break;
        const int32_t *blocks = p->args.block_table + (int64_t)tile.sequence * p->args.max_blocks;
        int32_t n_blocks = (tile.kv_len + BLOCK - 1) / BLOCK; /* from `blocks` on */
        for (int32_t i = n_steps; i > 0; i--, at++, blocks += STEP_BLOCKS, n_blocks -= STEP_BLOCKS) {
            const int32_t n = min(STEP_BLOCKS, n_blocks);
            int32_t row_of_block[STEP_BLOCKS];
#pragma unroll
            for (int b = 0; b < STEP_BLOCKS; b++)
                row_of_block[b] = b < n ? blocks[b] * p->args.n_kv_heads + tile.kv_head : 0;
            const uint32_t stage = stage_of(at), parity = parity_of(at) ^ 1;
            mb_mbarrier_wait(&s->k_empty[stage], parity);
            load_step<dim>(s->k[stage], &p->k, &s->k_full[stage], n, row_of_block);
            mb_mbarrier_wait(&s->v_empty[stage], parity);
            load_step<dim>(s->v[stage], &p->v, &s->v_full[stage], n, row_of_block);
        }
    }
    mb_grid_launch_dependents();
}

#endif
