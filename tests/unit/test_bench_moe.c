/* mb_bench_moe on the CPU: what it counts, what it refuses, and that every allocation may fail. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bench/bench.h"
#include "bench/random_arrays.h"
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
static mb_bench_moe_args small(const char *dtype) {
    return (mb_bench_moe_args){
        .n_tokens = 3,
        .hidden = 64,
        .intermediate = 48,
        .n_experts = 4,
        .top_k = 4,
        .device = "cpu",
        .dtype = dtype,
        .has_bias = 1,
        .n_repeats = 2,
        .n_threads = 1,
        .seed = 5,
    };
}

static void test_counts(void **state) {
    (void)state;
    static const struct {
        const char *dtype;
        double bytes;
    } expected[] = {
        /* K = E: all experts are hit. Scales: w13 in blocks of 16 rows, 6 x 1; w2 in one block. */
        {"bf16", 4 * 3 * 64 * 48 * 2},   {"fp16", 4 * 3 * 64 * 48 * 2},
        {"tf32", 4 * 3 * 64 * 48 * 4},   {"fp32", 4 * 3 * 64 * 48 * 4},
        {"fp8_tensor", 4 * 3 * 64 * 48}, {"fp8_block", 4 * (3 * 64 * 48 + 7 * 4)},
    };
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        mb_bench_moe_args args = small(expected[i].dtype);
        mb_bench_moe_result result;
        assert_int_equal(mb_bench_moe(&args, &result), MB_OK);
        assert_string_equal(result.device, "cpu");
        assert_int_equal(result.n_experts_hit, 4);
        assert_int_equal(result.n_repeats, 2);
        assert_true(result.us > 0 && result.floor_us == 0);
        assert_true(result.flops == 6.0 * 3 * 4 * 64 * 48);
        assert_true(result.bytes == expected[i].bytes);
        args.activation = MB_ACT_RELU2;
        args.n_repeats = 0;
        assert_int_equal(mb_bench_moe(&args, &result), MB_OK);
        assert_true(result.flops == 4.0 * 3 * 4 * 64 * 48);
        assert_int_equal(result.n_repeats, 5);
    }
}

static void refuse(mb_bench_moe_args args, mb_status status, const char *sentence) {
    mb_bench_moe_result result;
    assert_int_equal(mb_bench_moe(&args, &result), status);
    assert_non_null(strstr(mb_last_error(), sentence));
}

static void test_refusals(void **state) {
    (void)state;
    mb_bench_moe_args args = small("bf16");
    mb_bench_moe_result result;
    assert_int_equal(mb_bench_moe(NULL, &result), MB_ERR_ARGUMENT);
    assert_int_equal(mb_bench_moe(&args, NULL), MB_ERR_ARGUMENT);
#define REFUSE(field, value, sentence) \
    args = small("bf16");              \
    args.field = (value);              \
    refuse(args, MB_ERR_ARGUMENT, sentence)
    REFUSE(dtype, NULL, "dtype is NULL");
    REFUSE(dtype, "int8", "dtype \"int8\" is unknown");
    REFUSE(device, "tpu", "\"tpu\" is unknown");
    REFUSE(device, "cuda:", "\"cuda:\" is unknown");
    REFUSE(device, "cuda:1x", "\"cuda:1x\" is unknown");
    REFUSE(n_tokens, 0, "n_tokens is 0");
    REFUSE(n_tokens, INT64_MAX, "n_tokens is 9223372036854775807");
    REFUSE(hidden, -1, "hidden is -1");
    REFUSE(intermediate, INT32_MAX, "intermediate is 2147483647");
    REFUSE(n_experts, 1025, "n_experts is 1025");
    REFUSE(top_k, 5, "top_k is 5, more than the 4 experts");
    REFUSE(n_repeats, -1, "n_repeats is -1");
    REFUSE(activation, MB_ACT_NONE, "activation");
    REFUSE(activation, (mb_activation)99, "activation");
}

static void test_every_allocation_may_fail(void **state) {
    (void)state;
    mb_set_allocator(failing_allocate, NULL);
    mb_status status = MB_ERR_MEMORY;
    int k = 0;
    while (status != MB_OK && ++k < 200) {
        mb_bench_moe_args args = small("fp8_tensor");
        mb_bench_moe_result result;
        n_calls = n_live = 0;
        refused_call = k;
        status = mb_bench_moe(&args, &result);
        assert_true(status == MB_OK || status == MB_ERR_MEMORY);
        assert_int_equal(n_live, 0);
    }
    assert_int_equal(status, MB_OK);
    assert_true(k > 20);
    mb_set_allocator(NULL, NULL);
}

static int descending(const void *a, const void *b) {
    return *(const int *)b - *(const int *)a;
}

/* The n-th most popular expert is the first choice of 1 / n of the tokens, by the sum of all 1 / n. */
static void test_zipf(void **state) {
    (void)state;
    enum { T = 20000, E = 8 };
    mb_bench_arrays arrays;
    const void *array;
    int counts[E] = {0};
    double all = 0;
    assert_int_equal(mb_bench_arrays_open(&arrays, "cpu", 1, 3), MB_OK);
    assert_int_equal(mb_bench_zipf_logits(&arrays, T, E, &array), MB_OK);
    for (int t = 0; t < T; t++) {
        const float *row = (const float *)array + (size_t)t * E;
        int best = 0;
        for (int e = 0; e < E; e++)
            best = row[e] > row[best] ? e : best;
        counts[best]++;
    }
    mb_bench_arrays_close(&arrays);
    qsort(counts, E, sizeof *counts, descending);
    for (int n = 1; n <= E; n++)
        all += 1.0 / n;
    for (int n = 1; n <= E; n++) {
        const double p = 1 / (n * all);
        assert_true(fabs(counts[n - 1] - T * p) < 5 * sqrt(T * p * (1 - p)));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zipf),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
