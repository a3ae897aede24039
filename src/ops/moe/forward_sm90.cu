/*
 * forward_sm90.cu - the whole MoE layer: front (router, plan, x to fp8), experts, reduce, each launched so
 * that it starts while the one in front of it ends.
 */
#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/arguments.h"
#include "ops/moe/experts/launch_sm90.h"
#include "ops/moe/experts/pick.h"

/* Takes n_bytes from the workspace, 256-byte aligned; with base NULL it only counts. */
static void *take(char *base, size_t *used, size_t n_bytes) {
    void *place = base ? base + *used : NULL;
    *used += (n_bytes + 255) / 256 * 256;
    return place;
}

static int is_exact(const mb_moe_forward_args *args) {
    return args->dtype == MB_F32 && args->f32_math == MB_F32_EXACT;
}

static int is_per_tensor(const mb_moe_forward_args *args) {
    return args->w13.scale_rows == 0;
}

extern "C" void mb_moe_forward_sm90_steps(const mb_moe_forward_args *args, int tile, void *workspace,
                                          mb_moe_steps *steps) {
    const size_t n_tokens = (size_t)args->n_tokens, n_rows = n_tokens * (size_t)args->top_k;
    const size_t hidden = (size_t)args->hidden, intermediate = (size_t)args->intermediate;
    const size_t element_bytes = mb_dtype_bytes(args->dtype);
    const int is_fp8 = args->w13.dtype == MB_F8_E4M3;
    char *base = (char *)workspace;
    size_t used = 0;
    *steps = mb_moe_steps();

    mb_moe_front_args *front = &steps->front;
    mb_moe_plan_args *plan = &front->plan;
    front->route = args->route;
    plan->ids = args->ids;
    plan->n_tokens = args->n_tokens;
    plan->top_k = args->top_k;
    plan->n_experts = args->n_experts;
    plan->first_expert = args->first_expert;
    plan->n_local_experts = args->n_local_experts;
    plan->offsets = (int32_t *)take(base, &used, sizeof(int32_t) * ((size_t)args->n_local_experts + 1));
    plan->row_token = (int32_t *)take(base, &used, sizeof(int32_t) * n_rows);
    plan->token_row = (int32_t *)take(base, &used, sizeof(int32_t) * n_rows);
    plan->tile_rows = is_exact(args) ? MB_F32_TILE_ROWS : mb_moe_tiles[tile].max_tokens;
    plan->tile_step = is_exact(args) ? 1 : mb_moe_tiles[tile].token_step;
    const int64_t max_tiles = mb_moe_max_tiles((int64_t)n_rows, args->n_local_experts, plan->tile_rows);
    plan->tiles = (mb_moe_token_tile *)take(base, &used, sizeof(mb_moe_token_tile) * (size_t)max_tiles);
    plan->n_tiles = (int32_t *)take(base, &used, sizeof(int32_t));
    front->n_counters =
        (int32_t)mb_experts_n_counters(max_tiles, is_fp8 && !is_per_tensor(args) ? args->intermediate : 0);
    front->counters = (int32_t *)take(base, &used, sizeof(int32_t) * (size_t)front->n_counters);

    mb_moe_experts_args *experts = &steps->experts;
    experts->forward = args;
    experts->row_token = plan->row_token;
    experts->tiles = plan->tiles;
    experts->n_tiles = plan->n_tiles;
    experts->counters = front->counters;
    experts->max_tiles = max_tiles;
    experts->tile = tile;
    experts->x = args->x;
    if (is_fp8) {
        mb_moe_quantize_args *quantize = &front->quantize;
        quantize->x = args->x;
        quantize->out = take(base, &used, n_tokens * hidden);
        quantize->n_tokens = args->n_tokens;
        quantize->hidden = args->hidden;
        quantize->per_tensor = is_per_tensor(args);
        quantize->dtype = args->dtype;
        if (is_per_tensor(args)) {
            quantize->scale = (float *)args->x_scale;
            experts->h_scale = (float *)args->h_scale;
        } else {
            quantize->scale = (float *)take(
                base, &used, sizeof(float) * n_tokens * ((hidden + MB_F8_BLOCK - 1) / MB_F8_BLOCK));
            experts->h_scale = (float *)take(
                base, &used, sizeof(float) * n_rows * ((intermediate + MB_F8_BLOCK - 1) / MB_F8_BLOCK));
        }
        experts->x = quantize->out;
        experts->x_scale = quantize->scale;
        experts->h8 = take(base, &used, n_rows * intermediate);
    }
    experts->h = take(base, &used, n_rows * intermediate * element_bytes);
    experts->y = take(base, &used, n_rows * hidden * element_bytes);

    mb_moe_reduce_args *reduce = &steps->reduce;
    reduce->y = experts->y;
    reduce->weights = args->weights;
    reduce->token_row = plan->token_row;
    reduce->residual = args->residual;
    reduce->shared = args->shared;
    reduce->out = args->out;
    reduce->n_tokens = args->n_tokens;
    reduce->hidden = args->hidden;
    reduce->top_k = args->top_k;
    reduce->dtype = reduce->out_dtype = args->dtype;

    mb_moe_front_sm90_workspace(front, &steps->front_workspace_bytes); /* its sizes were checked */
    steps->front_workspace = take(base, &used, steps->front_workspace_bytes);
    steps->workspace_bytes = used;
}

