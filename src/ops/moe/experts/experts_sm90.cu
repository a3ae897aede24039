/*
 * experts_sm90.cu - the experts alone: x to fp8 with fp8 weights, the tiles of the rows, then the experts'
 * kernel.
 */
#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/experts/launch_sm90.h"
#include "ops/moe/experts/pick.h"
#include "ops/moe/layout_sm90.h"

extern "C" mb_status mb_moe_experts_sm90_workspace(const mb_moe_experts_args *most, size_t *bytes) {
    return mb_moe_experts_sm90_most_bytes(most, bytes);
}

extern "C" mb_status mb_moe_experts_sm90(const mb_moe_experts_args *args, void *workspace,
                                         size_t workspace_bytes, mb_stream stream) {
    MB_TRY(mb_moe_experts_sm90_check(args));
    if (args->n_rows == 0)
        return MB_OK;
    const int tile = mb_moe_pick(mb_moe_family_of(args->w13.dtype), args->n_rows, args->n_local_experts);
    mb_arena arena = {(char *)workspace, SIZE_MAX, 0, 0, 0}; /* its end is looked at when all is taken */
    const mb_moe_experts_layout layout = mb_moe_experts_sm90_layout(args, tile, &arena);
    MB_TRY(mb_workspace_check_arena("moe_experts", workspace, workspace_bytes, &arena));
    const mb_moe_quantize_args quantize = mb_moe_experts_quantize(args, &layout);
    if (quantize.x)
        MB_TRY(mb_moe_quantize_sm90(&quantize, stream));
    MB_TRY(mb_experts_cut_tiles(&layout.tiles, args->offsets, args->n_local_experts, args->n_rows, stream));
    return mb_experts_launch(args, &layout, stream);
}
