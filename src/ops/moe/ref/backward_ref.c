#include "base/arena.h"
#include "base/status.h"
#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/workspace.h"
#include "ops/moe/arguments.h"
#include "ops/moe/moe.h"
#include "ops/moe/ref/ref.h"
#include "ops/moe/train.h"

#include <math.h>

/*
 * Steps, the items of each shared by the threads: the plan; p, unless p was saved; by sorted rows h, dp and
 * dweights; by tokens dx; by (expert, row of the matrix) dw2 and dw13. One thread computes an item, with its
 * sums in one fixed order, so the number of threads changes no bit. Sums run over pieces of PIECE columns,
 * so that they stay in fp64 on the stack.
 */
enum { PIECE = 256 };

typedef struct backward {
    const mb_moe_backward_args *args;
    int64_t width13; /* rows of w13: 2I or I */
    mb_moe_plan_args plan;
    mb_grouped_gemm_args gemm; /* computes p */
    const void *p;
    int32_t *row_choice; /* [R] t * K + k of each sorted row */
    float *h;            /* [R, I] */
    float *dp;           /* [R, width13] */
    void *workspace;     /* of one operator after another */
    size_t workspace_bytes;
} backward;

/* ---- Workspace ----------------------------------------------------------------------------------------- */

static mb_status cut_workspace(const mb_moe_backward_args *args, mb_arena *arena, backward *b) {
    int64_t width13 = (int64_t)args->intermediate * (1 + mb_activation_is_gated(args->activation));
    int64_t n_rows = args->n_tokens * args->top_k;
    *b = (backward){.args = args, .width13 = width13};
    b->plan = (mb_moe_plan_args){.ids = args->ids,
                                 .n_tokens = args->n_tokens,
                                 .top_k = args->top_k,
                                 .n_experts = args->n_experts,
                                 .first_expert = args->first_expert,
                                 .n_local_experts = args->n_local_experts};
    b->gemm = (mb_grouped_gemm_args){.a = args->x,
                                     .b = args->w13,
                                     .bias = args->bias13,
                                     .n_rows = n_rows,
                                     .dtype = args->dtype,
                                     .out_dtype = args->dtype,
                                     .bias_dtype = args->dtype,
                                     .activation = MB_ACT_NONE};
    size_t plan_bytes, gemm_bytes;
    MB_TRY(mb_moe_plan_ref_workspace(&b->plan, &plan_bytes));
    mb_status status = mb_grouped_gemm_ref_workspace(&b->gemm, &gemm_bytes);
    if (status != MB_OK)
        return mb_fail_context(status, "moe_backward");
    b->plan.offsets = mb_arena_push(arena, (size_t)args->n_local_experts + 1, sizeof(int32_t));
    b->plan.row_token = mb_arena_push(arena, (size_t)n_rows, sizeof(int32_t));
    b->plan.token_row = mb_arena_push(arena, (size_t)n_rows, sizeof(int32_t));
    b->row_choice = mb_arena_push(arena, (size_t)n_rows, sizeof(int32_t));
    b->h = mb_arena_push(arena, (size_t)n_rows, (size_t)args->intermediate * sizeof *b->h);
    b->dp = mb_arena_push(arena, (size_t)n_rows, (size_t)width13 * sizeof *b->dp);
    b->gemm.offsets = b->plan.offsets;
    b->gemm.row_index = b->plan.row_token;
    b->p = args->p;
    /* A saved p needs no less: the size does not depend on a pointer. */
    b->gemm.out = mb_arena_push(arena, (size_t)n_rows, mb_dtype_row_bytes(args->dtype, width13));
    b->workspace_bytes = plan_bytes > gemm_bytes ? plan_bytes : gemm_bytes;
    b->workspace = mb_arena_push(arena, b->workspace_bytes, 1);
    return MB_OK;
}

mb_status mb_moe_backward_ref_workspace(const mb_moe_backward_args *most, size_t *bytes) {
    MB_TRY(mb_moe_backward_check_sizes(most));
    mb_arena arena;
    backward b;
    mb_arena_measure(&arena);
    if (most->n_tokens > 0)
        MB_TRY(cut_workspace(most, &arena, &b));
    return mb_workspace_measured("moe_backward", &arena, bytes);
}

/* ---- Rows: h, dp, dweights ----------------------------------------------------------------------------- */

/* act(x) and act'(x). */
static double activation_slope(mb_activation activation, double x, double *slope) {
    switch (activation) {
    case MB_ACT_SWIGLU:
    case MB_ACT_SILU: {
        double sigmoid = 1 / (1 + exp(-x));
        *slope = sigmoid + x * sigmoid * (1 - sigmoid);
        return x * sigmoid;
    }
    case MB_ACT_GEGLU:
    case MB_ACT_GELU: { /* x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
        const double scale = 1.5957691216057308, cubic = 0.044715;
        double sigmoid = 1 / (1 + exp(-scale * (x + cubic * x * x * x)));
        /* 0 times the square of a large x would be NaN. */
        double tail = sigmoid * (1 - sigmoid);
        *slope = sigmoid + (tail > 0 ? x * tail * scale * (1 + 3 * cubic * x * x) : 0);
        return x * sigmoid;
    }
    case MB_ACT_REGLU:
    case MB_ACT_RELU:
        *slope = x > 0;
        return x < 0 ? 0 : x;
    case MB_ACT_RELU2:
        *slope = x > 0 ? 2 * x : 0;
        return x < 0 ? 0 : x * x;
    default:
        *slope = 1;
        return x;
    }
}

