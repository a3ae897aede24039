/* block_front.h - norm, router and all else in front of the experts, of few tokens, in one launch. */
#ifndef MB_OPS_MOE_BLOCK_FRONT_H
#define MB_OPS_MOE_BLOCK_FRONT_H

#include "ops/moe/moe_sm90.h"

/* Whether the launch takes these: norm's out is the router's x and what is quantised; its logits are those
 * of the choice. */
int mb_moe_block_front_takes(const mb_rms_norm_args *norm, const mb_moe_router_gemm_args *score,
                             const mb_moe_front_args *front);
mb_status mb_moe_block_front_sm90(const mb_rms_norm_args *norm, const mb_moe_router_gemm_args *score,
                                  const mb_moe_front_args *front, mb_stream stream);

#endif
