#include "ops/common/check.h"
#include "ops/common/dtype.h"

#include <math.h>
#include <string.h>

/* The same rows in fp8: beside those of args->out, then in their place. */
static void check_fp8(mb_check *check, mb_rms_norm_args args) {
    size_t n_values = (size_t)args.n_rows * (size_t)args.hidden;
    const void *rows = args.out;
    for (int alone = 0; alone < 2; alone++) {
        args.out = alone ? NULL : mb_check_alloc(check, n_values * mb_dtype_bytes(args.dtype));
        args.out8 = mb_check_alloc(check, n_values);
        args.out8_scale = mb_check_alloc(check, (size_t)args.n_rows * (size_t)mb_f8_blocks(args.hidden) *
                                                    sizeof *args.out8_scale);
        MB_CHECK_CALL(check, check->ops->rms_norm(&args, check->stream));
        mb_check_equal_quantised(check, alone ? "out8 alone" : "out8", args.out8, args.out8_scale, args.dtype,
                                 rows, args.n_rows, args.hidden);
        if (!alone && memcmp(args.out, rows, n_values * mb_dtype_bytes(args.dtype)) != 0)
            mb_check_fail(check, "out has other bits beside out8");
    }
}

/* Of the rows of x, or of the sum that was made. */
static double *normed(mb_check *check, const mb_rms_norm_args *args) {
    const void *x = args->residual ? args->sum : args->x;
    int64_t hidden = args->hidden;
    double *expected = mb_check_alloc(check, (size_t)(args->n_rows * hidden) * sizeof *expected);
    for (int64_t r = 0; r < args->n_rows; r++) {
        int64_t first = (args->rows ? args->rows[r] : r) * hidden;
        double squares = 0;
        for (int64_t i = 0; i < hidden; i++)
            squares += pow(mb_check_value(args->dtype, x, first + i), 2);
        for (int64_t i = 0; i < hidden; i++)
            expected[r * hidden + i] = mb_check_value(args->dtype, x, first + i) /
                                       sqrt(squares / (double)hidden + (double)args->eps) *
                                       mb_check_weight_value(&args->weight, 0, 0, i);
    }
    return expected;
}

static void *copy_of(mb_check *check, const void *memory, size_t n_bytes) {
    void *copy = mb_check_alloc(check, n_bytes);
    memcpy(copy, memory, n_bytes);
    return copy;
}

/* Sum and out in the memory of residual and x, and the other way round. */
static void check_in_place(mb_check *check, const mb_rms_norm_args *right, size_t n_bytes) {
    for (int sum_is_x = 0; sum_is_x < 2; sum_is_x++) {
        void *x = copy_of(check, right->x, n_bytes), *residual = copy_of(check, right->residual, n_bytes);
        mb_rms_norm_args args = *right;
        args.x = x;
        args.residual = residual;
        args.sum = sum_is_x ? x : residual;
        args.out = sum_is_x ? residual : x;
        double min_seconds = check->min_seconds;
        check->min_seconds = 0; /* a second call would add again */
        MB_CHECK_CALL(check, check->ops->rms_norm(&args, check->stream));
        check->min_seconds = min_seconds;
        if (memcmp(args.sum, right->sum, n_bytes) != 0)
            mb_check_fail(check, "sum has other bits in the place of %s", sum_is_x ? "x" : "residual");
        if (memcmp(args.out, right->out, n_bytes) != 0)
            mb_check_fail(check, "out has other bits in the place of %s", sum_is_x ? "residual" : "x");
    }
}

/* The sum to the bit, and the bits of the norm alone of it. */
static void check_sum(mb_check *check, const mb_rms_norm_args *args) {
    int64_t n_values = args->n_rows * args->hidden;
    size_t n_bytes = (size_t)n_values * mb_dtype_bytes(args->dtype);
    for (int64_t i = 0; i < n_values; i++) {
        float sum =
            (float)(mb_check_value(args->dtype, args->x, i) + mb_check_value(args->dtype, args->residual, i));
        double expected = mb_check_round(args->dtype, (double)sum),
               got = mb_check_value(args->dtype, args->sum, i);
        if (!(got == expected)) {
            mb_check_fail(check, "sum[%lld] is %.9g, expected %.9g", (long long)i, got, expected);
            break;
        }
    }
    mb_rms_norm_args alone = *args;
    alone.x = args->sum;
    alone.residual = alone.sum = NULL;
    alone.out = mb_check_alloc(check, n_bytes);
    MB_CHECK_CALL(check, check->ops->rms_norm(&alone, check->stream));
    if (memcmp(alone.out, args->out, n_bytes) != 0)
        mb_check_fail(check, "out has other bits than the norm alone of sum");
    check_in_place(check, args, n_bytes);
}

enum { PLAIN, GATHERED, WITH_RESIDUAL, N_KINDS };

static void check_case(mb_check *check, mb_dtype dtype, mb_dtype weight_dtype, int64_t n_rows, int32_t hidden,
                       int kind) {
    static const char *const names[] = {"", " gathered", " residual"};
    mb_check_begin(check, "rms_norm %s w=%s rows=%lld H=%d%s", mb_dtype_name(dtype),
                   mb_dtype_name(weight_dtype), (long long)n_rows, hidden, names[kind]);
    int64_t n_source = kind == GATHERED ? 2 * n_rows + 1 : n_rows;
    int32_t *rows = mb_check_alloc(check, (size_t)n_rows * sizeof *rows);
    for (int64_t r = 0; r < n_rows; r++)
        rows[r] = (int32_t)(mb_check_random(check) % (uint64_t)n_source);
    size_t n_bytes = (size_t)n_rows * (size_t)hidden * mb_dtype_bytes(dtype);
    mb_rms_norm_args args = {
        .x = mb_check_values(check, dtype, n_source * hidden, -3, 3),
        .rows = kind == GATHERED ? rows : NULL,
        .weight = mb_check_weight(check, weight_dtype, 1, 1, hidden),
        .out = mb_check_alloc(check, n_bytes),
        .n_rows = n_rows,
        .hidden = hidden,
        .eps = 1e-6f,
        .dtype = dtype,
        .residual = kind == WITH_RESIDUAL ? mb_check_values(check, dtype, n_rows * hidden, -3, 3) : NULL,
        .sum = kind == WITH_RESIDUAL ? mb_check_alloc(check, n_bytes) : NULL,
    };
    MB_CHECK_CALL(check, check->ops->rms_norm(&args, check->stream));
    mb_check_compare(check, "out", dtype, args.out, normed(check, &args), n_rows * hidden);
    if (kind == WITH_RESIDUAL)
        check_sum(check, &args);
    if (dtype != MB_F32)
        check_fp8(check, args);
    double n = (double)n_rows * hidden;
    mb_check_end(check, (kind == WITH_RESIDUAL ? 5 : 4) * n,
                 (kind == WITH_RESIDUAL ? 4 : 2) * n * (double)mb_dtype_bytes(dtype));
}

void mb_norm_cases(mb_check *check) {
    static const mb_dtype dtypes[] = {MB_F32, MB_BF16, MB_F16};
    static const struct {
        int64_t n_rows;
        int32_t hidden;
    } shapes[] = {{0, 64}, {1, 1}, {1, 2048}, {3, 17}, {37, 300}, {256, 2048}, {2, 4008}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int a = 0; a < 3; a++)
            for (int b = 0; b < 3; b++)
                for (int kind = 0; kind < N_KINDS; kind++)
                    check_case(check, dtypes[a], dtypes[b], shapes[s].n_rows, shapes[s].hidden, kind);
}
