/*
 * waiter.h - threads that wait until sequences have news: a token, or their end.
 *
 * A waiter keeps the list of those of its sequences that have news that nobody was told yet. A sequence is
 * in the list once, however much news it has. A step puts each sequence that advanced into the list of its
 * waiter, and wakes one thread per waiter whose list was empty: threads that wait for other sequences sleep
 * on. The session's lock guards all of it.
 */
#ifndef MB_ENGINE_WAITER_H
#define MB_ENGINE_WAITER_H

#include <pthread.h>

#include "engine/sequence.h"

struct mb_waiter {
    mb_session *session;
    pthread_cond_t has_news;   /* the list has become longer than none, or is_woken */
    mb_sequence *first, *last; /* sequences with news, the oldest news first */
    int is_woken;              /* by mb_waiter_wake */
    uint64_t n_sequences;      /* that name this waiter */
};

/* The calls below want the session's lock held. */

/* The sequence has news for its waiter, if it has one. */
void mb_waiter_tell(mb_sequence *sequence);
void mb_waiter_attach(mb_waiter *waiter, mb_sequence *sequence);
/* The sequence has no waiter from now on, and its news is forgotten. */
void mb_waiter_detach(mb_sequence *sequence);

/* A condition for waits with a limit: its clock cannot be set. 0 when the system has none left. */
int mb_condition_init(pthread_cond_t *condition);

/* When a wait of so many milliseconds that begins now ends. */
typedef struct mb_deadline {
    int is_never; /* the limit was negative */
    struct timespec at;
} mb_deadline;

mb_deadline mb_deadline_after(int64_t timeout_ms);

/* Waits for a signal. 0: the deadline has passed. */
int mb_condition_wait(pthread_cond_t *condition, pthread_mutex_t *lock, const mb_deadline *deadline);

#endif
