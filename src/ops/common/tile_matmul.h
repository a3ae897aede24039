/*
 * tile_matmul.h - the inner loop of every matrix product on the CPU: a few rows of x times four rows of W.
 *
 * Output (r, c) comes from one sequence of operations that depends on x[r] and W[c] alone, not on the number
 * of rows and columns of the call.
 */
#ifndef MB_OPS_COMMON_TILE_MATMUL_H
#define MB_OPS_COMMON_TILE_MATMUL_H

#include "moebius/ops.h"

enum { MB_TILE_ROWS = 32, MB_TILE_COLS = 4 };

/* dots[r][c] = sum over k of x[r][k] * weight(matrix, first_col + c, k). The rows x[0 .. n_rows) are fp32,
 * zero-padded to whole vectors (mb_pad_lanes). 1 <= n_rows <= MB_TILE_ROWS, 1 <= n_cols <= MB_TILE_COLS. */
void mb_tile_matmul(const float *const *x, int32_t n_rows, const mb_weight *weight, int64_t matrix,
                    int64_t first_col, int32_t n_cols, float dots[MB_TILE_ROWS][MB_TILE_COLS]);

#endif
