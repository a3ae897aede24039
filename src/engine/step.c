#include "engine/step.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "engine/sequence.h"

_Static_assert((int)MB_KV_BLOCK_TOKENS == (int)MB_KV_BLOCK, "the policy's block is the operators' block");

/* Reported rows that are downloaded together. */
enum { ROWS_AT_A_TIME = 16 };

/* ---- Memory ------------------------------------------------------------------------------------------- */

static void cut_inputs(mb_arena *arena, const mb_step_counts *n, mb_step_inputs *in) {
    size_t n_tokens = (size_t)n->n_tokens, n_sequences = (size_t)n->n_sequences;
    in->ids = mb_arena_push(arena, n_tokens, sizeof *in->ids);
    in->positions = mb_arena_push(arena, n_tokens, sizeof *in->positions);
    in->slots = mb_arena_push(arena, n_tokens, sizeof *in->slots);
    in->q_start = mb_arena_push(arena, n_sequences + 1, sizeof *in->q_start);
    in->kv_len = mb_arena_push(arena, n_sequences, sizeof *in->kv_len);
    in->block_table = mb_arena_push(arena, n_sequences * (size_t)n->max_blocks, sizeof *in->block_table);
    in->logit_rows = mb_arena_push(arena, (size_t)n->n_logits, sizeof *in->logit_rows);
    in->rows = mb_arena_push(arena, (size_t)n->n_draws, sizeof *in->rows);
    in->bias_ids = mb_arena_push(arena, n->n_bias, sizeof *in->bias_ids);
    in->biases = mb_arena_push(arena, n->n_bias, sizeof *in->biases);
    in->seen_ids = mb_arena_push(arena, n->n_seen, sizeof *in->seen_ids);
    in->seen_counts = mb_arena_push(arena, n->n_seen, sizeof *in->seen_counts);
}

/* Distinct tokens of all running sequences: no more than the cache holds, and of each no more than the
 * vocabulary or the model's positions. */
static size_t most_seen(const mb_runner *runner) {
    const mb_config *config = &runner->model->config;
    int32_t of_one = config->vocab < config->max_positions ? config->vocab : config->max_positions;
    size_t of_all = (size_t)runner->limits.max_sequences * (size_t)of_one;
    size_t cached = (size_t)runner->kv.n_blocks * MB_KV_BLOCK;
    return of_all < cached ? of_all : cached;
}

static mb_step_counts most_counts(const mb_runner *runner) {
    const mb_runner_limits *limits = &runner->limits;
    return (mb_step_counts){.n_tokens = limits->max_step_tokens,
                            .n_sequences = limits->max_sequences,
                            .n_logits = limits->max_logits,
                            .n_draws = limits->max_sequences,
                            .max_blocks = limits->max_blocks,
                            .n_bias = (size_t)limits->max_sequences * MB_MAX_LOGIT_BIAS,
                            .n_seen = most_seen(runner)};
}

static void cut_device(mb_runner *runner, mb_arena *arena) {
    size_t n = (size_t)runner->limits.max_sequences;
    runner->device_inputs = mb_arena_push(arena, runner->inputs_bytes, 1);
    runner->device_drawn_ids = mb_arena_push(arena, 2 * n, sizeof(int32_t));
    runner->device_drawn_logprobs = arena->base ? (float *)(runner->device_drawn_ids + n) : NULL;
    runner->logits =
        mb_arena_push(arena, (size_t)runner->limits.max_logits * (size_t)runner->model->config.vocab,
                      sizeof *runner->logits);
    runner->sample_workspace = mb_arena_push(arena, runner->sample_workspace_bytes, 1);
}

static void cut_pinned(mb_runner *runner, mb_arena *arena) {
    size_t n = (size_t)runner->limits.max_sequences;
    runner->inputs = mb_arena_push(arena, runner->inputs_bytes, 1);
    runner->drawn_ids = mb_arena_push(arena, 2 * n, sizeof(int32_t));
    runner->drawn_logprobs = arena->base ? (float *)(runner->drawn_ids + n) : NULL;
    runner->rows = mb_arena_push(arena, (size_t)ROWS_AT_A_TIME * (size_t)runner->model->config.vocab,
                                 sizeof *runner->rows);
}

