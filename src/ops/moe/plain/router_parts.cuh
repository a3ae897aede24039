/*
 * router_parts.cuh - factors of fp32 quality as sums of bf16 parts, whose products the tensor
 * cores (mma.cuh) sum.
 *
 * bf16 is one part, fp16 two, fp32 three (8 bits of mantissa each). The range of bf16 is fp32's, so nothing
 * needs scaling.
 */
#ifndef MB_OPS_MOE_ROUTER_PARTS_CUH
#define MB_OPS_MOE_ROUTER_PARTS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

template <class type> constexpr int parts_of = 3;
template <> constexpr int parts_of<__nv_bfloat16> = 1;
template <> constexpr int parts_of<__half> = 2;

static __device__ __forceinline__ float2 load_pair(const float *from) {
    return *(const float2 *)from;
}
static __device__ __forceinline__ float2 load_pair(const __half *from) {
    return __half22float2(*(const __half2 *)from);
}
static __device__ __forceinline__ float2 load_pair(const __nv_bfloat16 *from) {
    return __bfloat1622float2(*(const __nv_bfloat162 *)from);
}

/* parts[0] + parts[1] + ... = value, largest first. */
template <int n_parts>
static __device__ __forceinline__ void split(float2 value, uint32_t (&parts)[n_parts]) {
#pragma unroll
    for (int i = 0; i < n_parts; i++) {
        const __nv_bfloat162 part = __float22bfloat162_rn(value);
        parts[i] = *(const uint32_t *)&part;
        if (i + 1 < n_parts) {
            const float2 taken = __bfloat1622float2(part);
            value.x -= taken.x;
            value.y -= taken.y;
        }
    }
}

/* Rows of 128 bytes, 16-byte chunk c of row r at c ^ (r % 8). */
static __device__ __forceinline__ uint32_t chunk_offset(int r, int c) {
    return (uint32_t)(r * 128 + (c ^ (r % 8)) * 16);
}

#endif
