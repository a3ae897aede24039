/*
 * multiply.cuh - a consumer warpgroup's product over all of K, weight rows on wgmma's M and tokens on its
 * N: plain, and with block scales. (Tokens on M: consume_tokens.cuh.)
 *
 * A warpgroup has n_row_blocks row blocks of 64 weight rows. Gated, a row block is 32 outputs, whose gate
 * and up rows come in turns of eight: then one thread's accumulators sum[4 j], [4 j + 1] are the gate of an
 * output for two tokens, and [4 j + 2], [4 j + 3] the up of the same.
 *
 * Weights read across (the backward, whose K runs over the rows of the matrix): a stage has 64 rows of K for
 * each row block, 128 bytes each, so a row block begins where it would otherwise. It is one panel wide, so
 * its descriptor is that of rows along K: what tells panels apart is not used.
 */
#ifndef MB_OPS_MOE_EXPERTS_MULTIPLY_CUH
#define MB_OPS_MOE_EXPERTS_MULTIPLY_CUH

#include "ops/hopper/wgmma.cuh"
#include "ops/moe/experts/work.cuh"

template <int kind, int n, int accumulate, int across = 0>
static __device__ __forceinline__ void wgmma_step(float (&sum)[n / 2], uint64_t a, uint64_t b) {
    constexpr int type = kind == KIND_BF16   ? MB_WGMMA_BF16
                         : kind == KIND_F16  ? MB_WGMMA_F16
                         : kind == KIND_TF32 ? MB_WGMMA_TF32
                                             : MB_WGMMA_E4M3;
    if constexpr (across)
        mb_wgmma_a_across<type, n>(sum, a, b);
    else
        mb_wgmma<type, n, accumulate>(sum, a, b);
}

/* Where a warpgroup's row block m begins in a stage's weights: the warpgroups have row blocks in turns. */
template <int n_warpgroups> static __device__ __forceinline__ int row_block_bytes(int warpgroup, int m) {
    return (m * n_warpgroups + warpgroup) * 64 * ROW_BYTES;
}

/* sum[m] += row block m of this warpgroup's weight rows, times n tokens, over all of K. A stage is given back
 * only when the next one's wgmma are under way, so that the tensor cores never run dry. The last n_held
 * stages are kept (staging.cuh, STAGING_STAGES). */
template <int kind, int n, int n_warpgroups, int n_row_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void multiply(shared *s, int warpgroup, int32_t k_size, int32_t n_held,
                                                mb_ring_cursor *stage, float (&sum)[n_row_blocks][n / 2]) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    constexpr int a_step = shared::across ? (int)MB_WGMMA_ACROSS_K16 : 2; /* 16 rows of K, or 32 bytes */
    const int32_t k_released = k_size - n_held * traits<kind>::k_step;    /* steps that begin before this */
    uint32_t previous = 0;
#pragma unroll 1
    for (int32_t k = 0; k < k_size; k += traits<kind>::k_step) {
        mb_mbarrier_wait(&s->full[stage->at], stage->parity);
        mb_fence_async_shared(); /* cp.async wrote the tokens by ordinary stores */
        const uint64_t a = mb_wgmma_descriptor(mb_shared_address(s->weights[stage->at]) +
                                               row_block_bytes<n_warpgroups>(warpgroup, 0));
        const uint64_t b = mb_wgmma_descriptor(mb_shared_address(s->tokens[stage->at]));
#pragma unroll
        for (int m = 0; m < n_row_blocks; m++)
            mb_wgmma_pin(sum[m]);
        mb_wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int m = 0; m < n_row_blocks; m++)
                wgmma_step<kind, n, 1, shared::across>(
                    sum[m], a + row_block_bytes<n_warpgroups>(0, m) / 16 + a_step * i, b + 2 * i);
        mb_wgmma_commit();
