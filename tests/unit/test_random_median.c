/* The two small things that benchmarks and checks share. */
#include "base/median.h"
#include "base/random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void test_splitmix64(void **state) {
    (void)state;
    uint64_t stream = 0; /* the first numbers of the published generator */
    assert_true(mb_random(&stream) == 0xe220a8397b1dcdafu);
    assert_true(mb_random(&stream) == 0x6e789e6aa1b965f4u);
    assert_true(mb_random(&stream) == 0x06c45d188009454fu);
}

static void test_median(void **state) {
    (void)state;
    double one[] = {3}, two[] = {5, 2}, odd[] = {9, -1, 4}, even[] = {8, 1, 4, 2};
    assert_true(mb_median(one, 1) == 3);
    assert_true(mb_median(two, 2) == 3.5);
    assert_true(mb_median(odd, 3) == 4);
    assert_true(mb_median(even, 4) == 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_splitmix64), cmocka_unit_test(test_median)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
