#include "ops/common/tile_matmul.h"

#include "ops/common/tensor.h"
#include "ops/common/vector.h"

/*
 * Schedule: K is cut into chunks of which four weight rows, widened to fp32, stay in the first-level cache.
 * Every group of ROW_GROUP rows of x then runs over the chunk with its 4 x 4 sums in registers; between
 * chunks the sums rest on the stack. Widening is so shared by up to MB_TILE_ROWS rows.
 */
enum { CHUNK = 512, ROW_GROUP = 4 };

typedef struct panel {
    float values[MB_TILE_COLS][CHUNK];
} panel;

/* sums[r][c] += x[r][k0 + i] * panel[c][i], i < n, for a constant number of rows. */
static inline __attribute__((always_inline)) void accumulate(const float *const *x, int64_t k0, int64_t n,
                                                             const panel *w, mb_f32x16 sums[][MB_TILE_COLS],
                                                             const int rows) {
    mb_f32x16 s[ROW_GROUP][MB_TILE_COLS];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < MB_TILE_COLS; c++)
            s[r][c] = sums[r][c];
    for (int64_t i = 0; i < n; i += MB_LANES) {
        mb_f32x16 columns[MB_TILE_COLS];
        for (int c = 0; c < MB_TILE_COLS; c++)
            columns[c] = *(const mb_f32x16_unaligned *)(w->values[c] + i);
        for (int r = 0; r < rows; r++) {
            mb_f32x16 row = *(const mb_f32x16_unaligned *)(x[r] + k0 + i);
            for (int c = 0; c < MB_TILE_COLS; c++)
                s[r][c] += row * columns[c];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < MB_TILE_COLS; c++)
            sums[r][c] = s[r][c];
}

static void load_panel(const mb_weight *weight, int64_t matrix, int64_t first_col, int32_t n_cols, int64_t k0,
                       int64_t n, panel *w) {
    for (int c = 0; c < MB_TILE_COLS; c++) {
        float *values = w->values[c];
        int64_t n_loaded = c < n_cols ? n : 0; /* columns that do not exist are zeros */
        if (n_loaded > 0)
            mb_weight_load(weight, matrix, first_col + c, k0, n, values);
        memset(values + n_loaded, 0, (size_t)(mb_pad_lanes(n) - n_loaded) * sizeof *values);
    }
}

/* The same chunk of the next four weight rows. With few rows of x the weights come straight from memory, and
 * chunks are too short for the CPU to see the stream by itself. */
static void prefetch_next(const mb_weight *weight, int64_t matrix, int64_t first_col, int64_t k0, int64_t n) {
    enum { CACHE_LINE = 64 };
    size_t row_bytes = mb_dtype_row_bytes(weight->dtype, weight->cols);
    size_t skipped = mb_dtype_row_bytes(weight->dtype, k0), n_bytes = mb_dtype_row_bytes(weight->dtype, n);
    for (int64_t row = first_col + MB_TILE_COLS; row < first_col + 2 * MB_TILE_COLS && row < weight->rows;
         row++) {
        const char *start =
            (const char *)weight->data + (size_t)(matrix * weight->rows + row) * row_bytes + skipped;
        for (size_t i = 0; i < n_bytes; i += CACHE_LINE)
            __builtin_prefetch(start + i);
    }
}

void mb_tile_matmul(const float *const *x, int32_t n_rows, const mb_weight *weight, int64_t matrix,
                    int64_t first_col, int32_t n_cols, float dots[MB_TILE_ROWS][MB_TILE_COLS]) {
    _Alignas(64) panel w;
    mb_f32x16 sums[MB_TILE_ROWS][MB_TILE_COLS];
    memset(sums, 0, (size_t)n_rows * sizeof sums[0]);
    for (int64_t k0 = 0; k0 < weight->cols; k0 += CHUNK) {
        int64_t n = weight->cols - k0 < CHUNK ? weight->cols - k0 : CHUNK;
        if (n_rows <= ROW_GROUP)
            prefetch_next(weight, matrix, first_col, k0, n);
        load_panel(weight, matrix, first_col, n_cols, k0, n, &w);
        int32_t r = 0;
        for (; r + ROW_GROUP <= n_rows; r += ROW_GROUP)
            accumulate(x + r, k0, n, &w, sums + r, ROW_GROUP);
        for (; r < n_rows; r++)
            accumulate(x + r, k0, n, &w, sums + r, 1);
    }
    for (int32_t r = 0; r < n_rows; r++)
        for (int32_t c = 0; c < n_cols; c++)
            dots[r][c] = mb_sum_lanes(&sums[r][c]);
}
