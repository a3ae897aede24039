#include "support/slow_device.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/status.h"

enum { MAX_ARGS_BYTES = 512, HEADER_BYTES = 256, LAST_RECORDS = 64 };

typedef struct stream stream;

/* One piece of work. An operator's arguments are copied, as a kernel's are at its launch. */
typedef struct work {
    struct work *next;
    mb_status (*run)(struct work *work);
    union {
        max_align_t alignment;
        char bytes[MAX_ARGS_BYTES];
    } args;
    mb_moe_route_args route; /* of moe_forward: what its arguments point at */
    void *to, *workspace;
    const void *from;
    size_t n_bytes, workspace_bytes, block_bytes;
    stream *awaited; /* begins when this stream has done n_awaited pieces; in a graph: of the graph's */
    uint64_t n_awaited;
    stream *captured_on; /* of a graph's work */
    int is_operator, is_mark;
} work;

struct stream {
    slow_device *slow;
    pthread_t thread;
    work *first, *last;
    uint64_t n_enqueued, n_done;
    int in_capture;
    uint64_t n_captured,
        n_joined;      /* pieces in the capture; of them, what the capture's first stream waits for */
    uint64_t n_before; /* pieces when the replay began that is being enqueued */
    int stop;
};

struct mb_event {
    stream *stream;
    uint64_t number; /* of the last piece of work before it; of the capture's when in_capture */
    int in_capture;
    double us; /* when it was marked */
};

struct mb_graph {
    stream *origin; /* where the capture began */
    work *first, *last;
};

struct slow_device {
    mb_device base;
    mb_device *cpu;
    mb_ops ops;
    pthread_mutex_t lock; /* guards all below, and the streams */
    pthread_cond_t changed;
    int is_held, fails_next;
    int n_streams, n_events, n_graphs;
    mb_graph *captured; /* the work of streams that are in_capture goes there */
    int holds_at_fork;
    uint64_t n_replays, n_records;
    uint64_t holds_after, refuses_after; /* a number of records, 0: never */
    mb_event records[LAST_RECORDS];      /* the n-th at n % LAST_RECORDS */
    const stream *limited;               /* begins no work behind its first n_limit pieces */
    uint64_t n_limit;
    uint64_t n_waiting; /* pieces of work that have not run, on all streams */
    uint64_t total_bytes, used_bytes;
    mb_status failure; /* of work on any stream, the first one; its sentence: */
    char sentence[512];
};

static slow_device *self(mb_device *device) {
    return (slow_device *)(void *)device;
}

/* ---- Memory: limited, and each piece knows its size ------------------------------------------------ */

static mb_status slow_allocate(mb_device *device, size_t n_bytes, void **pointer) {
    slow_device *slow = self(device);
    *pointer = NULL;
    pthread_mutex_lock(&slow->lock);
    int fits = n_bytes <= slow->total_bytes - slow->used_bytes;
    if (fits)
        slow->used_bytes += n_bytes;
    pthread_mutex_unlock(&slow->lock);
    if (!fits)
        return mb_fail(MB_ERR_MEMORY, "slow device: %zu bytes", n_bytes);
    char *block = aligned_alloc(HEADER_BYTES, HEADER_BYTES + (n_bytes + 255) / 256 * 256);
    if (!block)
        return mb_fail(MB_ERR_MEMORY, "slow device: the machine has no %zu bytes", n_bytes);
    memset(block, 0xAB, HEADER_BYTES + n_bytes);
    memcpy(block, &n_bytes, sizeof n_bytes);
    *pointer = block + HEADER_BYTES;
    return MB_OK;
}

static void slow_free(mb_device *device, void *pointer) {
    slow_device *slow = self(device);
    size_t n_bytes;
    if (!pointer)
        return;
    char *block = (char *)pointer - HEADER_BYTES;
    memcpy(&n_bytes, block, sizeof n_bytes);
    memset(block, 0xCD, HEADER_BYTES + n_bytes);
    free(block);
    pthread_mutex_lock(&slow->lock);
    slow->used_bytes -= n_bytes;
    pthread_mutex_unlock(&slow->lock);
}

static mb_status slow_allocate_pinned(mb_device *device, size_t n_bytes, void **pointer) {
    return self(device)->cpu->allocate_pinned(self(device)->cpu, n_bytes, pointer);
}

