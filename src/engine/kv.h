/*
 * kv.h - who owns which block of the paged KV cache. Policy only: no memory of the cache is touched here.
 *
 * A sequence is admitted by reserving blocks for its worst case (prompt plus all tokens it may generate),
 * so an admitted sequence never has to be preempted. Its table takes blocks out of the reservation as the
 * sequence grows, and gives all of them back at once. Tables may share blocks whose 64 positions are the
 * same in both: a block counts the tables that hold it, and is free when the last of them is released.
 * Nothing is allocated after mb_kv_init.
 */
#ifndef MB_ENGINE_KV_H
#define MB_ENGINE_KV_H

#include <stdint.h>

#include "base/arena.h"

enum { MB_KV_BLOCK_TOKENS = 64 };

/* Blocks that n_tokens >= 0 positions take. */
static inline int64_t mb_kv_blocks_for(int64_t n_tokens) {
    return n_tokens / MB_KV_BLOCK_TOKENS + (n_tokens % MB_KV_BLOCK_TOKENS != 0);
}

typedef struct mb_kv_table {
    int32_t n_blocks;   /* held: the front of the table's row in `blocks` */
    int32_t n_reserved; /* may be held at most; 0: the table is not in use */
} mb_kv_table;

typedef struct mb_kv {
    int32_t n_blocks, max_tables, max_blocks; /* max_blocks: of one table */
    int32_t n_free;                           /* blocks that no table holds */
    int32_t n_promised;                       /* of the free ones, reserved by tables but not yet taken */
    int32_t *free_blocks;                     /* [n_blocks], a stack of n_free */
    int32_t *n_holders;                       /* [n_blocks] tables that hold the block; 0: it is free */
    int32_t *blocks;                          /* [max_tables, max_blocks] */
    mb_kv_table *tables;                      /* [max_tables] */
    int32_t *free_tables;                     /* [max_tables], a stack of n_free_tables */
    int32_t n_free_tables;
} mb_kv;

/* Cuts the bookkeeping from `arena`; on a measuring arena nothing else happens. */
void mb_kv_init(mb_kv *kv, mb_arena *arena, int32_t n_blocks, int32_t max_tables, int32_t max_blocks);

/* Whether an empty cache could hold n_tokens positions of one sequence. */
int mb_kv_can_ever_fit(const mb_kv *kv, int64_t n_tokens);

/* Reserves blocks for n_tokens >= 1 positions. The first n_cached blocks are in the cache already: `cached`
 * names them. They belong to other tables, are shared from now on, and must not be written again. Returns
 * the new table, or -1 when there are not enough unreserved blocks, when no table is left, or when n_tokens
 * take fewer blocks than n_cached. */
int32_t mb_kv_reserve(mb_kv *kv, int64_t n_tokens, const int32_t *cached, int32_t n_cached);

/* Makes the table hold the blocks of positions [0, n_tokens). 0; -1 when that is more than was reserved. */
int mb_kv_extend(mb_kv *kv, int32_t table, int64_t n_tokens);

/* The table's blocks in the order of positions, and the cache row of a position that it holds. */
const int32_t *mb_kv_blocks(const mb_kv *kv, int32_t table);
int32_t mb_kv_slot(const mb_kv *kv, int32_t table, int64_t position);

/* Frees the table, its reservation, and those of its blocks that no other table holds. Sets *table to -1;
 * does nothing when *table is -1 already. */
void mb_kv_release(mb_kv *kv, int32_t *table);

/* For tests: NULL when all counts agree, every block is either free or knows how many tables hold it, and
 * no table holds a block twice; else what is wrong. scratch: [2 * n_blocks]. */
const char *mb_kv_check(const mb_kv *kv, int32_t *scratch);

#endif
