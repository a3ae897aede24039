/* mb_bench_train on the CPU: what it counts and compares, what it refuses, and that every allocation may fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bench/bench.h"
#include "moebius/moebius.h"

static long long n_calls, n_live, refused_call;

static void *failing_allocate(void *user, void *pointer, size_t n_bytes) {
    (void)user;
    if (n_bytes == 0) {
        n_live -= pointer != NULL;
        free(pointer);
        return NULL;
    }
    if (++n_calls == refused_call)
        return NULL;
    void *block = realloc(pointer, n_bytes);
    n_live += block != NULL && pointer == NULL;
    return block;
}

/* One thread: the allocations come in the same order each time. */
static mb_bench_train_args small(const char *dtype) {
    return (mb_bench_train_args){
        .n_tokens = 9,
        .hidden = 24,
        .intermediate = 16,
        .n_experts = 4,
        .top_k = 2,
        .device = "cpu",
        .dtype = dtype,
        .has_bias = 1,
        .tile_rows = 4,
        .n_repeats = 1,
        .n_threads = 1,
        .seed = 5,
    };
}

static void test_counts(void **state) {
    (void)state;
    mb_bench_train_args args = small("bf16");
    mb_bench_train_result result;
    assert_int_equal(mb_bench_train(&args, &result), MB_OK);
    double forward = 6.0 * 9 * 2 * 24 * 16;
    assert_true(result.flops[MB_PASS_INFERENCE] == forward && result.flops[MB_PASS_FORWARD] == forward);
    assert_true(result.flops[MB_PASS_BACKWARD] == 2 * forward && result.flops[MB_PASS_BOTH] == 3 * forward);
    assert_true(result.saved_bytes == 9 * 2 * 32 * 2);
    assert_int_equal(result.report.processed, 18);
    assert_int_equal(result.n_checks, 7);
    assert_true(result.is_right);
    for (int i = 0; i < result.n_checks; i++) {
        const mb_bench_check *check = &result.checks[i];
        int is_exact =
            strcmp(check->name, "db2") == 0; /* sums of weights times d_out, no product is rounded */
        assert_true(check->mean_relative <= result.limit && (check->mean_relative > 0) == !is_exact);
        assert_true(check->max_reference >= check->mean_reference &&
                    (check->max_difference > 0) == !is_exact);
    }
    args.rounding = MB_ROUNDING_DOWN;
    args.activation = MB_ACT_GELU;
    args.skip_check = 1;
    assert_int_equal(mb_bench_train(&args, &result), MB_OK);
    assert_int_equal(result.report.processed % 4, 0);
    assert_true(result.flops[MB_PASS_FORWARD] == 4.0 * (double)result.report.processed * 24 * 16);
    assert_true(result.flops[MB_PASS_INFERENCE] == 4.0 * 18 * 24 * 16);
    assert_int_equal(result.n_checks, 0);
}

static void refuse(mb_bench_train_args args, mb_status status, const char *sentence) {
    mb_bench_train_result result;
    assert_int_equal(mb_bench_train(&args, &result), status);
    assert_non_null(strstr(mb_last_error(), sentence));
}

static void test_refusals(void **state) {
    (void)state;
    mb_bench_train_args args = small("bf16");
    mb_bench_train_result result;
    assert_int_equal(mb_bench_train(NULL, &result), MB_ERR_ARGUMENT);
    assert_int_equal(mb_bench_train(&args, NULL), MB_ERR_ARGUMENT);
#define REFUSE(field, value, sentence) \
    args = small("bf16");              \
    args.field = (value);              \
    refuse(args, MB_ERR_ARGUMENT, sentence)
    REFUSE(dtype, NULL, "dtype is NULL");
    REFUSE(dtype, "fp8_block", "dtype \"fp8_block\" is unknown");
    REFUSE(device, "tpu", "\"tpu\" is unknown");
    REFUSE(n_tokens, 0, "n_tokens is 0");
    REFUSE(top_k, 5, "top_k is 5, more than the 4 experts");
    REFUSE(tile_rows, 0, "tile_rows is 0");
    REFUSE(activation, MB_ACT_NONE, "activation");
    REFUSE(rounding, (mb_rounding)99, "rounding 99 is unknown");
    args.rounding = MB_ROUNDING_NEAREST;
    args.tile_rows = 1000; /* no expert has 500 tokens: nothing is left */
    refuse(args, MB_ERR_ARGUMENT, "tiles of 1000 rows leaves no row");
    args.top_k = 1; /* the router's gradient is 0: renormalised, the only choice weighs 1 */
    args.tile_rows = 1;
    assert_int_equal(mb_bench_train(&args, &result), MB_OK);
    assert_true(result.is_right);
}

static void test_every_allocation_may_fail(void **state) {
    (void)state;
    mb_set_allocator(failing_allocate, NULL);
    mb_status status = MB_ERR_MEMORY;
    int k = 0;
    while (status != MB_OK && ++k < 300) {
        mb_bench_train_args args = small("fp16");
        mb_bench_train_result result;
        args.rounding = MB_ROUNDING_NEAREST;
        n_calls = n_live = 0;
        refused_call = k;
        status = mb_bench_train(&args, &result);
        assert_true(status == MB_OK || status == MB_ERR_MEMORY);
        assert_int_equal(n_live, 0);
    }
    assert_int_equal(status, MB_OK);
    assert_true(k > 40);
    mb_set_allocator(NULL, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
