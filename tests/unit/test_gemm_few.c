/* How the dense layer of few rows is cut (ops/gemm/few_plan.c): every output once, and all parts of a CTA's
 * shared memory in their places. */
#include "ops/common/dtype.h"
#include "ops/gemm/few.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static mb_gemm_args args_of(int64_t n_tokens, int64_t rows, int64_t cols, mb_dtype weights) {
    return (mb_gemm_args){.weight = {.count = 1,
                                     .rows = rows,
                                     .cols = cols,
                                     .dtype = weights,
                                     .scale_rows = weights == MB_F8_E4M3 ? 128 : 0,
                                     .scale_cols = weights == MB_F8_E4M3 ? 128 : 0},
                          .n_tokens = n_tokens,
                          .dtype = MB_BF16,
                          .out_dtype = MB_BF16,
                          .bias_dtype = MB_BF16};
}

/* The rows of all tiles, in the order of CTAs and rounds, are the weight's rows, each once. */
static void check_rows(const mb_few_plan *p, int64_t n_rows) {
    assert_true(p->tile_rows % 8 == 0 && p->tile_rows >= 8 && p->tile_rows <= MB_FEW_TILE_ROWS);
    assert_true((int64_t)p->n_tiles * p->tile_rows >= n_rows);
    assert_true((int64_t)(p->n_tiles - 1) * p->tile_rows < n_rows);
    assert_true(p->n_ctas > 0 && p->n_ctas <= p->n_tiles);
    int64_t n_seen = 0;
    for (int32_t cta = 0; cta < p->n_ctas; cta++)
        for (int32_t tile = cta; tile < p->n_tiles; tile += p->n_ctas)
            n_seen++;
    assert_int_equal(n_seen, p->n_tiles);
}

static void check_shared(const mb_few_plan *p, int32_t n_tokens, int is_fp8) {
    const int32_t steps = p->n_stages * MB_FEW_STAGE_STEPS(p->padded_tokens),
                  x_steps = p->keeps_x ? p->n_steps : steps, is_grouped = p->group_steps > 0,
                  n_groups = is_grouped ? (p->n_steps + p->group_steps - 1) / p->group_steps : 0;
    assert_true(p->n_stages >= 1);
    assert_int_equal(p->x_offset, steps * p->tile_rows * MB_FEW_STEP_BYTES);
    assert_int_equal(p->x_offset % 1024, 0);
    assert_int_equal(p->x_scale_offset,
                     p->x_offset + (is_grouped ? n_groups * MB_FEW_COLUMNS : x_steps * p->padded_tokens) *
                                       MB_FEW_STEP_BYTES);
    assert_int_equal(p->row_scale_offset, p->x_scale_offset + (is_grouped ? n_tokens * p->step_stride * 4
                                                               : is_fp8   ? p->n_steps * p->padded_tokens * 4
                                                                          : 0));
    assert_int_equal(p->row_scale_offset % 16, 0);
    assert_int_equal(p->norm_offset,
                     p->row_scale_offset + (is_grouped ? p->tile_rows * p->step_stride * 4 : 0));
    assert_int_equal(p->norm_offset % 16, 0);
    assert_int_equal(p->products_offset, p->norm_offset);
    const int32_t norm_bytes = p->norms ? p->n_pieces * 256 * 2 : 0,
                  products = is_grouped ? n_groups * MB_FEW_COLUMNS * MB_FEW_COLUMN_STRIDE(p) * 4 : 0;
    assert_int_equal(p->barriers_offset, p->norm_offset + (products > norm_bytes ? products : norm_bytes));
    assert_int_equal(p->barriers_offset % 8, 0);
    assert_true(p->shared_bytes >= p->barriers_offset + 16 * p->n_stages);
    /* wgmma reads 64 rows from where the last step begins */
    assert_true(p->shared_bytes >=
                p->x_offset - p->tile_rows * MB_FEW_STEP_BYTES + MB_FEW_TILE_ROWS * MB_FEW_STEP_BYTES);
    assert_true(p->shared_bytes <= MB_FEW_SHARED_BYTES);
}

/* Steps whose products are made at once: every step's rows and columns are in a block, no block is read behind
 * the allocation, all quotients are right, nothing is loaded twice. */
