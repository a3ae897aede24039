/*
 * quantize.cuh - 16-bit rows to e4m3. Half a warp takes a unit of 128 columns, 16 bytes a lane, several units
 * in flight. The quotient is IEEE's, rounded once more to e4m3, so that a host gets the same bits.
 */
#ifndef MB_OPS_MOE_QUANTIZE_CUH
#define MB_OPS_MOE_QUANTIZE_CUH

#include "ops/hopper/fp8.cuh"
#include "ops/moe/moe_sm90.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

enum { UNIT_COLUMNS = 128, UNITS_AT_ONCE = 4 };

typedef struct quantize_params {
    const void *x;
    void *out;
    float *scale;
    uint32_t n_units;
    uint32_t units_per_row; /* 0: rows are whole units, so that all of x is one row */
    int32_t hidden;
    int32_t per_tensor, is_f16;
} quantize_params;

static __device__ __forceinline__ void widen(uint4 packed, int is_f16, float (&v)[8]) {
    const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = is_f16 ? __half22float2(*(const __half2 *)&pairs[i])
                                   : __bfloat1622float2(*(const __nv_bfloat162 *)&pairs[i]);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
    }
}

/* The largest size of a unit, eight of whose values this lane holds. */
static __device__ __forceinline__ float largest_of_unit(const float (&v)[8]) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        largest = fmaxf(largest, fabsf(v[i]));
#pragma unroll
    for (int distance = 1; distance < 16; distance *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, distance));
    return largest;
}

/* Both ways to the quotient give IEEE's bits. One step from a rounded reciprocal does for values of 11 bits
 * of mantissa and any scale (all 2^33 pairs were tried), unless something overflows or gets subnormal; the
 * general division takes three times as long as the memory does. */
static __device__ __forceinline__ uint2 divide_to_e4m3(const float (&v)[8], float scale, int is_tame) {
    float q[8];
    if (is_tame) {
        const float reciprocal = __frcp_rn(scale);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float about = v[i] * reciprocal;
            const float excess = __fmaf_rn(about, scale, -v[i]);
            q[i] = __fmaf_rn(-excess, reciprocal, about);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            q[i] = __fdiv_rn(v[i], scale);
    }
    return make_uint2(mb_to_e4m3x2(q[0], q[1]) | mb_to_e4m3x2(q[2], q[3]) << 16,
                      mb_to_e4m3x2(q[4], q[5]) | mb_to_e4m3x2(q[6], q[7]) << 16);
}

/* No quotient of a value that is no larger than `largest` overflows, and the scale is far from the ends of
 * the range. Quotients so small that they lose bits are 0 in e4m3. */
static __device__ __forceinline__ int is_tame(float scale, float largest) {
    return scale > 0x1p-90f && scale < 0x1p90f && largest < 0x1p126f * fminf(scale, 1.0f);
}

/* Element that this lane begins with in a unit; -1 behind the row's or the matrix's end. */
static __device__ __forceinline__ int64_t element_of(const quantize_params *p, uint32_t unit) {
    const uint32_t row = p->units_per_row ? unit / p->units_per_row : 0;
    const int64_t column = (int64_t)(unit - row * p->units_per_row) * UNIT_COLUMNS + threadIdx.x % 16 * 8;
    if (unit >= p->n_units || (p->units_per_row && column >= p->hidden))
        return -1;
    return row * (int64_t)p->hidden + column;
}

/* Warp number `warp` of n_warps that share the work. */
static __device__ __forceinline__ void quantize_units(const quantize_params *p, uint32_t warp,
                                                      uint32_t n_warps) {
    const float tensor_scale = p->per_tensor ? *p->scale : 1.0f;
#pragma unroll 1
    for (uint32_t first = 2 * warp; first < p->n_units; first += UNITS_AT_ONCE * 2 * n_warps) {
        uint4 packed[UNITS_AT_ONCE];
        int64_t element[UNITS_AT_ONCE];
#pragma unroll
        for (int i = 0; i < UNITS_AT_ONCE; i++) {
            element[i] = element_of(p, first + 2 * n_warps * i + threadIdx.x / 16 % 2);
            packed[i] = make_uint4(0, 0, 0, 0);
            if (element[i] >= 0)
                packed[i] = __ldcs((const uint4 *)((const uint16_t *)p->x + element[i]));
        }
#pragma unroll
        for (int i = 0; i < UNITS_AT_ONCE; i++) {
            float v[8];
            widen(packed[i], p->is_f16, v);
            const float largest = largest_of_unit(v);
            const float block_scale = largest > 0 ? __fdiv_rn(largest, 448.0f) : 1.0f;
            const float scale = p->per_tensor ? tensor_scale : block_scale;
            if (element[i] < 0)
                continue;
            *(uint2 *)((uint8_t *)p->out + element[i]) = divide_to_e4m3(v, scale, is_tame(scale, largest));
            if (!p->per_tensor && threadIdx.x % 16 == 0)
                p->scale[first + 2 * n_warps * i + threadIdx.x / 16 % 2] = scale;
        }
    }
}

/* Host side: checks the arguments, and fills params. */
mb_status mb_moe_quantize_prepare(const mb_moe_quantize_args *args, quantize_params *params);

/* How many CTAs of so many threads do the work best: a unit for each half of a warp until the GPU is full. */
static inline unsigned quantize_ctas(const quantize_params *params, unsigned n_threads) {
    enum { FULL_GPU_THREADS = 132 * 1024 };
    const unsigned wanted = (params->n_units + n_threads / 16 - 1) / (n_threads / 16);
    return wanted < FULL_GPU_THREADS / n_threads ? wanted : FULL_GPU_THREADS / n_threads;
}

extern "C" mb_status mb_moe_quantize_sm90(const mb_moe_quantize_args *args, mb_stream stream);

#endif
