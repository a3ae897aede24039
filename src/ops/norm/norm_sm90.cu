/*
 * norm_sm90.cu - RMSNorm. The sum of squares is one fixed tree over 256 threads, so a row's bits depend on
 * the row alone. A row of 16-bit elements has a warp, which keeps it in registers: a lane has eight
 * neighbouring elements of every 256, and so the sums of eight of the tree's threads. Other rows have a CTA
 * each.
 *
 * A residual is added in front, in an instantiation of its own: the sum is rounded, written, and normed as the
 * row that was written. Each thread reads what it needs of x and residual before it writes there, so that sum
 * and out may be in their place.
 *
 * fp8: half a warp has the 128 columns of a scale, as to_fp8.cuh wants; of other rows four of the CTA's
 * warps.
 */
#include "ops/common/norm_row.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/moe/to_fp8.cuh"
#include "ops/norm/norm.h"

enum { N_THREADS = 256, N_WARPS = N_THREADS / 32, MOST_PIECES = 16 };

/* What the kernels read of the arguments. Above 128 bytes of parameters the compiler forms addresses in
 * another way, with a tenth more instructions. */
typedef struct norm_params {
    const void *x;
    const int32_t *rows;
    const void *weight;
    void *out;
    uint8_t *out8;
    float *out8_scale;
    int64_t n_rows;
    int32_t hidden;
    float eps;
    mb_dtype weight_dtype;
    const void *residual;
    void *sum;
} norm_params;

/* 256 columns of the row, a value in each thread: all threads call it. largest_of: shared, one a warp. */
static __device__ __forceinline__ void store_fp8(const norm_params *args, int64_t row, int32_t column,
                                                 float value, float *largest_of) {
    constexpr int block_warps = MB_F8_BLOCK / 32;
    const int is_there = column < args->hidden, first_warp = threadIdx.x / MB_F8_BLOCK * block_warps;
    const float largest = mb_warp_max(is_there ? fabsf(value) : 0);
    __syncthreads(); /* all have read what was there */
    if (threadIdx.x % 32 == 0)
        largest_of[threadIdx.x / 32] = largest;
    __syncthreads();
    float of_block = 0;
#pragma unroll
    for (int i = 0; i < block_warps; i++)
        of_block = fmaxf(of_block, largest_of[first_warp + i]);
    if (!is_there)
        return;
    const float scale = scale_of_unit(of_block);
    args->out8[row * args->hidden + column] = (uint8_t)mb_to_e4m3x2(__fdiv_rn(value, scale), 0);
    if (column % MB_F8_BLOCK == 0)
        args->out8_scale[row * ((args->hidden + MB_F8_BLOCK - 1) / MB_F8_BLOCK) + column / MB_F8_BLOCK] =
            scale;
}

/* adds: there is a residual. */
template <int dtype_number, int adds>
static __global__ void __launch_bounds__(N_THREADS) rms_norm(norm_params args) {
    constexpr mb_dtype dtype = (mb_dtype)dtype_number;
    __shared__ float scratch[N_THREADS / 32];
    mb_grid_launch_dependents(); /* the next kernel may ask for its weights */
    mb_grid_wait();
    const int64_t row = blockIdx.x, source = args.rows ? args.rows[row] : row, hidden = args.hidden;
    const void *const normed = adds ? args.sum : args.x; /* a thread reads its own elements of sum */
    float sum = 0;
    for (int32_t i = threadIdx.x; i < args.hidden; i += N_THREADS) {
        float value = mb_element_load(dtype, args.x, source * hidden + i);
        if constexpr (adds) {
            value += mb_element_load(dtype, args.residual, row * hidden + i);
            value = mb_element_round(dtype, value);
            mb_element_store(dtype, args.sum, row * hidden + i, value);
        }
        sum = fmaf(value, value, sum);
    }
    sum = mb_cta_sum<N_THREADS>(sum, scratch);
    const float scale = 1.0f / sqrtf(sum / (float)args.hidden + args.eps);
    for (int32_t first = 0; first < args.hidden; first += N_THREADS) {
        const int32_t i = first + (int32_t)threadIdx.x;
        float value = 0;
        if (i < args.hidden) {
            value = mb_element_load(dtype, normed, source * hidden + i) * scale;
            value = mb_element_round(dtype, value) * mb_element_load(args.weight_dtype, args.weight, i);
            if (args.out)
                mb_element_store(dtype, args.out, row * hidden + i, value);
        }
        if (args.out8)
            store_fp8(&args, row, i, mb_element_round(dtype, value), scratch);
    }
}

/* The lane's pieces of a row become those of the sum. All loads come before the first store. */
template <int dtype, int n_pieces>
static __device__ __forceinline__ void add_residual(const uint4 *residual, uint4 *sum, int lane, int n,
                                                    uint4 (&packed)[n_pieces]) {
    uint4 more[n_pieces];
#pragma unroll
    for (int i = 0; i < n_pieces; i++)
        more[i] = lane + 32 * i < n ? residual[lane + 32 * i] : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < n_pieces; i++) {
        float v[8], r[8];
        mb_unpack<dtype>(packed[i], v);
        mb_unpack<dtype>(more[i], r);
#pragma unroll
        for (int e = 0; e < 8; e++)
            v[e] += r[e];
        packed[i] = mb_pack<dtype>(v);
        if (lane + 32 * i < n)
            sum[lane + 32 * i] = packed[i];
    }
}

