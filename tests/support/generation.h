/*
 * generation.h - runs requests through a session and keeps all that comes out, for the engine's tests.
 */
#ifndef TESTS_SUPPORT_GENERATION_H
#define TESTS_SUPPORT_GENERATION_H

#include "moebius/moebius.h"
#include "support/tiny_checkpoint.h"

/* One request and its results. Set `request` (after generation_init) and submit it. */
typedef struct generation {
    mb_request request;
    uint64_t id;
    mb_state state;
    mb_token *tokens; /* [n_tokens] */
    size_t n_tokens;
    float *rows; /* [n_rows, vocab] log-probabilities, positions first_position .. */
    int64_t n_rows, first_position;
    int out_of_order; /* a callback's position did not follow the one before */
} generation;

/* Greedy, max_new tokens, no stop at end-of-text; ids are copied. */
void generation_init(generation *g, const mb_model *model, const int32_t *ids, size_t n_ids, int64_t max_new);
/* Keeps log-probabilities: of the answer, or of the prompt too. */
void generation_keep_logprobs(generation *g, int prompt_too);
void generation_submit(generation *g, mb_session *session);
/* Reads what is there. */
void generation_read(generation *g, mb_session *session);
void generation_free(generation *g);

/* Steps until nothing is unfinished, reading all; every step must succeed. */
void generations_run(generation *generations, size_t n, mb_session *session);
/* Submit, run, release: one request alone. */
void generation_run_alone(generation *g, mb_session *session);

int generation_same_tokens(const generation *a, const generation *b); /* ids and log-probabilities, bitwise */

/* A prompt of random ids below `vocab`, none of them `avoided`; the same for the same seed. */
void generation_init_random(generation *g, const mb_model *model, uint64_t seed, int32_t vocab,
                            int32_t avoided, size_t n_ids, int64_t max_new);

/* Writes the checkpoint, opens it on one thread of the CPU and removes the files. tensors NULL: random ones.
 */
mb_model *tiny_model_open(const tiny_checkpoint *options, const tiny_tensors *tensors);

mb_session_stats session_stats(mb_session *session);
void assert_session_idle(mb_session *session); /* nothing waits or runs, all KV blocks are free */
void session_step(mb_session *session);        /* which must succeed */

/* A session with these limits; 0: the default. */
mb_session *session_with(mb_model *model, int32_t max_sequences, int32_t max_step_tokens,
                         int32_t prefill_chunk, int64_t kv_tokens);

#endif
