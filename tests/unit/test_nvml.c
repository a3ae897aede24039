/*
 * What the driver's library tells, with a library of our own in its place: the power of the moment, its mean where
 * there is no other, and nothing where there is no library or GPU. dlopen, dlsym and dlclose of nvml.c come here
 * (--wrap in tests/CMakeLists.txt).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "device/nvml.h"

enum { DONE = 0, NOT_SUPPORTED = 3, POWER_INSTANT = 186, DOUBLE = 0, UNSIGNED = 1 };

static struct {
    int has_library, has_fields, fields_status, power_status, field_type, gpu_status;
    int n_open, n_started; /* libraries, and inits less shutdowns */
} driver;

static int gpu_of_bus;

static int start_library(void) {
    driver.n_started++;
    return DONE;
}

static int stop_library(void) {
    driver.n_started--;
    return DONE;
}

static int find_gpu(const char *pci_bus_id, void **gpu) {
    assert_string_equal(pci_bus_id, "0000:1b:00.0");
    *gpu = &gpu_of_bus;
    return driver.gpu_status;
}

static int clock_of(void *gpu, int type, unsigned *megahertz) {
    assert_ptr_equal(gpu, &gpu_of_bus);
    assert_int_equal(type, 1);
    *megahertz = 1755;
    return DONE;
}

static int mean_power(void *gpu, unsigned *milliwatts) {
    assert_ptr_equal(gpu, &gpu_of_bus);
    *milliwatts = 350500;
    return DONE;
}

static int power_limit(void *gpu, unsigned *milliwatts) {
    assert_ptr_equal(gpu, &gpu_of_bus);
    *milliwatts = 700000;
    return DONE;
}

/* As nvml.h lays an nvmlFieldValue_t out. */
static int field_values(void *gpu, int n, void *values) {
    unsigned char *bytes = values;
    const unsigned id = POWER_INSTANT, milliwatts = 698250;
    const unsigned none = 0;
    assert_ptr_equal(gpu, &gpu_of_bus);
    assert_int_equal(n, 1);
    assert_memory_equal(bytes, &id, sizeof id);
    assert_memory_equal(bytes + 4, &none, sizeof none); /* the scope: the GPU */
    memcpy(bytes + 24, &driver.field_type, sizeof driver.field_type);
    memcpy(bytes + 28, &driver.power_status, sizeof driver.power_status);
    memcpy(bytes + 32, &milliwatts, sizeof milliwatts);
    return driver.fields_status;
}

void *__wrap_dlopen(const char *path, int flags);
void *__wrap_dlsym(void *library, const char *name);
int __wrap_dlclose(void *library);

void *__wrap_dlopen(const char *path, int flags) {
    (void)flags;
    assert_string_equal(path, "libnvidia-ml.so.1");
    driver.n_open += driver.has_library;
    return driver.has_library ? &driver : NULL;
}

void *__wrap_dlsym(void *library, const char *name) {
    static int (*const start)(void) = start_library, (*const stop)(void) = stop_library;
    static int (*const of_bus)(const char *, void **) = find_gpu;
    static int (*const clock)(void *, int, unsigned *) = clock_of;
    static int (*const power)(void *, unsigned *) = mean_power,
                                               (*const limit)(void *, unsigned *) = power_limit;
    static int (*const fields)(void *, int, void *) = field_values;
    const struct {
        const char *name;
        const void *function; /* where the pointer is: C has no cast from it */
    } functions[] = {{"nvmlInit_v2", &start},
                     {"nvmlShutdown", &stop},
                     {"nvmlDeviceGetHandleByPciBusId_v2", &of_bus},
                     {"nvmlDeviceGetClockInfo", &clock},
                     {"nvmlDeviceGetPowerUsage", &power},
                     {"nvmlDeviceGetEnforcedPowerLimit", &limit},
                     {"nvmlDeviceGetFieldValues", &fields}};
    assert_ptr_equal(library, &driver);
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++)
        if (strcmp(name, functions[i].name) == 0 && (functions[i].function != &fields || driver.has_fields))
            return *(void *const *)functions[i].function;
    return NULL;
}

int __wrap_dlclose(void *library) {
    assert_ptr_equal(library, &driver);
    driver.n_open--;
    return 0;
}

static int reset(void **state) {
    (void)state;
    memset(&driver, 0, sizeof driver);
    driver.has_library = driver.has_fields = 1;
    driver.field_type = UNSIGNED;
    return 0;
}

static mb_device_state read_state(void) {
    mb_device_state state = {.watts = -1};
    mb_nvml *nvml = mb_nvml_open("0000:1b:00.0");
    mb_nvml_read(nvml, &state);
    mb_nvml_close(nvml);
    assert_int_equal(driver.n_open, 0);
    assert_int_equal(driver.n_started, 0);
    return state;
}

static void test_power_of_the_moment(void **unused) {
    (void)unused;
    mb_device_state state = read_state();
    assert_true(state.watts > 698.2 && state.watts < 698.3 && !state.watts_are_mean);
    assert_true(state.sm_mhz > 1754.9 && state.sm_mhz < 1755.1);
    assert_true(state.limit_watts > 699.9 && state.limit_watts < 700.1);
}

static void expect_mean(void) {
    mb_device_state state = read_state();
    assert_true(state.watts > 350.4 && state.watts < 350.6 && state.watts_are_mean);
}

static void test_mean_where_there_is_no_other(void **unused) {
    (void)unused;
    driver.has_fields = 0; /* an old library */
    expect_mean();
    driver.has_fields = 1;
    driver.fields_status = NOT_SUPPORTED;
    expect_mean();
    driver.fields_status = DONE;
    driver.power_status = NOT_SUPPORTED; /* of this field alone */
    expect_mean();
    driver.power_status = DONE;
    driver.field_type = DOUBLE;
    expect_mean();
}

static void test_nothing_without_library_or_gpu(void **unused) {
    (void)unused;
    driver.gpu_status = NOT_SUPPORTED;
    assert_true(read_state().watts == 0);
    driver.has_library = 0;
    mb_device_state state = read_state();
    assert_true(state.watts == 0 && state.sm_mhz == 0 && state.limit_watts == 0 && !state.watts_are_mean);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_power_of_the_moment, reset),
        cmocka_unit_test_setup(test_mean_where_there_is_no_other, reset),
        cmocka_unit_test_setup(test_nothing_without_library_or_gpu, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
