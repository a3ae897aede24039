/* Grammars in a session of the demo model: what comes out belongs to the grammar, whoever shares the batch;
 * where the grammar allows all, the answer is the same as without. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "moebius/grammar.h"
#include "support/generation.h"

enum { MAX_IDS = 64, MAX_NEW = 48 };

static mb_model *model, *other_model;
static mb_session *session;
static int32_t prompt[MAX_IDS];
static size_t n_prompt;

static int open_model(void **state) {
    (void)state;
    const mb_model_options options = {.device = "cpu"};
    assert_int_equal(mb_model_open("models/demo", &options, &model), MB_OK);
    assert_int_equal(mb_model_open("models/demo", &(mb_model_options){.load = MB_LOAD_TEXT}, &other_model),
                     MB_OK);
    session = session_with(model, 8, 256, 64, 0);
    static const char text[] = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n";
    assert_int_equal(mb_tokenize(model, text, strlen(text), 1, prompt, MAX_IDS, &n_prompt), MB_OK);
    return 0;
}

static int close_model(void **state) {
    (void)state;
    mb_session_close(session);
    mb_model_close(model);
    mb_model_close(other_model);
    return 0;
}

static mb_grammar *compile(mb_grammar_kind kind, const char *text) {
    mb_grammar *grammar;
    if (mb_grammar_open(model, kind, text, strlen(text), &grammar) != MB_OK)
        fail_msg("%s: %s", text, mb_last_error());
    return grammar;
}

/* Greedy, and ends at the end of text. */
static void init(generation *g, mb_grammar *grammar, int64_t max_new) {
    generation_init(g, model, prompt, n_prompt, max_new);
    g->request.ignore_eos = 0;
    g->request.grammar = grammar;
}

static void text_of(const generation *g, char *text) {
    text[0] = '\0';
    for (size_t i = 0; i < g->n_tokens; i++) {
        const char *bytes;
        size_t n;
        assert_int_equal(mb_token_bytes(model, g->tokens[i].id, &bytes, &n, NULL), MB_OK);
        strncat(text, bytes, n);
    }
}

static void test_a_grammar_that_allows_all_changes_nothing(void **state) {
    (void)state;
    mb_grammar *all = compile(MB_GRAMMAR_REGEX, "[^]*");
    generation g[2];
    init(&g[0], NULL, MAX_NEW);
    init(&g[1], all, MAX_NEW);
    for (int i = 0; i < 2; i++)
        generation_submit(&g[i], session);
    mb_grammar_close(
        all); /* the request's sequence holds the grammar from mb_submit on; the store does as well */
    generations_run(g, 2, session);
    assert_true(g[0].n_tokens > 3);
    assert_true(generation_same_tokens(&g[0], &g[1]));
    assert_int_equal(g[0].state, g[1].state);
    generation_free(&g[0]);
    generation_free(&g[1]);
}

/* The answer's end comes from the grammar, with and without an end-of-text token. */
static void test_answers_end(void **state) {
    (void)state;
    static const char *const choices[] = {"yes", "no", "{\"sum\": 42}"};
    mb_grammar *grammar = compile(MB_GRAMMAR_CHOICE, "[\"yes\", \"no\", \"{\\\"sum\\\": 42}\"]");
    for (int ignore_eos = 0; ignore_eos < 2; ignore_eos++) {
        generation g;
        char text[1024];
        init(&g, grammar, MAX_NEW);
        g.request.ignore_eos = ignore_eos;
        generation_run_alone(&g, session);
        text_of(&g, text);
        assert_int_equal(g.state, MB_FINISHED_STOP);
        int is_one = 0;
        for (int i = 0; i < 3; i++)
            is_one |= strcmp(text, choices[i]) == 0;
        assert_true(is_one);
        generation_free(&g);
    }
    mb_grammar_close(grammar);
}

/* Where more may follow, the model decides by its end-of-text token; a length cuts. */
static void test_end_of_text_where_the_grammar_accepts(void **state) {
    (void)state;
    mb_grammar *grammar = compile(MB_GRAMMAR_REGEX, "(?:a|b){4,}");
    const mb_logit_bias bias = {0, 0};
    mb_model_info info;
    mb_model_get_info(model, &info);
    mb_logit_bias ends = {info.eos_ids[0], 1000};
    for (int wants_end = 0; wants_end < 2; wants_end++) {
        generation g;
        char text[1024];
        init(&g, grammar, 9);
        g.request.sampling.logit_bias = wants_end ? &ends : &bias;
        g.request.sampling.n_logit_bias = 1;
        generation_run_alone(&g, session);
        text_of(&g, text);
        assert_int_equal(strspn(text, "ab"), strlen(text));
        assert_true(strlen(text) >= 4);
        if (wants_end)
            assert_int_equal(g.state, MB_FINISHED_STOP);
        generation_free(&g);
    }
    mb_grammar_close(grammar);
}

