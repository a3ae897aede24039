/*
 * weight_read.h - carries out a weight plan. Threads read pieces of the files. In host memory a piece is read
 * straight to its place; for a GPU it is read to a pinned buffer, which the calling thread uploads.
 *
 *     workers:  take a piece -> wait for a free buffer -> pread -> ready
 *     caller:   take what is ready -> upload all of it -> synchronize -> buffers are free again -> progress
 *
 * Only the calling thread touches the device and calls `progress`.
 */
#ifndef MB_MODEL_WEIGHT_READ_H
#define MB_MODEL_WEIGHT_READ_H

#include "model/weights/weight_plan.h"

/* memory: plan->n_bytes of the device. */
mb_status mb_weight_plan_read(const mb_weight_plan *plan, const mb_checkpoint *checkpoint, mb_device *device,
                              void *memory, int n_threads, mb_progress_fn progress, void *progress_user);

#endif
