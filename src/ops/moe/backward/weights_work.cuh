/* weights_work.cuh - what all roles of the weights' gradient kernel know: shared memory, items, the ring of
 * stages. */
#ifndef MB_OPS_MOE_BACKWARD_WEIGHTS_WORK_CUH
#define MB_OPS_MOE_BACKWARD_WEIGHTS_WORK_CUH

#include "ops/hopper/barrier.cuh"
#include "ops/hopper/cluster.cuh"
#include "ops/moe/backward/weights_layout.cuh"
#include "ops/moe/backward/weights_params.cuh"

enum {
    WARPGROUP = 128,
    N_CONSUMERS = 2, /* warpgroups */
    N_THREADS = (N_CONSUMERS + 1) * WARPGROUP,
    N_CTAS = 2,        /* of a pair */
    LEAD_BARRIER = 3,  /* named barrier: the first warpgroup is ahead of the second one */
    STORE_BARRIER = 1, /* and + 1: named barriers, of each consumer warpgroup */
};

/* lead: steps that the first consumer warpgroup is ahead of the second one. */
template <int stages, int pieces, int lead_steps> struct weights_shared {
    static constexpr int n_stages = stages, n_pieces = pieces, lead = lead_steps;
    static_assert(lead < stages, "the first warpgroup would wait for a stage that the second one has");
    unsigned char p[stages][P_BYTES];
    unsigned char q[stages][Q_BYTES];
    unsigned char staged[N_CONSUMERS][pieces][PIECE_BYTES];
    uint64_t full[stages], empty[stages];
};

/* Position in the ring of stages, and the parity of the pass. */
typedef struct ring_cursor {
    uint32_t at, parity;
} ring_cursor;

template <int n> static __device__ __forceinline__ void advance(ring_cursor *c) {
    if (++c->at == n) {
        c->at = 0;
        c->parity ^= 1;
    }
}

/* The rows of an item's expert. */
typedef struct row_range {
    int32_t begin, end;
} row_range;

static __device__ __forceinline__ row_range rows_of_item(const weights_params *p, int32_t item) {
    if (item >= p->n_items)
        return {0, 0};
    const int32_t *offsets = p->offsets + item / p->n_tiles;
    return {__ldg(offsets), __ldg(offsets + 1)};
}

/* Items: pair i has i, i + the number of pairs, and so on. */
static __device__ __forceinline__ int32_t first_item(void) {
    return blockIdx.x / N_CTAS;
}
static __device__ __forceinline__ int32_t n_pairs(void) {
    return gridDim.x / N_CTAS;
}

/* The first columns of an item's pair tile. */
static __device__ __forceinline__ int32_t p_of_item(const weights_params *p, int32_t item) {
    return item % p->n_tiles / p->n_tiles_q * PAIR_P;
}
static __device__ __forceinline__ int32_t q_of_item(const weights_params *p, int32_t item) {
    return item % p->n_tiles % p->n_tiles_q * PAIR_Q;
}

#endif
