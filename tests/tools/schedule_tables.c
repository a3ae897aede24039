/*
 * schedule_tables.c - prints the tables of docs/findings/pace.md: the real scheduler plans steps, and a cost
 * model of Qwen3-30B-A3B in fp8 on an H100 says how long each lasts. Two steps are in flight, as on a GPU:
 * a step is planned before the one in front has ended. Nothing here looks at a clock; the same
 * numbers come out on every machine.
 *
 *   schedule_tables [SLOWDOWN]    max_decode_slowdown, 2; 0: no limit
 *
 * For the scheduler of an earlier commit, build this file in that commit's tree.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/scheduler.h"
#include "support/tiny_checkpoint.h"

enum {
    MAX_REQUESTS = 4096,
    MAX_SEQUENCES = 256,
    MAX_BLOCKS = 1100, /* of a sequence */
    N_BLOCKS = 20 * MAX_BLOCKS,
    DEPTH = 2, /* steps in flight */
};

/* ---- What a step costs --------------------------------------------------------------------------------- */

/* Seconds, fitted to measured steps: decode 3 ms at 1 sequence, 15.2 at 64 with 1192 positions each; prefill
 * 20 ms for 1024 tokens, 48 for 4096, 80 for eight prompts of 1024. */
static const double STEP = 2.4e-3, MIXED = 3e-4, PER_ROW = 7.5e-6, EXPERTS = 9.6e-3, PER_CACHED = 3.8e-8,
                    PER_PAIR = 1.15e-9, NOISE = 0.03;

/* Each row reads 8 of 128 experts; the others are missed with the chance 15/16. */
static double without_attention(double n_rows) {
    return STEP + EXPERTS * (1 - pow(15. / 16, n_rows)) + PER_ROW * n_rows;
}

/* ---- Requests and steps -------------------------------------------------------------------------------- */

typedef struct request {
    mb_job job; /* the first member */
    double arrives, first_token, last_token, done;
    int64_t n_prompt, n_answer;
    int is_shown; /* in the times to the first token; the others are shown between tokens */
} request;

typedef struct flight {
    mb_planned plan[MAX_SEQUENCES];
    int32_t n_planned;
    double seconds, idle; /* idle: without the prompts */
    double end;
} flight;

typedef struct simulation {
    uint64_t random;
    mb_kv kv;
    mb_scheduler scheduler;
    void *memory;
    double now, device_free;
    request requests[MAX_REQUESTS]; /* in the order of arrival */
    int n_requests, n_submitted, n_done;
    flight flights[DEPTH];
    int oldest, n_flights;
    float *gaps; /* between tokens, over the time of a step that only decodes */
    int n_gaps, max_gaps;
    double worst_gap; /* seconds */
} simulation;

static void *checked(void *memory) {
    if (!memory) {
        fprintf(stderr, "schedule_tables: no memory\n");
        exit(1);
    }
    return memory;
}

static double uniform(simulation *s) {
    return (double)(tiny_random(&s->random) >> 11) * 0x1p-53;
}

static simulation *open_simulation(double slowdown, int32_t max_sequences) {
    simulation *s = checked(calloc(1, sizeof *s));
    s->random = 7;
    mb_schedule_limits limits = {.max_sequences = max_sequences,
                                 .max_step_tokens = 8192,
                                 .prefill_chunk = 8192,
                                 .max_queued = MAX_REQUESTS,
                                 .max_decode_slowdown = slowdown,
                                 .double_at = 8400,
                                 .least_prompt_tokens = 64};
    mb_arena arena;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 0) {
            mb_arena_measure(&arena);
        } else {
            size_t n_bytes = arena.used;
            s->memory = checked(malloc(n_bytes));
            mb_arena_init(&arena, s->memory, n_bytes, 1);
        }
        mb_kv_init(&s->kv, &arena, N_BLOCKS, max_sequences, MAX_BLOCKS);
        mb_scheduler_init(&s->scheduler, &arena, &limits, &s->kv);
    }
    return s;
}

