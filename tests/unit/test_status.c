/* Status codes and error sentences: names, context, limits, one sentence per thread. */
#include "base/status.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void test_every_code_has_name_and_sentence(void **state) {
    (void)state;
    for (int code = MB_OK; code <= MB_ERR_INTERNAL; code++) {
        assert_true(strncmp(mb_status_name((mb_status)code), "MB_", 3) == 0);
        assert_string_not_equal(mb_status_name((mb_status)code), "MB_ERR_UNKNOWN");
        assert_true(strlen(mb_status_text((mb_status)code)) > 5);
    }
    assert_string_equal(mb_status_name(MB_ERR_FORMAT), "MB_ERR_FORMAT");
    assert_string_equal(mb_status_name((mb_status)999), "MB_ERR_UNKNOWN");
    assert_non_null(mb_status_text((mb_status)-1));
}

static void test_sentence_and_context(void **state) {
    (void)state;
    assert_int_equal(mb_fail(MB_ERR_IO, "%s: cannot read %d", "file", 7), MB_ERR_IO);
    assert_string_equal(mb_last_error(), "file: cannot read 7");
    assert_int_equal(mb_fail_context(MB_ERR_CONFIG, "model %s", "x"), MB_ERR_CONFIG);
    assert_string_equal(mb_last_error(), "model x: file: cannot read 7");
    mb_fail(MB_ERR_IO, "again: %s", mb_last_error()); /* the sentence may be its own argument */
    assert_string_equal(mb_last_error(), "again: model x: file: cannot read 7");
}

static void test_long_sentences_are_cut(void **state) {
    (void)state;
    char text[5000];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = '\0';
    mb_fail(MB_ERR_IO, "%s", text);
    size_t n = strlen(mb_last_error());
    assert_in_range(n, 500, sizeof text - 2);
    mb_fail_context(MB_ERR_IO, "front");
    assert_int_equal(strlen(mb_last_error()), n);
    assert_memory_equal(mb_last_error(), "front: aaa", 10);
    mb_fail_context(MB_ERR_IO, "%s", text);
    assert_int_equal(strlen(mb_last_error()), n);
}

static mb_status fails_when(int number) {
    MB_TRY(number == 1 ? mb_fail(MB_ERR_STATE, "one") : MB_OK);
    MB_TRY(number == 2 ? mb_fail(MB_ERR_NUMERIC, "two") : MB_OK);
    return MB_OK;
}

static void test_try_returns_the_first_failure(void **state) {
    (void)state;
    assert_int_equal(fails_when(0), MB_OK);
    assert_int_equal(fails_when(1), MB_ERR_STATE);
    assert_int_equal(fails_when(2), MB_ERR_NUMERIC);
    assert_string_equal(mb_last_error(), "two");
}

static void *thread_body(void *argument) {
    if (mb_last_error()[0] != '\0')
        return "a new thread begins with another thread's sentence";
    for (int i = 0; i < 1000; i++) {
        char expected[32] = {(char)('a' + (intptr_t)argument)};
        mb_fail(MB_ERR_IO, "%s", expected);
        if (strcmp(mb_last_error(), expected) != 0)
            return "threads share a sentence";
    }
    return NULL;
}

static void test_threads_have_their_own(void **state) {
    (void)state;
    mb_fail(MB_ERR_IO, "main");
    pthread_t threads[4];
    for (intptr_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, thread_body, (void *)i), 0);
    for (int i = 0; i < 4; i++) {
        void *problem;
        pthread_join(threads[i], &problem);
        if (problem)
            fail_msg("%s", (char *)problem);
    }
    assert_string_equal(mb_last_error(), "main");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code_has_name_and_sentence),
        cmocka_unit_test(test_sentence_and_context),
        cmocka_unit_test(test_long_sentences_are_cut),
        cmocka_unit_test(test_try_returns_the_first_failure),
        cmocka_unit_test(test_threads_have_their_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
