/* The scheduler alone: what is in a step, who is admitted and preempted, and when blocks
 * enter the prefix cache. */
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
    mb_scheduler_init(&f->scheduler, &arena, limits, &f->kv);
    size_t n_bytes = arena.used;
    f->memory = malloc(n_bytes);
    f->scratch = malloc(2 * (size_t)n_blocks * sizeof *f->scratch);
    mb_arena_init(&arena, f->memory, n_bytes, 1);
    mb_kv_init(&f->kv, &arena, n_blocks, limits->max_sequences, MAX_BLOCKS);
    mb_scheduler_init(&f->scheduler, &arena, limits, &f->kv);
    assert_false(arena.overflowed);
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
        job->n_tokens += f->plan[i].draws;
        if (job->n_tokens == job->max_tokens && (f->plan[i].draws || job->n_cached == job->n_tokens))
            mb_scheduler_remove(&f->scheduler, job);
        mb_scheduler_collect(&f->scheduler, &f->plan[i], 1);
    }
}

static void step(fixture *f) {
    f->n = mb_scheduler_plan(&f->scheduler, f->plan);
}

/* A step that ends without a commit: everybody was removed meanwhile. */
static void drop_step(fixture *f) {
    for (int32_t i = 0; i < f->n; i++)
        mb_scheduler_collect(&f->scheduler, &f->plan[i], 1);
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
    step(&f); /* half for the long one, but the short ones leave most of the other half */
    assert_int_equal(f.n, 4);
    assert_int_equal(planned(&f, &long_prompt)->n_tokens, 26);
    for (int i = 0; i < 3; i++)
        assert_int_equal(planned(&f, &shorts[i])->n_tokens, 2);
    commit(&f);
    step(&f);
    assert_int_equal(f.n, 4);
    for (int i = 0; i < 3; i++) {
        assert_ptr_equal(f.plan[i].job, &shorts[i]);
        assert_int_equal(f.plan[i].n_tokens, 1);
    }
    assert_int_equal(planned(&f, &long_prompt)->n_tokens, 29);
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
    mb_job running = job_of(64, 64), large = job_of(150, 100), small = job_of(10, 10);
    mb_scheduler_submit(&f.scheduler, &running);
    mb_scheduler_submit(&f.scheduler, &large); /* likely 3 blocks; 2 are reserved */
    mb_scheduler_submit(&f.scheduler, &small); /* would fit, but waits its turn */
    step(&f);
    assert_int_equal(f.n, 1);
    assert_int_equal(large.list, MB_JOB_WAITING);
    assert_int_equal(small.list, MB_JOB_WAITING);
    drop_step(&f);
    mb_scheduler_remove(&f.scheduler, &running);
    step(&f);
    assert_int_equal(f.n, 2); /* the last block is for the small one */
    assert_ptr_equal(f.plan[0].job, &large);
    assert_ptr_equal(f.plan[1].job, &small);
    drop_step(&f);
    mb_scheduler_remove(&f.scheduler, &large);
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
    step(&f); /* admits them, so there is room again */
    assert_int_equal(f.n, 2);
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
    mb_scheduler_collect(&f.scheduler, &first[0], 1);
    mb_scheduler_collect(&f.scheduler, &second[0], 1);
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
            job.n_tokens++;
            mb_scheduler_collect(&f.scheduler, &plans[0][0], 1);
            assert_int_equal(mb_scheduler_plan(&f.scheduler, plans[1]), 1);
        }
        assert_ptr_equal(plans[1][0].job, &job);
        assert_int_equal(plans[1][0].first, 5);
        assert_int_equal(plans[1][0].n_tokens, 1);
        assert_true(plans[1][0].draws);
        assert_int_equal(mb_scheduler_plan(&f.scheduler, plans[2]), 0); /* two new tokens are all */
        for (int i = awaits; i < 2; i++) {
            job.n_tokens++;
            mb_scheduler_collect(&f.scheduler, &plans[i][0], 1);
        }
        assert_int_equal(job.n_tokens, 7);
        assert_int_equal(job.n_drawing, 0);
        assert_int_equal(job.n_in_flight, 0);
        mb_scheduler_collect(&f.scheduler, &plans[0][1], 1);
        mb_scheduler_remove(&f.scheduler, &job);
        mb_scheduler_remove(&f.scheduler, &other);
        close_scheduler(&f);
    }
}

