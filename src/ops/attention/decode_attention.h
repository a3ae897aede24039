/*
 * decode_attention.h - what follows the projection to q, k and v in a decode step, as one operator; its
 * parameters are public (moebius/layers.h). Its result is that of qk_norm_rope_store and then attention,
 * bit for bit.
 */
#ifndef MB_OPS_DECODE_ATTENTION_H
#define MB_OPS_DECODE_ATTENTION_H

#include "moebius/layers.h"
#include "ops/common/cost.h"

/* Query rows that are walked together. */
enum { MB_DECODE_ROWS = 16 };

#ifdef __cplusplus
extern "C" {
#endif

/* What must hold on every device: of the sizes, for the workspace, and of all but what arrays hold. */
mb_status mb_decode_attention_check_sizes(const mb_decode_attention_args *args);
mb_status mb_decode_attention_check(const mb_decode_attention_args *args);

/* Reads q_start and kv_len. */
mb_op_cost mb_decode_attention_cost(const mb_decode_attention_args *args);

mb_status mb_decode_attention_ref_workspace(const mb_decode_attention_args *most, size_t *bytes);
mb_status mb_decode_attention_ref(const mb_decode_attention_args *args, void *workspace,
                                  size_t workspace_bytes, mb_stream stream);

mb_status mb_decode_attention_sm90_workspace(const mb_decode_attention_args *most, size_t *bytes);
mb_status mb_decode_attention_sm90(const mb_decode_attention_args *args, void *workspace,
                                   size_t workspace_bytes, mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
