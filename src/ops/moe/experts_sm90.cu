/*
 * experts_sm90.cu - both grouped GEMMs of the experts and the activation between them, one persistent launch.
 *
 * Work items: for every token tile of the plan each piece (weight_rows rows) of w13, then for every token
 * tile each piece of w2. CTAs take items from a counter, so they stay busy whatever the experts' sizes are,
 * and the weights of w2 begin to stream while the last pieces of w13 are still multiplied. An item of w2
 * waits until all pieces of its token tile's intermediate are written (`ready`); those items came earlier in
 * the queue, so the wait ends.
 *
 * The product is computed transposed (swap-AB): rows of the weights are wgmma's M, tokens are its N, so a
 * tile of few tokens costs few tokens' work. Three roles:
 *
 *   warp 0 of the last warpgroup   takes items, writes them to a ring for the others, streams weights (TMA)
 *   warps 1 - 3                    gather token rows by index (cp.async), swizzled as TMA would
 *   the other warpgroups           multiply 64 weight rows each, activation, store
 *
 * Gate and up rows lie interleaved in shared memory, eight and eight (a five-dimensional tensor map does
 * that), so that one thread's accumulators hold the gate and the up of the same output.
 */
#include "ops/hopper/cp_async.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/math.cuh"
#include "ops/hopper/memory.cuh"
#include "ops/hopper/tma.cuh"
#include "ops/hopper/wgmma.cuh"
#include "ops/moe/moe_pick.h"
#include "ops/moe/moe_sm90.h"

#include <cuda_bf16.h>

enum {
    K_STEP = 64,     /* elements along K of one stage: 128 bytes, the width of the swizzle */
    ROW_BYTES = 128, /* of one row of a stage */
    WARPGROUP = 128,
    GATHER_WARPS = 3,
    GATHER_THREADS = 32 * GATHER_WARPS,
    GATHER_ROWS = GATHER_THREADS / 8, /* rows that one pass of the gather warps covers, 8 lanes a row */
    RING = 4,                         /* items handed out ahead */
    TOKEN_STEP_OF_PAIR = 8,           /* a pair of CTAs cuts a tile's tokens at multiples of it */
    STAGING_TOKENS = 64,              /* tokens that an epilogue stores at a time */
};

/* Where all weights are fewer bytes than this they are loaded to leave L2 first: 6 us less at T = 1, none
 * from T = 4 on. */
static const int64_t READ_ONCE_BYTES = 200 << 20;

enum gemm { GEMM_W13, GEMM_W2, NO_MORE };

/* One work item. */
typedef struct item {
    int32_t gemm, expert, token_tile, piece, first_row, n_rows;
} item;

/* Every activation is v (constant + slope v) / (1 + 2^-(v (linear + cubic v^2))): one sequence of
 * instructions, no branches. (With a switch in this place the epilogue took 17 us a tile, all of it fetching
 * instructions.) */
typedef struct activation_shape {
    float linear, cubic, constant, slope;
} activation_shape;

typedef struct experts_params {
    CUtensorMap w13, w2;
    const __nv_bfloat16 *x;
    __nv_bfloat16 *h, *y;
    const __nv_bfloat16 *bias13, *bias2;
    const int32_t *row_token;
    mb_moe_schedule schedule;
    int32_t hidden, intermediate;
    int32_t pieces13, pieces2; /* of one expert's matrices */
    int32_t gated;
    int32_t read_once; /* the weights should not push anything out of L2 */
    activation_shape activation;
} experts_params;

/* ---- shared memory
 * ------------------------------------------------------------------------------------------- */

