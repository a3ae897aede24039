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
    STAGING_TOKENS = 64,              /* tokens that an epilogue stores at a time */
};

enum gemm { GEMM_W13, GEMM_W2, NO_MORE };

/* One work item. */
typedef struct item {
    int32_t gemm, expert, token_tile, piece, first_row, n_rows;
} item;

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
    mb_activation activation;
} experts_params;

/* ---- shared memory
 * ------------------------------------------------------------------------------------------- */

template <int weight_rows, int max_tokens, int n_stages> struct shared_map {
    unsigned char weights[n_stages][weight_rows * ROW_BYTES];
    unsigned char tokens[n_stages][max_tokens * ROW_BYTES];
    unsigned char staging[weight_rows / 64]
                         [(max_tokens < STAGING_TOKENS ? max_tokens : STAGING_TOKENS) * ROW_BYTES];
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

/* Reads the next item of the ring; every lane of the warp calls it. */
template <class shared> static __device__ __forceinline__ item next_item(shared *s, cursor *ring) {
    mb_mbarrier_wait(&s->ring_full[ring->at], ring->parity);
    item work = s->ring[ring->at];
    __syncwarp();
    if (threadIdx.x % 32 == 0)
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

template <int weight_rows, class shared>
static __device__ __forceinline__ void stream_weights(const experts_params *p, shared *s) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    cursor stage = {0, 1}, ring = {0, 1};
    const int32_t n_token_tiles = *p->schedule.n_tiles;
    int32_t index = blockIdx.x;
    for (;;) {
        const item work = decode(p, index, n_token_tiles);
        if (work.gemm != NO_MORE)
            index = gridDim.x + atomicAdd(p->schedule.next_item, 1);
        mb_mbarrier_wait(&s->ring_empty[ring.at], ring.parity);
        s->ring[ring.at] = work;
        mb_mbarrier_arrive(&s->ring_full[ring.at]);
        advance<RING>(&ring);
        if (work.gemm == NO_MORE)
            break;

        const CUtensorMap *map = work.gemm == GEMM_W13 ? &p->w13 : &p->w2;
        const int32_t k_size = work.gemm == GEMM_W13 ? p->hidden : p->intermediate;
        const int32_t rows_per_group = work.gemm == GEMM_W13 && p->gated ? 16 : 8;
        const int32_t row_group = work.piece * (weight_rows / rows_per_group);
        for (int32_t k = 0; k < k_size; k += K_STEP) {
            mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
            mb_mbarrier_arrive_expect(&s->full[stage.at], weight_rows * ROW_BYTES);
            mb_tma_load_5d(s->weights[stage.at], map, &s->full[stage.at], k, 0, 0, row_group, work.expert);
            advance<n_stages>(&stage);
        }
    }
    mb_grid_launch_dependents();
}

/* ---- tokens: three warps gather rows
 * ------------------------------------------------------------------------- */

template <int max_tokens, class shared>
static __device__ __forceinline__ void gather_tokens(const experts_params *p, shared *s) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    constexpr int n_passes = (max_tokens + GATHER_ROWS - 1) / GATHER_ROWS;
    constexpr int batch = n_passes < 6 ? n_passes : 6;
    const int thread = threadIdx.x % WARPGROUP - 32;
    const int chunk = thread % 8, my_row = thread / 8; /* of a pass: 16 bytes of one row */
    cursor stage = {0, 1}, ring = {0, 0};
    for (;;) {
        const item work = next_item(s, &ring);
        if (work.gemm == NO_MORE)
            break;
        const int from_x = work.gemm == GEMM_W13;
        const int32_t k_size = from_x ? p->hidden : p->intermediate;
        const __nv_bfloat16 *source = from_x ? p->x : p->h;
        if (!from_x) {
            const int32_t n_pieces = p->pieces13 * (int)(sizeof(s->staging) / sizeof(s->staging[0]));
            if (threadIdx.x % 32 == 0)
                while (mb_load_acquire(&p->schedule.ready[work.token_tile]) != n_pieces)
                    ;
            __syncwarp();
        }
        const int32_t *row_token = p->row_token + work.first_row;
        for (int32_t k = 0; k < k_size; k += K_STEP) {
            mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
            const uint32_t to = mb_shared_address(s->tokens[stage.at]);
            const int32_t column = k + chunk * 8;
            const uint32_t n_bytes = column < k_size ? 16 : 0; /* past the end of K: zeros */
            const __nv_bfloat16 *from = source + (n_bytes ? column : 0);
            /* A few rows' indices at a time: all of them would not fit into this warp's registers. */
            for (int32_t r0 = my_row; r0 < work.n_rows; r0 += batch * GATHER_ROWS) {
                int32_t rows[batch];
#pragma unroll
                for (int i = 0; i < batch; i++) {
                    int32_t r = r0 + i * GATHER_ROWS;
                    rows[i] = from_x && r < work.n_rows ? row_token[r] : work.first_row + r;
                }
#pragma unroll
                for (int i = 0; i < batch; i++) {
                    int32_t r = r0 + i * GATHER_ROWS;
                    if (r < work.n_rows)
                        mb_cp_async_16(to + r * ROW_BYTES + ((chunk ^ (r % 8)) * 16),
                                       from + (int64_t)rows[i] * k_size, n_bytes);
                }
            }
            mb_cp_async_arrive(&s->full[stage.at]);
            advance<n_stages>(&stage);
        }
    }
}

