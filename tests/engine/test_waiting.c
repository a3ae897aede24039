/*
 * Threads that wait for news of their sequences, and a stepping thread that waits for work: who is woken, by
 * what, and that nobody polls. Meant for the thread sanitizer too.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "support/generation.h"

enum { VOCAB = 48, LONG_MS = 60000 }; /* LONG_MS: no wait of these tests takes so long unless it is broken */

static mb_model *model;

static int open_model(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = VOCAB;
    options.seed = 21;
    model = tiny_model_open(&options, NULL);
    return 0;
}

static int close_model(void **state) {
    (void)state;
    mb_model_close(model);
    return 0;
}

static mb_waiter *waiter_on(mb_session *session) {
    mb_waiter *waiter;
    assert_int_equal(mb_waiter_open(session, &waiter), MB_OK);
    return waiter;
}

static generation watched_generation(uint64_t seed, int64_t max_new, mb_waiter *waiter) {
    generation g;
    generation_init_random(&g, model, seed, VOCAB, -1, 5 + (size_t)seed, max_new);
    g.request.waiter = waiter;
    return g;
}

static size_t news_now(mb_waiter *waiter, mb_news *news, size_t capacity) {
    size_t n;
    assert_int_equal(mb_wait(waiter, 0, news, capacity, &n), MB_OK);
    return n;
}

static void pause_a_little(void) {
    const struct timespec some = {.tv_nsec = 20 * 1000 * 1000};
    nanosleep(&some, NULL);
}

/* ---- What is news ---------------------------------------------------------------------------------- */

static void test_news_comes_once_and_to_its_waiter(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 512);
    mb_waiter *both = waiter_on(session), *third = waiter_on(session);
    generation g[4];
    mb_news news[4];
    int tags[4];
    for (int i = 0; i < 4; i++) {
        g[i] = watched_generation((uint64_t)i, 2, i < 2 ? both : i == 2 ? third : NULL);
        g[i].request.waiter_user = &tags[i];
        generation_submit(&g[i], session);
    }
    assert_int_equal(news_now(both, news, 4), 0); /* to be queued is no news */
    session_step(session);
    assert_int_equal(news_now(both, news, 1), 1);
    assert_int_equal(news[0].id, g[0].id);
    assert_ptr_equal(news[0].user, &tags[0]);
    assert_int_equal(news_now(both, news, 4), 1);
    assert_int_equal(news[0].id, g[1].id);
    assert_int_equal(news_now(both, news, 4), 0);
    assert_int_equal(news_now(third, news, 4), 1);
    assert_ptr_equal(news[0].user, &tags[2]);

    session_step(session);                                 /* the last token of each */
    assert_int_equal(mb_release(session, g[0].id), MB_OK); /* its news is forgotten */
    assert_int_equal(news_now(both, news, 4), 1);
    assert_int_equal(news[0].id, g[1].id);
    generation_read(&g[1], session);
    assert_int_equal(g[1].state, MB_FINISHED_LENGTH);
    assert_int_equal(g[1].n_tokens, 2);
    assert_int_equal(mb_cancel(session, g[1].id), MB_OK); /* it had ended already */
    assert_int_equal(news_now(both, news, 4), 0);
    mb_waiter_close(third); /* with news, and sequences that name it */
    assert_int_equal(mb_release(session, g[2].id), MB_OK);
    mb_waiter_close(both);
    mb_session_close(session);
    for (int i = 0; i < 4; i++)
        generation_free(&g[i]);
}

static void test_an_end_without_a_token_is_news(void **state) {
    (void)state;
    mb_session *session = session_with(model, 1, 0, 4, 512);
    mb_waiter *waiter = waiter_on(session);
    mb_news news[2];
    generation cancelled = watched_generation(1, 4, waiter), scored = watched_generation(2, 0, waiter);
    generation_submit(&cancelled, session);
    session_step(session); /* a chunk of the prompt: no news */
    assert_int_equal(news_now(waiter, news, 2), 0);
    assert_int_equal(mb_cancel(session, cancelled.id), MB_OK);
    assert_int_equal(news_now(waiter, news, 2), 1);
    generation_submit(&scored, session);
    session_step(session);
    assert_int_equal(news_now(waiter, news, 2), 0);
    session_step(session);
    assert_int_equal(news_now(waiter, news, 2), 1);
    assert_int_equal(news[0].id, scored.id);
    mb_waiter_close(waiter);
    mb_session_close(session);
    generation_free(&cancelled);
    generation_free(&scored);
}

