/*
 * Random loads against the scheduler, the KV bookkeeping and the prefix cache together. The cache's rows hold
 * numbers here: what stands in a row is a hash of all tokens up to its position. A step writes the rows that
 * it computes, and must find all rows before them as they should be; so a block that was given away too
 * early, shared wrongly or found by mistake is seen at once.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/scheduler.h"
#include "support/tiny_checkpoint.h"

enum { JOBS = 60, MAX_PLAN = 32, MAX_BLOCKS = 8, MAX_TOKENS = MAX_BLOCKS * 64, SLOTS = 2, NEVER = -1 };

typedef struct job {
    mb_job job; /* the first member: a planned job is this one */
    int64_t n_prompt;
    int32_t ids[MAX_TOKENS + 1];
    uint64_t rows[MAX_TOKENS + 1]; /* what the KV cache must hold at each position */
    uint8_t n_logits[MAX_TOKENS];  /* how often each position's logits were handed out */
    int32_t stops_at;              /* number of tokens after which it ends by a stop token */
    int is_done, is_poisoned;      /* poisoned: its steps fail from the middle of its answer on */
    int64_t n_drawn_from; /* set at its end: positions that a token was drawn from, and those before */
} job;

typedef struct load {
    uint64_t random;
    mb_schedule_limits limits;
    mb_kv kv;
    mb_scheduler scheduler;
    void *memory;
    int32_t *scratch;
    uint64_t *content; /* [n_blocks * 64] the KV cache */
    int n_slots;       /* steps in flight */
    mb_planned plans[SLOTS][MAX_PLAN];
    int32_t n_planned[SLOTS];
    job jobs[JOBS];
    int n_submitted, n_open, n_stalled;
    uint64_t n_hits, n_preemptions, n_overtakings;
} load;

static int64_t pick(load *l, int64_t low, int64_t high) {
    return low + (int64_t)(tiny_random(&l->random) % (uint64_t)(high - low + 1));
}

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 29;
}

static void open_load(load *l, uint64_t seed) {
    *l = (load){.random = seed};
    l->limits = (mb_schedule_limits){.max_step_tokens = (int32_t)pick(l, 1, 200),
                                     .prefill_chunk = (int32_t)pick(l, 1, 150),
                                     .max_queued = (int32_t)pick(l, 1, 20),
                                     .max_prompt_logits = (int32_t)pick(l, 0, 20),
                                     .prefix_caching = pick(l, 0, 3) > 0};
    l->limits.max_sequences =
        (int32_t)pick(l, 1, l->limits.max_step_tokens < MAX_PLAN ? l->limits.max_step_tokens : MAX_PLAN);
    l->n_slots = (int)pick(l, 1, SLOTS);
    int32_t n_blocks = (int32_t)pick(l, MAX_BLOCKS, 40);
    mb_arena arena;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 0) {
            mb_arena_measure(&arena);
        } else {
            size_t n_bytes = arena.used;
            l->memory = malloc(n_bytes);
            memset(l->memory, 0xEE, n_bytes);
            mb_arena_init(&arena, l->memory, n_bytes, 1);
        }
        mb_kv_init(&l->kv, &arena, n_blocks, l->limits.max_sequences, MAX_BLOCKS);
        mb_scheduler_init(&l->scheduler, &arena, &l->limits, &l->kv);
    }
    l->scratch = malloc(2 * (size_t)n_blocks * sizeof *l->scratch);
    l->content = calloc((size_t)n_blocks * 64, sizeof *l->content);
}

static void close_load(load *l) {
    free(l->memory);
    free(l->scratch);
    free(l->content);
}

/* Tokens of few families, so that many prompts begin alike; some end within a family's tokens. What is drawn
 * follows from what stands before, as it does in a model. */
static void make_job(load *l, job *j) {
    int64_t n_prompt = pick(l, 1, MAX_TOKENS - 1), n_new = pick(l, 0, MAX_TOKENS - n_prompt);
    if (pick(l, 0, 2) > 0 && n_new > 60)
        n_new = pick(l, 0, 60);
    uint64_t family = (uint64_t)pick(l, 0, 2), salt = (uint64_t)pick(l, 0, 3) / 3;
    int64_t n_common = pick(l, 0, MAX_TOKENS);
    *j = (job){.job = {.ids = j->ids,
                       .n_tokens = n_prompt,
                       .max_tokens = n_prompt + n_new,
                       .all_logits = pick(l, 0, 5) == 0,
                       .priority = (int32_t)pick(l, -1, 1),
                       .awaits_token = pick(l, 0, 2) == 0,
                       .cache_salt = salt,
                       .table = -1},
               .n_prompt = n_prompt,
               .stops_at = pick(l, 0, 2) == 0 ? (int32_t)(n_prompt + pick(l, 0, n_new)) : NEVER,
               .is_poisoned = pick(l, 0, 9) == 0};
    for (int64_t i = 0; i <= MAX_TOKENS; i++) {
        uint64_t before = i > 0 ? j->rows[i - 1] : salt;
        int32_t common = (int32_t)(mix(family, (uint64_t)i) % 1000);
        j->ids[i] = i < n_common ? common : (int32_t)(mix(before, 1) % 1000);
        if (i == n_common) /* where it leaves the family */
            j->ids[i] = (int32_t)pick(l, 0, 1);
        j->rows[i] = mix(before, (uint64_t)j->ids[i]);
    }
}

