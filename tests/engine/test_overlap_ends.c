/*
 * Two steps in flight when something ends: sequences leave, sessions close, steps fail. The device is the
 * slow one of tests/support.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/slow_models.h"

/* ---- Leaving --------------------------------------------------------------------------------------- */

/* One of three leaves before the n-th step, or while two steps with it are held on the device: the others
 * do not notice, what it had read is right, and its blocks come back. */
static void leave_at(int n, int while_held, int release, const generation *alone) {
    enum { N = 3, LEAVER = 1 };
    static const uint64_t seeds[N] = {10, 14, 15};
    generation all[N];
    mb_session *session =
        slow_models_session(models.plain, (session_shape){.max_step_tokens = 40, .prefill_chunk = 16});
    for (size_t i = 0; i < N; i++) {
        slow_models_wild(&all[i], seeds[i]);
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
        slow_device_hold(models.slow);
        stepper_start(&s, session);
        while (!slow_device_has_work(models.slow) &&
               !atomic_load(&s.is_done)) /* (the last step may have run already) */
            pause_a_little();
    }
    assert_int_equal(release ? mb_release(session, all[LEAVER].id) : mb_cancel(session, all[LEAVER].id),
                     MB_OK);
    const int64_t n_rows_then = all[LEAVER].n_rows;
    if (while_held && n_unfinished > 0) {
        slow_device_go(models.slow);
        stepper_finish(&s);
    }
    do {
        assert_int_equal(mb_step(session, &n_unfinished), MB_OK);
        for (size_t i = 0; i < N; i++)
            if (i != LEAVER || !release)
                generation_read(&all[i], session);
    } while (n_unfinished > 0);
    for (size_t i = 0; i < N; i++)
        if (i != LEAVER)
            assert_same_generation(&all[i], &alone[seeds[i]]);
    const generation *whole = &alone[seeds[LEAVER]];
    assert_true(n_read <= whole->n_tokens && n_rows <= n_rows_then);
    assert_int_equal(all[LEAVER].n_rows, n_rows_then); /* nothing is reported after it has left */
    if (all[LEAVER].n_tokens > 0)
        assert_memory_equal(all[LEAVER].tokens, whole->tokens, all[LEAVER].n_tokens * sizeof *whole->tokens);
    if (!release)
        assert_int_equal(all[LEAVER].state, had_ended ? whole->state : MB_CANCELLED);
    assert_session_idle(session);
    mb_session_close(session);
    slow_models_free(all, N);
}

static void test_leaving_at_every_point(void **state) {
    (void)state;
    enum { N = 16, POINTS = 12 }; /* the leaver's prompt takes 3 steps, its answer 4 */
    generation alone[N];
    slow_models_run_alone(alone, N);
    for (int n = 0; n < POINTS; n++)
        for (int while_held = 0; while_held < 2; while_held++)
            leave_at(n, while_held, (n + while_held) % 2, alone);
    slow_models_free(alone, N);
}

/* Sequences that were released, cancelled or go on when the session closes with steps in flight. */
static void test_closing_with_steps_in_flight(void **state) {
    (void)state;
    for (uint64_t n = 1; n <= 3; n++) {
        generation g[3];
        mb_session *session = slow_models_session(models.plain, (session_shape){0});
        for (uint64_t i = 0; i < 3; i++) {
            g[i] = slow_models_generation(i, 20, 10);
            g[i].request.sampling.repetition_penalty = 1.1f;
            generation_submit(&g[i], session);
        }
        slow_device_hold_after(models.slow, slow_device_n_records(models.slow) + n);
        for (uint64_t i = 0; i < n; i++)
            session_step(session);
        assert_int_equal(mb_release(session, g[0].id), MB_OK);
        assert_int_equal(mb_cancel(session, g[1].id), MB_OK);
        slow_device_go(models.slow);
        mb_session_close(session);
        slow_models_free(g, 3);
    }
}

/* Everybody leaves while a step is in flight: the stepping thread is told, and the blocks come back. */
static void test_the_last_step_is_collected(void **state) {
    (void)state;
    generation g = slow_models_generation(5, 70, 10);
    mb_session *session = slow_models_session(models.plain, (session_shape){0});
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
    mb_session *session =
        slow_models_session(models.plain, (session_shape){.max_sequences = 3, .max_step_tokens = 40});
    const uint64_t n_records = slow_device_n_records(models.slow);
    for (uint64_t i = 0; i < N; i++) {
        slow_models_wild(&all[i], i + 8);
        generation_submit(&all[i], session);
    }
    int n_unfinished = 1, n_failures = 0;
    if (refused)
        slow_device_refuse_after(models.slow, n_records + (uint64_t)n + 1);
    for (int i = 0; n_unfinished > 0; i++) {
        if (i == n && !refused)
            slow_device_fail_next(models.slow);
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
            assert_same_generation(&all[i], whole);
        assert_true(all[i].n_tokens <= whole->n_tokens);
        if (all[i].n_tokens > 0)
            assert_memory_equal(all[i].tokens, whole->tokens, all[i].n_tokens * sizeof *whole->tokens);
    }
    assert_true(n_failed > 0 ? n_failures == 1 : 1);
    assert_session_idle(session);
    slow_device_refuse_after(models.slow, 0);
    slow_models_wild(&all[N], 9); /* the session goes on */
    generation_submit(&all[N], session);
    while (mb_step(session, &n_unfinished) != MB_OK || n_unfinished > 0)
        continue;
    generation_read(&all[N], session);
    if (all[N].state != MB_FAILED) /* (work that was to fail may have been left) */
        assert_same_generation(&all[N], &alone[9]);
    mb_session_close(session);
    slow_models_free(all, N + 1);
}

static void test_failing_at_every_point(void **state) {
    (void)state;
    enum { N = 16, POINTS = 9 };
    generation alone[N];
    slow_models_run_alone(alone, N);
    for (int n = 0; n < POINTS; n++)
        for (int refused = 0; refused < 2; refused++)
            fail_at(n, refused, alone);
    slow_models_free(alone, N);
}

/* A step that cannot be launched fails its own sequences alone: one that ended in the step
 * before has ended well. */
static void test_a_refused_launch_leaves_the_step_before(void **state) {
    (void)state;
    generation ends = slow_models_generation(1, 10, 1), goes_on = slow_models_generation(2, 10, 5);
    mb_session *session = slow_models_session(models.plain, (session_shape){0});
    generation_submit(&ends, session);
    generation_submit(&goes_on, session);
    slow_device_refuse_after(models.slow, 1);
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
        mb_session *session = slow_models_session(models.poisoned, (session_shape){.steps_in_flight = depth});
        generation bad = slow_models_generation(1, 10, 8), good = slow_models_generation(2, 10, 8);
        generation alone = slow_models_generation(2, 10, 8);
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
        assert_same_generation(&good, &alone);
        assert_session_idle(session);
        mb_session_close(session);
        generation_free(&bad);
        generation_free(&good);
        generation_free(&alone);
    }
}

#define ON_SLOW(test) cmocka_unit_test_setup_teardown(test, slow_models_use_device, slow_models_use_cpu)

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_SLOW(test_leaving_at_every_point),
        ON_SLOW(test_closing_with_steps_in_flight),
        ON_SLOW(test_the_last_step_is_collected),
        ON_SLOW(test_failing_at_every_point),
        ON_SLOW(test_a_refused_launch_leaves_the_step_before),
        ON_SLOW(test_nan_in_a_step_that_others_follow),
    };
    return cmocka_run_group_tests(tests, slow_models_open, slow_models_close);
}
