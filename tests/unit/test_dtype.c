/* Conversions between fp32 and the narrow types: every narrow value, and rounding at every boundary. */
#include "ops/common/check.h"
#include "ops/common/dtype.h"
#include "ops/common/vector.h"
#include "ops/moe/activation_value.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void test_names(void **state) {
    (void)state;
    static const size_t bytes[] = {4, 2, 2, 1, 1, 0};
    static const char *const names[] = {"fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e8m0", "fp4_e2m1"};
    for (int i = 0; i < 6; i++) {
        assert_int_equal(mb_dtype_bytes((mb_dtype)i), bytes[i]);
        assert_string_equal(mb_dtype_name((mb_dtype)i), names[i]);
        for (int64_t cols = 0; cols < 5 && bytes[i] > 0; cols++)
            assert_int_equal(mb_dtype_row_bytes((mb_dtype)i, cols), (size_t)cols * bytes[i]);
    }
    assert_int_equal(mb_dtype_bytes((mb_dtype)9), 0);
    assert_int_equal(mb_dtype_row_bytes((mb_dtype)9, 128), 0);
}

/* Two elements a byte; a row begins on a byte. */
static void test_row_bytes_of_four_bits(void **state) {
    (void)state;
    static const size_t bytes[] = {0, 1, 1, 2, 2, 3};
    for (int64_t cols = 0; cols < 6; cols++)
        assert_int_equal(mb_dtype_row_bytes(MB_F4_E2M1, cols), bytes[cols]);
    assert_int_equal(mb_dtype_row_bytes(MB_F4_E2M1, ((int64_t)1 << 40) + 1), ((size_t)1 << 39) + 1);
    assert_int_equal(mb_dtype_row_bytes(MB_F32, (int64_t)1 << 40), (size_t)1 << 42);
}

/* Every value of a narrow type widens to what its sign, exponent and mantissa say, and comes back. */
static void check_all_values(mb_dtype dtype, uint32_t n_values) {
    for (uint32_t bits = 0; bits < n_values; bits++) {
        uint32_t array = bits, back = 0;
        float value;
        mb_load_f32(dtype, &array, 0, 1, &value);
        double expected = mb_check_value(dtype, &array, 0);
        if (isnan(expected)) {
            assert_true(isnan(value));
            mb_store_f32(dtype, &back, 0, 1, &value);
            assert_true(isnan(mb_check_value(dtype, &back, 0)));
            continue;
        }
        assert_true((double)value == expected && !signbit(value) == !signbit(expected));
        mb_store_f32(dtype, &back, 0, 1, &value);
        assert_int_equal(back, bits);
    }
}

static void test_all_values(void **state) {
    (void)state;
    check_all_values(MB_BF16, 1 << 16);
    check_all_values(MB_F16, 1 << 16);
    check_all_values(MB_F8_E4M3, 1 << 8);
}

static void test_powers_of_two(void **state) {
    (void)state;
    for (int byte = 0; byte < 255; byte++) {
        uint8_t stored = (uint8_t)byte;
        float value;
        mb_load_f32(MB_F8_E8M0, &stored, 0, 1, &value);
        assert_true((double)value == ldexp(1, byte - 127));
    }
    const uint8_t nan_byte = 255;
    float value;
    mb_load_f32(MB_F8_E8M0, &nan_byte, 0, 1, &value);
    assert_true(isnan(value));
}

static uint32_t narrow(mb_dtype dtype, float value) {
    uint32_t array = 0;
    mb_store_f32(dtype, &array, 0, 1, &value);
    return array;
}

