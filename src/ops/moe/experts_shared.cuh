/*
 * experts_shared.cuh - what the roles of the experts' kernel share: sizes, the shared memory's map, the ring
 * of work items.
 */
#ifndef MB_OPS_MOE_EXPERTS_SHARED_CUH
#define MB_OPS_MOE_EXPERTS_SHARED_CUH

#include "ops/hopper/barrier.cuh"
#include "ops/hopper/memory.cuh"
#include "ops/moe/experts.h"

enum {
    ROW_BYTES = 128, /* of one row of a stage: the width of the swizzle */
    WARPGROUP = 128,
    GATHER_WARPS = 2,
    GATHER_THREADS = 32 * GATHER_WARPS,
    GATHER_ROWS = GATHER_THREADS / 8, /* rows that one pass of the gather warps covers, 8 lanes a row */
    RING = 4,                         /* items handed out ahead */
    TOKEN_STEP_OF_PAIR = 8,           /* a pair of CTAs cuts a tile's tokens at multiples of it */
    SCALE_BLOCK = 128,                /* columns of one fp8 scale */
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

/* Staging holds a finished tile in 16 bits: regions of 64 outputs, in each a row of 128 bytes a token. */
template <int kind, int weight_rows, int n_groups, int cta_tokens, int n_stages> struct shared_map {
    static constexpr int staged_regions = kind == KIND_TF32 ? 0 : weight_rows / 64;
    unsigned char weights[n_stages][weight_rows * ROW_BYTES];
    unsigned char tokens[n_stages][cta_tokens * ROW_BYTES];
    unsigned char staging[staged_regions > 0 ? staged_regions *cta_tokens *ROW_BYTES : 16];
    float token_scale[kind == KIND_FP8_BLOCK ? n_stages : 1][cta_tokens];
    uint64_t full[n_stages], empty[n_stages];
    uint64_t staged_full, staged_empty;
    uint64_t ring_full[RING], ring_empty[RING];
    item ring[RING];
};

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

/* Reads the next item of the ring. Every lane says itself that it has read: quicker than one for its warp. */
template <class shared> static __device__ __forceinline__ item next_item(shared *s, cursor *ring) {
    mb_mbarrier_wait(&s->ring_full[ring->at], ring->parity);
    item work = s->ring[ring->at];
    mb_mbarrier_arrive(&s->ring_empty[ring->at]);
    advance<RING>(ring);
    return work;
}

#endif
