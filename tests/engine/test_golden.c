/*
 * Every folder of tests/golden against what Hugging Face transformers computed: log-probabilities at all
 * prompt positions within 1e-4 and the same 32 greedy tokens; and bit for bit the same results however the
 * sequences are batched and their prompts are cut.
 */
#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/model.h"
#include "support/generation.h"
#include "support/tiny_checkpoint.h"

enum { MAX_CASES = 16, MAX_GOLDENS = 64, LEAST_GOLDENS = 19, N_GREEDY = 32 };
static const float tolerance = 1e-4f;

typedef struct golden_case {
    int32_t *ids;
    size_t n_ids;
    int32_t greedy[N_GREEDY];
    const float *logprobs; /* [n_ids, vocab] */
} golden_case;

typedef struct golden {
    golden_case cases[MAX_CASES];
    size_t n_cases;
    size_t vocab;
    char *logprobs_file;
    mb_model *model;
} golden;

static void load_cases(golden *g, const char *directory) {
    size_t n_bytes;
    char *text = tiny_file_read(directory, "expect.json", &n_bytes);
    json_t *root = json_loads(text, 0, NULL);
    assert_non_null(root);
    g->vocab = (size_t)json_integer_value(json_object_get(root, "vocab_size"));
    size_t n_positions = (size_t)json_integer_value(json_object_get(root, "n_positions"));
    g->logprobs_file =
        tiny_file_read(directory, json_string_value(json_object_get(root, "logprobs_file")), &n_bytes);
    assert_int_equal(n_bytes, n_positions * g->vocab * sizeof(float));

    json_t *cases = json_object_get(root, "cases"), *item;
    size_t i, position = 0;
    g->n_cases = json_array_size(cases);
    assert_in_range(g->n_cases, 1, MAX_CASES);
    json_array_foreach(cases, i, item) {
        golden_case *one = &g->cases[i];
        json_t *ids = json_object_get(item, "ids"), *greedy = json_object_get(item, "greedy");
        one->n_ids = json_array_size(ids);
        one->ids = malloc(one->n_ids * sizeof *one->ids);
        for (size_t j = 0; j < one->n_ids; j++)
            one->ids[j] = (int32_t)json_integer_value(json_array_get(ids, j));
        assert_int_equal(json_array_size(greedy), N_GREEDY);
        for (size_t j = 0; j < N_GREEDY; j++)
            one->greedy[j] = (int32_t)json_integer_value(json_array_get(greedy, j));
        one->logprobs = (const float *)(const void *)g->logprobs_file + position * g->vocab;
        position += one->n_ids;
    }
    assert_int_equal(position, n_positions);
    json_decref(root);
    free(text);
}

/* Returns the largest difference of a log-probability. */
static float check_against_reference(const golden *g, const golden_case *one, const generation *run) {
    assert_int_equal(run->state, MB_FINISHED_LENGTH);
    assert_false(run->out_of_order);
    assert_int_equal(run->first_position, 0);
    assert_int_equal(run->n_rows,
                     one->n_ids + N_GREEDY - 1); /* the last token's successor is not asked for */
    float worst = 0;
    for (size_t i = 0; i < one->n_ids * g->vocab; i++) {
        float difference = fabsf(run->rows[i] - one->logprobs[i]);
        worst = !(difference <= worst) ? difference : worst; /* a NaN stays */
    }
    if (!(worst <= tolerance))
        fail_msg("log-probabilities of a prompt of %zu differ by %g", one->n_ids, (double)worst);
    assert_int_equal(run->n_tokens, N_GREEDY);
    for (size_t i = 0; i < N_GREEDY; i++) {
        assert_int_equal(run->tokens[i].id, one->greedy[i]);
        const float *row = run->rows + (one->n_ids - 1 + i) * g->vocab;
        assert_true(fabsf(run->tokens[i].logprob - row[one->greedy[i]]) <= 1e-5f);
    }
    return worst;
}

static void check_same_bits(const golden *g, const generation *reference, const generation *run) {
    assert_true(generation_same_tokens(reference, run));
    if (!run->request.on_logprobs)
        return;
    assert_false(run->out_of_order);
    assert_int_equal(run->first_position + run->n_rows, reference->n_rows);
    assert_memory_equal(run->rows, reference->rows + (size_t)run->first_position * g->vocab,
                        (size_t)run->n_rows * g->vocab * sizeof *run->rows);
}

/* Whose log-probabilities are reported. Without any, a GPU decodes by graphs. */
typedef enum reported { PROMPT_AND_ANSWER, ANSWER, NOTHING } reported;