#pragma unroll
        for (int m = 0; m < n_row_blocks; m++)
            mb_wgmma_pin(sum[m]);
        if (k > 0) {
            mb_wgmma_wait<1>();
            if (k - traits<kind>::k_step < k_released)
                release_stage<n_ctas, 1>(&s->empty[previous]);
        }
        previous = stage->at;
        mb_ring_advance<n_stages>(stage);
    }
    mb_wgmma_wait<0>();
#pragma unroll
    for (int m = 0; m < n_row_blocks; m++)
        mb_wgmma_pin(sum[m]);
    if (n_held == 0)
        release_stage<n_ctas, 1>(&s->empty[previous]);
}

enum { SCALES_AT_ONCE = 4 };

/* The scales of this thread's two tokens of each of the next eight by eight, from number `first` on. */
template <int n_eights>
static __device__ __forceinline__ void load_scales(float2 (&scales)[SCALES_AT_ONCE], uint32_t from,
                                                   int first) {
#pragma unroll
    for (int i = 0; i < SCALES_AT_ONCE; i++)
        if (first + i < n_eights)
            scales[i] = mb_load_shared_8(from + (first + i) * 8 * (int)sizeof(float));
}

/* The same with block scales, in two levels: the tensor cores sum 128 of K, which is a stage, with the few
 * bits that they keep for fp8; that sum times both scales is added in fp32 (promotion). While one warpgroup
 * promotes the other one multiplies. scale_low, scale_high: where the scales of this thread's rows (lane /
 * 4 and + 8, of each row block) begin. */
template <int n, int n_warpgroups, int n_row_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void
multiply_scaled(shared *s, const float *scales, int warpgroup, int32_t k_blocks, int32_t n_held,
                const int32_t (&scale_low)[n_row_blocks], const int32_t (&scale_high)[n_row_blocks],
                mb_ring_cursor *stage, float (&sum)[n_row_blocks][n / 2]) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    const int pair = threadIdx.x % 4;
    float partial[n / 2];
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        partial[i] = 0;
#pragma unroll 1
    for (int32_t k = 0; k < k_blocks; k++) {
        float low[n_row_blocks], high[n_row_blocks];
#pragma unroll
        for (int m = 0; m < n_row_blocks; m++) { /* they arrive while the wgmma run */
            low[m] = __ldg(scales + scale_low[m] + k);
            high[m] = __ldg(scales + scale_high[m] + k);
        }
        mb_mbarrier_wait(&s->full[stage->at], stage->parity);
        mb_fence_async_shared();
        const uint64_t a = mb_wgmma_descriptor(mb_shared_address(s->weights[stage->at]) +
                                               row_block_bytes<n_warpgroups>(warpgroup, 0));
        const uint64_t b = mb_wgmma_descriptor(mb_shared_address(s->tokens[stage->at]));
        const uint32_t token_scale = mb_shared_address(&s->token_scale[stage->at][2 * pair]);
#pragma unroll
        for (int m = 0; m < n_row_blocks; m++) {
            mb_wgmma_pin(partial);
            mb_wgmma_fence();
            wgmma_step<KIND_FP8_BLOCK, n, 0>(partial, a + row_block_bytes<n_warpgroups>(0, m) / 16, b);
#pragma unroll
            for (int i = 1; i < 4; i++)
                wgmma_step<KIND_FP8_BLOCK, n, 1>(
                    partial, a + row_block_bytes<n_warpgroups>(0, m) / 16 + 2 * i, b + 2 * i);
            mb_wgmma_commit();
            /* Token scales come four by four, each while the four before are used; the first while the wgmma
             * run. */
            float2 token[2][SCALES_AT_ONCE];
            load_scales<n / 8>(token[0], token_scale, 0);
            mb_wgmma_wait<0>();
            mb_wgmma_pin(partial);
#pragma unroll
            for (int j0 = 0; j0 < n / 8; j0 += SCALES_AT_ONCE) {
                const int now = j0 / SCALES_AT_ONCE % 2;
                load_scales<n / 8>(token[now ^ 1], token_scale, j0 + SCALES_AT_ONCE);
#pragma unroll
                for (int j = j0; j < j0 + SCALES_AT_ONCE && j < n / 8; j++) {
                    const float2 t = token[now][j - j0];
                    sum[m][4 * j] += partial[4 * j] * (t.x * low[m]);
                    sum[m][4 * j + 1] += partial[4 * j + 1] * (t.y * low[m]);
                    sum[m][4 * j + 2] += partial[4 * j + 2] * (t.x * high[m]);
                    sum[m][4 * j + 3] += partial[4 * j + 3] * (t.y * high[m]);
                }
            }
        }
        if (k < k_blocks - n_held)
            release_stage<n_ctas, 1>(&s->empty[stage->at]);
        mb_ring_advance<n_stages>(stage);
    }
}

