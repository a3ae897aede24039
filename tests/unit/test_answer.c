/* Reasoning, content and calls: what the parser makes of an answer, whole and divided at every byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "moebius/answer.h"
#include "support/answer_parts.h"

static const char tools[] =
    "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": \"object\", "
    "\"$defs\": {\"Size\": {\"enum\": [1, 2]}},"
    "\"properties\": {\"s\": {\"type\": \"string\"}, \"i\": {\"type\": \"integer\"}, \"n\": {\"type\": "
    "\"number\"}, \"b\": {\"type\": \"boolean\"}, \"o\": {\"type\": \"object\"}, \"a\": {\"type\": "
    "\"array\"}, \"any\": {}, \"maybe\": {\"anyOf\": [{\"type\": \"string\"}, {\"type\": \"null\"}]}, "
    "\"size\": {\"$ref\": \"#/$defs/Size\"}, \"list\": {\"type\": [\"string\", \"array\"]}}}}}, "
    "{\"type\": \"function\", \"function\": {\"name\": \"now\"}}]";

enum { PLAIN = 0, THINKS = 1, OPENED = 2, NO_TOOLS = 4, ONE_CALL = 8 };

static mb_answer_options options_of(int flags) {
    mb_answer_formats formats = {flags & (THINKS | OPENED) ? MB_REASONING_THINK : MB_REASONING_NONE,
                                 MB_TOOLS_JSON, 0};
    mb_answer_options options;
    mb_answer_options_init(&formats, &options);
    options.in_reasoning = (flags & OPENED) != 0;
    options.one_call = (flags & ONE_CALL) != 0;
    options.tools_json = flags & NO_TOOLS ? NULL : tools;
    return options;
}

/* Whole, byte by byte, and in two pieces divided at every place: always the parts that are wanted. */
static void check(int flags, const char *text, const char *wanted) {
    mb_answer_options options = options_of(flags);
    size_t n = strlen(text);
    for (size_t i = 0; i <= n; i++) {
        const size_t pieces[2] = {i < n ? i : 1, i < n ? n : 1};
        char *parts = answer_parts(&options, text, n, pieces, 2);
        if (strcmp(parts, wanted) != 0)
            fail_msg("divided at %zu of\n%s\nwanted %s\ngot    %s", i, text, wanted, parts);
        free(parts);
    }
}

#define CALL(name, arguments) \
    "<tool_call>\n{\"name\": \"" name "\", \"arguments\": " arguments "}\n</tool_call>"

/* ---- Reasoning ---------------------------------------------------------------------------------------- */

static void test_reasoning(void **state) {
    (void)state;
    check(THINKS, "<think>\nHm.\nSo.\n</think>\n\nYes.\n", "R(Hm.\nSo.)C(Yes.\n)");
    check(OPENED, "Hm.\n</think>\n\nYes.", "R(Hm.)C(Yes.)");
    check(OPENED, "\n<think>\nHm.\n</think>\n\nYes.", "R(Hm.)C(Yes.)");
    check(THINKS, "\n\n<think>Hm.</think>Yes.", "R(Hm.)C(Yes.)");
    check(THINKS, "<think>\n\n</think>\n\nYes.", "C(Yes.)");
    check(THINKS, "Yes, <think> is a tag.</think>", "C(Yes, <think> is a tag.</think>)");
    check(THINKS, "  Yes.", "C(  Yes.)");
    check(PLAIN, "<think>Hm.</think>Yes.", "C(<think>Hm.</think>Yes.)");
    check(OPENED, "a </thin k> <</think>\n  b", "R(a </thin k> <)C(  b)");
    /* Cut off. */
    check(THINKS, "<think>\nHm. ", "R(Hm. )");
    check(THINKS, "<think>\nHm.\n\n", "R(Hm.\n\n)");
    check(THINKS, "<think>\nHm.</thi", "R(Hm.</thi)");
    check(OPENED, "", "");
    check(THINKS, "<thi", "C(<thi)");
    check(THINKS, " \n", "C( \n)");
    check(THINKS, "<think>\n\n</think>\n\n", "");
}

