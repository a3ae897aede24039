/*
 * kernel.cuh - both grouped GEMMs of the experts and the activation between them, one persistent launch.
 * (mb_grouped_gemm runs the first of them alone.)
 *
 * Work items: for every token tile of the plan each piece (weight_rows rows) of w13, then for every token
 * tile each piece of w2. CTAs, or pairs of them, take items from a counter, so they stay busy whatever the
 * experts' sizes are, and the weights of w2 begin to stream while the last pieces of w13 are still
 * multiplied. An item of w2 waits until all pieces of its token tile's intermediate are written (`ready`).
 *
 * That wait ends however few of the CTAs run at once, as when other kernels hold SMs: an item is taken by a CTA
 * that runs, also a CTA's first one; a CTA works on its items in the order of the queue; and what an item of w2
 * waits for stands earlier in the queue. So the first unfinished item of the queue never waits. (The two CTAs
 * of a pair always run together.)
 *
 * The product is computed transposed (swap-AB): rows of the weights are wgmma's M, tokens are its N, so a
 * tile of few tokens costs few tokens' work. (Large tiles of block-scaled fp8: the other way round.) Roles:
 *
 *   the first warpgroups   multiply 64 or 128 weight rows each, activate, stage      consume.cuh        
 *                          (large tiles of block-scaled fp8: 64 tokens each)         experts_consume_tokens
 *   the next, warp 0       takes items, writes them to a ring for the others, streams weights (TMA)
 *             warps 1 - 3  gather token rows by index (cp.async), swizzled as TMA would
 *   the last               stores finished tiles while the next one is multiplied    store.cuh
 *
 * Gate and up rows lie interleaved in shared memory, eight and eight (a five-dimensional tensor map does
 * that), so that one thread's accumulators hold the gate and the up of the same output.
 */
#ifndef MB_OPS_MOE_EXPERTS_KERNEL_CUH
#define MB_OPS_MOE_EXPERTS_KERNEL_CUH

#include "ops/hopper/cp_async.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/tma.cuh"
#include "ops/moe/experts/consume_tokens.cuh"
#include "ops/moe/experts/pick.h"
#include "ops/moe/experts/store.cuh"

/* ---- weights: one thread takes items and streams the matrices */

