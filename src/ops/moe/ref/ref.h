/* ref.h - parts of the references that others are composed of. Their arguments were checked already. */
#ifndef MB_OPS_MOE_REF_H
#define MB_OPS_MOE_REF_H

#include "moebius/ops.h"

/* The rows of each group, [offsets[e], offsets[e + 1]), cut into tiles as mb_moe_plan does; how many. */
int32_t mb_moe_cut_tiles(const int32_t *offsets, int64_t n_groups, int32_t tile_rows, int32_t tile_step,
                         mb_moe_token_tile *tiles);

/* mb_grouped_gemm with any dtype of b. Looks into offsets and row_index, and refuses what is not sane. */
mb_status mb_grouped_gemm_any_workspace(const mb_grouped_gemm_args *most, size_t *bytes);
mb_status mb_grouped_gemm_any(const mb_grouped_gemm_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream);

/* mb_moe_reduce with any two dtypes. */
void mb_moe_reduce_any(const mb_moe_reduce_args *args, mb_stream stream);

#endif
