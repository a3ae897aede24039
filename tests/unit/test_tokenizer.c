/* The tokenizer through its own header: known ids, every way of failing, time that grows with the text. The
 * comparison with the reference over thousands of texts is in test_tokenizer_hf.py. */
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/file.h"
#include "model/tokenizer/tokenizer.h"
#include "moebius/moebius.h"

enum { N_TOKENS = 3013, N_IDS = 3100 };

static const char path[] = "tests/golden/tokenizer/tokenizer.json";

static mb_tokenizer *open_fixture(void) {
    char *json;
    size_t n_bytes;
    mb_tokenizer *tokenizer;
    assert_int_equal(mb_file_read(path, 1 << 24, &json, &n_bytes), MB_OK);
    if (mb_tokenizer_open(&(mb_tokenizer_files){.tokenizer = {path, json, n_bytes}}, N_IDS, &tokenizer) !=
        MB_OK)
        fail_msg("%s", mb_last_error());
    mb_free(json);
    return tokenizer;
}

static int open_once(void **state) {
    *state = open_fixture();
    return 0;
}

static int close_once(void **state) {
    mb_tokenizer_close(*state);
    return 0;
}

/* The tokens' bytes joined. */
static size_t join(const mb_tokenizer *tokenizer, const int32_t *ids, size_t n_ids, char *out) {
    size_t n = 0;
    for (size_t i = 0; i < n_ids; i++) {
        const char *bytes;
        size_t n_bytes;
        int is_special;
        assert_int_equal(mb_tokenizer_bytes(tokenizer, ids[i], &bytes, &n_bytes, &is_special), MB_OK);
        memcpy(out + n, bytes, n_bytes);
        n += n_bytes;
    }
    return n;
}

static void test_round_trip(void **state) {
    static const char text[] =
        "Hello world, it's 12 o'clock!\n\n  \xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x98\x80<|im_start|>"
        "user\n<think>\n\x01\x7F";
    char out[sizeof text + 16];
    int32_t *ids;
    size_t n_ids;
    for (int parse_special = 0; parse_special < 2; parse_special++) {
        assert_int_equal(mb_tokenizer_encode(*state, text, strlen(text), parse_special, &ids, &n_ids), MB_OK);
        size_t n = join(*state, ids, n_ids, out);
        assert_int_equal(n, strlen(text));
        assert_memory_equal(out, text, n);
        mb_free(ids);
    }
}

/* Zero bytes are text like any other. */
static void test_zero_bytes(void **state) {
    static const char text[] = "a\0b\0\0";
    char out[16];
    int32_t *ids;
    size_t n_ids;
    assert_int_equal(mb_tokenizer_encode(*state, text, 5, 1, &ids, &n_ids), MB_OK);
    assert_int_equal(join(*state, ids, n_ids, out), 5);
    assert_memory_equal(out, text, 5);
    mb_free(ids);
}

static void test_empty_text(void **state) {
    int32_t *ids = (int32_t *)&ids;
    size_t n_ids = 7;
    assert_int_equal(mb_tokenizer_encode(*state, "", 0, 1, &ids, &n_ids), MB_OK);
    assert_null(ids);
    assert_int_equal(n_ids, 0);
}

static void test_special_tokens(void **state) {
    const mb_tokenizer *tokenizer = *state;
    int32_t end = mb_tokenizer_id(tokenizer, "<|im_end|>"), think = mb_tokenizer_id(tokenizer, "<think>");
    assert_in_range(end, 3000, N_TOKENS - 1);
    assert_in_range(think, 3000, N_TOKENS - 1);
    assert_int_equal(mb_tokenizer_id(tokenizer, "<|no such token|>"), -1);
    assert_int_equal(mb_tokenizer_id(tokenizer, ""), -1);
    int32_t *ids;
    size_t n_ids;
    assert_int_equal(mb_tokenizer_encode(tokenizer, "<|im_end|><think>", 17, 1, &ids, &n_ids), MB_OK);
    assert_int_equal(n_ids, 2);
    assert_int_equal(ids[0], end);
    assert_int_equal(ids[1], think);
    mb_free(ids);
    /* As text: the special one is spelled, the added one that is not special stays what it is. */
    assert_int_equal(mb_tokenizer_encode(tokenizer, "<|im_end|><think>", 17, 0, &ids, &n_ids), MB_OK);
    assert_true(n_ids > 2);
    assert_int_equal(ids[n_ids - 1], think);
    for (size_t i = 0; i < n_ids; i++)
        assert_int_not_equal(ids[i], end);
    mb_free(ids);
    /* The longest of those that start together: "<think>\n" is a token, too. */
    assert_int_equal(mb_tokenizer_encode(tokenizer, "<think>\n", 8, 1, &ids, &n_ids), MB_OK);
    assert_int_equal(n_ids, 1);
    assert_int_equal(ids[0], mb_tokenizer_id(tokenizer, "<think>\n"));
    mb_free(ids);
    const char *bytes;
    size_t n_bytes;
    int is_special;
    assert_int_equal(mb_tokenizer_bytes(tokenizer, end, &bytes, &n_bytes, &is_special), MB_OK);
    assert_int_equal(is_special, 1);
    assert_int_equal(mb_tokenizer_bytes(tokenizer, think, &bytes, &n_bytes, &is_special), MB_OK);
    assert_int_equal(is_special, 0);
}

