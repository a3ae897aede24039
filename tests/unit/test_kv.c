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
    int32_t *scratch;
} fixture;

static void open_kv(fixture *f, int32_t n_blocks, int32_t max_tables, int32_t max_blocks) {
    mb_arena measure;
    mb_arena_measure(&measure);
    mb_kv_init(&f->kv, &measure, n_blocks, max_tables, max_blocks);
    f->memory = malloc(measure.used);
    f->scratch = malloc(2 * (size_t)n_blocks * sizeof *f->scratch);
    assert_non_null(f->memory);
    memset(f->memory, 0xEE, measure.used); /* the bookkeeping must not rely on zeroed memory */
    mb_arena_init(&f->arena, f->memory, measure.used, 1);
    mb_kv_init(&f->kv, &f->arena, n_blocks, max_tables, max_blocks);
    assert_false(f->arena.overflowed);
}

static void check(const fixture *f) {
    const char *problem = mb_kv_check(&f->kv, f->scratch);
    if (problem)
        fail_msg("%s", problem);
    assert_int_equal(mb_arena_check(&f->arena), 0);
}

static void close_kv(fixture *f) {
    check(f);
    free(f->memory);
    free(f->scratch);
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
        int32_t table = mb_kv_reserve(&f.kv, cases[i].n_tokens, NULL, 0);
        assert_true(table >= 0);
        assert_int_equal(f.kv.n_promised, cases[i].n_blocks);
        assert_int_equal(f.kv.n_free, 8); /* reserving takes nothing yet */
        assert_int_equal(mb_kv_extend(&f.kv, table, cases[i].n_tokens), 0);
        assert_int_equal(f.kv.n_free, 8 - cases[i].n_blocks);
        assert_int_equal(f.kv.n_promised, 0);
        close_kv(&f);
    }
}

static void test_a_table_grows_beyond_its_reservation(void **state) {
    (void)state;
    fixture f;
    open_kv(&f, 8, 2, 7);
    int32_t table = mb_kv_reserve(&f.kv, 100, NULL, 0), other = mb_kv_reserve(&f.kv, 64, NULL, 0);
    assert_int_equal(f.kv.n_promised, 3);
    assert_int_equal(mb_kv_extend(&f.kv, table, 128), 0); /* the second block has room for 128 */
    assert_int_equal(f.kv.n_promised, 1);
    assert_int_equal(mb_kv_extend(&f.kv, table, 129), 0);
    assert_int_equal(f.kv.n_free, 5);
    assert_int_equal(f.kv.n_promised, 1);
    assert_int_equal(mb_kv_extend(&f.kv, table, 3), 0); /* never shrinks */
    assert_int_equal(f.kv.n_free, 5);
    assert_int_equal(mb_kv_extend(&f.kv, table, 7 * 64 + 1), -1); /* the table's width */
    assert_int_equal(f.kv.n_free, 5);
    assert_int_equal(mb_kv_extend(&f.kv, other, 6 * 64), -1); /* 5 are left */
    assert_int_equal(f.kv.n_free, 5);
    assert_int_equal(mb_kv_extend(&f.kv, table, 7 * 64), 0);
    assert_int_equal(mb_kv_extend(&f.kv, other, 64), 0); /* what was promised may be gone, but is not */
    assert_int_equal(mb_kv_available(&f.kv), 0);
    assert_int_equal(mb_kv_extend(&f.kv, other, 65), -1);
    close_kv(&f);
}

