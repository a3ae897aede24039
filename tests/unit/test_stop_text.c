/* Stop texts: what is handed out equals the answer cut before the first of them, whatever the pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "moebius/moebius.h"
#include "moebius/stop_text.h"

/* The meaning, as plainly as possible: the first end of a text, of several the longest. */
static size_t expected_cut(const char *answer, const char *const *stops, size_t n_stops, int *which) {
    size_t length = strlen(answer);
    *which = -1;
    for (size_t end = 1; end <= length; end++) {
        size_t longest = 0;
        for (size_t i = 0; i < n_stops; i++) {
            size_t n = strlen(stops[i]);
            if (n > longest && n <= end && memcmp(answer + end - n, stops[i], n) == 0) {
                longest = n;
                *which = (int)i;
            }
        }
        if (longest > 0)
            return end - longest;
    }
    return length;
}

static unsigned draw(unsigned *state, unsigned below) {
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 16) % below;
}

static void append(char *out, size_t *n_out, const char *text, size_t n_bytes) {
    assert_true((text == NULL) == (n_bytes == 0));
    if (n_bytes > 0)
        memcpy(out + *n_out, text, n_bytes);
    *n_out += n_bytes;
}

/* Feeds `answer` in random pieces; the matcher is used again by the next call. */
static void check(mb_stop_text *matcher, const char *const *stops, size_t n_stops, const char *answer,
                  unsigned *state) {
    char out[512];
    size_t n_out = 0, length = strlen(answer), n_bytes;
    const char *text;
    int which;
    for (size_t at = 0; at < length;) {
        size_t n = 1 + draw(state, 5);
        n = n < length - at ? n : length - at;
        char *piece = malloc(n); /* of exactly this size, for the sanitizer */
        memcpy(piece, answer + at, n);
        assert_int_equal(mb_stop_text_push(matcher, piece, n, &text, &n_bytes), MB_OK);
        append(out, &n_out, text, n_bytes);
        free(piece);
        at += n;
        /* Only what may become a stop text is withheld. */
        size_t seen = expected_cut(answer, stops, n_stops, &which), tail = 0;
        if (seen >= at)
            for (size_t i = 0; i < n_stops; i++)
                for (size_t k = 1; k <= strlen(stops[i]) && k <= at; k++)
                    if (k > tail && memcmp(answer + at - k, stops[i], k) == 0)
                        tail = k;
        if (seen >= at)
            assert_int_equal(n_out, at - tail);
    }
    size_t cut = expected_cut(answer, stops, n_stops, &which);
    assert_int_equal(mb_stop_text_found(matcher), which);
    mb_stop_text_finish(matcher, &text, &n_bytes);
    append(out, &n_out, text, n_bytes);
    assert_int_equal(n_out, cut);
    assert_memory_equal(out, answer, cut);
    assert_int_equal(mb_stop_text_found(matcher), -1);
}

static void finds_every_stop_across_any_border(void **unused) {
    (void)unused;
    unsigned state = 1;
    for (int round = 0; round < 3000; round++) {
        char texts[4][8], answer[64];
        const char *stops[4];
        mb_stop_text *matcher;
        size_t n_stops = draw(&state, 5);
        for (size_t i = 0; i < n_stops; i++) {
            size_t n = 1 + draw(&state, 6);
            for (size_t k = 0; k < n; k++)
                texts[i][k] = (char)('a' + draw(&state, 2));
            texts[i][n] = '\0';
            stops[i] = texts[i];
        }
        assert_int_equal(mb_stop_text_open(stops, n_stops, &matcher), MB_OK);
        for (int again = 0; again < 3; again++) {
            size_t n = draw(&state, 40);
            for (size_t k = 0; k < n; k++)
                answer[k] = (char)('a' + draw(&state, 3) % 2);
            answer[n] = '\0';
            check(matcher, stops, n_stops, answer, &state);
        }
        mb_stop_text_close(matcher);
    }
}

static void keeps_characters_whole(void **unused) {
    (void)unused;
    static const char *const stops[] = {"\xC3\xA9\xC3\xA9"}; /* e with acute accent, twice */
    mb_stop_text *matcher;
    const char *text;
    size_t n_bytes;
    assert_int_equal(mb_stop_text_open(stops, 1, &matcher), MB_OK);
    assert_int_equal(mb_stop_text_push(matcher, "a\xC3\xA9", 3, &text, &n_bytes), MB_OK);
    assert_int_equal(n_bytes, 1);
    assert_int_equal(mb_stop_text_push(matcher, "\xC3\xA8", 2, &text, &n_bytes), MB_OK);
    assert_int_equal(n_bytes, 4);
    assert_memory_equal(text, "\xC3\xA9\xC3\xA8", 4);
    mb_stop_text_close(matcher);
}

static void refuses_an_empty_text(void **unused) {
    (void)unused;
    static const char *const stops[] = {"a", ""};
    mb_stop_text *matcher;
    assert_int_equal(mb_stop_text_open(stops, 2, &matcher), MB_ERR_ARGUMENT);
    assert_null(matcher);
    assert_string_equal(mb_last_error(), "stop text 1 is empty; leave it out");
    mb_stop_text_close(NULL);
}

/* ---- Memory runs out ---------------------------------------------------------------------------------- */

static int n_allowed, n_live;

static void *allocate(void *user, void *pointer, size_t n_bytes) {
    (void)user;
    if (n_bytes == 0) {
        n_live -= pointer != NULL;
        free(pointer);
        return NULL;
    }
    if (n_allowed-- <= 0)
        return NULL;
    n_live += pointer == NULL;
    return realloc(pointer, n_bytes);
}

static void tells_that_memory_ran_out(void **unused) {
    (void)unused;
    static const char *const stops[] = {"one", "two"};
    mb_stop_text *matcher;
    const char *text;
    size_t n_bytes;
    mb_status status = MB_ERR_MEMORY;
    mb_set_allocator(allocate, NULL);
    for (int n = 0; status == MB_ERR_MEMORY; n++) {
        n_allowed = n;
        status = mb_stop_text_open(stops, 2, &matcher);
        if (status == MB_OK)
            status = mb_stop_text_push(matcher, "tw", 2, &text, &n_bytes);
        mb_stop_text_close(matcher);
        assert_int_equal(n_live, 0);
        assert_true(n < 20);
    }
    mb_set_allocator(NULL, NULL);
    assert_int_equal(status, MB_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_every_stop_across_any_border),
        cmocka_unit_test(keeps_characters_whole),
        cmocka_unit_test(refuses_an_empty_text),
        cmocka_unit_test(tells_that_memory_ran_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
