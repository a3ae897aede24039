/*
 * arguments.h - what must hold of the MoE operators' arguments on every device, checked in one place.
 *
 * *_check_sizes looks at shapes and types, for the _workspace functions, which may come before the memory;
 * *_check at the pointers too, unless there is nothing to do. A device adds what it cannot do. Each returns
 * MB_ERR_ARGUMENT and a sentence that names the argument.
 */
#ifndef MB_OPS_MOE_ARGUMENTS_H
#define MB_OPS_MOE_ARGUMENTS_H

#include "moebius/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

mb_status mb_moe_router_gemm_check_sizes(const mb_moe_router_gemm_args *args);
mb_status mb_moe_router_gemm_check(const mb_moe_router_gemm_args *args);

mb_status mb_moe_route_check_sizes(const mb_moe_route_args *args);
mb_status mb_moe_route_check(const mb_moe_route_args *args);

mb_status mb_moe_plan_check_sizes(const mb_moe_plan_args *args);
mb_status mb_moe_plan_check(const mb_moe_plan_args *args);

mb_status mb_grouped_gemm_check_sizes(const mb_grouped_gemm_args *args);
mb_status mb_grouped_gemm_check(const mb_grouped_gemm_args *args);

mb_status mb_moe_experts_check_sizes(const mb_moe_experts_args *args);
mb_status mb_moe_experts_check(const mb_moe_experts_args *args);

mb_status mb_moe_reduce_check(const mb_moe_reduce_args *args);

mb_status mb_moe_forward_check_sizes(const mb_moe_forward_args *args);
mb_status mb_moe_forward_check(const mb_moe_forward_args *args);

/* The experts of a whole layer as an operator of their own. row_index, offsets and y are for the caller to fill in. */
mb_moe_experts_args mb_moe_forward_experts(const mb_moe_forward_args *args);

#ifdef __cplusplus
}
#endif
#endif