static void test_reserved_blocks_are_not_given_to_newcomers(void **state) {
    (void)state;
    fixture f;
    open_kv(&f, 8, 4, 8);
    int32_t first = mb_kv_reserve(&f.kv, 6 * 64, NULL, 0);
    assert_true(first >= 0);
    assert_int_equal(mb_kv_reserve(&f.kv, 3 * 64, NULL, 0), -1);
    int32_t second = mb_kv_reserve(&f.kv, 2 * 64, NULL, 0);
    assert_true(second >= 0 && second != first);
    assert_int_equal(mb_kv_reserve(&f.kv, 1, NULL, 0), -1);
    assert_int_equal(mb_kv_extend(&f.kv, second, 3 * 64), 0); /* but who runs takes what is there */
    assert_int_equal(mb_kv_extend(&f.kv, first, 6 * 64), -1);
    assert_int_equal(mb_kv_extend(&f.kv, first, 5 * 64), 0);
    assert_int_equal(f.kv.n_free, 0);
    assert_int_equal(f.kv.n_promised, 1);
    check(&f);
    mb_kv_release(&f.kv, &first);
    assert_int_equal(first, -1);
    assert_int_equal(f.kv.n_free, 5);
    assert_int_equal(f.kv.n_promised, 0);
    mb_kv_release(&f.kv, &first); /* nothing: it is not ours any more */
    assert_int_equal(f.kv.n_free, 5);
    assert_true(mb_kv_reserve(&f.kv, 5 * 64, NULL, 0) >= 0);
    close_kv(&f);
}

static void test_limits_of_tables_and_lengths(void **state) {
    (void)state;
    fixture f;
    open_kv(&f, 100, 2, 4);
    assert_true(mb_kv_can_ever_fit(&f.kv, 256));
    assert_false(mb_kv_can_ever_fit(&f.kv, 257)); /* the table's width */
    assert_false(mb_kv_can_ever_fit(&f.kv, INT64_MAX));
    assert_int_equal(mb_kv_reserve(&f.kv, 257, NULL, 0), -1);
    assert_int_equal(mb_kv_reserve(&f.kv, INT64_MAX, NULL, 0), -1);
    assert_int_equal(mb_kv_reserve(&f.kv, 0, NULL, 0), -1);
    assert_true(mb_kv_reserve(&f.kv, 1, NULL, 0) >= 0);
    assert_true(mb_kv_reserve(&f.kv, 1, NULL, 0) >= 0);
    assert_int_equal(mb_kv_reserve(&f.kv, 1, NULL, 0), -1); /* no third table */
    close_kv(&f);
    open_kv(&f, 3, 2, 40);
    assert_false(mb_kv_can_ever_fit(&f.kv, 3 * 64 + 1)); /* the pool */
    close_kv(&f);
}

