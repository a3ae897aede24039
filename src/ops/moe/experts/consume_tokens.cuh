/*
 * consume_tokens.cuh - one item of a consumer warpgroup, for the large tile of fp8 with block scales:
 * multiply, epilogue, into staging. Here the tokens are wgmma's M and the weight rows its N. So a thread's
 * sums belong to two tokens, whose scales are two numbers (with tokens on N they are two for every eight
 * columns), and one code serves every number of tokens. The price: tokens are padded to a multiple of 64.
 *
 * A warpgroup has 64 of the CTA's tokens, and all weight rows in halves of 128. A thread's sums [4 j] and
 * [4 j + 1] are rows 8 j + 2 (lane % 4) and the next one for token lane / 4; [4 j + 2] and [4 j + 3] are
 * the same rows for token lane / 4 + 8. Gated, an even j is the gate and j + 1 the up of the same outputs.
 */
#ifndef MB_OPS_MOE_EXPERTS_CONSUME_TOKENS_CUH
#define MB_OPS_MOE_EXPERTS_CONSUME_TOKENS_CUH

#include "ops/hopper/launch.cuh"
#include "ops/hopper/mma.cuh"
#include "ops/moe/experts/consume.cuh"
#include "ops/moe/to_fp8.cuh"

enum { HALF = 128, HALF_SUMS = HALF / 2, EIGHTS = HALF / 8, WARPGROUP_TOKENS = 64 };

/* sum[h] += this warpgroup's tokens times half h of the weight rows, over all of K, in two levels
 * (multiply_scaled). is_uniform: all rows of a half (gated: all gate rows, all up rows) have one scale. */
template <int n_ctas, int is_uniform, class shared>
static __device__ __forceinline__ void multiply_tokens(shared *s, int warpgroup, int has_tokens,
                                                       int32_t k_blocks, mb_ring_cursor *stage,
                                                       float (&sum)[2][HALF_SUMS]) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    const int token = warpgroup * WARPGROUP_TOKENS + threadIdx.x % WARPGROUP / 32 * 16 + threadIdx.x % 32 / 4;
    float partial[HALF_SUMS];
#pragma unroll
    for (int i = 0; i < HALF_SUMS; i++)
        partial[i] = 0;
#pragma unroll 1
    for (int32_t k = 0; k < k_blocks; k++) {
        mb_mbarrier_wait(&s->full[stage->at], stage->parity);
        if (has_tokens) {
            mb_fence_async_shared();
            const uint64_t a = mb_wgmma_descriptor(mb_shared_address(s->tokens[stage->at]) +
                                                   warpgroup * WARPGROUP_TOKENS * ROW_BYTES);
            const uint64_t b = mb_wgmma_descriptor(mb_shared_address(s->weights[stage->at]));
#pragma unroll
            for (int h = 0; h < 2; h++) {
                mb_wgmma_pin(partial);
                mb_wgmma_fence();
                wgmma_step<KIND_FP8_BLOCK, HALF, 0>(partial, a, b + h * HALF * ROW_BYTES / 16);
#pragma unroll
                for (int i = 1; i < 4; i++)
                    wgmma_step<KIND_FP8_BLOCK, HALF, 1>(partial, a + 2 * i,
                                                        b + h * HALF * ROW_BYTES / 16 + 2 * i);
                mb_wgmma_commit();
                const float low = s->token_scale[stage->at][token],
                            high = s->token_scale[stage->at][token + 8];
                const float *rows = &s->row_scale[stage->at][h * EIGHTS];
                const float low_rows[2] = {low * rows[0], low * rows[1]};
                const float high_rows[2] = {high * rows[0], high * rows[1]};
                mb_wgmma_wait<0>();
                mb_wgmma_pin(partial);
#pragma unroll
                for (int j = 0; j < EIGHTS; j++) {
                    const float low_row = is_uniform ? low_rows[j % 2] : low * rows[j];
                    const float high_row = is_uniform ? high_rows[j % 2] : high * rows[j];
                    sum[h][4 * j] += partial[4 * j] * low_row;
                    sum[h][4 * j + 1] += partial[4 * j + 1] * low_row;
                    sum[h][4 * j + 2] += partial[4 * j + 2] * high_row;
                    sum[h][4 * j + 3] += partial[4 * j + 3] * high_row;
                }
            }
        }
        release_stage<n_ctas, 1>(&s->empty[stage->at]);
        mb_ring_advance<n_stages>(stage);
    }
}

