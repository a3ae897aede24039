/*
 * few_prepare.cuh - x in shared memory, made by the CTA: normed with the bits of ops/norm/norm_sm90.cu, and
 * with fp8 weights quantised with those of ops/moe/front/quantize.cuh.
 *
 * A warp takes pieces of 256 columns of a row, eight values a lane. For up to 4 rows several warps share a
 * row; each of them sums up all of its squares.
 */
#ifndef MB_OPS_GEMM_FEW_PREPARE_CUH
#define MB_OPS_GEMM_FEW_PREPARE_CUH

#include "ops/common/norm_row.cuh"
#include "ops/gemm/few_parts.cuh"
#include "ops/hopper/cp_async.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/memory.cuh"
#include "ops/moe/to_fp8.cuh"

enum { PIECE_COLUMNS = 256 };

static __device__ __forceinline__ int32_t first_column_of(int32_t piece) {
    return piece * PIECE_COLUMNS + (int32_t)(threadIdx.x % 32 * 8);
}

/* Eight values of a row of 16 bits, 0 behind the end of K. */
static __device__ __forceinline__ uint4 load_eight(const void *row, int32_t column, int32_t k_size) {
    return column < k_size ? *(const uint4 *)((const uint16_t *)row + column) : make_uint4(0, 0, 0, 0);
}

/* Two values rounded to 16 bits. */
static __device__ __forceinline__ uint32_t pack(float low, float high, int is_f16) {
    if (is_f16) {
        const __half2 pair = __floats2half2_rn(low, high);
        return *(const uint32_t *)&pair;
    }
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&pair;
}

/* Which rows are added up, and what each counts: choice i in lane i of every warp. They are older than the
 * experts' kernel in front, which makes the rows and lets this one begin only behind its own wait. So they
 * are read before the wait: from L2, since L1 may still have those of the layer before. */
typedef struct sum_choices {
    int32_t row;
    float weight;
} sum_choices;

static __device__ __forceinline__ sum_choices load_choices(const few_params *p) {
    static_assert(MB_FEW_SUM_TOKENS * MB_FEW_SUM_TERMS <= 32, "a warp has them");
    const int32_t i = min((int32_t)(threadIdx.x % 32), p->n_tokens * p->sum.top_k - 1);
    return sum_choices{__ldcg(p->sum.token_row + i), __ldcg(p->sum.weights + i)};
}

/* A piece of x that is a sum: a warp's pieces are WARPS_OF_X apart. */
typedef struct sum_piece {
    int32_t i, row, piece; /* i: of all rows' pieces */
    int32_t turn;          /* i % gridDim.x, the CTA that stores it */
} sum_piece;

static __device__ __forceinline__ sum_piece first_sum_piece(const few_params *p, int warp) {
    const int32_t row = warp / p->plan.n_pieces;
    return sum_piece{warp, row, warp - row * p->plan.n_pieces, warp % (int32_t)gridDim.x};
}

static __device__ __forceinline__ void next_sum_piece(const few_params *p, sum_piece *s) {
    s->i += WARPS_OF_X;
    s->piece += WARPS_OF_X;
    while (s->piece >= p->plan.n_pieces) {
        s->piece -= p->plan.n_pieces;
        s->row++;
    }
    s->turn += WARPS_OF_X;
    while (s->turn >= (int32_t)gridDim.x)
        s->turn -= (int32_t)gridDim.x;
}

/* What a lane adds up, known before the rows are there. Behind the end of K it reads what the rows begin
 * with. */
typedef struct sum_terms {
    int32_t row[MB_FEW_SUM_TERMS];
    float weight[MB_FEW_SUM_TERMS];
    uint32_t is_there; /* bit k: row k counts */
    int32_t column;
    int is_inside;
} sum_terms;

static __device__ __forceinline__ sum_terms terms_of(const few_params *p, sum_choices c, sum_piece piece) {
    const int32_t column = first_column_of(piece.piece), top_k = p->sum.top_k;
    sum_terms t;
    t.is_inside = column < p->k_size;
    t.column = t.is_inside ? column : 0;
    t.is_there = 0;
#pragma unroll
    for (int k = 0; k < MB_FEW_SUM_TERMS; k++) {
        const int32_t choice = piece.row * top_k + min(k, top_k - 1);
        const int32_t row = __shfl_sync(0xffffffff, c.row, choice);
        const float weight = __shfl_sync(0xffffffff, c.weight, choice);
        t.weight[k] = row >= 0 ? weight : 0;
        t.row[k] = max(row, 0);
        t.is_there |= (uint32_t)(t.is_inside && row >= 0 && k < top_k) << k;
    }
    return t;
}

