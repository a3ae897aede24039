#include "engine/scheduler.h"

#include <inttypes.h>

void mb_scheduler_init(mb_scheduler *scheduler, const mb_schedule_limits *limits, mb_kv *kv) {
    *scheduler = (mb_scheduler){.limits = *limits, .kv = kv};
}

static mb_job_queue *queue_of(mb_scheduler *scheduler, mb_job_list list) {
    return list == MB_JOB_WAITING ? &scheduler->waiting : &scheduler->running;
}

static void append(mb_scheduler *scheduler, mb_job *job, mb_job_list list) {
    mb_job_queue *queue = queue_of(scheduler, list);
    job->list = list;
    job->next = NULL;
    job->previous = queue->last;
    if (queue->last)
        queue->last->next = job;
    else
        queue->first = job;
    queue->last = job;
    queue->n++;
}

static void unlink_job(mb_scheduler *scheduler, mb_job *job) {
    mb_job_queue *queue = queue_of(scheduler, job->list);
    if (job->previous)
        job->previous->next = job->next;
    else
        queue->first = job->next;
    if (job->next)
        job->next->previous = job->previous;
    else
        queue->last = job->previous;
    queue->n--;
    job->list = MB_JOB_NONE;
    job->previous = job->next = NULL;
}

mb_status mb_scheduler_submit(mb_scheduler *scheduler, mb_job *job) {
    const mb_kv *kv = scheduler->kv;
    if (!mb_kv_can_ever_fit(kv, job->max_tokens))
        return mb_fail(
            MB_ERR_CAPACITY,
            "the prompt plus max_new_tokens is %" PRId64 " tokens, more than the KV cache can ever "
            "hold for one sequence (%" PRId64 "); ask for fewer or open the session with more "
            "kv_tokens",
            job->max_tokens,
            (int64_t)MB_KV_BLOCK_TOKENS * (kv->n_blocks < kv->max_blocks ? kv->n_blocks : kv->max_blocks));
    if (scheduler->waiting.n >= scheduler->limits.max_queued)
        return mb_fail(MB_ERR_CAPACITY, "the queue is full: %d sequences are waiting; try again later",
                       (int)scheduler->waiting.n);
    job->table = -1;
    append(scheduler, job, MB_JOB_WAITING);
    return MB_OK;
}

void mb_scheduler_remove(mb_scheduler *scheduler, mb_job *job) {
    if (job->list == MB_JOB_NONE)
        return;
    unlink_job(scheduler, job);
    if (job->n_in_flight == 0)
        mb_kv_release(scheduler->kv, &job->table);
}

void mb_scheduler_collect(mb_scheduler *scheduler, mb_job *job) {
    job->n_in_flight--;
    if (job->n_in_flight == 0 && job->list == MB_JOB_NONE)
        mb_kv_release(scheduler->kv, &job->table);
}

typedef struct budget {
    int32_t tokens, prompt_logits;
} budget;

static int64_t tokens_missing(const mb_job *job) {
    int64_t n_tokens = job->n_tokens + job->n_drawing;
    if (job->n_drawing > 0 && (job->awaits_token || n_tokens == job->max_tokens))
        return 0; /* the last token of an answer need not be computed */
    return n_tokens - job->n_cached;
}

/* Plans as much of one admitted job as the budget and the limits allow: at least one token. */
static mb_planned plan_job(mb_scheduler *scheduler, mb_job *job, budget *left) {
    int64_t n = tokens_missing(job);
    if (n > scheduler->limits.prefill_chunk)
        n = scheduler->limits.prefill_chunk;
    if (n > left->tokens)
        n = left->tokens;
    if (job->all_logits && n > 1 + left->prompt_logits)
        n = 1 + left->prompt_logits;

    int draws = n == tokens_missing(job) && job->n_tokens + job->n_drawing < job->max_tokens;
    int32_t n_logits = job->all_logits ? (int32_t)n : draws;
    left->tokens -= (int32_t)n;
    if (n_logits > 1)
        left->prompt_logits -= n_logits - 1;
    mb_kv_extend(scheduler->kv, job->table, job->n_cached + n); /* within the reservation: cannot fail */
    mb_planned planned = {
        .job = job, .first = job->n_cached, .n_tokens = (int32_t)n, .n_logits = n_logits, .draws = draws};
    job->n_cached += n;
    job->n_drawing += draws;
    job->n_in_flight++;
    return planned;
}

static int admit_next(mb_scheduler *scheduler) {
    mb_job *job = scheduler->waiting.first;
    if (!job || scheduler->running.n >= scheduler->limits.max_sequences)
        return 0;
    job->table = mb_kv_reserve(scheduler->kv, job->max_tokens, NULL, 0);
    if (job->table < 0)
        return 0;
    unlink_job(scheduler, job);
    append(scheduler, job, MB_JOB_RUNNING);
    return 1;
}

int32_t mb_scheduler_plan(mb_scheduler *scheduler, mb_planned *plan) {
    budget left = {scheduler->limits.max_step_tokens, scheduler->limits.max_prompt_logits};
    int32_t n = 0;
    for (mb_job *job = scheduler->running.first; job && left.tokens > 0; job = job->next)
        if (tokens_missing(job) == 1)
            plan[n++] = plan_job(scheduler, job, &left);
    for (mb_job *job = scheduler->running.first; job && left.tokens > 0; job = job->next)
        if (tokens_missing(job) > 1)
            plan[n++] = plan_job(scheduler, job, &left);
    while (left.tokens > 0 && admit_next(scheduler))
        plan[n++] = plan_job(scheduler, scheduler->running.last, &left);
    return n;
}
