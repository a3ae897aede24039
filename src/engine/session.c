/* session.c - opening a session; submitting, reading, cancelling and releasing sequences. */
#include "engine/session.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>

#include "base/alloc.h"
#include "engine/waiter.h"

enum {
    MAX_SEQUENCES = 4096,
    MAX_STEP_TOKENS = 1 << 20,
    MAX_QUEUED = 1 << 20,
    DEFAULT_CPU_KV_TOKENS = 16384,
    CPU_STEP_TOKENS = 2048,
    CPU_CHUNK = 512,
    GPU_STEP_TOKENS = 8192, /* a step reads all weights: the more tokens share them, the better */
    PROMPT_LOGITS = 64, /* rows of logits for log-probabilities of prompts in one step: bounds their memory */
};

/* ---- Opening --------------------------------------------------------------------------------------- */

void mb_session_options_init(mb_session_options *options) {
    *options = (mb_session_options){.max_sequences = 64,
                                    .max_queued = 1024,
                                    .kv_tokens = 0,
                                    .memory_fraction = 0.92f,
                                    .prefix_caching = 1,
                                    .max_decode_slowdown = 2};
}

static mb_status check_range(const char *name, int64_t value, int64_t least, int64_t most) {
    if (value >= least && value <= most)
        return MB_OK;
    return mb_fail(MB_ERR_ARGUMENT,
                   "session option %s is %" PRId64 "; it must be in [%" PRId64 ", %" PRId64
                   "] (mb_session_options_init sets the defaults)",
                   name, value, least, most);
}

static mb_status check_options(const mb_session_options *options) {
    MB_TRY(check_range("max_sequences", options->max_sequences, 1, MAX_SEQUENCES));
    MB_TRY(check_range("max_step_tokens", options->max_step_tokens, 0, MAX_STEP_TOKENS));
    MB_TRY(check_range("prefill_chunk", options->prefill_chunk, 0, MAX_STEP_TOKENS));
    MB_TRY(check_range("max_queued", options->max_queued, 1, MAX_QUEUED));
    MB_TRY(check_range("steps_in_flight", options->steps_in_flight, 0, MB_STEP_SLOTS));
    MB_TRY(check_range("graphs", (int64_t)options->graphs, MB_GRAPHS_STEP, MB_GRAPHS_TWO_STREAMS));
    float slowdown = options->max_decode_slowdown; /* written so that NaN fails */
    if (slowdown != 0 && !(slowdown > 1 && slowdown <= FLT_MAX))
        return mb_fail(MB_ERR_ARGUMENT,
                       "session option max_decode_slowdown is %g; it must be more than 1, or 0 for no limit "
                       "(mb_session_options_init sets the defaults)",
                       (double)slowdown);
    /* cache rows are numbered by int32_t */
    MB_TRY(check_range("max_context", options->max_context, 0, INT32_MAX));
    if (!(options->memory_fraction > 0 && options->memory_fraction <= 1))
        return mb_fail(MB_ERR_ARGUMENT,
                       "session option memory_fraction is %g; it must be more than 0 and at most 1",
                       (double)options->memory_fraction);
    return check_range("kv_tokens", options->kv_tokens, 0, INT32_MAX - (MB_KV_BLOCK_TOKENS - 1));
}

