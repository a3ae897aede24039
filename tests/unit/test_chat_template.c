/* Chat templates through their own headers: choice, how messages are prepared, and every way of failing. That
 * templates render as jinja2 does is checked in test_jinja.py and test_chat_template_jinja.py. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "model/chat/chat_template.h"

static const mb_chat_options defaults = {.add_generation_prompt = 1, .enable_thinking = 1};

static mb_chat_template *open_text(const char *jinja) {
    mb_chat_template *template;
    if (mb_chat_template_open_text("a.jinja", jinja, strlen(jinja), NULL, &template) != MB_OK)
        fail_msg("%s: %s", jinja, mb_last_error());
    return template;
}

static mb_chat_template *open_named(const char *name) {
    mb_chat_template *template;
    if (mb_chat_template_open_named("tests/golden/tokenizer", name, &template) != MB_OK)
        fail_msg("%s: %s", name, mb_last_error());
    return template;
}

static void check_render(const mb_chat_template *template, const char *messages,
                         const mb_chat_options *options, const char *wanted) {
    char *text;
    if (mb_chat_template_render(template, messages, options, &text) != MB_OK)
        fail_msg("%s: %s", messages, mb_last_error());
    assert_string_equal(text, wanted);
    mb_free(text);
}

static void expect_refused(const mb_chat_template *template, const char *messages, const char *tools,
                           mb_status wanted, const char *sentence) {
    mb_chat_options options = defaults;
    char *text = (char *)&text;
    options.tools_json = tools;
    mb_status status = mb_chat_template_render(template, messages, &options, &text);
    if (status != wanted || !strstr(mb_last_error(), sentence))
        fail_msg("%s: %s \"%s\"", messages, mb_status_name(status), mb_last_error());
    assert_null(text);
}

/* ---- Our own templates -------------------------------------------------------------------------------- */

