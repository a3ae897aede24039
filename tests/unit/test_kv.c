/* The KV bookkeeping alone: reservations, growth, release, and random use against a plain model. */
#include "engine/kv.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/tiny_checkpoint.h"

typedef struct fixture {
    mb_kv kv;
    mb_arena arena;
    void *memory;
    uint8_t *marks;
} fixture;

static void open_kv(fixture *f, int32_t n_blocks, int32_t max_tables, int32_t max_blocks) {
    mb_arena measure;
    mb_arena_measure(&measure);
    mb_kv_init(&f->kv, &measure, n_blocks, max_tables, max_blocks);
    f->memory = malloc(measure.used);
    f->marks = malloc((size_t)n_blocks);
    assert_non_null(f->memory);
    memset(f->memory, 0xEE, measure.used); /* the bookkeeping must not rely on zeroed memory */
    mb_arena_init(&f->arena, f->memory, measure.used, 1);
    mb_kv_init(&f->kv, &f->arena, n_blocks, max_tables, max_blocks);
    assert_false(f->arena.overflowed);
}

static void check(const fixture *f) {
    const char *problem = mb_kv_check(&f->kv, f->marks);
    if (problem)
        fail_msg("%s", problem);
    assert_int_equal(mb_arena_check(&f->arena), 0);
}

static void close_kv(fixture *f) {
    check(f);
    free(f->memory);
    free(f->marks);
}

static void test_blocks_are_counted_at_their_edges(void **state) {
    (void)state;
    static const struct {
        int64_t n_tokens;
        int32_t n_blocks;
    } cases[] = {{1, 1}, {63, 1}, {64, 1}, {65, 2}, {128, 2}, {129, 3}, {512, 8}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture f;
        open_kv(&f, 8, 2, 8);
        int32_t table = mb_kv_reserve(&f.kv, cases[i].n_tokens);
        assert_true(table >= 0);
        assert_int_equal(f.kv.n_promised, cases[i].n_blocks);
        assert_int_equal(f.kv.n_free, 8); /* reserving takes nothing yet */
        assert_int_equal(mb_kv_extend(&f.kv, table, cases[i].n_tokens), 0);
        assert_int_equal(f.kv.n_free, 8 - cases[i].n_blocks);
        assert_int_equal(f.kv.n_promised, 0);
        close_kv(&f);
    }
}

static void test_reservation_bounds_growth(void **state) {
    (void)state;
    fixture f;
    open_kv(&f, 8, 2, 8);
    int32_t table = mb_kv_reserve(&f.kv, 100);
    assert_int_equal(mb_kv_extend(&f.kv, table, 128), 0); /* the second block has room for 128 */
    assert_int_equal(mb_kv_extend(&f.kv, table, 129), -1);
    assert_int_equal(f.kv.n_free, 6);
    assert_int_equal(mb_kv_extend(&f.kv, table, 3), 0); /* never shrinks */
    assert_int_equal(f.kv.n_free, 6);
    close_kv(&f);
}

static void test_reserved_blocks_are_not_given_to_others(void **state) {
    (void)state;
    fixture f;
    open_kv(&f, 8, 4, 8);
    int32_t first = mb_kv_reserve(&f.kv, 6 * 64);
    assert_true(first >= 0);
    assert_int_equal(mb_kv_reserve(&f.kv, 3 * 64), -1);
    int32_t second = mb_kv_reserve(&f.kv, 2 * 64);
    assert_true(second >= 0 && second != first);
    assert_int_equal(mb_kv_reserve(&f.kv, 1), -1);
    assert_int_equal(mb_kv_extend(&f.kv, second, 128), 0);
    assert_int_equal(mb_kv_extend(&f.kv, first, 6 * 64), 0);
    assert_int_equal(f.kv.n_free, 0);
    mb_kv_release(&f.kv, &first);
    assert_int_equal(first, -1);
    assert_int_equal(f.kv.n_free, 6);
    mb_kv_release(&f.kv, &first); /* nothing: it is not ours any more */
    assert_int_equal(f.kv.n_free, 6);
    assert_true(mb_kv_reserve(&f.kv, 6 * 64) >= 0);
    close_kv(&f);
}

static void test_limits_of_tables_and_lengths(void **state) {
    (void)state;
    fixture f;
    open_kv(&f, 100, 2, 4);
    assert_true(mb_kv_can_ever_fit(&f.kv, 256));
    assert_false(mb_kv_can_ever_fit(&f.kv, 257)); /* the table's width */
    assert_false(mb_kv_can_ever_fit(&f.kv, INT64_MAX));
    assert_int_equal(mb_kv_reserve(&f.kv, 257), -1);
    assert_int_equal(mb_kv_reserve(&f.kv, INT64_MAX), -1);
    assert_int_equal(mb_kv_reserve(&f.kv, 0), -1);
    assert_true(mb_kv_reserve(&f.kv, 1) >= 0);
    assert_true(mb_kv_reserve(&f.kv, 1) >= 0);
    assert_int_equal(mb_kv_reserve(&f.kv, 1), -1); /* no third table */
    close_kv(&f);
    open_kv(&f, 3, 2, 40);
    assert_false(mb_kv_can_ever_fit(&f.kv, 3 * 64 + 1)); /* the pool */
    close_kv(&f);
}

