/*
 * slow_device.h - a device that behaves like a GPU on a machine without one: what is enqueued runs later,
 * on a thread of its stream, with the CPU's operators. Work can be captured as a graph, of one stream or of
 * several, and held back. Memory is limited.
 *
 * So an engine that reads results too early, changes inputs too early or frees memory too early shows.
 */
#ifndef TESTS_SUPPORT_SLOW_DEVICE_H
#define TESTS_SUPPORT_SLOW_DEVICE_H

#include "device/device.h"

typedef struct slow_device slow_device;

/* total_bytes: of its memory. */
slow_device *slow_device_open(uint64_t total_bytes);
void slow_device_close(slow_device *slow); /* fails the test when a stream, event, graph or memory is left */

mb_device *slow_device_of(slow_device *slow);

/* Until slow_device_go no more work begins. */
void slow_device_hold(slow_device *slow);
void slow_device_go(slow_device *slow);
int slow_device_has_work(slow_device *slow); /* that has not run */
void slow_device_wait_for_work(slow_device *slow);

/* Events that were recorded; the engine records one behind each step. */
uint64_t slow_device_n_records(slow_device *slow);
void slow_device_wait_for_records(slow_device *slow, uint64_t n);
/* Lets the stream of the n-th record, past or to come, work up to there: what is behind it does not begin
 * before slow_device_go. Ends a hold. */
void slow_device_hold_after(slow_device *slow, uint64_t n);

/* The next replay of a graph with a second stream works in its first stream up to where the second one begins: what is
 * behind it does not begin before slow_device_go. */
void slow_device_hold_at_fork(slow_device *slow);

/* The next operator that runs fails: enqueueing it succeeds, waiting for it does not. */
void slow_device_fail_next(slow_device *slow);
/* The first operator behind the n-th record cannot be enqueued. */
void slow_device_refuse_after(slow_device *slow, uint64_t n);

uint64_t slow_device_n_replays(slow_device *slow); /* of graphs */

#endif
