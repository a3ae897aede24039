/*
 * weights_store.cuh - a consumer warpgroup's finished tile goes to memory in pieces of 8 KB: registers,
 * shared memory, copy engine. The engine stores while the warpgroup multiplies its next tile. A piece waits
 * only until the engine has read the piece that had its place before.
 */
#ifndef MB_OPS_MOE_BACKWARD_WEIGHTS_STORE_CUH
#define MB_OPS_MOE_BACKWARD_WEIGHTS_STORE_CUH

#include "ops/common/packed.cuh"
#include "ops/hopper/memory.cuh"
#include "ops/hopper/tma_store.cuh"
#include "ops/moe/backward/weights_work.cuh"

/* A warpgroup's tile: 64 columns of P from p on, 256 of Q from q on. */
typedef struct weights_tile {
    int32_t expert, p, q;
} weights_tile;

/* sum[first .. first + 31] += the 16-bit gradients that are there: those of 64 of Q, from q on. */
template <int dtype, int turned, int first>
static __device__ __forceinline__ void add_old(const weights_params *p, const weights_tile *tile, int32_t q,
                                               float (&sum)[128]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % WARPGROUP / 32;
    const int64_t rows = turned ? p->q_columns : p->p_columns, columns = turned ? p->p_columns : p->q_columns;
    const uint16_t *old = (const uint16_t *)p->old + tile->expert * rows * columns;
    const int32_t at_p = tile->p + 16 * warp + lane / 4, at_q = q + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int below = 0; below < 2; below++) {
            const int32_t i_p = at_p + 8 * below, i_q = at_q + 8 * j;
            if (i_p >= p->p_columns || i_q >= p->q_columns)
                continue;
            uint32_t pair; /* of Q */
            if constexpr (turned)
                pair = old[i_q * columns + i_p] | (uint32_t)old[(i_q + 1) * columns + i_p] << 16;
            else
                pair = *(const uint32_t *)(old + i_p * columns + i_q);
            const float2 both = mb_unpack_pair<dtype>(pair);
            sum[first + 4 * j + 2 * below] += both.x;
            sum[first + 4 * j + 2 * below + 1] += both.y;
        }
}

/* Piece number `piece` of the sums, to shared memory. */
template <int dtype, int out_is_f32, int turned, int piece>
static __device__ __forceinline__ void stage_piece(uint32_t to, const float (&sum)[128]) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x % WARPGROUP / 32;
    if constexpr (!out_is_f32) {
        constexpr int first = piece * 32;
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            uint32_t matrices[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                matrices[i] = mb_pack_pair<dtype>(sum[first + 4 * j + 2 * i], sum[first + 4 * j + 2 * i + 1]);
            if constexpr (turned)
                mb_store_matrix_transposed_x4(to + turned_matrices_at(warp, lane, j), matrices);
            else
                mb_store_matrix_x4(to + matrices_at(warp, lane, j), matrices);
        }
    } else {
        constexpr int first = piece * 16;
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int below = 0; below < 2; below++) {
                const float left = sum[first + 4 * j + 2 * below], right = sum[first + 4 * j + 2 * below + 1];
                if constexpr (turned) {
                    mb_store_shared_4(to + turned_float_at(warp, lane, j, 0, below), left);
                    mb_store_shared_4(to + turned_float_at(warp, lane, j, 1, below), right);
                } else
                    mb_store_shared_8(to + floats_at(warp, lane, j) + below * 8 * LINE_BYTES, left, right);
            }
    }
}

/* One box: `line` bytes of Q or of P, whichever is a row of out. */
static __device__ __forceinline__ void store_box(const weights_params *p, int add, uint32_t from, int32_t x,
                                                 int32_t y, int32_t expert) {
    const int32_t width = p->turned ? p->p_columns : p->q_columns;
    const int32_t height = p->turned ? p->q_columns : p->p_columns;
    if (x >= width || y >= height)
        return;
    if (add)
        mb_tma_add_3d(&p->out, from, x, y, expert);
    else
        mb_tma_store_3d_evict_first(&p->out, from, x, y, expert);
}

template <int dtype, int out_is_f32, int turned, int piece>
static __device__ __forceinline__ void store_piece(const weights_params *p, weights_shared *s, int warpgroup,
                                                   const weights_tile *tile, float (&sum)[128]) {
    constexpr int of_q = out_is_f32 ? 32 : 64; /* columns of Q in a piece */
    const int is_first = threadIdx.x % WARPGROUP == 0;
    const int32_t q = tile->q + piece * of_q;
    const uint32_t staged = mb_shared_address(s->staged[warpgroup][piece % N_PIECES]);
    if constexpr (!out_is_f32)
        if (p->old)
            add_old<dtype, turned, piece * 32>(p, tile, q, sum);
    if (is_first)
        mb_tma_store_wait_read<N_PIECES - 1>();
    mb_named_barrier_sync(STORE_BARRIER + warpgroup, WARPGROUP);
    stage_piece<dtype, out_is_f32, turned, piece>(staged, sum);
    mb_fence_async_shared();
    mb_named_barrier_sync(STORE_BARRIER + warpgroup, WARPGROUP);
    if (is_first) {
        const int add = out_is_f32 && p->accumulate;
        if constexpr (!turned)
            store_box(p, add, staged, q, tile->p, tile->expert);
        else
#pragma unroll
            for (int i = 0; i < (out_is_f32 ? 2 : 1); i++)
                store_box(p, add, staged + i * (PIECE_BYTES / 2), tile->p + 32 * i, q, tile->expert);
        mb_tma_store_commit();
    }
}

template <int dtype, int out_is_f32, int turned, int piece>
static __device__ __forceinline__ void store_pieces(const weights_params *p, weights_shared *s, int warpgroup,
                                                    const weights_tile *tile, float (&sum)[128]) {
    constexpr int n = out_is_f32 ? 8 : 4;
    static_assert(n % N_PIECES == 0, "a piece has the same place in every tile");
    store_piece<dtype, out_is_f32, turned, piece>(p, s, warpgroup, tile, sum);
    if constexpr (piece + 1 < n)
        store_pieces<dtype, out_is_f32, turned, piece + 1>(p, s, warpgroup, tile, sum);
}

#endif
