/* How a model's answers are written, found out from its chat template and tokenizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "moebius/answer.h"

static mb_answer_formats formats_of(const char *directory) {
    const mb_model_options options = {.load = MB_LOAD_TEXT};
    mb_answer_formats formats = {MB_REASONING_THINK, MB_TOOLS_XML, 1};
    mb_model *model;
    assert_int_equal(mb_model_open(directory, &options, &model), MB_OK);
    assert_int_equal(mb_answer_formats_of(model, &formats), MB_OK);
    mb_model_close(model);
    return formats;
}

static void test_demo_model(void **state) {
    (void)state;
    mb_answer_formats formats = formats_of("models/demo");
    assert_int_equal(formats.reasoning, MB_REASONING_THINK);
    assert_int_equal(formats.tools, MB_TOOLS_JSON);
    assert_int_equal(formats.tags_are_special, 0);
}

static void test_model_without_tokenizer(void **state) {
    (void)state;
    mb_answer_formats formats = formats_of("tests/golden/plain_f32");
    assert_int_equal(formats.reasoning, MB_REASONING_NONE);
    assert_int_equal(formats.tools, MB_TOOLS_NONE);
    assert_int_equal(formats.tags_are_special, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_demo_model),
        cmocka_unit_test(test_model_without_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