static void slow_free_pinned(mb_device *device, void *pointer) {
    self(device)->cpu->free_pinned(self(device)->cpu, pointer);
}

static mb_status slow_memory(mb_device *device, uint64_t *total_bytes, uint64_t *free_bytes) {
    slow_device *slow = self(device);
    pthread_mutex_lock(&slow->lock);
    *total_bytes = slow->total_bytes;
    *free_bytes = slow->total_bytes - slow->used_bytes;
    pthread_mutex_unlock(&slow->lock);
    return MB_OK;
}

/* ---- Streams --------------------------------------------------------------------------------------- */

static int may_begin(const stream *s) {
    int is_beyond = s == s->slow->limited && s->n_done >= s->slow->n_limit;
    return s->first && !s->slow->is_held && !is_beyond &&
           (!s->first->awaited || s->first->awaited->n_done >= s->first->n_awaited);
}

static mb_status run(slow_device *slow, work *w) {
    pthread_mutex_lock(&slow->lock);
    int fails = w->is_operator && slow->fails_next;
    if (fails)
        slow->fails_next = 0;
    pthread_mutex_unlock(&slow->lock);
    return fails ? mb_fail(MB_ERR_DEVICE, "slow device: an operator fell over") : w->run(w);
}

static void *stream_body(void *user) {
    stream *s = user;
    slow_device *slow = s->slow;
    pthread_mutex_lock(&slow->lock);
    for (;;) {
        while (!may_begin(s) && !(s->stop && !s->first))
            pthread_cond_wait(&slow->changed, &slow->lock);
        if (!s->first)
            break;
        work *w = s->first;
        pthread_mutex_unlock(&slow->lock);
        mb_status status = run(slow, w);
        pthread_mutex_lock(&slow->lock);
        if (status != MB_OK && slow->failure == MB_OK) {
            slow->failure = status;
            snprintf(slow->sentence, sizeof slow->sentence, "%s", mb_last_error());
        }
        s->first = w->next;
        if (!s->first)
            s->last = NULL;
        s->n_done++;
        slow->n_waiting--;
        free(w);
        pthread_cond_broadcast(&slow->changed);
    }
    pthread_mutex_unlock(&slow->lock);
    return NULL;
}

static void append(work **first, work **last, work *w) {
    if (*last)
        (*last)->next = w;
    else
        *first = w;
    *last = w;
}

static mb_status enqueue(mb_stream to, const work *what) {
    stream *s = to;
    slow_device *slow = s->slow;
    work *w = malloc(sizeof *w);
    if (!w)
        return mb_fail(MB_ERR_MEMORY, "slow device: no memory for work");
    *w = *what;
    w->next = NULL;
    pthread_mutex_lock(&slow->lock);
    if (what->is_operator && slow->refuses_after && slow->n_records >= slow->refuses_after) {
        slow->refuses_after = 0;
        pthread_mutex_unlock(&slow->lock);
        free(w);
        return mb_fail(MB_ERR_MEMORY, "slow device: an operator was refused");
    }
    if (s->in_capture) {
        w->captured_on = s;
        s->n_captured++;
        append(&slow->captured->first, &slow->captured->last, w);
    } else {
        append(&s->first, &s->last, w);
        s->n_enqueued++;
        slow->n_waiting++;
        pthread_cond_broadcast(&slow->changed);
    }
    pthread_mutex_unlock(&slow->lock);
    return MB_OK;
}

static mb_status slow_stream_open(mb_device *device, mb_stream *opened) {
    stream *s = calloc(1, sizeof *s);
    if (!s)
        return mb_fail(MB_ERR_MEMORY, "slow device: no memory for a stream");
    s->slow = self(device);
    pthread_mutex_lock(&s->slow->lock);
    s->slow->n_streams++;
    pthread_mutex_unlock(&s->slow->lock);
    if (pthread_create(&s->thread, NULL, stream_body, s) != 0) {
        free(s);
        return mb_fail(MB_ERR_MEMORY, "slow device: no thread for a stream");
    }
    *opened = s;
    return MB_OK;
}

static void slow_stream_close(mb_device *device, mb_stream closed) {
    slow_device *slow = self(device);
    stream *s = closed;
    if (!s)
        return;
    pthread_mutex_lock(&slow->lock);
    s->stop = 1;
    slow->n_streams--;
    pthread_cond_broadcast(&slow->changed);
    pthread_mutex_unlock(&slow->lock);
    pthread_join(s->thread, NULL);
    free(s);
}