/* Jobs that wait for their tokens, and began in different steps, soon share their steps; others fill the steps
 * between. */
static void test_jobs_that_wait_for_tokens_come_together(void **state) {
    (void)state;
    for (int with_other = 0; with_other < 2; with_other++) {
        fixture f;
        open_scheduler(&f, &roomy, 16);
        mb_planned plans[2][MAX_PLAN];
        int32_t n[2];
        mb_job early = job_of(5, 20), late = job_of(5, 20), other = job_of(5, 20);
        early.awaits_token = late.awaits_token = 1;
        mb_scheduler_submit(&f.scheduler, &early);
        assert_int_equal(n[0] = mb_scheduler_plan(&f.scheduler, plans[0]), 1);
        mb_scheduler_submit(&f.scheduler, &late);
        if (with_other)
            mb_scheduler_submit(&f.scheduler, &other);
        assert_int_equal(n[1] = mb_scheduler_plan(&f.scheduler, plans[1]), 1 + with_other);
        for (int i = 0; i < 8; i++) { /* the older step is collected, and another one planned */
            int old = i % 2;
            for (int32_t k = 0; k < n[old]; k++) {
                plans[old][k].job->n_tokens += plans[old][k].draws;
                mb_scheduler_collect(&f.scheduler, &plans[old][k], 1);
            }
            n[old] = mb_scheduler_plan(&f.scheduler, plans[old]);
            if (!with_other && i > 0)
                assert_int_equal(n[old], i % 2 ? 2 : 0);
            if (with_other)
                assert_in_range(n[old], 1, 3);
        }
        assert_true(early.n_tokens > 7 && late.n_tokens > 7);
        for (int i = 0; i < 2; i++)
            for (int32_t k = 0; k < n[i]; k++)
                mb_scheduler_collect(&f.scheduler, &plans[i][k], 1);
        mb_scheduler_remove(&f.scheduler, &early);
        mb_scheduler_remove(&f.scheduler, &late);
        if (with_other)
            mb_scheduler_remove(&f.scheduler, &other);
        close_scheduler(&f);
    }
}

/* Blocks that a step in flight writes must not be given to anybody else. */
static void test_removed_in_flight_keeps_its_blocks(void **state) {
    (void)state;
    fixture f;
    open_scheduler(&f, &roomy, 2);
    mb_planned plans[2][MAX_PLAN], plan[MAX_PLAN];
    mb_job gone = job_of(100, 2), waiting = job_of(100, 2);
    mb_scheduler_submit(&f.scheduler, &gone);
    mb_scheduler_submit(&f.scheduler, &waiting);
    assert_int_equal(mb_scheduler_plan(&f.scheduler, plans[0]), 1);
    assert_int_equal(mb_scheduler_plan(&f.scheduler, plans[1]), 1);
    mb_scheduler_remove(&f.scheduler, &gone);
    mb_scheduler_remove(&f.scheduler, &gone);
    assert_int_equal(gone.list, MB_JOB_NONE);
    for (int i = 0; i < 2; i++) {
        assert_true(gone.table >= 0);
        assert_int_equal(mb_scheduler_plan(&f.scheduler, plan), 0);
        mb_scheduler_collect(&f.scheduler, &plans[i][0], 1);
    }
    assert_int_equal(gone.table, -1);
    assert_int_equal(mb_scheduler_plan(&f.scheduler, plan), 1);
    assert_ptr_equal(plan[0].job, &waiting);
    mb_scheduler_collect(&f.scheduler, &plan[0], 1);
    mb_scheduler_remove(&f.scheduler, &waiting);
    assert_int_equal(f.kv.n_free, 2);
    close_scheduler(&f);
}

