/*
 * job.h - what the scheduler knows of a sequence, and the two lists that it keeps of them. Policy only.
 *
 * The lists have one order: the smaller priority first, and of equal ones the first to come. But nobody is
 * overtaken for ever: a unit of priority is worth MB_PRIORITY_ARRIVALS jobs that come later. Waiting jobs are
 * many, and are in a heap; running jobs are few, and are in a list that can be walked from both ends.
 */
#ifndef MB_ENGINE_JOB_H
#define MB_ENGINE_JOB_H

#include <stdint.h>

#include "base/arena.h"
#include "engine/prefix_cache.h"

/* As many as a session lets wait by default. So among those, priorities are strict. */
enum { MB_PRIORITY_ARRIVALS = 1024 };

typedef enum mb_job_list { MB_JOB_NONE, MB_JOB_WAITING, MB_JOB_RUNNING } mb_job_list;

/* The owner sets the first group before submitting, and adds what a step drew to n_tokens and ids. The rest
 * belongs to the scheduler. */
typedef struct mb_job {
    const int32_t *ids;   /* the tokens; NULL: the job has no part in the prefix cache */
    int64_t n_tokens;     /* known: the prompt and what was drawn */
    int64_t max_tokens;   /* the prompt and all that may be drawn */
    int32_t all_logits;   /* logits of every token are wanted, once; else of the last one, to draw the next */
    int32_t awaits_token; /* planned only when all its tokens are known: a draw depends on the one before */
    int32_t priority;     /* the smaller runs sooner */
    uint64_t cache_salt;  /* blocks are shared with jobs of the same salt */

    uint64_t arrival;     /* number in the order of coming */
    int64_t n_cached;     /* tokens in the KV cache when all planned steps have run */
    int64_t n_logits;     /* positions that were in a step, before a preemption too */
    int64_t n_hit_tokens; /* of the prompt, found in the prefix cache when the job first ran */
    int32_t n_preemptions;
    int32_t table;       /* in the KV cache, -1: none */
    int32_t n_in_flight; /* steps that were planned with it and are not collected */
    int32_t n_drawing;   /* of these, steps that draw a token */
    int32_t n_granted;   /* tokens that the step being planned takes of it */
    int32_t is_held;     /* another computes its next block, so the step being planned takes none of it */
    int32_t has_failed;  /* its blocks do not enter the prefix cache */
    mb_prefix prefix;    /* the blocks of its table that are in the prefix cache */
    mb_job_list list;
    int32_t i_waiting; /* place in the heap */
    struct mb_job *previous, *next;
} mb_job;

/* Whether a runs before b. */
int mb_job_precedes(const mb_job *a, const mb_job *b);

typedef struct mb_waiting_jobs {
    mb_job **heap; /* [capacity]: no job precedes its parent, which is at (i - 1) / 2 */
    int32_t n;
} mb_waiting_jobs;

/* Cuts a heap for `capacity` jobs; on a measuring arena nothing else happens. */
void mb_waiting_init(mb_waiting_jobs *waiting, mb_arena *arena, int32_t capacity);
mb_job *mb_waiting_first(const mb_waiting_jobs *waiting); /* NULL: none */
void mb_waiting_add(mb_waiting_jobs *waiting, mb_job *job);
void mb_waiting_remove(mb_waiting_jobs *waiting, mb_job *job);

typedef struct mb_running_jobs {
    mb_job *first, *last; /* linked by next and previous */
    int32_t n;
} mb_running_jobs;

void mb_running_add(mb_running_jobs *running, mb_job *job);
void mb_running_remove(mb_running_jobs *running, mb_job *job);

#endif
