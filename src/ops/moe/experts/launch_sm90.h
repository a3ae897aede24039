/* launch_sm90.h - the host side of the experts' kernel, for the operators that run it. */
#ifndef MB_OPS_MOE_EXPERTS_LAUNCH_SM90_H
#define MB_OPS_MOE_EXPERTS_LAUNCH_SM90_H

#include "ops/moe/experts/pick.h"
#include "ops/moe/layout_sm90.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Writes the tiles of rows that are grouped already, and sets the counters to 0. offsets NULL: one group. */
mb_status mb_experts_cut_tiles(const mb_experts_tiles *tiles, const int32_t *offsets, int32_t n_groups,
                               int64_t n_rows, mb_stream stream);

/* Both grouped GEMMs with the activation between them: y = w2(act(w13(x))) for every row of the tiles, in
 * one launch (of the exact fp32 GEMM two; with p, on other tiles than MB_SAVING_TILE, three). x is the
 * layout's x8 with fp8 weights. The tiles are cut, the counters 0. */
mb_status mb_experts_launch(const mb_moe_experts_args *args, const mb_moe_experts_layout *layout,
                            mb_stream stream);

/* One grouped GEMM. scratch: [R, columns of out] of 16 bits, with an fp8 out. */
mb_status mb_experts_one_gemm(const mb_grouped_gemm_args *args, const mb_experts_tiles *tiles, void *scratch,
                              mb_stream stream);

/* One group's plain product plus a residual ([R, columns of out] of out's type, may be out; or NULL), in
 * one launch, without tiles: out in 16 bits or fp32, neither row_index nor activation nor row_weight, not
 * TF32. The weight is read before the kernels in front of this one have ended. */
mb_status mb_experts_dense(const mb_grouped_gemm_args *args, const void *residual, const mb_dense_plan *plan,
                           mb_stream stream);

#ifdef __cplusplus
}
#endif
#endif
