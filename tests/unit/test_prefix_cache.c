/* The prefix cache with the KV bookkeeping: what is found, what is evicted, and random use
 * against a plain model. */
#include "engine/prefix_cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/kv.h"
#include "support/tiny_checkpoint.h"

enum { BLOCK = MB_KV_BLOCK_TOKENS, MAX_BLOCKS = 8 };

typedef struct fixture {
    mb_kv kv;
    void *memory;
    int32_t *scratch;
} fixture;

static void open_cache(fixture *f, int32_t n_blocks, int32_t max_tables) {
    mb_arena arena;
    mb_arena_measure(&arena);
    mb_kv_init(&f->kv, &arena, n_blocks, max_tables, MAX_BLOCKS);
    size_t n_bytes = arena.used;
    f->memory = malloc(n_bytes);
    f->scratch = malloc(2 * (size_t)n_blocks * sizeof *f->scratch);
    memset(f->memory, 0xEE, n_bytes);
    mb_arena_init(&arena, f->memory, n_bytes, 1);
    mb_kv_init(&f->kv, &arena, n_blocks, max_tables, MAX_BLOCKS);
}

static void check(const fixture *f) {
    const char *problem = mb_kv_check(&f->kv, f->scratch);
    if (problem)
        fail_msg("%s", problem);
}

static void close_cache(fixture *f) {
    check(f);
    free(f->memory);
    free(f->scratch);
}

/* A sequence of blocks: each letter is a block of 64 tokens that differ from those of other letters in the
 * last one only. */
typedef struct sequence {
    int32_t tokens[MAX_BLOCKS * BLOCK];
    int32_t n_blocks, table;
    mb_prefix prefix;
} sequence;

static sequence sequence_of(const char *letters, uint64_t salt) {
    sequence s = {.n_blocks = (int32_t)strlen(letters), .table = -1, .prefix = mb_prefix_begin(salt)};
    for (int32_t i = 0; i < s.n_blocks * BLOCK; i++)
        s.tokens[i] = i % BLOCK == BLOCK - 1 ? letters[i / BLOCK] : 7;
    return s;
}

static int32_t found_blocks(const fixture *f, const char *letters, uint64_t salt) {
    sequence s = sequence_of(letters, salt);
    int32_t n = 0;
    while (n < s.n_blocks && mb_prefix_cache_find(&f->kv.cache, &s.prefix, s.tokens + n * BLOCK) >= 0)
        n++;
    assert_int_equal(s.prefix.n_blocks, n);
    return n;
}

/* Begins with the blocks that are found. Returns how many, or -1 when the pool has no room. */
static int32_t start(fixture *f, sequence *s, const char *letters, uint64_t salt) {
    int32_t found[MAX_BLOCKS], n = 0;
    *s = sequence_of(letters, salt);
    for (; n < s->n_blocks; n++) {
        found[n] = mb_prefix_cache_find(&f->kv.cache, &s->prefix, s->tokens + n * BLOCK);
        if (found[n] < 0)
            break;
    }
    s->table = mb_kv_reserve(&f->kv, (int64_t)s->n_blocks * BLOCK, found, n);
    return s->table < 0 ? -1 : n;
}

/* Computes the blocks that are missing, and publishes them. */
static void compute(fixture *f, sequence *s) {
    assert_int_equal(mb_kv_extend(&f->kv, s->table, (int64_t)s->n_blocks * BLOCK), 0);
    while (s->prefix.n_blocks < s->n_blocks) {
        int32_t i = s->prefix.n_blocks;
        mb_prefix_cache_add(&f->kv.cache, &s->prefix, s->tokens + i * BLOCK,
                            mb_kv_blocks(&f->kv, s->table)[i]);
    }
    check(f);
}

/* A whole life: returns how many blocks were found. */
static int32_t live(fixture *f, const char *letters, uint64_t salt) {
    sequence s;
    int32_t n_found = start(f, &s, letters, salt);
    compute(f, &s);
    mb_kv_release(&f->kv, &s.table);
    check(f);
    return n_found;
}

/* ---- What is found --------------------------------------------------------------------------------- */

