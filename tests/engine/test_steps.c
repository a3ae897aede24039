/*
 * Steps on a device that works behind the caller's back: what is in flight, what may be freed and when. The
 * device is the slow one of tests/support, which runs all work later and can be held.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine/step.h"
#include "model/model.h"
#include "support/generation.h"
#include "support/slow_device.h"

enum { VOCAB = 64, MIB = 1 << 20 };

static mb_model *model;
static mb_device *cpu;
static slow_device *slow;

static int open_model(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = VOCAB;
    options.n_layers = 3;
    options.max_positions = 1536;
    options.decoder_sparse_step = 2; /* dense layers too */
    options.seed = 11;
    model = tiny_model_open(&options, NULL);
    cpu = model->device;
    return 0;
}

static int close_model(void **state) {
    (void)state;
    mb_model_close(model);
    return 0;
}

static int use_slow_device(void **state) {
    (void)state;
    slow = slow_device_open(64 * MIB);
    model->device = slow_device_of(slow);
    return 0;
}

static int use_cpu(void **state) {
    (void)state;
    model->device = cpu;
    slow_device_close(slow);
    return 0;
}

static generation random_generation(uint64_t seed, size_t n_ids, int64_t max_new) {
    generation g;
    generation_init_random(&g, model, seed, VOCAB, -1, n_ids, max_new);
    return g;
}

static void pause_a_little(void) {
    const struct timespec some = {.tv_nsec = 20 * 1000 * 1000};
    nanosleep(&some, NULL);
}

/* ---- Results --------------------------------------------------------------------------------------- */

/* Nothing is read before it is there, and no buffer is written while it is still read. */
static void test_late_work_changes_no_result(void **state) {
    (void)state;
    enum { N = 6 };
    generation late[N], now[N];
    mb_session *session = session_with(model, 4, 60, 20, 20 * 64);
    for (int i = 0; i < N; i++) {
        for (int k = 0; k < 2; k++) {
            generation *g = k ? &now[i] : &late[i];
            *g = random_generation((uint64_t)i, 3 + (size_t)i * 17, 12);
            g->request.sampling.temperature = i % 2 ? 0.8f : 0;
            g->request.sampling.seed = (uint64_t)i;
            g->request.sampling.presence_penalty = i % 3 ? 0.5f : 0;
            if (i > 2)
                generation_keep_logprobs(g, i > 3);
        }
        generation_submit(&late[i], session);
    }
    generations_run(late, N, session);
    assert_session_idle(session);
    mb_session_close(session);

    model->device = cpu;
    session = session_with(model, 1, 0, 0, 20 * 64);
    for (int i = 0; i < N; i++) {
        generation_run_alone(&now[i], session);
        assert_true(generation_same_tokens(&late[i], &now[i]));
        assert_int_equal(late[i].n_rows, now[i].n_rows);
        if (now[i].n_rows > 0)
            assert_memory_equal(late[i].rows, now[i].rows, (size_t)now[i].n_rows * VOCAB * sizeof(float));
        generation_free(&late[i]);
        generation_free(&now[i]);
    }
    mb_session_close(session);
}

/* Sequences that end one after another, so that batches of every size are padded to buckets; with and without
 * penalties, biases and draws; one with a prompt of a single token, whose first step decodes. The longest
 * crosses from one bucket of context into the next. */
