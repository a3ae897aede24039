/* Every case of every operator, against fp64: the references on one thread and on two. */
#include "device/device.h"
#include "ops/common/check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__)
enum { FEWEST_THREADS = 2 }; /* what one thread reads and writes is the same */
#else
enum { FEWEST_THREADS = 1 };
#endif

static void run(void (*cases)(mb_check *)) {
    for (int n_threads = FEWEST_THREADS; n_threads <= 2; n_threads++) {
        mb_device *device;
        assert_int_equal(mb_device_open("cpu", n_threads, NULL, &device), MB_OK);
        mb_stream stream;
        assert_int_equal(device->stream_open(device, &stream), MB_OK);
        mb_check check = {.ops = device->ops, .stream = stream, .seed = (uint64_t)n_threads};
        const char *min_seconds = getenv("MOEBIUS_CHECK_SECONDS"); /* time every case, and say so */
        if (min_seconds) {
            check.min_seconds = atof(min_seconds);
            check.report = stdout;
        }
        cases(&check);
        print_message("%d cases, %d skipped, %d failed\n", check.n_cases, check.n_skipped, check.n_failed);
        assert_true(check.n_cases > 0);
        assert_int_equal(check.n_failed, 0);
        device->stream_close(device, stream);
        mb_device_close(device);
    }
}

#define TEST_CASES(op)                    \
    static void test_##op(void **state) { \
        (void)state;                      \
        run(mb_##op##_cases);             \
    }

TEST_CASES(embed)
TEST_CASES(norm)
TEST_CASES(gemm)
TEST_CASES(rope)
TEST_CASES(attention)
TEST_CASES(decode_attention)
TEST_CASES(moe_plan)
TEST_CASES(grouped_gemm)
TEST_CASES(moe)
TEST_CASES(sample)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_moe),
        cmocka_unit_test(test_decode_attention),
        cmocka_unit_test(test_moe_plan),
        cmocka_unit_test(test_grouped_gemm),
        cmocka_unit_test(test_sample),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
