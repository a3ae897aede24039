/* A sequence's life in a session: states, stops, limits, what is refused, cancelling everywhere. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/model.h"
#include "support/generation.h"

enum { VOCAB = 64, MAX_POSITIONS = 512 };

static mb_model *model;

static int open_model(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = VOCAB;
    options.max_positions = MAX_POSITIONS;
    options.seed = 77;
    model = tiny_model_open(&options, NULL);
    return 0;
}

static int close_model(void **state) {
    (void)state;
    mb_model_close(model);
    return 0;
}

static generation random_generation(uint64_t seed, size_t n_ids, int64_t max_new) {
    generation g;
    generation_init_random(&g, model, seed, VOCAB, -1, n_ids, max_new);
    return g;
}

static mb_state state_of(mb_session *session, uint64_t id) {
    size_t n;
    mb_state state;
    assert_int_equal(mb_read(session, id, NULL, 0, &n, &state), MB_OK);
    return state;
}

/* ---- One sequence's life ------------------------------------------------------------------------------ */

static void test_states_follow_the_life(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 16, 512);
    generation g = random_generation(1, 40, 3);
    generation_submit(&g, session);
    assert_int_equal(state_of(session, g.id), MB_WAITING);
    assert_int_equal(session_stats(session).n_waiting, 1);
    for (int i = 0; i < 4; i++) { /* 16 + 16 + 8 prompt tokens, then one decode */
        session_step(session);
        assert_int_equal(state_of(session, g.id), MB_RUNNING);
        assert_int_equal(session_stats(session).n_running, 1);
        generation_read(&g, session);
        assert_int_equal(g.n_tokens, i < 2 ? 0 : i - 1);
    }
    assert_int_equal(session_stats(session).kv_blocks_free, 7);
    int n_unfinished = -1;
    assert_int_equal(mb_step(session, &n_unfinished), MB_OK);
    assert_int_equal(n_unfinished, 0);
    generation_read(&g, session);
    assert_int_equal(g.state, MB_FINISHED_LENGTH);
    assert_int_equal(g.n_tokens, 3);
    assert_session_idle(session);
    mb_session_stats stats = session_stats(session);
    assert_int_equal(stats.n_steps, 5);
    assert_int_equal(stats.n_prompt_tokens, 40);
    assert_int_equal(stats.n_generated_tokens, 3);
    assert_int_equal(mb_step(session, &n_unfinished), MB_OK); /* nothing to do is no failure */
    assert_int_equal(session_stats(session).n_steps, 5);
    mb_usage usage;
    assert_int_equal(mb_get_usage(session, g.id, &usage), MB_OK);
    assert_int_equal(usage.n_prompt, 40);
    assert_int_equal(usage.n_generated, 3);
    generation_read(&g, session); /* still there, nothing twice */
    assert_int_equal(g.n_tokens, 3);
    assert_int_equal(mb_release(session, g.id), MB_OK);
    size_t n;
    mb_state ignored;
    assert_int_equal(mb_read(session, g.id, NULL, 0, &n, &ignored), MB_ERR_NOT_FOUND);
    assert_int_equal(mb_get_usage(session, g.id, &usage), MB_ERR_NOT_FOUND);
    assert_int_equal(mb_cancel(session, g.id), MB_ERR_NOT_FOUND);
    assert_int_equal(mb_release(session, g.id), MB_ERR_NOT_FOUND);
    generation_free(&g);
    mb_session_close(session);
}

static void test_stop_tokens_end_the_answer(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 512);
    generation free_running = random_generation(2, 10, 20), stopped = random_generation(2, 10, 20);
    generation_run_alone(&free_running, session);
    assert_int_equal(free_running.state, MB_FINISHED_LENGTH);
    int32_t stop_ids[] = {1, free_running.tokens[5].id};
    size_t first = 0;
    while (free_running.tokens[first].id != stop_ids[1] && free_running.tokens[first].id != stop_ids[0])
        first++;
    stopped.request.stop_ids = stop_ids;
    stopped.request.n_stop_ids = 2;
    generation_submit(&stopped, session);
    stop_ids[0] = stop_ids[1] = 0; /* the session has its own copy */
    generations_run(&stopped, 1, session);
    assert_int_equal(stopped.state, MB_FINISHED_STOP);
    assert_int_equal(stopped.n_tokens, first); /* without the stop token itself */
    assert_int_equal(session_stats(session).n_generated_tokens, 20 + first);
    assert_session_idle(session);
    generation_free(&free_running);
    generation_free(&stopped);
    mb_session_close(session);
}