static void submit_some(load *l) {
    while (l->n_submitted < JOBS && pick(l, 0, 3) > 0) {
        job *j = &l->jobs[l->n_submitted];
        make_job(l, j);
        if (mb_scheduler_submit(&l->scheduler, &j->job) != MB_OK)
            break;
        l->n_submitted++;
        l->n_open++;
    }
}

static void finish(load *l, job *j) {
    if (!j->is_done)
        l->n_open--;
    j->is_done = 1;
    mb_scheduler_remove(&l->scheduler, &j->job);
}

/* ---- What a plan must be --------------------------------------------------------------------------- */

/* What the cache must hold at position p. From a token that ended the answer on it is
 * other than the ids say. */
static uint64_t row_of(const job *j, int64_t p) {
    return j->stops_at != NEVER && p >= j->stops_at ? ~j->rows[p] : j->rows[p];
}

/* Does the step's work on the rows. Steps run one after another on the device, so this may be when they are
 * planned. */
static void run_rows(load *l, const mb_planned *plan, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        const job *j = (const job *)plan[i].job;
        for (int64_t p = plan[i].first; p < plan[i].first + plan[i].n_tokens; p++) {
            int32_t slot = mb_kv_slot(&l->kv, plan[i].job->table, p);
            assert_int_equal(l->kv.n_holders[slot / 64], 1); /* nobody else reads or writes here */
            assert_false(mb_prefix_cache_is_cached(&l->kv.cache, slot / 64));
            l->content[slot] = row_of(j, p);
        }
    }
    for (int32_t i = 0; i < n; i++) {
        const job *j = (const job *)plan[i].job;
        for (int64_t p = 0; p < plan[i].first + plan[i].n_tokens; p++)
            if (l->content[mb_kv_slot(&l->kv, plan[i].job->table, p)] != row_of(j, p))
                fail_msg("position %d of a sequence is not what it computed", (int)p);
    }
}

static void check_item(const load *l, const mb_planned *item) {
    const mb_job *planned = item->job;
    int64_t end = item->first + item->n_tokens, n_known = planned->n_tokens + planned->n_drawing;
    assert_in_range(item->n_tokens, 1, l->limits.prefill_chunk);
    assert_int_equal(planned->list, MB_JOB_RUNNING);
    assert_true(end == planned->n_cached && end <= n_known - item->draws);
    assert_int_equal(item->draws,
                     end == n_known - item->draws && n_known - item->draws < planned->max_tokens);
    assert_true(n_known <= planned->max_tokens);
    assert_in_range(planned->n_drawing, 0, planned->awaits_token ? 1 : l->n_slots);
    assert_true(l->kv.tables[planned->table].n_blocks * 64 >= end);
    if (!planned->all_logits)
        assert_int_equal(item->n_logits, item->draws);
}

static const mb_job *first_of_all(const load *l) {
    const mb_job *first = NULL;
    for (int i = 0; i < l->n_submitted; i++)
        if (l->jobs[i].job.list != MB_JOB_NONE && (!first || mb_job_precedes(&l->jobs[i].job, first)))
            first = &l->jobs[i].job;
    return first;
}

/* The order holds: nobody waits while one that came later with the same priority runs; and with no step in
 * flight the first of all is in the step. */
static void check_order(load *l, const mb_planned *plan, int32_t n) {
    for (int i = 0; i < l->n_submitted; i++)
        for (int k = 0; k < l->n_submitted; k++) {
            const mb_job *waits = &l->jobs[i].job, *runs = &l->jobs[k].job;
            if (waits->list == MB_JOB_WAITING && runs->list == MB_JOB_RUNNING &&
                waits->priority == runs->priority)
                assert_true(mb_job_precedes(runs, waits));
        }
    const mb_job *first = first_of_all(l);
    int has_first = 0;
    for (int32_t i = 0; i < n; i++)
        has_first |= plan[i].job == first;
    if (l->n_slots == 1 && first)
        assert_true(has_first);
}

