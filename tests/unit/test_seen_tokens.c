/* Distinct tokens and their counts, against plain arrays. */
#include "engine/seen_tokens.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/tiny_checkpoint.h"

static void run(int32_t vocab, int n_tokens, int32_t stride, uint64_t seed) {
    size_t capacity = (size_t)(n_tokens < vocab ? n_tokens : vocab);
    mb_arena arena;
    mb_seen_tokens seen;
    mb_arena_measure(&arena);
    mb_seen_init(&seen, &arena, capacity);
    size_t n_bytes = arena.used;
    void *memory = malloc(n_bytes);
    memset(memory, 0xEE, n_bytes);
    mb_arena_init(&arena, memory, n_bytes, 1);
    mb_seen_init(&seen, &arena, capacity);

    int32_t *counts = calloc((size_t)vocab, sizeof *counts);
    uint8_t *present = calloc((size_t)vocab, 1);
    int n_distinct = 0;
    for (int i = 0; i < n_tokens; i++) {
        int32_t id = (int32_t)(tiny_random(&seed) % (uint64_t)vocab), times = i >= n_tokens / 2;
        mb_seen_add(&seen, id * stride, times);
        n_distinct += !present[id];
        present[id] = 1;
        counts[id] += times;
    }
    assert_int_equal(seen.n, n_distinct);
    for (int32_t i = 0; i < seen.n; i++) {
        assert_int_equal(seen.ids[i] % stride, 0);
        int32_t id = seen.ids[i] / stride;
        assert_int_equal(present[id]--, 1); /* each once */
        assert_int_equal(seen.counts[i], counts[id]);
    }
    assert_int_equal(mb_arena_check(&arena), 0);
    free(present);
    free(counts);
    free(memory);
}

static void test_against_plain_arrays(void **state) {
    (void)state;
    run(1, 1, 1, 1);
    run(1, 100, 1, 2);
    run(300, 5000, 1, 3); /* every token of the vocabulary: the table at its fullest */
    run(100000, 3000, 1, 4);
    run(1000, 2000, 2048, 5); /* ids that share their low bits */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_plain_arrays)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
