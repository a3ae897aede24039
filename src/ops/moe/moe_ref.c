#include "ops/moe/moe.h"

#include "base/arena.h"
#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/tensor.h"
#include "ops/common/tile_matmul.h"
#include "ops/common/vector.h"
#include "ops/moe/activation.h"

#include <inttypes.h>

/*
 * Schedule: the plan sorts the choices by expert and cuts each expert's rows into tiles of MB_TILE_ROWS. Then
 * four steps, the items of each shared by the threads: x widened to fp32, by tokens; (tile, strip of columns)
 * of w13, gate and up of the same columns together, and their activation; (tile, strip) of w2; the weighted
 * sums by tokens.
 *
 * Rounding to dtype: gate/up, the activated product and each expert's output, as in HF; the sum over k runs
 * in fp32, k = 0 first, and is rounded once together with residual and shared.
 */
enum { STRIP = MB_LANES };

typedef struct row_tile {
    int32_t expert, first_row, n_rows;
} row_tile;

typedef struct forward {
    const mb_moe_forward_args *args;
    mb_moe_plan_args plan;
    void *plan_workspace;
    size_t plan_workspace_bytes;
    row_tile *tiles;
    float *x;         /* [T, pad(H)], zero-padded */
    float *activated; /* [R, pad(I)], zero-padded */
    float *down;      /* [R, H] */
} forward;

/* Each expert with rows has at most one tile that is not full. */
static int64_t max_tiles(const mb_moe_forward_args *args) {
    int64_t n_rows = args->n_tokens * args->top_k;
    int64_t n_experts = args->n_local_experts < n_rows ? args->n_local_experts : n_rows;
    return n_rows / MB_TILE_ROWS + n_experts;
}

static int64_t n_strips(int64_t n_cols) {
    return (n_cols + STRIP - 1) / STRIP;
}

static int64_t w13_rows(const mb_moe_forward_args *args) {
    return (int64_t)args->intermediate * (mb_activation_is_gated(args->activation) ? 2 : 1);
}

static mb_status check_sizes(const mb_moe_forward_args *args) {
    MB_REQUIRE(args->hidden > 0 && args->intermediate > 0, "moe_forward: hidden is %d, intermediate is %d",
               args->hidden, args->intermediate);
    MB_REQUIRE(args->top_k > 0, "moe_forward: top_k is %d", args->top_k);
    MB_REQUIRE(args->n_tokens >= 0 && args->n_tokens <= INT32_MAX / args->top_k,
               "moe_forward: n_tokens is %" PRId64 ", with top_k %d more rows than an int32 counts",
               args->n_tokens, args->top_k);
    MB_REQUIRE(args->n_experts >= 1 && args->first_expert >= 0 && args->n_local_experts >= 1 &&
                   args->n_local_experts <= args->n_experts - args->first_expert,
               "moe_forward: local experts are [%d, %d + %d), not within the %d experts", args->first_expert,
               args->first_expert, args->n_local_experts, args->n_experts);
    MB_REQUIRE(mb_activation_is_known(args->activation), "moe_forward: activation %d is unknown",
               (int)args->activation);
    MB_REQUIRE(mb_dtype_is_activation(args->dtype), "moe_forward: dtype %s is not one of activations",
               mb_dtype_name(args->dtype));
    return MB_OK;
}

static mb_status check(const mb_moe_forward_args *args) {
    MB_TRY(check_sizes(args));
    MB_TRY(mb_weight_check(&args->w13, "moe_forward: w13", args->n_local_experts, w13_rows(args),
                           args->hidden, 1));
    MB_TRY(mb_weight_check(&args->w2, "moe_forward: w2", args->n_local_experts, args->hidden,
                           args->intermediate, 1));
    if (args->n_tokens == 0)
        return MB_OK;
    MB_REQUIRE(args->x && args->weights && args->ids && args->out,
               "moe_forward: one of x, weights, ids, out is NULL");
    MB_REQUIRE(args->out != args->x, "moe_forward: out is x");
    return MB_OK;
}

