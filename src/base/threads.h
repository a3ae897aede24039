/*
 * threads.h - a pool of threads that share the items of one job, for jobs as short as ten microseconds.
 *
 * The caller works too, and waits only for items that a worker has begun: a worker that is not on a core, or
 * wakes up late, finds nothing left to do and delays nobody. Running a job allocates nothing.
 *
 * Any number of threads may call mb_pool_run on one pool, also from within a job: while the pool is busy with
 * one job, the callers of others run theirs alone. A child made by fork() must not use its parent's pools.
 */
#ifndef MB_BASE_THREADS_H
#define MB_BASE_THREADS_H

#include "base/status.h"

#include <stdint.h>

typedef struct mb_pool mb_pool;

typedef void (*mb_pool_fn)(const void *context, int64_t item);

/* n_threads >= 1 counts the caller. When the system refuses some of the threads, the pool is smaller and a
 * warning is logged; it fails with MB_ERR_MEMORY only. Workers block all signals. */
mb_status mb_pool_open(int n_threads, mb_pool **pool);
void mb_pool_close(mb_pool *pool); /* NULL allowed; no job may be running */

/* Calls fn(context, item) once for every item in 0 .. n_items - 1, on any thread in any order; all have
 * returned when this returns, and what they wrote is visible. n_threads: how many the job is worth; as many
 * are woken. pool NULL: the caller alone. */
void mb_pool_run(mb_pool *pool, int n_threads, int64_t n_items, mb_pool_fn fn, const void *context);

#endif
