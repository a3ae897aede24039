/*
 * kernel.cuh - both grouped GEMMs of the experts and the activation between them, one persistent launch.
 * (mb_grouped_gemm runs the first of them alone.)
 *
 * Work items, in the order of the queue: for every token tile of the plan each column tile of w13's
 * outputs, then for every token tile each column tile of w2's. CTAs, or pairs of them, take items from a
 * counter, so they stay busy whatever the experts' sizes are, and the weights of w2 begin to stream while
 * the last items of w13 are still multiplied. An item of w2 waits until all of its token tile's
 * intermediate is written (`ready`).
 *
 * That wait ends however few of the CTAs run at once, as when other kernels hold SMs. Every item is taken
 * by a CTA that runs, a CTA's first one too; a CTA works on its items in the order of the queue; and what
 * an item of w2 waits for stands earlier in the queue. So the first unfinished item of the queue never
 * waits, and there is always one that is worked on. (The two CTAs of a pair always run together.)
 *
 * The product is computed transposed (swap-AB): rows of the weights are wgmma's M, tokens are its N, so a
 * tile of few tokens costs few tokens' work. (Large tiles of block-scaled fp8: the other way round.) Roles,
 * and how a byte travels:
 *
 *   producers' warp 0     takes items, hands them to all roles by a ring (work.cuh),
 *                         streams weights                                             weights.cuh
 *   producers' warps 1-3  copy token rows by index                                    gather.cuh
 *                           | full[stage]                        empty[stage] ^
 *   1 or 2 consumer       multiply 64 or 128 weight rows each                         multiply.cuh
 *   warpgroups            bias, activation, gate times up, rounding                   epilogue.cuh
 *                         both, for one item                                          consume.cuh
 *                         both, for 64 tokens each: large tiles of block-scaled fp8   consume_tokens.cuh
 *                         both, of the backward's first GEMM                          gradient.cuh
 *                           | staged_full[slot]            staged_empty[slot] ^       staging.cuh
 *   storing warpgroup     copies finished tiles to memory, quantises, says `ready`    store.cuh
 *
 * Gate and up rows lie interleaved in shared memory, eight and eight (a five-dimensional tensor map does
 * that), so that one thread's accumulators hold the gate and the up of the same output.
 */
#ifndef MB_OPS_MOE_EXPERTS_KERNEL_CUH
#define MB_OPS_MOE_EXPERTS_KERNEL_CUH

#include "ops/moe/experts/consume.cuh"
#include "ops/moe/experts/consume_tokens.cuh"
#include "ops/moe/experts/gather.cuh"
#include "ops/moe/experts/pick.h"
#include "ops/moe/experts/store.cuh"
#include "ops/moe/experts/weights.cuh"

/* ---- Shared memory */

template <int kind, int weight_rows, int cta_tokens, int n_stages, int use> struct shared_map {
    static constexpr int is_dense = use == USE_DENSE, saves_p = use == USE_SAVING_P;
    static constexpr int has_p = use == USE_GRADIENT, across = has_p || use == USE_ACROSS;
    static constexpr int is_few =
        weight_rows == 64 && cta_tokens == 16; /* items may have fewer weight rows */
    static constexpr int staging = staging_of<kind, weight_rows>;
    static constexpr int tokens_are_m = kind == KIND_FP8_BLOCK && weight_rows == 256;
    static constexpr int n_regions = staging == STAGING_WHOLE   ? weight_rows / STAGED_OUTPUTS
                                     : staging == STAGING_TURNS ? 2
                                                                : 0;
    static constexpr int n_slots = has_p ? weight_rows / 64 : weight_rows == 256 ? 2 : 1;
    static constexpr int region_bytes = cta_tokens * ROW_BYTES;
    /* A stage: 128 bytes of K for each weight row and token, both swizzled by 128 bytes. */
    unsigned char weights[n_stages][weight_rows * ROW_BYTES];
    unsigned char tokens[n_stages][cta_tokens * ROW_BYTES];
    unsigned char regions[n_regions > 0 ? n_regions *region_bytes : 16];
    /* Block scales of a stage: of each token and, where tokens are M, of every eight weight rows. */
    float token_scale[kind == KIND_FP8_BLOCK ? n_stages : 1][cta_tokens];
    float row_scale[tokens_are_m ? n_stages : 1][tokens_are_m ? weight_rows / 8 : 1];
    uint32_t row_scale_at[tokens_are_m ? weight_rows / 8 : 1]; /* where the item's begin in b_scale */
    uint64_t full[n_stages], empty[n_stages];
    uint64_t staged_full[n_slots], staged_empty[n_slots];
    uint64_t ring_full[RING], ring_empty[RING];
    uint64_t index_full[2], index_empty[2];
    int32_t index[2]; /* of items, from the first CTA of a pair to the second */
    int32_t n_done; /* the storing warps': column tiles of a scale block that were finished before this one */
    item ring[RING];
    /* The backward's dot of each slot's 64 outputs, in parts of 16: a warp's. */
    float dot[has_p ? n_slots : 1][has_p ? 4 : 1][has_p ? cta_tokens : 1];
};

