/* UTF-8: validation, and the stream that hands out whole characters only. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/utf8.h"

#define R "\xEF\xBF\xBD" /* U+FFFD */

/* Bytes, and what Python's bytes.decode("utf-8", "replace") makes of them. */
static const struct {
    const char *bytes, *text;
} cases[] = {
    {"", ""},
    {"plain", "plain"},
    {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"},
    {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"},
    {"\x80", R},
    {"\xFF\xFE", R R},
    {"\xC3", R},
    {"\xC3(", R "("},
    {"\xC0\x80", R R},
    {"\xC1\xBF", R R},
    {"\xE0\x80\x80", R R R},
    {"\xE2\x82", R},
    {"\xE2\x82x", R "x"},
    {"\xE2\xE2\x82\xAC", R "\xE2\x82\xAC"},
    {"\xED\xA0\x80", R R R},
    {"\xED\x9F\xBF", "\xED\x9F\xBF"},
    {"\xF0\x9F\x98", R},
    {"\xF0\x9F\x98z", R "z"},
    {"\xF0\x8F\xBF\xBF", R R R R},
    {"\xF4\x90\x80\x80", R R R R},
    {"\xF5\x80\x80\x80", R R R R},
    /* the example of the Unicode standard, section 3.9 */
    {"a\xF1\x80\x80\xE1\x80\xC2"
     "b\x80"
     "c\x80\xBF"
     "d",
     "a" R R R "b" R "c" R R "d"},
};

/* Text that comes out when the bytes go in `step` at a time; every part handed out must be well-formed by
 * itself. */
static size_t stream_by(const char *bytes, size_t n_bytes, size_t step, char *out) {
    mb_utf8_stream stream = {.n_held = 0};
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i += step) {
        size_t part = n_bytes - i < step ? n_bytes - i : step;
        char *copy = malloc(part),
             *piece = malloc(3 * (part + 4)); /* of exactly the promised sizes, for the sanitizer */
        memcpy(copy, bytes + i, part);
        size_t n_piece = mb_utf8_stream_push(&stream, copy, part, piece);
        assert_int_equal(mb_utf8_valid_prefix(piece, n_piece), n_piece);
        memcpy(out + n, piece, n_piece);
        n += n_piece;
        free(copy);
        free(piece);
    }
    n += mb_utf8_stream_finish(&stream, out + n);
    assert_int_equal(stream.n_held, 0);
    return n;
}

static void test_cases(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t step = 1; step <= 5; step++) {
            char out[128];
            size_t n = stream_by(cases[i].bytes, strlen(cases[i].bytes), step, out);
            out[n] = '\0';
            assert_string_equal(out, cases[i].text);
        }
}

/* Random bytes, biased towards nearly right sequences: any cutting gives the same text. */
static void test_any_cutting(void **state) {
    (void)state;
    static const char likely[] = "a\x80\xBF\xC2\xE0\xA0\xE2\x82\xAC\xED\x9F\xF0\x90\x9F\xF4\x8F\xFF";
    srand(1);
    for (int round = 0; round < 5000; round++) {
        char bytes[40], whole[400], parts[400];
        size_t n_bytes = (size_t)rand() % sizeof bytes;
        for (size_t i = 0; i < n_bytes; i++)
            bytes[i] = rand() % 8 ? likely[(size_t)rand() % (sizeof likely - 1)] : (char)(rand() & 0xFF);
        size_t n = stream_by(bytes, n_bytes, sizeof bytes, whole);
        for (size_t step = 1; step < 5; step++) {
            assert_int_equal(stream_by(bytes, n_bytes, step, parts), n);
            assert_memory_equal(parts, whole, n);
        }
    }
}

static void test_every_character(void **state) {
    (void)state;
    for (uint32_t character = 0; character < 0x120000; character++) {
        char bytes[4], out[64];
        if (character >= 0x110000) { /* what would be beyond Unicode is not UTF-8 */
            mb_utf8_encode(character, bytes);
            assert_int_equal(mb_utf8_valid_prefix(bytes, 4), 0);
            continue;
        }
        mb_utf8_encode(character, bytes);
        size_t n = mb_utf8_length(bytes[0]), length;
        if (character >= 0xD800 && character < 0xE000) {
            assert_int_equal(mb_utf8_valid_prefix(bytes, n), 0);
            continue;
        }
        assert_int_equal(mb_utf8_valid_prefix(bytes, n), n);
        assert_int_equal(mb_utf8_valid_prefix(bytes, n - 1), 0);
        assert_int_equal(mb_utf8_decode(bytes, &length), character);
        assert_int_equal(length, n);
        assert_int_equal(stream_by(bytes, n, 1, out), n);
        assert_memory_equal(out, bytes, n);
    }
}

static void test_offset_of_the_first_wrong_byte(void **state) {
    (void)state;
    char text[64];
    for (size_t wrong = 0; wrong < sizeof text; wrong++) {
        memset(text, 'x', sizeof text);
        text[wrong] = '\xFE';
        assert_int_equal(mb_utf8_valid_prefix(text, sizeof text), wrong);
        assert_int_equal(mb_utf8_is_ascii(text, sizeof text), 0);
        assert_int_equal(mb_utf8_is_ascii(text, wrong), 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_any_cutting),
        cmocka_unit_test(test_every_character),
        cmocka_unit_test(test_offset_of_the_first_wrong_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
