/*
 * schedule_tables.c - prints the tables of docs/findings/pace.md: the real scheduler plans steps, and a cost
 * model says how long each lasts (support/simulation.h). Two steps are in flight, as on a GPU.
 *
 *   schedule_tables [SLOWDOWN [BANDWIDTH]]    max_decode_slowdown, 2; 0: no limit
 *                                             the memory's, 1: an H100's; an H200's is 1.41 times that
 *
 * For the scheduler of an earlier commit, build this file in that commit's tree.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "support/simulation.h"

static cost_model card;

static simulation *open_table(double slowdown, int32_t max_sequences) {
    simulation *s = open_simulation(&card, slowdown, 20 * MAX_BLOCKS, max_sequences);
    s->depth = MAX_DEPTH;
    return s;
}

/* Runs, prints a row and closes. Shown is the first token of chats, or of the others. */
static void report(simulation *s, const char *name, int of_chats) {
    double n_tokens = 0;
    run(s);
    for (int i = 0; i < s->n_requests; i++)
        n_tokens += (double)s->requests[i].n_answer;
    printf("| %-26s | %5.0f | %6.0f / %6.0f | %.1f | %5.1f | %.1f |\n", name, n_tokens / s->now,
           1e3 * first_token_quantile(s, of_chats, 0.5), 1e3 * first_token_quantile(s, of_chats, 0.99),
           gap_quantile(s, 0.5), gap_quantile(s, 0.99), 1e3 * s->worst_gap);
    close_simulation(s);
}

/* Requests at once: 0.3 ms from one to the next. */
static void add_burst(simulation *s, double begins, int n, int64_t n_prompt, int64_t n_answer,
                      int are_chats) {
    for (int i = 0; i < n; i++)
        add_request(s, begins + 0.3e-3 * i, n_prompt, n_answer, n_answer)->is_chat = are_chats;
}

/* Tokens per second of the engine alone: prefill in full steps, then decoding at the mean context. */
static double engine_rate(const simulation *s, int n, double n_prompt, double n_answer) {
    double n_tokens = card.max_step_tokens, cost = card.per_token * (1 + n_prompt / 2 / card.double_at);
    double full_step = card.step + card.experts + card.mixed + n_tokens * cost;
    double decode = decode_seconds(s, n, n * (n_prompt + n_answer / 2));
    return n * n_answer / (n * n_prompt / n_tokens * full_step + n_answer * decode);
}

static void burst(double slowdown, const char *name, int n, int64_t n_answer) {
    simulation *s = open_table(slowdown, n);
    char with_engine[64];
    snprintf(with_engine, sizeof with_engine, "%s (%.0f)", name, engine_rate(s, n, 1024, (double)n_answer));
    add_burst(s, 0, n, 1024, n_answer, 1);
    report(s, with_engine, 1);
}

/* Prompts of a fifth to nine fifths of n_prompt, answers of up to 800 tokens. */
static void poisson(double slowdown, const char *name, int32_t max_sequences, int n, double per_second,
                    double n_prompt) {
    simulation *s = open_table(slowdown, max_sequences);
    double at = 0;
    for (int i = 0; i < n; i++) {
        at -= log(1 - uniform(s)) / per_second;
        int64_t n_answer = 1 + (int64_t)(800 * uniform(s));
        add_request(s, at, (int64_t)(n_prompt * (0.2 + 1.6 * uniform(s))), n_answer, n_answer)->is_chat = 1;
    }
    report(s, name, 1);
}

static void burst_beside_chats(double slowdown, const char *name) {
    simulation *s = open_table(slowdown, 256);
    add_burst(s, 0, 32, 256, 1000, 1);
    add_burst(s, 3, 64, 1024, 400, 0);
    report(s, name, 0);
}

/* Prompts of n_prompt tokens that come each 3 s beside so many chats. */
static void beside(double slowdown, int n_chats, int n_prompts, int64_t n_prompt) {
    char name[64];
    simulation *s = open_table(slowdown, 64);
    add_burst(s, 0, n_chats, 256, 8000, 1);
    for (int i = 0; i < n_prompts; i++)
        add_request(s, 1 + 3 * i, n_prompt, 10, 10);
    snprintf(name, sizeof name, "%d x %d beside %d", n_prompts, (int)n_prompt, n_chats);
    report(s, name, 0);
}