/* The fixture's model has more ids than there are tokens. */
static void test_ids_without_token(void **state) {
    static const int32_t empty[] = {N_TOKENS, N_IDS - 1}, unknown[] = {-1, N_IDS, INT32_MAX, INT32_MIN};
    const char *bytes;
    size_t n_bytes;
    int is_special;
    assert_int_equal(mb_tokenizer_size(*state), N_TOKENS);
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++) {
        assert_int_equal(mb_tokenizer_bytes(*state, empty[i], &bytes, &n_bytes, &is_special), MB_OK);
        assert_int_equal(n_bytes, 0);
        assert_int_equal(is_special, 0);
    }
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        assert_int_equal(mb_tokenizer_bytes(*state, unknown[i], &bytes, &n_bytes, &is_special),
                         MB_ERR_ARGUMENT);
        assert_non_null(strstr(mb_last_error(), "ids go from 0 to 3099"));
    }
}

static void test_not_utf8(void **state) {
    static const struct {
        const char *text, *sentence;
    } cases[] = {
        {"\x80", "byte 0x80 at offset 0"},
        {"abc\xC3", "byte 0xC3 at offset 3"},
        {"\xC3\xA9\xFF", "byte 0xFF at offset 2"},
        {"0123456789\xED\xA0\x80", "byte 0xED at offset 10"},
        {"x\xF4\x90\x80\x80", "byte 0xF4 at offset 1"},
        {"\xC0\xAF", "byte 0xC0 at offset 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t *ids;
        size_t n_ids;
        assert_int_equal(mb_tokenizer_encode(*state, cases[i].text, strlen(cases[i].text), 1, &ids, &n_ids),
                         MB_ERR_FORMAT);
        assert_non_null(strstr(mb_last_error(), cases[i].sentence));
        assert_null(ids);
    }
}

/* ---- Threads ------------------------------------------------------------------------------------------ */

typedef struct worker {
    const mb_tokenizer *tokenizer;
    int32_t *ids;
    size_t n_ids;
    mb_status status;
} worker;

static void *encode_again_and_again(void *user) {
    static const char text[] =
        "Many threads, one tokenizer: <|im_end|>\n\n  e\xCC\x81 \xEA\xB0\x80\xE1\x86\xA8 it's 42";
    worker *w = user;
    for (int i = 0; i < 200 && w->status == MB_OK; i++) {
        mb_free(w->ids);
        w->status = mb_tokenizer_encode(w->tokenizer, text, strlen(text), 1, &w->ids, &w->n_ids);
    }
    return NULL;
}

static void test_many_threads(void **state) {
    enum { N = 4 };
    pthread_t threads[N];
    worker workers[N];
    for (int i = 0; i < N; i++) {
        workers[i] = (worker){.tokenizer = *state};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_again_and_again, &workers[i]), 0);
    }
    for (int i = 0; i < N; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(workers[i].status, MB_OK);
        assert_int_equal(workers[i].n_ids, workers[0].n_ids);
        assert_memory_equal(workers[i].ids, workers[0].ids, workers[0].n_ids * sizeof *workers[0].ids);
    }
    for (int i = 0; i < N; i++)
        mb_free(workers[i].ids);
}

/* ---- Time --------------------------------------------------------------------------------------------- */

static double cpu_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The least of `rounds` times: what others do on the machine only adds. */
static double encoding_seconds(const mb_tokenizer *tokenizer, const char *text, size_t n_bytes, int rounds) {
    double least = 1e9;
    for (int round = 0; round < rounds; round++) {
        int32_t *ids;
        size_t n_ids;
        double start = cpu_seconds();
        assert_int_equal(mb_tokenizer_encode(tokenizer, text, n_bytes, 1, &ids, &n_ids), MB_OK);
        double seconds = cpu_seconds() - start;
        least = seconds < least ? seconds : least;
        mb_free(ids);
    }
    return least;
}

/* `units` repeated to n_bytes, then a letter: behind a run of spaces it makes the pattern step back. */
static size_t fill(char *text, const char *unit, size_t n_bytes) {
    size_t length = strlen(unit), n = 0;
    for (; n + length < n_bytes; n += length)
        memcpy(text + n, unit, length);
    text[n++] = 'x';
    return n;
}

/* Eight times the text takes about eight times as long, where quadratic work would take 64 times. The
 * bars lie far from both: on a busy machine the larger text loses the caches, and under a sanitizer
 * every byte has its shadow. */
