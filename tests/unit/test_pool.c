/* The thread pool: every item once, from any caller, also when a worker wakes up in a later job. */
#define _GNU_SOURCE /* pthread_setattr_default_np */

#include "base/threads.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

/* A job that lives on its caller's stack and is poisoned when it is over. */
enum { ALIVE = 0x6a6f62, DEAD = 0xdead };

typedef struct counting_job {
    int alive;
    int64_t n_items;
    int *counts; /* plain memory: two threads at one item are a race that the sanitizer reports */
    atomic_int *n_wrong;
} counting_job;

static void count(const void *context, int64_t item) {
    const counting_job *job = context;
    if (job->alive != ALIVE || item < 0 || item >= job->n_items)
        atomic_fetch_add(job->n_wrong, 1);
    else
        job->counts[item]++;
}

/* Runs one job; how many items were not run exactly once. */
static int run_counting(mb_pool *pool, int n_threads, int64_t n_items, int *counts) {
    atomic_int n_wrong = 0;
    counting_job job = {ALIVE, n_items, counts, &n_wrong};
    memset(counts, 0, (size_t)n_items * sizeof *counts);
    mb_pool_run(pool, n_threads, n_items, count, &job);
    job.alive = DEAD;
    for (int64_t i = 0; i < n_items; i++)
        n_wrong += counts[i] != 1;
    return n_wrong;
}

static mb_pool *open_pool(int n_threads) {
    mb_pool *pool = NULL;
    assert_int_equal(mb_pool_open(n_threads, &pool), MB_OK);
    assert_non_null(pool);
    return pool;
}

static void test_every_item_once(void **state) {
    (void)state;
    enum { MOST = 100003 };
    static int counts[MOST];
    for (int n_threads = 1; n_threads <= 5; n_threads++) {
        mb_pool *pool = open_pool(n_threads);
        for (int64_t n = 0; n <= 130; n++)
            for (int wanted = 0; wanted <= n_threads + 1; wanted++)
                assert_int_equal(run_counting(pool, wanted, n, counts), 0);
        for (int64_t n = 131; n <= MOST; n = n * 3 + 1)
            assert_int_equal(run_counting(pool, n_threads, n, counts), 0);
        assert_int_equal(run_counting(pool, INT32_MAX, MOST, counts), 0);
        mb_pool_close(pool);
    }
    assert_int_equal(run_counting(NULL, 4, MOST, counts), 0);
    mb_pool_close(NULL);
}

/* Jobs of changing size follow each other so closely that workers wake up in a later one. */
static void test_many_tiny_jobs(void **state) {
    (void)state;
    int counts[24];
    mb_pool *pool = open_pool(3);
    for (int i = 0; i < 100000; i++)
        assert_int_equal(run_counting(pool, 2 + i % 2, 2 + i % 23, counts), 0);
    mb_pool_close(pool);
}

typedef struct caller {
    pthread_t thread;
    mb_pool *pool;
    int n_wrong;
} caller;

static void *call_many_times(void *argument) {
    caller *self = argument;
    int counts[64];
    for (int i = 0; i < 3000; i++)
        self->n_wrong += run_counting(self->pool, 3, 1 + i % 64, counts);
    return NULL;
}

static void test_concurrent_callers(void **state) {
    (void)state;
    caller callers[4];
    mb_pool *pool = open_pool(3);
    for (int i = 0; i < 4; i++) {
        callers[i] = (caller){.pool = pool};
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call_many_times, &callers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(callers[i].thread, NULL);
        assert_int_equal(callers[i].n_wrong, 0);
    }
    mb_pool_close(pool);
}

typedef struct outer_job {
    mb_pool *pool;
    atomic_int *n_wrong;
} outer_job;

static void run_inner(const void *context, int64_t item) {
    const outer_job *job = context;
    int counts[40];
    atomic_fetch_add(job->n_wrong, run_counting(job->pool, 3, 1 + item % 40, counts));
}

