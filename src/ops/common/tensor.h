/* tensor.h - argument checks that operators share, and rows of weights widened to fp32. */
#ifndef MB_OPS_COMMON_TENSOR_H
#define MB_OPS_COMMON_TENSOR_H

#include "base/status.h"
#include "moebius/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Returns MB_ERR_ARGUMENT with a sentence from the calling function unless `condition` holds. */
#define MB_REQUIRE(condition, ...)                        \
    do {                                                  \
        if (!(condition))                                 \
            return mb_fail(MB_ERR_ARGUMENT, __VA_ARGS__); \
    } while (0)

/* 1 for the types that activations may have: MB_F32, MB_BF16, MB_F16. */
int mb_dtype_is_activation(mb_dtype dtype);

/* Checks a pointer: NULL, unless it may be, and alignment. `op` and `name` are in the error sentence. */
mb_status mb_array_check(const char *op, const char *name, const void *array, size_t alignment,
                         int may_be_null);
/* The same of a matrix on sm_90, which is read and written 16 bytes at a time. */
mb_status mb_matrix_check_sm90(const char *op, const char *name, const void *matrix, int may_be_null);

/* Checks that the weight has this shape, and a dtype and scales that are supported; without scales_allowed it
 * must have none. `name` begins the error sentence: "gemm: weight". mb_weight_check also asks for data. */
mb_status mb_weight_check_shape(const mb_weight *weight, const char *name, int64_t count, int64_t rows,
                                int64_t cols, int scales_allowed);
mb_status mb_weight_check(const mb_weight *weight, const char *name, int64_t count, int64_t rows,
                          int64_t cols, int scales_allowed);

/* values[i] = weight(matrix, row, first + i) in fp32, scale applied. */
void mb_weight_load(const mb_weight *weight, int64_t matrix, int64_t row, int64_t first, int64_t n,
                    float *values);

#ifdef __cplusplus
}
#endif
#endif
