/* session_step.c - mb_step: planning, running and committing steps. */
#include <inttypes.h>
#include <time.h>

#include "base/log.h"
#include "engine/session.h"
#include "engine/waiter.h"

/* Called for the stepping thread by mb_runner_collect, without the lock. */
void mb_session_report(void *user, mb_sequence *sequence, int64_t position, const float *row, int32_t vocab) {
    mb_session *session = user;
    pthread_mutex_lock(&session->lock);
    int is_wanted = sequence->state == MB_RUNNING;
    if (is_wanted)
        session->reporting = sequence->id;
    pthread_mutex_unlock(&session->lock);
    if (!is_wanted)
        return;
    sequence->on_logprobs(sequence->on_logprobs_user, position, row, vocab);
    pthread_mutex_lock(&session->lock);
    session->reporting = 0;
    pthread_cond_broadcast(&session->reported);
    pthread_mutex_unlock(&session->lock);
}

static void plan(mb_session *session, mb_step_slot *slot) {
    slot->n_planned = mb_scheduler_plan(&session->scheduler, slot->plan);
    for (int32_t i = 0; i < slot->n_planned; i++)
        mb_sequence_of(slot->plan[i].job)->state = MB_RUNNING;
    mb_runner_fill(&session->runner, slot, &session->kv);
}

static void advance(mb_session *session, mb_sequence *sequence, const mb_planned *item,
                    const mb_outcome *outcome) {
    mb_job *job = &sequence->job;
    int64_t end = item->first + item->n_tokens;
    if (end > sequence->n_prompt)
        end = sequence->n_prompt;
    if (end > sequence->n_prompt_done) { /* each once: a preempted sequence comes here again */
        session->n_prompt_tokens += (uint64_t)(end - sequence->n_prompt_done);
        sequence->n_prompt_done = end;
    }
    if (item->draws) {
        int64_t before = job->n_tokens;
        mb_sequence_take(sequence, outcome->id, outcome->logprob);
        session->n_generated_tokens += (uint64_t)(job->n_tokens - before);
    } else if (item->first + item->n_tokens == job->max_tokens) {
        sequence->state = MB_FINISHED_LENGTH; /* max_new_tokens 0: the prompt was all */
    }
}

/* Applies the outcome of a step to a sequence that nobody has cancelled meanwhile. */
static void commit_item(mb_session *session, mb_sequence *sequence, const mb_planned *item,
                        const mb_outcome *outcome, mb_status status) {
    if (status != MB_OK) {
        sequence->state = MB_FAILED;
    } else if (outcome->failed) {
        sequence->state = MB_FAILED;
        mb_log(MB_LOG_WARN, "sequence %" PRIu64 " failed: its logits are not numbers; check the weights",
               sequence->id);
    } else {
        advance(session, sequence, item, outcome);
    }
}

/* Status: of the step. */
static void commit(mb_session *session, mb_step_slot *slot, mb_status status) {
    for (int32_t i = 0; i < slot->n_planned; i++) {
        mb_sequence *sequence = mb_sequence_of(slot->plan[i].job);
        if (sequence->state == MB_RUNNING) {
            int64_t n_tokens = sequence->job.n_tokens;
            commit_item(session, sequence, &slot->plan[i], &slot->outcomes[i], status);
            if (sequence->job.n_tokens > n_tokens || sequence->state != MB_RUNNING)
                mb_waiter_tell(sequence);
        }
        if (sequence->state != MB_RUNNING)
            mb_scheduler_remove(&session->scheduler, &sequence->job);
        mb_scheduler_collect(&session->scheduler, &slot->plan[i],
                             status == MB_OK && !slot->outcomes[i].failed);
        if (sequence->released && sequence->job.n_in_flight == 0)
            mb_sequence_destroy(sequence);
    }
    session->n_steps += slot->n_planned > 0;
    slot->n_planned = 0;
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static mb_status run(mb_runner *runner, mb_step_slot *slot) {
    if (slot->n_planned == 0)
        return MB_OK;
    MB_TRY(mb_runner_launch(runner, slot));
    return mb_runner_collect(runner, slot);
}

mb_status mb_step(mb_session *session, int *n_unfinished) {
    MB_TRY(mb_need(session, "mb_step: session"));
    mb_step_slot *slot = &session->runner.slots[0];
    pthread_mutex_lock(&session->lock);
    if (session->stepping) {
        pthread_mutex_unlock(&session->lock);
        return mb_fail(MB_ERR_STATE,
                       "mb_step: a step is running already, in another thread or around this callback");
    }
    session->stepping = 1;
    session->stepper = pthread_self();
    plan(session, slot);
    pthread_mutex_unlock(&session->lock);

    double begun = seconds_now();
    mb_status status = run(&session->runner, slot);
    double seconds = seconds_now() - begun;

    pthread_mutex_lock(&session->lock);
    if (status == MB_OK)
        mb_scheduler_learn(&session->scheduler, slot->plan, slot->n_planned, seconds);
    commit(session, slot, status);
    session->stepping = 0;
    if (n_unfinished)
        *n_unfinished = mb_session_n_unfinished(session);
    pthread_mutex_unlock(&session->lock);
    return status;
}
