/* The grammars of tool_choice: whatever tokens a model draws among those that they allow, the answer is
 * calls of the tools, in both forms, as the parser reads them. */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "moebius/answer.h"
#include "moebius/grammar.h"

static const char tools[] =
    "[{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"parameters\": {\"type\": \"object\", "
    "\"$defs\": {\"Day\": {\"type\": \"integer\", \"minimum\": 1, \"maximum\": 31}}, \"properties\": {"
    "\"city\": {\"type\": \"string\"}, \"unit\": {\"type\": \"string\", \"enum\": [\"C\", \"F\"]}, \"days\": {\"type\": "
    "\"array\", \"items\": {\"$ref\": \"#/$defs/Day\"}, \"maxItems\": 3}, \"first\": {\"$ref\": \"#/$defs/Day\"}, "
    "\"exact\": {\"type\": \"boolean\"}, \"note\": {\"anyOf\": [{\"type\": \"string\"}, {\"type\": \"null\"}]}, "
    "\"where\": {\"type\": \"object\", \"properties\": {\"lat\": {\"type\": \"number\"}}, \"required\": [\"lat\"], "
    "\"additionalProperties\": false}}, \"required\": [\"city\", \"unit\", \"first\"]}}}, "
    "{\"type\": \"function\", \"function\": {\"name\": \"now\"}}]";

static mb_model *model;
static mb_model_info info;

static int open_model(void **state) {
    (void)state;
    const mb_model_options options = {.load = MB_LOAD_TEXT};
    assert_int_equal(mb_model_open("models/demo", &options, &model), MB_OK);
    mb_model_get_info(model, &info);
    return 0;
}

static int close_model(void **state) {
    (void)state;
    mb_model_close(model);
    return 0;
}

/* ---- Drawing ------------------------------------------------------------------------------------------ */

/* Text that ends something: without a liking for such tokens, strings would hardly end. */
static int closes(int32_t id) {
    const char *bytes;
    size_t n;
    assert_int_equal(mb_token_bytes(model, id, &bytes, &n, NULL), MB_OK);
    return n > 0 && strchr("\"}]\n<,/", bytes[0]) != NULL;
}

/* A token that the bits allow, any with the same chance, or one that closes. -1: there is none. */
static int32_t draw(const uint32_t *bits, int must_close, uint64_t *random) {
    int32_t chosen = -1;
    uint64_t n = 0;
    for (int32_t id = 0; id < info.vocab; id++)
        if (bits[id / 32] >> (id % 32) & 1 && (!must_close || closes(id)) && mb_random(random) % ++n == 0)
            chosen = id;
    return chosen;
}

typedef struct answer {
    mb_grammar_state *state;
    FILE *to;
    uint32_t bits[64];
} answer;

static int allows(const answer *a, int32_t id) {
    return (int)(a->bits[id / 32] >> (id % 32) & 1);
}

static void take(answer *a, int32_t id) {
    const char *bytes;
    size_t n;
    if (mb_grammar_advance(a->state, id) != MB_OK)
        fail_msg("%s", mb_last_error());
    assert_int_equal(mb_token_bytes(model, id, &bytes, &n, NULL), MB_OK);
    fwrite(bytes, 1, n, a->to);
    assert_int_equal(mb_grammar_mask(a->state, a->bits, 64), MB_OK);
}

/* The text letter by letter, as far as the grammar allows. */
static void spell(answer *a, const char *text) {
    for (; *text; text++) {
        int32_t id;
        size_t n;
        assert_int_equal(mb_tokenize(model, text, 1, 0, &id, 1, &n), MB_OK);
        if (!allows(a, id))
            return;
        take(a, id);
    }
}

/* An answer of random tokens, which ends where the grammar allows that. A value in XML ends with a text
 * that chance does not spell. */
static char *random_answer(mb_grammar *grammar, uint64_t seed, size_t *n_text) {
    enum { LONG = 400, MAX_TOKENS = 4000 };
    uint64_t random = seed;
    char *text;
    answer a = {.to = open_memstream(&text, n_text)};
    assert_true((size_t)(info.vocab + 31) / 32 <= 64);
    assert_int_equal(mb_grammar_state_open(grammar, MB_GRAMMAR_AT_ONCE, &a.state), MB_OK);
    assert_int_equal(mb_grammar_mask(a.state, a.bits, 64), MB_OK);
    for (int i = 0; !mb_grammar_is_finished(a.state); i++) {
        if (mb_grammar_can_end(a.state) && (i > LONG || mb_random(&random) % 2))
            break;
        assert_true(i < MAX_TOKENS);
        if (i > LONG || mb_random(&random) % 8 == 0)
            spell(&a, "\n</parameter>\n");
        int32_t id = draw(a.bits, i > LONG || mb_random(&random) % 4 == 0, &random);
        if (id < 0)
            id = draw(a.bits, 0, &random);
        if (id >= 0)
            take(&a, id);
        else
            assert_true(mb_grammar_can_end(a.state));
    }
    mb_grammar_state_close(a.state);
    fclose(a.to);
    return text;
}

