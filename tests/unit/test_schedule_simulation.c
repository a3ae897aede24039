/*
 * The scheduler in a simulation: requests arrive and answers end as a script says, and a step lasts
 * as long as a simple cost model says. Shown are the times that users see: between the tokens of
 * running chats while long prompts come in, to the first token, and until everything is done. Nothing here
 * looks at a clock.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/scheduler.h"
#include "support/tiny_checkpoint.h"

enum { MAX_JOBS = 2048, MAX_SEQUENCES = 256, MAX_BLOCKS = 1100 };

/* Seconds. */
typedef struct cost_model {
    const char *name;
    double step, mixed; /* of every step; of one that has prompts too, which is no graph */
    double per_decode;
    double per_token;  /* of a prompt at its start */
    double double_at;  /* position where a token costs twice that */
    double noise;      /* a step's time varies by so much of it */
    double chat_every; /* what comes in: a chat after this time, on average */
    int64_t n_long;    /* and three prompts of this length */
    double experts;    /* to read all weights of the experts; each row of a step needs a 16th of them */
    double per_cached; /* of a position that a decode reads */
    int32_t max_sequences, max_step_tokens, chunk, least_prompt_tokens;
} cost_model;

static const cost_model
    gpu = {.name = "GPU",
           .step = 4e-3,
           .mixed = 1e-3,
           .per_decode = 2e-5,
           .per_token = 2e-5,
           .double_at = 8400,
           .noise = 0.05,
           .chat_every = 0.09,
           .n_long = 65536,
           .max_sequences = 64,
           .max_step_tokens = 2048,
           .chunk = 512},
    cpu = {.name = "CPU",
           .step = 1e-4,
           .per_decode = 3e-4,
           .per_token = 2.5e-4,
           .double_at = 8400,
           .noise = 0.05,
           .chat_every = 0.2,
           .n_long = 4096,
           .max_sequences = 64,
           .max_step_tokens = 2048,
           .chunk = 512},
    slow_mixed = {.name = "slow mixed steps",
                  .step = 4e-3,
                  .mixed = 6e-3,
                  .per_decode = 2e-5,
                  .per_token = 2e-5,
                  .double_at = 8400,
                  .noise = 0.05,
                  .chat_every = 0.09,
                  .n_long = 65536,
                  .max_sequences = 64,
                  .max_step_tokens = 2048,
                  .chunk = 512},
    /* Qwen3-30B-A3B in fp8 on an H100, fitted to measured steps: decode 3 ms at 1 sequence, 15.2 at 64 with 1192
     * positions each; prefill 20 ms for 1024 tokens, 48 for 4096, 80 for eight prompts of 1024. */
    h100 = {.name = "H100",
            .step = 2.4e-3,
            .mixed = 3e-4,
            .per_decode = 7.5e-6,
            .per_token = 7.5e-6,
            .double_at = 6500,
            .noise = 0.03,
            .experts = 9.6e-3,
            .per_cached = 3.8e-8,
            .max_sequences = 256,
            .max_step_tokens = 8192,
            .chunk = 8192,
            .least_prompt_tokens = 64};

typedef struct request {
    mb_job job; /* the first member */
    double arrives, first_token, last_token, done;
    int64_t n_prompt, n_answer; /* n_answer: what it really says, at most job.max_tokens - n_prompt */
    int is_chat;
} request;

typedef struct simulation {
    const cost_model *cost;
    uint64_t random;
    mb_kv kv;
    mb_scheduler scheduler;
    void *memory;
    double now;
    request requests[MAX_JOBS]; /* in the order of arrival */
    int n_requests, n_submitted, n_done;
    mb_planned plan[MAX_SEQUENCES];
    int64_t n_computed; /* tokens */
    /* Of every token of a chat but its first: time since the one before, over the time of a step that only
     * decodes the same sequences. */
    float *gaps;
    int n_gaps, max_gaps;
    double worst_gap; /* seconds */
} simulation;

static double uniform(simulation *s) {
    return (double)(tiny_random(&s->random) >> 11) * 0x1p-53;
}

static simulation *open_simulation(const cost_model *cost, double slowdown, int32_t n_blocks) {
    simulation *s = calloc(1, sizeof *s);
    s->cost = cost;
    s->random = 7;
    mb_schedule_limits limits = {.max_sequences = cost->max_sequences,
                                 .max_step_tokens = cost->max_step_tokens,
                                 .prefill_chunk = cost->chunk,
                                 .max_queued = MAX_JOBS,
                                 .max_decode_slowdown = slowdown,
                                 .double_at = 8400,
                                 .least_prompt_tokens = cost->least_prompt_tokens};
    mb_arena arena;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 0) {
            mb_arena_measure(&arena);
        } else {
            size_t n_bytes = arena.used;
            s->memory = malloc(n_bytes);
            mb_arena_init(&arena, s->memory, n_bytes, 1);
        }
        mb_kv_init(&s->kv, &arena, n_blocks, cost->max_sequences, MAX_BLOCKS);
        mb_scheduler_init(&s->scheduler, &arena, &limits, &s->kv);
    }
    return s;
}

