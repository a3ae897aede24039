/*
 * Two steps in flight: the host plans, fills and launches a step while the device runs the one before it, and
 * nothing but the time changes. The device is the slow one of tests/support, which can be held between steps.
 */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine/session.h"
#include "model/model.h"
#include "support/generation.h"
#include "support/slow_device.h"

enum { VOCAB = 64, POISONED = 13, MIB = 1 << 20, KV_TOKENS = 24 * 64 };

static mb_model *model;    /* plain */
static mb_model *poisoned; /* the same with NaN in the embedding of one token */
static mb_device *cpu, *poisoned_cpu;
static slow_device *slow;

static int open_models(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = VOCAB;
    options.n_layers = 2;
    options.max_positions = 512;
    options.seed = 31;
    tiny_tensors tensors;
    tiny_checkpoint_tensors(&options, &tensors);
    model = tiny_model_open(&options, &tensors);
    tiny_tensor *embedding = tiny_tensors_find(&tensors, "model.embed_tokens.weight");
    float *row = (float *)embedding->data + (size_t)POISONED * (size_t)options.hidden;
    for (int i = 0; i < options.hidden; i++)
        row[i] = NAN;
    poisoned = tiny_model_open(&options, &tensors);
    tiny_tensors_free(&tensors);
    cpu = model->device;
    poisoned_cpu = poisoned->device;
    return 0;
}

static int close_models(void **state) {
    (void)state;
    mb_model_close(model);
    mb_model_close(poisoned);
    return 0;
}

static int use_slow_device(void **state) {
    (void)state;
    slow = slow_device_open(64 * MIB);
    model->device = poisoned->device = slow_device_of(slow);
    return 0;
}

static int use_cpu(void **state) {
    (void)state;
    model->device = cpu;
    poisoned->device = poisoned_cpu;
    slow_device_close(slow);
    return 0;
}

typedef struct shape {
    int32_t steps_in_flight, max_sequences, max_step_tokens, prefill_chunk, kv_tokens;
    int plain_launches;
} shape;

static mb_session *session_of(mb_model *of, shape s) {
    mb_session_options options;
    mb_session *session;
    mb_session_options_init(&options);
    options.steps_in_flight = s.steps_in_flight;
    options.plain_launches = s.plain_launches;
    options.kv_tokens = s.kv_tokens ? s.kv_tokens : KV_TOKENS;
    if (s.max_sequences)
        options.max_sequences = s.max_sequences;
    if (s.max_step_tokens)
        options.max_step_tokens = s.max_step_tokens;
    if (s.prefill_chunk)
        options.prefill_chunk = s.prefill_chunk;
    if (mb_session_open(of, &options, &session) != MB_OK)
        fail_msg("mb_session_open: %s", mb_last_error());
    return session;
}

static generation random_generation(uint64_t seed, size_t n_ids, int64_t max_new) {
    generation g;
    generation_init_random(&g, model, seed, VOCAB, POISONED, n_ids, max_new);
    return g;
}

/* Requests of every kind, the same for the same seed: all that the next draw may depend on, all that may
 * end an answer, and log-probabilities. */
static void wild_generation_init(generation *g, uint64_t seed) {
    static const mb_logit_bias biases[] = {{3, 1.5f}, {9, -INFINITY}, {POISONED, -INFINITY}};
    static const int32_t stops[] = {5, 17, 40};
    *g = random_generation(seed, 1 + seed * 23 % 90, 1 + (int64_t)(seed * 7 % 19));
    mb_sampling *s = &g->request.sampling;
    *s = (mb_sampling){.temperature = seed % 5 ? 1.1f : 0, .top_p = 0.98f, .seed = seed};
    s->repetition_penalty = seed % 2 ? 1.3f : 1;
    s->presence_penalty = seed % 3 == 1 ? 0.6f : 0;
    s->frequency_penalty = seed % 5 == 2 ? 0.8f : 0;
    s->logit_bias = biases;
    s->n_logit_bias = seed % 4 ? 0 : 3;
    g->request.stop_ids = stops;
    g->request.n_stop_ids = seed % 3 ? 3 : 0;
    g->request.min_new_tokens = seed % 7 == 1 ? g->request.max_new_tokens / 2 : 0;
    if (seed % 4 > 1)
        generation_keep_logprobs(g, seed % 4 == 3);
}

