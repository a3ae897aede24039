/*
 * work.cuh - what all roles of the experts' kernel know: sizes, the work item, and how items and stages go
 * from one role to the next.
 */
#ifndef MB_OPS_MOE_EXPERTS_WORK_CUH
#define MB_OPS_MOE_EXPERTS_WORK_CUH

#include "ops/hopper/barrier.cuh"
#include "ops/hopper/cluster.cuh"
#include "ops/hopper/memory.cuh"
#include "ops/hopper/ring.cuh"
#include "ops/moe/experts/params.cuh"

enum {
    ROW_BYTES = 128, /* of one row of a stage: the width of the swizzle */
    WARPGROUP = 128,
    GATHER_WARPS = 3,
    GATHER_THREADS = 32 * GATHER_WARPS,
    GATHER_ROWS = GATHER_THREADS / 8, /* token rows that the gather warps copy side by side, 8 lanes a row */
    STORE_WARPS = 4,
    STORE_THREADS = 32 * STORE_WARPS,
    STORE_BARRIER = 1,         /* named barrier of the storing warps */
    CONSUMER_BARRIER = 2,      /* of the consumers */
    RING = 6,                  /* items that roles may be apart */
    TOKEN_STEP_OF_PAIR = 8,    /* a pair of CTAs cuts a tile's tokens at multiples of it */
    SCALE_BLOCK = MB_F8_BLOCK, /* columns of one fp8 scale */
    DENSE_TOKENS = 64,         /* one group: tiles of as many tokens a CTA, or more */
    FEW_TOKENS = 32,           /* a CTA with at most this many tokens puts them on wgmma's N */
    STAGES_AHEAD = 8,          /* tiles of 16: stages of w13 still under way when w2 is asked for, at most */
};

enum { GEMM_FIRST, GEMM_SECOND, NO_MORE };

/* One work item: a column tile of an expert's outputs for a token tile. In a pair's CTA rows are its own
 * half. */
typedef struct item {
    int32_t gemm, expert, token_tile, column_tile, first_row, n_rows;
} item;

template <int kind> struct traits {
    static constexpr int element_bytes = kind == KIND_TF32                                   ? 4
                                         : kind == KIND_FP8_TENSOR || kind == KIND_FP8_BLOCK ? 1
                                                                                             : 2;
    static constexpr int k_step = ROW_BYTES / element_bytes; /* elements of K in a stage */
};

/* The weight rows of a GEMM's items. A tile of few tokens may have fewer than it has room for
 * (launch_sm90.cu, even_rows): the other rows of a stage are what was there before, and so are their sums,
 * which nobody stores. */
template <int weight_rows, class shared>
static __device__ __forceinline__ int32_t item_rows(const experts_gemm *g) {
    return shared::is_few ? g->tile_rows : weight_rows;
}

/* The next item of the ring, in shared memory, where it stays until release_item. (A role that reads it
 * again after a long loop keeps no registers for it.) */
template <class shared>
static __device__ __forceinline__ const item *wait_item(shared *s, const mb_ring_cursor *ring) {
    mb_mbarrier_wait(&s->ring_full[ring->at], ring->parity);
    return &s->ring[ring->at];
}

/* Every lane arrives for itself: quicker than one lane for its warp. */
template <class shared> static __device__ __forceinline__ void release_item(shared *s, mb_ring_cursor *ring) {
    mb_mbarrier_arrive(&s->ring_empty[ring->at]);
    mb_ring_advance<RING>(ring);
}

template <class shared> static __device__ __forceinline__ item copy_item(shared *s, mb_ring_cursor *ring) {
    const item work = *wait_item(s, ring);
    release_item(s, ring);
    return work;
}

/* Gives a stage back to the producers of all CTAs of the cluster, for n consumer threads. Every lane
 * arrives for itself here too. */
template <int n_ctas, int n> static __device__ __forceinline__ void release_stage(uint64_t *empty) {
    static_assert(n_ctas > 1 || n == 1, "stages are held in pairs only");
    if constexpr (n_ctas == 1)
        mb_mbarrier_arrive(empty);
    else
#pragma unroll
        for (int cta = 0; cta < n_ctas; cta++)
            mb_mbarrier_arrive_cluster_n(empty, cta, n);
}

#endif
