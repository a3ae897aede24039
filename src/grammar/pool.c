#include "grammar/pool.h"

#include <stdint.h>

#include "base/alloc.h"

enum {
    BLOCK_BYTES = 64 << 10,
    MAX_BYTES = 64 << 20, /* a schema of 1 MB needs less */
    ALIGNMENT = 16,
};

struct mb_pool_block {
    mb_pool_block *next;
    size_t capacity, used;
    _Alignas(ALIGNMENT) char bytes[];
};

static mb_status out_of_memory(mb_grammar_pool *pool) {
    if (pool->status == MB_OK)
        pool->status = mb_fail(MB_ERR_MEMORY, "no memory to compile a grammar");
    return pool->status;
}

mb_status mb_grammar_too_large(mb_grammar_pool *pool, const char *what, size_t limit) {
    if (pool->status == MB_OK)
        pool->status =
            mb_fail(MB_ERR_CAPACITY,
                    "the grammar is too large: compiled it has more than %zu %s; make it simpler, or "
                    "its counts smaller",
                    limit, what);
    return pool->status;
}

void *mb_grammar_pool_push(mb_grammar_pool *pool, size_t count, size_t item_bytes) {
    size_t n_bytes;
    if (pool->status != MB_OK)
        return NULL;
    if (__builtin_mul_overflow(count, item_bytes, &n_bytes) || n_bytes > MAX_BYTES - pool->n_bytes) {
        mb_grammar_too_large(pool, "bytes", MAX_BYTES);
        return NULL;
    }
    n_bytes = (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    mb_pool_block *block = pool->blocks;
    if (!block || block->capacity - block->used < n_bytes) {
        size_t capacity = n_bytes > BLOCK_BYTES ? n_bytes : BLOCK_BYTES;
        block = mb_calloc(1, sizeof *block + capacity);
        if (!block) {
            out_of_memory(pool);
            return NULL;
        }
        *block = (mb_pool_block){.next = pool->blocks, .capacity = capacity};
        pool->blocks = block;
        pool->n_bytes += capacity;
    }
    void *piece = block->bytes + block->used;
    block->used += n_bytes;
    return piece;
}

void mb_grammar_pool_free(mb_grammar_pool *pool) {
    while (pool->blocks) {
        mb_pool_block *next = pool->blocks->next;
        mb_free(pool->blocks);
        pool->blocks = next;
    }
    *pool = (mb_grammar_pool){0};
}

int mb_grammar_grow(mb_grammar_pool *pool, void **items, size_t *capacity, size_t count, size_t item_bytes) {
    if (pool->status != MB_OK)
        return -1;
    if (mb_grow(items, capacity, count, item_bytes) == 0)
        return 0;
    out_of_memory(pool);
    return -1;
}