/* ---- Checking ----------------------------------------------------------------------------------------- */

static void check_day(const json_t *day) {
    assert_true(json_is_integer(day));
    assert_in_range(json_integer_value(day), 1, 31);
}

static void check_arguments(const char *name, const json_t *arguments, const char *text) {
    if (strcmp(name, "now") == 0) {
        assert_int_equal(json_object_size(arguments), 0);
        return;
    }
    assert_string_equal(name, "get_weather");
    const json_t *unit = json_object_get(arguments, "unit"), *value;
    if (!json_is_string(json_object_get(arguments, "city")) || !json_is_string(unit))
        fail_msg("%s", text);
    assert_true(strcmp(json_string_value(unit), "C") == 0 || strcmp(json_string_value(unit), "F") == 0);
    check_day(json_object_get(arguments, "first"));
    if ((value = json_object_get(arguments, "days")))
        for (size_t i = 0; i < json_array_size(value); i++)
            check_day(json_array_get(value, i));
    if ((value = json_object_get(arguments, "exact")))
        assert_true(json_is_boolean(value));
    if ((value = json_object_get(arguments, "note")))
        assert_true(json_is_string(value) || json_is_null(value));
    if ((value = json_object_get(arguments, "where")))
        assert_true(json_is_number(json_object_get(value, "lat")));
}

/* The parser finds calls and nothing else. Returns how many. */
static int check_answer(const mb_answer_formats *formats, const char *text, size_t n_text) {
    mb_answer_options options;
    mb_answer_options_init(formats, &options);
    options.tools_json = tools;
    mb_answer_parser *parser;
    mb_answer_event event;
    char name[32] = "", *arguments = NULL;
    size_t n_arguments = 0;
    FILE *to = NULL;
    int n_calls = 0;
    assert_int_equal(mb_answer_open(&options, &parser), MB_OK);
    assert_int_equal(mb_answer_push(parser, text, n_text), MB_OK);
    while (mb_answer_next(parser, &event)) {
        switch (event.kind) {
        case MB_ANSWER_CALL:
            snprintf(name, sizeof name, "%s", event.name);
            to = open_memstream(&arguments, &n_arguments);
            break;
        case MB_ANSWER_ARGUMENTS:
            fwrite(event.text, 1, event.n_bytes, to);
            break;
        case MB_ANSWER_CALL_END: {
            fclose(to);
            json_error_t error;
            json_t *value =
                json_loadb(arguments, n_arguments, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
            if (!json_is_object(value))
                fail_msg("%s\n%s: %s", text, error.text, arguments);
            check_arguments(name, value, text);
            json_decref(value);
            free(arguments);
            n_calls++;
            break;
        }
        default:
            fail_msg("not a call: %s\n%s", event.text, text);
        }
    }
    assert_int_equal(mb_answer_finish(parser), MB_OK);
    if (mb_answer_next(parser, &event))
        fail_msg("the last call is not complete:\n%s", text);
    mb_answer_close(parser);
    return n_calls;
}

static void check(mb_tool_format format, const char *tool_choice, int parallel, int n_answers) {
    const mb_answer_formats formats = {MB_REASONING_NONE, format, 0};
    mb_tool_use use;
    char *structure;
    mb_grammar *grammar;
    int n_several = 0;
    assert_int_equal(mb_answer_tool_choice(&formats, tools, tool_choice, parallel, &use, &structure), MB_OK);
    if (mb_grammar_open(model, MB_GRAMMAR_STRUCTURE, structure, strlen(structure), &grammar) != MB_OK)
        fail_msg("%s\n%s", mb_last_error(), structure);
    for (int i = 0; i < n_answers; i++) {
        size_t n_text;
        char *text = random_answer(grammar, (uint64_t)i, &n_text);
        int n_calls = check_answer(&formats, text, n_text);
        assert_true(n_calls >= 1);
        n_several += n_calls > 1;
        free(text);
    }
    assert_int_equal(n_several > 0, parallel && tool_choice[0] == '"');
    mb_grammar_close(grammar);
    mb_free_text(structure);
}

static void test_json(void **state) {
    (void)state;
    check(MB_TOOLS_JSON, "\"required\"", 1, 60);
    check(MB_TOOLS_JSON, "\"required\"", 0, 30);
    check(MB_TOOLS_JSON, "{\"type\": \"function\", \"function\": {\"name\": \"get_weather\"}}", 1, 30);
}

static void test_xml(void **state) {
    (void)state;
    check(MB_TOOLS_XML, "\"required\"", 1, 60);
    check(MB_TOOLS_XML, "\"required\"", 0, 30);
    check(MB_TOOLS_XML, "{\"type\": \"function\", \"function\": {\"name\": \"get_weather\"}}", 1, 30);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_xml),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
