/*
 * step.h - runs one planned step on the device: inputs up, forward pass, sampling, results down.
 *
 * A session fills the runner under its lock and runs it without: mb_runner_run touches the runner's own
 * memory only, so sequences may be cancelled meanwhile. Everything is allocated by mb_runner_open.
 */
#ifndef MB_ENGINE_STEP_H
#define MB_ENGINE_STEP_H

#include "engine/scheduler.h"
#include "model/model.h"
#include "model/qwen3_moe.h"

typedef struct mb_runner_limits {
    int32_t max_sequences, max_step_tokens, max_logits;
    int32_t max_blocks;  /* KV blocks of one sequence */
    int32_t n_kv_blocks; /* 0: most of the device's free memory */
} mb_runner_limits;

/* How many of everything are in a step; with the largest counts the input buffer is measured. */
typedef struct mb_step_counts {
    int32_t n_tokens, n_sequences, n_logits, n_draws, max_blocks;
    size_t n_bias, n_seen;
    int32_t n_prompt_rows; /* rows of logits that are reported but not drawn from: the first ones */
    int32_t n_reported;    /* rows that are reported: prompt rows, then the first of the drawn ones */
    int32_t max_q_len, max_kv_len;
} mb_step_counts;

/* The batch's arrays, in one buffer that is uploaded by one copy. */
typedef struct mb_step_inputs {
    int32_t *ids, *positions, *slots, *q_start, *kv_len, *block_table, *logit_rows;
    mb_sample_row *rows;
    int32_t *bias_ids, *seen_ids, *seen_counts;
    float *biases;
} mb_step_inputs;

/* A row of logits whose log-probabilities go to a callback. */
typedef struct mb_report {
    mb_logprobs_fn call;
    void *user;
    int64_t position;
    int32_t i_planned;
} mb_report;

/* What became of one planned item. */
typedef struct mb_outcome {
    int32_t id; /* drawn token, when it drew */
    float logprob;
    int failed; /* its logits were not numbers */
} mb_outcome;

typedef struct mb_runner {
    const mb_model *model;
    mb_runner_limits limits;
    mb_stream stream;
    mb_forward forward;
    mb_kv_memory kv;
    void *kv_memory, *device_memory, *pinned_memory, *host_memory;

    /* pinned and device memory, the same places in both */
    size_t inputs_bytes;
    char *inputs, *device_inputs;
    int32_t *drawn_ids, *device_drawn_ids; /* [max_sequences], followed by the log-probabilities' [..] */
    float *drawn_logprobs, *device_drawn_logprobs;
    float *logits; /* device [max_logits, vocab] */
    float *rows;   /* pinned [reported rows at a time, vocab] */
    void *sample_workspace;
    size_t sample_workspace_bytes;

    /* the step that was filled */
    mb_step_counts counts;
    mb_arena inputs_arena;
    mb_step_inputs in;
    int32_t *draw_planned; /* [max_sequences] planned item of each draw */
    mb_report *reports;    /* [max_logits] */
    mb_outcome *outcomes;  /* [max_sequences] by planned item */
} mb_runner;

/* On failure nothing stays allocated. */
mb_status mb_runner_open(mb_runner *runner, const mb_model *model, const mb_runner_limits *limits);
void mb_runner_close(mb_runner *runner); /* a zeroed runner is allowed */

/* Writes the batch of planned items (jobs of mb_sequence) into the input buffer. */
void mb_runner_fill(mb_runner *runner, const mb_kv *kv, const mb_planned *plan, int32_t n_planned);

/* Runs what was filled, calls the log-probability callbacks, and leaves runner->outcomes. On failure the
 * device is idle again and the outcomes mean nothing. */
mb_status mb_runner_run(mb_runner *runner);

#endif
