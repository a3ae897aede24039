/* weight_quantize.h - rows of a checkpoint's matrix become fp8 with a scale for each block of 128x128. */
#ifndef MB_MODEL_WEIGHT_QUANTIZE_H
#define MB_MODEL_WEIGHT_QUANTIZE_H

#include "model/weights/weight_plan.h"

/*
 * Reads rows [first_row, first_row + n_rows) of an MB_PART_QUANTIZE part and writes their fp8 values to
 * `values` [n_rows, columns of the part] and to `scales` a row of scales for each scale_rows of them.
 *
 * A block's scale is its largest absolute value / 448, or 1 when the block is all zeros or its values are too
 * small for a scale; a value is divided by the scale and rounded to nearest. Blocks lie in the matrix as the
 * file has it, and count with all their rows and columns: a share of a matrix gets the bytes that the whole
 * matrix would get. Source: the layout and rounding of Qwen's and DeepSeek-V3's FP8 checkpoints.
 *
 * MB_ERR_FORMAT: a value is infinite or NaN. Any thread may call.
 */
mb_status mb_weight_quantize(const mb_checkpoint *checkpoint, const mb_weight_part *part, int64_t first_row,
                             int64_t n_rows, void *values, float *scales);

#endif
