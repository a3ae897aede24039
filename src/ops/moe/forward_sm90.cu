/*
 * forward_sm90.cu - the whole MoE layer: plan, experts, reduce, each launched so that it starts while the one
 * in front of it ends.
 */
#include "ops/hopper/launch.cuh"
#include "ops/moe/moe_pick.h"
#include "ops/moe/moe_sm90.h"

/* Takes n_bytes from the workspace, 256-byte aligned; with base NULL it only counts. */
static void *take(char *base, size_t *used, size_t n_bytes) {
    void *place = base ? base + *used : NULL;
    *used += (n_bytes + 255) / 256 * 256;
    return place;
}

extern "C" void mb_moe_forward_sm90_steps(const mb_moe_forward_args *args, int tile, void *workspace,
                                          mb_moe_steps *steps) {
    const size_t n_rows = (size_t)args->n_tokens * (size_t)args->top_k;
    const mb_moe_tile *t = &mb_moe_tiles[tile];
    char *base = (char *)workspace;
    size_t used = 0;
    *steps = mb_moe_steps();

    mb_moe_plan_args *plan = &steps->plan;
    plan->ids = args->ids;
    plan->n_tokens = args->n_tokens;
    plan->top_k = args->top_k;
    plan->n_experts = args->n_experts;
    plan->first_expert = args->first_expert;
    plan->n_local_experts = args->n_local_experts;
    plan->offsets = (int32_t *)take(base, &used, sizeof(int32_t) * ((size_t)args->n_local_experts + 1));
    plan->row_token = (int32_t *)take(base, &used, sizeof(int32_t) * n_rows);
    plan->token_row = (int32_t *)take(base, &used, sizeof(int32_t) * n_rows);
    steps->plan_workspace_bytes = mb_moe_plan_sm90_workspace(plan);
    steps->plan_workspace = take(base, &used, steps->plan_workspace_bytes);

    mb_moe_schedule *schedule = &steps->experts.schedule;
    const size_t most_experts =
        n_rows < (size_t)args->n_local_experts ? n_rows : (size_t)args->n_local_experts;
    const size_t max_tiles = most_experts + n_rows / (size_t)t->max_tokens;
    schedule->max_tiles = (int32_t)max_tiles;
    schedule->tile_tokens = t->max_tokens;
    schedule->tile_step = t->token_step;
    schedule->tiles = (mb_moe_token_tile *)take(base, &used, sizeof(mb_moe_token_tile) * max_tiles);
    schedule->ready = (int32_t *)take(base, &used, sizeof(int32_t) * max_tiles);
    schedule->n_tiles = (int32_t *)take(base, &used, sizeof(int32_t));
    schedule->next_item = (int32_t *)take(base, &used, sizeof(int32_t));

    steps->experts.forward = args;
    steps->experts.row_token = plan->row_token;
    steps->experts.tile = tile;
    steps->experts.h = take(base, &used, n_rows * (size_t)args->intermediate * mb_dtype_bytes(args->dtype));
    steps->experts.y = take(base, &used, n_rows * (size_t)args->hidden * mb_dtype_bytes(args->dtype));

    mb_moe_reduce_args *reduce = &steps->reduce;
    reduce->y = steps->experts.y;
    reduce->weights = args->weights;
    reduce->token_row = plan->token_row;
    reduce->residual = args->residual;
    reduce->shared = args->shared;
    reduce->out = args->out;
    reduce->n_tokens = args->n_tokens;
    reduce->hidden = args->hidden;
    reduce->top_k = args->top_k;
    steps->workspace_bytes = used;
}

extern "C" size_t mb_moe_forward_sm90_tile_workspace(const mb_moe_forward_args *args, int tile) {
    mb_moe_steps steps;
    mb_moe_forward_sm90_steps(args, tile, NULL, &steps);
    return steps.workspace_bytes;
}

