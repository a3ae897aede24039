/* base/arena.h: measuring and handing out agree, pieces do not overlap, overflow and overruns are seen. */
#include "base/arena.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/tiny_checkpoint.h"

static void *aligned_block(size_t n_bytes) {
    size_t rounded = (n_bytes + MB_ARENA_ALIGNMENT - 1) / MB_ARENA_ALIGNMENT * MB_ARENA_ALIGNMENT;
    void *block = aligned_alloc(MB_ARENA_ALIGNMENT, rounded ? rounded : MB_ARENA_ALIGNMENT);
    assert_non_null(block);
    return block;
}

static void test_measuring_equals_cutting(void **state) {
    (void)state;
    enum { PIECES = 50 };
    uint64_t random = 3;
    for (int round = 0; round < 50; round++) {
        size_t counts[PIECES], sizes[PIECES];
        char *pieces[PIECES];
        mb_arena measure, arena;
        mb_arena_measure(&measure);
        for (int i = 0; i < PIECES; i++) {
            counts[i] = (size_t)(tiny_random(&random) % 300);
            sizes[i] = (size_t)(1 + tiny_random(&random) % 16);
            assert_null(mb_arena_push(&measure, counts[i], sizes[i]));
        }
        assert_false(measure.overflowed);
        void *block = aligned_block(measure.used);
        mb_arena_init(&arena, block, measure.used, 1);
        for (int i = 0; i < PIECES; i++) {
            pieces[i] = mb_arena_push(&arena, counts[i], sizes[i]);
            assert_non_null(pieces[i]);
            assert_int_equal((uintptr_t)pieces[i] % MB_ARENA_ALIGNMENT, 0);
            memset(pieces[i], i, counts[i] * sizes[i]);
        }
        assert_int_equal(arena.used, measure.used);
        assert_false(arena.overflowed);
        for (int i = 0; i < PIECES; i++)
            for (size_t byte = 0; byte < counts[i] * sizes[i]; byte++)
                assert_int_equal(pieces[i][byte], i); /* nobody wrote over it */
        assert_int_equal(mb_arena_check(&arena), 0);
        assert_null(mb_arena_push(&arena, 1, 1)); /* it was exactly enough */
        assert_true(arena.overflowed);
        free(block);
    }
}

static void test_overflow_is_remembered(void **state) {
    (void)state;
    mb_arena arena;
    mb_arena_measure(&arena);
    mb_arena_push(&arena, SIZE_MAX / 4, 8);
    assert_true(arena.overflowed);
    mb_arena_measure(&arena);
    mb_arena_push(&arena, SIZE_MAX, 1);
    assert_true(arena.overflowed);
    mb_arena_measure(&arena);
    for (int i = 0; i < 3; i++)
        mb_arena_push(&arena, SIZE_MAX / 3, 1);
    assert_true(arena.overflowed); /* the sum, not one piece */

    char *block = aligned_block(1024);
    mb_arena_init(&arena, block, 1024, 1);
    assert_null(mb_arena_push(&arena, 2048, 1));
    assert_true(arena.overflowed);
    assert_int_equal(arena.used, 0);
    free(block);
}

static void test_pop_reuses(void **state) {
    (void)state;
    char *block = aligned_block(4096);
    mb_arena arena;
    mb_arena_init(&arena, block, 4096, 1);
    mb_arena_push(&arena, 10, 1);
    size_t mark = arena.used;
    char *first = mb_arena_push(&arena, 100, 1);
    mb_arena_pop_to(&arena, mark);
    char *second = mb_arena_push(&arena, 50, 1);
    assert_ptr_equal(first, second);
    size_t used = arena.used;
    mb_arena_pop_to(&arena, used + 1000); /* never forward */
    assert_int_equal(arena.used, used);
    free(block);
}

#ifndef NDEBUG
static void test_overruns_are_seen(void **state) {
    (void)state;
    char *block = aligned_block(8192);
    for (int victim = 0; victim < 4; victim++) {
        mb_arena arena;
        mb_arena_init(&arena, block, 8192, 1);
        char *pieces[4];
        for (int i = 0; i < 4; i++) {
            pieces[i] = mb_arena_push(&arena, (size_t)(100 + i * 57), 1);
            memset(pieces[i], 0xA5, (size_t)(100 + i * 57)); /* the red byte inside of a piece is harmless */
        }
        assert_int_equal(mb_arena_check(&arena), 0);
        char *end = pieces[victim] + 100 + victim * 57;
        *end ^= 1;
        assert_int_equal(mb_arena_check(&arena), end - block);
        *end ^= 1;
        assert_int_equal(mb_arena_check(&arena), 0);
        memset(end, 0, (size_t)(block + arena.used - end)); /* so far that the records are gone */
        assert_int_not_equal(mb_arena_check(&arena), 0);
    }
    free(block);
}
#endif

static void test_device_memory_is_not_touched(void **state) {
    (void)state;
    char *block = aligned_block(4096), copy[4096];
    memset(block, 0x11, 4096);
    memcpy(copy, block, 4096);
    mb_arena arena;
    mb_arena_init(&arena, block, 4096, 0);
    assert_non_null(mb_arena_push(&arena, 1000, 1));
    assert_non_null(mb_arena_push(&arena, 1000, 1));
    assert_int_equal(mb_arena_check(&arena), 0);
    assert_memory_equal(block, copy, 4096);
    free(block);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_measuring_equals_cutting),
        cmocka_unit_test(test_overflow_is_remembered),
        cmocka_unit_test(test_pop_reuses),
#ifndef NDEBUG
        cmocka_unit_test(test_overruns_are_seen),
#endif
        cmocka_unit_test(test_device_memory_is_not_touched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
