/*
 * pace.h - how much of waiting prompts a step may take while others decode, so that these do not wait long
 * for their next token. Policy only: the owner says how long each step took.
 *
 * A step with prompts in it (a mixed step) takes longer than one that only decodes. The limit is a factor: by
 * default twice as long. What a prompt's tokens cost depends on the model, the device and the batch, so it is
 * learned from the steps themselves. Three figures are kept:
 *
 * - the time of a step that only decodes. Prompts pause for a step now and then to measure it.
 * - what the least tokens of prompts add to it. On a GPU a mixed step is no graph, and the first few tokens of
 *   a prompt are dear: they hit nearly all experts, whose weights must be read, where a few sequences that
 *   decode hit few. So there is a least number of tokens that is worth a mixed step. Now and then a step has
 *   no more of them, to measure what they add.
 * - what a unit of work beyond them adds.
 *
 * Where the least tokens leave no time for others within the limit, mixed steps have others nevertheless,
 * which take two fifths of what the least take. The steps are then spread so that the limit holds on average.
 * In steps of the least tokens, or fewer, prompts would read all weights again and again for little.
 *
 * Attention makes a token dearer the further it stands from the start: its work is 1 at the start, 2 at
 * position double_at, 3 at twice that position.
 */
#ifndef MB_ENGINE_PACE_H
#define MB_ENGINE_PACE_H

#include <stdint.h>

typedef struct mb_pace {
    double max_slowdown;  /* 0: no limit; else more than 1 */
    double double_at;     /* position; 0: work is the same everywhere */
    int32_t least_tokens; /* at least 1 */

    double decode_seconds;   /* of a step that only decodes; 0: not known */
    double least_seconds;    /* that the least tokens add to it; 0: not known */
    double seconds_per_work; /* that work beyond them adds; 0: not known */
    int32_t n_decodes;       /* of the step that decode_seconds comes from */
    int32_t n_mixed;         /* mixed steps since then */
    int32_t n_until_probe;   /* mixed steps before least_seconds is measured again */
    int32_t n_pauses;        /* steps in a row in which prompts paused */
    int32_t n_owed;          /* pauses that the last mixed step costs */
    double budget;           /* seconds that a mixed step may add; 0: the step was not planned by figures */
} mb_pace;

/* What is in a step. */
typedef struct mb_step_load {
    int32_t n_decodes;      /* sequences that decode */
    int64_t prefill_tokens; /* of the others */
    double prefill_work;
} mb_step_load;

/* least_tokens: fewer tokens of prompts take as long, because what takes time is to read weights. 1 (or 0): each
 * token takes time of its own. */
void mb_pace_init(mb_pace *pace, double max_slowdown, double double_at, int32_t least_tokens);

/* Work of one token at this position. */
double mb_pace_token_work(const mb_pace *pace, int64_t position);

/* Work of prompts that the next step may take beside n_decodes > 0 sequences that decode; one token is
 * allowed whenever it is not 0. 0: none, this time. To be called once for each step that could be mixed. It
 * is never 0 more than eight times in a row. */
double mb_pace_prefill_work(mb_pace *pace, int32_t n_decodes);

/* The step that was asked for last takes this much work. When it takes longer than the limit, prompts pause for
 * as long as makes the limit hold on average, but for no more than eight steps. */
void mb_pace_spend(mb_pace *pace, double work);

/* A step with this load took so long. */
void mb_pace_learn(mb_pace *pace, const mb_step_load *load, double seconds);

#endif