/* Prompts of 4096 tokens, 2 in a second, beside so many answers. */
static void beside_answers(double slowdown, int n_answers) {
    char name[64];
    simulation *s = open_table(slowdown, 256);
    add_burst(s, 0, n_answers, 256, 512, 1);
    for (int i = 0; i < 16; i++)
        add_request(s, 1.5 + 0.5 * i, 4096, 4, 4);
    snprintf(name, sizeof name, "16 x 4096 beside %d", n_answers);
    report(s, name, 0);
}

/* Seconds to the first token, p50, of n prompts at once. Another request had the first n_shared tokens before. */
static double first_token(double slowdown, int n, int64_t n_prompt, int64_t n_shared) {
    simulation *s = open_table(slowdown, 64);
    share_prefix(s, add_request(s, 0, n_prompt, 2, 2), n_shared);
    add_burst(s, 60, n, n_prompt, 2, 1);
    for (int i = 1; i <= n; i++)
        share_prefix(s, &s->requests[i], n_shared);
    run(s);
    double seconds = first_token_quantile(s, 1, 0.5);
    close_simulation(s);
    return seconds;
}

static void shared(double slowdown, int n, int64_t n_prompt) {
    double fresh = first_token(slowdown, n, n_prompt, 0);
    double after = first_token(slowdown, n, n_prompt, n_prompt - (n_prompt + 2) / 5);
    printf("| %d x %d | %.1f | %.1f | %.2f |\n", n, (int)n_prompt, 1e3 * fresh, 1e3 * after, fresh / after);
}

int main(int n_arguments, char **arguments) {
    static const int chats[] = {1, 2, 4, 8, 16}, lengths[] = {4096, 8192, 16384, 32768};
    double slowdown = n_arguments > 1 ? atof(arguments[1]) : 2;
    double bandwidth = n_arguments > 2 ? atof(arguments[2]) : 1;
    if (slowdown != 0 && !(slowdown > 1)) {
        fprintf(stderr, "schedule_tables: the slowdown is \"%s\", not 0 or more than 1\n", arguments[1]);
        return 2;
    }
    if (!(bandwidth > 0)) {
        fprintf(stderr, "schedule_tables: the bandwidth is \"%s\", not more than 0\n", arguments[2]);
        return 2;
    }
    card = h100;
    card.experts /= bandwidth;
    card.per_cached /= bandwidth;
    printf(
        "| max_decode_slowdown %-6g | tokens/s | first token p50 / p99, ms | between tokens, of idle: p50 | "
        "p99 | worst, ms |\n|---|---|---|---|---|---|\n",
        slowdown);
    burst(slowdown, "64 x 1024 at once, 400 out", 64, 400);
    burst(slowdown, "64 x 1024, 1000 out", 64, 1000);
    burst(slowdown, "256 x 1024, 400 out", 256, 400);
    burst(slowdown, "256 x 1024, 1000 out", 256, 1000);
    poisson(slowdown, "Poisson, 11.5 a second", 256, 3000, 11.5, 1024);
    poisson(slowdown, "Poisson, 19 a second", 256, 3000, 19, 1024);
    burst_beside_chats(slowdown, "64 x 1024 beside 32 chats");
    poisson(slowdown, "4k, 12 a second, 64 places", 64, 1500, 12, 4096);
    for (size_t i = 0; i < sizeof chats / sizeof *chats; i++)
        beside(slowdown, chats[i], 8, 4096);
    for (size_t i = 0; i < sizeof chats / sizeof *chats; i++)
        beside(slowdown, chats[i], 1, 65536);
    beside_answers(slowdown, 32);
    beside_answers(slowdown, 128);
    printf("\n| prompts | first token p50, ms | 80 %% shared | times sooner |\n|---|---|---|---|\n");
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        shared(slowdown, 1, lengths[i]);
    shared(slowdown, 4, 4096);
    shared(slowdown, 16, 4096);
    return 0;
}
