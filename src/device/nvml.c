#define _GNU_SOURCE /* dlfcn.h */

#include "device/nvml.h"

#include "base/alloc.h"

#include <dlfcn.h>

enum { SM_CLOCK = 1, DONE = 0 }; /* NVML_CLOCK_SM, NVML_SUCCESS */

typedef int (*start_function)(void);
typedef int (*find_function)(const char *pci_bus_id, void **gpu);
typedef int (*clock_function)(void *gpu, int type, unsigned *megahertz);
typedef int (*power_function)(void *gpu, unsigned *milliwatts);

struct mb_nvml {
    void *library, *gpu;
    start_function stop;
    clock_function clock;
    power_function power, limit;
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

void mb_nvml_read(const mb_nvml *nvml, mb_device_state *state) {
    unsigned value;
    *state = (mb_device_state){0};
    if (!nvml)
        return;
    if (nvml->clock(nvml->gpu, SM_CLOCK, &value) == DONE)
        state->sm_mhz = value;
    if (nvml->power(nvml->gpu, &value) == DONE)
        state->watts = value * 1e-3;
    if (nvml->limit(nvml->gpu, &value) == DONE)
        state->limit_watts = value * 1e-3;
}
