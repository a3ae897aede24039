#include "engine/kv.h"

#include <string.h>

void mb_kv_init(mb_kv *kv, mb_arena *arena, int32_t n_blocks, int32_t max_tables, int32_t max_blocks) {
    *kv = (mb_kv){.n_blocks = n_blocks, .max_tables = max_tables, .max_blocks = max_blocks};
    kv->free_blocks = mb_arena_push(arena, (size_t)n_blocks, sizeof *kv->free_blocks);
    kv->blocks = mb_arena_push(arena, (size_t)max_tables * (size_t)max_blocks, sizeof *kv->blocks);
    kv->tables = mb_arena_push(arena, (size_t)max_tables, sizeof *kv->tables);
    kv->free_tables = mb_arena_push(arena, (size_t)max_tables, sizeof *kv->free_tables);
    if (!arena->base)
        return;
    /* The stacks are filled so that low numbers are handed out first. */
    for (int32_t i = 0; i < n_blocks; i++)
        kv->free_blocks[i] = n_blocks - 1 - i;
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

int32_t mb_kv_reserve(mb_kv *kv, int64_t n_tokens) {
    int64_t n = mb_kv_blocks_for(n_tokens);
    if (n < 1 || n > kv->max_blocks || n > kv->n_free - kv->n_promised || kv->n_free_tables == 0)
        return -1;
    int32_t table = kv->free_tables[--kv->n_free_tables];
    kv->tables[table] = (mb_kv_table){.n_blocks = 0, .n_reserved = (int32_t)n};
    kv->n_promised += (int32_t)n;
    return table;
}

int mb_kv_extend(mb_kv *kv, int32_t table, int64_t n_tokens) {
    mb_kv_table *owner = &kv->tables[table];
    int64_t n = mb_kv_blocks_for(n_tokens);
    if (n > owner->n_reserved)
        return -1;
    int32_t *blocks = kv->blocks + (size_t)table * (size_t)kv->max_blocks;
    while (owner->n_blocks < n) {
        blocks[owner->n_blocks++] = kv->free_blocks[--kv->n_free];
        kv->n_promised--;
    }
    return 0;
}

const int32_t *mb_kv_blocks(const mb_kv *kv, int32_t table) {
    return kv->blocks + (size_t)table * (size_t)kv->max_blocks;
}

int32_t mb_kv_slot(const mb_kv *kv, int32_t table, int64_t position) {
    int32_t block = mb_kv_blocks(kv, table)[position / MB_KV_BLOCK_TOKENS];
    return block * MB_KV_BLOCK_TOKENS + (int32_t)(position % MB_KV_BLOCK_TOKENS);
}

void mb_kv_release(mb_kv *kv, int32_t *table) {
    if (*table < 0)
        return;
    mb_kv_table *owner = &kv->tables[*table];
    const int32_t *blocks = mb_kv_blocks(kv, *table);
    kv->n_promised -= owner->n_reserved - owner->n_blocks;
    while (owner->n_blocks > 0)
        kv->free_blocks[kv->n_free++] = blocks[--owner->n_blocks];
    owner->n_reserved = 0;
    kv->free_tables[kv->n_free_tables++] = *table;
    *table = -1;
}

static const char *mark(const mb_kv *kv, uint8_t *marks, const int32_t *blocks, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        if (blocks[i] < 0 || blocks[i] >= kv->n_blocks)
            return "a block number is outside of the pool";
        if (marks[blocks[i]]++)
            return "a block is owned twice";
    }
    return NULL;
}

const char *mb_kv_check(const mb_kv *kv, uint8_t *marks) {
    memset(marks, 0, (size_t)kv->n_blocks);
    const char *problem = mark(kv, marks, kv->free_blocks, kv->n_free);
    int64_t n_owned = 0, n_promised = 0;
    int32_t n_free_tables = 0;
    for (int32_t i = 0; i < kv->max_tables && !problem; i++) {
        const mb_kv_table *table = &kv->tables[i];
        if (table->n_blocks < 0 || table->n_blocks > table->n_reserved)
            return "a table owns more than it reserved";
        problem = mark(kv, marks, mb_kv_blocks(kv, i), table->n_blocks);
        n_owned += table->n_blocks;
        n_promised += table->n_reserved - table->n_blocks;
        n_free_tables += table->n_reserved == 0;
    }
    if (problem)
        return problem;
    if (n_owned + kv->n_free != kv->n_blocks)
        return "blocks were lost";
    if (n_promised != kv->n_promised || kv->n_promised > kv->n_free)
        return "the promised blocks are miscounted";
    if (n_free_tables != kv->n_free_tables)
        return "tables were lost";
    return NULL;
}
