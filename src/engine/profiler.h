/*
 * profiler.h - times and counts the operators of steps: an op table around the device's, whose entries mark
 * an event before and after each call and keep what the call must move and compute.
 *
 * Nobody but the runner knows of it. The runner gives the forward pass the profiler's table for the time of
 * mb_profiler_run. One step is in a profiler at a time.
 */
#ifndef MB_ENGINE_PROFILER_H
#define MB_ENGINE_PROFILER_H

#include "model/qwen3_moe.h"
#include "moebius/profile.h"

typedef struct mb_profiler mb_profiler;

/* The step's input arrays: where the device has them, and the same bytes on the host. */
typedef struct mb_profiler_inputs {
    const char *on_device, *on_host;
    size_t n_bytes;
} mb_profiler_inputs;

/* For steps of this forward. On failure *profiler is NULL. */
mb_status mb_profiler_open(mb_forward *forward, mb_profiler **profiler);
void mb_profiler_close(mb_profiler *profiler); /* NULL allowed; no step of it may be in flight */

/* Enqueues the work of a step, as a graph that lives until the step was collected, or plainly. `work` calls
 * the operators of forward->ops. After a failure mb_profiler_drop is called. */
mb_status mb_profiler_run(mb_profiler *profiler, const mb_profiler_inputs *inputs, int as_graph,
                          mb_device_work work, const void *context, mb_stream stream);

/* Adds the step that was run, if one was: the device has reached its end. host_us: mb_profile.host_us. */
mb_status mb_profiler_collect(mb_profiler *profiler);
void mb_profiler_drop(mb_profiler *profiler); /* the step failed; nothing of it is enqueued any more */
/* What the host took for a step. */
void mb_profiler_add_host(mb_profiler *profiler, double us);

void mb_profiler_read(const mb_profiler *profiler, mb_profile *profile);

#endif
