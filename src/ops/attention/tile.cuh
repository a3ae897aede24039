/*
 * tile.cuh - attention of 16 rows by one warp with mma.sync: for sequences of so few rows that wgmma's 64
 * would be in vain. order.cuh says what is the same as in prefill_sm90.cu.
 *
 * Shared memory: the warp's queries [16, dim], and K and V of a step, [128, dim] each, of 16 bits. 16-byte
 * pieces of a row are exchanged so that eight rows of one column of pieces lie in different banks: piece p
 * of row r is at place p ^ r % 8.
 */
#ifndef MB_OPS_ATTENTION_TILE_CUH
#define MB_OPS_ATTENTION_TILE_CUH

#include "ops/attention/rows.cuh"
#include "ops/attention/softmax.cuh"
#include "ops/hopper/cp_async.cuh"
#include "ops/hopper/mma.cuh"

/* sum: four accumulators of 16 rows by 8. */
template <int dtype>
static __device__ __forceinline__ void multiply(float *sum, const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1) {
    float(&four)[4] = *(float(*)[4])sum;
    if constexpr (dtype == MB_BF16)
        mb_mma_bf16(four, a, b0, b1);
    else
        mb_mma_f16(four, a, b0, b1);
}

/* The warp's queries into shared memory; rows that are not there become zeros. */
template <int dim>
static __device__ __forceinline__ void load_queries(const mb_attention_args *args, const query_rows *w,
                                                    unsigned char *q) {
    constexpr int row_bytes = 2 * dim, pieces = row_bytes / 16;
#pragma unroll
    for (int i = threadIdx.x % 32; i < WARP_ROWS * pieces; i += 32) {
        const int r = i / pieces, p = i % pieces;
        const int64_t head = head_of_row(args, w, r);
        const uint4 *from = (const uint4 *)((const char *)args->q + head * row_bytes) + p;
        *(uint4 *)(q + r * row_bytes + (p ^ r % 8) * 16) = head >= 0 ? *from : make_uint4(0, 0, 0, 0);
    }
    __syncwarp();
}

/* Starts the warp's copies of K or V of the step that begins at `position`; what is behind kv_len becomes
 * zeros. */
template <int dim>
static __device__ __forceinline__ void load_step(uint32_t to_shared, const void *cache,
                                                 const mb_attention_args *args, const query_rows *w,
                                                 int32_t position) {
    constexpr int row_bytes = 2 * dim, pieces = row_bytes / 16;
    const int32_t *blocks = args->block_table + (int64_t)w->sequence * args->max_blocks;
#pragma unroll
    for (int b = 0; b < STEP_BLOCKS; b++) {
        const int32_t n = min(BLOCK, w->kv_len - position - b * BLOCK); /* may be negative */
        const int64_t block = n > 0 ? blocks[position / BLOCK + b] : 0;
        const char *from = (const char *)cache + (block * args->n_kv_heads + w->kv_head) * BLOCK * row_bytes;
#pragma unroll 8
        for (int i = threadIdx.x % 32; i < BLOCK * pieces; i += 32) {
            const int r = i / pieces, p = i % pieces;
            mb_cp_async_16(to_shared + (b * BLOCK + r) * row_bytes + (p ^ r % 8) * 16,
                           from + (r < n ? i * 16 : 0), r < n ? 16 : 0);
        }
    }
    mb_cp_async_commit();
}

/* The scores of a step. */
template <int dtype, int dim>
static __device__ __forceinline__ void multiply_keys(uint32_t q_shared, uint32_t k_shared,
                                                     float (&scores)[STEP / 2]) {
    constexpr int row_bytes = 2 * dim;
    const int lane = threadIdx.x % 32, matrix = lane / 8, matrix_row = lane % 8;
#pragma unroll
    for (int i = 0; i < STEP / 2; i++)
        scores[i] = 0;
        /* q's matrices of a load: rows 0 - 7, 8 - 15 by dimensions 0 - 7, then by 8 - 15 of sixteen.
     * k's: positions 0 - 7 of sixteen by dimensions 0 - 7, 8 - 15, then positions 8 - 15. */
#pragma unroll
    for (int k = 0; k < dim / 16; k++) {
        uint32_t q[4];
        const int row = matrix % 2 * 8 + matrix_row, piece = k * 2 + matrix / 2;
        mb_load_matrix_x4(q, q_shared + row * row_bytes + (piece ^ row % 8) * 16);
#pragma unroll
        for (int n = 0; n < STEP / 16; n++) {
            uint32_t b[4];
            const int r = n * 16 + matrix / 2 * 8 + matrix_row, p = k * 2 + matrix % 2;
            mb_load_matrix_x4(b, k_shared + r * row_bytes + (p ^ r % 8) * 16);
            multiply<dtype>(&scores[8 * n], q, b[0], b[1]);
            multiply<dtype>(&scores[8 * n + 4], q, b[2], b[3]);
        }
    }
}

/* sums += P V of a step. */
template <int dtype, int dim>
static __device__ __forceinline__ void multiply_values(const uint32_t (&weights)[STEP / 4], uint32_t v_shared,
                                                       float (&sums)[dim / 2]) {
    constexpr int row_bytes = 2 * dim;
    const int lane = threadIdx.x % 32, matrix = lane / 8, matrix_row = lane % 8;
#pragma unroll
    for (int k = 0; k < STEP / 16; k++) {
        const uint32_t a[4] = {weights[4 * k], weights[4 * k + 1], weights[4 * k + 2], weights[4 * k + 3]};
#pragma unroll
        for (int n = 0; n < dim / 16; n++) {
            uint32_t b[4];
            const int r = k * 16 + matrix % 2 * 8 + matrix_row, p = n * 2 + matrix / 2;
            mb_load_matrix_transposed_x4(b, v_shared + r * row_bytes + (p ^ r % 8) * 16);
            multiply<dtype>(&sums[8 * n], a, b[0], b[1]);
            multiply<dtype>(&sums[8 * n + 4], a, b[2], b[3]);
        }
    }
}

#endif
