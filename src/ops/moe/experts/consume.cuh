/*
 * consume.cuh - one item of a consumer warpgroup: multiply, then epilogue, into staging. The number of
 * tokens is a constant of the code: the smallest that there is code for and that is enough.
 */
#ifndef MB_OPS_MOE_EXPERTS_CONSUME_CUH
#define MB_OPS_MOE_EXPERTS_CONSUME_CUH

#include "ops/moe/experts/epilogue.cuh"
#include "ops/moe/experts/multiply.cuh"

/* n: the number of tokens, padded. */
template <int kind, int n, int n_warpgroups, int n_row_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void consume(const experts_params *p, shared *s, int warpgroup,
                                               const item *work, ring_cursor *stage, ring_cursor *slot) {
    const experts_gemm *g = &p->gemm[work->gemm];
    const int32_t tile_outputs = n_warpgroups * n_row_blocks * (g->gated ? 32 : 64);
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
        multiply_scaled<n, n_warpgroups, n_row_blocks, n_ctas>(s, g->b_scale, warpgroup, g->k_blocks,
                                                               r.n_held, scale_low, scale_high, stage, sum);
    } else
        multiply<kind, n, n_warpgroups, n_row_blocks, n_ctas>(s, warpgroup, g->k_size, r.n_held, stage, sum);

    if constexpr (shared::staging == STAGING_STAGES) /* no wgmma may still read the held stages */
        mb_named_barrier_sync(CONSUMER_BARRIER, n_warpgroups * WARPGROUP);
    /* A round has all row blocks of the warpgroup, or, where a tile has two rounds, one. */
    const int one_each = shared::staging == STAGING_STAGES && r.n > 1;
#pragma unroll
    for (int m = 0; m < n_row_blocks; m++) {
        const int round = one_each ? m : 0;
        if (m == 0 || one_each)
            wait_to_stage(s, slot, round > 0 && r.n_held == 1);
        const staging_area staging = area_of_round(s, &r, round, stage->at, slot->at);
        const int row_block = m * n_warpgroups + warpgroup;
        if (g->row_weight || (kind != KIND_TF32 && g->store == STORE_F32))
            emit<kind, n, EMIT_ANY>(g, work, staging, first_output, row_block, sum[m]);
        else if (g->gated)
            emit<kind, n, EMIT_GATED>(g, work, staging, first_output, row_block, sum[m]);
        else if (g->activated)
            emit<kind, n, EMIT_ACTIVATED>(g, work, staging, first_output, row_block, sum[m]);
        else
            emit<kind, n, EMIT_PLAIN>(g, work, staging, first_output, row_block, sum[m]);
        if (m == n_row_blocks - 1 || one_each)
            say_staged(s, slot);
    }
}

/* Large tiles have code for a few numbers of tokens only: each is 20 KB that the instruction caches would
 * have to hold (T = 4096: 694 us with all multiples of 8, 662 with 128, 136 and 144). */
template <int n, int cta_tokens, int n_ctas> struct next_n {
    static constexpr int more = n_ctas == 1 || n >= 128 ? n + 8 : n >= 96 ? 128 : n + 32;
    static constexpr int value = more < cta_tokens ? more : cta_tokens;
};

/* The item, by the code for the smallest number of tokens that is enough. */
template <int kind, int n, int cta_tokens, int n_warpgroups, int n_row_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void consume_padded(const experts_params *p, shared *s, int warpgroup,
                                                      const item *work, ring_cursor *stage,
                                                      ring_cursor *slot) {
    if (work->n_rows <= n)
        consume<kind, n, n_warpgroups, n_row_blocks, n_ctas>(p, s, warpgroup, work, stage, slot);
    else if constexpr (n < cta_tokens)
        consume_padded<kind, next_n<n, cta_tokens, n_ctas>::value, cta_tokens, n_warpgroups, n_row_blocks,
                       n_ctas>(p, s, warpgroup, work, stage, slot);
}

#endif
