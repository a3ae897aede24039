/*
 * sample.h - from logits to the next token, one row per sequence.
 *
 * Order: repetition, presence, frequency penalties, bias and the mask on the logits; NaN check; greedy when
 * temperature is 0; else divide by temperature, keep the top_k largest, of these the smallest set with
 * probability >= top_p, of these the ones with probability >= min_p * max; draw with the counter-based
 * generator Philox4x32-10 (Salmon et al. 2011) keyed by (seed, position). Ties go to the lower id. The
 * row's neighbours never matter.
 */
#ifndef MB_OPS_SAMPLE_H
#define MB_OPS_SAMPLE_H

#include "moebius/ops.h"
#include "ops/common/cost.h"

/* One row's parameters; plain data, copied to the device with the batch's other arrays. */
typedef struct mb_sample_row {
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k; /* 0: off */
    int32_t n_bias;
    uint64_t seed;
    uint64_t position;       /* of the token being drawn: the generator's counter */
    const int32_t *bias_ids; /* [n_bias] device */
    const float *biases;     /* [n_bias] device */
    /* [V] device, for the penalties: of each token twice its occurrences in the answer, plus 1 when it is in
     * the prompt; so 0 is a token that was not seen. The token that is drawn is counted. No two rows share
     * an array. NULL: no penalties. */
    int32_t *seen;
    /* [(V + 31) / 32] device: token i is bit i % 32 of word i / 32; tokens whose bit is 0 are not
     * drawn. NULL: all may be. */
    const uint32_t *allowed;
} mb_sample_row;

typedef struct mb_sample_args {
    const float *logits;       /* [n_rows, V]; not changed */
    const mb_sample_row *rows; /* [n_rows] */
    int32_t *ids;              /* [n_rows] out; -1 when the row has a NaN, a +inf, or nothing but -inf
                                  among the allowed */
    float *logprobs; /* [n_rows] out: log softmax of the untouched logits at the chosen id (-1: -inf) */
    int64_t n_rows;
    int32_t vocab;
} mb_sample_args;

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

/* Makes a row's `seen` from the tokens that a sequence has. */
typedef struct mb_count_tokens_args {
    const int32_t *ids; /* [n_ids] prompt, answer; ids outside of [0, V) are passed over */
    int32_t *seen;      /* [V] out */
    int64_t n_ids, n_prompt;
    int32_t vocab;
} mb_count_tokens_args;

mb_status mb_count_tokens_check(const mb_count_tokens_args *args);
mb_status mb_count_tokens_ref(const mb_count_tokens_args *args, mb_stream stream);
mb_status mb_count_tokens_sm90(const mb_count_tokens_args *args, mb_stream stream);

typedef struct mb_log_softmax_args {
    const float *logits; /* [n_rows, V] */
    float *out;          /* [n_rows, V]; may be logits */
    int64_t n_rows;
    int32_t vocab;
} mb_log_softmax_args;

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
