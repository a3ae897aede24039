/* timing.c - which place is meant, and the CPU: its device's memory and threads, and the wall clock. */
#include "device/timing.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/status.h"
#include "device/device.h"

typedef struct cpu_timing {
    mb_timing base;
    mb_device *device;
} cpu_timing;

static mb_device *device_of(mb_timing *timing) {
    return ((cpu_timing *)timing)->device;
}

static mb_status cpu_allocate(mb_timing *timing, size_t n_bytes, void **pointer) {
    mb_device *device = device_of(timing);
    return device->allocate(device, n_bytes, pointer);
}

static void cpu_free(mb_timing *timing, void *pointer) {
    mb_device *device = device_of(timing);
    device->free(device, pointer);
}

static mb_status cpu_fill(mb_timing *timing, void *to, size_t n_bytes, const void *block,
                          size_t block_bytes) {
    (void)timing;
    for (size_t done = 0; done < n_bytes; done += block_bytes)
        memcpy((char *)to + done, block, n_bytes - done < block_bytes ? n_bytes - done : block_bytes);
    return MB_OK;
}

static mb_status cpu_download(mb_timing *timing, void *to_host, const void *from, size_t n_bytes) {
    (void)timing;
    memcpy(to_host, from, n_bytes);
    return MB_OK;
}

static double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

static mb_status cpu_time(mb_timing *timing, mb_timing_fn function, const void *context, int n_repeats,
                          double *times) {
    for (int i = -1; i < n_repeats; i++) { /* one warms up */
        double start = now_us();
        MB_TRY(function(context, device_of(timing)->stream));
        if (i >= 0)
            times[i] = now_us() - start;
    }
    return MB_OK;
}

static void cpu_close(mb_timing *timing) {
    mb_device_close(device_of(timing));
    mb_free(timing);
}

static mb_status open_cpu(int n_threads, mb_timing **timing) {
    cpu_timing *cpu = mb_calloc(1, sizeof *cpu);
    if (!cpu)
        return mb_fail(MB_ERR_MEMORY, "timing: %zu bytes could not be allocated", sizeof *cpu);
    mb_status status = mb_device_open_cpu(n_threads, &cpu->device);
    if (status != MB_OK) {
        mb_free(cpu);
        return status;
    }
    cpu->base = (mb_timing){
        .name = "cpu",
        .n_repeats = 5,
        .allocate = cpu_allocate,
        .free = cpu_free,
        .fill = cpu_fill,
        .download = cpu_download,
        .time = cpu_time,
        .close = cpu_close,
    };
    *timing = &cpu->base;
    return MB_OK;
}

static mb_status open_cuda(int ordinal, mb_timing **timing) {
#ifdef MOEBIUS_WITH_CUDA
    return mb_timing_open_cuda(ordinal, timing);
#else
    (void)ordinal;
    (void)timing;
    return mb_fail(MB_ERR_UNSUPPORTED,
                   "timing: this build has no CUDA; use \"cpu\", or build with MOEBIUS_CUDA=ON");
#endif
}

mb_status mb_timing_open(const char *name, int n_threads, mb_timing **timing) {
    *timing = NULL;
    if (!name)
        return open_cuda(0, timing) == MB_OK ? MB_OK : open_cpu(n_threads, timing);
    if (strcmp(name, "cpu") == 0)
        return open_cpu(n_threads, timing);
    if (strcmp(name, "cuda") == 0)
        return open_cuda(0, timing);
    size_t digits = strncmp(name, "cuda:", 5) == 0 ? strspn(name + 5, "0123456789") : 0;
    if (digits >= 1 && digits <= 3 && name[5 + digits] == '\0')
        return open_cuda(atoi(name + 5), timing);
    return mb_fail(MB_ERR_ARGUMENT,
                   "timing: device \"%s\" is unknown; valid are \"cpu\", \"cuda\" and \"cuda:N\"", name);
}
