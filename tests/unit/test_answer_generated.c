/* 1 000 generated answers with 1 to 4 calls in both forms: what the client gets is what was meant, in
 * however many pieces the answer comes. */
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

static uint64_t random_state;

static unsigned below(unsigned n) {
    return (unsigned)(mb_random(&random_state) % n);
}

/* ---- Values ------------------------------------------------------------------------------------------- */

/* Joined at random they make texts that a careless parser trips over. */
static const char *const fragments[] = {"a",
                                        "Oslo",
                                        " ",
                                        "\n",
                                        "\t",
                                        "\"",
                                        "\\",
                                        "\\n",
                                        "{",
                                        "}",
                                        "[",
                                        "]",
                                        ":",
                                        ",",
                                        "null",
                                        "'",
                                        "\u00e9",
                                        "\u4f60\u597d",
                                        "\U0001f600",
                                        "\u2028",
                                        "<",
                                        ">",
                                        "</",
                                        "&lt;",
                                        "<think>",
                                        "</think>",
                                        "<tool_call>",
                                        "</tool_call>",
                                        "<function=f>",
                                        "</function>",
                                        "<parameter=p>",
                                        "</parameter>!",
                                        "{\"name\": \"x\", \"arguments\": {}}",
                                        "\x01",
                                        "\x7f",
                                        "\r\n"};

static char *random_text(unsigned most) {
    char *text;
    size_t n;
    FILE *to = open_memstream(&text, &n);
    for (unsigned i = below(most + 1); i > 0; i--)
        fputs(fragments[below(sizeof fragments / sizeof *fragments)], to);
    fclose(to);
    return text;
}

static json_t *random_string(void) {
    char *text = random_text(6);
    json_t *string = json_string(text);
    free(text);
    return string;
}

static json_t *random_value(const char *type, int depth);

static json_t *random_any(int depth) {
    static const char *const types[] = {"string", "integer", "number", "boolean", "null", "object", "array"};
    return random_value(types[below(depth > 0 ? 7 : 5)], depth - 1);
}

static json_t *random_value(const char *type, int depth) {
    static const double reals[] = {0.5, -2.25, 1e-7, 6.02e23, -0.0, 3.0};
    if (strcmp(type, "string") == 0)
        return random_string();
    if (strcmp(type, "integer") == 0)
        return json_integer((json_int_t)(mb_random(&random_state) >> below(64)));
    if (strcmp(type, "number") == 0)
        return json_real(reals[below(6)]);
    if (strcmp(type, "boolean") == 0)
        return json_boolean(below(2));
    if (strcmp(type, "null") == 0)
        return json_null();
    json_t *value = strcmp(type, "object") == 0 ? json_object() : json_array();
    for (unsigned i = below(4); i > 0; i--) {
        char *key = random_text(2);
        if (json_is_object(value))
            json_object_set_new(value, key, random_any(depth));
        else
            json_array_append_new(value, random_any(depth));
        free(key);
    }
    return value;
}

/* ---- Spelling ----------------------------------------------------------------------------------------- */

static void spell_space(FILE *to, int wild) {
    static const char *const spaces[] = {"", "", "", " ", "\n  ", "\t"};
    if (wild)
        fputs(spaces[below(6)], to);
}

/* wild: any spelling that JSON allows; else as models write. */
static void spell(FILE *to, const json_t *value, int wild) {
    const char *key;
    json_t *item;
    size_t i;
    if (json_is_object(value)) {
        const char *separator = "";
        fputc('{', to);
        json_object_foreach((json_t *)value, key, item) {
            json_t *name = json_string(key);
            fputs(separator, to);
            spell_space(to, wild);
            spell(to, name, wild);
            spell_space(to, wild);
            fputs(wild ? ":" : ": ", to);
            spell_space(to, wild);
            spell(to, item, wild);
            spell_space(to, wild);
            separator = wild ? "," : ", ";
            json_decref(name);
        }
        fputc('}', to);
        return;
    }
    if (json_is_array(value)) {
        fputc('[', to);
        json_array_foreach(value, i, item) {
            fputs(i == 0 ? "" : ",", to);
            spell_space(to, wild);
            spell(to, item, wild);
            spell_space(to, wild);
        }
        fputc(']', to);
        return;
    }
    size_t flags = JSON_ENCODE_ANY | (wild && below(3) == 0 ? JSON_ENSURE_ASCII : 0);
    char *text = json_dumps(value, flags | (wild && below(3) == 0 ? JSON_ESCAPE_SLASH : 0));
    fputs(text, to);
    free(text);
}

