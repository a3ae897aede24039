#include "server/engine.h"

#include <stdio.h>
#include <time.h>

#include "base/log.h"
#include "base/status.h"

enum { SLOW_STEP_S = 60 };

/* How long a failed step speaks against the server. Who asks /ready sends no requests meanwhile, so no step could
 * succeed and say that the failure has passed; after this time another request may try. */
enum { FAILURE_S = 10 };

double server_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* ---- Stepping ----------------------------------------------------------------------------------------- */

static uint64_t tokens_so_far(server_engine *engine) {
    mb_session_stats stats;
    mb_session_get_stats(engine->session, &stats);
    return stats.n_prompt_tokens + stats.n_generated_tokens;
}

static int is_stopping(server_engine *engine) {
    pthread_mutex_lock(&engine->lock);
    int stops = engine->is_stopping;
    pthread_mutex_unlock(&engine->lock);
    return stops;
}

static void step(server_engine *engine) {
    pthread_mutex_lock(&engine->lock);
    engine->step_began = server_now();
    pthread_mutex_unlock(&engine->lock);
    mb_status status = mb_step(engine->session, NULL);
    if (status != MB_OK)
        mb_log(MB_LOG_ERROR, "a step failed: %s", mb_last_error());
    pthread_mutex_lock(&engine->lock);
    engine->step_has_failed = status != MB_OK;
    engine->step_ended = server_now();
    pthread_mutex_unlock(&engine->lock);
}

static void *step_loop(void *user) {
    server_engine *engine = user;
    uint64_t before = 0;
    int n_unfinished;
    while (mb_session_wait(engine->session, -1, &n_unfinished) == MB_OK && !is_stopping(engine)) {
        if (n_unfinished == 0)
            continue;
        step(engine);
        uint64_t after = tokens_so_far(engine);
        if (after > before)
            server_metrics_step(&engine->metrics, after - before);
        before = after;
    }
    return NULL;
}

int server_engine_failure(server_engine *engine, uint64_t id, server_problem *problem) {
    mb_status why = mb_get_failure(engine->session, id);
    if (why == MB_ERR_ARGUMENT)
        return server_refuse(problem, 400, NULL, "%s", mb_last_error());
    return server_refuse(problem, 500, NULL, "the model failed on this request: %s", mb_last_error());
}

const char *server_engine_trouble(server_engine *engine) {
    double now = server_now();
    pthread_mutex_lock(&engine->lock);
    int is_slow = engine->step_began > engine->step_ended && now - engine->step_began > SLOW_STEP_S;
    int fails = engine->step_has_failed && now - engine->step_ended < FAILURE_S;
    pthread_mutex_unlock(&engine->lock);
    return is_slow ? "a step does not end" : fails ? "steps fail" : NULL;
}

/* ---- Delivery ----------------------------------------------------------------------------------------- */

void server_engine_look(void *user) {
    server_engine *engine = user;
    pthread_mutex_lock(&engine->lock);
    engine->has_look = 1;
    pthread_mutex_unlock(&engine->lock);
    mb_waiter_wake(engine->waiter);
}

void server_engine_abort(server_engine *engine) {
    pthread_mutex_lock(&engine->lock);
    engine->is_aborting = 1;
    pthread_mutex_unlock(&engine->lock);
    mb_waiter_wake(engine->waiter);
}

void server_engine_add(server_engine *engine, server_run *run) {
    server_reply_listener listener = {.news = server_engine_look, .user = engine};
    server_reply_listen(run->reply, &listener);
    server_run_submit(run);
    pthread_mutex_lock(&engine->lock);
    run->next = engine->added;
    engine->added = run;
    pthread_mutex_unlock(&engine->lock);
    mb_waiter_wake(engine->waiter);
}

enum { AT_ONCE = 256 };

/* Notes which answers have news. They are of runs that this thread has, or that a worker is about to add. */
static void wait_for_news(server_engine *engine) {
    mb_news news[AT_ONCE];
    size_t n = 0;
    mb_wait(engine->waiter, -1, news, AT_ONCE, &n);
    for (size_t i = 0; i < n; i++) {
        server_answer *answer = news[i].user;
        atomic_store(&answer->news, 1);
        atomic_store(&answer->run->news, 1);
    }
}

/* Puts added runs in front of *runs. */
static void take_added(server_engine *engine, server_run **runs) {
    while (engine->added != NULL) {
        server_run *run = engine->added;
        engine->added = run->next;
        atomic_store(&run->news, 1);
        run->next = *runs;
        *runs = run;
    }
}

static void *delivery_loop(void *user) {
    server_engine *engine = user;
    server_run *runs = NULL;
    int stops = 0;
    while (!stops || runs != NULL) {
        wait_for_news(engine);
        pthread_mutex_lock(&engine->lock);
        take_added(engine, &runs);
        stops = engine->is_stopping;
        int aborts = stops || engine->is_aborting, looks = aborts || engine->has_look;
        engine->has_look = 0;
        pthread_mutex_unlock(&engine->lock);
        for (server_run **place = &runs; *place != NULL;) {
            server_run *run = *place;
            int has_news = atomic_exchange(&run->news, 0) || looks;
            int is_over = has_news && server_run_advance(run);
            if (!is_over && aborts)
                server_run_abort(run);
            if (!is_over && !aborts) {
                place = &run->next;
                continue;
            }
            *place = run->next;
            server_run_close(run);
            atomic_fetch_sub(&engine->n_places, 1);
        }
    }
    return NULL;
}

/* ---- Opening ------------------------------------------------------------------------------------------ */

static mb_status open_parts(server_engine *engine, const mb_session_options *options) {
    MB_TRY(mb_session_open(engine->model, options, &engine->session));
    MB_TRY(mb_waiter_open(engine->session, &engine->waiter));
    if (pthread_create(&engine->stepping_thread, NULL, step_loop, engine) != 0)
        return mb_fail(MB_ERR_MEMORY, "the system gave no thread for the server");
    engine->n_threads = 1;
    if (pthread_create(&engine->delivery_thread, NULL, delivery_loop, engine) != 0)
        return mb_fail(MB_ERR_MEMORY, "the system gave no thread for the server");
    engine->n_threads = 2;
    return MB_OK;
}

mb_status server_engine_open(server_engine *engine, mb_model *model, const mb_session_options *options,
                             int64_t context) {
    *engine = (server_engine){.model = model};
    if (pthread_mutex_init(&engine->lock, NULL) != 0)
        return mb_fail(MB_ERR_MEMORY, "the system gave no lock for the server");
    if (server_metrics_init(&engine->metrics, context) != 0) {
        pthread_mutex_destroy(&engine->lock);
        return mb_fail(MB_ERR_MEMORY, "the system gave no lock for the server");
    }
    mb_status status = open_parts(engine, options);
    if (status != MB_OK)
        server_engine_close(engine);
    return status;
}

void server_engine_stop(server_engine *engine) {
    pthread_mutex_lock(&engine->lock);
    engine->is_stopping = 1;
    pthread_mutex_unlock(&engine->lock);
    if (engine->n_threads > 1) {
        mb_waiter_wake(engine->waiter);
        pthread_join(engine->delivery_thread, NULL);
    }
    if (engine->n_threads > 0) {
        mb_session_wake(engine->session);
        pthread_join(engine->stepping_thread, NULL);
    }
    engine->n_threads = 0;
}

void server_engine_close(server_engine *engine) {
    server_engine_stop(engine);
    mb_waiter_close(engine->waiter);
    mb_session_close(engine->session);
    server_metrics_free(&engine->metrics);
    pthread_mutex_destroy(&engine->lock);
}
