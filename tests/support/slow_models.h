/*
 * slow_models.h - models on the slow device, for tests of two steps in flight; requests of every kind for
 * them; and a step in a thread of its own.
 */
#ifndef MB_TESTS_SLOW_MODELS_H
#define MB_TESTS_SLOW_MODELS_H

#include <pthread.h>
#include <stdatomic.h>

#include "engine/session.h"
#include "support/generation.h"
#include "support/slow_device.h"

enum { VOCAB = 64, POISONED = 13 };

typedef struct slow_models {
    mb_model *plain;
    mb_model *poisoned; /* the same with NaN in the embedding of one token, POISONED */
    mb_device *cpu, *poisoned_cpu;
    slow_device *slow; /* of the test that runs */
} slow_models;
extern slow_models models;

/* For cmocka: of the group, and of each test, which begins with both models on the slow device. */
int slow_models_open(void **state);
int slow_models_close(void **state);
int slow_models_use_device(void **state);
int slow_models_use_cpu(void **state);

typedef struct session_shape {
    int32_t steps_in_flight, max_sequences, max_step_tokens, prefill_chunk, kv_tokens;
    mb_graphs graphs;
} session_shape;

mb_session *slow_models_session(mb_model *of, session_shape s);
generation slow_models_generation(uint64_t seed, size_t n_ids, int64_t max_new);
/* Requests of every kind, the same for the same seed: all that the next draw may depend on, all that may
 * end an answer, and log-probabilities. */
void slow_models_wild(generation *g, uint64_t seed);
/* What a request gives alone on the CPU. */
void slow_models_run_one_alone(generation *g);
/* What the wild requests of the seeds 0 to n - 1 give alone on the CPU. */
void slow_models_run_alone(generation *alone, size_t n);
void slow_models_free(generation *g, size_t n);
void assert_same_generation(const generation *a, const generation *b);
void pause_a_little(void);

/* A step in a thread of its own. */
typedef struct stepper {
    mb_session *session;
    pthread_t thread;
    mb_status status;
    int n_unfinished;
    atomic_int is_done;
} stepper;

void stepper_start(stepper *s, mb_session *session);
void stepper_finish(stepper *s); /* and the step has ended well */

#endif