/* A block enters the prefix cache when the step that filled it is collected. A token that ended the answer is
 * not kept, so neither is the block that a surplus step filled with it; nor is what a failed step
 * computed. */
static void test_blocks_are_published_when_collected(void **state) {
    (void)state;
    enum { KEPT, STOPPED, FAILED, PREEMPTED, CASES };
    for (int end = 0; end < CASES; end++) {
        fixture f;
        mb_schedule_limits limits = roomy;
        limits.prefix_caching = 1;
        limits.prefill_chunk = limits.max_step_tokens;
        limits.max_sequences = 1;
        open_scheduler(&f, &limits, 16);
        mb_planned plans[2][MAX_PLAN];
        int32_t ids[70] = {0};
        mb_job job = job_of(63, 7), urgent = job_of(5, 1), other = job_of(65, 1);
        job.ids = other.ids = ids;
        urgent.priority = -1;
        mb_scheduler_submit(&f.scheduler, &job);
        assert_int_equal(mb_scheduler_plan(&f.scheduler, plans[0]), 1);
        assert_int_equal(mb_scheduler_plan(&f.scheduler, plans[1]), 1); /* its 64th token */
        if (end == PREEMPTED) {
            mb_scheduler_submit(&f.scheduler, &urgent);
            assert_int_equal(mb_scheduler_plan(&f.scheduler, f.plan), 0); /* its blocks are in use */
            assert_int_equal(job.n_preemptions, 1);
        }
        job.n_tokens += end != STOPPED;
        if (end == STOPPED)
            mb_scheduler_remove(&f.scheduler, &job);
        mb_scheduler_collect(&f.scheduler, &plans[0][0], 1);
        assert_int_equal(f.kv.cache.n_cached, 0);
        job.n_tokens += end != STOPPED;
        mb_scheduler_collect(&f.scheduler, &plans[1][0], end != FAILED);
        assert_int_equal(f.kv.cache.n_cached, end == KEPT || end == PREEMPTED);
        mb_scheduler_remove(&f.scheduler, &job);
        mb_scheduler_remove(&f.scheduler, &urgent);
        mb_scheduler_submit(&f.scheduler, &other);
        step(&f);
        assert_int_equal(f.plan[0].first, end == KEPT || end == PREEMPTED ? 64 : 0);
        assert_int_equal(other.n_hit_tokens, f.plan[0].first);
        drop_step(&f);
        mb_scheduler_remove(&f.scheduler, &other);
        assert_int_equal(mb_kv_available(&f.kv), 16);
        close_scheduler(&f);
    }
}

/* Many answers to one prompt, and a prompt with the same beginning, at once: the first computes what all
 * have, and the others wait for it. When it leaves, the next one goes on. */
