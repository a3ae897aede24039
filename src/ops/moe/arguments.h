/*
 * arguments.h - what must hold of the MoE operators' arguments on every device.
 *
 * A *_check_sizes function looks at shapes and types only, for the _workspace functions: a size may be asked
 * for before the memory exists. A *_check function looks at the pointers too, unless there is nothing to do.
 * A failure is MB_ERR_ARGUMENT (MB_ERR_UNSUPPORTED for a weight that no device supports) and a sentence that
 * names the argument. Each device then checks what it cannot do itself.
 */
#ifndef MB_OPS_MOE_ARGUMENTS_H
#define MB_OPS_MOE_ARGUMENTS_H

#include "moebius/train.h"

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

mb_status mb_moe_backward_check_sizes(const mb_moe_backward_args *args);
mb_status mb_moe_backward_check(const mb_moe_backward_args *args);

/* The arguments of moe_experts for a layer's experts. The caller fills in row_index, offsets and y. */
mb_moe_experts_args mb_moe_forward_experts(const mb_moe_forward_args *args);

#ifdef __cplusplus
}
#endif
#endif
