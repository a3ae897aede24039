/*
 * experts_store.cuh - the storing warp of the experts' kernel: it copies a finished tile out of shared memory
 * while the consumers multiply the next one, quantises on the way, and says when a tile's first GEMM is done.
 *
 * fp8 with block scales: a scale covers 128 outputs of a token. Where a tile has whole blocks of 128 outputs
 * they are quantised from shared memory. Narrower tiles store 16 bits, and whichever CTA finishes the last
 * piece of a block quantises it from there. The bits are the same either way.
 */
#ifndef MB_OPS_MOE_EXPERTS_STORE_CUH
#define MB_OPS_MOE_EXPERTS_STORE_CUH

#include "ops/hopper/fp8.cuh"
#include "ops/moe/experts_shared.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

enum { ROWS_AT_ONCE = 4 }; /* that a lane loads before it stores the first */

/* Eight values of 16 bits to floats. */
static __device__ __forceinline__ void unpack(uint4 packed, int is_f16, float (&v)[8]) {
    const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = is_f16 ? __half22float2(*(const __half2 *)&pairs[i])
                                   : __bfloat1622float2(*(const __nv_bfloat162 *)&pairs[i]);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
    }
}

static __device__ __forceinline__ uint2 to_fp8(const float (&v)[8], float scale) {
    float q[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        q[i] = __fdiv_rn(v[i], scale);
    return make_uint2(mb_to_e4m3x2(q[0], q[1]) | mb_to_e4m3x2(q[2], q[3]) << 16,
                      mb_to_e4m3x2(q[4], q[5]) | mb_to_e4m3x2(q[6], q[7]) << 16);
}

/* The scale of 128 values, eight of them in each of 16 lanes. */
static __device__ __forceinline__ float block_scale(const float (&v)[8]) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        largest = fmaxf(largest, fabsf(v[i]));
#pragma unroll
    for (int distance = 1; distance < 16; distance *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, distance));
    return largest > 0 ? __fdiv_rn(largest, 448.0f) : 1.0f;
}

/* 16-byte chunk of a staged token: 8 outputs from `output` of the tile on. */
static __device__ __forceinline__ uint4 staged_chunk(uint32_t staging, int cta_tokens, int token,
                                                     int output) {
    return mb_load_shared_16(staging + output / 64 * (cta_tokens * ROW_BYTES) + token * ROW_BYTES +
                             ((output % 64 / 8) ^ (token % 8)) * 16);
}

/* 64 outputs of each row, 16 bytes a lane. Large tiles' rows are read again only after much else has gone
 * through L2: they are stored to leave it first. */
template <int cta_tokens, int n_ctas>
static __device__ __forceinline__ void store_16bit(const gemm_params *g, const item *work, uint32_t staging,
                                                   int32_t first_output, int32_t n_outputs) {
    const int lane = threadIdx.x % 32;
    const int64_t width = g->width;
#pragma unroll 1
    for (int32_t region = 0; region < n_outputs; region += 64) {
        const int32_t output = region + lane % 8 * 8;
        if (output >= n_outputs)
            continue;
        uint16_t *out = (uint16_t *)g->out + work->first_row * width + first_output + output;
#pragma unroll 1
        for (int token0 = lane / 8; token0 < work->n_rows; token0 += 4 * ROWS_AT_ONCE) {
            uint4 rows[ROWS_AT_ONCE];
#pragma unroll
            for (int i = 0; i < ROWS_AT_ONCE; i++)
                if (token0 + 4 * i < work->n_rows)
                    rows[i] = staged_chunk(staging, cta_tokens, token0 + 4 * i, output);
#pragma unroll
            for (int i = 0; i < ROWS_AT_ONCE; i++)
                if (token0 + 4 * i < work->n_rows) {
                    uint4 *to = (uint4 *)(out + (token0 + 4 * i) * width);
                    if constexpr (n_ctas > 1)
                        __stcs(to, rows[i]);
                    else
                        *to = rows[i];
                }
        }
    }
}

template <int cta_tokens>
static __device__ __forceinline__ void store_fp8_tensor(const gemm_params *g, const item *work,
                                                        uint32_t staging, int32_t first_output,
                                                        int32_t n_outputs) {
    const int lane = threadIdx.x % 32;
    const int64_t width = g->width;
    const float scale = *g->out_scale;
#pragma unroll 1
    for (int32_t region = 0; region < n_outputs; region += 64) {
        const int32_t output = region + lane % 8 * 8;
        if (output >= n_outputs)
            continue;
        unsigned char *out = (unsigned char *)g->out8 + work->first_row * width + first_output + output;
#pragma unroll 2
        for (int token = lane / 8; token < work->n_rows; token += 4) {
            float v[8];
            unpack(staged_chunk(staging, cta_tokens, token, output), g->out_is_f16, v);
            *(uint2 *)(out + token * width) = to_fp8(v, scale);
        }
    }
}

