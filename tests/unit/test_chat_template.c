/* Chat templates through their own header: choice, recognition, and every way of failing. That they render as
 * jinja2 does is checked in test_chat_template_jinja.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/file.h"
#include "model/chat/chat_template.h"

static const mb_chat_options defaults = {.add_generation_prompt = 1, .enable_thinking = 1};

static void check_render(mb_chat_template which, const char *messages, const mb_chat_options *options,
                         const char *wanted) {
    char *text;
    if (mb_chat_template_render(which, messages, options, &text) != MB_OK)
        fail_msg("%s: %s", messages, mb_last_error());
    assert_string_equal(text, wanted);
    mb_free(text);
}

static void test_render(void **state) {
    (void)state;
    static const char one[] = "[{\"role\": \"user\", \"content\": \"Hi\"}]";
    static const char start[] = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    char wanted[200];
    check_render(MB_CHAT_QWEN3, one, &defaults, start);
    check_render(MB_CHAT_QWEN3_INSTRUCT, one, &defaults, start);
    snprintf(wanted, sizeof wanted, "%s<think>\n", start);
    check_render(MB_CHAT_QWEN3_THINKING, one, &defaults, wanted);
    mb_chat_options no_thinking = {.add_generation_prompt = 1};
    snprintf(wanted, sizeof wanted, "%s<think>\n\n</think>\n\n", start);
    check_render(MB_CHAT_QWEN3, one, &no_thinking, wanted);
    check_render(MB_CHAT_QWEN3_INSTRUCT, one, &no_thinking, start);
    mb_chat_options tools = {.tools_json = "[{\"b\": 1e-7, \"a\": [null, true]}]"};
    char *text;
    assert_int_equal(mb_chat_template_render(MB_CHAT_QWEN3, one, &tools, &text), MB_OK);
    assert_non_null(strstr(text, "<tools>\n{\"b\": 1e-07, \"a\": [null, true]}\n</tools>"));
    assert_null(strstr(text, "assistant"));
    mb_free(text);
}

static void test_chatml(void **state) {
    (void)state;
    check_render(MB_CHAT_CHATML,
                 "[{\"role\": \"critic\", \"content\": \"Hm\"}, {\"role\": \"user\", \"content\": \"\"}]",
                 &defaults,
                 "<|im_start|>critic\nHm<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n");
    mb_chat_options alone = {.enable_thinking = 0};
    check_render(MB_CHAT_CHATML, "[{\"role\": \"user\", \"content\": \"Hi\", \"tool_calls\": []}]", &alone,
                 "<|im_start|>user\nHi<|im_end|>\n");
    static const struct {
        const char *messages, *tools, *sentence;
    } refused[] = {
        {"[{\"role\": \"user\"}]", NULL, "messages[0].content is missing; with this chat template (ChatML)"},
        {"[{\"role\": \"user\", \"content\": null}]", NULL, "messages[0].content is missing"},
        {"[{\"role\": 3, \"content\": \"\"}]", NULL, "messages[0].role is 3; it must be a string"},
        {"[{\"content\": \"\"}]", NULL, "messages[0].role is missing; it must be a string"},
        {"[{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [{\"name\": \"f\", \"arguments\": {}}]}]",
         NULL, "messages[0].tool_calls: this chat template (ChatML) would leave them out"},
        {"[{\"role\": \"user\", \"content\": \"\"}]", "[{\"name\": \"f\"}]",
         "tools: this chat template (ChatML) would leave them out"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        mb_chat_options options = defaults;
        options.tools_json = refused[i].tools;
        char *text;
        assert_int_equal(mb_chat_template_render(MB_CHAT_CHATML, refused[i].messages, &options, &text),
                         MB_ERR_ARGUMENT);
        if (!strstr(mb_last_error(), refused[i].sentence))
            fail_msg("%s: %s", refused[i].messages, mb_last_error());
    }
}

static void test_broken_conversations(void **state) {
    (void)state;
    static const struct {
        const char *messages, *tools;
        mb_status status;
        const char *sentence;
    } cases[] = {
        {"", NULL, MB_ERR_FORMAT, "messages: not valid JSON"},
        {"[", NULL, MB_ERR_FORMAT, "messages: not valid JSON"},
        {"[{\"role\": \"user\", \"content\": \"\\ud800\"}]", NULL, MB_ERR_FORMAT, "messages: not valid JSON"},
        {"[{\"role\": \"user\", \"content\": \"a\\u0000b\"}]", NULL, MB_ERR_FORMAT,
         "messages: not valid JSON"},
        {"[{\"role\": \"user\", \"role\": \"tool\"}]", NULL, MB_ERR_FORMAT, "duplicate object key"},
        {"[]", NULL, MB_ERR_ARGUMENT, "messages must be a JSON array of at least one message"},
        {"{}", NULL, MB_ERR_ARGUMENT, "messages must be a JSON array of at least one message"},
        {"[3]", NULL, MB_ERR_ARGUMENT, "messages[0] is not an object"},
        {"[{}]", NULL, MB_ERR_ARGUMENT, "messages[0].role is missing"},
        {"[{\"role\": \"developer\"}]", NULL, MB_ERR_ARGUMENT,
         "messages[0].role is \"developer\"; it must be"},
        {"[{\"role\": 1}]", NULL, MB_ERR_ARGUMENT, "messages[0].role is 1"},
        {"[{\"role\": \"system\"}]", NULL, MB_ERR_ARGUMENT,
         "messages[0].content is missing; a system message"},
        {"[{\"role\": \"system\", \"content\": null}]", NULL, MB_ERR_ARGUMENT,
         "messages[0].content is missing"},
        {"[{\"role\": \"user\"}, {\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}]}]",
         NULL, MB_ERR_ARGUMENT, "messages[1].content is an array"},
        {"[{\"role\": \"user\", \"content\": 7}]", NULL, MB_ERR_ARGUMENT, "messages[0].content is 7"},
        {"[{\"role\": \"assistant\", \"tool_calls\": {}}]", NULL, MB_ERR_ARGUMENT,
         "tool_calls is not an array"},
        {"[{\"role\": \"assistant\", \"tool_calls\": [1]}]", NULL, MB_ERR_ARGUMENT,
         "tool_calls[0] has no function"},
        {"[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": 1}}]}]", NULL,
         MB_ERR_ARGUMENT, "tool_calls[0] has no function with a string \"name\""},
        {"[{\"role\": \"assistant\", \"tool_calls\": [{\"name\": \"f\"}]}]", NULL, MB_ERR_ARGUMENT,
         "messages[0].tool_calls[0] has no \"arguments\""},
        {"[{\"role\": \"user\", \"content\": \"\"}]", "{", MB_ERR_FORMAT, "tools: not valid JSON"},
        {"[{\"role\": \"user\", \"content\": \"\"}]", "{}", MB_ERR_ARGUMENT, "tools must be a JSON array"},
        {"[{\"role\": \"user\", \"content\": \"\"}]", "[{}, 1]", MB_ERR_ARGUMENT,
         "tools[1] is not an object"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_chat_options options = defaults;
        options.tools_json = cases[i].tools;
        char *text = (char *)&text;
        mb_status status = mb_chat_template_render(MB_CHAT_QWEN3, cases[i].messages, &options, &text);
        if (status != cases[i].status || !strstr(mb_last_error(), cases[i].sentence))
            fail_msg("%s: %s \"%s\"", cases[i].messages, mb_status_name(status), mb_last_error());
        assert_null(text);
    }
}

static void test_choice(void **state) {
    (void)state;
    mb_chat_template which;
    assert_int_equal(mb_chat_template_by_name("qwen3", &which), MB_OK);
    assert_int_equal(which, MB_CHAT_QWEN3);
    assert_int_equal(mb_chat_template_by_name("qwen3-thinking", &which), MB_OK);
    assert_int_equal(which, MB_CHAT_QWEN3_THINKING);
    assert_int_equal(mb_chat_template_by_name("chatml\x1b[1m", &which), MB_ERR_NOT_FOUND);
    assert_non_null(strstr(mb_last_error(),
                           "\"chatml?[1m\"; known are qwen3, qwen3-instruct, qwen3-thinking and chatml"));
    char *text;
    assert_int_equal(mb_chat_template_render(MB_CHAT_UNKNOWN, "[]", &defaults, &text), MB_ERR_UNSUPPORTED);
    assert_non_null(
        strstr(mb_last_error(), "not known; choose one with --chat-template NAME: qwen3, qwen3-instruct"));
    assert_int_equal(mb_chat_template_render(MB_CHAT_NONE, "[]", &defaults, &text), MB_ERR_UNSUPPORTED);
    assert_non_null(strstr(mb_last_error(), "has no chat template; choose one with --chat-template NAME"));
}

static void test_recognition(void **state) {
    (void)state;
    char *jinja;
    size_t n_bytes;
    assert_int_equal(mb_file_read("tools/demo/chat_template.jinja", 1 << 20, &jinja, &n_bytes), MB_OK);
    assert_int_equal(mb_chat_template_recognise(jinja, n_bytes), MB_CHAT_QWEN3);
    assert_int_equal(mb_chat_template_recognise(jinja, n_bytes / 2), MB_CHAT_UNKNOWN);
    assert_int_equal(mb_chat_template_recognise("", 0), MB_CHAT_UNKNOWN);
    assert_int_equal(mb_chat_template_recognise("{#", 2), MB_CHAT_UNKNOWN);
    assert_int_equal(mb_chat_template_recognise("'\\", 2), MB_CHAT_UNKNOWN);
    static const char chatml[] =
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    assert_int_equal(mb_chat_template_recognise(chatml, sizeof chatml - 1), MB_CHAT_CHATML);
    for (size_t n = 0; n < sizeof chatml - 1;
         n++) { /* in memory of its own, so that a sanitizer sees the end */
        char *part = malloc(n + 1);
        memcpy(part, chatml, n);
        assert_int_equal(mb_chat_template_recognise(part, n), MB_CHAT_UNKNOWN);
        free(part);
    }
    /* zero bytes that are printed where the text is complete: a sanitizer sees who reads on behind it */
    for (size_t n_zeros = 1; n_zeros <= 64; n_zeros *= 2) {
        char zeros[sizeof chatml + 64];
        const size_t end = (size_t)(strstr(chatml, "' }}{% endfor") - chatml);
        memcpy(zeros, chatml, end);
        memset(zeros + end, 0, n_zeros);
        memcpy(zeros + end + n_zeros, chatml + end, sizeof chatml - 1 - end);
        assert_int_equal(mb_chat_template_recognise(zeros, sizeof chatml - 1 + n_zeros), MB_CHAT_UNKNOWN);
    }
    mb_free(jinja);
}