static void test_eos_of_the_model_stops(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 512);
    generation ignoring = random_generation(3, 10, 20), stopping = random_generation(3, 10, 20);
    generation_run_alone(&ignoring, session);
    mb_generation *defaults = &model->generation;
    mb_generation saved = *defaults;
    defaults->n_eos_ids = 1;
    defaults->eos_ids[0] = ignoring.tokens[0].id;
    stopping.request.ignore_eos = 0;
    generation_run_alone(&stopping, session);
    assert_int_equal(stopping.state, MB_FINISHED_STOP);
    assert_int_equal(stopping.n_tokens, 0);
    generation_free(&ignoring);
    ignoring = random_generation(3, 10, 20);
    generation_run_alone(&ignoring, session);
    assert_int_equal(ignoring.n_tokens, 20);
    *defaults = saved;
    generation_free(&ignoring);
    generation_free(&stopping);
    mb_session_close(session);
}

/* Ids that end an answer are not drawn before min_new_tokens: until then the answer is the one in which they
 * are biased away, from then on the one in which they are not. */
static void test_min_new_tokens_keeps_the_end_away(void **state) {
    (void)state;
    enum { MIN = 6 };
    mb_session *session = session_with(model, 0, 0, 0, 512);
    mb_generation *defaults = &model->generation;
    const mb_generation saved = *defaults;
    for (int draws = 0; draws < 2; draws++) {
        generation probe = random_generation(3, 10, 1), banned = random_generation(3, 10, MIN);
        probe.request.sampling.seed = banned.request.sampling.seed = 5;
        probe.request.sampling.temperature = banned.request.sampling.temperature = draws ? 1.2f : 0;
        generation_run_alone(&probe, session);
        int32_t first = probe.tokens[0].id, stop = (first + 1) % VOCAB;
        const mb_logit_bias bias[] = {{stop, 3.0f}, {first, -INFINITY}, {stop, -INFINITY}};
        banned.request.sampling.logit_bias = bias;
        banned.request.sampling.n_logit_bias = 3;
        generation_run_alone(&banned, session);

        defaults->n_eos_ids = 1;
        defaults->eos_ids[0] = first;
        for (int n_min = 0; n_min <= MIN; n_min += MIN) {
            generation g = random_generation(3, 10, 20);
            g.request.sampling = probe.request.sampling;
            g.request.ignore_eos = 0;
            g.request.stop_ids = &stop;
            g.request.n_stop_ids = 1;
            g.request.min_new_tokens = n_min;
            g.request.sampling.logit_bias = bias; /* the request's own bias counts too */
            g.request.sampling.n_logit_bias = n_min > 0;
            generation_run_alone(&g, session);
            if (n_min == 0) {
                assert_int_equal(g.state, MB_FINISHED_STOP);
                assert_int_equal(g.n_tokens, 0);
            } else {
                assert_in_range(g.n_tokens, MIN, 20);
                assert_memory_equal(g.tokens, banned.tokens, MIN * sizeof *g.tokens);
            }
            generation_free(&g);
        }
        *defaults = saved;
        generation_free(&probe);
        generation_free(&banned);
    }
    mb_session_close(session);
}

/* The first draw after min_new_tokens is free again. */
static void test_min_new_tokens_ends_exactly(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 512);
    generation free_running = random_generation(2, 10, 8);
    generation_run_alone(&free_running, session);
    for (int64_t n_min = 0; n_min < 8; n_min++) {
        int32_t stop = free_running.tokens[n_min].id;
        int is_new = 1;
        for (int64_t i = 0; i < n_min; i++)
            is_new &= free_running.tokens[i].id != stop;
        if (!is_new)
            continue; /* the stop id would have come before */
        generation g = random_generation(2, 10, 8);
        g.request.stop_ids = &stop;
        g.request.n_stop_ids = 1;
        g.request.min_new_tokens = n_min;
        generation_run_alone(&g, session);
        assert_int_equal(g.state, MB_FINISHED_STOP);
        assert_int_equal(g.n_tokens, n_min);
        generation_free(&g);
    }
    generation_free(&free_running);
    mb_session_close(session);
}

