/* JSON as Python writes it, and jansson shared with the program around us. */
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "model/json.h"
#include "model/json_values.h"
#include "moebius/moebius.h"

static json_t *parse(const char *text) {
    json_t *root;
    if (mb_json_parse("text", text, strlen(text), &root) != MB_OK)
        fail_msg("%s\n%s", text, mb_last_error());
    return root;
}

/* ---- Numbers ------------------------------------------------------------------------------------------ */

static void check_dump(const char *text, const char *wanted) {
    json_t *root = parse(text);
    char *dumped;
    assert_int_equal(mb_json_dump_python(root, &dumped), MB_OK);
    assert_string_equal(dumped, wanted);
    mb_free(dumped);
    mb_json_free(root);
}

static void test_numbers_keep_their_digits(void **state) {
    (void)state;
    static const char *const numbers[] = {
        "0",
        "-1",
        "9223372036854775807",
        "-9223372036854775808", /* the last that jansson holds */
        "9223372036854775808",
        "-9223372036854775809",
        "18446744073709551615",
        "-18446744073709551616",
        "1000000000000000019884624838656", /* what Python makes of int(1e30) */
        "-123456789012345678901234567890123456789012345678901234567890",
        "NaN",
        "Infinity",
        "-Infinity"};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char text[512], wanted[512];
        check_dump(numbers[i], numbers[i]);
        snprintf(text, sizeof text, " [%s,{\"a\":%s , \"NaN\":\"%s\"},%s] ", numbers[i], numbers[i],
                 numbers[i], numbers[i]);
        snprintf(wanted, sizeof wanted, "[%s, {\"a\": %s, \"NaN\": \"%s\"}, %s]", numbers[i], numbers[i],
                 numbers[i], numbers[i]);
        check_dump(text, wanted);
    }
    check_dump("[1e30, 1e-06]", "[1e+30, 1e-06]");
    check_dump("{\"\": \"1\", \"b\": {\"\": \"\"}}", "{\"\": \"1\", \"b\": {\"\": \"\"}}");
}

static void test_large_numbers_are_numbers(void **state) {
    (void)state;
    json_t *root = parse("{\"big\": 1000000000000000019884624838656, \"nan\": NaN, \"object\": {\"\": \"1\"},"
                         " \"array\": [], \"small\": 7}");
    const json_t *big = json_object_get(root, "big"), *nan_value = json_object_get(root, "nan");
    assert_string_equal(mb_json_number(big), "1000000000000000019884624838656");
    assert_string_equal(mb_json_number(nan_value), "NaN");
    assert_false(mb_json_is_object(big));
    assert_true(mb_json_is_object(json_object_get(root, "object")));
    static const char *const others[] = {"object", "array", "small", "absent"};
    for (int i = 0; i < 4; i++)
        assert_null(mb_json_number(json_object_get(root, others[i])));

    double value = 0;
    assert_int_equal(mb_json_read_double("f", root, "big", 0, 1e31, &value), MB_OK);
    assert_true(value == 1e30);
    assert_int_equal(mb_json_read_double("f", root, "big", 0, 1, &value), MB_ERR_CONFIG);
    assert_string_equal(mb_last_error(), "f: \"big\" is 1000000000000000019884624838656; it must be a number "
                                         "from 0 to 1");
    assert_int_equal(mb_json_read_double("f", root, "nan", -1e300, 1e300, &value), MB_ERR_CONFIG);
    assert_non_null(strstr(mb_last_error(), "\"nan\" is NaN"));
    int32_t integer;
    assert_int_equal(mb_json_read_int("f", root, "big", 0, INT32_MAX, &integer), MB_ERR_CONFIG);
    assert_non_null(
        strstr(mb_last_error(), "\"big\" is 1000000000000000019884624838656; it must be an integer"));
    char shown[16];
    assert_string_equal(mb_json_describe(shown, sizeof shown, big), "100000000000...");
    mb_json_free(root);
}

static void test_what_is_no_number(void **state) {
    (void)state;
    static const char *const wrong[] = {"012345678901234567890",
                                        "-012345678901234567890",
                                        "+12345678901234567890",
                                        "12345678901234567890.",
                                        "1234567890123456789O1",
                                        "nan",
                                        "NaNs",
                                        "-NaN",
                                        "+Infinity",
                                        "Inf",
                                        "--Infinity",
                                        "{NaN: 1}",
                                        "{12345678901234567890: 1}",
                                        "[NaN NaN]",
                                        "\"a\" NaN",
                                        "1e999"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        json_t *root = (json_t *)1;
        if (mb_json_parse("text", wrong[i], strlen(wrong[i]), &root) != MB_ERR_FORMAT)
            fail_msg("%s was accepted", wrong[i]);
        assert_null(root);
        assert_non_null(strstr(mb_last_error(), "text: "));
    }
}

/* A string with NUL in it could pass for a number, and would be cut short by whoever reads it as C text. */
static void test_nul_is_refused(void **state) {
    (void)state;
    static const char *const wrong[] = {"\"\\u0000\"", "{\"\": \"\\u00001\"}", "[\"a\\\\\\u0000\"]",
                                        "{\"a\\u0000\": 1}"};
    json_t *root;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(mb_json_parse("text", wrong[i], strlen(wrong[i]), &root), MB_ERR_FORMAT);
        assert_non_null(strstr(mb_last_error(), "\\u0000"));
    }
    check_dump("\"\\\\u0000 \\u0001\"",
               "\"\\\\u0000 \\u0001\""); /* a backslash, and another control character */
}

