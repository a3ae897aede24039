/*
 * softmax.cuh - the softmax of a step in registers, on scores as the tensor cores leave them: of sixteen
 * rows a warp, lane l has rows l / 4 and l / 4 + 8. scores[4 j + 0, 1] are the first row's positions
 * 8 j + 2 (l % 4) and the next, scores[4 j + 2, 3] the second row's. (wgmma and mma.sync agree in that.)
 */
#ifndef MB_OPS_ATTENTION_SOFTMAX_CUH
#define MB_OPS_ATTENTION_SOFTMAX_CUH

#include "ops/attention/order.cuh"

typedef struct row_pair {
    float maximum[2], total[2];
} row_pair;

/* Scores become P, not yet rounded; span takes the step in. n_visible: of the step's positions, may be
 * negative. correction: what the span's sums so far are multiplied by. */
template <int is_masked>
static __device__ __forceinline__ void soften(float (&scores)[STEP / 2], const int32_t (&n_visible)[2],
                                              float factor, row_pair *span, float (&correction)[2]) {
    constexpr int n_chains = 4; /* for the maximum, whose order is free */
    const int column = threadIdx.x % 4 * 2;
    float largest[2][n_chains];
#pragma unroll
    for (int j = 0; j < STEP / 8; j++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float *pair = &scores[4 * j + 2 * r];
            if constexpr (is_masked) {
                pair[0] = 8 * j + column < n_visible[r] ? pair[0] : -CUDART_INF_F;
                pair[1] = 8 * j + column + 1 < n_visible[r] ? pair[1] : -CUDART_INF_F;
            }
            const float larger = fmaxf(pair[0], pair[1]);
            largest[r][j % n_chains] = j < n_chains ? larger : fmaxf(largest[r][j % n_chains], larger);
        }
    step_factors f[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float all = fmaxf(fmaxf(largest[r][0], largest[r][1]), fmaxf(largest[r][2], largest[r][3]));
        all = fmaxf(all, __shfl_xor_sync(0xffffffff, all, 1));
        all = fmaxf(all, __shfl_xor_sync(0xffffffff, all, 2));
        f[r] = next_step(span->maximum[r], all, factor);
        span->maximum[r] = f[r].maximum;
        correction[r] = f[r].correction;
    }
    float quarter[2][QUARTERS];
#pragma unroll
    for (int j = 0; j < STEP / 8; j++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float *pair = &scores[4 * j + 2 * r], *sum = &quarter[r][j / (QUARTER / 8)];
            pair[0] = probability(pair[0], factor, f[r].shift);
            pair[1] = probability(pair[1], factor, f[r].shift);
            *sum = j % (QUARTER / 8) == 0 ? pair[0] : __fadd_rn(*sum, pair[0]);
            *sum = __fadd_rn(*sum, pair[1]);
        }
#pragma unroll
    for (int r = 0; r < 2; r++)
        span->total[r] = add_step(span->total[r], f[r].correction, quarter[r]);
}

/* P as wgmma's A: of each sixteen positions the first eight of both rows, then the second eight. */
template <int dtype>
static __device__ __forceinline__ void round_weights(const float (&p)[STEP / 2],
                                                     uint32_t (&weights)[STEP / 4]) {
#pragma unroll
    for (int i = 0; i < STEP / 4; i++)
        weights[i] = pack<dtype>(p[2 * i], p[2 * i + 1]);
}

static __device__ __forceinline__ void start_span(row_pair *span) {
    span->maximum[0] = span->maximum[1] = -CUDART_INF_F;
    span->total[0] = span->total[1] = 0;
}

#endif