static void test_scoring_a_prompt_only(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 512);
    generation scored = random_generation(4, 200, 0), longer = random_generation(4, 200, 5);
    generation_keep_logprobs(&scored, 1);
    generation_keep_logprobs(&longer, 0);
    generation_run_alone(&scored, session);
    assert_int_equal(scored.state, MB_FINISHED_LENGTH);
    assert_int_equal(scored.n_tokens, 0);
    assert_int_equal(scored.first_position, 0);
    assert_int_equal(scored.n_rows, 200);
    assert_false(scored.out_of_order);
    for (int64_t i = 0; i < scored.n_rows; i++) {
        double sum = 0;
        for (int j = 0; j < VOCAB; j++)
            sum += exp((double)scored.rows[i * VOCAB + j]);
        assert_true(fabs(sum - 1) < 1e-5);
    }
    generation_run_alone(&longer, session);
    assert_int_equal(longer.first_position, 199); /* the answer's first distribution */
    assert_int_equal(longer.n_rows, 5);
    assert_memory_equal(longer.rows, scored.rows + 199 * VOCAB, VOCAB * sizeof(float));
    generation_free(&scored);
    scored = random_generation(4, 200, 0); /* neither tokens nor log-probabilities: still ends */
    generation_run_alone(&scored, session);
    assert_int_equal(scored.state, MB_FINISHED_LENGTH);
    assert_session_idle(session);
    generation_free(&scored);
    generation_free(&longer);
    mb_session_close(session);
}

/* ---- What is refused ---------------------------------------------------------------------------------- */

static void expect_refusal(mb_session *session, const mb_request *request, mb_status status,
                           const char *word) {
    uint64_t id = 99;
    assert_int_equal(mb_submit(session, request, &id), status);
    if (!strstr(mb_last_error(), word))
        fail_msg("\"%s\" does not mention %s", mb_last_error(), word);
    assert_int_equal(id, 0);
}

static void test_bad_requests_are_named(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 256);
    generation g = random_generation(5, 4, 4);
    const mb_request good = g.request;
    static const int32_t many[1025] = {0}, bad_ids[] = {1, 2, VOCAB}, negative_ids[] = {1, -1};
    static const mb_logit_bias bad_bias = {VOCAB, 1}, nan_bias = {1, NAN}, infinite_bias = {1, INFINITY};
