/*
 * decode_products.cuh - the two products of a span by four warps, and the softmax between them (order.cuh has their
 * order).
 *
 * Of S = Q K^T warp w has quarter w of the positions of both steps. P goes through shared memory, because of O += P V
 * warp w has a quarter of the dimensions, whose chain runs over all positions.
 */
#ifndef MB_OPS_ATTENTION_DECODE_PRODUCTS_CUH
#define MB_OPS_ATTENTION_DECODE_PRODUCTS_CUH

#include "ops/attention/decode.cuh"
#include "ops/hopper/fp8.cuh"
#include "ops/hopper/mma.cuh"

template <int dtype>
static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1) {
    if constexpr (dtype == MB_BF16)
        mb_mma_bf16(sum, a, b0, b1);
    else
        mb_mma_f16(sum, a, b0, b1);
}

/* Four numbers of e4m3, exactly: to the pairs 0, 1 and 2, 3, or (is_transposed) 0, 2 and 1, 3. */
template <int dtype, int is_transposed>
static __device__ __forceinline__ void widen(uint32_t four, uint32_t *first, uint32_t *second) {
    uint32_t low, high;
    mb_from_e4m3x4(four, &low, &high);
    if constexpr (dtype == MB_F16) {
        *first = is_transposed ? __byte_perm(low, high, 0x5410) : low;
        *second = is_transposed ? __byte_perm(low, high, 0x7632) : high;
    } else {
        const float2 a = __half22float2(*(const __half2 *)&low), b = __half22float2(*(const __half2 *)&high);
        *first = is_transposed ? pack<MB_BF16>(a.x, b.x) : pack<MB_BF16>(a.x, a.y);
        *second = is_transposed ? pack<MB_BF16>(a.y, b.y) : pack<MB_BF16>(b.x, b.y);
    }
}

/* Addresses within a block or P follow from the lane alone. The lane is read again for each, so that they are not
 * all computed before the first item and kept in registers. */
static __device__ __forceinline__ int lane_again(void) {
    return (int)(mb_thread_index_again() % 32);
}

/* 16 rows of `columns` numbers of 16 bits, swizzled: A of the 16 columns from 16 k on. */
static __device__ __forceinline__ void load_a(uint32_t (&a)[4], uint32_t rows, int columns, int k, int lane) {
    const int matrix = lane / 8, r = matrix % 2 * 8 + lane % 8, piece = 2 * k + matrix / 2;
    mb_load_matrix_x4(a, rows + r * 2 * columns + (piece ^ r % 8) * 16);
}

/* All of the queries as A. (Of an e4m3 cache they are loaded by multiply_keys: registers are scarce there.) */
template <int dim, class shape>
static __device__ __forceinline__ void load_queries(uint32_t queries, uint32_t (&q)[dim / 16][4]) {
    if constexpr (!shape::is_e4m3) {
        const int lane = lane_again();
#pragma unroll
        for (int k = 0; k < dim / 16; k++)
            load_a(q[k], queries, dim, k, lane);
    }
}

/* Scores of the block's positions [first, first + 32). */
template <int dtype, int cache_dtype, int dim, class shape>
static __device__ __forceinline__ void multiply_keys(uint32_t queries, const uint32_t (&q)[dim / 16][4],
                                                     const unsigned char *keys, int first,
                                                     float (&scores)[QUARTER / 8][4]) {
    const int lane = lane_again(), matrix = lane / 8;
    if constexpr (cache_dtype == MB_F8_E4M3) {
        /* A matrix: eight positions by sixteen dimensions, which are a piece. */
        static_assert(QUARTER == 32, "four matrices at once");
        const uint32_t from = mb_shared_address(keys) + place_of<shape>(first + lane, 0);
#pragma unroll
        for (int k = 0; k < dim / 16; k++) {
            uint32_t a[4], x[4];
            load_a(a, queries, dim, k, lane);
            mb_load_matrix_x4(x, from ^ k * 16);
#pragma unroll
            for (int j = 0; j < QUARTER / 8; j++) {
                uint32_t low, high;
                widen<dtype, 0>(x[j], &low, &high);
                multiply<dtype>(scores[j], a, low, high);
            }
        }
    } else {
        /* Pieces of 16 dimensions differ in bits 5 and 6 of the address, which the swizzle of the row changes:
         * exclusive or, and the panel. Of b: positions 0 - 7 of sixteen by dimensions 0 - 7, 8 - 15; then
         * positions 8 - 15. */
        static_assert(shape::panel_bytes == 128, "panels of another width");
        const uint32_t from =
            mb_shared_address(keys) + place_of<shape>(first + matrix / 2 * 8 + lane % 8, matrix % 2);
#pragma unroll
        for (int k = 0; k < dim / 16; k++)
#pragma unroll
            for (int n = 0; n < QUARTER / 16; n++) {
                uint32_t b[4];
                mb_load_matrix_x4(b, (from ^ k % 4 * 32) + k / 4 * (BLOCK * 128) + n * (16 * 128));
                multiply<dtype>(scores[2 * n], q[k], b[0], b[1]);
                multiply<dtype>(scores[2 * n + 1], q[k], b[2], b[3]);
            }
    }
}