static mb_status check(const mb_moe_forward_args *args) {
    if (args->dtype != MB_BF16 || args->w13.dtype != MB_BF16 || args->w2.dtype != MB_BF16)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "moe_forward: activations and weights must be bf16 on sm90 so far");
    const int64_t halves = mb_activation_is_gated(args->activation) ? 2 : 1;
    if (args->n_tokens < 0 || args->top_k < 1 || args->top_k > 32 || args->n_local_experts < 1 ||
        args->hidden < 16 || args->hidden % 8 != 0 || args->intermediate < 16 || args->intermediate % 8 != 0)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "moe_forward: n_tokens %lld, top_k %d, local experts %d, hidden %d, intermediate %d; hidden "
            "and intermediate must be multiples of 8, top_k 1 .. 32",
            (long long)args->n_tokens, args->top_k, args->n_local_experts, args->hidden, args->intermediate);
    if (args->w13.count != args->n_local_experts || args->w13.rows != halves * args->intermediate ||
        args->w13.cols != args->hidden)
        return mb_fail(MB_ERR_ARGUMENT, "moe_forward: w13 is [%lld, %lld, %lld], not [%d, %lld, %d]",
                       (long long)args->w13.count, (long long)args->w13.rows, (long long)args->w13.cols,
                       args->n_local_experts, (long long)halves * args->intermediate, args->hidden);
    if (args->w2.count != args->n_local_experts || args->w2.rows != args->hidden ||
        args->w2.cols != args->intermediate)
        return mb_fail(MB_ERR_ARGUMENT, "moe_forward: w2 is [%lld, %lld, %lld], not [%d, %d, %d]",
                       (long long)args->w2.count, (long long)args->w2.rows, (long long)args->w2.cols,
                       args->n_local_experts, args->hidden, args->intermediate);
    if (args->first_expert < 0 || args->first_expert > args->n_experts - args->n_local_experts)
        return mb_fail(MB_ERR_ARGUMENT, "moe_forward: experts %d and %d more are not all in 0 .. %d",
                       args->first_expert, args->n_local_experts - 1, args->n_experts - 1);
    if ((int)args->activation < MB_ACT_SWIGLU || args->activation > MB_ACT_RELU2)
        return mb_fail(MB_ERR_ARGUMENT, "moe_forward: activation %d is unknown", (int)args->activation);
    if (((uintptr_t)args->x | (uintptr_t)args->residual | (uintptr_t)args->shared | (uintptr_t)args->out |
         (uintptr_t)args->w13.data | (uintptr_t)args->w2.data) %
        16)
        return mb_fail(MB_ERR_ARGUMENT,
                       "moe_forward: x, w13, w2, residual, shared and out must be 16-byte aligned");
    if (args->n_tokens > 0 && (!args->x || !args->weights || !args->ids || !args->w13.data ||
                               !args->w2.data || !args->out || args->x == args->out))
        return mb_fail(MB_ERR_ARGUMENT, "moe_forward: x, weights, ids, w13, w2 or out is NULL, or out is x");
    return MB_OK;
}

extern "C" mb_status mb_moe_forward_sm90_tile(const mb_moe_forward_args *args, int tile, void *workspace,
                                              size_t workspace_bytes, mb_stream stream) {
    MB_TRY(check(args));
    if (tile < 0 || tile >= MB_MOE_N_TILES)
        return mb_fail(MB_ERR_ARGUMENT, "moe_forward: tile %d is not in 0 .. %d", tile, MB_MOE_N_TILES - 1);
    if (args->n_tokens == 0)
        return MB_OK;
    mb_moe_steps steps;
    mb_moe_forward_sm90_steps(args, tile, workspace, &steps);
    if (!workspace || workspace_bytes < steps.workspace_bytes)
        return mb_fail(MB_ERR_CAPACITY, "moe_forward: workspace of %zu bytes, %zu are needed",
                       workspace ? workspace_bytes : 0, steps.workspace_bytes);
    MB_TRY(mb_moe_plan_sm90(&steps.plan, &steps.experts.schedule, steps.plan_workspace,
                            steps.plan_workspace_bytes, stream));
    MB_TRY(mb_moe_experts_sm90(&steps.experts, stream));
    return mb_moe_reduce_sm90(&steps.reduce, stream);
}

extern "C" size_t mb_moe_forward_sm90_workspace(const mb_moe_forward_args *args) {
    return mb_moe_forward_sm90_tile_workspace(
        args, mb_moe_pick(args->n_tokens, args->top_k, args->n_local_experts));
}

extern "C" mb_status mb_moe_forward_sm90(const mb_moe_forward_args *args, void *workspace,
                                         size_t workspace_bytes, mb_stream stream) {
    int tile =
        mb_moe_pick(args->n_tokens, args->top_k, args->n_local_experts < 1 ? 1 : args->n_local_experts);
    return mb_moe_forward_sm90_tile(args, tile, workspace, workspace_bytes, stream);
}
