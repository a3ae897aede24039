#include "ops/common/workspace.h"

#include "base/status.h"

mb_status mb_workspace_measured(const char *op, const mb_arena *measured, size_t *bytes) {
    if (measured->overflowed)
        return mb_fail(MB_ERR_ARGUMENT,
                       "%s: the workspace for these sizes would be too large; ask for fewer tokens or rows",
                       op);
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

mb_status mb_workspace_check_arena(const char *op, const void *workspace, size_t workspace_bytes,
                                   const mb_arena *cut) {
    size_t needed;
    MB_TRY(mb_workspace_measured(op, cut, &needed));
    return mb_workspace_check(op, workspace, workspace_bytes, needed);
}