static void test_named(void **state) {
    (void)state;
    static const char one[] = "[{\"role\": \"user\", \"content\": \"Hi\"}]";
    static const char start[] = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    static const struct {
        const char *name, *thinking, *not_thinking;
    } cases[] = {{"qwen3", "", "<think>\n\n</think>\n\n"},
                 {"qwen3-instruct", "", ""},
                 {"qwen3-thinking", "<think>\n", "<think>\n"},
                 {"chatml", "", ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_chat_template *template = open_named(cases[i].name);
        char wanted[200];
        mb_chat_options options = defaults;
        for (int thinking = -1; thinking < 2; thinking++) {
            snprintf(wanted, sizeof wanted, "%s%s", start,
                     thinking == 0 ? cases[i].not_thinking : cases[i].thinking);
            options.enable_thinking = thinking;
            check_render(template, one, &options, wanted);
        }
        mb_chat_template_close(template);
    }
    mb_chat_template *none = (mb_chat_template *)&none;
    assert_int_equal(mb_chat_template_open_named(".", "chatml\x1b[1m", &none), MB_ERR_NOT_FOUND);
    assert_null(none);
    assert_non_null(strstr(mb_last_error(), "\"chatml?[1m\" and no file either; known are qwen3, "
                                            "qwen3-instruct, qwen3-thinking and chatml"));
    mb_chat_template *file = open_named("tools/demo/chat_template.jinja");
    mb_chat_options no_thinking = {.add_generation_prompt = 1};
    check_render(file, one, &no_thinking,
                 "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n");
    mb_chat_template_close(file);
    assert_int_equal(mb_chat_template_open_named(".", "tests", &none), MB_ERR_FORMAT);
    expect_refused(NULL, one, NULL, MB_ERR_UNSUPPORTED,
                   "has no chat template; choose one with --chat-template: a file, or qwen3");
}

/* ---- Messages ----------------------------------------------------------------------------------------- */

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
         "a string holds \\u0000; take it out"},
        {"[{\"role\": \"user\", \"role\": \"tool\"}]", NULL, MB_ERR_FORMAT, "duplicate object key"},
        {"[]", NULL, MB_ERR_ARGUMENT, "messages must be a JSON array of at least one message"},
        {"{}", NULL, MB_ERR_ARGUMENT, "messages must be a JSON array of at least one message"},
        {"[3]", NULL, MB_ERR_ARGUMENT, "messages[0] is 3; it must be an object"},
        {"[{}]", NULL, MB_ERR_ARGUMENT, "messages[0].role is missing"},
        {"[{\"role\": 1}]", NULL, MB_ERR_ARGUMENT, "messages[0].role is 1; it must be a string"},
        {"[{\"role\": \"critic\", \"content\": \"Hm\"}]", NULL, MB_ERR_ARGUMENT,
         "messages[0].role is \"critic\", and the chat template leaves out messages of that role"},
        {"[{\"role\": \"system\"}]", NULL, MB_ERR_ARGUMENT, "qwen3, line 18: \"content\" is undefined"},
        {"[{\"role\": \"user\", \"content\": 7}]", NULL, MB_ERR_ARGUMENT,
         "messages[0].content is 7; it must be a string or parts of text"},
        {"[{\"role\": \"user\", \"content\": [\"a\"]}]", NULL, MB_ERR_ARGUMENT,
         "messages[0].content[0] is \"a\"; a part is"},
        {"[{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}, {\"type\": \"image_url\"}]}]",
         NULL, MB_ERR_ARGUMENT,
         "messages[0].content[1] is of type \"image_url\"; the model reads text alone"},
        {"[{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}]", NULL, MB_ERR_ARGUMENT,
         "messages[0].content[0].text is missing; it must be a string"},
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
    mb_chat_template *template = open_named("qwen3");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_refused(template, cases[i].messages, cases[i].tools, cases[i].status, cases[i].sentence);
    mb_chat_template_close(template);

    template = open_named("chatml");
    check_render(template,
                 "[{\"role\": \"critic\", \"content\": \"Hm\"}, {\"role\": \"user\", \"content\": \"\", "
                 "\"tool_calls\": []}]",
                 &defaults,
                 "<|im_start|>critic\nHm<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n");
    expect_refused(template, "[{\"role\": \"user\"}]", NULL, MB_ERR_ARGUMENT, "\"content\" is undefined");
    expect_refused(template, "[{\"role\": \"user\", \"content\": \"\"}]", "[{\"name\": \"f\"}]",
                   MB_ERR_ARGUMENT, "tools: the chat template would leave them out");
    expect_refused(template,
                   "[{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [{\"name\": \"f\", "
                   "\"arguments\": {}}]}]",
                   NULL, MB_ERR_ARGUMENT, "messages[0].tool_calls: the chat template would leave them out");
    mb_chat_template_close(template);
}

/* What a template cannot print in one form is given in another. */
static void test_preparation(void **state) {
    (void)state;
    static const char parts[] = "[{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}, "
                                "{\"type\": \"text\", \"text\": \"b\"}]}]";
    static const char string[] = "[{\"role\": \"user\", \"content\": \"a\"}]";
    static const char developer[] = "[{\"role\": \"developer\", \"content\": \"Be kind.\"}]";
    static const char call[] =
        "[{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": "
        "\"{\\\"x\\\": [1]}\"}}]}]";
    mb_chat_template *template =
        open_text("{% for m in messages %}{{ m.role + ': ' + m.content }};{% endfor %}");
    check_render(template, parts, &defaults, "user: a\nb;");
    check_render(template, developer, &defaults, "developer: Be kind.;");
    mb_chat_template_close(template);

    template =
        open_text("{% for m in messages %}{% if m.role != 'developer' %}{{ m.role }}: "
                  "{% for p in m.content %}{{ '<' + p.text + '>' }}{% endfor %}{% endif %}{% endfor %}");
    check_render(template, parts, &defaults, "user: <a><b>");
    check_render(template, string, &defaults, "user: <a>");
    check_render(template, developer, &defaults, "system: <Be kind.>");
    mb_chat_template_close(template);

    template =
        open_text("{% for c in messages[-1].tool_calls %}{% for k, v in c.function.arguments | items %}"
                  "{{ k ~ '=' ~ v }}{% endfor %}{% endfor %}{{ '' if tools }}");
    check_render(template, call, &defaults, "x=[1]");
    mb_chat_template_close(template);
    template = open_text("{% for c in messages[-1].tool_calls %}{{ c.function.arguments }}{% endfor %}");
    check_render(template, call, &defaults, "{\"x\": [1]}");
    mb_chat_template_close(template);

    template = open_text("{{ messages[0].reasoning_content }}{{ messages[0].thinking }}"
                         "{{ 'content' in messages[0] }}");
    check_render(template, "[{\"role\": \"assistant\", \"content\": null, \"reasoning\": \"r\"}]", &defaults,
                 "rrFalse");
    mb_chat_template_close(template);
}

