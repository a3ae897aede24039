/* tool_choice as a grammar: which calls it forces, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/json.h"
#include "moebius/answer.h"

static const char tools[] =
    "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": \"object\", \"$defs\": {\"Size\": "
    "{\"type\": \"integer\"}}, \"properties\": {\"s\": {\"type\": \"string\"}, \"size\": {\"$ref\": \"#/$defs/Size\"}, "
    "\"unit\": {\"type\": \"string\", \"enum\": [\"m\", \"ft\"]}}, \"required\": [\"s\", \"unit\"]}}}, "
    "{\"type\": \"function\", \"function\": {\"name\": \"now\"}}]";

static const mb_answer_formats json_format = {MB_REASONING_THINK, MB_TOOLS_JSON, 0};
static const mb_answer_formats xml_format = {MB_REASONING_NONE, MB_TOOLS_XML, 0};

static void check(const mb_answer_formats *formats, const char *tool_choice, int parallel,
                  mb_tool_use wanted_use, const char *wanted) {
    mb_tool_use use;
    char *structure;
    if (mb_answer_tool_choice(formats, tools, tool_choice, parallel, &use, &structure) != MB_OK)
        fail_msg("%s: %s", tool_choice ? tool_choice : "no tool_choice", mb_last_error());
    assert_int_equal(use, wanted_use);
    if (!wanted) {
        assert_null(structure);
        return;
    }
    json_t *value; /* it is JSON */
    assert_int_equal(mb_json_parse("structure", structure, strlen(structure), &value), MB_OK);
    mb_json_free(value);
    assert_string_equal(structure, wanted);
    mb_free_text(structure);
}

#define JSON_F                                                                                                        \
    "{\"sequence\": [{\"text\": \"<tool_call>\\n{\\\"name\\\": \\\"f\\\", \\\"arguments\\\": \"}, {\"json_schema\": " \
    "{\"additionalProperties\": false, \"type\": \"object\", \"$defs\": {\"Size\": {\"type\": \"integer\"}}, "        \
    "\"properties\": {\"s\": {\"type\": \"string\"}, \"size\": {\"$ref\": \"#/$defs/Size\"}, \"unit\": {\"type\": "   \
    "\"string\", \"enum\": [\"m\", \"ft\"]}}, \"required\": [\"s\", \"unit\"]}}, {\"text\": \"}\\n</tool_call>\"}]}"
#define JSON_NOW                                                                                                  \
    "{\"sequence\": [{\"text\": \"<tool_call>\\n{\\\"name\\\": \\\"now\\\", \\\"arguments\\\": \"}, "             \
    "{\"json_schema\": {\"type\": \"object\", \"additionalProperties\": false, \"properties\": {}}}, {\"text\": " \
    "\"}\\n</tool_call>\"}]}"
#define XML_F                                                                                                           \
    "{\"sequence\": [{\"text\": \"<tool_call>\\n<function=f>\\n\"}, {\"sequence\": [{\"text\": \"<parameter=s>\\n\"}, " \
    "{\"until\": \"\\n</parameter>\\n\"}]}, {\"repeat\": {\"sequence\": [{\"text\": \"<parameter=size>\\n\"}, "         \
    "{\"json_schema\": {\"$defs\": {\"Size\": {\"type\": \"integer\"}}, \"$ref\": \"#/$defs/Size\"}}, {\"text\": "      \
    "\"\\n</parameter>\\n\"}]}, \"min\": 0, \"max\": 1}, {\"sequence\": [{\"text\": \"<parameter=unit>\\n\"}, "         \
    "{\"choice\": [{\"text\": \"m\"}, {\"text\": \"ft\"}]}, {\"text\": \"\\n</parameter>\\n\"}]}, {\"text\": "          \
    "\"</function>\\n</tool_call>\"}]}"
#define REPEAT(calls, max)                                              \
    "{\"repeat\": {\"choice\": [" calls "]}, \"min\": 1, \"max\": " max \
    ", \"separator\": {\"text\": \"\\n\"}}"