/* ---- Answers ------------------------------------------------------------------------------------------ */

static const char *const types[] = {"string", "integer", "number", "boolean", "object", "array", "null"};

/* A tool with a parameter of each type, named p_TYPE, and one without parameters. */
static const char tools[] =
    "[{\"type\": \"function\", \"function\": {\"name\": \"get_all\", \"description\": \"d\", \"parameters\": {"
    "\"type\": \"object\", \"properties\": {\"p_string\": {\"type\": \"string\"}, \"p_integer\": {\"type\": "
    "\"integer\"}, \"p_number\": {\"type\": \"number\"}, \"p_boolean\": {\"type\": \"boolean\"}, "
    "\"p_object\": {\"type\": \"object\"}, \"p_array\": {\"type\": \"array\"}, \"p_null\": {\"type\": "
    "\"null\"}}}}}, {\"type\": \"function\", \"function\": {\"name\": \"now\"}}]";

enum { MAX_CALLS = 4 };

typedef struct meaning {
    char *reasoning, *content; /* "": none */
    const char *names[MAX_CALLS];
    json_t *arguments[MAX_CALLS];
    unsigned n_calls;
    int is_opened; /* the prompt opened <think> */
} meaning;

static json_t *random_arguments(const char *name) {
    json_t *arguments = json_object();
    if (strcmp(name, "now") == 0)
        return arguments;
    for (unsigned i = below(6); i > 0; i--) {
        char key[32];
        const char *type = types[below(7)];
        snprintf(key, sizeof key, "p_%s", type);
        json_object_set_new(arguments, key, random_value(type, 2));
    }
    return arguments;
}

static void write_xml(FILE *to, const char *name, const json_t *arguments) {
    const char *key;
    json_t *value;
    fprintf(to, "<tool_call>\n<function=%s>\n", name);
    json_object_foreach((json_t *)arguments, key, value) {
        fprintf(to, "<parameter=%s>\n", key);
        if (json_is_string(value))
            fputs(json_string_value(value), to);
        else if (json_is_boolean(value) && below(2))
            fputs(json_is_true(value) ? "True" : "False", to); /* as Qwen3-Coder's template shows them */
        else if (json_is_null(value) && below(2))
            fputs("None", to);
        else
            spell(to, value, 0);
        fputs("\n</parameter>\n", to);
    }
    fputs("</function>\n</tool_call>", to);
}

static void write_json(FILE *to, const char *name, const json_t *arguments) {
    int wild = (int)below(2);
    fprintf(to, "<tool_call>\n{\"name\": \"%s\", \"arguments\": ", name);
    spell(to, arguments, wild);
    fputs("}\n</tool_call>", to);
}

/* A text that begins and ends with a letter and has no tag that means something where it stands. */
static char *random_prose(int in_reasoning) {
    char *middle = random_text(8), *text;
    const char *bad[] = {"<tool_call>", in_reasoning ? "</think>" : "<tool_call>", "<function="};
    for (int i = 0; i < 3; i++)
        if (strstr(middle, bad[i]))
            middle[0] = '\0';
    size_t n;
    FILE *to = open_memstream(&text, &n);
    fprintf(to, "So %s ok", middle);
    fclose(to);
    free(middle);
    return text;
}

/* Writes an answer and what it means. */
static char *random_answer(meaning *meant) {
    char *answer;
    size_t n;
    FILE *to = open_memstream(&answer, &n);
    *meant = (meaning){.n_calls = 1 + below(MAX_CALLS), .is_opened = (int)below(2)};
    int reasons = meant->is_opened || below(2);
    meant->reasoning = reasons && below(4) > 0 ? random_prose(1) : strdup("");
    meant->content = below(2) ? random_prose(0) : strdup("");
    if (reasons)
        fprintf(to, "%s%s\n</think>\n\n", meant->is_opened ? "" : "<think>\n", meant->reasoning);
    fputs(meant->content, to);
    for (unsigned i = 0; i < meant->n_calls; i++) {
        meant->names[i] = below(4) > 0 ? "get_all" : "now";
        meant->arguments[i] = random_arguments(meant->names[i]);
        fputs(i > 0 || meant->content[0] ? "\n" : "", to);
        (below(2) ? write_xml : write_json)(to, meant->names[i], meant->arguments[i]);
    }
    fputs(below(2) ? "\n" : "", to);
    fclose(to);
    return answer;
}

/* ---- The client --------------------------------------------------------------------------------------- */

