/*
 * The scheduler in a simulation (support/simulation.h). Shown are the times that users see: between the tokens of
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

#include "support/simulation.h"

static const cost_model gpu = {.name = "GPU",
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
                                      .chunk = 512};

/* ---- Long prompts beside chats --------------------------------------------------------------------- */

enum { N_LONG = 3, N_CHATS = 400, CHAT_PROMPT = 200, CHAT_ANSWER = 250 };

/* Chats come and go, and the long prompts come in the middle. */
static simulation *run_mix(const cost_model *cost, double slowdown) {
    simulation *s = open_simulation(cost, slowdown, 4 * MAX_BLOCKS, 0);
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
        double step_time = decode_seconds(s, 1, 0), chat_p99 = first_token_quantile(s, 1, 0.99);
        print_message(
            "%s: between tokens p50 %.2f, p99 %.2f, worst %.2f of idle (without a limit %.2f, %.2f, "
            "%.2f); the long prompts after %.1f times what they take alone; a chat's first token "
            "p99 after %.1f steps (%.1f)\n",
            models[i]->name, gap_quantile(s, 0.5), p99, worst, gap_quantile(unlimited, 0.5),
            gap_quantile(unlimited, 0.99), gap_quantile(unlimited, 1), last / (N_LONG * alone),
            chat_p99 / step_time, first_token_quantile(unlimited, 1, 0.99) / step_time);
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
    simulation *s = open_simulation(&h100, slowdown, 20 * MAX_BLOCKS, 0);
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
    } cases[] = {{64, 400, 0.975}, {64, 1000, 0.985}, {256, 400, 0.96}, {256, 1000, 0.98}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        simulation *s = run_burst(2, cases[i].n, 1024, cases[i].n_answer),
                   *unlimited = run_burst(0, cases[i].n, 1024, cases[i].n_answer);
        double n_tokens = (double)cases[i].n * cases[i].n_answer;
        double first = first_token_quantile(s, 1, 0.5),
               unlimited_first = first_token_quantile(unlimited, 1, 0.5);
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
    simulation *s = open_simulation(&h100, 2, 20 * MAX_BLOCKS, 0);
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
        simulation *s = open_simulation(&h100, limited ? 2 : 0, 20 * MAX_BLOCKS, 0);
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
    simulation *s = open_simulation(&gpu, 0, 600, 0);
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
