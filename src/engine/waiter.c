#include "engine/waiter.h"

#include <errno.h>
#include <time.h>

#include "base/alloc.h"
#include "engine/session.h"

/* ---- Waiting with a limit -------------------------------------------------------------------------- */

int mb_condition_init(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0)
        return 0;
    int is_ready = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
                   pthread_cond_init(condition, &attributes) == 0;
    pthread_condattr_destroy(&attributes);
    return is_ready;
}

mb_deadline mb_deadline_after(int64_t timeout_ms) {
    enum { NS_PER_S = 1000000000, NS_PER_MS = 1000000, MS_PER_S = 1000 };
    mb_deadline deadline = {.is_never = timeout_ms < 0};
    if (deadline.is_never)
        return deadline;
    clock_gettime(CLOCK_MONOTONIC, &deadline.at);
    deadline.at.tv_sec += (time_t)(timeout_ms / MS_PER_S);
    deadline.at.tv_nsec += (long)(timeout_ms % MS_PER_S) * NS_PER_MS;
    if (deadline.at.tv_nsec >= NS_PER_S) {
        deadline.at.tv_nsec -= NS_PER_S;
        deadline.at.tv_sec++;
    }
    return deadline;
}

int mb_condition_wait(pthread_cond_t *condition, pthread_mutex_t *lock, const mb_deadline *deadline) {
    if (deadline->is_never)
        return pthread_cond_wait(condition, lock) == 0;
    return pthread_cond_timedwait(condition, lock, &deadline->at) != ETIMEDOUT;
}

/* ---- The list of news ------------------------------------------------------------------------------ */

void mb_waiter_tell(mb_sequence *sequence) {
    mb_waiter *waiter = sequence->waiter;
    if (!waiter || sequence->has_news)
        return;
    sequence->has_news = 1;
    sequence->previous_news = waiter->last;
    sequence->next_news = NULL;
    if (waiter->last)
        waiter->last->next_news = sequence;
    else
        waiter->first = sequence;
    waiter->last = sequence;
    if (waiter->first == sequence)
        pthread_cond_signal(&waiter->has_news);
}

static void forget_news(mb_sequence *sequence) {
    mb_waiter *waiter = sequence->waiter;
    if (!sequence->has_news)
        return;
    if (sequence->previous_news)
        sequence->previous_news->next_news = sequence->next_news;
    else
        waiter->first = sequence->next_news;
    if (sequence->next_news)
        sequence->next_news->previous_news = sequence->previous_news;
    else
        waiter->last = sequence->previous_news;
    sequence->has_news = 0;
}

void mb_waiter_attach(mb_waiter *waiter, mb_sequence *sequence) {
    sequence->waiter = waiter;
    if (waiter)
        waiter->n_sequences++;
}

void mb_waiter_detach(mb_sequence *sequence) {
    if (!sequence->waiter)
        return;
    forget_news(sequence);
    sequence->waiter->n_sequences--;
    sequence->waiter = NULL;
}

/* ---- The calls of moebius.h ------------------------------------------------------------------------ */

mb_status mb_waiter_open(mb_session *session, mb_waiter **waiter) {
    MB_TRY(mb_need(waiter, "mb_waiter_open: waiter"));
    *waiter = NULL;
    MB_TRY(mb_need(session, "mb_waiter_open: session"));
    mb_waiter *opened = mb_calloc(1, sizeof *opened);
    if (!opened)
        return mb_fail(MB_ERR_MEMORY, "no memory for a waiter");
    opened->session = session;
    if (!mb_condition_init(&opened->has_news)) {
        mb_free(opened);
        return mb_fail(MB_ERR_MEMORY, "the system gave no condition for a waiter");
    }
    *waiter = opened;
    return MB_OK;
}

void mb_waiter_close(mb_waiter *waiter) {
    if (!waiter)
        return;
    mb_session *session = waiter->session;
    pthread_mutex_lock(&session->lock);
    for (uint64_t i = 0; waiter->n_sequences > 0 && i <= session->bucket_mask; i++)
        for (mb_sequence *sequence = session->buckets[i]; sequence; sequence = sequence->next_in_bucket)
            if (sequence->waiter == waiter)
                mb_waiter_detach(sequence);
    pthread_mutex_unlock(&session->lock);
    pthread_cond_destroy(&waiter->has_news);
    mb_free(waiter);
}

mb_status mb_wait(mb_waiter *waiter, int64_t timeout_ms, mb_news *news, size_t capacity, size_t *n_news) {
    MB_TRY(mb_need(waiter, "mb_wait: waiter"));
    MB_TRY(mb_need(news, "mb_wait: news"));
    MB_TRY(mb_need(n_news, "mb_wait: n_news"));
    *n_news = 0;
    if (capacity == 0)
        return mb_fail(MB_ERR_ARGUMENT, "mb_wait: capacity is 0; there must be room for one piece of news");
    const mb_deadline deadline = mb_deadline_after(timeout_ms);
    pthread_mutex_t *lock = &waiter->session->lock;
    pthread_mutex_lock(lock);
    while (!waiter->first && !waiter->is_woken && mb_condition_wait(&waiter->has_news, lock, &deadline))
        continue;
    waiter->is_woken = 0;
    while (waiter->first && *n_news < capacity) {
        mb_sequence *sequence = waiter->first;
        news[(*n_news)++] = (mb_news){.id = sequence->id, .user = sequence->waiter_user};
        forget_news(sequence);
    }
    if (waiter->first)
        pthread_cond_signal(&waiter->has_news); /* for another thread that waits */
    pthread_mutex_unlock(lock);
    return MB_OK;
}

mb_status mb_waiter_wake(mb_waiter *waiter) {
    MB_TRY(mb_need(waiter, "mb_waiter_wake: waiter"));
    pthread_mutex_lock(&waiter->session->lock);
    waiter->is_woken = 1;
    pthread_cond_signal(&waiter->has_news);
    pthread_mutex_unlock(&waiter->session->lock);
    return MB_OK;
}

mb_status mb_session_wait(mb_session *session, int64_t timeout_ms, int *n_unfinished) {
    MB_TRY(mb_need(session, "mb_session_wait: session"));
    MB_TRY(mb_need(n_unfinished, "mb_session_wait: n_unfinished"));
    const mb_deadline deadline = mb_deadline_after(timeout_ms);
    pthread_mutex_lock(&session->lock);
    while (mb_session_n_unfinished(session) == 0 && !session->is_woken &&
           mb_condition_wait(&session->has_work, &session->lock, &deadline))
        continue;
    session->is_woken = 0;
    *n_unfinished = mb_session_n_unfinished(session);
    pthread_mutex_unlock(&session->lock);
    return MB_OK;
}

mb_status mb_session_wake(mb_session *session) {
    MB_TRY(mb_need(session, "mb_session_wake: session"));
    pthread_mutex_lock(&session->lock);
    session->is_woken = 1;
    pthread_cond_signal(&session->has_work);
    pthread_mutex_unlock(&session->lock);
    return MB_OK;
}
