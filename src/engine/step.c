/* step.c - buffers of the steps, and running a step that was filled (step_fill.c). */
#include "engine/step.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "model/trace.h"

_Static_assert((int)MB_KV_BLOCK_TOKENS == (int)MB_KV_BLOCK, "the policy's block is the operators' block");

enum {
    ROWS_AT_A_TIME = 16,      /* reported rows that are downloaded together */
    STAGING_BYTES = 64 << 10, /* for sequences that begin in one step, besides room for the longest */
};

/* ---- Memory ---------------------------------------------------------------------------------------- */

static mb_step_counts most_counts(const mb_runner *runner) {
    const mb_runner_limits *limits = &runner->limits;
    return (mb_step_counts){.n_tokens = limits->max_step_tokens,
                            .n_sequences = limits->max_sequences,
                            .n_logits = limits->max_logits,
                            .n_draws = limits->max_sequences,
                            .n_masks = limits->max_sequences,
                            .max_blocks = limits->max_blocks};
}

/* Of one sequence. */
static size_t most_positions(const mb_runner *runner) {
    return (size_t)runner->limits.max_blocks * MB_KV_BLOCK;
}

/* An arena for each kind of memory. Each holds the runner's own pieces, then those of every slot. */
typedef struct arenas {
    mb_arena device, pinned, host;
} arenas;

/* The log-probabilities, which follow the n drawn ids; NULL while sizes are measured. */
static float *after_ids(int32_t *ids, size_t n) {
    return ids ? (float *)(ids + n) : NULL;
}

static void cut_slot(const mb_runner *runner, mb_step_slot *slot, arenas *a) {
    size_t n_sequences = (size_t)runner->limits.max_sequences, n_logits = (size_t)runner->limits.max_logits;
    slot->device_inputs = mb_arena_push(&a->device, runner->inputs_bytes, 1);
    slot->device_drawn_ids = mb_arena_push(&a->device, 2 * n_sequences, sizeof(int32_t));
    slot->device_drawn_logprobs = after_ids(slot->device_drawn_ids, n_sequences);
    slot->logits =
        mb_arena_push(&a->device, n_logits * (size_t)runner->model->config.vocab, sizeof *slot->logits);
    slot->inputs = mb_arena_push(&a->pinned, runner->inputs_bytes, 1);
    slot->drawn_ids = mb_arena_push(&a->pinned, 2 * n_sequences, sizeof(int32_t));
    slot->drawn_logprobs = after_ids(slot->drawn_ids, n_sequences);
    slot->staging_memory = mb_arena_push(&a->pinned, runner->staging_bytes, 1);
    slot->plan = mb_arena_push(&a->host, n_sequences, sizeof *slot->plan);
    slot->starts = mb_arena_push(&a->host, n_sequences, sizeof *slot->starts);
    slot->draw_planned = mb_arena_push(&a->host, n_sequences, sizeof *slot->draw_planned);
    slot->reports = mb_arena_push(&a->host, n_logits, sizeof *slot->reports);
    slot->outcomes = mb_arena_push(&a->host, n_sequences, sizeof *slot->outcomes);
    slot->n_graphs = runner->graphs == MB_GRAPHS_ATTENTION ? runner->model->config.n_layers : 1;
    slot->graphs = mb_arena_push(&a->host, (size_t)slot->n_graphs, sizeof *slot->graphs);
    for (int32_t i = 0; i < slot->n_graphs && slot->graphs; i++)
        slot->graphs[i] = (mb_decode_graphs){0};
}

