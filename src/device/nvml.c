#define _GNU_SOURCE /* dlfcn.h */

#include "device/nvml.h"

#include "base/alloc.h"

#include <dlfcn.h>

/* NVML_CLOCK_SM, NVML_SUCCESS, NVML_FI_DEV_POWER_INSTANT, NVML_VALUE_TYPE_UNSIGNED_INT */
enum { SM_CLOCK = 1, DONE = 0, POWER_NOW = 186, TYPE_UNSIGNED = 1 };

/* nvmlFieldValue_t */
typedef struct field {
    unsigned id, scope; /* scope 0: the GPU; 1 would be the whole module */
    long long moment_us, latency_us;
    int type, status;
    union {
        double largest;
        unsigned milliwatts;
    } value;
} field;

typedef int (*start_function)(void);
typedef int (*find_function)(const char *pci_bus_id, void **gpu);
typedef int (*clock_function)(void *gpu, int type, unsigned *megahertz);
typedef int (*power_function)(void *gpu, unsigned *milliwatts);
typedef int (*fields_function)(void *gpu, int n_fields, field *fields);

struct mb_nvml {
    void *library, *gpu;
    start_function stop;
    clock_function clock;
    power_function power, limit;
    fields_function fields; /* NULL: the driver has none */
};

/* C has no cast from an object's pointer to a function's. */
static int find(void *library, const char *name, void *function) {
    *(void **)function = dlsym(library, name);
    return *(void **)function != NULL;
}

static int start(mb_nvml *nvml, const char *pci_bus_id) {
    start_function begin;
    find_function of_bus;
    nvml->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!nvml->library || !find(nvml->library, "nvmlInit_v2", &begin) ||
        !find(nvml->library, "nvmlShutdown", &nvml->stop) ||
        !find(nvml->library, "nvmlDeviceGetHandleByPciBusId_v2", &of_bus) ||
        !find(nvml->library, "nvmlDeviceGetClockInfo", &nvml->clock) ||
        !find(nvml->library, "nvmlDeviceGetPowerUsage", &nvml->power) ||
        !find(nvml->library, "nvmlDeviceGetEnforcedPowerLimit", &nvml->limit))
        return 0;
    (void)find(nvml->library, "nvmlDeviceGetFieldValues", &nvml->fields);
    if (begin() != DONE)
        return 0;
    if (of_bus(pci_bus_id, &nvml->gpu) == DONE)
        return 1;
    nvml->stop();
    return 0;
}

mb_nvml *mb_nvml_open(const char *pci_bus_id) {
    mb_nvml *nvml = mb_calloc(1, sizeof *nvml);
    if (!nvml || start(nvml, pci_bus_id))
        return nvml;
    if (nvml->library)
        dlclose(nvml->library);
    mb_free(nvml);
    return NULL;
}

void mb_nvml_close(mb_nvml *nvml) {
    if (!nvml)
        return;
    nvml->stop();
    dlclose(nvml->library);
    mb_free(nvml);
}

/* The power at this moment. nvmlDeviceGetPowerUsage tells, from Ampere on, a mean of the last second. */
static int read_power_now(const mb_nvml *nvml, double *watts) {
    field power = {.id = POWER_NOW};
    if (!nvml->fields || nvml->fields(nvml->gpu, 1, &power) != DONE || power.status != DONE ||
        power.type != TYPE_UNSIGNED)
        return 0;
    *watts = power.value.milliwatts * 1e-3;
    return 1;
}

void mb_nvml_read(const mb_nvml *nvml, mb_device_state *state) {
    unsigned value;
    *state = (mb_device_state){0};
    if (!nvml)
        return;
    if (nvml->clock(nvml->gpu, SM_CLOCK, &value) == DONE)
        state->sm_mhz = value;
    if (!read_power_now(nvml, &state->watts) && nvml->power(nvml->gpu, &value) == DONE) {
        state->watts = value * 1e-3;
        state->watts_are_mean = 1;
    }
    if (nvml->limit(nvml->gpu, &value) == DONE)
        state->limit_watts = value * 1e-3;
}
