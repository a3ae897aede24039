#include "ops/common/check.h"
#include "ops/common/dtype.h"

#include <math.h>

typedef struct shape {
    int64_t n_tokens, n, k;
} shape;

/* The rows that are multiplied: x, x8, or normed and rounded as layers.h says. */
static double *multiplied_rows(mb_check *check, const mb_gemm_args *args) {
    int64_t k_size = args->weight.cols;
    double *rows = mb_check_alloc(check, (size_t)(args->n_tokens * k_size) * sizeof *rows);
    for (int64_t t = 0; t < args->n_tokens; t++) {
        double *row = rows + t * k_size, squares = 0;
        for (int64_t k = 0; k < k_size; k++) {
            int64_t source = args->norm_rows ? args->norm_rows[t] : t, i_scale = t * mb_f8_blocks(k_size);
            row[k] = args->x8 ? mb_check_value(MB_F8_E4M3, args->x8, t * k_size + k) *
                                    (double)args->x8_scale[i_scale + k / MB_F8_BLOCK]
                              : mb_check_value(args->dtype, args->x, source * k_size + k);
            squares += row[k] * row[k];
        }
        for (int64_t k = 0; args->norm_weight.data && k < k_size; k++) {
            double normed = row[k] / sqrt(squares / (double)k_size + (double)args->eps);
            normed = mb_check_round(args->dtype, normed) * mb_check_weight_value(&args->norm_weight, 0, 0, k);
            row[k] = mb_check_round(args->dtype, normed);
        }
    }
    return rows;
}

/* How the rows are given. */
typedef enum front { PLAIN, NORM, FP8 } front;

static void check_case(mb_check *check, shape s, mb_dtype dtype, mb_dtype out_dtype, mb_dtype weight_dtype,
                       int with_extras, front given, int one_scale) {
    static const char *const names[] = {"", " norm", " x8"};
    mb_check_begin(check, "gemm x=%s w=%s out=%s T=%lld N=%lld K=%lld%s%s%s", mb_dtype_name(dtype),
                   mb_dtype_name(weight_dtype), mb_dtype_name(out_dtype), (long long)s.n_tokens,
                   (long long)s.n, (long long)s.k, with_extras ? " bias residual" : "", names[given],
                   one_scale ? " one scale" : "");
    if (check->on_gpu && weight_dtype == MB_F8_E4M3 && dtype != MB_F32) /* tests/gpu/ops_check.cu has them */
        mb_check_skip(check, "x becomes fp8 on the GPU, which fp64 here does not");
    int64_t n_out = s.n_tokens * s.n;
    double *expected = mb_check_alloc(check, (size_t)n_out * sizeof *expected);
    mb_gemm_args args = {
        .x = mb_check_values(check, dtype, s.n_tokens * s.k, -1, 1),
        .weight = one_scale ? mb_check_weight_per_tensor(check, 1, s.n, s.k)
                            : mb_check_weight(check, weight_dtype, 1, s.n, s.k),
        .bias = with_extras ? mb_check_values(check, MB_BF16, s.n, -1, 1) : NULL,
        .residual = with_extras ? mb_check_values(check, out_dtype, n_out, -1, 1) : NULL,
        .n_tokens = s.n_tokens,
        .dtype = dtype,
        .out_dtype = out_dtype,
        .bias_dtype = MB_BF16,
    };
    if (given == FP8) {
        args.x = NULL;
        args.x8 = mb_check_values(check, MB_F8_E4M3, s.n_tokens * s.k, -448, 448);
        args.x8_scale = mb_check_values(check, MB_F32, s.n_tokens * mb_f8_blocks(s.k), 1 / 448.0, 2 / 448.0);
    }
    if (given == NORM) {
        args.norm_weight = mb_check_weight(check, dtype, 1, 1, s.k);
        args.eps = 1e-6f;
        int32_t *rows = mb_check_alloc(check, (size_t)s.n_tokens * sizeof *rows);
        for (int64_t t = 0; t < s.n_tokens; t++)
            rows[t] = (int32_t)(s.n_tokens - 1 - t / 2);
        args.norm_rows = s.n % 2 ? rows : NULL;
    }
    /* the residual may be the output itself */
    args.out = with_extras ? (void *)(uintptr_t)args.residual
                           : mb_check_alloc(check, (size_t)n_out * mb_dtype_bytes(out_dtype));
    const double *rows = multiplied_rows(check, &args);
    for (int64_t t = 0; t < s.n_tokens; t++)
        for (int64_t n = 0; n < s.n; n++) {
            double sum = with_extras ? mb_check_value(MB_BF16, args.bias, n) +
                                           mb_check_value(out_dtype, args.residual, t * s.n + n)
                                     : 0;
            for (int64_t k = 0; k < s.k; k++)
                sum += rows[t * s.k + k] * mb_check_weight_value(&args.weight, 0, n, k);
            expected[t * s.n + n] = sum;
        }
    size_t workspace_bytes = 0;
    mb_check_ok(check, check->ops->gemm_workspace(&args, &workspace_bytes));
    void *workspace = mb_check_alloc(check, workspace_bytes);
    if (with_extras) { /* a second call would add the residual again */
        double min_seconds = check->min_seconds;
        check->min_seconds = 0;
        MB_CHECK_CALL(check, check->ops->gemm(&args, workspace, workspace_bytes, check->stream));
        check->min_seconds = min_seconds;
    } else
        MB_CHECK_CALL(check, check->ops->gemm(&args, workspace, workspace_bytes, check->stream));
    mb_check_compare(check, "out", out_dtype, args.out, expected, n_out);
    mb_check_end(check, 2.0 * (double)s.n_tokens * (double)s.n * (double)s.k,
                 (double)(s.n * s.k) * (double)mb_dtype_bytes(weight_dtype) +
                     (double)(s.n_tokens * s.k) * (double)mb_dtype_bytes(dtype) +
                     (double)n_out * (double)mb_dtype_bytes(out_dtype));
}

void mb_gemm_cases(mb_check *check) {
    static const mb_dtype activations[] = {MB_F32, MB_BF16, MB_F16};
    static const mb_dtype weights[] = {MB_F32, MB_BF16, MB_F16, MB_F8_E4M3};
    /* the last ones: an odd K beyond one chunk, the demo model's, and a fifth of Qwen3-30B-A3B's qkv */
    static const shape shapes[] = {{0, 16, 16},   {1, 1, 1},     {2, 3, 17},    {5, 130, 100},
                                   {33, 66, 65},  {37, 31, 513}, {3, 37, 1111}, {1, 512, 256},
                                   {7, 256, 384}, {2, 256, 2048}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int w = 0; w < 4; w++)
            for (int a = 0; a < 3; a++)
                for (int extras = 0; extras < 2; extras++) {
                    check_case(check, shapes[s], activations[a], activations[a], weights[w], extras, PLAIN,
                               0);
                    if (weights[w] == MB_BF16 && !extras)
                        check_case(check, shapes[s], activations[a], activations[a], weights[w], extras, NORM,
                                   0);
                    if (weights[w] == MB_F8_E4M3) {
                        check_case(check, shapes[s], activations[a], activations[a], weights[w], extras, FP8,
                                   0);
                        check_case(check, shapes[s], activations[a], activations[a], weights[w], extras,
                                   PLAIN, 1);
                        check_case(check, shapes[s], activations[a], activations[a], weights[w], extras, FP8,
                                   1);
                    }
                    if (activations[a] != MB_F32)
                        check_case(check, shapes[s], activations[a], MB_F32, weights[w], extras, PLAIN, 0);
                }
}
