/*
 * prefix_cache.h - which blocks of the KV cache hold the keys and values of which tokens, so that a later
 * sequence with the same beginning finds them. Policy only: no memory of the KV cache is touched here.
 *
 * An entry is a full block: 64 tokens after an entry that is its parent, or at the start of a sequence. An
 * entry has a serial number that is never given twice, and knows its parent's. A lookup walks from parent to
 * child and compares the salt, the parent's serial number and all 64 tokens. So a hit means that everything
 * from the start of the sequence is the same; the hash (XXH3-128 over the parent's hash and the tokens, the
 * salt for the first) only finds the bucket.
 *
 * A cached block that no sequence holds is idle. Idle blocks are evicted when a sequence needs a block, the
 * one first that has been idle the longest. An entry whose parent was evicted is found no more, and is
 * evicted in its turn.
 *
 * All operations take constant time, as the buckets are at least twice as many as the blocks.
 */
#ifndef MB_ENGINE_PREFIX_CACHE_H
#define MB_ENGINE_PREFIX_CACHE_H

#include <stdint.h>

#include "base/arena.h"

enum { MB_KV_BLOCK_TOKENS = 64 };

/* How far a sequence has come in the cache: the entry of its last block that is cached. */
typedef struct mb_prefix {
    uint64_t salt;
    uint64_t hash[2];
    uint64_t serial; /* 0: no block yet */
    int32_t block;   /* that has this serial number, if it was not evicted */
    int32_t n_blocks;
} mb_prefix;

typedef struct mb_prefix_entry {
    uint64_t serial; /* 0: the block is not cached */
    uint64_t parent; /* serial number; 0: it is a sequence's first block */
    uint64_t salt;
    uint64_t hash[2];
    int32_t next_in_bucket; /* block; -1: none */
    int32_t is_idle;
    int32_t older, newer; /* of the idle blocks; -1: none */
} mb_prefix_entry;

typedef struct mb_prefix_cache {
    int32_t n_blocks;
    int32_t n_cached, n_idle;
    int32_t oldest, newest; /* idle blocks */
    uint64_t last_serial;
    mb_prefix_entry *entries; /* [n_blocks] */
    int32_t *tokens;          /* [n_blocks, 64] */
    int32_t *buckets;         /* [bucket_mask + 1] first block; -1: none */
    uint64_t bucket_mask;
} mb_prefix_cache;

/* Cuts the bookkeeping from `arena`; on a measuring arena nothing else happens. */
void mb_prefix_cache_init(mb_prefix_cache *cache, mb_arena *arena, int32_t n_blocks);

/* The start of a sequence. Prefixes of different salts share nothing. */
mb_prefix mb_prefix_begin(uint64_t salt);

/* The block that holds the 64 `tokens` after the prefix, which becomes longer by them; -1: there is none. */
int32_t mb_prefix_cache_find(const mb_prefix_cache *cache, mb_prefix *prefix, const int32_t *tokens);

/* Whether the prefix can be found: its last entry has not been evicted. */
int mb_prefix_cache_has(const mb_prefix_cache *cache, const mb_prefix *prefix);

/* Makes `block`, which a sequence holds, the entry of the 64 `tokens` after the prefix, which must be in the
 * cache and becomes longer by them. When another block is that entry already, `block` stays as it was. */
void mb_prefix_cache_add(mb_prefix_cache *cache, mb_prefix *prefix, const int32_t *tokens, int32_t block);

/* The block, which is not idle, is not found any more. Nothing when it is not cached. */
void mb_prefix_cache_forget(mb_prefix_cache *cache, int32_t block);

static inline int mb_prefix_cache_is_cached(const mb_prefix_cache *cache, int32_t block) {
    return cache->entries[block].serial != 0;
}

/* A cached block's last holder has left; the idle block is held again. */
void mb_prefix_cache_leave(mb_prefix_cache *cache, int32_t block);
void mb_prefix_cache_hold(mb_prefix_cache *cache, int32_t block);

/* Forgets the block that has been idle the longest, and returns it; -1: none is idle. */
int32_t mb_prefix_cache_evict(mb_prefix_cache *cache);

/* For tests: NULL when all is consistent; else what is wrong. */
const char *mb_prefix_cache_check(const mb_prefix_cache *cache);

#endif
