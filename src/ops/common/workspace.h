/* workspace.h - how an operator says how many bytes of workspace it needs, and refuses fewer. */
#ifndef MB_OPS_COMMON_WORKSPACE_H
#define MB_OPS_COMMON_WORKSPACE_H

#include "base/arena.h"
#include "moebius/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* *bytes is what the measuring arena has handed out. MB_ERR_ARGUMENT when the arena overflowed. */
mb_status mb_workspace_measured(const char *op, const mb_arena *measured, size_t *bytes);

/* MB_ERR_CAPACITY when the workspace is too small, or NULL although bytes are needed. */
mb_status mb_workspace_check(const char *op, const void *workspace, size_t workspace_bytes,
                             size_t needed_bytes);

/* The same after an arena of capacity SIZE_MAX was cut from the workspace: what it has handed out is
 * needed. */
mb_status mb_workspace_check_arena(const char *op, const void *workspace, size_t workspace_bytes,
                                   const mb_arena *cut);

#ifdef __cplusplus
}
#endif
#endif
