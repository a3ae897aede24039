/* ref.h - parts of the references that others are composed of. Their arguments were checked already. */
#ifndef MB_OPS_MOE_REF_H
#define MB_OPS_MOE_REF_H

#include "moebius/ops.h"

/* The rows of each group, [offsets[e], offsets[e + 1]), cut into tiles as mb_moe_plan does; how many. */
int32_t mb_moe_cut_tiles(const int32_t *offsets, int64_t n_groups, int32_t tile_rows, int32_t tile_step,
                         mb_moe_token_tile *tiles);

/* What a CPU can read before it follows it: offsets rise from 0 or more to n_rows at most, and row_index (NULL: not
 * there) is in [0, n_sources). */
mb_status mb_moe_check_rows(const char *op, const int32_t *offsets, int64_t n_groups, int64_t n_rows,
                            const int32_t *row_index, int64_t n_sources);

/* mb_grouped_gemm with any dtype of b. Looks into offsets and row_index, and refuses what is not sane. */
mb_status mb_grouped_gemm_any_workspace(const mb_grouped_gemm_args *most, size_t *bytes);
mb_status mb_grouped_gemm_any(const mb_grouped_gemm_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream);

#endif