/* They are known here: what ptxas would do as late as behind the wait for the kernels in front. */
static __device__ __forceinline__ void settle_terms(const sum_terms *t) {
    uint32_t all = 0;
#pragma unroll
    for (int k = 0; k < MB_FEW_SUM_TERMS; k++)
        all |= (uint32_t)t->row[k] | (__float_as_uint(t->weight[k]) & 1);
    mb_known_here(all);
}

static __device__ __forceinline__ void add_term(float (&sum)[8], uint4 packed, int is_f16, float weight) {
    float v[8];
    widen(packed, is_f16, v);
#pragma unroll
    for (int i = 0; i < 8; i++)
        sum[i] = fmaf(weight, v[i], sum[i]);
}

/* x with the bits of ops/moe/plain/reduce_sm90.cu, to shared memory, and to memory by one CTA for each
 * piece. All loads of a piece are under way together. terms: of the first piece. */
template <int is_f16>
static __device__ __forceinline__ void sum_rows(const few_params *p, const few_shared *s, sum_choices c,
                                                sum_piece piece, sum_terms terms) {
    const int32_t n = p->n_tokens * p->plan.n_pieces;
#pragma unroll 1
    while (piece.i < n) {
        const uint4 zeros = make_uint4(0, 0, 0, 0);
        const int64_t at = (int64_t)piece.row * p->k_size + terms.column;
        const uint4 residual = *(const uint4 *)((const uint16_t *)p->sum.residual + at);
        const uint16_t *column = (const uint16_t *)p->sum.y + terms.column;
        uint4 y[MB_FEW_SUM_TERMS];
#pragma unroll
        for (int k = 0; k < MB_FEW_SUM_TERMS; k++) /* no branch: it would wait for the load before */
            y[k] = *(const uint4 *)(column + (int64_t)terms.row[k] * p->k_size);
        float total[8] = {};
        add_term(total, terms.is_inside ? residual : zeros, is_f16, 1);
#pragma unroll
        for (int k = 0; k < MB_FEW_SUM_TERMS; k++)
            if (k < p->sum.top_k)
                add_term(total, terms.is_there >> k & 1 ? y[k] : zeros, is_f16, terms.weight[k]);
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            words[j] = pack(total[2 * j], total[2 * j + 1], is_f16);
        const uint4 packed = make_uint4(words[0], words[1], words[2], words[3]);
        s->sums[piece.i * 32 + (int32_t)(threadIdx.x % 32)] = packed;
        if (piece.turn == (int32_t)blockIdx.x && terms.is_inside)
            *(uint4 *)((uint16_t *)p->sum.out + at) = packed;
        next_sum_piece(p, &piece);
        if (piece.i < n)
            terms = terms_of(p, c, piece);
    }
}

/* The norm's weight, by all warps that norm, before the kernels in front have ended. A group of copies of its
 * own, the first one. */
static __device__ __forceinline__ void request_norm_weight(const few_params *p, const few_shared *s,
                                                           int warp) {
    for (int32_t piece = warp; piece < p->plan.n_pieces; piece += WARPS_OF_X) {
        const int32_t column = first_column_of(piece), is_inside = column < p->k_size;
        mb_cp_async_16(mb_shared_address(s->norm_weight + piece * 32 + (int32_t)(threadIdx.x % 32)),
                       (const uint16_t *)p->norm_weight + (is_inside ? column : 0), is_inside ? 16 : 0);
    }
    mb_cp_async_commit();
}

/* All threads that make x have their parts of the norm's weight and, if they have added it up, of x. */
template <int mode> static __device__ __forceinline__ void join_warps_of_x(void) {
    mb_cp_async_wait<mode == X_GROUPED>(); /* the scales of the weight's rows may still be on their way */
    mb_named_barrier_sync(SCALES_BARRIER, X_THREADS);
}

/* 1 / rms of a row, in every lane. */
template <int is_f16>
static __device__ __forceinline__ float inverse_rms(const few_params *p, const void *row) {
    enum { AT_ONCE = 8 };
    float sum[8] = {};
#pragma unroll 1
    for (int32_t first = 0; first < p->plan.n_pieces; first += AT_ONCE) {
        uint4 packed[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            packed[i] = load_eight(row, first_column_of(first + i), p->k_size);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            float v[8];
            widen(packed[i], is_f16, v);
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum[j] = fmaf(v[j], v[j], sum[j]);
        }
    }
    return mb_row_scale(sum, p->k_size, p->eps);
}

