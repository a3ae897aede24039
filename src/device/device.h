/*
 * device.h - where tensors live and work runs: memory, one stream, copies, and the op table of that place.
 *
 * The model and the engine see devices through this struct only. All copies and operators of a device are
 * issued on its stream and run in order.
 */
#ifndef MB_DEVICE_H
#define MB_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "moebius/status.h"
#include "ops/op_table.h"

typedef struct mb_device mb_device;

struct mb_device {
    const char *name; /* "cpu", or the card's name */
    const mb_ops *ops;
    mb_stream stream;
    int host_memory; /* device pointers may be read and written by the CPU */

    mb_status (*allocate)(mb_device *device, size_t n_bytes, void **pointer); /* 256-byte aligned */
    void (*free)(mb_device *device, void *pointer);
    mb_status (*allocate_pinned)(mb_device *device, size_t n_bytes,
                                 void **pointer); /* host memory for copies */
    void (*free_pinned)(mb_device *device, void *pointer);
    mb_status (*upload)(mb_device *device, void *to, const void *from_host,
                        size_t n_bytes); /* asynchronous */
    mb_status (*download)(mb_device *device, void *to_host, const void *from,
                          size_t n_bytes); /* asynchronous */
    mb_status (*synchronize)(mb_device *device);
    mb_status (*memory)(mb_device *device, uint64_t *total_bytes, uint64_t *free_bytes);
    void (*close)(mb_device *device);
};

/* "cpu", "cuda", "cuda:N", or NULL for the best one there is. n_threads: CPU threads, 0 for one per usable
 * core. */
mb_status mb_device_open(const char *name, int n_threads, mb_device **device);
void mb_device_close(mb_device *device); /* NULL allowed */

/* Implementations, called by mb_device_open. mb_device_open_cuda is present in builds with CUDA and says
 * MB_ERR_NOT_FOUND on a machine without a GPU or driver. */
mb_status mb_device_open_cpu(int n_threads, mb_device **device);
mb_status mb_device_open_cuda(int ordinal, mb_device **device);

/* The public operators (operators.c) run without a device: memory says where it is. */
extern const mb_ops mb_cpu_ops;

/* Builds with CUDA: when `pointer` is a GPU's, *ops is its table and the GPU is made this thread's current
 * one until mb_device_cuda_leave(*former). Else, and without GPU or driver, *ops is NULL and nothing changed.
 * Managed memory is the GPU's, pinned host memory the CPU's. Legal while a stream is captured. */
mb_status mb_device_cuda_enter(const void *pointer, const mb_ops **ops, int *former);
void mb_device_cuda_leave(int former);

#endif
