/*
 * store.cuh - the storing warps of the experts' kernel: they copy a finished tile from staging to memory
 * while the consumers multiply the next one, quantise on the way, and say when a tile's first GEMM is done.
 *
 * fp8 with block scales: a scale covers 128 outputs of a token, a scale block. A tile of whole scale blocks
 * is quantised from staging. Narrower tiles store 16 bits, and the CTA that finishes the last column tile
 * of a scale block quantises it from there; or whoever reads them does (gather.cuh). The bits are the same
 * each way.
 */
#ifndef MB_OPS_MOE_EXPERTS_STORE_CUH
#define MB_OPS_MOE_EXPERTS_STORE_CUH

#include "ops/hopper/launch.cuh"
#include "ops/moe/experts/staging.cuh"
#include "ops/moe/to_fp8.cuh"

static __device__ __forceinline__ void sync_storers(void) {
    mb_named_barrier_sync(STORE_BARRIER, STORE_THREADS);
}

/* The outputs from staging.first to `end` of the tile: 64 of each row at a time, 16 bytes a lane. Large
 * tiles' rows are read again only after much else has gone through L2, so they are stored to leave L2
 * first. g: the GEMM, or where else `out` is and how many columns its rows have. */
template <int leaves_l2, class destination>
static __device__ __forceinline__ void store_16bit(const destination *g, const item *work,
                                                   staging_area staging, int32_t first_output, int32_t end) {
    enum { ROWS = STORE_THREADS / 8 };
    const int thread = threadIdx.x % WARPGROUP;
    const int64_t width = g->width;
    uint32_t region = staging.base;
#pragma unroll 1
    for (int32_t output = staging.first + thread % 8 * 8; output < end; output += STAGED_OUTPUTS) {
        uint16_t *out = (uint16_t *)g->out + work->first_row * width + first_output + output;
#pragma unroll 2
        for (int token = thread / 8; token < work->n_rows; token += ROWS) {
            const uint4 row = mb_load_shared_16(chunk_at(region, token, thread % 8));
            uint4 *to = (uint4 *)(out + token * width);
            if constexpr (leaves_l2)
                __stcs(to, row);
            else
                *to = row;
        }
        region += staging.stride;
    }
}

/* USE_SAVING_P: round i of n (emit_saving_p), of h or y, or of p. */
template <int leaves_l2>
static __device__ __forceinline__ void store_saving_p(const experts_params *p, const experts_gemm *g,
                                                      const item *work, staging_area staging,
                                                      int32_t first_output, int i, int n) {
    const int is_p = work->gemm == GEMM_FIRST && i >= n - P_ROUNDS;
    const int half = i - (n - P_ROUNDS); /* of p: gated 0 the gates, 1 the ups */
    staging.first = g->gated ? 0 : i % 2 * 2 * STAGED_OUTPUTS;
    const int32_t end = min(staging.first + 2 * STAGED_OUTPUTS, g->width - first_output);
    const struct {
        void *out;
        int32_t width;
    } rows = {is_p ? p->p : g->out, is_p && g->gated ? 2 * g->width : g->width};
    store_16bit<leaves_l2>(&rows, work, staging, first_output + (is_p && g->gated ? half * g->width : 0),
                           end);
}

static __device__ __forceinline__ void store_fp8_tensor(const experts_gemm *g, const item *work,
                                                        staging_area staging, int32_t first_output,
                                                        int32_t end) {
    const int thread = threadIdx.x % WARPGROUP;
    const int64_t width = g->width;
    const float scale = *g->out_scale;
    uint32_t region = staging.base;
#pragma unroll 1
    for (int32_t output = staging.first + thread % 8 * 8; output < end; output += STAGED_OUTPUTS) {
        unsigned char *out = (unsigned char *)g->out8 + work->first_row * width + first_output + output;
#pragma unroll 1
        for (int token = thread / 8; token < work->n_rows; token += STORE_THREADS / 8) {
            float v[8];
            widen(mb_load_shared_16(chunk_at(region, token, thread % 8)), g->out_is_f16, v);
            float largest = 0;
            for (int i = 0; i < 8; i++)
                largest = fmaxf(largest, fabsf(v[i]));
            *(uint2 *)(out + token * width) = divide_to_e4m3(v, scale, is_tame(scale, largest));
        }
        region += staging.stride;
    }
}

