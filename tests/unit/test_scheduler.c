/* The scheduler alone: what is in a step, the order in which sequences are admitted, and random loads against both. */
#include "engine/scheduler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/tiny_checkpoint.h"

enum { MAX_PLAN = 32, MAX_BLOCKS = 64 };

typedef struct fixture {
    mb_kv kv;
    mb_scheduler scheduler;
    void *memory;
    int32_t *scratch;
    mb_planned plan[MAX_PLAN];
    int32_t n;
} fixture;

static void open_scheduler(fixture *f, const mb_schedule_limits *limits, int32_t n_blocks) {
    assert_in_range(limits->max_sequences, 1, MAX_PLAN);
    mb_arena arena;
    mb_arena_measure(&arena);
    mb_kv_init(&f->kv, &arena, n_blocks, limits->max_sequences, MAX_BLOCKS);
    size_t n_bytes = arena.used;
    f->memory = malloc(n_bytes);
    f->scratch = malloc(2 * (size_t)n_blocks * sizeof *f->scratch);
    mb_arena_init(&arena, f->memory, n_bytes, 1);
    mb_kv_init(&f->kv, &arena, n_blocks, limits->max_sequences, MAX_BLOCKS);
    mb_scheduler_init(&f->scheduler, limits, &f->kv);
}

static void close_scheduler(fixture *f) {
    assert_null(mb_kv_check(&f->kv, f->scratch));
    free(f->memory);
    free(f->scratch);
}

static const mb_schedule_limits roomy = {.max_sequences = 8,
                                         .max_step_tokens = 100,
                                         .prefill_chunk = 30,
                                         .max_queued = 16,
                                         .max_prompt_logits = 10};

static mb_job job_of(int64_t n_prompt, int64_t max_new) {
    return (mb_job){.n_tokens = n_prompt, .max_tokens = n_prompt + max_new, .table = -1};
}

/* What a session does after a step; finished jobs leave. */
static void commit(fixture *f) {
    for (int32_t i = 0; i < f->n; i++) {
        mb_job *job = f->plan[i].job;
        mb_scheduler_collect(&f->scheduler, job);
        job->n_drawing -= f->plan[i].draws;
        job->n_tokens += f->plan[i].draws;
        if (job->n_tokens == job->max_tokens && (f->plan[i].draws || job->n_cached == job->n_tokens))
            mb_scheduler_remove(&f->scheduler, job);
    }
}

static void step(fixture *f) {
    f->n = mb_scheduler_plan(&f->scheduler, f->plan);
}

/* A step that ends without a commit: everybody was removed meanwhile. */
static void drop_step(fixture *f) {
    for (int32_t i = 0; i < f->n; i++) {
        f->plan[i].job->n_drawing -= f->plan[i].draws;
        mb_scheduler_collect(&f->scheduler, f->plan[i].job);
    }
}

static const mb_planned *planned(const fixture *f, const mb_job *job) {
    for (int32_t i = 0; i < f->n; i++)
        if (f->plan[i].job == job)
            return &f->plan[i];
    return NULL;
}

static void test_prompt_enters_in_chunks_then_decodes(void **state) {
    (void)state;
    fixture f;
    open_scheduler(&f, &roomy, 16);
    mb_job job = job_of(70, 3);
    assert_int_equal(mb_scheduler_submit(&f.scheduler, &job), MB_OK);
    static const struct {
        int n_tokens, n_logits, draws;
    } steps[] = {{30, 0, 0}, {30, 0, 0}, {10, 1, 1}, {1, 1, 1}, {1, 1, 1}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        step(&f);
        assert_int_equal(f.n, 1);
        assert_int_equal(f.plan[0].n_tokens, steps[i].n_tokens);
        assert_int_equal(f.plan[0].n_logits, steps[i].n_logits);
        assert_int_equal(f.plan[0].draws, steps[i].draws);
        commit(&f);
    }
    step(&f);
    assert_int_equal(f.n, 0);
    assert_int_equal(job.list, MB_JOB_NONE);
    assert_int_equal(f.kv.n_free, 16);
    close_scheduler(&f);
}