static void check_groups(const mb_few_plan *p, int64_t n_tokens) {
    assert_true(n_tokens <= MB_FEW_GROUP_TOKENS && p->quantizes && p->padded_tokens == MB_FEW_COLUMNS);
    assert_true(n_tokens * p->group_steps <= MB_FEW_COLUMNS);
    assert_true(p->group_steps == 2 || p->group_steps == 4 || p->group_steps == 8);
    assert_int_equal(p->n_tiles, p->n_ctas);
    assert_true(p->n_stages <= 32 && p->n_stages * MB_FEW_STAGE_STEPS(p->padded_tokens) >= p->n_steps);
    assert_true(p->step_stride >= p->n_steps && p->step_stride % 8 == 4);
    assert_true(p->tile_rows * n_tokens <= 32 * MB_FEW_WARPS_OF_X);
    const int32_t group_rows = p->group_steps * p->tile_rows;
    assert_true(p->group_blocks * MB_FEW_TILE_ROWS >= group_rows &&
                (p->group_blocks - 1) * MB_FEW_TILE_ROWS < group_rows);
    int32_t n_rows = 0, behind = 0;
    for (int32_t i = 0; i < p->n_blocks; i++) {
        const int32_t group = MB_FEW_QUOTIENT(i, p->by_group_blocks);
        assert_int_equal(group, i / p->group_blocks);
        const int32_t first = i % p->group_blocks * MB_FEW_TILE_ROWS;
        const int32_t last = first + MB_FEW_TILE_ROWS - 1;
        assert_int_equal(MB_FEW_QUOTIENT(last, p->by_tile_rows), last / p->tile_rows);
        assert_true(group * p->group_steps + first / p->tile_rows < p->n_steps);
        n_rows += last < group_rows ? MB_FEW_TILE_ROWS : group_rows - first;
        behind = group * group_rows + last + 1;
    }
    assert_true(n_rows >= p->n_steps * p->tile_rows);
    assert_true(behind * MB_FEW_STEP_BYTES <= p->shared_bytes);
    for (int32_t thread = 0; thread < 32 * MB_FEW_WARPS_OF_X; thread++)
        assert_int_equal(MB_FEW_QUOTIENT(thread, p->by_tile_rows), thread / p->tile_rows);
}

/* with_norm: a norm is in front. */
static void check_plan(int64_t n_tokens, int64_t rows, int64_t cols, mb_dtype weights, int32_t n_processors,
                       int with_norm) {
    static const _Alignas(16) char norm_weight[16];
    mb_gemm_args args = args_of(n_tokens, rows, cols, weights);
    mb_few_plan p;
    if (with_norm)
        args.norm_weight =
            (mb_weight){.data = norm_weight, .count = 1, .rows = 1, .cols = cols, .dtype = MB_BF16};
    if (!mb_few_plan_of(&args, n_processors, &p)) {
        const int is_fp8 = weights == MB_F8_E4M3;
        assert_true(n_tokens > (is_fp8 ? MB_FEW_FP8_TOKENS : MB_FEW_TOKENS) || (is_fp8 && cols > 16384));
        return;
    }
    const int64_t row_bytes = (int64_t)mb_dtype_row_bytes(weights, cols);
    assert_true(p.padded_tokens >= n_tokens && p.padded_tokens <= 64);
    assert_true(p.padded_tokens == 8 || p.padded_tokens < 2 * n_tokens);
    assert_true(p.n_ctas <= n_processors);
    assert_int_equal(p.n_steps, (row_bytes + 127) / 128);
    const int most_normed = weights == MB_F8_E4M3 ? 4 : 8;
    assert_true(!p.norms || (with_norm && n_tokens <= most_normed));
    if (with_norm && n_tokens <= most_normed && cols <= 4096)
        assert_true(p.norms);
    if (!p.norms)
        assert_int_equal(p.quantizes, weights == MB_F8_E4M3 && n_tokens <= 8 &&
                                          n_tokens * ((cols + 127) / 128) <= MB_FEW_QUANTIZED_UNITS);
    assert_int_equal(p.keeps_x, p.norms || p.quantizes);
    assert_true(!p.keeps_x || p.padded_tokens == 8); /* the kernel has no others */
    assert_true(p.n_pieces * 256 >= cols && p.n_pieces * 256 < cols + 256);
    /* all rows are made: several warps a row only where all rows are made at once */
    assert_true(p.row_shift == 0 || n_tokens << p.row_shift <= MB_FEW_WARPS_OF_X);
    assert_true(p.row_shift >= 0 && MB_FEW_WARPS_OF_X % (1 << p.row_shift) == 0);
    /* a copy of several steps sees rows as whole steps */
    assert_true(p.copy_steps == 1 || row_bytes % MB_FEW_STEP_BYTES == 0);
    assert_int_equal(MB_FEW_STAGE_STEPS(p.padded_tokens) % p.copy_steps, 0);
    check_rows(&p, rows);
    check_shared(&p, (int32_t)n_tokens, weights == MB_F8_E4M3);
    if (p.group_steps > 0)
        check_groups(&p, n_tokens);
}