#define REFUSED(status, word, ...)                 \
    do {                                           \
        mb_request r = good;                       \
        __VA_ARGS__;                               \
        expect_refusal(session, &r, status, word); \
    } while (0)
    REFUSED(MB_ERR_ARGUMENT, "ids", r.n_ids = 0);
    REFUSED(MB_ERR_ARGUMENT, "ids", r.ids = NULL);
    REFUSED(MB_ERR_ARGUMENT, "ids[2]", r.ids = bad_ids; r.n_ids = 3);
    REFUSED(MB_ERR_ARGUMENT, "ids[1]", r.ids = negative_ids; r.n_ids = 2);
    REFUSED(MB_ERR_ARGUMENT, "max_new_tokens", r.max_new_tokens = -1);
    REFUSED(MB_ERR_ARGUMENT, "max_new_tokens", r.max_new_tokens = INT64_MIN);
    REFUSED(MB_ERR_CAPACITY, "positions", r.max_new_tokens = MAX_POSITIONS - 3);
    REFUSED(MB_ERR_CAPACITY, "positions", r.max_new_tokens = INT64_MAX);
    REFUSED(MB_ERR_CAPACITY, "positions", r.n_ids = SIZE_MAX);
    REFUSED(MB_ERR_CAPACITY, "kv_tokens", r.max_new_tokens = 253); /* 257 tokens in 256 */
    REFUSED(MB_ERR_ARGUMENT, "min_new_tokens", r.min_new_tokens = -1);
    REFUSED(MB_ERR_ARGUMENT, "min_new_tokens", r.min_new_tokens = 5); /* of 4 */
    REFUSED(MB_ERR_ARGUMENT, "min_new_tokens", r.stop_ids = many; r.n_stop_ids = 1025; r.min_new_tokens = 1);
    REFUSED(MB_ERR_ARGUMENT, "stop_ids", r.n_stop_ids = -1);
    REFUSED(MB_ERR_ARGUMENT, "stop_ids", r.n_stop_ids = 1);
    REFUSED(MB_ERR_ARGUMENT, "stop_ids[2]", r.stop_ids = bad_ids; r.n_stop_ids = 3);
    REFUSED(MB_ERR_ARGUMENT, "on_logprobs", r.prompt_logprobs = 1);
    REFUSED(MB_ERR_ARGUMENT, "temperature", r.sampling.temperature = -0.1f);
    REFUSED(MB_ERR_ARGUMENT, "temperature", r.sampling.temperature = NAN);
    REFUSED(MB_ERR_ARGUMENT, "temperature", r.sampling.temperature = INFINITY);
    REFUSED(MB_ERR_ARGUMENT, "top_k", r.sampling.temperature = 1; r.sampling.top_k = -1);
    REFUSED(MB_ERR_ARGUMENT, "top_p", r.sampling.temperature = 1; r.sampling.top_p = -0.1f);
    REFUSED(MB_ERR_ARGUMENT, "top_p", r.sampling.temperature = 1; r.sampling.top_p = 1.01f);
    REFUSED(MB_ERR_ARGUMENT, "top_p", r.sampling.temperature = 1; r.sampling.top_p = NAN);
    REFUSED(MB_ERR_ARGUMENT, "min_p", r.sampling.temperature = 1; r.sampling.min_p = 1.01f);
    REFUSED(MB_ERR_ARGUMENT, "min_p", r.sampling.temperature = 1; r.sampling.min_p = -1);
    REFUSED(MB_ERR_ARGUMENT, "repetition_penalty", r.sampling.repetition_penalty = 0);
    REFUSED(MB_ERR_ARGUMENT, "repetition_penalty", r.sampling.repetition_penalty = NAN);
    REFUSED(MB_ERR_ARGUMENT, "presence_penalty", r.sampling.presence_penalty = 2.5f);
    REFUSED(MB_ERR_ARGUMENT, "frequency_penalty", r.sampling.frequency_penalty = NAN);
    REFUSED(MB_ERR_ARGUMENT, "n_logit_bias", r.sampling.n_logit_bias = 1);
    REFUSED(MB_ERR_ARGUMENT, "n_logit_bias", r.sampling.n_logit_bias = -1);
    REFUSED(MB_ERR_ARGUMENT, "n_logit_bias", r.sampling.logit_bias = &nan_bias;
            r.sampling.n_logit_bias = 1025);
    REFUSED(MB_ERR_ARGUMENT, "logit_bias", r.sampling.logit_bias = &bad_bias; r.sampling.n_logit_bias = 1);
    REFUSED(MB_ERR_ARGUMENT, "logit_bias", r.sampling.logit_bias = &nan_bias; r.sampling.n_logit_bias = 1);
    REFUSED(MB_ERR_ARGUMENT, "logit_bias", r.sampling.logit_bias = &infinite_bias;
            r.sampling.n_logit_bias = 1);
#undef REFUSED
    assert_session_idle(session);
    generation_free(&g);
    mb_session_close(session);
}

/* top_p 0 and min_p 1 leave the best token alone; greedy does not look at them, wrong or not. */
static void test_settings_that_mean_greedy(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 256);
    generation greedy = random_generation(6, 8, 12);
    generation_run_alone(&greedy, session);
    for (int i = 0; i < 3; i++) {
        generation g = random_generation(6, 8, 12);
        mb_sampling *s = &g.request.sampling;
        s->temperature = i < 2 ? 1.5f : 0;
        s->top_p = i == 0 ? 0 : i == 1 ? 1 : NAN;
        s->min_p = i == 0 ? 0 : i == 1 ? 1 : NAN;
        s->top_k = i < 2 ? 0 : -1;
        generation_run_alone(&g, session);
        assert_true(generation_same_tokens(&g, &greedy));
        generation_free(&g);
    }
    generation_free(&greedy);
    mb_session_close(session);
}

