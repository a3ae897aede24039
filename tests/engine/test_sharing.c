/*
 * The prefix cache and preemption in a session: whatever was cached, shared, preempted and computed
 * again, a sequence gets the tokens and log-probabilities, bit for bit, that it gets alone in a
 * session without a cache.
 */
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

static mb_model *model, *poisoned; /* the second has NaN in the embedding of one token */

static int open_models(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = VOCAB;
    options.max_positions = MAX_POSITIONS;
    options.seed = 78;
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

static mb_session *open_session(mb_model *of, int32_t max_sequences, int64_t kv_tokens, int prefix_caching) {
    mb_session_options options;
    mb_session_options_init(&options);
    options.max_sequences = max_sequences;
    options.max_step_tokens = 96;
    options.prefill_chunk = 40;
    options.kv_tokens = kv_tokens;
    options.prefix_caching = prefix_caching;
    mb_session *session;
    if (mb_session_open(of, &options, &session) != MB_OK)
        fail_msg("mb_session_open: %s", mb_last_error());
    return session;
}

/* A prompt whose first n_common tokens are those of `family`, and the others of `seed`. */
static generation prompt_of(uint64_t family, size_t n_common, uint64_t seed, size_t n_ids, int64_t max_new) {
    generation g, common;
    generation_init_random(&g, model, seed, VOCAB, POISONED, n_ids, max_new);
    generation_init_random(&common, model, family, VOCAB, POISONED, n_ids, max_new);
    memcpy((int32_t *)g.request.ids, common.request.ids, n_common * sizeof(int32_t));
    generation_free(&common);
    return g;
}

/* Every kind of request: drawn and greedy, with and without penalties and log-probabilities. */
static void sample_wildly(generation *g, uint64_t seed) {
    static const mb_logit_bias bias = {9, -INFINITY};
    mb_sampling *s = &g->request.sampling;
    *s = (mb_sampling){.temperature = seed % 4 ? 1.2f : 0, .top_k = 40, .top_p = 0.98f, .seed = seed};
    s->repetition_penalty = seed % 2 ? 1.2f : 1;
    s->presence_penalty = seed % 3 ? 0.5f : 0;
    s->frequency_penalty = seed % 5 ? 0.3f : 0;
    s->logit_bias = seed % 4 == 1 ? &bias : NULL;
    s->n_logit_bias = seed % 4 == 1;
    if (seed % 3 != 1)
        generation_keep_logprobs(g, seed % 3 == 2);
}

static void assert_same(const generation *a, const generation *b) {
    assert_int_equal(a->state, b->state);
    assert_true(generation_same_tokens(a, b));
    assert_int_equal(a->n_rows, b->n_rows);
    assert_false(a->out_of_order);
    if (a->n_rows > 0) {
        assert_int_equal(a->first_position, b->first_position);
        assert_memory_equal(a->rows, b->rows, (size_t)a->n_rows * VOCAB * sizeof(float));
    }
}

static mb_usage usage_of(mb_session *session, const generation *g) {
    mb_usage usage;
    assert_int_equal(mb_get_usage(session, g->id, &usage), MB_OK);
    return usage;
}

/* Runs one request, and returns how many tokens of its prompt came from the cache. */
static int64_t run_one(generation *g, mb_session *session) {
    generation_submit(g, session);
    generations_run(g, 1, session);
    mb_usage usage = usage_of(session, g);
    assert_int_equal(usage.n_prompt, g->request.n_ids);
    assert_int_equal(usage.n_generated, g->n_tokens);
    assert_int_equal(mb_release(session, g->id), MB_OK);
    return usage.n_cached_tokens;
}

/* ---- Prefixes -------------------------------------------------------------------------------------- */

static void test_cached_blocks_change_no_bit(void **state) {
    (void)state;
    mb_session *cached = open_session(model, 4, 8192, 1), *plain = open_session(model, 1, 512, 0);
    static const struct {
        size_t n_common, n_ids;
        int64_t n_cached;
    } cases[] = {
        {0, 200, 0},     {200, 200, 192}, {128, 200, 128},
        {127, 200, 64},  {128, 128, 64}, /* not the last token */
        {129, 129, 128}, {63, 63, 0},     {64, 65, 64},
        {200, 300, 192}, {260, 300, 256},
    };
    generation family = prompt_of(1000, 300, 0, 300, 1);
    uint64_t n_queries = 300, n_hits = 0;
    assert_int_equal(run_one(&family, cached), 0);
    generation_free(&family);
    for (uint64_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (uint64_t kind = 0; kind < 4; kind++) {
            generation g[2];
            int64_t n_cached[2];
            for (int k = 0; k < 2; k++) {
                g[k] = prompt_of(1000, cases[i].n_common, 2000 + 10 * i + kind, cases[i].n_ids, 12);
                sample_wildly(&g[k], kind == 2 ? 7 : kind); /* (2 would want the prompt's too) */
                n_cached[k] = run_one(&g[k], k == 0 ? cached : plain);
            }
            assert_same(&g[0], &g[1]);
            assert_int_equal(n_cached[0], cases[i].n_cached);
            assert_int_equal(n_cached[1], 0);
            n_queries += g[0].request.n_ids;
            n_hits += (uint64_t)n_cached[0];
            generation_free(&g[0]);
            generation_free(&g[1]);
        }
    mb_session_stats stats = session_stats(cached);
    assert_int_equal(stats.n_prefix_queries, n_queries);
    assert_int_equal(stats.n_prefix_hits, n_hits);
    assert_int_equal(stats.n_prompt_tokens, n_queries); /* computed or found, each once */
    assert_int_equal(session_stats(plain).n_prefix_queries, 0);
    assert_session_idle(cached);
    mb_session_close(cached);
    mb_session_close(plain);
}

/* A conversation: each prompt is all that was said before and something new. */
static void test_turns_of_a_chat(void **state) {
    (void)state;
    enum { TURNS = 5, NEW = 25, ANSWER = 50 };
    mb_session *cached = open_session(model, 2, 1024, 1), *plain = open_session(model, 1, 1024, 0);
    int32_t text[TURNS * (NEW + ANSWER) + NEW];
    size_t n_text = 0;
    uint64_t random = 5;
    for (int turn = 0; turn < TURNS; turn++) {
        size_t n_known = n_text;
        for (int i = 0; i < NEW; i++)
            text[n_text++] = (int32_t)(tiny_random(&random) % POISONED);
        generation g[2];
        for (int k = 0; k < 2; k++) {
            generation_init(&g[k], model, text, n_text, ANSWER);
            sample_wildly(&g[k], 7);
            int64_t n_cached = run_one(&g[k], k == 0 ? cached : plain);
            /* All full blocks, the answer's too; its last token was never computed. */
            int64_t expected = k == 0 && n_known > 0 ? (int64_t)(n_known - 1) / 64 * 64 : 0;
            assert_int_equal(n_cached, expected);
        }
        assert_same(&g[0], &g[1]);
        for (size_t i = 0; i < g[0].n_tokens; i++)
            text[n_text++] = g[0].tokens[i].id;
        generation_free(&g[0]);
        generation_free(&g[1]);
    }
    mb_session_close(cached);
    mb_session_close(plain);
}

static void test_salts_and_prompt_logprobs(void **state) {
    (void)state;
    mb_session *session = open_session(model, 2, 1024, 1);
    static const struct {
        uint64_t salt;
        int prompt_logprobs;
        int64_t n_cached;
    } cases[] = {{0, 0, 0}, {0, 0, 128}, {5, 0, 0}, {5, 0, 128}, {6, 0, 0},
                 {0, 1, 0}, {6, 1, 0},   {7, 1, 0}, {7, 0, 128}, {0, 0, 128}};
    generation first = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        generation g = prompt_of(1, 140, 1, 140, 10);
        g.request.cache_salt = cases[i].salt;
        generation_keep_logprobs(&g, cases[i].prompt_logprobs);
        assert_int_equal(run_one(&g, session), cases[i].n_cached);
        assert_int_equal(g.n_rows, cases[i].prompt_logprobs ? 149 : 10);
        if (i == 0) {
            first = g;
            continue;
        }
        assert_true(generation_same_tokens(&g, &first));
        assert_memory_equal(g.rows + (g.n_rows - 10) * VOCAB, first.rows, 10 * VOCAB * sizeof(float));
        generation_free(&g);
    }
    generation_free(&first);
    assert_session_idle(session);
    mb_session_close(session);
}

/* Sequences that run at the same time share what the first has computed. One of them leaves. */
static void test_running_sequences_share(void **state) {
    (void)state;
    enum { N = 6 };
    mb_session *session = open_session(model, 8, 1024, 1), *plain = open_session(model, 1, 1024, 0);
    generation g[N], alone;
    g[0] = prompt_of(3, 200, 3, 200, 100);
    sample_wildly(&g[0], 7);
    generation_submit(&g[0], session);
    while (g[0].n_tokens == 0) {
        session_step(session);
        generation_read(&g[0], session);
    }
    for (uint64_t i = 1; i < N; i++) {
        g[i] = prompt_of(3, 200, 30 + i, 210, 60);
        sample_wildly(&g[i], 6 * i + 1);
        generation_submit(&g[i], session);
    }
    while (g[N - 1].n_tokens < 5) {
        session_step(session);
        for (int i = 0; i < N; i++)
            generation_read(&g[i], session);
    }
    for (int i = 1; i < N; i++)
        assert_int_equal(usage_of(session, &g[i]).n_cached_tokens, 192);
    assert_true(session_stats(session).kv_blocks_free >= 16 - 3 - 2 * N); /* three blocks for all of them */
    assert_int_equal(mb_cancel(session, g[0].id), MB_OK);                 /* the one that computed them */
    assert_int_equal(mb_cancel(session, g[2].id), MB_OK);
    generations_run(g + 1, N - 1, session);
    for (uint64_t i = 1; i < N; i++) {
        alone = prompt_of(3, 200, 30 + i, 210, 60);
        sample_wildly(&alone, 6 * i + 1);
        generation_run_alone(&alone, plain);
        if (i != 2)
            assert_same(&g[i], &alone);
        generation_free(&alone);
    }
    assert_session_idle(session);
    for (int i = 0; i < N; i++)
        generation_free(&g[i]);
    mb_session_close(session);
    mb_session_close(plain);
}

/* Several answers to one prompt, asked for at once: the prompt is computed once. */
static void test_one_prompt_many_answers(void **state) {
    (void)state;
    enum { N = 6 };
    mb_session *session = open_session(model, 8, 2048, 1), *plain = open_session(model, 1, 512, 0);
    generation g[N];
    for (uint64_t i = 0; i < N; i++) {
        g[i] = prompt_of(11, 200, 11, 200, 30);
        sample_wildly(&g[i], 6 * i + 1);
        generation_submit(&g[i], session);
    }
    generations_run(g, N, session);
    for (uint64_t i = 0; i < N; i++) {
        generation alone = prompt_of(11, 200, 11, 200, 30);
        sample_wildly(&alone, 6 * i + 1);
        generation_run_alone(&alone, plain);
        assert_same(&g[i], &alone);
        assert_int_equal(usage_of(session, &g[i]).n_cached_tokens, i == 0 ? 0 : 192);
        generation_free(&alone);
        generation_free(&g[i]);
    }
    assert_session_idle(session);
    mb_session_close(session);
    mb_session_close(plain);
}

/* ---- Preemption ------------------------------------------------------------------------------------ */

/* A pool that runs dry, and requests that come one after another, each more urgent than those before; with
 * the prefix cache and without. */
static void test_preemption_changes_no_bit(void **state) {
    (void)state;
    enum { N = 12, N_NEW = 120 };
    mb_session *plain = open_session(model, 1, 512, 0);
    generation alone[N];
    for (uint64_t i = 0; i < N; i++) {
        alone[i] = prompt_of(4, 70, 40 + i, 75 + 6 * i, N_NEW);
        sample_wildly(&alone[i], i);
        generation_run_alone(&alone[i], plain);
    }
    mb_session_close(plain);
    for (int prefix_caching = 0; prefix_caching < 2; prefix_caching++) {
        mb_session *session = open_session(model, 4, 9 * 64, prefix_caching);
        generation g[N];
        for (uint64_t i = 0; i < N; i++) {
            g[i] = prompt_of(4, 70, 40 + i, 75 + 6 * i, N_NEW);
            sample_wildly(&g[i], i);
            g[i].request.priority = i < N / 2 ? 0 : -(int32_t)i;
            generation_submit(&g[i], session);
            for (int steps = 0; i >= N / 2 && steps < 25; steps++)
                session_step(session);
        }
        generations_run(g, N, session);
        int n_preemptions = 0;
        for (int i = 0; i < N; i++) {
            assert_same(&g[i], &alone[i]);
            n_preemptions += usage_of(session, &g[i]).n_preemptions;
            generation_free(&g[i]);
        }
        assert_true(n_preemptions >= N / 2);
        mb_session_stats stats = session_stats(session);
        assert_int_equal(stats.n_preemptions, n_preemptions);
        assert_int_equal(stats.n_generated_tokens, N * N_NEW);
        assert_session_idle(session);
        mb_session_close(session);
    }
    for (int i = 0; i < N; i++)
        generation_free(&alone[i]);
}

/* Steps until the sequence is preempted. */
static void step_until_preempted(mb_session *session, const generation *g) {
    while (usage_of(session, g).n_preemptions == 0)
        session_step(session);
}

static void test_a_preempted_sequence_can_leave(void **state) {
    (void)state;
    for (int release = 0; release < 2; release++) {
        mb_session *session = open_session(model, 2, 4 * 64, 1);
        generation first = prompt_of(5, 0, 5, 60, 190), second = prompt_of(6, 0, 6, 60, 190);
        generation alone = prompt_of(5, 0, 5, 60, 190);
        generation_submit(&first, session);
        generation_submit(&second, session);
        step_until_preempted(session, &second);
        generation_read(&second, session);
        assert_int_equal(second.state, MB_RUNNING); /* it has tokens, and will have more */
        assert_true(second.n_tokens > 0);
        mb_session_stats stats = session_stats(session);
        assert_int_equal(stats.n_waiting, 1);
        assert_int_equal(stats.n_running, 1);
        assert_int_equal(release ? mb_release(session, second.id) : mb_cancel(session, second.id), MB_OK);
        assert_int_equal(session_stats(session).n_waiting, 0);
        generations_run(&first, 1, session);
        generation_run_alone(&alone, session);
        assert_same(&first, &alone);
        assert_session_idle(session);
        generation_free(&first);
        generation_free(&second);
        generation_free(&alone);
        mb_session_close(session);
    }
}

/* An urgent request goes first, and the one that made way gets all of its tokens. */
static void test_an_urgent_request_goes_first(void **state) {
    (void)state;
    mb_session *session = open_session(model, 1, 512, 1);
    generation patient = prompt_of(7, 0, 7, 50, 60), urgent = prompt_of(8, 0, 8, 50, 20);
    generation alone = prompt_of(7, 0, 7, 50, 60);
    generation_submit(&patient, session);
    for (int i = 0; i < 10; i++)
        session_step(session);
    urgent.request.priority = -3;
    generation_submit(&urgent, session);
    while (urgent.state != MB_FINISHED_LENGTH) {
        session_step(session);
        generation_read(&urgent, session);
        generation_read(&patient, session);
        assert_true(patient.n_tokens < 15);
    }
    assert_int_equal(usage_of(session, &patient).n_preemptions, 1);
    generations_run(&patient, 1, session);
    generation_run_alone(&alone, session);
    assert_same(&patient, &alone);
    generation_free(&patient);
    generation_free(&urgent);
    generation_free(&alone);
    mb_session_close(session);
}

/* ---- Prompts beside those who decode --------------------------------------------------------------- */

/* The session times its steps, and the limit acts: with next to nothing allowed a prompt takes many steps
 * beside a sequence that decodes; without a limit a few. */
static void test_prompts_wait_for_those_who_decode(void **state) {
    (void)state;
    enum { PROMPT = 300, STEPS = 60 };
    for (int has_limit = 0; has_limit < 2; has_limit++) {
        mb_session_options options;
        mb_session_options_init(&options);
        assert_true(options.max_decode_slowdown == 2);
        options.max_decode_slowdown = has_limit ? 1.001f : 0;
        options.kv_tokens = 2048;
        mb_session *session;
        assert_int_equal(mb_session_open(model, &options, &session), MB_OK);
        generation decoding = prompt_of(12, 0, 12, 20, 400), arriving = prompt_of(13, 0, 13, PROMPT, 10);
        generation_submit(&decoding, session);
        for (int i = 0; i < 5; i++)
            session_step(session);
        generation_submit(&arriving, session);
        for (int i = 0; i < STEPS; i++)
            session_step(session);
        generation_read(&decoding, session);
        generation_read(&arriving, session);
        assert_int_equal(decoding.n_tokens, STEPS + 5); /* one in each step */
        assert_int_equal(arriving.n_tokens, has_limit ? 0 : 10);
        assert_true(session_stats(session).n_prompt_tokens > 20); /* but it advances */
        generation_free(&decoding);
        generation_free(&arriving);
        mb_session_close(session);
    }
}

/* ---- What failed leaves nothing behind ------------------------------------------------------------- */

static mb_status failing_sample(const mb_sample_args *args, void *workspace, size_t workspace_bytes,
                                mb_stream stream) {
    (void)args;
    (void)workspace;
    (void)workspace_bytes;
    (void)stream;
    return mb_fail(MB_ERR_DEVICE, "the device fell over");
}

static void test_blocks_of_a_failed_step_are_not_found(void **state) {
    (void)state;
    mb_session *session = open_session(model, 2, 1024, 1);
    generation failed = prompt_of(9, 0, 9, 200, 20), next = prompt_of(9, 0, 9, 200, 20);
    generation_submit(&failed, session);
    for (int i = 0; i < 3; i++)
        session_step(session); /* 120 tokens of the prompt: a full block is in the cache */
    const mb_ops *true_ops = session->runner.forward.ops;
    mb_ops broken = *true_ops;
    broken.sample = failing_sample;
    session->runner.forward.ops = &broken;
    int n_steps = 0;
    while (n_steps < 10 && mb_step(session, NULL) == MB_OK)
        n_steps++;
    session->runner.forward.ops = true_ops;
    assert_true(n_steps < 10);
    generation_read(&failed, session);
    assert_int_equal(failed.state, MB_FAILED);
    assert_int_equal(run_one(&next, session), 0);
    assert_int_equal(next.state, MB_FINISHED_LENGTH);
    generation_free(&next);
    next = prompt_of(9, 0, 9, 200, 20);
    assert_int_equal(run_one(&next, session), 192);
    assert_session_idle(session);
    generation_free(&failed);
    generation_free(&next);
    mb_session_close(session);
}

static void test_nan_is_not_found(void **state) {
    (void)state;
    mb_session *session = open_session(poisoned, 2, 1024, 1);
    for (int i = 0; i < 3; i++) {
        generation bad = prompt_of(10, 0, 10, 200, 5), good = prompt_of(10, 0, 10, 200, 5);
        ((int32_t *)bad.request.ids)[70] = POISONED; /* in the second block */
        const mb_logit_bias never = {POISONED, -INFINITY};
        for (int k = 0; k < 2; k++) {
            generation *g = k ? &good : &bad;
            g->request.sampling.logit_bias = &never;
            g->request.sampling.n_logit_bias = 1;
        }
        generation_submit(&bad, session);
        generations_run(&bad, 1, session);
        assert_int_equal(bad.state, MB_FAILED);
        /* (it takes its good blocks with it, when it found them: they are computed again) */
        assert_int_equal(usage_of(session, &bad).n_cached_tokens, i == 0 ? 0 : 64);
        assert_int_equal(run_one(&good, session), 0);
        assert_int_equal(good.state, MB_FINISHED_LENGTH);
        generation_free(&bad);
        generation_free(&good);
    }
    assert_session_idle(session);
    mb_session_close(session);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cached_blocks_change_no_bit),
        cmocka_unit_test(test_turns_of_a_chat),
        cmocka_unit_test(test_salts_and_prompt_logprobs),
        cmocka_unit_test(test_running_sequences_share),
        cmocka_unit_test(test_one_prompt_many_answers),
        cmocka_unit_test(test_preemption_changes_no_bit),
        cmocka_unit_test(test_a_preempted_sequence_can_leave),
        cmocka_unit_test(test_an_urgent_request_goes_first),
        cmocka_unit_test(test_prompts_wait_for_those_who_decode),
        cmocka_unit_test(test_blocks_of_a_failed_step_are_not_found),
        cmocka_unit_test(test_nan_is_not_found),
    };
    return cmocka_run_group_tests(tests, open_models, close_models);
}
