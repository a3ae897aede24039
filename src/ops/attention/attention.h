/*
 * attention.h - causal attention over the paged KV cache; its parameters are public (moebius/layers.h). A
 * query's result does not depend on how its prompt was cut into chunks, bit for bit.
 */
#ifndef MB_OPS_ATTENTION_H
#define MB_OPS_ATTENTION_H

#include "moebius/layers.h"
#include "ops/common/cost.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What must hold on every device: of the sizes, for the workspace, and of all but what arrays hold. */
mb_status mb_attention_check_sizes(const mb_attention_args *args);
mb_status mb_attention_check(const mb_attention_args *args);
/* And of what q_start and kv_len hold, where the host can read them. */
mb_status mb_attention_check_arrays(const mb_attention_args *args);

/* Reads q_start and kv_len. */
mb_op_cost mb_attention_cost(const mb_attention_args *args);

mb_status mb_attention_ref_workspace(const mb_attention_args *most, size_t *bytes);
mb_status mb_attention_ref(const mb_attention_args *args, void *workspace, size_t workspace_bytes,
                           mb_stream stream);

mb_status mb_attention_sm90_workspace(const mb_attention_args *most, size_t *bytes);
mb_status mb_attention_sm90(const mb_attention_args *args, void *workspace, size_t workspace_bytes,
                            mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