static void test_prompts_that_begin_alike_are_computed_once(void **state) {
    (void)state;
    enum { N = 6 };
    for (int leaves = 0; leaves < 2; leaves++) {
        fixture f;
        mb_schedule_limits limits = roomy;
        limits.prefix_caching = 1;
        limits.max_step_tokens = 400;
        limits.prefill_chunk = 80;
        open_scheduler(&f, &limits, 40);
        int32_t ids[300], other_ids[300];
        for (int i = 0; i < 300; i++) {
            ids[i] = i;
            other_ids[i] = i < 150 ? i : -i;
        }
        mb_job jobs[N];
        for (int i = 0; i < N; i++) {
            jobs[i] = job_of(260, 3);
            jobs[i].ids = i == 4 ? other_ids : ids;
            jobs[i].cache_salt = i == 5;
            mb_scheduler_submit(&f.scheduler, &jobs[i]);
        }
        int64_t n_tokens = 0;
        for (int n_steps = 0; f.scheduler.waiting.n + f.scheduler.running.n > 0; n_steps++) {
            assert_true(n_steps < 30);
            step(&f);
            for (int32_t i = 0; i < f.n; i++)
                n_tokens += f.plan[i].n_tokens;
            if (n_steps < 2) { /* at first those that differ from the start */
                assert_int_equal(f.n, 2);
                assert_non_null(planned(&f, &jobs[0]));
                assert_non_null(planned(&f, &jobs[5]));
            }
            commit(&f);
            if (leaves && n_steps == 1)
                mb_scheduler_remove(&f.scheduler, &jobs[0]);
        }
        int64_t own =
            260 - 128 + 2; /* of the prompt that differs after two blocks: tokens that only it has */
        int64_t ends = 3 * (260 - 256 + 2), first = leaves ? 160 + 260 - 128 + 2 - 6 : 260 + 2;
        assert_int_equal(n_tokens, first + ends + own + 260 + 2);
        assert_int_equal(jobs[3].n_hit_tokens, 256);
        assert_int_equal(jobs[4].n_hit_tokens, 128);
        assert_int_equal(jobs[5].n_hit_tokens, 0);
        assert_int_equal(f.scheduler.n_prefix_queries, N * 260);
        assert_int_equal(mb_kv_available(&f.kv), 40);
        close_scheduler(&f);
    }
}

/* ---- Priorities and preemption --------------------------------------------------------------------- */

static void remove_all(fixture *f, mb_job *jobs, int n) {
    for (int i = 0; i < n; i++)
        mb_scheduler_remove(&f->scheduler, &jobs[i]);
}

static void test_the_smaller_priority_is_admitted_first(void **state) {
    (void)state;
    enum { N = 6 };
    static const int32_t priorities[N] = {1, 0, 1, -5, 0, 1}, order[N] = {3, 1, 4, 0, 2, 5};
    fixture f;
    mb_schedule_limits limits = roomy;
    limits.max_sequences = 1;
    open_scheduler(&f, &limits, 8);
    mb_job jobs[N];
    for (int i = 0; i < N; i++) {
        jobs[i] = job_of(10, 1);
        jobs[i].priority = priorities[i];
        mb_scheduler_submit(&f.scheduler, &jobs[i]);
    }
    for (int i = 0; i < N; i++) {
        step(&f);
        assert_int_equal(f.n, 1);
        assert_ptr_equal(f.plan[0].job, &jobs[order[i]]);
        commit(&f);
    }
    close_scheduler(&f);
}

/* Jobs of smaller priority come without end, and one of a larger waits. It is overtaken by so many, and no more. */
static void test_nobody_is_overtaken_for_ever(void **state) {
    (void)state;
    for (int32_t priority = 1; priority <= 2; priority++) {
        fixture f;
        mb_schedule_limits limits = roomy;
        limits.max_sequences = 1;
        open_scheduler(&f, &limits, 8);
        mb_job patient = job_of(10, 1), others[2];
        patient.priority = priority;
        mb_scheduler_submit(&f.scheduler, &patient);
        int n_overtaking = 0;
        for (int i = 0; patient.n_tokens == 10; i++) {
            assert_true(i <= 2 * MB_PRIORITY_ARRIVALS);
            others[i % 2] = job_of(10, 1);
            mb_scheduler_submit(&f.scheduler, &others[i % 2]);
            step(&f);
            n_overtaking += !planned(&f, &patient);
            commit(&f);
        }
        assert_int_equal(n_overtaking, priority * MB_PRIORITY_ARRIVALS - 1);
        remove_all(&f, others, 2);
        close_scheduler(&f);
    }
}

