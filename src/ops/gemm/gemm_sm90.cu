/*
 * gemm_sm90.cu - dense linear layer: the grouped GEMM of one group where its kernels take the types, for few
 * rows of x one launch with its bits (few_sm90.cu); else fp32 multiply-adds for any types.
 *
 * Whether the tensor cores multiply follows from the types and the weight's shape, never from the number of
 * tokens; and each output is one sum along K in one order. So a row's bits do not depend on the batch.
 *
 * A residual is added to the fp32 sums, then rounded once: in the kernels' epilogues; beside fp32 weights
 * by a launch of its own.
 *
 * A weight of fp8 with one scale becomes one with blocks whose scales are all that one: a number for 16384
 * weights, written to the workspace by a small launch.
 */
#include "ops/common/dtype.h"
#include "ops/common/element.cuh"
#include "ops/common/workspace.h"
#include "ops/gemm/few.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/moe_sm90.h"

/* ---- any types: a CTA computes 64 x 64 outputs, a thread 4 x 4 of them */

enum { TILE = 64, K_STEP = 16, N_THREADS = 256, SIDE = 4 };

static __global__ void __launch_bounds__(N_THREADS) gemm_any(mb_gemm_args args) {
    __shared__ float x[K_STEP][TILE + 1], w[K_STEP][TILE + 1]; /* one float more a row: no bank twice */
    mb_grid_wait();
    const int64_t n_rows = args.n_tokens, n_cols = args.weight.rows, k_size = args.weight.cols;
    const int64_t row = (int64_t)blockIdx.y * TILE, col = (int64_t)blockIdx.x * TILE;
    const int my_row = threadIdx.x / (TILE / SIDE), my_col = threadIdx.x % (TILE / SIDE);
    float sums[SIDE][SIDE] = {};
    for (int64_t k = 0; k < k_size; k += K_STEP) {
        for (int i = threadIdx.x; i < TILE * K_STEP; i += N_THREADS) {
            const int r = i / K_STEP, c = i % K_STEP;
            const int in_k = k + c < k_size;
            x[c][r] = in_k && row + r < n_rows
                          ? mb_element_load(args.dtype, args.x, (row + r) * k_size + k + c)
                          : 0;
            w[c][r] = in_k && col + r < n_cols ? mb_element_of_weight(&args.weight, col + r, k + c) : 0;
        }
        __syncthreads();
#pragma unroll
        for (int c = 0; c < K_STEP; c++)
#pragma unroll
            for (int i = 0; i < SIDE; i++)
#pragma unroll
                for (int j = 0; j < SIDE; j++)
                    sums[i][j] =
                        fmaf(x[c][my_row + i * (TILE / SIDE)], w[c][my_col + j * (TILE / SIDE)], sums[i][j]);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < SIDE; i++)
#pragma unroll
        for (int j = 0; j < SIDE; j++) {
            const int64_t r = row + my_row + i * (TILE / SIDE), c = col + my_col + j * (TILE / SIDE);
            if (r >= n_rows || c >= n_cols)
                continue;
            float value = sums[i][j];
            if (args.bias)
                value += mb_element_load(args.bias_dtype, args.bias, c);
            if (args.residual)
                value += mb_element_load(args.out_dtype, args.residual, r * n_cols + c);
            mb_element_store(args.out_dtype, args.out, r * n_cols + c, value);
        }
    mb_grid_launch_dependents();
}

/* ---- sums of the grouped GEMM plus the residual */

typedef struct add_args {
    const float *sums;    /* [n] */
    const void *residual; /* [n] dtype */
    void *out;            /* [n] dtype */
    int64_t n;
    mb_dtype dtype;
} add_args;

static __global__ void __launch_bounds__(N_THREADS) add_residual(add_args args) {
    mb_grid_wait();
    const int64_t i = (int64_t)blockIdx.x * N_THREADS + threadIdx.x;
    if (i < args.n)
        mb_element_store(args.dtype, args.out, i,
                         args.sums[i] + mb_element_load(args.dtype, args.residual, i));
    mb_grid_launch_dependents();
}

/* ---- one scale of a matrix for each of its blocks */

typedef struct spread_args {
    const float *scale; /* [1] */
    float *blocks;      /* [n] */
    int32_t n;
} spread_args;

/* Nothing here lets the next kernel start early: it may read its weight's scales before it waits. That the
 * stores of CTAs that have ended are seen then is what gemm_check's chains observe, not a promise of PTX. */
static __global__ void __launch_bounds__(N_THREADS) spread_scale(spread_args args) {
    mb_grid_wait(); /* the kernels in front may use the workspace */
    const int32_t i = (int32_t)(blockIdx.x * N_THREADS + threadIdx.x);
    if (i < args.n)
        args.blocks[i] = *args.scale;
}

/* ---- host */

