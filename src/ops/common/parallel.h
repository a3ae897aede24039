/*
 * parallel.h - how a CPU operator shares its work among threads.
 *
 * The stream of a CPU device is its thread pool. Operators cut their work into items whose results do not
 * depend on each other, so neither the number of threads nor the order changes a bit of them.
 */
#ifndef MB_OPS_COMMON_PARALLEL_H
#define MB_OPS_COMMON_PARALLEL_H

#include "base/threads.h"
#include "moebius/ops.h"

/* Multiply-adds (or work of about their cost) that are worth one more thread: some 10 microseconds. */
enum { MB_WORK_PER_THREAD = 1 << 17 };

/* fn(context, item) for every item; `work` is that of all of them. stream NULL: on the calling thread. */
static inline void mb_parallel_for(mb_stream stream, double work, int64_t n_items, mb_pool_fn fn,
                                   const void *context) {
    double worth = 1 + work / MB_WORK_PER_THREAD;
    mb_pool_run(stream, worth < INT32_MAX ? (int)worth : INT32_MAX, n_items, fn, context);
}

#endif