static int32_t smaller(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static int32_t larger(int32_t a, int32_t b) {
    return a > b ? a : b;
}

static void cut(mb_session *session, mb_arena *arena, const mb_schedule_limits *limits) {
    size_t n_buckets = 16;
    while (n_buckets < 2 * ((size_t)limits->max_sequences + (size_t)limits->max_queued))
        n_buckets *= 2;
    mb_kv_init(&session->kv, arena, session->runner.kv.n_blocks, limits->max_sequences,
               session->runner.limits.max_blocks);
    mb_scheduler_init(&session->scheduler, arena, limits, &session->kv);
    session->buckets = mb_arena_push(arena, n_buckets, sizeof *session->buckets);
    session->bucket_mask = n_buckets - 1;
    for (size_t i = 0; i < n_buckets && session->buckets; i++)
        session->buckets[i] = NULL;
}

/* The position at which a token's attention is as many multiplications as all else of the token. */
static double double_at(const mb_model *model) {
    const mb_config *config = &model->config;
    double per_position = 2.0 * config->n_layers * config->n_heads * config->head_dim;
    return fmax((double)model->weights.n_active_parameters / per_position, 1);
}

/* On a GPU so many tokens of a prompt hit 98 % of the experts: more of them read hardly more weights. On the CPU
 * each token takes time of its own. */
static int32_t least_prompt_tokens(const mb_model *model) {
    enum { DENSE = 16 };
    const mb_config *config = &model->config;
    if (model->device->n_sms == 0)
        return 1;
    return config->top_k > 0 ? larger(4 * config->n_experts / config->top_k, DENSE) : DENSE;
}

/* The sizes of a step, with the device's own where the options have 0. */
typedef struct step_sizes {
    int32_t max_sequences, max_tokens, chunk;
} step_sizes;

static step_sizes choose_step(const mb_model *model, const mb_session_options *options) {
    int is_gpu = model->device->n_sms > 0;
    step_sizes step = {.max_tokens = options->max_step_tokens, .chunk = options->prefill_chunk};
    if (step.max_tokens == 0)
        step.max_tokens = is_gpu ? GPU_STEP_TOKENS : CPU_STEP_TOKENS;
    if (step.chunk == 0)
        step.chunk = is_gpu ? GPU_STEP_TOKENS : CPU_CHUNK;
    /* With at most one sequence per token of the budget every step can decode all of them. */
    step.max_sequences = smaller(options->max_sequences, step.max_tokens);
    int64_t fillable = (int64_t)step.max_sequences * step.chunk;
    if (step.max_tokens > fillable)
        step.max_tokens = (int32_t)fillable;
    return step;
}

static mb_status open_parts(mb_session *session, const mb_session_options *options) {
    const mb_model *model = session->model;
    const step_sizes step = choose_step(model, options);
    int64_t kv_tokens = options->kv_tokens;
    session->max_context = model->config.max_positions;
    if (options->max_context > 0 && options->max_context < session->max_context)
        session->max_context = options->max_context;
    if (kv_tokens == 0 && model->device->host_memory)
        kv_tokens = DEFAULT_CPU_KV_TOKENS;
    /* The CPU works when it is called: a second step in flight would wait for the first. */
    int32_t n_slots = options->steps_in_flight;
    if (n_slots == 0)
        n_slots = model->device->host_memory ? 1 : MB_STEP_SLOTS;
    mb_runner_limits runner_limits = {
        .n_slots = n_slots,
        .max_sequences = step.max_sequences,
        .max_step_tokens = step.max_tokens,
        .graphs = options->graphs,
        .max_logits = smaller(step.max_sequences + PROMPT_LOGITS, step.max_tokens),
        .max_blocks = (int32_t)mb_kv_blocks_for(session->max_context),
        .n_kv_blocks = (int32_t)mb_kv_blocks_for(kv_tokens),
        .memory_fraction = options->memory_fraction,
    };
    MB_TRY(mb_runner_open(&session->runner, model, &runner_limits, mb_session_report, session));

    mb_schedule_limits schedule_limits = {.max_sequences = step.max_sequences,
                                          .max_step_tokens = step.max_tokens,
                                          .prefill_chunk = step.chunk,
                                          .max_queued = options->max_queued,
                                          .max_prompt_logits = runner_limits.max_logits - step.max_sequences,
                                          .prefix_caching = options->prefix_caching,
                                          .max_decode_slowdown = (double)options->max_decode_slowdown,
                                          .double_at = double_at(model),
                                          .least_prompt_tokens = least_prompt_tokens(model)};
    mb_arena arena;
    mb_arena_measure(&arena);
    cut(session, &arena, &schedule_limits);
    size_t n_bytes = arena.used;
    session->memory = arena.overflowed ? NULL : mb_malloc(n_bytes);
    if (!session->memory)
        return mb_fail(MB_ERR_MEMORY, "no memory for a session's bookkeeping (%zu bytes)", n_bytes);
    mb_arena_init(&arena, session->memory, n_bytes, 1);
    cut(session, &arena, &schedule_limits);
    return MB_OK;
}

/* The lock and the conditions; 0 when the system has none left. */
static int open_lock(mb_session *session) {
    if (pthread_mutex_init(&session->lock, NULL) != 0)
        return 0;
    if (pthread_cond_init(&session->reported, NULL) == 0) {
        if (mb_condition_init(&session->has_work))
            return 1;
        pthread_cond_destroy(&session->reported);
    }
    pthread_mutex_destroy(&session->lock);
    return 0;
}

mb_status mb_session_open(mb_model *model, const mb_session_options *options, mb_session **session) {
    mb_session_options defaults;
    mb_session_options_init(&defaults);
    if (!options)
        options = &defaults;
    if (!session)
        return mb_fail(MB_ERR_ARGUMENT, "mb_session_open: session is NULL");
    *session = NULL;
    if (!model)
        return mb_fail(MB_ERR_ARGUMENT, "mb_session_open: model is NULL");
    if (model->load != MB_LOAD_ALL && model->load != MB_LOAD_RANDOM)
        return mb_fail(MB_ERR_STATE,
                       "mb_session_open: the model was opened without its weights; open it with MB_LOAD_ALL");
    MB_TRY(check_options(options));

    mb_session *opened = mb_calloc(1, sizeof *opened);
    if (!opened)
        return mb_fail(MB_ERR_MEMORY, "no memory for a session");
    opened->model = model;
    if (!open_lock(opened)) {
        mb_free(opened);
        return mb_fail(MB_ERR_MEMORY, "the system gave no lock for a session");
    }
    mb_status status = open_parts(opened, options);
    if (status != MB_OK) {
        mb_session_close(opened);
        return status;
    }
    *session = opened;
    return MB_OK;
}

void mb_session_close(mb_session *session) {
    if (!session)
        return;
    mb_session_abandon_steps(session);
    for (uint64_t i = 0; session->buckets && i <= session->bucket_mask; i++)
        while (session->buckets[i]) {
            mb_sequence *sequence = session->buckets[i];
            session->buckets[i] = sequence->next_in_bucket;
            mb_sequence_destroy(sequence);
        }
    mb_runner_close(&session->runner);
    mb_free(session->memory);
    pthread_cond_destroy(&session->has_work);
    pthread_cond_destroy(&session->reported);
    pthread_mutex_destroy(&session->lock);
    mb_free(session);
}

int mb_session_n_unfinished(const mb_session *session) {
    int n = (int)session->scheduler.waiting.n + (int)session->scheduler.running.n;
    return n == 0 && session->n_in_flight > 0 ? 1 : n;
}

/* ---- Sequences by id ------------------------------------------------------------------------------- */

/* The pointer to the sequence (for unlinking); points to NULL when there is none. */
static mb_sequence **find(mb_session *session, uint64_t id) {
    mb_sequence **place = &session->buckets[id & session->bucket_mask];
    while (*place && (*place)->id != id)
        place = &(*place)->next_in_bucket;
    return place;
}

static mb_status not_found(uint64_t id) {
    return mb_fail(MB_ERR_NOT_FOUND, "the session has no sequence %" PRIu64 "; was it released?", id);
}

/* ---- Requests -------------------------------------------------------------------------------------- */

void mb_request_init(const mb_model *model, mb_request *request) {
    const mb_generation *generation = &model->generation;
    *request = (mb_request){.sampling = {.temperature = generation->do_sample ? generation->temperature : 0,
                                         .top_k = generation->top_k,
                                         .top_p = generation->top_p,
                                         .min_p = generation->min_p,
                                         .repetition_penalty = generation->repetition_penalty}};
}

mb_status mb_submit(mb_session *session, const mb_request *request, uint64_t *id) {
    mb_sequence *sequence;
    MB_TRY(mb_need(session, "mb_submit: session"));
    MB_TRY(mb_need(request, "mb_submit: request"));
    MB_TRY(mb_need(id, "mb_submit: id"));
    *id = 0;
    if (request->waiter && request->waiter->session != session)
        return mb_fail(MB_ERR_ARGUMENT,
                       "request.waiter belongs to another session; open one on this session");
    MB_TRY(mb_sequence_create(session->model, request, &sequence));
    if (sequence->job.max_tokens > session->max_context) {
        mb_sequence_destroy(sequence);
        return mb_fail(MB_ERR_CAPACITY,
                       "the prompt plus max_new_tokens is %" PRIu64
                       " tokens, more than the session's max_context "
                       "of %" PRId64 "; ask for fewer, or open the session with a larger one",
                       (uint64_t)request->n_ids + (uint64_t)request->max_new_tokens, session->max_context);
    }
    pthread_mutex_lock(&session->lock);
    mb_status status = mb_scheduler_submit(&session->scheduler, &sequence->job);
    if (status == MB_OK) {
        sequence->id = ++session->last_id;
        *find(session, sequence->id) = sequence;
        *id = sequence->id;
        mb_waiter_attach(request->waiter, sequence);
        pthread_cond_signal(&session->has_work);
    }
    pthread_mutex_unlock(&session->lock);
    if (status != MB_OK)
        mb_sequence_destroy(sequence);
    return status;
}

mb_status mb_read(mb_session *session, uint64_t id, mb_token *tokens, size_t capacity, size_t *n_tokens,
                  mb_state *state) {
    MB_TRY(mb_need(session, "mb_read: session"));
    MB_TRY(mb_need(n_tokens, "mb_read: n_tokens"));
    MB_TRY(mb_need(state, "mb_read: state"));
    *n_tokens = 0;
    if (capacity > 0)
        MB_TRY(mb_need(tokens, "mb_read: tokens"));
    pthread_mutex_lock(&session->lock);
    mb_sequence *sequence = *find(session, id);
    if (sequence) {
        int64_t n_answer = sequence->job.n_tokens - sequence->n_prompt;
        for (; sequence->n_read < n_answer && *n_tokens < capacity; sequence->n_read++)
            tokens[(*n_tokens)++] = (mb_token){.id = sequence->ids[sequence->n_prompt + sequence->n_read],
                                               .logprob = sequence->logprobs[sequence->n_read]};
        *state = sequence->state;
    }
    pthread_mutex_unlock(&session->lock);
    return sequence ? MB_OK : not_found(id);
}

mb_status mb_get_usage(mb_session *session, uint64_t id, mb_usage *usage) {
    MB_TRY(mb_need(session, "mb_get_usage: session"));
    MB_TRY(mb_need(usage, "mb_get_usage: usage"));
    *usage = (mb_usage){0};
    pthread_mutex_lock(&session->lock);
    const mb_sequence *sequence = *find(session, id);
    if (sequence)
        *usage = (mb_usage){.n_prompt = sequence->n_prompt,
                            .n_cached_tokens = sequence->job.n_hit_tokens,
                            .n_preemptions = sequence->job.n_preemptions,
                            .n_generated = sequence->job.n_tokens - sequence->n_prompt};
    pthread_mutex_unlock(&session->lock);
    return sequence ? MB_OK : not_found(id);
}

mb_status mb_get_failure(mb_session *session, uint64_t id) {
    MB_TRY(mb_need(session, "mb_get_failure: session"));
    pthread_mutex_lock(&session->lock);
    const mb_sequence *sequence = *find(session, id);
    mb_status status = sequence ? MB_OK : not_found(id);
    if (sequence && sequence->state == MB_FAILED)
        status = mb_fail(sequence->failure, "%s", sequence->failure_sentence);
    pthread_mutex_unlock(&session->lock);
    return status;
}

static void cancel(mb_session *session, mb_sequence *sequence) {
    if (sequence->state == MB_WAITING || sequence->state == MB_RUNNING) {
        sequence->state = MB_CANCELLED;
        mb_waiter_tell(sequence);
    }
    mb_scheduler_remove(&session->scheduler, &sequence->job);
}

/* Waits until a callback of the sequence, which was cancelled before, has returned; within the callback
 * itself it does not wait. Afterwards the sequence may be gone. */
static void wait_for_report(mb_session *session, uint64_t id) {
    if (session->stepping && pthread_equal(session->stepper, pthread_self()))
        return;
    while (session->reporting == id)
        pthread_cond_wait(&session->reported, &session->lock);
}

mb_status mb_cancel(mb_session *session, uint64_t id) {
    MB_TRY(mb_need(session, "mb_cancel: session"));
    pthread_mutex_lock(&session->lock);
    mb_sequence *sequence = *find(session, id);
    if (sequence) {
        cancel(session, sequence);
        wait_for_report(session, id);
    }
    pthread_mutex_unlock(&session->lock);
    return sequence ? MB_OK : not_found(id);
}

mb_status mb_release(mb_session *session, uint64_t id) {
    MB_TRY(mb_need(session, "mb_release: session"));
    pthread_mutex_lock(&session->lock);
    mb_sequence **place = find(session, id), *sequence = *place;
    int destroy = 0;
    if (sequence) {
        cancel(session, sequence);
        *place = sequence->next_in_bucket;
        mb_waiter_detach(sequence);
        sequence->released = 1;
        destroy = sequence->job.n_in_flight == 0;
        wait_for_report(session, id);
    }
    pthread_mutex_unlock(&session->lock);
    if (!sequence)
        return not_found(id);
    if (destroy)
        mb_sequence_destroy(sequence);
    return MB_OK;
}

void mb_session_get_stats(mb_session *session, mb_session_stats *stats) {
    pthread_mutex_lock(&session->lock);
    *stats = (mb_session_stats){.n_waiting = session->scheduler.waiting.n,
                                .n_running = session->scheduler.running.n,
                                .kv_blocks_total = session->kv.n_blocks,
                                .kv_blocks_free = mb_kv_available(&session->kv),
                                .n_steps = session->n_steps,
                                .n_prompt_tokens = session->n_prompt_tokens,
                                .n_generated_tokens = session->n_generated_tokens,
                                .n_preemptions = session->scheduler.n_preemptions,
                                .n_prefix_queries = session->scheduler.n_prefix_queries,
                                .n_prefix_hits = session->scheduler.n_prefix_hits};
    pthread_mutex_unlock(&session->lock);
}

void mb_session_get_memory(const mb_session *session, mb_session_memory *memory) {
    const mb_runner *runner = &session->runner;
    mb_device *device = session->model->device;
    *memory = (mb_session_memory){.weight_bytes = session->model->weights.n_bytes,
                                  .buffer_bytes = runner->forward.memory_bytes + runner->device_bytes,
                                  .kv_bytes = runner->kv_bytes,
                                  .kv_tokens = (int64_t)runner->kv.n_blocks * MB_KV_BLOCK_TOKENS,
                                  .step_tokens = runner->limits.max_step_tokens};
    if (device->memory(device, &memory->device_bytes, &memory->free_bytes) != MB_OK)
        memory->device_bytes = memory->free_bytes = 0;
}
