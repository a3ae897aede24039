/* sequence.h - one request in a session: its tokens so far, how to draw the next, when to stop. */
#ifndef MB_ENGINE_SEQUENCE_H
#define MB_ENGINE_SEQUENCE_H

#include "engine/scheduler.h"
#include "moebius/grammar.h"
#include "moebius/moebius.h"

/* Biases of one request that its place on the device has room for. */
enum { MB_MAX_LOGIT_BIAS = 1024 };

typedef struct mb_sequence {
    mb_job job; /* job.n_tokens is the length of ids */
    uint64_t id;
    struct mb_sequence *next_in_bucket;
    mb_state state;
    mb_status failure; /* in state MB_FAILED */
    char failure_sentence[512];
    int released; /* forgotten by its owner while in flight: freed when its last step is collected */

    mb_waiter *waiter; /* told of news; NULL: none */
    void *waiter_user;
    int has_news; /* in the waiter's list */
    struct mb_sequence *previous_news, *next_news;

    int64_t n_prompt, n_read; /* n_read: answer tokens already handed out */
    int64_t n_prompt_done; /* tokens of the prompt that steps have computed, or found in the prefix cache */
    int32_t *ids;          /* [job.max_tokens]: prompt, answer */
    float *logprobs;       /* [job.max_tokens - n_prompt] of the answer */
    mb_sampling sampling;  /* without logit_bias: see biases */
    int has_penalties;
    int32_t i_draw; /* which draw it was in the last step that drew for it */
    /* [n_bias]: the request's, then minus infinity for each stop id; those only while the answer is shorter
     * than min_new_tokens. */
    int32_t *bias_ids;
    float *biases;
    int32_t n_bias;
    int64_t min_new_tokens;
    int32_t *stop_ids; /* those of the model included */
    int32_t n_stop_ids;
    mb_grammar_state *grammar; /* where the answer is in its grammar; NULL: any text */
    mb_logprobs_fn on_logprobs;
    void *on_logprobs_user;
} mb_sequence;

/* Checks the request against the model and copies it into one new block of memory. */
mb_status mb_sequence_create(const mb_model *model, const mb_request *request, mb_sequence **sequence);
void mb_sequence_destroy(mb_sequence *sequence);

/* The job is the sequence's first member. */
mb_sequence *mb_sequence_of(mb_job *job);

/* How many of the biases hold for the draw of the token at this position. */
int32_t mb_sequence_n_bias(const mb_sequence *sequence, int64_t position);

/* The tokens that the grammar allows next, a bit for each; those that end the answer, where it is complete.
 * None, with a warning, when the grammar cannot be followed. */
void mb_sequence_mask(mb_sequence *sequence, uint32_t *bits, size_t n_words);

/* The sequence has failed. sentence: what, where, what to do. */
void mb_sequence_fail(mb_sequence *sequence, mb_status status, const char *sentence);

/* The same after a draw that gave no token. mask: what the grammar allowed; NULL: it has none. */
void mb_sequence_fail_draw(mb_sequence *sequence, const uint32_t *mask, int32_t vocab);

/* Takes in a drawn token: ends the answer at a stop token, at its length, or when its grammar has no
 * more text, else appends. */
void mb_sequence_take(mb_sequence *sequence, int32_t id, float logprob);

#endif
