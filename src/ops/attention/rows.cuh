/* rows.cuh - the rows of a sequence and kv head (a row: one query head of one token), token by token. */
#ifndef MB_OPS_ATTENTION_ROWS_CUH
#define MB_OPS_ATTENTION_ROWS_CUH

#include "ops/attention/attention.h"

#include <cuda_runtime.h>

/* A sequence with up to WARP_ROWS rows a kv head is decode's, another is cut into prefill's tiles. */
enum { WARP_ROWS = 16, TILE_ROWS = 128 };

/* The rows from `first` on. */
typedef struct query_rows {
    int32_t sequence, kv_head, first;
    int32_t group;  /* query heads of a kv head */
    int32_t q_base; /* the sequence's first token */
    int32_t q_len, kv_len;
} query_rows;

static __device__ __forceinline__ query_rows rows_of_sequence(const mb_attention_args *args, int32_t s,
                                                              int32_t kv_head, int32_t first) {
    const int32_t q_base = args->q_start[s];
    return {s,
            kv_head,
            first,
            args->n_heads / args->n_kv_heads,
            q_base,
            args->q_start[s + 1] - q_base,
            args->kv_len[s]};
}

/* Of the sequence and kv head. */
static __device__ __forceinline__ int32_t count_rows(const query_rows *w) {
    return w->q_len * w->group;
}

static __device__ __forceinline__ int is_decode(const query_rows *w) {
    return count_rows(w) <= WARP_ROWS;
}

/* Where row first + r is in q and out, in heads; -1: there is none. */
static __device__ __forceinline__ int64_t head_of_row(const mb_attention_args *args, const query_rows *w,
                                                      int r) {
    const int32_t row = w->first + r;
    if (row >= count_rows(w))
        return -1;
    return (int64_t)(w->q_base + row / w->group) * args->n_heads + w->kv_head * w->group + row % w->group;
}

/* Positions that row first + r sees. Behind the last row: as many as the last one. */
static __device__ __forceinline__ int32_t visible_to(const query_rows *w, int r) {
    return w->kv_len - w->q_len + min(w->first + r, count_rows(w) - 1) / w->group + 1;
}

/* Sequence s has the places from floor(q_start[s] group / TILE_ROWS) + s on, one a tile: always enough, and
 * found without a list. (All rows of a kv head are less than 2^31.) */
static __device__ __forceinline__ int32_t place_of(const mb_attention_args *args, int32_t s, int32_t group) {
    return (int32_t)((uint32_t)(args->q_start[s] * group) / TILE_ROWS) + s;
}

/* The tile of a place and kv head. Returns 0: the place is empty. */
static __device__ __forceinline__ int tile_of_place(const mb_attention_args *args, int32_t place,
                                                    int32_t kv_head, query_rows *tile) {
    const int32_t group = args->n_heads / args->n_kv_heads;
    int32_t low = 0, high = args->n_sequences;
    while (high - low > 1) {
        const int32_t middle = low + (high - low) / 2;
        if (place_of(args, middle, group) <= place)
            low = middle;
        else
            high = middle;
    }
    const int32_t i_tile = place - place_of(args, low, group); /* below 0: in front of the first sequence */
    *tile = rows_of_sequence(args, low, kv_head, i_tile * TILE_ROWS);
    return i_tile >= 0 && tile->first < count_rows(tile) && !is_decode(tile);
}

#endif