static void cut_sampler_places(mb_runner *runner, arenas *a) {
    size_t n = (size_t)runner->limits.max_sequences, vocab = (size_t)runner->model->config.vocab;
    runner->seen = mb_arena_push(&a->device, n * vocab, sizeof *runner->seen);
    runner->bias_ids = mb_arena_push(&a->device, n * MB_MAX_LOGIT_BIAS, sizeof *runner->bias_ids);
    runner->biases = mb_arena_push(&a->device, n * MB_MAX_LOGIT_BIAS, sizeof *runner->biases);
    runner->history = mb_arena_push(&a->device, most_positions(runner), sizeof *runner->history);
    runner->places = mb_arena_push(&a->host, n, sizeof *runner->places);
    for (size_t i = 0; i < n && a->host.base; i++)
        runner->places[i] = (mb_sampler_place){0};
}

static void cut_buffers(mb_runner *runner, arenas *a) {
    cut_sampler_places(runner, a);
    runner->sample_workspace = mb_arena_push(&a->device, runner->sample_workspace_bytes, 1);
    runner->rows = mb_arena_push(&a->pinned, (size_t)ROWS_AT_A_TIME * (size_t)runner->model->config.vocab,
                                 sizeof *runner->rows);
    for (int i = 0; i < runner->limits.n_slots; i++)
        cut_slot(runner, &runner->slots[i], a);
}

static mb_status open_buffers(mb_runner *runner) {
    const mb_model *model = runner->model;
    mb_device *device = model->device;
    mb_step_counts most = most_counts(runner);
    mb_arena inputs;
    mb_arena_measure(&inputs);
    mb_step_cut_inputs(&inputs, runner, &most, &runner->slots[0].in);
    runner->inputs_bytes = inputs.used;
    runner->staging_bytes = STAGING_BYTES + most_positions(runner) * sizeof(int32_t);
    mb_sample_args sample = {.n_rows = runner->limits.max_sequences, .vocab = model->config.vocab};
    MB_TRY(device->ops->sample_workspace(&sample, &runner->sample_workspace_bytes));

    arenas a;
    mb_arena_measure(&a.device);
    mb_arena_measure(&a.pinned);
    mb_arena_measure(&a.host);
    cut_buffers(runner, &a);
    if (inputs.overflowed || a.device.overflowed || a.pinned.overflowed || a.host.overflowed)
        return mb_fail(MB_ERR_ARGUMENT, "the session's limits overflow; ask for fewer sequences or tokens");
    mb_status status = device->allocate(device, a.device.used, &runner->device_memory);
    if (status == MB_OK)
        status = device->allocate_pinned(device, a.pinned.used, &runner->pinned_memory);
    if (status != MB_OK)
        return mb_device_no_memory(device, status, "the buffers of a step", a.device.used, MB_LOWER_LIMITS);
    runner->device_bytes = a.device.used;
    runner->host_memory = mb_malloc(a.host.used);
    if (!runner->host_memory)
        return mb_fail(MB_ERR_MEMORY, "no memory for a step's records (%zu bytes)", a.host.used);
    mb_arena_init(&a.device, runner->device_memory, a.device.used, device->host_memory);
    mb_arena_init(&a.pinned, runner->pinned_memory, a.pinned.used, 1);
    mb_arena_init(&a.host, runner->host_memory, a.host.used, 1);
    cut_buffers(runner, &a);
    return MB_OK;
}

/* Blocks whose positions an int32 can number. */
static int32_t most_kv_blocks(const mb_runner *runner) {
    return INT32_MAX / MB_KV_BLOCK / runner->kv.layout.pieces;
}

/* Blocks that `available` bytes of the device's memory hold, but no more than the sequences could ever
 * fill. */
static int32_t blocks_in(const mb_runner *runner, uint64_t available) {
    uint64_t fit = available / runner->kv.layout.block_bytes;
    uint64_t useful = (uint64_t)runner->limits.max_sequences * (uint64_t)runner->limits.max_blocks;
    fit = fit < useful ? fit : useful;
    uint64_t most = (uint64_t)most_kv_blocks(runner);
    return (int32_t)(fit < most ? fit : most);
}

/* runner->kv.n_blocks: as many as were asked for, or what `fraction` of the device's memory holds beside all
 * that is in use. */
