#include "ops/common/workspace.h"

#include "base/status.h"

mb_status mb_workspace_measured(const char *op, const mb_arena *measured, size_t *bytes) {
    if (measured->overflowed)
        return mb_fail(MB_ERR_ARGUMENT, "%s: the workspace for these sizes is more than 2^64 bytes", op);
    *bytes = measured->used;
    return MB_OK;
}

mb_status mb_workspace_check(const char *op, const void *workspace, size_t workspace_bytes,
                             size_t needed_bytes) {
    if (needed_bytes > 0 && (!workspace || workspace_bytes < needed_bytes))
        return mb_fail(MB_ERR_CAPACITY, "%s: workspace has %zu bytes, needs %zu", op,
                       workspace ? workspace_bytes : 0, needed_bytes);
    return MB_OK;
}