static void test_nested(void **state) {
    (void)state;
    atomic_int n_wrong = 0;
    mb_pool *pool = open_pool(3);
    mb_pool_run(pool, 3, 500, run_inner, &(outer_job){pool, &n_wrong});
    assert_int_equal(n_wrong, 0);
    mb_pool_close(pool);
}

/* Items that wait for each other: each needs a thread of its own. */
typedef struct meeting {
    atomic_int *n_present;
    int n_expected;
    atomic_int *n_alone, *n_open_to_signals;
    pthread_t caller;
} meeting;

static void sleep_milliseconds(long n) {
    nanosleep(&(struct timespec){0, n * 1000000}, NULL);
}

static void meet(const void *context, int64_t item) {
    const meeting *m = context;
    (void)item;
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    if (!pthread_equal(pthread_self(), m->caller) && !sigismember(&blocked, SIGINT))
        atomic_fetch_add(m->n_open_to_signals, 1);
    atomic_fetch_add(m->n_present, 1);
    for (int waited = 0; atomic_load(m->n_present) < m->n_expected; waited++) {
        if (waited == 20000) {
            atomic_fetch_add(m->n_alone, 1);
            return;
        }
        sleep_milliseconds(1);
    }
}

static void test_threads_come(void **state) {
    (void)state;
    enum { N_THREADS = 4 };
    mb_pool *pool = open_pool(N_THREADS);
    for (int i = 0; i < 60; i++) {
        atomic_int n_present = 0, n_alone = 0, n_open_to_signals = 0;
        meeting m = {&n_present, 2 + i % (N_THREADS - 1), &n_alone, &n_open_to_signals, pthread_self()};
        if (i % 2)
            sleep_milliseconds(2); /* the workers have gone to sleep */
        mb_pool_run(pool, m.n_expected, m.n_expected, meet, &m);
        assert_int_equal(n_alone, 0);
        assert_int_equal(n_open_to_signals, 0);
    }
    mb_pool_close(pool);
}

static void test_open_and_close(void **state) {
    (void)state;
    int counts[50];
    mb_pool *pool = NULL;
    for (int i = 0; i < 200; i++) { /* workers not yet running, running, spinning, asleep */
        pool = open_pool(1 + i % 4);
        if (i % 3)
            assert_int_equal(run_counting(pool, 4, 50, counts), 0);
        if (i % 20 == 0)
            sleep_milliseconds(2);
        mb_pool_close(pool);
    }
    assert_int_equal(mb_pool_open(0, &pool), MB_ERR_ARGUMENT);
    assert_null(pool);
    assert_int_equal(mb_pool_open(100000, &pool), MB_ERR_ARGUMENT);
    assert_null(pool);
}

/* No room for a worker's stack: the pool is the caller alone. */
static void test_refused_threads(void **state) {
    (void)state;
    int counts[50];
    pthread_attr_t normal, huge;
    assert_int_equal(pthread_getattr_default_np(&normal), 0);
    assert_int_equal(pthread_attr_init(&huge), 0);
    assert_int_equal(pthread_attr_setstacksize(&huge, (size_t)1 << 50), 0);
    assert_int_equal(pthread_setattr_default_np(&huge), 0);
    mb_pool *pool = NULL;
    mb_status status = mb_pool_open(4, &pool);
    assert_int_equal(pthread_setattr_default_np(&normal), 0);
    assert_int_equal(status, MB_OK);
    assert_int_equal(run_counting(pool, 4, 50, counts), 0);
    mb_pool_close(pool);
    pthread_attr_destroy(&huge);
    pthread_attr_destroy(&normal);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_item_once),    cmocka_unit_test(test_many_tiny_jobs),
        cmocka_unit_test(test_concurrent_callers), cmocka_unit_test(test_nested),
        cmocka_unit_test(test_threads_come),       cmocka_unit_test(test_open_and_close),
        cmocka_unit_test(test_refused_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