/* The tensor cores multiply fp8 by fp8: x is quantised, as layers.h says. */
static int is_quantized(const mb_gemm_args *args) {
    const mb_weight *weight = &args->weight;
    return weight->dtype == MB_F8_E4M3 && weight->scale && weight->scale_rows % 8 == 0 &&
           (args->dtype == MB_BF16 || args->dtype == MB_F16) && weight->rows % 8 == 0 &&
           weight->cols % 16 == 0;
}

/* Columns must be whole pieces of 16 bytes, rows whole groups of eight. */
static int is_grouped(const mb_gemm_args *args) {
    const mb_weight *weight = &args->weight;
    if (is_quantized(args))
        return 1;
    return weight->dtype == args->dtype && (args->out_dtype == args->dtype || args->out_dtype == MB_F32) &&
           !(args->dtype == MB_F32 && args->bias && args->bias_dtype != MB_F32) && weight->rows % 8 == 0 &&
           weight->cols % (16 / (int64_t)mb_dtype_bytes(args->dtype)) == 0;
}

/* Quantised beside a weight with one scale. */
static int has_one_scale(const mb_gemm_args *args) {
    return is_quantized(args) && args->weight.scale_rows == 0;
}

static int64_t n_blocks_of(const mb_weight *weight) {
    return mb_f8_blocks(weight->rows) * mb_f8_blocks(weight->cols);
}

/* The workspace: sums for the residual, x in fp8 and its scales, the weight's scales, x normed, then, for
 * fp32, the grouped GEMM's own. It must do with and without a residual. */
typedef struct layout {
    void *normed; /* [T, K] dtype; beside fp8 weights only for rows that few_sm90.cu quantises */
    float *sums;
    void *x8;
    float *x_scale; /* [T, ceil(K / 128)] */
    float *w_scale; /* [ceil(N / 128), ceil(K / 128)], where the weight has one scale */
    size_t bytes;   /* of these */
} layout;

static layout cut(const mb_gemm_args *args, void *workspace) {
    const size_t n_tokens = (size_t)args->n_tokens, k_size = (size_t)args->weight.cols;
    const size_t n_blocks = (k_size + MB_F8_BLOCK - 1) / MB_F8_BLOCK, is_fp8 = (size_t)is_quantized(args);
    const size_t sizes[4] = {(args->dtype == MB_F32) * n_tokens * (size_t)args->weight.rows * sizeof(float),
                             is_fp8 * n_tokens * k_size, is_fp8 * n_tokens * n_blocks * sizeof(float),
                             (size_t)(has_one_scale(args) * n_blocks_of(&args->weight)) * sizeof(float)};
    layout l = {};
    void *parts[4];
    for (int i = 0; i < 4; i++) {
        parts[i] = workspace ? (char *)workspace + l.bytes : NULL;
        l.bytes += (sizes[i] + 255) / 256 * 256;
    }
    l.sums = (float *)parts[0];
    l.x8 = parts[1];
    l.x_scale = (float *)parts[2];
    l.w_scale = (float *)parts[3];
    l.normed = workspace ? (char *)workspace + l.bytes : NULL;
    const size_t n_normed =
        is_fp8 && n_tokens > MB_FEW_QUANTIZED_TOKENS ? (size_t)MB_FEW_QUANTIZED_TOKENS : n_tokens;
    if (args->norm_weight.data)
        l.bytes += (n_normed * mb_dtype_row_bytes(args->dtype, args->weight.cols) + 255) / 256 * 256;
    return l;
}

static mb_grouped_gemm_args grouped(const mb_gemm_args *args, const layout *l) {
    mb_grouped_gemm_args g = {};
    const int is_fp8 = is_quantized(args);
    g.a = is_fp8 ? l->x8 : args->x;
    g.a_scale = is_fp8 ? l->x_scale : NULL;
    g.b = args->weight;
    g.bias = args->bias;
    g.out = args->residual ? l->sums : args->out;
    g.n_rows = args->n_tokens;
    g.dtype = is_fp8 ? MB_F8_E4M3 : args->dtype;
    g.out_dtype = args->residual ? MB_F32 : args->out_dtype;
    g.bias_dtype = args->bias_dtype;
    g.activation = MB_ACT_NONE;
    g.f32_math = MB_F32_EXACT;
    return g;
}

static mb_status quantize(const mb_gemm_args *args, const layout *l, mb_stream stream) {
    mb_moe_quantize_args q = {};
    q.x = args->x;
    q.out = l->x8;
    q.scale = l->x_scale;
    q.n_tokens = args->n_tokens;
    q.hidden = (int32_t)args->weight.cols;
    q.dtype = args->dtype;
    return mb_moe_quantize_sm90(&q, stream);
}

/* The call whose weight has blocks, in place of one scale, in l->w_scale. Its x is there. */
static mb_gemm_args with_blocks(const mb_gemm_args *args, const layout *l) {
    mb_gemm_args blocks = *args;
    blocks.x_sum = NULL;
    blocks.weight.scale = l->w_scale;
    blocks.weight.scale_rows = blocks.weight.scale_cols = MB_F8_BLOCK;
    return blocks;
}