static void assert_same(const generation *a, const generation *b) {
    assert_true(generation_same_tokens(a, b));
    assert_int_equal(a->n_rows, b->n_rows);
    assert_false(a->out_of_order);
    if (a->n_rows > 0)
        assert_memory_equal(a->rows, b->rows, (size_t)a->n_rows * VOCAB * sizeof(float));
}

/* What the wild requests give alone on the CPU. */
static void run_all_alone(generation *alone, size_t n) {
    mb_device *former = model->device;
    model->device = cpu;
    mb_session *session = session_of(model, (shape){.max_sequences = 1});
    for (size_t i = 0; i < n; i++) {
        wild_generation_init(&alone[i], i);
        generation_run_alone(&alone[i], session);
    }
    mb_session_close(session);
    model->device = former;
}

static void free_all(generation *g, size_t n) {
    for (size_t i = 0; i < n; i++)
        generation_free(&g[i]);
}

static void pause_a_little(void) {
    const struct timespec some = {.tv_nsec = 1000 * 1000};
    nanosleep(&some, NULL);
}

/* ---- A step in a thread of its own ----------------------------------------------------------------- */

typedef struct stepper {
    mb_session *session;
    pthread_t thread;
    mb_status status;
    int n_unfinished;
    atomic_int is_done;
} stepper;

static void *stepper_body(void *user) {
    stepper *s = user;
    s->status = mb_step(s->session, &s->n_unfinished);
    atomic_store(&s->is_done, 1);
    return NULL;
}

static void start_step(stepper *s, mb_session *session) {
    *s = (stepper){.session = session};
    assert_int_equal(pthread_create(&s->thread, NULL, stepper_body, s), 0);
}

static void finish_step(stepper *s) {
    pthread_join(s->thread, NULL);
    assert_int_equal(s->status, MB_OK);
}

/* ---- The overlap ----------------------------------------------------------------------------------- */

/* Step N+1 is planned, filled and launched before step N has run; the token of step N is delivered while N+1
 * runs; and so on until the end. */
static void test_the_host_works_while_a_step_runs(void **state) {
    (void)state;
    enum { N_NEW = 6 };
    generation g = random_generation(1, 20, N_NEW), alone = random_generation(1, 20, N_NEW);
    mb_session *session = session_of(model, (shape){0});
    g.request.sampling.frequency_penalty = alone.request.sampling.frequency_penalty = 0.5f;
    generation_submit(&g, session);
    slow_device_hold(slow);
    for (uint64_t step = 1; step <= N_NEW; step++) { /* with N_NEW tokens come N_NEW steps */
        stepper s;
        start_step(&s, session);
        slow_device_wait_for_records(slow, step < N_NEW ? step + 1 : N_NEW); /* the next one is launched, */
        assert_false(atomic_load(&s.is_done));                               /* and this one has not begun */
        generation_read(&g, session);
        assert_int_equal(g.n_tokens, step - 1);
        slow_device_hold_after(slow, step);
        finish_step(&s);
        assert_int_equal(s.n_unfinished, step < N_NEW);
        generation_read(&g, session);
        assert_int_equal(g.n_tokens, step);
    }
    slow_device_go(slow);
    assert_int_equal(g.state, MB_FINISHED_LENGTH);
    assert_int_equal(slow_device_n_records(slow), N_NEW); /* the last token is not computed further */
    assert_session_idle(session);
    mb_session_close(session);

    model->device = cpu;
    session = session_of(model, (shape){0});
    generation_run_alone(&alone, session);
    assert_same(&g, &alone);
    mb_session_close(session);
    generation_free(&g);
    generation_free(&alone);
}

