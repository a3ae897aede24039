/* MOEBIUS_TRACE is read once: what traces runs in every operator of every step. */
#include "device/device.h"
#include "model/trace.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/tiny_checkpoint.h"

static void test_the_environment_is_read_once(void **state) {
    (void)state;
    char directory[TINY_PATH], path[TINY_PATH + 64];
    mb_device *device;
    mb_stream stream;
    const float values[] = {1, 2};
    tiny_directory_make(directory);
    assert_int_equal(mb_device_open("cpu", 1, NULL, &device), MB_OK);
    assert_int_equal(device->stream_open(device, &stream), MB_OK);
    setenv("MOEBIUS_TRACE", directory, 1);
    mb_trace_step();
    setenv("MOEBIUS_TRACE", "/no/such/directory", 1); /* too late */
    mb_trace(device, stream, 3, "values", values, MB_F32, 1, 2);
    snprintf(path, sizeof path, "%s/000001-03-values.npy", directory);
    assert_int_equal(access(path, R_OK), 0);
    unlink(path);
    device->stream_close(device, stream);
    mb_device_close(device);
    tiny_directory_remove(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_the_environment_is_read_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
