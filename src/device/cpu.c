/*
 * cpu.c - the CPU as a device: its memory is host memory, copies are memcpy, operators are the references.
 *
 * All of its streams are one pool of threads that lives as long as the device. Work has finished when the
 * call that enqueues it returns. Settings of the process (affinity, signals) are left alone.
 */
#define _GNU_SOURCE /* sched_getaffinity */

#include "base/alloc.h"
#include "base/status.h"
#include "base/threads.h"
#include "device/device.h"
#include "device/host_memory.h"

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const mb_ops mb_cpu_ops = {.name = "cpu",
#define PLAIN(op) .op = mb_##op##_ref,
#define WITH_WORKSPACE(op) .op##_workspace = mb_##op##_ref_workspace, .op = mb_##op##_ref,
                           MB_OPERATORS(PLAIN, WITH_WORKSPACE) MB_TRAINING_OPERATORS(PLAIN, WITH_WORKSPACE)
#undef PLAIN
#undef WITH_WORKSPACE
};

typedef struct cpu_device {
    mb_device base;
    mb_pool *pool; /* what every stream is */
} cpu_device;

/* Work has finished before an event is recorded, so an event is only the time of its recording. */
struct mb_event {
    double us;
};

/* ---- Memory ---------------------------------------------------------------------------------------- */

enum { ALIGNMENT = 256 };

/* mb_malloc_aligned aligns to 64. The caller gets a multiple of 256 inside of the block; the block's own
 * address is kept just below. */
static mb_status cpu_allocate(mb_device *device, size_t n_bytes, void **pointer) {
    (void)device;
    *pointer = NULL;
    char *block = n_bytes <= SIZE_MAX - 2 * ALIGNMENT ? mb_malloc_aligned(n_bytes + ALIGNMENT) : NULL;
    if (!block)
        return mb_fail(MB_ERR_MEMORY, "cpu: %zu bytes could not be allocated", n_bytes);
    char *aligned = block + (ALIGNMENT - (uintptr_t)block % ALIGNMENT); /* at least 64 bytes above block */
    memcpy(aligned - sizeof block, &block, sizeof block);
    *pointer = aligned;
    return MB_OK;
}

static void cpu_free(mb_device *device, void *pointer) {
    (void)device;
    if (!pointer)
        return;
    void *block;
    memcpy(&block, (char *)pointer - sizeof block, sizeof block);
    mb_free_aligned(block);
}

/* ---- Streams, events, graphs ----------------------------------------------------------------------- */

static mb_status cpu_stream_open(mb_device *device, mb_stream *stream) {
    *stream = ((cpu_device *)device)->pool;
    return MB_OK;
}

static void cpu_stream_close(mb_device *device, mb_stream stream) {
    (void)device;
    (void)stream;
}

static mb_status cpu_synchronize(mb_device *device, mb_stream stream) {
    (void)device;
    (void)stream;
    return MB_OK;
}

static mb_status cpu_copy(mb_device *device, void *to, const void *from, size_t n_bytes, mb_stream stream) {
    (void)device;
    (void)stream;
    if (n_bytes > 0)
        memcpy(to, from, n_bytes);
    return MB_OK;
}

static mb_status cpu_fill(mb_device *device, void *to, size_t n_bytes, const void *block, size_t block_bytes,
                          mb_stream stream) {
    (void)device;
    (void)stream;
    for (size_t done = 0; done < n_bytes; done += block_bytes)
        memcpy((char *)to + done, block, n_bytes - done < block_bytes ? n_bytes - done : block_bytes);
    return MB_OK;
}

static mb_status cpu_event_open(mb_device *device, int is_timed, mb_event **event) {
    (void)device;
    (void)is_timed;
    *event = mb_calloc(1, sizeof **event);
    return *event ? MB_OK : mb_fail(MB_ERR_MEMORY, "cpu: no memory for an event");
}

static void cpu_event_close(mb_device *device, mb_event *event) {
    (void)device;
    mb_free(event);
}

