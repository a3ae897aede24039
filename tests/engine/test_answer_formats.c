/* How a model's answers are written, found out from its chat template and tokenizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "moebius/answer.h"
#include "support/tiny_checkpoint.h"

/* chat_template: as in mb_model_options. */
static mb_answer_formats formats_of(const char *directory, const char *chat_template) {
    const mb_model_options options = {.load = MB_LOAD_TEXT, .chat_template = chat_template};
    mb_answer_formats formats = {MB_REASONING_THINK, MB_TOOLS_XML, 1};
    mb_model *model;
    assert_int_equal(mb_model_open(directory, &options, &model), MB_OK);
    assert_int_equal(mb_answer_formats_of(model, &formats), MB_OK);
    mb_model_close(model);
    return formats;
}

static void test_demo_model(void **state) {
    (void)state;
    mb_answer_formats formats = formats_of("models/demo", NULL);
    assert_int_equal(formats.reasoning, MB_REASONING_THINK);
    assert_int_equal(formats.tools, MB_TOOLS_JSON);
    assert_int_equal(formats.tags_are_special, 0);
}

static void test_known_templates(void **state) {
    (void)state;
    static const struct {
        const char *name;
        mb_reasoning_format reasoning;
        mb_tool_format tools;
    } wanted[] = {{"qwen3", MB_REASONING_THINK, MB_TOOLS_JSON},
                  {"qwen3-thinking", MB_REASONING_THINK, MB_TOOLS_JSON},
                  {"qwen3-instruct", MB_REASONING_NONE, MB_TOOLS_JSON},
                  {"chatml", MB_REASONING_NONE, MB_TOOLS_NONE}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        mb_answer_formats formats = formats_of("models/demo", wanted[i].name);
        assert_int_equal(formats.reasoning, wanted[i].reasoning);
        assert_int_equal(formats.tools, wanted[i].tools);
    }
}

static void test_template_of_qwen3_coder(void **state) {
    (void)state;
    char directory[TINY_PATH], path[TINY_PATH + 32];
    tiny_directory_make(directory);
    tiny_text_write(
        directory, "coder.jinja",
        "{% for m in messages %}{{ m.role ~ (m.content or '') }}{% for call in m.tool_calls or [] "
        "%}<tool_call>\n<function={{ call.function.name }}>\n{% for key, value in "
        "call.function.arguments.items() %}<parameter={{ key }}>\n{{ value "
        "}}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}{% endfor %}{{ tools "
        "}}{% if add_generation_prompt %}assistant{% endif %}");
    snprintf(path, sizeof path, "%s/coder.jinja", directory);
    mb_answer_formats formats = formats_of("models/demo", path);
    tiny_directory_remove(directory);
    assert_int_equal(formats.reasoning, MB_REASONING_NONE);
    assert_int_equal(formats.tools, MB_TOOLS_XML);
}

static void test_model_without_tokenizer(void **state) {
    (void)state;
    mb_answer_formats formats = formats_of("tests/golden/plain_f32", NULL);
    assert_int_equal(formats.reasoning, MB_REASONING_NONE);
    assert_int_equal(formats.tools, MB_TOOLS_NONE);
    assert_int_equal(formats.tags_are_special, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_demo_model),
        cmocka_unit_test(test_known_templates),
        cmocka_unit_test(test_template_of_qwen3_coder),
        cmocka_unit_test(test_model_without_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