static void test_the_same_beginning_is_found(void **state) {
    (void)state;
    fixture f;
    open_cache(&f, 16, 4);
    assert_int_equal(live(&f, "abc", 0), 0);
    assert_int_equal(f.kv.n_free, 13);
    assert_int_equal(mb_kv_available(&f.kv), 16); /* they are there, and can be had */
    assert_int_equal(found_blocks(&f, "abc", 0), 3);
    assert_int_equal(found_blocks(&f, "abx", 0), 2);
    assert_int_equal(found_blocks(&f, "abcd", 0), 3);
    assert_int_equal(found_blocks(&f, "b", 0), 0); /* the same tokens after others */
    assert_int_equal(found_blocks(&f, "xbc", 0), 0);
    assert_int_equal(live(&f, "abxc", 0), 2);
    assert_int_equal(found_blocks(&f, "abxc", 0), 4);
    assert_int_equal(found_blocks(&f, "abc", 0), 3);
    assert_int_equal(f.kv.n_free, 11);
    close_cache(&f);
}

static void test_salts_share_nothing(void **state) {
    (void)state;
    fixture f;
    open_cache(&f, 16, 4);
    live(&f, "abc", 1);
    assert_int_equal(found_blocks(&f, "abc", 0), 0);
    assert_int_equal(found_blocks(&f, "abc", 2), 0);
    assert_int_equal(found_blocks(&f, "abc", 1), 3);
    live(&f, "ab", UINT64_MAX);
    assert_int_equal(f.kv.n_free, 11);
    close_cache(&f);
}

/* The block of the last letter; -1: not all are found. */
static int32_t block_of(const fixture *f, const char *letters, uint64_t salt) {
    sequence s = sequence_of(letters, salt);
    int32_t block = -1;
    for (int32_t i = 0; i < s.n_blocks; i++)
        if ((block = mb_prefix_cache_find(&f->kv.cache, &s.prefix, s.tokens + i * BLOCK)) < 0)
            return -1;
    return block;
}

/* All entries in one bucket, and in turn each with the hash of each other: nothing is found that is not the
 * same. */
static void test_a_hit_does_not_rest_on_the_hash(void **state) {
    (void)state;
    enum { TEXTS = 7 };
    static const struct {
        const char *letters;
        uint64_t salt;
    } texts[TEXTS] = {{"a", 0}, {"ab", 0}, {"x", 0}, {"xb", 0}, {"a", 3}, {"ab", 3}, {"aby", 3}};
    fixture f;
    open_cache(&f, 16, 4);
    f.kv.cache.bucket_mask = 0;
    live(&f, "ab", 0);
    live(&f, "xb", 0);
    live(&f, "aby", 3);
    int32_t blocks[TEXTS];
    for (int i = 0; i < TEXTS; i++) {
        blocks[i] = block_of(&f, texts[i].letters, texts[i].salt);
        assert_true(blocks[i] >= 0);
    }
    mb_prefix_entry *entries = f.kv.cache.entries;
    for (int i = 0; i < TEXTS; i++)
        for (int k = 0; k < TEXTS; k++) {
            uint64_t saved[2] = {entries[blocks[i]].hash[0], entries[blocks[i]].hash[1]};
            memcpy(entries[blocks[i]].hash, entries[blocks[k]].hash, sizeof saved);
            for (int t = 0; t < TEXTS; t++) {
                int32_t found = block_of(&f, texts[t].letters, texts[t].salt);
                assert_true(found == blocks[t] || found == -1);
            }
            memcpy(entries[blocks[i]].hash, saved, sizeof saved);
        }
    close_cache(&f);
}

static void test_running_sequences_share(void **state) {
    (void)state;
    fixture f;
    open_cache(&f, 8, 4);
    sequence a, b;
    assert_int_equal(start(&f, &a, "pqrs", 0), 0);
    compute(&f, &a);
    assert_int_equal(start(&f, &b, "pqxy", 0), 2);
    compute(&f, &b);
    assert_int_equal(mb_kv_available(&f.kv), 2);
    assert_memory_equal(mb_kv_blocks(&f.kv, a.table), mb_kv_blocks(&f.kv, b.table), 2 * sizeof(int32_t));
    mb_kv_release(&f.kv, &a.table);
    assert_int_equal(mb_kv_available(&f.kv), 4);
    assert_int_equal(f.kv.n_free, 2);
    check(&f);
    mb_kv_release(&f.kv, &b.table);
    assert_int_equal(mb_kv_available(&f.kv), 8);
    close_cache(&f);
}

