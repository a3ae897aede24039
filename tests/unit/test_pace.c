/* How much of prompts a step takes beside those that decode: what the pace learns from steps, and when the
 * scheduler does not ask it because prompts are the many. */
#include "engine/pace.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/scheduler.h"

enum { LEAST = 64, N_DECODES = 4 };

/* Seconds. A step of N_DECODES sequences, what prompts add whatever they are, and each token of theirs. */
static const double DECODE = 5e-3, READ = 8e-3, TOKEN = 8e-6;

/* A step as it was asked for; returns its tokens of prompts. `late`: it takes so much longer. */
static int64_t run_step(mb_pace *pace, double late) {
    int64_t n = (int64_t)mb_pace_prefill_work(pace, N_DECODES);
    if (n > 0)
        mb_pace_spend(pace, (double)n);
    mb_step_load load = {.n_decodes = N_DECODES, .prefill_tokens = n, .prefill_work = (double)n};
    mb_pace_learn(pace, &load, DECODE + (n > 0 ? READ + (double)n * TOKEN : 0) + late);
    return n;
}

/* Prompts of which the first tokens cost more than the limit: steps have many tokens, and are spread. */
static void test_dear_first_tokens(void **state) {
    (void)state;
    mb_pace pace;
    mb_pace_init(&pace, 2, 0, LEAST);
    mb_step_load alone = {.prefill_tokens = 256, .prefill_work = 256}; /* one token of it: 50 us on average */
    mb_pace_learn(&pace, &alone, DECODE + READ + 256 * TOKEN);
    int64_t n_tokens = 0;
    double seconds = 0;
    enum { STEPS = 1000 };
    for (int i = 0; i < STEPS; i++) {
        int64_t n = run_step(&pace, 0);
        n_tokens += n;
        seconds += DECODE + (n > 0 ? READ + (double)n * TOKEN : 0);
    }
    assert_true(fabs(pace.least_seconds - (READ + LEAST * TOKEN)) < 0.1 * READ);
    assert_true(fabs(pace.seconds_per_work - TOKEN) < 0.2 * TOKEN);
    assert_true(seconds <= 2 * STEPS * DECODE);
    /* Within the same limit whole prompts at once would be 1 / (READ / 8192 + TOKEN) tokens a second. */
    double most = STEPS * DECODE / (READ / 8192 + TOKEN);
    assert_true((double)n_tokens > 0.2 * most);
}

/* A probe that takes long by accident is forgotten: steps have neither next to no tokens, nor far too many. */
static void test_a_late_probe_is_forgotten(void **state) {
    (void)state;
    mb_pace pace;
    mb_pace_init(&pace, 2, 0, LEAST);
    int n_late = 0;
    for (int i = 0; i < 300 || n_late == 0; i++) {
        assert_true(i < 2000);
        int is_probe = i >= 200 && n_late == 0 && pace.n_until_probe == 0 && pace.n_pauses >= pace.n_owed;
        int64_t n = run_step(&pace, is_probe ? 1 : 0);
        n_late += is_probe && n > 0;
        assert_true(n <= 2000);
    }
    int64_t n_tokens = 0;
    for (int i = 0; i < 300; i++) {
        int64_t n = run_step(&pace, 0);
        assert_true(n <= 2000);
        n_tokens += n;
    }
    assert_true(n_tokens > 10000);
}

/* ---- The scheduler --------------------------------------------------------------------------------- */

enum { MAX_PLAN = 8, MAX_JOBS = 16 };

typedef struct fixture {
    mb_kv kv;
    mb_scheduler scheduler;
    void *memory;
    mb_job jobs[MAX_JOBS];
    int n_jobs;
    mb_planned plan[MAX_PLAN];
    int32_t n;
} fixture;

static void open_fixture(fixture *f, int32_t max_sequences, int32_t n_blocks, int32_t least) {
    *f = (fixture){0};
    mb_schedule_limits limits = {.max_sequences = max_sequences,
                                 .max_step_tokens = 1000,
                                 .prefill_chunk = 1000,
                                 .max_queued = MAX_JOBS,
                                 .max_decode_slowdown = 2,
                                 .double_at = 100,
                                 .least_prompt_tokens = least};
    mb_arena arena;
    mb_arena_measure(&arena);
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1) {
            size_t n_bytes = arena.used;
            f->memory = malloc(n_bytes);
            mb_arena_init(&arena, f->memory, n_bytes, 1);
        }
        mb_kv_init(&f->kv, &arena, n_blocks, max_sequences, 64);
        mb_scheduler_init(&f->scheduler, &arena, &limits, &f->kv);
    }
}