static void test_time_grows_with_the_text(void **state) {
    static const char *const units[] = {
        "a",     " ",       "7", "\n",  "\xF0\x9F\x98\x80", "\xCC\x81\xCC\x96" /* marks that change places */,
        "ab",    "= ",      "'", " \n", "\xE6\xBC\xA2",     "\xE1\x84\x80\xE1\x85\xA1" /* jamo */,
        "<|im_", "\xC2\x85"};
    enum { MIB = 1 << 20 };
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    const double limit_seconds = 60;
#else
    const double limit_seconds = 5;
#endif
    const double limit_growth = 32;
    /* The allocator keeps its memory: what is measured is the tokenizer, not the system's fresh pages. */
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    char *text = malloc(MIB);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        /* On a busy machine the large text alone loses the caches now and then: some rounds more, no other
         * bar. */
        double eighth = encoding_seconds(*state, text, fill(text, units[u], MIB / 8), 5), whole = 1e9;
        for (int i = 0; i < 10 && whole > limit_growth * eighth; i++) {
            double seconds = encoding_seconds(*state, text, fill(text, units[u], MIB), 3);
            whole = seconds < whole ? seconds : whole;
        }
        if (whole > limit_seconds || whole > limit_growth * eighth)
            fail_msg("unit %zu: %.4f s for 1 MiB, %.4f s for an eighth of it", u, whole, eighth);
    }
    free(text);
}

/* ---- Memory ------------------------------------------------------------------------------------------- */

typedef struct failing {
    long left; /* allocations until one fails */
    int for_good;
    long live;
} failing;

static void *allocate_failing(void *user, void *pointer, size_t n_bytes) {
    failing *f = user;
    if (n_bytes == 0) {
        f->live -= pointer != NULL;
        free(pointer);
        return NULL;
    }
    if (f->left == 0 || (f->left < 0 && f->for_good)) {
        f->left = -1;
        return NULL;
    }
    f->left--;
    f->live += pointer == NULL;
    return realloc(pointer, n_bytes);
}

/* A small tokenizer.json, with everything in it that allocates; NULL-terminated, for free(). */
static char *small_json(void) {
    char *json = malloc(1 << 16), *at = json;
    at += sprintf(at,
                  "{\"normalizer\": {\"type\": \"NFC\"}, \"pre_tokenizer\": {\"type\": \"Sequence\", "
                  "\"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\p{L}+|\\\\s+\"}, "
                  "\"behavior\": \"Isolated\"}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                  "\"use_regex\": false}]}, \"decoder\": {\"type\": \"ByteLevel\"}, \"added_tokens\": "
                  "[{\"id\": 300, \"content\": \"<x>\"}, {\"id\": 301, \"content\": \"<y>\", "
                  "\"normalized\": true}], \"model\": {\"merges\": [\"a b\"], \"vocab\": {\"ab\": 256");
    for (int byte = 0, moved = 0x100; byte < 256; byte++) {
        int printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
        at += sprintf(at, ", \"\\u%04x\": %d", printable ? byte : moved, byte);
        moved += !printable;
    }
    sprintf(at, "}}}");
    return json;
}

static void test_every_allocation_may_fail(void **state) {
    (void)state;
    static const char text[] = "ab <x> e\xCC\x81\xCC\x96 \xE1\xB2\x89 <y><z><p>";
    static const char config[] =
        "{\"added_tokens_decoder\": {\"302\": {\"content\": \"<z>\", \"lstrip\": true}, "
        "\"300\": {\"content\": \"<x>\", \"normalized\": false}}, \"pad_token\": \"<p>\"}";
    char *json = small_json();
    for (int for_good = 0; for_good < 2; for_good++) {
        int succeeded = 0;
        for (long k = 0; !succeeded; k++) {
            failing f = {.left = k, .for_good = for_good};
            mb_set_allocator(allocate_failing, &f);
            mb_tokenizer *tokenizer;
            int32_t *ids = NULL;
            size_t n_ids;
            mb_tokenizer_files files = {
                {"small", json, strlen(json)}, {"config", config, sizeof config - 1}, {0}};
            mb_status status = mb_tokenizer_open(&files, 304, &tokenizer);
            if (status == MB_OK) {
                status = mb_tokenizer_encode(tokenizer, text, strlen(text), 1, &ids, &n_ids);
                mb_free(ids);
            }
            if (status != MB_OK && status != MB_ERR_MEMORY)
                fail_msg("allocation %ld: %s", k, mb_last_error());
            mb_tokenizer_close(tokenizer);
            succeeded = f.left > 0;
            assert_true(!succeeded || status == MB_OK);
            assert_int_equal(f.live, 0);
        }
    }
    mb_set_allocator(NULL, NULL);
    free(json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_zero_bytes),
        cmocka_unit_test(test_empty_text),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_ids_without_token),
        cmocka_unit_test(test_not_utf8),
        cmocka_unit_test(test_many_threads),
        cmocka_unit_test(test_time_grows_with_the_text),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
#if defined(__SANITIZE_THREAD__)
    cmocka_set_test_filter("test_many_threads"); /* the other tests have one thread */
#endif
    return cmocka_run_group_tests(tests, open_once, close_once);
}