template <int weight_rows, int n_groups, int cta_tokens, int n_stages> struct shared_map {
    unsigned char weights[n_stages][weight_rows * ROW_BYTES];
    unsigned char tokens[n_stages][cta_tokens * ROW_BYTES];
    unsigned char staging[n_groups][(cta_tokens < STAGING_TOKENS ? cta_tokens : STAGING_TOKENS) * ROW_BYTES];
    uint64_t full[n_stages], empty[n_stages];
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

/* ---- weights: one thread takes items and streams the matrices
 * ----------------------------------------------- */

static __device__ __forceinline__ item decode(const experts_params *p, int32_t index, int32_t n_token_tiles) {
    item work = {NO_MORE, 0, 0, 0, 0, 0};
    const int64_t n13 = (int64_t)n_token_tiles * p->pieces13;
    int64_t i = index;
    if (i < n13) {
        work.gemm = GEMM_W13;
        work.token_tile = (int32_t)(i / p->pieces13);
        work.piece = (int32_t)(i % p->pieces13);
    } else if ((i -= n13) < (int64_t)n_token_tiles * p->pieces2) {
        work.gemm = GEMM_W2;
        work.token_tile = (int32_t)(i / p->pieces2);
        work.piece = (int32_t)(i % p->pieces2);
    } else
        return work;
    const mb_moe_token_tile tile = p->schedule.tiles[work.token_tile];
    work.expert = tile.expert;
    work.first_row = tile.first_row;
    work.n_rows = tile.n_rows;
    return work;
}

/* A step of an item's weights, as the tensor map's coordinates: this CTA's part of the piece's rows. */
typedef struct weight_box {
    const CUtensorMap *map;
    int32_t k_size, row_group, expert;
} weight_box;

static __device__ __forceinline__ weight_box box_of(const experts_params *p, const item *work,
                                                    int32_t first_row) {
    const int is_first = work->gemm == GEMM_W13;
    weight_box box;
    box.map = is_first ? &p->w13 : &p->w2;
    box.k_size = work->gemm == NO_MORE ? 0 : is_first ? p->hidden : p->intermediate;
    box.row_group = first_row / (is_first && p->gated ? 16 : 8);
    box.expert = work->expert;
    return box;
}

template <int weight_rows, int n_ctas, class shared>
static __device__ __forceinline__ void stream_weights(const experts_params *p, shared *s) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    constexpr int my_rows =
        weight_rows / n_ctas; /* the CTAs of a cluster load a part each, for all of them */
    constexpr int stage_bytes = weight_rows * ROW_BYTES;
    const int32_t rank = n_ctas > 1 ? mb_cluster_rank() : 0;
    unsigned char *to = s->weights[0] + rank * my_rows * ROW_BYTES;
    cursor stage = {0, 1}, ring = {0, 1};
    const int32_t n_token_tiles = *p->schedule.n_tiles;
    int32_t index = blockIdx.x / n_ctas;
    item work = decode(p, index, n_token_tiles);
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

        if (n_ctas > 1)
            index += gridDim.x / n_ctas;
        else
            index = gridDim.x + atomicAdd(p->schedule.next_item, 1);
        const item next = decode(p, index, n_token_tiles);
        const weight_box box = box_of(p, &work, work.piece * weight_rows + rank * my_rows);
        for (int32_t k = 0; k < box.k_size; k += K_STEP) {
            mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
            mb_mbarrier_arrive_expect(&s->full[stage.at], stage_bytes);
            if constexpr (n_ctas > 1)
                mb_tma_load_5d_multicast(to + stage.at * stage_bytes, box.map, &s->full[stage.at],
                                         (1 << n_ctas) - 1, k, 0, 0, box.row_group, box.expert);
            else if (p->read_once)
                mb_tma_load_5d_evict_first(to + stage.at * stage_bytes, box.map, &s->full[stage.at], k, 0, 0,
                                           box.row_group, box.expert);
            else
                mb_tma_load_5d(to + stage.at * stage_bytes, box.map, &s->full[stage.at], k, 0, 0,
                               box.row_group, box.expert);
            advance<n_stages>(&stage);
        }
        work = next;
    }
    mb_grid_launch_dependents();
}

/* ---- tokens: three warps gather rows
 * ------------------------------------------------------------------------- */

