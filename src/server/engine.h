/*
 * engine.h - the threads that run generations.
 *
 *   stepping   calls mb_step while there is work, and sleeps otherwise
 *   delivery   owns all runs: reads their tokens, makes text of them and puts it into the replies
 *   workers    parse, render and tokenize what HTTP has received, and submit (http.c hands them jobs)
 *
 * A worker hands a run over with server_engine_add. Nobody else touches a run afterwards.
 */
#ifndef MB_SERVER_ENGINE_H
#define MB_SERVER_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "moebius/moebius.h"
#include "server/metrics.h"
#include "server/run.h"

enum { SERVER_RETRY_AFTER_S = 1 };

struct server_engine {
    mb_model *model;
    mb_session *session;
    server_metrics metrics;
    pthread_t stepping_thread, delivery_thread;
    int n_threads; /* that were started */

    mb_waiter *waiter; /* of the delivery thread, for all sequences */

    pthread_mutex_t lock; /* guards all below */
    int has_look, is_stopping, is_aborting;
    server_run *added;             /* by workers, not yet taken by the delivery thread */
    double step_began, step_ended; /* seconds; began > ended: a step is running */
    int step_has_failed;           /* the last one */

    /* Requests that have a place: from the job of a worker to the end of its run. Who takes a place counts
     * it; the delivery thread gives back those of the runs that it closes. */
    atomic_int n_places;
};

double server_now(void); /* seconds of a clock that only goes forward */

mb_status server_engine_open(server_engine *engine, mb_model *model, const mb_session_options *options,
                             int64_t context);
/* Ends what runs, and the threads. Nothing may be added afterwards. */
void server_engine_stop(server_engine *engine);
void server_engine_close(server_engine *engine); /* stops it first */

/* Submits a run and hands it over, in every case. */
void server_engine_add(server_engine *engine, server_run *run);
/* A reply's listener: the delivery thread looks at all runs. user is the engine. */
void server_engine_look(void *user);
/* Ends all runs now, as server_run_abort does. */
void server_engine_abort(server_engine *engine);

/* Why a sequence failed, as a problem. Returns -1. */
int server_engine_failure(server_engine *engine, uint64_t id, server_problem *problem);
/* NULL while steps make progress; else what they do instead, a literal. */
const char *server_engine_trouble(server_engine *engine);

#endif