/* sums[i] = w2[e][., first + i] . d_out[t] */
static void sum_dh(const mb_moe_backward_args *args, int64_t e, int64_t t, int64_t first, int64_t n,
                   double *sums) {
    int64_t hidden = args->hidden, intermediate = args->intermediate;
    float d_out[PIECE], w2[PIECE];
    memset(sums, 0, (size_t)n * sizeof *sums);
    for (int64_t row = 0; row < hidden; row++) {
        if (row % PIECE == 0)
            mb_load_f32(args->dtype, args->d_out, t * hidden + row,
                        hidden - row < PIECE ? hidden - row : PIECE, d_out);
        mb_load_f32(args->dtype, args->w2.data, (e * hidden + row) * intermediate + first, n, w2);
        for (int64_t i = 0; i < n; i++)
            sums[i] += (double)d_out[row % PIECE] * (double)w2[i];
    }
}

static double bias_part(const mb_moe_backward_args *args, int64_t e, int64_t t) {
    float bias[PIECE], d_out[PIECE];
    double sum = 0;
    for (int64_t first = 0; args->bias2 && first < args->hidden; first += PIECE) {
        int64_t n = args->hidden - first < PIECE ? args->hidden - first : PIECE;
        mb_load_f32(args->dtype, args->bias2, e * args->hidden + first, n, bias);
        mb_load_f32(args->dtype, args->d_out, t * args->hidden + first, n, d_out);
        for (int64_t i = 0; i < n; i++)
            sum += (double)bias[i] * (double)d_out[i];
    }
    return sum;
}

static void row_gradients(const void *context, int64_t choice) {
    const backward *b = context;
    const mb_moe_backward_args *args = b->args;
    int64_t row = b->plan.token_row[choice], t = choice / args->top_k, width = args->intermediate;
    if (row < 0) {
        if (args->dweights)
            args->dweights[choice] = 0;
        return;
    }
    int64_t e = (int64_t)args->ids[choice] - args->first_expert;
    int gated = mb_activation_is_gated(args->activation);
    float gate[PIECE], up[PIECE], *h = b->h + row * width, *dp = b->dp + row * b->width13;
    double dh[PIECE], weight = (double)args->weights[choice], dweight = bias_part(args, e, t);
    b->row_choice[row] = (int32_t)choice;
    for (int64_t first = 0; first < width; first += PIECE) {
        int64_t n = width - first < PIECE ? width - first : PIECE;
        sum_dh(args, e, t, first, n, dh);
        mb_load_f32(args->dtype, b->p, row * b->width13 + first, n, gate);
        if (gated)
            mb_load_f32(args->dtype, b->p, row * b->width13 + width + first, n, up);
        for (int64_t i = 0; i < n; i++) {
            double slope, value = activation_slope(args->activation, (double)gate[i], &slope);
            double factor = gated ? (double)up[i] : 1;
            h[first + i] = (float)(value * factor);
            dweight += dh[i] * value * factor;
            dp[first + i] = (float)(weight * dh[i] * factor * slope);
            if (gated)
                dp[width + first + i] = (float)(weight * dh[i] * value);
        }
    }
    if (args->dweights)
        args->dweights[choice] = (float)dweight;
}

/* ---- Tokens: dx ---------------------------------------------------------------------------------------- */

static void store_sums(mb_dtype dtype, void *array, int64_t first, int64_t n, int add, const double *sums) {
    float values[PIECE];
    if (add)
        mb_load_f32(dtype, array, first, n, values);
    for (int64_t i = 0; i < n; i++)
        values[i] = (float)(sums[i] + (add ? (double)values[i] : 0));
    mb_store_f32(dtype, array, first, n, values);
}

static void token_gradient(const void *context, int64_t t) {
    const backward *b = context;
    const mb_moe_backward_args *args = b->args;
    int64_t hidden = args->hidden;
    for (int64_t first = 0; first < hidden; first += PIECE) {
        int64_t n = hidden - first < PIECE ? hidden - first : PIECE;
        double sums[PIECE] = {0};
        float w13[PIECE];
        for (int64_t choice = t * args->top_k; choice < (t + 1) * args->top_k; choice++) {
            int64_t row = b->plan.token_row[choice], e = (int64_t)args->ids[choice] - args->first_expert;
            for (int64_t j = 0; row >= 0 && j < b->width13; j++) {
                double dp = (double)b->dp[row * b->width13 + j];
                mb_load_f32(args->dtype, args->w13.data, (e * b->width13 + j) * hidden + first, n, w13);
                for (int64_t i = 0; i < n; i++)
                    sums[i] += dp * (double)w13[i];
            }
        }
        store_sums(args->dtype, args->dx, t * hidden + first, n, 0, sums);
    }
}

