/*
 * Two steps in flight: the host plans, fills and launches a step while the device runs the one before it, and
 * nothing but the time changes. The device is the slow one of tests/support, which can be held between steps.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/slow_models.h"

/* ---- The overlap ----------------------------------------------------------------------------------- */

/* Step N+1 is planned, filled and launched before step N has run; the token of step N is delivered while N+1
 * runs; and so on until the end. */
static void test_the_host_works_while_a_step_runs(void **state) {
    (void)state;
    enum { N_NEW = 6 };
    generation g = slow_models_generation(1, 20, N_NEW), alone = slow_models_generation(1, 20, N_NEW);
    mb_session *session = slow_models_session(models.plain, (session_shape){0});
    g.request.sampling.frequency_penalty = alone.request.sampling.frequency_penalty = 0.5f;
    generation_submit(&g, session);
    slow_device_hold(models.slow);
    for (uint64_t step = 1; step <= N_NEW; step++) { /* with N_NEW tokens come N_NEW steps */
        stepper s;
        stepper_start(&s, session);
        /* The next one is launched, and this one has not begun. */
        slow_device_wait_for_records(models.slow, step < N_NEW ? step + 1 : N_NEW);
        assert_false(atomic_load(&s.is_done));
        generation_read(&g, session);
        assert_int_equal(g.n_tokens, step - 1);
        slow_device_hold_after(models.slow, step);
        stepper_finish(&s);
        assert_int_equal(s.n_unfinished, step < N_NEW);
        generation_read(&g, session);
        assert_int_equal(g.n_tokens, step);
    }
    slow_device_go(models.slow);
    assert_int_equal(g.state, MB_FINISHED_LENGTH);
    assert_int_equal(slow_device_n_records(models.slow), N_NEW); /* the last token is not computed further */
    assert_session_idle(session);
    mb_session_close(session);

    slow_models_run_one_alone(&alone);
    assert_same_generation(&g, &alone);
    generation_free(&g);
    generation_free(&alone);
}

/* mb_step returns with the step's tokens while the next step cannot even begin. */
static void test_a_token_is_delivered_while_the_next_step_is_held(void **state) {
    (void)state;
    generation g = slow_models_generation(2, 10, 3);
    mb_session *session = slow_models_session(models.plain, (session_shape){0});
    generation_submit(&g, session);
    slow_device_hold_after(models.slow, 1);
    int n_unfinished = 0;
    assert_int_equal(mb_step(session, &n_unfinished), MB_OK);
    assert_int_equal(slow_device_n_records(models.slow), 2);
    assert_int_equal(n_unfinished, 1);
    generation_read(&g, session);
    assert_int_equal(g.n_tokens, 1);
    slow_device_go(models.slow);
    generations_run(&g, 1, session);
    assert_int_equal(g.n_tokens, 3);
    mb_session_close(session);
    generation_free(&g);
}

static void test_the_cpu_keeps_one_step(void **state) {
    (void)state;
    generation g = slow_models_generation(3, 10, 4);
    models.plain->device = models.cpu;
    mb_session *session = slow_models_session(models.plain, (session_shape){0});
    generation_submit(&g, session);
    session_step(session);
    assert_int_equal(mb_cancel(session, g.id), MB_OK);
    assert_session_idle(session); /* nothing was in flight */
    mb_session_close(session);
    generation_free(&g);
}

/* ---- The same bits --------------------------------------------------------------------------------- */

static void check_two_steps(mb_dtype kv_dtype) {
    enum { N = 16 };
    static const session_shape shapes[] = {
        {.steps_in_flight = 1, .max_sequences = 6, .max_step_tokens = 60, .prefill_chunk = 20},
        {.steps_in_flight = 2, .max_sequences = 6, .max_step_tokens = 60, .prefill_chunk = 20},
        {.steps_in_flight = 2, .max_sequences = 3, .max_step_tokens = 17, .prefill_chunk = 7},
        {.steps_in_flight = 2, .max_sequences = 8, .graphs = MB_GRAPHS_NONE},
        {.steps_in_flight = 2, .max_sequences = 8, .graphs = MB_GRAPHS_ATTENTION},
        {.steps_in_flight = 2, .max_sequences = 8, .graphs = MB_GRAPHS_TWO_STREAMS},
        {.steps_in_flight = 1, .max_sequences = 8, .graphs = MB_GRAPHS_TWO_STREAMS},
        {.steps_in_flight = 2, .max_sequences = 3, .prefill_chunk = 7, .graphs = MB_GRAPHS_TWO_STREAMS},
        {.steps_in_flight = 2, .max_sequences = 1},
    };
    generation alone[N];
    models.plain->kv_dtype = kv_dtype;
    slow_models_run_alone(alone, N);
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        generation all[N];
        mb_session *session = slow_models_session(models.plain, shapes[k]);
        for (size_t i = 0; i < N; i++) {
            slow_models_wild(&all[i], i);
            generation_submit(&all[i], session);
        }
        generations_run(all, N, session);
        uint64_t n_generated = 0, n_prompt = 0;
        for (size_t i = 0; i < N; i++) {
            assert_same_generation(&all[i], &alone[i]);
            n_generated += alone[i].n_tokens;
            n_prompt += alone[i].request.n_ids;
        }
        assert_session_idle(session);
        assert_int_equal(session_stats(session).n_generated_tokens, n_generated); /* no surplus token */
        assert_int_equal(session_stats(session).n_prompt_tokens, n_prompt);
        mb_session_close(session);
        slow_models_free(all, N);
    }
    slow_models_free(alone, N);
    models.plain->kv_dtype = models.plain->dtype;
}

