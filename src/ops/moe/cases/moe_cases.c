#include "ops/moe/cases/cases.h"

#include "ops/common/dtype.h"

#include <math.h>
#include <string.h>

double mb_case_activate(mb_activation activation, double gate, double up) {
    double sigmoid = 1 / (1 + exp(-gate));
    double gelu = 0.5 * gate * (1 + tanh(sqrt(2 / acos(-1.0)) * (gate + 0.044715 * pow(gate, 3))));
    switch (activation) {
    case MB_ACT_SWIGLU:
        return gate * sigmoid * up;
    case MB_ACT_GEGLU:
        return gelu * up;
    case MB_ACT_REGLU:
        return fmax(gate, 0) * up;
    case MB_ACT_SILU:
        return gate * sigmoid;
    case MB_ACT_GELU:
        return gelu;
    case MB_ACT_RELU:
        return fmax(gate, 0);
    case MB_ACT_RELU2:
        return pow(fmax(gate, 0), 2);
    case MB_ACT_NONE:
        return gate;
    }
    return NAN;
}

int mb_case_is_gated(mb_activation activation) {
    return activation <= MB_ACT_REGLU;
}

static void check_activation(mb_check *check, mb_activation activation, mb_dtype dtype, int64_t n_rows,
                             int32_t width) {
    mb_check_begin(check, "gated_activation %d %s rows=%lld I=%d", (int)activation, mb_dtype_name(dtype),
                   (long long)n_rows, width);
    int64_t gated = mb_case_is_gated(activation), in_width = width * (1 + gated);
    double *expected = mb_check_alloc(check, (size_t)(n_rows * width) * sizeof *expected);
    mb_gated_activation_args args = {
        .x = mb_check_values(check, dtype, n_rows * in_width, -10, 10),
        .out = mb_check_alloc(check, (size_t)(n_rows * width) * mb_dtype_bytes(dtype)),
        .n_rows = n_rows,
        .intermediate = width,
        .activation = activation,
        .dtype = dtype,
    };
    for (int64_t r = 0; r < n_rows; r++)
        for (int32_t i = 0; i < width; i++) {
            double gate = mb_check_value(dtype, args.x, r * in_width + i);
            double up = gated ? mb_check_value(dtype, args.x, r * in_width + width + i) : 0;
            expected[r * width + i] = mb_case_activate(activation, gate, up);
        }
    MB_CHECK_CALL(check, check->ops->gated_activation(&args, check->stream));
    mb_check_compare(check, "out", dtype, args.out, expected, n_rows * width);
    mb_check_end(check, 0, (double)(n_rows * (in_width + width)) * (double)mb_dtype_bytes(dtype));
}

/* One row: K times the largest logit that was not taken yet; the first of equal ones. */
static void expect_route(const mb_moe_route_args *args, int64_t t, int32_t *ids, double *weights) {
    double logits[1024], all = 0, chosen = 0;
    int taken[1024] = {0};
    for (int32_t e = 0; e < args->n_experts; e++) {
        logits[e] = mb_check_value(args->logits_dtype, args->logits, t * args->n_experts + e);
        all += exp(logits[e]);
    }
    for (int32_t k = 0; k < args->top_k; k++) {
        int32_t best = -1;
        for (int32_t e = 0; e < args->n_experts; e++)
            if (!taken[e] && (best < 0 || logits[e] > logits[best]))
                best = e;
        taken[best] = 1;
        ids[k] = best;
        chosen += exp(logits[best]);
    }
    int over_all = args->order == MB_ROUTE_SOFTMAX_TOPK && !args->renormalize;
    for (int32_t k = 0; k < args->top_k; k++)
        weights[k] = exp(logits[ids[k]]) / (over_all ? all : chosen);
}