static mb_status count_kv_blocks(mb_runner *runner, double fraction) {
    mb_device *device = runner->model->device;
    uint64_t total, free_bytes;
    runner->kv.n_blocks = runner->limits.n_kv_blocks;
    if (runner->kv.n_blocks > 0)
        return MB_OK;
    MB_TRY(device->memory(device, &total, &free_bytes));
    double kept = (1 - fraction) * (double)total; /* free in the end */
    double left = (double)free_bytes - kept;
    runner->kv.n_blocks = left > 0 ? blocks_in(runner, (uint64_t)left) : 0;
    if (runner->kv.n_blocks > 0)
        return MB_OK;
    return mb_fail(MB_ERR_MEMORY,
                   "%s: no room for a KV cache: %.2f of %.2f GB are free, of them %.2f are kept free "
                   "(memory_fraction %.2f); " MB_LOWER_LIMITS
                   ", raise memory_fraction (--gpu-memory), or end "
                   "other programs on the device",
                   device->name, (double)free_bytes / 1e9, (double)total / 1e9, kept / 1e9, fraction);
}

static mb_status open_kv(mb_runner *runner) {
    mb_device *device = runner->model->device;
    int32_t n_blocks = runner->kv.n_blocks;
    uint64_t n_bytes;
    void *memory = NULL;
    if (n_blocks > most_kv_blocks(runner) ||
        __builtin_mul_overflow((uint64_t)runner->kv.layout.block_bytes, (uint64_t)n_blocks, &n_bytes) ||
        n_bytes > SIZE_MAX / 2)
        return mb_fail(MB_ERR_ARGUMENT, "kv_tokens: a KV cache of %lld tokens overflows; ask for fewer",
                       (long long)n_blocks * MB_KV_BLOCK);
    mb_status status = device->allocate(device, (size_t)n_bytes, &memory);
    if (status != MB_OK)
        return mb_device_no_memory(device, status, "the KV cache", n_bytes, "lower kv_tokens (--kv-tokens)");
    runner->kv.memory = memory;
    runner->kv_bytes = (size_t)n_bytes;
    return MB_OK;
}

/* (A trace waits for the stream after every operator, which a capture cannot.) */
static mb_graphs usable_graphs(const mb_device *device, const mb_runner_limits *limits) {
    if (device->n_sms == 0 || mb_trace_is_on())
        return MB_GRAPHS_NONE;
    return limits->graphs == MB_GRAPHS_TWO_STREAMS && limits->n_slots == 1 ? MB_GRAPHS_STEP : limits->graphs;
}

static mb_status open_copies(mb_runner *runner) {
    mb_device *device = runner->model->device;
    MB_TRY(device->stream_open(device, &runner->copies));
    MB_TRY(device->event_open(device, 0, &runner->forked));
    return device->event_open(device, 0, &runner->joined);
}

/* The cache comes last and takes what is left. */
static mb_status open_parts(mb_runner *runner) {
    const mb_model *model = runner->model;
    mb_device *device = model->device;
    const mb_runner_limits *limits = &runner->limits;
    mb_forward_limits forward_limits = {.max_tokens = limits->max_step_tokens,
                                        .max_sequences = limits->max_sequences,
                                        .max_logits = limits->max_logits,
                                        .max_blocks = limits->max_blocks,
                                        .kv_dtype = model->kv_dtype};
    MB_TRY(device->stream_open(device, &runner->stream));
    runner->graphs = usable_graphs(device, limits);
    if (runner->graphs == MB_GRAPHS_TWO_STREAMS)
        MB_TRY(open_copies(runner));
    MB_TRY(device->stream_open(device, &runner->reports));
    for (int i = 0; i < limits->n_slots; i++)
        MB_TRY(device->event_open(device, 0, &runner->slots[i].done));
    MB_TRY(mb_forward_init(&runner->forward, &model->config, &model->weights, device, model->dtype,
                           &forward_limits, runner->stream));
    MB_TRY(open_buffers(runner));
    MB_TRY(count_kv_blocks(runner, (double)limits->memory_fraction));
    return open_kv(runner);
}

