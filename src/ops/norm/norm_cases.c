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

static void check_case(mb_check *check, mb_dtype dtype, mb_dtype weight_dtype, int64_t n_rows, int32_t hidden,
                       int gathered) {
    mb_check_begin(check, "rms_norm %s w=%s rows=%lld H=%d%s", mb_dtype_name(dtype),
                   mb_dtype_name(weight_dtype), (long long)n_rows, hidden, gathered ? " gathered" : "");
    int64_t n_source = gathered ? 2 * n_rows + 1 : n_rows;
    int32_t *rows = mb_check_alloc(check, (size_t)n_rows * sizeof *rows);
    double *expected = mb_check_alloc(check, (size_t)n_rows * (size_t)hidden * sizeof *expected);
    mb_rms_norm_args args = {
        .x = mb_check_values(check, dtype, n_source * hidden, -3, 3),
        .rows = gathered ? rows : NULL,
        .weight = mb_check_weight(check, weight_dtype, 1, 1, hidden),
        .out = mb_check_alloc(check, (size_t)n_rows * (size_t)hidden * mb_dtype_bytes(dtype)),
        .n_rows = n_rows,
        .hidden = hidden,
        .eps = 1e-6f,
        .dtype = dtype,
    };
    for (int64_t r = 0; r < n_rows; r++) {
        rows[r] = (int32_t)(mb_check_random(check) % (uint64_t)n_source);
        int64_t first = (gathered ? rows[r] : r) * hidden;
        double squares = 0;
        for (int32_t i = 0; i < hidden; i++)
            squares += pow(mb_check_value(dtype, args.x, first + i), 2);
        for (int32_t i = 0; i < hidden; i++)
            expected[r * hidden + i] = mb_check_value(dtype, args.x, first + i) /
                                       sqrt(squares / hidden + (double)args.eps) *
                                       mb_check_weight_value(&args.weight, 0, 0, i);
    }
    MB_CHECK_CALL(check, check->ops->rms_norm(&args, check->stream));
    mb_check_compare(check, "out", dtype, args.out, expected, n_rows * hidden);
    if (dtype != MB_F32)
        check_fp8(check, args);
    double n = (double)n_rows * hidden;
    mb_check_end(check, 4 * n, 2 * n * (double)mb_dtype_bytes(dtype));
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
                for (int gathered = 0; gathered < 2; gathered++)
                    check_case(check, dtypes[a], dtypes[b], shapes[s].n_rows, shapes[s].hidden, gathered);
}
