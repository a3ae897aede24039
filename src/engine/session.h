/*
 * session.h - what a session is: session.c opens it and takes requests, session_step.c steps it, and
 * waiter.c lets threads wait for it.
 *
 * One lock guards the scheduler, the KV bookkeeping and the sequences. mb_step holds it while it plans a
 * step and fills the step's slot, and again while it commits the results; in between the device works, and
 * everybody may submit, read, cancel and release.
 *
 * On a GPU two steps are in flight. mb_step launches step N+1, collects step N, and returns while the device
 * works on N+1: so the device has work while the host commits, delivers, plans and fills. An end of text is
 * seen when N is collected, and then N+1 draws one token too many, which is dropped.
 *
 * A sequence that is part of a step in flight leaves the scheduler at once when it is cancelled, but its KV
 * blocks and its memory stay until its last step was collected.
 *
 * mb_cancel and mb_release promise that on_logprobs is not called any more when they return. So
 * mb_session_report looks under the lock whether the sequence still runs and notes whose callback it calls;
 * mb_cancel and mb_release wait until that callback has returned.
 */
#ifndef MB_ENGINE_SESSION_H
#define MB_ENGINE_SESSION_H

#include <pthread.h>

#include "engine/kv.h"
#include "engine/sequence.h"
#include "engine/step.h"

struct mb_session {
    const mb_model *model;
    mb_runner runner;    /* belongs to the stepping thread */
    void *memory;        /* behind kv and buckets */
    int64_t max_context; /* positions of one sequence */

    pthread_mutex_t lock; /* guards all below */
    int stepping;
    int32_t oldest_slot, n_in_flight; /* steps in flight: the oldest one's slot, how many */
    double collected_at;              /* seconds of the clock when the last step was collected */
    pthread_t stepper;                /* the thread that steps, while stepping */
    uint64_t reporting;               /* the sequence whose on_logprobs is being called; 0: none */
    pthread_cond_t reported;          /* reporting has become 0 */
    pthread_cond_t has_work;          /* for mb_session_wait: there may be something to step, or is_woken */
    int is_woken;                     /* by mb_session_wake */
    mb_kv kv;
    mb_scheduler scheduler;
    mb_sequence **buckets; /* by id */
    uint64_t bucket_mask;
    uint64_t last_id;
    uint64_t n_steps, n_prompt_tokens, n_generated_tokens;
};

/* Drops the steps in flight: their sequences fail. For a session that closes. */
void mb_session_abandon_steps(mb_session *session);

/* Sequences that wait or run; at least 1 while a step is in flight, so that it gets collected. */
int mb_session_n_unfinished(const mb_session *session);

/* Takes a row of log-probabilities: the runner's mb_report_fn. */
void mb_session_report(void *user, mb_sequence *sequence, int64_t position, const float *row, int32_t vocab);

#endif
