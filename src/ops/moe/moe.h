/*
 * moe.h - the MoE operators' entry points; their parameters are public (moebius/ops.h).
 *
 * moe_forward is composed of the smaller ones: route -> plan -> experts -> reduce. The experts gather the rows of x,
 * multiply them with w13, activate, and multiply with w2. A token's result does not depend on its neighbours, bit for
 * bit. Rounded to dtype: the activated product and each expert's output, on the CPU gate and up too, as in
 * Hugging Face (all with their bias, from fp32); the GPU keeps gate and up in fp32 until they are activated.
 * The sum over k, of residual and of shared is fp32 and rounded once.
 */
#ifndef MB_OPS_MOE_H
#define MB_OPS_MOE_H

#include "moebius/ops.h"

/* act(gate) * up over the halves of a row: the MLP of a dense layer, and the middle of an expert. Ungated
 * activations read only the first half's width. */
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

mb_status mb_gated_activation_ref(const mb_gated_activation_args *args, mb_stream stream);

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

mb_status mb_moe_forward_ref_workspace(const mb_moe_forward_args *most, size_t *bytes);
mb_status mb_moe_forward_ref(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                             mb_stream stream);

mb_status mb_gated_activation_sm90(const mb_gated_activation_args *args, mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