/* x / rms is rounded, then the product with the weight. */
template <int is_f16>
static __device__ __forceinline__ uint4 norm_eight(const few_params *p, uint4 packed, float scale,
                                                   uint4 weight) {
    float v[8], w[8];
    uint32_t normed[4];
    widen(packed, is_f16, v);
    widen(weight, p->norm_is_f16, w);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float pair[2];
        unpack(pack(v[2 * i] * scale, v[2 * i + 1] * scale, is_f16), is_f16, pair);
        normed[i] = pack(pair[0] * w[2 * i], pair[1] * w[2 * i + 1], is_f16);
    }
    return make_uint4(normed[0], normed[1], normed[2], normed[3]);
}

/* The line of 128 bytes in which a row's step lies: n lines a step, or MB_FEW_COLUMNS a group of steps. */
template <int n, int mode>
static __device__ __forceinline__ int32_t line_of(const mb_few_plan *plan, int32_t step, int32_t row) {
    return mode == X_GROUPED ? step * (MB_FEW_COLUMNS / plan->group_steps) + row : step * n + row;
}

/* n_pieces pieces of a row, row_warps from each to the next, to their places, swizzled as TMA does. In fp8
 * they are in step, so that one's latencies are the other's too. */
template <int type, int n, int mode, int is_f16, int n_pieces>
static __device__ __forceinline__ void put_pieces(const few_params *p, const few_shared *s, int32_t row,
                                                  int32_t first, const uint4 (&packed)[n_pieces]) {
    float v[n_pieces][8], largest[n_pieces], scale[n_pieces];
    uint2 quotients[n_pieces];
    if constexpr (type == MB_WGMMA_E4M3) {
#pragma unroll
        for (int i = 0; i < n_pieces; i++) {
            widen(packed[i], is_f16, v[i]);
            largest[i] = 0;
#pragma unroll
            for (int j = 0; j < 8; j++)
                largest[i] = fmaxf(largest[i], fabsf(v[i][j]));
        }
#pragma unroll
        for (int distance = 1; distance < 16; distance *= 2)
#pragma unroll
            for (int i = 0; i < n_pieces; i++)
                largest[i] = fmaxf(largest[i], __shfl_xor_sync(0xffffffff, largest[i], distance));
#pragma unroll
        for (int i = 0; i < n_pieces; i++)
            scale[i] = scale_of_unit(largest[i]);
#pragma unroll
        for (int i = 0; i < n_pieces; i++)
            quotients[i] = divide_unit_to_e4m3(v[i], scale[i]);
    }
#pragma unroll
    for (int i = 0; i < n_pieces; i++) {
        const uint32_t column = (uint32_t)first_column_of(first + (i << p->plan.row_shift));
        const int32_t step = (int32_t)(column / k_step<type>), line = line_of<n, mode>(&p->plan, step, row);
        const uint32_t in_step = column % k_step<type>, swizzle = (uint32_t)line % 8;
        const uint32_t to = mb_shared_address(s->x) + (uint32_t)line * STEP_BYTES;
        if (step >= p->plan.n_steps)
            continue;
        if constexpr (type == MB_WGMMA_E4M3) {
            mb_store_shared_8(to + (in_step / 16 ^ swizzle) * 16 + in_step % 16, quotients[i]);
            const int32_t at = mode == X_GROUPED ? row * p->plan.step_stride + step : step * n + row;
            if (in_step == 0)
                mb_store_shared_4(mb_shared_address(s->x_scale + at), scale[i]);
        } else
            mb_store_shared_16(to + (in_step / 8 ^ swizzle) * 16, packed[i]);
    }
}

/* The same, normed first where the CTA norms. inverse_rms: of the row. */
template <int type, int n, int mode, int is_f16, int n_pieces>
static __device__ __forceinline__ void norm_pieces(const few_params *p, const few_shared *s, int32_t row,
                                                   int32_t first, float inverse_rms,
                                                   uint4 (&packed)[n_pieces]) {
    if (p->plan.norms)
#pragma unroll
        for (int i = 0; i < n_pieces; i++)
            packed[i] = norm_eight<is_f16>(
                p, packed[i], inverse_rms,
                mb_load_shared_16(mb_shared_address(s->norm_weight + (first + (i << p->plan.row_shift)) * 32 +
                                                    (int32_t)(threadIdx.x % 32))));
    put_pieces<type, n, mode, is_f16>(p, s, row, first, packed);
}

