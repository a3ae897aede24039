/* device.c - which device a name means, which one is the best, and captures that end in any case. */
#include "device/device.h"

#include "base/log.h"
#include "base/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef MOEBIUS_WITH_CUDA
static const mb_device_opener gpu_opener = mb_device_open_cuda;
#else
static const mb_device_opener gpu_opener = NULL;
#endif

/* N of "cuda:N"; -1 when the name is something else. */
static int cuda_ordinal(const char *name) {
    if (strcmp(name, "cuda") == 0)
        return 0;
    if (strncmp(name, "cuda:", 5) != 0 || name[5] < '0' || name[5] > '9')
        return -1;
    char *end;
    long ordinal = strtol(name + 5, &end, 10);
    return *end == '\0' && ordinal <= 1023 ? (int)ordinal : -1;
}

/* Closes a device that will not do. */
static mb_status examine(mb_status opened, mb_device_check check, mb_device **device) {
    if (opened != MB_OK || !check)
        return opened;
    mb_status status = check(*device);
    if (status != MB_OK) {
        mb_device_close(*device);
        *device = NULL;
    }
    return status;
}

mb_status mb_device_open_best(mb_device_opener open_gpu, int n_threads, mb_device_check check,
                              mb_device **device) {
    *device = NULL;
    if (open_gpu) {
        mb_status status = examine(open_gpu(0, device), check, device);
        if (status == MB_OK)
            return MB_OK;
        mb_log(status == MB_ERR_NOT_FOUND ? MB_LOG_DEBUG : MB_LOG_WARN,
               "running on the CPU, not on a GPU: %s", mb_last_error());
    }
    return examine(mb_device_open_cpu(n_threads, device), check, device);
}

mb_status mb_device_open(const char *name, int n_threads, mb_device_check check, mb_device **device) {
    *device = NULL;
    if (!name)
        return mb_device_open_best(gpu_opener, n_threads, check, device);
    if (strcmp(name, "cpu") == 0)
        return examine(mb_device_open_cpu(n_threads, device), check, device);
    int ordinal = cuda_ordinal(name);
    if (ordinal < 0)
        return mb_fail(MB_ERR_ARGUMENT,
                       "device: \"%s\" is unknown; valid are \"cpu\", \"cuda\" and \"cuda:N\"", name);
    if (!gpu_opener)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "device: this build has no CUDA; use \"cpu\", or build with MOEBIUS_CUDA=ON");
    return examine(gpu_opener(ordinal, device), check, device);
}

void mb_device_close(mb_device *device) {
    if (device)
        device->close(device);
}

mb_status mb_device_capture(mb_device *device, mb_device_work work, const void *context, mb_stream stream,
                            mb_graph **graph) {
    *graph = NULL;
    MB_TRY(device->capture_begin(device, stream));
    mb_status status = work(context, stream);
    if (status == MB_OK)
        return device->capture_end(device, stream, graph);
    char sentence[1024];
    snprintf(sentence, sizeof sentence, "%s", mb_last_error());
    device->capture_end(device, stream, graph);
    device->graph_close(device, *graph);
    *graph = NULL;
    return mb_fail(status, "%s", sentence);
}

mb_status mb_device_no_memory(mb_device *device, mb_status status, const char *what, uint64_t n_bytes,
                              const char *advice) {
    uint64_t total, free_bytes;
    if (status != MB_ERR_MEMORY)
        return mb_fail_context(status, "%s", what);
    if (device->memory(device, &total, &free_bytes) != MB_OK)
        return mb_fail(status, "%s: no memory for %s, %.3f GB; %s", device->name, what, (double)n_bytes / 1e9,
                       advice);
    return mb_fail(status, "%s: no memory for %s: %.3f GB are needed, %.3f of %.3f GB are free; %s",
                   device->name, what, (double)n_bytes / 1e9, (double)free_bytes / 1e9, (double)total / 1e9,
                   advice);
}