static void check_route(mb_check *check, mb_dtype dtype, mb_route_order order, int32_t renormalize,
                        int64_t n_tokens, int32_t n_experts, int32_t top_k) {
    mb_check_begin(check, "moe_route %s order=%d renormalize=%d T=%lld E=%d K=%d", mb_dtype_name(dtype),
                   (int)order, renormalize, (long long)n_tokens, n_experts, top_k);
    size_t n = (size_t)n_tokens * (size_t)top_k;
    int32_t *expected_ids = mb_check_alloc(check, n * sizeof *expected_ids);
    int32_t *nan_flag = mb_check_alloc(check, sizeof *nan_flag);
    *nan_flag = 0;
    double *expected = mb_check_alloc(check, n * sizeof *expected);
    mb_moe_route_args args = {
        .logits = mb_check_values(check, dtype, n_tokens * n_experts, -4, 4), /* in bf16 many are equal */
        .weights = mb_check_alloc(check, n * sizeof(float)),
        .ids = mb_check_alloc(check, n * sizeof(int32_t)),
        .nan_flag = nan_flag,
        .n_tokens = n_tokens,
        .n_experts = n_experts,
        .top_k = top_k,
        .logits_dtype = dtype,
        .order = order,
        .renormalize = renormalize,
    };
    for (int64_t t = 0; t < n_tokens; t++)
        expect_route(&args, t, expected_ids + t * top_k, expected + t * top_k);
    MB_CHECK_CALL(check, check->ops->moe_route(&args, check->stream));
    for (size_t i = 0; i < n; i++)
        if (args.ids[i] != expected_ids[i]) {
            mb_check_fail(check, "ids[%zu] is %d, expected %d", i, args.ids[i], expected_ids[i]);
            break;
        }
    if (*nan_flag)
        mb_check_fail(check, "nan_flag is set without a NaN");
    mb_check_compare(check, "weights", MB_F32, args.weights, expected, (int64_t)n);
    mb_check_end(check, 0, (double)(n_tokens * n_experts) * (double)mb_dtype_bytes(dtype));
}

typedef enum routing { SPREAD, ALL_TO_ONE, RAGGED } routing;

typedef struct shape {
    int64_t n_tokens;
    int32_t hidden, intermediate, top_k, n_experts, first_expert, n_local_experts;
    routing routing;
} shape;

/* K distinct experts per token: any, starting with the same one always, or mostly of the lower ids. */
static void choose_experts(mb_check *check, const shape *s, int32_t *ids) {
    for (int64_t t = 0; t < s->n_tokens; t++)
        for (int32_t k = 0; k < s->top_k; k++) {
            int32_t *row = ids + t * s->top_k, repeated;
            do {
                double u = mb_check_uniform(check, 0, 1);
                row[k] = (int32_t)((s->routing == RAGGED ? u * u * u : u) * s->n_experts);
                if (s->routing == ALL_TO_ONE && k == 0)
                    row[k] = s->first_expert;
                repeated = 0;
                for (int32_t j = 0; j < k; j++)
                    repeated |= row[j] == row[k];
            } while (repeated);
        }
}

static double dot_row(const mb_weight *weight, int64_t matrix, int64_t row, const double *x) {
    double sum = 0;
    for (int64_t i = 0; i < weight->cols; i++)
        sum += mb_check_weight_value(weight, matrix, row, i) * x[i];
    return sum;
}

/* out += weight * expert e of x, one token, rounded where moe.h says; scratch holds 2I + I numbers. */
static void add_expert(const mb_check *check, const mb_moe_experts_args *args, int64_t e, double weight,
                       const double *x, double *scratch, double *out) {
    int64_t n13 = args->w13.rows, width = args->intermediate, h = args->hidden;
    double *activated = scratch + n13;
    for (int64_t i = 0; i < n13; i++) {
        double bias = args->bias13 ? mb_check_value(args->dtype, args->bias13, e * n13 + i) : 0;
        scratch[i] = dot_row(&args->w13, e, i, x) + bias;
        if (!check->on_gpu) /* there gate and up stay in fp32 until they are activated */
            scratch[i] = mb_check_round(args->dtype, scratch[i]);
    }
    for (int64_t i = 0; i < width; i++) {
        double up = n13 > width ? scratch[width + i] : 0;
        activated[i] = mb_check_round(args->dtype, mb_case_activate(args->activation, scratch[i], up));
    }
    for (int64_t i = 0; i < h; i++) {
        double bias = args->bias2 ? mb_check_value(args->dtype, args->bias2, e * h + i) : 0;
        out[i] += weight * mb_check_round(args->dtype, dot_row(&args->w2, e, i, activated) + bias);
    }
}