static void test_find(void **state) {
    (void)state;
    static const struct {
        const char *config;
        mb_status status;
        int which;
        const char *sentence;
    } cases[] = {
        {"{}", MB_OK, MB_CHAT_NONE, NULL},
        {"{\"chat_template\": null}", MB_OK, MB_CHAT_NONE, NULL},
        {"{\"chat_template\": \"{{ messages }}\"}", MB_OK, MB_CHAT_UNKNOWN, NULL},
        {"{\"chat_template\": [{\"name\": \"default\", \"template\": \"x\"}]}", MB_OK, MB_CHAT_UNKNOWN, NULL},
        {"{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"x\"}]}", MB_ERR_FORMAT, 0,
         "\"default\""},
        {"{\"chat_template\": 3}", MB_ERR_FORMAT, 0, "\"chat_template\" is 3; it must be a string"},
        {"[]", MB_ERR_FORMAT, 0, "no JSON object"},
        {"{", MB_ERR_FORMAT, 0, "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_chat_template which;
        mb_status status = mb_chat_template_find("dir/tokenizer_config.json", cases[i].config,
                                                 strlen(cases[i].config), 0, &which);
        assert_int_equal(status, cases[i].status);
        if (status == MB_OK)
            assert_int_equal(which, cases[i].which);
        else
            assert_true(strstr(mb_last_error(), cases[i].sentence) && strstr(mb_last_error(), "dir/"));
    }
    static const char pointer[] = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4116\n";
    mb_chat_template which;
    assert_int_equal(mb_chat_template_find("dir/chat_template.jinja", pointer, sizeof pointer - 1, 1, &which),
                     MB_ERR_FORMAT);
    assert_non_null(strstr(mb_last_error(), "dir/chat_template.jinja: this is a Git LFS pointer"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_render),
        cmocka_unit_test(test_chatml),
        cmocka_unit_test(test_broken_conversations),
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_recognition),
        cmocka_unit_test(test_find),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
