/*
 * step.h - runs planned steps on the device: inputs up, forward pass, sampling, results down.
 *
 * What belongs to one step is in a slot: its plan, inputs, logits and results. The session's thread that
 * steps
 *
 *   1. lets the scheduler write slot->plan and calls mb_runner_fill, both under the session's lock,
 *   2. calls mb_runner_launch, which enqueues the step and does not wait for it,
 *   3. calls mb_runner_collect, which waits for the step and leaves its results in slot->outcomes.
 *
 * 2 and 3 touch the runner's own memory and what does not change in the plan's sequences, so sequences may be
 * submitted, read and cancelled meanwhile. Everything is allocated by mb_runner_open.
 *
 * Slots take turns: steps are launched and collected in one order, and a step may be filled and launched
 * while the one before it is in flight. Then a token that the step before draws is not known to the host:
 * the inputs say which draw it is, and the device looks it up. What a draw depends on besides the logits
 * stays on the device too, in a sampler place for each sequence: its token counts, which the sampler keeps
 * up to date, and its biases.
 */
#ifndef MB_ENGINE_STEP_H
#define MB_ENGINE_STEP_H

#include "engine/decode_graph.h"
#include "engine/profiler.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "model/model.h"
#include "model/qwen3_moe.h"

enum { MB_STEP_SLOTS = 2 }; /* steps that can be in flight at once */

typedef struct mb_runner_limits {
    int32_t n_slots; /* steps in flight: 1 or MB_STEP_SLOTS */
    int32_t max_sequences, max_step_tokens, max_logits;
    int32_t max_blocks;    /* KV blocks of one sequence */
    mb_graphs graphs;      /* of decode steps */
    int32_t n_kv_blocks;   /* 0: what memory_fraction leaves when all else is allocated */
    float memory_fraction; /* of the device's memory that may be in use in the end */
} mb_runner_limits;

/* How many of everything are in a step; with the largest counts the input buffer is measured. */
typedef struct mb_step_counts {
    int32_t n_tokens, n_sequences, n_logits, n_draws, max_blocks;
    int32_t n_prompt_rows; /* rows of logits that are reported but not drawn from: the first ones */
    int32_t n_masks;       /* drawn rows that a grammar restricts */
    int32_t n_reported;    /* rows that are reported: prompt rows, then the first of the drawn ones */
    int32_t max_q_len, max_kv_len;
} mb_step_counts;

/* The batch's arrays, in one buffer that is uploaded by one copy. */
typedef struct mb_step_inputs {
    int32_t *ids, *draw_of, *positions, *slots, *q_start, *kv_len, *span_start, *block_table, *logit_rows;
    int32_t *first_slots, *first_block_table; /* empty where all layers are alike (kv_layout.h) */
    mb_sample_row *rows;
    uint32_t *masks; /* [n_masks, (vocab + 31) / 32]; last, so that a graph's addresses do not depend on it */
} mb_step_inputs;

/* A sequence whose sampler place is made by this step, before its first draw. */
typedef struct mb_sampler_start {
    const mb_sequence *sequence;
    int32_t place;
    int64_t n_ids; /* its tokens so far */
} mb_sampler_start;

/* Whose sampler state a place holds, and up to where. */
typedef struct mb_sampler_place {
    uint64_t id;       /* of the sequence; 0: nobody's */
    int64_t n_counted; /* tokens, with those that planned steps draw */
} mb_sampler_place;

/* A row of logits whose log-probabilities are reported. */
typedef struct mb_report {
    int32_t i_planned;
    int64_t position;
} mb_report;

/* What became of one planned item. */
typedef struct mb_outcome {
    int32_t id; /* drawn token, when it drew */
    float logprob;
    int failed;     /* its logits are not numbers, or all are minus infinity */
    int32_t i_mask; /* which of the step's masks it drew with; -1: none */
} mb_outcome;

