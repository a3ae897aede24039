/*
 * moe.h - the MoE operators' entry points; their parameters are public (moebius/ops.h).
 *
 * moe_forward is the smaller operators one after another: route, plan, experts, reduce. A token's result does
 * not depend on the other tokens, bit for bit.
 */
#ifndef MB_OPS_MOE_H
#define MB_OPS_MOE_H

#include "moebius/ops.h"
#include "ops/common/cost.h"

/* act(gate) * up, gate and up being the halves of a row: the middle of a dense layer's MLP. */
typedef struct mb_gated_activation_args {
    const void *x; /* [n_rows, 2I] dtype: gate, up (ungated: [n_rows, I]) */
    void *out;     /* [n_rows, I] dtype */
    int64_t n_rows;
    int32_t intermediate;
    mb_activation activation;
    mb_dtype dtype;
} mb_gated_activation_args;

#ifdef __cplusplus
extern "C" {
#endif

/* What must hold on every device. */
mb_status mb_gated_activation_check(const mb_gated_activation_args *args);

mb_op_cost mb_gated_activation_cost(const mb_gated_activation_args *args);

mb_status mb_gated_activation_ref(const mb_gated_activation_args *args, mb_stream stream);

mb_op_cost mb_moe_router_gemm_cost(const mb_moe_router_gemm_args *args);

mb_status mb_moe_router_gemm_ref_workspace(const mb_moe_router_gemm_args *most, size_t *bytes);
mb_status mb_moe_router_gemm_ref(const mb_moe_router_gemm_args *args, void *workspace, size_t workspace_bytes,
                                 mb_stream stream);

mb_status mb_moe_route_ref(const mb_moe_route_args *args, mb_stream stream);

mb_status mb_moe_plan_ref_workspace(const mb_moe_plan_args *most, size_t *bytes);
mb_status mb_moe_plan_ref(const mb_moe_plan_args *args, void *workspace, size_t workspace_bytes,
                          mb_stream stream);

mb_status mb_grouped_gemm_ref_workspace(const mb_grouped_gemm_args *most, size_t *bytes);
mb_status mb_grouped_gemm_ref(const mb_grouped_gemm_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream);

mb_status mb_moe_experts_ref_workspace(const mb_moe_experts_args *most, size_t *bytes);
mb_status mb_moe_experts_ref(const mb_moe_experts_args *args, void *workspace, size_t workspace_bytes,
                             mb_stream stream);

mb_status mb_moe_reduce_ref(const mb_moe_reduce_args *args, mb_stream stream);

/* Reads ids, the experts that the tokens are sent to. n_experts is at most 1024 (mb_moe_route). */
mb_op_cost mb_moe_forward_cost(const mb_moe_forward_args *args);

mb_status mb_moe_forward_ref_workspace(const mb_moe_forward_args *most, size_t *bytes);
mb_status mb_moe_forward_ref(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                             mb_stream stream);

mb_status mb_gated_activation_sm90(const mb_gated_activation_args *args, mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