static void cut_host(mb_runner *runner, mb_arena *arena) {
    size_t n = (size_t)runner->limits.max_sequences;
    runner->draw_planned = mb_arena_push(arena, n, sizeof *runner->draw_planned);
    runner->reports = mb_arena_push(arena, (size_t)runner->limits.max_logits, sizeof *runner->reports);
    runner->outcomes = mb_arena_push(arena, n, sizeof *runner->outcomes);
}

static mb_status open_kv(mb_runner *runner) {
    const mb_model *model = runner->model;
    mb_device *device = model->device;
    uint64_t block_bytes = MB_KV_BLOCK * mb_kv_bytes_per_token(&model->config, model->dtype), n_bytes;
    int64_t n_blocks = runner->limits.n_kv_blocks;
    if (n_blocks == 0) {
        uint64_t total, available;
        MB_TRY(device->memory(device, &total, &available));
        uint64_t fit = available / 10 * 9 / block_bytes;
        uint64_t useful = (uint64_t)runner->limits.max_sequences * (uint64_t)runner->limits.max_blocks;
        fit = fit < useful ? fit : useful;
        n_blocks = (int64_t)(fit < INT32_MAX / MB_KV_BLOCK ? fit : INT32_MAX / MB_KV_BLOCK);
        if (n_blocks == 0)
            return mb_fail(MB_ERR_MEMORY, "%s: %llu bytes are free, not enough for one block of KV cache",
                           device->name, (unsigned long long)available);
    }
    void *memory = NULL;
    if (__builtin_mul_overflow(block_bytes, (uint64_t)n_blocks, &n_bytes) || n_bytes > SIZE_MAX / 2)
        return mb_fail(MB_ERR_ARGUMENT, "kv_tokens: a KV cache of %lld tokens overflows; ask for fewer",
                       (long long)n_blocks * MB_KV_BLOCK);
    mb_status status = device->allocate(device, (size_t)n_bytes, &memory);
    if (status != MB_OK)
        return mb_fail_context(status, "KV cache of %lld tokens (%llu bytes); ask for fewer kv_tokens",
                               (long long)n_blocks * MB_KV_BLOCK, (unsigned long long)n_bytes);
    size_t half = (size_t)n_bytes / 2;
    runner->kv_memory = memory;
    runner->kv = (mb_kv_memory){.k = memory,
                                .v = (char *)memory + half,
                                .layer_bytes = half / (size_t)model->config.n_layers,
                                .n_blocks = (int32_t)n_blocks,
                                .dtype = model->dtype};
    return MB_OK;
}

static mb_status open_buffers(mb_runner *runner) {
    const mb_model *model = runner->model;
    mb_device *device = model->device;
    mb_step_counts most = most_counts(runner);
    mb_arena arena;
    mb_arena_measure(&arena);
    cut_inputs(&arena, &most, &runner->in);
    runner->inputs_bytes = arena.used;
    mb_sample_args sample = {.n_rows = runner->limits.max_sequences, .vocab = model->config.vocab};
    MB_TRY(device->ops->sample_workspace(&sample, &runner->sample_workspace_bytes));

    mb_arena on_device, pinned, host;
    mb_arena_measure(&on_device);
    mb_arena_measure(&pinned);
    mb_arena_measure(&host);
    cut_device(runner, &on_device);
    cut_pinned(runner, &pinned);
    cut_host(runner, &host);
    if (arena.overflowed || on_device.overflowed || pinned.overflowed || host.overflowed)
        return mb_fail(MB_ERR_ARGUMENT, "the session's limits overflow; ask for fewer sequences or tokens");
    mb_status status = device->allocate(device, on_device.used, &runner->device_memory);
    if (status == MB_OK)
        status = device->allocate_pinned(device, pinned.used, &runner->pinned_memory);
    if (status != MB_OK)
        return mb_fail_context(status, "buffers of a step");
    runner->host_memory = mb_malloc(host.used);
    if (!runner->host_memory)
        return mb_fail(MB_ERR_MEMORY, "no memory for a step's records (%zu bytes)", host.used);
    mb_arena_init(&on_device, runner->device_memory, on_device.used, device->host_memory);
    mb_arena_init(&pinned, runner->pinned_memory, pinned.used, 1);
    mb_arena_init(&host, runner->host_memory, host.used, 1);
    cut_device(runner, &on_device);
    cut_pinned(runner, &pinned);
    cut_host(runner, &host);
    return MB_OK;
}

