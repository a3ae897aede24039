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
#include "ops/moe/to_fp8.cuh"

enum { PIECE_COLUMNS = 256 };

static __device__ __forceinline__ int32_t first_column_of(int32_t piece) {
    return piece * PIECE_COLUMNS + (int32_t)threadIdx.x % 32 * 8;
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

/* Which rows are added up. They are older than the kernel in front, which makes the rows, so they are read
 * before the wait: from L2, since L1 may still have those of the layer before. The barrier of
 * copy_norm_weight shows them to the other warps. */
static __device__ __forceinline__ void copy_choices(const few_params *p, const few_shared *s, int warp) {
    const int i = (int)threadIdx.x % 32;
    static_assert(MB_FEW_SUM_TOKENS * MB_FEW_SUM_TERMS <= 32, "a warp copies them");
    if (warp == 0 && i < p->n_tokens * p->sum.top_k) {
        s->choices[i] = __ldcg(p->sum.token_row + i);
        s->choice_weights[i] = __ldcg(p->sum.weights + i);
    }
}

static __device__ __forceinline__ void add_term(float (&sum)[8], uint4 packed, int is_f16, float weight) {
    float v[8];
    widen(packed, is_f16, v);
#pragma unroll
    for (int i = 0; i < 8; i++)
        sum[i] = fmaf(weight, v[i], sum[i]);
}

/* x with the bits of ops/moe/plain/reduce_sm90.cu, to shared memory, and to memory by one CTA for each
 * piece. All loads of a piece are under way together. */
static __device__ __forceinline__ void sum_rows(const few_params *p, const few_shared *s, int warp) {
    const few_sum *sum = &p->sum;
#pragma unroll 1
    for (int32_t i = warp; i < p->n_tokens * p->plan.n_pieces; i += WARPS_OF_X) {
        const int32_t row = i / p->plan.n_pieces, column = first_column_of(i - row * p->plan.n_pieces);
        const int is_inside = column < p->k_size;
        const int64_t at = (int64_t)row * p->k_size + (is_inside ? column : 0);
        const uint16_t *y = (const uint16_t *)sum->y + (is_inside ? column : 0);
        const uint4 zeros = make_uint4(0, 0, 0, 0);
        int32_t choices[MB_FEW_SUM_TERMS];
        float weights[MB_FEW_SUM_TERMS];
        uint4 terms[MB_FEW_SUM_TERMS];
        const uint4 residual = *(const uint4 *)((const uint16_t *)sum->residual + at);
        /* Loads without a branch: a branch would wait for the load before it. */
#pragma unroll
        for (int k = 0; k < MB_FEW_SUM_TERMS; k++) {
            const int32_t choice = row * sum->top_k + min(k, sum->top_k - 1);
            choices[k] = s->choices[choice];
            weights[k] = choices[k] >= 0 ? s->choice_weights[choice] : 0;
            terms[k] = *(const uint4 *)(y + (int64_t)max(choices[k], 0) * p->k_size);
        }
        float total[8] = {};
        add_term(total, is_inside ? residual : zeros, p->is_f16, 1);
#pragma unroll
        for (int k = 0; k < MB_FEW_SUM_TERMS; k++)
            if (k < sum->top_k)
                add_term(total, is_inside && choices[k] >= 0 ? terms[k] : zeros, p->is_f16, weights[k]);
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            words[j] = pack(total[2 * j], total[2 * j + 1], p->is_f16);
        const uint4 packed = make_uint4(words[0], words[1], words[2], words[3]);
        s->sums[i * 32 + (int32_t)threadIdx.x % 32] = packed;
        if (i % (int32_t)gridDim.x == (int32_t)blockIdx.x && is_inside)
            *(uint4 *)((uint16_t *)sum->out + at) = packed;
    }
    mb_named_barrier_sync(SCALES_BARRIER, 32 * WARPS_OF_X);
}

/* By all warps that norm, before the kernels in front have ended. */
static __device__ __forceinline__ void copy_norm_weight(const few_params *p, const few_shared *s, int warp) {
    for (int32_t piece = warp; piece < p->plan.n_pieces; piece += WARPS_OF_X)
        s->norm_weight[piece * 32 + (int32_t)threadIdx.x % 32] =
            load_eight(p->norm_weight, first_column_of(piece), p->k_size);
    mb_named_barrier_sync(SCALES_BARRIER, 32 * WARPS_OF_X);
}

/* 1 / rms of a row, in every lane. (Types are known at run time here, so of norm_row.cuh this is only the
 * tree.) */
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
            widen(packed[i], p->is_f16, v);
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum[j] = fmaf(v[j], v[j], sum[j]);
        }
    }
    return mb_row_scale(sum, p->k_size, p->eps);
}