/* mb_step returns with the step's tokens while the next step cannot even begin. */
static void test_a_token_is_delivered_while_the_next_step_is_held(void **state) {
    (void)state;
    generation g = random_generation(2, 10, 3);
    mb_session *session = session_of(model, (shape){0});
    generation_submit(&g, session);
    slow_device_hold_after(slow, 1);
    int n_unfinished = 0;
    assert_int_equal(mb_step(session, &n_unfinished), MB_OK);
    assert_int_equal(slow_device_n_records(slow), 2);
    assert_int_equal(n_unfinished, 1);
    generation_read(&g, session);
    assert_int_equal(g.n_tokens, 1);
    slow_device_go(slow);
    generations_run(&g, 1, session);
    assert_int_equal(g.n_tokens, 3);
    mb_session_close(session);
    generation_free(&g);
}

static void test_the_cpu_keeps_one_step(void **state) {
    (void)state;
    generation g = random_generation(3, 10, 4);
    model->device = cpu;
    mb_session *session = session_of(model, (shape){0});
    generation_submit(&g, session);
    session_step(session);
    assert_int_equal(mb_cancel(session, g.id), MB_OK);
    assert_session_idle(session); /* nothing was in flight */
    mb_session_close(session);
    generation_free(&g);
}

/* ---- The same bits --------------------------------------------------------------------------------- */

static void test_two_steps_change_no_result(void **state) {
    (void)state;
    enum { N = 16 };
    static const shape shapes[] = {
        {.steps_in_flight = 1, .max_sequences = 6, .max_step_tokens = 60, .prefill_chunk = 20},
        {.steps_in_flight = 2, .max_sequences = 6, .max_step_tokens = 60, .prefill_chunk = 20},
        {.steps_in_flight = 2, .max_sequences = 3, .max_step_tokens = 17, .prefill_chunk = 7},
        {.steps_in_flight = 2, .max_sequences = 8, .plain_launches = 1},
        {.steps_in_flight = 2, .max_sequences = 1},
    };
    generation alone[N];
    run_all_alone(alone, N);
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        generation all[N];
        mb_session *session = session_of(model, shapes[k]);
        for (size_t i = 0; i < N; i++) {
            wild_generation_init(&all[i], i);
            generation_submit(&all[i], session);
        }
        generations_run(all, N, session);
        uint64_t n_generated = 0, n_prompt = 0;
        for (size_t i = 0; i < N; i++) {
            assert_same(&all[i], &alone[i]);
            n_generated += alone[i].n_tokens;
            n_prompt += alone[i].request.n_ids;
        }
        assert_session_idle(session);
        assert_int_equal(session_stats(session).n_generated_tokens, n_generated); /* no surplus token */
        assert_int_equal(session_stats(session).n_prompt_tokens, n_prompt);
        mb_session_close(session);
        free_all(all, N);
    }
    free_all(alone, N);
}

/* The CPU gives the same with a second slot, should anybody ask for it. */
static void test_two_steps_on_the_cpu(void **state) {
    (void)state;
    enum { N = 12 };
    generation alone[N], all[N];
    run_all_alone(alone, N);
    model->device = cpu;
    mb_session *session =
        session_of(model, (shape){.steps_in_flight = 2, .max_sequences = 5, .prefill_chunk = 9});
    for (size_t i = 0; i < N; i++) {
        wild_generation_init(&all[i], i);
        generation_submit(&all[i], session);
    }
    generations_run(all, N, session);
    for (size_t i = 0; i < N; i++)
        assert_same(&all[i], &alone[i]);
    mb_session_close(session);
    free_all(all, N);
    free_all(alone, N);
}

/* Sequences that lose their blocks while steps with them are in flight: their token counts are made again. */
static void test_preemption_changes_no_result(void **state) {
    (void)state;
    enum { N = 6 };
    for (int depth = 1; depth <= 2; depth++) {
        generation all[N], alone[N];
        for (int run = 0; run < 2; run++) {
            generation *g = run ? alone : all;
            model->device = run ? cpu : slow_device_of(slow);
            mb_session *session =
                session_of(model, run ? (shape){0} : (shape){.steps_in_flight = depth, .kv_tokens = 4 * 64});
            for (uint64_t i = 0; i < N; i++) {
                g[i] = random_generation(i, 50 + 2 * i, 24); /* crosses into a second block */
                g[i].request.sampling.temperature = 1;
                g[i].request.sampling.seed = i;
                g[i].request.sampling.frequency_penalty = i % 2 ? 1.5f : 0;
                g[i].request.sampling.repetition_penalty = i % 3 ? 1 : 1.5f;
                if (i > 3)
                    generation_keep_logprobs(&g[i], i == 5);
                if (run)
                    generation_run_alone(&g[i], session);
                else
                    generation_submit(&g[i], session);
            }
            if (!run) {
                generations_run(g, N, session);
                assert_true(session_stats(session).n_preemptions > 0);
            }
            assert_session_idle(session);
            mb_session_close(session);
        }
        for (int i = 0; i < N; i++)
            assert_same(&all[i], &alone[i]);
        free_all(all, N);
        free_all(alone, N);
    }
}

