/*
 * sums_sm90.cu - the backward's kernels that are no GEMM.
 *
 *   row weights    a thread a choice
 *   dweights       a warp a token: each lane has 8 of 256 columns of d_out, and multiplies them with the
 *                  biases of up to eight of the token's experts, so d_out is read once for eight choices.
 *                  Then lane k adds choice k's parts
 *   bias gradients a CTA an expert and 64 columns: eight lanes have the 128 bytes of a row. So an expert
 *                  that has all rows is still read by as many CTAs as it has pieces of 64 columns
 */
#include "ops/moe/backward/sums.h"

#include "ops/common/element.cuh"
#include "ops/common/packed.cuh"
#include "ops/hopper/launch.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, PACK = 8 /* columns in 16 bytes */ };

/* A grid has 2^31 - 1 CTAs at most. */
static mb_status ctas_for(const char *op, int64_t n_items, int64_t items_per_cta, unsigned *n_ctas) {
    const int64_t n = (n_items + items_per_cta - 1) / items_per_cta;
    if (n > INT32_MAX)
        return mb_fail(MB_ERR_ARGUMENT, "%s: %lld CTAs are more than one launch can take", op, (long long)n);
    *n_ctas = (unsigned)n;
    return MB_OK;
}

/* ---- Row weights --------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS)
    row_weights(const __grid_constant__ mb_moe_row_weights_args args) {
    mb_grid_launch_dependents();
    mb_grid_wait();
    const int64_t choice = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (choice >= args.n_choices)
        return;
    const int32_t row = args.token_row[choice];
    args.ones[choice] = 1;
    if (row >= 0)
        args.row_weight[row] = args.weights[choice];
    else if (args.dweights)
        args.dweights[choice] = 0;
}

extern "C" mb_status mb_moe_row_weights_sm90(const mb_moe_row_weights_args *args, mb_stream stream) {
    unsigned n_ctas = 0;
    MB_TRY(ctas_for("moe_row_weights", args->n_choices, THREADS, &n_ctas));
    return n_ctas ? mb_launch("moe_row_weights", row_weights, dim3(n_ctas), THREADS, 0, stream, args) : MB_OK;
}

/* ---- dweights ------------------------------------------------------------------------------------------ */

enum { CHOICES = 8 }; /* that share a read of d_out */

/* This lane's part of bias2[e] . d_out[t] for the choices first_choice .. + 7 of a token. */
template <int dtype>
static __device__ __forceinline__ void multiply_biases(const mb_moe_dweights_args *args, int64_t token,
                                                       const int64_t (&expert)[CHOICES],
                                                       float (&sum)[CHOICES]) {
    const uint16_t *d_out = (const uint16_t *)args->d_out + token * args->hidden;
    const uint16_t *bias = (const uint16_t *)args->bias2;
    for (int32_t column = threadIdx.x % 32 * PACK; column < args->hidden; column += 32 * PACK) {
        float d[PACK];
        mb_unpack<dtype>(*(const uint4 *)(d_out + column), d);
#pragma unroll
        for (int k = 0; k < CHOICES; k++) {
            if (expert[k] < 0)
                continue;
            /* Biases are aligned as their type, no more. */
            const uint16_t *from = bias + expert[k] * args->hidden + column;
            float b[PACK];
            if ((uintptr_t)bias % 16 == 0)
                mb_unpack<dtype>(*(const uint4 *)from, b);
            else
#pragma unroll
                for (int i = 0; i < PACK; i++)
                    b[i] = mb_element_load((mb_dtype)dtype, from, i);
#pragma unroll
            for (int i = 0; i < PACK; i++)
                sum[k] = fmaf(d[i], b[i], sum[k]);
        }
    }
}

template <int dtype>
static __global__ void __launch_bounds__(THREADS)
    dweights(const __grid_constant__ mb_moe_dweights_args args) {
    mb_grid_launch_dependents();
    mb_grid_wait();
    const int64_t token = blockIdx.x * (int64_t)WARPS + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (token >= args.n_tokens)
        return;
    for (int32_t first = 0; first < args.top_k; first += CHOICES) {
        const int64_t choices = token * args.top_k + first;
        float of_bias[CHOICES] = {};
        if (args.bias2) {
            int64_t expert[CHOICES];
#pragma unroll
            for (int k = 0; k < CHOICES; k++) {
                const int is_there = first + k < args.top_k && args.token_row[choices + k] >= 0;
                expert[k] = is_there ? args.ids[choices + k] - args.first_expert : -1;
            }
            multiply_biases<dtype>(&args, token, expert, of_bias);
        }
        float mine = 0;
#pragma unroll
        for (int k = 0; k < CHOICES; k++) {
            const float sum = mb_warp_sum(of_bias[k]);
            mine = lane == k ? sum : mine;
        }
        if (lane >= CHOICES || first + lane >= args.top_k)
            continue;
        const int32_t row = args.token_row[choices + lane];
        if (row < 0)
            continue;
        float sum = 0;
        for (int32_t part = 0; part < args.n_parts; part++)
            sum += args.dot[part * args.n_rows + row];
        args.dweights[choices + lane] = sum + mine;
    }
}