static void test_variables(void **state) {
    (void)state;
    static const char one[] = "[{\"role\": \"user\", \"content\": \"Hi\"}]";
    mb_chat_template *template = open_text("{{ a }} {{ enable_thinking is defined }} {{ enable_thinking }}");
    mb_chat_options options = {.enable_thinking = -1, .kwargs_json = "{\"a\": {\"b\": 1}}"};
    check_render(template, one, &options, "{'b': 1} False ");
    options.enable_thinking = 0;
    options.kwargs_json = "{\"enable_thinking\": true}";
    check_render(template, one, &options, " True True");
    static const struct {
        const char *kwargs, *sentence;
        mb_status status;
    } refused[] = {{"[]", "chat_template_kwargs must be a JSON object", MB_ERR_ARGUMENT},
                   {"{\"messages\": 1}", "must not set \"messages\"", MB_ERR_ARGUMENT},
                   {"{", "chat_template_kwargs: not valid JSON", MB_ERR_FORMAT}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        char *text;
        options.kwargs_json = refused[i].kwargs;
        assert_int_equal(mb_chat_template_render(template, one, &options, &text), refused[i].status);
        assert_non_null(strstr(mb_last_error(), refused[i].sentence));
    }
    mb_chat_template_close(template);
}

/* ---- Files -------------------------------------------------------------------------------------------- */

static void test_config(void **state) {
    (void)state;
    static const struct {
        const char *config;
        mb_status status;
        const char *sentence; /* or what is rendered; NULL: there is no template */
    } cases[] = {
        {"{}", MB_OK, NULL},
        {"{\"chat_template\": null}", MB_OK, NULL},
        {"{\"chat_template\": \"{{ bos_token ~ eos_token }}\", \"bos_token\": \"<s>\", \"eos_token\": "
         "{\"content\": \"</s>\"}, \"pad_token\": null}",
         MB_OK, "<s></s>"},
        {"{\"chat_template\": [{\"name\": \"default\", \"template\": \"x\"}]}", MB_OK, "x"},
        {"{\"chat_template\": [{\"name\": \"default\", \"template\": \"x\"}, {\"name\": \"tool_use\", "
         "\"template\": \"y{{ tools }}\"}]}",
         MB_OK, "x"},
        {"{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"x\"}]}", MB_ERR_FORMAT,
         "\"default\""},
        {"{\"chat_template\": 3}", MB_ERR_FORMAT, "dir/: \"chat_template\" is 3; it must be a string"},
        {"{\"chat_template\": \"a\\n {{ b | frobnicate }}\"}", MB_ERR_UNSUPPORTED,
         "dir/, line 2, column 9: the filter \"frobnicate\" is not supported"},
        {"[]", MB_ERR_FORMAT, "no JSON object"},
        {"{", MB_ERR_FORMAT, "not valid JSON"},
    };
    static const char one[] = "[{\"role\": \"user\", \"content\": \"Hi\"}]";
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_chat_template *template;
        mb_status status = mb_chat_template_open_text("dir/", NULL, 0, cases[i].config, &template);
        assert_int_equal(status, cases[i].status);
        if (status != MB_OK && !strstr(mb_last_error(), cases[i].sentence))
            fail_msg("%s: %s", cases[i].config, mb_last_error());
        assert_int_equal(template != NULL, status == MB_OK && cases[i].sentence);
        if (template)
            check_render(template, one, &defaults, cases[i].sentence);
        if (template && template->with_tools.parsed) {
            mb_chat_options tools = {.tools_json = "[{\"f\": 1}]"};
            check_render(template, one, &tools, "y[{'f': 1}]");
        }
        mb_chat_template_close(template);
    }
}

