/* A sequence does not notice its neighbours: the same seed gives the same text in every batch, and NaN or a
 * failing step ends the sequences concerned alone. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/status.h"
#include "engine/session.h"
#include "model/model.h"
#include "support/generation.h"

enum { VOCAB = 64, MAX_POSITIONS = 512, POISONED = 13 };

static mb_model *model;    /* plain */
static mb_model *poisoned; /* the same with NaN in the embedding of one token */

static int open_models(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = VOCAB;
    options.max_positions = MAX_POSITIONS;
    options.seed = 77;
    tiny_tensors tensors;
    tiny_checkpoint_tensors(&options, &tensors);
    model = tiny_model_open(&options, &tensors);

    tiny_tensor *embedding = tiny_tensors_find(&tensors, "model.embed_tokens.weight");
    float *row = (float *)embedding->data + (size_t)POISONED * (size_t)options.hidden;
    for (int i = 0; i < options.hidden; i++)
        row[i] = NAN;
    poisoned = tiny_model_open(&options, &tensors);
    tiny_tensors_free(&tensors);
    return 0;
}

static int close_models(void **state) {
    (void)state;
    mb_model_close(model);
    mb_model_close(poisoned);
    return 0;
}

static generation random_generation(uint64_t seed, size_t n_ids, int64_t max_new) {
    generation g;
    generation_init_random(&g, model, seed, VOCAB, POISONED, n_ids, max_new);
    return g;
}

/* ---- Sampling ----------------------------------------------------------------------------------------- */

/* Every kind of request beside every other: with and without penalties, bias and log-probabilities. */
static void sample_wildly(generation *g, uint64_t seed) {
    static const mb_logit_bias biases[3][2] = {
        {{3, 1.5f}, {9, -INFINITY}}, {{30, 2.5f}, {7, -1}}, {{41, -INFINITY}, {5, 3}}};
    mb_sampling *s = &g->request.sampling;
    *s = (mb_sampling){.temperature = 1.3f, .top_k = 40, .top_p = 0.98f, .min_p = 0.001f, .seed = seed};
    s->repetition_penalty = seed % 2 ? 1.2f : 1;
    s->presence_penalty = seed % 3 ? 0.5f : 0;
    s->frequency_penalty = seed % 5 ? 0.3f : 0;
    s->logit_bias = seed % 4 ? biases[seed % 3] : NULL;
    s->n_logit_bias = seed % 4 ? 2 : 0;
    if (seed % 3 != 1)
        generation_keep_logprobs(g, seed % 3 == 2);
}

static void test_same_seed_same_text_whatever_the_batch(void **state) {
    (void)state;
    enum { N = 16 };
    generation batched[N];
    mb_session *session = session_with(model, 0, 64, 24, 0);
    for (uint64_t i = 0; i < N; i++) {
        batched[i] = random_generation(100 + i % 4, 5 + 9 * (i % 4), 40); /* four prompts, sixteen seeds */
        sample_wildly(&batched[i], i);
        generation_submit(&batched[i], session);
    }
    generations_run(batched, N, session);
    mb_session_close(session);
    session = session_with(model, 1, 0, 0, 0);
    int n_different = 0;
    for (uint64_t i = 0; i < N; i++) {
        generation alone = random_generation(100 + i % 4, 5 + 9 * (i % 4), 40);
        sample_wildly(&alone, i);
        generation_run_alone(&alone, session);
        assert_int_equal(alone.n_tokens, 40);
        assert_true(generation_same_tokens(&alone, &batched[i]));
        assert_false(batched[i].out_of_order);
        assert_int_equal(batched[i].n_rows, alone.n_rows);
        if (alone.n_rows > 0)
            assert_memory_equal(batched[i].rows, alone.rows, (size_t)alone.n_rows * VOCAB * sizeof(float));
        if (i >= 4)
            n_different += !generation_same_tokens(&batched[i], &batched[i % 4]);
        generation_free(&alone);
    }
    assert_int_equal(n_different, N - 4); /* and other seeds give other texts */
    for (int i = 0; i < N; i++)
        generation_free(&batched[i]);
    mb_session_close(session);
}

