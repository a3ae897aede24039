#include "support/slow_models.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "model/model.h"

enum { MIB = 1 << 20, KV_TOKENS = 24 * 64 };

slow_models models;

int slow_models_open(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = VOCAB;
    options.n_layers = 2;
    options.max_positions = 512;
    options.seed = 31;
    tiny_tensors tensors;
    tiny_checkpoint_tensors(&options, &tensors);
    models.plain = tiny_model_open(&options, &tensors);
    tiny_tensor *embedding = tiny_tensors_find(&tensors, "model.embed_tokens.weight");
    float *row = (float *)embedding->data + (size_t)POISONED * (size_t)options.hidden;
    for (int i = 0; i < options.hidden; i++)
        row[i] = NAN;
    models.poisoned = tiny_model_open(&options, &tensors);
    tiny_tensors_free(&tensors);
    models.cpu = models.plain->device;
    models.poisoned_cpu = models.poisoned->device;
    return 0;
}

int slow_models_close(void **state) {
    (void)state;
    mb_model_close(models.plain);
    mb_model_close(models.poisoned);
    return 0;
}

int slow_models_use_device(void **state) {
    (void)state;
    models.slow = slow_device_open(64 * MIB);
    models.plain->device = models.poisoned->device = slow_device_of(models.slow);
    return 0;
}

int slow_models_use_cpu(void **state) {
    (void)state;
    models.plain->device = models.cpu;
    models.poisoned->device = models.poisoned_cpu;
    slow_device_close(models.slow);
    return 0;
}

mb_session *slow_models_session(mb_model *of, session_shape s) {
    mb_session_options options;
    mb_session *session;
    mb_session_options_init(&options);
    options.steps_in_flight = s.steps_in_flight;
    options.graphs = s.graphs;
    options.kv_tokens = s.kv_tokens ? s.kv_tokens : KV_TOKENS;
    if (s.max_sequences)
        options.max_sequences = s.max_sequences;
    if (s.max_step_tokens)
        options.max_step_tokens = s.max_step_tokens;
    if (s.prefill_chunk)
        options.prefill_chunk = s.prefill_chunk;
    if (mb_session_open(of, &options, &session) != MB_OK)
        fail_msg("mb_session_open: %s", mb_last_error());
    return session;
}

generation slow_models_generation(uint64_t seed, size_t n_ids, int64_t max_new) {
    generation g;
    generation_init_random(&g, models.plain, seed, VOCAB, POISONED, n_ids, max_new);
    return g;
}

/* Requests of every kind, the same for the same seed: all that the next draw may depend on, all that may
 * end an answer, and log-probabilities. */
void slow_models_wild(generation *g, uint64_t seed) {
    static const mb_logit_bias biases[] = {{3, 1.5f}, {9, -INFINITY}, {POISONED, -INFINITY}};
    static const int32_t stops[] = {5, 17, 40};
    *g = slow_models_generation(seed, 1 + seed * 23 % 90, 1 + (int64_t)(seed * 7 % 19));
    mb_sampling *s = &g->request.sampling;
    *s = (mb_sampling){.temperature = seed % 5 ? 1.1f : 0, .top_p = 0.98f, .seed = seed};
    s->repetition_penalty = seed % 2 ? 1.3f : 1;
    s->presence_penalty = seed % 3 == 1 ? 0.6f : 0;
    s->frequency_penalty = seed % 5 == 2 ? 0.8f : 0;
    s->logit_bias = biases;
    s->n_logit_bias = seed % 4 ? 0 : 3;
    g->request.stop_ids = stops;
    g->request.n_stop_ids = seed % 3 ? 3 : 0;
    g->request.min_new_tokens = seed % 7 == 1 ? g->request.max_new_tokens / 2 : 0;
    if (seed % 4 > 1)
        generation_keep_logprobs(g, seed % 4 == 3);
}

void assert_same_generation(const generation *a, const generation *b) {
    assert_true(generation_same_tokens(a, b));
    assert_int_equal(a->n_rows, b->n_rows);
    assert_false(a->out_of_order);
    if (a->n_rows > 0)
        assert_memory_equal(a->rows, b->rows, (size_t)a->n_rows * VOCAB * sizeof(float));
}

/* What a request gives alone on the CPU. */
void slow_models_run_one_alone(generation *g) {
    mb_device *former = models.plain->device;
    models.plain->device = models.cpu;
    mb_session *session = slow_models_session(models.plain, (session_shape){.max_sequences = 1});
    generation_run_alone(g, session);
    mb_session_close(session);
    models.plain->device = former;
}

/* What the wild requests give alone on the CPU. */
void slow_models_run_alone(generation *alone, size_t n) {
    for (size_t i = 0; i < n; i++) {
        slow_models_wild(&alone[i], i);
        slow_models_run_one_alone(&alone[i]);
    }
}

void slow_models_free(generation *g, size_t n) {
    for (size_t i = 0; i < n; i++)
        generation_free(&g[i]);
}

void pause_a_little(void) {
    const struct timespec some = {.tv_nsec = 1000 * 1000};
    nanosleep(&some, NULL);
}

static void *stepper_body(void *user) {
    stepper *s = user;
    s->status = mb_step(s->session, &s->n_unfinished);
    atomic_store(&s->is_done, 1);
    return NULL;
}

void stepper_start(stepper *s, mb_session *session) {
    *s = (stepper){.session = session};
    assert_int_equal(pthread_create(&s->thread, NULL, stepper_body, s), 0);
}

void stepper_finish(stepper *s) {
    pthread_join(s->thread, NULL);
    assert_int_equal(s->status, MB_OK);
}
