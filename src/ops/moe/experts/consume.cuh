/*
 * consume.cuh - one item of a consumer warpgroup: multiply, then epilogue, into staging. The number of
 * tokens is a constant of the code: the smallest that there is code for and that is enough.
 */
#ifndef MB_OPS_MOE_EXPERTS_CONSUME_CUH
#define MB_OPS_MOE_EXPERTS_CONSUME_CUH

#include "ops/moe/experts/epilogue.cuh"
#include "ops/moe/experts/gradient.cuh"
#include "ops/moe/experts/multiply.cuh"

/* One group: the sums plus the residual, which the producers have brought in stages of its own: 128 outputs,
 * one row block of each warpgroup, each. Where finished tiles wait in stages (STAGING_STAGES) these are they,
 * and the storing warps give them back. */
template <int kind, int n, int n_warpgroups, int n_row_blocks, class shared>
static __device__ __forceinline__ void
emit_residual(const experts_gemm *g, shared *s, int warpgroup, const item *work, const staging_rounds *r,
              int32_t first_output, mb_ring_cursor *stage, mb_ring_cursor *slot,
              float (&sum)[n_row_blocks][n / 2]) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    constexpr int is_held = shared::staging == STAGING_STAGES;
#pragma unroll
    for (int m = 0; m < n_row_blocks; m++) {
        if (m == 0 || is_held)
            wait_to_stage(s, slot, 0);
        mb_mbarrier_wait(&s->full[stage->at], stage->parity);
        const uint32_t base = mb_shared_address(s->weights[stage->at]);
        const staging_area residual = {base, mb_shared_address(s->tokens[stage->at]) - base,
                                       m * 2 * STAGED_OUTPUTS};
        staging_area staging = residual;
        if constexpr (!is_held)
            staging = area_of_round(s, r, 0, 0, slot->at);
        emit<kind, n, EMIT_RESIDUAL>(g, work, staging, residual, first_output, m * n_warpgroups + warpgroup,
                                     sum[m]);
        if constexpr (!is_held) {
            mb_fence_async_shared(); /* ordinary reads before what the copy engine writes next */
            release_stage<1 + shared::tokens_are_m, 1>(&s->empty[stage->at]);
        }
        mb_ring_advance<n_stages>(stage);
        if (m == n_row_blocks - 1 || is_held)
            say_staged(s, slot);
    }
}

/* Row blocks begin to end - 1 of each warpgroup as one round. first: the tile's output with which it
 * begins. */
template <int kind, int n, int mode, int begin, int end, int n_warpgroups, int n_row_blocks, class shared>
static __device__ __forceinline__ void
emit_round_of(const experts_gemm *g, shared *s, int warpgroup, const item *work, const staging_rounds *r,
              int round, int32_t first, const mb_ring_cursor *stage, mb_ring_cursor *slot,
              float (&sum)[n_row_blocks][n / 2]) {
    const int32_t first_output = work->column_tile * n_warpgroups * n_row_blocks * (g->gated ? 32 : 64);
    wait_to_stage(s, slot, round > 0 && r->n_held == 1);
    staging_area staging = area_of_round(s, r, round, stage->at, slot->at);
    staging.first = first;
#pragma unroll
    for (int m = begin; m < end; m++)
        emit<kind, n, mode>(g, work, staging, staging, first_output, m * n_warpgroups + warpgroup, sum[m]);
    say_staged(s, slot);
}

/* USE_SAVING_P: the rounds of h, then those of p, which is what h was made of; of the second GEMM those of
 * y. */
template <int kind, int n, int n_warpgroups, class shared>
static __device__ __forceinline__ void
emit_saving_p(const experts_gemm *g, shared *s, int warpgroup, const item *work, const staging_rounds *r,
              const mb_ring_cursor *stage, mb_ring_cursor *slot, float (&sum)[2][n / 2]) {
    enum { OUTPUTS = 2 * STAGED_OUTPUTS };
    if (g->gated) {
        emit_round_of<kind, n, EMIT_GATED, 0, 2, n_warpgroups>(g, s, warpgroup, work, r, 0, 0, stage, slot,
                                                               sum);
        emit_round_of<kind, n, EMIT_GATES, 0, 2, n_warpgroups>(g, s, warpgroup, work, r, 1, 0, stage, slot,
                                                               sum);
        emit_round_of<kind, n, EMIT_UPS, 0, 2, n_warpgroups>(g, s, warpgroup, work, r, 2, 0, stage, slot,
                                                             sum);
        return;
    }
    if (work->gemm == GEMM_FIRST) {
        emit_round_of<kind, n, EMIT_ACTIVATED, 0, 1, n_warpgroups>(g, s, warpgroup, work, r, 0, 0, stage,
                                                                   slot, sum);
        emit_round_of<kind, n, EMIT_ACTIVATED, 1, 2, n_warpgroups>(g, s, warpgroup, work, r, 1, OUTPUTS,
                                                                   stage, slot, sum);
    }
    emit_round_of<kind, n, EMIT_PLAIN, 0, 1, n_warpgroups>(g, s, warpgroup, work, r, r->n - 2, 0, stage, slot,
                                                           sum);
    emit_round_of<kind, n, EMIT_PLAIN, 1, 2, n_warpgroups>(g, s, warpgroup, work, r, r->n - 1, OUTPUTS, stage,
                                                           slot, sum);
}

