#include "engine/profiler.h"

#include <stdlib.h>

#include "base/alloc.h"
#include "base/status.h"

/* The operators of a step: what a call takes beside its arguments, and whether its cost is told by the
 * arguments alone (COUNTED) or by the contents of arrays too (READ). */
#define STEP_OPERATORS(COUNTED_PLAIN, COUNTED_WORKSPACE, READ_WORKSPACE) \
    COUNTED_PLAIN(embed)                                                 \
    COUNTED_PLAIN(rms_norm)                                              \
    READ_WORKSPACE(gemm)                                                 \
    COUNTED_PLAIN(qk_norm_rope_store)                                    \
    READ_WORKSPACE(attention)                                            \
    READ_WORKSPACE(decode_attention)                                     \
    COUNTED_PLAIN(gated_activation)                                      \
    COUNTED_WORKSPACE(moe_router_gemm)                                   \
    READ_WORKSPACE(moe_forward)                                          \
    READ_WORKSPACE(sample)                                               \
    COUNTED_PLAIN(log_softmax)

enum { CALLS_PER_LAYER = 10, OTHER_CALLS = 8 }; /* at most, in a step */

/* One call in the step that is in the profiler. */
typedef struct call {
    const char *name;
    int64_t n, k; /* of a gemm's weight */
    mb_op_cost cost;
    mb_event *begin, *end;
    /* moe_forward: only the device knows which experts are hit. So the ids are copied, and counted when the
     * step has run. */
    mb_event *copied; /* stands behind the copy; NULL: another operator */
    mb_moe_forward_args experts;
    mb_moe_route_args route;
} call;

struct mb_profiler {
    mb_forward *forward;
    mb_device *device;
    mb_ops ops; /* what the forward pass calls */
    call *calls;
    mb_event **events;
    int32_t *ids; /* pinned [max_copies, ids_per_copy] */
    int32_t n_calls, max_calls, n_events, max_events, n_copies, max_copies;
    size_t ids_per_copy;
    mb_profiler_inputs inputs;
    mb_graph *graph;
    int has_step;      /* the calls are those of a step that was enqueued */
    int was_collected; /* the step that was collected last was in the profiler */
    mb_profile sums;
};

/* Operators have no context of their own: this one belongs to the thread that enqueues a step. */
static _Thread_local mb_profiler *current;

/* ---- The table around the device's ------------------------------------------------------------------ */

static mb_status mark(mb_event **event, mb_stream stream) {
    mb_profiler *p = current;
    if (p->n_events == p->max_events)
        return mb_fail(MB_ERR_INTERNAL, "profile: a step has more than %d calls of operators", p->max_calls);
    *event = p->events[p->n_events++];
    return p->device->event_mark(p->device, *event, stream);
}

static mb_status begin_call(const char *name, mb_stream stream, call **begun) {
    mb_profiler *p = current;
    if (p->n_calls == p->max_calls)
        return mb_fail(MB_ERR_INTERNAL, "profile: a step has more than %d calls of operators", p->max_calls);
    *begun = &p->calls[p->n_calls++];
    **begun = (call){.name = name};
    return mark(&(*begun)->begin, stream);
}

/* Where an array of the step's inputs is on the host. */
static mb_status find_input(const void *on_device, const void **on_host) {
    const mb_profiler_inputs *in = &current->inputs;
    uintptr_t offset = (uintptr_t)on_device - (uintptr_t)in->on_device;
    if (offset >= in->n_bytes)
        return mb_fail(MB_ERR_INTERNAL, "profile: an array that counts is not among the step's inputs");
    *on_host = in->on_host + offset;
    return MB_OK;
}

static mb_status read_gemm(call *c, const mb_gemm_args *args, mb_stream stream) {
    (void)stream;
    c->n = args->weight.rows;
    c->k = args->weight.cols;
    c->cost = mb_gemm_cost(args);
    return MB_OK;
}

/* An operator whose cost follows from q_start and kv_len. */
#define READ_LENGTHS(op)                                                                \
    static mb_status read_##op(call *c, const mb_##op##_args *args, mb_stream stream) { \
        (void)stream;                                                                   \
        const void *q_start, *kv_len;                                                   \
        MB_TRY(find_input(args->q_start, &q_start));                                    \
        MB_TRY(find_input(args->kv_len, &kv_len));                                      \
        mb_##op##_args on_host = *args;                                                 \
        on_host.q_start = q_start;                                                      \
        on_host.kv_len = kv_len;                                                        \
        c->cost = mb_##op##_cost(&on_host);                                             \
        return MB_OK;                                                                   \
    }
READ_LENGTHS(attention)
READ_LENGTHS(decode_attention)

