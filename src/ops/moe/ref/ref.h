/* ref.h - what several references share. Arguments were checked before. */
#ifndef MB_OPS_MOE_REF_H
#define MB_OPS_MOE_REF_H

#include "moebius/ops.h"

/* Cuts each group's rows, [offsets[e], offsets[e + 1]), into tiles as mb_moe_plan does. Returns the number of
 * tiles. */
int32_t mb_moe_cut_tiles(const int32_t *offsets, int64_t n_groups, int32_t tile_rows, int32_t tile_step,
                         mb_moe_token_tile *tiles);

/* The CPU checks indices before it uses them: offsets must not be negative, must not fall, and must end at
 * n_rows or before; row_index (which may be NULL) must be in [0, n_sources). */
mb_status mb_moe_check_rows(const char *op, const int32_t *offsets, int64_t n_groups, int64_t n_rows,
                            const int32_t *row_index, int64_t n_sources);

/* NaN becomes -infinity, so that it is chosen last and the ids stay in range. 1 when there was one. */
int mb_silence_nan(int32_t n, float *logits);

/* The weights of one token's choices: the softmax over all logits, none of them NaN, or over those of the
 * choices. An id below 0 is no choice, and its weight 0. */
void mb_route_weights(int32_t n_experts, const float *logits, int32_t n_choices, const int32_t *ids,
                      int over_chosen, float *weights);

/* mb_grouped_gemm with any dtype of b. */
mb_status mb_grouped_gemm_any_workspace(const mb_grouped_gemm_args *most, size_t *bytes);
mb_status mb_grouped_gemm_any(const mb_grouped_gemm_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream);

#endif
