/* The op table: the CPU's is whole, and what another one lacks is named. */
#include "device/device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void test_the_cpu_lacks_nothing(void **state) {
    (void)state;
    char names[512] = "x";
    assert_int_equal(mb_ops_missing(&mb_cpu_ops, names, sizeof names), 0);
    assert_string_equal(names, "");
#define PLAIN(op) assert_non_null(mb_cpu_ops.op);
#define WITH_WORKSPACE(op) assert_non_null(mb_cpu_ops.op##_workspace), assert_non_null(mb_cpu_ops.op);
    MB_TRAINING_OPERATORS(PLAIN, WITH_WORKSPACE)
#undef PLAIN
#undef WITH_WORKSPACE
}

static void test_what_is_missing_is_named(void **state) {
    (void)state;
    char names[512];
    mb_ops ops = mb_cpu_ops;
    ops.embed = NULL;
    ops.gemm_workspace = NULL; /* an operator without its workspace is none */
    ops.log_softmax = NULL;
    assert_int_equal(mb_ops_missing(&ops, names, sizeof names), 3);
    assert_string_equal(names, "embed, gemm, log_softmax");
    const mb_ops nothing = {.name = "nothing"};
    int n = mb_ops_missing(&nothing, names, sizeof names);
    int n_commas = 0;
    for (const char *c = names; *c; c++)
        n_commas += *c == ',';
    assert_int_equal(n_commas, n - 1);
    assert_true(n >= 14);
}

static void test_a_short_buffer_cuts_the_list(void **state) {
    (void)state;
    const mb_ops nothing = {.name = "nothing"};
    char names[8];
    assert_true(mb_ops_missing(&nothing, names, sizeof names) >= 14);
    assert_string_equal(names, "embed, ");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_cpu_lacks_nothing),
        cmocka_unit_test(test_what_is_missing_is_named),
        cmocka_unit_test(test_a_short_buffer_cuts_the_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
