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
 * Schedule: the plan sorts the choices by expert and cuts each expert's rows into tiles of MB_TILE_ROWS. In
 * one parallel region then, with a barrier between the steps: x widened to fp32; (tile, strip of columns)
 * items of w13, gate and up of the same columns together, and their activation; (tile, strip) items of w2;
 * the weighted sums by tokens.
 *
 * Rounding to dtype: gate/up, the activated product and each expert's output, as in HF; the sum over k runs
 * in fp32, k = 0 first, and is rounded once together with residual and shared.
 */
enum { STRIP = MB_LANES };

typedef struct row_tile {
    int32_t expert, first_row, n_rows;
} row_tile;

typedef struct buffers {
    mb_moe_plan_args plan;
    void *plan_workspace;
    size_t plan_workspace_bytes;
    row_tile *tiles;
    float *x;         /* [T, pad(H)], zero-padded */
    float *activated; /* [R, pad(I)], zero-padded */
    float *down;      /* [R, H] */
} buffers;

/* Each expert with rows has at most one tile that is not full. */
static int64_t max_tiles(const mb_moe_forward_args *args) {
    int64_t n_rows = args->n_tokens * args->top_k;
    int64_t n_experts = args->n_local_experts < n_rows ? args->n_local_experts : n_rows;
    return n_rows / MB_TILE_ROWS + n_experts;
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

static buffers cut_workspace(const mb_moe_forward_args *args, mb_arena *arena) {
    size_t n_tokens = (size_t)args->n_tokens, n_rows = n_tokens * (size_t)args->top_k;
    size_t padded_x = (size_t)mb_pad_lanes(args->hidden) * sizeof(float);
    size_t padded_activated = (size_t)mb_pad_lanes(args->intermediate) * sizeof(float);
    buffers b = {.plan = {.ids = args->ids,
                          .n_tokens = args->n_tokens,
                          .top_k = args->top_k,
                          .n_experts = args->n_experts,
                          .first_expert = args->first_expert,
                          .n_local_experts = args->n_local_experts}};
    b.plan_workspace_bytes = mb_moe_plan_ref_workspace(&b.plan);
    b.plan_workspace = mb_arena_push(arena, b.plan_workspace_bytes, 1);
    b.plan.offsets = mb_arena_push(arena, (size_t)args->n_local_experts + 1, sizeof(int32_t));
    b.plan.row_token = mb_arena_push(arena, n_rows, sizeof(int32_t));
    b.plan.token_row = mb_arena_push(arena, n_rows, sizeof(int32_t));
    b.tiles = mb_arena_push(arena, (size_t)max_tiles(args), sizeof(row_tile));
    b.x = mb_arena_push(arena, n_tokens, padded_x);
    b.activated = mb_arena_push(arena, n_rows, padded_activated);
    b.down = mb_arena_push(arena, n_rows, (size_t)args->hidden * sizeof(float));
    return b;
}

size_t mb_moe_forward_ref_workspace(const mb_moe_forward_args *args) {
    if (check_sizes(args) != MB_OK || args->n_tokens == 0)
        return 0;
    mb_arena arena;
    mb_arena_measure(&arena);
    cut_workspace(args, &arena);
    return arena.overflowed ? SIZE_MAX : arena.used;
}

static int64_t cut_tiles(const mb_moe_forward_args *args, const buffers *b) {
    int64_t n_tiles = 0;
    for (int32_t e = 0; e < args->n_local_experts; e++) {
        int32_t end = b->plan.offsets[e + 1];
        for (int32_t row = b->plan.offsets[e]; row < end; row += MB_TILE_ROWS)
            b->tiles[n_tiles++] = (row_tile){e, row, end - row < MB_TILE_ROWS ? end - row : MB_TILE_ROWS};
    }
    return n_tiles;
}

static void widen_token(const mb_moe_forward_args *args, const buffers *b, int64_t t) {
    int64_t h = args->hidden, stride = mb_pad_lanes(h);
    mb_load_f32(args->dtype, args->x, t * h, h, b->x + t * stride);
    memset(b->x + t * stride + h, 0, (size_t)(stride - h) * sizeof *b->x);
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
static void activate_strip(const mb_moe_forward_args *args, const buffers *b, const row_tile *tile,
                           int64_t first_col) {
    int64_t width = args->intermediate, in_stride = mb_pad_lanes(args->hidden), stride = mb_pad_lanes(width);
    int32_t n_cols = strip_width(width, first_col);
    const float *x[MB_TILE_ROWS];
    strip gate, up;
    for (int32_t r = 0; r < tile->n_rows; r++)
        x[r] = b->x + b->plan.row_token[tile->first_row + r] * in_stride;
    multiply_strip(&args->w13, args->bias13, args->dtype, tile, x, first_col, n_cols, &gate);
    if (mb_activation_is_gated(args->activation))
        multiply_strip(&args->w13, args->bias13, args->dtype, tile, x, width + first_col, n_cols, &up);
    for (int32_t r = 0; r < tile->n_rows; r++) {
        float *out = b->activated + (tile->first_row + r) * stride + first_col;
        mb_activation_row(args->activation, n_cols, gate.values[r], up.values[r], out);
        mb_round_f32(args->dtype, n_cols, out);
        memset(out + n_cols, 0, (size_t)(STRIP - n_cols) * sizeof *out);
    }
}

/* Columns of the experts' outputs. */
static void down_strip(const mb_moe_forward_args *args, const buffers *b, const row_tile *tile,
                       int64_t first_col) {
    int64_t in_stride = mb_pad_lanes(args->intermediate), stride = args->hidden;
    int32_t n_cols = strip_width(stride, first_col);
    const float *x[MB_TILE_ROWS];
    strip out;
    for (int32_t r = 0; r < tile->n_rows; r++)
        x[r] = b->activated + (tile->first_row + r) * in_stride;
    multiply_strip(&args->w2, args->bias2, args->dtype, tile, x, first_col, n_cols, &out);
    for (int32_t r = 0; r < tile->n_rows; r++)
        memcpy(b->down + (tile->first_row + r) * stride + first_col, out.values[r],
               (size_t)n_cols * sizeof(float));
}

/* out[t] = sum over k, in order, of weights * down + residual + shared, in pieces of the row. */
static void reduce_token(const mb_moe_forward_args *args, const buffers *b, int64_t t) {
    enum { PIECE = 256 };
    float sums[PIECE], extra[PIECE];
    int64_t h = args->hidden;
    for (int64_t i = 0; i < h; i += PIECE) {
        int64_t n = h - i < PIECE ? h - i : PIECE;
        memset(sums, 0, sizeof sums);
        for (int32_t k = 0; k < args->top_k; k++) {
            int64_t row = b->plan.token_row[t * args->top_k + k];
            if (row < 0)
                continue;
            float weight = args->weights[t * args->top_k + k];
            const float *down = b->down + row * h + i;
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
    buffers b = cut_workspace(args, &arena);
    MB_TRY(mb_moe_plan_ref(&b.plan, b.plan_workspace, b.plan_workspace_bytes, stream));

    int64_t n_tiles = cut_tiles(args, &b), n_rows = b.plan.offsets[args->n_local_experts];
    int64_t n_strips13 = (args->intermediate + STRIP - 1) / STRIP,
            n_strips2 = (args->hidden + STRIP - 1) / STRIP;
    int n_threads = mb_cpu_threads(stream, (double)n_rows * (double)args->hidden *
                                               (double)(args->w13.rows + args->intermediate));
    (void)n_threads;
#pragma omp parallel num_threads(n_threads)
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < args->n_tokens; t++)
            widen_token(args, &b, t);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < n_tiles * n_strips13; item++)
            activate_strip(args, &b, &b.tiles[item / n_strips13], item % n_strips13 * STRIP);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < n_tiles * n_strips2; item++)
            down_strip(args, &b, &b.tiles[item / n_strips2], item % n_strips2 * STRIP);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < args->n_tokens; t++)
            reduce_token(args, &b, t);
    }
    return MB_OK;
}