static void test_null_arguments_are_refused(void **state) {
    (void)state;
    mb_session *session = session_with(model, 0, 0, 0, 256);
    generation g = random_generation(9, 4, 2);
    mb_token token;
    size_t n;
    mb_state ignored;
    uint64_t id;
    assert_int_equal(mb_submit(NULL, &g.request, &id), MB_ERR_ARGUMENT);
    assert_int_equal(mb_submit(session, NULL, &id), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(), "mb_submit: request is NULL");
    assert_int_equal(mb_submit(session, &g.request, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(session_stats(session).n_waiting, 0);
    generation_submit(&g, session);
    assert_int_equal(mb_step(NULL, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_step(session, NULL), MB_OK);
    assert_int_equal(mb_read(NULL, g.id, &token, 1, &n, &ignored), MB_ERR_ARGUMENT);
    assert_int_equal(mb_read(session, g.id, NULL, 1, &n, &ignored), MB_ERR_ARGUMENT);
    assert_int_equal(mb_read(session, g.id, &token, 1, NULL, &ignored), MB_ERR_ARGUMENT);
    assert_int_equal(mb_read(session, g.id, &token, 1, &n, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_cancel(NULL, g.id), MB_ERR_ARGUMENT);
    assert_int_equal(mb_release(NULL, g.id), MB_ERR_ARGUMENT);
    generations_run(&g, 1, session); /* nothing of it was lost */
    assert_int_equal(g.n_tokens, 2);
    generation_free(&g);
    mb_session_close(session);
}

static void test_full_queue_is_refused(void **state) {
    (void)state;
    mb_session_options options;
    mb_session_options_init(&options);
    options.max_queued = 3;
    options.max_sequences = 1;
    mb_session *session;
    assert_int_equal(mb_session_open(model, &options, &session), MB_OK);
    generation g = random_generation(6, 4, 4);
    uint64_t ids[4];
    for (int i = 0; i < 3; i++)
        assert_int_equal(mb_submit(session, &g.request, &ids[i]), MB_OK);
    expect_refusal(session, &g.request, MB_ERR_CAPACITY, "queue");
    session_step(session);
    assert_int_equal(mb_submit(session, &g.request, &ids[3]), MB_OK);
    generation_free(&g);
    mb_session_close(session); /* with one running and three waiting */
}

/* Zero members get their defaults. */
static mb_session_options with_defaults(const mb_session_options *given) {
    mb_session_options options;
    mb_session_options_init(&options);
#define SET(member)    \
    if (given->member) \
    options.member = given->member
    SET(max_sequences);
    SET(max_step_tokens);
    SET(prefill_chunk);
    SET(max_queued);
    SET(kv_tokens);
    SET(memory_fraction);
    SET(max_context);
    SET(steps_in_flight);
    SET(graphs);
    SET(max_decode_slowdown);
#undef SET
    return options;
}

static void test_bad_session_options_are_named(void **state) {
    (void)state;
    static const struct {
        mb_session_options options;
        const char *word;
    } cases[] = {
        {{.max_sequences = -7}, "max_sequences"},
        {{.max_sequences = -1}, "max_sequences"},
        {{.max_sequences = INT32_MAX}, "max_sequences"},
        {{.max_step_tokens = -1}, "max_step_tokens"},
        {{.max_step_tokens = INT32_MAX}, "max_step_tokens"},
        {{.prefill_chunk = -1}, "prefill_chunk"},
        {{.max_queued = -1}, "max_queued"},
        {{.max_queued = INT32_MAX}, "max_queued"},
        {{.kv_tokens = -1}, "kv_tokens"},
        {{.kv_tokens = INT64_MAX}, "kv_tokens"},
        {{.kv_tokens = INT32_MAX}, "kv_tokens"},
        {{.memory_fraction = -0.5f}, "memory_fraction"},
        {{.memory_fraction = 1.01f}, "memory_fraction"},
        {{.memory_fraction = NAN}, "memory_fraction"},
        {{.max_context = -1}, "max_context"},
        {{.steps_in_flight = -1}, "steps_in_flight"},
        {{.steps_in_flight = 3}, "steps_in_flight"},
        {{.graphs = MB_GRAPHS_TWO_STREAMS + 1}, "graphs"},
        {{.max_decode_slowdown = 1}, "max_decode_slowdown"},
        {{.max_decode_slowdown = -2}, "max_decode_slowdown"},
        {{.max_decode_slowdown = NAN}, "max_decode_slowdown"},
        {{.max_decode_slowdown = INFINITY}, "max_decode_slowdown"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_session *session = (mb_session *)1;
        mb_session_options options = with_defaults(&cases[i].options);
        assert_int_equal(mb_session_open(model, &options, &session), MB_ERR_ARGUMENT);
        assert_null(session);
        assert_non_null(strstr(mb_last_error(), cases[i].word));
    }
}

/* ---- Cancelling --------------------------------------------------------------------------------------- */

static void test_cancel_in_every_state(void **state) {
    (void)state;
    mb_session *session = session_with(model, 2, 32, 16, 512);
    generation g[3] = {random_generation(7, 100, 10), random_generation(8, 4, 10),
                       random_generation(9, 4, 2)};
    for (int i = 0; i < 3; i++)
        generation_submit(&g[i], session);
    session_step(session); /* 0 in prefill, 1 decoding, 2 waiting: there are two places */
    session_step(session);
    assert_int_equal(state_of(session, g[2].id), MB_WAITING);
    for (int i = 0; i < 3; i++) {
        generation_read(&g[i], session);
        assert_int_equal(mb_cancel(session, g[i].id), MB_OK);
        assert_int_equal(state_of(session, g[i].id), MB_CANCELLED);
        assert_int_equal(mb_cancel(session, g[i].id), MB_OK); /* twice is the same */
    }
    assert_int_equal(g[1].n_tokens, 2);
    assert_session_idle(session); /* at once, no step is in flight */
    int n_unfinished;
    assert_int_equal(mb_step(session, &n_unfinished), MB_OK);
    assert_int_equal(n_unfinished, 0);

    generation done = random_generation(10, 4, 2);
    generation_submit(&done, session);
    generations_run(&done, 1, session);
    assert_int_equal(mb_cancel(session, done.id), MB_OK);
    assert_int_equal(state_of(session, done.id), MB_FINISHED_LENGTH); /* what is finished stays so */
    for (int i = 0; i < 3; i++)
        generation_free(&g[i]);
    generation_free(&done);
    mb_session_close(session);
}

/* Calls of the API from inside a step, where the sequence is in flight. */
typedef struct interference {
    mb_session *session;
    uint64_t id;
    int release, n_calls;
    mb_status step_status, call_status;
    mb_session_stats stats;
} interference;

static void interfere(void *user, int64_t position, const float *logprobs, int32_t vocab) {
    (void)position;
    (void)logprobs;
    (void)vocab;
    interference *i = user;
    if (i->n_calls++ != 2)
        return;
    i->step_status = mb_step(i->session, NULL);
    i->call_status = i->release ? mb_release(i->session, i->id) : mb_cancel(i->session, i->id);
    mb_session_get_stats(i->session, &i->stats);
}

static void test_cancel_and_release_in_flight(void **state) {
    (void)state;
    for (int release = 0; release < 2; release++) {
        mb_session *session = session_with(model, 0, 0, 0, 512);
        generation victim = random_generation(11, 8, 50), other = random_generation(12, 8, 20);
        generation alone = random_generation(12, 8, 20);
        interference i = {.session = session, .release = release};
        victim.request.on_logprobs = interfere;
        victim.request.on_logprobs_user = &i;
        generation_submit(&victim, session);
        i.id = victim.id;
        generation_submit(&other, session);
        for (int n = 0; n < 3; n++)
            session_step(session);
        assert_int_equal(i.n_calls, 3);
        assert_int_equal(i.step_status, MB_ERR_STATE);
        assert_int_equal(i.call_status, MB_OK);
        assert_int_equal(i.stats.kv_blocks_free, 6); /* in flight: both still hold their block */
        assert_int_equal(session_stats(session).kv_blocks_free, 7);
        if (!release) {
            generation_read(&victim, session);
            assert_int_equal(victim.state, MB_CANCELLED);
            assert_int_equal(victim.n_tokens, 2); /* the step in flight gave it nothing */
        } else {
            size_t n;
            mb_state ignored;
            assert_int_equal(mb_read(session, victim.id, NULL, 0, &n, &ignored), MB_ERR_NOT_FOUND);
        }
        generations_run(&other, 1, session);
        assert_int_equal(i.n_calls, 3);
        generation_run_alone(&alone, session);
        assert_true(generation_same_tokens(&other, &alone)); /* nobody else noticed */
        assert_session_idle(session);
        generation_free(&victim);
        generation_free(&other);
        generation_free(&alone);
        mb_session_close(session);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_states_follow_the_life),
        cmocka_unit_test(test_stop_tokens_end_the_answer),
        cmocka_unit_test(test_eos_of_the_model_stops),
        cmocka_unit_test(test_min_new_tokens_keeps_the_end_away),
        cmocka_unit_test(test_min_new_tokens_ends_exactly),
        cmocka_unit_test(test_scoring_a_prompt_only),
        cmocka_unit_test(test_bad_requests_are_named),
        cmocka_unit_test(test_settings_that_mean_greedy),
        cmocka_unit_test(test_null_arguments_are_refused),
        cmocka_unit_test(test_full_queue_is_refused),
        cmocka_unit_test(test_bad_session_options_are_named),
        cmocka_unit_test(test_cancel_in_every_state),
        cmocka_unit_test(test_cancel_and_release_in_flight),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
