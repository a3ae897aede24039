#include "ops/moe/cases/cases.h"

#include <math.h>

#include "ops/common/dtype.h"

typedef enum lengths { SPREAD, ALL_TO_ONE, RAGGED, DENSE } lengths;

typedef struct shape {
    int32_t n_groups, n, k; /* b is [n_groups, n, k] */
    int32_t n_rows;         /* of all groups together */
    lengths lengths;
} shape;

typedef struct types {
    mb_dtype dtype, out_dtype;
    int per_tensor; /* fp8: one scale for a and for each matrix of b, else blocks */
} types;

typedef enum extras { PLAIN, BIAS_WEIGHT, GATHER, EVERYTHING } extras;

enum { FIRST_ROW = 2, SPARE_ROWS = 3 }; /* rows of no group, in front and behind */

static int32_t *make_offsets(mb_check *check, const shape *s) {
    int32_t *offsets = mb_check_alloc(check, ((size_t)s->n_groups + 1) * sizeof *offsets);
    int32_t *counts = mb_check_alloc(check, (size_t)s->n_groups * sizeof *counts);
    for (int32_t e = 0; e < s->n_groups; e++)
        counts[e] = 0;
    for (int32_t r = 0; r < s->n_rows; r++) {
        double u = mb_check_uniform(check, 0, 1);
        counts[s->lengths == ALL_TO_ONE ? s->n_groups / 2
                                        : (int32_t)((s->lengths == RAGGED ? u * u * u : u) * s->n_groups)]++;
    }
    offsets[0] = FIRST_ROW;
    for (int32_t e = 0; e < s->n_groups; e++)
        offsets[e + 1] = offsets[e] + counts[e];
    return offsets;
}

static double a_value(const mb_grouped_gemm_args *args, int per_tensor, int64_t row, int64_t i) {
    double value = mb_check_value(args->dtype, args->a, row * args->b.cols + i);
    if (!args->a_scale)
        return value;
    int64_t blocks = mb_f8_blocks(args->b.cols);
    return value * (double)(per_tensor ? args->a_scale[0] : args->a_scale[row * blocks + i / MB_F8_BLOCK]);
}

/* Row r of group e: expected[0 .. n_out). scratch holds N + K numbers. */
static void expect_row(const mb_grouped_gemm_args *args, int per_tensor, int64_t e, int64_t r,
                       double *scratch, double *expected) {
    const mb_weight *b = &args->b;
    int64_t source = args->row_index ? args->row_index[r] : r;
    double *products = scratch, *a = scratch + b->rows;
    for (int64_t i = 0; i < b->cols; i++)
        a[i] = a_value(args, per_tensor, source, i);
    int gated = mb_case_is_gated(args->activation);
    int64_t n_out = gated ? b->rows / 2 : b->rows;
    for (int64_t n = 0; n < b->rows; n++) {
        products[n] = args->bias ? mb_check_value(args->bias_dtype, args->bias, e * b->rows + n) : 0;
        for (int64_t i = 0; i < b->cols; i++)
            products[n] += a[i] * mb_check_weight_value(b, e, n, i);
    }
    for (int64_t n = 0; n < n_out; n++)
        expected[n] = mb_case_activate(args->activation, products[n], gated ? products[n_out + n] : 0) *
                      (args->row_weight ? (double)args->row_weight[r] : 1);
}

