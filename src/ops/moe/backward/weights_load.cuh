/*
 * weights_load.cuh - the producers' warpgroup: all of its threads copy rows of P by index, and one of them
 * asks the copy engine for Q.
 *
 * Steps are one stream over all items of the pair, so the row indices of a step are loaded while the
 * producers wait for the stage of the step before, also from one item to the next.
 */
#ifndef MB_OPS_MOE_BACKWARD_WEIGHTS_LOAD_CUH
#define MB_OPS_MOE_BACKWARD_WEIGHTS_LOAD_CUH

#include "ops/hopper/cp_async.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/tma.cuh"
#include "ops/moe/backward/weights_work.cuh"

enum {
    LOAD_ROWS = WARPGROUP / CHUNKS, /* rows that the warpgroup copies side by side, 16 lanes a row */
    LANE_ROWS = 32 / CHUNKS,        /* of these, a warp's */
    N_COPIES = STEP / LOAD_ROWS,
    WARP_ROWS = N_COPIES * LANE_ROWS, /* of a step */
};
static_assert(LOAD_ROWS == 8, "the rows of a thread have one place in the swizzle");

/* STEP rows of an item. */
typedef struct load_step {
    int32_t item, p, q; /* and the pair tile's first columns */
    row_range rows;     /* of the expert */
    int32_t first;      /* row of the step, counted from rows.begin */
} load_step;

static __device__ __forceinline__ load_step first_step_of(const weights_params *p, int32_t item,
                                                          row_range rows) {
    return {item, p_of_item(p, item), q_of_item(p, item), rows, 0};
}

/* Goes on to the next item that has rows, if this one has none left. `next`: the rows of the item after
 * this one, loaded an item ahead. */
static __device__ __forceinline__ void skip_finished(const weights_params *p, load_step *step,
                                                     row_range *next) {
    while (step->item < p->n_items && step->first >= step->rows.end - step->rows.begin) {
        const int32_t item = step->item + n_pairs();
        *step = first_step_of(p, item, *next);
        *next = rows_of_item(p, item + n_pairs());
    }
}

/*
 * Index of a row of P, -1 if there is none. A warp copies WARP_ROWS rows of a step, so one load of a lane
 * brings one of them: lane l has the warp's row number l % WARP_ROWS. deal_index() hands it to the lanes
 * that copy the row. (Each lane loading all of its indices took a producer longer than the consumers
 * multiply.)
 */
static __device__ __forceinline__ int32_t load_index(const weights_params *p, const load_step *step) {
    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x % WARPGROUP / 32;
    const int32_t of_warp = lane % WARP_ROWS;
    const int32_t row = step->rows.begin + step->first + of_warp / LANE_ROWS * LOAD_ROWS + warp * LANE_ROWS +
                        of_warp % LANE_ROWS;
    int32_t index = row;
    if (step->item >= p->n_items || row >= step->rows.end)
        index = -1;
    else if (p->p_index)
        index = __ldg(p->p_index + row);
    return index;
}

/* Of this lane's row in copy number i. */
static __device__ __forceinline__ int32_t deal_index(int32_t index, int32_t my_row, int i) {
    return __shfl_sync(0xffffffff, index, i * LANE_ROWS + my_row % LANE_ROWS);
}

/* This CTA's half of the columns of Q, to both CTAs of the pair. */
static __device__ __forceinline__ void load_q(const weights_params *p, weights_shared *s,
                                              const load_step *step, uint32_t stage, int rank) {
    constexpr int n_panels = PAIR_Q / PANEL / N_CTAS;
    const int32_t n_rows = step->rows.end - step->rows.begin;
    mb_mbarrier_arrive_expect(&s->full[stage], Q_BYTES);
#pragma unroll
    for (int i = 0; i < n_panels; i++) {
        const int panel = rank * n_panels + i;
        mb_tma_load_5d_multicast(s->q[stage] + panel * PANEL_BYTES, &p->q, &s->full[stage], (1 << N_CTAS) - 1,
                                 step->q + panel * PANEL, ROWS_END - n_rows + step->first, step->rows.end,
                                 ROWS_END, 0);
    }
}

static __device__ __forceinline__ void load_steps(const weights_params *p, weights_shared *s, int rank) {
    const int32_t thread = threadIdx.x % WARPGROUP, chunk = thread % CHUNKS, my_row = thread / CHUNKS;
    const uint32_t place = gathered_at(my_row, chunk);
    mb_ring_cursor stage = {0, 1};
    load_step step = first_step_of(p, first_item(), rows_of_item(p, first_item()));
    row_range next = rows_of_item(p, first_item() + n_pairs());
    skip_finished(p, &step, &next);
    int32_t index = load_index(p, &step);
    while (step.item < p->n_items) {
        load_step following = step;
        following.first += STEP;
        skip_finished(p, &following, &next);
        const int32_t following_index = load_index(p, &following);

        const int32_t column = step.p + rank * CTA_P + chunk * 8;
        const int is_inside = column < p->p_columns;
        const unsigned char *from = p->p + (is_inside ? column * 2 : 0);
        mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
        if (thread == 0)
            load_q(p, s, &step, stage.at, rank);
        __syncwarp();
        const uint32_t to = mb_shared_address(s->p[stage.at]) + place;
#pragma unroll
        for (int i = 0; i < N_COPIES; i++) { /* past the expert's rows and the last column: zeros */
            const int32_t row = deal_index(index, my_row, i);
            mb_cp_async_16(to + i * LOAD_ROWS * LINE_BYTES, from + (int64_t)max(row, 0) * p->p_row_bytes,
                           is_inside && row >= 0 ? 16 : 0);
        }
        mb_cp_async_arrive(&s->full[stage.at]);
        mb_ring_advance<N_STAGES>(&stage);
        step = following;
        index = following_index;
    }
    mb_grid_launch_dependents();
}

#endif
