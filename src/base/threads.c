/*
 * threads.c - the pool, without locks: a thread that loses its core in here makes nobody wait.
 *
 * A job's items are cut into ranges. .unclaimed counts the ranges that nobody has begun, and a thread claims
 * one by taking it from n to n - 1. Only then does it look at the job: as long as a claimed range is not
 * counted off .unfinished, mb_pool_run does not return, so the job is the one that the range belongs to,
 * however long ago the thread woke up. With no job .unclaimed is 0, and idle workers sleep on that value.
 *
 * Sleepers spin first, since jobs follow each other within microseconds while a model runs. A wake-up that
 * comes late or never costs speed only, for the caller runs all that is left.
 */
#include "base/threads.h"

#include "base/alloc.h"
#include "base/log.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    RANGES_PER_THREAD = 8, /* evens out items of unequal cost, and threads that start late */
    MAX_THREADS = 1024,
    STACK_BYTES = 1 << 20,
    N_SPINS = 1000, /* pauses of 15 to 50 ns before a thread sleeps */
    CACHE_LINE = 64,
};

static const uint32_t CLOSED = UINT32_MAX; /* in .unclaimed: workers end */

struct mb_pool {
    atomic_flag busy; /* one caller has the fields of the job, which whoever claimed a range reads */
    mb_pool_fn fn;
    const void *context;
    int64_t n_items;
    uint32_t n_ranges;

    _Alignas(CACHE_LINE) _Atomic uint32_t unclaimed;
    _Alignas(CACHE_LINE) _Atomic uint32_t unfinished; /* ranges whose items have not all returned */
    atomic_int caller_sleeps;
    atomic_int n_asleep; /* workers */
    int n_workers;
    pthread_t workers[];
};

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Sleeps if *word still is `value`; may return early. */
static void sleep_on(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(_Atomic uint32_t *word, int n_threads) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n_threads, NULL, NULL, 0);
}

/* ---- Both sides of a job ------------------------------------------------------------------------------ */

static int claim_range(mb_pool *pool) {
    uint32_t unclaimed = atomic_load(&pool->unclaimed);
    while (unclaimed != 0 && unclaimed != CLOSED)
        if (atomic_compare_exchange_weak(&pool->unclaimed, &unclaimed, unclaimed - 1))
            return (int)unclaimed;
    return 0;
}

/* Runs ranges until none is unclaimed; how many it ran. The first n_items % n_ranges have one item more. */
static uint32_t run_ranges(mb_pool *pool) {
    uint32_t n_run = 0;
    for (int claimed; (claimed = claim_range(pool)) > 0; n_run++) {
        int64_t range = pool->n_ranges - claimed;
        int64_t length = pool->n_items / pool->n_ranges, n_longer = pool->n_items % pool->n_ranges;
        int64_t item = range * length + (range < n_longer ? range : n_longer);
        for (int64_t end = item + length + (range < n_longer); item < end; item++)
            pool->fn(pool->context, item);
    }
    return n_run;
}

/* ---- Workers ------------------------------------------------------------------------------------------ */

/* 0 when the pool is being closed. */
static int wait_for_job(mb_pool *pool) {
    uint32_t unclaimed = 0;
    for (int i = 0; i < N_SPINS && (unclaimed = atomic_load(&pool->unclaimed)) == 0; i++)
        pause_briefly();
    if (unclaimed == 0) {
        atomic_fetch_add(&pool->n_asleep, 1);
        while ((unclaimed = atomic_load(&pool->unclaimed)) == 0)
            sleep_on(&pool->unclaimed, 0);
        atomic_fetch_sub(&pool->n_asleep, 1);
    }
    return unclaimed != CLOSED;
}

static void *work(void *argument) {
    mb_pool *pool = argument;
    while (wait_for_job(pool)) {
        uint32_t n_run = run_ranges(pool);
        if (n_run > 0 && atomic_fetch_sub(&pool->unfinished, n_run) == n_run &&
            atomic_load(&pool->caller_sleeps))
            wake(&pool->unfinished, 1);
    }
    return NULL;
}

