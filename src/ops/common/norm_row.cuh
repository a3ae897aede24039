/*
 * norm_row.cuh - RMSNorm of a row of 16 bits by a warp, whose lanes have eight neighbouring elements of
 * every 256. Kernels that norm a row share these lines, since a row has the same bits wherever it is
 * normed. (gemm/few_prepare.cuh, whose norm weight may be of another type, shares the tree alone.)
 */
#ifndef MB_OPS_COMMON_NORM_ROW_CUH
#define MB_OPS_COMMON_NORM_ROW_CUH

#include "ops/common/element.cuh"
#include "ops/common/packed.cuh"

/* sums[e] += the square of element e, piece after piece. */
template <int dtype> static __device__ __forceinline__ void mb_add_squares(float (&sums)[8], uint4 packed) {
    float v[8];
    mb_unpack<dtype>(packed, v);
#pragma unroll
    for (int e = 0; e < 8; e++)
        sums[e] = fmaf(v[e], v[e], sums[e]);
}

/* 1 / rms, in every lane. The tree is that of 256 threads, thread i with the columns i, i + 256, ...: a
 * lane has the sums of eight of them, four lanes those of a warp; then the eight warps' sums are added in
 * order. */
static __device__ __forceinline__ float mb_row_scale(float (&sums)[8], int32_t hidden, float eps) {
    const float of_four = mb_four_lanes_sum(sums);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        sum += __shfl_sync(0xffffffff, of_four, 4 * i);
    return 1.0f / sqrtf(sum / (float)hidden + eps);
}

/* x / rms is rounded, then the product with the weight. */
template <int dtype>
static __device__ __forceinline__ uint4 mb_norm_eight(uint4 packed, float scale, uint4 weight) {
    float v[8], w[8];
    mb_unpack<dtype>(packed, v);
    mb_unpack<dtype>(weight, w);
#pragma unroll
    for (int e = 0; e < 8; e++)
        v[e] = mb_element_round((mb_dtype)dtype, v[e] * scale) * w[e];
    return mb_pack<dtype>(v);
}

#endif