/* Three jobs grow in a pool of six blocks: the last to come gives way, and later continues where it was. */
static void test_the_newest_is_preempted(void **state) {
    (void)state;
    fixture f;
    mb_schedule_limits limits = roomy;
    limits.max_step_tokens = 200;
    limits.prefill_chunk = 200;
    open_scheduler(&f, &limits, 6);
    mb_job jobs[3] = {job_of(64, 200), job_of(64, 200), job_of(60, 100)};
    for (int i = 0; i < 3; i++)
        mb_scheduler_submit(&f.scheduler, &jobs[i]);
    int32_t share = f.scheduler.share;
    step(&f);
    assert_int_equal(f.n, 3); /* 2 + 2 + 2 blocks are likely */
    commit(&f);
    while (jobs[2].n_preemptions == 0) {
        step(&f);
        commit(&f);
        assert_int_equal(jobs[0].n_preemptions + jobs[1].n_preemptions, 0);
    }
    assert_int_equal(jobs[2].list, MB_JOB_WAITING);
    assert_int_equal(jobs[2].table, -1);
    assert_int_equal(jobs[0].n_tokens, 64 + 66); /* it needed a third block for the 129th */
    assert_true(f.scheduler.share > share);
    int64_t had = jobs[2].n_tokens;
    assert_true(had > 60);
    mb_scheduler_remove(&f.scheduler, &jobs[0]);
    step(&f);
    assert_int_equal(planned(&f, &jobs[2])->first, 0); /* all of its tokens again, those drawn too */
    assert_int_equal(planned(&f, &jobs[2])->n_tokens, had);
    assert_int_equal(planned(&f, &jobs[2])->n_logits, 1);
    assert_true(planned(&f, &jobs[2])->draws);
    commit(&f);
    assert_int_equal(jobs[2].n_tokens, had + 1);
    assert_int_equal(f.scheduler.n_preemptions, 1);
    remove_all(&f, jobs, 3);
    close_scheduler(&f);
}

/* An urgent job takes the place of one that is less so, at once; of equals it waits. */
static void test_priority_preempts(void **state) {
    (void)state;
    for (int by_blocks = 0; by_blocks < 2; by_blocks++) {
        fixture f;
        mb_schedule_limits limits = roomy;
        limits.max_sequences = by_blocks ? 8 : 2;
        open_scheduler(&f, &limits, by_blocks ? 2 : 16);
        mb_job jobs[4] = {job_of(20, 20), job_of(20, 20), job_of(20, 20), job_of(20, 20)};
        mb_scheduler_submit(&f.scheduler, &jobs[0]);
        mb_scheduler_submit(&f.scheduler, &jobs[1]);
        step(&f);
        commit(&f);
        mb_scheduler_submit(&f.scheduler, &jobs[2]); /* an equal */
        step(&f);
        assert_null(planned(&f, &jobs[2]));
        commit(&f);
        jobs[3].priority = -1;
        mb_scheduler_submit(&f.scheduler, &jobs[3]);
        step(&f);
        assert_int_equal(f.n, 2);
        assert_non_null(planned(&f, &jobs[3]));
        assert_non_null(planned(&f, &jobs[0]));
        assert_int_equal(jobs[1].list, MB_JOB_WAITING);
        assert_int_equal(jobs[1].n_preemptions, 1);
        commit(&f);
        mb_scheduler_remove(&f.scheduler, &jobs[0]);
        step(&f);
        assert_non_null(planned(&f, &jobs[1])); /* it came before the equal */
        assert_null(planned(&f, &jobs[2]));
        commit(&f);
        remove_all(&f, jobs, 4);
        close_scheduler(&f);
    }
}

/* A preempted job whose step is in flight keeps its blocks, takes what the step draws, and only then comes
 * back. Nobody else is preempted meanwhile. */
