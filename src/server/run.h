/*
 * run.h - a generation that runs: sequences in the engine, their tokens made into text, and the reply.
 *
 * A worker makes a run and submits its sequences. From then on the run belongs to the engine's delivery
 * thread (engine.h), which calls server_run_advance whenever there is news. Only on_logprobs comes from the
 * stepping thread; the run's lock guards what it writes.
 */
#ifndef MB_SERVER_RUN_H
#define MB_SERVER_RUN_H

#include <pthread.h>
#include <stdatomic.h>

#include "server/answer.h"
#include "server/blocks.h"
#include "server/reply.h"

typedef struct server_engine server_engine;

/* One for each API. The functions of a stream append events to `out`. */
typedef struct server_writer {
    const char *id_prefix;                                                  /* "chatcmpl-" */
    void (*open)(server_run *run, server_text *out);                        /* the first events */
    void (*news)(server_run *run, server_answer *answer, server_text *out); /* parts, tokens, finish */
    void (*close)(server_run *run, server_text *out);                       /* the last events */
    void (*fail)(server_run *run, server_text *out);  /* in place of close: run->problem */
    void (*whole)(server_run *run, server_text *out); /* without stream: the reply */
} server_writer;

struct server_run {
    server_engine *engine;
    server_reply *reply;
    const server_writer *writer;
    server_generation generation;
    char id[64];
    int64_t created; /* Unix time */

    pthread_mutex_t lock;   /* rows of the answers */
    server_answer *answers; /* [n_answers], answer k of prompt p at p * n + k */
    int32_t n_answers, n_open;
    atomic_int news;  /* one of the answers has some */
    int is_streaming; /* the first events are written */
    server_problem problem;
    server_text out;
    server_blocks blocks; /* of a stream, for writers whose APIs have blocks */

    double arrived, started; /* seconds; started: the first sequence ran */
    int64_t n_prompt_tokens, n_cached_tokens;
    server_run *next; /* in the delivery thread's list */
};

/* Takes over *generation (also on failure) and holds the reply. NULL: no memory, *generation is freed. */
server_run *server_run_open(server_engine *engine, server_reply *reply, const server_writer *writer,
                            server_generation *generation, double arrived);
/* Submits every answer's sequence. On failure run->problem is set; the run must be
 * handed over all the same. */
void server_run_submit(server_run *run);
/* Reads what is new and puts it into the reply. Returns 1 when the run is over and can be closed. */
int server_run_advance(server_run *run);
/* Ends it now: a stream gets its last events with "abort", a whole reply becomes a 503. */
void server_run_abort(server_run *run);
void server_run_close(server_run *run); /* releases the sequences */

#endif
