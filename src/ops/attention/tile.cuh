/*
 * tile.cuh - attention of 16 rows by one warp, with the tensor cores: what prefill and decode share, so
 * that a row has the same bits in both.
 *
 * A row is one query head of one token; the rows of a warp belong to one kv head. The cached positions are
 * cut into spans of SPAN tokens. Within a span the warp walks blocks of 64 positions with an online softmax
 * that starts from nothing; spans are then merged in their order. So a row's order of operations follows
 * from its own position alone, whoever computes a span and whatever the other rows of the warp are.
 *
 * Shared memory: a warp's queries [16, dim], and K and V of a block, [64, dim] each, of 16 bits. 16-byte
 * pieces of a row are exchanged so that eight rows of one column of pieces lie in different banks: piece p
 * of row r is at place p ^ r % 8.
 */
#ifndef MB_OPS_ATTENTION_TILE_CUH
#define MB_OPS_ATTENTION_TILE_CUH

#include "ops/attention/attention.h"
#include "ops/hopper/barrier.cuh"
#include "ops/hopper/cp_async.cuh"
#include "ops/hopper/math.cuh"
#include "ops/hopper/mma.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

enum { BLOCK = 64, SPAN = 256, SPAN_BLOCKS = SPAN / BLOCK, WARP_ROWS = 16 };

/* The state of a span, or of all spans so far. A lane has two rows: g = lane / 4 and g + 8. Sums of
 * dimension 8 n + lane % 4 * 2 and the next are in sums[n]; the totals are of this lane's columns until
 * finish_span. */
template <int dim> struct row_state {
    float sums[dim / 8][4];
    float maximum[2], total[2]; /* maximum: of scores times scale_log2 */
};

template <int dtype>
static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1) {
    if constexpr (dtype == MB_BF16)
        mb_mma_bf16(sum, a, b0, b1);
    else
        mb_mma_f16(sum, a, b0, b1);
}

template <int dtype> static __device__ __forceinline__ uint32_t pack(float low, float high) {
    if constexpr (dtype == MB_BF16) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return *(const uint32_t *)&pair;
    } else {
        const __half2 pair = __floats2half2_rn(low, high);
        return *(const uint32_t *)&pair;
    }
}

