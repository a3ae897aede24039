/*
 * weight_read.h - carries out a weight plan: many threads read pieces of the files, and each piece goes
 * straight to its place (host memory) or through a pinned buffer that the calling thread uploads.
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