static void test_no_new_tokens_means_no_draw(void **state) {
    (void)state;
    fixture f;
    open_scheduler(&f, &roomy, 16);
    mb_job silent = job_of(20, 0), scored = job_of(20, 0);
    scored.all_logits = 1;
    mb_scheduler_submit(&f.scheduler, &silent);
    mb_scheduler_submit(&f.scheduler, &scored);
    step(&f);
    assert_int_equal(planned(&f, &silent)->n_logits, 0);
    assert_int_equal(planned(&f, &silent)->n_tokens, 20);
    assert_int_equal(planned(&f, &scored)->n_tokens, 11); /* 10 rows beyond its own one */
    assert_int_equal(planned(&f, &scored)->n_logits, 11);
    assert_false(planned(&f, &scored)->draws);
    commit(&f);
    step(&f);
    assert_int_equal(f.n, 1);
    assert_int_equal(f.plan[0].n_logits, 9);
    assert_false(f.plan[0].draws);
    commit(&f);
    step(&f);
    assert_int_equal(f.n, 0);
    close_scheduler(&f);
}

static void test_decodes_go_before_prompts(void **state) {
    (void)state;
    fixture f;
    mb_schedule_limits limits = roomy;
    limits.max_step_tokens = 32;
    open_scheduler(&f, &limits, 64);
    mb_job long_prompt = job_of(200, 1), shorts[3] = {job_of(2, 50), job_of(2, 50), job_of(2, 50)};
    mb_scheduler_submit(&f.scheduler, &long_prompt);
    for (int i = 0; i < 3; i++)
        mb_scheduler_submit(&f.scheduler, &shorts[i]);
    step(&f); /* 30 of the long one, 2 of the first short one */
    assert_int_equal(planned(&f, &long_prompt)->n_tokens, 30);
    assert_int_equal(planned(&f, &shorts[0])->n_tokens, 2);
    assert_int_equal(shorts[1].list, MB_JOB_WAITING); /* no tokens left for it: not admitted */
    commit(&f);
    step(&f);
    assert_ptr_equal(f.plan[0].job, &shorts[0]);
    assert_int_equal(f.plan[0].n_tokens, 1);
    assert_ptr_equal(f.plan[1].job, &long_prompt);
    assert_int_equal(f.plan[1].n_tokens, 30);
    assert_int_equal(f.plan[2].n_tokens, 1); /* half of shorts[1]'s prompt: what the budget leaves */
    mb_job *all[] = {&long_prompt, &shorts[0], &shorts[1], &shorts[2]};
    for (int i = 0; i < 4; i++)
        mb_scheduler_remove(&f.scheduler, all[i]);
    drop_step(&f);
    close_scheduler(&f);
}

static void test_oldest_prompt_advances_under_full_decode_load(void **state) {
    (void)state;
    fixture f;
    mb_schedule_limits limits = {
        .max_sequences = 4, .max_step_tokens = 4, .prefill_chunk = 4, .max_queued = 16};
    open_scheduler(&f, &limits, 64);
    mb_job decodes[3] = {job_of(1, 1000), job_of(1, 1000), job_of(1, 1000)}, prompt = job_of(50, 1);
    for (int i = 0; i < 3; i++)
        mb_scheduler_submit(&f.scheduler, &decodes[i]);
    mb_scheduler_submit(&f.scheduler, &prompt);
    for (int i = 0; i < 50; i++) {
        step(&f);
        assert_int_equal(f.n, 4);
        assert_int_equal(planned(&f, &prompt)->n_tokens, 1);
        commit(&f);
    }
    assert_int_equal(prompt.list, MB_JOB_NONE); /* finished */
    for (int i = 0; i < 3; i++)
        mb_scheduler_remove(&f.scheduler, &decodes[i]);
    close_scheduler(&f);
}