mb_status mb_runner_open(mb_runner *runner, const mb_model *model, const mb_runner_limits *limits,
                         mb_report_fn report, void *report_user) {
    *runner = (mb_runner){.model = model,
                          .limits = *limits,
                          .report = report,
                          .report_user = report_user,
                          .kv = {.layout = mb_kv_layout_make(&model->config, model->dtype, model->kv_dtype),
                                 .scales = model->kv_scales}};
    mb_status status = open_parts(runner);
    if (status != MB_OK)
        mb_runner_close(runner);
    return status;
}

void mb_runner_close(mb_runner *runner) {
    if (!runner->model)
        return;
    mb_device *device = runner->model->device;
    device->free(device, runner->device_memory);
    device->free_pinned(device, runner->pinned_memory);
    device->free(device, runner->kv.memory);
    mb_profiler_close(runner->profiler);
    mb_forward_free(&runner->forward);
    for (int i = 0; i < MB_STEP_SLOTS; i++) {
        for (int32_t k = 0; k < runner->slots[i].n_graphs && runner->slots[i].graphs; k++)
            mb_decode_graphs_close(&runner->slots[i].graphs[k], device);
        device->event_close(device, runner->slots[i].done);
    }
    device->event_close(device, runner->forked);
    device->event_close(device, runner->joined);
    device->stream_close(device, runner->copies);
    device->stream_close(device, runner->reports);
    device->stream_close(device, runner->stream);
    mb_free(runner->host_memory);
    *runner = (mb_runner){0};
}

/* ---- Running --------------------------------------------------------------------------------------- */

/* The work of a step between its inputs and its results. */
typedef struct step_work {
    mb_runner *runner;
    mb_step_slot *slot;
    int has_parts; /* each layer's attention is a graph */
} step_work;

/* With one step in flight, the slot itself. */
static mb_step_slot *slot_before(mb_runner *runner, const mb_step_slot *slot) {
    const int32_t n_slots = runner->limits.n_slots;
    return &runner->slots[(slot - runner->slots + n_slots - 1) % n_slots];
}

/* As its graph. */
static mb_status enqueue_attention(void *user, int layer, mb_device_work work, const void *context,
                                   mb_stream stream) {
    const step_work *w = user;
    return mb_decode_graphs_run(&w->slot->graphs[layer], w->runner->model->device,
                                w->slot->counts.n_sequences, w->slot->counts.max_blocks, work, context,
                                stream);
}

static mb_status run_forward(const step_work *w) {
    mb_runner *runner = w->runner;
    const mb_step_slot *slot = w->slot;
    const mb_step_counts *n = &slot->counts;
    const mb_step_inputs *in = &slot->in;
    mb_batch batch = {.ids = mb_step_on_device(slot, in->ids),
                      .positions = mb_step_on_device(slot, in->positions),
                      .slots = mb_step_on_device(slot, in->slots),
                      .q_start = mb_step_on_device(slot, in->q_start),
                      .kv_len = mb_step_on_device(slot, in->kv_len),
                      .span_start = mb_step_on_device(slot, in->span_start),
                      .block_table = mb_step_on_device(slot, in->block_table),
                      .first_slots = mb_step_on_device(slot, in->first_slots),
                      .first_block_table = mb_step_on_device(slot, in->first_block_table),
                      .logit_rows = mb_step_on_device(slot, in->logit_rows),
                      .draw_of = runner->limits.n_slots > 1 ? mb_step_on_device(slot, in->draw_of) : NULL,
                      .draws = slot_before(runner, slot)->device_drawn_ids,
                      .logits = slot->logits,
                      .enqueue_attention = w->has_parts ? enqueue_attention : NULL,
                      .enqueue_attention_user = (void *)w,
                      .n_tokens = n->n_tokens,
                      .n_sequences = n->n_sequences,
                      .n_logits = n->n_logits,
                      .max_blocks = n->max_blocks,
                      .max_q_len = n->max_q_len,
                      .max_kv_len = n->max_kv_len};
    return mb_forward_run(&runner->forward, &runner->kv, &batch, runner->stream);
}

