/* block_front.h - norm, router and all else in front of the experts, of few tokens, in one launch. */
#ifndef MB_OPS_MOE_BLOCK_FRONT_H
#define MB_OPS_MOE_BLOCK_FRONT_H

#include "ops/moe/moe_sm90.h"

/* 1: the launch takes them. They are a block: mb_moe_block_check was called, and front is made of the same
 * layer. */
int mb_moe_block_front_takes(const mb_rms_norm_args *norm, const mb_moe_router_gemm_args *score,
                             const mb_moe_front_args *front);
mb_status mb_moe_block_front_sm90(const mb_rms_norm_args *norm, const mb_moe_router_gemm_args *score,
                                  const mb_moe_front_args *front, mb_stream stream);

#endif
