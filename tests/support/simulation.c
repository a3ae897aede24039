#include "support/simulation.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "support/tiny_checkpoint.h"

const cost_model h100 = {.name = "H100",
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

double uniform(simulation *s) {
    return (double)(tiny_random(&s->random) >> 11) * 0x1p-53;
}

simulation *open_simulation(const cost_model *cost, double slowdown, int32_t n_blocks,
                            int32_t max_sequences) {
    simulation *s = calloc(1, sizeof *s);
    s->cost = cost;
    s->random = 7;
    s->depth = 1;
    if (max_sequences == 0)
        max_sequences = cost->max_sequences;
    mb_schedule_limits limits = {.max_sequences = max_sequences,
                                 .max_step_tokens = cost->max_step_tokens,
                                 .prefill_chunk = cost->chunk,
                                 .max_queued = MAX_JOBS,
                                 .prefix_caching = 1,
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
        mb_kv_init(&s->kv, &arena, n_blocks, max_sequences, MAX_BLOCKS);
        mb_scheduler_init(&s->scheduler, &arena, &limits, &s->kv);
    }
    return s;
}

void close_simulation(simulation *s) {
    for (int i = 0; i < s->n_requests; i++)
        free(s->requests[i].ids);
    free(s->memory);
    free(s->gaps);
    free(s);
}

request *add_request(simulation *s, double arrives, int64_t n_prompt, int64_t n_answer, int64_t max_new) {
    assert_true(s->n_requests < MAX_JOBS && n_answer <= max_new);
    request *r = &s->requests[s->n_requests++];
    *r = (request){.job = {.n_tokens = n_prompt, .max_tokens = n_prompt + max_new, .table = -1},
                   .arrives = arrives,
                   .n_prompt = n_prompt,
                   .n_answer = n_answer};
    return r;
}

void share_prefix(simulation *s, request *r, int64_t n_shared) {
    r->ids = calloc((size_t)r->job.max_tokens, sizeof *r->ids);
    for (int64_t i = n_shared; i < r->n_prompt; i++)
        r->ids[i] = 1 + (int32_t)(r - s->requests);
    r->job.ids = r->ids;
}

/* Of a step that only decodes: n sequences with so many positions in all. */
double decode_seconds(const simulation *s, double n, double n_cached) {
    const cost_model *cost = s->cost;
    return cost->step + cost->experts * (1 - pow(15. / 16, n)) + n * cost->per_decode +
           n_cached * cost->per_cached;
}

/* Time of the planned step without noise. */
static double step_seconds(const simulation *s, flight *f) {
    const cost_model *cost = s->cost;
    double prompts = 0, n_prompt_tokens = 0, n_decodes = 0, n_cached = 0;
    for (int32_t i = 0; i < f->n_planned; i++) {
        const mb_planned *item = &f->plan[i];
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
    f->idle = decode_seconds(s, n_decodes, n_cached);
    if (n_prompt_tokens == 0)
        return f->idle;
    double experts = cost->experts * (1 - pow(15. / 16, n_prompt_tokens)) * pow(15. / 16, n_decodes);
    return f->idle + experts + prompts + cost->mixed;
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

static void launch(simulation *s) {
    for (; s->n_submitted < s->n_requests && s->requests[s->n_submitted].arrives <= s->now; s->n_submitted++)
        assert_int_equal(mb_scheduler_submit(&s->scheduler, &s->requests[s->n_submitted].job), MB_OK);
    while (s->n_flights < s->depth) {
        flight *f = &s->flights[(s->oldest + s->n_flights) % MAX_DEPTH];
        f->n_planned = mb_scheduler_plan(&s->scheduler, f->plan);
        if (f->n_planned == 0)
            return;
        f->seconds = step_seconds(s, f) * (1 + s->cost->noise * (2 * uniform(s) - 1));
        s->device_free = fmax(s->now, s->device_free) + f->seconds;
        f->end = s->device_free;
        s->n_flights++;
    }
}

static void collect(simulation *s) {
    flight *f = &s->flights[s->oldest];
    s->now = f->end;
    mb_scheduler_learn(&s->scheduler, f->plan, f->n_planned, f->seconds);
    for (int32_t i = 0; i < f->n_planned; i++) {
        request *r = (request *)f->plan[i].job;
        s->n_computed += f->plan[i].n_tokens;
        if (f->plan[i].draws && r->done == 0) /* else the answer ended while this step was in flight */
            take_token(s, r, f->idle);
        mb_scheduler_collect(&s->scheduler, &f->plan[i], 1);
    }
    s->oldest = (s->oldest + 1) % MAX_DEPTH;
    s->n_flights--;
}

void step(simulation *s) {
    launch(s);
    if (s->n_flights > 0) {
        collect(s);
        return;
    }
    assert_true(s->n_submitted < s->n_requests); /* else somebody was forgotten */
    s->now = s->requests[s->n_submitted].arrives;
}

void run(simulation *s) {
    while (s->n_done < s->n_requests)
        step(s);
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

double gap_quantile(simulation *s, double q) {
    qsort(s->gaps, (size_t)s->n_gaps, sizeof *s->gaps, by_size);
    return (double)s->gaps[(int)(q * (s->n_gaps - 1))];
}

double gap_mean(const simulation *s) {
    double sum = 0;
    for (int i = 0; i < s->n_gaps; i++)
        sum += (double)s->gaps[i];
    return sum / s->n_gaps;
}

double first_token_quantile(const simulation *s, int of_chats, double q) {
    static float waits[MAX_JOBS];
    int n = 0;
    for (int i = 0; i < s->n_requests; i++)
        if (s->requests[i].is_chat == of_chats)
            waits[n++] = (float)(s->requests[i].first_token - s->requests[i].arrives);
    qsort(waits, (size_t)n, sizeof *waits, by_size);
    return (double)waits[(int)(q * (n - 1))];
}