static void write_file(const char *directory, const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* chat_template.jinja goes before the config; a template for tools may be in a file of its own. */
static void test_directory(void **state) {
    (void)state;
    static const char one[] = "[{\"role\": \"user\", \"content\": \"Hi\"}]";
    const mb_chat_options with_tools = {.tools_json = "[{\"f\": 1}]"};
    char directory[] = "/tmp/moebius-template-XXXXXX", path[256];
    mb_chat_template *template;
    assert_non_null(mkdtemp(directory));
    assert_int_equal(mb_chat_template_open(directory, &template), MB_OK);
    assert_null(template);
    write_file(directory, "tokenizer_config.json", "{\"bos_token\": \"<s>\", \"chat_template\": \"config\"}");
    assert_int_equal(mb_chat_template_open(directory, &template), MB_OK);
    check_render(template, one, &defaults, "config");
    mb_chat_template_close(template);
    write_file(directory, "chat_template.jinja", "{{ bos_token }}file\n");
    snprintf(path, sizeof path, "%s/additional_chat_templates", directory);
    assert_int_equal(mkdir(path, 0700), 0);
    write_file(directory, "additional_chat_templates/tool_use.jinja", "{{ tools }}");
    assert_int_equal(mb_chat_template_open(directory, &template), MB_OK);
    check_render(template, one, &defaults, "<s>file");
    check_render(template, one, &with_tools, "[{'f': 1}]");
    assert_string_equal(template->source, "{{ bos_token }}file\n");
    mb_chat_template_close(template);
    static const char pointer[] = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4116\n";
    write_file(directory, "chat_template.jinja", pointer);
    assert_int_equal(mb_chat_template_open(directory, &template), MB_ERR_FORMAT);
    assert_non_null(strstr(mb_last_error(), "chat_template.jinja: this is a Git LFS pointer"));
    assert_null(template);
    static const char *const names[] = {"additional_chat_templates/tool_use.jinja",
                                        "additional_chat_templates", "chat_template.jinja",
                                        "tokenizer_config.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        assert_int_equal(remove(path), 0);
    }
    assert_int_equal(rmdir(directory), 0);
}

/* ---- Threads ------------------------------------------------------------------------------------------ */

static void *render_often(void *template) {
    static const char messages[] = "[{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", "
                                   "\"content\": \"<think>\\na\\n</think>\\n\\nb\"}]";
    size_t n_wrong = 0;
    for (int i = 0; i < 200; i++) {
        char *text;
        if (mb_chat_template_render(template, messages, &defaults, &text) != MB_OK ||
            strcmp(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\na\n</think>\n\n"
                         "b<|im_end|>\n<|im_start|>assistant\n") != 0)
            n_wrong++;
        mb_free(text);
    }
    return (void *)n_wrong;
}

static void test_threads(void **state) {
    (void)state;
    mb_chat_template *template = open_named("qwen3");
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, render_often, template), 0);
    for (int i = 0; i < 4; i++) {
        void *n_wrong;
        pthread_join(threads[i], &n_wrong);
        assert_null(n_wrong);
    }
    mb_chat_template_close(template);
}

/* ---- Hostile templates -------------------------------------------------------------------------------- */

/* Each ends with a sentence. The time is the thread's own, the bar ten times what a slow machine needs;
 * under a sanitizer there is none. */