template <int n_ctas, class shared>
static __device__ __forceinline__ void gather_tokens(const experts_params *p, shared *s) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    constexpr int cta_tokens = sizeof(s->tokens[0]) / ROW_BYTES;
    constexpr int n_groups = sizeof(s->staging) / sizeof(s->staging[0]);
    constexpr int n_passes = (cta_tokens + GATHER_ROWS - 1) / GATHER_ROWS;
    const int thread = threadIdx.x % WARPGROUP - 32;
    const int chunk = thread % 8, my_row = thread / 8; /* of a pass: 16 bytes of one row */
    cursor stage = {0, 1}, ring = {0, 0};
    for (;;) {
        const item work = next_item(s, &ring);
        if (work.gemm == NO_MORE)
            break;
        const int from_x = work.gemm == GEMM_W13;
        const int32_t k_size = from_x ? p->hidden : p->intermediate;
        if (!from_x) {
            if (threadIdx.x % 32 == 0)
                while (mb_load_acquire(&p->schedule.ready[work.token_tile]) !=
                       p->pieces13 * n_groups * n_ctas)
                    ;
            __syncwarp();
        }
        const __nv_bfloat16 *rows[n_passes];
#pragma unroll
        for (int i = 0; i < n_passes; i++) {
            const int32_t r = my_row + i * GATHER_ROWS;
            int32_t row = work.first_row + r;
            if (from_x && r < work.n_rows)
                row = p->row_token[row];
            rows[i] = (from_x ? p->x : p->h) + (int64_t)row * k_size;
        }
#pragma unroll 1
        for (int32_t k = 0; k < k_size; k += K_STEP) {
            mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
            const uint32_t to = mb_shared_address(s->tokens[stage.at]);
            const int32_t column = k + chunk * 8;
            const uint32_t n_bytes = column < k_size ? 16 : 0; /* past the end of K: zeros */
            const int32_t from = n_bytes ? column : 0;
#pragma unroll
            for (int i = 0; i < n_passes; i++) {
                const int32_t r = my_row + i * GATHER_ROWS;
                if (r < work.n_rows)
                    mb_cp_async_16(to + r * ROW_BYTES + ((chunk ^ (r % 8)) * 16), rows[i] + from, n_bytes);
            }
            mb_cp_async_arrive(&s->full[stage.at]);
            advance<n_stages>(&stage);
        }
    }
}

/* ---- consumers: multiply, activate, store
 * -------------------------------------------------------------------- */

static __device__ __forceinline__ float activate(const activation_shape *shape, float v) {
    const float exponent = v * (shape->linear + shape->cubic * (v * v));
    return v * (shape->constant + shape->slope * v) * mb_reciprocal(1.0f + mb_exp2(-exponent));
}

static __device__ __forceinline__ uint32_t pack(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

/* Says to all CTAs of the cluster that this warp has read the stage. */
template <int n_ctas> static __device__ __forceinline__ void release(uint64_t *empty) {
    const int lane = threadIdx.x % 32;
    if constexpr (n_ctas > 1) {
        if (lane < n_ctas)
            mb_mbarrier_arrive_cluster(empty, lane);
    } else if (lane == 0)
        mb_mbarrier_arrive(empty);
}

/* sum[m] += block m of 64 of this warpgroup's weight rows, times n tokens, over all of K. A stage is given
 * back only when the next one's wgmma are under way, so that the tensor cores never run dry. */
template <int n, int n_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void multiply(shared *s, int group, int32_t k_size, cursor *stage,
                                                float (&sum)[n_blocks][n / 2]) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    uint32_t previous = 0;
#pragma unroll 1
    for (int32_t k = 0; k < k_size; k += K_STEP) {
        mb_mbarrier_wait(&s->full[stage->at], stage->parity);
        mb_fence_async_shared(); /* cp.async wrote the tokens by ordinary stores */
        const uint64_t a =
            mb_wgmma_descriptor(mb_shared_address(s->weights[stage->at]) + group * n_blocks * 64 * ROW_BYTES);
        const uint64_t b = mb_wgmma_descriptor(mb_shared_address(s->tokens[stage->at]));
#pragma unroll
        for (int m = 0; m < n_blocks; m++)
            mb_wgmma_pin(sum[m]);
        mb_wgmma_fence();
#pragma unroll
        for (int i = 0; i < K_STEP / 16; i++)
#pragma unroll
            for (int m = 0; m < n_blocks; m++)
                mb_wgmma_bf16<n>(sum[m], a + m * (64 * ROW_BYTES / 16) + 2 * i, b + 2 * i);
        mb_wgmma_commit();
#pragma unroll
        for (int m = 0; m < n_blocks; m++)
            mb_wgmma_pin(sum[m]);
        if (k > 0) {
            mb_wgmma_wait<1>();
            release<n_ctas>(&s->empty[previous]);
        }
        previous = stage->at;
        advance<n_stages>(stage);
    }
    mb_wgmma_wait<0>();
#pragma unroll
    for (int m = 0; m < n_blocks; m++)
        mb_wgmma_pin(sum[m]);
    release<n_ctas>(&s->empty[previous]);
}

