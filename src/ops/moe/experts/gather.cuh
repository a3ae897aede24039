/*
 * gather.cuh - three warps copy the token rows of an item to the stages, by index, swizzled as TMA would;
 * with block scales the tokens' scales too, and for tokens on M those of the weight rows. Tiles of few
 * tokens of fp8 with block scales read h in 16 bits and quantise it here.
 */
#ifndef MB_OPS_MOE_EXPERTS_GATHER_CUH
#define MB_OPS_MOE_EXPERTS_GATHER_CUH

#include "ops/hopper/cp_async.cuh"
#include "ops/moe/experts/work.cuh"
#include "ops/moe/to_fp8.cuh"

/* Where the scales of weight rows 8 i .. 8 i + 7 of a stage begin in b_scale. */
static __device__ __forceinline__ uint32_t row_scale_at(const experts_gemm *g, const item *work,
                                                        int32_t weight_rows, int i) {
    const int32_t n_rows = (g->gated ? 2 : 1) * g->width;
    const int32_t row = g->gated ? work->column_tile * weight_rows / 2 + i / 2 * 8 + i % 2 * g->width
                                 : work->column_tile * weight_rows + i * 8;
    return (uint32_t)((work->expert * g->expert_scale_rows + (min(row, n_rows - 1) >> g->scale_shift)) *
                      g->k_blocks);
}

/* 64 outputs of each row of an item to a region, rows of 128 bytes as staging (staging.cuh) has them. from:
 * this thread's 16 bytes of its first row; n_bytes 0: zeros. */
static __device__ __forceinline__ void gather_region(uint32_t region, const char *from, uint32_t row_bytes,
                                                     int32_t n_rows, uint32_t n_bytes) {
    const int thread = threadIdx.x % WARPGROUP - 32;
    const int chunk = thread % 8, my_row = thread / 8;
#pragma unroll 2
    for (int r = my_row; r < n_rows; r += GATHER_ROWS) {
        mb_cp_async_16(region + r * ROW_BYTES + (chunk ^ (r % 8)) * 16, from, n_bytes);
        from += GATHER_ROWS * row_bytes;
    }
}

/* The residual of an item, in stages behind those of its last k step: 128 outputs a stage, of the first 64
 * in place of the weights, of the others in place of the tokens. So it is there when the sums are, and lies
 * as staging (staging.cuh) does. */
template <int weight_rows, class shared>
static __device__ __forceinline__ void gather_residual(shared *s, const experts_gemm *g, const item *work,
                                                       mb_ring_cursor *stage) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    const int thread = threadIdx.x % WARPGROUP - 32;
    const int chunk = thread % 8, my_row = thread / 8;
    const uint32_t row_bytes = (uint32_t)g->width * 2;
    const char *rows = (const char *)g->residual + (int64_t)(work->first_row + my_row) * row_bytes;
    int32_t output = work->column_tile * weight_rows + chunk * 8;
#pragma unroll 1
    for (int32_t i = 0; i < g->late_steps; i++) {
        mb_mbarrier_wait(&s->empty[stage->at], stage->parity);
#pragma unroll 1
        for (int half = 0; half < (weight_rows > 64 ? 2 : 1); half++) {
            const uint32_t region = mb_shared_address(half ? s->tokens[stage->at] : s->weights[stage->at]);
            const uint32_t n_bytes = output < g->width ? 16 : 0;
            const char *from = rows + (n_bytes ? output * 2 : 0);
            gather_region(region, from, row_bytes, work->n_rows, n_bytes);
            output += 64;
        }
        mb_cp_async_arrive(&s->full[stage->at]);
        mb_ring_advance<n_stages>(stage);
    }
}

/* The backward's p of an item, in stages behind those of its last k step: 64 outputs a stage, in place of the
 * weights. Gated, their gates fill the first region (cta_tokens rows of 128 bytes, as staging has them) and
 * their ups the second. */
template <class shared>
static __device__ __forceinline__ void gather_p(shared *s, const experts_params *p, const item *work,
                                                mb_ring_cursor *stage) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    const experts_gemm *g = &p->gemm[GEMM_FIRST];
    const int thread = threadIdx.x % WARPGROUP - 32;
    const int chunk = thread % 8, my_row = thread / 8;
    const int n_halves = p->gradient.gated ? 2 : 1;
    const uint32_t row_bytes = (uint32_t)(n_halves * g->width) * 2;
    const char *rows = (const char *)p->gradient.p + (int64_t)(work->first_row + my_row) * row_bytes;
    int32_t output = work->column_tile * g->late_steps * 64 + chunk * 8;