static mb_status draw(mb_runner *runner, const mb_step_slot *slot) {
    const mb_ops *ops = runner->forward.ops;
    const mb_step_counts *n = &slot->counts;
    int32_t vocab = runner->model->config.vocab;
    mb_sample_args sample = {.logits = slot->logits + (size_t)n->n_prompt_rows * (size_t)vocab,
                             .rows = mb_step_on_device(slot, slot->in.rows),
                             .ids = slot->device_drawn_ids,
                             .logprobs = slot->device_drawn_logprobs,
                             .n_rows = n->n_draws,
                             .vocab = vocab};
    MB_TRY(ops->sample(&sample, runner->sample_workspace, runner->sample_workspace_bytes, runner->stream));
    /* After sampling, because it overwrites the logits. */
    mb_log_softmax_args log_softmax = {
        .logits = slot->logits, .out = slot->logits, .n_rows = n->n_reported, .vocab = vocab};
    return ops->log_softmax(&log_softmax, runner->stream);
}

static mb_status download_draws(const mb_runner *runner, mb_step_slot *slot, mb_stream stream) {
    mb_device *device = runner->model->device;
    return device->download(device, slot->drawn_ids, slot->device_drawn_ids,
                            2 * (size_t)runner->limits.max_sequences * sizeof *slot->drawn_ids, stream);
}

/* The second stream begins where the first one is now. */
static mb_status fork_copies(const mb_runner *runner) {
    mb_device *device = runner->model->device;
    MB_TRY(device->event_record(device, runner->forked, runner->stream));
    return device->event_wait(device, runner->forked, runner->copies);
}

/* The first stream goes on when the second one is where it is now. */
static mb_status join_copies(const mb_runner *runner) {
    mb_device *device = runner->model->device;
    MB_TRY(device->event_record(device, runner->joined, runner->copies));
    return device->event_wait(device, runner->joined, runner->stream);
}

static mb_status enqueue_main_chain(const step_work *w) {
    MB_TRY(run_forward(w));
    return draw(w->runner, w->slot);
}

/* Beside the main chain: the copy of what the step before drew, whether or not it is owed. */
static mb_status enqueue_two_streams(const step_work *w) {
    mb_runner *runner = w->runner;
    mb_device *device = runner->model->device;
    mb_step_slot *before = slot_before(runner, w->slot);
    MB_TRY(fork_copies(runner));
    MB_TRY(download_draws(runner, before, runner->copies));
    MB_TRY(device->event_mark(device, before->done, runner->copies));
    MB_TRY(enqueue_main_chain(w));
    return join_copies(runner);
}

static mb_status enqueue_work(const void *context, mb_stream stream) {
    const step_work *w = context;
    (void)stream; /* the runner's */
    if (w->slot->is_graph && w->runner->graphs == MB_GRAPHS_TWO_STREAMS)
        return enqueue_two_streams(w);
    return enqueue_main_chain(w);
}

/* Enqueues an upload of a sequence's array, which lives as long as the step is in flight. It goes
 * through pinned memory as long as there is some: for other memory a GPU's driver may wait until
 * the stream gets there. */
static mb_status upload_array(mb_runner *runner, mb_step_slot *slot, void *to, const void *array,
                              size_t n_bytes) {
    mb_device *device = runner->model->device;
    if (n_bytes == 0)
        return MB_OK;
    void *staged = mb_arena_push(&slot->staging, n_bytes, 1);
    if (staged)
        memcpy(staged, array, n_bytes);
    return device->upload(device, to, staged ? staged : array, n_bytes, runner->stream);
}

