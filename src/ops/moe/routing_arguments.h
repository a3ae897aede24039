/* routing_arguments.h - what must hold of the arguments of the router's training operators on every device.
 * See arguments.h. */
#ifndef MB_OPS_MOE_ROUTING_ARGUMENTS_H
#define MB_OPS_MOE_ROUTING_ARGUMENTS_H

#include "moebius/train.h"

/* Of a token at most: experts that mb_moe_route takes, and choices. */
enum { MB_SOFTMAX_EXPERTS = 1024, MB_SOFTMAX_CHOICES = 32 };

#ifdef __cplusplus
extern "C" {
#endif

mb_status mb_moe_router_losses_check_sizes(const mb_moe_router_losses_args *args);
mb_status mb_moe_router_losses_check(const mb_moe_router_losses_args *args);

mb_status mb_moe_route_backward_check(const mb_moe_route_backward_args *args);

mb_status mb_moe_token_rounding_check_sizes(const mb_moe_token_rounding_args *args);
/* All but that a token's ids differ, which memory alone tells. */
mb_status mb_moe_token_rounding_check(const mb_moe_token_rounding_args *args);

#ifdef __cplusplus
}
#endif
#endif