mb_status mb_runner_open(mb_runner *runner, const mb_model *model, const mb_runner_limits *limits) {
    *runner = (mb_runner){.model = model, .limits = *limits};
    mb_forward_limits forward_limits = {.max_tokens = limits->max_step_tokens,
                                        .max_sequences = limits->max_sequences,
                                        .max_logits = limits->max_logits,
                                        .max_blocks = limits->max_blocks};
    mb_status status = model->device->stream_open(model->device, &runner->stream);
    if (status == MB_OK)
        status = mb_forward_init(&runner->forward, &model->config, &model->weights, model->device,
                                 model->dtype, &forward_limits, runner->stream);
    if (status == MB_OK)
        status = open_kv(runner);
    if (status == MB_OK)
        status = open_buffers(runner);
    if (status != MB_OK)
        mb_runner_close(runner);
    return status;
}

void mb_runner_close(mb_runner *runner) {
    if (!runner->model)
        return;
    mb_device *device = runner->model->device;
    if (runner->device_memory)
        device->free(device, runner->device_memory);
    if (runner->pinned_memory)
        device->free_pinned(device, runner->pinned_memory);
    if (runner->kv_memory)
        device->free(device, runner->kv_memory);
    mb_forward_free(&runner->forward);
    device->stream_close(device, runner->stream);
    mb_free(runner->host_memory);
    *runner = (mb_runner){0};
}

/* ---- Filling ------------------------------------------------------------------------------------------ */

static mb_step_counts count(const mb_planned *plan, int32_t n_planned) {
    mb_step_counts n = {.n_sequences = n_planned};
    for (int32_t i = 0; i < n_planned; i++) {
        const mb_planned *item = &plan[i];
        const mb_sequence *sequence = mb_sequence_of(item->job);
        int64_t kv_len = item->job->n_cached + item->n_tokens;
        n.n_tokens += item->n_tokens;
        n.n_logits += item->n_logits;
        n.n_draws += item->draws;
        n.n_prompt_rows += item->n_logits - item->draws;
        n.n_reported += sequence->on_logprobs ? item->n_logits : 0;
        if (item->draws) {
            n.n_bias += (size_t)sequence->sampling.n_logit_bias;
            n.n_seen += (size_t)sequence->seen.n;
        }
        int32_t n_blocks = (int32_t)mb_kv_blocks_for(kv_len);
        if (n.max_blocks < n_blocks)
            n.max_blocks = n_blocks;
        if (n.max_q_len < item->n_tokens)
            n.max_q_len = item->n_tokens;
        if (n.max_kv_len < kv_len)
            n.max_kv_len = (int32_t)kv_len;
    }
    return n;
}

/* Where the next of each kind goes. Rows of logits lie in three groups: prompt rows that are only reported,
 * then draws that are reported, then the other draws; so that sampling and log-softmax each get one
 * contiguous range. */
typedef struct cursor {
    int32_t token, prompt_row, reported_draw, silent_draw;
    size_t bias, seen;
} cursor;

static void *on_device(const mb_runner *runner, const void *input) {
    return runner->device_inputs + ((const char *)input - runner->inputs);
}

