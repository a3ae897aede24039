/*
 * trace.h - MOEBIUS_TRACE=dir writes every operator's output of every step as dir/SSSSSS-LL-name.npy (fp32),
 * so that two backends, or ours and another implementation, can be compared operator by operator with numpy.
 * The environment is read once, at the first step.
 */
#ifndef MB_MODEL_TRACE_H
#define MB_MODEL_TRACE_H

#include "device/device.h"

int mb_trace_is_on(void);

/* Starts the next step: file names carry its number. */
void mb_trace_step(void);

/* Waits for the stream and writes data [rows, cols]; layer -1 is for what lies outside of the layers. A file
 * that cannot be written is a warning, not a failure. Does nothing when tracing is off. */
void mb_trace(mb_device *device, mb_stream stream, int layer, const char *name, const void *data,
              mb_dtype dtype, int64_t rows, int64_t cols);

#endif
