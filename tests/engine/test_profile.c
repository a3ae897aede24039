/*
 * A session's profile: what it counts, on the CPU and on a device that works later and has graphs (the slow
 * one of tests/support); that it changes no result; that it ends well when a step fails or memory is
 * refused.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/session.h"
#include "model/model.h"
#include "moebius/profile.h"
#include "support/generation.h"
#include "support/slow_device.h"

enum { VOCAB = 64, N_LAYERS = 2, N_PROMPT = 20, N_NEW = 6, MIB = 1 << 20 };

static mb_model *model;
static mb_device *cpu;
static slow_device *slow;

static int open_model(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = VOCAB;
    options.n_layers = N_LAYERS;
    options.max_positions = 512;
    options.seed = 41;
    model = tiny_model_open(&options, NULL);
    cpu = model->device;
    return 0;
}

static int close_model(void **state) {
    (void)state;
    mb_model_close(model);
    return 0;
}

static int use_slow_device(void **state) {
    (void)state;
    slow = slow_device_open(64 * MIB);
    model->device = slow_device_of(slow);
    return 0;
}

static int use_cpu(void **state) {
    (void)state;
    model->device = cpu;
    slow_device_close(slow);
    return 0;
}

static mb_session *open_session(mb_graphs graphs) {
    mb_session_options options;
    mb_session *session;
    mb_session_options_init(&options);
    options.max_sequences = 4;
    options.kv_tokens = 1024;
    options.prefix_caching = 0;
    options.graphs = graphs;
    assert_int_equal(mb_session_open(model, &options, &session), MB_OK);
    return session;
}

static void run_generation(generation *g, mb_session *session) {
    generation_init_random(g, model, 5, VOCAB, -1, N_PROMPT, N_NEW);
    generation_run_alone(g, session);
    assert_int_equal(g->state, MB_FINISHED_LENGTH);
}

static void start(mb_session *session) {
    if (mb_profile_start(session) != MB_OK)
        fail_msg("%s", mb_last_error());
}

static mb_profile stop(mb_session *session) {
    mb_profile profile;
    if (mb_profile_stop(session, &profile) != MB_OK)
        fail_msg("%s", mb_last_error());
    return profile;
}

/* The sum over the weights' sizes; n_calls 0: there is no such operator. */
static mb_profile_operator sum_of(const mb_profile *profile, const char *name) {
    mb_profile_operator sum = {.name = name};
    for (int32_t i = 0; i < profile->n_operators; i++) {
        const mb_profile_operator *o = &profile->operators[i];
        if (strcmp(o->name, name) != 0)
            continue;
        sum.n_calls += o->n_calls;
        sum.us += o->us;
        sum.bytes += o->bytes;
        sum.flops += o->flops;
        sum.floor_us += o->floor_us;
    }
    return sum;
}

/* A step of N_LAYERS MoE layers; the first one has the prompt, the others a token. A step without rows of
 * log-probabilities has no log_softmax. */
static void check_calls(const mb_profile *profile) {
    static const struct {
        const char *name;
        int per_layer, others;
    } expected[] = {{"embed", 0, 1},       {"rms_norm", 1, 0},        {"gemm", 2, 1},  {"log_softmax", 0, 0},
                    {"moe_forward", 1, 0}, {"moe_router_gemm", 1, 0}, {"sample", 0, 1}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        mb_profile_operator sum = sum_of(profile, expected[i].name);
        assert_int_equal(sum.n_calls, profile->n_steps *
                                          (uint64_t)(N_LAYERS * expected[i].per_layer + expected[i].others));
    }
    assert_int_equal(sum_of(profile, "qk_norm_rope_store").n_calls, N_LAYERS);
    assert_int_equal(sum_of(profile, "attention").n_calls, N_LAYERS);
    assert_int_equal(sum_of(profile, "decode_attention").n_calls, N_LAYERS * (profile->n_steps - 1));
}

/* Operators and what is between them are a part of the step. (A copy of ids is in neither.) */
static void check_sums(const mb_profile *profile) {
    double us = 0, bytes = 0, flops = 0;
    for (int32_t i = 0; i < profile->n_operators; i++) {
        const mb_profile_operator *o = &profile->operators[i];
        assert_true(o->us >= 0 && (i == 0 || o->us <= profile->operators[i - 1].us));
        us += o->us;
        bytes += o->bytes;
        flops += o->flops;
    }
    assert_true(us > 0 && us + profile->between_us <= profile->device_us * (1 + 1e-9));
    assert_true(profile->host_us > 0);
    assert_true(fabs(bytes - profile->bytes) <= 1e-9 * bytes);
    assert_true(fabs(flops - profile->flops) <= 1e-9 * flops);
}