static mb_status read_sample(call *c, const mb_sample_args *args, mb_stream stream) {
    (void)stream;
    const void *rows;
    if (args->n_rows == 0)
        return MB_OK;
    MB_TRY(find_input(args->rows, &rows));
    mb_sample_args on_host = *args;
    on_host.rows = rows;
    c->cost = mb_sample_cost(&on_host);
    return MB_OK;
}

static mb_status read_moe_forward(call *c, const mb_moe_forward_args *args, mb_stream stream) {
    mb_profiler *p = current;
    size_t n_ids = (size_t)args->n_tokens * (size_t)args->top_k;
    if (n_ids > p->ids_per_copy || p->n_copies == p->max_copies)
        return mb_fail(MB_ERR_INTERNAL, "profile: no room for the experts of %zu choices", n_ids);
    int32_t *ids = p->ids + (size_t)p->n_copies++ * p->ids_per_copy;
    MB_TRY(p->device->download(p->device, ids, args->ids, n_ids * sizeof *ids, stream));
    MB_TRY(mark(&c->copied, stream));
    c->experts = *args;
    c->experts.ids = ids;
    if (args->route) {
        c->route = *args->route;
        c->experts.route = &c->route;
    }
    return MB_OK;
}

#define COUNT(op)                                                                       \
    static mb_status read_##op(call *c, const mb_##op##_args *args, mb_stream stream) { \
        (void)stream;                                                                   \
        c->cost = mb_##op##_cost(args);                                                 \
        return MB_OK;                                                                   \
    }