static void test_decode_graphs_change_no_result(void **state) {
    (void)state;
    enum { N = 7, LONG = 16 * 64, MODES = 4 };
    static const mb_logit_bias bias[] = {{3, 2.5f}, {5, -1.0f}, {3, 0.25f}};
    static const mb_graphs modes[MODES] = {MB_GRAPHS_STEP, MB_GRAPHS_NONE, MB_GRAPHS_ATTENTION,
                                           MB_GRAPHS_TWO_STREAMS};
    generation runs[MODES + 1][N], *alone = runs[MODES];
    uint64_t n_replays = 0, replays[MODES + 1];
    for (int run = 0; run <= MODES; run++) {
        generation *all = runs[run];
        mb_session_options options;
        mb_session *session;
        mb_session_options_init(&options);
        options.max_sequences = 6;
        options.kv_tokens = 40 * 64;
        options.graphs = run < MODES ? modes[run] : MB_GRAPHS_STEP;
        model->device = run < MODES ? slow_device_of(slow) : cpu;
        assert_int_equal(mb_session_open(model, &options, &session), MB_OK);
        for (int i = 0; i < N; i++) {
            all[i] = random_generation((uint64_t)i,
                                       i == 0   ? LONG - 5
                                       : i == 1 ? 1
                                                : 5 + (size_t)i * 20,
                                       3 + 4 * i + (i == 0) * 9);
            mb_sampling *sampling = &all[i].request.sampling;
            sampling->temperature = i % 2 ? 0.9f : 0;
            sampling->top_k = i % 4 == 3 ? 7 : 0;
            sampling->seed = (uint64_t)i;
            sampling->frequency_penalty = i % 3 ? 0 : 0.5f;
            sampling->logit_bias = bias;
            sampling->n_logit_bias = i == 4 ? 3 : 0;
            if (run < MODES)
                generation_submit(&all[i], session);
            else
                generation_run_alone(&all[i], session);
        }
        if (run < MODES)
            generations_run(all, N, session);
        assert_session_idle(session);
        mb_session_close(session);
        replays[run] = slow_device_n_replays(slow) - n_replays;
        n_replays += replays[run];
    }
    assert_true(replays[0] > 5);
    assert_int_equal(replays[1], 0);
    assert_true(replays[2] > 5 && replays[2] % (uint64_t)model->config.n_layers == 0);
    assert_true(replays[3] > 5);
    for (int run = 0; run <= MODES; run++) {
        for (int i = 0; i < N; i++) {
            assert_int_equal(runs[run][i].state, MB_FINISHED_LENGTH);
            assert_true(generation_same_tokens(&runs[run][i], &alone[i]));
        }
    }
    for (int i = 0; i < (MODES + 1) * N; i++)
        generation_free(&runs[i / N][i % N]);
}

/* ---- Launch and collect ---------------------------------------------------------------------------- */

typedef struct direct {
    mb_runner runner;
    mb_kv kv;
    mb_scheduler scheduler;
    void *kv_memory;
    mb_sequence *sequence;
} direct;

static void no_report(void *user, mb_sequence *sequence, int64_t position, const float *row, int32_t vocab) {
    (void)user;
    (void)sequence;
    (void)position;
    (void)row;
    (void)vocab;
    fail_msg("nobody asked for log-probabilities");
}

/* A runner with one sequence, by hand. */
static void open_direct(direct *d, const generation *g) {
    *d = (direct){0};
    mb_runner_limits limits = {.n_slots = 1,
                               .max_sequences = 2,
                               .max_step_tokens = 64,
                               .max_logits = 2,
                               .max_blocks = 4,
                               .n_kv_blocks = 4};
    assert_int_equal(mb_runner_open(&d->runner, model, &limits, no_report, NULL), MB_OK);
    mb_schedule_limits schedule = {
        .max_sequences = 2, .max_step_tokens = 64, .prefill_chunk = 64, .max_queued = 2};
    mb_arena arena;
    mb_arena_measure(&arena);
    mb_kv_init(&d->kv, &arena, 4, 2, 4);
    mb_scheduler_init(&d->scheduler, &arena, &schedule, &d->kv);
    size_t n_bytes = arena.used;
    d->kv_memory = malloc(n_bytes);
    mb_arena_init(&arena, d->kv_memory, n_bytes, 1);
    mb_kv_init(&d->kv, &arena, 4, 2, 4);
    mb_scheduler_init(&d->scheduler, &arena, &schedule, &d->kv);
    assert_int_equal(mb_sequence_create(model, &g->request, &d->sequence), MB_OK);
    d->sequence->id = 1;
    assert_int_equal(mb_scheduler_submit(&d->scheduler, &d->sequence->job), MB_OK);
}

static void close_direct(direct *d) {
    mb_scheduler_remove(&d->scheduler, &d->sequence->job);
    mb_sequence_destroy(d->sequence);
    mb_runner_close(&d->runner);
    free(d->kv_memory);
}

static void fill_next_step(direct *d, mb_step_slot *slot) {
    slot->n_planned = mb_scheduler_plan(&d->scheduler, slot->plan);
    assert_int_equal(slot->n_planned, 1);
    mb_runner_fill(&d->runner, slot, &d->kv);
}

