/*
 * element.cuh - single elements of arrays whose type is an mb_dtype, as fp32; and sums over the threads of a
 * CTA. For kernels that are bound by memory or seldom run; with a dtype that is known when the kernel is
 * compiled the switch disappears.
 */
#ifndef MB_OPS_COMMON_ELEMENT_CUH
#define MB_OPS_COMMON_ELEMENT_CUH

#include "moebius/ops.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

static __device__ __forceinline__ float mb_element_load(mb_dtype dtype, const void *array, int64_t i) {
    switch (dtype) {
    case MB_BF16:
        return __bfloat162float(((const __nv_bfloat16 *)array)[i]);
    case MB_F16:
        return __half2float(((const __half *)array)[i]);
    case MB_F8_E4M3: {
        __nv_fp8_e4m3 value;
        value.__x = ((const __nv_fp8_storage_t *)array)[i];
        return (float)value;
    }
    default:
        return ((const float *)array)[i];
    }
}

/* Rounded to nearest, ties to even. dtype is one of activations: fp32, bf16, fp16. */
static __device__ __forceinline__ void mb_element_store(mb_dtype dtype, void *array, int64_t i, float value) {
    if (dtype == MB_BF16)
        ((__nv_bfloat16 *)array)[i] = __float2bfloat16_rn(value);
    else if (dtype == MB_F16)
        ((__half *)array)[i] = __float2half_rn(value);
    else
        ((float *)array)[i] = value;
}

static __device__ __forceinline__ float mb_element_round(mb_dtype dtype, float value) {
    if (dtype == MB_BF16)
        return __bfloat162float(__float2bfloat16_rn(value));
    if (dtype == MB_F16)
        return __half2float(__float2half_rn(value));
    return value;
}

/* Element (row, col) of the first matrix of a weight, its scale applied. */
static __device__ __forceinline__ float mb_element_of_weight(const mb_weight *weight, int64_t row,
                                                             int64_t col) {
    float value = mb_element_load(weight->dtype, weight->data, row * weight->cols + col);
    if (!weight->scale)
        return value;
    const int64_t i_scale =
        weight->scale_rows
            ? row / weight->scale_rows * ((weight->cols + MB_F8_BLOCK - 1) / MB_F8_BLOCK) + col / MB_F8_BLOCK
            : 0;
    return value * ((const float *)weight->scale)[i_scale];
}

/* The sum and the maximum over the lanes of a warp, each by one fixed tree, in every lane. */
template <typename number> static __device__ __forceinline__ number mb_warp_sum(number value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xffffffff, value, distance);
    return value;
}

static __device__ __forceinline__ float mb_warp_max(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, distance));
    return value;
}

/* The sum over the n_threads of a CTA, in one fixed order, in every thread. scratch: shared, one a warp. All
 * threads call it; they may call it again at once. */
template <int n_threads, typename number>
static __device__ __forceinline__ number mb_cta_sum(number value, number *scratch) {
    value = mb_warp_sum(value);
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = value;
    __syncthreads();
    number sum = 0;
#pragma unroll
    for (int warp = 0; warp < n_threads / 32; warp++)
        sum += scratch[warp];
    __syncthreads();
    return sum;
}

/* The maximum, likewise; a NaN is passed over unless all are. */
template <int n_threads> static __device__ __forceinline__ float mb_cta_max(float value, float *scratch) {
    value = mb_warp_max(value);
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = value;
    __syncthreads();
    float maximum = scratch[0];
#pragma unroll
    for (int warp = 1; warp < n_threads / 32; warp++)
        maximum = fmaxf(maximum, scratch[warp]);
    __syncthreads();
    return maximum;
}

#endif