static void test_a_wait_ends_in_time(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 512);
    mb_waiter *waiter = waiter_on(session);
    mb_news news;
    size_t n = 9;
    int n_unfinished = 9;
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    assert_int_equal(mb_wait(waiter, 30, &news, 1, &n), MB_OK);
    assert_int_equal(n, 0);
    assert_int_equal(mb_session_wait(session, 1030, &n_unfinished), MB_OK);
    assert_int_equal(n_unfinished, 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    double waited_s =
        (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) * 1e-9;
    assert_true(waited_s >= 1.06);
    mb_waiter_close(waiter);
    mb_session_close(session);
}

static void test_bad_arguments_are_named(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 512), *other = session_with(model, 0, 0, 0, 512);
    mb_waiter *waiter = waiter_on(session), *none = (mb_waiter *)1;
    generation g = watched_generation(1, 2, waiter);
    mb_news news;
    size_t n;
    assert_int_equal(mb_submit(other, &g.request, &g.id), MB_ERR_ARGUMENT);
    assert_non_null(strstr(mb_last_error(), "request.waiter"));
    assert_int_equal(mb_waiter_open(NULL, &none), MB_ERR_ARGUMENT);
    assert_null(none);
    assert_int_equal(mb_waiter_open(session, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_wait(NULL, 0, &news, 1, &n), MB_ERR_ARGUMENT);
    assert_int_equal(mb_wait(waiter, 0, NULL, 1, &n), MB_ERR_ARGUMENT);
    assert_int_equal(mb_wait(waiter, 0, &news, 0, &n), MB_ERR_ARGUMENT);
    assert_int_equal(mb_wait(waiter, 0, &news, 1, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_waiter_wake(NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_session_wait(NULL, 0, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_session_wait(session, 0, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_session_wake(NULL), MB_ERR_ARGUMENT);
    mb_waiter_close(NULL);
    mb_waiter_close(waiter);
    mb_session_close(session);
    mb_session_close(other);
    generation_free(&g);
}

/* ---- Who is woken ---------------------------------------------------------------------------------- */

typedef struct sleeper {
    mb_waiter *waiter;
    mb_session *session; /* instead: waits for work */
    pthread_t thread;
    mb_news news;
    size_t n_news;
    int n_unfinished;
    mb_status status;
    atomic_int has_returned;
} sleeper;

static void *sleeper_body(void *user) {
    sleeper *s = user;
    s->status = s->waiter ? mb_wait(s->waiter, LONG_MS, &s->news, 1, &s->n_news)
                          : mb_session_wait(s->session, LONG_MS, &s->n_unfinished);
    atomic_store(&s->has_returned, 1);
    return NULL;
}

static void start_sleeper(sleeper *s, mb_waiter *waiter, mb_session *session) {
    *s = (sleeper){.waiter = waiter, .session = session};
    assert_int_equal(pthread_create(&s->thread, NULL, sleeper_body, s), 0);
}

static void join_sleeper(sleeper *s) {
    pthread_join(s->thread, NULL);
    assert_int_equal(s->status, MB_OK);
}

static void test_news_wakes_its_thread_alone(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 512);
    mb_waiter *mine = waiter_on(session), *others = waiter_on(session);
    generation g = watched_generation(1, 3, mine);
    sleeper awake, asleep;
    start_sleeper(&awake, mine, NULL);
    start_sleeper(&asleep, others, NULL);
    pause_a_little();
    assert_false(atomic_load(&awake.has_returned));
    generation_submit(&g, session);
    session_step(session);
    join_sleeper(&awake);
    assert_int_equal(awake.n_news, 1);
    assert_int_equal(awake.news.id, g.id);
    assert_false(atomic_load(&asleep.has_returned));
    assert_int_equal(mb_waiter_wake(others), MB_OK);
    join_sleeper(&asleep);
    assert_int_equal(asleep.n_news, 0);

    start_sleeper(&awake, mine, NULL); /* cancelling is news for a thread that waits */
    assert_int_equal(mb_cancel(session, g.id), MB_OK);
    join_sleeper(&awake);
    assert_int_equal(awake.n_news, 1);
    mb_waiter_close(mine);
    mb_waiter_close(others);
    mb_session_close(session);
    generation_free(&g);
}

/* Two threads on one waiter: each takes one of two pieces of news, although one signal came. */
static void test_threads_share_a_waiter(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 512);
    mb_waiter *waiter = waiter_on(session);
    generation g[2] = {watched_generation(1, 3, waiter), watched_generation(2, 3, waiter)};
    sleeper sleepers[2];
    for (int i = 0; i < 2; i++)
        start_sleeper(&sleepers[i], waiter, NULL);
    pause_a_little();
    for (int i = 0; i < 2; i++)
        generation_submit(&g[i], session);
    session_step(session);
    for (int i = 0; i < 2; i++) {
        join_sleeper(&sleepers[i]);
        assert_int_equal(sleepers[i].n_news, 1);
    }
    assert_int_equal(sleepers[0].news.id + sleepers[1].news.id, g[0].id + g[1].id);
    mb_waiter_close(waiter);
    mb_session_close(session);
    for (int i = 0; i < 2; i++)
        generation_free(&g[i]);
}

static void test_work_wakes_the_stepping_thread(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 512);
    generation g = watched_generation(1, 3, NULL);
    sleeper s;
    start_sleeper(&s, NULL, session);
    pause_a_little();
    assert_false(atomic_load(&s.has_returned));
    generation_submit(&g, session);
    join_sleeper(&s);
    assert_int_equal(s.n_unfinished, 1);
    int n_unfinished = 0; /* there is still work: no wait */
    assert_int_equal(mb_session_wait(session, -1, &n_unfinished), MB_OK);
    assert_int_equal(n_unfinished, 1);
    assert_int_equal(mb_release(session, g.id), MB_OK);
    assert_int_equal(mb_session_wake(session), MB_OK); /* before the wait begins */
    assert_int_equal(mb_session_wait(session, -1, &n_unfinished), MB_OK);
    assert_int_equal(n_unfinished, 0);
    mb_session_close(session);
    generation_free(&g);
}

/* ---- Everything at once ---------------------------------------------------------------------------- */

enum { THREADS = 6, LOOP_SEQUENCES = 24, REQUESTS = 20, MAX_NEW = 8 };

typedef struct crowd {
    mb_session *session;
    generation expected[LOOP_SEQUENCES]; /* by seed */
    atomic_int is_stopping;
    atomic_ullong n_empty_waits;
} crowd;

typedef struct member {
    crowd *crowd;
    int number;
    pthread_t thread;
    const char *problem; /* cmocka's asserts belong to the main thread */
} member;

static void *steps(void *user) {
    member *m = user;
    int n_unfinished;
    while (mb_session_wait(m->crowd->session, -1, &n_unfinished) == MB_OK &&
           !atomic_load(&m->crowd->is_stopping))
        if (n_unfinished > 0 && mb_step(m->crowd->session, NULL) != MB_OK)
            m->problem = "a step failed";
    return NULL;
}

typedef struct answer {
    uint64_t seed, id;
    mb_token tokens[MAX_NEW];
    size_t n_tokens;
} answer;

static int submit(const crowd *c, mb_waiter *waiter, uint64_t seed, answer *a) {
    mb_request request = c->expected[seed].request;
    *a = (answer){.seed = seed};
    request.waiter = waiter;
    request.waiter_user = a;
    return mb_submit(c->session, &request, &a->id) == MB_OK;
}

/* Reads what is there: -1 failed, 0 not over yet, 1 over. */
static int read_answer(const crowd *c, answer *a) {
    size_t n;
    mb_state state;
    if (mb_read(c->session, a->id, a->tokens + a->n_tokens, MAX_NEW - a->n_tokens, &n, &state) != MB_OK)
        return -1;
    a->n_tokens += n;
    if (state == MB_WAITING || state == MB_RUNNING)
        return 0;
    const generation *expected = &c->expected[a->seed];
    int is_right = state == MB_FINISHED_LENGTH && a->n_tokens == MAX_NEW &&
                   memcmp(a->tokens, expected->tokens, sizeof a->tokens) == 0;
    return is_right && mb_release(c->session, a->id) == MB_OK ? 1 : -1;
}

/* A thread per request, each with its waiter. */
static void *serves_one_at_a_time(void *user) {
    member *m = user;
    crowd *c = m->crowd;
    mb_waiter *waiter;
    if (mb_waiter_open(c->session, &waiter) != MB_OK) {
        m->problem = "no waiter";
        return NULL;
    }
    for (int i = 0; i < REQUESTS && !m->problem; i++) {
        answer a;
        int is_over = submit(c, waiter, (uint64_t)(m->number + i) % LOOP_SEQUENCES, &a) ? 0 : -1;
        while (is_over == 0) {
            mb_news news[2];
            size_t n = 0;
            if (mb_wait(waiter, LONG_MS, news, 2, &n) != MB_OK || n > 1 || (n == 1 && news[0].user != &a))
                is_over = -1;
            else if (n == 1)
                is_over = read_answer(c, &a);
            else
                atomic_fetch_add(&c->n_empty_waits, 1);
        }
        if (is_over < 0)
            m->problem = "a request that was served alone went wrong";
    }
    mb_waiter_close(waiter);
    return NULL;
}

/* An event loop: one waiter for all. */
static void *serves_all(void *user) {
    member *m = user;
    crowd *c = m->crowd;
    answer answers[LOOP_SEQUENCES];
    mb_waiter *waiter;
    if (mb_waiter_open(c->session, &waiter) != MB_OK) {
        m->problem = "no waiter";
        return NULL;
    }
    int n_left = LOOP_SEQUENCES;
    for (int i = 0; i < LOOP_SEQUENCES; i++)
        if (!submit(c, waiter, (uint64_t)i, &answers[i]))
            m->problem = "submit failed";
    while (n_left > 0 && !m->problem) {
        mb_news news[5];
        size_t n = 0;
        if (mb_wait(waiter, LONG_MS, news, 5, &n) != MB_OK)
            m->problem = "wait failed";
        atomic_fetch_add(&c->n_empty_waits, n == 0);
        for (size_t i = 0; i < n; i++) {
            int is_over = read_answer(c, news[i].user);
            n_left -= is_over == 1;
            if (is_over < 0)
                m->problem = "a request of the event loop went wrong";
        }
    }
    mb_waiter_close(waiter);
    return NULL;
}

static void test_a_crowd_waits(void **state) {
    (void)state;
    crowd c = {.session = session_with(model, 8, 0, 0, 64 * 64)};
    for (uint64_t i = 0; i < LOOP_SEQUENCES; i++) {
        c.expected[i] = watched_generation(i, MAX_NEW, NULL);
        generation_run_alone(&c.expected[i], c.session);
    }
    member members[THREADS + 2] = {{0}};
    for (int i = 0; i < THREADS + 2; i++) {
        members[i] = (member){.crowd = &c, .number = i};
        void *(*body)(void *) = i == 0 ? steps : i == 1 ? serves_all : serves_one_at_a_time;
        assert_int_equal(pthread_create(&members[i].thread, NULL, body, &members[i]), 0);
    }
    for (int i = 1; i < THREADS + 2; i++)
        pthread_join(members[i].thread, NULL);
    atomic_store(&c.is_stopping, 1);
    assert_int_equal(mb_session_wake(c.session), MB_OK);
    pthread_join(members[0].thread, NULL);
    for (int i = 0; i < THREADS + 2; i++)
        if (members[i].problem)
            fail_msg("%s", members[i].problem);
    assert_int_equal(atomic_load(&c.n_empty_waits), 0); /* nobody was woken for nothing */
    assert_session_idle(c.session);
    mb_session_close(c.session);
    for (int i = 0; i < LOOP_SEQUENCES; i++)
        generation_free(&c.expected[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_news_comes_once_and_to_its_waiter),
        cmocka_unit_test(test_an_end_without_a_token_is_news),
        cmocka_unit_test(test_a_wait_ends_in_time),
        cmocka_unit_test(test_bad_arguments_are_named),
        cmocka_unit_test(test_news_wakes_its_thread_alone),
        cmocka_unit_test(test_threads_share_a_waiter),
        cmocka_unit_test(test_work_wakes_the_stepping_thread),
        cmocka_unit_test(test_a_crowd_waits),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
