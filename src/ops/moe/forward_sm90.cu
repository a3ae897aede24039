/*
 * forward_sm90.cu - the whole MoE layer: front (router, plan, x to fp8), experts, reduce, each launched so
 * that it starts while the one in front of it ends.
 */
#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/block_arguments.h"
#include "ops/moe/experts/launch_sm90.h"
#include "ops/moe/experts/pick.h"
#include "ops/moe/front/block_front.h"
#include "ops/moe/layout_sm90.h"

static mb_status check_tile(int tile) {
    if (tile < 0 || tile >= MB_MOE_N_TILES)
        return mb_fail(MB_ERR_ARGUMENT, "moe_forward: tile %d is not in 0 .. %d", tile, MB_MOE_N_TILES - 1);
    return MB_OK;
}

extern "C" mb_status mb_moe_forward_sm90_workspace(const mb_moe_forward_args *most, size_t *bytes) {
    return mb_moe_forward_sm90_most_bytes(most, mb_n_processors(), bytes);
}

extern "C" mb_status mb_moe_forward_sm90_tile_workspace(const mb_moe_forward_args *most, int tile,
                                                        size_t *bytes) {
    MB_TRY(check_tile(tile));
    return mb_moe_forward_sm90_tile_bytes(most, tile, mb_n_processors(), bytes);
}

/* What comes in front of the layer. */
typedef struct head {
    const mb_rms_norm_args *norm;
    const mb_moe_router_gemm_args *score;
} head;

static mb_status run_front(const mb_moe_steps *steps, const head *head, void *workspace,
                           size_t workspace_bytes, mb_stream stream) {
    if (head && mb_moe_block_front_takes(head->norm, head->score, &steps->front))
        return mb_moe_block_front_sm90(head->norm, head->score, &steps->front, stream);
    if (head) {
        MB_TRY(mb_rms_norm_sm90(head->norm, stream));
        MB_TRY(mb_moe_router_gemm_sm90(head->score, workspace, workspace_bytes, stream));
    }
    return mb_moe_front_sm90(&steps->front, steps->front_workspace, steps->front_workspace_bytes, stream);
}

/* The arguments were checked. head NULL: x and the logits exist. left NULL: the sum is made here; else
 * *left says what is still to be summed. */
static mb_status run(const mb_moe_forward_args *args, int tile, const head *head, void *workspace,
                     size_t workspace_bytes, mb_moe_reduce_args *left, mb_stream stream) {
    if (args->n_tokens == 0)
        return MB_OK;
    mb_arena arena = {(char *)workspace, SIZE_MAX, 0, 0, 0}; /* its end is looked at when all is taken */
    const mb_moe_steps steps = mb_moe_forward_sm90_layout(args, tile, mb_n_processors(), &arena);
    MB_TRY(mb_workspace_check_arena("moe_forward", workspace, workspace_bytes, &arena));
    MB_TRY(run_front(&steps, head, workspace, workspace_bytes, stream));
    MB_TRY(mb_experts_launch(&steps.experts, &steps.layout, stream));
    if (steps.layout.tiles.tile == MB_EXACT_TILE)
        return mb_moe_reduce_sm90(&steps.reduce, stream);
    if (!left)
        return mb_moe_reduce_experts_sm90(&steps.reduce, stream);
    *left = steps.reduce;
    return MB_OK;
}

extern "C" mb_status mb_moe_forward_sm90_tile(const mb_moe_forward_args *args, int tile, void *workspace,
                                              size_t workspace_bytes, mb_stream stream) {
    MB_TRY(mb_moe_forward_sm90_check(args));
    MB_TRY(check_tile(tile));
    return run(args, tile, NULL, workspace, workspace_bytes, NULL, stream);
}

extern "C" mb_status mb_moe_forward_sm90(const mb_moe_forward_args *args, void *workspace,
                                         size_t workspace_bytes, mb_stream stream) {
    MB_TRY(mb_moe_forward_sm90_check(args));
    const int tile =
        mb_moe_pick(mb_moe_family_of(args->w13.dtype), args->n_tokens * args->top_k, args->n_local_experts);
    return run(args, tile, NULL, workspace, workspace_bytes, NULL, stream);
}

extern "C" mb_status mb_moe_block_sm90(const mb_rms_norm_args *norm, const mb_moe_router_gemm_args *score,
                                       const mb_moe_forward_args *args, void *workspace,
                                       size_t workspace_bytes, mb_moe_reduce_args *left, mb_stream stream) {
    const head head = {norm, score};
    if (left)
        *left = mb_moe_reduce_args();
    MB_TRY(mb_moe_block_check(norm, score, args));
    MB_TRY(mb_moe_forward_sm90_check(args));
    const int tile =
        mb_moe_pick(mb_moe_family_of(args->w13.dtype), args->n_tokens * args->top_k, args->n_local_experts);
    return run(args, tile, &head, workspace, workspace_bytes, left, stream);
}