/* The router's arguments for the same tokens; ids and weights are its to write. */
static mb_moe_route_args route_in_front(mb_check *check, const shape *s) {
    size_t n = (size_t)(s->n_tokens * s->top_k);
    return (mb_moe_route_args){
        .logits = mb_check_values(check, MB_BF16, s->n_tokens * s->n_experts, -4, 4),
        .weights = mb_check_alloc(check, n * sizeof(float)),
        .ids = mb_check_alloc(check, n * sizeof(int32_t)),
        .n_tokens = s->n_tokens,
        .n_experts = s->n_experts,
        .top_k = s->top_k,
        .logits_dtype = MB_BF16,
        .renormalize = 1,
    };
}

typedef struct weight_kind {
    mb_dtype dtype;
    int per_tensor; /* fp8 with one scale a matrix, else with block scales */
} weight_kind;

static mb_weight make_weight(mb_check *check, weight_kind kind, int64_t count, int64_t rows, int64_t cols) {
    return kind.per_tensor ? mb_check_weight_per_tensor(check, count, rows, cols)
                           : mb_check_weight(check, kind.dtype, count, rows, cols);
}

/* tests/gpu/moe_check.cu has them. */
static const char F8_REASON[] = "x and the activated product become fp8 on the GPU, which fp64 here does not";

typedef enum extras { PLAIN, ADDENDS, ROUTED, FP8 } extras;

/* x in fp8: any numbers, not those of x, which is not read then. */
static const void *random_x8(mb_check *check, int64_t n_tokens, int64_t hidden, const float **scale) {
    *scale = mb_check_values(check, MB_F32, n_tokens * mb_f8_blocks(hidden), 1 / 448.0, 2 / 448.0);
    return mb_check_values(check, MB_F8_E4M3, n_tokens * hidden, -448, 448);
}

/* Row t of x, or of x8. */
static void read_row(mb_dtype dtype, const void *x, const void *x8, const float *scale, int64_t t,
                     int64_t hidden, double *row) {
    for (int64_t i = 0; i < hidden; i++)
        row[i] = x8 ? mb_check_value(MB_F8_E4M3, x8, t * hidden + i) *
                          (double)scale[t * mb_f8_blocks(hidden) + i / MB_F8_BLOCK]
                    : mb_check_value(dtype, x, t * hidden + i);
}

