/*
 * epilogue.cuh - what becomes of a finished sum: scale, bias, activation, gate times up, routing weight,
 * rounding; and where it goes, to staging (staging.cuh) or, fp32, to memory.
 */
#ifndef MB_OPS_MOE_EXPERTS_EPILOGUE_CUH
#define MB_OPS_MOE_EXPERTS_EPILOGUE_CUH

#include "ops/hopper/math.cuh"
#include "ops/moe/experts/staging.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

static __device__ __forceinline__ float bias_at(const experts_gemm *g, int64_t i) {
    if (g->bias_dtype == MB_BF16)
        return __bfloat162float(((const __nv_bfloat16 *)g->bias)[i]);
    if (g->bias_dtype == MB_F16)
        return __half2float(((const __half *)g->bias)[i]);
    return ((const float *)g->bias)[i];
}

/* Infinities and NaN too give what PyTorch gives. A gated activation squares nothing. */
template <int gated>
static __device__ __forceinline__ float activate(const activation_shape *shape, float any) {
    const float v = mb_max_nan(any, shape->floor);
    const float exponent = v * (shape->linear + shape->cubic * (v * v));
    const float activated = v * mb_reciprocal(1.0f + mb_exp2(-exponent));
    return gated ? activated : activated * (shape->squared ? v : 1.0f);
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
static __device__ __forceinline__ float2 row_weights(const experts_gemm *g, const item *work, int token) {
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
static __device__ __forceinline__ void store_f32(const experts_gemm *g, const item *work, int32_t output,
                                                 int token, float a, float b) {
    float *out = (float *)g->out + (int64_t)(work->first_row + token) * g->width + output;
    if (output < g->width && token < work->n_rows)
        out[0] = a;
    if (output < g->width && token + 1 < work->n_rows)
        out[g->width] = b;
}

/* A thread's rows of a row block: lane / 4 and + 8 of its warp's 16 weight rows. Gated, the first is the gate
 * and the second the up of one output. */
typedef struct thread_rows {
    int32_t output;            /* of the tile: the first row's */
    int32_t low, high, n_rows; /* rows of the matrix; it may end at any multiple of 8 */
} thread_rows;

static __device__ __forceinline__ thread_rows rows_of(const experts_gemm *g, int32_t first_output,
                                                      int row_block) {
    const int warp = threadIdx.x % WARPGROUP / 32, lane = threadIdx.x % 32;
    thread_rows rows;
    rows.output = g->gated ? row_block * 32 + warp * 8 + lane / 4 : row_block * 64 + warp * 16 + lane / 4;
    rows.low = first_output + rows.output;
    rows.high = g->gated ? rows.low + g->width : rows.low + 8;
    rows.n_rows = g->gated ? 2 * g->width : g->width;
    return rows;
}

/* The usual epilogues have code of their own, without branches: an unrolled loop with branches for
 * everything took 20 us a large tile, all of it fetching instructions. */
enum epilogue_mode {
    EMIT_GATED,     /* gate times up, not weighted; to staging, in the tf32 kind to memory */
    EMIT_PLAIN,     /* neither activated nor weighted; likewise */
    EMIT_ACTIVATED, /* activated, not gated, not weighted; likewise */
    EMIT_ANY,       /* everything else: weighted, or fp32 results of other kinds */
    EMIT_RESIDUAL,  /* plain, plus a residual of 16 bits; to staging */
    EMIT_F32,       /* plain, plus a residual of fp32 if there is one; to memory */
    EMIT_GATES,     /* of a gated tile the gates as they are, or the ups: p; to staging */
    EMIT_UPS,
};

/* out[i] may be residual[i]. */
static __device__ __forceinline__ void store_sum_f32(const experts_gemm *g, const item *work, int32_t output,
                                                     int token, float a, float b) {
    const int64_t i = (int64_t)(work->first_row + token) * g->width + output;
    const float *residual = (const float *)g->residual;
    if (residual && output < g->width && token < work->n_rows)
        a += residual[i];
    if (residual && output < g->width && token + 1 < work->n_rows)
        b += residual[i + g->width];
    store_f32(g, work, output, token, a, b);
}

template <int kind> static __device__ __forceinline__ float2 unpack_two(uint32_t two, int is_f16) {
    if (kind == KIND_F16 || (kind != KIND_BF16 && is_f16))
        return __half22float2(*(const __half2 *)&two);
    return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
}

/* Bias, activation, routing weight and residual of a row block, then into staging (or, fp32, to memory). A
 * thread's accumulators are of one output and many tokens, while stores want many outputs of one token:
 * stmatrix transposes. */
template <int kind, int n, int mode>
static __device__ __forceinline__ void emit(const experts_gemm *g, const item *work, staging_area staging,
                                            staging_area residual, int32_t first_output, int row_block,
                                            float (&sum)[n / 2]) {
    const int lane = threadIdx.x % 32;
    const int any = mode == EMIT_ANY;
    const int gated = any ? g->gated : mode == EMIT_GATED || mode == EMIT_GATES || mode == EMIT_UPS,
              activated = any ? g->activated : mode == EMIT_GATED || mode == EMIT_ACTIVATED;
    const int to_f32 = kind == KIND_TF32 || (any && g->store == STORE_F32), weighted = any && g->row_weight;
    const thread_rows rows = rows_of(g, first_output, row_block);
    float bias_low = 0, bias_high = 0, scale = 1;
    if (g->bias) {
        const int64_t expert_row = (int64_t)work->expert * rows.n_rows;
        bias_low = rows.low < rows.n_rows ? bias_at(g, expert_row + rows.low) : 0;
        bias_high = rows.high < rows.n_rows ? bias_at(g, expert_row + rows.high) : 0;
    }
    if constexpr (kind == KIND_FP8_TENSOR)
        scale = *g->a_scale * g->b_scale[work->expert];
    /* stmatrix: lanes 0 to 7 name the rows of one 8 x 8 matrix, 8 to 15 of a second one */
    const int32_t chunk_output = rows.output - lane / 4 + (gated ? 0 : lane / 8 % 2 * 8);
    const uint32_t to =
        chunk_at(region_at(staging, chunk_output), lane % 8, chunk_output % STAGED_OUTPUTS / 8);
    uint32_t from = 0;
    if constexpr (mode == EMIT_RESIDUAL)
        from = chunk_at(region_at(residual, chunk_output), lane % 8, chunk_output % STAGED_OUTPUTS / 8);
#pragma unroll
    for (int j = 0; j < n / 8; j++) {
        const int token = 8 * j + 2 * (lane % 4);
        float v[4] = {sum[4 * j] * scale + bias_low, sum[4 * j + 1] * scale + bias_low,
                      sum[4 * j + 2] * scale + bias_high, sum[4 * j + 3] * scale + bias_high};
        if (activated) {
            v[0] = activate<mode == EMIT_GATED>(&g->activation, v[0]);
            v[1] = activate<mode == EMIT_GATED>(&g->activation, v[1]);
            if (gated) {
                v[0] *= v[2];
                v[1] *= v[3];
            } else {
                v[2] = activate<mode == EMIT_GATED>(&g->activation, v[2]);
                v[3] = activate<mode == EMIT_GATED>(&g->activation, v[3]);
            }
        }
        if (weighted) {
            const float2 weight = row_weights(g, work, token);
            v[0] *= weight.x;
            v[1] *= weight.y;
            v[2] *= weight.x;
            v[3] *= weight.y;
        }
        if constexpr (mode == EMIT_RESIDUAL) {
            uint32_t two[2];
            mb_load_matrix_transposed_x2(two, from + j * 8 * ROW_BYTES);
            const float2 low = unpack_two<kind>(two[0], g->out_is_f16),
                         high = unpack_two<kind>(two[1], g->out_is_f16);
            v[0] += low.x;
            v[1] += low.y;
            v[2] += high.x;
            v[3] += high.y;
        }
        if constexpr (mode == EMIT_F32) {
            store_sum_f32(g, work, rows.low, token, v[0], v[1]);
            store_sum_f32(g, work, rows.high, token, v[2], v[3]);
        } else if (to_f32) {
            store_f32(g, work, rows.low, token, v[0], v[1]);
            if (!gated)
                store_f32(g, work, rows.high, token, v[2], v[3]);
        } else if constexpr (kind != KIND_TF32) {
            const int first = mode == EMIT_UPS ? 2 : 0;
            const uint32_t low = pack<kind>(v[first], v[first + 1], g->out_is_f16);
            if (gated)
                mb_store_matrix_transposed_x1(to + j * 8 * ROW_BYTES, low);
            else
                mb_store_matrix_transposed_x2(to + j * 8 * ROW_BYTES, low,
                                              pack<kind>(v[2], v[3], g->out_is_f16));
        }
    }
}

#endif