static void test_all_plans(void **state) {
    (void)state;
    static const int64_t rows[] = {8,
                                   16,
                                   136,
                                   512,
                                   1056,
                                   1064,
                                   2048,
                                   4096,
                                   5120,
                                   8448,
                                   8456,
                                   9216,
                                   16384,
                                   50000,
                                   151936,
                                   262144,
                                   (int64_t)1 << 24};
    static const int64_t cols[] = {8, 64, 72, 400, 512, 2048, 4096, 6144, 8192, 12288, 25600, 65536};
    static const int32_t processors[] = {1, 2, 3, 16, 78, 114, 132};
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++)
        for (size_t c = 0; c < sizeof cols / sizeof cols[0]; c++)
            for (size_t n = 0; n < sizeof processors / sizeof processors[0]; n++)
                for (int64_t n_tokens = 1; n_tokens <= 66; n_tokens += n_tokens < 10 ? 1 : 5) {
                    if (rows[r] > 300000 && n_tokens % 3 != 1)
                        continue;
                    for (int norm = 0; norm < 2; norm++) {
                        check_plan(n_tokens, rows[r], cols[c], MB_BF16, processors[n], norm);
                        if (cols[c] % 16 == 0)
                            check_plan(n_tokens, rows[r], cols[c], MB_F8_E4M3, processors[n], norm);
                    }
                }
}

/* What Qwen3-30B-A3B wants of an H100. */
static void test_known_plans(void **state) {
    (void)state;
    static const struct {
        int64_t n_tokens, rows, cols;
        mb_dtype weights;
        int32_t tile_rows, n_ctas;
        int all_at_once; /* the CTA's share fits into shared memory */
        int32_t group_steps;
    } plans[] = {
        {1, 5120, 2048, MB_BF16, 40, 128, 1, 0},     {8, 5120, 2048, MB_BF16, 40, 128, 1, 0},
        {16, 5120, 2048, MB_BF16, 40, 128, 0, 0},    {64, 5120, 2048, MB_BF16, 40, 128, 0, 0},
        {1, 2048, 4096, MB_BF16, 16, 128, 1, 0},     {1, 151936, 2048, MB_BF16, 64, 132, 0, 0},
        {1, 5120, 2048, MB_F8_E4M3, 40, 128, 1, 8},  {4, 2048, 4096, MB_F8_E4M3, 16, 128, 1, 0},
        {2, 5120, 2048, MB_F8_E4M3, 40, 128, 1, 4},  {4, 5120, 2048, MB_F8_E4M3, 40, 128, 1, 2},
        {1, 2048, 4096, MB_F8_E4M3, 16, 128, 1, 8},  {2, 2048, 4096, MB_F8_E4M3, 16, 128, 1, 4},
        {16, 5120, 2048, MB_F8_E4M3, 40, 128, 1, 0}, {5, 5120, 512, MB_F8_E4M3, 40, 128, 1, 0},
    };
    for (size_t i = 0; i < sizeof plans / sizeof plans[0]; i++) {
        mb_gemm_args args = args_of(plans[i].n_tokens, plans[i].rows, plans[i].cols, plans[i].weights);
        mb_few_plan p;
        assert_true(mb_few_plan_of(&args, 132, &p));
        assert_int_equal(p.tile_rows, plans[i].tile_rows);
        assert_int_equal(p.n_ctas, plans[i].n_ctas);
        assert_int_equal(p.n_stages * MB_FEW_STAGE_STEPS(p.padded_tokens) >= p.n_steps, plans[i].all_at_once);
        assert_int_equal(p.group_steps, plans[i].group_steps);
    }
}

/* Rows that are added up first have a place behind all else, where there is room; what else there is stays
 * as it is. */