/* ---- Weights ------------------------------------------------------------------------------------------- */

/* Row `item % H` of expert item / H: dw2 and dbias2. */
static void w2_gradient(const void *context, int64_t item) {
    const backward *b = context;
    const mb_moe_backward_args *args = b->args;
    int64_t e = item / args->hidden, column = item % args->hidden, width = args->intermediate;
    int64_t begin = b->plan.offsets[e], end = b->plan.offsets[e + 1];
    double bias = 0;
    for (int64_t first = 0; first < width; first += PIECE) {
        int64_t n = width - first < PIECE ? width - first : PIECE;
        double sums[PIECE] = {0};
        for (int64_t row = begin; row < end; row++) {
            float d_out;
            int64_t choice = b->row_choice[row], t = choice / args->top_k;
            mb_load_f32(args->dtype, args->d_out, t * args->hidden + column, 1, &d_out);
            double scaled = (double)args->weights[choice] * (double)d_out;
            if (first == 0)
                bias += scaled;
            for (int64_t i = 0; args->dw2 && i < n; i++)
                sums[i] += scaled * (double)b->h[row * width + first + i];
        }
        if (args->dw2)
            store_sums(args->grad_dtype, args->dw2, item * width + first, n, args->accumulate, sums);
    }
    if (args->dbias2)
        store_sums(args->grad_dtype, args->dbias2, item, 1, args->accumulate, &bias);
}

/* Row `item % width13` of expert item / width13: dw13 and dbias13. */
static void w13_gradient(const void *context, int64_t item) {
    const backward *b = context;
    const mb_moe_backward_args *args = b->args;
    int64_t e = item / b->width13, j = item % b->width13, hidden = args->hidden;
    int64_t begin = b->plan.offsets[e], end = b->plan.offsets[e + 1];
    double bias = 0;
    for (int64_t first = 0; first < hidden; first += PIECE) {
        int64_t n = hidden - first < PIECE ? hidden - first : PIECE;
        double sums[PIECE] = {0};
        float x[PIECE];
        for (int64_t row = begin; row < end; row++) {
            double dp = (double)b->dp[row * b->width13 + j];
            if (first == 0)
                bias += dp;
            if (!args->dw13)
                continue;
            mb_load_f32(args->dtype, args->x, b->plan.row_token[row] * hidden + first, n, x);
            for (int64_t i = 0; i < n; i++)
                sums[i] += dp * (double)x[i];
        }
        if (args->dw13)
            store_sums(args->grad_dtype, args->dw13, item * hidden + first, n, args->accumulate, sums);
    }
    if (args->dbias13)
        store_sums(args->grad_dtype, args->dbias13, item, 1, args->accumulate, &bias);
}

/* No tokens: gradients that are not added to what is there are zeros. */
static void clear_gradients(const mb_moe_backward_args *args) {
    size_t rows13 = (size_t)args->w13.count * (size_t)args->w13.rows * mb_dtype_bytes(args->grad_dtype);
    size_t rows2 = (size_t)args->w2.count * (size_t)args->w2.rows * mb_dtype_bytes(args->grad_dtype);
    if (args->dw13)
        memset(args->dw13, 0, rows13 * (size_t)args->hidden);
    if (args->dw2)
        memset(args->dw2, 0, rows2 * (size_t)args->intermediate);
    if (args->dbias13)
        memset(args->dbias13, 0, rows13);
    if (args->dbias2)
        memset(args->dbias2, 0, rows2);
}

mb_status mb_moe_backward_ref(const mb_moe_backward_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream) {
    MB_TRY(mb_moe_backward_check(args));
    if (args->n_tokens == 0) {
        if (!args->accumulate)
            clear_gradients(args);
        return MB_OK;
    }
    size_t needed;
    MB_TRY(mb_moe_backward_ref_workspace(args, &needed));
    MB_TRY(mb_workspace_check("moe_backward", workspace, workspace_bytes, needed));
    mb_arena arena;
    backward b;
    mb_arena_init(&arena, workspace, workspace_bytes, 1);
    MB_TRY(cut_workspace(args, &arena, &b));
    MB_TRY(mb_moe_plan_ref(&b.plan, b.workspace, b.workspace_bytes, stream));
    if (!b.p) {
        MB_TRY(mb_grouped_gemm_ref(&b.gemm, b.workspace, b.workspace_bytes, stream));
        b.p = b.gemm.out;
    }
    double n_rows = (double)b.gemm.n_rows, hidden = args->hidden;
    double work2 = n_rows * hidden * args->intermediate, work13 = n_rows * hidden * (double)b.width13;
    mb_parallel_for(stream, work2, b.gemm.n_rows, row_gradients, &b);
    if (args->dx)
        mb_parallel_for(stream, work13, args->n_tokens, token_gradient, &b);
    if (args->dw2 || args->dbias2)
        mb_parallel_for(stream, work2, (int64_t)args->n_local_experts * args->hidden, w2_gradient, &b);
    if (args->dw13 || args->dbias13)
        mb_parallel_for(stream, work13, args->n_local_experts * b.width13, w13_gradient, &b);
    return MB_OK;
}