static void close_simulation(simulation *s) {
    free(s->memory);
    free(s->gaps);
    free(s);
}

static request *add_request(simulation *s, double arrives, int64_t n_prompt, int64_t n_answer,
                            int64_t max_new) {
    assert_true(s->n_requests < MAX_JOBS && n_answer <= max_new);
    request *r = &s->requests[s->n_requests++];
    *r = (request){.job = {.n_tokens = n_prompt, .max_tokens = n_prompt + max_new, .table = -1},
                   .arrives = arrives,
                   .n_prompt = n_prompt,
                   .n_answer = n_answer};
    return r;
}

/* Of a step that only decodes: n sequences with so many positions in all. */
static double decode_seconds(const simulation *s, double n, double n_cached) {
    const cost_model *cost = s->cost;
    return cost->step + cost->experts * (1 - pow(15. / 16, n)) + n * cost->per_decode +
           n_cached * cost->per_cached;
}

/* Time of the planned step without noise. *idle: what it would take without prompts. */
static double step_seconds(const simulation *s, int32_t n_planned, double *idle) {
    const cost_model *cost = s->cost;
    double prompts = 0, n_prompt_tokens = 0, n_decodes = 0, n_cached = 0;
    for (int32_t i = 0; i < n_planned; i++) {
        const mb_planned *item = &s->plan[i];
        const request *r = (const request *)item->job;
        double context = (double)item->first + 0.5 * item->n_tokens;
        if (item->n_tokens == 1 && item->first >= r->n_prompt) {
            n_decodes++;
            n_cached += (double)item->first;
        } else {
            n_prompt_tokens += item->n_tokens;
            prompts += item->n_tokens * cost->per_token * (1 + context / cost->double_at);
        }
    }
    *idle = decode_seconds(s, n_decodes, n_cached);
    if (n_prompt_tokens == 0)
        return *idle;
    double experts = cost->experts * (1 - pow(15. / 16, n_prompt_tokens)) * pow(15. / 16, n_decodes);
    return *idle + experts + prompts + cost->mixed;
}

static void note_gap(simulation *s, double gap, double idle) {
    if (s->n_gaps == s->max_gaps) {
        s->max_gaps = s->max_gaps ? 2 * s->max_gaps : 1024;
        s->gaps = realloc(s->gaps, (size_t)s->max_gaps * sizeof *s->gaps);
    }
    s->gaps[s->n_gaps++] = (float)(gap / idle);
    s->worst_gap = fmax(s->worst_gap, gap);
}

static void take_token(simulation *s, request *r, double idle) {
    if (r->job.n_tokens++ == r->n_prompt)
        r->first_token = s->now;
    else if (r->is_chat)
        note_gap(s, s->now - r->last_token, idle);
    r->last_token = s->now;
    if (r->job.n_tokens == r->n_prompt + r->n_answer) {
        r->done = s->now;
        s->n_done++;
        mb_scheduler_remove(&s->scheduler, &r->job);
    }
}

static void step(simulation *s) {
    for (; s->n_submitted < s->n_requests && s->requests[s->n_submitted].arrives <= s->now; s->n_submitted++)
        assert_int_equal(mb_scheduler_submit(&s->scheduler, &s->requests[s->n_submitted].job), MB_OK);
    int32_t n = mb_scheduler_plan(&s->scheduler, s->plan);
    if (n == 0) {
        assert_true(s->n_submitted < s->n_requests); /* else somebody was forgotten */
        s->now = s->requests[s->n_submitted].arrives;
        return;
    }
    double idle;
    double seconds = step_seconds(s, n, &idle) * (1 + s->cost->noise * (2 * uniform(s) - 1));
    s->now += seconds;
    mb_scheduler_learn(&s->scheduler, s->plan, n, seconds);
    for (int32_t i = 0; i < n; i++) {
        s->n_computed += s->plan[i].n_tokens;
        if (s->plan[i].draws)
            take_token(s, (request *)s->plan[i].job, idle);
        mb_scheduler_collect(&s->scheduler, &s->plan[i], 1);
    }
}