static void test_bias_and_penalties_reach_the_sampler(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 0);
    generation plain = random_generation(13, 10, 30), forced = random_generation(13, 10, 30),
               penalised = random_generation(13, 10, 30);
    generation_run_alone(&plain, session);
    const mb_logit_bias bias = {42, 1000};
    forced.request.sampling.logit_bias = &bias;
    forced.request.sampling.n_logit_bias = 1;
    generation_run_alone(&forced, session);
    for (size_t i = 0; i < forced.n_tokens; i++) {
        assert_int_equal(forced.tokens[i].id, 42);
        assert_true(forced.tokens[i].logprob < 0); /* the model's own probability */
    }
    /* a very strong repetition penalty: no token of prompt or answer comes again while others are left */
    penalised.request.sampling.repetition_penalty = 1e9f;
    generation_run_alone(&penalised, session);
    int n_repeats = 0;
    for (size_t i = 0; i < penalised.n_tokens; i++) {
        for (size_t j = 0; j < i; j++)
            n_repeats += penalised.tokens[j].id == penalised.tokens[i].id;
        for (size_t j = 0; j < penalised.request.n_ids; j++)
            n_repeats += penalised.request.ids[j] == penalised.tokens[i].id;
    }
    /* Positive logits shrink to nothing but stay positive, so a token may return only when all others are
     * negative; with 40 of 64 tokens seen that does not happen. */
    assert_int_equal(n_repeats, 0);
    generation_free(&plain);
    generation_free(&forced);
    generation_free(&penalised);
    mb_session_close(session);
}

/* ---- What goes wrong stays where it is ---------------------------------------------------------------- */

static void test_nan_fails_only_its_sequences(void **state) {
    (void)state;
    enum { N = 6 };
    mb_session *clean_session = session_with(model, 0, 0, 0, 0);
    /* a small cache, so that blocks with NaN in them are used again */
    mb_session *session = session_with(poisoned, 0, 40, 16, 6 * 64);
    for (int round = 0; round < 3; round++) {
        generation g[N];
        for (int i = 0; i < N; i++) {
            g[i] = random_generation(20 + (uint64_t)i, 30, 12);
            if (i % 2)
                ((int32_t *)g[i].request.ids)[29 - 7 * i / 2] = POISONED;
            if (i % 3 == 0 || i == 5)
                generation_keep_logprobs(&g[i], 1);
            if (i == 5)
                g[i].request.max_new_tokens = 0; /* nothing is drawn: found in the log-probabilities */
            const mb_logit_bias never = {POISONED, -INFINITY};
            g[i].request.sampling.logit_bias = &never;
            g[i].request.sampling.n_logit_bias = 1;
            generation_submit(&g[i], session);
        }
        generations_run(g, N, session);
        for (int i = 0; i < N; i++) {
            if (i % 2) {
                assert_int_equal(g[i].state, MB_FAILED);
                assert_int_equal(g[i].n_tokens, 0);
            } else {
                generation expected = random_generation(20 + (uint64_t)i, 30, 12);
                const mb_logit_bias never = {POISONED, -INFINITY};
                expected.request.sampling.logit_bias = &never;
                expected.request.sampling.n_logit_bias = 1;
                generation_run_alone(&expected, clean_session);
                assert_true(generation_same_tokens(&g[i], &expected));
                generation_free(&expected);
            }
            for (int64_t j = 0; j < g[i].n_rows * VOCAB; j++)
                assert_false(isnan(g[i].rows[j])); /* never handed out */
            assert_int_equal(mb_release(session, g[i].id), MB_OK);
            generation_free(&g[i]);
        }
        assert_session_idle(session);
    }
    mb_session_close(session);
    mb_session_close(clean_session);
}

static const mb_ops *true_ops;
static int n_calls_until_failure;

static mb_status failing_attention(const mb_decode_attention_args *args, void *workspace,
                                   size_t workspace_bytes, mb_stream stream) {
    if (n_calls_until_failure-- == 0)
        return mb_fail(MB_ERR_DEVICE, "the device fell over");
    return true_ops->decode_attention(args, workspace, workspace_bytes, stream);
}

static mb_status failing_sample(const mb_sample_args *args, void *workspace, size_t workspace_bytes,
                                mb_stream stream) {
    if (n_calls_until_failure-- == 0)
        return mb_fail(MB_ERR_MEMORY, "no memory on the device");
    return true_ops->sample(args, workspace, workspace_bytes, stream);
}