static mb_sample_row sample_row(mb_runner *runner, const mb_sequence *sequence, cursor *at) {
    const mb_sampling *s = &sequence->sampling;
    const mb_seen_tokens *seen = &sequence->seen;
    mb_step_inputs *in = &runner->in;
    for (int32_t i = 0; i < s->n_logit_bias; i++) {
        in->bias_ids[at->bias + (size_t)i] = s->logit_bias[i].id;
        in->biases[at->bias + (size_t)i] = s->logit_bias[i].bias;
    }
    if (seen->n > 0) {
        memcpy(in->seen_ids + at->seen, seen->ids, (size_t)seen->n * sizeof *seen->ids);
        memcpy(in->seen_counts + at->seen, seen->counts, (size_t)seen->n * sizeof *seen->counts);
    }
    mb_sample_row row = {.temperature = s->temperature,
                         .top_p = s->top_p,
                         .min_p = s->min_p,
                         .repetition_penalty = s->repetition_penalty,
                         .presence_penalty = s->presence_penalty,
                         .frequency_penalty = s->frequency_penalty,
                         .top_k = s->top_k,
                         .n_bias = s->n_logit_bias,
                         .seed = s->seed,
                         .position = (uint64_t)sequence->job.n_tokens,
                         .bias_ids = on_device(runner, in->bias_ids + at->bias),
                         .biases = on_device(runner, in->biases + at->bias),
                         .seen_ids = on_device(runner, in->seen_ids + at->seen),
                         .seen_counts = on_device(runner, in->seen_counts + at->seen),
                         .n_seen = seen->n};
    at->bias += (size_t)s->n_logit_bias;
    at->seen += (size_t)seen->n;
    return row;
}

static void fill_logit_rows(mb_runner *runner, const mb_planned *item, int32_t i_planned, cursor *at) {
    const mb_sequence *sequence = mb_sequence_of(item->job);
    mb_step_inputs *in = &runner->in;
    for (int32_t i = item->n_tokens - item->n_logits; i < item->n_tokens; i++) {
        int draws = item->draws && i == item->n_tokens - 1;
        int32_t row = at->prompt_row;
        if (draws) {
            row = sequence->on_logprobs ? at->reported_draw++ : at->silent_draw++;
            int32_t draw = row - runner->counts.n_prompt_rows;
            in->rows[draw] = sample_row(runner, sequence, at);
            runner->draw_planned[draw] = i_planned;
        } else {
            at->prompt_row++;
        }
        in->logit_rows[row] = at->token + i;
        if (row < runner->counts.n_reported)
            runner->reports[row] = (mb_report){.call = sequence->on_logprobs,
                                               .user = sequence->on_logprobs_user,
                                               .position = item->job->n_cached + i,
                                               .i_planned = i_planned};
    }
}

static void fill_tokens(mb_runner *runner, const mb_kv *kv, const mb_planned *item, int32_t i_planned,
                        cursor *at) {
    const mb_job *job = item->job;
    const mb_sequence *sequence = mb_sequence_of(item->job);
    mb_step_inputs *in = &runner->in;
    for (int32_t i = 0; i < item->n_tokens; i++) {
        int64_t position = job->n_cached + i;
        in->ids[at->token + i] = sequence->ids[position];
        in->positions[at->token + i] = (int32_t)position;
        in->slots[at->token + i] = mb_kv_slot(kv, job->table, position);
    }
    int64_t kv_len = job->n_cached + item->n_tokens;
    int32_t n_blocks = (int32_t)mb_kv_blocks_for(kv_len), max_blocks = runner->counts.max_blocks;
    int32_t *table = in->block_table + (size_t)i_planned * (size_t)max_blocks;
    memcpy(table, mb_kv_blocks(kv, job->table), (size_t)n_blocks * sizeof *table);
    memset(table + n_blocks, 0, (size_t)(max_blocks - n_blocks) * sizeof *table);
    in->kv_len[i_planned] = (int32_t)kv_len;
    in->q_start[i_planned] = at->token;
    at->token += item->n_tokens;
    in->q_start[i_planned + 1] = at->token;
}

void mb_runner_fill(mb_runner *runner, const mb_kv *kv, const mb_planned *plan, int32_t n_planned) {
    runner->counts = count(plan, n_planned);
    mb_arena_init(&runner->inputs_arena, runner->inputs, runner->inputs_bytes, 1);
    cut_inputs(&runner->inputs_arena, &runner->counts, &runner->in);
    cursor at = {.reported_draw = runner->counts.n_prompt_rows, .silent_draw = runner->counts.n_reported};
    for (int32_t i = 0; i < n_planned; i++) {
        runner->outcomes[i] = (mb_outcome){.id = -1};
        fill_logit_rows(runner, &plan[i], i, &at);
        fill_tokens(runner, kv, &plan[i], i, &at);
    }
}

/* ---- Running ------------------------------------------------------------------------------------------ */