static void test_slots_follow_the_table(void **state) {
    (void)state;
    fixture f;
    open_kv(&f, 8, 2, 8);
    int32_t a = mb_kv_reserve(&f.kv, 200), b = mb_kv_reserve(&f.kv, 200);
    for (int64_t n = 64; n <= 192; n += 64) { /* interleaved, so that neither table is contiguous */
        assert_int_equal(mb_kv_extend(&f.kv, a, n), 0);
        assert_int_equal(mb_kv_extend(&f.kv, b, n), 0);
    }
    uint8_t used[8 * 64] = {0};
    for (int64_t position = 0; position < 192; position++) {
        int32_t slots[] = {mb_kv_slot(&f.kv, a, position), mb_kv_slot(&f.kv, b, position)};
        for (int i = 0; i < 2; i++) {
            assert_in_range(slots[i], 0, sizeof used - 1);
            assert_int_equal(used[slots[i]]++, 0);
            assert_int_equal(slots[i] % 64, position % 64);
        }
        assert_int_equal(slots[0] / 64, mb_kv_blocks(&f.kv, a)[position / 64]);
    }
    close_kv(&f);
}

/* The checker itself must be able to fail. */
static void test_check_sees_damage(void **state) {
    (void)state;
    fixture f;
    open_kv(&f, 8, 2, 8);
    int32_t table = mb_kv_reserve(&f.kv, 128);
    assert_int_equal(mb_kv_extend(&f.kv, table, 128), 0);
    int32_t whole = f.kv.blocks[table * 8];
    f.kv.blocks[table * 8] = f.kv.blocks[table * 8 + 1];
    assert_non_null(mb_kv_check(&f.kv, f.marks));
    f.kv.blocks[table * 8] = 8;
    assert_non_null(mb_kv_check(&f.kv, f.marks));
    f.kv.blocks[table * 8] = whole;
    f.kv.n_free--;
    assert_non_null(mb_kv_check(&f.kv, f.marks));
    f.kv.n_free++;
    f.kv.n_promised++;
    assert_non_null(mb_kv_check(&f.kv, f.marks));
    f.kv.n_promised--;
    f.kv.n_free_tables--;
    assert_non_null(mb_kv_check(&f.kv, f.marks));
    f.kv.n_free_tables++;
    close_kv(&f);
}

static void test_random_use(void **state) {
    (void)state;
    enum { TABLES = 7, BLOCKS = 40, STEPS = 20000 };
    fixture f;
    open_kv(&f, BLOCKS, TABLES, 16);
    struct {
        int32_t table, n_reserved;
        int64_t n_tokens;
    } live[TABLES];
    int n_live = 0;
    uint64_t random = 20261122;
    for (int step = 0; step < STEPS; step++) {
        uint64_t choice = tiny_random(&random) % 10;
        if (choice < 3) {
            int64_t n_tokens = 1 + (int64_t)(tiny_random(&random) % (18 * 64));
            int32_t n_blocks = (int32_t)((n_tokens + 63) / 64), reserved = 0;
            for (int i = 0; i < n_live; i++)
                reserved += live[i].n_reserved;
            int32_t table = mb_kv_reserve(&f.kv, n_tokens);
            assert_int_equal(table >= 0, n_live < TABLES && n_blocks <= 16 && reserved + n_blocks <= BLOCKS);
            if (table >= 0) {
                live[n_live].table = table;
                live[n_live].n_reserved = n_blocks;
                live[n_live++].n_tokens = 0;
            }
        } else if (choice < 9 && n_live > 0) {
            int i = (int)(tiny_random(&random) % (uint64_t)n_live);
            int64_t n = live[i].n_tokens + (int64_t)(tiny_random(&random) % 150);
            int fits = (n + 63) / 64 <= live[i].n_reserved;
            assert_int_equal(mb_kv_extend(&f.kv, live[i].table, n), fits ? 0 : -1);
            if (fits)
                live[i].n_tokens = n;
        } else if (n_live > 0) {
            int i = (int)(tiny_random(&random) % (uint64_t)n_live);
            mb_kv_release(&f.kv, &live[i].table);
            live[i] = live[--n_live];
        }
        int32_t owned = 0;
        for (int i = 0; i < n_live; i++)
            owned += (int32_t)((live[i].n_tokens + 63) / 64);
        assert_int_equal(f.kv.n_free, BLOCKS - owned);
        check(&f);
    }
    while (n_live > 0)
        mb_kv_release(&f.kv, &live[--n_live].table);
    assert_int_equal(f.kv.n_free, BLOCKS);
    assert_int_equal(f.kv.n_promised, 0);
    close_kv(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_are_counted_at_their_edges),
        cmocka_unit_test(test_reservation_bounds_growth),
        cmocka_unit_test(test_reserved_blocks_are_not_given_to_others),
        cmocka_unit_test(test_limits_of_tables_and_lengths),
        cmocka_unit_test(test_slots_follow_the_table),
        cmocka_unit_test(test_check_sees_damage),
        cmocka_unit_test(test_random_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
