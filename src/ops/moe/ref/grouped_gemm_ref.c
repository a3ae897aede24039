#include "base/arena.h"
#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/tile_matmul.h"
#include "ops/common/vector.h"
#include "ops/common/workspace.h"
#include "ops/moe/arguments.h"
#include "ops/moe/moe.h"
#include "ops/moe/ref/activation.h"
#include "ops/moe/ref/ref.h"

/*
 * Schedule: the rows of a, gathered, become fp32 in the workspace, times their scales. Each group's rows are
 * cut into tiles; an item is a tile by 128 columns of out, which is what one scale of an fp8 out covers. A
 * gated item multiplies the same columns of gate and up. Scales of b are applied as its rows are widened.
 */
enum { COLUMNS = MB_F8_BLOCK, TILE_STEP = 4 };

typedef struct multiplication {
    const mb_grouped_gemm_args *args;
    const mb_moe_token_tile *tiles;
    float *rows; /* [R, pad(K)], zero-padded */
    int64_t first_row, n_out_columns;
} multiplication;

typedef struct block {
    float values[MB_TILE_ROWS][COLUMNS];
} block;

static int64_t n_blocks(int64_t n_columns) {
    return (n_columns + COLUMNS - 1) / COLUMNS;
}

static multiplication cut_workspace(const mb_grouped_gemm_args *args, mb_arena *arena,
                                    mb_moe_token_tile **tiles) {
    size_t max_tiles = (size_t)mb_moe_max_tiles(args->n_rows, (int32_t)args->b.count, MB_TILE_ROWS);
    *tiles = mb_arena_push(arena, max_tiles, sizeof **tiles);
    int gated = mb_activation_is_gated(args->activation);
    return (multiplication){.args = args,
                            .tiles = *tiles,
                            .rows = mb_arena_push(arena, (size_t)args->n_rows,
                                                  (size_t)mb_pad_lanes(args->b.cols) * sizeof(float)),
                            .n_out_columns = gated ? args->b.rows / 2 : args->b.rows};
}

mb_status mb_grouped_gemm_any_workspace(const mb_grouped_gemm_args *most, size_t *bytes) {
    mb_arena arena;
    mb_moe_token_tile *tiles;
    mb_arena_measure(&arena);
    if (most->n_rows > 0)
        cut_workspace(most, &arena, &tiles);
    return mb_workspace_measured("grouped_gemm", &arena, bytes);
}

mb_status mb_grouped_gemm_ref_workspace(const mb_grouped_gemm_args *most, size_t *bytes) {
    MB_TRY(mb_grouped_gemm_check_sizes(most));
    return mb_grouped_gemm_any_workspace(most, bytes);
}

static void widen_row(const void *context, int64_t i) {
    const multiplication *m = context;
    const mb_grouped_gemm_args *args = m->args;
    int64_t r = m->first_row + i, k = args->b.cols, stride = mb_pad_lanes(k);
    int64_t source = args->row_index ? args->row_index[r] : r;
    float *row = m->rows + r * stride;
    mb_load_f32(args->dtype, args->a, source * k, k, row);
    memset(row + k, 0, (size_t)(stride - k) * sizeof *row);
    if (!args->a_scale)
        return;
    int by_block = args->b.scale_rows > 0;
    const float *scales = args->a_scale + (by_block ? source * n_blocks(k) : 0);
    for (int64_t j = 0; j < k; j++)
        row[j] *= scales[by_block ? j / COLUMNS : 0];
}

/* out[r][c] = row r . b's row first + c, + bias. */
static void multiply(const multiplication *m, const mb_moe_token_tile *tile, int64_t first, int32_t n,
                     block *out) {
    const mb_weight *b = &m->args->b;
    const float *rows[MB_TILE_ROWS];
    float dots[MB_TILE_ROWS][MB_TILE_COLS], biases[COLUMNS] = {0};
    for (int32_t r = 0; r < tile->n_rows; r++)
        rows[r] = m->rows + (tile->first_row + r) * mb_pad_lanes(b->cols);
    if (m->args->bias)
        mb_load_f32(m->args->bias_dtype, m->args->bias, tile->expert * b->rows + first, n, biases);
    for (int32_t c = 0; c < n; c += MB_TILE_COLS) {
        int32_t width = n - c < MB_TILE_COLS ? n - c : MB_TILE_COLS;
        mb_tile_matmul(rows, tile->n_rows, b, tile->expert, first + c, width, dots);
        for (int32_t r = 0; r < tile->n_rows; r++)
            for (int32_t i = 0; i < width; i++)
                out->values[r][c + i] = dots[r][i] + biases[c + i];
    }
}

static void multiply_block(const void *context, int64_t item) {
    const multiplication *m = context;
    const mb_grouped_gemm_args *args = m->args;
    int64_t width = m->n_out_columns, i_block = item % n_blocks(width), first = i_block * COLUMNS;
    int32_t n = width - first < COLUMNS ? (int32_t)(width - first) : COLUMNS;
    const mb_moe_token_tile *tile = &m->tiles[item / n_blocks(width)];
    block gate, up;
    multiply(m, tile, first, n, &gate);
    if (mb_activation_is_gated(args->activation))
        multiply(m, tile, width + first, n, &up);
    for (int32_t i = 0; i < tile->n_rows; i++) {
        int64_t r = tile->first_row + i;
        float values[COLUMNS];
        mb_activation_row(args->activation, n, gate.values[i], up.values[i], values);
        if (args->row_weight)
            for (int32_t c = 0; c < n; c++)
                values[c] *= args->row_weight[r];
        if (args->out_dtype == MB_F8_E4M3)
            mb_store_f8_blocks(args->out, r * width + first, n,
                               &args->out_scale[r * n_blocks(width) + i_block], values);
        else
            mb_store_f32(args->out_dtype, args->out, r * width + first, n, values);
    }
}

mb_status mb_grouped_gemm_any(const mb_grouped_gemm_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream) {
    if (args->n_rows == 0)
        return MB_OK;
    const int32_t one_group[2] = {0, (int32_t)args->n_rows};
    const int32_t *offsets = args->offsets ? args->offsets : one_group;
    MB_TRY(
        mb_moe_check_rows("grouped_gemm", offsets, args->b.count, args->n_rows, args->row_index, INT64_MAX));
    size_t needed;
    MB_TRY(mb_grouped_gemm_any_workspace(args, &needed));
    MB_TRY(mb_workspace_check("grouped_gemm", workspace, workspace_bytes, needed));
    mb_arena arena;
    mb_moe_token_tile *tiles;
    mb_arena_init(&arena, workspace, workspace_bytes, 1);
    multiplication m = cut_workspace(args, &arena, &tiles);
    m.first_row = offsets[0];
    int64_t n_rows = offsets[args->b.count] - offsets[0];
    int64_t n_tiles = mb_moe_cut_tiles(offsets, args->b.count, MB_TILE_ROWS, TILE_STEP, tiles);
    double values = (double)n_rows * (double)args->b.cols;
    mb_parallel_for(stream, values, n_rows, widen_row, &m);
    mb_parallel_for(stream, values * (double)args->b.rows, n_tiles * n_blocks(m.n_out_columns),
                    multiply_block, &m);
    return MB_OK;
}

mb_status mb_grouped_gemm_ref(const mb_grouped_gemm_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream) {
    MB_TRY(mb_grouped_gemm_check(args));
    return mb_grouped_gemm_any(args, workspace, workspace_bytes, stream);
}
