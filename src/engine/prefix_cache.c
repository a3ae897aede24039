#include "engine/prefix_cache.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

void mb_prefix_cache_init(mb_prefix_cache *cache, mb_arena *arena, int32_t n_blocks) {
    uint64_t n_buckets = 16;
    while (n_buckets < 2 * (uint64_t)n_blocks)
        n_buckets *= 2;
    *cache =
        (mb_prefix_cache){.n_blocks = n_blocks, .oldest = -1, .newest = -1, .bucket_mask = n_buckets - 1};
    cache->entries = mb_arena_push(arena, (size_t)n_blocks, sizeof *cache->entries);
    cache->tokens = mb_arena_push(arena, (size_t)n_blocks, MB_KV_BLOCK_TOKENS * sizeof *cache->tokens);
    cache->buckets = mb_arena_push(arena, (size_t)n_buckets, sizeof *cache->buckets);
    if (!arena->base)
        return;
    memset(cache->entries, 0, (size_t)n_blocks * sizeof *cache->entries);
    for (uint64_t i = 0; i < n_buckets; i++)
        cache->buckets[i] = -1;
}

mb_prefix mb_prefix_begin(uint64_t salt) {
    return (mb_prefix){.salt = salt, .hash = {salt, 0}, .block = -1};
}

/* ---- Entries --------------------------------------------------------------------------------------- */

static int32_t *tokens_of(const mb_prefix_cache *cache, int32_t block) {
    return cache->tokens + (size_t)block * MB_KV_BLOCK_TOKENS;
}

static int32_t *bucket_of(const mb_prefix_cache *cache, const uint64_t *hash) {
    return &cache->buckets[hash[0] & cache->bucket_mask];
}

/* Of the prefix and the 64 tokens after it. */
static void hash_next(const mb_prefix *prefix, const int32_t *tokens, uint64_t *hash) {
    struct {
        uint64_t parent[2];
        int32_t tokens[MB_KV_BLOCK_TOKENS];
    } key;
    memcpy(key.parent, prefix->hash, sizeof key.parent);
    memcpy(key.tokens, tokens, sizeof key.tokens);
    XXH128_hash_t hashed = XXH3_128bits(&key, sizeof key);
    hash[0] = hashed.low64;
    hash[1] = hashed.high64;
}

static int32_t find_hashed(const mb_prefix_cache *cache, const mb_prefix *prefix, const int32_t *tokens,
                           const uint64_t *hash) {
    int32_t block = *bucket_of(cache, hash);
    for (; block >= 0; block = cache->entries[block].next_in_bucket) {
        const mb_prefix_entry *entry = &cache->entries[block];
        if (entry->hash[0] == hash[0] && entry->hash[1] == hash[1] && entry->parent == prefix->serial &&
            entry->salt == prefix->salt &&
            memcmp(tokens_of(cache, block), tokens, MB_KV_BLOCK_TOKENS * sizeof *tokens) == 0)
            break;
    }
    return block;
}

static void go_on(const mb_prefix_cache *cache, mb_prefix *prefix, int32_t block) {
    const mb_prefix_entry *entry = &cache->entries[block];
    memcpy(prefix->hash, entry->hash, sizeof prefix->hash);
    prefix->serial = entry->serial;
    prefix->block = block;
    prefix->n_blocks++;
}

int32_t mb_prefix_cache_find(const mb_prefix_cache *cache, mb_prefix *prefix, const int32_t *tokens) {
    uint64_t hash[2];
    hash_next(prefix, tokens, hash);
    int32_t block = find_hashed(cache, prefix, tokens, hash);
    if (block >= 0)
        go_on(cache, prefix, block);
    return block;
}

int mb_prefix_cache_has(const mb_prefix_cache *cache, const mb_prefix *prefix) {
    return prefix->serial == 0 || cache->entries[prefix->block].serial == prefix->serial;
}

