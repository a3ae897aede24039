/* pool.h - memory of one compilation: handed out in pieces, freed all at once, limited in size. */
#ifndef MB_GRAMMAR_POOL_H
#define MB_GRAMMAR_POOL_H

#include <stddef.h>

#include "base/status.h"

typedef struct mb_pool_block mb_pool_block;

/* The first failure is kept: callers allocate freely and look at status now and then. */
typedef struct mb_grammar_pool {
    mb_pool_block *blocks;
    size_t n_bytes; /* of all blocks */
    mb_status status;
} mb_grammar_pool;

/* Zeroed memory, aligned for any type. NULL, with the sentence recorded and pool->status set, when there is
 * no memory (MB_ERR_MEMORY) or the compilation holds too much of it (MB_ERR_CAPACITY). */
void *mb_grammar_pool_push(mb_grammar_pool *pool, size_t count, size_t item_bytes);
void mb_grammar_pool_free(mb_grammar_pool *pool);

/* As mb_grow, with the failure kept in the pool. Returns 0, or -1. */
int mb_grammar_grow(mb_grammar_pool *pool, void **items, size_t *capacity, size_t count, size_t item_bytes);

/* "the grammar is too large when compiled": records it, keeps it in the pool and returns it. */
mb_status mb_grammar_too_large(mb_grammar_pool *pool, const char *what, size_t limit);

#endif