static void check_plan(load *l, const mb_planned *plan, int32_t n) {
    int32_t n_tokens = 0, n_logits = 0;
    assert_in_range(n, 0, l->limits.max_sequences);
    for (int32_t i = 0; i < n; i++) {
        check_item(l, &plan[i]);
        n_tokens += plan[i].n_tokens;
        n_logits += plan[i].n_logits;
        for (int32_t k = 0; k < i; k++)
            assert_ptr_not_equal(plan[k].job, plan[i].job);
    }
    assert_true(n_tokens <= l->limits.max_step_tokens);
    assert_true(n_logits <= l->limits.max_sequences + l->limits.max_prompt_logits);
    check_order(l, plan, n);
    const char *problem = mb_kv_check(&l->kv, l->scratch);
    if (problem)
        fail_msg("%s", problem);
    for (int i = 0; i < l->n_submitted; i++) {
        const mb_job *j = &l->jobs[i].job;
        assert_int_equal(j->table >= 0, j->list == MB_JOB_RUNNING || j->n_in_flight > 0);
    }
}

/* ---- What becomes of it ---------------------------------------------------------------------------- */

static void collect_item(load *l, const mb_planned *item) {
    job *j = (job *)item->job;
    int64_t end = item->first + item->n_tokens;
    int is_good = !(j->is_poisoned && end > (j->n_prompt + j->job.max_tokens) / 2);
    if (!is_good)
        finish(l, j);
    if (!j->is_done) {
        for (int32_t i = 0; i < item->n_logits; i++)
            j->n_logits[end - 1 - i]++;
        int stops = item->draws && j->job.n_tokens == j->stops_at; /* by a token that is not kept */
        j->job.n_tokens += item->draws && !stops;
        if (stops || (j->job.n_tokens == j->job.max_tokens && (item->draws || end == j->job.max_tokens))) {
            j->n_drawn_from = end;
            finish(l, j);
        }
    }
    mb_scheduler_collect(&l->scheduler, item, is_good);
}

/* Of a job that came to its end all logits that it wanted were handed out, each once. */
static void check_logits(const job *j) {
    int64_t first = j->job.all_logits ? 0 : j->job.max_tokens > j->n_prompt ? j->n_prompt - 1 : MAX_TOKENS;
    for (int64_t p = 0; p < MAX_TOKENS; p++) {
        assert_true(j->n_logits[p] <= 1);
        if (p < j->n_drawn_from)
            assert_int_equal(j->n_logits[p], p >= first);
    }
}

static void run_load(uint64_t seed, load *l) {
    open_load(l, seed);
    int may_cancel = pick(l, 0, 2) > 0;
    for (int turn = 0, guard = 0;
         l->n_submitted < JOBS || l->n_open > 0 || l->n_planned[0] + l->n_planned[1] > 0;
         turn = (turn + 1) % l->n_slots, guard++) {
        assert_true(guard < 100000); /* everyone finishes */
        for (int32_t i = 0; i < l->n_planned[turn]; i++)
            collect_item(l, &l->plans[turn][i]);
        submit_some(l);
        if (may_cancel && l->n_submitted > 0 && pick(l, 0, 19) == 0)
            finish(l, &l->jobs[pick(l, 0, l->n_submitted - 1)]);
        mb_planned *plan = l->plans[turn];
        l->n_planned[turn] = mb_scheduler_plan(&l->scheduler, plan);
        if (l->n_open > 0 && l->n_slots == 1)
            assert_true(l->n_planned[turn] > 0); /* progress */
        check_plan(l, plan, l->n_planned[turn]);
        run_rows(l, plan, l->n_planned[turn]);
    }
    assert_int_equal(mb_kv_available(&l->kv), l->kv.n_blocks);
    assert_int_equal(l->kv.n_promised, 0);
    assert_int_equal(l->scheduler.n_leaving, 0);
    for (int i = 0; i < JOBS; i++)
        check_logits(&l->jobs[i]);
}

static void test_random_loads(void **state) {
    (void)state;
    enum { LOADS = 60 };
    uint64_t n_hits = 0, n_preemptions = 0, n_evicted = 0;
    load *l = malloc(sizeof *l);
    for (uint64_t seed = 1; seed <= LOADS; seed++) {
        run_load(seed, l);
        n_hits += l->scheduler.n_prefix_hits;
        n_preemptions += l->scheduler.n_preemptions;
        n_evicted += l->kv.cache.last_serial - (uint64_t)l->kv.cache.n_cached;
        if (!l->limits.prefix_caching)
            assert_int_equal(l->kv.n_free, l->kv.n_blocks);
        close_load(l);
    }
    free(l);
    /* the loads are hard enough to mean something */
    print_message("%llu hits, %llu preemptions, %llu evictions\n", (unsigned long long)n_hits,
                  (unsigned long long)n_preemptions, (unsigned long long)n_evicted);
    assert_true(n_hits > 10000 && n_preemptions > 500 && n_evicted > 3000);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_loads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
