/* seen_tokens.h - the distinct tokens of a prompt and its answer, counted for sampling penalties. */
#ifndef MB_ENGINE_SEEN_TOKENS_H
#define MB_ENGINE_SEEN_TOKENS_H

#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"

typedef struct mb_seen_tokens {
    int32_t *ids, *counts; /* [n]: each token once; occurrences in the answer */
    int32_t n;
    int32_t *buckets; /* open addressing: index into ids plus 1, 0 is empty */
    uint32_t bucket_mask;
} mb_seen_tokens;

/* Cuts memory for `capacity` <= 2^30 distinct tokens; on a measuring arena nothing else happens. */
void mb_seen_init(mb_seen_tokens *seen, mb_arena *arena, size_t capacity);

/* Adds `times` occurrences (0 for a token of the prompt). */
void mb_seen_add(mb_seen_tokens *seen, int32_t id, int32_t times);

#endif
