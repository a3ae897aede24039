/* weights_work.cuh - what all roles of the weights' gradient kernel know: shared memory, items, the ring of
 * stages. */
#ifndef MB_OPS_MOE_BACKWARD_WEIGHTS_WORK_CUH
#define MB_OPS_MOE_BACKWARD_WEIGHTS_WORK_CUH

#include "ops/hopper/barrier.cuh"
#include "ops/hopper/cluster.cuh"
#include "ops/hopper/ring.cuh"
#include "ops/moe/backward/weights_layout.cuh"
#include "ops/moe/backward/weights_params.cuh"

enum {
    WARPGROUP = 128,
    N_CONSUMERS = 2, /* warpgroups */
    N_THREADS = (N_CONSUMERS + 1) * WARPGROUP,
    N_CTAS = 2,        /* of a pair */
    STORE_BARRIER = 1, /* and + 1: named barriers, of each consumer warpgroup */
};

/* Three stages and four pieces were slower by 1 %, with fp32 results too; a warpgroup that was held a step
 * or two in front of the other one, so that one stores while the other multiplies, gained nothing. */
enum { N_STAGES = 4, N_PIECES = 2 };

typedef struct weights_shared {
    unsigned char p[N_STAGES][P_BYTES];
    unsigned char q[N_STAGES][Q_BYTES];
    unsigned char staged[N_CONSUMERS][N_PIECES][PIECE_BYTES];
    uint64_t full[N_STAGES], empty[N_STAGES];
} weights_shared;

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