/* Quantises one token's scale block, 8 outputs in each of 16 lanes, and writes it and the scale. */
static __device__ __forceinline__ void store_scale_block(const experts_gemm *g, int64_t row, int has_row,
                                                         int32_t scale_block, uint4 chunk) {
    const int lane = (int)mb_thread_index_again() % 32; /* (kept in registers, it spills) */
    const int32_t output = scale_block * SCALE_BLOCK + lane % 16 * 8;
    float v[8];
    widen(chunk, g->out_is_f16, v);
    const float largest = largest_of_unit(v);
    const float scale = scale_of_unit(largest);
    if (!has_row)
        return;
    if (output < g->width)
        *(uint2 *)((unsigned char *)g->out8 + row * g->width + output) =
            divide_to_e4m3(v, scale, is_tame(scale, largest));
    if (lane % 16 == 0)
        g->out_scale[row * ((g->width + SCALE_BLOCK - 1) / SCALE_BLOCK) + scale_block] = scale;
}

static __device__ __forceinline__ void store_fp8_block(const experts_gemm *g, const item *work,
                                                       staging_area staging, int32_t first_output,
                                                       int32_t end) {
    enum { ROWS = STORE_THREADS / 16 };
    const int thread = threadIdx.x % WARPGROUP;
    uint32_t region = staging.base + thread % 16 / 8 * staging.stride;
#pragma unroll 1
    for (int32_t begin = staging.first; begin < end; begin += SCALE_BLOCK) {
#pragma unroll 1
        for (int token0 = 0; token0 < work->n_rows; token0 += ROWS) {
            const int token = token0 + thread / 16;
            const int32_t output = begin + thread % 16 * 8;
            uint4 chunk = {0, 0, 0, 0};
            if (token < work->n_rows && output < end)
                chunk = mb_load_shared_16(chunk_at(region, token, thread % 8));
            store_scale_block(g, work->first_row + token, token < work->n_rows,
                              (first_output + begin) / SCALE_BLOCK, chunk);
        }
        region += 2 * staging.stride;
    }
}

/* 128 outputs that the consumers have quantised: 8 bytes a lane. */
static __device__ __forceinline__ void store_quantised(const experts_gemm *g, const item *work,
                                                       uint32_t staged, int32_t output, int32_t n_outputs) {
    enum { ROWS = STORE_THREADS / 16 };
    const int thread = threadIdx.x % WARPGROUP, byte = thread % 16 * 8;
    unsigned char *out = (unsigned char *)g->out8 + work->first_row * (int64_t)g->width + output + byte;
    if (byte >= n_outputs)
        return;
#pragma unroll 4
    for (int token = thread / 16; token < work->n_rows; token += ROWS)
        *(float2 *)(out + token * (int64_t)g->width) =
            mb_load_shared_8(chunk_at(staged, token, byte / 16) + byte % 16);
}

/* Counts this column tile of its scale block; the last one quantises the block. Returns how many column
 * tiles are finished by that: all of the block's, or none. */