/* Where the lane's row of P begins, of a block's 64 positions. (Sixteen of them are 32 bytes: bits 5 and 6, which
 * the swizzle changes.) */
static __device__ __forceinline__ uint32_t weights_of_block(uint32_t weights, int block, int lane) {
    const int matrix = lane / 8, r = matrix % 2 * 8 + lane % 8;
    return weights + r * (SPAN * 2) + block * (BLOCK * 2) + (matrix / 2 ^ r % 8) * 16;
}

/*
 * sums += P V of sixteen positions (k) of a block, for a warp's n_dims dimensions from n_dims x warp on.
 *
 * In sums[2 t], sums[2 t + 1] are the dimensions 16 t .. 16 t + 15 of these: of a 16-bit cache first the lower
 * eight; of e4m3 first the even ones, because two numbers come together when a matrix is transposed.
 */
template <int dtype, int cache_dtype, int n_dims, class shape>
static __device__ __forceinline__ void multiply_values(uint32_t weights, uint32_t values, int k, int warp,
                                                       int lane, float (&sums)[n_dims / 8][4]) {
    uint32_t a[4];
    mb_load_matrix_x4(a, weights ^ k * 32);
    const int matrix = lane / 8, r = k * 16 + matrix % 2 * 8 + lane % 8;
    if constexpr (cache_dtype == MB_F8_E4M3) {
        /* positions 0 - 7 of sixteen, then 8 - 15, by sixteen dimensions; then by the next, if there are any */
        uint32_t x[4];
        const int piece = warp * (n_dims / 16) + (n_dims == 32 ? matrix / 2 : 0);
        mb_load_matrix_transposed_x4(x, values + place_of<shape>(r, piece));
#pragma unroll
        for (int t = 0; t < n_dims / 16; t++) {
            uint32_t even[2], odd[2];
            widen<dtype, 1>(x[2 * t], &even[0], &odd[0]);
            widen<dtype, 1>(x[2 * t + 1], &even[1], &odd[1]);
            multiply<dtype>(sums[2 * t], a, even[0], even[1]);
            multiply<dtype>(sums[2 * t + 1], a, odd[0], odd[1]);
        }
    } else {
        static_assert(n_dims <= 32, "two sixteens differ in bit 5 of the address");
        const uint32_t from = values + place_of<shape>(r % 16, warp * (n_dims / 8) + matrix / 2);
#pragma unroll
        for (int t = 0; t < n_dims / 16; t++) {
            uint32_t b[4];
            mb_load_matrix_transposed_x4(b, (from ^ t * 32) + k * (16 * 128));
            multiply<dtype>(sums[2 * t], a, b[0], b[1]);
            multiply<dtype>(sums[2 * t + 1], a, b[2], b[3]);
        }
    }
}

/* Pair u (0, 1) of a row's dimensions in sums[2 t], sums[2 t + 1]; is_second: of the lane's two rows. Returns its
 * first dimension, of the warp's. */
template <int cache_dtype, int n>
static __device__ __forceinline__ int pair_of(const float (&sums)[n][4], int t, int u, int is_second,
                                              float2 *pair) {
    const int c = threadIdx.x % 4;
    if constexpr (cache_dtype == MB_F8_E4M3) {
        *pair = make_float2(sums[2 * t][2 * is_second + u], sums[2 * t + 1][2 * is_second + u]);
        return 16 * t + 4 * c + 2 * u;
    } else {
        *pair = make_float2(sums[2 * t + u][2 * is_second], sums[2 * t + u][2 * is_second + 1]);
        return 16 * t + 8 * u + 2 * c;
    }
}

/* ---- consumers: softmax */

/* Two steps of a lane's two rows. */
typedef struct span_factors {
    step_factors steps[SPAN_STEPS][2];
} span_factors;

/* The warp's scores become P in shared memory. All consumers call it; afterwards they see P and quarters. n: the lane's
 * rows that may be there, one or two; of the other P is what was there, and nothing of its sums is used. */
