/*
 * router_sm90.h - the router's training operators on Hopper: losses, gradient of the logits, token rounding.
 * The parameters are public (moebius/train.h), and all memory is the GPU's: workspace and report too.
 */
#ifndef MB_OPS_MOE_BACKWARD_ROUTER_SM90_H
#define MB_OPS_MOE_BACKWARD_ROUTER_SM90_H

#include "moebius/train.h"

#ifdef __cplusplus
extern "C" {
#endif

mb_status mb_moe_router_losses_sm90_workspace(const mb_moe_router_losses_args *most, size_t *bytes);
mb_status mb_moe_router_losses_sm90(const mb_moe_router_losses_args *args, void *workspace,
                                    size_t workspace_bytes, mb_stream stream);

mb_status mb_moe_route_backward_sm90(const mb_moe_route_backward_args *args, mb_stream stream);

mb_status mb_moe_token_rounding_sm90_workspace(const mb_moe_token_rounding_args *most, size_t *bytes);
mb_status mb_moe_token_rounding_sm90(const mb_moe_token_rounding_args *args, void *workspace,
                                     size_t workspace_bytes, mb_stream stream);

#ifdef __cplusplus
}
#endif
#endif