/* ---- consumers: multiply, activate, store
 * -------------------------------------------------------------------- */

static __device__ __forceinline__ float gelu_tanh(float v) {
    float inner = 0.7978845608028654f * (v + 0.044715f * v * v * v);
    return v / (1.0f + __expf(-2.0f * inner));
}

static __device__ __forceinline__ float activate(mb_activation activation, float v) {
    switch (activation) {
    case MB_ACT_SWIGLU:
    case MB_ACT_SILU:
        return __fdividef(v, 1.0f + __expf(-v));
    case MB_ACT_GEGLU:
    case MB_ACT_GELU:
        return gelu_tanh(v);
    case MB_ACT_RELU2:
        return v > 0 ? v * v : 0.0f;
    default:
        return v > 0 ? v : 0.0f;
    }
}

static __device__ __forceinline__ uint32_t pack(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

/* sum = 64 weight rows times n tokens over all of K. The last step's stage is given back before the last
 * wgmma of the next is done, so that the tensor cores never run dry. */
template <int n, class shared>
static __device__ __forceinline__ void multiply(shared *s, int group, int32_t k_size, cursor *stage,
                                                float (&sum)[n / 2]) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    const int is_first_lane = threadIdx.x % 32 == 0;
    uint32_t previous = 0;
    for (int32_t k = 0; k < k_size; k += K_STEP) {
        mb_mbarrier_wait(&s->full[stage->at], stage->parity);
        mb_fence_async_shared(); /* cp.async wrote the tokens by ordinary stores */
        const uint64_t a =
            mb_wgmma_descriptor(mb_shared_address(s->weights[stage->at]) + group * 64 * ROW_BYTES);
        const uint64_t b = mb_wgmma_descriptor(mb_shared_address(s->tokens[stage->at]));
        mb_wgmma_pin(sum);
        mb_wgmma_fence();
#pragma unroll
        for (int i = 0; i < K_STEP / 16; i++)
            mb_wgmma_bf16<n>(sum, a + 2 * i, b + 2 * i, k > 0 || i > 0);
        mb_wgmma_commit();
        mb_wgmma_pin(sum);
        if (k > 0) {
            mb_wgmma_wait<1>();
            if (is_first_lane)
                mb_mbarrier_arrive(&s->empty[previous]);
        }
        previous = stage->at;
        advance<n_stages>(stage);
    }
    mb_wgmma_wait<0>();
    mb_wgmma_pin(sum);
    if (is_first_lane)
        mb_mbarrier_arrive(&s->empty[previous]);
}

/* Rows of the tile become bf16 columns of `out`: through shared memory, since a thread's accumulators are of
 * one output and many tokens, and stores want many outputs of one token. */