static void test_queue_is_first_in_first_out(void **state) {
    (void)state;
    fixture f;
    open_scheduler(&f, &roomy, 4);
    mb_job running = job_of(64, 64), large = job_of(10, 200), small = job_of(10, 10);
    mb_scheduler_submit(&f.scheduler, &running);
    mb_scheduler_submit(&f.scheduler, &large); /* 4 blocks; 2 are reserved */
    mb_scheduler_submit(&f.scheduler, &small); /* would fit, but waits its turn */
    step(&f);
    assert_int_equal(f.n, 1);
    assert_int_equal(large.list, MB_JOB_WAITING);
    assert_int_equal(small.list, MB_JOB_WAITING);
    drop_step(&f);
    mb_scheduler_remove(&f.scheduler, &running);
    step(&f);
    assert_int_equal(f.n, 1);
    assert_ptr_equal(f.plan[0].job, &large);
    drop_step(&f);
    mb_scheduler_remove(&f.scheduler, &large);
    step(&f);
    assert_ptr_equal(f.plan[0].job, &small);
    drop_step(&f);
    mb_scheduler_remove(&f.scheduler, &small);
    mb_scheduler_remove(&f.scheduler, &small); /* in no list: nothing */
    assert_int_equal(f.kv.n_free, 4);
    close_scheduler(&f);
}

static void test_capacity_is_refused_at_submit(void **state) {
    (void)state;
    fixture f;
    mb_schedule_limits limits = roomy;
    limits.max_queued = 2;
    open_scheduler(&f, &limits, 4);
    mb_job too_long = job_of(1, 256), absurd = job_of(1, INT64_MAX - 1), fits[3];
    assert_int_equal(mb_scheduler_submit(&f.scheduler, &too_long), MB_ERR_CAPACITY);
    assert_non_null(strstr(mb_last_error(), "257"));
    assert_non_null(strstr(mb_last_error(), "256"));
    assert_int_equal(mb_scheduler_submit(&f.scheduler, &absurd), MB_ERR_CAPACITY);
    for (int i = 0; i < 3; i++) {
        fits[i] = job_of(1, 255);
        assert_int_equal(mb_scheduler_submit(&f.scheduler, &fits[i]), i < 2 ? MB_OK : MB_ERR_CAPACITY);
    }
    assert_non_null(strstr(mb_last_error(), "queue"));
    step(&f); /* admits one, so there is room again */
    assert_int_equal(f.n, 1);
    assert_int_equal(mb_scheduler_submit(&f.scheduler, &fits[2]), MB_OK);
    for (int i = 0; i < 3; i++)
        mb_scheduler_remove(&f.scheduler, &fits[i]);
    drop_step(&f);
    close_scheduler(&f);
}

/* ---- Two steps in flight --------------------------------------------------------------------------- */

static void test_a_prompt_goes_on_while_its_chunk_is_in_flight(void **state) {
    (void)state;
    fixture f;
    open_scheduler(&f, &roomy, 16);
    mb_planned first[MAX_PLAN], second[MAX_PLAN];
    mb_job job = job_of(40, 2);
    mb_scheduler_submit(&f.scheduler, &job);
    assert_int_equal(mb_scheduler_plan(&f.scheduler, first), 1);
    assert_int_equal(job.n_cached, 30);
    assert_int_equal(job.n_in_flight, 1);
    assert_int_equal(mb_scheduler_plan(&f.scheduler, second), 1);
    assert_int_equal(first[0].first, 0);
    assert_int_equal(second[0].first, 30);
    assert_int_equal(second[0].n_tokens, 10);
    assert_true(second[0].draws);
    assert_int_equal(job.n_in_flight, 2);
    mb_scheduler_collect(&f.scheduler, &job);
    mb_scheduler_collect(&f.scheduler, &job);
    mb_scheduler_remove(&f.scheduler, &job);
    close_scheduler(&f);
}