/* Between each two neighbours: the middle goes to the even one, anything beside it to the nearer one. */
static void check_all_boundaries(mb_dtype dtype, uint32_t first_above_finite) {
    for (uint32_t low = 0; low + 1 < first_above_finite; low++) {
        uint32_t high = low + 1;
        double middle = (mb_check_value(dtype, &low, 0) + mb_check_value(dtype, &high, 0)) / 2;
        float at = (float)middle; /* exact: one bit more than the narrow type has */
        assert_true((double)at == middle);
        uint32_t even = low % 2 == 0 ? low : high, sign = dtype == MB_F8_E4M3 ? 0x80 : 0x8000;
        assert_int_equal(narrow(dtype, at), even);
        assert_int_equal(narrow(dtype, nextafterf(at, 0)), low);
        assert_int_equal(narrow(dtype, nextafterf(at, INFINITY)), high);
        assert_int_equal(narrow(dtype, -at), even | sign);
        assert_int_equal(narrow(dtype, -nextafterf(at, INFINITY)), high | sign);
    }
}

static void test_all_boundaries(void **state) {
    (void)state;
    check_all_boundaries(MB_BF16, 0x7f80);
    check_all_boundaries(MB_F16, 0x7c00);
    check_all_boundaries(MB_F8_E4M3, 0x7f);
}

static void test_overflow(void **state) {
    (void)state;
    assert_int_equal(narrow(MB_BF16, 3.4e38f), 0x7f80);
    assert_int_equal(narrow(MB_F16, 65519.996f), 0x7bff);
    assert_int_equal(narrow(MB_F16, 65520.0f), 0x7c00);
    assert_int_equal(narrow(MB_F16, -INFINITY), 0xfc00);
    assert_int_equal(narrow(MB_BF16, -INFINITY), 0xff80);
    assert_int_equal(narrow(MB_F8_E4M3, 449.0f), 0x7e); /* saturates */
    assert_int_equal(narrow(MB_F8_E4M3, 1e30f), 0x7e);
    assert_int_equal(narrow(MB_F8_E4M3, -INFINITY), 0xfe);
}

/* Long and odd runs go through vector code: the same values as one by one. */
static void test_runs(void **state) {
    (void)state;
    enum { N = 77 };
    mb_check check = {.seed = 3};
    mb_check_begin(&check, "runs");
    for (int dtype = MB_F32; dtype <= MB_F8_E4M3; dtype++)
        for (int first = 0; first < 3; first++) {
            float *values = mb_check_values(&check, MB_F32, N, -3, 3);
            float rounded[N], loaded[N];
            uint32_t array[N + 3];
            memcpy(rounded, values, sizeof rounded);
            mb_store_f32((mb_dtype)dtype, array, first, N, values);
            mb_load_f32((mb_dtype)dtype, array, first, N, loaded);
            mb_round_f32((mb_dtype)dtype, N, rounded);
            for (int i = 0; i < N; i++) {
                uint32_t one = narrow((mb_dtype)dtype, values[i]);
                float expected;
                mb_load_f32((mb_dtype)dtype, &one, 0, 1, &expected);
                assert_true(loaded[i] == expected && rounded[i] == expected);
            }
        }
    mb_check_end(&check, 0, 0);
    assert_int_equal(check.n_failed, 0);
}

static void test_exp(void **state) {
    (void)state;
    double worst = 0;
    for (int i = -866000; i <= 887000; i += 7) {
        float x = (float)i * 1e-4f;
        double exact = exp((double)x), got = (double)mb_exp(x);
        worst = fmax(worst, fabs(got - exact) / exact);
    }
    assert_true(worst < 0x1p-22); /* 2 units in the last place */
    assert_true(mb_exp(0) == 1.0f);
    assert_true(mb_exp(-INFINITY) == 0 && mb_exp(-200) == 0 && mb_exp(-86.7f) == 0);
    assert_true(isinf(mb_exp(89)) && isinf(mb_exp(INFINITY)));
    assert_true(isnan(mb_exp(NAN)));
    assert_true(mb_silu(-1e30f) == 0 && mb_silu(1e30f) == 1e30f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),          cmocka_unit_test(test_row_bytes_of_four_bits),
        cmocka_unit_test(test_all_values),     cmocka_unit_test(test_powers_of_two),
        cmocka_unit_test(test_all_boundaries), cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_runs),           cmocka_unit_test(test_exp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