/* Waits with the lock held; the first failure of the device's work is told once. */
static mb_status wait_for(slow_device *slow, const stream *s, uint64_t number) {
    while (s->n_done < number)
        pthread_cond_wait(&slow->changed, &slow->lock);
    mb_status status = slow->failure;
    slow->failure = MB_OK;
    return status == MB_OK ? MB_OK : mb_fail(status, "%s", slow->sentence);
}

static mb_status slow_synchronize(mb_device *device, mb_stream of) {
    slow_device *slow = self(device);
    stream *s = of;
    pthread_mutex_lock(&slow->lock);
    mb_status status = wait_for(slow, s, s->n_enqueued);
    pthread_mutex_unlock(&slow->lock);
    return status;
}

static mb_status run_copy(work *w) {
    if (w->n_bytes > 0)
        memcpy(w->to, w->from, w->n_bytes);
    return MB_OK;
}

static mb_status slow_copy(mb_device *device, void *to, const void *from, size_t n_bytes, mb_stream s) {
    (void)device;
    const work w = {.run = run_copy, .to = to, .from = from, .n_bytes = n_bytes};
    return enqueue(s, &w);
}

static mb_status run_fill(work *w) {
    for (size_t i = 0; i < w->n_bytes; i++)
        ((char *)w->to)[i] = ((const char *)w->from)[i % w->block_bytes];
    return MB_OK;
}

static mb_status slow_fill(mb_device *device, void *to, size_t n_bytes, const void *block, size_t block_bytes,
                           mb_stream s) {
    (void)device;
    const work w = {.run = run_fill, .to = to, .from = block, .n_bytes = n_bytes, .block_bytes = block_bytes};
    return enqueue(s, &w);
}

/* ---- Events ---------------------------------------------------------------------------------------- */

static mb_status slow_event_open(mb_device *device, int is_timed, mb_event **event) {
    (void)is_timed;
    *event = calloc(1, sizeof **event);
    if (!*event)
        return mb_fail(MB_ERR_MEMORY, "slow device: no memory for an event");
    pthread_mutex_lock(&self(device)->lock);
    self(device)->n_events++;
    pthread_mutex_unlock(&self(device)->lock);
    return MB_OK;
}

static void slow_event_close(mb_device *device, mb_event *event) {
    if (!event)
        return;
    pthread_mutex_lock(&self(device)->lock);
    self(device)->n_events--;
    pthread_mutex_unlock(&self(device)->lock);
    free(event);
}

/* No work behind the event begins. */
static void limit(slow_device *slow, const mb_event *event) {
    slow->limited = event->stream;
    slow->n_limit = event->number;
}

static mb_status slow_event_record(mb_device *device, mb_event *event, mb_stream s) {
    slow_device *slow = self(device);
    pthread_mutex_lock(&slow->lock);
    stream *of = s;
    *event = (mb_event){of, of->in_capture ? of->n_captured : of->n_enqueued, .in_capture = of->in_capture};
    if (event->in_capture) {
        pthread_mutex_unlock(&slow->lock);
        return MB_OK;
    }
    slow->records[++slow->n_records % LAST_RECORDS] = *event;
    if (slow->n_records == slow->holds_after)
        limit(slow, event);
    pthread_cond_broadcast(&slow->changed);
    pthread_mutex_unlock(&slow->lock);
    return MB_OK;
}

static mb_status run_mark(work *w) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    ((mb_event *)w->to)->us = (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
    return MB_OK;
}

/* With the lock held. */
static void set_mark(mb_event *event, stream *s) {
    event->stream = s;
    event->number = s->n_enqueued;
    event->in_capture = 0;
}

/* In a capture the event stays what it is. */
static mb_status slow_event_mark(mb_device *device, mb_event *event, mb_stream s) {
    const work w = {.run = run_mark, .to = event, .is_mark = 1};
    MB_TRY(enqueue(s, &w));
    pthread_mutex_lock(&self(device)->lock);
    if (!((stream *)s)->in_capture)
        set_mark(event, s);
    pthread_mutex_unlock(&self(device)->lock);
    return MB_OK;
}

static mb_status slow_event_elapsed(mb_device *device, mb_event *from, mb_event *to, double *us) {
    (void)device;
    *us = to->us - from->us;
    return MB_OK;
}

static mb_status run_nothing(work *w) {
    (void)w;
    return MB_OK;
}