/* ---- What is evicted ------------------------------------------------------------------------------- */

static void test_the_longest_idle_goes_first(void **state) {
    (void)state;
    fixture f;
    open_cache(&f, 6, 4);
    live(&f, "ab", 0);
    live(&f, "cd", 0);
    live(&f, "ef", 0);
    assert_int_equal(f.kv.n_free, 0);
    assert_int_equal(live(&f, "ab", 0), 2); /* used again: now c and d are the oldest */
    live(&f, "g", 0);
    assert_int_equal(found_blocks(&f, "cd", 0), 1); /* the end of a sequence before its beginning */
    live(&f, "h", 0);
    assert_int_equal(found_blocks(&f, "c", 0), 0);
    live(&f, "i", 0);
    assert_int_equal(found_blocks(&f, "ef", 0), 1);
    assert_int_equal(found_blocks(&f, "ab", 0), 2);
    assert_int_equal(found_blocks(&f, "g", 0) + found_blocks(&f, "h", 0) + found_blocks(&f, "i", 0), 3);
    close_cache(&f);
}

static void test_held_blocks_are_not_evicted(void **state) {
    (void)state;
    fixture f;
    open_cache(&f, 4, 4);
    sequence a, b;
    live(&f, "ab", 0);
    assert_int_equal(start(&f, &a, "ab", 0), 2);
    live(&f, "cd", 0);
    assert_int_equal(start(&f, &b, "xyz", 0), -1); /* two are left, and three are needed */
    assert_int_equal(start(&f, &b, "cdz", 0), -1); /* c and d are two of those */
    assert_int_equal(found_blocks(&f, "cd", 0), 2);
    assert_int_equal(start(&f, &b, "xy", 0), 0);
    compute(&f, &b);
    assert_int_equal(found_blocks(&f, "ab", 0), 2);
    assert_int_equal(found_blocks(&f, "c", 0), 0);
    mb_kv_release(&f.kv, &a.table);
    mb_kv_release(&f.kv, &b.table);
    close_cache(&f);
}

/* Two compute the same at once: the first one's blocks are the entries. When these are gone, the other's
 * become entries as soon as it goes on. */
static void test_equal_blocks_take_over(void **state) {
    (void)state;
    fixture f;
    open_cache(&f, 8, 4);
    sequence a, b, c;
    assert_int_equal(start(&f, &a, "pq", 0), 0);
    assert_int_equal(start(&f, &b, "pqr", 0), 0);
    compute(&f, &a);
    b.n_blocks = 2;
    compute(&f, &b);
    assert_int_equal(f.kv.cache.n_cached, 2);
    mb_kv_release(&f.kv, &a.table);
    assert_int_equal(start(&f, &c, "stuvw", 0), 0); /* evicts the second entry, and b holds its own still */
    compute(&f, &c);
    assert_int_equal(found_blocks(&f, "pq", 0), 1);
    assert_false(mb_prefix_cache_has(&f.kv.cache, &b.prefix));
    mb_kv_release(&f.kv, &c.table);
    b.prefix = mb_prefix_begin(0);
    b.n_blocks = 3;
    compute(&f, &b); /* its third block evicts the first entry */
    assert_int_equal(found_blocks(&f, "pqr", 0), 3);
    b.prefix = mb_prefix_begin(0); /* once more: they are entries already */
    compute(&f, &b);
    assert_int_equal(f.kv.cache.n_cached, 3 + 5);
    mb_kv_release(&f.kv, &b.table);
    assert_int_equal(live(&f, "pqr", 0), 3);
    close_cache(&f);
}

/* A child whose parent was evicted and computed again by another gets the new parent. */
static void test_orphans_are_adopted(void **state) {
    (void)state;
    fixture f;
    open_cache(&f, 8, 4);
    sequence a, b;
    assert_int_equal(start(&f, &a, "p", 0), 0);
    assert_int_equal(start(&f, &b, "pqr", 0), 0);
    compute(&f, &a);
    b.n_blocks = 2;
    compute(&f, &b); /* its q is the child of a's p */
    assert_int_equal(found_blocks(&f, "pq", 0), 2);
    mb_kv_forget(&f.kv, a.table);
    assert_int_equal(found_blocks(&f, "pq", 0), 0);
    b.prefix = mb_prefix_begin(0);
    b.n_blocks = 3;
    compute(&f, &b);
    assert_int_equal(found_blocks(&f, "pqr", 0), 3);
    mb_kv_release(&f.kv, &a.table);
    assert_int_equal(f.kv.n_free, 5);
    mb_kv_release(&f.kv, &b.table);
    close_cache(&f);
}