static mb_status check_dtypes(const mb_moe_forward_args *args) {
    const mb_dtype dtype = args->dtype, weights = args->w13.dtype;
    const int is_16bit = dtype == MB_BF16 || dtype == MB_F16;
    if (args->w2.dtype != weights ||
        !((weights == dtype && (is_16bit || dtype == MB_F32)) || (weights == MB_F8_E4M3 && is_16bit)))
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "moe_forward: x is %s, w13 %s, w2 %s; the weights must be of x's dtype (fp32, bf16, fp16), "
            "or both fp8_e4m3 with x in bf16 or fp16",
            mb_dtype_name(dtype), mb_dtype_name(weights), mb_dtype_name(args->w2.dtype));
    if (weights != MB_F8_E4M3)
        return MB_OK;
    if (is_per_tensor(args) != (args->w2.scale_rows == 0))
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "moe_forward: one of w13 and w2 has block scales, the other per-tensor scales");
    if (args->w13.scale_rows % 8 != 0 || args->w2.scale_rows % 8 != 0)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "moe_forward: scale_rows of w13 is %d, of w2 %d; on sm90 they must be 8, 16, 32, 64 or "
            "128, or both 0 for one scale a matrix",
            args->w13.scale_rows, args->w2.scale_rows);
    return MB_OK;
}

/* What these kernels want beyond the operator's contract. */
static mb_status check_sizes(const mb_moe_forward_args *args) {
    MB_TRY(mb_moe_forward_check_sizes(args));
    MB_TRY(check_dtypes(args));
    const int step = args->w13.dtype == MB_F8_E4M3 ? 16 : 8;
    if (args->top_k > 32 || args->hidden < 16 || args->hidden % step != 0 || args->intermediate < 16 ||
        args->intermediate % step != 0)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "moe_forward: top_k %d, hidden %d, intermediate %d; on sm90 hidden and intermediate must "
            "be multiples of %d and 16 at least, top_k at most 32",
            args->top_k, args->hidden, args->intermediate, step);
    /* The experts' kernel counts the places of x in 32 bits. */
    const int64_t most_values = ((int64_t)UINT32_MAX + 1) / (int64_t)mb_dtype_bytes(args->w13.dtype);
    if (!is_exact(args) && args->n_tokens * args->hidden > most_values)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "moe_forward: x is [%lld, %d] in %s; at most 2^32 bytes can be done in one call",
                       (long long)args->n_tokens, args->hidden, mb_dtype_name(args->w13.dtype));
    return MB_OK;
}

