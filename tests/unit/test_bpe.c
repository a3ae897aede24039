/* Byte-pair merging against its definition: merge the pair of lowest rank, the leftmost first, until no
 * pair can. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "model/tokenizer/bpe.h"

enum { MAX_MERGES = 200, MAX_BYTES = 300 };

/* Random merges: tokens 0 to 255 are the bytes, each merge makes a new one or one that exists. */
static size_t make_merges(mb_bpe *bpe, mb_merge *merges, int n_letters) {
    assert_int_equal(mb_bpe_init(bpe, "test", MAX_MERGES), MB_OK);
    for (int byte = 0; byte < 256; byte++)
        bpe->byte_ids[byte] = byte;
    size_t n = 0;
    int32_t n_tokens = 256;
    for (int tries = 0; tries < 1000 && n < MAX_MERGES; tries++) {
        int32_t sides[2];
        for (int side = 0; side < 2; side++)
            sides[side] =
                n_tokens > 256 && rand() % 2 ? 256 + rand() % (n_tokens - 256) : 'a' + rand() % n_letters;
        /* Ranks are the merges' own, so a merge may come before those that make its parts. */
        mb_merge merge = {sides[0], sides[1], (int32_t)(MAX_MERGES - n), n_tokens};
        if (rand() % 2)
            merge.rank = (int32_t)(MAX_MERGES + n);
        if (mb_bpe_add(bpe, merge)) {
            merges[n++] = merge;
            n_tokens += rand() % 4 != 0;
        }
    }
    return n;
}

static size_t merge_plainly(const mb_merge *merges, size_t n_merges, const char *piece, size_t n,
                            int32_t *ids) {
    for (size_t i = 0; i < n; i++)
        ids[i] = (unsigned char)piece[i];
    for (;;) {
        const mb_merge *best = NULL;
        size_t place = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (size_t m = 0; m < n_merges; m++)
                if (merges[m].left == ids[i] && merges[m].right == ids[i + 1] &&
                    (!best || merges[m].rank < best->rank)) {
                    best = &merges[m];
                    place = i;
                }
        if (!best)
            return n;
        ids[place] = best->merged;
        memmove(&ids[place + 1], &ids[place + 2], (n - place - 2) * sizeof *ids);
        n--;
    }
}

static void test_against_the_definition(void **state) {
    (void)state;
    srand(4);
    mb_bpe_work work = {0};
    for (int round = 0; round < 60; round++) {
        mb_bpe bpe;
        mb_merge merges[MAX_MERGES];
        int n_letters = 1 + rand() % 4;
        size_t n_merges = make_merges(&bpe, merges, n_letters);
        for (int k = 0; k < 40; k++) {
            char piece[MAX_BYTES];
            size_t n = 1 + (size_t)rand() % (k < 30 ? 30 : MAX_BYTES);
            for (size_t i = 0; i < n; i++)
                piece[i] = (char)('a' + rand() % (n_letters + (rand() % 10 == 0)));
            int32_t wanted[MAX_BYTES], *ids = malloc(n * sizeof *ids);
            size_t n_wanted = merge_plainly(merges, n_merges, piece, n, wanted), n_ids;
            memset(ids, 0xA5, n * sizeof *ids);
            assert_int_equal(mb_bpe_merge(&bpe, piece, n, &work, ids, &n_ids), MB_OK);
            assert_int_equal(n_ids, n_wanted);
            assert_memory_equal(ids, wanted, n_ids * sizeof *ids);
            free(ids);
        }
        mb_bpe_free(&bpe);
    }
    mb_bpe_work_free(&work);
}

static void test_leftmost_of_equals(void **state) {
    (void)state;
    mb_bpe bpe;
    assert_int_equal(mb_bpe_init(&bpe, "test", 1), MB_OK);
    for (int byte = 0; byte < 256; byte++)
        bpe.byte_ids[byte] = byte;
    assert_true(mb_bpe_add(&bpe, (mb_merge){'a', 'a', 0, 256}));
    assert_false(mb_bpe_add(&bpe, (mb_merge){'a', 'a', 1, 257}));
    mb_bpe_work work = {0};
    int32_t ids[5];
    size_t n_ids;
    assert_int_equal(mb_bpe_merge(&bpe, "aaaaa", 5, &work, ids, &n_ids), MB_OK);
    const int32_t wanted[] = {256, 256, 'a'};
    assert_int_equal(n_ids, 3);
    assert_memory_equal(ids, wanted, sizeof wanted);
    mb_bpe_work_free(&work);
    mb_bpe_free(&bpe);
}

/* The table grows with its merges, whatever the ids are. */
static void test_many_merges(void **state) {
    (void)state;
    enum { N = 200000 };
    mb_bpe bpe;
    assert_int_equal(mb_bpe_init(&bpe, "test", N), MB_OK);
    for (int byte = 0; byte < 256; byte++)
        bpe.byte_ids[byte] = byte;
    for (int32_t i = 0; i < N; i++)
        assert_true(mb_bpe_add(&bpe, (mb_merge){i % 447, i / 447, i, 1000 + i}));
    mb_bpe_work work = {0};
    for (int left = 0; left < 256; left += 17)
        for (int right = 0; right < 256; right += 3) {
            char piece[2] = {(char)(unsigned char)left, (char)(unsigned char)right};
            int32_t ids[2];
            size_t n_ids;
            assert_int_equal(mb_bpe_merge(&bpe, piece, 2, &work, ids, &n_ids), MB_OK);
            assert_int_equal(n_ids, 1);
            assert_int_equal(ids[0], 1000 + 447 * right + left);
        }
    mb_bpe_work_free(&work);
    mb_bpe_free(&bpe);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_the_definition),
        cmocka_unit_test(test_leftmost_of_equals),
        cmocka_unit_test(test_many_merges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