/* The prompt in one chunk, then a token a step: the last token is not computed further. */
static double attended_positions(void) {
    double n = N_PROMPT * (N_PROMPT + 1) / 2;
    for (int i = 1; i < N_NEW; i++)
        n += N_PROMPT + i;
    return n;
}

static void test_on_the_cpu(void **state) {
    (void)state;
    const mb_config *c = &model->config;
    generation plain, profiled;
    mb_session *session = open_session(MB_GRAPHS_STEP);
    run_generation(&plain, session);
    start(session);
    run_generation(&profiled, session);
    mb_profile profile = stop(session);
    assert_true(generation_same_tokens(&plain, &profiled));
    assert_int_equal(profile.n_steps, N_NEW);
    check_calls(&profile);
    check_sums(&profile);
    assert_true(profile.floor_us == 0 && profile.operators[0].floor_us == 0);
    /* Of an element of q and k: norm 4, rotation 3. */
    double flops = 4.0 * N_LAYERS * c->head_dim * c->n_heads * attended_positions() +
                   7.0 * N_LAYERS * c->head_dim * (c->n_heads + c->n_kv_heads) * (N_PROMPT + N_NEW - 1);
    assert_true(fabs(sum_of(&profile, "attention").flops + sum_of(&profile, "qk_norm_rope_store").flops +
                     sum_of(&profile, "decode_attention").flops - flops) < 0.5);
    /* lm_head by itself: one row a step, an element of which is normed with 4. */
    for (int32_t i = 0; i < profile.n_operators; i++)
        if (profile.operators[i].n == VOCAB)
            assert_true(fabs(profile.operators[i].flops - (2.0 * VOCAB + 4) * N_NEW * c->hidden) < 0.5);
    mb_session_close(session);
    generation_free(&plain);
    generation_free(&profiled);
}

static mb_profile profile_on_cpu(void) {
    generation g;
    mb_device *former = model->device;
    model->device = cpu;
    mb_session *session = open_session(MB_GRAPHS_STEP);
    start(session);
    run_generation(&g, session);
    mb_profile profile = stop(session);
    mb_session_close(session);
    generation_free(&g);
    model->device = former;
    return profile;
}

/* But for embed, which with two slots reads where the drawn tokens are. */
static void check_same_costs(const mb_profile *a, const mb_profile *b) {
    assert_int_equal(a->n_steps, b->n_steps);
    assert_int_equal(a->n_operators, b->n_operators);
    for (int32_t i = 0; i < a->n_operators; i++) {
        mb_profile_operator of_a = sum_of(a, a->operators[i].name), of_b = sum_of(b, of_a.name);
        assert_int_equal(of_a.n_calls, of_b.n_calls);
        if (strcmp(of_a.name, "embed") != 0)
            assert_true(of_a.bytes == of_b.bytes && of_a.flops == of_b.flops);
    }
}

/* The first run makes the graphs of the decode steps. The second one is profiled: its decode steps are
 * graphs of their own, its prefill is not one. */
static void test_steps_that_are_graphs(void **state) {
    (void)state;
    generation plain, profiled;
    slow_device_of(slow)->bytes_per_second = 1e9;
    mb_session *session = open_session(MB_GRAPHS_STEP);
    run_generation(&plain, session);
    uint64_t n_replays = slow_device_n_replays(slow);
    start(session);
    run_generation(&profiled, session);
    mb_profile profile = stop(session), on_cpu = profile_on_cpu();
    assert_int_equal(slow_device_n_replays(slow) - n_replays, N_NEW - 1);
    assert_true(generation_same_tokens(&plain, &profiled));
    check_calls(&profile);
    check_sums(&profile);
    check_same_costs(&profile, &on_cpu);
    mb_profile_operator experts = sum_of(&profile, "moe_forward");
    assert_true(experts.floor_us >= experts.bytes / 1e3 * (1 - 1e-9)); /* 1 GB/s, or the flops */
    assert_true(profile.floor_us > 0);
    mb_session_close(session);
    generation_free(&plain);
    generation_free(&profiled);
}

/* Without graphs to go by: steps of a session that has none are plain, and those that make one do not
 * count. */