/* ---- The kernel */

/* The consumers' role. */
template <int kind, int n_warpgroups, int n_row_blocks, int cta_tokens, int n_ctas, class shared>
static __device__ __forceinline__ void consume_tiles(const experts_params *p, shared *s, int warpgroup) {
    constexpr int least_tokens = n_ctas == 1 ? 8 : 32;
    mb_ring_cursor stage = {0, 0}, ring = {0, 0}, slot = {shared::has_p ? (uint32_t)warpgroup : 0, 0};
    for (;;) {
        if constexpr (shared::tokens_are_m) {
            const item *work = wait_item(s, &ring);
            if (work->gemm == NO_MORE)
                break;
            if (work->n_rows <= FEW_TOKENS)
                consume_padded<kind, FEW_TOKENS / 2, FEW_TOKENS, n_warpgroups, n_row_blocks, n_ctas>(
                    p, s, warpgroup, work, &stage, &slot);
            else
                consume_tokens<n_ctas>(p, s, warpgroup, work, &stage, &slot);
            release_item(s, &ring);
        } else {
            const item work = copy_item(s, &ring);
            if (work.gemm == NO_MORE)
                break;
            consume_padded<kind, least_tokens, cta_tokens, n_warpgroups, n_row_blocks, n_ctas>(
                p, s, warpgroup, &work, &stage, &slot);
        }
    }
}

template <int n_warpgroups, int n_ctas, class shared>
static __device__ __forceinline__ void init_barriers(shared *s) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    for (int i = 0; i < n_stages; i++) {
        mb_mbarrier_init(&s->full[i], 1 + GATHER_THREADS);
        mb_mbarrier_init(&s->empty[i], n_warpgroups * WARPGROUP * n_ctas);
    }
    for (int i = 0; i < RING; i++) {
        mb_mbarrier_init(&s->ring_full[i], 1);
        mb_mbarrier_init(&s->ring_empty[i], GATHER_THREADS + STORE_THREADS + n_warpgroups * WARPGROUP);
    }
    for (int i = 0; i < 2; i++) {
        mb_mbarrier_init(&s->index_full[i], 1);
        mb_mbarrier_init(&s->index_empty[i], 1);
    }
    for (int i = 0; i < shared::n_slots; i++) {
        mb_mbarrier_init(&s->staged_full[i], (shared::has_p ? 1 : n_warpgroups) * WARPGROUP);
        mb_mbarrier_init(&s->staged_empty[i], STORE_THREADS);
    }
    mb_mbarrier_init_fence();
}