template <int dim> static __device__ __forceinline__ void start_span(row_state<dim> *state) {
#pragma unroll
    for (int n = 0; n < dim / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            state->sums[n][i] = 0;
    state->maximum[0] = state->maximum[1] = -CUDART_INF_F;
    state->total[0] = state->total[1] = 0;
}

/* Starts the copies of one block, by n_threads threads; positions from n on become zeros. */
template <int dim, int n_threads>
static __device__ __forceinline__ void load_block(uint32_t to_shared, const void *cache, int64_t first_row,
                                                  int n) {
    constexpr int row_bytes = 2 * dim, pieces = row_bytes / 16;
    const char *from = (const char *)cache + first_row * row_bytes;
#pragma unroll 8
    for (int i = threadIdx.x; i < BLOCK * pieces; i += n_threads) {
        const int r = i / pieces, p = i % pieces;
        mb_cp_async_16(to_shared + r * row_bytes + (p ^ r % 8) * 16, from + (r < n ? i * 16 : 0),
                       r < n ? 16 : 0);
    }
}

/* One block: scores, mask, softmax, values. n_visible: how many of its positions each row sees, may be
 * negative. */
template <int dtype, int dim>
static __device__ __forceinline__ void attend_block(uint32_t q_shared, uint32_t k_shared, uint32_t v_shared,
                                                    const int (&n_visible)[2], float scale_log2,
                                                    row_state<dim> *state) {
    constexpr int row_bytes = 2 * dim;
    const int lane = threadIdx.x % 32, matrix = lane / 8, matrix_row = lane % 8;
    float scores[BLOCK / 8][4] = {};
    /* q's matrices of a load: rows 0 - 7, 8 - 15 by dimensions 0 - 7, then by 8 - 15 of sixteen.
     * k's: positions 0 - 7 of sixteen by dimensions 0 - 7, 8 - 15, then positions 8 - 15. */
#pragma unroll
    for (int k = 0; k < dim / 16; k++) {
        uint32_t q[4];
        const int row = matrix % 2 * 8 + matrix_row, piece = k * 2 + matrix / 2;
        mb_load_matrix_x4(q, q_shared + row * row_bytes + (piece ^ row % 8) * 16);
#pragma unroll
        for (int n = 0; n < BLOCK / 16; n++) {
            uint32_t b[4];
            const int r = n * 16 + matrix / 2 * 8 + matrix_row, p = k * 2 + matrix % 2;
            mb_load_matrix_x4(b, k_shared + r * row_bytes + (p ^ r % 8) * 16);
            multiply<dtype>(scores[2 * n], q, b[0], b[1]);
            multiply<dtype>(scores[2 * n + 1], q, b[2], b[3]);
        }
    }

    float larger[2] = {state->maximum[0], state->maximum[1]};
#pragma unroll
    for (int n = 0; n < BLOCK / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int position = n * 8 + lane % 4 * 2 + i % 2;
            scores[n][i] = position < n_visible[i / 2] ? scores[n][i] * scale_log2 : -CUDART_INF_F;
            larger[i / 2] = fmaxf(larger[i / 2], scores[n][i]);
        }
    float shift[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        larger[r] = fmaxf(larger[r], __shfl_xor_sync(0xffffffff, larger[r], 1));
        larger[r] = fmaxf(larger[r], __shfl_xor_sync(0xffffffff, larger[r], 2));
        shift[r] = larger[r] == -CUDART_INF_F ? 0 : larger[r]; /* nothing is visible yet */
        const float correction = mb_exp2(state->maximum[r] - shift[r]);
        state->maximum[r] = larger[r];
        state->total[r] *= correction;
#pragma unroll
        for (int n = 0; n < dim / 8; n++) {
            state->sums[n][2 * r] *= correction;
            state->sums[n][2 * r + 1] *= correction;
        }
    }
#pragma unroll
    for (int n = 0; n < BLOCK / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            scores[n][i] = mb_exp2(scores[n][i] - shift[i / 2]);
            state->total[i / 2] += scores[n][i];
        }

#pragma unroll
    for (int k = 0; k < BLOCK / 16; k++) {
        const uint32_t weights[4] = {pack<dtype>(scores[2 * k][0], scores[2 * k][1]),
                                     pack<dtype>(scores[2 * k][2], scores[2 * k][3]),
                                     pack<dtype>(scores[2 * k + 1][0], scores[2 * k + 1][1]),
                                     pack<dtype>(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < dim / 16; n++) {
            uint32_t b[4];
            const int r = k * 16 + matrix % 2 * 8 + matrix_row, p = n * 2 + matrix / 2;
            mb_load_matrix_transposed_x4(b, v_shared + r * row_bytes + (p ^ r % 8) * 16);
            multiply<dtype>(state->sums[2 * n], weights, b[0], b[1]);
            multiply<dtype>(state->sums[2 * n + 1], weights, b[2], b[3]);
        }
    }
}

/* The totals of all columns. */
template <int dim> static __device__ __forceinline__ void finish_span(row_state<dim> *state) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        state->total[r] += __shfl_xor_sync(0xffffffff, state->total[r], 1);
        state->total[r] += __shfl_xor_sync(0xffffffff, state->total[r], 2);
    }
}

/* What two finished spans are multiplied by when they become one. */
typedef struct merge_factors {
    float former, next, maximum;
} merge_factors;

static __device__ __forceinline__ merge_factors factors_of(float former_maximum, float next_maximum) {
    const float maximum = fmaxf(former_maximum, next_maximum);
    const float shift = maximum == -CUDART_INF_F ? 0 : maximum;
    return {mb_exp2(former_maximum - shift), mb_exp2(next_maximum - shift), maximum};
}

static __device__ __forceinline__ float merge(const merge_factors *f, float former, float next) {
    return fmaf(next, f->next, __fmul_rn(former, f->former));
}

#endif
