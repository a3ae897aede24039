#include "base/arena.h"
#include "base/status.h"
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
 * Schedule: each expert's rows are cut into tiles of up to MB_TILE_ROWS. Then three steps, the items of
 * each shared by the threads: x widened to fp32, by rows of x; (tile, strip of columns) of w13, gate and up
 * of the same columns together, and their activation; (tile, strip) of w2.
 *
 * Rounded to dtype: gate and up, the activated product and y, as in Hugging Face.
 */
enum { STRIP = MB_LANES, TILE_STEP = 4 };

typedef struct experts {
    const mb_moe_experts_args *args;
    mb_moe_token_tile *tiles;
    float *x;         /* [T, pad(H)], zero-padded */
    float *activated; /* [R, pad(I)], zero-padded */
} experts;

static int64_t n_strips(int64_t n_cols) {
    return (n_cols + STRIP - 1) / STRIP;
}

static experts cut_workspace(const mb_moe_experts_args *args, mb_arena *arena) {
    size_t padded_x = (size_t)mb_pad_lanes(args->hidden) * sizeof(float);
    size_t padded_activated = (size_t)mb_pad_lanes(args->intermediate) * sizeof(float);
    int64_t max_tiles = mb_moe_max_tiles(args->n_rows, args->n_local_experts, MB_TILE_ROWS);
    experts f = {.args = args};
    f.tiles = mb_arena_push(arena, (size_t)max_tiles, sizeof *f.tiles);
    f.x = mb_arena_push(arena, (size_t)args->n_tokens, padded_x);
    f.activated = mb_arena_push(arena, (size_t)args->n_rows, padded_activated);
    return f;
}

mb_status mb_moe_experts_ref_workspace(const mb_moe_experts_args *most, size_t *bytes) {
    MB_TRY(mb_moe_experts_check_sizes(most));
    mb_arena arena;
    mb_arena_measure(&arena);
    if (most->n_rows > 0)
        cut_workspace(most, &arena);
    return mb_workspace_measured("moe_experts", &arena, bytes);
}

static void widen_token(const void *context, int64_t t) {
    const experts *f = context;
    int64_t h = f->args->hidden, stride = mb_pad_lanes(h);
    if (f->args->x8)
        mb_load_f8_blocks(f->args->x8, t * h, h, f->args->x8_scale + t * mb_f8_blocks(h), f->x + t * stride);
    else
        mb_load_f32(f->args->dtype, f->args->x, t * h, h, f->x + t * stride);
    memset(f->x + t * stride + h, 0, (size_t)(stride - h) * sizeof *f->x);
}

typedef struct strip {
    float values[MB_TILE_ROWS][STRIP];
} strip;

/* values[r][c] = round(x[r] . weight row first_col + c, + bias), c < n_cols. */
static void multiply_strip(const mb_weight *weight, const void *bias, mb_dtype dtype,
                           const mb_moe_token_tile *tile, const float *const *x, int64_t first_col,
                           int32_t n_cols, strip *out) {
    float dots[MB_TILE_ROWS][MB_TILE_COLS], biases[STRIP] = {0};
    if (bias)
        mb_load_f32(dtype, bias, tile->expert * weight->rows + first_col, n_cols, biases);
    for (int32_t c = 0; c < n_cols; c += MB_TILE_COLS) {
        int32_t n = n_cols - c < MB_TILE_COLS ? n_cols - c : MB_TILE_COLS;
        mb_tile_matmul(x, tile->n_rows, weight, tile->expert, first_col + c, n, dots);
        for (int32_t r = 0; r < tile->n_rows; r++)
            for (int32_t i = 0; i < n; i++)
                out->values[r][c + i] = dots[r][i] + biases[c + i];
    }
    for (int32_t r = 0; r < tile->n_rows; r++)
        mb_round_f32(dtype, n_cols, out->values[r]);
}

/* Columns of the saved p. */
static void save_strip(const mb_moe_experts_args *args, const mb_moe_token_tile *tile, int64_t first_col,
                       int32_t n_cols, const strip *values) {
    for (int32_t r = 0; args->p && r < tile->n_rows; r++)
        mb_store_f32(args->dtype, args->p, (tile->first_row + r) * args->w13.rows + first_col, n_cols,
                     values->values[r]);
}