/* Accumulators start as the bias of their output: rows lane / 4 and + 8 of this warp's 16, where the matrix
 * has them: its last piece may end at any multiple of 8. */
template <int n>
static __device__ __forceinline__ void set_to_bias(const __nv_bfloat16 *bias, int low_inside, int32_t low,
                                                   int high_inside, int32_t high, float (&sum)[n / 2]) {
    const float bias_low = bias && low_inside ? __bfloat162float(bias[low]) : 0;
    const float bias_high = bias && high_inside ? __bfloat162float(bias[high]) : 0;
#pragma unroll
    for (int j = 0; j < n / 8; j++) {
        sum[4 * j] = sum[4 * j + 1] = bias_low;
        sum[4 * j + 2] = sum[4 * j + 3] = bias_high;
    }
}

/* Gate and up of a block become 32 outputs: 16-byte chunks 4 m .. 4 m + 3 of staged rows, one row a token.
 * Through shared memory, since a thread's accumulators are of one output and many tokens, and stores want
 * many outputs of one token. */
template <int n_staged>
static __device__ __forceinline__ void stage_gated(uint32_t staging, int m,
                                                   const activation_shape *activation, const float *sum) {
    const int warp = threadIdx.x % WARPGROUP / 32, token = threadIdx.x % 8;
    const uint32_t to = staging + token * ROW_BYTES + (((4 * m + warp) ^ token) * 16);
#pragma unroll
    for (int j = 0; j < n_staged / 8; j++)
        mb_store_matrix_transposed_x1(to + j * 8 * ROW_BYTES,
                                      pack(activate(activation, sum[4 * j]) * sum[4 * j + 2],
                                           activate(activation, sum[4 * j + 1]) * sum[4 * j + 3]));
}

/* A block's 64 outputs, activated or as they are: whole staged rows. */
template <int n_staged, int activated>
static __device__ __forceinline__ void stage_plain(uint32_t staging, const activation_shape *activation,
                                                   const float *sum) {
    const int warp = threadIdx.x % WARPGROUP / 32, token = threadIdx.x % 8, high = threadIdx.x / 8 % 2;
    const uint32_t to = staging + token * ROW_BYTES + (((2 * warp + high) ^ token) * 16);
#pragma unroll
    for (int j = 0; j < n_staged / 8; j++) {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = activated ? activate(activation, sum[4 * j + i]) : sum[4 * j + i];
        mb_store_matrix_transposed_x2(to + j * 8 * ROW_BYTES, pack(v[0], v[1]), pack(v[2], v[3]));
    }
}

/* Staged rows to global memory, 16 bytes a thread. Large tiles' rows are read again only after much else has
 * gone through L2: they are stored to leave it first. */
template <int n_ctas>
static __device__ __forceinline__ void copy_out(uint32_t staging, int log2_chunks, int n_tokens,
                                                int32_t n_outputs, int32_t width, __nv_bfloat16 *out) {
#pragma unroll 1
    for (int i = threadIdx.x % WARPGROUP; i < n_tokens << log2_chunks; i += WARPGROUP) {
        const int token = i >> log2_chunks, chunk = i & ((1 << log2_chunks) - 1);
        if (chunk * 8 >= n_outputs)
            continue;
        const uint4 value = mb_load_shared_16(staging + token * ROW_BYTES + ((chunk ^ (token % 8)) * 16));
        uint4 *to = (uint4 *)(out + (int64_t)token * width + chunk * 8);
        if constexpr (n_ctas > 1)
            __stcs(to, value);
        else
            *to = value;
    }
}