/* A warp's first two pieces, where x is not normed: their loads are the first thing behind the wait. */
typedef struct first_pieces {
    uint4 packed[2];
    int are_here;
} first_pieces;

/* x: the warp's first row, unless rows are chosen. Rows are row_size numbers apart. */
template <int type, int n, int mode, int is_f16>
static __device__ __forceinline__ void prepare_x(const few_params *p, const few_shared *s, int warp,
                                                 const unsigned char *x, int64_t row_size,
                                                 first_pieces ahead) {
    const mb_few_plan *plan = &p->plan;
    const int32_t shift = plan->row_shift, n_warps = 1 << shift, part = warp & (n_warps - 1);
#pragma unroll 1
    for (int32_t row = warp >> shift; row < p->n_tokens; row += WARPS_OF_X >> shift) {
        if (p->rows)
            x = (const unsigned char *)p->x_16bit + 2 * row_size * p->rows[row];
        const float scale = plan->norms ? inverse_rms<is_f16>(p, x) : 1;
#pragma unroll 1
        for (int32_t piece = part; piece < plan->n_pieces; piece += 2 * n_warps) {
            uint4 packed[2] = {ahead.packed[0], ahead.packed[1]};
            if (!ahead.are_here)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    packed[i] = load_eight(x, first_column_of(piece + i * n_warps), p->k_size);
            ahead.are_here = 0;
            if (piece + n_warps < plan->n_pieces)
                norm_pieces<type, n, mode, is_f16>(p, s, row, piece, scale, packed);
            else {
                uint4 last[1] = {packed[0]};
                norm_pieces<type, n, mode, is_f16>(p, s, row, piece, scale, last);
            }
        }
        x += 2 * row_size * (WARPS_OF_X >> shift);
    }
    mb_fence_async_shared();
}

template <int type, int n, int mode, int is_f16>
static __device__ __forceinline__ void make_x_of(const few_params *p, const few_shared *s, int warp) {
    const mb_few_plan *plan = &p->plan;
    const int64_t row_size = plan->sum_offset ? plan->n_pieces * PIECE_COLUMNS : p->k_size;
    const int32_t row = warp >> plan->row_shift, n_warps = 1 << plan->row_shift,
                  column = first_column_of(warp & (n_warps - 1)), next = column + n_warps * PIECE_COLUMNS;
    unsigned char *x = mb_kept_pointer(
        (plan->sum_offset ? (unsigned char *)s->sums : (unsigned char *)p->x_16bit) + 2 * row_size * row);
    first_pieces ahead = {};
    if (plan->sum_offset) {
        const sum_choices choices = load_choices(p);
        const sum_piece piece = first_sum_piece(p, warp);
        const sum_terms terms = terms_of(p, choices, piece);
        settle_terms(&terms);
        mb_grid_wait();
        sum_rows<is_f16>(p, s, choices, piece, terms);
        join_warps_of_x<mode>();
    } else if (plan->norms) {
        join_warps_of_x<mode>();
        mb_grid_wait();
    } else {
        const uint32_t at = mb_kept((uint32_t)row * (uint32_t)p->k_size + (uint32_t)column),
                       to_next = mb_kept((uint32_t)(n_warps * PIECE_COLUMNS));
        const uint32_t are_inside =
            mb_kept(row >= p->n_tokens ? 0 : (uint32_t)(column < p->k_size) + (uint32_t)(next < p->k_size));
        mb_known_here(at | to_next | are_inside);
        mb_grid_wait();
        const uint16_t *from = (const uint16_t *)p->x_16bit + at;
        if (are_inside > 0)
            ahead.packed[0] = *(const uint4 *)from;
        if (are_inside > 1)
            ahead.packed[1] = *(const uint4 *)(from + to_next);
        ahead.are_here = 1;
    }
    prepare_x<type, n, mode, is_f16>(p, s, warp, x, row_size, ahead);
}

/* By the warps that make x. What is in front of it does not depend on the kernels in front. */
template <int type, int n, int mode>
static __device__ __forceinline__ void make_x(const few_params *p, const few_shared *s, int warp) {
    if (type == MB_WGMMA_F16 || (type == MB_WGMMA_E4M3 && p->is_f16))
        make_x_of<type, n, mode, 1>(p, s, warp);
    else
        make_x_of<type, n, mode, 0>(p, s, warp);
}

#endif
