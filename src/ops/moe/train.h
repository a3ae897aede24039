/* train.h - the references of the training operators; their parameters are public (moebius/train.h). */
#ifndef MB_OPS_MOE_TRAIN_H
#define MB_OPS_MOE_TRAIN_H

#include "moebius/train.h"

mb_status mb_moe_backward_ref_workspace(const mb_moe_backward_args *most, size_t *bytes);
mb_status mb_moe_backward_ref(const mb_moe_backward_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream);

mb_status mb_moe_router_losses_ref_workspace(const mb_moe_router_losses_args *most, size_t *bytes);
mb_status mb_moe_router_losses_ref(const mb_moe_router_losses_args *args, void *workspace,
                                   size_t workspace_bytes, mb_stream stream);

mb_status mb_moe_route_backward_ref(const mb_moe_route_backward_args *args, mb_stream stream);

mb_status mb_moe_token_rounding_ref_workspace(const mb_moe_token_rounding_args *most, size_t *bytes);
mb_status mb_moe_token_rounding_ref(const mb_moe_token_rounding_args *args, void *workspace,
                                    size_t workspace_bytes, mb_stream stream);

#endif