/* Two adjacent outputs of one token straight to global memory, fp32: 4 lanes make 32 bytes of its row. */
template <int has_residual>
static __device__ __forceinline__ void store_pair_f32(const experts_gemm *g, const item *work, int32_t output,
                                                      int token, float a, float b) {
    if (output < g->width && token < work->n_rows) {
        const int64_t i = (int64_t)(work->first_row + token) * g->width + output;
        if (has_residual && g->residual) {
            const float2 residual = *(const float2 *)((const float *)g->residual + i);
            a += residual.x;
            b += residual.y;
        }
        *(float2 *)((float *)g->out + i) = make_float2(a, b);
    }
}

static __device__ __forceinline__ void add_bias(const experts_gemm *g, const item *work, int32_t half_output,
                                                float (&sum)[HALF_SUMS]) {
    const int64_t expert_row = (int64_t)work->expert * (g->gated ? 2 : 1) * g->width;
    const int thread = (int)mb_thread_index_again();
#pragma unroll
    for (int j = 0; j < EIGHTS; j++) {
        const int32_t output = half_output + (g->gated ? j / 2 : j) * 8 + thread % 4 * 2;
        if (output < g->width) {
            const int64_t row = expert_row + output + (g->gated && j % 2 ? g->width : 0);
            const float a = bias_at(g, row), b = bias_at(g, row + 1);
            sum[4 * j] += a;
            sum[4 * j + 1] += b;
            sum[4 * j + 2] += a;
            sum[4 * j + 3] += b;
        }
    }
}

/* Activation and routing weight of 64 outputs, from `first` of the matrix on, then into staging (or, fp32,
 * to memory). Gated they are one half's; else they begin at eight number `begin` of a half. */
template <int mode, int gated>
static __device__ __forceinline__ void emit_tokens(const experts_gemm *g, const item *work, int warpgroup,
                                                   uint32_t staging, uint32_t residual, int32_t first,
                                                   int begin, const float (&sum)[HALF_SUMS]) {
    const int thread = (int)mb_thread_index_again(), lane = thread % 32;
    const int warp_token = warpgroup * WARPGROUP_TOKENS + thread % WARPGROUP / 32 * 16;
    const int token = warp_token + lane / 4; /* and + 8 */
    const int any = mode == EMIT_ANY,
              activated = any ? g->activated : mode == EMIT_GATED || mode == EMIT_ACTIVATED;
    const int to_f32 = mode == EMIT_F32 || (any && g->store == STORE_F32);
    float low = 1, high = 1;
    if (any && g->row_weight) {
        low = token < work->n_rows ? g->row_weight[work->first_row + token] : 0;
        high = token + 8 < work->n_rows ? g->row_weight[work->first_row + token + 8] : 0;
    }
    /* stmatrix: lanes 0 to 7 name the rows of 8 tokens' first eight outputs, 8 to 15 those of the next 8
     * tokens, the other lanes the same for the next eight outputs */
    const int to_token = warp_token + lane % 16;
    const uint32_t to = staging + to_token * ROW_BYTES;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t packed[4], added[4];
        const uint32_t chunk = ((2 * i + lane / 16) ^ (to_token % 8)) * 16;
        if constexpr (mode == EMIT_RESIDUAL)
            mb_load_matrix_x4(added, residual + to_token * ROW_BYTES + chunk);
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int eight = 2 * i + c, j = gated ? 2 * eight : begin + eight;
            float v[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                v[e] = sum[4 * j + e];
                if (activated)
                    v[e] = activate<gated>(&g->activation, v[e]);
                if (gated)
                    v[e] *= sum[(4 * (j + 1) + e) % HALF_SUMS];
                if (any)
                    v[e] *= e < 2 ? low : high;
            }
            if constexpr (mode == EMIT_RESIDUAL) {
                const float2 low_two = unpack_two<KIND_FP8_BLOCK>(added[2 * c], g->out_is_f16),
                             high_two = unpack_two<KIND_FP8_BLOCK>(added[2 * c + 1], g->out_is_f16);
                v[0] += low_two.x;
                v[1] += low_two.y;
                v[2] += high_two.x;
                v[3] += high_two.y;
            }
            if (to_f32) {
                const int32_t output = first + eight * 8 + lane % 4 * 2;
                store_pair_f32<mode == EMIT_F32>(g, work, output, token, v[0], v[1]);
                store_pair_f32<mode == EMIT_F32>(g, work, output, token + 8, v[2], v[3]);
            }
            packed[2 * c] = pack<KIND_FP8_BLOCK>(v[0], v[1], g->out_is_f16);
            packed[2 * c + 1] = pack<KIND_FP8_BLOCK>(v[2], v[3], g->out_is_f16);
        }
        if (!to_f32)
            mb_store_matrix_x4(to + chunk, packed);
    }
}