/* A sequence finds blocks of another that is still in flight. */
static void test_a_shared_prefix_changes_no_result(void **state) {
    (void)state;
    enum { N = 4 };
    generation all[N], alone;
    mb_session *session = session_of(model, (shape){.prefill_chunk = 40});
    for (uint64_t i = 0; i < N; i++) {
        all[i] = random_generation(1, 140, 12);
        all[i].request.sampling.presence_penalty = 0.5f;
        generation_submit(&all[i], session);
        for (int k = 0; k < 4; k++)
            session_step(session);
    }
    generations_run(all, N, session);
    assert_true(session_stats(session).n_prefix_hits >= 128);
    mb_session_close(session);

    model->device = cpu;
    alone = random_generation(1, 140, 12);
    alone.request.sampling.presence_penalty = 0.5f;
    session = session_of(model, (shape){0});
    generation_run_alone(&alone, session);
    for (int i = 0; i < N; i++)
        assert_same(&all[i], &alone);
    mb_session_close(session);
    free_all(all, N);
    generation_free(&alone);
}

/* Sequences whose next draw needs the last token on the host, beside others. */
static void test_awaiting_a_token_changes_no_result(void **state) {
    (void)state;
    enum { N = 12 };
    generation all[N], alone[N];
    run_all_alone(alone, N);
    mb_session *session = session_of(model, (shape){.max_sequences = 6});
    for (size_t i = 0; i < N; i++) {
        wild_generation_init(&all[i], i);
        generation_submit(&all[i], session);
    }
    for (uint64_t i = 0; i <= session->bucket_mask; i++)
        for (mb_sequence *sequence = session->buckets[i]; sequence; sequence = sequence->next_in_bucket)
            sequence->job.awaits_token = sequence->id % 2 == 0;
    int n_unfinished = 1;
    while (n_unfinished > 0) {
        assert_int_equal(mb_step(session, &n_unfinished), MB_OK);
        for (int32_t i = 0; i < session->n_in_flight; i++) {
            const mb_step_slot *slot = &session->runner.slots[(session->oldest_slot + i) % MB_STEP_SLOTS];
            for (int32_t k = 0; k < slot->n_planned; k++) {
                const mb_job *job = slot->plan[k].job;
                if (job->awaits_token &&
                    slot->plan[k].draws) /* all tokens but the one that it draws are known */
                    assert_int_equal(slot->plan[k].first + slot->plan[k].n_tokens, job->n_tokens);
            }
        }
        for (size_t i = 0; i < N; i++)
            generation_read(&all[i], session);
    }
    for (size_t i = 0; i < N; i++)
        assert_same(&all[i], &alone[i]);
    assert_session_idle(session);
    mb_session_close(session);
    free_all(all, N);
    free_all(alone, N);
}

/* An end of text is seen when the next step is under way: its token is dropped, wherever the end comes,
 * also at the border of a KV block. */
