/*
 * router_parts.cuh - factors of fp32 quality as sums of bf16 parts, and their products on the tensor cores.
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

/* sum += A B: A 16 x 16 (lane l: rows l / 4 and + 8, columns 2 (l % 4) and + 8), B 8 x 16 likewise. */
static __device__ __forceinline__ void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                           uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Rows of 128 bytes, 16-byte chunk c of row r at c ^ (r % 8). */
static __device__ __forceinline__ uint32_t chunk_offset(int r, int c) {
    return (uint32_t)(r * 128 + (c ^ (r % 8)) * 16);
}

/* Four 8 x 8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8. */
static __device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t from_shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from_shared)
                 : "memory");
}

#endif