template <int kind, int weight_rows, int n_warpgroups, int cta_tokens, int n_stages, int n_ctas, int use>
static __global__ void __launch_bounds__((n_warpgroups + 2) * WARPGROUP, 1)
    experts(const __grid_constant__ experts_params p) {
    typedef shared_map<kind, weight_rows, cta_tokens, n_stages, use> shared;
    constexpr int n_row_blocks = weight_rows / n_warpgroups / 64;
    /* Accumulators of a consumer thread. More than 64 need more registers than an even share, which the
     * other roles give up. */
    constexpr int n_sums =
        shared::tokens_are_m ? 3 * HALF_SUMS : (n_row_blocks + (kind == KIND_FP8_BLOCK)) * cta_tokens / 2;
    constexpr int is_uneven = n_sums > 64, is_crowded = n_sums > 160;
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    shared *s = (shared *)shared_bytes;

    if (threadIdx.x == 0) {
        init_barriers<n_warpgroups, n_ctas>(s);
        mb_tma_prefetch_map(&p.gemm[GEMM_FIRST].weights);
        mb_tma_prefetch_map(&p.gemm[GEMM_SECOND].weights);
    }
    if constexpr (n_ctas > 1)
        mb_cluster_sync();
    else
        __syncthreads();
    /* What comes before the experts has finished. (One group: the warp that streams the weights does not
     * wait, since they are there.) */
    if (!shared::is_dense || threadIdx.x / 32 != n_warpgroups * WARPGROUP / 32)
        mb_grid_wait();

    const int rank = n_ctas > 1 ? mb_cluster_rank() : 0;
    const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / WARPGROUP, 0);
    if (warpgroup == n_warpgroups) {
        if constexpr (is_uneven)
            mb_setmaxnreg_decrease<is_crowded ? 56 : 64>();
        const int warp = __shfl_sync(0xffffffff, threadIdx.x % WARPGROUP / 32, 0);
        if (warp > 0)
            gather_tokens<kind, cta_tokens, weight_rows, n_ctas>(&p, s);
        else if (threadIdx.x % 32 == 0)
            stream_weights<kind, weight_rows, n_ctas>(&p, s, rank);
    } else if (warpgroup > n_warpgroups) {
        if constexpr (is_uneven)
            mb_setmaxnreg_decrease<is_crowded ? 40 : 80>();
        if constexpr (shared::has_p)
            store_gradients<kind, weight_rows, n_warpgroups, n_ctas>(&p, s);
        else
            store_tiles<kind, weight_rows, n_warpgroups, n_ctas>(&p, s, rank);
    } else {
        if constexpr (is_uneven)
            mb_setmaxnreg_increase<is_crowded ? 208 : 184>();
        consume_tiles<kind, n_warpgroups, n_row_blocks, cta_tokens, n_ctas>(&p, s, warpgroup);
    }
    if constexpr (n_ctas > 1)
        mb_cluster_sync(); /* neither ends while the other may still write to it */
}

/* ---- Launch */

template <int kind, int weight_rows, int n_warpgroups, int cta_tokens, int n_stages, int n_ctas, int use>
static cudaError_t launch(const experts_params *params, int n_processors, mb_stream stream) {
    typedef shared_map<kind, weight_rows, cta_tokens, n_stages, use> shared;
    static_assert(sizeof(shared) <= 227 * 1024, "the tile does not fit into shared memory");
    auto kernel = experts<kind, weight_rows, n_warpgroups, cta_tokens, n_stages, n_ctas, use>;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(shared));
    if (error != cudaSuccess)
        return error;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3(n_processors / n_ctas * n_ctas),
                     (n_warpgroups + 2) * WARPGROUP, sizeof(shared), stream);
    if (n_ctas > 1)
        mb_launch_clusters(&config, n_ctas);
    return cudaLaunchKernelEx(&config, kernel, *params);
}

/* Tiles of the family that the use has code for. */
template <int use> static constexpr int is_compiled(int weight_rows, int cta_tokens) {
    return use == USE_DENSE ? cta_tokens >= DENSE_TOKENS : use == USE_SAVING_P ? weight_rows == 256 : 1;
}

template <int kind, int family, int use>
static cudaError_t launch_tile(const experts_params *params, int tile, int n_processors, mb_stream stream) {
    switch (tile) {
#define X(tile_family, name, weight_rows, n_warpgroups, cta_tokens, token_step, n_stages, n_ctas) \
    case MB_MOE_TILE_##name:                                                                      \
        if constexpr (tile_family == family && is_compiled<use>(weight_rows, cta_tokens))         \
            return launch<kind, weight_rows, n_warpgroups, cta_tokens, n_stages, n_ctas, use>(    \
                params, n_processors, stream);                                                    \
        break;
#include "ops/moe/experts/tiles.def"
#undef X
    }
    return cudaErrorInvalidValue;
}

#endif