/* All cases in one session, together; each must give the bits of `reference`. */
static void check_batched(const golden *g, const generation *reference, int32_t chunk, reported what) {
    mb_session_options options;
    mb_session *session;
    mb_session_options_init(&options);
    options.prefill_chunk = chunk;
    if (mb_session_open(g->model, &options, &session) != MB_OK)
        fail_msg("%s", mb_last_error());
    generation runs[MAX_CASES];
    for (size_t i = 0; i < g->n_cases; i++) {
        generation_init(&runs[i], g->model, g->cases[i].ids, g->cases[i].n_ids, N_GREEDY);
        if (what != NOTHING)
            generation_keep_logprobs(&runs[i], what == PROMPT_AND_ANSWER);
        generation_submit(&runs[i], session);
    }
    generations_run(runs, g->n_cases, session);
    for (size_t i = 0; i < g->n_cases; i++) {
        check_same_bits(g, &reference[i], &runs[i]);
        generation_free(&runs[i]);
    }
    mb_session_close(session);
}

/* As a GPU holds the experts: padded with 0 to a multiple of 16. On the CPU it is a way to see that nothing is
 * added to any sum. */
static void check_padded(golden *g, const char *directory, const generation *reference) {
    mb_model *model = g->model;
    mb_weight_types types = {.inner_multiple = 16};
    if (!model->device->host_memory || model->config.moe_intermediate % 16 == 0)
        return;
    mb_weights_free(&model->weights);
    if (mb_weights_load(directory, &model->config, model->device, types, 1, NULL, NULL, &model->weights) !=
        MB_OK)
        fail_msg("%s", mb_last_error());
    for (int l = 0; l < model->config.n_layers; l++)
        if (model->config.is_moe[l])
            assert_int_equal(model->weights.layers[l].w2.cols,
                             (model->config.moe_intermediate + 15) / 16 * 16);
    check_batched(g, reference, 64, PROMPT_AND_ANSWER);
}

static void test_golden(void **state) {
    golden g = {0};
    const char *directory = *state;
    load_cases(&g, directory);
    const char *device = getenv("MOEBIUS_TEST_DEVICE"); /* "cuda": the goldens on a GPU */
    if (mb_model_open(directory, &(mb_model_options){.device = device ? device : "cpu", .dtype = "fp32"},
                      &g.model) != MB_OK)
        fail_msg("%s", mb_last_error());

    float worst = 0;
    generation reference[MAX_CASES];
    mb_session *session = session_with(g.model, 1, 0, 0, 0);
    for (size_t i = 0; i < g.n_cases; i++) {
        generation_init(&reference[i], g.model, g.cases[i].ids, g.cases[i].n_ids, N_GREEDY);
        generation_keep_logprobs(&reference[i], 1);
        generation_run_alone(&reference[i], session);
        worst = fmaxf(worst, check_against_reference(&g, &g.cases[i], &reference[i]));
    }
    mb_session_close(session);

    print_message("%s: largest difference %.1e\n", directory, (double)worst);

    static const int32_t chunks[] = {1, 7, 64, 512};
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        check_batched(&g, reference, chunks[i], PROMPT_AND_ANSWER);
        check_batched(&g, reference, chunks[i], ANSWER); /* now nothing but `chunk` cuts the prompts */
        check_batched(&g, reference, chunks[i], NOTHING);
    }

    check_padded(&g, directory, reference);

    for (size_t i = 0; i < g.n_cases; i++) {
        generation_free(&reference[i]);
        free(g.cases[i].ids);
    }
    free(g.logprobs_file);
    mb_model_close(g.model);
}

int main(void) {
    static char paths[MAX_GOLDENS][TINY_PATH];
    struct CMUnitTest tests[MAX_GOLDENS];
    size_t n = 0;
    DIR *goldens = opendir("tests/golden");
    struct dirent *entry;
    while (goldens && (entry = readdir(goldens)) && n < MAX_GOLDENS) {
        char expect[TINY_PATH];
        snprintf(expect, sizeof expect, "tests/golden/%.128s/expect.json", entry->d_name);
        if (access(expect, F_OK) != 0)
            continue; /* not a golden of the forward pass */
        snprintf(paths[n], sizeof paths[n], "tests/golden/%.128s", entry->d_name);
        tests[n] = (struct CMUnitTest){.name = paths[n], .test_func = test_golden, .initial_state = paths[n]};
        n++;
    }
    if (goldens)
        closedir(goldens);
    if (n < LEAST_GOLDENS) {
        fprintf(stderr,
                "tests/golden holds %zu goldens, expected at least %d; run from the repository's root\n", n,
                (int)LEAST_GOLDENS);
        return 1;
    }
    return _cmocka_run_group_tests("goldens", tests, n, NULL, NULL);
}