static void check_forward(mb_check *check, const shape *s, mb_activation activation, mb_dtype dtype,
                          weight_kind kind, extras with) {
    static const char *const names[] = {"", " bias residual shared", " routed", " x8"};
    mb_check_begin(check, "moe_forward act=%d %s w=%s%s T=%lld H=%d I=%d K=%d E=%d local=%d+%d routing=%d%s",
                   (int)activation, mb_dtype_name(dtype), mb_dtype_name(kind.dtype),
                   kind.per_tensor ? "/tensor" : "", (long long)s->n_tokens, s->hidden, s->intermediate,
                   s->top_k, s->n_experts, s->first_expert, s->n_local_experts, (int)s->routing, names[with]);
    int with_extras = with == ADDENDS;
    int64_t n_choices = s->n_tokens * s->top_k, n = s->n_tokens * s->hidden;
    int64_t n13 = (int64_t)s->intermediate * (mb_case_is_gated(activation) ? 2 : 1);
    int32_t *ids = mb_check_alloc(check, (size_t)n_choices * sizeof *ids);
    choose_experts(check, s, ids);
    float *given_weights = mb_check_values(check, MB_F32, n_choices, 0, 1);
    double *weights = mb_check_alloc(check, (size_t)n_choices * sizeof *weights);
    for (int64_t i = 0; i < n_choices; i++)
        weights[i] = (double)given_weights[i];
    mb_moe_forward_args args = {
        .x = mb_check_values(check, dtype, n, -2, 2),
        .weights = given_weights,
        .ids = ids,
        .w13 = make_weight(check, kind, s->n_local_experts, n13, s->hidden),
        .w2 = make_weight(check, kind, s->n_local_experts, s->hidden, s->intermediate),
        .out = mb_check_alloc(check, (size_t)n * mb_dtype_bytes(dtype)),
        .n_tokens = s->n_tokens,
        .hidden = s->hidden,
        .intermediate = s->intermediate,
        .top_k = s->top_k,
        .n_experts = s->n_experts,
        .first_expert = s->first_expert,
        .n_local_experts = s->n_local_experts,
        .dtype = dtype,
        .activation = activation,
        .f32_math = MB_F32_EXACT,
    };
    if (check->on_gpu && kind.dtype == MB_F8_E4M3)
        mb_check_skip(check, F8_REASON);
    if (with == FP8)
        args.x8 = random_x8(check, s->n_tokens, s->hidden, &args.x8_scale);
    mb_moe_route_args route = {0};
    if (with == ROUTED) {
        route = route_in_front(check, s);
        args.route = &route;
        args.ids = route.ids;
        args.weights = route.weights;
        for (int64_t t = 0; t < s->n_tokens; t++)
            expect_route(&route, t, ids + t * s->top_k, weights + t * s->top_k);
    }
    if (with_extras) {
        args.bias13 = mb_check_values(check, dtype, s->n_local_experts * n13, -1, 1);
        args.bias2 = mb_check_values(check, dtype, s->n_local_experts * (int64_t)s->hidden, -1, 1);
        args.residual = mb_check_values(check, dtype, n, -1, 1);
        args.shared = mb_check_values(check, dtype, n, -1, 1);
    }
    double *expected = mb_check_alloc(check, (size_t)n * sizeof *expected);
    double *x = mb_check_alloc(check, (size_t)s->hidden * sizeof *x);
    double *scratch = mb_check_alloc(check, (size_t)(n13 + s->intermediate) * sizeof *scratch);
    const mb_moe_experts_args experts = {
        .w13 = args.w13,
        .w2 = args.w2,
        .bias13 = args.bias13,
        .bias2 = args.bias2,
        .hidden = args.hidden,
        .intermediate = args.intermediate,
        .dtype = dtype,
        .activation = activation,
    };
    double n_used = 0;
    for (int64_t t = 0; t < s->n_tokens; t++) {
        double *out = expected + t * s->hidden;
        read_row(dtype, args.x, args.x8, args.x8_scale, t, s->hidden, x);
        for (int32_t i = 0; i < s->hidden; i++) {
            int64_t at = t * s->hidden + i;
            out[i] = with_extras
                         ? mb_check_value(dtype, args.residual, at) + mb_check_value(dtype, args.shared, at)
                         : 0;
        }
        for (int32_t k = 0; k < s->top_k; k++) {
            int32_t e = ids[t * s->top_k + k] - s->first_expert;
            if (e < 0 || e >= s->n_local_experts)
                continue;
            n_used++;
            add_expert(check, &experts, e, weights[t * s->top_k + k], x, scratch, out);
        }
    }
    size_t workspace_bytes = 0;
    mb_check_ok(check, check->ops->moe_forward_workspace(&args, &workspace_bytes));
    void *workspace = mb_check_alloc(check, workspace_bytes);
    MB_CHECK_CALL(check, check->ops->moe_forward(&args, workspace, workspace_bytes, check->stream));
    mb_check_compare(check, "out", dtype, args.out, expected, n);
    double per_expert = (double)(n13 + s->intermediate) * s->hidden;
    mb_check_end(check, 2 * n_used * per_expert,
                 fmin(n_used, s->n_local_experts) * per_expert * (double)mb_dtype_bytes(kind.dtype));
}

typedef struct expert_rows {
    int64_t n_rows, n_in_front, n_behind; /* rows of y; of them in front of and behind the experts' rows */
    int64_t n_tokens;                     /* rows of x that row_index names; 0: no row_index */
    int32_t hidden, intermediate, n_experts;
} expert_rows;

