/* block_arguments.h - what must hold of the parts of a MoE block together, on every device (mb_ops,
 * moe_block). */
#ifndef MB_OPS_MOE_BLOCK_ARGUMENTS_H
#define MB_OPS_MOE_BLOCK_ARGUMENTS_H

#include "ops/op_table.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The same rows, types and experts in all three, and each reads what the one in front of it writes. What a
 * part asks for alone is checked with the part. */
mb_status mb_moe_block_check(const mb_rms_norm_args *norm, const mb_moe_router_gemm_args *score,
                             const mb_moe_forward_args *args);

#ifdef __cplusplus
}
#endif
#endif
