/*
 * weights.cuh - one thread of a CTA takes work items, writes them to the ring for the other roles, and
 * streams the weights of each by TMA. In a pair each CTA loads half of the rows and multicasts them to
 * both.
 */
#ifndef MB_OPS_MOE_EXPERTS_WEIGHTS_CUH
#define MB_OPS_MOE_EXPERTS_WEIGHTS_CUH

#include "ops/hopper/launch.cuh"
#include "ops/hopper/tma.cuh"
#include "ops/moe/experts/work.cuh"

/* Item `index` of the queue: all token tiles' column tiles of the first GEMM, then those of the second. */
static __device__ __forceinline__ item decode(const experts_params *p, uint32_t index,
                                              int32_t n_token_tiles) {
    item work = {NO_MORE, 0, 0, 0, 0, 0};
    int64_t first = 0; /* of this GEMM's items */
#pragma unroll
    for (int gemm = GEMM_FIRST; gemm <= GEMM_SECOND; gemm++) {
        const uint32_t n_column_tiles = (uint32_t)p->gemm[gemm].n_column_tiles;
        const int64_t end = first + (int64_t)n_token_tiles * n_column_tiles;
        if (index >= first && index < end) {
            const uint32_t i = index - (uint32_t)first;
            work.gemm = gemm;
            work.token_tile = (int32_t)(i / n_column_tiles);
            work.column_tile = (int32_t)(i % n_column_tiles);
        }
        first = end;
    }
    if (work.gemm == NO_MORE)
        return work;
    const mb_moe_token_tile tile = p->tiles[work.token_tile];
    work.expert = tile.expert;
    work.first_row = tile.first_row;
    work.n_rows = tile.n_rows;
    return work;
}

/* Item `index` of one group: bands of columns, in each all token tiles, in each the band's column tiles. */
static __device__ __forceinline__ item decode_dense(const experts_params *p, uint32_t index) {
    item work = {NO_MORE, 0, 0, 0, 0, 0};
    const experts_dense *d = &p->dense;
    const uint32_t n_token_tiles = (uint32_t)d->n_token_tiles,
                   n_columns = (uint32_t)p->gemm[GEMM_FIRST].n_column_tiles,
                   of_band = (uint32_t)d->band * n_token_tiles;
    if (index >= n_columns * n_token_tiles)
        return work;
    const uint32_t first_column = index / of_band * (uint32_t)d->band, i = index % of_band,
                   n = min((uint32_t)d->band, n_columns - first_column);
    work.gemm = GEMM_FIRST;
    work.token_tile = (int32_t)(i / n);
    work.column_tile = (int32_t)(first_column + i % n);
    work.first_row = work.token_tile * d->tile_rows;
    work.n_rows = min(d->tile_rows, d->n_rows - work.first_row);
    return work;
}

/* Takes the next item of the queue. Every item is taken this way, a CTA's first one too: so an item that
 * was taken belongs to a CTA that runs. Of a pair the first CTA takes it, for both. */
static __device__ __forceinline__ uint32_t take_item(const experts_params *p, int rank) {
    return rank == 0 ? (uint32_t)atomicAdd(p->next_item, 1) : 0;
}

/* Hands the index that the first CTA of a pair has taken to the second. Both return it. */
template <int n_ctas, class shared>
static __device__ __forceinline__ uint32_t hand_over(shared *s, int rank, uint32_t index,
                                                     mb_ring_cursor *handed) {
    if constexpr (n_ctas > 1) {
        if (rank == 0) {
            mb_mbarrier_wait(&s->index_empty[handed->at], handed->parity ^ 1);
            mb_store_async_cluster(&s->index[handed->at], &s->index_full[handed->at], 1, (int32_t)index);
        } else {
            mb_mbarrier_arrive_expect(&s->index_full[handed->at], sizeof(int32_t));
            mb_mbarrier_wait(&s->index_full[handed->at], handed->parity);
            index = (uint32_t)s->index[handed->at];
            mb_mbarrier_arrive_cluster(&s->index_empty[handed->at], 0);
        }
        mb_ring_advance<2>(handed);
    }
    return index;
}

/* The tokens of an item that are this CTA's of a pair. */
static __device__ __forceinline__ item half_of_pair(item work, int rank) {
    const int32_t half =
        ((work.n_rows + 1) / 2 + TOKEN_STEP_OF_PAIR - 1) / TOKEN_STEP_OF_PAIR * TOKEN_STEP_OF_PAIR;
    const int32_t begin = min(work.n_rows, rank * half);
    work.n_rows = min(work.n_rows - begin, half);
    work.first_row += begin;
    return work;
}

/* One k step of n_panels * 64 rows of the product's M from a matrix whose rows are K: a box of 64 by 64 for
 * each panel. */
template <int n_panels, int n_ctas>
static __device__ __forceinline__ void load_across(unsigned char *to, const experts_gemm *g, uint64_t *full,
                                                   int32_t column, int32_t k, int32_t expert) {
#pragma unroll
    for (int i = 0; i < n_panels; i++)
        if constexpr (n_ctas > 1)
            mb_tma_load_5d_multicast(to + i * 64 * ROW_BYTES, &g->weights, full, (1 << n_ctas) - 1,
                                     column + i * 64, k, expert, 0, 0);
        else
            mb_tma_load_5d(to + i * 64 * ROW_BYTES, &g->weights, full, column + i * 64, k, expert, 0, 0);
}