/* One item of a consumer warpgroup. */
template <int n, int n_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void consume(const experts_params *p, shared *s, int group,
                                               const item *work, cursor *stage) {
    constexpr int n_groups = sizeof(s->staging) / sizeof(s->staging[0]);
    constexpr int n_staged = n < STAGING_TOKENS ? n : STAGING_TOKENS;
    const int thread = threadIdx.x % WARPGROUP, warp = thread / 32, lane = thread % 32;
    const int is_first = work->gemm == GEMM_W13;
    const int gated = is_first && p->gated;
    const int32_t block_outputs = gated ? 32 : 64;
    const int32_t width = is_first ? p->intermediate : p->hidden;
    const int32_t first_output = (work->piece * n_groups + group) * n_blocks * block_outputs;

    float sum[n_blocks][n / 2];
    const __nv_bfloat16 *bias = is_first ? p->bias13 : p->bias2;
    if (bias)
        bias += (int64_t)work->expert * (gated ? 2 * width : width);
#pragma unroll
    for (int m = 0; m < n_blocks; m++) {
        const int32_t low = first_output + m * block_outputs + warp * (gated ? 8 : 16) + lane / 4;
        const int32_t high = gated ? low + width : low + 8;
        set_to_bias<n>(bias, low < width, low, high < (gated ? 2 * width : width), high, sum[m]);
    }

    multiply<n, n_blocks, n_ctas>(s, group, is_first ? p->hidden : p->intermediate, stage, sum);

    const uint32_t staging = mb_shared_address(s->staging[group]);
    __nv_bfloat16 *out = (is_first ? p->h : p->y) + (int64_t)work->first_row * width + first_output;
    const int32_t n_outputs = width - first_output;
#pragma unroll
    for (int token0 = 0; token0 < n; token0 += STAGING_TOKENS) {
        constexpr int n_last = n % n_staged ? n % n_staged : n_staged;
        const int n_tokens = min(n_staged, work->n_rows - token0);
        __nv_bfloat16 *to = out + (int64_t)token0 * width;
        if (gated) {
#pragma unroll
            for (int m = 0; m < n_blocks; m++)
                if (token0 + n_staged <= n)
                    stage_gated<n_staged>(staging, m, &p->activation, &sum[m][token0 / 2]);
                else
                    stage_gated<n_last>(staging, m, &p->activation, &sum[m][token0 / 2]);
            mb_named_barrier_sync(1 + group, WARPGROUP);
            copy_out<n_ctas>(staging, n_blocks == 1 ? 2 : 3, n_tokens, n_outputs, width, to);
            mb_named_barrier_sync(1 + group, WARPGROUP);
        } else {
#pragma unroll
            for (int m = 0; m < n_blocks; m++) {
                constexpr int whole = n_staged, rest = n % n_staged;
                const float *values = &sum[m][token0 / 2];
                if (is_first && token0 + whole <= n)
                    stage_plain<whole, 1>(staging, &p->activation, values);
                else if (is_first)
                    stage_plain<rest, 1>(staging, &p->activation, values);
                else if (token0 + whole <= n)
                    stage_plain<whole, 0>(staging, &p->activation, values);
                else
                    stage_plain<rest, 0>(staging, &p->activation, values);
                mb_named_barrier_sync(1 + group, WARPGROUP);
                copy_out<n_ctas>(staging, 3, n_tokens, n_outputs - m * 64, width, to + m * 64);
                mb_named_barrier_sync(1 + group, WARPGROUP);
            }
        }
    }
    if (is_first && thread == 0)
        mb_add_release(&p->schedule.ready[work->token_tile], 1);
}

/* The item at the smallest number of tokens that wgmma has and that is enough. */
template <int n, int cta_tokens, int n_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void consume_rounded(const experts_params *p, shared *s, int group,
                                                       const item *work, cursor *stage) {
    if (work->n_rows <= n)
        consume<n, n_blocks, n_ctas>(p, s, group, work, stage);
    else if constexpr (n < cta_tokens)
        consume_rounded<n + 8, cta_tokens, n_blocks, n_ctas>(p, s, group, work, stage);
}

/* ---- the kernel
 * ---------------------------------------------------------------------------------------------- */