static mb_status cpu_event_record(mb_device *device, mb_event *event, mb_stream stream) {
    (void)device;
    (void)stream;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->us = (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
    return MB_OK;
}

static mb_status cpu_event_wait(mb_device *device, mb_event *event, mb_stream stream) {
    (void)device;
    (void)event;
    (void)stream;
    return MB_OK;
}

static mb_status cpu_event_synchronize(mb_device *device, mb_event *event) {
    (void)device;
    (void)event;
    return MB_OK;
}

static mb_status cpu_event_query(mb_device *device, mb_event *event, int *was_reached) {
    (void)device;
    (void)event;
    *was_reached = 1;
    return MB_OK;
}

static mb_status cpu_event_elapsed(mb_device *device, mb_event *from, mb_event *to, double *us) {
    (void)device;
    *us = to->us - from->us;
    return MB_OK;
}

static mb_status no_graphs(void) {
    return mb_fail(MB_ERR_UNSUPPORTED, "cpu: it has no graphs; enqueue the work itself");
}

static mb_status cpu_capture_begin(mb_device *device, mb_stream stream) {
    (void)device;
    (void)stream;
    return no_graphs();
}

static mb_status cpu_capture_end(mb_device *device, mb_stream stream, mb_graph **graph) {
    (void)device;
    (void)stream;
    *graph = NULL;
    return no_graphs();
}

static mb_status cpu_replay(mb_device *device, mb_graph *graph, mb_stream stream) {
    (void)device;
    (void)graph;
    (void)stream;
    return no_graphs();
}

static void cpu_graph_close(mb_device *device, mb_graph *graph) {
    (void)device;
    (void)graph;
}

/* ---- How much memory, how many cores --------------------------------------------------------------- */

/* The first number in a file; 0 when there is none ("max" in cgroup files: no limit). */
static uint64_t read_number(const char *path) {
    unsigned long long number = 0;
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    if (fscanf(file, "%llu", &number) != 1)
        number = 0;
    fclose(file);
    return number;
}

static mb_status cpu_memory(mb_device *device, uint64_t *total_bytes, uint64_t *free_bytes) {
    (void)device;
    return mb_host_memory("", total_bytes, free_bytes);
}

static void cpu_close(mb_device *device) {
    mb_pool_close(((cpu_device *)device)->pool);
    mb_free(device);
}

/* Cores that the scheduler may put us on, at most the container's CPU quota. */
static int usable_cores(void) {
    cpu_set_t set;
    int n =
        sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    long long quota = 0, period = 0;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re"); /* "200000 100000", or "max 100000" */
    if (file) {
        if (fscanf(file, "%lld %lld", &quota, &period) != 2)
            quota = 0;
        fclose(file);
    } else {
        quota = (long long)read_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
        period = (long long)read_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    }
    if (quota > 0 && period > 0 && (quota + period - 1) / period < n)
        n = (int)((quota + period - 1) / period);
    return n < 1 ? 1 : n;
}

mb_status mb_device_open_cpu(int n_threads, mb_device **device) {
    enum { MAX_THREADS = 1024 };
    *device = NULL;
    if (n_threads < 0 || n_threads > MAX_THREADS)
        return mb_fail(MB_ERR_ARGUMENT, "cpu: n_threads is %d, not in 0 .. %d", n_threads, MAX_THREADS);
    mb_pool *pool;
    MB_TRY(mb_pool_open(n_threads > 0 ? n_threads : usable_cores(), &pool));
    cpu_device *cpu = mb_malloc(sizeof *cpu);
    if (!cpu) {
        mb_pool_close(pool);
        return mb_fail(MB_ERR_MEMORY, "cpu: %zu bytes could not be allocated", sizeof *cpu);
    }
    cpu->pool = pool;
    cpu->base = (mb_device){
        .name = "cpu",
        .ops = &mb_cpu_ops,
        .host_memory = 1,
        .allocate = cpu_allocate,
        .free = cpu_free,
        .allocate_pinned = cpu_allocate,
        .free_pinned = cpu_free,
        .memory = cpu_memory,
        .stream_open = cpu_stream_open,
        .stream_close = cpu_stream_close,
        .synchronize = cpu_synchronize,
        .upload = cpu_copy,
        .download = cpu_copy,
        .fill = cpu_fill,
        .event_open = cpu_event_open,
        .event_close = cpu_event_close,
        .event_record = cpu_event_record,
        .event_mark = cpu_event_record,
        .event_wait = cpu_event_wait,
        .event_synchronize = cpu_event_synchronize,
        .event_query = cpu_event_query,
        .event_elapsed = cpu_event_elapsed,
        .capture_begin = cpu_capture_begin,
        .capture_end = cpu_capture_end,
        .replay = cpu_replay,
        .graph_close = cpu_graph_close,
        .close = cpu_close,
    };
    *device = &cpu->base;
    return MB_OK;
}