/* Few tokens: w2's weights are asked for when all but the last STAGES_AHEAD stages of w13 have arrived.
 * Before others' of w13 they would hold up h, without which w2 is not multiplied. (The stage waited for is
 * full without any other CTA: tokens of w13 are there.) */
template <class shared>
static __device__ __forceinline__ void wait_for_first(shared *s, int32_t n_first,
                                                      const mb_ring_cursor *stage) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    constexpr int back = STAGES_AHEAD + 1; /* from the next stage to the one that is waited for */
    static_assert(back <= n_stages, "the stage waited for is not in use for another step");
    if (back > n_first)
        return;
    const int is_this_pass = (int32_t)stage->at >= back;
    mb_mbarrier_wait(&s->full[stage->at + (is_this_pass ? 0 : n_stages) - back],
                     is_this_pass ? stage->parity ^ 1 : stage->parity);
}

template <int kind, int weight_rows, int n_ctas, class shared>
static __device__ __forceinline__ void stream_weights(const experts_params *p, shared *s, int rank) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    constexpr int k_step = traits<kind>::k_step;
    constexpr int my_rows = weight_rows / n_ctas; /* the CTAs of a pair load a half each, for both */
    constexpr int stage_bytes = weight_rows * ROW_BYTES;
    unsigned char *to = s->weights[0] + rank * my_rows * ROW_BYTES;
    mb_ring_cursor stage = {0, 1}, ring = {0, 1}, handed = {0, 0};
    int32_t n_first = 0;                  /* stages of the first GEMM that were asked for */
    uint32_t index = blockIdx.x / n_ctas; /* of the item, of one group */
    int32_t n_token_tiles = 0;
    item work;
    if constexpr (shared::is_dense)
        work = decode_dense(p, index);
    else {
        const uint32_t first = take_item(p, rank);
        n_token_tiles = *p->n_tiles; /* the load and the atomic are under way side by side */
        work = decode(p, hand_over<n_ctas>(s, rank, first, &handed), n_token_tiles);
    }
    for (;;) {
        mb_mbarrier_wait(&s->ring_empty[ring.at], ring.parity);
        s->ring[ring.at] = n_ctas > 1 ? half_of_pair(work, rank) : work;
        mb_mbarrier_arrive(&s->ring_full[ring.at]);
        mb_ring_advance<RING>(&ring);
        if (work.gemm == NO_MORE)
            break;

        const experts_gemm *g = &p->gemm[work.gemm];
        if constexpr (shared::is_few) {
            if (work.gemm == GEMM_FIRST)
                n_first += (g->k_size + k_step - 1) / k_step;
            else {
                wait_for_first(s, n_first, &stage);
                n_first = 0;
            }
        }
        const int32_t tile_rows = item_rows<weight_rows, shared>(g);
        const int32_t row_group = (work.column_tile * tile_rows + rank * my_rows) / (g->gated ? 16 : 8);
        const auto load_steps = [&](int32_t begin, int32_t end) {
            for (int32_t k = begin; k < end; k += k_step) {
                mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
                mb_mbarrier_arrive_expect(&s->full[stage.at], tile_rows * ROW_BYTES);
                if constexpr (shared::across)
                    load_across<my_rows / 64, n_ctas>(to + stage.at * stage_bytes, g, &s->full[stage.at],
                                                      work.column_tile * weight_rows + rank * my_rows, k,
                                                      work.expert);
                else if constexpr (n_ctas > 1)
                    mb_tma_load_5d_multicast(to + stage.at * stage_bytes, &g->weights, &s->full[stage.at],
                                             (1 << n_ctas) - 1, k, 0, 0, row_group, work.expert);
                else if (p->read_once)
                    mb_tma_load_5d_evict_first(to + stage.at * stage_bytes, &g->weights, &s->full[stage.at],
                                               k, 0, 0, row_group, work.expert);
                else
                    mb_tma_load_5d(to + stage.at * stage_bytes, &g->weights, &s->full[stage.at], k, 0, 0,
                                   row_group, work.expert);
                mb_ring_advance<n_stages>(&stage);
            }
        };
        /* The atomic is slow: issue it now, use its result once this item's first loads are in flight. */
        const uint32_t taken = shared::is_dense ? 0 : take_item(p, rank);
        const int32_t k_first = min(g->k_size, n_stages * k_step);
        load_steps(0, k_first);
        item next;
        if constexpr (shared::is_dense) {
            index += gridDim.x / n_ctas;
            next = decode_dense(p, index);
        } else
            next = decode(p, hand_over<n_ctas>(s, rank, taken, &handed), n_token_tiles);
        load_steps(k_first, g->k_size);
        if constexpr (shared::is_dense || shared::has_p)
            for (int32_t i = 0; i < g->late_steps; i++) { /* the gathering warps fill them */
                mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
                mb_mbarrier_arrive(&s->full[stage.at]);
                mb_ring_advance<n_stages>(&stage);
            }
        work = next;
    }
    if constexpr (shared::is_dense)
        mb_grid_wait(); /* who starts now may rely on what came before this kernel */
    /* Never in front of the wait: the next kernel reads, before its own wait, choices and weights that the
     * kernel in front of this one wrote (reduce, and gemm's x_sum). */
    mb_grid_launch_dependents();
}

#endif
