/*
 * simulation.h - the scheduler in a simulation: requests arrive and answers end as a script says, and a step
 * lasts as long as a simple cost model says. Nothing here looks at a clock, so the same numbers come out on
 * every machine. Whatever must not happen fails the test.
 */
#ifndef MB_TESTS_SIMULATION_H
#define MB_TESTS_SIMULATION_H

#include "engine/scheduler.h"

enum { MAX_JOBS = 4096, MAX_SEQUENCES = 256, MAX_BLOCKS = 1100, MAX_DEPTH = 2 };

/* Seconds. */
typedef struct cost_model {
    const char *name;
    double step, mixed; /* of every step; of one that has prompts too, which is no graph */
    double per_decode;
    double per_token;  /* of a prompt at its start */
    double double_at;  /* position where a token costs twice that */
    double noise;      /* a step's time varies by so much of it */
    double chat_every; /* what comes in: a chat after this time, on average */
    int64_t n_long;    /* and three prompts of this length */
    double experts;    /* to read all weights of the experts; each row of a step needs a 16th of them */
    double per_cached; /* of a position that a decode reads */
    int32_t max_sequences, max_step_tokens, chunk, least_prompt_tokens;
} cost_model;

/* Qwen3-30B-A3B in fp8 on an H100, fitted to measured steps: decode 3 ms at 1 sequence, 15.2 at 64 with 1192
 * positions each; prefill 20 ms for 1024 tokens, 48 for 4096, 80 for eight prompts of 1024. */
extern const cost_model h100;

typedef struct request {
    mb_job job; /* the first member */
    double arrives, first_token, last_token, done;
    int64_t n_prompt, n_answer; /* n_answer: what it really says, at most job.max_tokens - n_prompt */
    int is_chat;
    int32_t *ids; /* job.ids; NULL: shares nothing */
} request;

/* A planned step. */
typedef struct flight {
    mb_planned plan[MAX_SEQUENCES];
    int32_t n_planned;
    double seconds, idle; /* idle: without the prompts */
    double end;
} flight;

typedef struct simulation {
    const cost_model *cost;
    uint64_t random;
    mb_kv kv;
    mb_scheduler scheduler;
    void *memory;
    double now;
    request requests[MAX_JOBS]; /* in the order of arrival */
    int n_requests, n_submitted, n_done;
    int depth; /* steps in flight: 1, or 2 as on a GPU, where a step is planned before the one in front has ended */
    flight flights[MAX_DEPTH];
    int oldest, n_flights;
    double device_free;
    int64_t n_computed; /* tokens */
    /* Of every token of a chat but its first: time since the one before, over the time of a step that only
     * decodes the same sequences. */
    float *gaps;
    int n_gaps, max_gaps;
    double worst_gap; /* seconds */
} simulation;

/* max_sequences: 0: as the cost model has it. */
simulation *open_simulation(const cost_model *cost, double slowdown, int32_t n_blocks, int32_t max_sequences);
void close_simulation(simulation *s);
double uniform(simulation *s); /* 0 to 1 */

/* Requests are added in the order of arrival. */
request *add_request(simulation *s, double arrives, int64_t n_prompt, int64_t n_answer, int64_t max_new);

/* The prompt begins with n_shared tokens that are the same for all requests of which this is said; the others are
 * its own. Said before it arrives. */
void share_prefix(simulation *s, request *r, int64_t n_shared);

/* Time of a step that only decodes: n sequences with so many positions in all. */
double decode_seconds(const simulation *s, double n, double n_cached);

/* Plans as many steps as may be in flight, and ends the oldest; or waits for the next arrival. */
void step(simulation *s);
/* Until every request is done. */
void run(simulation *s);

/* Of the times between a chat's tokens, in those of a step that only decodes. */
double gap_quantile(simulation *s, double q);
double gap_mean(const simulation *s);
/* Seconds until the first token, of chats or of the others. */
double first_token_quantile(const simulation *s, int of_chats, double q);

#endif
