/*
 * timing.h - a place to time one operator in: memory, and the median of repeated runs.
 *
 * Unlike an mb_device it needs no complete op table: the operators of moebius/ops.h are called by themselves.
 */
#ifndef MB_DEVICE_TIMING_H
#define MB_DEVICE_TIMING_H

#include <stddef.h>

#include "moebius/ops.h"

typedef struct mb_timing mb_timing;

/* Enqueues the work on the stream. */
typedef mb_status (*mb_timing_fn)(const void *context, mb_stream stream);

struct mb_timing {
    const char *name;        /* "cpu", or the card's name */
    int n_repeats;           /* that a median wants here */
    double bytes_per_second; /* that the card reads, as floors count; 0: no floor */

    mb_status (*allocate)(mb_timing *timing, size_t n_bytes, void **pointer); /* 256-byte aligned */
    void (*free)(mb_timing *timing, void *pointer);
    /* Fills memory with the host's block, again and again. */
    mb_status (*fill)(mb_timing *timing, void *to, size_t n_bytes, const void *block, size_t block_bytes);
    mb_status (*download)(mb_timing *timing, void *to_host, const void *from, size_t n_bytes);
    /* Runs it a few times, then n_repeats times and tells the microseconds of each: on a GPU replays of its
     * graph, with all of L2 written over in front of each. */
    mb_status (*time)(mb_timing *timing, mb_timing_fn function, const void *context, int n_repeats,
                      double *times);
    void (*close)(mb_timing *timing);
};

/* As mb_device_open: "cpu", "cuda", "cuda:N", or NULL for the best one there is. */
mb_status mb_timing_open(const char *name, int n_threads, mb_timing **timing);

/* In builds with CUDA. */
mb_status mb_timing_open_cuda(int ordinal, mb_timing **timing);

#endif
