/*
 * device.h - where tensors live and work runs: memory, streams, events, graphs, and the op table of that
 * place.
 *
 * The model, the engine and the operator bench see devices through this struct only. Streams belong to who
 * uses them: work on one stream runs in order, work on two runs in any order unless an event says
 * otherwise. Any thread may call any function; one stream, event or graph is used by one thread at a time.
 *
 * "Enqueues" below: the call may return before the work is done. Memory that the work reads or writes must
 * live until the stream was synchronised, or an event recorded behind the work was reached. Failures of
 * enqueued work are told by a later call on the device.
 */
#ifndef MB_DEVICE_H
#define MB_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "moebius/status.h"
#include "ops/op_table.h"

typedef struct mb_device mb_device;
typedef struct mb_event mb_event; /* a point in a stream's work */
typedef struct mb_graph mb_graph; /* work that was captured, to be enqueued again at once */

/* A GPU as its driver tells it at this moment; 0: not known. */
typedef struct mb_device_state {
    double sm_mhz, watts, limit_watts; /* power: drawn, and allowed */
    int watts_are_mean;                /* of the last second: the driver tells no power of this moment */
} mb_device_state;

struct mb_device {
    const char *name;        /* "cpu", or the card's name */
    const mb_ops *ops;       /* may have holes: mb_ops_missing */
    int host_memory;         /* device pointers may be read and written by the CPU */
    int n_sms;               /* streaming multiprocessors; 0: not a GPU */
    double bytes_per_second; /* that reads of the device's memory reach; 0: not known */

    /* ---- Memory ---- */

    mb_status (*allocate)(mb_device *device, size_t n_bytes, void **pointer); /* 256-byte aligned */
    void (*free)(mb_device *device, void *pointer);                           /* NULL allowed */
    /* Host memory that copies to and from the device do not have to wait for. */
    mb_status (*allocate_pinned)(mb_device *device, size_t n_bytes, void **pointer);
    void (*free_pinned)(mb_device *device, void *pointer); /* NULL allowed */
    mb_status (*memory)(mb_device *device, uint64_t *total_bytes, uint64_t *free_bytes);
    void (*state)(mb_device *device,
                  mb_device_state *state); /* NULL: not a GPU. The first call takes long. */

    /* ---- Streams ---- */

    mb_status (*stream_open)(mb_device *device, mb_stream *stream);
    void (*stream_close)(mb_device *device, mb_stream stream);     /* NULL allowed */
    mb_status (*synchronize)(mb_device *device, mb_stream stream); /* waits for all that was enqueued */

    /* Enqueue a copy. */
    mb_status (*upload)(mb_device *device, void *to, const void *from_host, size_t n_bytes, mb_stream stream);
    mb_status (*download)(mb_device *device, void *to_host, const void *from, size_t n_bytes,
                          mb_stream stream);
    /* Enqueues the host's block written again and again; the last time it may be cut off. */
    mb_status (*fill)(mb_device *device, void *to, size_t n_bytes, const void *block, size_t block_bytes,
                      mb_stream stream);

    /* ---- Events ---- */

    mb_status (*event_open)(mb_device *device, int is_timed, mb_event **event);
    void (*event_close)(mb_device *device, mb_event *event); /* NULL allowed */
    /* The event now stands behind all that is in the stream. */
    mb_status (*event_record)(mb_device *device, mb_event *event, mb_stream stream);
    /* Enqueues that an event is recorded; a timed one takes the time. While the stream is captured that becomes
     * part of the graph: each replay does it anew, for event_elapsed and event_synchronize. */
    mb_status (*event_mark)(mb_device *device, mb_event *event, mb_stream stream);
    /* What is enqueued from now on starts when the event was reached. An event that was recorded on a stream
     * that is captured takes the waiting stream into the capture. The graph then has a branch, which the first
     * stream must wait for before the capture ends. */
    mb_status (*event_wait)(mb_device *device, mb_event *event, mb_stream stream);
    mb_status (*event_synchronize)(mb_device *device, mb_event *event); /* the caller waits */
    mb_status (*event_query)(mb_device *device, mb_event *event, int *was_reached);
    /* Microseconds between two timed events, recorded or marked, that were reached. */
    mb_status (*event_elapsed)(mb_device *device, mb_event *from, mb_event *to, double *us);

