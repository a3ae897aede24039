/*
 * bpe.h - byte-pair merges by rank (Sennrich et al. 2016; over bytes as in GPT-2): the pair of neighbours
 * with the lowest rank is merged first, the leftmost of equals, until no neighbours can be merged.
 */
#ifndef MB_MODEL_BPE_H
#define MB_MODEL_BPE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mb_merge {
    int32_t left, right; /* left -1: an empty slot */
    int32_t rank, merged;
} mb_merge;

typedef struct mb_bpe {
    mb_merge *merges; /* open addressing by (left, right) */
    size_t n_slots;   /* a power of two */
    int32_t byte_ids[256];
} mb_bpe;

/* Makes room for n_merges merges. The caller fills byte_ids. */
mb_status mb_bpe_init(mb_bpe *bpe, const char *path, size_t n_merges);
void mb_bpe_free(mb_bpe *bpe);

/* Returns 0 when the pair has a merge already. */
int mb_bpe_add(mb_bpe *bpe, mb_merge merge);

/* Working memory of merging, reused from piece to piece; starts as {0}. */
typedef struct mb_bpe_work {
    struct mb_bpe_symbol *symbols;
    uint64_t *heap;
    size_t symbols_capacity, heap_capacity, n_heap;
} mb_bpe_work;

void mb_bpe_work_free(mb_bpe_work *work);

/* Merges a piece of 1 to INT32_MAX / 2 bytes. The tokens go to `ids`, which has room for n_bytes, their
 * number to *n_ids. O(n log n) time, O(n) memory, no recursion. */
mb_status mb_bpe_merge(const mb_bpe *bpe, const char *piece, size_t n_bytes, mb_bpe_work *work, int32_t *ids,
                       size_t *n_ids);

#endif
