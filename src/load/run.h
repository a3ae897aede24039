/* run.h - sends the planned requests and measures each: one thread, one epoll loop, a
 * connection for each stream. */
#ifndef MB_LOAD_RUN_H
#define MB_LOAD_RUN_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "load/address.h"
#include "load/plan.h"

/* What came of a request. Times are in seconds; a request begins at its planned arrival, even where the
 * client was late or a connection had to be made, so a server that stalls is not spared. */
typedef struct load_result {
    double begun_s;   /* after the start of the run */
    double first_s;   /* until the first part of the answer */
    double whole_s;   /* until the end */
    int64_t n_prompt; /* as the server counts, or as planned */
    int64_t n_cached, n_output;
    int failed;
    char message[256]; /* why */
} load_result;

typedef struct load_run_options {
    int32_t concurrency; /* most requests at the same time; 0: no limit */
    double timeout_s;    /* of one request */
    int (*is_stopped)(void);
    void (*report)(int32_t n_done, int32_t n_requests); /* now and then */
} load_run_options;

typedef struct load_measured {
    load_result *results; /* mb_malloc, one for each request that began, in the order of arrival */
    int32_t n_results;
    double *gaps_s; /* mb_malloc, between two parts of an answer, of all answers */
    size_t n_gaps;
    double duration_s; /* until the last request ended */
    /* Tokens in a second while as many requests ran as the concurrency allows: from the last first token to
     * the first end. 0 when there was no such time. This is what moebius bench calls decode. */
    double steady_tok_s;
    double cpu_s; /* of this process meanwhile: what the client costs */
    int was_stopped;
} load_measured;

mb_status load_run(const load_address *address, const load_plan_options *plan,
                   const load_run_options *options, load_measured *measured);
void load_measured_free(load_measured *measured);

#endif
