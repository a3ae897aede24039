#include "ops/moe/block_arguments.h"

#include "ops/common/dtype.h"
#include "ops/common/tensor.h"

#include <inttypes.h>

mb_status mb_moe_block_check(const mb_rms_norm_args *norm, const mb_moe_router_gemm_args *score,
                             const mb_moe_forward_args *args) {
    const mb_moe_route_args *route = args->route;
    MB_REQUIRE(norm->n_rows == args->n_tokens && score->n_tokens == args->n_tokens,
               "moe_block: the norm has %" PRId64 " rows, the router %" PRId64 " tokens, the layer %" PRId64,
               norm->n_rows, score->n_tokens, args->n_tokens);
    MB_REQUIRE(norm->hidden == args->hidden && score->hidden == args->hidden,
               "moe_block: hidden is %d in the norm, %d in the router, %d in the layer", norm->hidden,
               score->hidden, args->hidden);
    MB_REQUIRE(norm->dtype == args->dtype && score->dtype == args->dtype,
               "moe_block: dtype is %s in the norm, %s in the router, %s in the layer",
               mb_dtype_name(norm->dtype), mb_dtype_name(score->dtype), mb_dtype_name(args->dtype));
    MB_REQUIRE(score->n_experts == args->n_experts,
               "moe_block: n_experts is %d in the router, %d in the layer", score->n_experts,
               args->n_experts);
    MB_REQUIRE(route, "moe_block: route is NULL, so nothing would read the router's logits");
    MB_REQUIRE(route->logits_dtype == MB_F32, "moe_block: route's logits_dtype is %s; the router writes fp32",
               mb_dtype_name(route->logits_dtype));
    if (args->n_tokens == 0)
        return MB_OK;
    MB_REQUIRE(route->logits == score->logits, "moe_block: route's logits are not the router's logits");
    MB_REQUIRE(!norm->residual, "moe_block: the norm has a residual; add first, then call the block");
    MB_REQUIRE(score->x == norm->out, "moe_block: the router's x is not the norm's out");
    MB_REQUIRE(args->x == norm->out, "moe_block: the layer's x is not the norm's out");
    MB_REQUIRE(!args->x8 || (args->x8 == norm->out8 && args->x8_scale == norm->out8_scale),
               "moe_block: the layer's x8 and x8_scale are not the norm's out8 and out8_scale");
    return MB_OK;
}