#define PROFILED(op, parameters, ...)                          \
    static mb_status profiled_##op parameters {                \
        call *c;                                               \
        MB_TRY(begin_call(#op, stream, &c));                   \
        MB_TRY(current->device->ops->op(__VA_ARGS__, stream)); \
        MB_TRY(mark(&c->end, stream));                         \
        return read_##op(c, args, stream);                     \
    }
#define PLAIN(op) PROFILED(op, (const mb_##op##_args *args, mb_stream stream), args)
#define WORKSPACE(op)                                                                                     \
    PROFILED(op, (const mb_##op##_args *args, void *workspace, size_t workspace_bytes, mb_stream stream), \
             args, workspace, workspace_bytes)
#define COUNTED_PLAIN(op) COUNT(op) PLAIN(op)
#define COUNTED_WORKSPACE(op) COUNT(op) WORKSPACE(op)
STEP_OPERATORS(COUNTED_PLAIN, COUNTED_WORKSPACE, WORKSPACE)

static mb_ops table_around(const mb_ops *ops) {
    mb_ops around = *ops;
#define ENTRY(op) around.op = profiled_##op;
    STEP_OPERATORS(ENTRY, ENTRY, ENTRY)
#undef ENTRY
    /* So that each operator has a time. A step without a profile has fewer launches. */
    around.moe_block = NULL;
    return around;
}

/* ---- Opening ---------------------------------------------------------------------------------------- */

static mb_status open_parts(mb_profiler *p) {
    const mb_config *config = p->forward->config;
    mb_device *device = p->device;
    for (int32_t i = 0; i < config->n_layers; i++)
        p->max_copies += config->is_moe[i];
    p->ids_per_copy = (size_t)p->forward->limits.max_tokens * (size_t)config->top_k;
    p->max_calls = CALLS_PER_LAYER * config->n_layers + OTHER_CALLS;
    int32_t max_events = 2 * p->max_calls + p->max_copies;
    p->calls = mb_malloc_array((size_t)p->max_calls, sizeof *p->calls);
    p->events = mb_calloc((size_t)max_events, sizeof *p->events);
    if (!p->calls || !p->events)
        return mb_fail(MB_ERR_MEMORY, "profile: no memory for %d calls of operators", p->max_calls);
    for (; p->max_events < max_events; p->max_events++)
        MB_TRY(device->event_open(device, 1, &p->events[p->max_events]));
    size_t ids_bytes = (size_t)p->max_copies * p->ids_per_copy * sizeof *p->ids;
    return ids_bytes > 0 ? device->allocate_pinned(device, ids_bytes, (void **)&p->ids) : MB_OK;
}

mb_status mb_profiler_open(mb_forward *forward, mb_profiler **profiler) {
    *profiler = NULL;
    mb_profiler *p = mb_calloc(1, sizeof *p);
    if (!p)
        return mb_fail(MB_ERR_MEMORY, "profile: no memory for its sums");
    p->forward = forward;
    p->device = forward->device;
    p->ops = table_around(forward->device->ops);
    mb_status status = open_parts(p);
    if (status == MB_OK)
        *profiler = p;
    else
        mb_profiler_close(p);
    return status;
}

void mb_profiler_close(mb_profiler *p) {
    if (!p)
        return;
    mb_profiler_drop(p);
    p->device->free_pinned(p->device, p->ids);
    for (int32_t i = 0; i < p->max_events; i++)
        p->device->event_close(p->device, p->events[i]);
    mb_free(p->events);
    mb_free(p->calls);
    mb_free(p);
}

/* ---- Steps ------------------------------------------------------------------------------------------ */

static mb_status enqueue(mb_profiler *p, int as_graph, mb_device_work work, const void *context,
                         mb_stream stream) {
    if (!as_graph)
        return work(context, stream);
    MB_TRY(mb_device_capture(p->device, work, context, stream, &p->graph));
    return p->device->replay(p->device, p->graph, stream);
}

mb_status mb_profiler_run(mb_profiler *p, const mb_profiler_inputs *inputs, int as_graph, mb_device_work work,
                          const void *context, mb_stream stream) {
    mb_profiler_drop(p);
    p->inputs = *inputs;
    p->forward->ops = &p->ops;
    current = p;
    mb_status status = enqueue(p, as_graph, work, context, stream);
    current = NULL;
    p->forward->ops = p->device->ops;
    p->has_step = status == MB_OK;
    return status;
}

void mb_profiler_drop(mb_profiler *p) {
    p->device->graph_close(p->device, p->graph);
    p->graph = NULL;
    p->n_calls = p->n_events = p->n_copies = 0;
    p->has_step = 0;
}

static mb_status find_operator(mb_profile *sums, const call *c, mb_profile_operator **found) {
    for (int32_t i = 0; i < sums->n_operators; i++) {
        *found = &sums->operators[i];
        if ((*found)->name == c->name && (*found)->n == c->n && (*found)->k == c->k)
            return MB_OK;
    }
    if (sums->n_operators == MB_PROFILE_OPERATORS)
        return mb_fail(MB_ERR_INTERNAL, "profile: more than %d operators", MB_PROFILE_OPERATORS);
    *found = &sums->operators[sums->n_operators++];
    **found = (mb_profile_operator){.name = c->name, .n = c->n, .k = c->k};
    return MB_OK;
}

/* Adds a call. *known_us grows by the time of the operator and of the copy. */
static mb_status add_call(mb_profiler *p, call *c, double *memory_us, double *compute_us, double *known_us) {
    mb_device *device = p->device;
    mb_profile *sums = &p->sums;
    mb_profile_operator *operator;
    double us, copy_us = 0;
    if (c->copied) {
        MB_TRY(device->event_elapsed(device, c->end, c->copied, &copy_us));
        c->cost = mb_moe_forward_cost(&c->experts);
    }
    if (c->cost.bytes == 0) /* without rows: nothing was launched */
        return MB_OK;
    MB_TRY(device->event_elapsed(device, c->begin, c->end, &us));
    MB_TRY(find_operator(sums, c, &operator));
    double by_memory = mb_cost_memory_us(&c->cost, device->bytes_per_second);
    double by_compute = by_memory > 0 ? mb_cost_compute_us(&c->cost, device->n_sms) : 0;
    operator->n_calls++;
    operator->us += us;
    operator->bytes += c->cost.bytes;
    operator->flops += c->cost.flops;
    operator->floor_us += by_memory> by_compute ? by_memory : by_compute;
    sums->bytes += c->cost.bytes;
    sums->flops += c->cost.flops;
    *memory_us += by_memory;
    *compute_us += by_compute;
    *known_us += us + copy_us;
    return MB_OK;
}

mb_status mb_profiler_collect(mb_profiler *p) {
    double device_us, memory_us = 0, compute_us = 0, known_us = 0;
    p->was_collected = p->has_step && p->n_calls > 0;
    if (!p->was_collected)
        return MB_OK;
    const call *first = &p->calls[0], *last = &p->calls[p->n_calls - 1];
    MB_TRY(p->device->event_elapsed(p->device, first->begin, last->end, &device_us));
    for (int32_t i = 0; i < p->n_calls; i++)
        MB_TRY(add_call(p, &p->calls[i], &memory_us, &compute_us, &known_us));
    p->sums.n_steps++;
    p->sums.device_us += device_us;
    p->sums.between_us += device_us > known_us ? device_us - known_us : 0;
    p->sums.floor_us += memory_us > compute_us ? memory_us : compute_us;
    mb_profiler_drop(p);
    return MB_OK;
}

void mb_profiler_add_host(mb_profiler *p, double us) {
    if (p->was_collected)
        p->sums.host_us += us;
}

static int by_time(const void *a, const void *b) {
    double us_a = ((const mb_profile_operator *)a)->us, us_b = ((const mb_profile_operator *)b)->us;
    return us_a < us_b ? 1 : us_a > us_b ? -1 : 0;
}

void mb_profiler_read(const mb_profiler *p, mb_profile *profile) {
    *profile = p->sums;
    qsort(profile->operators, (size_t)profile->n_operators, sizeof *profile->operators, by_time);
}
