#include "ops/moe/routing_arguments.h"

#include "ops/common/tensor.h"
#include "ops/moe/arguments.h"

#include <inttypes.h>

static mb_status check_routing(const char *op, int64_t n_tokens, int32_t n_experts, int32_t top_k,
                               mb_dtype logits_dtype, mb_route_order order) {
    const mb_moe_route_args route = {.n_tokens = n_tokens,
                                     .n_experts = n_experts,
                                     .top_k = top_k,
                                     .logits_dtype = logits_dtype,
                                     .order = order};
    mb_status status = mb_moe_route_check_sizes(&route);
    return status == MB_OK ? MB_OK : mb_fail_context(status, "%s", op);
}

/* ---- Losses -------------------------------------------------------------------------------------------- */

mb_status mb_moe_router_losses_check_sizes(const mb_moe_router_losses_args *args) {
    return check_routing("moe_router_losses", args->n_tokens, args->n_experts, args->top_k,
                         args->logits_dtype, MB_ROUTE_SOFTMAX_TOPK);
}

mb_status mb_moe_router_losses_check(const mb_moe_router_losses_args *args) {
    const char *op = "moe_router_losses";
    MB_TRY(mb_moe_router_losses_check_sizes(args));
    int is_empty = args->n_tokens == 0;
    MB_TRY(mb_array_check(op, "counts", args->counts, sizeof(int32_t), 0));
    MB_TRY(mb_array_check(op, "load_balance", args->load_balance, sizeof(float), 1));
    MB_TRY(mb_array_check(op, "z", args->z, sizeof(float), 1));
    MB_TRY(mb_array_check(op, "logits", args->logits, mb_dtype_bytes(args->logits_dtype), is_empty));
    return mb_array_check(op, "ids", args->ids, sizeof(int32_t), is_empty);
}

/* ---- Gradient ------------------------------------------------------------------------------------------ */

mb_status mb_moe_route_backward_check(const mb_moe_route_backward_args *args) {
    const char *op = "moe_route_backward";
    MB_TRY(check_routing(op, args->n_tokens, args->n_experts, args->top_k, args->logits_dtype, args->order));
    if (args->n_tokens == 0)
        return MB_OK;
    MB_TRY(mb_array_check(op, "logits", args->logits, mb_dtype_bytes(args->logits_dtype), 0));
    MB_TRY(mb_array_check(op, "ids", args->ids, sizeof(int32_t), 0));
    MB_TRY(mb_array_check(op, "dlogits", args->dlogits, sizeof(float), 0));
    MB_TRY(mb_array_check(op, "dweights", args->dweights, sizeof(float), 1));
    MB_TRY(mb_array_check(op, "counts", args->counts, sizeof(int32_t), 1));
    MB_TRY(mb_array_check(op, "d_load_balance", args->d_load_balance, sizeof(float), 1));
    MB_TRY(mb_array_check(op, "d_z", args->d_z, sizeof(float), 1));
    MB_REQUIRE(!args->d_load_balance || args->counts,
               "moe_route_backward: d_load_balance is given, but counts is NULL; pass those of "
               "mb_moe_router_losses");
    return MB_OK;
}

/* ---- Token rounding ------------------------------------------------------------------------------------ */

mb_status mb_moe_token_rounding_check_sizes(const mb_moe_token_rounding_args *args) {
    MB_TRY(check_routing("moe_token_rounding", args->n_tokens, args->n_experts, args->top_k,
                         args->logits_dtype, args->order));
    int32_t most_choices = args->n_experts < MB_SOFTMAX_CHOICES ? args->n_experts : MB_SOFTMAX_CHOICES;
    MB_REQUIRE(args->max_choices >= args->top_k && args->max_choices <= most_choices,
               "moe_token_rounding: max_choices is %d, not in top_k, %d, .. min(n_experts, %d)",
               args->max_choices, args->top_k, MB_SOFTMAX_CHOICES);
    MB_REQUIRE(args->n_tokens <= INT32_MAX / args->max_choices,
               "moe_token_rounding: n_tokens is %" PRId64 ", with max_choices %d more than %d rows",
               args->n_tokens, args->max_choices, INT32_MAX);
    MB_REQUIRE(args->tile_rows >= 1, "moe_token_rounding: tile_rows is %d", args->tile_rows);
    MB_REQUIRE((int)args->rounding >= MB_ROUNDING_NONE && args->rounding <= MB_ROUNDING_BALANCED,
               "moe_token_rounding: rounding %d is unknown", (int)args->rounding);
    return MB_OK;
}

mb_status mb_moe_token_rounding_check(const mb_moe_token_rounding_args *args) {
    const char *op = "moe_token_rounding";
    MB_TRY(mb_moe_token_rounding_check_sizes(args));
    int is_empty = args->n_tokens == 0;
    MB_TRY(mb_array_check(op, "counts", args->counts, sizeof(int32_t), 0));
    MB_TRY(mb_array_check(op, "report", args->report, sizeof(int64_t), 1));
    MB_TRY(mb_array_check(op, "logits", args->logits, mb_dtype_bytes(args->logits_dtype), is_empty));
    MB_TRY(mb_array_check(op, "ids", args->ids, sizeof(int32_t), is_empty));
    MB_TRY(mb_array_check(op, "out_ids", args->out_ids, sizeof(int32_t), is_empty));
    MB_TRY(mb_array_check(op, "out_weights", args->out_weights, sizeof(float), is_empty));
    MB_REQUIRE(is_empty || args->out_ids != args->ids, "moe_token_rounding: out_ids is ids");
    return MB_OK;
}
