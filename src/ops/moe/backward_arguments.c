/* backward_arguments.c - what must hold of mb_moe_backward's arguments on every device. */
#include "ops/common/tensor.h"
#include "ops/moe/arguments.h"

mb_status mb_moe_backward_check_sizes(const mb_moe_backward_args *args) {
    const mb_moe_forward_args forward = {.w13 = args->w13,
                                         .w2 = args->w2,
                                         .n_tokens = args->n_tokens,
                                         .hidden = args->hidden,
                                         .intermediate = args->intermediate,
                                         .top_k = args->top_k,
                                         .n_experts = args->n_experts,
                                         .first_expert = args->first_expert,
                                         .n_local_experts = args->n_local_experts,
                                         .dtype = args->dtype,
                                         .activation = args->activation};
    mb_status status = mb_moe_forward_check_sizes(&forward);
    if (status != MB_OK)
        return mb_fail_context(status, "moe_backward");
    MB_REQUIRE(args->w13.dtype == args->dtype, "moe_backward: w13.dtype is %s, not dtype's %s",
               mb_dtype_name(args->w13.dtype), mb_dtype_name(args->dtype));
    MB_REQUIRE(args->w2.dtype == args->dtype, "moe_backward: w2.dtype is %s, not dtype's %s",
               mb_dtype_name(args->w2.dtype), mb_dtype_name(args->dtype));
    MB_REQUIRE(args->grad_dtype == MB_F32 || args->grad_dtype == args->dtype,
               "moe_backward: grad_dtype is %s (%d), not fp32 or dtype's %s", mb_dtype_name(args->grad_dtype),
               (int)args->grad_dtype, mb_dtype_name(args->dtype));
    MB_REQUIRE(args->accumulate == 0 || args->accumulate == 1, "moe_backward: accumulate is %d, not 0 or 1",
               args->accumulate);
    return MB_OK;
}

mb_status mb_moe_backward_check(const mb_moe_backward_args *args) {
    const char *op = "moe_backward";
    MB_TRY(mb_moe_backward_check_sizes(args));
    size_t element = mb_dtype_bytes(args->dtype), grad = mb_dtype_bytes(args->grad_dtype);
    MB_TRY(mb_array_check(op, "dw13", args->dw13, grad, 1));
    MB_TRY(mb_array_check(op, "dw2", args->dw2, grad, 1));
    MB_TRY(mb_array_check(op, "dbias13", args->dbias13, grad, 1));
    MB_TRY(mb_array_check(op, "dbias2", args->dbias2, grad, 1));
    if (args->n_tokens == 0)
        return MB_OK;
    MB_TRY(mb_array_check(op, "x", args->x, element, 0));
    MB_TRY(mb_array_check(op, "weights", args->weights, sizeof(float), 0));
    MB_TRY(mb_array_check(op, "ids", args->ids, sizeof(int32_t), 0));
    MB_TRY(mb_array_check(op, "w13.data", args->w13.data, element, 0));
    MB_TRY(mb_array_check(op, "w2.data", args->w2.data, element, 0));
    MB_TRY(mb_array_check(op, "bias13", args->bias13, element, 1));
    MB_TRY(mb_array_check(op, "bias2", args->bias2, element, 1));
    MB_TRY(mb_array_check(op, "p", args->p, element, 1));
    MB_TRY(mb_array_check(op, "d_out", args->d_out, element, 0));
    MB_TRY(mb_array_check(op, "dx", args->dx, element, 1));
    MB_TRY(mb_array_check(op, "dweights", args->dweights, sizeof(float), 1));
    MB_REQUIRE(!args->dx || args->dx != args->x, "moe_backward: dx is x");
    MB_REQUIRE(!args->dx || args->dx != args->d_out, "moe_backward: dx is d_out");
    return MB_OK;
}
