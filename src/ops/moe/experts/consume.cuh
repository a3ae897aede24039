/*
 * consume.cuh - the consumer warpgroups of the experts' kernel: multiply, activate, stage.
 *
 * A warpgroup has n_blocks blocks of 64 weight rows; gated, 32 outputs each, whose gate and up rows come in
 * turns of eight: then one thread's accumulators sum[4 j], [4 j + 1] are the gate of an output for two
 * tokens, and [4 j + 2], [4 j + 3] the up of the same.
 */
#ifndef MB_OPS_MOE_EXPERTS_CONSUME_CUH
#define MB_OPS_MOE_EXPERTS_CONSUME_CUH

#include "ops/hopper/math.cuh"
#include "ops/hopper/wgmma.cuh"
#include "ops/moe/experts/shared.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <int kind, int n, int accumulate>
static __device__ __forceinline__ void multiply_step(float (&sum)[n / 2], uint64_t a, uint64_t b) {
    constexpr int type = kind == KIND_BF16   ? MB_WGMMA_BF16
                         : kind == KIND_F16  ? MB_WGMMA_F16
                         : kind == KIND_TF32 ? MB_WGMMA_TF32
                                             : MB_WGMMA_E4M3;
    mb_wgmma<type, n, accumulate>(sum, a, b);
}

/* Where a warpgroup's block m begins in a stage's weights: blocks go to the warpgroups in turns. */
template <int n_groups> static __device__ __forceinline__ int block_bytes(int group, int m) {
    return (m * n_groups + group) * 64 * ROW_BYTES;
}

/* sum[m] += block m of this warpgroup's weight rows, times n tokens, over all of K. A stage is given back
 * only when the next one's wgmma are under way, so that the tensor cores never run dry; the last n_held are
 * kept. */
template <int kind, int n, int n_groups, int n_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void multiply(shared *s, int group, int32_t k_size, int32_t n_held,
                                                cursor *stage, float (&sum)[n_blocks][n / 2]) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    const int32_t k_released = k_size - n_held * traits<kind>::k_step; /* steps that begin before this */
    uint32_t previous = 0;
#pragma unroll 1
    for (int32_t k = 0; k < k_size; k += traits<kind>::k_step) {
        mb_mbarrier_wait(&s->full[stage->at], stage->parity);
        mb_fence_async_shared(); /* cp.async wrote the tokens by ordinary stores */
        const uint64_t a =
            mb_wgmma_descriptor(mb_shared_address(s->weights[stage->at]) + block_bytes<n_groups>(group, 0));
        const uint64_t b = mb_wgmma_descriptor(mb_shared_address(s->tokens[stage->at]));
#pragma unroll
        for (int m = 0; m < n_blocks; m++)
            mb_wgmma_pin(sum[m]);
        mb_wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int m = 0; m < n_blocks; m++)
                multiply_step<kind, n, 1>(sum[m], a + block_bytes<n_groups>(0, m) / 16 + 2 * i, b + 2 * i);
        mb_wgmma_commit();
#pragma unroll
        for (int m = 0; m < n_blocks; m++)
            mb_wgmma_pin(sum[m]);
        if (k > 0) {
            mb_wgmma_wait<1>();
            if (k - traits<kind>::k_step < k_released)
                release<n_ctas, 1>(&s->empty[previous]);
        }
        previous = stage->at;
        advance<n_stages>(stage);
    }
    mb_wgmma_wait<0>();
#pragma unroll
    for (int m = 0; m < n_blocks; m++)
        mb_wgmma_pin(sum[m]);
    if (n_held == 0)
        release<n_ctas, 1>(&s->empty[previous]);
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
 * bits that they keep for fp8; that sum times both scales is added in fp32. While one warpgroup does so the
 * other one multiplies. scale_low, scale_high: where the scales of this thread's rows (lane / 4 and + 8, of
 * each block) begin. */
