/*
 * quantize.cuh - 16-bit rows to e4m3. Half a warp takes a unit of 128 columns, 16 bytes a lane, several units
 * in flight.
 */
#ifndef MB_OPS_MOE_QUANTIZE_CUH
#define MB_OPS_MOE_QUANTIZE_CUH

#include "ops/hopper/launch.cuh"
#include "ops/moe/moe_sm90.h"
#include "ops/moe/to_fp8.cuh"

enum { UNIT_COLUMNS = MB_F8_BLOCK, UNITS_AT_ONCE = 4 };

typedef struct quantize_params {
    const void *x;
    void *out;
    float *scale;
    uint32_t n_units;
    uint32_t units_per_row; /* 0: rows are whole units, so that all of x is one row */
    int32_t hidden;
    int32_t per_tensor, is_f16;
} quantize_params;

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
            const float scale = p->per_tensor ? tensor_scale : scale_of_unit(largest);
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
    enum { THREADS_PER_SM = 1024 };
    const unsigned wanted = (params->n_units + n_threads / 16 - 1) / (n_threads / 16);
    const unsigned most = (unsigned)mb_n_processors() * THREADS_PER_SM / n_threads;
    return wanted < most ? wanted : most;
}

#endif