static void test_steps_without_a_graph(void **state) {
    (void)state;
    for (mb_graphs graphs = MB_GRAPHS_STEP; graphs <= MB_GRAPHS_TWO_STREAMS; graphs++) {
        const int is_one_graph = graphs == MB_GRAPHS_STEP || graphs == MB_GRAPHS_TWO_STREAMS;
        generation g;
        mb_session *session = open_session(graphs);
        start(session);
        run_generation(&g, session);
        mb_profile profile = stop(session);
        /* Each of the two slots makes its graph. */
        assert_int_equal(profile.n_steps, is_one_graph ? N_NEW - 2 : N_NEW);
        check_calls(&profile);
        generation_free(&g);
        run_generation(&g, session);
        mb_session_close(session);
        generation_free(&g);
    }
}

static void test_a_step_that_fails(void **state) {
    (void)state;
    for (int refused = 0; refused <= 1; refused++) {
        generation g, other;
        int n_unfinished;
        mb_session *session = open_session(MB_GRAPHS_STEP);
        run_generation(&other, session);
        start(session);
        generation_init_random(&g, model, 6, VOCAB, -1, N_PROMPT, N_NEW);
        generation_submit(&g, session);
        session_step(session);
        session_step(session);
        if (refused)
            slow_device_refuse_after(slow, slow_device_n_records(slow));
        else
            slow_device_fail_next(slow);
        assert_int_not_equal(mb_step(session, &n_unfinished), MB_OK);
        generation_read(&g, session);
        assert_int_equal(g.state, MB_FAILED);
        assert_int_equal(mb_release(session, g.id), MB_OK);
        generation_free(&g);
        run_generation(&g, session);
        mb_profile profile = stop(session);
        assert_int_equal(profile.n_steps, 2 + N_NEW);
        assert_true(generation_same_tokens(&g, &other));
        mb_session_close(session);
        generation_free(&g);
        generation_free(&other);
    }
}

/* A step that was launched before the profile began is no part of it; a session may be closed while
 * profiled. */
static void test_begin_and_end_in_between(void **state) {
    (void)state;
    generation g;
    mb_profile profile;
    mb_session *session = open_session(1);
    assert_int_equal(mb_profile_stop(session, &profile), MB_ERR_STATE);
    assert_non_null(strstr(mb_last_error(), "mb_profile_start"));
    generation_init_random(&g, model, 7, VOCAB, -1, N_PROMPT, N_NEW);
    generation_submit(&g, session);
    session_step(session); /* leaves one in flight */
    start(session);
    for (int i = 0; i < 3; i++)
        session_step(session);
    assert_int_equal(stop(session).n_steps, 2);
    start(session);
    session_step(session);
    start(session); /* anew */
    session_step(session);
    assert_int_equal(stop(session).n_steps, 1);
    start(session);
    mb_session_close(session);
    generation_free(&g);
}

static long long n_allowed;

static void *limited_allocate(void *user, void *pointer, size_t n_bytes) {
    (void)user;
    if (n_bytes > 0)
        return n_allowed-- > 0 ? realloc(pointer, n_bytes) : NULL;
    free(pointer);
    return NULL;
}

/* Whatever allocation fails, the session goes on without a profile. (A leak would be the sanitizer's to
 * see.) */
static void test_no_memory(void **state) {
    (void)state;
    generation g;
    mb_session *session = open_session(MB_GRAPHS_STEP);
    long long k = 0;
    mb_set_allocator(limited_allocate, NULL);
    for (mb_status status = MB_ERR_MEMORY; status != MB_OK; k++) {
        n_allowed = k;
        status = mb_profile_start(session);
        assert_true(status == MB_OK || status == MB_ERR_MEMORY);
    }
    n_allowed = 1 << 30;
    assert_true(k > 3);
    assert_int_equal(stop(session).n_steps, 0);
    n_allowed = 2;
    assert_int_equal(mb_profile_start(session), MB_ERR_MEMORY);
    n_allowed = 1 << 30;
    run_generation(&g, session);
    mb_session_close(session);
    generation_free(&g);
    mb_set_allocator(NULL, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_on_the_cpu),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test_setup_teardown(test_steps_that_are_graphs, use_slow_device, use_cpu),
        cmocka_unit_test_setup_teardown(test_steps_without_a_graph, use_slow_device, use_cpu),
        cmocka_unit_test_setup_teardown(test_a_step_that_fails, use_slow_device, use_cpu),
        cmocka_unit_test_setup_teardown(test_begin_and_end_in_between, use_slow_device, use_cpu),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
