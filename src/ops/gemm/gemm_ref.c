#include "ops/gemm/gemm.h"
#include "ops/moe/arguments.h"
#include "ops/moe/moe.h"

#include "base/arena.h"
#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/tensor.h"
#include "ops/common/tile_matmul.h"
#include "ops/common/vector.h"
#include "ops/common/workspace.h"

#include <inttypes.h>

/* One work item is a tile of up to MB_TILE_ROWS rows by STRIP columns. */
enum { STRIP = 16 };

/* fp32 rows of whole vectors are multiplied where they are; others are copied to the workspace. */
static int needs_copy(const mb_gemm_args *args) {
    return args->x8 || args->dtype != MB_F32 || args->weight.cols % MB_LANES != 0;
}

static int64_t n_row_tiles(const mb_gemm_args *args) {
    return (args->n_tokens + MB_TILE_ROWS - 1) / MB_TILE_ROWS;
}

typedef struct layout {
    void *normed; /* [T, K] dtype; NULL without a norm */
    float *copy;  /* of x, [T, pad(K)]; NULL when x is multiplied where it is */
} layout;

static layout cut_workspace(const mb_gemm_args *args, mb_arena *arena) {
    layout l = {0};
    if (args->norm_weight.data)
        l.normed =
            mb_arena_push(arena, (size_t)args->n_tokens, mb_dtype_row_bytes(args->dtype, args->weight.cols));
    if (needs_copy(args))
        l.copy = mb_arena_push(arena, (size_t)args->n_tokens,
                               (size_t)mb_pad_lanes(args->weight.cols) * sizeof(float));
    return l;
}

mb_rms_norm_args mb_gemm_norm(const mb_gemm_args *args, void *normed) {
    return (mb_rms_norm_args){.x = args->x,
                              .rows = args->norm_rows,
                              .weight = args->norm_weight,
                              .out = normed,
                              .n_rows = args->n_tokens,
                              .hidden = (int32_t)args->weight.cols,
                              .eps = args->eps,
                              .dtype = args->dtype};
}

mb_gemm_args mb_gemm_of_normed(const mb_gemm_args *args, const void *normed) {
    mb_gemm_args of_normed = *args;
    of_normed.x = normed;
    of_normed.norm_weight = (mb_weight){0};
    of_normed.norm_rows = NULL;
    return of_normed;
}

mb_status mb_gemm_check_sizes(const mb_gemm_args *args) {
    const mb_weight *weight = &args->weight;
    MB_REQUIRE(args->n_tokens >= 0 && args->n_tokens <= INT32_MAX, "gemm: n_tokens is %" PRId64,
               args->n_tokens);
    MB_REQUIRE(weight->rows > 0 && weight->rows <= INT32_MAX && weight->cols > 0 && weight->cols <= INT32_MAX,
               "gemm: weight is [%" PRId64 ", %" PRId64 "]", weight->rows, weight->cols);
    MB_REQUIRE(mb_dtype_is_activation(args->dtype), "gemm: dtype %s (%d) is not one of activations",
               mb_dtype_name(args->dtype), (int)args->dtype);
    MB_REQUIRE(mb_dtype_is_activation(args->out_dtype), "gemm: out_dtype %s (%d) is not one of activations",
               mb_dtype_name(args->out_dtype), (int)args->out_dtype);
    MB_REQUIRE(!args->bias || mb_dtype_is_activation(args->bias_dtype),
               "gemm: bias_dtype %s (%d) is not one of activations", mb_dtype_name(args->bias_dtype),
               (int)args->bias_dtype);
    MB_TRY(mb_weight_check_shape(weight, "gemm: weight", 1, weight->rows, weight->cols, 1));
    MB_REQUIRE(args->norm_weight.data || !args->norm_rows, "gemm: norm_rows without norm_weight");
    if (!args->norm_weight.data)
        return MB_OK;
    return mb_weight_check(&args->norm_weight, "gemm: norm_weight", 1, 1, weight->cols, 0);
}

mb_status mb_gemm_ref_workspace(const mb_gemm_args *most, size_t *bytes) {
    MB_TRY(mb_gemm_check_sizes(most));
    mb_arena arena;
    mb_arena_measure(&arena);
    cut_workspace(most, &arena);
    return mb_workspace_measured("gemm", &arena, bytes);
}

mb_status mb_gemm_check(const mb_gemm_args *args) {
    MB_TRY(mb_gemm_check_sizes(args));
    MB_REQUIRE(args->weight.data, "gemm: weight.data is NULL");
    MB_REQUIRE(args->n_tokens == 0 || ((args->x || args->x8) && args->out), "gemm: x or out is NULL");
    MB_REQUIRE(args->n_tokens == 0 || args->x != args->out, "gemm: out is x");
    MB_REQUIRE(!args->x8 == !args->x8_scale, "gemm: one of x8 and x8_scale is NULL");
    MB_REQUIRE(!args->x8 || !args->norm_weight.data, "gemm: x8 with a norm in front");
    const mb_moe_reduce_args *sum = args->x_sum;
    MB_REQUIRE(!sum || (sum->out == args->x && sum->n_tokens == args->n_tokens &&
                        sum->hidden == args->weight.cols && sum->out_dtype == args->dtype),
               "gemm: x is not what x_sum writes");
    MB_REQUIRE(!sum || !args->x8, "gemm: x8 beside x_sum");
    const mb_status status = sum ? mb_moe_reduce_check(sum) : MB_OK;
    return status == MB_OK ? MB_OK : mb_fail_context(status, "gemm: x_sum");
}