static void test_launch_does_not_wait(void **state) {
    (void)state;
    enum { N_NEW = 3 };
    mb_device *device = slow_device_of(slow);
    generation g = random_generation(1, 10, N_NEW), expected = random_generation(1, 10, N_NEW);
    direct d;
    open_direct(&d, &g);
    mb_session *session = session_with(model, 1, 0, 0, 256);
    generation_run_alone(&expected, session);
    mb_session_close(session);
    mb_step_slot *slot = &d.runner.slots[0];
    for (int i = 0; i < N_NEW; i++) {
        int was_reached = 1;
        fill_next_step(&d, slot);
        slow_device_hold(slow);
        assert_int_equal(mb_runner_launch(&d.runner, slot), MB_OK);
        pause_a_little();
        assert_int_equal(device->event_query(device, slot->done, &was_reached), MB_OK);
        assert_false(was_reached);
        slow_device_go(slow);
        assert_int_equal(mb_runner_collect(&d.runner, slot), MB_OK);
        assert_int_equal(device->event_query(device, slot->done, &was_reached), MB_OK);
        assert_true(was_reached);
        assert_int_equal(slot->outcomes[0].id, expected.tokens[i].id);
        mb_sequence_take(d.sequence, slot->outcomes[0].id, slot->outcomes[0].logprob);
        mb_scheduler_collect(&d.scheduler, &slot->plan[0], 1);
    }
    close_direct(&d);
    generation_free(&g);
    generation_free(&expected);
}

static void test_failing_work_fails_the_collect(void **state) {
    (void)state;
    generation g = random_generation(2, 10, 3), next = random_generation(3, 10, 3);
    mb_session *session = session_with(model, 1, 0, 0, 256);
    generation_submit(&g, session);
    generation_submit(&next, session);
    slow_device_fail_next(slow);
    int n_unfinished = -1;
    assert_int_equal(mb_step(session, &n_unfinished), MB_ERR_DEVICE);
    assert_non_null(strstr(mb_last_error(), "fell over"));
    assert_int_equal(n_unfinished, 1);
    generation_read(&g, session);
    assert_int_equal(g.state, MB_FAILED);
    generations_run(&next, 1, session);
    assert_int_equal(mb_get_failure(session, next.id), MB_OK);
    assert_int_equal(mb_get_failure(session, g.id), MB_ERR_DEVICE);
    assert_non_null(strstr(mb_last_error(), "fell over"));
    assert_int_equal(mb_get_failure(session, 12345), MB_ERR_NOT_FOUND);
    assert_int_equal(next.state, MB_FINISHED_LENGTH);
    assert_session_idle(session);
    mb_session_close(session);
    generation_free(&g);
    generation_free(&next);
}

/* ---- Leaving while a step is in flight ------------------------------------------------------------- */

typedef struct stepper {
    mb_session *session;
    pthread_t thread;
    mb_status status;
    atomic_int is_done;
} stepper;

static void *stepper_body(void *user) {
    stepper *s = user;
    s->status = mb_step(s->session, NULL);
    atomic_store(&s->is_done, 1);
    return NULL;
}

static void start_step(stepper *s, mb_session *session) {
    s->session = session;
    atomic_store(&s->is_done, 0);
    assert_int_equal(pthread_create(&s->thread, NULL, stepper_body, s), 0);
}

static void finish_step(stepper *s) {
    pthread_join(s->thread, NULL);
    assert_int_equal(s->status, MB_OK);
}

static void count_row(void *user, int64_t position, const float *row, int32_t vocab) {
    (void)position;
    (void)row;
    (void)vocab;
    atomic_fetch_add((atomic_int *)user, 1);
}