/* scale: the one. */
static mb_status spread(const mb_weight *blocks, const float *scale, const layout *l, mb_stream stream) {
    const spread_args s = {scale, l->w_scale, (int32_t)n_blocks_of(blocks)};
    return mb_launch("gemm", spread_scale, dim3((unsigned)((s.n + N_THREADS - 1) / N_THREADS)), N_THREADS, 0,
                     stream, &s);
}

int mb_gemm_sm90_wants_x8(mb_dtype dtype, const mb_weight *weight, int64_t n_tokens) {
    mb_gemm_args args = {};
    args.weight = *weight;
    args.dtype = dtype;
    return n_tokens > MB_FEW_TOKENS && is_quantized(&args);
}

mb_status mb_gemm_sm90_workspace(const mb_gemm_args *most, size_t *bytes) {
    *bytes = 0;
    MB_TRY(mb_gemm_check_sizes(most));
    const layout l = cut(most, NULL);
    if (most->dtype == MB_F32 && is_grouped(most) && most->n_tokens > 0) {
        const mb_grouped_gemm_args g = grouped(most, &l);
        MB_TRY(mb_grouped_gemm_sm90_workspace(&g, bytes));
    }
    *bytes += l.bytes;
    return MB_OK;
}

mb_status mb_gemm_sm90(const mb_gemm_args *args, void *workspace, size_t workspace_bytes, mb_stream stream) {
    MB_TRY(mb_gemm_check(args));
    const int64_t n_rows = args->n_tokens, n_cols = args->weight.rows;
    if (n_rows == 0)
        return MB_OK;
    if (args->x8 && !is_quantized(args))
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "gemm: x8 is given, but x is not multiplied in fp8 by this weight");
    size_t needed;
    MB_TRY(mb_gemm_sm90_workspace(args, &needed));
    MB_TRY(mb_workspace_check("gemm", workspace, workspace_bytes, needed));
    layout l = cut(args, workspace);
    const float *const one_scale = has_one_scale(args) ? (const float *)args->weight.scale : NULL;
    mb_gemm_args of_blocks;
    if (one_scale) {
        if (args->x_sum) /* before the scales go to the workspace, where its rows may be */
            MB_TRY(mb_moe_reduce_experts_sm90(args->x_sum, stream));
        of_blocks = with_blocks(args, &l);
        args = &of_blocks;
    }
    mb_few_plan few;
    const int is_few = is_grouped(args) && mb_few_plan_of(args, mb_n_processors(), &few);
    if (args->x_sum && !(is_few && few.sum_offset))
        MB_TRY(mb_moe_reduce_experts_sm90(args->x_sum, stream));
    const int makes_x8 = is_quantized(args) && !args->x8 && !(is_few && few.quantizes);
    mb_gemm_args of_normed;
    if (args->norm_weight.data && !(is_few && few.norms)) {
        mb_rms_norm_args norm = mb_gemm_norm(args, l.normed);
        of_normed = mb_gemm_of_normed(args, l.normed);
        if (makes_x8) {
            norm.out = NULL;
            of_normed.x8 = norm.out8 = l.x8;
            of_normed.x8_scale = norm.out8_scale = l.x_scale;
        }
        MB_TRY(mb_rms_norm_sm90(&norm, stream));
        args = &of_normed;
    }
    if (!is_grouped(args)) {
        const dim3 grid((unsigned)((n_cols + TILE - 1) / TILE), (unsigned)((n_rows + TILE - 1) / TILE));
        return mb_launch("gemm", gemm_any, grid, N_THREADS, 0, stream, args);
    }
    if (args->x8) {
        l.x8 = (void *)args->x8;
        l.x_scale = (float *)args->x8_scale;
    } else if (makes_x8)
        MB_TRY(quantize(args, &l, stream));
    if (one_scale)
        MB_TRY(spread(&args->weight, one_scale, &l, stream));
    if (is_few)
        return mb_few_sm90(args, &few, l.x8, l.x_scale, stream);
    mb_grouped_gemm_args g = grouped(args, &l);
    if (args->dtype != MB_F32) {
        g.out = args->out;
        g.out_dtype = args->out_dtype;
        return mb_dense_gemm_sm90(&g, args->residual, stream);
    }
    MB_TRY(mb_grouped_gemm_sm90(&g, (char *)workspace + l.bytes, workspace_bytes - l.bytes, stream));
    if (!args->residual)
        return MB_OK;
    const add_args add = {l.sums, args->residual, args->out, n_rows * n_cols, args->out_dtype};
    return mb_launch("gemm", add_residual, dim3((unsigned)((add.n + N_THREADS - 1) / N_THREADS)), N_THREADS,
                     0, stream, &add);
}