static forward cut_workspace(const mb_moe_forward_args *args, mb_arena *arena) {
    size_t n_tokens = (size_t)args->n_tokens, n_rows = n_tokens * (size_t)args->top_k;
    size_t padded_x = (size_t)mb_pad_lanes(args->hidden) * sizeof(float);
    size_t padded_activated = (size_t)mb_pad_lanes(args->intermediate) * sizeof(float);
    forward f = {.args = args,
                 .plan = {.ids = args->ids,
                          .n_tokens = args->n_tokens,
                          .top_k = args->top_k,
                          .n_experts = args->n_experts,
                          .first_expert = args->first_expert,
                          .n_local_experts = args->n_local_experts}};
    f.plan_workspace_bytes = mb_moe_plan_ref_workspace(&f.plan);
    f.plan_workspace = mb_arena_push(arena, f.plan_workspace_bytes, 1);
    f.plan.offsets = mb_arena_push(arena, (size_t)args->n_local_experts + 1, sizeof(int32_t));
    f.plan.row_token = mb_arena_push(arena, n_rows, sizeof(int32_t));
    f.plan.token_row = mb_arena_push(arena, n_rows, sizeof(int32_t));
    f.tiles = mb_arena_push(arena, (size_t)max_tiles(args), sizeof(row_tile));
    f.x = mb_arena_push(arena, n_tokens, padded_x);
    f.activated = mb_arena_push(arena, n_rows, padded_activated);
    f.down = mb_arena_push(arena, n_rows, (size_t)args->hidden * sizeof(float));
    return f;
}

size_t mb_moe_forward_ref_workspace(const mb_moe_forward_args *args) {
    if (check_sizes(args) != MB_OK || args->n_tokens == 0)
        return 0;
    mb_arena arena;
    mb_arena_measure(&arena);
    cut_workspace(args, &arena);
    return arena.overflowed ? SIZE_MAX : arena.used;
}

static int64_t cut_tiles(const forward *f) {
    int64_t n_tiles = 0;
    for (int32_t e = 0; e < f->args->n_local_experts; e++) {
        int32_t end = f->plan.offsets[e + 1];
        for (int32_t row = f->plan.offsets[e]; row < end; row += MB_TILE_ROWS)
            f->tiles[n_tiles++] = (row_tile){e, row, end - row < MB_TILE_ROWS ? end - row : MB_TILE_ROWS};
    }
    return n_tiles;
}

static void widen_token(const void *context, int64_t t) {
    const forward *f = context;
    const mb_moe_forward_args *args = f->args;
    int64_t h = args->hidden, stride = mb_pad_lanes(h);
    mb_load_f32(args->dtype, args->x, t * h, h, f->x + t * stride);
    memset(f->x + t * stride + h, 0, (size_t)(stride - h) * sizeof *f->x);
}

typedef struct strip {
    float values[MB_TILE_ROWS][STRIP];
} strip;