/* n: the number of tokens, padded. */
template <int kind, int n, int n_warpgroups, int n_row_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void consume(const experts_params *p, shared *s, int warpgroup,
                                               const item *work, mb_ring_cursor *stage,
                                               mb_ring_cursor *slot) {
    const experts_gemm *g = &p->gemm[work->gemm];
    const int32_t tile_outputs = item_rows<n_warpgroups * n_row_blocks * 64, shared>(g) / (g->gated ? 2 : 1);
    const int32_t first_output = work->column_tile * tile_outputs;
    const staging_rounds r = rounds_of<kind, shared>(g, work, tile_outputs);

    /* They must be set although the first wgmma could ignore them: left uninitialised, ptxas keeps those of
     * all token counts alive at once, and spills. */
    float sum[n_row_blocks][n / 2];
#pragma unroll
    for (int m = 0; m < n_row_blocks; m++)
#pragma unroll
        for (int i = 0; i < n / 2; i++)
            sum[m][i] = 0;

    if constexpr (kind == KIND_FP8_BLOCK) {
        int32_t scale_low[n_row_blocks], scale_high[n_row_blocks];
#pragma unroll
        for (int m = 0; m < n_row_blocks; m++) {
            const thread_rows rows = rows_of(g, first_output, m * n_warpgroups + warpgroup);
            const int32_t scale_row = work->expert * g->expert_scale_rows;
            scale_low[m] = (scale_row + (min(rows.low, rows.n_rows - 1) >> g->scale_shift)) * g->k_blocks;
            scale_high[m] = (scale_row + (min(rows.high, rows.n_rows - 1) >> g->scale_shift)) * g->k_blocks;
        }
        if constexpr (shared::is_few)
            multiply_scaled_few<n>(s, g->b_scale, g->k_blocks, scale_low[0], scale_high[0], stage, sum[0]);
        else
            multiply_scaled<n, n_warpgroups, n_row_blocks, n_ctas>(
                s, g->b_scale, warpgroup, g->k_blocks, r.n_held, scale_low, scale_high, stage, sum);
    } else
        multiply<kind, n, n_warpgroups, n_row_blocks, n_ctas>(
            s, warpgroup, g->k_size, shared::is_dense && g->late_steps > 0 ? 0 : r.n_held, stage, sum);
    if constexpr (shared::is_dense) {
        if (g->late_steps > 0) {
            emit_residual<kind, n, n_warpgroups, n_row_blocks>(g, s, warpgroup, work, &r, first_output, stage,
                                                               slot, sum);
            return;
        }
    }

    if constexpr (shared::staging == STAGING_STAGES) /* no wgmma may still read the held stages */
        mb_named_barrier_sync(CONSUMER_BARRIER, n_warpgroups * WARPGROUP);
    if constexpr (shared::saves_p) {
        emit_saving_p<kind, n, n_warpgroups>(g, s, warpgroup, work, &r, stage, slot, sum);
        return;
    }
    /* A round has all row blocks of the warpgroup, or, where a tile has two rounds, one. */
    const int one_each = shared::staging == STAGING_STAGES && r.n > 1;
#pragma unroll
    for (int m = 0; m < n_row_blocks; m++) {
        const int round = one_each ? m : 0;
        if (m == 0 || one_each)
            wait_to_stage(s, slot, round > 0 && r.n_held == 1);
        const staging_area staging = area_of_round(s, &r, round, stage->at, slot->at);
        const int row_block = m * n_warpgroups + warpgroup;
        if constexpr (shared::across)
            emit<kind, n, EMIT_PLAIN>(g, work, staging, staging, first_output, row_block, sum[m]);
        else if constexpr (shared::is_dense) {
            if (g->store == STORE_F32)
                emit<kind, n, EMIT_F32>(g, work, staging, staging, first_output, row_block, sum[m]);
            else
                emit<kind, n, EMIT_PLAIN>(g, work, staging, staging, first_output, row_block, sum[m]);
        } else if (g->row_weight || (kind != KIND_TF32 && g->store == STORE_F32))
            emit<kind, n, EMIT_ANY>(g, work, staging, staging, first_output, row_block, sum[m]);
        else if (g->gated)
            emit<kind, n, EMIT_GATED>(g, work, staging, staging, first_output, row_block, sum[m]);
        else if (g->activated)
            emit<kind, n, EMIT_ACTIVATED>(g, work, staging, staging, first_output, row_block, sum[m]);
        else
            emit<kind, n, EMIT_PLAIN>(g, work, staging, staging, first_output, row_block, sum[m]);
        if (m == n_row_blocks - 1 || one_each)
            say_staged(s, slot);
    }
}

/* Large tiles have code for a few numbers of tokens only: each is 20 KB that the instruction caches would
 * have to hold (T = 4096: 694 us with all multiples of 8, 662 with 128, 136 and 144). */
template <int n, int cta_tokens, int n_ctas, int is_dense> struct next_n {
    static constexpr int more = n_ctas == 1 || n >= 128 ? n + 8 : n >= 96 ? (is_dense ? n + 8 : 128) : n + 32;
    static constexpr int value = more < cta_tokens ? more : cta_tokens;
};

/* The item, by the code for the smallest number of tokens that is enough. */
template <int kind, int n, int cta_tokens, int n_warpgroups, int n_row_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void consume_padded(const experts_params *p, shared *s, int warpgroup,
                                                      const item *work, mb_ring_cursor *stage,
                                                      mb_ring_cursor *slot) {
    if (work->n_rows <= n) {
        if constexpr (shared::has_p)
            consume_gradient<kind, n, n_warpgroups, n_row_blocks, n_ctas>(p, s, warpgroup, work, stage, slot);
        else
            consume<kind, n, n_warpgroups, n_row_blocks, n_ctas>(p, s, warpgroup, work, stage, slot);
    } else if constexpr (n < cta_tokens)
        consume_padded<kind, next_n<n, cta_tokens, n_ctas, shared::is_dense>::value, cta_tokens, n_warpgroups,
                       n_row_blocks, n_ctas>(p, s, warpgroup, work, stage, slot);
}

#endif
