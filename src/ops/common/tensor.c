#include "ops/common/tensor.h"

#include "ops/common/dtype.h"

enum { SCALE_COLS = 128 };

int mb_dtype_is_activation(mb_dtype dtype) {
    return dtype == MB_F32 || dtype == MB_BF16 || dtype == MB_F16;
}

mb_status mb_weight_check_shape(const mb_weight *weight, const char *name, int64_t count, int64_t rows,
                                int64_t cols, int scales_allowed) {
    MB_REQUIRE(weight->count == count && weight->rows == rows && weight->cols == cols,
               "%s has shape [%lld, %lld, %lld], expected [%lld, %lld, %lld]", name, (long long)weight->count,
               (long long)weight->rows, (long long)weight->cols, (long long)count, (long long)rows,
               (long long)cols);
    MB_REQUIRE(mb_dtype_bytes(weight->dtype) != 0, "%s.dtype is %d, not an mb_dtype", name,
               (int)weight->dtype);
    if (!weight->scale)
        return MB_OK;
    MB_REQUIRE(scales_allowed, "%s.scale is set, but a weight of %s here has none", name,
               mb_dtype_name(weight->dtype));
    MB_REQUIRE(weight->scale_rows == 0 || (weight->scale_rows > 0 && SCALE_COLS % weight->scale_rows == 0),
               "%s.scale_rows is %d, neither 0 nor a divisor of 128", name, (int)weight->scale_rows);
    return MB_OK;
}

mb_status mb_weight_check(const mb_weight *weight, const char *name, int64_t count, int64_t rows,
                          int64_t cols, int scales_allowed) {
    MB_TRY(mb_weight_check_shape(weight, name, count, rows, cols, scales_allowed));
    MB_REQUIRE(weight->data, "%s.data is NULL", name);
    return MB_OK;
}

void mb_weight_load(const mb_weight *weight, int64_t matrix, int64_t row, int64_t first, int64_t n,
                    float *values) {
    mb_load_f32(weight->dtype, weight->data, (matrix * weight->rows + row) * weight->cols + first, n, values);
    if (!weight->scale)
        return;
    if (weight->scale_rows == 0) {
        for (int64_t i = 0; i < n; i++)
            values[i] *= weight->scale[matrix];
        return;
    }
    int64_t scale_rows = (weight->rows + weight->scale_rows - 1) / weight->scale_rows;
    int64_t scale_cols = (weight->cols + SCALE_COLS - 1) / SCALE_COLS;
    const float *scales = weight->scale + (matrix * scale_rows + row / weight->scale_rows) * scale_cols;
    for (int64_t i = 0; i < n;) {
        int64_t block = (first + i) / SCALE_COLS, end = (block + 1) * SCALE_COLS - first;
        for (end = end < n ? end : n; i < end; i++)
            values[i] *= scales[block];
    }
}
