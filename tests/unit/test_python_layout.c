/*
 * python/moebius/_engine_library.py repeats these structs field by field. When one changes here and not
 * there, Python programs read and write beyond its memory. So whoever changes a struct changes both, and
 * then the size here; tests/python/test_python_structs.py compares every field.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "moebius/answer.h"
#include "moebius/moebius.h"

static void sizes_are_those_that_python_has(void **unused) {
    static const struct {
        const char *name;
        size_t size, python;
    } structs[] = {
        {"mb_model_options", sizeof(mb_model_options), 64},     {"mb_model_info", sizeof(mb_model_info), 184},
        {"mb_chat_options", sizeof(mb_chat_options), 24},       {"mb_sampling", sizeof(mb_sampling), 56},
        {"mb_session_options", sizeof(mb_session_options), 56}, {"mb_request", sizeof(mb_request), 176},
        {"mb_answer_formats", sizeof(mb_answer_formats), 12},   {"mb_usage", sizeof(mb_usage), 32},
        {"mb_session_stats", sizeof(mb_session_stats), 72},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof structs / sizeof *structs; i++) {
        if (structs[i].size != structs[i].python)
            fprintf(stderr, "%s has %zu bytes: change python/moebius/_engine_library.py too\n",
                    structs[i].name, structs[i].size);
        assert_int_equal(structs[i].size, structs[i].python);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(sizes_are_those_that_python_has)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
