#include "device/place.h"

#include "base/status.h"
#include "ops/common/tensor.h"

mb_status mb_place_enter(const void *const *pointers, int n_pointers, mb_place *where) {
    *where = (mb_place){.ops = &mb_cpu_ops};
    const void *first = NULL;
    for (int i = 0; i < n_pointers && !first; i++)
        first = pointers[i];
#ifdef MOEBIUS_WITH_CUDA
    const mb_ops *gpu_ops = NULL;
    if (first)
        MB_TRY(mb_device_cuda_enter(first, &gpu_ops, &where->former));
    if (gpu_ops)
        where->ops = gpu_ops;
#endif
    return MB_OK;
}

mb_status mb_place_leave(const mb_place *where, mb_status status) {
#ifdef MOEBIUS_WITH_CUDA
    if (where->ops != &mb_cpu_ops)
        mb_device_cuda_leave(where->former);
#else
    (void)where;
#endif
    return status;
}

mb_status mb_place_check_workspace(const char *op, const void *workspace) {
    enum { ALIGNMENT = 256 };
    MB_REQUIRE((uintptr_t)workspace % ALIGNMENT == 0, "%s: workspace is not aligned to %d bytes", op,
               ALIGNMENT);
    return MB_OK;
}