static void test_slots_follow_the_table(void **state) {
    (void)state;
    fixture f;
    open_kv(&f, 8, 2, 8);
    int32_t a = mb_kv_reserve(&f.kv, 200, NULL, 0), b = mb_kv_reserve(&f.kv, 200, NULL, 0);
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

/* ---- Shared blocks --------------------------------------------------------------------------------- */

static void test_shared_blocks_are_not_taken_twice(void **state) {
    (void)state;
    fixture f;
    open_kv(&f, 8, 4, 8);
    int32_t first = mb_kv_reserve(&f.kv, 4 * 64, NULL, 0);
    assert_int_equal(mb_kv_extend(&f.kv, first, 4 * 64), 0);
    int32_t cached[3];
    memcpy(cached, mb_kv_blocks(&f.kv, first), sizeof cached);
    int32_t second = mb_kv_reserve(&f.kv, 6 * 64, cached, 3); /* 3 shared, 3 new */
    assert_true(second >= 0);
    assert_memory_equal(mb_kv_blocks(&f.kv, second), cached, sizeof cached);
    assert_int_equal(f.kv.n_free, 4);
    assert_int_equal(f.kv.n_promised, 3);
    check(&f);
    assert_int_equal(mb_kv_reserve(&f.kv, 2 * 64, NULL, 0), -1);   /* 1 is left */
    assert_int_equal(mb_kv_reserve(&f.kv, 2 * 64, cached, 3), -1); /* more than the positions take */
    int32_t third = mb_kv_reserve(&f.kv, 3 * 64, cached, 3);       /* nothing new */
    assert_true(third >= 0);
    assert_int_equal(mb_kv_extend(&f.kv, second, 6 * 64), 0);
    for (int64_t position = 0; position < 3 * 64; position++)
        assert_int_equal(mb_kv_slot(&f.kv, second, position), mb_kv_slot(&f.kv, first, position));
    assert_int_not_equal(mb_kv_blocks(&f.kv, second)[3], mb_kv_blocks(&f.kv, first)[3]);
    assert_int_equal(f.kv.n_free, 1);
    check(&f);
    mb_kv_release(&f.kv, &first); /* its fourth block was its own */
    assert_int_equal(f.kv.n_free, 2);
    check(&f);
    mb_kv_release(&f.kv, &second);
    assert_int_equal(f.kv.n_free, 5);
    check(&f);
    mb_kv_release(&f.kv, &third);
    assert_int_equal(f.kv.n_free, 8);
    close_kv(&f);
}

/* Every order of release of three tables that share a prefix. */
static void test_release_in_any_order(void **state) {
    (void)state;
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (int o = 0; o < 6; o++) {
        fixture f;
        open_kv(&f, 12, 3, 8);
        int32_t tables[3];
        tables[0] = mb_kv_reserve(&f.kv, 3 * 64, NULL, 0);
        assert_int_equal(mb_kv_extend(&f.kv, tables[0], 3 * 64), 0);
        tables[1] = mb_kv_reserve(&f.kv, 5 * 64, mb_kv_blocks(&f.kv, tables[0]), 2);
        assert_int_equal(mb_kv_extend(&f.kv, tables[1], 4 * 64), 0);
        tables[2] = mb_kv_reserve(&f.kv, 4 * 64, mb_kv_blocks(&f.kv, tables[1]), 3);
        for (int i = 0; i < 3; i++) {
            mb_kv_release(&f.kv, &tables[orders[o][i]]);
            check(&f);
        }
        assert_int_equal(f.kv.n_free, 12);
        assert_int_equal(f.kv.n_promised, 0);
        close_kv(&f);
    }
}

/* Tables come and go at random, sharing prefixes of each other. */
static void test_random_sharing(void **state) {
    (void)state;
    enum { TABLES = 9, BLOCKS = 30, STEPS = 20000 };
    fixture f;
    open_kv(&f, BLOCKS, TABLES, 16);
    int32_t live[TABLES], n_blocks[TABLES];
    int n_live = 0, n_shared = 0;
    uint64_t random = 27;
    for (int step = 0; step < STEPS; step++) {
        if (tiny_random(&random) % 2) {
            int32_t wanted = 1 + (int32_t)(tiny_random(&random) % 12), n_cached = 0;
            const int32_t *cached = NULL;
            if (n_live > 0 && tiny_random(&random) % 3) {
                int from = (int)(tiny_random(&random) % (uint64_t)n_live);
                cached = mb_kv_blocks(&f.kv, live[from]);
                n_cached = (int32_t)(tiny_random(&random) % (uint64_t)(n_blocks[from] + 1));
                n_cached = n_cached < wanted ? n_cached : wanted;
            }
            int32_t left = f.kv.n_free - f.kv.n_promised;
            int32_t table = mb_kv_reserve(&f.kv, (int64_t)wanted * 64, cached, n_cached);
            assert_int_equal(table >= 0, n_live < TABLES && wanted - n_cached <= left);
            if (table >= 0) {
                assert_int_equal(mb_kv_extend(&f.kv, table, (int64_t)wanted * 64), 0);
                live[n_live] = table;
                n_blocks[n_live++] = wanted;
                n_shared += n_cached > 0;
            }
        } else if (n_live > 0) {
            int i = (int)(tiny_random(&random) % (uint64_t)n_live);
            mb_kv_release(&f.kv, &live[i]);
            live[i] = live[--n_live];
            n_blocks[i] = n_blocks[n_live];
        }
        check(&f);
    }
    assert_true(n_shared > STEPS / 20);
    while (n_live > 0)
        mb_kv_release(&f.kv, &live[--n_live]);
    assert_int_equal(f.kv.n_free, BLOCKS);
    close_kv(&f);
}

/* The checker itself must be able to fail. */
static void test_check_sees_damage(void **state) {
    (void)state;
    fixture f;
    open_kv(&f, 8, 2, 8);
    int32_t table = mb_kv_reserve(&f.kv, 128, NULL, 0);
    assert_int_equal(mb_kv_extend(&f.kv, table, 128), 0);
    int32_t whole = f.kv.blocks[table * 8];
    f.kv.blocks[table * 8] = f.kv.blocks[table * 8 + 1];
    assert_non_null(mb_kv_check(&f.kv, f.scratch));
    f.kv.blocks[table * 8] = 8;
    assert_non_null(mb_kv_check(&f.kv, f.scratch));
    f.kv.blocks[table * 8] = whole;
    for (int change = -1; change <= 1; change += 2) {
        f.kv.n_holders[whole] += change;
        assert_non_null(mb_kv_check(&f.kv, f.scratch));
        f.kv.n_holders[whole] -= change;
    }
    int32_t lost = f.kv.free_blocks[0];
    f.kv.free_blocks[0] = whole; /* free and held */
    assert_non_null(mb_kv_check(&f.kv, f.scratch));
    f.kv.free_blocks[0] = f.kv.free_blocks[1]; /* free twice */
    assert_non_null(mb_kv_check(&f.kv, f.scratch));
    f.kv.free_blocks[0] = lost;
    f.kv.n_free--;
    assert_non_null(mb_kv_check(&f.kv, f.scratch));
    f.kv.n_free++;
    f.kv.n_promised++;
    assert_non_null(mb_kv_check(&f.kv, f.scratch));
    f.kv.n_promised--;
    f.kv.n_free_tables--;
    assert_non_null(mb_kv_check(&f.kv, f.scratch));
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
    int n_live = 0, n_dry = 0;
    uint64_t random = 20261122;
    for (int step = 0; step < STEPS; step++) {
        uint64_t choice = tiny_random(&random) % 10;
        int32_t held = 0, promised = 0;
        for (int i = 0; i < n_live; i++) {
            int32_t n = (int32_t)mb_kv_blocks_for(live[i].n_tokens);
            held += n;
            promised += live[i].n_reserved > n ? live[i].n_reserved - n : 0;
        }
        assert_int_equal(f.kv.n_free, BLOCKS - held);
        assert_int_equal(f.kv.n_promised, promised);
        if (choice < 3) {
            int64_t n_tokens = 1 + (int64_t)(tiny_random(&random) % (18 * 64));
            int32_t n_blocks = (int32_t)((n_tokens + 63) / 64);
            int32_t table = mb_kv_reserve(&f.kv, n_tokens, NULL, 0);
            assert_int_equal(table >= 0,
                             n_live < TABLES && n_blocks <= 16 && held + promised + n_blocks <= BLOCKS);
            if (table >= 0) {
                live[n_live].table = table;
                live[n_live].n_reserved = n_blocks;
                live[n_live++].n_tokens = 0;
            }
        } else if (choice < 9 && n_live > 0) {
            int i = (int)(tiny_random(&random) % (uint64_t)n_live);
            int64_t n = live[i].n_tokens + (int64_t)(tiny_random(&random) % 150), now = live[i].n_tokens;
            int fits = n <= 16 * 64 && mb_kv_blocks_for(n) - mb_kv_blocks_for(now) <= BLOCKS - held;
            assert_int_equal(mb_kv_extend(&f.kv, live[i].table, n), fits ? 0 : -1);
            n_dry += !fits && n <= 16 * 64;
            if (fits)
                live[i].n_tokens = n;
        } else if (n_live > 0) {
            int i = (int)(tiny_random(&random) % (uint64_t)n_live);
            mb_kv_release(&f.kv, &live[i].table);
            live[i] = live[--n_live];
        }
        check(&f);
    }
    assert_true(n_dry > STEPS / 100);
    while (n_live > 0)
        mb_kv_release(&f.kv, &live[--n_live].table);
    assert_int_equal(f.kv.n_free, BLOCKS);
    assert_int_equal(f.kv.n_promised, 0);
    close_kv(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_are_counted_at_their_edges),
        cmocka_unit_test(test_a_table_grows_beyond_its_reservation),
        cmocka_unit_test(test_reserved_blocks_are_not_given_to_newcomers),
        cmocka_unit_test(test_limits_of_tables_and_lengths),
        cmocka_unit_test(test_slots_follow_the_table),
        cmocka_unit_test(test_shared_blocks_are_not_taken_twice),
        cmocka_unit_test(test_release_in_any_order),
        cmocka_unit_test(test_random_sharing),
        cmocka_unit_test(test_check_sees_damage),
        cmocka_unit_test(test_random_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