static void test_sums(void **state) {
    (void)state;
    static const _Alignas(16) char norm_weight[16];
    static _Alignas(16) char y[16], residual[16], out[16];
    static const int32_t norm_rows[5];
    for (int64_t n_tokens = 1; n_tokens <= 5; n_tokens++)
        for (int64_t cols = 512; cols <= 4096; cols *= 2)
            for (int is_fp8 = 0; is_fp8 < 2; is_fp8++) {
                mb_gemm_args args = args_of(n_tokens, 5120, cols, is_fp8 ? MB_F8_E4M3 : MB_BF16);
                args.norm_weight =
                    (mb_weight){.data = norm_weight, .count = 1, .rows = 1, .cols = cols, .dtype = MB_BF16};
                mb_few_plan plain, with_sum;
                int is_normed = mb_few_plan_with(&args, 1, 132, &plain);
                mb_moe_reduce_args sum = {.y = y,
                                          .residual = residual,
                                          .out = out,
                                          .n_tokens = n_tokens,
                                          .hidden = (int32_t)cols,
                                          .top_k = 8,
                                          .dtype = MB_BF16,
                                          .out_dtype = MB_BF16};
                args.x_sum = &sum;
                assert_int_equal(mb_few_plan_with(&args, 1, 132, &with_sum), is_normed);
                if (!is_normed)
                    continue;
                assert_int_equal(plain.sum_offset, 0);
                check_shared(&with_sum, (int32_t)n_tokens, is_fp8);
                assert_true(n_tokens <= MB_FEW_SUM_TOKENS || with_sum.sum_offset == 0);
                assert_true(cols > 2048 || n_tokens > MB_FEW_SUM_TOKENS || with_sum.sum_offset > 0);
                if (with_sum.sum_offset > 0) {
                    const int32_t end = with_sum.sum_offset + (int32_t)(n_tokens * cols * 2);
                    assert_int_equal(with_sum.sum_offset % 16, 0);
                    if (with_sum.sum_offset < plain.shared_bytes) /* where products come later */
                        assert_true(with_sum.group_steps > 0 && end <= with_sum.barriers_offset &&
                                    with_sum.sum_offset >=
                                        with_sum.norm_offset + with_sum.n_pieces * 256 * 2);
                    assert_true(with_sum.shared_bytes >= end);
                }
                with_sum.sum_offset = 0;
                with_sum.shared_bytes = plain.shared_bytes;
                assert_memory_equal(&with_sum, &plain, sizeof plain);
                sum.out = residual; /* others would read what one CTA has written */
                assert_true(mb_few_plan_with(&args, 1, 132, &with_sum) && with_sum.sum_offset == 0);
                sum.out = out;
                sum.y = y + 8; /* loaded 16 bytes at a time */
                assert_true(mb_few_plan_with(&args, 1, 132, &with_sum) && with_sum.sum_offset == 0);
                sum.y = y;
                sum.top_k = MB_FEW_SUM_TERMS + 1;
                assert_true(mb_few_plan_with(&args, 1, 132, &with_sum) && with_sum.sum_offset == 0);
                sum.top_k = 8;
                sum.shared = y;
                assert_true(mb_few_plan_with(&args, 1, 132, &with_sum) && with_sum.sum_offset == 0);
                sum.shared = NULL;
                sum.residual = NULL;
                assert_true(mb_few_plan_with(&args, 1, 132, &with_sum) && with_sum.sum_offset == 0);
                sum.residual = residual;
                sum.dtype = MB_F32;
                assert_true(mb_few_plan_with(&args, 1, 132, &with_sum) && with_sum.sum_offset == 0);
                sum.dtype = MB_BF16;
                args.norm_rows = norm_rows;
                assert_true(mb_few_plan_with(&args, 1, 132, &with_sum) && with_sum.sum_offset == 0);
            }
}

/* No rows, too many, many of fp8, and fp32, whose multiplications are exact. */
static void test_refusals(void **state) {
    (void)state;
    mb_few_plan p;
    mb_gemm_args args = args_of(0, 2048, 2048, MB_BF16);
    assert_false(mb_few_plan_of(&args, 132, &p));
    args.n_tokens = MB_FEW_TOKENS + 1;
    assert_false(mb_few_plan_of(&args, 132, &p));
    args = args_of(MB_FEW_FP8_TOKENS + 1, 2048, 4096, MB_F8_E4M3);
    assert_false(mb_few_plan_of(&args, 132, &p));
    args.n_tokens = MB_FEW_FP8_TOKENS;
    assert_true(mb_few_plan_of(&args, 132, &p));
    args = args_of(MB_FEW_TOKENS, 5120, 2048, MB_F8_E4M3);
    assert_true(mb_few_plan_of(&args, 132, &p));
    args = args_of(1, 2048, 2048, MB_F32);
    args.dtype = MB_F32;
    assert_false(mb_few_plan_of(&args, 132, &p));
    args = args_of(1, 2048, (int64_t)1 << 30, MB_BF16);
    assert_false(mb_few_plan_of(&args, 132, &p));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_plans),
        cmocka_unit_test(test_known_plans),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