static void test_choices(void **state) {
    (void)state;
    check(&json_format, NULL, 1, MB_TOOL_USE_FREE, NULL);
    check(&json_format, "null", 1, MB_TOOL_USE_FREE, NULL);
    check(&json_format, "\"auto\"", 1, MB_TOOL_USE_FREE, NULL);
    check(&json_format, "\"none\"", 1, MB_TOOL_USE_NONE, NULL);
    check(&json_format, "\"required\"", 1, MB_TOOL_USE_FORCED, REPEAT(JSON_F ", " JSON_NOW, "32"));
    check(&json_format, "\"required\"", 0, MB_TOOL_USE_FORCED, REPEAT(JSON_F ", " JSON_NOW, "1"));
    check(&json_format, "{\"type\": \"function\", \"function\": {\"name\": \"now\"}}", 1, MB_TOOL_USE_FORCED,
          REPEAT(JSON_NOW, "1"));
    check(&json_format,
          "{\"type\": \"allowed_tools\", \"allowed_tools\": {\"mode\": \"required\", \"tools\": [{\"type\": "
          "\"function\", \"function\": {\"name\": \"now\"}}]}}",
          1, MB_TOOL_USE_FORCED, REPEAT(JSON_NOW, "32"));
    check(&json_format,
          "{\"type\": \"allowed_tools\", \"allowed_tools\": {\"mode\": \"auto\", \"tools\": [{\"type\": "
          "\"function\", \"function\": {\"name\": \"now\"}}]}}",
          1, MB_TOOL_USE_FREE, NULL);
    check(&xml_format, "{\"type\": \"function\", \"function\": {\"name\": \"f\"}}", 1, MB_TOOL_USE_FORCED,
          REPEAT(XML_F, "1"));
}

static void check_refused(const char *with_tools, const char *tool_choice, const char *sentence) {
    mb_tool_use use;
    char *structure;
    assert_int_not_equal(mb_answer_tool_choice(&json_format, with_tools, tool_choice, 1, &use, &structure),
                         MB_OK);
    assert_null(structure);
    if (!strstr(mb_last_error(), sentence))
        fail_msg("%s\nwanted: %s\ngot: %s", tool_choice, sentence, mb_last_error());
}

static void test_what_is_refused(void **state) {
    (void)state;
    check_refused(tools, "\"any\"", "tool_choice is neither \"none\", \"auto\", \"required\" nor");
    check_refused(tools, "7", "tool_choice is neither");
    check_refused(tools, "{", "tool_choice: not valid JSON");
    check_refused(tools, "{\"type\": \"function\"}", "tool_choice is not {\"type\": \"function\"");
    check_refused(tools, "{\"type\": \"function\", \"function\": {\"name\": \"g\"}}",
                  "tool_choice names the tool \"g\", which is not among tools");
    check_refused(tools, "{\"type\": \"allowed_tools\"}", "tool_choice.allowed_tools.mode");
    check_refused(tools, "{\"type\": \"allowed_tools\", \"allowed_tools\": {\"mode\": \"auto\"}}",
                  "tool_choice.allowed_tools.tools");
    check_refused(NULL, "\"required\"", "tool_choice needs tools");
    check_refused("[]", "\"auto\"", "tool_choice needs tools");
    check_refused("[7]", "\"auto\"", "tools[0] is not an object");
    mb_tool_use use;
    char *structure;
    assert_int_equal(mb_answer_tool_choice(&json_format, NULL, NULL, 1, &use, &structure), MB_OK);
    assert_int_equal(use, MB_TOOL_USE_NONE);
}

static void test_where_a_grammar_starts(void **state) {
    (void)state;
    assert_int_equal(mb_answer_grammar_start(&json_format, "assistant\n"), MB_GRAMMAR_AFTER_THINK);
    assert_int_equal(mb_answer_grammar_start(&json_format, "assistant\n<think>\n"), MB_GRAMMAR_AFTER_THINK);
    assert_int_equal(mb_answer_grammar_start(&json_format, "assistant\n<think>\n\n</think>\n\n"),
                     MB_GRAMMAR_AT_ONCE);
    assert_int_equal(mb_answer_grammar_start(&xml_format, "assistant\n"), MB_GRAMMAR_AT_ONCE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_where_a_grammar_starts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
