/*
 * step_cost.c - what a step costs the host: planning it, filling its arrays, launching its graph, reading
 * its draws, committing and delivering them. The device does nothing and takes no time, so all that is left
 * is the host's; without the driver's share of the launches. Microseconds of the stepping thread's
 * processor time, so that other programs do not matter: median and the slowest of a hundred.
 *
 *   step_cost [LIMIT]    fails when a median is more microseconds than LIMIT
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/median.h"
#include "engine/session.h"
#include "model/model.h"
#include "support/generation.h"

enum { VOCAB = 1024, MAX_STEPS = 4096, MOST_SEQUENCES = 256 };

/* ---- A device that does nothing --------------------------------------------------------------------- */

#define PLAIN(op)                                                              \
    static mb_status idle_##op(const mb_##op##_args *args, mb_stream stream) { \
        (void)args;                                                            \
        (void)stream;                                                          \
        return MB_OK;                                                          \
    }
#define WITH_WORKSPACE(op)                                                                          \
    static mb_status idle_##op(const mb_##op##_args *args, void *workspace, size_t workspace_bytes, \
                               mb_stream stream) {                                                  \
        (void)args;                                                                                 \
        (void)workspace;                                                                            \
        (void)workspace_bytes;                                                                      \
        (void)stream;                                                                               \
        return MB_OK;                                                                               \
    }
MB_OPERATORS(PLAIN, WITH_WORKSPACE)
#undef PLAIN
#undef WITH_WORKSPACE

static const mb_ops idle_ops = {.name = "idle",
#define PLAIN(op) .op = idle_##op,
#define WITH_WORKSPACE(op) .op##_workspace = mb_##op##_ref_workspace, .op = idle_##op,
                                MB_OPERATORS(PLAIN, WITH_WORKSPACE)
#undef PLAIN
#undef WITH_WORKSPACE
};

static mb_status idle_capture_begin(mb_device *device, mb_stream stream) {
    (void)device;
    (void)stream;
    return MB_OK;
}

static mb_status idle_capture_end(mb_device *device, mb_stream stream, mb_graph **graph) {
    (void)device;
    (void)stream;
    *graph = (mb_graph *)&idle_ops; /* any address */
    return MB_OK;
}

static mb_status idle_replay(mb_device *device, mb_graph *graph, mb_stream stream) {
    (void)device;
    (void)graph;
    (void)stream;
    return MB_OK;
}

static void make_idle(mb_device *device) {
    device->ops = &idle_ops;
    device->n_sms = 1; /* so that decode steps are graphs */
    device->host_memory = 0;
    device->capture_begin = idle_capture_begin;
    device->capture_end = idle_capture_end;
    device->replay = idle_replay;
}

/* ---- Steps ------------------------------------------------------------------------------------------ */

typedef struct scene {
    const char *name;
    int32_t n_sequences, n_prompt, n_steps;
    int is_prefill; /* times the steps of the prompts; else those after them */
    int has_penalties, is_alike;
    int32_t n_waiting; /* more requests, that find no room */
} scene;

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static mb_session *open_session(mb_model *model, const scene *s) {
    mb_session_options options;
    mb_session *session;
    mb_session_options_init(&options);
    options.max_sequences = s->n_sequences;
    options.max_decode_slowdown = 0; /* it would follow the times of a device that takes none */
    options.max_context = s->n_prompt + MAX_STEPS + 64;
    options.kv_tokens = (int64_t)s->n_sequences * (options.max_context + 64);
    if (mb_session_open(model, &options, &session) != MB_OK)
        fail_msg("%s", mb_last_error());
    for (int i = 0; i < session->runner.limits.n_slots; i++) /* nobody draws: id 0 */
        memset(session->runner.slots[i].device_drawn_ids, 0, 2 * (size_t)s->n_sequences * sizeof(int32_t));
    return session;
}