static void test_leaving_in_flight(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        const int release = i % 2, depth = 1 + i / 2;
        generation leaving = random_generation(4, 70, 5), staying = random_generation(5, 10, 5);
        atomic_int *n_rows = malloc(sizeof *n_rows);
        atomic_init(n_rows, 0);
        leaving.request.on_logprobs = count_row;
        leaving.request.on_logprobs_user = n_rows;
        leaving.request.prompt_logprobs = 1;
        mb_session_options options;
        mb_session *session;
        mb_session_options_init(&options);
        options.max_sequences = 2;
        options.kv_tokens = 4 * 64;
        options.steps_in_flight = depth;
        options.max_decode_slowdown = 0; /* the prompt goes on beside the one that decodes */
        assert_int_equal(mb_session_open(model, &options, &session), MB_OK);
        generation_submit(&leaving, session);
        generation_submit(&staying, session);
        const uint64_t n_records = slow_device_n_records(slow);
        slow_device_hold(slow);
        stepper s;
        start_step(&s, session);
        slow_device_wait_for_records(slow, n_records + (uint64_t)depth); /* both are in all steps in flight */
        assert_int_equal(session_stats(session).n_running, 2);
        assert_int_equal(session_stats(session).kv_blocks_free, 1);
        /* It returns although the step is held, and what the callback uses may go. */
        assert_int_equal(release ? mb_release(session, leaving.id) : mb_cancel(session, leaving.id), MB_OK);
        assert_int_equal(atomic_load(n_rows), 0);
        memset(n_rows, 0xCD, sizeof *n_rows);
        atomic_int *former = n_rows;
        assert_int_equal(session_stats(session).n_running, 1);
        assert_int_equal(session_stats(session).kv_blocks_free, 1); /* the step still writes its blocks */
        assert_false(atomic_load(&s.is_done));
        slow_device_go(slow);
        finish_step(&s);
        if (depth == 2) {
            assert_int_equal(session_stats(session).kv_blocks_free, 1); /* the second step wrote them too */
            session_step(session);
        }
        assert_int_equal(atomic_load(former), (int)0xCDCDCDCD); /* never called */
        assert_int_equal(session_stats(session).kv_blocks_free, 3);
        if (!release) {
            generation_read(&leaving, session);
            assert_int_equal(leaving.state, MB_CANCELLED);
            assert_int_equal(leaving.n_tokens, 0);
        }
        generations_run(&staying, 1, session);
        assert_int_equal(staying.state, MB_FINISHED_LENGTH);
        assert_session_idle(session);
        mb_session_close(session);
        free(n_rows);
        generation_free(&leaving);
        generation_free(&staying);
    }
}

/* ---- A callback in progress ------------------------------------------------------------------------ */

typedef struct slow_callback {
    mb_session *session;
    uint64_t id;
    atomic_int has_begun, may_end, n_calls, leaves_itself;
    int release;
    mb_status left;
} slow_callback;

static mb_status leave(slow_callback *c) {
    return c->release ? mb_release(c->session, c->id) : mb_cancel(c->session, c->id);
}

static void call_slowly(void *user, int64_t position, const float *row, int32_t vocab) {
    (void)position;
    (void)row;
    (void)vocab;
    slow_callback *c = user;
    atomic_fetch_add(&c->n_calls, 1);
    atomic_store(&c->has_begun, 1);
    if (atomic_load(&c->leaves_itself))
        c->left = leave(c);
    while (!atomic_load(&c->may_end))
        pause_a_little();
}

typedef struct leaver {
    slow_callback *callback;
    pthread_t thread;
    atomic_int has_left;
    int callback_had_ended;
} leaver;

static void *leaver_body(void *user) {
    leaver *l = user;
    l->callback->left = leave(l->callback);
    l->callback_had_ended = atomic_load(&l->callback->may_end);
    atomic_store(&l->has_left, 1);
    return NULL;
}

static void open_callback(slow_callback *c, generation *g, mb_session *session, int release) {
    *g = random_generation(6, 20, 5);
    *c = (slow_callback){.session = session, .release = release, .left = MB_ERR_INTERNAL};
    g->request.on_logprobs = call_slowly;
    g->request.on_logprobs_user = c;
    g->request.prompt_logprobs = 1;
    generation_submit(g, session);
    c->id = g->id;
}

/* Whether the leaver has taken effect; it may still wait for the callback. */
static int is_cancelled(const slow_callback *c) {
    size_t n;
    mb_state state;
    return mb_read(c->session, c->id, NULL, 0, &n, &state) != MB_OK || state == MB_CANCELLED;
}

static void test_leaving_waits_for_the_callback(void **state) {
    (void)state;
    for (int release = 0; release < 2; release++) {
        mb_session *session = session_with(model, 2, 0, 0, 4 * 64);
        generation g;
        slow_callback c;
        open_callback(&c, &g, session, release);
        stepper s;
        start_step(&s, session);
        while (!atomic_load(&c.has_begun))
            pause_a_little();
        leaver l = {.callback = &c};
        assert_int_equal(pthread_create(&l.thread, NULL, leaver_body, &l), 0);
        while (!is_cancelled(&c)) /* on a busy machine the thread starts late */
            pause_a_little();
        pause_a_little();
        assert_false(atomic_load(&l.has_left));
        assert_true(session_stats(session).n_running >= 0); /* others are not kept waiting */
        atomic_store(&c.may_end, 1);
        pthread_join(l.thread, NULL);
        assert_int_equal(c.left, MB_OK);
        assert_true(l.callback_had_ended);
        finish_step(&s);
        assert_int_equal(atomic_load(&c.n_calls), 1); /* 19 positions more had been wanted */
        assert_session_idle(session);
        mb_session_close(session);
        generation_free(&g);
    }
}

