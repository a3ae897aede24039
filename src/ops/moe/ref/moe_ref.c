#include "ops/moe/moe.h"

#include "base/arena.h"
#include "base/status.h"
#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/tile_matmul.h"
#include "ops/common/vector.h"
#include "ops/common/workspace.h"
#include "ops/moe/arguments.h"
#include "ops/moe/ref/activation.h"
#include "ops/moe/ref/ref.h"

/*
 * Schedule: the router if it is asked for; the plan sorts the choices by expert and cuts each expert's rows
 * into tiles of up to MB_TILE_ROWS. Then four steps, the items of each shared by the threads: x widened to
 * fp32, by tokens; (tile, strip of columns) of w13, gate and up of the same columns together, and their
 * activation; (tile, strip) of w2; the weighted sums by tokens.
 *
 * Rounding to dtype: gate/up, the activated product and each expert's output, as in HF; the sum over k runs
 * in fp32, k = 0 first, and is rounded once together with residual and shared.
 */
enum { STRIP = MB_LANES, TILE_STEP = 4 };

typedef struct forward {
    const mb_moe_forward_args *args;
    mb_moe_plan_args plan;
    void *plan_workspace;
    size_t plan_workspace_bytes;
    float *x;         /* [T, pad(H)], zero-padded */
    float *activated; /* [R, pad(I)], zero-padded */
    float *down;      /* [R, H] */
} forward;

static int64_t n_strips(int64_t n_cols) {
    return (n_cols + STRIP - 1) / STRIP;
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
                          .n_local_experts = args->n_local_experts,
                          .tile_rows = MB_TILE_ROWS,
                          .tile_step = TILE_STEP}};
    mb_moe_plan_ref_workspace(&f.plan, &f.plan_workspace_bytes); /* its sizes are the forward's: checked */
    f.plan_workspace = mb_arena_push(arena, f.plan_workspace_bytes, 1);
    f.plan.offsets = mb_arena_push(arena, (size_t)args->n_local_experts + 1, sizeof(int32_t));
    f.plan.row_token = mb_arena_push(arena, n_rows, sizeof(int32_t));
    f.plan.token_row = mb_arena_push(arena, n_rows, sizeof(int32_t));
    int64_t max_tiles = mb_moe_max_tiles((int64_t)n_rows, args->n_local_experts, MB_TILE_ROWS);
    f.plan.tiles = mb_arena_push(arena, (size_t)max_tiles, sizeof *f.plan.tiles);
    f.plan.n_tiles = mb_arena_push(arena, 1, sizeof *f.plan.n_tiles);
    f.x = mb_arena_push(arena, n_tokens, padded_x);
    f.activated = mb_arena_push(arena, n_rows, padded_activated);
    f.down = mb_arena_push(arena, n_rows, (size_t)args->hidden * sizeof(float));
    return f;
}

mb_status mb_moe_forward_ref_workspace(const mb_moe_forward_args *most, size_t *bytes) {
    MB_TRY(mb_moe_forward_check_sizes(most));
    mb_arena arena;
    mb_arena_measure(&arena);
    if (most->n_tokens > 0)
        cut_workspace(most, &arena);
    return mb_workspace_measured("moe_forward", &arena, bytes);
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

static int32_t strip_width(int64_t n_all_cols, int64_t first_col) {
    return n_all_cols - first_col < STRIP ? (int32_t)(n_all_cols - first_col) : STRIP;
}

/* Columns of the activated product; the last strip fills up the padding with zeros. */
static void activate_strip(const void *context, int64_t item) {
    const forward *f = context;
    const mb_moe_forward_args *args = f->args;
    int64_t width = args->intermediate, in_stride = mb_pad_lanes(args->hidden), stride = mb_pad_lanes(width);
    const mb_moe_token_tile *tile = &f->plan.tiles[item / n_strips(width)];
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
    const mb_moe_token_tile *tile = &f->plan.tiles[item / n_strips(stride)];
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

mb_status mb_moe_forward_ref(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                             mb_stream stream) {
    MB_TRY(mb_moe_forward_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    size_t needed;
    MB_TRY(mb_moe_forward_ref_workspace(args, &needed));
    MB_TRY(mb_workspace_check("moe_forward", workspace, workspace_bytes, needed));
    if (args->route)
        MB_TRY(mb_moe_route_ref(args->route, stream));
    mb_arena arena;
    mb_arena_init(&arena, workspace, workspace_bytes, 1);
    forward f = cut_workspace(args, &arena);
    MB_TRY(mb_moe_plan_ref(&f.plan, f.plan_workspace, f.plan_workspace_bytes, stream));

    int64_t n_tiles = *f.plan.n_tiles, n_strips13 = n_strips(args->intermediate),
            n_strips2 = n_strips(args->hidden);
    double x_values = (double)args->n_tokens * args->hidden;
    double work_per_row = (double)f.plan.offsets[args->n_local_experts] * args->hidden;
    mb_parallel_for(stream, x_values, args->n_tokens, widen_token, &f);
    mb_parallel_for(stream, work_per_row * (double)args->w13.rows, n_tiles * n_strips13, activate_strip, &f);
    mb_parallel_for(stream, work_per_row * args->intermediate, n_tiles * n_strips2, down_strip, &f);
    mb_moe_reduce_args reduce = {.y = f.down,
                                 .weights = args->weights,
                                 .token_row = f.plan.token_row,
                                 .residual = args->residual,
                                 .shared = args->shared,
                                 .out = args->out,
                                 .n_tokens = args->n_tokens,
                                 .hidden = args->hidden,
                                 .top_k = args->top_k,
                                 .dtype = MB_F32,
                                 .out_dtype = args->dtype};
    mb_moe_reduce_any(&reduce, stream);
    return MB_OK;
}