typedef struct client {
    FILE *reasoning, *content, *arguments[MAX_CALLS];
    char *reasoning_text, *content_text, *arguments_text[MAX_CALLS];
    size_t n_reasoning, n_content, n_arguments[MAX_CALLS];
    char names[MAX_CALLS][32];
    int32_t n_calls, n_ended;
} client;

static void client_take(client *to, mb_answer_parser *parser) {
    mb_answer_event event;
    while (mb_answer_next(parser, &event))
        switch (event.kind) {
        case MB_ANSWER_REASONING:
            fwrite(event.text, 1, event.n_bytes, to->reasoning);
            break;
        case MB_ANSWER_CONTENT:
            fwrite(event.text, 1, event.n_bytes, to->content);
            break;
        case MB_ANSWER_CALL:
            assert_int_equal(event.call, to->n_calls);
            assert_true(to->n_calls < MAX_CALLS);
            snprintf(to->names[event.call], sizeof to->names[0], "%s", event.name);
            to->n_calls++;
            break;
        case MB_ANSWER_ARGUMENTS:
            assert_int_equal(event.call, to->n_calls - 1);
            fwrite(event.text, 1, event.n_bytes, to->arguments[event.call]);
            break;
        case MB_ANSWER_CALL_END:
            assert_int_equal(event.call, to->n_ended++);
            break;
        default:
            fail_msg("a broken call");
        }
}

/* Pushes text[0, first) and then pieces of `piece` bytes. */
static void check(const char *text, const meaning *meant, size_t first, size_t piece) {
    client got = {0};
    got.reasoning = open_memstream(&got.reasoning_text, &got.n_reasoning);
    got.content = open_memstream(&got.content_text, &got.n_content);
    for (int i = 0; i < MAX_CALLS; i++)
        got.arguments[i] = open_memstream(&got.arguments_text[i], &got.n_arguments[i]);
    mb_answer_formats formats = {MB_REASONING_THINK, MB_TOOLS_JSON, 0};
    mb_answer_options options;
    mb_answer_options_init(&formats, &options);
    options.in_reasoning = meant->is_opened;
    options.tools_json = tools;
    mb_answer_parser *parser;
    assert_int_equal(mb_answer_open(&options, &parser), MB_OK);
    size_t n = strlen(text);
    for (size_t at = 0, length; at < n; at += length) {
        length = at == 0 && first > 0 ? first : piece;
        length = length < n - at ? length : n - at;
        assert_int_equal(mb_answer_push(parser, text + at, length), MB_OK);
        client_take(&got, parser);
    }
    assert_int_equal(mb_answer_finish(parser), MB_OK);
    client_take(&got, parser);
    mb_answer_close(parser);

    fclose(got.reasoning);
    fclose(got.content);
    assert_string_equal(got.reasoning_text, meant->reasoning);
    assert_string_equal(got.content_text, meant->content);
    assert_int_equal(got.n_calls, meant->n_calls);
    assert_int_equal(got.n_ended, meant->n_calls);
    for (unsigned i = 0; i < MAX_CALLS; i++) {
        fclose(got.arguments[i]);
        if (i < meant->n_calls) {
            json_error_t error;
            json_t *arguments = json_loads(got.arguments_text[i], JSON_REJECT_DUPLICATES, &error);
            assert_string_equal(got.names[i], meant->names[i]);
            if (!arguments || !json_equal(arguments, meant->arguments[i]))
                fail_msg("%s\ncall %u is %s (%s)", text, i, got.arguments_text[i], error.text);
            json_decref(arguments);
        }
        free(got.arguments_text[i]);
    }
    free(got.reasoning_text);
    free(got.content_text);
}

static void test_generated_answers(void **state) {
    (void)state;
    for (int i = 0; i < 1000; i++) {
        random_state = (uint64_t)i;
        meaning meant;
        char *text = random_answer(&meant);
        size_t n = strlen(text);
        check(text, &meant, 0, n);
        check(text, &meant, 0, 1);
        check(text, &meant, 0, 1 + below(16));
        /* In two pieces: at some places of all answers, and at every place of some. */
        for (size_t at = 1 + below(i % 50 == 0 ? 1 : 100); at < n; at += i % 50 == 0 ? 1 : 100)
            check(text, &meant, at, n);
        free(text);
        free(meant.reasoning);
        free(meant.content);
        for (unsigned k = 0; k < meant.n_calls; k++)
            json_decref(meant.arguments[k]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_generated_answers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