static void close_fixture(fixture *f) {
    for (int i = 0; i < f->n_jobs; i++)
        mb_scheduler_remove(&f->scheduler, &f->jobs[i]);
    free(f->memory);
}

static void add_jobs(fixture *f, int n, int64_t n_prompt, int64_t max_new) {
    for (int i = 0; i < n; i++) {
        mb_job *job = &f->jobs[f->n_jobs++];
        *job = (mb_job){.n_tokens = n_prompt, .max_tokens = n_prompt + max_new, .table = -1};
        assert_int_equal(mb_scheduler_submit(&f->scheduler, job), MB_OK);
    }
}

/* Returns the tokens of prompts in the step, which takes 5 ms and 1 ms for each of them. */
static int32_t step(fixture *f) {
    f->n = mb_scheduler_plan(&f->scheduler, f->plan);
    int32_t n_prompt_tokens = 0;
    for (int32_t i = 0; i < f->n; i++)
        n_prompt_tokens += f->plan[i].n_tokens > 1 ? f->plan[i].n_tokens : 0;
    mb_scheduler_learn(&f->scheduler, f->plan, f->n, 5e-3 + 1e-3 * n_prompt_tokens);
    for (int32_t i = 0; i < f->n; i++) {
        f->plan[i].job->n_tokens += f->plan[i].draws;
        mb_scheduler_collect(&f->scheduler, &f->plan[i], 1);
    }
    return n_prompt_tokens;
}

/* Two decode. A prompt waits for them, a second one is more than half of them and ends that; where each token
 * takes time of its own it does not. */
static void test_prompts_that_are_more_take_whole_steps(void **state) {
    (void)state;
    for (int reads_weights = 0; reads_weights < 2; reads_weights++) {
        fixture f;
        open_fixture(&f, MAX_PLAN, 200, reads_weights ? LEAST : 1);
        add_jobs(&f, 2, 10, 1000);
        for (int i = 0; i < 10; i++)
            step(&f);
        add_jobs(&f, 1, 1000, 10);
        for (int i = 0; i < 5; i++)
            assert_true(step(&f) <= 2 * LEAST);
        add_jobs(&f, 1, 300, 10);
        int32_t n = step(&f);
        assert_true(reads_weights ? n > 200 : n < 50);
        close_fixture(&f);
    }
}

/* A prompt far from its start counts for what it costs: the step takes no longer than one of short prompts. */
static void test_deep_prompts_take_no_longer_steps(void **state) {
    (void)state;
    fixture f;
    open_fixture(&f, MAX_PLAN, 400, LEAST);
    add_jobs(&f, 1, 10, 1000);
    step(&f);
    add_jobs(&f, 2, 4000, 10);
    while (f.jobs[1].n_cached < 1000)
        step(&f);
    double work = 0;
    step(&f);
    for (int32_t i = 0; i < f.n; i++)
        if (f.plan[i].n_tokens > 1)
            work += f.plan[i].n_tokens * mb_pace_token_work(&f.scheduler.pace, f.plan[i].first);
    assert_true(work > 500 && work <= 1000);
    close_fixture(&f);
}

/* Prompts that have no place, or no blocks, do not count: they gain nothing. */
static void test_prompts_that_cannot_run_do_not_count(void **state) {
    (void)state;
    for (int by_blocks = 0; by_blocks < 2; by_blocks++) {
        fixture f;
        open_fixture(&f, by_blocks ? MAX_PLAN : 3, by_blocks ? 30 : 200, LEAST);
        add_jobs(&f, 2, 10, 500);
        for (int i = 0; i < 10; i++)
            step(&f);
        add_jobs(&f, 8, 1000, 10);
        step(&f); /* it finds out that the second of them has no room */
        for (int i = 0; i < 10; i++)
            assert_true(step(&f) <= 2 * LEAST);
        assert_int_equal(f.scheduler.running.n, 3);
        close_fixture(&f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dear_first_tokens),
        cmocka_unit_test(test_a_late_probe_is_forgotten),
        cmocka_unit_test(test_prompts_that_are_more_take_whole_steps),
        cmocka_unit_test(test_deep_prompts_take_no_longer_steps),
        cmocka_unit_test(test_prompts_that_cannot_run_do_not_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
