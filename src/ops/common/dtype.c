#include "ops/common/dtype.h"

size_t mb_dtype_bytes(mb_dtype dtype) {
    switch (dtype) {
    case MB_F32:
        return 4;
    case MB_BF16:
    case MB_F16:
        return 2;
    case MB_F8_E4M3:
        return 1;
    }
    return 0;
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
    }
}
