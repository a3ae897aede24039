/*
 * reference.cuh - the MoE layer's arithmetic by naive kernels that sum in fp64 and round nowhere, except that
 * they quantise what the operators quantise when asked to.
 */
#ifndef MB_TESTS_REFERENCE_CUH
#define MB_TESTS_REFERENCE_CUH

#include "values.cuh"

static __device__ inline double warp_sum(double sum) {
    for (int d = 16; d > 0; d /= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, d);
    return sum;
}

/* Row `row` of matrix e times a vector; by a warp. */
static __device__ inline double weight_dot(const mb_weight &w, int64_t e, int64_t row, const float *vector) {
    const float *scale = (const float *)w.scale;
    if (scale)
        scale = w.scale_rows == 0
                    ? scale + e
                    : scale + (e * ((w.rows + w.scale_rows - 1) / w.scale_rows) + row / w.scale_rows) *
                                  ((w.cols + SCALE_BLOCK - 1) / SCALE_BLOCK);
    const int64_t first = (e * w.rows + row) * w.cols;
    double sum = 0;
    for (int64_t i = threadIdx.x % 32; i < w.cols; i += 32) {
        const double factor = scale ? scale[w.scale_rows == 0 ? 0 : i / SCALE_BLOCK] : 1.0f;
        sum += factor * load_value(w.data, first + i, w.dtype) * vector[i];
    }
    return warp_sum(sum);
}

static __device__ inline double value_or_0(const void *values, int64_t i, mb_dtype dtype) {
    return values ? load_value(values, i, dtype) : 0;
}

static __device__ inline double reference_activation(mb_activation activation, double v) {
    switch (activation) {
    case MB_ACT_SWIGLU:
    case MB_ACT_SILU:
        return v / (1.0 + exp(-v));
    case MB_ACT_GEGLU:
    case MB_ACT_GELU:
        return 0.5 * v * (1.0 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    case MB_ACT_RELU2:
        return v > 0 ? v * v : 0;
    case MB_ACT_NONE:
        return v;
    default:
        return v > 0 ? v : 0;
    }
}

/*
 * Rounds to dtype, then to fp8 and back: with scale NULL by one scale for each row and 128 columns (amax /
 * 448; 1 when all are 0), else by scale[0], saturated. A warp for each 128 columns.
 */
static __global__ void quantise_rows(float *rows, int64_t width, mb_dtype dtype, const float *scale) {
    const int64_t first = blockIdx.x * (int64_t)SCALE_BLOCK;
    float *row = rows + blockIdx.y * width;
    float value[SCALE_BLOCK / 32], largest = 0;
    for (int i = 0; i < SCALE_BLOCK / 32; i++) {
        const int64_t column = first + 32 * i + threadIdx.x;
        value[i] = column < width ? rounded(row[column], dtype) : 0;
        largest = fmaxf(largest, fabsf(value[i]));
    }
    for (int d = 16; d > 0; d /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, d));
    const float by = scale ? *scale : largest > 0 ? __fdiv_rn(largest, FP8_LARGEST) : 1.0f;
    for (int i = 0; i < SCALE_BLOCK / 32; i++) {
        const int64_t column = first + 32 * i + threadIdx.x;
        if (column < width)
            row[column] = by * rounded(__fdiv_rn(value[i], by), MB_F8_E4M3);
    }
}

static inline void quantise(float *rows, int64_t n_rows, int64_t width, mb_dtype dtype, const float *scale) {
    quantise_rows<<<dim3((unsigned)n_scale_blocks(width), (unsigned)n_rows), 32>>>(rows, width, dtype, scale);
    CUDA(cudaGetLastError());
}

/* h[s][k][i] of sample s, token s * stride, whose x is x[s]; a warp each. */
static __global__ void reference_h(mb_moe_forward_args f, int64_t stride, int gated, const float *x,
                                   float *h) {
    const int s = blockIdx.y / f.top_k, k = blockIdx.y % f.top_k, i = blockIdx.x * 8 + threadIdx.x / 32;
    const int e = f.ids[s * stride * f.top_k + k] - f.first_expert;
    if (i >= f.intermediate || e < 0 || e >= f.n_local_experts)
        return;
    const float *row = x + (int64_t)s * f.hidden;
    const int64_t bias = e * f.w13.rows + i;
    double value = weight_dot(f.w13, e, i, row) + value_or_0(f.bias13, bias, f.dtype);
    value = reference_activation(f.activation, value);
    if (gated)
        value *= weight_dot(f.w13, e, i + (int64_t)f.intermediate, row) +
                 value_or_0(f.bias13, bias + f.intermediate, f.dtype);
    if (threadIdx.x % 32 == 0)
        h[((int64_t)s * f.top_k + k) * f.intermediate + i] = (float)value;
}

static __global__ void reference_out(mb_moe_forward_args f, int64_t stride, const float *h, float *out) {
    const int s = blockIdx.y, column = blockIdx.x * 8 + threadIdx.x / 32;
    const int64_t token = s * stride;
    if (column >= f.hidden)
        return;
    const int64_t at = token * f.hidden + column;
    double sum = value_or_0(f.residual, at, f.dtype) + value_or_0(f.shared, at, f.dtype);
    for (int k = 0; k < f.top_k; k++) {
        const int e = f.ids[token * f.top_k + k] - f.first_expert;
        if (e < 0 || e >= f.n_local_experts)
            continue;
        const double y = weight_dot(f.w2, e, column, h + ((int64_t)s * f.top_k + k) * f.intermediate) +
                         value_or_0(f.bias2, (int64_t)e * f.hidden + column, f.dtype);
        sum += f.weights[token * f.top_k + k] * y;
    }
    if (threadIdx.x % 32 == 0)
        out[(int64_t)s * f.hidden + column] = (float)sum;
}

/* The layer's output for tokens 0, stride, 2 stride, ...: [n_samples, H] on the host. fp8 weights: quantised
 * says whether x and h are. */
static inline float *reference_forward(const mb_moe_forward_args *f, int n_samples, int64_t stride,
                                       int quantised) {
    const int64_t H = f->hidden, I = f->intermediate, n_h = (int64_t)n_samples * f->top_k;
    float *x = (float *)allocate(sizeof(float) * (size_t)(n_samples * H));
    float *h = (float *)allocate(sizeof(float) * (size_t)(n_h * I));
    float *out = (float *)allocate(sizeof(float) * (size_t)(n_samples * H));
    CUDA(cudaMemset(h, 0, sizeof(float) * (size_t)(n_h * I)));
    widen_rows<<<256, 256>>>(f->x, n_samples, stride, H, f->dtype, x);
    if (quantised)
        quantise(x, n_samples, H, f->dtype, f->x_scale);
    const dim3 h_grid((unsigned)(I + 7) / 8, (unsigned)n_h),
        out_grid((unsigned)(H + 7) / 8, (unsigned)n_samples);
    reference_h<<<h_grid, 256>>>(*f, stride, mb_activation_is_gated(f->activation), x, h);
    if (quantised)
        quantise(h, n_h, I, f->dtype, f->h_scale);
    reference_out<<<out_grid, 256>>>(*f, stride, h, out);
    CUDA(cudaGetLastError());
    float *host = (float *)download(out, sizeof(float) * (size_t)(n_samples * H));
    CUDA(cudaFree(x));
    CUDA(cudaFree(h));
    CUDA(cudaFree(out));
    return host;
}

#endif