/* A decode follows the step that draws its token, unless the job wants to know the token first. The last
 * token of an answer is not computed. */
static void test_a_decode_follows_its_draw(void **state) {
    (void)state;
    for (int awaits = 0; awaits < 2; awaits++) {
        fixture f;
        open_scheduler(&f, &roomy, 16);
        mb_planned plans[3][MAX_PLAN];
        mb_job job = job_of(5, 2), other = job_of(5, 1);
        job.awaits_token = awaits;
        mb_scheduler_submit(&f.scheduler, &job);
        mb_scheduler_submit(&f.scheduler, &other);
        assert_int_equal(mb_scheduler_plan(&f.scheduler, plans[0]), 2);
        assert_int_equal(mb_scheduler_plan(&f.scheduler, plans[1]), !awaits);
        if (awaits) {
            mb_scheduler_collect(&f.scheduler, &job);
            job.n_drawing--;
            job.n_tokens++;
            assert_int_equal(mb_scheduler_plan(&f.scheduler, plans[1]), 1);
        }
        assert_ptr_equal(plans[1][0].job, &job);
        assert_int_equal(plans[1][0].first, 5);
        assert_int_equal(plans[1][0].n_tokens, 1);
        assert_true(plans[1][0].draws);
        assert_int_equal(mb_scheduler_plan(&f.scheduler, plans[2]), 0); /* two new tokens are all */
        for (; job.n_in_flight > 0; job.n_drawing--) {
            mb_scheduler_collect(&f.scheduler, &job);
            job.n_tokens++;
        }
        assert_int_equal(job.n_tokens, 7);
        assert_int_equal(job.n_drawing, 0);
        mb_scheduler_collect(&f.scheduler, &other);
        mb_scheduler_remove(&f.scheduler, &job);
        mb_scheduler_remove(&f.scheduler, &other);
        close_scheduler(&f);
    }
}

/* Blocks that a step in flight writes must not be given to anybody else. */
static void test_removed_in_flight_keeps_its_blocks(void **state) {
    (void)state;
    fixture f;
    open_scheduler(&f, &roomy, 2);
    mb_planned plan[MAX_PLAN];
    mb_job gone = job_of(100, 2), waiting = job_of(100, 2);
    mb_scheduler_submit(&f.scheduler, &gone);
    mb_scheduler_submit(&f.scheduler, &waiting);
    assert_int_equal(mb_scheduler_plan(&f.scheduler, plan), 1);
    assert_int_equal(mb_scheduler_plan(&f.scheduler, plan), 1);
    mb_scheduler_remove(&f.scheduler, &gone);
    mb_scheduler_remove(&f.scheduler, &gone);
    assert_int_equal(gone.list, MB_JOB_NONE);
    for (int left = 2; left > 0; left--) {
        assert_true(gone.table >= 0);
        assert_int_equal(mb_scheduler_plan(&f.scheduler, plan), 0);
        mb_scheduler_collect(&f.scheduler, &gone);
    }
    assert_int_equal(gone.table, -1);
    assert_int_equal(mb_scheduler_plan(&f.scheduler, plan), 1);
    assert_ptr_equal(plan[0].job, &waiting);
    mb_scheduler_collect(&f.scheduler, &waiting);
    mb_scheduler_remove(&f.scheduler, &waiting);
    assert_int_equal(f.kv.n_free, 2);
    close_scheduler(&f);
}

/* Random removals under two steps in flight: each job's blocks are its own until its last step is
 * collected. */