/* A stream that waits for a captured event is in the capture from then on. */
static mb_status enter_capture(slow_device *slow, const mb_event *event, stream *s) {
    mb_status status = MB_OK;
    pthread_mutex_lock(&slow->lock);
    if (!event->in_capture && s->in_capture)
        status = mb_fail(MB_ERR_DEVICE, "slow device: a capture waits for an event outside of it");
    else if (event->in_capture && !slow->captured)
        status = mb_fail(MB_ERR_DEVICE, "slow device: the event's capture has ended");
    else if (event->in_capture && !s->in_capture) {
        s->in_capture = 1;
        s->n_captured = s->n_joined = 0;
    } else if (event->in_capture && s == slow->captured->origin)
        event->stream->n_joined = event->number;
    pthread_mutex_unlock(&slow->lock);
    return status;
}

static mb_status slow_event_wait(mb_device *device, mb_event *event, mb_stream s) {
    MB_TRY(enter_capture(self(device), event, s));
    const work w = {.run = run_nothing, .awaited = event->stream, .n_awaited = event->number};
    return enqueue(s, &w);
}

static mb_status slow_event_synchronize(mb_device *device, mb_event *event) {
    slow_device *slow = self(device);
    pthread_mutex_lock(&slow->lock);
    mb_status status = event->stream ? wait_for(slow, event->stream, event->number) : MB_OK;
    pthread_mutex_unlock(&slow->lock);
    return status;
}

static mb_status slow_event_query(mb_device *device, mb_event *event, int *was_reached) {
    pthread_mutex_lock(&self(device)->lock);
    *was_reached = !event->stream || event->stream->n_done >= event->number;
    pthread_mutex_unlock(&self(device)->lock);
    return MB_OK;
}

/* ---- Graphs: lists of work, each piece for the stream that it was captured on, the first one's for the stream
 * of the replay ------------------------------------------------------------------------- */

static void slow_graph_close(mb_device *device, mb_graph *graph) {
    slow_device *slow = self(device);
    if (!graph)
        return;
    for (work *w = graph->first, *next; w; w = next) {
        next = w->next;
        free(w);
    }
    free(graph);
    pthread_mutex_lock(&slow->lock);
    slow->n_graphs--;
    pthread_mutex_unlock(&slow->lock);
}

static mb_status slow_capture_begin(mb_device *device, mb_stream s) {
    slow_device *slow = self(device);
    mb_graph *graph = calloc(1, sizeof *graph);
    if (!graph)
        return mb_fail(MB_ERR_MEMORY, "slow device: no memory for a graph");
    pthread_mutex_lock(&slow->lock);
    graph->origin = s;
    graph->origin->in_capture = 1;
    graph->origin->n_captured = 0;
    slow->captured = graph;
    slow->n_graphs++;
    pthread_mutex_unlock(&slow->lock);
    return MB_OK;
}

static mb_status slow_capture_end(mb_device *device, mb_stream s, mb_graph **graph) {
    slow_device *slow = self(device);
    int is_joined = 1;
    (void)s;
    pthread_mutex_lock(&slow->lock);
    *graph = slow->captured;
    slow->captured = NULL;
    for (work *w = (*graph)->first; w; w = w->next)
        is_joined &=
            w->captured_on == (*graph)->origin || w->captured_on->n_joined == w->captured_on->n_captured;
    for (work *w = (*graph)->first; w; w = w->next)
        w->captured_on->in_capture = 0;
    (*graph)->origin->in_capture = 0;
    pthread_mutex_unlock(&slow->lock);
    if (is_joined)
        return MB_OK;
    slow_graph_close(device, *graph);
    *graph = NULL;
    return mb_fail(MB_ERR_DEVICE, "slow device: a capture has ended before its second stream was joined");
}

static mb_status replay_piece(slow_device *slow, const mb_graph *graph, const work *piece, stream *s) {
    work w = *piece;
    stream *to = piece->captured_on == graph->origin ? s : piece->captured_on;
    if (piece->awaited) {
        w.awaited = piece->awaited == graph->origin ? s : piece->awaited;
        pthread_mutex_lock(&slow->lock);
        w.n_awaited += w.awaited->n_before;
        if (slow->holds_at_fork && w.awaited == s) {
            const mb_event fork = {.stream = s, .number = w.n_awaited};
            limit(slow, &fork);
            slow->holds_at_fork = 0;
        }
        pthread_mutex_unlock(&slow->lock);
    }
    MB_TRY(enqueue(to, &w));
    pthread_mutex_lock(&slow->lock);
    if (piece->is_mark)
        set_mark(piece->to, to);
    pthread_mutex_unlock(&slow->lock);
    return MB_OK;
}

