/*
 * grouped_gemm_sm90.cu - one grouped (or dense) GEMM by the experts' kernel: the tiles of the groups, then
 * the kernel's first GEMM alone.
 */
#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/experts/launch_sm90.h"
#include "ops/moe/experts/pick.h"
#include "ops/moe/layout_sm90.h"

/* One group, whose rows are known here, and nothing but its product. */
static int is_dense(const mb_grouped_gemm_args *args) {
    return args->b.count == 1 && !args->offsets && !args->row_index && !args->row_weight &&
           args->activation == MB_ACT_NONE && args->dtype != MB_F32 && args->out_dtype != MB_F8_E4M3 &&
           !(args->b.dtype == MB_F8_E4M3 && args->b.scale_rows == 0);
}

extern "C" mb_status mb_dense_gemm_sm90(const mb_grouped_gemm_args *args, const void *residual,
                                        mb_stream stream) {
    MB_TRY(mb_grouped_gemm_sm90_check(args));
    const mb_dense_plan plan = mb_dense_plan_of(mb_moe_family_of(args->b.dtype), args->n_rows, args->b.rows,
                                                args->b.cols, mb_n_processors());
    return mb_experts_dense(args, residual, &plan, stream);
}

/* Starts when the kernels in front of it have ended, as every launch without attributes. */
static __global__ void wait_for_all(void) {}

/* b may be what the kernels in front compute. mb_dense_gemm_sm90 reads it before they have ended, but not
 * before a launch between them and it has. */
static mb_status dense_after_all(const mb_grouped_gemm_args *args, mb_stream stream) {
    wait_for_all<<<1, 1, 0, (cudaStream_t)stream>>>();
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "grouped_gemm: launch failed: %s", cudaGetErrorString(error));
    return mb_dense_gemm_sm90(args, NULL, stream);
}

extern "C" mb_status mb_grouped_gemm_sm90_workspace(const mb_grouped_gemm_args *most, size_t *bytes) {
    return mb_grouped_gemm_sm90_most_bytes(most, bytes);
}

extern "C" mb_status mb_grouped_gemm_sm90(const mb_grouped_gemm_args *args, void *workspace,
                                          size_t workspace_bytes, mb_stream stream) {
    MB_TRY(mb_grouped_gemm_sm90_check(args));
    if (args->n_rows == 0)
        return MB_OK;
    const int32_t n_groups = (int32_t)args->b.count;
    const mb_moe_family family = mb_moe_family_of(args->b.dtype);
    if (is_dense(args))
        return dense_after_all(args, stream);
    const int tile = n_groups == 1 ? mb_moe_pick_dense(family, args->n_rows, args->b.rows, mb_n_processors())
                                   : mb_moe_pick(family, args->n_rows, n_groups);
    mb_arena arena = {(char *)workspace, SIZE_MAX, 0, 0, 0};
    const mb_grouped_gemm_layout layout = mb_grouped_gemm_sm90_layout(args, tile, &arena);
    MB_TRY(mb_workspace_check_arena("grouped_gemm", workspace, workspace_bytes, &arena));
    MB_TRY(mb_experts_cut_tiles(&layout.tiles, args->offsets, n_groups, args->n_rows, stream));
    if (layout.tiles.tile == MB_EXACT_TILE)
        return mb_grouped_gemm_f32_sm90(args, layout.tiles.tiles, layout.tiles.n_tiles,
                                        layout.tiles.max_tiles, stream);
    return mb_experts_one_gemm(args, &layout.tiles, layout.scratch, stream);
}
