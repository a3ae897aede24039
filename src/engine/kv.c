#include "engine/kv.h"

#include <string.h>

void mb_kv_init(mb_kv *kv, mb_arena *arena, int32_t n_blocks, int32_t max_tables, int32_t max_blocks) {
    *kv = (mb_kv){.n_blocks = n_blocks, .max_tables = max_tables, .max_blocks = max_blocks};
    kv->free_blocks = mb_arena_push(arena, (size_t)n_blocks, sizeof *kv->free_blocks);
    kv->n_holders = mb_arena_push(arena, (size_t)n_blocks, sizeof *kv->n_holders);
    kv->blocks = mb_arena_push(arena, (size_t)max_tables * (size_t)max_blocks, sizeof *kv->blocks);
    kv->tables = mb_arena_push(arena, (size_t)max_tables, sizeof *kv->tables);
    kv->free_tables = mb_arena_push(arena, (size_t)max_tables, sizeof *kv->free_tables);
    mb_prefix_cache_init(&kv->cache, arena, n_blocks);
    if (!arena->base)
        return;
    /* The stacks are filled so that low numbers are handed out first. */
    for (int32_t i = 0; i < n_blocks; i++) {
        kv->free_blocks[i] = n_blocks - 1 - i;
        kv->n_holders[i] = 0;
    }
    kv->n_free = n_blocks;
    for (int32_t i = 0; i < max_tables; i++) {
        kv->tables[i] = (mb_kv_table){0, 0};
        kv->free_tables[i] = max_tables - 1 - i;
    }
    kv->n_free_tables = max_tables;
}

int mb_kv_can_ever_fit(const mb_kv *kv, int64_t n_tokens) {
    int64_t n = mb_kv_blocks_for(n_tokens);
    return n <= kv->n_blocks && n <= kv->max_blocks;
}

static int32_t *row_of(const mb_kv *kv, int32_t table) {
    return kv->blocks + (size_t)table * (size_t)kv->max_blocks;
}

/* Blocks that nobody could take any more if these were held. */
static int32_t count_idle(const mb_kv *kv, const int32_t *blocks, int32_t n) {
    int32_t n_idle = 0;
    for (int32_t i = 0; i < n; i++)
        n_idle += kv->n_holders[blocks[i]] == 0;
    return n_idle;
}

int32_t mb_kv_reserve(mb_kv *kv, int64_t n_tokens, const int32_t *shared, int32_t n_shared) {
    int64_t n = mb_kv_blocks_for(n_tokens);
    if (n < 1 || n > kv->max_blocks || n_shared > n || kv->n_free_tables == 0 ||
        n - n_shared > mb_kv_available(kv) - count_idle(kv, shared, n_shared) - kv->n_promised)
        return -1;
    int32_t table = kv->free_tables[--kv->n_free_tables];
    kv->tables[table] = (mb_kv_table){.n_blocks = n_shared, .n_reserved = (int32_t)n};
    for (int32_t i = 0; i < n_shared; i++) {
        row_of(kv, table)[i] = shared[i];
        if (kv->n_holders[shared[i]]++ == 0)
            mb_prefix_cache_hold(&kv->cache, shared[i]);
    }
    kv->n_promised += (int32_t)n - n_shared;
    return table;
}

static void append(mb_kv *kv, int32_t table, int32_t block) {
    mb_kv_table *owner = &kv->tables[table];
    row_of(kv, table)[owner->n_blocks++] = block;
    kv->n_holders[block]++;
    if (owner->n_blocks <= owner->n_reserved)
        kv->n_promised--;
    else
        owner->n_reserved = owner->n_blocks;
}

void mb_kv_append_shared(mb_kv *kv, int32_t table, int32_t block) {
    if (kv->n_holders[block] == 0)
        mb_prefix_cache_hold(&kv->cache, block);
    append(kv, table, block);
}

int mb_kv_extend(mb_kv *kv, int32_t table, int64_t n_tokens) {
    const mb_kv_table *owner = &kv->tables[table];
    int64_t n = mb_kv_blocks_for(n_tokens);
    if (n > kv->max_blocks || n - owner->n_blocks > mb_kv_available(kv))
        return -1;
    while (owner->n_blocks < n)
        append(kv, table, kv->n_free > 0 ? kv->free_blocks[--kv->n_free] : mb_prefix_cache_evict(&kv->cache));
    return 0;
}