template <int dtype, int n, class shape, int dim>
static __device__ __forceinline__ void
soften_rows(shared_map<shape, dim> *s, int is_masked, const int32_t (&n_visible)[2], float factor,
            float (&scores)[SPAN_STEPS][QUARTER / 8][4], span_factors *f) {
    const int warp = threadIdx.x / 32, lane = lane_again(), g = lane / 4, c = lane % 4;
#pragma unroll
    for (int step = 0; step < SPAN_STEPS; step++) {
        float largest[2] = {-CUDART_INF_F, -CUDART_INF_F};
        if (is_masked) {
#pragma unroll
            for (int j = 0; j < QUARTER / 8; j++)
#pragma unroll
                for (int i = 0; i < 2 * n; i++) {
                    const int position = step * STEP + warp * QUARTER + 8 * j + 2 * c + i % 2;
                    float *score = &scores[step][j][i];
                    *score = position < n_visible[i / 2] ? *score : -CUDART_INF_F;
                }
        }
#pragma unroll
        for (int j = 0; j < QUARTER / 8; j++)
#pragma unroll
            for (int i = 0; i < 2 * n; i++)
                largest[i / 2] = fmaxf(largest[i / 2], scores[step][j][i]);
#pragma unroll
        for (int r = 0; r < n; r++) {
            largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xffffffff, largest[r], 1));
            largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xffffffff, largest[r], 2));
            if (c == 0)
                s->largest[step][g + 8 * r][warp] = largest[r];
        }
    }
    sync_consumers(); /* and nobody reads the queries any more */
#pragma unroll
    for (int step = 0; step < SPAN_STEPS; step++)
#pragma unroll
        for (int r = 0; r < n; r++) {
            const int row = g + 8 * r;
            const float4 of_warps = *(const float4 *)s->largest[step][row];
            const float largest = fmaxf(fmaxf(of_warps.x, of_warps.y), fmaxf(of_warps.z, of_warps.w));
            const step_factors now = next_step(
                step == 0 ? -CUDART_INF_F : f->steps[step == 0 ? 0 : step - 1][r].maximum, largest, factor);
            f->steps[step][r] = now;
            float quarter = 0;
#pragma unroll
            for (int j = 0; j < QUARTER / 8; j++) {
                const float low = probability(scores[step][j][2 * r], factor, now.shift);
                const float high = probability(scores[step][j][2 * r + 1], factor, now.shift);
                quarter = __fadd_rn(j == 0 ? low : __fadd_rn(quarter, low), high);
                const int piece = (step * STEP + warp * QUARTER) / 8 + j;
                *(uint32_t *)(s->weights + row * SPAN * 2 + (piece ^ row % 8) * 16 + c * 4) =
                    pack<dtype>(low, high);
            }
            s->quarters[step][warp][row][c] = quarter;
        }
    sync_consumers();
}

/* Of an e4m3 cache no work for rows that are not there, nor for positions that are hidden from nobody. (Of 16 bits
 * memory is the limit, and one copy is shorter.) */
template <int dtype, class shape, int dim>
static __device__ __forceinline__ void soften(shared_map<shape, dim> *s, const item *it,
                                              const int32_t (&n_visible)[2], float factor,
                                              float (&scores)[SPAN_STEPS][QUARTER / 8][4], span_factors *f) {
    if constexpr (shape::is_e4m3) {
        const int is_masked = it->kv_len - it->q_len - it->i_span * SPAN + 1 < SPAN;
        *f = {};
        if (it->q_len * it->group - it->first <= 8)
            soften_rows<dtype, 1>(s, is_masked, n_visible, factor, scores, f);
        else
            soften_rows<dtype, 2>(s, is_masked, n_visible, factor, scores, f);
    } else {
        soften_rows<dtype, 2>(s, 1, n_visible, factor, scores, f);
    }
}

/* Of the span, of the lane's row. */
template <class shape, int dim>
static __device__ __forceinline__ float total_of(const shared_map<shape, dim> *s, const span_factors *f,
                                                 int is_second) {
    const int row = threadIdx.x % 32 / 4 + 8 * is_second, c = threadIdx.x % 4;
    float total = 0;
#pragma unroll
    for (int step = 0; step < SPAN_STEPS; step++) {
        float quarter[QUARTERS];
#pragma unroll
        for (int i = 0; i < QUARTERS; i++)
            quarter[i] = s->quarters[step][i][row][c];
        total = add_step(total, f->steps[step][is_second].correction, quarter);
    }
    return total_of_lanes(total);
}

#endif
