/* operators.c - the public MoE operators: they look where the memory is, and call that place's op table. */
#include "base/status.h"
#include "device/place.h"
#include "ops/common/tensor.h"

/* ---- Router -------------------------------------------------------------------------------------------- */

static mb_status enter_router_gemm(const mb_moe_router_gemm_args *args, mb_place *where) {
    MB_TRY(mb_need(args, "moe_router_gemm: args"));
    return MB_PLACE_ENTER(where, args->x, args->weight, args->bias, args->logits);
}

mb_status mb_moe_router_gemm_workspace(const mb_moe_router_gemm_args *most, size_t *bytes) {
    mb_place where;
    MB_TRY(mb_need(bytes, "moe_router_gemm: bytes"));
    MB_TRY(enter_router_gemm(most, &where));
    return mb_place_leave(&where, where.ops->moe_router_gemm_workspace(most, bytes));
}

mb_status mb_moe_router_gemm(const mb_moe_router_gemm_args *args, void *workspace, size_t workspace_bytes,
                             mb_stream stream) {
    mb_place where;
    MB_TRY(mb_place_check_workspace("moe_router_gemm", workspace));
    MB_TRY(enter_router_gemm(args, &where));
    return mb_place_leave(&where, where.ops->moe_router_gemm(args, workspace, workspace_bytes, stream));
}

mb_status mb_moe_route(const mb_moe_route_args *args, mb_stream stream) {
    mb_place where;
    MB_TRY(mb_need(args, "moe_route: args"));
    MB_TRY(MB_PLACE_ENTER(&where, args->logits, args->weights, args->ids));
    return mb_place_leave(&where, where.ops->moe_route(args, stream));
}

/* ---- Plan ---------------------------------------------------------------------------------------------- */

static mb_status enter_plan(const mb_moe_plan_args *args, mb_place *where) {
    MB_TRY(mb_need(args, "moe_plan: args"));
    return MB_PLACE_ENTER(where, args->ids, args->offsets, args->row_token, args->token_row, args->tiles);
}

mb_status mb_moe_plan_workspace(const mb_moe_plan_args *most, size_t *bytes) {
    mb_place where;
    MB_TRY(mb_need(bytes, "moe_plan: bytes"));
    MB_TRY(enter_plan(most, &where));
    return mb_place_leave(&where, where.ops->moe_plan_workspace(most, bytes));
}

mb_status mb_moe_plan(const mb_moe_plan_args *args, void *workspace, size_t workspace_bytes,
                      mb_stream stream) {
    mb_place where;
    MB_TRY(mb_place_check_workspace("moe_plan", workspace));
    MB_TRY(enter_plan(args, &where));
    return mb_place_leave(&where, where.ops->moe_plan(args, workspace, workspace_bytes, stream));
}

/* ---- Grouped GEMM, experts and sum --------------------------------------------------------------------- */

static mb_status enter_grouped_gemm(const mb_grouped_gemm_args *args, mb_place *where) {
    MB_TRY(mb_need(args, "grouped_gemm: args"));
    return MB_PLACE_ENTER(where, args->a, args->offsets, args->b.data, args->out);
}

mb_status mb_grouped_gemm_workspace(const mb_grouped_gemm_args *most, size_t *bytes) {
    mb_place where;
    MB_TRY(mb_need(bytes, "grouped_gemm: bytes"));
    MB_TRY(enter_grouped_gemm(most, &where));
    return mb_place_leave(&where, where.ops->grouped_gemm_workspace(most, bytes));
}

mb_status mb_grouped_gemm(const mb_grouped_gemm_args *args, void *workspace, size_t workspace_bytes,
                          mb_stream stream) {
    mb_place where;
    MB_TRY(mb_place_check_workspace("grouped_gemm", workspace));
    MB_TRY(enter_grouped_gemm(args, &where));
    return mb_place_leave(&where, where.ops->grouped_gemm(args, workspace, workspace_bytes, stream));
}

static mb_status enter_experts(const mb_moe_experts_args *args, mb_place *where) {
    MB_TRY(mb_need(args, "moe_experts: args"));
    return MB_PLACE_ENTER(where, args->x, args->offsets, args->w13.data, args->w2.data, args->y);
}

mb_status mb_moe_experts_workspace(const mb_moe_experts_args *most, size_t *bytes) {
    mb_place where;
    MB_TRY(mb_need(bytes, "moe_experts: bytes"));
    MB_TRY(enter_experts(most, &where));
    return mb_place_leave(&where, where.ops->moe_experts_workspace(most, bytes));
}

mb_status mb_moe_experts(const mb_moe_experts_args *args, void *workspace, size_t workspace_bytes,
                         mb_stream stream) {
    mb_place where;
    MB_TRY(mb_place_check_workspace("moe_experts", workspace));
    MB_TRY(enter_experts(args, &where));
    return mb_place_leave(&where, where.ops->moe_experts(args, workspace, workspace_bytes, stream));
}

mb_status mb_moe_reduce(const mb_moe_reduce_args *args, mb_stream stream) {
    mb_place where;
    MB_TRY(mb_need(args, "moe_reduce: args"));
    MB_TRY(MB_PLACE_ENTER(&where, args->y, args->weights, args->token_row, args->out));
    return mb_place_leave(&where, where.ops->moe_reduce(args, stream));
}

/* ---- The whole layer ----------------------------------------------------------------------------------- */

static mb_status enter_forward(const mb_moe_forward_args *args, mb_place *where) {
    MB_TRY(mb_need(args, "moe_forward: args"));
    return MB_PLACE_ENTER(where, args->x, args->weights, args->ids, args->w13.data, args->w2.data, args->out);
}

mb_status mb_moe_forward_workspace(const mb_moe_forward_args *most, size_t *bytes) {
    mb_place where;
    MB_TRY(mb_need(bytes, "moe_forward: bytes"));
    MB_TRY(enter_forward(most, &where));
    return mb_place_leave(&where, where.ops->moe_forward_workspace(most, bytes));
}

mb_status mb_moe_forward(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                         mb_stream stream) {
    mb_place where;
    MB_TRY(mb_place_check_workspace("moe_forward", workspace));
    MB_TRY(enter_forward(args, &where));
    return mb_place_leave(&where, where.ops->moe_forward(args, workspace, workspace_bytes, stream));
}