static void test_forgotten_blocks_are_not_found(void **state) {
    (void)state;
    fixture f;
    open_cache(&f, 8, 4);
    sequence a, b;
    live(&f, "abc", 0);
    assert_int_equal(start(&f, &a, "abcd", 0), 3);
    assert_int_equal(start(&f, &b, "ab", 0), 2);
    compute(&f, &a);
    mb_kv_forget(&f.kv, a.table);
    check(&f);
    assert_int_equal(found_blocks(&f, "abcd", 0), 0);
    assert_int_equal(f.kv.cache.n_cached, 0);
    mb_kv_release(&f.kv, &a.table);
    check(&f);
    mb_kv_release(&f.kv, &b.table);
    assert_int_equal(f.kv.n_free, 8);
    close_cache(&f);
}

/* The checker itself must be able to fail. */
static void test_check_sees_damage(void **state) {
    (void)state;
    fixture f;
    open_cache(&f, 8, 4);
    live(&f, "abc", 0);
    sequence a;
    assert_int_equal(start(&f, &a, "a", 0), 1);
    mb_prefix_cache *cache = &f.kv.cache;
    mb_prefix_entry *held = &cache->entries[mb_kv_blocks(&f.kv, a.table)[0]],
                    *idle = &cache->entries[cache->oldest];
#define DAMAGED(place, value)                           \
    do {                                                \
        __typeof__(place) whole = place;                \
        place = value;                                  \
        assert_non_null(mb_kv_check(&f.kv, f.scratch)); \
        place = whole;                                  \
        check(&f);                                      \
    } while (0)
    DAMAGED(held->is_idle, 1);
    DAMAGED(idle->is_idle, 0);
    DAMAGED(idle->serial, 0);
    DAMAGED(held->serial, 0);
    DAMAGED(held->serial, cache->last_serial + 1);
    DAMAGED(held->hash[0], held->hash[0] + 1);
    DAMAGED(held->next_in_bucket, cache->oldest);
    DAMAGED(idle->newer, -1);
    DAMAGED(idle->older, cache->newest);
    DAMAGED(cache->newest, cache->oldest);
    DAMAGED(cache->n_cached, cache->n_cached + 1);
    DAMAGED(cache->n_idle, cache->n_idle - 1);
    DAMAGED(f.kv.n_holders[cache->oldest], 1);
    DAMAGED(cache->entries[f.kv.free_blocks[0]].serial, 1);
#undef DAMAGED
    mb_kv_release(&f.kv, &a.table);
    close_cache(&f);
}

/* ---- Random use ------------------------------------------------------------------------------------ */

enum { BLOCKS = 24, TABLES = 6, STEPS = 30000, LETTERS = 3, SALTS = 2 };

/* The plain model: entries in an array, whole texts compared, and times instead of a list. */
typedef struct model_entry {
    char text[MAX_BLOCKS + 1]; /* all letters up to this block */
    uint64_t salt;
    int32_t block, n_holders;
    int64_t idle_since;
} model_entry;

typedef struct model {
    model_entry entries[BLOCKS];
    int n;
    int64_t now;
} model;

static model_entry *model_find(model *m, const char *letters, int length, uint64_t salt) {
    for (int i = 0; i < m->n; i++)
        if (m->entries[i].salt == salt && (int)strlen(m->entries[i].text) == length &&
            memcmp(m->entries[i].text, letters, (size_t)length) == 0)
            return &m->entries[i];
    return NULL;
}

static void model_evict(model *m) {
    model_entry *oldest = NULL;
    for (int i = 0; i < m->n; i++)
        if (m->entries[i].n_holders == 0 && (!oldest || m->entries[i].idle_since < oldest->idle_since))
            oldest = &m->entries[i];
    assert_non_null(oldest);
    *oldest = m->entries[--m->n];
}