static void test_leaving_within_the_callback(void **state) {
    (void)state;
    for (int release = 0; release < 2; release++) {
        mb_session *session = session_with(model, 2, 0, 0, 4 * 64);
        generation g;
        slow_callback c;
        open_callback(&c, &g, session, release);
        atomic_store(&c.leaves_itself, 1);
        atomic_store(&c.may_end, 1);
        session_step(session);
        assert_int_equal(c.left, MB_OK);
        assert_int_equal(atomic_load(&c.n_calls), 1);
        assert_session_idle(session);
        mb_session_close(session);
        generation_free(&g);
    }
}

/* ---- Memory ---------------------------------------------------------------------------------------- */

/* A cache that takes what is free leaves room for the step's buffers, and is no smaller than it must be. */
static void test_the_cache_takes_what_is_left(void **state) {
    (void)state;
    mb_device *device = slow_device_of(slow);
    uint64_t total, left;
    mb_session *session = session_with(model, 0, 2048, 0, 64); /* one block */
    assert_int_equal(device->memory(device, &total, &left), MB_OK);
    mb_session_close(session);
    uint64_t needed = total - left, spare = MIB;
    slow_device_close(slow);
    slow = slow_device_open(needed + spare);
    device = model->device = slow_device_of(slow);

    session = session_with(model, 0, 2048, 0, 0);
    assert_int_equal(device->memory(device, &total, &left), MB_OK);
    assert_in_range(left, total * 8 / 100 - 1, total * 8 / 100 + spare / 8); /* and less than a block */
    assert_true(session_stats(session).kv_blocks_total > 1);
    generation g = random_generation(7, 300, 10);
    generation_run_alone(&g, session);
    assert_int_equal(g.state, MB_FINISHED_LENGTH);
    mb_session_close(session);
    generation_free(&g);
}

static void test_no_room_for_a_block_is_said(void **state) {
    (void)state;
    mb_session_options options;
    mb_session_options_init(&options);
    options.max_step_tokens = options.prefill_chunk = 1 << 20;
    mb_session *session = (mb_session *)1;
    assert_int_equal(mb_session_open(model, &options, &session), MB_ERR_MEMORY);
    assert_null(session);
    assert_non_null(strstr(mb_last_error(), "activations of a step"));
}

/* ---- A device that cannot -------------------------------------------------------------------------- */

static void test_missing_operators_are_named(void **state) {
    (void)state;
    mb_device *device = slow_device_of(slow);
    const mb_ops *whole = device->ops;
    mb_ops holes = *whole;
    holes.embed = NULL;
    holes.sample_workspace = NULL;
    device->ops = &holes;
    mb_session *session = (mb_session *)1;
    assert_int_equal(mb_session_open(model, NULL, &session), MB_ERR_UNSUPPORTED);
    assert_null(session);
    assert_non_null(strstr(mb_last_error(), "slow: "));
    assert_non_null(strstr(mb_last_error(), "embed, sample"));
    assert_non_null(strstr(mb_last_error(), "--device cpu"));
    device->ops = whole;
}

#define ON_SLOW(test) cmocka_unit_test_setup_teardown(test, use_slow_device, use_cpu)

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_SLOW(test_late_work_changes_no_result),
        ON_SLOW(test_launch_does_not_wait),
        ON_SLOW(test_decode_graphs_change_no_result),
        ON_SLOW(test_failing_work_fails_the_collect),
        ON_SLOW(test_leaving_in_flight),
        ON_SLOW(test_leaving_waits_for_the_callback),
        ON_SLOW(test_leaving_within_the_callback),
        ON_SLOW(test_the_cache_takes_what_is_left),
        ON_SLOW(test_no_room_for_a_block_is_said),
        ON_SLOW(test_missing_operators_are_named),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