template <int n, class shared>
static __device__ __forceinline__ void store(const experts_params *p, shared *s, int group, const item *work,
                                             float (&sum)[n / 2]) {
    constexpr int staged = n < STAGING_TOKENS ? n : STAGING_TOKENS;
    const int warp = threadIdx.x % WARPGROUP / 32, lane = threadIdx.x % 32;
    const int n_groups = sizeof(s->staging) / sizeof(s->staging[0]);
    const int is_first = work->gemm == GEMM_W13;
    const int gated = is_first && p->gated;
    const int outputs = gated ? 32 : 64; /* of this warpgroup */
    const int32_t width = is_first ? p->intermediate : p->hidden;
    const int32_t first_output = (work->piece * n_groups + group) * outputs;
    __nv_bfloat16 *out = is_first ? p->h : p->y;
    const uint32_t staging = mb_shared_address(s->staging[group]);

    /* My accumulators' biases: rows lane / 4 and + 8 of this warp's 16. */
    float bias_low = 0, bias_high = 0;
    const __nv_bfloat16 *bias = is_first ? p->bias13 : p->bias2;
    if (bias) {
        int32_t low = first_output + warp * (gated ? 8 : 16) + lane / 4;
        int32_t high = gated ? low + width : low + 8;
        bias += (int64_t)work->expert * (gated ? 2 * width : width);
        if (low < width)
            bias_low = __bfloat162float(bias[low]);
        if (gated ? low < width : high < width)
            bias_high = __bfloat162float(bias[high]);
    }

#pragma unroll
    for (int token0 = 0; token0 < n; token0 += staged) {
#pragma unroll
        for (int j = token0 / 8; j < (token0 + staged) / 8; j++) {
            if (j * 8 >= n)
                continue;
            const int token = j * 8 - token0 + lane % 8;
            const uint32_t to = staging + token * ROW_BYTES;
            float low0 = sum[4 * j] + bias_low, low1 = sum[4 * j + 1] + bias_low;
            float high0 = sum[4 * j + 2] + bias_high, high1 = sum[4 * j + 3] + bias_high;
            if (gated) {
                low0 = activate(p->activation, low0) * high0;
                low1 = activate(p->activation, low1) * high1;
                mb_store_matrix_transposed_x1(to + ((warp ^ (token % 8)) * 16), pack(low0, low1));
            } else {
                if (is_first) {
                    low0 = activate(p->activation, low0);
                    low1 = activate(p->activation, low1);
                    high0 = activate(p->activation, high0);
                    high1 = activate(p->activation, high1);
                }
                int chunk = warp * 2 + lane / 8 % 2;
                mb_store_matrix_transposed_x2(to + ((chunk ^ (token % 8)) * 16), pack(low0, low1),
                                              pack(high0, high1));
            }
        }
        mb_named_barrier_sync(1 + group, WARPGROUP);
        const int chunks = outputs / 8;
        for (int i = threadIdx.x % WARPGROUP; i < staged * chunks; i += WARPGROUP) {
            const int token = i / chunks, chunk = i % chunks;
            const int32_t output = first_output + chunk * 8;
            if (token0 + token < work->n_rows && output < width) {
                uint4 value;
                asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                             : "r"(staging + token * ROW_BYTES + ((chunk ^ (token % 8)) * 16)));
                *(uint4 *)(out + (int64_t)(work->first_row + token0 + token) * width + output) = value;
            }
        }
        mb_named_barrier_sync(1 + group, WARPGROUP);
    }
    if (is_first && threadIdx.x % WARPGROUP == 0)
        mb_add_release(&p->schedule.ready[work->token_tile], 1);
}

template <int n, class shared>
static __device__ __forceinline__ void consume(const experts_params *p, shared *s, int group,
                                               const item *work, cursor *stage) {
    float sum[n / 2];
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        sum[i] = 0;
    multiply<n>(s, group, work->gemm == GEMM_W13 ? p->hidden : p->intermediate, stage, sum);
    store<n>(p, s, group, work, sum);
}

/* ---- the kernel
 * ---------------------------------------------------------------------------------------------- */

template <int weight_rows, int max_tokens, int n_stages>
static __global__ void __launch_bounds__(weight_rows / 64 * WARPGROUP + WARPGROUP, 1)
    experts(const __grid_constant__ experts_params p) {
    typedef shared_map<weight_rows, max_tokens, n_stages> shared;
    constexpr int n_groups = weight_rows / 64;
    constexpr int step = max_tokens / 8 < 8 ? 8 : max_tokens / 8;
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    shared *s = (shared *)shared_bytes;

    if (threadIdx.x == 0) {
        for (int i = 0; i < n_stages; i++) {
            mb_mbarrier_init(&s->full[i], 1 + GATHER_THREADS);
            mb_mbarrier_init(&s->empty[i], 4 * n_groups);
        }
        for (int i = 0; i < RING; i++) {
            mb_mbarrier_init(&s->ring_full[i], 1);
            mb_mbarrier_init(&s->ring_empty[i], GATHER_WARPS + 4 * n_groups);
        }
        mb_mbarrier_init_fence();
        mb_tma_prefetch_map(&p.w13);
        mb_tma_prefetch_map(&p.w2);
    }
    __syncthreads();
    mb_grid_wait();

    const int group = __shfl_sync(0xffffffff, threadIdx.x / WARPGROUP, 0);
    if (group == n_groups) {
        if constexpr (max_tokens == 256)
            mb_setmaxnreg_decrease<72>();
        const int warp = __shfl_sync(0xffffffff, threadIdx.x % WARPGROUP / 32, 0);
        if (warp > 0)
            gather_tokens<max_tokens>(&p, s);
        else if (threadIdx.x % 32 == 0)
            stream_weights<weight_rows>(&p, s);
    } else {
        if constexpr (max_tokens == 256)
            mb_setmaxnreg_increase<216>();
        cursor stage = {0, 0}, ring = {0, 0};
        for (;;) {
            const item work = next_item(s, &ring);
            if (work.gemm == NO_MORE)
                break;
            const int n_steps = (work.n_rows + step - 1) / step;
            if (n_steps <= 1)
                consume<step>(&p, s, group, &work, &stage);
            else if (n_steps == 2)
                consume<2 * step>(&p, s, group, &work, &stage);
            if constexpr (max_tokens / step > 2) {
                if (n_steps == 3)
                    consume<3 * step>(&p, s, group, &work, &stage);
                else if (n_steps == 4)
                    consume<4 * step>(&p, s, group, &work, &stage);
            }
            if constexpr (max_tokens / step > 4) {
                if (n_steps == 5)
                    consume<5 * step>(&p, s, group, &work, &stage);
                else if (n_steps == 6)
                    consume<6 * step>(&p, s, group, &work, &stage);
                else if (n_steps == 7)
                    consume<7 * step>(&p, s, group, &work, &stage);
                else if (n_steps == 8)
                    consume<8 * step>(&p, s, group, &work, &stage);
            }
        }
    }
}