static void test_prompt_opens_reasoning(void **state) {
    (void)state;
    assert_int_equal(mb_answer_prompt_opens_reasoning("<|im_start|>assistant\n<think>\n"), 1);
    assert_int_equal(mb_answer_prompt_opens_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n"), 0);
    assert_int_equal(mb_answer_prompt_opens_reasoning("<|im_start|>assistant\n"), 0);
    assert_int_equal(mb_answer_prompt_opens_reasoning(""), 0);
    assert_int_equal(mb_answer_prompt_opens_reasoning("think>"), 0);
}

/* ---- Calls in JSON ------------------------------------------------------------------------------------ */

static void test_json_calls(void **state) {
    (void)state;
    check(PLAIN, CALL("f", "{\"s\": \"x\"}"), "T0(f)A0({\"s\": \"x\"})E0");
    check(PLAIN, "Let me see.\n" CALL("f", "{}") "\n" CALL("g", "{\"a\":[1,{}]}"),
          "C(Let me see.)T0(f)A0({})E0T1(g)A1({\"a\":[1,{}]})E1");
    check(PLAIN, "One.\n\n" CALL("f", "{}") "\nand then\n" CALL("f", "{}") "\n\n  done\n",
          "C(One.\n)T0(f)A0({})E0C(\nand then)T1(f)A1({})E1C(\n\n  done\n)");
    check(THINKS, "<think>\nHm.\n</think>\n\n" CALL("f", "{}"), "R(Hm.)T0(f)A0({})E0");
    check(OPENED, "Hm.\n</think>\n\nSo:\n" CALL("f", "{}") "\n", "R(Hm.)C(So:)T0(f)A0({})E0");
    check(PLAIN, CALL("f", "{}") "\n\nDone.", "T0(f)A0({})E0C(Done.)");
    /* Tags, braces and quotes within strings. */
    check(PLAIN, CALL("f", "{\"s\": \"</tool_call>}\\n<tool_call>\\\"{\"}"),
          "T0(f)A0({\"s\": \"</tool_call>}\\n<tool_call>\\\"{\"})E0");
    /* The keys in another order, and more of them. */
    check(
        PLAIN,
        "<tool_call>{\"id\": [1, -2.5e3, null], \"arguments\": {\"i\": 1}, \"x\": 7, \"name\": \"f\"}</tool_call>",
        "T0(f)A0({\"i\": 1})E0");
    check(PLAIN, "<tool_call>{\"n\": 1e5, \"name\": \"n\\u0061me\"}</tool_call>", "T0(name)A0({})E0");
    check(PLAIN, CALL("f", "null"), "T0(f)A0({})E0");
    check(PLAIN, CALL("f", "\"{\\\"s\\\": \\\"\\\\u00e9\\\"}\""), "T0(f)A0({\"s\": \"\\u00e9\"})E0");
}

static void test_json_calls_that_are_forgiven(void **state) {
    (void)state;
    check(PLAIN, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"i\": 1}\n</tool_call>\nok",
          "T0(f)A0({\"i\": 1})E0C(ok)");
    check(PLAIN, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"i\": 1}}}\n</tool_call>\n",
          "T0(f)A0({\"i\": 1})E0");
    check(PLAIN, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"i\": 1}}", "T0(f)A0({\"i\": 1})E0");
    check(PLAIN, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"i\": 1}", "T0(f)A0({\"i\": 1})E0");
    check(PLAIN, "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_c", "T0(f)A0({})E0");
    check(PLAIN, "<tool_call>{\"name\": \"f\"}\n{\"name\": \"now\"}</tool_call>",
          "T0(f)A0({})E0T1(now)A1({})E1");
    check(PLAIN, "<tool_call>{\"name\": \"f\"}\n<tool_call>{\"name\": \"now\"}</tool_call>",
          "T0(f)A0({})E0T1(now)A1({})E1");
    /* Raw control characters in strings. */
    check(PLAIN, CALL("f", "{\"s\": \"a\nb\t</tool\n</tool_calx\x01\"}"),
          "T0(f)A0({\"s\": \"a\\nb\\t</tool\\n</tool_calx\\u0001\"})E0");
}

static void test_malformed_json_calls_are_text(void **state) {
    (void)state;
    check(PLAIN, "a\n<tool_call>\nno JSON\n</tool_call>\nb", "C(a\n<tool_call>\nno JSON\n</tool_call>\nb)");
    check(PLAIN, "<tool_call>\n[1]\n</tool_call>", "C(<tool_call>\n[1]\n</tool_call>)");
    check(PLAIN, CALL("", "{}"), "C(" CALL("", "{}") ")");
    check(PLAIN, CALL("f", "[1]"), "C(" CALL("f", "[1]") ")");
    check(PLAIN, "<tool_call>\n{\"name\": 1}</tool_call>", "C(<tool_call>\n{\"name\": 1}</tool_call>)");
    check(PLAIN, "<tool_call>{\"arguments\": {}}</tool_call>",
          "C(<tool_call>{\"arguments\": {}}</tool_call>)");
    check(PLAIN, "<tool_call>{\"name\": \"f\", \"name\": \"g\"}</tool_call>",
          "C(<tool_call>{\"name\": \"f\", \"name\": \"g\"}</tool_call>)");
    check(PLAIN, CALL("\\ud800", "{}"), "C(" CALL("\\ud800", "{}") ")");
    /* The call had begun. */
    check(PLAIN, CALL("f", "{\"s\": tru}") "\n" CALL("f", "{}"),
          "T0(f)A0({\"s\": tru)B0C(" CALL("f", "{\"s\": tru}") ")T1(f)A1({})E1");
    check(PLAIN, CALL("f", "{\"s\": \"open}") "\nend",
          "T0(f)A0({\"s\": \"open}})B0C(" CALL("f", "{\"s\": \"open}") "\nend)");
    check(PLAIN, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"s\": \"cut",
          "T0(f)A0({\"s\": \"cut)B0C(<tool_call>\n{\"name\": \"f\", \"arguments\": {\"s\": \"cut)");
    /* A broken block does not hide the next. */
    check(PLAIN, "<tool_call>\n<tool_call>\n{\"name\": \"f\"}\n</tool_call>", "C(<tool_call>)T0(f)A0({})E0");
    check(PLAIN, "<tool_call>", "C(<tool_call>)");
    check(PLAIN, "a <tool_cal", "C(a <tool_cal)");
}

static void test_without_tools_tags_are_text(void **state) {
    (void)state;
    check(NO_TOOLS, "a\n" CALL("f", "{}") "\n", "C(a\n" CALL("f", "{}") "\n)");
}

static void test_one_call(void **state) {
    (void)state;
    check(ONE_CALL, CALL("f", "{}") "\n" CALL("now", "{}") "more", "T0(f)A0({})E0S");
    check(ONE_CALL, "<tool_call>{\"name\": \"f\", \"arguments\": {}", "T0(f)A0({})E0S");
    check(ONE_CALL, "<tool_call>x", "C(<tool_call>x)");
}

static void test_calls_in_reasoning(void **state) {
    (void)state;
    check(OPENED, "Hm.\n" CALL("f", "{}"), "R(Hm.)T0(f)A0({})E0");
    check(OPENED, "Hm.\n" CALL("f", "{}") "\nMore.\n</think>\n\nYes.",
          "R(Hm.)T0(f)A0({})E0R(\n\nMore.)C(Yes.)");
    check(OPENED, "Hm.\n" CALL("unknown", "{}") "\n</think>Yes.", "R(Hm.\n" CALL("unknown", "{}") ")C(Yes.)");
    check(OPENED, "I write " CALL("f", "{}") "\n</think>Yes.", "R(I write " CALL("f", "{}") ")C(Yes.)");
    check(OPENED, "<tool_call>\n</think>\nYes.", "R(<tool_call>)C(Yes.)");
    check(OPENED, CALL("f", "{\"s\": 1x}") "</think>", "T0(f)A0({\"s\": 1)B0R(" CALL("f", "{\"s\": 1x}") ")");
}

/* ---- Calls in XML ------------------------------------------------------------------------------------- */

#define XML(name, parameters) "<tool_call>\n<function=" name ">\n" parameters "</function>\n</tool_call>"
#define P(key, value) "<parameter=" key ">\n" value "\n</parameter>\n"

static void test_xml_calls(void **state) {
    (void)state;
    check(PLAIN, XML("f", P("s", "x")), "T0(f)A0({\"s\": \"x\"})E0");
    check(PLAIN, XML("now", ""), "T0(now)A0({})E0");
    check(PLAIN, "So:\n" XML("f", P("i", "17") P("s", "a\n\"b\"\\\t")) "\n" XML("g", P("q", "v")),
          "C(So:)T0(f)A0({\"i\": 17, \"s\": \"a\\n\\\"b\\\"\\\\\\t\"})E0T1(g)A1({\"q\": \"v\"})E1");
    check(PLAIN, XML("f", P("s", "\nx\n")), "T0(f)A0({\"s\": \"\\nx\\n\"})E0");
    check(PLAIN, XML("f", P("s", "")), "T0(f)A0({\"s\": \"\"})E0");
    check(PLAIN, XML("f", "<parameter=s>\n</parameter>"), "T0(f)A0({\"s\": \"\"})E0");
    check(PLAIN, XML("f", "<parameter=s></parameter>"), "T0(f)A0({\"s\": \"\"})E0");
    check(PLAIN, XML("f", "<parameter=s>x</parameter><parameter=b>True</parameter>"),
          "T0(f)A0({\"s\": \"x\", \"b\": true})E0");
    /* Values that speak of tags. */
    check(
        PLAIN, XML("f", P("s", "</parameter> </parameter>\n</para </function>\n</tool_call> <parameter=x>")),
        "T0(f)A0({\"s\": \"</parameter> </parameter>\\n</para </function>\\n</tool_call> <parameter=x>\"})E0");
}

static void test_xml_types(void **state) {
    (void)state;
    check(
        PLAIN,
        XML("f", P("s", "17") P("i", " -3 ") P("n", "2.5e-3") P("b", "false") P("o", "{\"x\": [1, null]}")
                     P("a", "[]")),
        "T0(f)A0({\"s\": \"17\", \"i\": -3, \"n\": 2.5e-3, \"b\": false, \"o\": {\"x\": [1, null]}, \"a\": []})E0");
    check(PLAIN, XML("f", P("maybe", "null")), "T0(f)A0({\"maybe\": null})E0");
    check(PLAIN, XML("f", P("maybe", "None")), "T0(f)A0({\"maybe\": null})E0");
    check(PLAIN, XML("f", P("maybe", "nullable")), "T0(f)A0({\"maybe\": \"nullable\"})E0");
    check(PLAIN, XML("f", P("maybe", "5")), "T0(f)A0({\"maybe\": \"5\"})E0");
    check(PLAIN, XML("f", P("maybe", "")), "T0(f)A0({\"maybe\": \"\"})E0");
    check(PLAIN, XML("f", P("any", "5") P("size", "2")), "T0(f)A0({\"any\": 5, \"size\": 2})E0");
    check(PLAIN, XML("f", P("any", "[1, 2")), "T0(f)A0({\"any\": \"[1, 2\"})E0");
    check(PLAIN, XML("f", P("list", "[1]")), "T0(f)A0({\"list\": [1]})E0");
    check(PLAIN, XML("f", P("list", "5")), "T0(f)A0({\"list\": \"5\"})E0");
    check(PLAIN, XML("f", P("list", "\"q\"")), "T0(f)A0({\"list\": \"\\\"q\\\"\"})E0");
    /* What does not fit stays as it is, or becomes a string. */
    check(PLAIN, XML("f", P("i", "five") P("o", "{'x': 1}") P("b", "5")),
          "T0(f)A0({\"i\": \"five\", \"o\": \"{'x': 1}\", \"b\": 5})E0");
    /* A parameter that the schema does not know. */
    check(PLAIN, XML("f", P("new", "5")), "T0(f)A0({\"new\": \"5\"})E0");
    check(PLAIN, XML("f", P("new", "[5]")), "T0(f)A0({\"new\": [5]})E0");
    check(PLAIN, XML("unknown", P("new", "{5")), "T0(unknown)A0({\"new\": \"{5\"})E0");
}

static void test_xml_calls_that_are_forgiven(void **state) {
    (void)state;
    check(PLAIN, "So:\n<function=f>\n" P("i", "1") "</function>\n</tool_call>\nok",
          "C(So:)T0(f)A0({\"i\": 1})E0C(\nok)");
    check(PLAIN, "<function=f>\n" P("i", "1") "</function>", "T0(f)A0({\"i\": 1})E0");
    check(PLAIN, "<tool_call>\n<function=f>\n" P("i", "1") "</tool_call>", "T0(f)A0({\"i\": 1})E0");
    check(PLAIN, "<tool_call><function=f></function><function=now></function></tool_call>",
          "T0(f)A0({})E0T1(now)A1({})E1");
}

static void test_malformed_xml_calls_are_text(void **state) {
    (void)state;
    check(PLAIN, "<function=unknown>\n</function>", "C(<function=unknown>\n</function>)");
    check(PLAIN, "a <function=f>\n</function>", "C(a <function=f>\n</function>)");
    check(PLAIN, "<tool_call><function=>", "C(<tool_call><function=>)");
    check(PLAIN, "<tool_call><function=f\n>", "C(<tool_call><function=f\n>)");
    check(PLAIN, "<tool_call><function=f>x</function></tool_call>",
          "C(<tool_call><function=f>x</function></tool_call>)");
    check(PLAIN, "<tool_call><function=f>" P("s", "1") P("s", "2") "</function></tool_call>",
          "T0(f)A0({\"s\": \"1\")B0C(<tool_call><function=f>" P("s", "1")
              P("s", "2") "</function></tool_call>)");
    check(PLAIN, "<tool_call><function=f><parameter=s>cut\n</parameter>\n",
          "T0(f)A0({\"s\": \"cut)B0C(<tool_call><function=f><parameter=s>cut\n</parameter>\n)");
    check(PLAIN, "<tool_call><function=f><parameter=></parameter>",
          "C(<tool_call><function=f><parameter=></parameter>)");
}

/* ---- The interface ------------------------------------------------------------------------------------ */

static void check_refused(const char *tools_json, const char *sentence) {
    mb_answer_options options = options_of(PLAIN);
    options.tools_json = tools_json;
    mb_answer_parser *parser;
    assert_int_not_equal(mb_answer_open(&options, &parser), MB_OK);
    assert_null(parser);
    if (!strstr(mb_last_error(), sentence))
        fail_msg("%s\nwanted: %s\ngot: %s", tools_json, sentence, mb_last_error());
}

static void test_tools_are_checked(void **state) {
    (void)state;
    check_refused("[", "tools: not valid JSON at line 1");
    check_refused("{}", "tools is not an array");
    check_refused("[1]", "tools[0] is not an object");
    check_refused("[{\"type\": \"web_search\"}]", "tools[0].type is not \"function\"");
    check_refused("[{\"type\": \"function\"}]", "tools[0].function is not an object");
    check_refused("[{\"function\": {}}]", "tools[0].function.name is not a text");
    check_refused("[{\"function\": {\"name\": \"\"}}]", "tools[0].function.name is not a text");
    check_refused("[{\"function\": {\"name\": \"a b\"}}]", "tools[0].function.name has a character");
    check_refused("[{\"function\": {\"name\": \"a\", \"parameters\": []}}]",
                  "tools[0].function.parameters is not");
    mb_answer_options options = options_of(PLAIN);
    options.tools_json = "[]";
    char *parts = answer_parts(&options, CALL("f", "{}"), strlen(CALL("f", "{}")), NULL, 0);
    assert_string_equal(parts, "C(" CALL("f", "{}") ")"); /* no tools, no calls */
    free(parts);
}

static void test_schemas_that_refer_to_themselves(void **state) {
    (void)state;
    mb_answer_options options = options_of(PLAIN);
    options.tools_json =
        "[{\"function\": {\"name\": \"f\", \"parameters\": {\"$defs\": {\"t\": {\"anyOf\": [{\"$ref\": "
        "\"#/$defs/t\"}, {\"$ref\": \"#/$defs/t\"}]}}, \"properties\": {\"p\": {\"$ref\": \"#/$defs/t\"}}}}}]";
    const char text[] = XML("f", P("p", "5"));
    char *parts = answer_parts(&options, text, sizeof text - 1, NULL, 0);
    assert_string_equal(parts, "T0(f)A0({\"p\": 5})E0");
    free(parts);
}

static void test_ids(void **state) {
    (void)state;
    char ids[3][40];
    for (int run = 0; run < 3; run++) {
        mb_answer_options options = options_of(PLAIN);
        options.id_seed = run < 2 ? 7 : 0;
        mb_answer_parser *parser;
        mb_answer_event event = {0};
        assert_int_equal(mb_answer_open(&options, &parser), MB_OK);
        assert_int_equal(mb_answer_push(parser, CALL("f", "{}"), strlen(CALL("f", "{}"))), MB_OK);
        assert_int_equal(mb_answer_next(parser, &event), 1);
        assert_int_equal(event.kind, MB_ANSWER_CALL);
        snprintf(ids[run], sizeof ids[run], "%s", event.id);
        assert_int_equal(mb_answer_finish(parser), MB_OK);
        assert_int_equal(mb_answer_push(parser, "a", 1), MB_ERR_STATE);
        mb_answer_close(parser);
    }
    assert_string_equal(ids[0], ids[1]);
    assert_string_not_equal(ids[0], ids[2]);
}

static void test_formats_by_name(void **state) {
    (void)state;
    mb_answer_formats formats = {0};
    assert_int_equal(mb_answer_formats_by_name("qwen3", "hermes", &formats), MB_OK);
    assert_int_equal(formats.reasoning, MB_REASONING_THINK);
    assert_int_equal(formats.tools, MB_TOOLS_JSON);
    assert_int_equal(mb_answer_formats_by_name(NULL, "qwen3_coder", &formats), MB_OK);
    assert_int_equal(formats.reasoning, MB_REASONING_THINK);
    assert_int_equal(formats.tools, MB_TOOLS_XML);
    assert_int_equal(mb_answer_formats_by_name("none", "mistral", &formats), MB_ERR_NOT_FOUND);
    assert_int_equal(formats.reasoning, MB_REASONING_THINK); /* unchanged */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reasoning),
        cmocka_unit_test(test_prompt_opens_reasoning),
        cmocka_unit_test(test_json_calls),
        cmocka_unit_test(test_json_calls_that_are_forgiven),
        cmocka_unit_test(test_malformed_json_calls_are_text),
        cmocka_unit_test(test_without_tools_tags_are_text),
        cmocka_unit_test(test_one_call),
        cmocka_unit_test(test_calls_in_reasoning),
        cmocka_unit_test(test_xml_calls),
        cmocka_unit_test(test_xml_types),
        cmocka_unit_test(test_xml_calls_that_are_forgiven),
        cmocka_unit_test(test_malformed_xml_calls_are_text),
        cmocka_unit_test(test_tools_are_checked),
        cmocka_unit_test(test_schemas_that_refer_to_themselves),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_formats_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