    /* ---- Graphs: MB_ERR_UNSUPPORTED on the CPU, where work is enqueued plainly ---- */

    /* Until capture_end, what this thread enqueues on the stream is recorded and does not run. capture_end
     * ends the capture in any case; *graph is NULL when it fails. */
    mb_status (*capture_begin)(mb_device *device, mb_stream stream);
    mb_status (*capture_end)(mb_device *device, mb_stream stream, mb_graph **graph);
    mb_status (*replay)(mb_device *device, mb_graph *graph, mb_stream stream); /* enqueues it */
    void (*graph_close)(mb_device *device, mb_graph *graph);                   /* NULL allowed */

    void (*close)(mb_device *device);
};

/* Whether a device will do: MB_OK, or a failure whose sentence says what it lacks. */
typedef mb_status (*mb_device_check)(const mb_device *device);

/* "cpu", "cuda", "cuda:N", or NULL for the best one: the first GPU when it opens and passes the check, else
 * the CPU; a GPU that is there but not used is a warning. check NULL: any device will do. n_threads: CPU
 * threads, 0 for one per usable core. */
mb_status mb_device_open(const char *name, int n_threads, mb_device_check check, mb_device **device);
void mb_device_close(mb_device *device); /* NULL allowed; its streams, events, graphs and memory first */

/* Enqueues the work to be timed. */
typedef mb_status (*mb_device_work)(const void *context, mb_stream stream);

/* Captures the work, which does not run. The capture is ended even when the work fails; the work's
 * failure is the one that is told. *graph is NULL on failure. */
mb_status mb_device_capture(mb_device *device, mb_device_work work, const void *context, mb_stream stream,
                            mb_graph **graph);

/* Runs the work a few times, then n_repeats times, and tells the microseconds of each: on a GPU replays of
 * its graph, with all of L2 written over before each; on the CPU calls by the wall clock. */
mb_status mb_device_time(mb_device *device, mb_device_work work, const void *context, int n_repeats,
                         double *times);

/* The failure to tell when allocate() of `what`, n_bytes of it, gave `status`: for MB_ERR_MEMORY a sentence
 * with what is free and the advice, "lower kv_tokens"; else the sentence that is there, with `what` in front.
 * Returns status. */
mb_status mb_device_no_memory(mb_device *device, mb_status status, const char *what, uint64_t n_bytes,
                              const char *advice);

/* ---- Implementations ---- */

mb_status mb_device_open_cpu(int n_threads, mb_device **device);
/* In builds with CUDA. MB_ERR_NOT_FOUND: the machine has no such GPU, or no driver; any other failure:
 * there is a GPU, but it cannot be used. */
mb_status mb_device_open_cuda(int ordinal, mb_device **device);

/* What mb_device_open does for NULL, with any function that opens a GPU; NULL: none. */
typedef mb_status (*mb_device_opener)(int ordinal, mb_device **device);
mb_status mb_device_open_best(mb_device_opener open_gpu, int n_threads, mb_device_check check,
                              mb_device **device);

/* The public operators (operators.c) run without a device: memory says where it is. */
extern const mb_ops mb_cpu_ops;

/* Builds with CUDA: when `pointer` is a GPU's, *ops is its table and the GPU is made this thread's current
 * one until mb_device_cuda_leave(*former). Else, and without GPU or driver, *ops is NULL and nothing changed.
 * Managed memory is the GPU's, pinned host memory the CPU's. Legal while a stream is captured. */
mb_status mb_device_cuda_enter(const void *pointer, const mb_ops **ops, int *former);
void mb_device_cuda_leave(int former);

#endif