static void test_after_thinking(void **state) {
    (void)state;
    mb_grammar *grammar = compile(MB_GRAMMAR_CHOICE, "[\"42\"]");
    int32_t ids[MAX_IDS];
    size_t n;
    assert_int_equal(mb_tokenize(model, "</think>", 8, 0, ids, MAX_IDS, &n), MB_OK);
    mb_logit_bias bias[MAX_IDS];
    for (size_t i = 0; i < n; i++) /* thinks of nothing but the end of thinking */
        bias[i] = (mb_logit_bias){ids[i], 500};
    int n_complete = 0;
    for (uint64_t seed = 0; seed < 5; seed++) {
        generation g;
        char text[1024];
        init(&g, grammar, 40);
        g.request.sampling.logit_bias = bias;
        g.request.sampling.n_logit_bias = (int32_t)n;
        g.request.sampling.temperature = 1;
        g.request.sampling.frequency_penalty = 2;
        g.request.sampling.seed = seed;
        g.request.grammar_after_think = 1;
        generation_run_alone(&g, session);
        text_of(&g, text);
        const char *end = strstr(text, "</think>");
        if (g.state == MB_FINISHED_STOP) {
            assert_non_null(end);
            end += 8;
            end += strspn(end, "\n");
            assert_string_equal(end, "42");
            n_complete++;
        } else {
            assert_int_equal(g.state, MB_FINISHED_LENGTH);
        }
        generation_free(&g);
    }
    assert_true(n_complete > 0);
    mb_grammar_close(grammar);
}

/* Sequences with and without a grammar, in batches and alone: the same bits. */
static void test_company_changes_nothing(void **state) {
    (void)state;
    enum { N = 8 };
    mb_grammar *grammars[] = {NULL, compile(MB_GRAMMAR_JSON_OBJECT, ""),
                              compile(MB_GRAMMAR_JSON_SCHEMA,
                                      "{\"type\": \"object\", \"properties\": {\"a\": {\"type\": "
                                      "\"string\", \"maxLength\": 5}, \"b\": {\"type\": \"integer\"}}, "
                                      "\"required\": [\"a\", \"b\"]}"),
                              compile(MB_GRAMMAR_REGEX, "[a-z ]{5,20}\\.")};
    generation together[N], alone[N];
    for (int i = 0; i < N; i++)
        for (int k = 0; k < 2; k++) {
            generation *g = k ? &alone[i] : &together[i];
            init(g, grammars[i % 4], MAX_NEW);
            g->request.sampling.temperature = i < 4 ? 0 : 2;
            g->request.sampling.seed = (uint64_t)i;
        }
    for (int i = 0; i < N; i++)
        generation_submit(&together[i], session);
    generations_run(together, N, session);
    for (int i = 0; i < N; i++) {
        generation_run_alone(&alone[i], session);
        assert_true(generation_same_tokens(&together[i], &alone[i]));
        assert_int_equal(together[i].state, alone[i].state);
        assert_true(together[i].state != MB_FAILED);
        generation_free(&together[i]);
        generation_free(&alone[i]);
    }
    for (int i = 1; i < 4; i++)
        mb_grammar_close(grammars[i]);
    assert_session_idle(session);
}

static void test_refusals(void **state) {
    (void)state;
    mb_grammar *grammar, *again;
    uint64_t id;
    assert_int_equal(mb_grammar_open(other_model, MB_GRAMMAR_REGEX, "a", 1, &grammar), MB_OK);
    generation g;
    init(&g, grammar, 4);
    assert_int_equal(mb_submit(session, &g.request, &id), MB_ERR_ARGUMENT);
    assert_non_null(strstr(mb_last_error(), "grammar"));
    generation_free(&g);
    assert_int_equal(mb_grammar_open(other_model, MB_GRAMMAR_REGEX, "a", 1, &again), MB_OK);
    assert_ptr_equal(grammar, again); /* compiled once */
    mb_grammar_close(again);
    mb_grammar_close(grammar);
    assert_int_equal(mb_grammar_open(NULL, MB_GRAMMAR_REGEX, "a", 1, &grammar), MB_ERR_ARGUMENT);
    assert_int_equal(mb_grammar_open(model, MB_GRAMMAR_REGEX, NULL, 1, &grammar), MB_ERR_ARGUMENT);
    assert_int_equal(mb_grammar_open(model, MB_GRAMMAR_JSON_SCHEMA, "{\"not\": {}}", 11, &grammar),
                     MB_ERR_UNSUPPORTED);
    assert_non_null(strstr(mb_last_error(), "#/not"));
    assert_null(grammar);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_grammar_that_allows_all_changes_nothing),
        cmocka_unit_test(test_answers_end),
        cmocka_unit_test(test_end_of_text_where_the_grammar_accepts),
        cmocka_unit_test(test_after_thinking),
        cmocka_unit_test(test_company_changes_nothing),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
