/* rows_layout.h - how the gradients of rows divide their workspace. Plain C, as moe/layout_sm90.h is. */
#ifndef MB_OPS_MOE_BACKWARD_ROWS_LAYOUT_H
#define MB_OPS_MOE_BACKWARD_ROWS_LAYOUT_H

#include "ops/moe/layout_sm90.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The token tiles of one product, and the counter of its queue. */
mb_experts_tiles mb_backward_rows_tiles(int64_t n_rows, int32_t n_experts, int32_t tile_rows,
                                        mb_arena *arena);

/* The bytes of that. With fewer rows they are no more. */
mb_status mb_backward_rows_bytes(const char *op, int64_t n_rows, int32_t n_experts, int32_t tile_rows,
                                 size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