#pragma unroll 1
    for (int32_t i = 0; i < g->late_steps; i++) {
        mb_mbarrier_wait(&s->empty[stage->at], stage->parity);
        const uint32_t n_bytes = output < g->width ? 16 : 0;
#pragma unroll 1
        for (int half = 0; half < n_halves; half++) {
            const uint32_t region = mb_shared_address(s->weights[stage->at]) + half * shared::region_bytes;
            const char *from = rows + (n_bytes ? (half * g->width + output) * 2 : 0);
            gather_region(region, from, row_bytes, work->n_rows, n_bytes);
        }
        mb_cp_async_arrive(&s->full[stage->at]);
        mb_ring_advance<n_stages>(stage);
        output += 64;
    }
}

/* The item's rows from 16 bits to fp8 on the way to the stages. A half of a warp takes a scale block, one
 * stage, of all rows, so that six stages are filled side by side. */
template <class shared>
static __device__ __forceinline__ void gather_and_quantise(shared *s, const experts_gemm *g, const item *work,
                                                           mb_ring_cursor *stage) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    enum { AT_ONCE = GATHER_THREADS / 16, IN_FLIGHT = 4 };
    /* A round takes AT_ONCE stages, and multiply_scaled_few frees a stage only when the next one is full. */
    static_assert(n_stages > AT_ONCE, "a round's stages and the next one exist together");
    const int thread = threadIdx.x % WARPGROUP - 32, lane = thread % 16;
    const uint16_t *rows = (const uint16_t *)g->a + (int64_t)work->first_row * g->k_size;
#pragma unroll 1
    for (int32_t block0 = 0; block0 < g->k_blocks; block0 += AT_ONCE) {
        const int32_t column = (block0 + thread / 16) * SCALE_BLOCK + lane * 8;
        const int is_mine = block0 + thread / 16 < g->k_blocks;
        const int32_t n = min(g->k_blocks - block0, (int32_t)AT_ONCE);
        mb_ring_cursor mine = *stage, after = *stage;
        for (int32_t i = 0; i < n; i++) {
            if (i == thread / 16)
                mine = after;
            mb_ring_advance<n_stages>(&after);
        }
        const uint32_t to = mb_shared_address(s->tokens[mine.at]) + lane % 2 * 8;
#pragma unroll 1
        for (int32_t row0 = 0; row0 < work->n_rows; row0 += IN_FLIGHT) {
            uint4 chunks[IN_FLIGHT];
#pragma unroll
            for (int i = 0; i < IN_FLIGHT; i++) {
                chunks[i] = make_uint4(0, 0, 0, 0);
                if (row0 + i < work->n_rows && column < g->k_size)
                    chunks[i] = __ldcg((const uint4 *)(rows + (int64_t)(row0 + i) * g->k_size + column));
            }
            if (row0 == 0) /* while the first rows are under way */
                for (mb_ring_cursor c = *stage; c.at != after.at; mb_ring_advance<n_stages>(&c))
                    mb_mbarrier_wait(&s->empty[c.at], c.parity);
#pragma unroll
            for (int i = 0; i < IN_FLIGHT; i++) {
                const int32_t r = row0 + i;
                if (r >= work->n_rows)
                    break;
                float v[8];
                widen(chunks[i], g->out_is_f16, v);
                const float largest = largest_of_unit(v);
                const float scale = scale_of_unit(largest);
                const uint2 q = divide_to_e4m3(v, scale, is_tame(scale, largest));
                if (is_mine)
                    mb_store_shared_8(to + r * ROW_BYTES + (lane / 2 ^ r % 8) * 16, q);
                if (is_mine && lane == 0)
                    s->token_scale[mine.at][r] = scale;
            }
        }
        mb_fence_async_shared();
        for (; stage->at != after.at; mb_ring_advance<n_stages>(stage))
            mb_mbarrier_arrive(&s->full[stage->at]);
    }
}

