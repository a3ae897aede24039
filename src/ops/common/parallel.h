/*
 * parallel.h - how many threads a CPU operator takes.
 *
 * The stream of a CPU device points to an mb_cpu_stream. Every operator opens one parallel region, and only
 * when there is enough work for it: starting and joining threads costs microseconds, and milliseconds when
 * other programs hold the cores, while a whole operator takes tens of microseconds when one token of a small
 * model is decoded. Thread counts never change results.
 */
#ifndef MB_OPS_COMMON_PARALLEL_H
#define MB_OPS_COMMON_PARALLEL_H

#include "moebius/ops.h"

#ifdef _OPENMP
#include <omp.h>
#endif

typedef struct mb_cpu_stream {
    int32_t n_threads;
} mb_cpu_stream;

/* Multiply-adds (or work of about their cost) that are worth one more thread: about 0.2 ms. */
enum { MB_WORK_PER_THREAD = 1 << 21 };

/* stream NULL: as many threads as OpenMP takes by default. */
static inline int mb_cpu_threads(mb_stream stream, double work) {
    double wanted = 1 + work / MB_WORK_PER_THREAD;
#ifdef _OPENMP
    int most = stream ? ((const mb_cpu_stream *)stream)->n_threads : omp_get_max_threads();
#else
    int most = 1;
    (void)stream;
#endif
    return wanted < most ? (int)wanted : most;
}

#endif