static void run_overlapping_load(uint64_t seed) {
    enum { JOBS = 40 };
    uint64_t random = seed;
    fixture f;
    open_scheduler(&f, &roomy, 9);
    mb_planned plans[2][MAX_PLAN];
    int32_t n[2] = {0, 0};
    mb_job jobs[JOBS];
    int n_submitted = 0, n_removed = 0;
    for (int turn = 0; n_removed < JOBS || n[0] > 0 || n[1] > 0; turn = 1 - turn) {
        for (int32_t i = 0; i < n[turn]; i++) { /* the step before the one in flight */
            mb_job *job = plans[turn][i].job;
            assert_true(job->table >= 0);
            mb_scheduler_collect(&f.scheduler, job);
            job->n_drawing -= plans[turn][i].draws;
            job->n_tokens += plans[turn][i].draws;
            if (job->list != MB_JOB_NONE && job->n_tokens == job->max_tokens) {
                mb_scheduler_remove(&f.scheduler, job);
                n_removed++;
            }
        }
        if (n_submitted < JOBS) {
            jobs[n_submitted] =
                job_of(1 + (int64_t)(tiny_random(&random) % 150), 1 + (int64_t)(tiny_random(&random) % 20));
            jobs[n_submitted].awaits_token = n_submitted % 3 == 0;
            n_submitted += mb_scheduler_submit(&f.scheduler, &jobs[n_submitted]) == MB_OK;
        }
        mb_job *job = &jobs[tiny_random(&random) % (uint64_t)n_submitted];
        if (tiny_random(&random) % 8 == 0 && job->list != MB_JOB_NONE) {
            mb_scheduler_remove(&f.scheduler, job);
            n_removed++;
        }
        n[turn] = mb_scheduler_plan(&f.scheduler, plans[turn]);
        for (int32_t i = 0; i < n[turn]; i++) {
            const mb_job *in = plans[turn][i].job;
            assert_in_range(in->n_drawing, 0, in->awaits_token ? 1 : 2);
            assert_true(in->n_tokens + in->n_drawing <= in->max_tokens && in->n_cached < in->max_tokens);
        }
        for (int i = 0; i < n_submitted; i++)
            assert_int_equal(jobs[i].table >= 0, jobs[i].list == MB_JOB_RUNNING || jobs[i].n_in_flight > 0);
        assert_null(mb_kv_check(&f.kv, f.scratch));
    }
    assert_int_equal(f.kv.n_free, 9);
    assert_int_equal(f.kv.n_promised, 0);
    close_scheduler(&f);
}

static void test_overlapping_loads_lose_no_block(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 100; seed++)
        run_overlapping_load(seed);
}

/* ---- Random loads ---------------------------------------------------------------------------------- */

