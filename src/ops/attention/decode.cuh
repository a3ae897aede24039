/* decode.cuh - what the parts of decode_sm90.cu share: an item, shared memory, how a block of the cache
 * lies there. */
#ifndef MB_OPS_ATTENTION_DECODE_CUH
#define MB_OPS_ATTENTION_DECODE_CUH

#include "ops/attention/decode_parts.h"
#include "ops/attention/order.cuh"
#include "ops/hopper/barrier.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/tma.cuh"

enum { N_WARPS = 4, N_CONSUMERS = N_WARPS * 32, CTAS_PER_SM = 2 };
/* The warps behind the consumers: who requests blocks, who finds items, who counts finished spans, who
 * makes k and v of new tokens. */
enum { PRODUCER = N_WARPS, FINDER, COUNTER, MAKER, N_THREADS = (MAKER + 1) * 32 };
/* Registers of a thread: 128 at the launch, of which the consumers get some of the others. */
enum { CONSUMER_REGISTERS = 192, OTHER_REGISTERS = 64 };
enum { ROWS = MB_DECODE_ROWS, TOKENS = MB_DECODE_TOKENS, SPAN_BLOCKS = SPAN / BLOCK };
/* An item's place is free again when the item after it is finished: two are in use while the next is looked
 * for. */
enum { ITEM_SLOTS = 3, CONSUMERS_BARRIER = 1 };
/* Spans of a sequence that the CTA of its last one merges: that CTA alone reads them, 4 KB each with eight
 * heads of D = 128. If one sequence can have more (and of few items, whose merge nothing hides, more than
 * MERGED_OF_FEW), merge_long merges those of all. */
enum { MERGED_HERE = 32, MERGED_OF_FEW = 16 };
enum { MERGED_AT_ONCE = 12 }; /* whose loads are under way together */
enum { CHAIN_REST = 4 };      /* one in so many spans of the batch is not of a chain */
enum { MOST_CLUSTER = 8 };
/* Of an SM's blocks on the way from memory, where there are more CTAs than SMs. More would not make the
 * memory faster, and all else that goes there waits behind them: the kernel's code, queries, kept spans, the
 * fence in front of a count. */
enum { MOST_ASKED_BYTES = 64 * 1024 };

typedef struct decode_params {
    mb_qk_norm_rope_store_args rope;
    mb_attention_args attend;
    CUtensorMap k, v;
    const int32_t *span_start;
    int32_t *next_item; /* how many items were taken beyond each CTA's first */
    int32_t *counters;  /* finished spans, [sequence, kv head, tile] */
    /* Finished spans of sequences with several, [span of the batch, kv head, row]: sums [dim]; maximum,
     * total. */
    float *sums;
    float2 *scales;
    int32_t n_tiles;   /* of 16 rows, of a sequence and kv head */
    int32_t most_rows; /* of a sequence and kv head */
    int32_t merges_here;
    int32_t n_ctas;
    int32_t most_asked; /* of a CTA's blocks on the way from memory */
    /* Above 0: the kernel of few items, whose CTAs with the same sequence, kv head and tile are a cluster
     * of that many: one for each span that a sequence can have. */
    int32_t cluster;
} decode_params;

typedef struct item {
    int32_t sequence; /* -1: there are no more */
    int32_t kv_head;
    int32_t first; /* of its rows, token by token */
    int32_t group; /* query heads of a kv head */
    int32_t q_base, q_len, kv_len;
    int32_t i_span, n_spans; /* of the sequence */
    int32_t first_span;      /* of the sequence, among those of the batch */
    int32_t n_blocks;        /* in the span */
    /* The first spans of a sequence may be a chain: one CTA has them one after the other and keeps what
     * they come to as if it were the last one's. So a sequence's spans are merged from first_kept on. */
    int32_t first_kept;
    int32_t is_begun, is_left; /* the chain began before; it goes on after the span */
    int32_t blocks[SPAN_BLOCKS];
} item;

/* The token of a row of the sequence. (No division in the usual case.) */
static __device__ __forceinline__ int32_t token_of_row(const item *it, int32_t row) {
    return it->q_len == 1 ? 0 : row / it->group;
}

/* How a block [64, D] of the cache lies in shared memory: panels of 64 rows of panel_bytes, swizzled by
 * that many bytes. */
