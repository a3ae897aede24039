/*
 * moe_sm90.h - the MoE operators' Hopper launchers, and what they hand to each other. experts/README.md
 * tells how the kernels work. The public parameters are in moebius/ops.h.
 */
#ifndef MB_OPS_MOE_SM90_H
#define MB_OPS_MOE_SM90_H

#include "moebius/ops.h"
#include "ops/norm/norm.h"

#ifdef __cplusplus
extern "C" {
#endif

mb_status mb_moe_route_sm90(const mb_moe_route_args *args, mb_stream stream);

mb_status mb_moe_plan_sm90_workspace(const mb_moe_plan_args *most, size_t *bytes);
mb_status mb_moe_plan_sm90(const mb_moe_plan_args *args, void *workspace, size_t workspace_bytes,
                           mb_stream stream);

/* Rows of x to fp8. Block scales: scale[t, b] = amax of columns 128 b .. / 448, or 1 when that is 0;
 * out = x / scale. Per tensor: out = x / scale[0], saturated. */
typedef struct mb_moe_quantize_args {
    const void *x; /* [T, H] dtype (MB_BF16, MB_F16) */
    void *out;     /* [T, H] fp8 */
    float *scale;  /* [T, ceil(H / 128)] out; per tensor [1], read */
    int64_t n_tokens;
    int32_t hidden;
    int32_t per_tensor;
    mb_dtype dtype;
} mb_moe_quantize_args;
mb_status mb_moe_quantize_sm90(const mb_moe_quantize_args *args, mb_stream stream);

/* All work before the experts' kernel, in as few launches as the size allows (one for a few tokens): the
 * router, the plan, x to fp8, and the kernel's counters set to 0. */
typedef struct mb_moe_front_args {
    const mb_moe_route_args *route; /* NULL: ids are there already */
    mb_moe_plan_args plan;
    mb_moe_quantize_args quantize; /* x NULL: none */
    int32_t *counters;             /* [n_counters] set to 0 */
    int32_t n_counters;
} mb_moe_front_args;
mb_status mb_moe_front_sm90_workspace(const mb_moe_front_args *most, size_t *bytes);
mb_status mb_moe_front_sm90(const mb_moe_front_args *args, void *workspace, size_t workspace_bytes,
                            mb_stream stream);

/* Cuts rows that are grouped already into tiles, as mb_moe_plan does, and sets counters to 0. */
typedef struct mb_moe_tiles_args {
    const int32_t *offsets; /* [n_groups + 1], or NULL: one group of n_rows */
    int64_t n_rows;
    mb_moe_token_tile *tiles; /* out */
    int32_t *n_tiles;         /* [1] out */
    int32_t *counters;        /* [n_counters] set to 0; may be NULL */
    int32_t n_counters, n_groups, tile_rows, tile_step;
} mb_moe_tiles_args;
mb_status mb_moe_tiles_sm90(const mb_moe_tiles_args *args, mb_stream stream);

mb_status mb_moe_router_gemm_sm90_workspace(const mb_moe_router_gemm_args *most, size_t *bytes);
mb_status mb_moe_router_gemm_sm90(const mb_moe_router_gemm_args *args, void *workspace,
                                  size_t workspace_bytes, mb_stream stream);

mb_status mb_grouped_gemm_sm90_workspace(const mb_grouped_gemm_args *most, size_t *bytes);
mb_status mb_grouped_gemm_sm90(const mb_grouped_gemm_args *args, void *workspace, size_t workspace_bytes,
                               mb_stream stream);

/* The product of one group (no offsets, row_index, row_weight or activation; a and b in 16 bits, or fp8
 * with block scales; out in 16 bits or fp32) plus a residual ([R, columns of out] of out's type, may be
 * out; or NULL), in one launch, without a workspace. b is read before the kernels in front of this call
 * have ended. */
mb_status mb_dense_gemm_sm90(const mb_grouped_gemm_args *args, const void *residual, mb_stream stream);

/* The same with fp32 multiply-adds (dtype MB_F32, MB_F32_EXACT); tiles of MB_F32_TILE_ROWS rows. */
enum { MB_F32_TILE_ROWS = 64 };
mb_status mb_grouped_gemm_f32_sm90(const mb_grouped_gemm_args *args, const mb_moe_token_tile *tiles,
                                   const int32_t *n_tiles, int64_t max_tiles, mb_stream stream);

mb_status mb_moe_experts_sm90_workspace(const mb_moe_experts_args *most, size_t *bytes);
mb_status mb_moe_experts_sm90(const mb_moe_experts_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream);

mb_status mb_moe_reduce_sm90(const mb_moe_reduce_args *args, mb_stream stream);
/* The same right after the experts' kernel. It reads token_row and weights before that kernel ends, since the
 * kernel does not write them. */
mb_status mb_moe_reduce_experts_sm90(const mb_moe_reduce_args *args, mb_stream stream);

mb_status mb_moe_forward_sm90_workspace(const mb_moe_forward_args *most, size_t *bytes);
mb_status mb_moe_forward_sm90(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream);

/* The whole MoE block: norm, router, moe_forward, which mb_moe_block_check finds to belong together. left
 * NULL, or what is left of it: then mb_moe_reduce_experts_sm90 has to do *left, in the next launch of the
 * stream or a later one, with n_tokens 0 where nothing is left. Its pointers are into the workspace. The
 * norm's weight and the router's are read before the kernels in front of this call have ended. (mb_ops:
 * moe_block.) */
mb_status mb_moe_block_sm90(const mb_rms_norm_args *norm, const mb_moe_router_gemm_args *score,
                            const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                            mb_moe_reduce_args *left, mb_stream stream);

/* The same with a given row of experts/tiles.def, for tests and benchmarks. */
mb_status mb_moe_forward_sm90_tile_workspace(const mb_moe_forward_args *most, int tile, size_t *bytes);
mb_status mb_moe_forward_sm90_tile(const mb_moe_forward_args *args, int tile, void *workspace,
                                   size_t workspace_bytes, mb_stream stream);

#ifdef __cplusplus
}
#endif
#endif
