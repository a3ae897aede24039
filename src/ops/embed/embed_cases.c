#include "ops/common/check.h"

#include <string.h>

static void check_case(mb_check *check, mb_dtype table_dtype, mb_dtype dtype, int64_t n_tokens,
                       int32_t hidden, int has_draws) {
    enum { VOCAB = 97, DRAWS = 5 };
    static const int32_t drawn[DRAWS] = {0, VOCAB - 1, -1, VOCAB, 41}; /* two that failed */
    mb_check_begin(check, "embed %s -> %s T=%lld H=%d%s", mb_dtype_name(table_dtype), mb_dtype_name(dtype),
                   (long long)n_tokens, hidden, has_draws ? " with draws" : "");
    int32_t *ids = mb_check_alloc(check, (size_t)n_tokens * sizeof *ids);
    int32_t *draw_of = mb_check_alloc(check, (size_t)n_tokens * sizeof *draw_of);
    int32_t *draws = mb_check_alloc(check, sizeof drawn);
    memcpy(draws, drawn, sizeof drawn);
    double *expected = mb_check_alloc(check, (size_t)n_tokens * (size_t)hidden * sizeof *expected);
    size_t out_bytes = (size_t)n_tokens * (size_t)hidden * mb_dtype_bytes(dtype);
    mb_embed_args args = {
        .ids = ids,
        .draw_of = has_draws ? draw_of : NULL,
        .draws = has_draws ? draws : NULL,
        .table = {.count = 1, .rows = VOCAB, .cols = hidden, .dtype = table_dtype},
        .out = mb_check_alloc(check, out_bytes),
        .n_tokens = n_tokens,
        .dtype = dtype,
    };
    args.table.data = mb_check_values(check, table_dtype, (int64_t)VOCAB * hidden, -1, 1);
    for (int64_t t = 0; t < n_tokens; t++) {
        ids[t] = t == 0 ? VOCAB - 1 : (int32_t)(mb_check_random(check) % VOCAB);
        int32_t id = ids[t];
        draw_of[t] = t % 3 == 1 ? -1 : (int32_t)(t % DRAWS);
        if (has_draws && draw_of[t] >= 0) {
            id = drawn[draw_of[t]] < 0 || drawn[draw_of[t]] >= VOCAB ? 0 : drawn[draw_of[t]];
            ids[t] = -1; /* must not be used */
        }
        for (int32_t i = 0; i < hidden; i++)
            expected[t * hidden + i] = mb_check_weight_value(&args.table, 0, id, i);
    }
    MB_CHECK_CALL(check, check->ops->embed(&args, check->stream));
    mb_check_compare(check, "out", dtype, args.out, expected, n_tokens * hidden);
    mb_check_end(check, 0, 2.0 * (double)out_bytes);
}

void mb_embed_cases(mb_check *check) {
    static const mb_dtype dtypes[] = {MB_F32, MB_BF16, MB_F16};
    static const struct {
        int64_t n_tokens;
        int32_t hidden;
    } shapes[] = {{0, 64}, {1, 1}, {1, 2048}, {5, 17}, {33, 300}, {512, 2048}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int a = 0; a < 3; a++)
            for (int b = 0; b < 3; b++)
                check_case(check, dtypes[a], dtypes[b], shapes[s].n_tokens, shapes[s].hidden, (a + b) % 2);
}
