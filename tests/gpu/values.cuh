/*
 * values.cuh - random matrices of every dtype, and comparing them. A seed gives the same values in each
 * dtype, but for its rounding.
 */
#ifndef MB_TESTS_VALUES_CUH
#define MB_TESTS_VALUES_CUH

#include "check.cuh"
#include "moebius/ops.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

enum { SCALE_BLOCK = MB_F8_BLOCK };
static const float FP8_LARGEST = 448;

static inline int64_t n_scale_blocks(int64_t n) {
    return (n + SCALE_BLOCK - 1) / SCALE_BLOCK;
}

static __device__ inline float load_value(const void *values, int64_t i, mb_dtype dtype) {
    switch (dtype) {
    case MB_F32:
        return ((const float *)values)[i];
    case MB_BF16:
        return __bfloat162float(((const __nv_bfloat16 *)values)[i]);
    case MB_F16:
        return __half2float(((const __half *)values)[i]);
    default:
        return __half2float(
            __half(__nv_cvt_fp8_to_halfraw(((const __nv_fp8_storage_t *)values)[i], __NV_E4M3)));
    }
}

static __device__ inline void store_value(void *values, int64_t i, mb_dtype dtype, float value) {
    switch (dtype) {
    case MB_F32:
        ((float *)values)[i] = value;
        break;
    case MB_BF16:
        ((__nv_bfloat16 *)values)[i] = __float2bfloat16(value);
        break;
    case MB_F16:
        ((__half *)values)[i] = __float2half(value);
        break;
    default:
        ((__nv_fp8_storage_t *)values)[i] = __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
    }
}

static __device__ inline float rounded(float value, mb_dtype dtype) {
    float place;
    store_value(&place, 0, dtype, value);
    return load_value(&place, 0, dtype);
}

static __device__ inline uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* The sum of four uniform values, mean 0, variance 1, at most 3.47 in size. */
static __device__ inline float random_value(uint64_t seed, uint64_t i) {
    uint64_t z = seed * 0x9e3779b97f4a7c15ull + i * 0xd1342543de82ef95ull + 0x632be59bd9b4e019ull;
    float sum = 0;
    for (int n = 0; n < 2; n++) {
        z = mixed(z);
        sum += (float)(uint32_t)z * 0x1p-32f + (float)(uint32_t)(z >> 32) * 0x1p-32f;
    }
    return (sum - 2.0f) * 1.7320508f;
}

static __global__ void fill_random(void *out, int64_t n, mb_dtype dtype, uint64_t seed, float size) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        store_value(out, i, dtype, size * random_value(seed, i));
}

static __global__ void fill_scales(float *out, int64_t n, uint64_t seed, float size) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const uint64_t z = mixed(mixed(seed * 0x9e3779b97f4a7c15ull + i));
        out[i] = size * exp2f((float)(uint32_t)z * 0x1p-31f - 1.0f);
    }
}

static inline void *random_values(int64_t n, mb_dtype dtype, uint64_t seed, float size) {
    void *out = allocate((size_t)n * mb_dtype_bytes(dtype));
    fill_random<<<1024, 256>>>(out, n, dtype, seed, size);
    CUDA(cudaGetLastError());
    return out;
}

/* Between half of size and twice size, as likely to be above as below. */
static inline float *random_scales(int64_t n, uint64_t seed, float size) {
    float *out = (float *)allocate(sizeof(float) * (size_t)n);
    fill_scales<<<64, 256>>>(out, n, seed, size);
    CUDA(cudaGetLastError());
    return out;
}

static inline float *scalar(float value) {
    float *out = (float *)allocate(sizeof(float));
    CUDA(cudaMemcpy(out, &value, sizeof(float), cudaMemcpyHostToDevice));
    return out;
}

/*
 * Weights of size 1 / sqrt(cols), so that outputs are of the size of inputs. fp8: the bytes reach up to 443
 * of 448, as those of real checkpoints do, and scales spread by a factor of four: one for a matrix where
 * scale_rows is 0, else for scale_rows rows by 128 columns.
 */
static inline mb_weight random_weight(int64_t count, int64_t rows, int64_t cols, mb_dtype dtype,
                                      int32_t scale_rows, uint64_t seed) {
    const float size = 1.0f / sqrtf((float)cols);
    mb_weight w = {};
    w.count = count;
    w.rows = rows;
    w.cols = cols;
    w.dtype = dtype;
    if (dtype != MB_F8_E4M3) {
        w.data = random_values(count * rows * cols, dtype, seed, size);
        return w;
    }
    const int64_t n_scales =
        scale_rows > 0 ? count * ((rows + scale_rows - 1) / scale_rows) * n_scale_blocks(cols) : count;
    w.data = random_values(count * rows * cols, dtype, seed, 128.0f);
    w.scale = random_scales(n_scales, seed + 500, size / 128.0f);
    w.scale_rows = scale_rows;
    w.scale_cols = scale_rows > 0 ? SCALE_BLOCK : 0;
    return w;
}

/* Elements that differ in any bit or are NaN in either. Poison of 0xff bytes is NaN in every dtype. */
static __global__ void count_differences(const void *a, const void *b, int64_t n, mb_dtype dtype,
                                         size_t element_bytes, unsigned long long *out) {
    unsigned long long mine = 0;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        int differs = isnan(load_value(a, i, dtype)) || isnan(load_value(b, i, dtype));
        for (size_t byte = 0; byte < element_bytes; byte++)
            differs |= ((const unsigned char *)a)[i * element_bytes + byte] !=
                       ((const unsigned char *)b)[i * element_bytes + byte];
        mine += differs;
    }
    if (mine)
        atomicAdd(out, mine);
}

static inline double differences(const void *a, const void *b, int64_t n, mb_dtype dtype) {
    unsigned long long *on_device = (unsigned long long *)allocate(sizeof(*on_device)), found = 0;
    CUDA(cudaMemset(on_device, 0, sizeof(*on_device)));
    count_differences<<<1024, 256>>>(a, b, n, dtype, mb_dtype_bytes(dtype), on_device);
    CUDA(cudaMemcpy(&found, on_device, sizeof(found), cudaMemcpyDeviceToHost));
    CUDA(cudaFree(on_device));
    return (double)found;
}

/* values[r][c] as floats on the host, for rows r * stride. */
static __global__ void widen_rows(const void *values, int64_t n_rows, int64_t stride, int64_t width,
                                  mb_dtype dtype, float *out) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n_rows * width;
         i += (int64_t)gridDim.x * blockDim.x)
        out[i] = load_value(values, i / width * stride * width + i % width, dtype);
}

static inline float *download_rows(const void *values, int64_t n_rows, int64_t stride, int64_t width,
                                   mb_dtype dtype) {
    const size_t n_bytes = sizeof(float) * (size_t)(n_rows * width);
    float *wide = (float *)allocate(n_bytes);
    widen_rows<<<256, 256>>>(values, n_rows, stride, width, dtype, wide);
    CUDA(cudaGetLastError());
    float *host = (float *)download(wide, n_bytes);
    CUDA(cudaFree(wide));
    return host;
}

/* 1 - 2xy / (x^2 + y^2), written as (x - y)^2 / (x^2 + y^2), which does not cancel. */
static inline double calc_diff(const float *x, const float *y, int64_t n) {
    double apart = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        apart += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        size += (double)x[i] * x[i] + (double)y[i] * y[i];
    }
    return size == 0 ? apart : apart / size;
}

#endif
