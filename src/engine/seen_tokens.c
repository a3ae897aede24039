#include "engine/seen_tokens.h"

#include <string.h>

void mb_seen_init(mb_seen_tokens *seen, mb_arena *arena, size_t capacity) {
    size_t n_buckets = 16;
    while (n_buckets < 2 * capacity)
        n_buckets *= 2;
    *seen = (mb_seen_tokens){.bucket_mask = (uint32_t)(n_buckets - 1)};
    seen->ids = mb_arena_push(arena, capacity, sizeof *seen->ids);
    seen->counts = mb_arena_push(arena, capacity, sizeof *seen->counts);
    seen->buckets = mb_arena_push(arena, n_buckets, sizeof *seen->buckets);
    if (arena->base)
        memset(seen->buckets, 0, n_buckets * sizeof *seen->buckets);
}

void mb_seen_add(mb_seen_tokens *seen, int32_t id, int32_t times) {
    uint32_t bucket = ((uint32_t)id * 2654435769u) & seen->bucket_mask; /* Fibonacci hashing's multiplier */
    while (seen->buckets[bucket] != 0 && seen->ids[seen->buckets[bucket] - 1] != id)
        bucket = (bucket + 1) & seen->bucket_mask;
    if (seen->buckets[bucket] == 0) {
        seen->ids[seen->n] = id;
        seen->counts[seen->n] = 0;
        seen->buckets[bucket] = ++seen->n;
    }
    seen->counts[seen->buckets[bucket] - 1] += times;
}