static void close_simulation(simulation *s) {
    free(s->memory);
    free(s->gaps);
    free(s);
}

static request *add_request(simulation *s, double arrives, int64_t n_prompt, int64_t n_answer) {
    if (s->n_requests == MAX_REQUESTS) {
        fprintf(stderr, "schedule_tables: more than %d requests\n", MAX_REQUESTS);
        exit(1);
    }
    request *r = &s->requests[s->n_requests++];
    *r = (request){.job = {.n_tokens = n_prompt, .max_tokens = n_prompt + n_answer, .table = -1},
                   .arrives = arrives,
                   .n_prompt = n_prompt,
                   .n_answer = n_answer};
    return r;
}

static void set_times(simulation *s, flight *f) {
    double n_decodes = 0, n_prompt_tokens = 0, decode_attention = 0, prompt_attention = 0;
    for (int32_t i = 0; i < f->n_planned; i++) {
        const mb_planned *item = &f->plan[i];
        const request *r = (const request *)item->job;
        if (item->n_tokens == 1 && item->first >= r->n_prompt) {
            n_decodes++;
            decode_attention += PER_CACHED * (double)item->first;
        } else {
            n_prompt_tokens += item->n_tokens;
            prompt_attention += PER_PAIR * item->n_tokens * ((double)item->first + 0.5 * item->n_tokens);
        }
    }
    f->idle = without_attention(n_decodes) + decode_attention;
    f->seconds = without_attention(n_decodes + n_prompt_tokens) + decode_attention + prompt_attention +
                 (n_prompt_tokens > 0 ? MIXED : 0);
    f->seconds *= 1 + NOISE * (2 * uniform(s) - 1);
    s->device_free = fmax(s->now, s->device_free) + f->seconds;
    f->end = s->device_free;
}

static void note_gap(simulation *s, double gap, double idle) {
    if (s->n_gaps == s->max_gaps) {
        s->max_gaps = s->max_gaps ? 2 * s->max_gaps : 4096;
        s->gaps = checked(realloc(s->gaps, (size_t)s->max_gaps * sizeof *s->gaps));
    }
    s->gaps[s->n_gaps++] = (float)(gap / idle);
    s->worst_gap = fmax(s->worst_gap, gap);
}

static void take_token(simulation *s, request *r, double idle) {
    if (r->job.n_tokens++ == r->n_prompt)
        r->first_token = s->now;
    else
        note_gap(s, s->now - r->last_token, idle);
    r->last_token = s->now;
    if (r->job.n_tokens == r->n_prompt + r->n_answer) {
        r->done = s->now;
        s->n_done++;
        mb_scheduler_remove(&s->scheduler, &r->job);
    }
}

static void launch(simulation *s) {
    for (; s->n_submitted < s->n_requests && s->requests[s->n_submitted].arrives <= s->now; s->n_submitted++)
        if (mb_scheduler_submit(&s->scheduler, &s->requests[s->n_submitted].job) != MB_OK)
            exit(1);
    while (s->n_flights < DEPTH) {
        flight *f = &s->flights[(s->oldest + s->n_flights) % DEPTH];
        f->n_planned = mb_scheduler_plan(&s->scheduler, f->plan);
        if (f->n_planned == 0)
            return;
        set_times(s, f);
        s->n_flights++;
    }
}

static void collect(simulation *s) {
    flight *f = &s->flights[s->oldest];
    s->now = f->end;
    mb_scheduler_learn(&s->scheduler, f->plan, f->n_planned, f->seconds);
    for (int32_t i = 0; i < f->n_planned; i++) {
        request *r = (request *)f->plan[i].job;
        if (f->plan[i].draws && r->done == 0) /* else the answer ended while this step was in flight */
            take_token(s, r, f->idle);
        mb_scheduler_collect(&s->scheduler, &f->plan[i], 1);
    }
    s->oldest = (s->oldest + 1) % DEPTH;
    s->n_flights--;
}