void mb_prefix_cache_add(mb_prefix_cache *cache, mb_prefix *prefix, const int32_t *tokens, int32_t block) {
    uint64_t hash[2];
    hash_next(prefix, tokens, hash);
    int32_t present = find_hashed(cache, prefix, tokens, hash);
    mb_prefix_entry *entry = &cache->entries[block];
    if (present < 0) {
        present = block;
        if (entry->serial == 0) {
            int32_t *bucket = bucket_of(cache, hash);
            *entry = (mb_prefix_entry){.serial = ++cache->last_serial,
                                       .salt = prefix->salt,
                                       .hash = {hash[0], hash[1]},
                                       .next_in_bucket = *bucket,
                                       .older = -1,
                                       .newer = -1};
            *bucket = block;
            memcpy(tokens_of(cache, block), tokens, MB_KV_BLOCK_TOKENS * sizeof *tokens);
            cache->n_cached++;
        }
        /* An entry whose parent was evicted and computed again gets the new parent. */
        entry->parent = prefix->serial;
    }
    go_on(cache, prefix, present);
}

void mb_prefix_cache_forget(mb_prefix_cache *cache, int32_t block) {
    mb_prefix_entry *entry = &cache->entries[block];
    if (entry->serial == 0)
        return;
    int32_t *place = bucket_of(cache, entry->hash);
    while (*place != block)
        place = &cache->entries[*place].next_in_bucket;
    *place = entry->next_in_bucket;
    entry->serial = 0;
    cache->n_cached--;
}

/* ---- Idle blocks ----------------------------------------------------------------------------------- */

void mb_prefix_cache_leave(mb_prefix_cache *cache, int32_t block) {
    mb_prefix_entry *entry = &cache->entries[block];
    entry->is_idle = 1;
    entry->newer = -1;
    entry->older = cache->newest;
    if (cache->newest >= 0)
        cache->entries[cache->newest].newer = block;
    else
        cache->oldest = block;
    cache->newest = block;
    cache->n_idle++;
}

void mb_prefix_cache_hold(mb_prefix_cache *cache, int32_t block) {
    mb_prefix_entry *entry = &cache->entries[block];
    if (entry->older >= 0)
        cache->entries[entry->older].newer = entry->newer;
    else
        cache->oldest = entry->newer;
    if (entry->newer >= 0)
        cache->entries[entry->newer].older = entry->older;
    else
        cache->newest = entry->older;
    entry->is_idle = 0;
    cache->n_idle--;
}

int32_t mb_prefix_cache_evict(mb_prefix_cache *cache) {
    int32_t block = cache->oldest;
    if (block >= 0) {
        mb_prefix_cache_hold(cache, block);
        mb_prefix_cache_forget(cache, block);
    }
    return block;
}

/* ---- Check ----------------------------------------------------------------------------------------- */

static const char *check_idle(const mb_prefix_cache *cache) {
    int32_t n = 0, older = -1;
    for (int32_t block = cache->oldest; block >= 0; block = cache->entries[block].newer) {
        const mb_prefix_entry *entry = &cache->entries[block];
        if (++n > cache->n_idle || entry->older != older)
            return "the list of idle blocks is broken";
        if (!entry->is_idle || entry->serial == 0)
            return "a block in the list of idle blocks is not idle, or not cached";
        older = block;
    }
    int32_t n_marked = 0;
    for (int32_t block = 0; block < cache->n_blocks; block++)
        n_marked += cache->entries[block].is_idle;
    return n != cache->n_idle || n_marked != n || cache->newest != older ? "the idle blocks are miscounted"
                                                                         : NULL;
}

const char *mb_prefix_cache_check(const mb_prefix_cache *cache) {
    int32_t n_in_buckets = 0, n_cached = 0;
    for (uint64_t i = 0; i <= cache->bucket_mask; i++)
        for (int32_t block = cache->buckets[i]; block >= 0; block = cache->entries[block].next_in_bucket) {
            const mb_prefix_entry *entry = &cache->entries[block];
            if (++n_in_buckets > cache->n_cached || entry->serial == 0 ||
                entry->serial > cache->last_serial || (entry->hash[0] & cache->bucket_mask) != i)
                return "a block is in a bucket that it does not belong to";
        }
    for (int32_t block = 0; block < cache->n_blocks; block++)
        n_cached += cache->entries[block].serial != 0;
    if (n_in_buckets != cache->n_cached || n_cached != cache->n_cached)
        return "the cached blocks are miscounted";
    return check_idle(cache);
}