static mb_status launch(mb_runner *runner) {
    mb_device *device = runner->model->device;
    const mb_step_counts *n = &runner->counts;
    const mb_step_inputs *in = &runner->in;
    int32_t vocab = runner->model->config.vocab;
    float *logits = runner->logits;
    if (runner->inputs_arena.overflowed || mb_arena_check(&runner->inputs_arena))
        return mb_fail(MB_ERR_INTERNAL, "the step's inputs are larger than their buffer");
    MB_TRY(device->upload(device, runner->device_inputs, runner->inputs, runner->inputs_arena.used,
                          runner->stream));

    mb_batch batch = {.ids = on_device(runner, in->ids),
                      .positions = on_device(runner, in->positions),
                      .slots = on_device(runner, in->slots),
                      .q_start = on_device(runner, in->q_start),
                      .kv_len = on_device(runner, in->kv_len),
                      .block_table = on_device(runner, in->block_table),
                      .logit_rows = on_device(runner, in->logit_rows),
                      .logits = logits,
                      .n_tokens = n->n_tokens,
                      .n_sequences = n->n_sequences,
                      .n_logits = n->n_logits,
                      .max_blocks = n->max_blocks,
                      .max_q_len = n->max_q_len,
                      .max_kv_len = n->max_kv_len};
    MB_TRY(mb_forward_run(&runner->forward, &runner->kv, &batch, runner->stream));

    mb_sample_args sample = {.logits = logits + (size_t)n->n_prompt_rows * (size_t)vocab,
                             .rows = on_device(runner, in->rows),
                             .ids = runner->device_drawn_ids,
                             .logprobs = runner->device_drawn_logprobs,
                             .n_rows = n->n_draws,
                             .vocab = vocab};
    MB_TRY(device->ops->sample(&sample, runner->sample_workspace, runner->sample_workspace_bytes,
                               runner->stream));
    /* After sampling, because it overwrites the logits. */
    mb_log_softmax_args log_softmax = {
        .logits = logits, .out = logits, .n_rows = n->n_reported, .vocab = vocab};
    MB_TRY(device->ops->log_softmax(&log_softmax, runner->stream));
    return device->download(device, runner->drawn_ids, runner->device_drawn_ids,
                            2 * (size_t)runner->limits.max_sequences * sizeof *runner->drawn_ids,
                            runner->stream);
}

static void read_draws(mb_runner *runner) {
    for (int32_t i = 0; i < runner->counts.n_draws; i++) {
        mb_outcome *outcome = &runner->outcomes[runner->draw_planned[i]];
        outcome->id = runner->drawn_ids[i];
        outcome->logprob = runner->drawn_logprobs[i];
        outcome->failed = outcome->id < 0;
    }
}

static mb_status report_logprobs(mb_runner *runner) {
    mb_device *device = runner->model->device;
    int32_t vocab = runner->model->config.vocab, n_reported = runner->counts.n_reported;
    size_t row_floats = (size_t)vocab;
    for (int32_t first = 0; first < n_reported; first += ROWS_AT_A_TIME) {
        int32_t n = n_reported - first < ROWS_AT_A_TIME ? n_reported - first : ROWS_AT_A_TIME;
        MB_TRY(device->download(device, runner->rows, runner->logits + (size_t)first * row_floats,
                                (size_t)n * row_floats * sizeof *runner->rows, runner->stream));
        MB_TRY(device->synchronize(device, runner->stream));
        for (int32_t i = 0; i < n; i++) {
            const mb_report *report = &runner->reports[first + i];
            const float *row = runner->rows + (size_t)i * row_floats;
            mb_outcome *outcome = &runner->outcomes[report->i_planned];
            outcome->failed |= isnan(row[0]); /* one NaN among the logits makes all of log-softmax NaN */
            if (!outcome->failed)
                report->call(report->user, report->position, row, vocab);
        }
    }
    return MB_OK;
}

mb_status mb_runner_run(mb_runner *runner) {
    mb_device *device = runner->model->device;
    mb_status status = launch(runner);
    if (status != MB_OK) {
        device->synchronize(device, runner->stream); /* whatever was issued must not outlive this step */
        return status;
    }
    MB_TRY(device->synchronize(device, runner->stream));
    read_draws(runner);
    return report_logprobs(runner);
}