static void test_preempted_in_flight(void **state) {
    (void)state;
    fixture f;
    open_scheduler(&f, &roomy, 3);
    mb_planned first[MAX_PLAN], second[MAX_PLAN];
    mb_job jobs[3] = {job_of(20, 100), job_of(20, 100), job_of(20, 100)};
    for (int i = 0; i < 3; i++)
        mb_scheduler_submit(&f.scheduler, &jobs[i]);
    for (int i = 0; i < 45; i++) { /* jobs[0] and the others have filled their blocks but for one token */
        step(&f);
        assert_int_equal(f.n, 3);
        commit(&f);
    }
    int64_t had = jobs[2].n_tokens;
    assert_int_equal(had, 65);
    for (int i = 0; i < 3; i++) /* as if the next token were in flight */
        assert_int_equal(jobs[i].n_cached, 64);
    jobs[0].n_tokens--;
    jobs[0].n_cached--;
    jobs[1].n_tokens--;
    jobs[1].n_cached--;
    jobs[2].n_tokens--;
    jobs[2].n_cached--;
    assert_int_equal(mb_scheduler_plan(&f.scheduler, first), 3);
    assert_int_equal(mb_scheduler_plan(&f.scheduler, second), 0); /* all need a block, and it is in flight */
    assert_int_equal(jobs[2].list, MB_JOB_WAITING);
    assert_int_equal(jobs[1].list, MB_JOB_RUNNING);
    assert_true(jobs[2].table >= 0);
    assert_int_equal(mb_scheduler_plan(&f.scheduler, second), 0);
    assert_int_equal(f.scheduler.n_preemptions, 1);
    for (int i = 0; i < 3; i++) {
        first[i].job->n_tokens++;
        mb_scheduler_collect(&f.scheduler, &first[i], 1);
    }
    assert_int_equal(jobs[2].table, -1);
    assert_int_equal(jobs[2].n_tokens, had);
    assert_int_equal(mb_scheduler_plan(&f.scheduler, second), 1);
    assert_ptr_equal(second[0].job, &jobs[0]); /* one block for one */
    mb_scheduler_collect(&f.scheduler, &second[0], 1);
    remove_all(&f, jobs, 3);
    close_scheduler(&f);
}

/* A preempted job reports no log-probability twice, wherever it was. */
static void test_prompt_logits_are_wanted_once(void **state) {
    (void)state;
    fixture f;
    open_scheduler(&f, &roomy, 4);
    mb_job job = job_of(100, 100), urgent = job_of(160, 90);
    job.all_logits = 1;
    urgent.priority = -1;
    int n_rows[200] = {0}, n_steps = 0;
    mb_scheduler_submit(&f.scheduler, &job);
    while (job.n_tokens < job.max_tokens) {
        step(&f);
        const mb_planned *item = planned(&f, &job);
        for (int32_t i = 0; item && i < item->n_logits; i++)
            n_rows[item->first + item->n_tokens - 1 - i]++;
        commit(&f);
        n_steps++;
        if (n_steps == 5 || n_steps == 50 || n_steps == 95) { /* in the prompt, and twice in the answer */
            urgent = job_of(160, 90);
            urgent.priority = -1;
            mb_scheduler_submit(&f.scheduler, &urgent);
        }
        if (n_steps % 45 == 10)
            mb_scheduler_remove(&f.scheduler, &urgent);
    }
    assert_int_equal(job.n_preemptions, 3);
    for (int i = 0; i < 199; i++)
        assert_int_equal(n_rows[i], 1);
    close_scheduler(&f);
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
        cmocka_unit_test(test_jobs_that_wait_for_tokens_come_together),
        cmocka_unit_test(test_removed_in_flight_keeps_its_blocks),
        cmocka_unit_test(test_blocks_are_published_when_collected),
        cmocka_unit_test(test_prompts_that_begin_alike_are_computed_once),
        cmocka_unit_test(test_the_smaller_priority_is_admitted_first),
        cmocka_unit_test(test_nobody_is_overtaken_for_ever),
        cmocka_unit_test(test_the_newest_is_preempted),
        cmocka_unit_test(test_priority_preempts),
        cmocka_unit_test(test_preempted_in_flight),
        cmocka_unit_test(test_prompt_logits_are_wanted_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
