#include "device/device.h"

#include "base/log.h"
#include "base/status.h"

#include <stdlib.h>
#include <string.h>

static mb_status open_cuda(int ordinal, mb_device **device) {
#ifdef MOEBIUS_WITH_CUDA
    return mb_device_open_cuda(ordinal, device);
#else
    (void)ordinal;
    (void)device;
    return mb_fail(MB_ERR_UNSUPPORTED,
                   "device: this build has no CUDA; use \"cpu\", or build with MOEBIUS_CUDA=ON");
#endif
}

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

mb_status mb_device_open(const char *name, int n_threads, mb_device **device) {
    *device = NULL;
    if (!name) {
        if (open_cuda(0, device) == MB_OK)
            return MB_OK;
        mb_log(MB_LOG_DEBUG, "no CUDA device: %s", mb_last_error());
        return mb_device_open_cpu(n_threads, device);
    }
    if (strcmp(name, "cpu") == 0)
        return mb_device_open_cpu(n_threads, device);
    int ordinal = cuda_ordinal(name);
    if (ordinal >= 0)
        return open_cuda(ordinal, device);
    return mb_fail(MB_ERR_ARGUMENT, "device: \"%s\" is unknown; valid are \"cpu\", \"cuda\" and \"cuda:N\"",
                   name);
}

void mb_device_close(mb_device *device) {
    if (device)
        device->close(device);
}
