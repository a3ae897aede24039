/*
 * sample.h - from logits to the next token, one row per sequence; the parameters are public
 * (moebius/layers.h). Rows are plain data, copied to the device with the batch's other arrays.
 */
#ifndef MB_OPS_SAMPLE_H
#define MB_OPS_SAMPLE_H

#include "moebius/layers.h"
#include "ops/common/cost.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What must hold on every device: of the sizes, for the workspace, and of all but what arrays hold. */
mb_status mb_sample_check_sizes(const mb_sample_args *args);
mb_status mb_sample_check(const mb_sample_args *args);

/* Reads rows. */
mb_op_cost mb_sample_cost(const mb_sample_args *args);

mb_status mb_sample_ref_workspace(const mb_sample_args *most, size_t *bytes);
mb_status mb_sample_ref(const mb_sample_args *args, void *workspace, size_t workspace_bytes,
                        mb_stream stream);

mb_status mb_count_tokens_check(const mb_count_tokens_args *args);
mb_status mb_count_tokens_ref(const mb_count_tokens_args *args, mb_stream stream);
mb_status mb_count_tokens_sm90(const mb_count_tokens_args *args, mb_stream stream);

mb_op_cost mb_log_softmax_cost(const mb_log_softmax_args *args);

mb_status mb_log_softmax_ref(const mb_log_softmax_args *args, mb_stream stream);

mb_status mb_sample_sm90_workspace(const mb_sample_args *most, size_t *bytes);
mb_status mb_sample_sm90(const mb_sample_args *args, void *workspace, size_t workspace_bytes,
                         mb_stream stream);

mb_status mb_log_softmax_check(const mb_log_softmax_args *args);
mb_status mb_log_softmax_sm90(const mb_log_softmax_args *args, mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
