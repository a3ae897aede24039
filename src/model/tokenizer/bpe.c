/*
 * bpe.c - merging with a heap of candidate pairs over a doubly linked list of symbols.
 *
 * A candidate is one number, rank * 2^32 + place of the left symbol, so the smallest number is merged
 * first. A node of the heap has four children: half the levels of a binary heap, and the children lie in
 * one cache line. A candidate stays in the heap when one of its symbols is merged away. The heap finds such
 * a candidate stale when the candidate is taken out: the pair at its place has another rank, or none. Each
 * merge takes one candidate and makes at most two, so 2n candidates are enough for n bytes.
 */
#include "model/tokenizer/bpe.h"

#include <string.h>

#include "base/alloc.h"

typedef struct mb_bpe_symbol {
    int32_t id; /* -1: merged into its left neighbour */
    int32_t previous, next;
} symbol;

/* ---- The merges --------------------------------------------------------------------------------------- */

mb_status mb_bpe_init(mb_bpe *bpe, const char *path, size_t n_merges) {
    bpe->n_slots = 16;
    while (bpe->n_slots < 2 * n_merges)
        bpe->n_slots *= 2;
    bpe->merges = mb_malloc_array(bpe->n_slots, sizeof *bpe->merges);
    if (!bpe->merges)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for %zu merges", path, n_merges);
    memset(bpe->merges, 0xFF, bpe->n_slots * sizeof *bpe->merges);
    return MB_OK;
}

void mb_bpe_free(mb_bpe *bpe) {
    mb_free(bpe->merges);
    bpe->merges = NULL;
}

/* The slot that holds the pair, or the empty one where it belongs. */
static mb_merge *find_merge(const mb_bpe *bpe, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key = (key ^ key >> 32) *
          UINT64_C(0x9E3779B97F4A7C15); /* Fibonacci hashing: the high bits are mixed best */
    key ^= key >> 29;
    size_t mask = bpe->n_slots - 1, i = (size_t)(key >> 16) & mask;
    while (bpe->merges[i].left >= 0 && (bpe->merges[i].left != left || bpe->merges[i].right != right))
        i = (i + 1) & mask;
    return &bpe->merges[i];
}

int mb_bpe_add(mb_bpe *bpe, mb_merge merge) {
    mb_merge *slot = find_merge(bpe, merge.left, merge.right);
    if (slot->left >= 0)
        return 0;
    *slot = merge;
    return 1;
}

/* ---- The heap ----------------------------------------------------------------------------------------- */

static void push(uint64_t *heap, size_t *n, uint64_t candidate) {
    size_t i = (*n)++;
    for (; i > 0 && candidate < heap[(i - 1) / 4]; i = (i - 1) / 4)
        heap[i] = heap[(i - 1) / 4];
    heap[i] = candidate;
}

static uint64_t pop(uint64_t *heap, size_t *n) {
    uint64_t top = heap[0], moved = heap[--*n];
    size_t i = 0;
    for (size_t child; (child = 4 * i + 1) < *n; i = child) {
        size_t end = child + 4 < *n ? child + 4 : *n;
        for (size_t k = child + 1; k < end; k++)
            child = heap[k] < heap[child] ? k : child;
        if (moved <= heap[child])
            break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
    return top;
}

/* ---- Merging ------------------------------------------------------------------------------------------ */

void mb_bpe_work_free(mb_bpe_work *work) {
    mb_free(work->symbols);
    mb_free(work->heap);
    *work = (mb_bpe_work){0};
}

/* Pushes the pair of the symbol at `place` and its right neighbour, if that pair has a merge. */
static mb_status push_pair(const mb_bpe *bpe, mb_bpe_work *work, int32_t place) {
    const symbol *symbols = work->symbols;
    int32_t next = place < 0 ? -1 : symbols[place].next;
    if (next < 0)
        return MB_OK;
    const mb_merge *merge = find_merge(bpe, symbols[place].id, symbols[next].id);
    if (merge->left < 0)
        return MB_OK;
    if (mb_grow((void **)&work->heap, &work->heap_capacity, work->n_heap + 1, sizeof *work->heap) != 0)
        return mb_fail(MB_ERR_MEMORY, "no memory for %zu candidates of merging", work->n_heap);
    push(work->heap, &work->n_heap, (uint64_t)(uint32_t)merge->rank << 32 | (uint32_t)place);
    return MB_OK;
}

mb_status mb_bpe_merge(const mb_bpe *bpe, const char *piece, size_t n_bytes, mb_bpe_work *work, int32_t *ids,
                       size_t *n_ids) {
    if (mb_grow((void **)&work->symbols, &work->symbols_capacity, n_bytes, sizeof(symbol)) != 0)
        return mb_fail(MB_ERR_MEMORY, "no memory to merge a piece of %zu bytes", n_bytes);
    symbol *symbols = work->symbols;
    work->n_heap = 0;

    for (size_t i = 0; i < n_bytes; i++)
        symbols[i] = (symbol){bpe->byte_ids[(unsigned char)piece[i]], (int32_t)i - 1, (int32_t)i + 1};
    symbols[n_bytes - 1].next = -1;
    for (size_t i = 0; i + 1 < n_bytes; i++)
        MB_TRY(push_pair(bpe, work, (int32_t)i));

    while (work->n_heap > 0) {
        uint64_t best = pop(work->heap, &work->n_heap);
        int32_t place = (int32_t)(best & UINT32_MAX);
        symbol *left = &symbols[place];
        if (left->id < 0 || left->next < 0)
            continue;
        symbol *right = &symbols[left->next];
        const mb_merge *merge = find_merge(bpe, left->id, right->id);
        if (merge->left < 0 || (uint32_t)merge->rank != best >> 32)
            continue;
        left->id = merge->merged;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0)
            symbols[left->next].previous = place;
        MB_TRY(push_pair(bpe, work, left->previous));
        MB_TRY(push_pair(bpe, work, place));
    }

    *n_ids = 0;
    for (int32_t i = 0; i >= 0; i = symbols[i].next)
        ids[(*n_ids)++] = symbols[i].id;
    return MB_OK;
}
