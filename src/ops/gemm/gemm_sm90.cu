/*
 * gemm_sm90.cu - dense linear layer: the grouped GEMM of one group where its kernels take the types, else fp32
 * multiply-adds for any types.
 *
 * Which of the two runs follows from the types and the weight's shape, never from the number of tokens; and
 * each output is one sum along K in one order in both. So a row's bits do not depend on the batch.
 *
 * A residual is added to the fp32 sums of the grouped GEMM by a launch of its own, then rounded once.
 */
#include "ops/common/element.cuh"
#include "ops/common/workspace.h"
#include "ops/gemm/gemm.h"
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

/* ---- host */

/* Columns must be whole pieces of 16 bytes, rows whole groups of eight. fp8 weights would quantise x, which
 * the operator's contract does not say. */
static int is_grouped(const mb_gemm_args *args) {
    const mb_weight *weight = &args->weight;
    return weight->dtype == args->dtype && (args->out_dtype == args->dtype || args->out_dtype == MB_F32) &&
           !(args->dtype == MB_F32 && args->bias && args->bias_dtype != MB_F32) && weight->rows % 8 == 0 &&
           weight->cols % (16 / (int64_t)mb_dtype_bytes(args->dtype)) == 0;
}

static mb_grouped_gemm_args grouped(const mb_gemm_args *args, float *sums) {
    mb_grouped_gemm_args g = {};
    g.a = args->x;
    g.b = args->weight;
    g.bias = args->bias;
    g.out = args->residual ? sums : args->out;
    g.n_rows = args->n_tokens;
    g.dtype = args->dtype;
    g.out_dtype = args->residual ? MB_F32 : args->out_dtype;
    g.bias_dtype = args->bias_dtype;
    g.activation = MB_ACT_NONE;
    g.f32_math = MB_F32_EXACT;
    return g;
}

/* Bytes of the sums, in front of the grouped GEMM's own workspace, which must do with and without a residual. */
static size_t sums_bytes(const mb_gemm_args *args) {
    const size_t n = (size_t)args->n_tokens * (size_t)args->weight.rows;
    return (n * sizeof(float) + 255) / 256 * 256;
}

mb_status mb_gemm_sm90_workspace(const mb_gemm_args *most, size_t *bytes) {
    *bytes = 0;
    MB_TRY(mb_gemm_check_sizes(most));
    if (!is_grouped(most) || most->n_tokens == 0)
        return MB_OK;
    const mb_grouped_gemm_args g = grouped(most, NULL);
    MB_TRY(mb_grouped_gemm_sm90_workspace(&g, bytes));
    *bytes += sums_bytes(most);
    return MB_OK;
}

mb_status mb_gemm_sm90(const mb_gemm_args *args, void *workspace, size_t workspace_bytes, mb_stream stream) {
    MB_TRY(mb_gemm_check(args));
    const int64_t n_rows = args->n_tokens, n_cols = args->weight.rows;
    if (n_rows == 0)
        return MB_OK;
    if (!is_grouped(args)) {
        const dim3 grid((unsigned)((n_cols + TILE - 1) / TILE), (unsigned)((n_rows + TILE - 1) / TILE));
        return mb_launch("gemm", gemm_any, grid, N_THREADS, 0, stream, args);
    }
    const size_t front = sums_bytes(args);
    MB_TRY(mb_workspace_check("gemm", workspace, workspace_bytes, front));
    const mb_grouped_gemm_args g = grouped(args, (float *)workspace);
    MB_TRY(mb_grouped_gemm_sm90(&g, (char *)workspace + front, workspace_bytes - front, stream));
    if (!args->residual)
        return MB_OK;
    const add_args add = {(const float *)workspace, args->residual, args->out, n_rows * n_cols,
                          args->out_dtype};
    return mb_launch("gemm", add_residual, dim3((unsigned)((add.n + N_THREADS - 1) / N_THREADS)), N_THREADS,
                     0, stream, &add);
}