static mb_status start_sampler(mb_runner *runner, mb_step_slot *slot, const mb_sampler_start *start) {
    const mb_sequence *sequence = start->sequence;
    const int32_t vocab = runner->model->config.vocab;
    const size_t place = (size_t)start->place, n_bias = (size_t)sequence->n_bias;
    MB_TRY(upload_array(runner, slot, runner->bias_ids + place * MB_MAX_LOGIT_BIAS, sequence->bias_ids,
                        n_bias * sizeof *sequence->bias_ids));
    MB_TRY(upload_array(runner, slot, runner->biases + place * MB_MAX_LOGIT_BIAS, sequence->biases,
                        n_bias * sizeof *sequence->biases));
    if (!sequence->has_penalties)
        return MB_OK;
    MB_TRY(upload_array(runner, slot, runner->history, sequence->ids,
                        (size_t)start->n_ids * sizeof *sequence->ids));
    const mb_count_tokens_args count = {.ids = runner->history,
                                        .seen = runner->seen + place * (size_t)vocab,
                                        .n_ids = start->n_ids,
                                        .n_prompt = sequence->n_prompt,
                                        .vocab = vocab};
    return runner->model->device->ops->count_tokens(&count, runner->stream);
}

static mb_status start_samplers(mb_runner *runner, mb_step_slot *slot) {
    mb_arena_init(&slot->staging, slot->staging_memory, runner->staging_bytes, 1);
    for (int32_t i = 0; i < slot->n_starts; i++)
        MB_TRY(start_sampler(runner, slot, &slot->starts[i]));
    return MB_OK;
}

/* All of it is one graph. */
static int is_one_graph(const mb_runner *runner, const mb_step_slot *slot) {
    return slot->is_graph && runner->graphs != MB_GRAPHS_ATTENTION;
}

/* A step whose graph is still to be made is run as if there were no profile: kernels that are loaded on first
 * use cannot be captured. */
static int is_profiled(const mb_runner *runner, const mb_step_slot *slot) {
    return runner->profiler &&
           (!is_one_graph(runner, slot) ||
            mb_decode_graphs_has(&slot->graphs[0], slot->counts.n_sequences, slot->counts.max_blocks));
}

static mb_status run_work(mb_runner *runner, mb_step_slot *slot) {
    step_work work = {.runner = runner, .slot = slot};
    if (is_profiled(runner, slot)) {
        const mb_profiler_inputs inputs = {slot->device_inputs, slot->inputs, slot->inputs_arena.used};
        return mb_profiler_run(runner->profiler, &inputs, is_one_graph(runner, slot), enqueue_work, &work,
                               runner->stream);
    }
    if (is_one_graph(runner, slot))
        return mb_decode_graphs_run(&slot->graphs[0], runner->model->device, slot->counts.n_sequences,
                                    slot->counts.max_blocks, enqueue_work, &work, runner->stream);
    work.has_parts = slot->is_graph;
    return enqueue_work(&work, runner->stream);
}

/* The slot's arrays may be written: the step that read them was collected. */
static mb_status upload_inputs(mb_runner *runner, mb_step_slot *slot) {
    mb_device *device = runner->model->device;
    mb_stream stream = runner->copies ? runner->copies : runner->stream;
    MB_TRY(device->upload(device, slot->device_inputs, slot->inputs, slot->inputs_arena.used, stream));
    return runner->copies ? join_copies(runner) : MB_OK;
}

/* Enqueues what of the step's results is not enqueued yet. */
static mb_status finish(mb_runner *runner, mb_step_slot *slot) {
    mb_device *device = runner->model->device;
    if (runner->copies) /* the same copy may be under way there, for a step that then was refused */
        MB_TRY(join_copies(runner));
    MB_TRY(download_draws(runner, slot, runner->stream));
    MB_TRY(device->event_record(device, slot->done, runner->stream));
    slot->is_owed = 0;
    return MB_OK;
}