template <int n, int n_groups, int n_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void
multiply_scaled(shared *s, const float *scales, int group, int32_t k_blocks, int32_t n_held,
                const int32_t (&scale_low)[n_blocks], const int32_t (&scale_high)[n_blocks], cursor *stage,
                float (&sum)[n_blocks][n / 2]) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    const int pair = threadIdx.x % 4;
    float partial[n / 2];
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        partial[i] = 0;
#pragma unroll 1
    for (int32_t k = 0; k < k_blocks; k++) {
        float low[n_blocks], high[n_blocks];
#pragma unroll
        for (int m = 0; m < n_blocks; m++) { /* they arrive while the wgmma run */
            low[m] = __ldg(scales + scale_low[m] + k);
            high[m] = __ldg(scales + scale_high[m] + k);
        }
        mb_mbarrier_wait(&s->full[stage->at], stage->parity);
        mb_fence_async_shared();
        const uint64_t a =
            mb_wgmma_descriptor(mb_shared_address(s->weights[stage->at]) + block_bytes<n_groups>(group, 0));
        const uint64_t b = mb_wgmma_descriptor(mb_shared_address(s->tokens[stage->at]));
        const uint32_t token_scale = mb_shared_address(&s->token_scale[stage->at][2 * pair]);
#pragma unroll
        for (int m = 0; m < n_blocks; m++) {
            mb_wgmma_pin(partial);
            mb_wgmma_fence();
            multiply_step<KIND_FP8_BLOCK, n, 0>(partial, a + block_bytes<n_groups>(0, m) / 16, b);
#pragma unroll
            for (int i = 1; i < 4; i++)
                multiply_step<KIND_FP8_BLOCK, n, 1>(partial, a + block_bytes<n_groups>(0, m) / 16 + 2 * i,
                                                    b + 2 * i);
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
            release<n_ctas, 1>(&s->empty[stage->at]);
        advance<n_stages>(stage);
    }
}

static __device__ __forceinline__ float bias_at(const gemm_params *g, int64_t i) {
    if (g->bias_dtype == MB_BF16)
        return __bfloat162float(((const __nv_bfloat16 *)g->bias)[i]);
    if (g->bias_dtype == MB_F16)
        return __half2float(((const __half *)g->bias)[i]);
    return ((const float *)g->bias)[i];
}

/* Infinities and NaN too give what PyTorch gives. slope v is NaN where slope is 0 and v infinite: fmaxf then
 * gives the other one, constant. */
static __device__ __forceinline__ float activate(const activation_shape *shape, float any) {
    const float v = mb_max_nan(any, shape->floor);
    const float exponent = v * (shape->linear + shape->cubic * (v * v));
    const float factor = fmaxf(shape->constant + shape->slope * v, shape->constant);
    return v * factor * mb_reciprocal(1.0f + mb_exp2(-exponent));
}

static __device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&pair;
}
static __device__ __forceinline__ uint32_t pack_f16(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *(const uint32_t *)&pair;
}
template <int kind> static __device__ __forceinline__ uint32_t pack(float low, float high, int is_f16) {
    if constexpr (kind == KIND_BF16)
        return pack_bf16(low, high);
    else if constexpr (kind == KIND_F16)
        return pack_f16(low, high);
    else
        return is_f16 ? pack_f16(low, high) : pack_bf16(low, high);
}

/* The routing weights of two tokens, or 1. */
static __device__ __forceinline__ float2 row_weights(const gemm_params *g, const item *work, int token) {
    float2 weights = {1, 1};
    if (g->row_weight) {
        if (token < work->n_rows)
            weights.x = g->row_weight[work->first_row + token];
        if (token + 1 < work->n_rows)
            weights.y = g->row_weight[work->first_row + token + 1];
    }
    return weights;
}

/* One output of two tokens straight to global memory, fp32: 8 lanes make 32 bytes of a row. */
static __device__ __forceinline__ void store_f32(const gemm_params *g, const item *work, int32_t output,
                                                 int token, float a, float b) {
    float *out = (float *)g->out + (int64_t)(work->first_row + token) * g->width + output;
    if (output < g->width && token < work->n_rows)
        out[0] = a;
    if (output < g->width && token + 1 < work->n_rows)
        out[g->width] = b;
}

/* Where a thread's rows of a block are: lane / 4 and + 8 of its warp's 16 rows of weights. Gated, the first
 * is the gate and the second the up of one output. */
typedef struct block_rows {
    int32_t output;            /* of the tile: the first row's */
    int32_t low, high, n_rows; /* rows of the matrix; it may end at any multiple of 8 */
} block_rows;

