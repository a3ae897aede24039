/*
 * One thread steps while others submit, read, cancel and release at random. Everything that was not cancelled
 * must give exactly the tokens that it gives alone, and the KV cache must end up empty. Meant for the thread
 * sanitizer too.
 */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/model.h"
#include "support/generation.h"
#include "support/slow_device.h"

enum { VOCAB = 48, PROMPTS = 8, MAX_PROMPT = 90, MAX_NEW = 12, CLIENTS = 4, REQUESTS = 60 };

typedef struct prompt {
    int32_t ids[MAX_PROMPT];
    size_t n_ids;
    generation expected;
} prompt;

typedef struct storm {
    mb_model *model;
    mb_session *session;
    int n_requests; /* of each client */
    prompt prompts[PROMPTS];
    atomic_int n_clients;
    atomic_ullong n_finished, n_cancelled, n_rows;
} storm;

typedef struct client {
    storm *storm;
    uint64_t seed;
    pthread_t thread;
    const char *problem; /* cmocka's asserts belong to the main thread */
} client;

static mb_model *open_tiny_model(void) {
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = VOCAB;
    options.seed = 5;
    return tiny_model_open(&options, NULL);
}

static void count_row(void *user, int64_t position, const float *logprobs, int32_t vocab) {
    (void)position;
    (void)logprobs;
    (void)vocab;
    atomic_fetch_add((atomic_ullong *)user, 1);
}

static void draw_with_seed(mb_request *request, size_t i_prompt) {
    request->sampling.temperature = 1;
    request->sampling.seed = i_prompt;
    request->sampling.presence_penalty = i_prompt % 2 ? 0.7f : 0;
}

/* Submits one request and sees it through; returns what went wrong. */
static const char *one_request(storm *s, uint64_t *random) {
    size_t i_prompt = (size_t)(tiny_random(random) % PROMPTS);
    const prompt *p = &s->prompts[i_prompt];
    mb_request request;
    mb_request_init(s->model, &request);
    request.ids = p->ids;
    request.n_ids = p->n_ids;
    request.max_new_tokens = MAX_NEW;
    request.ignore_eos = 1;
    draw_with_seed(&request, i_prompt);
    if (tiny_random(random) % 3 == 0) {
        request.on_logprobs = count_row;
        request.on_logprobs_user = &s->n_rows;
        request.prompt_logprobs = tiny_random(random) % 2 == 0;
    }
    uint64_t id;
    mb_status status;
    while ((status = mb_submit(s->session, &request, &id)) == MB_ERR_CAPACITY)
        sched_yield(); /* the queue is full: the stepping thread makes room */
    if (status != MB_OK)
        return "submit failed";

    uint64_t patience = tiny_random(random) % 4 == 0 ? tiny_random(random) % 40 : UINT64_MAX;
    int cancelled = 0;
    mb_token tokens[MAX_NEW + 1];
    size_t n_tokens = 0, n;
    mb_state state;
    do {
        if (patience-- == 0) {
            if (tiny_random(random) % 2)
                return mb_release(s->session, id) == MB_OK ? NULL : "release in flight failed";
            if (mb_cancel(s->session, id) != MB_OK)
                return "cancel failed";
            cancelled = 1;
        }
        if (mb_read(s->session, id, tokens + n_tokens, MAX_NEW + 1 - n_tokens, &n, &state) != MB_OK)
            return "read failed";
        n_tokens += n;
        sched_yield();
    } while (state == MB_WAITING || state == MB_RUNNING);
    if (state != MB_FINISHED_LENGTH && !(cancelled && state == MB_CANCELLED))
        return "a sequence ended in the wrong state";
    if (state == MB_FINISHED_LENGTH ? n_tokens != MAX_NEW : n_tokens >= MAX_NEW)
        return "a sequence ended with the wrong number of tokens";
    if (n_tokens > 0 && memcmp(tokens, p->expected.tokens, n_tokens * sizeof *tokens) != 0)
        return "a sequence's tokens differ from those it has alone";
    atomic_fetch_add(state == MB_CANCELLED ? &s->n_cancelled : &s->n_finished, 1);
    return mb_release(s->session, id) == MB_OK ? NULL : "release failed";
}