const int32_t *mb_kv_blocks(const mb_kv *kv, int32_t table) {
    return row_of(kv, table);
}

int32_t mb_kv_slot(const mb_kv *kv, int32_t table, int64_t position) {
    int32_t block = mb_kv_blocks(kv, table)[position / MB_KV_BLOCK_TOKENS];
    return block * MB_KV_BLOCK_TOKENS + (int32_t)(position % MB_KV_BLOCK_TOKENS);
}

void mb_kv_release(mb_kv *kv, int32_t *table) {
    if (*table < 0)
        return;
    mb_kv_table *owner = &kv->tables[*table];
    kv->n_promised -= owner->n_reserved - owner->n_blocks;
    while (owner->n_blocks > 0) {
        int32_t block = row_of(kv, *table)[--owner->n_blocks];
        if (--kv->n_holders[block] > 0)
            continue;
        if (mb_prefix_cache_is_cached(&kv->cache, block))
            mb_prefix_cache_leave(&kv->cache, block);
        else
            kv->free_blocks[kv->n_free++] = block;
    }
    owner->n_reserved = 0;
    kv->free_tables[kv->n_free_tables++] = *table;
    *table = -1;
}

void mb_kv_forget(mb_kv *kv, int32_t table) {
    for (int32_t i = 0; i < kv->tables[table].n_blocks; i++)
        mb_prefix_cache_forget(&kv->cache, row_of(kv, table)[i]);
}

/* counts[b]: how often block b was seen. last_seen_in[b]: the list that it was seen in last. */
static const char *count_blocks(const mb_kv *kv, const int32_t *blocks, int32_t n, int32_t list,
                                int32_t *counts, int32_t *last_seen_in) {
    for (int32_t i = 0; i < n; i++) {
        int32_t block = blocks[i];
        if (block < 0 || block >= kv->n_blocks)
            return "a block number is outside of the pool";
        if (counts[block] > 0 && last_seen_in[block] == list)
            return "a block stands twice in one list";
        counts[block]++;
        last_seen_in[block] = list;
    }
    return NULL;
}

/* Of the tables: each is sound, and together they hold each block as often as it says. */
static const char *check_tables(const mb_kv *kv, int32_t *counts, int32_t *last_seen_in) {
    int64_t n_promised = 0;
    int32_t n_free_tables = 0;
    memset(counts, 0, (size_t)kv->n_blocks * sizeof *counts);
    for (int32_t i = 0; i < kv->max_tables; i++) {
        const mb_kv_table *table = &kv->tables[i];
        if (table->n_blocks < 0 || table->n_blocks > table->n_reserved)
            return "a table holds more than it reserved";
        const char *problem = count_blocks(kv, mb_kv_blocks(kv, i), table->n_blocks, i, counts, last_seen_in);
        if (problem)
            return problem;
        n_promised += table->n_reserved - table->n_blocks;
        n_free_tables += table->n_reserved == 0;
    }
    for (int32_t i = 0; i < kv->n_blocks; i++)
        if (counts[i] != kv->n_holders[i])
            return "a block's holders are miscounted";
    if (n_promised != kv->n_promised)
        return "the promised blocks are miscounted";
    if (n_free_tables != kv->n_free_tables)
        return "tables were lost";
    return NULL;
}

const char *mb_kv_check(const mb_kv *kv, int32_t *scratch) {
    int32_t *counts = scratch, *last_seen_in = scratch + kv->n_blocks;
    const char *problem = mb_prefix_cache_check(&kv->cache);
    if (!problem)
        problem = check_tables(kv, counts, last_seen_in);
    if (!problem) /* a free block that a table holds is now seen for the second time */
        problem = count_blocks(kv, kv->free_blocks, kv->n_free, -1, counts, last_seen_in);
    for (int32_t i = 0; i < kv->n_blocks && !problem; i++) {
        int32_t n_holders = kv->n_holders[i], is_idle = kv->cache.entries[i].is_idle;
        if (is_idle && n_holders > 0)
            problem = "a block is both held and idle";
        else if (counts[i] != (n_holders > 0 ? n_holders : !is_idle))
            problem = "a block is lost, or two of held, free and idle";
    }
    for (int32_t i = 0; i < kv->n_free && !problem; i++)
        if (mb_prefix_cache_is_cached(&kv->cache, kv->free_blocks[i]))
            problem = "a free block is cached";
    return problem;
}