static void random_letters(uint64_t *random, char *letters) {
    int n = 1 + (int)(tiny_random(random) % MAX_BLOCKS);
    for (int i = 0; i < n; i++)
        letters[i] = (char)('a' + tiny_random(random) % LETTERS);
    letters[n] = 0;
}

typedef struct life {
    sequence sequence;
    char letters[MAX_BLOCKS + 1];
    uint64_t salt;
} life;

/* One at a time computes, so no two compute the same block; orphans have tests of their own. */
static void begin_life(fixture *f, model *m, life *l, int *n_lives, uint64_t *random) {
    random_letters(random, l->letters);
    l->salt = tiny_random(random) % SALTS;
    int length = (int)strlen(l->letters), expected = 0, n_idle = 0;
    while (expected < length && model_find(m, l->letters, expected + 1, l->salt))
        n_idle += model_find(m, l->letters, ++expected, l->salt)->n_holders == 0;
    int32_t available = mb_kv_available(&f->kv), n_found = start(f, &l->sequence, l->letters, l->salt);
    if (n_found < 0) {
        assert_true(length - expected > available - n_idle);
        return;
    }
    assert_int_equal(n_found, expected);
    for (int i = 0; i < expected; i++) {
        model_entry *entry = model_find(m, l->letters, i + 1, l->salt);
        assert_int_equal(entry->block, mb_kv_blocks(&f->kv, l->sequence.table)[i]);
        entry->n_holders++;
    }
    int32_t n_free = f->kv.n_free;
    compute(f, &l->sequence);
    for (int i = expected; i < length; i++) {
        if (n_free-- <= 0)
            model_evict(m);
        model_entry *entry = &m->entries[m->n++];
        *entry = (model_entry){
            .salt = l->salt, .n_holders = 1, .block = mb_kv_blocks(&f->kv, l->sequence.table)[i]};
        memcpy(entry->text, l->letters, (size_t)i + 1);
    }
    ++*n_lives;
}

static void end_life(fixture *f, model *m, life *l) {
    for (int i = (int)strlen(l->letters); i > 0; i--) {
        model_entry *entry = model_find(m, l->letters, i, l->salt);
        if (--entry->n_holders == 0)
            entry->idle_since = m->now++;
    }
    mb_kv_release(&f->kv, &l->sequence.table);
    check(f);
}

static void test_random_use(void **state) {
    (void)state;
    fixture f;
    open_cache(&f, BLOCKS, TABLES);
    static life lives[TABLES];
    model m = {0};
    int n_lives = 0;
    uint64_t random = 64, n_hits = 0;
    for (int step = 0; step < STEPS; step++) {
        if (n_lives < TABLES && tiny_random(&random) % 2) {
            int before = n_lives;
            begin_life(&f, &m, &lives[n_lives], &n_lives, &random);
            n_hits += n_lives > before && lives[before].sequence.prefix.n_blocks > 0;
        } else if (n_lives > 0) {
            int i = (int)(tiny_random(&random) % (uint64_t)n_lives);
            end_life(&f, &m, &lives[i]);
            lives[i] = lives[--n_lives];
        }
        assert_int_equal(f.kv.cache.n_cached, m.n);
    }
    assert_true(n_hits > STEPS / 10);
    assert_true(f.kv.cache.last_serial > STEPS / 2); /* so most were evicted */
    while (n_lives > 0)
        end_life(&f, &m, &lives[--n_lives]);
    assert_int_equal(mb_kv_available(&f.kv), BLOCKS);
    close_cache(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_beginning_is_found),
        cmocka_unit_test(test_salts_share_nothing),
        cmocka_unit_test(test_a_hit_does_not_rest_on_the_hash),
        cmocka_unit_test(test_running_sequences_share),
        cmocka_unit_test(test_the_longest_idle_goes_first),
        cmocka_unit_test(test_held_blocks_are_not_evicted),
        cmocka_unit_test(test_equal_blocks_take_over),
        cmocka_unit_test(test_orphans_are_adopted),
        cmocka_unit_test(test_forgotten_blocks_are_not_found),
        cmocka_unit_test(test_check_sees_damage),
        cmocka_unit_test(test_random_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