/* Activation and routing weight of 128 outputs (gated of both halves, else of half `unit`), rounded to 16
 * bits and then to fp8 with a scale for each token, into staging. Four lanes have a token's outputs: each
 * two of every eight. */
template <int gated, int activated>
static __device__ __forceinline__ void quantise_tokens(const experts_gemm *g, const item *work, int warpgroup,
                                                       uint32_t staging, int32_t scale_block, int unit,
                                                       float (&sum)[2][HALF_SUMS]) {
    const int thread = (int)mb_thread_index_again(), lane = thread % 32, pair = lane % 4;
    const int token = warpgroup * WARPGROUP_TOKENS + thread % WARPGROUP / 32 * 16 + lane / 4; /* and + 8 */
    float v[2][2 * EIGHTS], largest[2] = {0, 0};
#pragma unroll
    for (int t = 0; t < 2; t++) {
        const int has_weight = g->row_weight && token + 8 * t < work->n_rows;
        const float weight = has_weight ? g->row_weight[work->first_row + token + 8 * t] : 1;
#pragma unroll
        for (int i = 0; i < EIGHTS; i++) {
            float out[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float *half = gated ? sum[i / 8] : sum[unit];
                const int j = gated ? i % 8 * 2 : i;
                out[e] = half[4 * j + 2 * t + e];
                if (activated)
                    out[e] = activate<gated>(&g->activation, out[e]);
                if (gated)
                    out[e] *= half[(4 * (j + 1) + 2 * t + e) % HALF_SUMS];
                out[e] *= weight;
            }
            unpack(pack<KIND_FP8_BLOCK>(out[0], out[1], g->out_is_f16), g->out_is_f16, &v[t][2 * i]);
            largest[t] = fmaxf(largest[t], fmaxf(fabsf(v[t][2 * i]), fabsf(v[t][2 * i + 1])));
        }
        largest[t] = fmaxf(largest[t], __shfl_xor_sync(0xffffffff, largest[t], 1));
        largest[t] = fmaxf(largest[t], __shfl_xor_sync(0xffffffff, largest[t], 2));
        const float scale = scale_of_unit(largest[t]);
        const unit_divisor divisor = divisor_of_unit(scale);
        const int to_token = token + 8 * t;
        const uint32_t to = staging + to_token * ROW_BYTES + 2 * pair;
#pragma unroll
        for (int i = 0; i < EIGHTS; i++)
            mb_store_shared_2(to + ((i / 2) ^ (to_token % 8)) * 16 + i % 2 * 8,
                              (uint16_t)mb_to_e4m3x2(quotient_in_unit(v[t][2 * i], divisor),
                                                     quotient_in_unit(v[t][2 * i + 1], divisor)));
        if (pair == 0 && to_token < work->n_rows && scale_block * SCALE_BLOCK < g->width)
            g->out_scale[(work->first_row + to_token) *
                             (int64_t)((g->width + SCALE_BLOCK - 1) / SCALE_BLOCK) +
                         scale_block] = scale;
    }
}

/* Round i of a finished tile, a constant where it is inlined. A tile of fp8 outputs has one round, gated,
 * or two; a tile of 16 bits two or four. */
