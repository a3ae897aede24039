#include "model/weights/weight_quantize.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "ops/common/dtype.h"

static const float F8_MAX = 448;

/* The rows of one block, as fp32, with all columns of the matrix. */
typedef struct block_rows {
    char *stored;  /* as in the file */
    float *values; /* [n, cols] */
    float *scales; /* [ceil(cols / 128)] */
    int64_t first, n, cols;
} block_rows;

static void free_rows(block_rows *b) {
    mb_free(b->stored);
    mb_free(b->values);
    mb_free(b->scales);
}

static mb_status allocate_rows(const mb_tensor *tensor, block_rows *b) {
    *b = (block_rows){.cols = mb_tensor_cols(tensor)};
    b->stored = mb_malloc_array(MB_F8_BLOCK, (size_t)mb_tensor_row_bytes(tensor));
    b->values = mb_malloc_array(MB_F8_BLOCK, (size_t)b->cols * sizeof *b->values);
    b->scales = mb_malloc_array((size_t)mb_f8_blocks(b->cols), sizeof *b->scales);
    if (b->stored && b->values && b->scales)
        return MB_OK;
    free_rows(b);
    return mb_fail(MB_ERR_MEMORY, "no memory for %d rows of tensor \"%s\"", MB_F8_BLOCK, tensor->name);
}

/* The largest absolute value of each block of columns becomes its scale. A NaN counts as infinite. */
static void find_scales(block_rows *b) {
    for (int64_t block = 0; block < mb_f8_blocks(b->cols); block++) {
        int64_t first = block * MB_F8_BLOCK,
                end = first + MB_F8_BLOCK < b->cols ? first + MB_F8_BLOCK : b->cols;
        uint32_t largest = 0; /* magnitudes of floats compare as their bits */
        for (int64_t r = 0; r < b->n; r++)
            for (int64_t c = first; c < end; c++) {
                uint32_t magnitude = mb_bits_of_f32(b->values[r * b->cols + c]) & 0x7fffffffu;
                largest = magnitude > largest ? magnitude : largest;
            }
        float scale = mb_f32_of_bits(largest) / F8_MAX;
        b->scales[block] = scale == 0 ? 1 : scale;
    }
}

/* Reads the block of rows that row `row` of the tensor is in. */
static mb_status read_block(const mb_checkpoint *checkpoint, const mb_weight_part *part, int64_t row,
                            block_rows *b) {
    const mb_tensor *tensor = part->tensor;
    int64_t end = part->matrix.first + part->matrix.count;
    uint64_t row_bytes = mb_tensor_row_bytes(tensor);
    b->first = row - (row - part->matrix.first) % MB_F8_BLOCK;
    b->n = end - b->first < MB_F8_BLOCK ? end - b->first : MB_F8_BLOCK;
    MB_TRY(mb_checkpoint_read(checkpoint, tensor, (uint64_t)b->first * row_bytes, b->stored,
                              (size_t)((uint64_t)b->n * row_bytes)));
    mb_load_f32(tensor->dtype, b->stored, 0, b->n * b->cols, b->values);
    find_scales(b);
    for (int64_t i = 0; i < mb_f8_blocks(b->cols); i++)
        if (!isfinite(b->scales[i]))
            return mb_fail(
                MB_ERR_FORMAT,
                "%s: tensor \"%s\" holds a value that is not a finite number and cannot become fp8; "
                "leave the weights as they are, or check the file",
                mb_checkpoint_path(checkpoint, tensor), tensor->name);
    return MB_OK;
}

/* One row of the block, columns of the part. The row's values are used up. */
static void put_row(const mb_weight_part *part, block_rows *b, int64_t row, void *to) {
    float *values = b->values + (row - b->first) * b->cols;
    int64_t end = part->cols.first + part->cols.count;
    for (int64_t first = part->cols.first; first < end; first += MB_F8_BLOCK) {
        float scale = b->scales[first / MB_F8_BLOCK];
        int64_t n = end - first < MB_F8_BLOCK ? end - first : MB_F8_BLOCK;
        for (int64_t c = 0; c < n; c++)
            values[first + c] /= scale;
    }
    mb_store_f32(MB_F8_E4M3, to, 0, part->cols.count, values + part->cols.first);
    memset((char *)to + part->cols.count, 0, (size_t)(part->width - part->cols.count));
}

mb_status mb_weight_quantize(const mb_checkpoint *checkpoint, const mb_weight_part *part, int64_t first_row,
                             int64_t n_rows, void *values, float *scales) {
    size_t row_bytes = (size_t)mb_weight_part_row_bytes(part);
    int64_t n_scales = mb_f8_blocks(part->cols.count);
    block_rows b;
    MB_TRY(allocate_rows(part->tensor, &b));
    mb_status status = MB_OK;
    for (int64_t i = 0; i < n_rows && status == MB_OK; i++) {
        int64_t row = part->rows.first + first_row + i;
        if (i == 0 || row == b.first + b.n)
            status = read_block(checkpoint, part, row, &b);
        if (status != MB_OK)
            break;
        if (i % part->scale_rows == 0)
            memcpy(scales + i / part->scale_rows * n_scales, b.scales + part->cols.first / MB_F8_BLOCK,
                   (size_t)n_scales * sizeof *scales);
        put_row(part, &b, row, (char *)values + (size_t)i * row_bytes);
    }
    free_rows(&b);
    return status;
}
