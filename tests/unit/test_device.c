/* The CPU device, and how devices are named. */
#include "base/alloc.h"
#include "device/device.h"
#include "moebius/moebius.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_names(void **state) {
    (void)state;
    static const char *const unknown[] = {
        "", "gpu", "CPU", "cuda:", "cuda:x", "cuda:1x", "cuda:-1", "cuda:99999999"};
    mb_device *device;
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        assert_int_equal(mb_device_open(unknown[i], 0, &device), MB_ERR_ARGUMENT);
        assert_null(device);
        assert_non_null(strstr(mb_last_error(), "\"cpu\", \"cuda\""));
    }
    assert_int_equal(mb_device_open(NULL, 0, &device), MB_OK); /* there is always one */
    mb_device_close(device);
    mb_device_close(NULL);
    assert_int_equal(mb_device_open("cpu", -1, &device), MB_ERR_ARGUMENT);
}

/* A GPU that opens must be whole; one that does not must say what to do. */
static void test_cuda(void **state) {
    (void)state;
    mb_device *device;
    mb_status status = mb_device_open("cuda", 0, &device);
    if (status == MB_OK) {
        assert_non_null(device->ops->moe_forward);
        mb_device_close(device);
        return;
    }
    assert_null(device);
    assert_true(status == MB_ERR_NOT_FOUND || status == MB_ERR_UNSUPPORTED);
    assert_non_null(strstr(mb_last_error(), "cpu"));
}

static void test_cpu(void **state) {
    (void)state;
    mb_device *device;
    assert_int_equal(mb_device_open("cpu", 2, &device), MB_OK);
    assert_string_equal(device->name, "cpu");
    assert_true(device->host_memory);
    uint64_t total = 0, left = 0;
    assert_int_equal(device->memory(device, &total, &left), MB_OK);
    assert_true(left > 0 && left <= total);
    static const size_t sizes[] = {0, 1, 255, 256, 100000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        void *pointer, *pinned;
        char *host = malloc(sizes[i] + 1), *back = malloc(sizes[i] + 1);
        assert_int_equal(device->allocate(device, sizes[i], &pointer), MB_OK);
        assert_int_equal(device->allocate_pinned(device, sizes[i], &pinned), MB_OK);
        assert_int_equal((uintptr_t)pointer % 256, 0);
        memset(host, 0x5c, sizes[i]);
        assert_int_equal(device->upload(device, pointer, host, sizes[i]), MB_OK);
        assert_int_equal(device->download(device, back, pointer, sizes[i]), MB_OK);
        assert_int_equal(device->synchronize(device), MB_OK);
        assert_memory_equal(host, back, sizes[i]);
        device->free(device, pointer);
        device->free_pinned(device, pinned);
        free(host);
        free(back);
    }
    device->free(device, NULL);
    void *pointer = &pointer;
    assert_int_equal(device->allocate(device, SIZE_MAX - 8, &pointer), MB_ERR_MEMORY);
    assert_null(pointer);
    mb_device_close(device);
}

static void *refuse(void *user, void *pointer, size_t n_bytes) {
    (void)user;
    if (n_bytes == 0)
        free(pointer);
    return NULL;
}

static void test_out_of_memory(void **state) {
    (void)state;
    mb_device *device;
    mb_set_allocator(refuse, NULL);
    assert_int_equal(mb_device_open("cpu", 0, &device), MB_ERR_MEMORY);
    mb_set_allocator(NULL, NULL);
    assert_null(device);
    assert_int_equal(mb_device_open("cpu", 0, &device), MB_OK);
    void *pointer;
    mb_set_allocator(refuse, NULL);
    assert_int_equal(device->allocate(device, 100, &pointer), MB_ERR_MEMORY);
    mb_set_allocator(NULL, NULL);
    assert_null(pointer);
    mb_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_cuda),
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