/* x / rms is rounded, then the product with the weight. */
static __device__ __forceinline__ uint4 norm_eight(const few_params *p, uint4 packed, float scale,
                                                   uint4 weight) {
    float v[8], w[8];
    uint32_t normed[4];
    widen(packed, p->is_f16, v);
    widen(weight, p->norm_is_f16, w);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float pair[2];
        unpack(pack(v[2 * i] * scale, v[2 * i + 1] * scale, p->is_f16), p->is_f16, pair);
        normed[i] = pack(pair[0] * w[2 * i], pair[1] * w[2 * i + 1], p->is_f16);
    }
    return make_uint4(normed[0], normed[1], normed[2], normed[3]);
}

/* Eight values of a row to their place, swizzled as TMA does. */
template <int type, int n>
static __device__ __forceinline__ void put_eight(const few_params *p, const few_shared *s, int32_t row,
                                                 int32_t piece, uint4 packed) {
    const int32_t column = first_column_of(piece), step = column / k_step<type>;
    const int in_step = column % k_step<type>;
    unsigned char *to = s->x + (step * n + row) * STEP_BYTES;
    if constexpr (type == MB_WGMMA_E4M3) {
        float v[8];
        widen(packed, p->is_f16, v);
        const float largest = largest_of_unit(v), scale = scale_of_unit(largest);
        if (step >= p->plan.n_steps)
            return;
        *(uint2 *)(to + (in_step / 16 ^ row % 8) * 16 + in_step % 16) =
            divide_to_e4m3(v, scale, is_tame(scale, largest));
        if (in_step == 0)
            s->x_scale[step * n + row] = scale;
    } else if (step < p->plan.n_steps)
        *(uint4 *)(to + (in_step / 8 ^ row % 8) * 16) = packed;
}

template <int type, int n>
static __device__ __forceinline__ void prepare_x(const few_params *p, const few_shared *s, int warp) {
    enum { AT_ONCE = 4 };
    const mb_few_plan *plan = &p->plan;
    const int32_t n_warps = plan->row_warps, part = warp % n_warps;
#pragma unroll 1
    for (int32_t row = warp / n_warps; row < p->n_tokens; row += WARPS_OF_X / n_warps) {
        const int64_t source = p->rows ? p->rows[row] : row;
        const void *x = plan->sum_offset ? (const void *)(s->sums + row * plan->n_pieces * 32)
                                         : (const uint16_t *)p->x_16bit + source * p->k_size;
        const float scale = plan->norms ? inverse_rms(p, x) : 1;
#pragma unroll 1
        for (int32_t first = part; first < plan->n_pieces; first += AT_ONCE * n_warps) {
            uint4 packed[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                packed[i] = load_eight(x, first_column_of(first + i * n_warps), p->k_size);
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const int32_t piece = first + i * n_warps;
                if (piece >= plan->n_pieces)
                    break;
                if (plan->norms)
                    packed[i] = norm_eight(p, packed[i], scale,
                                           s->norm_weight[piece * 32 + (int32_t)threadIdx.x % 32]);
                put_eight<type, n>(p, s, row, piece, packed[i]);
            }
        }
    }
    mb_fence_async_shared();
}

#endif