static __device__ __forceinline__ void emit_round(const experts_gemm *g, const item *work, int warpgroup,
                                                  uint32_t staging, int32_t first_output, int i,
                                                  float (&sum)[2][HALF_SUMS]) {
    const int32_t scale_block = first_output / SCALE_BLOCK + i, first = first_output + i * 64;
    const int begin = i % 2 * EIGHTS / 2;
    if (g->store == STORE_FP8_BLOCK) {
        if (i == 0 && g->gated)
            quantise_tokens<1, 1>(g, work, warpgroup, staging, scale_block, 0, sum);
        else if (i < 2 && !g->gated && g->activated)
            quantise_tokens<0, 1>(g, work, warpgroup, staging, scale_block, i, sum);
        else if (i < 2 && !g->gated)
            quantise_tokens<0, 0>(g, work, warpgroup, staging, scale_block, i, sum);
    } else if (g->row_weight || g->store == STORE_F32) {
        if (i < 2 && g->gated)
            emit_tokens<EMIT_ANY, 1>(g, work, warpgroup, staging, 0, first, 0, sum[i % 2]);
        else if (!g->gated)
            emit_tokens<EMIT_ANY, 0>(g, work, warpgroup, staging, 0, first, begin, sum[i / 2]);
    } else if (i < 2 && g->gated)
        emit_tokens<EMIT_GATED, 1>(g, work, warpgroup, staging, 0, first, 0, sum[i % 2]);
    else if (!g->gated && g->activated)
        emit_tokens<EMIT_ACTIVATED, 0>(g, work, warpgroup, staging, 0, first, begin, sum[i / 2]);
    else if (!g->gated)
        emit_tokens<EMIT_PLAIN, 0>(g, work, warpgroup, staging, 0, first, begin, sum[i / 2]);
}

/* The same for one group. residual: of these outputs, in shared memory, or 0. */
static __device__ __forceinline__ void emit_dense(const experts_gemm *g, const item *work, int warpgroup,
                                                  uint32_t staging, uint32_t residual, int32_t first_output,
                                                  int i, const float (&sum)[2][HALF_SUMS]) {
    const int32_t first = first_output + i * 64;
    const int begin = i % 2 * EIGHTS / 2;
    if (g->store == STORE_F32)
        emit_tokens<EMIT_F32, 0>(g, work, warpgroup, staging, 0, first, begin, sum[i / 2]);
    else if (residual)
        emit_tokens<EMIT_RESIDUAL, 0>(g, work, warpgroup, staging, residual, first, begin, sum[i / 2]);
    else
        emit_tokens<EMIT_PLAIN, 0>(g, work, warpgroup, staging, 0, first, begin, sum[i / 2]);
}

/* One item of a consumer warpgroup. */
template <int n_ctas, class shared>
static __device__ __forceinline__ void consume_tokens(const experts_params *p, shared *s, int warpgroup,
                                                      const item *work, mb_ring_cursor *stage,
                                                      mb_ring_cursor *slot) {
    const experts_gemm *g = &p->gemm[work->gemm];
    const int32_t tile_outputs = 2 * (g->gated ? HALF / 2 : HALF);
    const int32_t first_output = work->column_tile * tile_outputs;
    const int has_tokens = work->n_rows > warpgroup * WARPGROUP_TOKENS;
    float sum[2][HALF_SUMS];
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < HALF_SUMS; i++)
            sum[h][i] = 0;
    if (1 << g->scale_shift == SCALE_BLOCK && (!g->gated || g->width % (HALF / 2) == 0))
        multiply_tokens<n_ctas, 1>(s, warpgroup, has_tokens, g->k_blocks, stage, sum);
    else
        multiply_tokens<n_ctas, 0>(s, warpgroup, has_tokens, g->k_blocks, stage, sum);

    if (has_tokens && g->bias) {
#pragma unroll
        for (int h = 0; h < 2; h++)
            add_bias(g, work, first_output + h * tile_outputs / 2, sum[h]);
    }
    const staging_rounds r = rounds_of<KIND_FP8_BLOCK, shared>(g, work, tile_outputs);
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < r.n) {
            wait_to_stage(s, slot, 0);
            if constexpr (shared::is_dense) {
                uint32_t residual = 0; /* a stage of it is two rounds' */
                if (g->late_steps > 0) {
                    if (i % 2 == 0)
                        mb_mbarrier_wait(&s->full[stage->at], stage->parity);
                    residual = mb_shared_address(i % 2 ? s->tokens[stage->at] : s->weights[stage->at]);
                }
                if (has_tokens)
                    emit_dense(g, work, warpgroup, area_of_round(s, &r, i, 0, slot->at).base, residual,
                               first_output, i, sum);
                if (g->late_steps > 0 && i % 2) {
                    mb_fence_async_shared(); /* ordinary reads before what the copy engine writes next */
                    release_stage<n_ctas, 1>(&s->empty[stage->at]);
                    mb_ring_advance<(int)(sizeof(s->full) / sizeof(s->full[0]))>(stage);
                }
            } else if (has_tokens)
                emit_round(g, work, warpgroup, area_of_round(s, &r, i, 0, slot->at).base, first_output, i,
                           sum);
            say_staged(s, slot);
        }
}

#endif
