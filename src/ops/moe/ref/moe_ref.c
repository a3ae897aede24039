#include "base/arena.h"
#include "base/status.h"
#include "ops/common/workspace.h"
#include "ops/moe/arguments.h"
#include "ops/moe/moe.h"

/* The smaller operators one after another: the router if it is asked for, the plan, the experts, the sum. */

typedef struct forward {
    mb_moe_plan_args plan;
    mb_moe_experts_args experts;
    mb_moe_reduce_args reduce;
    void *workspace; /* of one operator after another */
    size_t workspace_bytes;
} forward;

static void describe(const mb_moe_forward_args *args, forward *f) {
    *f = (forward){
        .plan = {.ids = args->ids,
                 .n_tokens = args->n_tokens,
                 .top_k = args->top_k,
                 .n_experts = args->n_experts,
                 .first_expert = args->first_expert,
                 .n_local_experts = args->n_local_experts},
        .experts = mb_moe_forward_experts(args),
        .reduce = {.weights = args->weights,
                   .residual = args->residual,
                   .shared = args->shared,
                   .out = args->out,
                   .n_tokens = args->n_tokens,
                   .hidden = args->hidden,
                   .top_k = args->top_k,
                   .dtype = args->dtype,
                   .out_dtype = args->dtype},
    };
}

static mb_status cut_workspace(const mb_moe_forward_args *args, mb_arena *arena, forward *f) {
    size_t n_rows = (size_t)f->experts.n_rows, plan_bytes, experts_bytes;
    MB_TRY(mb_moe_plan_ref_workspace(&f->plan, &plan_bytes));
    mb_status status = mb_moe_experts_ref_workspace(&f->experts, &experts_bytes);
    if (status != MB_OK)
        return mb_fail_context(status, "moe_forward");
    f->plan.offsets = mb_arena_push(arena, (size_t)args->n_local_experts + 1, sizeof(int32_t));
    f->plan.row_token = mb_arena_push(arena, n_rows, sizeof(int32_t));
    f->plan.token_row = mb_arena_push(arena, n_rows, sizeof(int32_t));
    f->experts.y = mb_arena_push(arena, n_rows, mb_dtype_row_bytes(args->dtype, args->hidden));
    f->workspace_bytes = plan_bytes > experts_bytes ? plan_bytes : experts_bytes;
    f->workspace = mb_arena_push(arena, f->workspace_bytes, 1);
    f->experts.offsets = f->plan.offsets;
    f->experts.row_index = f->plan.row_token;
    f->reduce.y = f->experts.y;
    f->reduce.token_row = f->plan.token_row;
    return MB_OK;
}

mb_status mb_moe_forward_ref_workspace(const mb_moe_forward_args *most, size_t *bytes) {
    MB_TRY(mb_moe_forward_check_sizes(most));
    forward f;
    describe(most, &f);
    mb_arena arena;
    mb_arena_measure(&arena);
    if (most->n_tokens > 0)
        MB_TRY(cut_workspace(most, &arena, &f));
    return mb_workspace_measured("moe_forward", &arena, bytes);
}

mb_status mb_moe_forward_ref(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                             mb_stream stream) {
    MB_TRY(mb_moe_forward_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    size_t needed;
    MB_TRY(mb_moe_forward_ref_workspace(args, &needed));
    MB_TRY(mb_workspace_check("moe_forward", workspace, workspace_bytes, needed));
    forward f;
    describe(args, &f);
    mb_arena arena;
    mb_arena_init(&arena, workspace, workspace_bytes, 1);
    MB_TRY(cut_workspace(args, &arena, &f));
    if (args->route)
        MB_TRY(mb_moe_route_ref(args->route, stream));
    MB_TRY(mb_moe_plan_ref(&f.plan, f.workspace, f.workspace_bytes, stream));
    MB_TRY(mb_moe_experts_ref(&f.experts, f.workspace, f.workspace_bytes, stream));
    return mb_moe_reduce_ref(&f.reduce, stream);
}
