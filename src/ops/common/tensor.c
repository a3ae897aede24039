#include "ops/common/tensor.h"

#include "ops/common/dtype.h"

int mb_dtype_is_activation(mb_dtype dtype) {
    return dtype == MB_F32 || dtype == MB_BF16 || dtype == MB_F16;
}

mb_status mb_array_check(const char *op, const char *name, const void *array, size_t alignment,
                         int may_be_null) {
    MB_REQUIRE(array || may_be_null, "%s: %s is NULL", op, name);
    MB_REQUIRE((uintptr_t)array % alignment == 0, "%s: %s is not aligned to %zu bytes, its type", op, name,
               alignment);
    return MB_OK;
}

mb_status mb_matrix_check_sm90(const char *op, const char *name, const void *matrix, int may_be_null) {
    enum { ALIGNMENT = 16 };
    MB_REQUIRE(matrix || may_be_null, "%s: %s is NULL", op, name);
    MB_REQUIRE((uintptr_t)matrix % ALIGNMENT == 0, "%s: %s is not 16-byte aligned, which sm90 needs", op,
               name);
    return MB_OK;
}

/* One scale a matrix, or blocks of MB_F8_BLOCK columns and a divisor of as many rows. */
static int has_known_blocks(const mb_weight *weight) {
    int32_t rows = weight->scale_rows;
    return (rows == 0 && weight->scale_cols == 0) ||
           (rows > 0 && MB_F8_BLOCK % rows == 0 && weight->scale_cols == MB_F8_BLOCK);
}

static mb_status check_scales(const mb_weight *weight, const char *name) {
    if (weight->global_scale || (weight->scale && weight->scale_dtype != MB_F32))
        return mb_fail(MB_ERR_UNSUPPORTED, "%s has %s, which no operator computes with yet; give fp32 scales",
                       name, weight->global_scale ? "a global_scale" : "scales that are not fp32");
    if (weight->scale && !has_known_blocks(weight))
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "%s.scale_rows is %d and scale_cols %d; operators take 0 and 0 (one scale a matrix), or %d "
            "columns and a divisor of %d rows",
            name, weight->scale_rows, weight->scale_cols, MB_F8_BLOCK, MB_F8_BLOCK);
    return MB_OK;
}

mb_status mb_weight_check_shape(const mb_weight *weight, const char *name, int64_t count, int64_t rows,
                                int64_t cols, int scales_allowed) {
    MB_REQUIRE(weight->count == count && weight->rows == rows && weight->cols == cols,
               "%s has shape [%lld, %lld, %lld], expected [%lld, %lld, %lld]", name, (long long)weight->count,
               (long long)weight->rows, (long long)weight->cols, (long long)count, (long long)rows,
               (long long)cols);
    MB_REQUIRE(mb_dtype_row_bytes(weight->dtype, 1) != 0, "%s.dtype is %d, not an mb_dtype", name,
               (int)weight->dtype);
    if (!mb_dtype_is_activation(weight->dtype) && weight->dtype != MB_F8_E4M3)
        return mb_fail(MB_ERR_UNSUPPORTED, "%s.dtype is %s, which no operator computes with yet", name,
                       mb_dtype_name(weight->dtype));
    MB_REQUIRE(!weight->scale || scales_allowed, "%s.scale is set, but a weight of %s here has none", name,
               mb_dtype_name(weight->dtype));
    MB_REQUIRE(!weight->scale || (weight->scale_rows >= 0 && weight->scale_cols >= 0),
               "%s.scale_rows is %d and scale_cols %d", name, weight->scale_rows, weight->scale_cols);
    return check_scales(weight, name);
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
    const float *all_scales = weight->scale;
    if (weight->scale_rows == 0) {
        for (int64_t i = 0; i < n; i++)
            values[i] *= all_scales[matrix];
        return;
    }
    int64_t n_scale_rows = mb_ceil_div(weight->rows, weight->scale_rows);
    int64_t n_scale_cols = mb_f8_blocks(weight->cols);
    const float *scales = all_scales + (matrix * n_scale_rows + row / weight->scale_rows) * n_scale_cols;
    for (int64_t i = 0; i < n;) {
        int64_t block = (first + i) / MB_F8_BLOCK, end = (block + 1) * MB_F8_BLOCK - first;
        for (end = end < n ? end : n; i < end; i++)
            values[i] *= scales[block];
    }
}