static mb_status slow_replay(mb_device *device, mb_graph *graph, mb_stream s) {
    slow_device *slow = self(device);
    pthread_mutex_lock(&slow->lock);
    for (work *w = graph->first; w; w = w->next)
        w->captured_on->n_before = w->captured_on->n_enqueued;
    ((stream *)s)->n_before = ((stream *)s)->n_enqueued;
    pthread_mutex_unlock(&slow->lock);
    for (const work *w = graph->first; w; w = w->next)
        MB_TRY(replay_piece(slow, graph, w, s));
    pthread_mutex_lock(&slow->lock);
    slow->n_replays++;
    pthread_mutex_unlock(&slow->lock);
    return MB_OK;
}

/* ---- Operators: the CPU's, later ------------------------------------------------------------------- */

#define RUN(op, ...)                                                        \
    static mb_status run_##op(work *w) {                                    \
        const mb_##op##_args *args = (const mb_##op##_args *)w->args.bytes; \
        return mb_cpu_ops.op(args, __VA_ARGS__);                            \
    }
#define COPY(op)                                                                              \
    work w = {.run = run_##op, .is_operator = 1};                                             \
    _Static_assert(sizeof *args <= sizeof w.args, "work has room for the arguments of " #op); \
    memcpy(w.args.bytes, args, sizeof *args)
#define PLAIN(op)                                                         \
    RUN(op, NULL)                                                         \
    static mb_status slow_##op(const mb_##op##_args *args, mb_stream s) { \
        COPY(op);                                                         \
        return enqueue(s, &w);                                            \
    }
#define WITH_WORKSPACE(op)                                                                          \
    RUN(op, w->workspace, w->workspace_bytes, NULL)                                                 \
    static mb_status slow_##op(const mb_##op##_args *args, void *workspace, size_t workspace_bytes, \
                               mb_stream s) {                                                       \
        COPY(op);                                                                                   \
        w.workspace = workspace;                                                                    \
        w.workspace_bytes = workspace_bytes;                                                        \
        return enqueue(s, &w);                                                                      \
    }
MB_OPERATORS(PLAIN, WITH_WORKSPACE)
#undef PLAIN
#undef WITH_WORKSPACE

static mb_status run_forward_with_route(work *w) {
    mb_moe_forward_args *args = (mb_moe_forward_args *)w->args.bytes;
    args->route = &w->route;
    return run_moe_forward(w);
}

/* The one operator whose arguments point at other arguments. */
static mb_status slow_forward(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream s) {
    if (!args->route)
        return slow_moe_forward(args, workspace, workspace_bytes, s);
    COPY(forward_with_route);
    w.route = *args->route;
    w.workspace = workspace;
    w.workspace_bytes = workspace_bytes;
    return enqueue(s, &w);
}

static mb_ops slow_ops(void) {
    mb_ops ops = {.name = "slow",
#define PLAIN(op) .op = slow_##op,
#define WITH_WORKSPACE(op) .op##_workspace = mb_##op##_ref_workspace, .op = slow_##op,
                  MB_OPERATORS(PLAIN, WITH_WORKSPACE)
#undef PLAIN
#undef WITH_WORKSPACE
    };
    ops.moe_forward = slow_forward;
    return ops;
}

/* ---- The device ------------------------------------------------------------------------------------ */