static __device__ __forceinline__ item decode(const experts_params *p, uint32_t index,
                                              int32_t n_token_tiles) {
    item work = {NO_MORE, 0, 0, 0, 0, 0};
    int64_t first = 0; /* of this GEMM's items */
#pragma unroll
    for (int gemm = GEMM_FIRST; gemm <= GEMM_SECOND; gemm++) {
        const uint32_t pieces = (uint32_t)p->gemm[gemm].pieces;
        const int64_t end = first + (int64_t)n_token_tiles * pieces;
        if (index >= first && index < end) {
            const uint32_t i = index - (uint32_t)first;
            work.gemm = gemm;
            work.token_tile = (int32_t)(i / pieces);
            work.piece = (int32_t)(i % pieces);
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

/* Takes the next item of the queue. Every item is taken this way, a CTA's first one too: so an item that was
 * taken belongs to a CTA that runs. Of a pair the first CTA takes it, for both. */
static __device__ __forceinline__ uint32_t take_item(const experts_params *p, int rank) {
    return rank == 0 ? (uint32_t)atomicAdd(p->next_item, 1) : 0;
}

/* The index that the first CTA of a pair has taken, in both. */
template <int n_ctas, class shared>
static __device__ __forceinline__ uint32_t share_item(shared *s, int rank, uint32_t index, cursor *given) {
    if constexpr (n_ctas > 1) {
        if (rank == 0) {
            mb_mbarrier_wait(&s->index_empty[given->at], given->parity ^ 1);
            mb_store_async_cluster(&s->index[given->at], &s->index_full[given->at], 1, (int32_t)index);
        } else {
            mb_mbarrier_arrive_expect(&s->index_full[given->at], sizeof(int32_t));
            mb_mbarrier_wait(&s->index_full[given->at], given->parity);
            index = (uint32_t)s->index[given->at];
            mb_mbarrier_arrive_cluster(&s->index_empty[given->at], 0);
        }
        advance<2>(given);
    }
    return index;
}

template <int kind, int weight_rows, int n_ctas, class shared>
static __device__ __forceinline__ void stream_weights(const experts_params *p, shared *s, int rank) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    constexpr int k_step = traits<kind>::k_step;
    constexpr int my_rows =
        weight_rows / n_ctas; /* the CTAs of a cluster load a part each, for all of them */
    constexpr int stage_bytes = weight_rows * ROW_BYTES;
    unsigned char *to = s->weights[0] + rank * my_rows * ROW_BYTES;
    cursor stage = {0, 1}, ring = {0, 1}, given = {0, 0};
    const uint32_t first = take_item(p, rank);
    const int32_t n_token_tiles = *p->n_tiles; /* the load and the atomic are under way side by side */
    item work = decode(p, share_item<n_ctas>(s, rank, first, &given), n_token_tiles);
    for (;;) {
        item mine = work;
        if (n_ctas > 1) {
            const int32_t half =
                ((work.n_rows + 1) / 2 + TOKEN_STEP_OF_PAIR - 1) / TOKEN_STEP_OF_PAIR * TOKEN_STEP_OF_PAIR;
            const int32_t begin = min(work.n_rows, rank * half);
            mine.n_rows = min(work.n_rows - begin, half);
            mine.first_row += begin;
        }
        mb_mbarrier_wait(&s->ring_empty[ring.at], ring.parity);
        s->ring[ring.at] = mine;
        mb_mbarrier_arrive(&s->ring_full[ring.at]);
        advance<RING>(&ring);
        if (work.gemm == NO_MORE)
            break;

        const gemm_params *g = &p->gemm[work.gemm];
        const int32_t row_group = (work.piece * weight_rows + rank * my_rows) / (g->gated ? 16 : 8);
        const auto load_steps = [&](int32_t begin, int32_t end) {
            for (int32_t k = begin; k < end; k += k_step) {
                mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
                mb_mbarrier_arrive_expect(&s->full[stage.at], stage_bytes);
                if constexpr (n_ctas > 1)
                    mb_tma_load_5d_multicast(to + stage.at * stage_bytes, &g->weights, &s->full[stage.at],
                                             (1 << n_ctas) - 1, k, 0, 0, row_group, work.expert);
                else if (p->read_once)
                    mb_tma_load_5d_evict_first(to + stage.at * stage_bytes, &g->weights, &s->full[stage.at],
                                               k, 0, 0, row_group, work.expert);
                else
                    mb_tma_load_5d(to + stage.at * stage_bytes, &g->weights, &s->full[stage.at], k, 0, 0,
                                   row_group, work.expert);
                advance<n_stages>(&stage);
            }
        };
        /* The atomic is slow: issue it now, use its result once this item's first loads are in flight. */
        const uint32_t taken = take_item(p, rank);
        const int32_t k_first = min(g->k_size, n_stages * k_step);
        load_steps(0, k_first);
        const item next = decode(p, share_item<n_ctas>(s, rank, taken, &given), n_token_tiles);
        load_steps(k_first, g->k_size);
        work = next;
    }
    mb_grid_launch_dependents();
}

/* ---- tokens: three warps gather rows, and scales */

/* Where the scales of a tile's weight rows 8 i .. 8 i + 7 begin, in the order that a stage has them. */
static __device__ __forceinline__ uint32_t row_scale_at(const gemm_params *g, const item *work,
                                                        int32_t weight_rows, int i) {
    const int32_t n_rows = (g->gated ? 2 : 1) * g->width;
    const int32_t row = g->gated ? work->piece * weight_rows / 2 + i / 2 * 8 + i % 2 * g->width
                                 : work->piece * weight_rows + i * 8;
    return (uint32_t)((work->expert * g->expert_scale_rows + (min(row, n_rows - 1) >> g->scale_shift)) *
                      g->k_blocks);
}

template <int kind, int cta_tokens, int weight_rows, int n_ctas, class shared>
static __device__ __forceinline__ void gather_tokens(const experts_params *p, shared *s) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    constexpr int n_passes = (cta_tokens + GATHER_ROWS - 1) / GATHER_ROWS;
    constexpr int chunk_elements = 16 / traits<kind>::element_bytes;
    constexpr int n_scale_passes = (cta_tokens + GATHER_THREADS - 1) / GATHER_THREADS;
    const int thread = threadIdx.x % WARPGROUP - 32;
    const int chunk = thread % 8, my_row = thread / 8; /* of a pass: 16 bytes of one row */
    static_assert(GATHER_ROWS % 8 == 4, "a lane's place in the swizzle has two values in turns");
    const uint32_t place = my_row * ROW_BYTES + (chunk ^ (my_row % 8)) * 16;
    cursor stage = {0, 1}, ring = {0, 0};
    for (;;) {
        const item work = next_item(s, &ring);
        if (work.gemm == NO_MORE)
            break;
        const gemm_params *g = &p->gemm[work.gemm];
        const int32_t k_size = g->k_size;
        if (work.gemm == GEMM_SECOND) {
            if (threadIdx.x % 32 == 0)
                while (mb_load_acquire(&p->ready[work.token_tile]) != p->gemm[GEMM_FIRST].pieces * n_ctas)
                    ;
            __syncwarp();
        }
        /* Places of the rows in a, in 32 bits: that is one instruction for each copy. */
        const uint32_t row_bytes = (uint32_t)k_size * traits<kind>::element_bytes;
        const char *a = (const char *)g->a;
        const float *a_scale = g->a_scale;
        if (!g->row_index) {
            a += (int64_t)work.first_row * row_bytes;
            if constexpr (kind == KIND_FP8_BLOCK)
                a_scale += (int64_t)work.first_row * g->k_blocks;
        }
        if constexpr (shared::by_tokens) /* (kept in a register, it spills) */
            if (thread < weight_rows / 8)
                s->row_scale_at[thread] = row_scale_at(g, &work, weight_rows, thread);
        uint32_t rows[n_passes], scale_rows[n_scale_passes];
#pragma unroll
        for (int i = 0; i < n_passes; i++) {
            const int32_t r = my_row + i * GATHER_ROWS;
            rows[i] = (g->row_index && r < work.n_rows ? g->row_index[work.first_row + r] : r) * row_bytes;
        }
        if constexpr (kind == KIND_FP8_BLOCK) {
#pragma unroll
            for (int i = 0; i < n_scale_passes; i++) {
                const int32_t r = thread + i * GATHER_THREADS;
                scale_rows[i] =
                    (g->row_index && r < work.n_rows ? g->row_index[work.first_row + r] : r) * g->k_blocks;
            }
        }
#pragma unroll 1
        for (int32_t k = 0; k < k_size; k += traits<kind>::k_step) {
            mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
            const uint32_t to = mb_shared_address(s->tokens[stage.at]);
            const int32_t column = k + chunk * chunk_elements;
            const uint32_t n_bytes = column < k_size ? 16 : 0; /* past the end of K: zeros */
            const char *from = a + (n_bytes ? column * traits<kind>::element_bytes : 0);
#pragma unroll
            for (int i = 0; i < n_passes; i++)
                if (my_row + i * GATHER_ROWS < work.n_rows)
                    mb_cp_async_16(to + i * GATHER_ROWS * ROW_BYTES + (place ^ i % 2 * 64), from + rows[i],
                                   n_bytes);
            if constexpr (kind == KIND_FP8_BLOCK) {
#pragma unroll
                for (int i = 0; i < n_scale_passes; i++) {
                    const int32_t r = thread + i * GATHER_THREADS;
                    if (r < work.n_rows)
                        mb_cp_async_4(mb_shared_address(&s->token_scale[stage.at][r]),
                                      a_scale + scale_rows[i] + k / SCALE_BLOCK);
                }
            }
            if constexpr (shared::by_tokens)
                if (thread < weight_rows / 8)
                    mb_cp_async_4(mb_shared_address(&s->row_scale[stage.at][thread]),
                                  g->b_scale + s->row_scale_at[thread] + k / SCALE_BLOCK);
            mb_cp_async_arrive(&s->full[stage.at]);
            advance<n_stages>(&stage);
        }
    }
}

/* ---- the kernel */

template <int kind, int weight_rows, int n_groups, int cta_tokens, int n_stages, int n_ctas>
static __global__ void __launch_bounds__((n_groups + 2) * WARPGROUP, 1)
    experts(const __grid_constant__ experts_params p) {
    typedef shared_map<kind, weight_rows, n_groups, cta_tokens, n_stages> shared;
    constexpr int n_blocks = weight_rows / n_groups / 64;
    /* Accumulators of a thread: more than 64 need more registers than an even share. */
    constexpr int n_sums =
        shared::by_tokens ? 3 * HALF_SUMS : (n_blocks + (kind == KIND_FP8_BLOCK)) * cta_tokens / 2;
    constexpr int least_tokens = n_ctas == 1 ? 8 : 32;
    constexpr int is_crowded = n_sums > 160;
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    shared *s = (shared *)shared_bytes;

    if (threadIdx.x == 0) {
        for (int i = 0; i < n_stages; i++) {
            mb_mbarrier_init(&s->full[i], 1 + GATHER_THREADS);
            mb_mbarrier_init(&s->empty[i], n_groups * WARPGROUP * n_ctas);
        }
        for (int i = 0; i < RING; i++) {
            mb_mbarrier_init(&s->ring_full[i], 1);
            mb_mbarrier_init(&s->ring_empty[i], GATHER_THREADS + STORE_THREADS + n_groups * WARPGROUP);
        }
        for (int i = 0; i < 2; i++) {
            mb_mbarrier_init(&s->index_full[i], 1);
            mb_mbarrier_init(&s->index_empty[i], 1);
        }
        for (int i = 0; i < shared::n_rounds; i++) {
            mb_mbarrier_init(&s->staged_full[i], n_groups * WARPGROUP);
            mb_mbarrier_init(&s->staged_empty[i], STORE_THREADS);
        }
        mb_mbarrier_init_fence();
        mb_tma_prefetch_map(&p.gemm[GEMM_FIRST].weights);
        mb_tma_prefetch_map(&p.gemm[GEMM_SECOND].weights);
    }
    if constexpr (n_ctas > 1)
        mb_cluster_sync();
    else
        __syncthreads();
    mb_grid_wait();

    const int rank = n_ctas > 1 ? mb_cluster_rank() : 0;
    const int group = __shfl_sync(0xffffffff, threadIdx.x / WARPGROUP, 0);
    if (group == n_groups) {
        if constexpr (n_sums > 64)
            mb_setmaxnreg_decrease<is_crowded ? 56 : 64>();
        const int warp = __shfl_sync(0xffffffff, threadIdx.x % WARPGROUP / 32, 0);
        if (warp > 0)
            gather_tokens<kind, cta_tokens, weight_rows, n_ctas>(&p, s);
        else if (threadIdx.x % 32 == 0)
            stream_weights<kind, weight_rows, n_ctas>(&p, s, rank);
    } else if (group > n_groups) {
        if constexpr (n_sums > 64)
            mb_setmaxnreg_decrease<is_crowded ? 40 : 80>();
        store_tiles<kind, weight_rows, n_groups, n_ctas>(&p, s, rank);
    } else {
        if constexpr (n_sums > 64)
            mb_setmaxnreg_increase<is_crowded ? 208 : 184>();
        cursor stage = {0, 0}, ring = {0, 0}, staged = {0, 0};
        for (;;) {
            if constexpr (shared::by_tokens) {
                const item *work = wait_item(s, &ring);
                if (work->gemm == NO_MORE)
                    break;
                if (work->n_rows <= shared::few_tokens)
                    consume_rounded<kind, FEW_TOKENS / 2, FEW_TOKENS, n_groups, n_blocks, n_ctas>(
                        &p, s, group, work, &stage, &staged);
                else
                    consume_tokens<n_ctas>(&p, s, group, work, &stage, &staged);
                release_item(s, &ring);
            } else {
                const item work = next_item(s, &ring);
                if (work.gemm == NO_MORE)
                    break;
                consume_rounded<kind, least_tokens, cta_tokens, n_groups, n_blocks, n_ctas>(
                    &p, s, group, &work, &stage, &staged);
            }
        }
    }
    if constexpr (n_ctas > 1)
        mb_cluster_sync(); /* neither leaves while the other may still write to it */
}

/* ---- launch */

template <int kind, int weight_rows, int n_groups, int cta_tokens, int n_stages, int n_ctas>
static cudaError_t launch(const experts_params *params, int n_processors, mb_stream stream) {
    typedef shared_map<kind, weight_rows, n_groups, cta_tokens, n_stages> shared;
    static_assert(sizeof(shared) <= 227 * 1024, "the tile does not fit into shared memory");
    auto kernel = experts<kind, weight_rows, n_groups, cta_tokens, n_stages, n_ctas>;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(shared));
    if (error != cudaSuccess)
        return error;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3(n_processors / n_ctas * n_ctas), (n_groups + 2) * WARPGROUP,
                     sizeof(shared), stream);
    if (n_ctas > 1)
        mb_launch_clusters(&config, n_ctas);
    return cudaLaunchKernelEx(&config, kernel, *params);
}

template <int kind, int family>
static cudaError_t launch_tile(const experts_params *params, int tile, int n_processors, mb_stream stream) {
    switch (tile) {
#define X(tile_family, name, weight_rows, n_groups, cta_tokens, token_step, n_stages, n_ctas)              \
    case MB_MOE_TILE_##name:                                                                               \
        if constexpr (tile_family == family)                                                               \
            return launch<kind, weight_rows, n_groups, cta_tokens, n_stages, n_ctas>(params, n_processors, \
                                                                                     stream);              \
        break;
#include "ops/moe/experts/tiles.def"
#undef X
    }
    return cudaErrorInvalidValue;
}

#endif