static void check_gemm(mb_check *check, const shape *s, const types *t, mb_activation activation,
                       extras with) {
    mb_check_begin(check, "grouped_gemm %s%s out=%s act=%d E=%d N=%d K=%d R=%d lengths=%d extras=%d",
                   mb_dtype_name(t->dtype), t->per_tensor ? "/tensor" : "", mb_dtype_name(t->out_dtype),
                   (int)activation, s->n_groups, s->n, s->k, s->n_rows, (int)s->lengths, (int)with);
    int is_f8 = t->dtype == MB_F8_E4M3, dense = s->lengths == DENSE;
    int first = dense ? 0 : FIRST_ROW, n_all = dense ? s->n_rows : first + s->n_rows + SPARE_ROWS;
    int64_t n_sources = with >= GATHER ? n_all / 2 + 1 : n_all,
            a_blocks = t->per_tensor ? 1 : mb_f8_blocks(s->k);
    int64_t n_out = mb_case_is_gated(activation) ? s->n / 2 : s->n, out_blocks = mb_f8_blocks(n_out);
    int32_t *row_index = mb_check_alloc(check, (size_t)n_all * sizeof *row_index);
    int32_t *offsets = dense ? NULL : make_offsets(check, s);
    for (int32_t r = 0; r < n_all; r++) /* rows of no group have no source */
        row_index[r] = r >= first && r < first + s->n_rows
                           ? (int32_t)(mb_check_random(check) % (uint64_t)n_sources)
                           : INT32_MIN;
    mb_dtype bias_dtype = with == EVERYTHING ? MB_BF16 : MB_F32;
    double range = is_f8 ? 448 : 1;
    size_t out_row_bytes = (size_t)n_out * mb_dtype_bytes(t->out_dtype);
    mb_grouped_gemm_args args = {
        .a = mb_check_values(check, t->dtype, n_sources * s->k, -range, range),
        .a_scale = is_f8 ? mb_check_values(check, MB_F32, (t->per_tensor ? 1 : n_sources) * a_blocks,
                                           1 / 448.0, 2 / 448.0)
                         : NULL,
        .row_index = with >= GATHER ? row_index : NULL,
        .offsets = offsets,
        .b = t->per_tensor ? mb_check_weight_per_tensor(check, s->n_groups, s->n, s->k)
                           : mb_check_weight(check, t->dtype, s->n_groups, s->n, s->k),
        .bias = with & BIAS_WEIGHT ? mb_check_values(check, bias_dtype, (int64_t)s->n_groups * s->n, -1, 1)
                                   : NULL,
        .row_weight = with & BIAS_WEIGHT ? mb_check_values(check, MB_F32, n_all, 0, 1) : NULL,
        .out = mb_check_alloc(check, (size_t)n_all * out_row_bytes),
        .out_scale = t->out_dtype == MB_F8_E4M3
                         ? mb_check_alloc(check, (size_t)(n_all * out_blocks) * sizeof(float))
                         : NULL,
        .n_rows = n_all,
        .dtype = t->dtype,
        .out_dtype = t->out_dtype,
        .bias_dtype = bias_dtype,
        .activation = activation,
        .f32_math = MB_F32_EXACT,
    };
    /* tests/gpu/grouped_gemm_check.cu has both */
    if (check->on_gpu && is_f8)
        mb_check_skip(check, "tensor cores sum products of fp8 with fewer bits than fp32");
    if (check->on_gpu && t->out_dtype == MB_F8_E4M3)
        mb_check_skip(check, "on the GPU an fp8 out is rounded to 16 bits first");
    double *expected = mb_check_alloc(check, (size_t)(s->n_rows * n_out) * sizeof *expected);
    double *scratch = mb_check_alloc(check, (size_t)(s->n + s->k) * sizeof *scratch);
    for (int32_t e = 0; e < s->n_groups; e++)
        for (int32_t r = dense ? 0 : offsets[e]; r < (dense ? s->n_rows : offsets[e + 1]); r++)
            expect_row(&args, t->per_tensor, e, r, scratch, expected + (r - first) * n_out);
    size_t workspace_bytes = 0;
    mb_check_ok(check, check->ops->grouped_gemm_workspace(&args, &workspace_bytes));
    void *workspace = mb_check_alloc(check, workspace_bytes);
    MB_CHECK_CALL(check, check->ops->grouped_gemm(&args, workspace, workspace_bytes, check->stream));
    const char *out = (const char *)args.out + (size_t)first * out_row_bytes;
    if (args.out_scale)
        mb_check_compare_quantised(check, "out", (const unsigned char *)out,
                                   args.out_scale + first * out_blocks, expected, s->n_rows, n_out);
    else
        mb_check_compare(check, "out", t->out_dtype, out, expected, s->n_rows * n_out);
    int64_t row_bytes = (int64_t)out_row_bytes, end = first + s->n_rows;
    mb_check_untouched(check, args.out, 0, (size_t)(first * row_bytes));
    mb_check_untouched(check, args.out, (size_t)(end * row_bytes), (size_t)((n_all - end) * row_bytes));
    mb_check_end(check, 2.0 * s->n_rows * s->n * s->k,
                 (double)fmin(s->n_groups, s->n_rows) * s->n * s->k * (double)mb_dtype_bytes(t->dtype));
}