template <int kind, int cta_tokens, int weight_rows, int n_ctas, class shared>
static __device__ __forceinline__ void gather_tokens(const experts_params *p, shared *s) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    constexpr int n_copies = (cta_tokens + GATHER_ROWS - 1) / GATHER_ROWS;
    constexpr int chunk_elements = 16 / traits<kind>::element_bytes;
    constexpr int n_scale_copies = (cta_tokens + GATHER_THREADS - 1) / GATHER_THREADS;
    const int thread = threadIdx.x % WARPGROUP - 32;
    const int chunk = thread % 8, my_row = thread / 8; /* 16 bytes of one row */
    static_assert(GATHER_ROWS % 8 == 4, "the swizzle of a lane's rows has two values in turns");
    const uint32_t swizzled = my_row * ROW_BYTES + (chunk ^ (my_row % 8)) * 16;
    mb_ring_cursor stage = {0, 1}, ring = {0, 0};
    for (;;) {
        const item work = copy_item(s, &ring);
        if (work.gemm == NO_MORE)
            break;
        const experts_gemm *g = &p->gemm[work.gemm];
        const int32_t k_size = g->k_size;
        if (!shared::is_dense && work.gemm == GEMM_SECOND) {
            if (threadIdx.x % 32 == 0)
                while (mb_load_acquire(&p->ready[work.token_tile]) !=
                       p->gemm[GEMM_FIRST].n_column_tiles * n_ctas)
                    ;
            __syncwarp();
            if constexpr (kind == KIND_FP8_BLOCK && shared::is_few) {
                gather_and_quantise(s, g, &work, &stage);
                continue;
            }
        }
        /* Offsets of the rows in a, in 32 bits: that is one instruction for each copy. */
        const uint32_t row_bytes = (uint32_t)k_size * traits<kind>::element_bytes;
        const char *a = (const char *)g->a;
        const float *a_scale = g->a_scale;
        if (!g->row_index) {
            a += (int64_t)work.first_row * row_bytes;
            if constexpr (kind == KIND_FP8_BLOCK)
                a_scale += (int64_t)work.first_row * g->k_blocks;
        }
        if constexpr (shared::tokens_are_m) /* (kept in a register, it spills) */
            if (thread < weight_rows / 8)
                s->row_scale_at[thread] = row_scale_at(g, &work, weight_rows, thread);
        uint32_t rows[n_copies], scale_rows[n_scale_copies];
#pragma unroll
        for (int i = 0; i < n_copies; i++) {
            const int32_t r = my_row + i * GATHER_ROWS;
            rows[i] = (g->row_index && r < work.n_rows ? g->row_index[work.first_row + r] : r) * row_bytes;
        }
        if constexpr (kind == KIND_FP8_BLOCK) {
#pragma unroll
            for (int i = 0; i < n_scale_copies; i++) {
                const int32_t r = thread + i * GATHER_THREADS;
                scale_rows[i] =
                    (g->row_index && r < work.n_rows ? g->row_index[work.first_row + r] : r) * g->k_blocks;
            }
        }
#pragma unroll 1
        for (int32_t k = 0; k < k_size; k += traits<kind>::k_step) {
            mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
            const uint32_t to = mb_shared_address(s->tokens[stage.at]);
            const int32_t column = k + chunk * chunk_elements;
            const uint32_t n_bytes = column < k_size ? 16 : 0; /* past the end of K: zeros */
            const char *from = a + (n_bytes ? column * traits<kind>::element_bytes : 0);
#pragma unroll
            for (int i = 0; i < n_copies; i++)
                if (my_row + i * GATHER_ROWS < work.n_rows)
                    mb_cp_async_16(to + i * GATHER_ROWS * ROW_BYTES + (swizzled ^ i % 2 * 64), from + rows[i],
                                   n_bytes);
            if constexpr (kind == KIND_FP8_BLOCK) {
#pragma unroll
                for (int i = 0; i < n_scale_copies; i++) {
                    const int32_t r = thread + i * GATHER_THREADS;
                    if (r < work.n_rows)
                        mb_cp_async_4(mb_shared_address(&s->token_scale[stage.at][r]),
                                      a_scale + scale_rows[i] + k / SCALE_BLOCK);
                }
            }
            if constexpr (shared::tokens_are_m)
                if (thread < weight_rows / 8)
                    mb_cp_async_4(mb_shared_address(&s->row_scale[stage.at][thread]),
                                  g->b_scale + s->row_scale_at[thread] + k / SCALE_BLOCK);
            mb_cp_async_arrive(&s->full[stage.at]);
            mb_ring_advance<n_stages>(&stage);
        }
        if constexpr (shared::is_dense)
            gather_residual<weight_rows>(s, g, &work, &stage);
        if constexpr (shared::has_p)
            gather_p(s, p, &work, &stage);
    }
}

#endif