/* ---- Keys that are there twice ------------------------------------------------------------------------ */

static void test_duplicate_keys(void **state) {
    (void)state;
    static const char text[] = "{\"a\": 1, \"b\": {\"c\": 2, \"c\": NaN},\n \"a\": 12345678901234567890}";
    json_t *root;
    assert_int_equal(mb_json_parse("text", text, strlen(text), &root), MB_ERR_FORMAT);
    assert_non_null(strstr(mb_last_error(), "duplicate object key"));
    assert_int_equal(mb_json_parse_config("text", text, strlen(text), &root), MB_OK);
    char *dumped;
    assert_int_equal(mb_json_dump_python(root, &dumped), MB_OK);
    assert_string_equal(dumped, "{\"a\": 12345678901234567890, \"b\": {\"c\": NaN}}");
    mb_free(dumped);
    mb_json_free(root);
    static const char broken[] = "{\"a\": 1, \"a\": 2";
    assert_int_equal(mb_json_parse_config("text", broken, strlen(broken), &root), MB_ERR_FORMAT);
    assert_null(root);
}

static void test_lfs_pointer(void **state) {
    (void)state;
    static const char text[] = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    json_t *root;
    assert_int_equal(mb_json_parse("DIR/tokenizer.json", text, strlen(text), &root), MB_ERR_FORMAT);
    assert_non_null(strstr(mb_last_error(), "DIR/tokenizer.json: this is a Git LFS pointer"));
    assert_non_null(strstr(mb_last_error(), "git lfs pull"));
}

/* ---- jansson belongs to the program too --------------------------------------------------------------- */

enum { MARK = 0x6d6f6562, HEADER = 16 };

static atomic_int n_program_blocks;

static void *program_allocate(size_t n_bytes) {
    char *block = malloc(n_bytes + HEADER);
    if (!block)
        abort();
    const uint32_t mark = MARK;
    memcpy(block, &mark, sizeof mark);
    atomic_fetch_add(&n_program_blocks, 1);
    return block + HEADER;
}

/* Ends the program when the block is not one of program_allocate's. */
static void program_release(void *pointer) {
    if (!pointer)
        return;
    uint32_t mark;
    memcpy(&mark, (char *)pointer - HEADER, sizeof mark);
    if (mark != MARK)
        abort();
    memset((char *)pointer - HEADER, 0, sizeof mark);
    free((char *)pointer - HEADER);
    atomic_fetch_sub(&n_program_blocks, 1);
}

static void *count_and_allocate(void *user, void *pointer, size_t n_bytes) {
    atomic_fetch_add((atomic_int *)user, 1);
    if (n_bytes > 0)
        return realloc(pointer, n_bytes);
    free(pointer);
    return NULL;
}

static void check_program_functions(void) {
    json_malloc_t allocate;
    json_free_t release;
    json_get_alloc_funcs(&allocate, &release);
    assert_true(allocate == program_allocate && release == program_release);
}

/* The program's jansson functions are back after each call, and ours were used inside of it. */
static void test_the_program_keeps_its_functions(void **state) {
    (void)state;
    atomic_int n_ours = 0;
    mb_set_allocator(count_and_allocate, &n_ours);
    json_set_alloc_funcs(program_allocate, program_release);
    json_t *own = json_pack("{s:i}", "a", 1);
    int n_blocks = atomic_load(&n_program_blocks);
    json_t *root = parse("{\"a\": [1, 2, 3], \"b\": 12345678901234567890}");
    check_program_functions();
    assert_true(atomic_load(&n_ours) > 5);
    assert_int_equal(atomic_load(&n_program_blocks), n_blocks);
    mb_json_free(root);
    assert_int_equal(mb_json_parse("text", "[1, ", 4, &root), MB_ERR_FORMAT);
    check_program_functions();
    json_decref(own);
    assert_int_equal(atomic_load(&n_program_blocks), 0);
    json_set_alloc_funcs(malloc, free);
    mb_set_allocator(NULL, NULL);
}

static void *use_jansson(void *stop) {
    while (!atomic_load((atomic_int *)stop)) {
        json_t *value = json_loads("{\"x\": [1, 2, {\"y\": \"text\"}]}", 0, NULL);
        char *text = json_dumps(value, 0);
        program_release(text);
        json_decref(value);
    }
    return NULL;
}

/* Another thread of the program uses jansson all the while: each block goes back to where it came from. */
static void test_other_threads_keep_their_functions(void **state) {
    (void)state;
    json_set_alloc_funcs(program_allocate, program_release);
    atomic_int stop = 0;
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, use_jansson, &stop), 0);
    for (int i = 0; i < 20000; i++)
        mb_json_free(parse("{\"a\": [1, 2, {\"b\": \"text\"}], \"c\": NaN}"));
    atomic_store(&stop, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    check_program_functions();
    assert_int_equal(atomic_load(&n_program_blocks), 0);
    json_set_alloc_funcs(malloc, free);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers_keep_their_digits),
        cmocka_unit_test(test_large_numbers_are_numbers),
        cmocka_unit_test(test_what_is_no_number),
        cmocka_unit_test(test_nul_is_refused),
        cmocka_unit_test(test_duplicate_keys),
        cmocka_unit_test(test_lfs_pointer),
        cmocka_unit_test(test_the_program_keeps_its_functions),
        cmocka_unit_test(test_other_threads_keep_their_functions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
