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
 * items of w13; the activation by rows; (tile, strip) items of w2; the weighted sums by tokens.
 *
 * Rounding to dtype: gate/up, the activated product and each expert's output, as in HF; the sum over k runs
 * in fp32, k = 0 first, and is rounded once together with residual and shared.
 */
enum { STRIP = 16 };

typedef struct row_tile {
    int32_t expert, first_row, n_rows;
} row_tile;

typedef struct buffers {
    mb_moe_plan_args plan;
    void *plan_workspace;
    size_t plan_workspace_bytes;
    row_tile *tiles;
    float *x;         /* [T, pad(H)], zero-padded */
    float *gate_up;   /* [R, 2I or I] */
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
    b.gate_up = mb_arena_push(arena, n_rows, (size_t)w13_rows(args) * sizeof(float));
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

/* A strip of columns of one tile: out[row] = round(weight rows[row] + bias). `row_index` says where a sorted
 * row's input is; NULL: at the same row. */
static void multiply_strip(const mb_weight *weight, const void *bias, mb_dtype dtype, const row_tile *tile,
                           int64_t first_col, const float *x, const int32_t *row_index, float *out) {
    int64_t n_all_cols = weight->rows, stride = mb_pad_lanes(weight->cols);
    const float *rows[MB_TILE_ROWS];
    float dots[MB_TILE_ROWS][MB_TILE_COLS], biases[MB_TILE_COLS] = {0};
    for (int32_t r = 0; r < tile->n_rows; r++) {
        int64_t row = tile->first_row + r;
        rows[r] = x + (row_index ? row_index[row] : row) * stride;
    }
    for (int64_t col = first_col; col < first_col + STRIP && col < n_all_cols; col += MB_TILE_COLS) {
        int32_t n_cols = n_all_cols - col < MB_TILE_COLS ? (int32_t)(n_all_cols - col) : MB_TILE_COLS;
        mb_tile_matmul(rows, tile->n_rows, weight, tile->expert, col, n_cols, dots);
        if (bias)
            mb_load_f32(dtype, bias, tile->expert * n_all_cols + col, n_cols, biases);
        for (int32_t r = 0; r < tile->n_rows; r++) {
            for (int32_t c = 0; c < n_cols; c++)
                dots[r][c] += biases[c];
            mb_round_f32(dtype, n_cols, dots[r]);
            memcpy(out + (tile->first_row + r) * n_all_cols + col, dots[r], (size_t)n_cols * sizeof *out);
        }
    }
}

static void activate_row(const mb_moe_forward_args *args, const buffers *b, int64_t row) {
    int64_t n = args->intermediate, stride = mb_pad_lanes(n);
    const float *gate = b->gate_up + row * w13_rows(args);
    float *out = b->activated + row * stride;
    mb_activation_row(args->activation, n, gate, gate + n, out);
    mb_round_f32(args->dtype, n, out);
    memset(out + n, 0, (size_t)(stride - n) * sizeof *out);
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
    int64_t n_strips13 = (args->w13.rows + STRIP - 1) / STRIP,
            n_strips2 = (args->w2.rows + STRIP - 1) / STRIP;
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
            multiply_strip(&args->w13, args->bias13, args->dtype, &b.tiles[item / n_strips13],
                           item % n_strips13 * STRIP, b.x, b.plan.row_token, b.gate_up);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < n_rows; row++)
            activate_row(args, &b, row);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < n_tiles * n_strips2; item++)
            multiply_strip(&args->w2, args->bias2, args->dtype, &b.tiles[item / n_strips2],
                           item % n_strips2 * STRIP, b.activated, NULL, b.down);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < args->n_tokens; t++)
            reduce_token(args, &b, t);
    }
    return MB_OK;
}