static __device__ __forceinline__ block_rows rows_of(const gemm_params *g, int32_t first_output, int block) {
    const int warp = threadIdx.x % WARPGROUP / 32, lane = threadIdx.x % 32;
    block_rows rows;
    rows.output = g->gated ? block * 32 + warp * 8 + lane / 4 : block * 64 + warp * 16 + lane / 4;
    rows.low = first_output + rows.output;
    rows.high = g->gated ? rows.low + g->width : rows.low + 8;
    rows.n_rows = g->gated ? 2 * g->width : g->width;
    return rows;
}

/* The usual ways out have code of their own, without branches: an unrolled loop with branches for everything
 * took 20 us a large tile, all of it fetching instructions. */
enum emit_mode {
    EMIT_GATED,     /* activated, one output of two rows, not weighted; to staging, TF32 to global memory */
    EMIT_PLAIN,     /* neither activated nor weighted; likewise */
    EMIT_ACTIVATED, /* not gated, not weighted; likewise */
    EMIT_ANY,
};

/* Bias, activation and routing weight of a block, then into staging (or, fp32, to global memory). Staged
 * through shared memory since a thread's accumulators are of one output and many tokens, and stores want many
 * outputs of one token: stmatrix transposes. */
template <int kind, int n, int mode>
static __device__ __forceinline__ void emit(const gemm_params *g, const item *work, staging_area staging,
                                            int32_t first_output, int block, float (&sum)[n / 2]) {
    const int lane = threadIdx.x % 32;
    const int any = mode == EMIT_ANY;
    const int gated = any ? g->gated : mode == EMIT_GATED,
              activated = any ? g->activated : mode != EMIT_PLAIN;
    const int to_f32 = kind == KIND_TF32 || (any && g->store == STORE_F32), weighted = any && g->row_weight;
    const block_rows rows = rows_of(g, first_output, block);
    float bias_low = 0, bias_high = 0, scale = 1;
    if (g->bias) {
        const int64_t expert_row = (int64_t)work->expert * rows.n_rows;
        bias_low = rows.low < rows.n_rows ? bias_at(g, expert_row + rows.low) : 0;
        bias_high = rows.high < rows.n_rows ? bias_at(g, expert_row + rows.high) : 0;
    }
    if constexpr (kind == KIND_FP8_TENSOR)
        scale = *g->a_scale * g->b_scale[work->expert];
    /* stmatrix: lanes 0 - 7 name the places of one 8 x 8 matrix, 8 - 15 of a second one */
    const int32_t chunk_output = rows.output - lane / 4 + (gated ? 0 : lane / 8 % 2 * 8);
    const uint32_t to =
        region_of(staging, chunk_output) + lane % 8 * ROW_BYTES + ((chunk_output % 64 / 8) ^ (lane % 8)) * 16;
#pragma unroll
    for (int j = 0; j < n / 8; j++) {
        const int token = 8 * j + 2 * (lane % 4);
        float v[4] = {sum[4 * j] * scale + bias_low, sum[4 * j + 1] * scale + bias_low,
                      sum[4 * j + 2] * scale + bias_high, sum[4 * j + 3] * scale + bias_high};
        if (activated) {
            v[0] = activate(&g->activation, v[0]);
            v[1] = activate(&g->activation, v[1]);
            if (gated) {
                v[0] *= v[2];
                v[1] *= v[3];
            } else {
                v[2] = activate(&g->activation, v[2]);
                v[3] = activate(&g->activation, v[3]);
            }
        }
        if (weighted) {
            const float2 weight = row_weights(g, work, token);
            v[0] *= weight.x;
            v[1] *= weight.y;
            v[2] *= weight.x;
            v[3] *= weight.y;
        }
        if (to_f32) {
            store_f32(g, work, rows.low, token, v[0], v[1]);
            if (!gated)
                store_f32(g, work, rows.high, token, v[2], v[3]);
        } else if constexpr (kind != KIND_TF32) {
            const uint32_t low = pack<kind>(v[0], v[1], g->out_is_f16);
            if (gated)
                mb_store_matrix_transposed_x1(to + j * 8 * ROW_BYTES, low);
            else
                mb_store_matrix_transposed_x2(to + j * 8 * ROW_BYTES, low,
                                              pack<kind>(v[2], v[3], g->out_is_f16));
        }
    }
}