/* values[r][c] = round(x[r] . weight row first_col + c, + bias), c < n_cols. */
static void multiply_strip(const mb_weight *weight, const void *bias, mb_dtype dtype, const row_tile *tile,
                           const float *const *x, int64_t first_col, int32_t n_cols, strip *out) {
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

static int32_t strip_width(int64_t n_all_cols, int64_t first_col) {
    return n_all_cols - first_col < STRIP ? (int32_t)(n_all_cols - first_col) : STRIP;
}

/* Columns of the activated product; the last strip fills up the padding with zeros. */
static void activate_strip(const void *context, int64_t item) {
    const forward *f = context;
    const mb_moe_forward_args *args = f->args;
    int64_t width = args->intermediate, in_stride = mb_pad_lanes(args->hidden), stride = mb_pad_lanes(width);
    const row_tile *tile = &f->tiles[item / n_strips(width)];
    int64_t first_col = item % n_strips(width) * STRIP;
    int32_t n_cols = strip_width(width, first_col);
    const float *x[MB_TILE_ROWS];
    strip gate, up;
    for (int32_t r = 0; r < tile->n_rows; r++)
        x[r] = f->x + f->plan.row_token[tile->first_row + r] * in_stride;
    multiply_strip(&args->w13, args->bias13, args->dtype, tile, x, first_col, n_cols, &gate);
    if (mb_activation_is_gated(args->activation))
        multiply_strip(&args->w13, args->bias13, args->dtype, tile, x, width + first_col, n_cols, &up);
    for (int32_t r = 0; r < tile->n_rows; r++) {
        float *out = f->activated + (tile->first_row + r) * stride + first_col;
        mb_activation_row(args->activation, n_cols, gate.values[r], up.values[r], out);
        mb_round_f32(args->dtype, n_cols, out);
        memset(out + n_cols, 0, (size_t)(STRIP - n_cols) * sizeof *out);
    }
}

/* Columns of the experts' outputs. */
static void down_strip(const void *context, int64_t item) {
    const forward *f = context;
    const mb_moe_forward_args *args = f->args;
    int64_t in_stride = mb_pad_lanes(args->intermediate), stride = args->hidden;
    const row_tile *tile = &f->tiles[item / n_strips(stride)];
    int64_t first_col = item % n_strips(stride) * STRIP;
    int32_t n_cols = strip_width(stride, first_col);
    const float *x[MB_TILE_ROWS];
    strip out;
    for (int32_t r = 0; r < tile->n_rows; r++)
        x[r] = f->activated + (tile->first_row + r) * in_stride;
    multiply_strip(&args->w2, args->bias2, args->dtype, tile, x, first_col, n_cols, &out);
    for (int32_t r = 0; r < tile->n_rows; r++)
        memcpy(f->down + (tile->first_row + r) * stride + first_col, out.values[r],
               (size_t)n_cols * sizeof(float));
}

/* out[t] = sum over k, in order, of weights * down + residual + shared, in pieces of the row. */
static void reduce_token(const void *context, int64_t t) {
    enum { PIECE = 256 };
    const forward *f = context;
    const mb_moe_forward_args *args = f->args;
    float sums[PIECE], extra[PIECE];
    int64_t h = args->hidden;
    for (int64_t i = 0; i < h; i += PIECE) {
        int64_t n = h - i < PIECE ? h - i : PIECE;
        memset(sums, 0, sizeof sums);
        for (int32_t k = 0; k < args->top_k; k++) {
            int64_t row = f->plan.token_row[t * args->top_k + k];
            if (row < 0)
                continue;
            float weight = args->weights[t * args->top_k + k];
            const float *down = f->down + row * h + i;
            for (int64_t j = 0; j < n; j++)
                sums[j] += weight * down[j];
        }
        const void *addends[] = {args->shared, args->residual};
        for (int a = 0; a < 2; a++) {
            if (!addends[a])
                continue;
            mb_load_f32(args->dtype, addends[a], t * h + i, n, extra);
            for (int64_t j = 0; j < n; j++)
                sums[j] += extra[j];
        }
        mb_store_f32(args->dtype, args->out, t * h + i, n, sums);
    }
}

mb_status mb_moe_forward_ref(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                             mb_stream stream) {
    MB_TRY(check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    mb_arena arena;
    mb_arena_init(&arena, workspace, workspace_bytes, 1);
    size_t needed = mb_moe_forward_ref_workspace(args);
    MB_REQUIRE(workspace && workspace_bytes >= needed, "moe_forward: workspace has %zu bytes, needs %zu",
               workspace_bytes, needed);
    forward f = cut_workspace(args, &arena);
    MB_TRY(mb_moe_plan_ref(&f.plan, f.plan_workspace, f.plan_workspace_bytes, stream));

    int64_t n_tiles = cut_tiles(&f), n_strips13 = n_strips(args->intermediate),
            n_strips2 = n_strips(args->hidden);
    double x_values = (double)args->n_tokens * args->hidden;
    double work_per_row = (double)f.plan.offsets[args->n_local_experts] * args->hidden;
    mb_parallel_for(stream, x_values, args->n_tokens, widen_token, &f);
    mb_parallel_for(stream, work_per_row * (double)args->w13.rows, n_tiles * n_strips13, activate_strip, &f);
    mb_parallel_for(stream, work_per_row * args->intermediate, n_tiles * n_strips2, down_strip, &f);
    mb_parallel_for(stream, x_values * args->top_k, args->n_tokens, reduce_token, &f);
    return MB_OK;
}