static mb_status check(const mb_moe_forward_args *args) {
    MB_TRY(check_sizes(args));
    MB_TRY(mb_moe_forward_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    if (args->w13.dtype == MB_F8_E4M3 && (!args->w13.scale || !args->w2.scale))
        return mb_fail(MB_ERR_ARGUMENT, "moe_forward: %s is fp8 and its scale is NULL",
                       args->w13.scale ? "w2" : "w13");
    if (args->w13.dtype == MB_F8_E4M3 && is_per_tensor(args) && (!args->x_scale || !args->h_scale))
        return mb_fail(MB_ERR_ARGUMENT, "moe_forward: x_scale or h_scale is NULL; per-tensor fp8 needs both");
    if (((uintptr_t)args->x | (uintptr_t)args->residual | (uintptr_t)args->shared | (uintptr_t)args->out |
         (uintptr_t)args->w13.data | (uintptr_t)args->w2.data) %
        16)
        return mb_fail(MB_ERR_ARGUMENT,
                       "moe_forward: x, w13, w2, residual, shared and out must be 16-byte aligned");
    return MB_OK;
}

/* Both GEMMs with fp32 multiply-adds. */
static mb_status run_exact(const mb_moe_steps *steps, mb_stream stream) {
    const mb_moe_experts_args *experts = &steps->experts;
    const mb_moe_forward_args *f = experts->forward;
    mb_grouped_gemm_args gemm = {};
    gemm.a = f->x;
    gemm.row_index = experts->row_token;
    gemm.offsets = steps->front.plan.offsets;
    gemm.b = f->w13;
    gemm.bias = f->bias13;
    gemm.out = experts->h;
    gemm.n_rows = f->n_tokens * f->top_k;
    gemm.dtype = gemm.out_dtype = gemm.bias_dtype = MB_F32;
    gemm.activation = f->activation;
    gemm.f32_math = MB_F32_EXACT;
    MB_TRY(mb_grouped_gemm_f32_sm90(&gemm, experts->tiles, experts->n_tiles, experts->max_tiles, stream));
    gemm.a = experts->h;
    gemm.row_index = NULL;
    gemm.b = f->w2;
    gemm.bias = f->bias2;
    gemm.out = experts->y;
    gemm.activation = MB_ACT_NONE;
    return mb_grouped_gemm_f32_sm90(&gemm, experts->tiles, experts->n_tiles, experts->max_tiles, stream);
}

static mb_status check_tile(int tile) {
    if (tile < 0 || tile >= MB_MOE_N_TILES)
        return mb_fail(MB_ERR_ARGUMENT, "moe_forward: tile %d is not in 0 .. %d", tile, MB_MOE_N_TILES - 1);
    return MB_OK;
}

static size_t tile_workspace(const mb_moe_forward_args *args, int tile) {
    mb_moe_steps steps;
    mb_moe_forward_sm90_steps(args, tile, NULL, &steps);
    return steps.workspace_bytes;
}

extern "C" mb_status mb_moe_forward_sm90_tile_workspace(const mb_moe_forward_args *most, int tile,
                                                        size_t *bytes) {
    MB_TRY(check_sizes(most));
    MB_TRY(check_tile(tile));
    *bytes = tile_workspace(most, tile);
    return MB_OK;
}

/* What a tile needs grows with the tokens, so the most tokens that each tile is picked for decide. */
extern "C" mb_status mb_moe_forward_sm90_workspace(const mb_moe_forward_args *most, size_t *bytes) {
    MB_TRY(check_sizes(most));
    const mb_moe_family family = mb_moe_family_of(most->w13.dtype);
    *bytes = 0;
    int64_t limit = -1;
    for (int choice = 0; limit < most->n_tokens; choice++) {
        limit = mb_moe_choice_most_rows(family, choice, most->n_local_experts) / most->top_k;
        mb_moe_forward_args args = *most;
        if (args.n_tokens > limit)
            args.n_tokens = limit;
        const size_t needed = tile_workspace(&args, mb_moe_choice(family, choice));
        *bytes = needed > *bytes ? needed : *bytes;
    }
    return MB_OK;
}

/* The arguments were checked. */
static mb_status run(const mb_moe_forward_args *args, int tile, void *workspace, size_t workspace_bytes,
                     mb_stream stream) {
    if (args->n_tokens == 0)
        return MB_OK;
    mb_moe_steps steps;
    mb_moe_forward_sm90_steps(args, tile, workspace, &steps);
    MB_TRY(mb_workspace_check("moe_forward", workspace, workspace_bytes, steps.workspace_bytes));
    MB_TRY(mb_moe_front_sm90(&steps.front, steps.front_workspace, steps.front_workspace_bytes, stream));
    if (is_exact(args)) {
        MB_TRY(run_exact(&steps, stream));
        return mb_moe_reduce_sm90(&steps.reduce, stream);
    }
    MB_TRY(mb_moe_experts_sm90(&steps.experts, stream));
    return mb_moe_reduce_experts_sm90(&steps.reduce, stream);
}

extern "C" mb_status mb_moe_forward_sm90_tile(const mb_moe_forward_args *args, int tile, void *workspace,
                                              size_t workspace_bytes, mb_stream stream) {
    MB_TRY(check(args));
    MB_TRY(check_tile(tile));
    return run(args, tile, workspace, workspace_bytes, stream);
}

extern "C" mb_status mb_moe_forward_sm90(const mb_moe_forward_args *args, void *workspace,
                                         size_t workspace_bytes, mb_stream stream) {
    MB_TRY(check(args));
    const int tile =
        mb_moe_pick(mb_moe_family_of(args->w13.dtype), args->n_tokens * args->top_k, args->n_local_experts);
    return run(args, tile, workspace, workspace_bytes, stream);
}