/* ---- The caller --------------------------------------------------------------------------------------- */

static void wait_for_workers(mb_pool *pool) {
    for (int i = 0; i < N_SPINS && atomic_load(&pool->unfinished) != 0; i++)
        pause_briefly();
    atomic_store(&pool->caller_sleeps, 1);
    for (uint32_t unfinished; (unfinished = atomic_load(&pool->unfinished)) != 0;)
        sleep_on(&pool->unfinished, unfinished);
    atomic_store(&pool->caller_sleeps, 0);
}

/* Sees to it that n workers are awake. */
static void wake_workers(mb_pool *pool, int n) {
    int n_asleep = atomic_load(&pool->n_asleep), n_missing = n - (pool->n_workers - n_asleep);
    if (n_asleep > 0 && n_missing > 0)
        wake(&pool->unclaimed, n_missing);
}

static void run_alone(int64_t n_items, mb_pool_fn fn, const void *context) {
    for (int64_t item = 0; item < n_items; item++)
        fn(context, item);
}

void mb_pool_run(mb_pool *pool, int n_threads, int64_t n_items, mb_pool_fn fn, const void *context) {
    int most = pool ? pool->n_workers + 1 : 1;
    n_threads = n_threads < most ? n_threads : most;
    if (n_threads <= 1 || n_items <= 1 || atomic_flag_test_and_set(&pool->busy)) {
        run_alone(n_items, fn, context);
        return;
    }
    int64_t n_ranges = n_threads * RANGES_PER_THREAD;
    pool->fn = fn;
    pool->context = context;
    pool->n_items = n_items;
    pool->n_ranges = (uint32_t)(n_items < n_ranges ? n_items : n_ranges);
    atomic_store(&pool->unfinished, pool->n_ranges);
    atomic_store(&pool->unclaimed, pool->n_ranges);
    wake_workers(pool, n_threads - 1);
    uint32_t n_run = run_ranges(pool);
    if (atomic_fetch_sub(&pool->unfinished, n_run) != n_run)
        wait_for_workers(pool);
    atomic_flag_clear(&pool->busy);
}

/* ---- Opening and closing ------------------------------------------------------------------------------ */

/* Signals stay with the program's own threads. A stack of the usual 8 MiB for each of many threads would use
 * up a limited address space; operators need some 20 KiB. */
static void start_workers(mb_pool *pool, int n_wanted) {
    sigset_t all, former;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0)
        return;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &former);
    while (pool->n_workers < n_wanted &&
           pthread_create(&pool->workers[pool->n_workers], &attributes, work, pool) == 0)
        pool->n_workers++;
    pthread_sigmask(SIG_SETMASK, &former, NULL);
    pthread_attr_destroy(&attributes);
    if (pool->n_workers < n_wanted)
        mb_log(MB_LOG_WARN, "threads: the system gives %d threads, not %d; going on with these",
               pool->n_workers + 1, n_wanted + 1);
}

mb_status mb_pool_open(int n_threads, mb_pool **pool) {
    *pool = NULL;
    if (n_threads < 1 || n_threads > MAX_THREADS)
        return mb_fail(MB_ERR_ARGUMENT, "threads: n_threads is %d, not in 1 .. %d", n_threads, MAX_THREADS);
    size_t n_bytes = sizeof **pool + (size_t)(n_threads - 1) * sizeof(pthread_t);
    mb_pool *opened = mb_malloc_aligned(n_bytes);
    if (!opened)
        return mb_fail(MB_ERR_MEMORY, "threads: %zu bytes could not be allocated", n_bytes);
    *opened = (mb_pool){.busy = ATOMIC_FLAG_INIT};
    start_workers(opened, n_threads - 1);
    *pool = opened;
    return MB_OK;
}

void mb_pool_close(mb_pool *pool) {
    if (!pool)
        return;
    atomic_store(&pool->unclaimed, CLOSED);
    wake(&pool->unclaimed, MAX_THREADS);
    for (int i = 0; i < pool->n_workers; i++)
        pthread_join(pool->workers[i], NULL);
    mb_free_aligned(pool);
}
