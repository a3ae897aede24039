/*
 * kv.h - who owns which block of the paged KV cache. Policy only: no memory of the cache is touched here.
 *
 * A sequence is admitted by reserving blocks for the tokens that it is likely to have. Its table takes blocks
 * as the sequence grows, and gives all of them back at once. A reservation counts when others are admitted,
 * and only then: a table may grow beyond its own, and takes any block that is left. So the pool can run dry,
 * and then the scheduler preempts a sequence.
 *
 * Tables share blocks whose 64 positions are the same in all of them: a block counts the tables that hold it.
 * When the last of these is released, the block is free, or, when it is in the prefix cache, idle: it
 * is still found by the tokens in it, until somebody needs a block and none is free. Nothing is
 * allocated after mb_kv_init.
 */
#ifndef MB_ENGINE_KV_H
#define MB_ENGINE_KV_H

#include <stdint.h>

#include "base/arena.h"
#include "engine/prefix_cache.h"

/* Blocks that n_tokens >= 0 positions take. */
static inline int64_t mb_kv_blocks_for(int64_t n_tokens) {
    return n_tokens / MB_KV_BLOCK_TOKENS + (n_tokens % MB_KV_BLOCK_TOKENS != 0);
}

typedef struct mb_kv_table {
    int32_t n_blocks;   /* held: the front of the table's row in `blocks` */
    int32_t n_reserved; /* at least n_blocks; 0: the table is not in use */
} mb_kv_table;

typedef struct mb_kv {
    int32_t n_blocks, max_tables, max_blocks; /* max_blocks: of one table */
    int32_t n_free;                           /* blocks that no table holds and that are not cached */
    int32_t n_promised;                       /* reserved by tables but not yet taken */
    int32_t *free_blocks;                     /* [n_blocks], a stack of n_free */
    int32_t *n_holders;                       /* [n_blocks] tables that hold the block; 0: free or idle */
    int32_t *blocks;                          /* [max_tables, max_blocks] */
    mb_kv_table *tables;                      /* [max_tables] */
    int32_t *free_tables;                     /* [max_tables], a stack of n_free_tables */
    int32_t n_free_tables;
    mb_prefix_cache cache;
} mb_kv;

/* Cuts the bookkeeping from `arena`; on a measuring arena nothing else happens. */
void mb_kv_init(mb_kv *kv, mb_arena *arena, int32_t n_blocks, int32_t max_tables, int32_t max_blocks);

/* Blocks that a table can take: free ones and idle ones. */
static inline int32_t mb_kv_available(const mb_kv *kv) {
    return kv->n_free + kv->cache.n_idle;
}

/* Whether an empty cache could hold n_tokens positions of one sequence. */
int mb_kv_can_ever_fit(const mb_kv *kv, int64_t n_tokens);

/* Reserves blocks for n_tokens >= 1 positions. `shared` names its first n_shared blocks: they are idle, or
 * held by other tables too, and must not be written. Returns the new table, or -1 when there are not enough
 * blocks beyond those that are promised to others, when no table is left, or when n_tokens take fewer blocks
 * than n_shared. */
int32_t mb_kv_reserve(mb_kv *kv, int64_t n_tokens, const int32_t *shared, int32_t n_shared);

/* Makes the table hold the blocks of positions [0, n_tokens). 0; -1 when not enough blocks are available, or
 * when they are more than max_blocks, and then nothing is taken. */
int mb_kv_extend(mb_kv *kv, int32_t table, int64_t n_tokens);

/* Appends a cached block, idle or held by other tables, to the table's blocks. The block
 * must not be written. */
void mb_kv_append_shared(mb_kv *kv, int32_t table, int32_t block);

/* The table's blocks in the order of positions, and the cache row of a position that it holds. */
const int32_t *mb_kv_blocks(const mb_kv *kv, int32_t table);
int32_t mb_kv_slot(const mb_kv *kv, int32_t table, int64_t position);

/* Frees the table, its reservation, and those of its blocks that no other table holds. Those of them that are
 * cached become idle, the last ones of the sequence first, because they are worth nothing without the others.
 * Sets *table to -1; does nothing when *table is -1 already. */
void mb_kv_release(mb_kv *kv, int32_t *table);

/* Takes all of the table's blocks out of the prefix cache. */
void mb_kv_forget(mb_kv *kv, int32_t table);

/* For tests: NULL when all counts agree, every block is free or idle or knows how many tables hold it, no
 * table holds a block twice, and the prefix cache is sound; else what is wrong. scratch: [2 * n_blocks]. */
const char *mb_kv_check(const mb_kv *kv, int32_t *scratch);

#endif