/* Goes on until somebody's request was cancelled before it had ended: on a busy machine that may take long. */
static void *client_body(void *user) {
    client *c = user;
    const int n = c->storm->n_requests, most = 100 * n;
    for (int i = 0; (i < n || (i < most && atomic_load(&c->storm->n_cancelled) == 0)) && !c->problem; i++) {
        c->problem = one_request(c->storm, &c->seed);
        mb_session_stats stats;
        mb_session_get_stats(c->storm->session, &stats);
        if (stats.kv_blocks_free < 0 || stats.kv_blocks_free > stats.kv_blocks_total)
            c->problem = "the number of free blocks is impossible";
    }
    atomic_fetch_sub(&c->storm->n_clients, 1);
    return NULL;
}

static void *stepping_body(void *user) {
    client *c = user;
    int n_unfinished = 0;
    while (!c->problem && (atomic_load(&c->storm->n_clients) > 0 || n_unfinished > 0))
        if (mb_step(c->storm->session, &n_unfinished) != MB_OK)
            c->problem = "a step failed";
    return NULL;
}

/* slow: the device of the steps; NULL: the CPU. */
static void run_storm(slow_device *slow) {
    storm s = {.model = open_tiny_model(), .n_requests = slow ? REQUESTS / 4 : REQUESTS};
    mb_session *quiet = session_with(s.model, 1, 0, 0, 0);
    uint64_t random = 99;
    for (size_t i = 0; i < PROMPTS; i++) {
        prompt *p = &s.prompts[i];
        p->n_ids = 1 + (size_t)(tiny_random(&random) % MAX_PROMPT);
        for (size_t j = 0; j < p->n_ids; j++)
            p->ids[j] = (int32_t)(tiny_random(&random) % VOCAB);
        generation_init(&p->expected, s.model, p->ids, p->n_ids, MAX_NEW);
        draw_with_seed(&p->expected.request, i);
        generation_run_alone(&p->expected, quiet);
    }
    mb_session_close(quiet);

    mb_device *cpu = s.model->device;
    if (slow)
        s.model->device = slow_device_of(slow);
    mb_session_options options;
    mb_session_options_init(&options);
    options.max_sequences = 3;
    options.max_step_tokens = 48;
    options.prefill_chunk = 20;
    options.max_queued = 2;
    options.kv_tokens = 6 * 64;
    assert_int_equal(mb_session_open(s.model, &options, &s.session), MB_OK);
    client clients[CLIENTS + 1] = {{0}};
    atomic_store(&s.n_clients, CLIENTS);
    for (int i = 0; i <= CLIENTS; i++) {
        clients[i] = (client){.storm = &s, .seed = 1000 + (uint64_t)i};
        assert_int_equal(
            pthread_create(&clients[i].thread, NULL, i < CLIENTS ? client_body : stepping_body, &clients[i]),
            0);
    }
    for (int i = 0; i <= CLIENTS; i++)
        pthread_join(clients[i].thread, NULL);
    for (int i = 0; i <= CLIENTS; i++)
        if (clients[i].problem)
            fail_msg("%s", clients[i].problem);

    mb_session_stats stats;
    mb_session_get_stats(s.session, &stats);
    assert_int_equal(stats.kv_blocks_free, stats.kv_blocks_total);
    assert_int_equal(stats.n_running + stats.n_waiting, 0);
    assert_true(atomic_load(&s.n_finished) > (unsigned)(CLIENTS * s.n_requests / 2));
    assert_true(atomic_load(&s.n_cancelled) > 0);
    assert_true(atomic_load(&s.n_rows) > 0);
    mb_session_close(s.session);
    for (size_t i = 0; i < PROMPTS; i++)
        generation_free(&s.prompts[i].expected);
    s.model->device = cpu;
    mb_model_close(s.model);
}

static void test_storm(void **state) {
    (void)state;
    run_storm(NULL);
}

/* With two steps in flight. */
static void test_storm_over_overlapping_steps(void **state) {
    (void)state;
    slow_device *slow = slow_device_open(64 << 20);
    run_storm(slow);
    slow_device_close(slow);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_storm),
                                       cmocka_unit_test(test_storm_over_overlapping_steps)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