static int32_t strip_width(int64_t n_all_cols, int64_t first_col) {
    return n_all_cols - first_col < STRIP ? (int32_t)(n_all_cols - first_col) : STRIP;
}

/* Columns of the activated product; the last strip fills up the padding with zeros. */
static void activate_strip(const void *context, int64_t item) {
    const experts *f = context;
    const mb_moe_experts_args *args = f->args;
    int64_t width = args->intermediate, in_stride = mb_pad_lanes(args->hidden), stride = mb_pad_lanes(width);
    const mb_moe_token_tile *tile = &f->tiles[item / n_strips(width)];
    int64_t first_col = item % n_strips(width) * STRIP;
    int32_t n_cols = strip_width(width, first_col);
    const float *x[MB_TILE_ROWS];
    strip gate, up;
    for (int32_t r = 0; r < tile->n_rows; r++) {
        int64_t row = tile->first_row + r;
        x[r] = f->x + (args->row_index ? args->row_index[row] : row) * in_stride;
    }
    multiply_strip(&args->w13, args->bias13, args->dtype, tile, x, first_col, n_cols, &gate);
    save_strip(args, tile, first_col, n_cols, &gate);
    if (mb_activation_is_gated(args->activation)) {
        multiply_strip(&args->w13, args->bias13, args->dtype, tile, x, width + first_col, n_cols, &up);
        save_strip(args, tile, width + first_col, n_cols, &up);
    }
    for (int32_t r = 0; r < tile->n_rows; r++) {
        float *out = f->activated + (tile->first_row + r) * stride + first_col;
        mb_activation_row(args->activation, n_cols, gate.values[r], up.values[r], out);
        mb_round_f32(args->dtype, n_cols, out);
        memset(out + n_cols, 0, (size_t)(STRIP - n_cols) * sizeof *out);
    }
}

/* Columns of y. */
static void down_strip(const void *context, int64_t item) {
    const experts *f = context;
    const mb_moe_experts_args *args = f->args;
    int64_t in_stride = mb_pad_lanes(args->intermediate), width = args->hidden;
    const mb_moe_token_tile *tile = &f->tiles[item / n_strips(width)];
    int64_t first_col = item % n_strips(width) * STRIP;
    int32_t n_cols = strip_width(width, first_col);
    const float *x[MB_TILE_ROWS];
    strip out;
    for (int32_t r = 0; r < tile->n_rows; r++)
        x[r] = f->activated + (tile->first_row + r) * in_stride;
    multiply_strip(&args->w2, args->bias2, args->dtype, tile, x, first_col, n_cols, &out);
    for (int32_t r = 0; r < tile->n_rows; r++)
        mb_store_f32(args->dtype, args->y, (tile->first_row + r) * width + first_col, n_cols, out.values[r]);
}

mb_status mb_moe_experts_ref(const mb_moe_experts_args *args, void *workspace, size_t workspace_bytes,
                             mb_stream stream) {
    MB_TRY(mb_moe_experts_check(args));
    if (args->n_rows == 0)
        return MB_OK;
    int64_t n_experts = args->n_local_experts;
    MB_TRY(mb_moe_check_rows("moe_experts", args->offsets, n_experts, args->n_rows, args->row_index,
                             args->n_tokens));
    size_t needed;
    MB_TRY(mb_moe_experts_ref_workspace(args, &needed));
    MB_TRY(mb_workspace_check("moe_experts", workspace, workspace_bytes, needed));
    mb_arena arena;
    mb_arena_init(&arena, workspace, workspace_bytes, 1);
    experts f = cut_workspace(args, &arena);
    int64_t n_tiles = mb_moe_cut_tiles(args->offsets, n_experts, MB_TILE_ROWS, TILE_STEP, f.tiles);
    double x_values = (double)args->n_tokens * args->hidden;
    double work = (double)(args->offsets[n_experts] - args->offsets[0]) * args->hidden;
    mb_parallel_for(stream, x_values, args->n_tokens, widen_token, &f);
    mb_parallel_for(stream, work * (double)args->w13.rows, n_tiles * n_strips(args->intermediate),
                    activate_strip, &f);
    mb_parallel_for(stream, work * args->intermediate, n_tiles * n_strips(args->hidden), down_strip, &f);
    return MB_OK;
}