static void run(simulation *s) {
    while (s->n_done < s->n_requests) {
        launch(s);
        if (s->n_flights > 0)
            collect(s);
        else
            s->now = s->requests[s->n_submitted].arrives;
    }
}

/* ---- Tables -------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double quantile(float *values, int n, double q) {
    qsort(values, (size_t)n, sizeof *values, by_size);
    return n > 0 ? (double)values[(int)(q * (n - 1))] : 0;
}

/* Runs, prints a row and closes. */
static void report(simulation *s, const char *name) {
    static float waits[MAX_REQUESTS];
    int n = 0;
    double end = 0, n_tokens = 0;
    run(s);
    for (int i = 0; i < s->n_requests; i++) {
        const request *r = &s->requests[i];
        if (r->is_shown)
            waits[n++] = (float)(r->first_token - r->arrives);
        end = fmax(end, r->done);
        n_tokens += (double)r->n_answer;
    }
    printf("| %-26s | %5.0f | %6.0f / %6.0f | %.1f | %5.1f | %.1f |\n", name, n_tokens / end,
           1e3 * quantile(waits, n, 0.5), 1e3 * quantile(waits, n, 0.99), quantile(s->gaps, s->n_gaps, 0.5),
           quantile(s->gaps, s->n_gaps, 0.99), 1e3 * s->worst_gap);
    close_simulation(s);
}

enum { AT_ONCE_US = 300 }; /* between requests that come "at once" */

static void add_burst(simulation *s, double begins, int n, int64_t n_prompt, int64_t n_answer, int is_shown) {
    for (int i = 0; i < n; i++)
        add_request(s, begins + i * AT_ONCE_US * 1e-6, n_prompt, n_answer)->is_shown = is_shown;
}

static void burst(double slowdown, const char *name, int n, int64_t n_answer) {
    simulation *s = open_simulation(slowdown, n);
    add_burst(s, 0, n, 1024, n_answer, 1);
    report(s, name);
}

/* Prompts of a fifth to nine fifths of n_prompt, answers of up to 800 tokens. */
static void poisson(double slowdown, const char *name, int32_t max_sequences, int n, double per_second,
                    double n_prompt) {
    simulation *s = open_simulation(slowdown, max_sequences);
    double at = 0;
    for (int i = 0; i < n; i++) {
        at -= log(1 - uniform(s)) / per_second;
        int64_t n_answer = 1 + (int64_t)(800 * uniform(s));
        add_request(s, at, (int64_t)(n_prompt * (0.2 + 1.6 * uniform(s))), n_answer)->is_shown = 1;
    }
    report(s, name);
}

static void burst_beside_chats(double slowdown, const char *name) {
    simulation *s = open_simulation(slowdown, 256);
    add_burst(s, 0, 32, 256, 1000, 0);
    add_burst(s, 3, 64, 1024, 400, 1);
    report(s, name);
}

/* Prompts of n_prompt tokens that come each 3 s beside so many chats. */
static void beside(double slowdown, int n_chats, int n_prompts, int64_t n_prompt) {
    char name[64];
    simulation *s = open_simulation(slowdown, 64);
    add_burst(s, 0, n_chats, 256, 8000, 0);
    for (int i = 0; i < n_prompts; i++)
        add_request(s, 1 + 3 * i, n_prompt, 10)->is_shown = 1;
    snprintf(name, sizeof name, "%d x %d beside %d", n_prompts, (int)n_prompt, n_chats);
    report(s, name);
}

int main(int n_arguments, char **arguments) {
    static const int chats[] = {1, 2, 4, 8, 16};
    double slowdown = n_arguments > 1 ? atof(arguments[1]) : 2;
    if (slowdown != 0 && !(slowdown > 1)) {
        fprintf(stderr, "schedule_tables: the slowdown is \"%s\", not 0 or more than 1\n", arguments[1]);
        return 2;
    }
    printf(
        "| max_decode_slowdown %-6g | tokens/s | first token p50 / p99, ms | between tokens, of idle: p50 | p99 | "
        "worst, ms |\n|---|---|---|---|---|---|\n",
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
    return 0;
}
