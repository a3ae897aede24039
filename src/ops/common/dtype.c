#include "ops/common/dtype.h"

#include <math.h>

static const float F8_MAX = 448;

static size_t bits_of(mb_dtype dtype) {
    switch (dtype) {
    case MB_F32:
        return 32;
    case MB_BF16:
    case MB_F16:
        return 16;
    case MB_F8_E4M3:
    case MB_F8_E8M0:
        return 8;
    case MB_F4_E2M1:
        return 4;
    }
    return 0;
}

size_t mb_dtype_bytes(mb_dtype dtype) {
    return bits_of(dtype) / 8;
}

/* cols / 2 is a whole number of bytes of 4-bit elements; an odd element begins one more. */
size_t mb_dtype_row_bytes(mb_dtype dtype, int64_t cols) {
    size_t bits = bits_of(dtype);
    return (size_t)cols / 2 * (bits / 4) + (size_t)cols % 2 * ((bits + 7) / 8);
}

const char *mb_dtype_name(mb_dtype dtype) {
    switch (dtype) {
    case MB_F32:
        return "fp32";
    case MB_BF16:
        return "bf16";
    case MB_F16:
        return "fp16";
    case MB_F8_E4M3:
        return "fp8_e4m3";
    case MB_F8_E8M0:
        return "fp8_e8m0";
    case MB_F4_E2M1:
        return "fp4_e2m1";
    }
    return "unknown dtype";
}

void mb_load_f32(mb_dtype dtype, const void *array, int64_t first, int64_t n, float *values) {
    const uint16_t *halves = (const uint16_t *)array + first;
    const uint8_t *bytes = (const uint8_t *)array + first;
    switch (dtype) {
    case MB_F32:
        memcpy(values, (const float *)array + first, (size_t)n * sizeof *values);
        break;
    case MB_BF16:
        for (int64_t i = 0; i < n; i++)
            values[i] = mb_f32_of_bf16(halves[i]);
        break;
    case MB_F16:
        for (int64_t i = 0; i < n; i++)
            values[i] = mb_f32_of_f16(halves[i]);
        break;
    case MB_F8_E4M3:
        for (int64_t i = 0; i < n; i++)
            values[i] = mb_f32_of_f8(bytes[i]);
        break;
    case MB_F8_E8M0:
        for (int64_t i = 0; i < n; i++)
            values[i] = mb_f32_of_e8m0(bytes[i]);
        break;
    case MB_F4_E2M1: /* refused by mb_weight_check_shape */
        break;
    }
}

void mb_store_f32(mb_dtype dtype, void *array, int64_t first, int64_t n, const float *values) {
    uint16_t *halves = (uint16_t *)array + first;
    uint8_t *bytes = (uint8_t *)array + first;
    switch (dtype) {
    case MB_F32:
        memcpy((float *)array + first, values, (size_t)n * sizeof *values);
        break;
    case MB_BF16:
        for (int64_t i = 0; i < n; i++)
            halves[i] = mb_bf16_of_f32(values[i]);
        break;
    case MB_F16:
        for (int64_t i = 0; i < n; i++)
            halves[i] = mb_f16_of_f32(values[i]);
        break;
    case MB_F8_E4M3:
        for (int64_t i = 0; i < n; i++)
            bytes[i] = mb_f8_of_f32(values[i]);
        break;
    case MB_F8_E8M0:
    case MB_F4_E2M1: /* not types of results */
        break;
    }
}

void mb_load_f8_blocks(const void *array, int64_t first, int64_t n, const float *scale, float *values) {
    mb_load_f32(MB_F8_E4M3, array, first, n, values);
    for (int64_t i = 0; i < n; i++)
        values[i] *= scale[i / MB_F8_BLOCK];
}

void mb_store_f8_blocks(void *array, int64_t first, int64_t n, float *scale, const float *values) {
    uint8_t *bytes = (uint8_t *)array + first;
    for (int64_t begin = 0; begin < n; begin += MB_F8_BLOCK) {
        int64_t end = n - begin < MB_F8_BLOCK ? n : begin + MB_F8_BLOCK;
        float largest = 0;
        for (int64_t i = begin; i < end; i++)
            largest = fmaxf(largest, fabsf(values[i]));
        float of_block = largest / F8_MAX;
        if (of_block == 0) /* all zeros, or too small for a scale */
            of_block = 1;
        scale[begin / MB_F8_BLOCK] = of_block;
        for (int64_t i = begin; i < end; i++)
            bytes[i] = mb_f8_of_f32(values[i] / of_block);
    }
}

void mb_round_f32(mb_dtype dtype, int64_t n, float *values) {
    switch (dtype) {
    case MB_F32:
        break;
    case MB_BF16:
        for (int64_t i = 0; i < n; i++)
            values[i] = mb_f32_of_bf16(mb_bf16_of_f32(values[i]));
        break;
    case MB_F16:
        for (int64_t i = 0; i < n; i++)
            values[i] = mb_f32_of_f16(mb_f16_of_f32(values[i]));
        break;
    case MB_F8_E4M3:
        for (int64_t i = 0; i < n; i++)
            values[i] = mb_f32_of_f8(mb_f8_of_f32(values[i]));
        break;
    case MB_F8_E8M0:
    case MB_F4_E2M1:
        break;
    }
}