static void submit(mb_session *session, mb_model *model, const scene *s, uint64_t seed, uint64_t *id) {
    static int32_t ids[1 << 16];
    mb_request request;
    uint64_t random = s->is_alike ? 1 : seed;
    for (int32_t i = 0; i < s->n_prompt; i++)
        ids[i] = (int32_t)(tiny_random(&random) % VOCAB);
    mb_request_init(model, &request);
    request.ids = ids;
    request.n_ids = (size_t)s->n_prompt;
    request.max_new_tokens = MAX_STEPS;
    request.ignore_eos = 1;
    request.sampling = (mb_sampling){.top_p = 1, .repetition_penalty = s->has_penalties ? 1.1f : 1};
    if (mb_submit(session, &request, id) != MB_OK)
        fail_msg("%s", mb_last_error());
}

/* A step, and what it drew; *n_decoding: sequences that have a token. */
static double step(mb_session *session, const uint64_t *sequences, uint8_t *has_token, const scene *s,
                   int32_t *n_decoding) {
    double began = now_us();
    session_step(session);
    for (int32_t i = 0; i < s->n_sequences; i++) {
        mb_token tokens[4];
        size_t n;
        mb_state state;
        if (mb_read(session, sequences[i], tokens, 4, &n, &state) != MB_OK || state == MB_FAILED)
            fail_msg("%s", mb_last_error());
        *n_decoding += n > 0 && !has_token[i];
        has_token[i] |= n > 0;
    }
    return now_us() - began;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The median. */
static double play(mb_model *model, const scene *s) {
    static double times[MAX_STEPS];
    uint64_t sequences[MOST_SEQUENCES];
    uint8_t has_token[MOST_SEQUENCES] = {0};
    mb_session *session = open_session(model, s);
    int32_t n_decoding = 0, n = 0;
    for (int32_t i = 0; i < s->n_sequences; i++)
        submit(session, model, s, 1 + (uint64_t)i, &sequences[i]);
    while (n_decoding < s->n_sequences) {
        double us = step(session, sequences, has_token, s, &n_decoding);
        if (s->is_prefill && n < MAX_STEPS)
            times[n++] = us;
    }
    for (int32_t i = 0; i < s->n_waiting; i++) {
        uint64_t id;
        submit(session, model, s, 1000 + (uint64_t)i, &id);
    }
    while (!s->is_prefill && n < s->n_steps)
        times[n++] = step(session, sequences, has_token, s, &n_decoding);
    qsort(times, (size_t)n, sizeof *times, by_value);
    double median = mb_median(times, (size_t)n);
    printf("%-34s %6d %8d %8d %10.1f %10.1f\n", s->name, s->n_sequences, s->n_prompt, n, median,
           times[n - 1 - n / 100]);
    mb_session_close(session);
    return median;
}

int main(int argc, char **argv) {
    const double limit = argc > 1 ? atof(argv[1]) : 1e9;
    int is_too_slow = 0;
    static const scene scenes[] = {
        {"decode", 1, 1024, 200, 0, 0, 0, 0},
        {"decode", 64, 1024, 200, 0, 0, 0, 0},
        {"decode", 256, 1024, 200, 0, 0, 0, 0},
        {"decode, penalties", 256, 1024, 200, 0, 1, 0, 0},
        {"decode, long", 256, 16384, 200, 0, 0, 0, 0},
        {"decode, 512 wait for room", 256, 1024, 200, 0, 0, 0, 512},
        {"prefill", 256, 1024, 0, 1, 0, 0, 0},
        {"prefill, one prompt for all", 256, 1024, 0, 1, 0, 1, 0},
        {"prefill, short prompts", 256, 100, 0, 1, 0, 0, 0},
    };
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = VOCAB;
    options.n_layers = 4;
    options.max_positions = 1 << 16;
    mb_model *model = tiny_model_open(&options, NULL);
    const mb_ops *ops = model->device->ops;
    make_idle(model->device);
    printf("%-34s %6s %8s %8s %10s %10s\n", "", "batch", "context", "steps", "median us", "slowest");
    for (size_t i = 0; i < sizeof scenes / sizeof scenes[0]; i++)
        is_too_slow |= play(model, &scenes[i]) > limit;
    model->device->ops = ops;
    mb_model_close(model);
    if (is_too_slow)
        printf("a step takes the host more than %.0f us\n", limit);
    return is_too_slow;
}