static void check_router(mb_check *check, mb_dtype dtype, mb_dtype weight_dtype, int64_t n_tokens,
                         int32_t hidden, int32_t n_experts, int with_bias) {
    mb_check_begin(check, "moe_router_gemm %s w=%s T=%lld H=%d E=%d%s", mb_dtype_name(dtype),
                   mb_dtype_name(weight_dtype), (long long)n_tokens, hidden, n_experts,
                   with_bias ? " bias" : "");
    mb_weight weight = mb_check_weight(check, weight_dtype, 1, n_experts, hidden);
    double *expected = mb_check_alloc(check, (size_t)(n_tokens * n_experts) * sizeof *expected);
    mb_moe_router_gemm_args args = {
        .x = mb_check_values(check, dtype, n_tokens * hidden, -2, 2),
        .weight = weight.data,
        .bias = with_bias ? mb_check_values(check, MB_F32, n_experts, -1, 1) : NULL,
        .logits = mb_check_alloc(check, (size_t)(n_tokens * n_experts) * sizeof(float)),
        .n_tokens = n_tokens,
        .hidden = hidden,
        .n_experts = n_experts,
        .dtype = dtype,
        .weight_dtype = weight_dtype,
    };
    for (int64_t t = 0; t < n_tokens; t++)
        for (int32_t e = 0; e < n_experts; e++) {
            double sum = with_bias ? mb_check_value(MB_F32, args.bias, e) : 0;
            for (int32_t i = 0; i < hidden; i++)
                sum +=
                    mb_check_value(dtype, args.x, t * hidden + i) * mb_check_weight_value(&weight, 0, e, i);
            expected[t * n_experts + e] = sum;
        }
    size_t workspace_bytes = 0;
    mb_check_ok(check, check->ops->moe_router_gemm_workspace(&args, &workspace_bytes));
    void *workspace = mb_check_alloc(check, workspace_bytes);
    MB_CHECK_CALL(check, check->ops->moe_router_gemm(&args, workspace, workspace_bytes, check->stream));
    mb_check_compare(check, "logits", MB_F32, args.logits, expected, n_tokens * n_experts);
    mb_check_end(check, 2.0 * (double)(n_tokens * n_experts) * hidden,
                 (double)n_experts * hidden * (double)mb_dtype_bytes(weight_dtype));
}

void mb_grouped_gemm_cases(mb_check *check) {
    static const types all_types[] = {
        {MB_F32, MB_F32, 0},      {MB_BF16, MB_BF16, 0},       {MB_BF16, MB_F32, 0},
        {MB_BF16, MB_F8_E4M3, 0}, {MB_F16, MB_F16, 0},         {MB_F16, MB_F32, 0},
        {MB_F16, MB_F8_E4M3, 0},  {MB_F8_E4M3, MB_BF16, 0},    {MB_F8_E4M3, MB_F16, 0},
        {MB_F8_E4M3, MB_F32, 0},  {MB_F8_E4M3, MB_F8_E4M3, 0}, {MB_F8_E4M3, MB_BF16, 1},
        {MB_F8_E4M3, MB_F16, 1},  {MB_F8_E4M3, MB_F32, 1},     {MB_F8_E4M3, MB_F8_E4M3, 1},
    };
    static const shape shapes[] = {
        {1, 2, 1, 1, SPREAD},        {5, 34, 64, 0, SPREAD},    {3, 130, 17, 7, SPREAD},
        {6, 48, 40, 75, ALL_TO_ONE}, /* more than two tiles of rows in one group, the others empty */
        {13, 70, 33, 60, RAGGED},    {2, 600, 260, 5, SPREAD}, /* several scales each way */
        {1, 136, 140, 37, DENSE},    {160, 16, 16, 50, SPREAD},
    };
    enum { N_TYPES = sizeof all_types / sizeof all_types[0], N_SHAPES = sizeof shapes / sizeof shapes[0] };
    for (int i = 0; i < N_SHAPES; i++)
        for (int t = 0; t < N_TYPES; t++)
            for (int with = PLAIN; with <= EVERYTHING; with++)
                check_gemm(check, &shapes[i], &all_types[t], with % 2 ? MB_ACT_SWIGLU : MB_ACT_NONE,
                           (extras)with);
    for (int activation = MB_ACT_SWIGLU; activation <= MB_ACT_NONE; activation++)
        for (int t = 0; t < N_TYPES; t++)
            check_gemm(check, &shapes[4], &all_types[t], (mb_activation)activation, EVERYTHING);

    static const int32_t routers[][3] = {{0, 64, 8},   {1, 1, 1},      {1, 256, 128}, {7, 17, 5},
                                         {65, 40, 13}, {3, 300, 1024}, {20, 130, 160}};
    static const mb_dtype dtypes[] = {MB_F32, MB_BF16, MB_F16};
    for (size_t i = 0; i < sizeof routers / sizeof routers[0]; i++)
        for (int a = 0; a < 3; a++)
            for (int w = 0; w < 3; w++)
                for (int bias = 0; bias < 2; bias++)
                    check_router(check, dtypes[a], dtypes[w], routers[i][0], routers[i][1], routers[i][2],
                                 bias);
}