template <class shared>
static __device__ __forceinline__ int32_t quantise_finished_block(const experts_params *p, shared *s,
                                                                  const experts_gemm *g, const item *work,
                                                                  int32_t tile_outputs, int n_ctas,
                                                                  int rank) {
    enum { ROWS = STORE_THREADS / 16, IN_FLIGHT = 3 };
    const int thread = threadIdx.x % WARPGROUP;
    const int32_t n_scale_blocks = (g->width + SCALE_BLOCK - 1) / SCALE_BLOCK;
    const int32_t scale_block = work->column_tile * tile_outputs / SCALE_BLOCK;
    const int32_t n_outputs_of_block = min(g->width - scale_block * SCALE_BLOCK, (int32_t)SCALE_BLOCK);
    const int32_t n_column_tiles = (n_outputs_of_block + tile_outputs - 1) / tile_outputs;
    sync_storers();
    if (thread == 0)
        s->n_done = mb_add_acquire_release(
            &p->block_done[((int64_t)work->token_tile * n_scale_blocks + scale_block) * n_ctas + rank], 1);
    sync_storers();
    if (s->n_done + 1 < n_column_tiles)
        return 0;
    const int32_t output = scale_block * SCALE_BLOCK + thread % 16 * 8;
    const uint16_t *from = (const uint16_t *)g->out + work->first_row * (int64_t)g->width + output;
#pragma unroll 1
    for (int token0 = thread / 16; token0 - thread / 16 < work->n_rows; token0 += IN_FLIGHT * ROWS) {
        uint4 chunks[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) {
            chunks[i] = make_uint4(0, 0, 0, 0);
            if (token0 + i * ROWS < work->n_rows && output < g->width)
                chunks[i] = __ldcg((const uint4 *)(from + (token0 + i * ROWS) * (int64_t)g->width));
        }
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++)
            store_scale_block(g, work->first_row + token0 + i * ROWS, token0 + i * ROWS < work->n_rows,
                              scale_block, chunks[i]);
    }
    return n_column_tiles;
}

template <int kind, int weight_rows, int n_warpgroups, int n_ctas, class shared>
static __device__ __forceinline__ void store_tiles(const experts_params *p, shared *s, int rank) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    mb_ring_cursor ring = {0, 0}, slot = {0, 0};
    uint32_t stage_end = 0; /* the stage behind the item's last */
    for (;;) {
        const item *work = wait_item(s, &ring);
        if (work->gemm == NO_MORE)
            break;
        const experts_gemm *g = &p->gemm[work->gemm];
        const int32_t tile_outputs = item_rows<weight_rows, shared>(g) / (g->gated ? 2 : 1);
        const int32_t first_output = work->column_tile * tile_outputs;
        const int is_narrow = weight_rows < 256 && tile_outputs % SCALE_BLOCK != 0;
        const staging_rounds r = rounds_of<kind, shared>(g, work, tile_outputs);
        stage_end = (stage_end + r.n_k_steps) % n_stages;
#pragma unroll 1
        for (int i = 0; i < r.n; i++) {
            const staging_area staging = area_of_round(s, &r, i, stage_end, slot.at);
            const int32_t end = min((i + 1) * r.outputs, g->width - first_output);
            wait_staged(s, &slot);
            if constexpr (shared::staging != STAGING_NONE) {
                if constexpr (shared::is_dense) {
                    if (g->store == STORE_16BIT)
                        store_16bit<0>(g, work, staging, first_output, end);
                } else if constexpr (shared::saves_p)
                    store_saving_p<(n_ctas > 1)>(p, g, work, staging, first_output, i, r.n);
                else if (g->store == STORE_16BIT || (g->store == STORE_FP8_BLOCK && is_narrow))
                    store_16bit<(n_ctas > 1)>(g, work, staging, first_output, end);
                else if (shared::staging == STAGING_TURNS && g->store == STORE_FP8_BLOCK &&
                         work->n_rows > FEW_TOKENS)
                    store_quantised(g, work, staging.base, first_output + i * r.outputs, end - i * r.outputs);
                else if (g->store == STORE_FP8_BLOCK)
                    store_fp8_block(g, work, staging, first_output, end);
                else if (kind == KIND_FP8_TENSOR && g->store == STORE_FP8_TENSOR)
                    store_fp8_tensor(g, work, staging, first_output, end);
            }
            say_stored<n_warpgroups, n_ctas>(s, &r, i, stage_end, &slot);
        }
        if (!shared::is_dense && work->gemm == GEMM_FIRST &&
            p->gemm[GEMM_SECOND].n_column_tiles + (g->store == STORE_FP8_BLOCK) > 0) {
            int32_t n_done = 1;
            if constexpr (kind != KIND_TF32)
                if (g->store == STORE_FP8_BLOCK && is_narrow)
                    n_done = quantise_finished_block(p, s, g, work, tile_outputs, n_ctas, rank);
            sync_storers();
            if (threadIdx.x % WARPGROUP == 0 && n_done > 0)
                mb_add_release(&p->ready[work->token_tile], n_done);
        }
        release_item(s, &ring);
    }
}

#endif