/* One item of a consumer warpgroup. */
template <int kind, int n, int n_groups, int n_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void consume(const experts_params *p, shared *s, int group,
                                               const item *work, cursor *stage, cursor *staged) {
    const gemm_params *g = &p->gemm[work->gemm];
    const int32_t tile_outputs = n_groups * n_blocks * (g->gated ? 32 : 64);
    const int32_t first_output = work->piece * tile_outputs;
    const rounds r = rounds_of<kind, shared>(g, work, tile_outputs);

    /* They must be set although the first wgmma could ignore them: left uninitialised, ptxas keeps those of
     * all token counts alive at once, and spills. */
    float sum[n_blocks][n / 2];
#pragma unroll
    for (int m = 0; m < n_blocks; m++)
#pragma unroll
        for (int i = 0; i < n / 2; i++)
            sum[m][i] = 0;

    if constexpr (kind == KIND_FP8_BLOCK) {
        int32_t scale_low[n_blocks], scale_high[n_blocks];
#pragma unroll
        for (int m = 0; m < n_blocks; m++) {
            const block_rows rows = rows_of(g, first_output, m * n_groups + group);
            const int32_t scale_row = work->expert * g->expert_scale_rows;
            scale_low[m] = (scale_row + (min(rows.low, rows.n_rows - 1) >> g->scale_shift)) * g->k_blocks;
            scale_high[m] = (scale_row + (min(rows.high, rows.n_rows - 1) >> g->scale_shift)) * g->k_blocks;
        }
        multiply_scaled<n, n_groups, n_blocks, n_ctas>(s, g->b_scale, group, g->k_blocks, r.n_held, scale_low,
                                                       scale_high, stage, sum);
    } else
        multiply<kind, n, n_groups, n_blocks, n_ctas>(s, group, g->k_size, r.n_held, stage, sum);

    if constexpr (shared::in_stages) /* nobody multiplies from the held stages any more */
        mb_named_barrier_sync(CONSUMER_BARRIER, n_groups * WARPGROUP);
#pragma unroll
    for (int m = 0; m < n_blocks; m++) {
        const int is_first = m == 0 || (shared::in_stages && r.n > 1);
        const int is_last = m == n_blocks - 1 || (shared::in_stages && r.n > 1);
        const int round = shared::in_stages && r.n > 1 ? m : 0;
        if (is_first) {
            mb_mbarrier_wait(&s->staged_empty[staged->at], staged->parity ^ 1);
            if (shared::in_stages && round > 0 && r.n_held == 1) /* the round before is in the same stage */
                mb_mbarrier_wait(&s->staged_empty[staged->at ^ 1],
                                 staged->at ? staged->parity : staged->parity ^ 1);
        }
        const staging_area staging = staging_of(s, &r, round, stage->at, staged->at);
        const int block = m * n_groups + group;
        if (g->row_weight || (kind != KIND_TF32 && g->store == STORE_F32))
            emit<kind, n, EMIT_ANY>(g, work, staging, first_output, block, sum[m]);
        else if (g->gated)
            emit<kind, n, EMIT_GATED>(g, work, staging, first_output, block, sum[m]);
        else if (g->activated)
            emit<kind, n, EMIT_ACTIVATED>(g, work, staging, first_output, block, sum[m]);
        else
            emit<kind, n, EMIT_PLAIN>(g, work, staging, first_output, block, sum[m]);
        if (is_last) {
            mb_mbarrier_arrive(&s->staged_full[staged->at]);
            advance<shared::n_rounds>(staged);
        }
    }
}

/* The numbers of tokens that large tiles have code for are few: each is 20 KB that the instruction caches
 * would have to hold (T = 4096: 694 us with all multiples of 8, 662 with 128, 136 and 144). */
template <int n, int cta_tokens, int n_ctas> struct next_n {
    static constexpr int more = n_ctas == 1 || n >= 128 ? n + 8 : n >= 96 ? 128 : n + 32;
    static constexpr int value = more < cta_tokens ? more : cta_tokens;
};

/* The item at the smallest number of tokens that there is code for and that is enough. */
template <int kind, int n, int cta_tokens, int n_groups, int n_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void consume_rounded(const experts_params *p, shared *s, int group,
                                                       const item *work, cursor *stage, cursor *staged) {
    if (work->n_rows <= n)
        consume<kind, n, n_groups, n_blocks, n_ctas>(p, s, group, work, stage, staged);
    else if constexpr (n < cta_tokens)
        consume_rounded<kind, next_n<n, cta_tokens, n_ctas>::value, cta_tokens, n_groups, n_blocks, n_ctas>(
            p, s, group, work, stage, staged);
}

#endif