static void test_hostile(void **state) {
    (void)state;
    static const char *const hostile[] = {
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ ('x' * 100000) * 100000 }}",
        "{% set ns = namespace(s='x') %}{% for a in range(99999) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for a in range(99999) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for a in range(99999) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"
        "{{ ns.s }}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ range(99999) | map('string') | map('tojson') | join(',') * 99999 }}",
        "{{ range(99999) | list | tojson * 1000 }}",
        "{% for a in range(9999) %}{{ range(99999) | sort(reverse=true) | first }}{% endfor %}",
        "{% set s = 'ab' * 500000 %}{% for a in range(99999) %}{{ s.replace('a', 'bbbb') | length }}{% endfor %}",
        "{% set s = 'a' * 500000 %}{% for a in range(99999) %}{{ s.find('ab') }}{% endfor %}",
        "{% set s = 'a' * 500000 %}{% for a in range(99999) %}{{ s.strip('b' * 1000) | length }}{% endfor %}",
        "{% set s = 'é' * 300000 %}{% for a in range(99999) %}{{ s[299999] }}{% endfor %}",
        "{% set s = 'é' * 300000 %}{{ s[::-1] }}",
        "{% set s = 'a' * 300000 %}{% for a in range(99999) %}{{ s.split('a') | length }}{% endfor %}",
        "{% set s = 'a b ' * 99999 %}{% for a in range(99999) %}{{ s.split() | length }}{% endfor %}",
        "{% set s = ' ' * 999999 %}{% for a in range(99999) %}{{ s | trim }}{% endfor %}",
        "{% set s = 'a' * 999999 %}{% for a in range(99999) %}{{ s.rfind('b') }}{% endfor %}",
        "{% set s = 'a' * 999999 %}{% for a in range(99999) %}{{ s.upper().title() | length }}{% endfor %}",
        "{% set s = 'a' * 99999 %}{% for a in range(99999) %}{{ s.isalpha() and s.count('a') }}{% endfor %}",
        "{% set s = 'a' * 999999 %}{% for a in range(99999) %}{{ 'b' in s }}{% endfor %}",
        "{% set s = 'a' * 999999 %}{% for a in range(99999) %}{{ s == s + '' }}{% endfor %}",
        "{% set s = ['a'] * 9999 %}{% for a in range(99999) %}{{ 'b' in s }}{% endfor %}",
        "{% set d = dict(range(9999) | map('string') | map('list') | list) %}",
        "{{ range(9999) | unique | list | length }}{{ range(99999) | unique | list | length }}",
        "{{ range(99999) | map('string') | list | string | length * 9999999 }}"
        "{% for a in range(99999) %}{{ range(9999) | join | length }}{% endfor %}",
        "{{ 'a' * 99999999999 * 99999999999 }}",
        "{% for a in range(99999) %}{{ '%s' | indent(999999) }}{% endfor %}",
        "{% for a in range(99999) %}{{ 1.5 | round(300) }}{{ 2 ** 62 }}{{ 1e300 ** 1 }}{% endfor %}",
    };
    static const char one[] = "[{\"role\": \"user\", \"content\": \"Hi\"}]";
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        mb_chat_template *template = open_text(hostile[i]);
        struct timespec from, to;
        char *text;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
        mb_status status = mb_chat_template_render(template, one, &defaults, &text);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
        double ms = (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6;
        if (getenv("MOEBIUS_SHOW_TIMES"))
            print_message("%7.1f ms  %s: %s\n", ms, hostile[i], status ? mb_last_error() : "rendered");
        if (status != MB_ERR_ARGUMENT)
            fail_msg("%s: %s", hostile[i], status ? mb_last_error() : "it was rendered");
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
        if (ms > 1000)
            fail_msg("%s: %.0f ms", hostile[i], ms);
#endif
        mb_chat_template_close(template);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_named),       cmocka_unit_test(test_broken_conversations),
        cmocka_unit_test(test_preparation), cmocka_unit_test(test_variables),
        cmocka_unit_test(test_config),      cmocka_unit_test(test_directory),
        cmocka_unit_test(test_threads),     cmocka_unit_test(test_hostile),
    };
#if defined(__SANITIZE_THREAD__)
    cmocka_set_test_filter("test_threads"); /* the other tests have one thread */
#endif
    return cmocka_run_group_tests(tests, NULL, NULL);
}
