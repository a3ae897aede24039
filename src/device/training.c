/* training.c - the public training operators: they look where the memory is, and call that place's op table. */
#include "base/status.h"
#include "device/place.h"
#include "ops/common/tensor.h"

/* ---- The experts' backward ----------------------------------------------------------------------------- */

static mb_status enter_backward(const mb_moe_backward_args *args, mb_place *where) {
    MB_TRY(mb_need(args, "moe_backward: args"));
    return MB_PLACE_ENTER(where, args->x, args->weights, args->ids, args->w13.data, args->w2.data,
                          args->d_out, args->dx, args->dweights, args->dw13, args->dw2, args->dbias13,
                          args->dbias2);
}

mb_status mb_moe_backward_workspace(const mb_moe_backward_args *most, size_t *bytes) {
    mb_place where;
    MB_TRY(mb_need(bytes, "moe_backward: bytes"));
    MB_TRY(enter_backward(most, &where));
    return mb_place_leave(&where, where.ops->moe_backward_workspace(most, bytes));
}

mb_status mb_moe_backward(const mb_moe_backward_args *args, void *workspace, size_t workspace_bytes,
                          mb_stream stream) {
    mb_place where;
    MB_TRY(mb_place_check_workspace("moe_backward", workspace));
    MB_TRY(enter_backward(args, &where));
    return mb_place_leave(&where, where.ops->moe_backward(args, workspace, workspace_bytes, stream));
}

/* ---- Router -------------------------------------------------------------------------------------------- */

static mb_status enter_router_losses(const mb_moe_router_losses_args *args, mb_place *where) {
    MB_TRY(mb_need(args, "moe_router_losses: args"));
    return MB_PLACE_ENTER(where, args->logits, args->ids, args->counts);
}

mb_status mb_moe_router_losses_workspace(const mb_moe_router_losses_args *most, size_t *bytes) {
    mb_place where;
    MB_TRY(mb_need(bytes, "moe_router_losses: bytes"));
    MB_TRY(enter_router_losses(most, &where));
    return mb_place_leave(&where, where.ops->moe_router_losses_workspace(most, bytes));
}

mb_status mb_moe_router_losses(const mb_moe_router_losses_args *args, void *workspace, size_t workspace_bytes,
                               mb_stream stream) {
    mb_place where;
    MB_TRY(mb_place_check_workspace("moe_router_losses", workspace));
    MB_TRY(enter_router_losses(args, &where));
    return mb_place_leave(&where, where.ops->moe_router_losses(args, workspace, workspace_bytes, stream));
}

mb_status mb_moe_route_backward(const mb_moe_route_backward_args *args, mb_stream stream) {
    mb_place where;
    MB_TRY(mb_need(args, "moe_route_backward: args"));
    MB_TRY(MB_PLACE_ENTER(&where, args->logits, args->ids, args->dlogits));
    return mb_place_leave(&where, where.ops->moe_route_backward(args, stream));
}

static mb_status enter_token_rounding(const mb_moe_token_rounding_args *args, mb_place *where) {
    MB_TRY(mb_need(args, "moe_token_rounding: args"));
    return MB_PLACE_ENTER(where, args->logits, args->ids, args->out_ids, args->out_weights, args->counts);
}

mb_status mb_moe_token_rounding_workspace(const mb_moe_token_rounding_args *most, size_t *bytes) {
    mb_place where;
    MB_TRY(mb_need(bytes, "moe_token_rounding: bytes"));
    MB_TRY(enter_token_rounding(most, &where));
    return mb_place_leave(&where, where.ops->moe_token_rounding_workspace(most, bytes));
}

mb_status mb_moe_token_rounding(const mb_moe_token_rounding_args *args, void *workspace,
                                size_t workspace_bytes, mb_stream stream) {
    mb_place where;
    MB_TRY(mb_place_check_workspace("moe_token_rounding", workspace));
    MB_TRY(enter_token_rounding(args, &where));
    return mb_place_leave(&where, where.ops->moe_token_rounding(args, workspace, workspace_bytes, stream));
}