static void test_the_surplus_token_is_dropped(void **state) {
    (void)state;
    enum { N_NEW = 10 };
    mb_session *session = session_of(model, (shape){0});
    for (size_t n_ids = 58; n_ids <= 64; n_ids += 6) {
        generation whole = random_generation(n_ids, n_ids, N_NEW);
        generation_run_alone(&whole, session);
        for (size_t stop = 0; stop < N_NEW; stop += 2) {
            generation g = random_generation(n_ids, n_ids, N_NEW);
            int32_t stop_id = whole.tokens[stop].id;
            size_t first = 0;
            while (whole.tokens[first].id != stop_id)
                first++;
            g.request.stop_ids = &stop_id;
            g.request.n_stop_ids = 1;
            const uint64_t before = session_stats(session).n_generated_tokens;
            generation_submit(&g, session);
            generations_run(&g, 1, session);
            assert_int_equal(g.state, MB_FINISHED_STOP);
            assert_int_equal(g.n_tokens, first);
            if (first > 0)
                assert_memory_equal(g.tokens, whole.tokens, first * sizeof *g.tokens);
            assert_int_equal(session_stats(session).n_generated_tokens, before + first);
            assert_session_idle(session);
            assert_int_equal(mb_release(session, g.id), MB_OK);
            generation_free(&g);
        }
        generation_free(&whole);
    }
    mb_session_close(session);
}

/* ---- Leaving --------------------------------------------------------------------------------------- */

/* One of three leaves before the n-th step, or while two steps with it are held on the device: the others
 * do not notice, what it had read is right, and its blocks come back. */
static void leave_at(int n, int while_held, int release, const generation *alone) {
    enum { N = 3, LEAVER = 1 };
    static const uint64_t seeds[N] = {10, 14, 15};
    generation all[N];
    mb_session *session = session_of(model, (shape){.max_step_tokens = 40, .prefill_chunk = 16});
    for (size_t i = 0; i < N; i++) {
        wild_generation_init(&all[i], seeds[i]);
        generation_submit(&all[i], session);
    }
    int n_unfinished = 1;
    for (int i = 0; i < n && n_unfinished > 0; i++)
        assert_int_equal(mb_step(session, &n_unfinished), MB_OK);
    generation_read(&all[LEAVER], session);
    const int had_ended = all[LEAVER].state != MB_RUNNING && all[LEAVER].state != MB_WAITING;
    const size_t n_read = all[LEAVER].n_tokens;
    const int64_t n_rows = all[LEAVER].n_rows;
    stepper s;
    if (while_held && n_unfinished > 0) {
        slow_device_hold(slow);
        start_step(&s, session);
        while (!slow_device_has_work(slow) &&
               !atomic_load(&s.is_done)) /* (the last step may have run already) */
            pause_a_little();
    }
    assert_int_equal(release ? mb_release(session, all[LEAVER].id) : mb_cancel(session, all[LEAVER].id),
                     MB_OK);
    const int64_t n_rows_then = all[LEAVER].n_rows;
    if (while_held && n_unfinished > 0) {
        slow_device_go(slow);
        finish_step(&s);
    }
    do {
        assert_int_equal(mb_step(session, &n_unfinished), MB_OK);
        for (size_t i = 0; i < N; i++)
            if (i != LEAVER || !release)
                generation_read(&all[i], session);
    } while (n_unfinished > 0);
    for (size_t i = 0; i < N; i++)
        if (i != LEAVER)
            assert_same(&all[i], &alone[seeds[i]]);
    const generation *whole = &alone[seeds[LEAVER]];
    assert_true(n_read <= whole->n_tokens && n_rows <= n_rows_then);
    assert_int_equal(all[LEAVER].n_rows, n_rows_then); /* nothing is reported after it has left */
    if (all[LEAVER].n_tokens > 0)
        assert_memory_equal(all[LEAVER].tokens, whole->tokens, all[LEAVER].n_tokens * sizeof *whole->tokens);
    if (!release)
        assert_int_equal(all[LEAVER].state, had_ended ? whole->state : MB_CANCELLED);
    assert_session_idle(session);
    mb_session_close(session);
    free_all(all, N);
}

static void test_leaving_at_every_point(void **state) {
    (void)state;
    enum { N = 16, POINTS = 12 }; /* the leaver's prompt takes 3 steps, its answer 4 */
    generation alone[N];
    run_all_alone(alone, N);
    for (int n = 0; n < POINTS; n++)
        for (int while_held = 0; while_held < 2; while_held++)
            leave_at(n, while_held, (n + while_held) % 2, alone);
    free_all(alone, N);
}

