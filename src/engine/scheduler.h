/*
 * scheduler.h - which sequences run in the next step, and how many of their tokens. Policy only.
 *
 * There is one order, that of job.h: the smaller priority first, and of equal ones the first to come, but a
 * job that waits comes before those of smaller priority that come much later. Jobs are admitted in this order;
 * when the first that waits does not fit yet, the others wait too, so a long one cannot be overtaken for ever.
 * A step takes first one token of every sequence that lacks just one (decodes), then chunks of prompts up to
 * the token budget. While sequences decode, the prompts' share is what mb_pace allows. Of that share each prompt
 * gets half of what those before it leave, so a short one is not kept waiting by a long one; what nobody needs
 * goes to the first. Of prompts that begin alike the first computes the blocks that they share.
 *
 * The share protects the many from the few, not the few from the many. Where a step's time is that of reading
 * weights, a step for a few sequences costs nearly as much as one for many. As long as prompts are more than half
 * as many as the sequences that decode, each step that holds them back costs more people more time than it saves,
 * and later their answers fill the batch no more. So they take whole steps then: as much work as a step full of
 * short prompts.
 *
 * Admission takes what is likely: blocks for all known tokens and for a share of those that may still be
 * drawn. Most answers end long before max_new_tokens, so reserving the worst case would leave most of the
 * pool empty; reserving nothing would preempt all the time. What is right depends on the requests, so the
 * preemptions themselves decide: the share begins at a quarter, each preemption raises it by an eighth of
 * itself, and each admission lowers it by a 64th, but not below a sixteenth.
 *
 * When a job needs a block and none is left, the last running job in the order is preempted: it loses its
 * blocks, goes back to those that wait, and later computes the KV of all its tokens again (of those blocks
 * that the prefix cache has lost). A job is never preempted for one that comes later in the order. So the
 * first of all always advances: every job fits an empty pool, or it was refused.
 *
 * Two steps may be in flight. Their jobs keep their blocks until they are collected, preempted or not.
 */
#ifndef MB_ENGINE_SCHEDULER_H
#define MB_ENGINE_SCHEDULER_H

#include "base/status.h"
#include "engine/job.h"
#include "engine/kv.h"
#include "engine/pace.h"

typedef struct mb_schedule_limits {
    int32_t max_sequences;                 /* running at once; at most max_step_tokens */
    int32_t max_step_tokens;               /* in one step */
    int32_t prefill_chunk;                 /* of one sequence in one step */
    int32_t max_queued;                    /* waiting */
    int32_t max_prompt_logits;             /* rows of logits in one step beyond one per sequence */
    int32_t prefix_caching;                /* blocks enter the prefix cache, and are looked up */
    double max_decode_slowdown, double_at; /* of mb_pace_init */
    int32_t least_prompt_tokens; /* the same; 1, or 0: a step takes time for each row, not for weights */
} mb_schedule_limits;

typedef struct mb_planned {
    mb_job *job;
    int64_t first;    /* position */
    int32_t n_tokens; /* positions [first, first + n_tokens) */
    int32_t n_logits; /* rows wanted: of the last n_logits tokens */
    int draws;        /* the last row gives the next token */
} mb_planned;

typedef struct mb_scheduler {
    mb_schedule_limits limits;
    mb_kv *kv;
    mb_pace pace;
    mb_waiting_jobs waiting;
    mb_running_jobs running;
    uint64_t last_arrival;
    int is_full;            /* when a job was last to be admitted, it had to wait */
    int32_t n_leaving;      /* jobs that run no more but hold blocks until their steps are collected */
    int32_t share;          /* of the tokens that a job may still draw, in 1/1024: reserved at admission */
    int32_t *found;         /* [kv->max_blocks] cached blocks of the job being admitted */
    uint64_t n_preemptions; /* since mb_scheduler_init, as are the next two: tokens */
    uint64_t n_prefix_queries, n_prefix_hits;
} mb_scheduler;

/* Cuts the bookkeeping from `arena`; on a measuring arena nothing else happens. The pool must be idle. */
void mb_scheduler_init(mb_scheduler *scheduler, mb_arena *arena, const mb_schedule_limits *limits, mb_kv *kv);

/* Queues a job. MB_ERR_CAPACITY: the queue is full, or it could not even fit an empty cache. */
mb_status mb_scheduler_submit(mb_scheduler *scheduler, mb_job *job);

/* Takes the job, waiting or running, out of its list, so that it is planned no more. Its KV blocks are
 * freed at once, or, when steps in flight use them, when the last of these steps is collected. Does nothing
 * for a job that is in no list. */
void mb_scheduler_remove(mb_scheduler *scheduler, mb_job *job);

/* Plans a step: admits waiting jobs that fit, and writes one item per job to plan [max_sequences], those that
 * decode first. The jobs' KV blocks are extended, and their n_cached and n_in_flight count the step from now
 * on. Returns the number of items. It is 0 when there are no unfinished jobs, or when all of them wait for a
 * step in flight.
 *
 * A job whose next token a step in flight draws is planned with a token that is not in `ids` yet. */
int32_t mb_scheduler_plan(mb_scheduler *scheduler, mb_planned *plan);

/* To be called once per item of a plan when its step has run, after what was drawn was added to the job. In
 * this order: the items of a step that was planned earlier, first. is_good: the step has computed the KV of
 * the item. Else no block of the job stays in the prefix cache. */
void mb_scheduler_collect(mb_scheduler *scheduler, const mb_planned *item, int is_good);

/* A step with this plan took so long. Before its items are collected. */
void mb_scheduler_learn(mb_scheduler *scheduler, const mb_planned *plan, int32_t n, double seconds);

#endif