/* One random load: jobs of all kinds arrive and are cancelled, until all is done. */
static void run_random_load(uint64_t seed) {
    enum { JOBS = 60 };
    uint64_t random = seed;
#define PICK(low, high) ((int32_t)((low) + (int64_t)(tiny_random(&random) % (uint64_t)((high) - (low) + 1))))
    mb_schedule_limits limits = {.max_step_tokens = PICK(1, 80)};
    limits.max_sequences = PICK(1, limits.max_step_tokens < MAX_PLAN ? limits.max_step_tokens : MAX_PLAN);
    limits.prefill_chunk = PICK(1, 100);
    limits.max_queued = PICK(1, 20);
    limits.max_prompt_logits = PICK(0, 20);
    fixture f;
    int32_t n_blocks = PICK(4, 30);
    open_scheduler(&f, &limits, n_blocks);
    mb_job jobs[JOBS];
    int64_t n_prompt[JOBS], n_admitted_last = -1;
    int n_submitted = 0, n_open = 0;
    for (int guard = 0; n_submitted < JOBS || n_open > 0; guard++) {
        assert_true(guard < 200000); /* everyone finishes */
        while (n_submitted < JOBS && PICK(0, 3) > 0) {
            n_prompt[n_submitted] = PICK(1, 150);
            jobs[n_submitted] = job_of(n_prompt[n_submitted], PICK(0, 60));
            jobs[n_submitted].all_logits = PICK(0, 3) == 0;
            if (mb_scheduler_submit(&f.scheduler, &jobs[n_submitted]) != MB_OK)
                break;
            n_submitted++;
            n_open++;
        }
        if (n_submitted > 0 && PICK(0, 9) == 0) { /* cancelled, in whatever state */
            mb_job *job = &jobs[PICK(0, n_submitted - 1)];
            n_open -= job->list != MB_JOB_NONE;
            mb_scheduler_remove(&f.scheduler, job);
        }
        step(&f);
        assert_int_equal(f.n > 0, n_open > 0); /* progress */
        assert_in_range(f.n, 0, limits.max_sequences);
        int32_t n_tokens = 0, n_logits = 0, n_decodes = 0;
        int seen_chunk = 0;
        for (int32_t i = 0; i < f.n; i++) {
            const mb_planned *item = &f.plan[i];
            const mb_job *job = item->job;
            int64_t i_job = job - jobs, end = item->first + item->n_tokens;
            n_tokens += item->n_tokens;
            n_logits += item->n_logits;
            assert_in_range(item->n_tokens, 1, limits.prefill_chunk);
            assert_true(end <= job->n_tokens && end == job->n_cached);
            assert_int_equal(job->n_in_flight, 1);
            assert_int_equal(item->draws, end == job->n_tokens && job->n_tokens < job->max_tokens);
            assert_int_equal(job->n_drawing, item->draws);
            assert_int_equal(item->n_logits, job->all_logits ? item->n_tokens : item->draws);
            assert_true(f.kv.tables[job->table].n_blocks * 64 >= end);
            if (item->first == 0 && i_job > n_admitted_last)
                n_admitted_last = i_job; /* admission in order of arrival, checked below */
            int decode = item->first >= n_prompt[i_job];
            n_decodes += decode;
            assert_false(decode && seen_chunk);
            seen_chunk |= !decode && item->n_tokens > 1;
            for (int32_t j = 0; j < i; j++)
                assert_ptr_not_equal(f.plan[j].job, job);
        }
        assert_true(n_tokens <= limits.max_step_tokens);
        assert_true(n_logits <= limits.max_sequences + limits.max_prompt_logits);
        int n_decoding = 0;
        for (int i = 0; i < n_submitted; i++) {
            const mb_planned *item = planned(&f, &jobs[i]);
            int64_t first = item ? item->first : jobs[i].n_cached;
            n_decoding += jobs[i].list == MB_JOB_RUNNING && first >= n_prompt[i];
            assert_false(jobs[i].list == MB_JOB_WAITING && i < n_admitted_last);
        }
        assert_int_equal(n_decodes, n_decoding); /* every decode is in every step */
        commit(&f);
        for (int32_t i = 0; i < f.n; i++)
            n_open -= f.plan[i].job->list == MB_JOB_NONE;
        assert_null(mb_kv_check(&f.kv, f.scratch));
    }
    assert_int_equal(f.kv.n_free, n_blocks);
    assert_int_equal(f.kv.n_promised, 0);
    close_scheduler(&f);
#undef PICK
}

static void test_random_loads_keep_the_promises(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++)
        run_random_load(seed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompt_enters_in_chunks_then_decodes),
        cmocka_unit_test(test_no_new_tokens_means_no_draw),
        cmocka_unit_test(test_decodes_go_before_prompts),
        cmocka_unit_test(test_oldest_prompt_advances_under_full_decode_load),
        cmocka_unit_test(test_queue_is_first_in_first_out),
        cmocka_unit_test(test_capacity_is_refused_at_submit),
        cmocka_unit_test(test_a_prompt_goes_on_while_its_chunk_is_in_flight),
        cmocka_unit_test(test_a_decode_follows_its_draw),
        cmocka_unit_test(test_removed_in_flight_keeps_its_blocks),
        cmocka_unit_test(test_overlapping_loads_lose_no_block),
        cmocka_unit_test(test_random_loads_keep_the_promises),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