/* Sequences that were released, cancelled or go on when the session closes with steps in flight. */
static void test_closing_with_steps_in_flight(void **state) {
    (void)state;
    for (uint64_t n = 1; n <= 3; n++) {
        generation g[3];
        mb_session *session = session_of(model, (shape){0});
        for (uint64_t i = 0; i < 3; i++) {
            g[i] = random_generation(i, 20, 10);
            g[i].request.sampling.repetition_penalty = 1.1f;
            generation_submit(&g[i], session);
        }
        slow_device_hold_after(slow, slow_device_n_records(slow) + n);
        for (uint64_t i = 0; i < n; i++)
            session_step(session);
        assert_int_equal(mb_release(session, g[0].id), MB_OK);
        assert_int_equal(mb_cancel(session, g[1].id), MB_OK);
        slow_device_go(slow);
        mb_session_close(session);
        free_all(g, 3);
    }
}

/* Everybody leaves while a step is in flight: the stepping thread is told, and the blocks come back. */
static void test_the_last_step_is_collected(void **state) {
    (void)state;
    generation g = random_generation(5, 70, 10);
    mb_session *session = session_of(model, (shape){0});
    generation_submit(&g, session);
    session_step(session);
    assert_int_equal(mb_release(session, g.id), MB_OK);
    mb_session_stats stats = session_stats(session);
    assert_int_equal(stats.n_running, 0);
    assert_true(stats.kv_blocks_free < stats.kv_blocks_total); /* the second step writes there */
    int n_unfinished = 0;
    assert_int_equal(mb_session_wait(session, -1, &n_unfinished), MB_OK);
    assert_int_equal(n_unfinished, 1);
    assert_int_equal(mb_step(session, &n_unfinished), MB_OK);
    assert_int_equal(n_unfinished, 0);
    assert_session_idle(session);
    mb_session_close(session);
    generation_free(&g);
}

/* ---- Failing --------------------------------------------------------------------------------------- */

/* An operator fails in the n-th step, or cannot be enqueued there. */
static void fail_at(int n, int refused, const generation *alone) {
    enum { N = 4 };
    generation all[N + 1];
    mb_session *session = session_of(model, (shape){.max_sequences = 3, .max_step_tokens = 40});
    const uint64_t n_records = slow_device_n_records(slow);
    for (uint64_t i = 0; i < N; i++) {
        wild_generation_init(&all[i], i + 8);
        generation_submit(&all[i], session);
    }
    int n_unfinished = 1, n_failures = 0;
    if (refused)
        slow_device_refuse_after(slow, n_records + (uint64_t)n + 1);
    for (int i = 0; n_unfinished > 0; i++) {
        if (i == n && !refused)
            slow_device_fail_next(slow);
        mb_status status = mb_step(session, &n_unfinished);
        if (status != MB_OK) {
            assert_int_equal(status, refused ? MB_ERR_MEMORY : MB_ERR_DEVICE);
            assert_non_null(strstr(mb_last_error(), "slow device: an operator"));
            n_failures++;
        }
    }
    assert_true(n_failures <= 1);
    int n_failed = 0;
    for (uint64_t i = 0; i < N; i++) {
        const generation *whole = &alone[i + 8];
        generation_read(&all[i], session);
        if (all[i].state == MB_FAILED)
            n_failed++;
        else
            assert_same(&all[i], whole);
        assert_true(all[i].n_tokens <= whole->n_tokens);
        if (all[i].n_tokens > 0)
            assert_memory_equal(all[i].tokens, whole->tokens, all[i].n_tokens * sizeof *whole->tokens);
    }
    assert_true(n_failed > 0 ? n_failures == 1 : 1);
    assert_session_idle(session);
    slow_device_refuse_after(slow, 0);
    wild_generation_init(&all[N], 9); /* the session goes on */
    generation_submit(&all[N], session);
    while (mb_step(session, &n_unfinished) != MB_OK || n_unfinished > 0)
        continue;
    generation_read(&all[N], session);
    if (all[N].state != MB_FAILED) /* (work that was to fail may have been left) */
        assert_same(&all[N], &alone[9]);
    mb_session_close(session);
    free_all(all, N + 1);
}