/* Rows of experts chosen at random, so that some have none. */
static int32_t *random_offsets(mb_check *check, const expert_rows *s) {
    int32_t *offsets = mb_check_alloc(check, ((size_t)s->n_experts + 1) * sizeof *offsets);
    memset(offsets, 0, ((size_t)s->n_experts + 1) * sizeof *offsets);
    for (int64_t r = s->n_in_front; r < s->n_rows - s->n_behind; r++)
        offsets[1 + mb_check_random(check) % (uint64_t)s->n_experts]++;
    offsets[0] = (int32_t)s->n_in_front;
    for (int32_t e = 0; e < s->n_experts; e++)
        offsets[e + 1] += offsets[e];
    return offsets;
}

static void check_experts(mb_check *check, const expert_rows *s, mb_activation activation, mb_dtype dtype,
                          weight_kind kind, int with_bias, int in_fp8) {
    mb_check_begin(check, "moe_experts act=%d %s w=%s%s R=%lld (%lld+..+%lld) T=%lld H=%d I=%d E=%d%s%s",
                   (int)activation, mb_dtype_name(dtype), mb_dtype_name(kind.dtype),
                   kind.per_tensor ? "/tensor" : "", (long long)s->n_rows, (long long)s->n_in_front,
                   (long long)s->n_behind, (long long)s->n_tokens, s->hidden, s->intermediate, s->n_experts,
                   with_bias ? " bias" : "", in_fp8 ? " x8" : "");
    int64_t n13 = (int64_t)s->intermediate * (mb_case_is_gated(activation) ? 2 : 1), h = s->hidden;
    int64_t n_x_rows = s->n_tokens > 0 ? s->n_tokens : s->n_rows, n = s->n_rows * h;
    int32_t *row_index = mb_check_alloc(check, (size_t)s->n_rows * sizeof *row_index);
    for (int64_t r = 0; r < s->n_rows; r++)
        row_index[r] =
            s->n_tokens > 0 ? (int32_t)(mb_check_random(check) % (uint64_t)s->n_tokens) : (int32_t)r;
    mb_moe_experts_args args = {
        .x = mb_check_values(check, dtype, n_x_rows * h, -2, 2),
        .row_index = s->n_tokens > 0 ? row_index : NULL,
        .offsets = random_offsets(check, s),
        .w13 = make_weight(check, kind, s->n_experts, n13, h),
        .w2 = make_weight(check, kind, s->n_experts, h, s->intermediate),
        .bias13 = with_bias ? mb_check_values(check, dtype, s->n_experts * n13, -1, 1) : NULL,
        .bias2 = with_bias ? mb_check_values(check, dtype, s->n_experts * h, -1, 1) : NULL,
        .y = mb_check_alloc(check, mb_dtype_row_bytes(dtype, n)),
        .n_tokens = n_x_rows,
        .n_rows = s->n_rows,
        .hidden = s->hidden,
        .intermediate = s->intermediate,
        .n_local_experts = s->n_experts,
        .dtype = dtype,
        .activation = activation,
        .f32_math = MB_F32_EXACT,
    };
    if (check->on_gpu && kind.dtype == MB_F8_E4M3)
        mb_check_skip(check, F8_REASON);
    if (in_fp8)
        args.x8 = random_x8(check, n_x_rows, h, &args.x8_scale);
    double *expected = mb_check_alloc(check, (size_t)n * sizeof *expected);
    double *x = mb_check_alloc(check, (size_t)h * sizeof *x);
    double *scratch = mb_check_alloc(check, (size_t)(n13 + s->intermediate) * sizeof *scratch);
    memset(expected, 0, (size_t)n * sizeof *expected);
    for (int32_t e = 0; e < s->n_experts; e++)
        for (int64_t r = args.offsets[e]; r < args.offsets[e + 1]; r++) {
            read_row(dtype, args.x, args.x8, args.x8_scale, row_index[r], h, x);
            add_expert(check, &args, e, 1, x, scratch, expected + r * h);
        }
    size_t workspace_bytes = 0;
    mb_check_ok(check, check->ops->moe_experts_workspace(&args, &workspace_bytes));
    void *workspace = mb_check_alloc(check, workspace_bytes);
    MB_CHECK_CALL(check, check->ops->moe_experts(&args, workspace, workspace_bytes, check->stream));
    int64_t first = args.offsets[0], n_own = args.offsets[s->n_experts] - first;
    size_t row_bytes = mb_dtype_row_bytes(dtype, h);
    mb_check_compare(check, "y", dtype, (const char *)args.y + (size_t)first * row_bytes,
                     expected + first * h, n_own * h);
    mb_check_untouched(check, args.y, 0, (size_t)first * row_bytes);
    mb_check_untouched(check, args.y, (size_t)(first + n_own) * row_bytes, (size_t)s->n_behind * row_bytes);
    double per_expert = (double)(n13 + s->intermediate) * s->hidden;
    mb_check_end(check, 2 * (double)n_own * per_expert,
                 fmin((double)n_own, s->n_experts) * per_expert * (double)mb_dtype_bytes(kind.dtype));
}