static void run(simulation *s) {
    while (s->n_done < s->n_requests)
        step(s);
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double gap_quantile(simulation *s, double q) {
    qsort(s->gaps, (size_t)s->n_gaps, sizeof *s->gaps, by_size);
    return (double)s->gaps[(int)(q * (s->n_gaps - 1))];
}

static double gap_mean(const simulation *s) {
    double sum = 0;
    for (int i = 0; i < s->n_gaps; i++)
        sum += (double)s->gaps[i];
    return sum / s->n_gaps;
}

/* ---- Long prompts beside chats --------------------------------------------------------------------- */

enum { N_LONG = 3, N_CHATS = 400, CHAT_PROMPT = 200, CHAT_ANSWER = 250 };

/* Chats come and go, and the long prompts come in the middle. */
static simulation *run_mix(const cost_model *cost, double slowdown) {
    simulation *s = open_simulation(cost, slowdown, 4 * MAX_BLOCKS);
    double at = 0;
    for (int i = 0; i < N_CHATS; i++) {
        at += 2 * uniform(s) * cost->chat_every;
        add_request(s, at, (int64_t)(CHAT_PROMPT * (0.1 + uniform(s))), CHAT_ANSWER, 2 * CHAT_ANSWER)
            ->is_chat = 1;
        if (i >= 100 && i < 100 + N_LONG)
            add_request(s, at, cost->n_long, 10, 100);
    }
    run(s);
    return s;
}

static double prefill_seconds_alone(const cost_model *cost) {
    double n = (double)cost->n_long;
    return n * cost->per_token * (1 + n / 2 / cost->double_at) + n / 512 * cost->step;
}

/* Seconds until the chats' first token, at the quantile. */
static double first_token_quantile(const simulation *s, double q) {
    static float waits[MAX_JOBS];
    int n = 0;
    for (int i = 0; i < s->n_requests; i++)
        if (s->requests[i].is_chat)
            waits[n++] = (float)(s->requests[i].first_token - s->requests[i].arrives);
    qsort(waits, (size_t)n, sizeof *waits, by_size);
    return (double)waits[(int)(q * (n - 1))];
}

static void test_chats_stay_within_twice_of_idle(void **state) {
    (void)state;
    const cost_model *models[] = {&gpu, &cpu};
    for (int i = 0; i < 2; i++) {
        simulation *s = run_mix(models[i], 2), *unlimited = run_mix(models[i], 0);
        double last = 0;
        for (int k = 0; k < s->n_requests; k++)
            if (!s->requests[k].is_chat)
                last = fmax(last, s->requests[k].first_token - s->requests[100].arrives);
        double p99 = gap_quantile(s, 0.99), worst = gap_quantile(s, 1),
               alone = prefill_seconds_alone(models[i]);
        double step_time = decode_seconds(s, 1, 0), chat_p99 = first_token_quantile(s, 0.99);
        print_message(
            "%s: between tokens p50 %.2f, p99 %.2f, worst %.2f of idle (without a limit %.2f, %.2f, "
            "%.2f); the long prompts after %.1f times what they take alone; a chat's first token "
            "p99 after %.1f steps (%.1f)\n",
            models[i]->name, gap_quantile(s, 0.5), p99, worst, gap_quantile(unlimited, 0.5),
            gap_quantile(unlimited, 0.99), gap_quantile(unlimited, 1), last / (N_LONG * alone),
            chat_p99 / step_time, first_token_quantile(unlimited, 0.99) / step_time);
        assert_true(p99 <= 2);
        assert_true(worst <= 3);
        assert_true(gap_quantile(unlimited, 1) > 20); /* so the limit is what helps */
        assert_true(last < 4 * N_LONG * alone);       /* and the long prompts are not starved */
        close_simulation(s);
        close_simulation(unlimited);
    }
}

/* Where a mixed step costs more than the limit by itself, prompts go on nevertheless, and the limit holds on
 * average. */
static void test_slow_mixed_steps_are_spread(void **state) {
    (void)state;
    simulation *s = run_mix(&slow_mixed, 2);
    print_message("%s: between tokens p50 %.2f, mean %.2f, p99 %.2f of idle\n", s->cost->name,
                  gap_quantile(s, 0.5), gap_mean(s), gap_quantile(s, 0.99));
    assert_true(gap_mean(s) <= 2);
    assert_true(gap_quantile(s, 0.99) <= 4);
    close_simulation(s);
}

/* ---- Many prompts beside few chats, and few beside many, on a GPU ---------------------------------- */

/* So many requests at the same time, but for 0.3 ms from one to the next. */
static simulation *run_burst(double slowdown, int n, int64_t n_prompt, int64_t n_answer) {
    simulation *s = open_simulation(&h100, slowdown, 20 * MAX_BLOCKS);
    for (int i = 0; i < n; i++)
        add_request(s, 0.3e-3 * i, n_prompt, n_answer, n_answer)->is_chat = 1;
    run(s);
    return s;
}

/* Of a burst the first prompt is done when the others come. They must not wait for its answer. */
static void test_a_burst_is_not_held_up_by_its_first_answers(void **state) {
    (void)state;
    static const struct {
        int n, n_answer;
        double share; /* of the tokens per second without a limit */
    } cases[] = {{64, 400, 0.96}, {64, 1000, 0.98}, {256, 400, 0.93}, {256, 1000, 0.97}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        simulation *s = run_burst(2, cases[i].n, 1024, cases[i].n_answer),
                   *unlimited = run_burst(0, cases[i].n, 1024, cases[i].n_answer);
        double n_tokens = (double)cases[i].n * cases[i].n_answer;
        double first = first_token_quantile(s, 0.5), unlimited_first = first_token_quantile(unlimited, 0.5);
        print_message(
            "%d prompts of 1024 at once, %d tokens each: %.0f tokens/s (without a limit %.0f), first token "
            "p50 %.0f ms (%.0f), between tokens p99 %.2f of idle, worst %.0f ms\n",
            cases[i].n, cases[i].n_answer, n_tokens / s->now, n_tokens / unlimited->now, 1e3 * first,
            1e3 * unlimited_first, gap_quantile(s, 0.99), 1e3 * s->worst_gap);
        assert_true(unlimited->now > cases[i].share * s->now);
        assert_true(first < 1.5 * unlimited_first);
        assert_true(s->worst_gap < 0.1); /* a step full of short prompts */
        close_simulation(s);
        close_simulation(unlimited);
    }
}

/* Chats run from the start; after a second prompts come, `every` so many seconds. Until the last has its first
 * token. */
static simulation *run_beside(int n_chats, int n_prompts, int64_t n_prompt, double every) {
    simulation *s = open_simulation(&h100, 2, 20 * MAX_BLOCKS);
    request *last = NULL;
    for (int i = 0; i < n_chats; i++)
        add_request(s, 0, 256, 12000, 12000)->is_chat = 1;
    for (int i = 0; i < n_prompts; i++)
        last = add_request(s, 1 + i * every, n_prompt, 4, 4);
    while (s->now < 1)
        step(s);
    s->n_gaps = 0;
    s->worst_gap = 0;
    while (last->first_token == 0)
        step(s);
    return s;
}

/* Mean and worst time to the first token of the prompts. */
static double prompts_first_token(const simulation *s, double *worst) {
    double sum = 0;
    int n = 0;
    *worst = 0;
    for (int i = 0; i < s->n_requests; i++)
        if (!s->requests[i].is_chat) {
            double wait = s->requests[i].first_token - s->requests[i].arrives;
            sum += wait;
            *worst = fmax(*worst, wait);
            n++;
        }
    return sum / n;
}

static void test_many_chats_stay_within_twice_of_idle(void **state) {
    (void)state;
    static const struct {
        int n_chats, n_prompts;
        int64_t n_prompt;
        double every, longest; /* seconds to a prompt's first token */
    } cases[] = {{32, 16, 4096, 0.5, 0.4}, {32, 64, 4096, 0.15, 0.4}, {16, 1, 65536, 1, 20}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        simulation *s = run_beside(cases[i].n_chats, cases[i].n_prompts, cases[i].n_prompt, cases[i].every);
        double worst, mean = prompts_first_token(s, &worst), p99 = gap_quantile(s, 0.99);
        print_message(
            "%d chats, %d prompts of %d: between tokens p99 %.2f of idle, worst %.2f; the prompts' first token "
            "after %.0f ms, worst %.0f\n",
            cases[i].n_chats, cases[i].n_prompts, (int)cases[i].n_prompt, p99, gap_quantile(s, 1), 1e3 * mean,
            1e3 * worst);
        assert_true(p99 <= 2);
        assert_true(worst < cases[i].longest);
        close_simulation(s);
    }
}

/* Beside few sequences that decode, prompts of few tokens a step would read all experts in each step, and a prompt
 * of 4096 would take 18 s. */
static void test_few_chats_do_not_hold_up_prompts(void **state) {
    (void)state;
    for (int n_chats = 1; n_chats <= 8; n_chats *= 2) {
        simulation *s = run_beside(n_chats, 8, 4096, 3), *one = run_beside(n_chats, 1, 65536, 1);
        double worst, mean = prompts_first_token(s, &worst), longest;
        prompts_first_token(one, &longest);
        print_message(
            "%d chats: between tokens mean %.2f of idle, worst %.1f ms; a prompt's first token: 4096 tokens "
            "%.0f ms, worst %.0f, 65536 tokens %.1f s\n",
            n_chats, gap_mean(one), 1e3 * s->worst_gap, 1e3 * mean, 1e3 * worst, longest);
        assert_true(worst < 1);
        assert_true(longest < 40);
        assert_true(gap_mean(s) <= 2 && gap_mean(one) <= 2);
        assert_true(s->worst_gap < 25e-3 && one->worst_gap < 25e-3);
        close_simulation(s);
        close_simulation(one);
    }
}

/* More comes in than can be done: nearly as much is done as without a limit. */
static void test_overload_fills_the_batch(void **state) {
    (void)state;
    double seconds[2];
    for (int limited = 0; limited < 2; limited++) {
        simulation *s = open_simulation(&h100, limited ? 2 : 0, 20 * MAX_BLOCKS);
        for (int i = 0; i < 300; i++)
            add_request(s, 0.05 * i, 2048 + (int64_t)(4096 * uniform(s)), 1 + (int64_t)(800 * uniform(s)),
                        1000);
        run(s);
        seconds[limited] = s->now;
        close_simulation(s);
    }
    print_message("300 prompts of 2048 to 6144, 20 a second: done after %.1f s, without a limit after %.1f\n",
                  seconds[1], seconds[0]);
    assert_true(seconds[1] < 1.2 * seconds[0]);
}

/* ---- A small pool ---------------------------------------------------------------------------------- */

enum { N_BATCH = 400, BATCH_PROMPT = 300, MAX_NEW = 4096 };

/* All at once. Answers are `mean` tokens long on average; share: -1 as the scheduler likes, else fixed.
 * Returns the simulation when all are done. */
static simulation *run_batch(int64_t mean, int32_t share) {
    simulation *s = open_simulation(&gpu, 0, 600);
    for (int i = 0; i < N_BATCH; i++) {
        int64_t n_answer = mean == MAX_NEW ? MAX_NEW : 1 + (int64_t)(-log(1 - uniform(s)) * (double)mean);
        add_request(s, 0, BATCH_PROMPT, n_answer < MAX_NEW ? n_answer : MAX_NEW, MAX_NEW);
    }
    while (s->n_done < s->n_requests) {
        if (share >= 0)
            s->scheduler.share = share;
        step(s);
    }
    return s;
}

/* Tokens that were computed again. */
static double recomputed_share(const simulation *s) {
    int64_t n_needed = 0;
    for (int i = 0; i < s->n_requests; i++)
        n_needed += s->requests[i].n_prompt + s->requests[i].n_answer - 1;
    return (double)(s->n_computed - n_needed) / (double)n_needed;
}

static void test_admission_by_what_is_likely(void **state) {
    (void)state;
    static const int64_t means[] = {100, 400, MAX_NEW};
    for (int i = 0; i < 3; i++) {
        simulation *likely = run_batch(means[i], -1), *worst_case = run_batch(means[i], 1024),
                   *nothing = run_batch(means[i], 0);
        print_message("answers of %d tokens of at most %d: %.1f s, %.1f %% computed again, %d preemptions; "
                      "worst case reserved: %.1f s; nothing reserved: %.1f s, %.1f %% computed again\n",
                      (int)means[i], MAX_NEW, likely->now, 100 * recomputed_share(likely),
                      (int)likely->scheduler.n_preemptions, worst_case->now, nothing->now,
                      100 * recomputed_share(nothing));
        assert_true(worst_case->scheduler.n_preemptions <= 1); /* the share falls a little within a step */
        assert_true(likely->now < (i < 2 ? 0.6 : 1.02) * worst_case->now);
        assert_true(recomputed_share(likely) < 0.1);
        assert_true(i == 2 || likely->now < 1.05 * nothing->now);
        close_simulation(likely);
        close_simulation(worst_case);
        close_simulation(nothing);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chats_stay_within_twice_of_idle),
        cmocka_unit_test(test_slow_mixed_steps_are_spread),
        cmocka_unit_test(test_a_burst_is_not_held_up_by_its_first_answers),
        cmocka_unit_test(test_many_chats_stay_within_twice_of_idle),
        cmocka_unit_test(test_few_chats_do_not_hold_up_prompts),
        cmocka_unit_test(test_overload_fills_the_batch),
        cmocka_unit_test(test_admission_by_what_is_likely),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