static void test_failing_at_every_point(void **state) {
    (void)state;
    enum { N = 16, POINTS = 9 };
    generation alone[N];
    run_all_alone(alone, N);
    for (int n = 0; n < POINTS; n++)
        for (int refused = 0; refused < 2; refused++)
            fail_at(n, refused, alone);
    free_all(alone, N);
}

/* A step that cannot be launched fails its own sequences alone: one that ended in the step
 * before has ended well. */
static void test_a_refused_launch_leaves_the_step_before(void **state) {
    (void)state;
    generation ends = random_generation(1, 10, 1), goes_on = random_generation(2, 10, 5);
    mb_session *session = session_of(model, (shape){0});
    generation_submit(&ends, session);
    generation_submit(&goes_on, session);
    slow_device_refuse_after(slow, 1);
    int n_unfinished = 0;
    assert_int_equal(mb_step(session, &n_unfinished), MB_OK);
    assert_int_equal(n_unfinished, 1);
    generation_read(&ends, session);
    generation_read(&goes_on, session);
    assert_int_equal(ends.state, MB_FINISHED_LENGTH);
    assert_int_equal(goes_on.state, MB_RUNNING);
    assert_int_equal(goes_on.n_tokens, 1);
    assert_int_equal(mb_step(session, &n_unfinished), MB_ERR_MEMORY);
    assert_non_null(strstr(mb_last_error(), "was refused"));
    assert_int_equal(n_unfinished, 0);
    generation_read(&goes_on, session);
    assert_int_equal(goes_on.state, MB_FAILED);
    assert_int_equal(goes_on.n_tokens, 1);
    assert_int_equal(mb_get_failure(session, goes_on.id), MB_ERR_MEMORY);
    assert_session_idle(session);
    mb_session_close(session);
    generation_free(&ends);
    generation_free(&goes_on);
}

/* A sequence whose logits are NaN has no token for the step that is under way; its
 * neighbour does not notice. */
static void test_nan_in_a_step_that_others_follow(void **state) {
    (void)state;
    for (int depth = 1; depth <= 2; depth++) {
        mb_session *session = session_of(poisoned, (shape){.steps_in_flight = depth});
        generation bad = random_generation(1, 10, 8), good = random_generation(2, 10, 8);
        generation alone = random_generation(2, 10, 8);
        ((int32_t *)bad.request.ids)[4] = POISONED;
        bad.request.sampling.presence_penalty = 1;
        generation_submit(&bad, session);
        generation_submit(&good, session);
        generations_run(&good, 1, session);
        generation_read(&bad, session);
        assert_int_equal(bad.state, MB_FAILED);
        assert_int_equal(bad.n_tokens, 0);
        assert_int_equal(mb_get_failure(session, bad.id), MB_ERR_NUMERIC);
        generation_run_alone(&alone, session);
        assert_same(&good, &alone);
        assert_session_idle(session);
        mb_session_close(session);
        generation_free(&bad);
        generation_free(&good);
        generation_free(&alone);
    }
}

#define ON_SLOW(test) cmocka_unit_test_setup_teardown(test, use_slow_device, use_cpu)

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_SLOW(test_the_host_works_while_a_step_runs),
        ON_SLOW(test_a_token_is_delivered_while_the_next_step_is_held),
        ON_SLOW(test_the_cpu_keeps_one_step),
        ON_SLOW(test_two_steps_change_no_result),
        ON_SLOW(test_two_steps_on_the_cpu),
        ON_SLOW(test_preemption_changes_no_result),
        ON_SLOW(test_a_shared_prefix_changes_no_result),
        ON_SLOW(test_awaiting_a_token_changes_no_result),
        ON_SLOW(test_the_surplus_token_is_dropped),
        ON_SLOW(test_leaving_at_every_point),
        ON_SLOW(test_closing_with_steps_in_flight),
        ON_SLOW(test_the_last_step_is_collected),
        ON_SLOW(test_failing_at_every_point),
        ON_SLOW(test_a_refused_launch_leaves_the_step_before),
        ON_SLOW(test_nan_in_a_step_that_others_follow),
    };
    return cmocka_run_group_tests(tests, open_models, close_models);
}