template <int cache_dtype, int dim> struct block_shape {
    static constexpr int element_bytes = cache_dtype == MB_F8_E4M3 ? 1 : 2, row_bytes = dim * element_bytes;
    static constexpr int panel_bytes = row_bytes < 128 ? row_bytes : 128, n_panels = row_bytes / panel_bytes;
    static constexpr int n_bytes = BLOCK * row_bytes;
    /* Of e4m3 the consumers are the limit, not memory: a third CTA has work for the SM while the others
     * wait. */
    static constexpr int is_e4m3 = cache_dtype == MB_F8_E4M3, ctas_per_sm = is_e4m3 ? 3 : CTAS_PER_SM;
    static constexpr int ring_bytes = (is_e4m3 ? 48 : 80) * 1024;
    static constexpr int n_stages = ring_bytes / n_bytes < 14 ? ring_bytes / n_bytes : 14;
    /* Of a thread; three CTAs have 80 at the launch. */
    static constexpr int consumer_registers = is_e4m3 ? 120 : CONSUMER_REGISTERS;
    static constexpr int other_registers = is_e4m3 ? 40 : OTHER_REGISTERS;
    static constexpr int merged_at_once = is_e4m3 ? 4 : MERGED_AT_ONCE;
};

template <class shape, int dim> struct shared_map {
    /* Queries [16, D] and P of the span [16, 256]. Rows are swizzled: 16 bytes c of row r are at place c ^
     * r % 8. Before P the tokens' cosines and sines [2, 8, D / 2] are there, behind 4 KB; after P a
     * cluster's sums [16, D]. */
    unsigned char queries[ROWS * dim * 2];
    unsigned char weights[ROWS * SPAN * 2];
    unsigned char fresh[ITEM_SLOTS][2][TOKENS]
                       [shape::row_bytes]; /* new tokens' k and v, as the cache has them */
    uint32_t fresh_stored[ITEM_SLOTS];     /* a bit for each that has a slot */
    alignas(16) float largest[SPAN_STEPS][ROWS][N_WARPS];
    float quarters[SPAN_STEPS][QUARTERS][ROWS][4]; /* of a lane's total, see add_step */
    float q_norm[dim], k_norm[dim], inv_freq[dim / 2];
    item items[ITEM_SLOTS];
    uint64_t full[shape::n_stages], empty[shape::n_stages]; /* stages */
    uint64_t item_full[ITEM_SLOTS], item_empty[ITEM_SLOTS], fresh_full[ITEM_SLOTS];
    /* Of the item and of the one in front of it: the span is stored; it is counted and is_last is known. */
    uint64_t stored[2], counted[2];
    int32_t is_last[2];
};

/* The ring of blocks is behind the map. */
template <class shape, int dim>
constexpr size_t stages_at = (sizeof(shared_map<shape, dim>) + 1023) / 1024 * 1024;

template <class shape, int dim>
static __device__ __forceinline__ unsigned char *stage_of(shared_map<shape, dim> *s, uint32_t stage) {
    return (unsigned char *)s + stages_at<shape, dim> + stage * shape::n_bytes;
}

/* A place in the ring of stages. */
typedef struct ring {
    uint32_t stage, round;
} ring;

template <class shape> static __device__ __forceinline__ void advance(ring *at) {
    if (++at->stage == shape::n_stages) {
        at->stage = 0;
        at->round++;
    }
}

/* The column of A that has dimension d of a query. Where an e4m3 block is read, four dimensions come
 * together: of each sixteen lane c of a quad has 4 c .. 4 c + 3. (The order within sixteen does not change
 * the bits of their sum.) */
template <class shape> static __device__ __forceinline__ int column_of(int d) {
    return shape::is_e4m3 ? d / 16 * 16 + d % 4 / 2 * 8 + d % 16 / 4 * 2 + d % 2 : d;
}

static __device__ __forceinline__ void sync_consumers(void) {
    mb_named_barrier_sync(CONSUMERS_BARRIER, N_CONSUMERS);
}

/* Where 16 bytes `piece` of row r are in a block. */
template <class shape> static __device__ __forceinline__ uint32_t place_of(int r, int piece) {
    constexpr int pieces = shape::panel_bytes / 16;
    const int swizzle = shape::panel_bytes == 128 ? r % 8 : r / 2 % 4;
    return piece / pieces * (BLOCK * shape::panel_bytes) + r * shape::panel_bytes +
           (piece % pieces ^ swizzle) * 16;
}

#endif
