/*
 * threads.h - a pool of threads that share the items of one job, for jobs as short as ten microseconds.
 *
 * The caller works too, and waits only for items that a worker has begun. So a worker that gets no core, or
 * wakes up late, delays nobody: it finds no item left. Running a job allocates nothing.
 *
 * Any number of threads may call mb_pool_run on one pool, also from within a job. While the pool is busy
 * with one job, callers with other jobs run theirs alone. A child made by fork() must not use its parent's
 * pools.
 */
#ifndef MB_BASE_THREADS_H
#define MB_BASE_THREADS_H

#include "base/status.h"

#include <stdint.h>

typedef struct mb_pool mb_pool;

typedef void (*mb_pool_fn)(const void *context, int64_t item);

/* n_threads >= 1 counts the caller. When the system refuses some of the threads, the pool is smaller and
 * a warning is logged; the only failure is MB_ERR_MEMORY. Workers block all signals. */
mb_status mb_pool_open(int n_threads, mb_pool **pool);
void mb_pool_close(mb_pool *pool); /* NULL allowed; no job may be running */

/* Calls fn(context, item) once for every item in 0 .. n_items - 1, on any thread and in any order. When
 * mb_pool_run returns, all calls have returned and what they wrote is visible. n_threads: how many
 * threads, the caller included, the job is worth waking. pool NULL: the caller alone. */
void mb_pool_run(mb_pool *pool, int n_threads, int64_t n_items, mb_pool_fn fn, const void *context);

#endif
