#include "engine/job.h"

/* The arrival that the job would have with priority 0. It does not change while the job waits. */
static int64_t rank(const mb_job *job) {
    return (int64_t)job->arrival + (int64_t)job->priority * MB_PRIORITY_ARRIVALS;
}

int mb_job_precedes(const mb_job *a, const mb_job *b) {
    return rank(a) != rank(b) ? rank(a) < rank(b) : a->arrival < b->arrival;
}

/* ---- Waiting --------------------------------------------------------------------------------------- */

void mb_waiting_init(mb_waiting_jobs *waiting, mb_arena *arena, int32_t capacity) {
    *waiting = (mb_waiting_jobs){.heap = mb_arena_push(arena, (size_t)capacity, sizeof *waiting->heap)};
}

mb_job *mb_waiting_first(const mb_waiting_jobs *waiting) {
    return waiting->n > 0 ? waiting->heap[0] : NULL;
}

static void put(mb_waiting_jobs *waiting, int32_t i, mb_job *job) {
    waiting->heap[i] = job;
    job->i_waiting = i;
}

/* Puts the job at place i or, as long as it precedes the job there, nearer to the top. */
static void rise(mb_waiting_jobs *waiting, int32_t i, mb_job *job) {
    for (; i > 0 && mb_job_precedes(job, waiting->heap[(i - 1) / 2]); i = (i - 1) / 2)
        put(waiting, i, waiting->heap[(i - 1) / 2]);
    put(waiting, i, job);
}

/* Puts the job at place i or, as long as another precedes it, further below. */
static void sink(mb_waiting_jobs *waiting, int32_t i, mb_job *job) {
    for (int32_t child = 2 * i + 1; child < waiting->n; child = 2 * i + 1) {
        if (child + 1 < waiting->n && mb_job_precedes(waiting->heap[child + 1], waiting->heap[child]))
            child++;
        if (!mb_job_precedes(waiting->heap[child], job))
            break;
        put(waiting, i, waiting->heap[child]);
        i = child;
    }
    put(waiting, i, job);
}

void mb_waiting_add(mb_waiting_jobs *waiting, mb_job *job) {
    job->list = MB_JOB_WAITING;
    rise(waiting, waiting->n++, job);
}

void mb_waiting_remove(mb_waiting_jobs *waiting, mb_job *job) {
    int32_t i = job->i_waiting;
    mb_job *last = waiting->heap[--waiting->n];
    job->list = MB_JOB_NONE;
    if (last == job)
        return;
    if (i > 0 && mb_job_precedes(last, waiting->heap[(i - 1) / 2]))
        rise(waiting, i, last);
    else
        sink(waiting, i, last);
}

/* ---- Running --------------------------------------------------------------------------------------- */

void mb_running_add(mb_running_jobs *running, mb_job *job) {
    mb_job *before = running->last; /* mostly the right place, because jobs are admitted in this order */
    while (before && mb_job_precedes(job, before))
        before = before->previous;
    mb_job *after = before ? before->next : running->first;
    job->list = MB_JOB_RUNNING;
    job->previous = before;
    job->next = after;
    *(before ? &before->next : &running->first) = job;
    *(after ? &after->previous : &running->last) = job;
    running->n++;
}

void mb_running_remove(mb_running_jobs *running, mb_job *job) {
    *(job->previous ? &job->previous->next : &running->first) = job->next;
    *(job->next ? &job->next->previous : &running->last) = job->previous;
    running->n--;
    job->list = MB_JOB_NONE;
    job->previous = job->next = NULL;
}
