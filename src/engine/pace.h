/*
 * pace.h - how much of waiting prompts a step may take while others decode, so that these do not wait long
 * for their next token. Policy only: the owner says how long each step took.
 *
 * A step with prompts in it (a mixed step) takes longer than one that only decodes. The limit is a factor: by
 * default twice as long. What a prompt's tokens cost depends on the model, the device and the batch, so it is
 * learned from the steps themselves. Three figures are kept: the time of a step that only decodes, what
 * a mixed step adds without any work (on a GPU it is no graph), and what a unit of work adds. Prompts
 * pause for a step now and then to measure the first, and go on with one token to measure the second.
 * Where mixed steps cost so much that no work fits the limit, they do some, and are spread so that the
 * limit holds on average.
 *
 * Attention makes a token dearer the further it stands from the start: its work is 1 at the start, 2 at
 * position double_at, 3 at twice that position.
 */
#ifndef MB_ENGINE_PACE_H
#define MB_ENGINE_PACE_H

#include <stdint.h>

typedef struct mb_pace {
    double max_slowdown; /* 0: no limit; else more than 1 */
    double double_at;    /* position; 0: work is the same everywhere */

    double decode_seconds;   /* of a step that only decodes; 0: not known */
    double fixed_seconds;    /* that a mixed step adds without work */
    double seconds_per_work; /* 0: not known */
    int32_t n_decodes;       /* of the step that decode_seconds comes from */
    int32_t n_mixed;         /* mixed steps since then */
    int32_t n_until_probe;   /* mixed steps before fixed_seconds is measured again */
    int32_t n_pauses;        /* steps in a row in which prompts paused */
    int32_t n_owed;          /* pauses that the last mixed step costs */
    double allowed;          /* work that was allowed last; 0: it was not computed from figures */
} mb_pace;

/* What is in a step. */
typedef struct mb_step_load {
    int32_t n_decodes;      /* sequences that decode */
    int64_t prefill_tokens; /* of the others */
    double prefill_work;
} mb_step_load;

void mb_pace_init(mb_pace *pace, double max_slowdown, double double_at);

/* Work of one token at this position. */
double mb_pace_token_work(const mb_pace *pace, int64_t position);

/* Work of prompts that the next step may take beside n_decodes > 0 sequences that decode; one token is
 * allowed whenever it is not 0. 0: none, this time. To be called once for each step that could be mixed. It
 * is never 0 more than eight times in a row. */
double mb_pace_prefill_work(mb_pace *pace, int32_t n_decodes);

/* The step that was asked for last takes this much work: more than was allowed when a single token is. Then
 * prompts pause for as long as makes the limit hold on average, but for no more than eight steps. */
void mb_pace_spend(mb_pace *pace, double work);

/* A step with this load took so long. */
void mb_pace_learn(mb_pace *pace, const mb_step_load *load, double seconds);

#endif