static void test_failing_step_ends_its_batch_only(void **state) {
    (void)state;
    true_ops = model->device->ops;
    for (int kind = 0; kind < 2; kind++) {
        mb_ops broken = *true_ops;
        if (kind == 0)
            broken.decode_attention = failing_attention;
        else
            broken.sample = failing_sample;
        mb_session *session = session_with(model, 2, 0, 0, 512);
        generation g[3] = {random_generation(30, 8, 5), random_generation(31, 8, 5),
                           random_generation(32, 8, 5)};
        for (int i = 0; i < 3; i++)
            generation_submit(&g[i], session);
        session_step(session);
        n_calls_until_failure = kind == 0; /* in the second layer's attention */
        session->runner.forward.ops = &broken;
        int n_unfinished = -1;
        mb_status status = mb_step(session, &n_unfinished);
        session->runner.forward.ops = true_ops;
        assert_int_equal(status, kind == 0 ? MB_ERR_DEVICE : MB_ERR_MEMORY);
        assert_string_not_equal(mb_last_error(), "");
        assert_int_equal(n_unfinished, 1); /* the one that was waiting */
        for (int i = 0; i < 3; i++)
            generation_read(&g[i], session);
        assert_int_equal(g[0].state, MB_FAILED);
        assert_int_equal(g[1].state, MB_FAILED);
        assert_int_equal(g[0].n_tokens, 1); /* what came before the failure can be read */
        assert_int_equal(g[2].state, MB_WAITING);
        generations_run(&g[2], 1, session);
        assert_int_equal(g[2].state, MB_FINISHED_LENGTH);
        assert_int_equal(g[2].n_tokens, 5);
        assert_session_idle(session);
        for (int i = 0; i < 3; i++)
            generation_free(&g[i]);
        mb_session_close(session);
    }
}

static void test_two_sessions_share_a_model(void **state) {
    (void)state;
    mb_session *a = session_with(model, 0, 0, 0, 512), *b = session_with(model, 0, 0, 4, 512);
    generation in_a = random_generation(40, 20, 20), in_b = random_generation(40, 20, 20);
    generation_submit(&in_a, a);
    generation_submit(&in_b, b);
    for (int i = 0; i < 30; i++) { /* in turns */
        session_step(a);
        session_step(b);
    }
    generation_read(&in_a, a);
    generation_read(&in_b, b);
    assert_int_equal(in_a.n_tokens, 20);
    assert_true(generation_same_tokens(&in_a, &in_b));
    generation_free(&in_a);
    generation_free(&in_b);
    mb_session_close(a);
    mb_session_close(b);
}

/* A cache much smaller than the demand: everybody waits their turn and gets what they get alone. */
static void test_small_cache_changes_nothing_but_time(void **state) {
    (void)state;
    enum { N = 20 };
    mb_session *small = session_with(model, 8, 48, 20, 4 * 64), *large = session_with(model, 1, 0, 0, 0);
    generation g[N];
    for (int i = 0; i < N; i++) {
        g[i] = random_generation(50 + (uint64_t)i, 1 + (size_t)(i * 37 % 150), 1 + i * 13 % 70);
        generation_submit(&g[i], small);
    }
    generations_run(g, N, small);
    for (int i = 0; i < N; i++) {
        generation alone = random_generation(50 + (uint64_t)i, 1 + (size_t)(i * 37 % 150), 1 + i * 13 % 70);
        generation_run_alone(&alone, large);
        assert_true(generation_same_tokens(&alone, &g[i]));
        generation_free(&alone);
        generation_free(&g[i]);
    }
    assert_session_idle(small);
    mb_session_close(small);
    mb_session_close(large);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_seed_same_text_whatever_the_batch),
        cmocka_unit_test(test_bias_and_penalties_reach_the_sampler),
        cmocka_unit_test(test_nan_fails_only_its_sequences),
        cmocka_unit_test(test_failing_step_ends_its_batch_only),
        cmocka_unit_test(test_two_sessions_share_a_model),
        cmocka_unit_test(test_small_cache_changes_nothing_but_time),
    };
    return cmocka_run_group_tests(tests, open_models, close_models);
}