/* All of one step. The arrays are on the host, in pinned memory where the device reads or writes them. */
typedef struct mb_step_slot {
    mb_planned *plan; /* [max_sequences] jobs of mb_sequence; the session's */
    int32_t n_planned;

    mb_step_counts counts; /* rounded up when the step runs as a graph */
    int32_t n_drawn;       /* draws without padding */
    int32_t is_graph;
    /* Of this slot's addresses: one, of all of the step, or [n_layers], of each layer's attention. */
    mb_decode_graphs *graphs;
    int32_t n_graphs;
    /* What was drawn is copied to the host, and `done` recorded, by the next step's graph, or by collect when there
     * is none. */
    int32_t is_owed;
    /* Input queue: what the host has written for the device, a step in each slot. */
    mb_arena inputs_arena;
    mb_step_inputs in;            /* cut from inputs */
    char *inputs, *device_inputs; /* the same places in both */
    mb_sampler_start *starts;     /* [max_sequences] */
    int32_t n_starts;
    mb_arena staging; /* pinned memory for what the starts upload */
    char *staging_memory;
    int32_t *draw_planned; /* [max_sequences] planned item of each draw */
    mb_report *reports;    /* [max_logits] */

    /* Result queue: what the device has drawn for the host. */
    float *logits;                         /* device [max_logits, vocab] */
    int32_t *device_drawn_ids, *drawn_ids; /* [max_sequences], followed by the log-probabilities' [..] */
    float *device_drawn_logprobs, *drawn_logprobs; /* so that both come back in one copy */
    mb_outcome *outcomes;                          /* [max_sequences] by planned item */
    mb_event *done;                                /* stands behind all of the step's work */
    double launched_at;                            /* seconds of the session's clock */
    double planned_us;                             /* that planning and filling took */
    mb_status status;                              /* of the launch */
    char sentence[1024];                           /* why it failed */
} mb_step_slot;

/* Takes a row of log-probabilities [vocab] that one of the sequence's positions has. */
typedef void (*mb_report_fn)(void *user, mb_sequence *sequence, int64_t position, const float *row,
                             int32_t vocab);

typedef struct mb_runner {
    const mb_model *model;
    mb_runner_limits limits;
    mb_report_fn report;
    void *report_user;
    mb_stream stream;  /* of all steps, one after another */
    mb_stream reports; /* of the rows that are reported, which need not wait for the next step */
    mb_forward forward;
    mb_profiler *profiler; /* NULL: steps are not profiled */
    mb_kv_memory kv;
    void *device_memory, *pinned_memory, *host_memory;
    size_t device_bytes, kv_bytes; /* at device_memory and kv.memory */
    mb_graphs graphs;              /* MB_GRAPHS_NONE where the device has none */
    /* For MB_GRAPHS_TWO_STREAMS; else NULL. */
    mb_stream copies; /* inputs up; drawn tokens down, on a branch of the step's graph */
    mb_event *forked, *joined;
    size_t inputs_bytes, sample_workspace_bytes, staging_bytes;
    void *sample_workspace;
    mb_sampler_place *places; /* [max_sequences]; a sequence has the place of its KV table */
    int32_t *seen;            /* device [max_sequences, vocab] token counts for penalties */
    int32_t *bias_ids;        /* device [max_sequences, MB_MAX_LOGIT_BIAS] */
    float *biases;
    int32_t *history; /* device [max_blocks * 64]: the tokens that are being counted */
    float *rows;      /* pinned [reported rows at a time, vocab] */
    mb_step_slot slots[MB_STEP_SLOTS];
} mb_runner;

/* On failure nothing stays allocated. */
mb_status mb_runner_open(mb_runner *runner, const mb_model *model, const mb_runner_limits *limits,
                         mb_report_fn report, void *report_user);
void mb_runner_close(mb_runner *runner); /* a zeroed runner is allowed; no step may be in flight */

/* Writes the batch of slot->plan into the slot's input buffer. */
void mb_runner_fill(mb_runner *runner, mb_step_slot *slot, const mb_kv *kv);

/* The parts of the input buffer for these counts; with a measuring arena their size. */
void mb_step_cut_inputs(mb_arena *arena, const mb_runner *runner, const mb_step_counts *n,
                        mb_step_inputs *in);
/* Where a place of slot->inputs is on the device. */
void *mb_step_on_device(const mb_step_slot *slot, const void *input);

/* On the host, the tokens that the planned sequence's grammar allowed in its draw; NULL: it has none. */
const uint32_t *mb_step_mask(const mb_step_slot *slot, int32_t i_planned, int32_t vocab);

/* Enqueues the step that was filled. A failure is told once more when the step is collected, as it must be:
 * part of the step may be in the device's stream. */
mb_status mb_runner_launch(mb_runner *runner, mb_step_slot *slot);

/* Waits for the oldest step in flight, reports the log-probabilities that its sequences want, and leaves
 * slot->outcomes. On failure the outcomes mean nothing, and neither do those of other steps in flight: a
 * device does not say whose work has failed. */
mb_status mb_runner_collect(mb_runner *runner, mb_step_slot *slot);

/* Waits until the device works for no step any more, whatever became of them. */
void mb_runner_drain(mb_runner *runner);

#endif
