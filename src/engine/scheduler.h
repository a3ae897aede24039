/*
 * scheduler.h - which sequences run in the next step, and how many of their tokens.
 *
 * Policy only. Sequences are admitted in the order of their arrival: when the head of the queue does not fit
 * the KV cache yet, those behind it wait too, so a long one cannot be overtaken for ever. A step takes first
 * one token of every sequence that lacks just one (decodes), then chunks of prompts, oldest first, up to the
 * token budget. Because no more sequences run than the budget has tokens, every decode is in every step and
 * the oldest prompt always advances.
 */
#ifndef MB_ENGINE_SCHEDULER_H
#define MB_ENGINE_SCHEDULER_H

#include "base/status.h"
#include "engine/kv.h"

typedef struct mb_schedule_limits {
    int32_t max_sequences;     /* running at once; at most max_step_tokens */
    int32_t max_step_tokens;   /* in one step */
    int32_t prefill_chunk;     /* of one sequence in one step */
    int32_t max_queued;        /* waiting */
    int32_t max_prompt_logits; /* rows of logits in one step beyond one per sequence */
} mb_schedule_limits;

typedef enum mb_job_list { MB_JOB_NONE, MB_JOB_WAITING, MB_JOB_RUNNING } mb_job_list;

/* What the scheduler knows of a sequence. The owner sets n_tokens, max_tokens, all_logits and awaits_token
 * before submitting. When a step that draws for the job is collected, the owner takes the draw off n_drawing,
 * and adds the token to n_tokens. */
typedef struct mb_job {
    int64_t n_tokens;   /* known: the prompt and what was drawn */
    int32_t n_drawing;  /* tokens that planned steps draw: known to the device alone, they follow the known */
    int awaits_token;   /* is planned only when all its tokens are known: the next draw depends on the last */
    int64_t n_cached;   /* of its tokens, in the KV cache when all planned steps have run */
    int64_t max_tokens; /* the prompt and all that may be drawn */
    int all_logits;     /* logits of every processed token are wanted, not just of the last */
    int32_t table;      /* in the KV cache, -1: none */
    int32_t n_in_flight; /* steps that were planned with it and are not collected */
    mb_job_list list;
    struct mb_job *previous, *next;
} mb_job;

typedef struct mb_job_queue {
    mb_job *first, *last;
    int32_t n;
} mb_job_queue;

typedef struct mb_planned {
    mb_job *job;
    int64_t first;    /* position */
    int32_t n_tokens; /* positions [first, first + n_tokens) */
    int32_t n_logits; /* rows wanted: of all n_tokens, of the last one, or none */
    int draws;        /* the last row gives the next token */
} mb_planned;

typedef struct mb_scheduler {
    mb_schedule_limits limits;
    mb_kv *kv;
    mb_job_queue waiting, running; /* running: in the order of admission */
} mb_scheduler;

void mb_scheduler_init(mb_scheduler *scheduler, const mb_schedule_limits *limits, mb_kv *kv);

/* Queues a job. MB_ERR_CAPACITY: the queue is full, or it could not even fit an empty cache. */
mb_status mb_scheduler_submit(mb_scheduler *scheduler, mb_job *job);

/* Takes the job, waiting or running, out of its list, so that it is planned no more. Its KV blocks are
 * freed at once, or, when steps in flight use them, when the last of these steps is collected. Does nothing
 * for a job that is in no list. */
void mb_scheduler_remove(mb_scheduler *scheduler, mb_job *job);

/* Plans a step: admits waiting jobs that fit, and writes one item per job to plan [max_sequences]. The
 * jobs' KV blocks are extended, and their n_cached, n_drawing and n_in_flight count the step from now on. A
 * decode may follow the step that draws its token before that step has run. Returns the number of items. It
 * is 0 when there are no unfinished jobs, or all of them wait for what steps in flight draw. */
int32_t mb_scheduler_plan(mb_scheduler *scheduler, mb_planned *plan);

/* To be called once per item of a plan when its step has run or failed, as the device then no longer uses
 * the job's KV blocks. */
void mb_scheduler_collect(mb_scheduler *scheduler, mb_job *job);

#endif
