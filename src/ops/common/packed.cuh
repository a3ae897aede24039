/*
 * packed.cuh - eight elements of 16 bits, which one load brings, as fp32 and back; and the sum that a warp of
 * 32 threads would form by mb_warp_sum, formed by four lanes that have eight of these threads' numbers each.
 */
#ifndef MB_OPS_COMMON_PACKED_CUH
#define MB_OPS_COMMON_PACKED_CUH

#include "moebius/ops.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <int dtype> static __device__ __forceinline__ float2 mb_unpack_pair(uint32_t pair) {
    if (dtype == MB_BF16)
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000));
    __half2 halves;
    memcpy(&halves, &pair, sizeof halves);
    return __half22float2(halves);
}

/* Rounded to nearest, ties to even. */
template <int dtype> static __device__ __forceinline__ uint32_t mb_pack_pair(float low, float high) {
    uint32_t pair;
    if (dtype == MB_BF16) {
        const __nv_bfloat162 values = __floats2bfloat162_rn(low, high);
        memcpy(&pair, &values, sizeof pair);
    } else {
        const __half2 values = __floats2half2_rn(low, high);
        memcpy(&pair, &values, sizeof pair);
    }
    return pair;
}

template <int dtype> static __device__ __forceinline__ void mb_unpack(uint4 packed, float (&v)[8]) {
    const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 two = mb_unpack_pair<dtype>(pairs[i]);
        v[2 * i] = two.x;
        v[2 * i + 1] = two.y;
    }
}

template <int dtype> static __device__ __forceinline__ uint4 mb_pack(const float (&v)[8]) {
    return make_uint4(mb_pack_pair<dtype>(v[0], v[1]), mb_pack_pair<dtype>(v[2], v[3]),
                      mb_pack_pair<dtype>(v[4], v[5]), mb_pack_pair<dtype>(v[6], v[7]));
}

/* Lane l of the four has the numbers of the threads 8 (l % 4) .. 8 (l % 4) + 7. The bits are mb_warp_sum's:
 * its tree adds the threads that are 16, 8, 4, 2 and 1 apart, in this order, and a + b is b + a. */
static __device__ __forceinline__ float mb_four_lanes_sum(float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] += __shfl_xor_sync(0xffffffff, v[i], 2);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] += __shfl_xor_sync(0xffffffff, v[i], 1);
#pragma unroll
    for (int distance = 4; distance > 0; distance /= 2)
#pragma unroll
        for (int i = 0; i < distance; i++)
            v[i] += v[i + distance];
    return v[0];
}

#endif