/* ---- host
 * ---------------------------------------------------------------------------------------------------- */

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

/* Boxes of weight_rows rows by 64 columns of [count, rows, cols]. Dimensions: column, row in a group of
 * eight, gate or up, group, expert; so rows of gate and up come in turns of eight. */
static mb_status encode_weight(CUtensorMap *map, const mb_weight *weight, int gated, int weight_rows) {
    encode_function encode = tensor_map_encoder();
    if (!encode)
        return mb_fail(MB_ERR_DEVICE,
                       "moe_experts: the driver has no cuTensorMapEncodeTiled; CUDA 12 is needed");
    const cuuint64_t row_bytes = (cuuint64_t)weight->cols * 2;
    const cuuint64_t rows = (cuuint64_t)weight->rows, halves = gated ? 2 : 1;
    const cuuint64_t sizes[5] = {(cuuint64_t)weight->cols, 8, halves, rows / 8 / halves,
                                 (cuuint64_t)weight->count};
    const cuuint64_t strides[4] = {row_bytes, rows / halves * row_bytes, 8 * row_bytes, rows * row_bytes};
    const cuuint32_t box[5] = {K_STEP, 8, (cuuint32_t)halves, (cuuint32_t)(weight_rows / 8 / halves), 1};
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

template <int weight_rows, int max_tokens, int n_stages>
static cudaError_t launch(const experts_params *params, int n_ctas, mb_stream stream) {
    typedef shared_map<weight_rows, max_tokens, n_stages> shared;
    static_assert(sizeof(shared) <= 227 * 1024, "the tile does not fit into shared memory");
    cudaError_t error =
        cudaFuncSetAttribute(experts<weight_rows, max_tokens, n_stages>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(shared));
    if (error != cudaSuccess)
        return error;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attribute;
    mb_launch_config(&config, &attribute, dim3(n_ctas), weight_rows / 64 * WARPGROUP + WARPGROUP,
                     sizeof(shared), stream);
    return cudaLaunchKernelEx(&config, experts<weight_rows, max_tokens, n_stages>, *params);
}

extern "C" mb_status mb_moe_experts_sm90(const mb_moe_experts_args *args, mb_stream stream) {
    const mb_moe_forward_args *f = args->forward;
    if (args->tile < 0 || args->tile >= MB_MOE_N_TILES)
        return mb_fail(MB_ERR_ARGUMENT, "moe_experts: tile %d is not in 0 .. %d", args->tile,
                       MB_MOE_N_TILES - 1);
    const mb_moe_tile *tile = &mb_moe_tiles[args->tile];
    experts_params params = {};
    params.gated = mb_activation_is_gated(f->activation);
    MB_TRY(encode_weight(&params.w13, &f->w13, params.gated, tile->weight_rows));
    MB_TRY(encode_weight(&params.w2, &f->w2, 0, tile->weight_rows));
    params.x = (const __nv_bfloat16 *)f->x;
    params.h = (__nv_bfloat16 *)args->h;
    params.y = (__nv_bfloat16 *)args->y;
    params.bias13 = (const __nv_bfloat16 *)f->bias13;
    params.bias2 = (const __nv_bfloat16 *)f->bias2;
    params.row_token = args->row_token;
    params.schedule = args->schedule;
    params.hidden = f->hidden;
    params.intermediate = f->intermediate;
    const int32_t outputs13 = params.gated ? tile->weight_rows / 2 : tile->weight_rows;
    params.pieces13 = (f->intermediate + outputs13 - 1) / outputs13;
    params.pieces2 = (f->hidden + tile->weight_rows - 1) / tile->weight_rows;
    params.activation = f->activation;

    int device = 0, n_ctas = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&n_ctas, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess) {
        switch (args->tile) {
#define X(name, weight_rows, max_tokens, n_stages)                                  \
    case MB_MOE_TILE_##name:                                                        \
        error = launch<weight_rows, max_tokens, n_stages>(&params, n_ctas, stream); \
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