static void test_two_steps_change_no_result(void **state) {
    (void)state;
    check_two_steps(MB_F32);
    check_two_steps(MB_F8_E4M3);
}

/* The CPU gives the same with a second slot, should anybody ask for it. */
static void test_two_steps_on_the_cpu(void **state) {
    (void)state;
    enum { N = 12 };
    generation alone[N], all[N];
    slow_models_run_alone(alone, N);
    models.plain->device = models.cpu;
    mb_session *session = slow_models_session(
        models.plain, (session_shape){.steps_in_flight = 2, .max_sequences = 5, .prefill_chunk = 9});
    for (size_t i = 0; i < N; i++) {
        slow_models_wild(&all[i], i);
        generation_submit(&all[i], session);
    }
    generations_run(all, N, session);
    for (size_t i = 0; i < N; i++)
        assert_same_generation(&all[i], &alone[i]);
    mb_session_close(session);
    slow_models_free(all, N);
    slow_models_free(alone, N);
}

/* Sequences that lose their blocks while steps with them are in flight: their token counts are made again. */
static void test_preemption_changes_no_result(void **state) {
    (void)state;
    enum { N = 6 };
    for (int depth = 1; depth <= 2; depth++) {
        generation all[N], alone[N];
        for (int run = 0; run < 2; run++) {
            generation *g = run ? alone : all;
            models.plain->device = run ? models.cpu : slow_device_of(models.slow);
            mb_session *session = slow_models_session(
                models.plain,
                run ? (session_shape){0} : (session_shape){.steps_in_flight = depth, .kv_tokens = 4 * 64});
            for (uint64_t i = 0; i < N; i++) {
                g[i] = slow_models_generation(i, 50 + 2 * i, 24); /* crosses into a second block */
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
            assert_same_generation(&all[i], &alone[i]);
        slow_models_free(all, N);
        slow_models_free(alone, N);
    }
}

/* A sequence finds blocks of another that is still in flight. */
static void test_a_shared_prefix_changes_no_result(void **state) {
    (void)state;
    enum { N = 4 };
    generation all[N], alone;
    mb_session *session = slow_models_session(models.plain, (session_shape){.prefill_chunk = 40});
    for (uint64_t i = 0; i < N; i++) {
        all[i] = slow_models_generation(1, 140, 12);
        all[i].request.sampling.presence_penalty = 0.5f;
        generation_submit(&all[i], session);
        for (int k = 0; k < 4; k++)
            session_step(session);
    }
    generations_run(all, N, session);
    assert_true(session_stats(session).n_prefix_hits >= 128);
    mb_session_close(session);

    alone = slow_models_generation(1, 140, 12);
    alone.request.sampling.presence_penalty = 0.5f;
    slow_models_run_one_alone(&alone);
    for (int i = 0; i < N; i++)
        assert_same_generation(&all[i], &alone);
    slow_models_free(all, N);
    generation_free(&alone);
}

/* Sequences whose next draw needs the last token on the host, beside others. */
static void test_awaiting_a_token_changes_no_result(void **state) {
    (void)state;
    enum { N = 12 };
    generation all[N], alone[N];
    slow_models_run_alone(alone, N);
    mb_session *session = slow_models_session(models.plain, (session_shape){.max_sequences = 6});
    for (size_t i = 0; i < N; i++) {
        slow_models_wild(&all[i], i);
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
        assert_same_generation(&all[i], &alone[i]);
    assert_session_idle(session);
    mb_session_close(session);
    slow_models_free(all, N);
    slow_models_free(alone, N);
}

/* An end of text is seen when the next step is under way: its token is dropped, wherever the end comes,
 * also at the border of a KV block. */
static void test_the_surplus_token_is_dropped(void **state) {
    (void)state;
    enum { N_NEW = 10 };
    mb_session *session = slow_models_session(models.plain, (session_shape){0});
    for (size_t n_ids = 58; n_ids <= 64; n_ids += 6) {
        generation whole = slow_models_generation(n_ids, n_ids, N_NEW);
        generation_run_alone(&whole, session);
        for (size_t stop = 0; stop < N_NEW; stop += 2) {
            generation g = slow_models_generation(n_ids, n_ids, N_NEW);
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

#define ON_SLOW(test) cmocka_unit_test_setup_teardown(test, slow_models_use_device, slow_models_use_cpu)

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
    };
    return cmocka_run_group_tests(tests, slow_models_open, slow_models_close);
}