/* Quantises a chunk of one of two tokens that the warp has at hand, and writes it and the block's scale. */
static __device__ __forceinline__ void store_block(const gemm_params *g, int64_t row, int has_row,
                                                   int32_t block, const float (&v)[8]) {
    const int lane = threadIdx.x % 32;
    const int32_t output = block * SCALE_BLOCK + lane % 16 * 8;
    const float scale = block_scale(v);
    if (!has_row)
        return;
    if (output < g->width)
        *(uint2 *)((unsigned char *)g->out8 + row * g->width + output) = to_fp8(v, scale);
    if (lane % 16 == 0)
        g->out_scale[row * ((g->width + SCALE_BLOCK - 1) / SCALE_BLOCK) + block] = scale;
}

template <int cta_tokens>
static __device__ __forceinline__ void store_fp8_block(const gemm_params *g, const item *work,
                                                       uint32_t staging, int32_t first_output,
                                                       int32_t n_outputs) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int32_t begin = 0; begin < n_outputs; begin += SCALE_BLOCK)
#pragma unroll 2
        for (int token0 = 0; token0 < work->n_rows; token0 += 2) {
            const int token = token0 + lane / 16;
            const int32_t output = begin + lane % 16 * 8;
            float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (token < work->n_rows && output < n_outputs)
                unpack(staged_chunk(staging, cta_tokens, token, output), g->out_is_f16, v);
            store_block(g, work->first_row + token, token < work->n_rows,
                        (first_output + begin) / SCALE_BLOCK, v);
        }
}

/* Counts this piece of its block of 128 outputs; the last one quantises the block. Returns how many pieces
 * are done by that: all of the block's, or none. */
static __device__ __forceinline__ int32_t store_fp8_block_of_pieces(const experts_params *p,
                                                                    const gemm_params *g, const item *work,
                                                                    int32_t tile_outputs, int n_ctas,
                                                                    int rank) {
    const int lane = threadIdx.x % 32;
    const int32_t n_blocks = (g->width + SCALE_BLOCK - 1) / SCALE_BLOCK;
    const int32_t block = work->piece * tile_outputs / SCALE_BLOCK;
    const int32_t block_outputs = min(g->width - block * SCALE_BLOCK, (int32_t)SCALE_BLOCK);
    const int32_t n_pieces = (block_outputs + tile_outputs - 1) / tile_outputs;
    __syncwarp();
    int32_t n_before = 0;
    if (lane == 0)
        n_before = mb_add_acquire_release(
            &p->block_done[((int64_t)work->token_tile * n_blocks + block) * n_ctas + rank], 1);
    n_before = __shfl_sync(0xffffffff, n_before, 0);
    if (n_before + 1 < n_pieces)
        return 0;
    const int32_t output = block * SCALE_BLOCK + lane % 16 * 8;
#pragma unroll 2
    for (int token0 = 0; token0 < work->n_rows; token0 += 2) {
        const int64_t row = work->first_row + token0 + lane / 16;
        const int has_row = token0 + lane / 16 < work->n_rows;
        float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (has_row && output < g->width)
            unpack(__ldcg((const uint4 *)((const uint16_t *)g->out + row * g->width + output)), g->out_is_f16,
                   v);
        store_block(g, row, has_row, block, v);
    }
    return n_pieces;
}

template <int kind, int weight_rows, int cta_tokens, int n_ctas, class shared>
static __device__ __forceinline__ void store_tiles(const experts_params *p, shared *s, int rank) {
    const int lane = threadIdx.x % 32;
    const uint32_t staging = mb_shared_address(s->staging);
    cursor ring = {0, 0};
    uint32_t staged = 0;
    for (;;) {
        const item work = next_item(s, &ring);
        if (work.gemm == NO_MORE)
            break;
        const gemm_params *g = &p->gemm[work.gemm];
        const int32_t tile_outputs = g->gated ? weight_rows / 2 : weight_rows;
        const int32_t first_output = work.piece * tile_outputs;
        const int32_t n_outputs = min(tile_outputs, g->width - first_output);
        const int in_pieces = tile_outputs % SCALE_BLOCK != 0;
        mb_mbarrier_wait(&s->staged_full, staged);
        if constexpr (kind != KIND_TF32) {
            if (g->store == STORE_16BIT || (g->store == STORE_FP8_BLOCK && in_pieces))
                store_16bit<cta_tokens, n_ctas>(g, &work, staging, first_output, n_outputs);
            else if (g->store == STORE_FP8_BLOCK)
                store_fp8_block<cta_tokens>(g, &work, staging, first_output, n_outputs);
            else if (g->store == STORE_FP8_TENSOR)
                store_fp8_tensor<cta_tokens>(g, &work, staging, first_output, n_outputs);
        }
        mb_mbarrier_arrive(&s->staged_empty);
        staged ^= 1;
        if (work.gemm == GEMM_SECOND)
            continue;
        int32_t n_done = 1;
        if constexpr (kind != KIND_TF32)
            if (g->store == STORE_FP8_BLOCK && in_pieces)
                n_done = store_fp8_block_of_pieces(p, g, &work, tile_outputs, n_ctas, rank);
        __syncwarp();
        if (lane == 0 && n_done > 0 && p->gemm[GEMM_SECOND].pieces > 0)
            mb_add_release(&p->ready[work.token_tile], n_done);
    }
}

#endif