/* in_place: the residual is out, and a second call would add it again. */
static void check_reduce(mb_check *check, mb_dtype dtype, mb_dtype out_dtype, int64_t n_tokens,
                         int32_t hidden, int32_t top_k, int in_place) {
    mb_check_begin(check, "moe_reduce %s out=%s T=%lld H=%d K=%d%s", mb_dtype_name(dtype),
                   mb_dtype_name(out_dtype), (long long)n_tokens, hidden, top_k,
                   in_place ? " residual=out shared" : "");
    int64_t n_rows = n_tokens * top_k, n = n_tokens * hidden;
    int32_t *token_row = mb_check_alloc(check, (size_t)n_rows * sizeof *token_row);
    for (int64_t i = 0; i < n_rows; i++) /* about a quarter is dropped */
        token_row[i] = mb_check_random(check) % 4 ? (int32_t)(mb_check_random(check) % (uint64_t)n_rows) : -1;
    mb_moe_reduce_args args = {
        .y = mb_check_values(check, dtype, n_rows * hidden, -1, 1),
        .weights = mb_check_values(check, MB_F32, n_rows, 0, 1),
        .token_row = token_row,
        .out = in_place ? mb_check_values(check, out_dtype, n, -1, 1)
                        : mb_check_alloc(check, (size_t)n * mb_dtype_bytes(out_dtype)),
        .n_tokens = n_tokens,
        .hidden = hidden,
        .top_k = top_k,
        .dtype = dtype,
        .out_dtype = out_dtype,
    };
    args.residual = in_place ? args.out : NULL;
    args.shared = in_place ? mb_check_values(check, out_dtype, n, -1, 1) : NULL;
    double *expected = mb_check_alloc(check, (size_t)n * sizeof *expected);
    for (int64_t i = 0; i < n; i++) {
        int64_t t = i / hidden;
        expected[i] =
            in_place ? mb_check_value(out_dtype, args.residual, i) + mb_check_value(out_dtype, args.shared, i)
                     : 0;
        for (int64_t j = t * top_k; j < (t + 1) * top_k; j++)
            if (token_row[j] >= 0)
                expected[i] += (double)args.weights[j] *
                               mb_check_value(dtype, args.y, token_row[j] * (int64_t)hidden + i % hidden);
    }
    double min_seconds = check->min_seconds;
    check->min_seconds = in_place ? 0 : min_seconds;
    MB_CHECK_CALL(check, check->ops->moe_reduce(&args, check->stream));
    check->min_seconds = min_seconds;
    mb_check_compare(check, "out", out_dtype, args.out, expected, n);
    mb_check_end(check, 2.0 * (double)n * top_k,
                 (double)n * (top_k * (double)mb_dtype_bytes(dtype) + (double)mb_dtype_bytes(out_dtype)));
}