/* Bias and residual are added in fp32; the result is rounded once. */
static void store_tile(const mb_gemm_args *args, int64_t first_row, int32_t n_rows, int64_t col,
                       int32_t n_cols, float dots[MB_TILE_ROWS][MB_TILE_COLS]) {
    float extra[MB_TILE_COLS];
    for (int32_t r = 0; r < n_rows; r++) {
        int64_t first = (first_row + r) * args->weight.rows + col;
        if (args->bias) {
            mb_load_f32(args->bias_dtype, args->bias, col, n_cols, extra);
            for (int32_t c = 0; c < n_cols; c++)
                dots[r][c] += extra[c];
        }
        if (args->residual) {
            mb_load_f32(args->out_dtype, args->residual, first, n_cols, extra);
            for (int32_t c = 0; c < n_cols; c++)
                dots[r][c] += extra[c];
        }
        mb_store_f32(args->out_dtype, args->out, first, n_cols, dots[r]);
    }
}

typedef struct multiplication {
    const mb_gemm_args *args;
    float *copy;    /* of x, NULL when it is multiplied where it is */
    const float *x; /* [T, pad(K)] */
} multiplication;

static void copy_row(const void *context, int64_t t) {
    const multiplication *m = context;
    int64_t k = m->args->weight.cols, stride = mb_pad_lanes(k);
    if (m->args->x8)
        mb_load_f8_blocks(m->args->x8, t * k, k, m->args->x8_scale + t * mb_f8_blocks(k),
                          m->copy + t * stride);
    else
        mb_load_f32(m->args->dtype, m->args->x, t * k, k, m->copy + t * stride);
    memset(m->copy + t * stride + k, 0, (size_t)(stride - k) * sizeof *m->copy);
}

/* Item: the row tiles of the first strip, then those of the next. */
static void multiply_strip(const void *context, int64_t item) {
    const multiplication *m = context;
    const mb_gemm_args *args = m->args;
    int64_t n_tiles = n_row_tiles(args), first_row = item % n_tiles * MB_TILE_ROWS,
            first_col = item / n_tiles * STRIP;
    int64_t n_all_rows = args->n_tokens, n_all_cols = args->weight.rows,
            stride = mb_pad_lanes(args->weight.cols);
    const float *rows[MB_TILE_ROWS];
    float dots[MB_TILE_ROWS][MB_TILE_COLS];
    int32_t n_rows = 0;
    for (; n_rows < MB_TILE_ROWS && first_row + n_rows < n_all_rows; n_rows++)
        rows[n_rows] = m->x + (first_row + n_rows) * stride;
    for (int64_t col = first_col; col < first_col + STRIP && col < n_all_cols; col += MB_TILE_COLS) {
        int32_t n_cols = n_all_cols - col < MB_TILE_COLS ? (int32_t)(n_all_cols - col) : MB_TILE_COLS;
        mb_tile_matmul(rows, n_rows, &args->weight, 0, col, n_cols, dots);
        store_tile(args, first_row, n_rows, col, n_cols, dots);
    }
}

/* x: normed if it should be. */
static void multiply(const mb_gemm_args *args, float *copy, mb_stream stream) {
    multiplication m = {args, copy, copy ? copy : args->x};
    double x_values = (double)args->n_tokens * (double)args->weight.cols;
    int64_t n_strips = (args->weight.rows + STRIP - 1) / STRIP;
    if (copy)
        mb_parallel_for(stream, x_values, args->n_tokens, copy_row, &m);
    mb_parallel_for(stream, x_values * (double)args->weight.rows, n_row_tiles(args) * n_strips,
                    multiply_strip, &m);
}

mb_status mb_gemm_ref(const mb_gemm_args *args, void *workspace, size_t workspace_bytes, mb_stream stream) {
    MB_TRY(mb_gemm_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    size_t needed;
    MB_TRY(mb_gemm_ref_workspace(args, &needed));
    MB_TRY(mb_workspace_check("gemm", workspace, workspace_bytes, needed));
    if (args->x_sum) /* its rows and choices may lie in the workspace */
        MB_TRY(mb_moe_reduce_ref(args->x_sum, stream));
    mb_arena arena;
    mb_arena_init(&arena, workspace, workspace_bytes, 1);
    const layout l = cut_workspace(args, &arena);
    if (!l.normed) {
        multiply(args, l.copy, stream);
        return MB_OK;
    }
    mb_rms_norm_args norm = mb_gemm_norm(args, l.normed);
    mb_gemm_args of_normed = mb_gemm_of_normed(args, l.normed);
    MB_TRY(mb_rms_norm_ref(&norm, stream));
    multiply(&of_normed, l.copy, stream);
    return MB_OK;
}