static mb_status enqueue(mb_runner *runner, mb_step_slot *slot) {
    if (slot->inputs_arena.overflowed || mb_arena_check(&slot->inputs_arena))
        return mb_fail(MB_ERR_INTERNAL, "the step's inputs are larger than their buffer");
    const int has_two_streams = slot->is_graph && runner->graphs == MB_GRAPHS_TWO_STREAMS;
    mb_step_slot *before = slot_before(runner, slot);
    if (before->is_owed && !has_two_streams)
        MB_TRY(finish(runner, before));
    MB_TRY(upload_inputs(runner, slot));
    MB_TRY(start_samplers(runner, slot));
    MB_TRY(run_work(runner, slot));
    if (!has_two_streams)
        return finish(runner, slot);
    before->is_owed = 0;
    slot->is_owed = 1;
    return MB_OK;
}

mb_status mb_runner_launch(mb_runner *runner, mb_step_slot *slot) {
    slot->status = enqueue(runner, slot);
    if (slot->status != MB_OK)
        snprintf(slot->sentence, sizeof slot->sentence, "%s", mb_last_error());
    return slot->status;
}

void mb_runner_drain(mb_runner *runner) {
    mb_device *device = runner->model->device;
    device->synchronize(device, runner->stream);
    if (runner->copies)
        device->synchronize(device, runner->copies);
    for (int32_t i = 0; i < runner->limits.n_slots; i++)
        runner->slots[i].is_owed = 0;
    if (runner->profiler)
        mb_profiler_drop(runner->profiler);
}

static void read_draws(mb_step_slot *slot) {
    for (int32_t i = 0; i < slot->n_drawn; i++) {
        mb_outcome *outcome = &slot->outcomes[slot->draw_planned[i]];
        outcome->id = slot->drawn_ids[i];
        outcome->logprob = slot->drawn_logprobs[i];
        outcome->failed = outcome->id < 0;
    }
}

static mb_status report_rows(mb_runner *runner, mb_step_slot *slot) {
    mb_device *device = runner->model->device;
    int32_t vocab = runner->model->config.vocab, n_reported = slot->counts.n_reported;
    size_t row_floats = (size_t)vocab;
    for (int32_t first = 0; first < n_reported; first += ROWS_AT_A_TIME) {
        int32_t n = n_reported - first < ROWS_AT_A_TIME ? n_reported - first : ROWS_AT_A_TIME;
        MB_TRY(device->download(device, runner->rows, slot->logits + (size_t)first * row_floats,
                                (size_t)n * row_floats * sizeof *runner->rows, runner->reports));
        MB_TRY(device->synchronize(device, runner->reports));
        for (int32_t i = 0; i < n; i++) {
            const mb_report *report = &slot->reports[first + i];
            const float *row = runner->rows + (size_t)i * row_floats;
            mb_outcome *outcome = &slot->outcomes[report->i_planned];
            outcome->failed |= isnan(row[0]); /* one NaN among the logits makes all of log-softmax NaN */
            if (!outcome->failed)
                runner->report(runner->report_user, mb_sequence_of(slot->plan[report->i_planned].job),
                               report->position, row, vocab);
        }
    }
    return MB_OK;
}

mb_status mb_runner_collect(mb_runner *runner, mb_step_slot *slot) {
    mb_device *device = runner->model->device;
    if (slot->status != MB_OK) {
        mb_runner_drain(runner); /* what was enqueued must not outlive this step */
        return mb_fail(slot->status, "%s", slot->sentence);
    }
    if (slot->is_owed)
        MB_TRY(finish(runner, slot));
    MB_TRY(device->event_synchronize(device, slot->done));
    if (runner->profiler)
        MB_TRY(mb_profiler_collect(runner->profiler));
    read_draws(slot);
    return report_rows(runner, slot);
}
