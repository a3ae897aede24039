/* session_step.c - mb_step: planning, running and committing steps. */
#include <inttypes.h>
#include <stdio.h>
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
static void commit_item(mb_session *session, mb_sequence *sequence, const mb_step_slot *slot, int32_t i,
                        mb_status status, const char *sentence) {
    int32_t vocab = session->model->config.vocab;
    if (status != MB_OK)
        mb_sequence_fail(sequence, status, sentence);
    else if (slot->outcomes[i].failed)
        mb_sequence_fail_draw(sequence, mb_step_mask(slot, i, vocab), vocab);
    else
        advance(session, sequence, &slot->plan[i], &slot->outcomes[i]);
}

/* Applies the outcomes of a step. status: the step's; sentence: why it failed. */
static void commit(mb_session *session, mb_step_slot *slot, mb_status status, const char *sentence) {
    for (int32_t i = 0; i < slot->n_planned; i++) {
        mb_sequence *sequence = mb_sequence_of(slot->plan[i].job);
        if (sequence->state == MB_RUNNING) {
            int64_t n_tokens = sequence->job.n_tokens;
            commit_item(session, sequence, slot, i, status, sentence);
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
    session->n_steps++;
    slot->n_planned = 0;
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- The queue of steps in flight ------------------------------------------------------------------ */

/* Slots take turns: the i-th step in flight, 0 is the oldest. */
static mb_step_slot *in_flight(mb_session *session, int32_t i) {
    return &session->runner.slots[(session->oldest_slot + i) % session->runner.limits.n_slots];
}

static void commit_oldest(mb_session *session, mb_status status, const char *sentence) {
    commit(session, in_flight(session, 0), status, sentence);
    session->oldest_slot = (session->oldest_slot + 1) % session->runner.limits.n_slots;
    session->n_in_flight--;
}

/* Whether another step may be planned: a slot is free, and the newest step did not fail
 * when it was launched. */
static int may_start(mb_session *session) {
    int32_t n = session->n_in_flight, most = session->runner.profiler ? 1 : session->runner.limits.n_slots;
    return n < most && (n == 0 || in_flight(session, n - 1)->status == MB_OK);
}

/* Plans and launches steps as long as there is a slot and something to do. With the lock held, but for the
 * launches. */
static void start_steps(mb_session *session) {
    while (may_start(session)) {
        mb_step_slot *slot = in_flight(session, session->n_in_flight);
        double began = seconds_now();
        slot->n_planned = mb_scheduler_plan(&session->scheduler, slot->plan);
        if (slot->n_planned == 0)
            return;
        for (int32_t i = 0; i < slot->n_planned; i++)
            mb_sequence_of(slot->plan[i].job)->state = MB_RUNNING;
        mb_runner_fill(&session->runner, slot, &session->kv);
        session->n_in_flight++;
        slot->launched_at = seconds_now();
        slot->planned_us = 1e6 * (slot->launched_at - began);
        pthread_mutex_unlock(&session->lock);
        mb_runner_launch(&session->runner, slot); /* a failure is told by its collect */
        pthread_mutex_lock(&session->lock);
    }
}

/* A step begins when it is launched, or when the step before it ends. */
static void learn_time(mb_session *session, const mb_step_slot *slot) {
    double now = seconds_now(), launched = slot->launched_at, before = session->collected_at;
    mb_scheduler_learn(&session->scheduler, slot->plan, slot->n_planned,
                       now - (launched > before ? launched : before));
    session->collected_at = now;
}

/* Waits for the oldest step and applies its outcomes. When it failed, those behind it did too: they build on
 * it, and a device does not say whose work it was. With the lock held, but for the wait. */
static mb_status collect_oldest(mb_session *session) {
    char sentence[1024] = "";
    pthread_mutex_unlock(&session->lock);
    mb_status status = mb_runner_collect(&session->runner, in_flight(session, 0));
    if (status != MB_OK) {
        snprintf(sentence, sizeof sentence, "%s", mb_last_error());
        mb_runner_drain(&session->runner);
    }
    pthread_mutex_lock(&session->lock);
    if (status == MB_OK)
        learn_time(session, in_flight(session, 0));
    double planned_us = in_flight(session, 0)->planned_us, began = seconds_now();
    do
        commit_oldest(session, status, sentence);
    while (status != MB_OK && session->n_in_flight > 0);
    if (session->runner.profiler)
        mb_profiler_add_host(session->runner.profiler, planned_us + 1e6 * (seconds_now() - began));
    return status == MB_OK ? MB_OK : mb_fail(status, "%s", sentence);
}

void mb_session_abandon_steps(mb_session *session) {
    if (session->n_in_flight == 0)
        return;
    mb_runner_drain(&session->runner);
    while (session->n_in_flight > 0)
        commit_oldest(session, MB_ERR_STATE, "the session was left before the step had ended");
}

mb_status mb_step(mb_session *session, int *n_unfinished) {
    MB_TRY(mb_need(session, "mb_step: session"));
    pthread_mutex_lock(&session->lock);
    if (session->stepping) {
        pthread_mutex_unlock(&session->lock);
        return mb_fail(MB_ERR_STATE,
                       "mb_step: a step is running already, in another thread or around this callback");
    }
    session->stepping = 1;
    session->stepper = pthread_self();
    start_steps(session);
    mb_status status = session->n_in_flight > 0 ? collect_oldest(session) : MB_OK;
    /* What is left in flight when everybody has ended concerns nobody: surplus tokens,
     * behind an end of text. */
    while (session->n_in_flight > 0 && session->scheduler.waiting.n + session->scheduler.running.n == 0)
        collect_oldest(session);
    session->stepping = 0;
    if (n_unfinished)
        *n_unfinished = mb_session_n_unfinished(session);
    pthread_mutex_unlock(&session->lock);
    return status;
}

/* ---- Profiles --------------------------------------------------------------------------------------- */

/* With the lock held. */
static mb_status check_at_rest(const mb_session *session, const char *function) {
    if (!session->stepping)
        return MB_OK;
    return mb_fail(MB_ERR_STATE, "%s: a step is running, in another thread or around this callback",
                   function);
}

mb_status mb_profile_start(mb_session *session) {
    MB_TRY(mb_need(session, "mb_profile_start: session"));
    mb_runner *runner = &session->runner;
    pthread_mutex_lock(&session->lock);
    mb_status status = check_at_rest(session, "mb_profile_start");
    if (status == MB_OK) {
        mb_profiler_close(runner->profiler);
        status = mb_profiler_open(&runner->forward, &runner->profiler);
    }
    pthread_mutex_unlock(&session->lock);
    return status;
}

mb_status mb_profile_stop(mb_session *session, mb_profile *profile) {
    MB_TRY(mb_need(session, "mb_profile_stop: session"));
    MB_TRY(mb_need(profile, "mb_profile_stop: profile"));
    mb_runner *runner = &session->runner;
    pthread_mutex_lock(&session->lock);
    mb_status status = check_at_rest(session, "mb_profile_stop");
    if (status == MB_OK && !runner->profiler)
        status = mb_fail(MB_ERR_STATE, "mb_profile_stop: no profile was started (mb_profile_start)");
    if (status == MB_OK) {
        mb_profiler_read(runner->profiler, profile);
        mb_profiler_close(runner->profiler);
        runner->profiler = NULL;
    }
    pthread_mutex_unlock(&session->lock);
    return status;
}
