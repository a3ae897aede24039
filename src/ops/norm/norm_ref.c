#include "ops/norm/norm.h"

#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/tensor.h"

#include <inttypes.h>
#include <math.h>

/* Rows are walked in pieces of this length; a multiple of the sum's lanes. */
enum { PIECE = 256, SUM_LANES = 8 };

/* n elements from element i on of a row that is normed. */
static void load_piece(const mb_rms_norm_args *args, int64_t source, int64_t i, int64_t n, float *piece) {
    mb_load_f32(args->dtype, args->residual ? args->sum : args->x, source * args->hidden + i, n, piece);
}

static void add_residual(const mb_rms_norm_args *args, int64_t row) {
    float piece[PIECE], residual[PIECE];
    for (int64_t i = 0; i < args->hidden; i += PIECE) {
        int64_t at = row * args->hidden + i, n = args->hidden - i < PIECE ? args->hidden - i : PIECE;
        mb_load_f32(args->dtype, args->x, at, n, piece);
        mb_load_f32(args->dtype, args->residual, at, n, residual);
        for (int64_t j = 0; j < n; j++)
            piece[j] += residual[j];
        mb_store_f32(args->dtype, args->sum, at, n, piece);
    }
}

static float inverse_rms(const mb_rms_norm_args *args, int64_t source) {
    double lanes[SUM_LANES] = {0};
    float piece[PIECE];
    for (int64_t i = 0; i < args->hidden; i += PIECE) {
        int64_t n = args->hidden - i < PIECE ? args->hidden - i : PIECE;
        load_piece(args, source, i, n, piece);
        for (int64_t padded = n; padded % SUM_LANES != 0; padded++)
            piece[padded] = 0;
        for (int64_t j = 0; j < n; j += SUM_LANES)
            for (int lane = 0; lane < SUM_LANES; lane++)
                lanes[lane] += (double)piece[j + lane] * (double)piece[j + lane];
    }
    double sum = 0;
    for (int lane = 0; lane < SUM_LANES; lane++)
        sum += lanes[lane];
    return (float)(1.0 / sqrt(sum / args->hidden + (double)args->eps));
}

static void norm_row(const void *context, int64_t row) {
    const mb_rms_norm_args *args = context;
    int64_t source = args->rows ? args->rows[row] : row;
    if (args->residual)
        add_residual(args, row);
    float scale = inverse_rms(args, source);
    float piece[PIECE], weight[PIECE];
    for (int64_t i = 0; i < args->hidden; i += PIECE) {
        int64_t n = args->hidden - i < PIECE ? args->hidden - i : PIECE;
        load_piece(args, source, i, n, piece);
        mb_weight_load(&args->weight, 0, 0, i, n, weight);
        for (int64_t j = 0; j < n; j++)
            piece[j] *= scale;
        mb_round_f32(args->dtype, n, piece);
        for (int64_t j = 0; j < n; j++)
            piece[j] *= weight[j];
        mb_round_f32(args->dtype, n, piece);
        if (args->out)
            mb_store_f32(args->dtype, args->out, row * args->hidden + i, n, piece);
        if (args->out8)
            mb_store_f8_blocks(args->out8, row * args->hidden + i, n,
                               args->out8_scale + row * mb_f8_blocks(args->hidden) + i / MB_F8_BLOCK, piece);
    }
}

mb_status mb_rms_norm_check(const mb_rms_norm_args *args) {
    MB_REQUIRE(args->n_rows >= 0 && args->n_rows <= INT32_MAX, "rms_norm: n_rows is %" PRId64, args->n_rows);
    MB_REQUIRE(args->hidden > 0, "rms_norm: hidden is %d", args->hidden);
    MB_REQUIRE(mb_dtype_is_activation(args->dtype), "rms_norm: dtype %s (%d) is not one of activations",
               mb_dtype_name(args->dtype), (int)args->dtype);
    MB_TRY(mb_weight_check(&args->weight, "rms_norm: weight", 1, 1, args->hidden, 0));
    if (args->n_rows == 0)
        return MB_OK;
    MB_REQUIRE(args->x && (args->out || args->out8), "rms_norm: x or out is NULL");
    MB_REQUIRE(!args->out8 == !args->out8_scale, "rms_norm: one of out8 and out8_scale is NULL");
    MB_REQUIRE(!args->out8 || args->dtype != MB_F32,
               "rms_norm: out8 is given, but dtype is fp32; it must be bf16 or fp16");
    MB_REQUIRE(!args->rows || args->out != args->x, "rms_norm: out is x although rows are gathered");
    MB_REQUIRE(!args->residual == !args->sum, "rms_norm: one of residual and sum is NULL");
    MB_REQUIRE(!args->residual || !args->rows,
               "rms_norm: residual beside rows; add first, then norm the rows that are wanted");
    MB_REQUIRE(!args->sum || args->out != args->sum, "rms_norm: out is sum, which is not normed");
    return MB_OK;
}

mb_status mb_rms_norm_ref(const mb_rms_norm_args *args, mb_stream stream) {
    MB_TRY(mb_rms_norm_check(args));
    mb_parallel_for(stream, 4.0 * (double)args->n_rows * args->hidden, args->n_rows, norm_row, args);
    return MB_OK;
}
