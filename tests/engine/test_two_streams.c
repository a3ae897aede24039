/*
 * Decode steps with copies on a second stream (MB_GRAPHS_TWO_STREAMS): what runs beside what, and that nothing else
 * changes when sequences leave and steps fail. The device is the slow one of tests/support. The same bits as in all
 * other ways: test_steps.c and test_overlap.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/session.h"
#include "support/slow_models.h"

static const session_shape shape = {.graphs = MB_GRAPHS_TWO_STREAMS, .max_sequences = 4};

static int was_reached(mb_event *event) {
    int reached = 0;
    mb_device *device = models.plain->device;
    assert_int_equal(device->event_query(device, event, &reached), MB_OK);
    return reached;
}

/* Both slots have the graph of one sequence. */
static mb_session *warm_session(void) {
    mb_session *session = slow_models_session(models.plain, shape);
    generation g = slow_models_generation(7, 10, 6);
    generation_run_alone(&g, session);
    generation_free(&g);
    return session;
}

/* The device is held where the graph of a step has its branch. The step before is delivered nevertheless, and the
 * arrays of the next one are uploaded. */
static void test_copies_run_beside_a_held_step(void **state) {
    (void)state;
    generation g = slow_models_generation(1, 10, 6), alone = slow_models_generation(1, 10, 6);
    mb_session *session = warm_session();
    const mb_runner *runner = &session->runner;
    generation_submit(&g, session);
    session_step(session); /* the prompt; the first step that decodes is in flight */
    generation_read(&g, session);
    assert_int_equal(g.n_tokens, 1);
    uint64_t n_replays = slow_device_n_replays(models.slow);

    slow_device_hold_at_fork(models.slow);
    session_step(session);
    assert_int_equal(slow_device_n_replays(models.slow), n_replays + 1);
    generation_read(&g, session);
    assert_int_equal(g.n_tokens, 2);
    assert_true(slow_device_has_work(models.slow));

    const mb_step_slot *next = &runner->slots[1 - session->oldest_slot];
    uint64_t n_records = slow_device_n_records(models.slow);
    stepper s;
    stepper_start(&s, session);
    slow_device_wait_for_records(models.slow, n_records + 1); /* behind the upload */
    for (int i = 0; i < 3000 && !was_reached(runner->joined); i++)
        pause_a_little();
    assert_true(was_reached(runner->joined));
    assert_memory_equal(next->device_inputs, next->inputs, next->inputs_arena.used);
    pause_a_little();
    assert_false(atomic_load(&s.is_done)); /* its token is drawn by the step that is held */
    slow_device_go(models.slow);
    stepper_finish(&s);
    generations_run(&g, 1, session);
    assert_session_idle(session);
    mb_session_close(session);

    slow_models_run_one_alone(&alone);
    assert_same_generation(&g, &alone);
    generation_free(&g);
    generation_free(&alone);
}

static generation silent(uint64_t seed) {
    generation g = slow_models_generation(seed, 5 + seed * 9 % 40, 3 + (int64_t)(seed % 7));
    g.request.sampling.frequency_penalty = seed % 2 ? 0.5f : 0;
    return g;
}

/* One of three leaves before the n-th step, and an operator fails in the n-th step or cannot be enqueued there. */
static void disturb_at(int n, int how, const generation *alone) {
    enum { N = 3 };
    generation all[N + 1];
    mb_session *session = warm_session();
    for (uint64_t i = 0; i < N; i++) {
        all[i] = silent(i);
        generation_submit(&all[i], session);
    }
    int n_unfinished = 1;
    for (int i = 0; n_unfinished > 0; i++) {
        if (i == n && how == 0)
            assert_int_equal(mb_cancel(session, all[1].id), MB_OK);
        if (i == n && how == 1)
            slow_device_fail_next(models.slow);
        if (i == n && how == 2)
            slow_device_refuse_after(models.slow, slow_device_n_records(models.slow));
        if (mb_step(session, &n_unfinished) != MB_OK)
            assert_true(how > 0);
    }
    slow_device_refuse_after(models.slow, 0);
    for (size_t i = 0; i < N; i++) {
        generation_read(&all[i], session);
        if (all[i].state == MB_FAILED || all[i].state == MB_CANCELLED)
            assert_true(all[i].n_tokens <= alone[i].n_tokens);
        else
            assert_int_equal(all[i].n_tokens, alone[i].n_tokens);
        if (all[i].n_tokens > 0)
            assert_memory_equal(all[i].tokens, alone[i].tokens, all[i].n_tokens * sizeof *alone[i].tokens);
    }
    assert_session_idle(session);
    all[N] = silent(2); /* the session goes on */
    generation_submit(&all[N], session);
    while (mb_step(session, &n_unfinished) != MB_OK || n_unfinished > 0)
        continue;
    generation_read(&all[N], session);
    if (all[N].state != MB_FAILED) /* (work that was to fail may have been left) */
        assert_same_generation(&all[N], &alone[2]);
    mb_session_close(session);
    slow_models_free(all, N + 1);
}

static void test_leaving_and_failing_at_every_point(void **state) {
    (void)state;
    enum { N = 3, POINTS = 8 };
    generation alone[N];
    for (uint64_t i = 0; i < N; i++) {
        alone[i] = silent(i);
        slow_models_run_one_alone(&alone[i]);
    }
    for (int n = 0; n < POINTS; n++)
        for (int how = 0; how < 3; how++)
            disturb_at(n, how, alone);
    slow_models_free(alone, N);
}

/* A session that closes with an owed step in flight. */
static void test_closing_with_an_owed_step(void **state) {
    (void)state;
    for (int n = 1; n <= 3; n++) {
        generation g = slow_models_generation(3, 10, 10);
        mb_session *session = warm_session();
        generation_submit(&g, session);
        for (int i = 0; i < n; i++)
            session_step(session);
        mb_session_close(session);
        generation_free(&g);
    }
}

#define ON_SLOW(test) cmocka_unit_test_setup_teardown(test, slow_models_use_device, slow_models_use_cpu)

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_SLOW(test_copies_run_beside_a_held_step),
        ON_SLOW(test_leaving_and_failing_at_every_point),
        ON_SLOW(test_closing_with_an_owed_step),
    };
    return cmocka_run_group_tests(tests, slow_models_open, slow_models_close);
}