/* The same for one warpgroup with one row block of few tokens, where a step's latency counts: the wgmma of
 * two steps are under way at once. (With one step's under way from one iteration to the next ptxas
 * serialises all: C7514.) */
template <int n, class shared>
static __device__ __forceinline__ void multiply_scaled_few(shared *s, const float *scales, int32_t k_blocks,
                                                           int32_t scale_low, int32_t scale_high,
                                                           mb_ring_cursor *stage, float (&sum)[n / 2]) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    const int pair = threadIdx.x % 4;
    float even[n / 2], odd[n / 2];
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        even[i] = odd[i] = 0;
    mb_ring_cursor ahead = *stage;
    const auto begin = [&](float(&partial)[n / 2]) {
        mb_mbarrier_wait(&s->full[ahead.at], ahead.parity);
        mb_fence_async_shared();
        const uint64_t a = mb_wgmma_descriptor(mb_shared_address(s->weights[ahead.at]));
        const uint64_t b = mb_wgmma_descriptor(mb_shared_address(s->tokens[ahead.at]));
        mb_wgmma_pin(partial);
        mb_wgmma_fence();
        wgmma_step<KIND_FP8_BLOCK, n, 0>(partial, a, b);
#pragma unroll
        for (int i = 1; i < 4; i++)
            wgmma_step<KIND_FP8_BLOCK, n, 1>(partial, a + 2 * i, b + 2 * i);
        mb_wgmma_commit();
        mb_ring_advance<n_stages>(&ahead);
    };
    const auto promote = [&](float(&partial)[n / 2], float low, float high) {
        const uint32_t token_scale = mb_shared_address(&s->token_scale[stage->at][2 * pair]);
        mb_wgmma_pin(partial);
#pragma unroll
        for (int j = 0; j < n / 8; j++) {
            const float2 t = mb_load_shared_8(token_scale + j * 8 * (int)sizeof(float));
            sum[4 * j] += partial[4 * j] * (t.x * low);
            sum[4 * j + 1] += partial[4 * j + 1] * (t.y * low);
            sum[4 * j + 2] += partial[4 * j + 2] * (t.x * high);
            sum[4 * j + 3] += partial[4 * j + 3] * (t.y * high);
        }
        mb_mbarrier_arrive(&s->empty[stage->at]);
        mb_ring_advance<n_stages>(stage);
    };
    int32_t k = 0;
#pragma unroll 1
    for (; k + 1 < k_blocks; k += 2) {
        const float low0 = __ldg(scales + scale_low + k), high0 = __ldg(scales + scale_high + k),
                    low1 = __ldg(scales + scale_low + k + 1), high1 = __ldg(scales + scale_high + k + 1);
        begin(even);
        begin(odd);
        mb_wgmma_wait<1>();
        promote(even, low0, high0);
        mb_wgmma_wait<0>();
        promote(odd, low1, high1);
    }
    if (k < k_blocks) {
        const float low = __ldg(scales + scale_low + k), high = __ldg(scales + scale_high + k);
        begin(even);
        mb_wgmma_wait<0>();
        promote(even, low, high);
    }
}

#endif