void mb_moe_cases(mb_check *check) {
    static const mb_dtype dtypes[] = {MB_F32, MB_BF16, MB_F16};
    for (int activation = MB_ACT_SWIGLU; activation <= MB_ACT_RELU2; activation++)
        for (int a = 0; a < 3; a++) {
            check_activation(check, (mb_activation)activation, dtypes[a], 0, 8);
            check_activation(check, (mb_activation)activation, dtypes[a], 1, 1);
            check_activation(check, (mb_activation)activation, dtypes[a], 37, 300);
        }

    static const int32_t routes[][3] = {{0, 8, 2},   {1, 1, 1},    {7, 5, 5},     {3, 32, 32},
                                        {33, 17, 3}, {64, 128, 8}, {5, 1024, 32}, {300, 128, 8}};
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++)
        for (int variant = 0; variant < 8; variant++)
            check_route(check, variant & 1 ? MB_BF16 : MB_F32,
                        variant & 2 ? MB_ROUTE_TOPK_SOFTMAX : MB_ROUTE_SOFTMAX_TOPK, variant >> 2,
                        routes[i][0], routes[i][1], routes[i][2]);

    static const shape shapes[] = {
        {0, 64, 32, 2, 4, 0, 4, SPREAD},
        {1, 1, 1, 1, 1, 0, 1, SPREAD},
        {5, 17, 100, 1, 3, 0, 3, SPREAD},
        {9, 65, 33, 4, 4, 0, 4, SPREAD},      /* K = E */
        {70, 32, 16, 2, 8, 0, 8, ALL_TO_ONE}, /* more than two tiles of rows for one expert */
        {45, 96, 40, 3, 16, 0, 16, RAGGED},
        {21, 48, 24, 4, 16, 5, 6, SPREAD}, /* one rank's share of the experts */
        {6, 48, 24, 1, 16, 15, 1, SPREAD},
        {1, 256, 256, 2, 16, 0, 16, SPREAD},  /* about the demo model's decode */
        {4, 256, 96, 8, 128, 0, 128, SPREAD}, /* Qwen3-30B-A3B at an eighth of its width */
    };
    static const weight_kind weights[] = {
        {MB_F32, 0}, {MB_BF16, 0}, {MB_F16, 0}, {MB_F8_E4M3, 0}, {MB_F8_E4M3, 1}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int a = 0; a < 3; a++)
            for (int w = 0; w < 5; w++)
                for (int with = PLAIN; with <= FP8; with++)
                    if ((with != ROUTED || w == a) && (with != FP8 || w == 3))
                        check_forward(check, &shapes[i], MB_ACT_SWIGLU, dtypes[a], weights[w], (extras)with);
    for (int activation = MB_ACT_GEGLU; activation <= MB_ACT_RELU2; activation++)
        for (int a = 0; a < 3; a++)
            check_forward(check, &shapes[5], (mb_activation)activation, dtypes[a], weights[a], ADDENDS);

    static const expert_rows rows[] = {
        {0, 0, 0, 0, 16, 8, 3},    {1, 0, 0, 0, 17, 9, 1},      {40, 2, 3, 0, 48, 40, 6},
        {75, 0, 0, 20, 64, 24, 2}, {33, 7, 1, 500, 32, 16, 40}, /* rows of x that nobody names */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (int a = 0; a < 3; a++)
            for (int w = 0; w < 5; w++)
                for (int in_fp8 = 0; in_fp8 <= (w == 3); in_fp8++)
                    check_experts(check, &rows[i], w % 2 ? MB_ACT_RELU2 : MB_ACT_SWIGLU, dtypes[a],
                                  weights[w], i % 2 == 0, in_fp8);

    static const int32_t sums[][3] = {{0, 16, 2}, {1, 1, 1}, {7, 300, 1}, {33, 520, 8}, {5, 64, 32}};
    for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++)
        for (int a = 0; a < 3; a++)
            for (int variant = 0; variant < 4; variant++)
                check_reduce(check, dtypes[a], variant & 1 ? MB_F32 : dtypes[a], sums[i][0], sums[i][1],
                             sums[i][2], variant >> 1);
}