/* n_pieces: 16-byte pieces of a row that a lane has at most. to_fp8: there is an out8. */
template <int dtype, int n_pieces, int to_fp8, int adds>
static __global__ void __launch_bounds__(N_THREADS) rms_norm_rows(norm_params args) {
    __shared__ uint4 weight[n_pieces * 32];
    mb_grid_launch_dependents();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n = args.hidden / 8;
    for (int i = threadIdx.x; i < n; i += N_THREADS)
        weight[i] = ((const uint4 *)args.weight)[i];
    mb_grid_wait();
    const int64_t row = (int64_t)blockIdx.x * N_WARPS + warp;
    const int is_row = row < args.n_rows;
    const int64_t source = args.rows && is_row ? args.rows[row] : row;
    const uint4 *from = (const uint4 *)args.x + source * n;
    uint4 packed[n_pieces];
#pragma unroll
    for (int i = 0; i < n_pieces; i++)
        packed[i] = is_row && lane + 32 * i < n ? from[lane + 32 * i] : make_uint4(0, 0, 0, 0);
    if constexpr (adds)
        if (is_row)
            add_residual<dtype>((const uint4 *)args.residual + row * n, (uint4 *)args.sum + row * n, lane, n,
                                packed);
    __syncthreads();
    if (!is_row)
        return;

    float sums[8] = {};
#pragma unroll
    for (int i = 0; i < n_pieces; i++)
        mb_add_squares<dtype>(sums, packed[i]);
    const float scale = mb_row_scale(sums, args.hidden, args.eps);
#pragma unroll
    for (int i = 0; i < n_pieces; i++) {
        const int at = lane + 32 * i, is_there = at < n;
        uint4 normed = make_uint4(0, 0, 0, 0);
        if (is_there) {
            normed = mb_norm_eight<dtype>(packed[i], scale, weight[at]);
            if (!to_fp8 || args.out)
                ((uint4 *)args.out)[row * n + at] = normed;
        }
        if constexpr (to_fp8) {
            float v[8];
            mb_unpack<dtype>(normed, v);
            const float largest = largest_of_unit(v), unit_scale = scale_of_unit(largest);
            if (is_there)
                ((uint2 *)args.out8)[row * n + at] =
                    divide_to_e4m3(v, unit_scale, is_tame(unit_scale, largest));
            if (is_there && lane % 16 == 0)
                args.out8_scale[row * ((n + 15) / 16) + at / 16] = unit_scale;
        }
    }
}

typedef void (*kernel_of_norm)(norm_params params);

template <int dtype, int n_pieces> static kernel_of_norm rows_kernel(int to_fp8, int adds) {
    if (adds)
        return to_fp8 ? rms_norm_rows<dtype, n_pieces, 1, 1> : rms_norm_rows<dtype, n_pieces, 0, 1>;
    return to_fp8 ? rms_norm_rows<dtype, n_pieces, 1, 0> : rms_norm_rows<dtype, n_pieces, 0, 0>;
}

/* NULL: rows that are not moved 16 bytes at a time, or not kept in the registers of a warp. */
static kernel_of_norm pick_rows(const mb_rms_norm_args *args) {
    const uintptr_t addresses = (uintptr_t)args->x | (uintptr_t)args->residual | (uintptr_t)args->sum |
                                (uintptr_t)args->out | (uintptr_t)args->out8 | (uintptr_t)args->weight.data;
    if (args->dtype == MB_F32 || args->weight.dtype != args->dtype || args->hidden % 8 != 0 ||
        args->hidden > MOST_PIECES * 256 || addresses % 16 != 0)
        return NULL;
    const int is_short = args->hidden <= MOST_PIECES / 2 * 256, to_fp8 = args->out8 != NULL,
              adds = args->residual != NULL;
    if (args->dtype == MB_BF16)
        return is_short ? rows_kernel<MB_BF16, MOST_PIECES / 2>(to_fp8, adds)
                        : rows_kernel<MB_BF16, MOST_PIECES>(to_fp8, adds);
    return is_short ? rows_kernel<MB_F16, MOST_PIECES / 2>(to_fp8, adds)
                    : rows_kernel<MB_F16, MOST_PIECES>(to_fp8, adds);
}

/* A CTA a row. */
template <int adds> static kernel_of_norm pick_row(mb_dtype dtype) {
    return dtype == MB_BF16  ? rms_norm<MB_BF16, adds>
           : dtype == MB_F16 ? rms_norm<MB_F16, adds>
                             : rms_norm<MB_F32, adds>;
}

mb_status mb_rms_norm_sm90(const mb_rms_norm_args *args, mb_stream stream) {
    MB_TRY(mb_rms_norm_check(args));
    if (args->n_rows == 0)
        return MB_OK;
    norm_params params = {};
    params.x = args->x;
    params.rows = args->rows;
    params.weight = args->weight.data;
    params.out = args->out;
    params.out8 = (uint8_t *)args->out8;
    params.out8_scale = args->out8_scale;
    params.n_rows = args->n_rows;
    params.hidden = args->hidden;
    params.eps = args->eps;
    params.weight_dtype = args->weight.dtype;
    params.residual = args->residual;
    params.sum = args->sum;
    const kernel_of_norm rows = pick_rows(args);
    if (rows)
        return mb_launch("rms_norm", rows, dim3((unsigned)((args->n_rows + N_WARPS - 1) / N_WARPS)),
                         N_THREADS, 0, stream, &params);
    const kernel_of_norm row = args->residual ? pick_row<1>(args->dtype) : pick_row<0>(args->dtype);
    return mb_launch("rms_norm", row, dim3((unsigned)args->n_rows), N_THREADS, 0, stream, &params);
}