slow_device *slow_device_open(uint64_t total_bytes) {
    slow_device *slow = calloc(1, sizeof *slow);
    assert_non_null(slow);
    assert_int_equal(mb_device_open_cpu(1, &slow->cpu), MB_OK);
    assert_int_equal(pthread_mutex_init(&slow->lock, NULL), 0);
    assert_int_equal(pthread_cond_init(&slow->changed, NULL), 0);
    slow->total_bytes = total_bytes;
    slow->ops = slow_ops();
    slow->base = *slow->cpu;
    slow->base.name = "slow";
    slow->base.ops = &slow->ops;
    slow->base.host_memory = 0;
    slow->base.n_sms = 1;
    slow->base.allocate = slow_allocate;
    slow->base.free = slow_free;
    slow->base.allocate_pinned = slow_allocate_pinned;
    slow->base.free_pinned = slow_free_pinned;
    slow->base.memory = slow_memory;
    slow->base.stream_open = slow_stream_open;
    slow->base.stream_close = slow_stream_close;
    slow->base.synchronize = slow_synchronize;
    slow->base.upload = slow_copy;
    slow->base.download = slow_copy;
    slow->base.fill = slow_fill;
    slow->base.event_open = slow_event_open;
    slow->base.event_close = slow_event_close;
    slow->base.event_record = slow_event_record;
    slow->base.event_wait = slow_event_wait;
    slow->base.event_synchronize = slow_event_synchronize;
    slow->base.event_query = slow_event_query;
    slow->base.event_mark = slow_event_mark;
    slow->base.event_elapsed = slow_event_elapsed;
    slow->base.capture_begin = slow_capture_begin;
    slow->base.capture_end = slow_capture_end;
    slow->base.replay = slow_replay;
    slow->base.graph_close = slow_graph_close;
    slow->base.close = NULL;
    return slow;
}

void slow_device_close(slow_device *slow) {
    assert_int_equal(slow->n_streams, 0);
    assert_int_equal(slow->n_events, 0);
    assert_int_equal(slow->n_graphs, 0);
    assert_int_equal(slow->used_bytes, 0);
    mb_device_close(slow->cpu);
    pthread_cond_destroy(&slow->changed);
    pthread_mutex_destroy(&slow->lock);
    free(slow);
}

mb_device *slow_device_of(slow_device *slow) {
    return &slow->base;
}

static void set_held(slow_device *slow, int is_held) {
    pthread_mutex_lock(&slow->lock);
    slow->is_held = is_held;
    if (!is_held) {
        slow->limited = NULL;
        slow->holds_after = 0;
        slow->holds_at_fork = 0;
    }
    pthread_cond_broadcast(&slow->changed);
    pthread_mutex_unlock(&slow->lock);
}

void slow_device_hold(slow_device *slow) {
    set_held(slow, 1);
}

void slow_device_go(slow_device *slow) {
    set_held(slow, 0);
}

int slow_device_has_work(slow_device *slow) {
    pthread_mutex_lock(&slow->lock);
    int has_work = slow->n_waiting > 0;
    pthread_mutex_unlock(&slow->lock);
    return has_work;
}

void slow_device_wait_for_work(slow_device *slow) {
    pthread_mutex_lock(&slow->lock);
    while (slow->n_waiting == 0)
        pthread_cond_wait(&slow->changed, &slow->lock);
    pthread_mutex_unlock(&slow->lock);
}

uint64_t slow_device_n_records(slow_device *slow) {
    pthread_mutex_lock(&slow->lock);
    uint64_t n = slow->n_records;
    pthread_mutex_unlock(&slow->lock);
    return n;
}

void slow_device_wait_for_records(slow_device *slow, uint64_t n) {
    pthread_mutex_lock(&slow->lock);
    while (slow->n_records < n)
        pthread_cond_wait(&slow->changed, &slow->lock);
    pthread_mutex_unlock(&slow->lock);
}

void slow_device_hold_after(slow_device *slow, uint64_t n) {
    pthread_mutex_lock(&slow->lock);
    slow->is_held = 0;
    slow->holds_after = n;
    if (n > 0 && n <= slow->n_records)
        limit(slow, &slow->records[n % LAST_RECORDS]);
    pthread_cond_broadcast(&slow->changed);
    pthread_mutex_unlock(&slow->lock);
}

void slow_device_hold_at_fork(slow_device *slow) {
    pthread_mutex_lock(&slow->lock);
    slow->holds_at_fork = 1;
    pthread_mutex_unlock(&slow->lock);
}

void slow_device_refuse_after(slow_device *slow, uint64_t n) {
    pthread_mutex_lock(&slow->lock);
    slow->refuses_after = n;
    pthread_mutex_unlock(&slow->lock);
}

void slow_device_fail_next(slow_device *slow) {
    pthread_mutex_lock(&slow->lock);
    slow->fails_next = 1;
    pthread_mutex_unlock(&slow->lock);
}

uint64_t slow_device_n_replays(slow_device *slow) {
    pthread_mutex_lock(&slow->lock);
    uint64_t n = slow->n_replays;
    pthread_mutex_unlock(&slow->lock);
    return n;
}
