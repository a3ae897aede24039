/*
 * metrics.h - counters and histograms of the server, written as Prometheus reads them, under vLLM's names.
 */
#ifndef MB_SERVER_METRICS_H
#define MB_SERVER_METRICS_H

#include <pthread.h>
#include <stdint.h>

#include "server/text.h"

enum { SERVER_MAX_BUCKETS = 32 };

typedef struct server_histogram {
    int n_bounds;
    double bounds[SERVER_MAX_BUCKETS];
    uint64_t counts[SERVER_MAX_BUCKETS + 1]; /* of values in each bucket; the last: above all bounds */
    double sum;
} server_histogram;

typedef enum server_finish {
    SERVER_STOP,
    SERVER_LENGTH,
    SERVER_ABORT,
    SERVER_ERROR,
    SERVER_N_FINISH
} server_finish;

typedef struct server_metrics {
    pthread_mutex_t lock; /* guards all below */
    server_histogram first_token, between_tokens, per_output_token, end_to_end;
    server_histogram queue, prefill, decode, inference;
    server_histogram prompt_tokens, generated_tokens, step_tokens, answers, max_tokens;
    uint64_t n_finished[SERVER_N_FINISH];
} server_metrics;

int server_metrics_init(server_metrics *metrics, int64_t context); /* -1: no lock to be had */
void server_metrics_free(server_metrics *metrics);

struct server_answer;
struct server_run;
/* A token has come; before it is counted in the answer. Sets the answer's times. */
void server_metrics_token(server_metrics *metrics, struct server_answer *answer, double now);
void server_metrics_finish(server_metrics *metrics, const struct server_answer *answer, double now);
void server_metrics_end(server_metrics *metrics, const struct server_run *run);
void server_metrics_failure(server_metrics *metrics, const struct server_run *run);
void server_metrics_gone(server_metrics *metrics, const struct server_run *run);
void server_metrics_step(server_metrics *metrics, uint64_t n_tokens);

struct server_engine;
/* The page of /metrics. */
void server_metrics_write(struct server_engine *engine, const char *model_name, server_text *text);

#endif