template <int weight_rows, int n_groups, int cta_tokens, int n_stages, int n_ctas>
static __global__ void __launch_bounds__((n_groups + 1) * WARPGROUP, 1)
    experts(const __grid_constant__ experts_params p) {
    typedef shared_map<weight_rows, n_groups, cta_tokens, n_stages> shared;
    constexpr int n_blocks = weight_rows / n_groups / 64;
    constexpr int n_sums =
        n_blocks * cta_tokens / 2; /* accumulators of a thread: more than 64 need more registers */
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    shared *s = (shared *)shared_bytes;

    if (threadIdx.x == 0) {
        for (int i = 0; i < n_stages; i++) {
            mb_mbarrier_init(&s->full[i], 1 + GATHER_THREADS);
            mb_mbarrier_init(&s->empty[i], 4 * n_groups * n_ctas);
        }
        for (int i = 0; i < RING; i++) {
            mb_mbarrier_init(&s->ring_full[i], 1);
            mb_mbarrier_init(&s->ring_empty[i], GATHER_THREADS + n_groups * WARPGROUP);
        }
        mb_mbarrier_init_fence();
        mb_tma_prefetch_map(&p.w13);
        mb_tma_prefetch_map(&p.w2);
    }
    if constexpr (n_ctas > 1)
        mb_cluster_sync();
    else
        __syncthreads();
    mb_grid_wait();

    const int group = __shfl_sync(0xffffffff, threadIdx.x / WARPGROUP, 0);
    if (group == n_groups) {
        if constexpr (n_sums > 64)
            mb_setmaxnreg_decrease<80>();
        const int warp = __shfl_sync(0xffffffff, threadIdx.x % WARPGROUP / 32, 0);
        if (warp > 0)
            gather_tokens<n_ctas>(&p, s);
        else if (threadIdx.x % 32 == 0)
            stream_weights<weight_rows, n_ctas>(&p, s);
    } else {
        if constexpr (n_sums > 64)
            mb_setmaxnreg_increase<208>();
        cursor stage = {0, 0}, ring = {0, 0};
        for (;;) {
            const item work = next_item(s, &ring);
            if (work.gemm == NO_MORE)
                break;
            consume_rounded<8, cta_tokens, n_blocks, n_ctas>(&p, s, group, &work, &stage);
        }
    }
    if constexpr (n_ctas > 1)
        mb_cluster_sync(); /* neither leaves while the other may still write to it */
}

/* ---- host
 * ---------------------------------------------------------------------------------------------------- */

static activation_shape shape_of(mb_activation activation) {
    const float log2_e = 1.4426950408889634f, huge = 1e30f;
    switch (activation) {
    case MB_ACT_SWIGLU:
    case MB_ACT_SILU:
        return {log2_e, 0, 1, 0};
    case MB_ACT_GEGLU: /* 2 sqrt(2 / pi) (v + 0.044715 v^3) */
    case MB_ACT_GELU:
        return {1.5957691216057308f * log2_e, 0.07135481282636983f * log2_e, 1, 0};
    case MB_ACT_REGLU: /* a sigmoid as steep as floats allow */
    case MB_ACT_RELU:
        return {huge, 0, 1, 0};
    default: /* MB_ACT_RELU2 */
        return {huge, 0, 0, 1};
    }
}

typedef CUresult (*encode_function)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                    const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                    const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                    CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's encoder, without linking the driver. */
static encode_function tensor_map_encoder(void) {
    static encode_function encoder;
    if (!encoder) {
        void *function = NULL;
        cudaDriverEntryPointQueryResult found;
        if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                             &found) == cudaSuccess &&
            found == cudaDriverEntryPointSuccess)
            encoder = (encode_function)function;
    }
    return encoder;
}

/* Boxes of box_rows rows by 64 columns of [count, rows, cols]. Dimensions: column, row in a group of
 * eight, gate or up, group, expert; so rows of gate and up come in turns of eight. */