extern "C" mb_status mb_moe_dweights_sm90(const mb_moe_dweights_args *args, mb_stream stream) {
    unsigned n_ctas = 0;
    MB_TRY(ctas_for("moe_dweights", args->n_tokens, WARPS, &n_ctas));
    if (n_ctas == 0)
        return MB_OK;
    return mb_launch("moe_dweights", args->dtype == MB_BF16 ? dweights<MB_BF16> : dweights<MB_F16>,
                     dim3(n_ctas), THREADS, 0, stream, args);
}

/* ---- Gradients of biases ------------------------------------------------------------------------------- */

enum {
    LANES_PER_ROW = 8,
    COLUMNS = LANES_PER_ROW * PACK,
    ROWS = THREADS / LANES_PER_ROW, /* that the CTA reads at a time */
    AT_ONCE = 4,                    /* loads of a thread that are under way together */
};

/* The thread's eight columns of its rows: first_row, first_row + ROWS, ... */
template <int dtype>
static __device__ __forceinline__ void add_rows(const mb_moe_bias_gradient_args *args, int32_t first_row,
                                                int32_t end, int32_t column, float (&sum)[PACK]) {
    const uint16_t *a = (const uint16_t *)args->a + column;
    for (int32_t row = first_row; row < end; row += AT_ONCE * ROWS) {
        uint4 values[AT_ONCE];
        float scale[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int32_t r = row + i * ROWS;
            values[i] = make_uint4(0, 0, 0, 0);
            scale[i] = 1;
            if (r < end) {
                const int64_t source = args->index ? args->index[r] : r;
                values[i] = *(const uint4 *)(a + source * args->width);
                if (args->scale)
                    scale[i] = args->scale[r];
            }
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            float v[PACK];
            mb_unpack<dtype>(values[i], v);
#pragma unroll
            for (int c = 0; c < PACK; c++)
                sum[c] = fmaf(scale[i], v[c], sum[c]);
        }
    }
}

template <int dtype>
static __global__ void __launch_bounds__(THREADS)
    bias_gradient(const __grid_constant__ mb_moe_bias_gradient_args args) {
    __shared__ float sums[WARPS][COLUMNS];
    mb_grid_launch_dependents();
    mb_grid_wait();
    const int32_t pieces = (args.width + COLUMNS - 1) / COLUMNS;
    const int32_t expert = blockIdx.x / pieces, first_column = blockIdx.x % pieces * COLUMNS;
    const int32_t begin = args.offsets[expert], end = args.offsets[expert + 1];
    if (begin == end && args.accumulate)
        return;
    const int32_t column = first_column + threadIdx.x % LANES_PER_ROW * PACK;
    float sum[PACK] = {};
    if (column < args.width)
        add_rows<dtype>(&args, begin + threadIdx.x / LANES_PER_ROW, end, column, sum);
#pragma unroll
    for (int c = 0; c < PACK; c++) { /* the warp's four rows */
        sum[c] += __shfl_xor_sync(0xffffffff, sum[c], 2 * LANES_PER_ROW);
        sum[c] += __shfl_xor_sync(0xffffffff, sum[c], LANES_PER_ROW);
    }
    if (threadIdx.x % 32 < LANES_PER_ROW)
#pragma unroll
        for (int c = 0; c < PACK; c++)
            sums[threadIdx.x / 32][threadIdx.x % 32 * PACK + c] = sum[c];
    __syncthreads();
    if (threadIdx.x >= COLUMNS || first_column + (int32_t)threadIdx.x >= args.width)
        return;
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++)
        total += sums[warp][threadIdx.x];
    const int64_t at = (int64_t)expert * args.width + first_column + threadIdx.x;
    if (args.accumulate)
        total += mb_element_load(args.out_dtype, args.out, at);
    mb_element_store(args.out_dtype, args.out, at, total);
}

extern "C" mb_status mb_moe_bias_gradient_sm90(const mb_moe_bias_gradient_args *args, mb_stream stream) {
    const int64_t pieces = (args->width + COLUMNS - 1) / COLUMNS;
    unsigned n_ctas = 0;
    MB_TRY(ctas_for("moe_bias_gradient", args->n_experts * pieces, 1, &n_ctas));
    return mb_launch("moe_bias_gradient",
                     args->dtype == MB_BF16 ? bias_gradient<MB_BF16> : bias_gradient<MB_F16>, dim3(n_ctas),
                     THREADS, 0, stream, args);
}