static mb_status encode_weight(CUtensorMap *map, const mb_weight *weight, int gated, int box_rows) {
    encode_function encode = tensor_map_encoder();
    if (!encode)
        return mb_fail(MB_ERR_DEVICE,
                       "moe_experts: the driver has no cuTensorMapEncodeTiled; CUDA 12 is needed");
    const cuuint64_t row_bytes = (cuuint64_t)weight->cols * 2;
    const cuuint64_t rows = (cuuint64_t)weight->rows, halves = gated ? 2 : 1;
    const cuuint64_t sizes[5] = {(cuuint64_t)weight->cols, 8, halves, rows / 8 / halves,
                                 (cuuint64_t)weight->count};
    const cuuint64_t strides[4] = {row_bytes, rows / halves * row_bytes, 8 * row_bytes, rows * row_bytes};
    const cuuint32_t box[5] = {K_STEP, 8, (cuuint32_t)halves, (cuuint32_t)(box_rows / 8 / halves), 1};
    const cuuint32_t element_strides[5] = {1, 1, 1, 1, 1};
    CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5, (void *)weight->data, sizes, strides,
                             box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "moe_experts: no tensor map for weights [%lld, %lld, %lld] at %p (driver error %d); they must "
            "be 16-byte aligned, rows and columns multiples of 8",
            (long long)weight->count, (long long)weight->rows, (long long)weight->cols, weight->data,
            (int)result);
    return MB_OK;
}

template <int weight_rows, int n_groups, int cta_tokens, int n_stages, int n_ctas>
static cudaError_t launch(const experts_params *params, int n_processors, mb_stream stream) {
    typedef shared_map<weight_rows, n_groups, cta_tokens, n_stages> shared;
    static_assert(sizeof(shared) <= 227 * 1024, "the tile does not fit into shared memory");
    auto kernel = experts<weight_rows, n_groups, cta_tokens, n_stages, n_ctas>;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(shared));
    if (error != cudaSuccess)
        return error;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3(n_processors / n_ctas * n_ctas), (n_groups + 1) * WARPGROUP,
                     sizeof(shared), stream);
    if (n_ctas > 1)
        mb_launch_clusters(&config, n_ctas);
    return cudaLaunchKernelEx(&config, kernel, *params);
}

extern "C" mb_status mb_moe_experts_sm90(const mb_moe_experts_args *args, mb_stream stream) {
    const mb_moe_forward_args *f = args->forward;
    if (args->tile < 0 || args->tile >= MB_MOE_N_TILES)
        return mb_fail(MB_ERR_ARGUMENT, "moe_experts: tile %d is not in 0 .. %d", args->tile,
                       MB_MOE_N_TILES - 1);
    const mb_moe_tile *tile = &mb_moe_tiles[args->tile];
    experts_params params = {};
    params.x = (const __nv_bfloat16 *)f->x;
    params.h = (__nv_bfloat16 *)args->h;
    params.y = (__nv_bfloat16 *)args->y;
    params.bias13 = (const __nv_bfloat16 *)f->bias13;
    params.bias2 = (const __nv_bfloat16 *)f->bias2;
    params.row_token = args->row_token;
    params.schedule = args->schedule;
    params.hidden = f->hidden;
    params.intermediate = f->intermediate;
    params.gated = mb_activation_is_gated(f->activation);
    const int32_t outputs13 = params.gated ? tile->weight_rows / 2 : tile->weight_rows;
    params.pieces13 = (f->intermediate + outputs13 - 1) / outputs13;
    params.pieces2 = (f->hidden + tile->weight_rows - 1) / tile->weight_rows;
    params.activation = shape_of(f->activation);
    const int64_t n_rows = f->n_tokens * f->top_k;
    const int64_t n_hit = n_rows < f->n_local_experts ? n_rows : f->n_local_experts;
    params.read_once = 2 * n_hit * (f->w13.rows + f->intermediate) * f->hidden <= READ_ONCE_BYTES;
    MB_TRY(encode_weight(&params.w13, &f->w13, params.gated, tile->box_rows));
    MB_TRY(encode_weight(&params.w2, &f->w2, 0, tile->box_rows));

    int device = 0, n_processors = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess) {
        switch (args->tile) {
#define X(name, weight_rows, n_groups, cta_tokens, n_stages, n_ctas)                                        \
    case MB_MOE_TILE_##name:                                                                                \
        error = launch<weight_rows, n_groups, cta_tokens, n_stages, n_ctas>(&params, n_processors, stream); \
        break;
#include "ops/moe/moe_tiles.def"
#undef X
        }
    }
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_experts: launch of tile %s failed: %s", tile->name,
                       cudaGetErrorString(error));
    return MB_OK;
}
