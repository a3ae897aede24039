/* decode_items.cuh - which spans of which sequences a CTA has. */
#ifndef MB_OPS_ATTENTION_DECODE_ITEMS_CUH
#define MB_OPS_ATTENTION_DECODE_ITEMS_CUH

#include "ops/attention/decode.cuh"

/* Whose span it is: the largest s with span_start[s] / divisor <= span. The whole warp looks. */
static __device__ __forceinline__ int32_t find_sequence(const int32_t *span_start, int32_t n, int32_t span,
                                                        int32_t divisor) {
    const int32_t lane = threadIdx.x % 32;
    int32_t low = 0, high = n; /* those of low and high are on either side */
    while (high - low > 1) {
        const int32_t stride = (high - low + 31) / 32, at = low + lane * stride;
        const uint32_t before = __ballot_sync(0xffffffff, at < high && span_start[at] / divisor <= span);
        low += (31 - __clz((int)before)) * stride;
        high = min(low + stride, high);
    }
    return low;
}

/*
 * With many sequences the first spans of each are a chain, whose sums stay in registers from span to span. The others are
 * left to whoever has time in the end. How many those are follows from span_start alone: the sequence has those numbers
 * below span_start / CHAIN_REST that the sequences in front do not have.
 *
 * n_spans: of the batch. There are no chains if the longest may be more than a CTA's share and a quarter of it.
 */
static __device__ __forceinline__ int has_chains(const decode_params *p, int32_t n_spans) {
    const int32_t longest = (p->attend.max_kv_len + SPAN - 1) / SPAN;
    return longest > 1 && (int64_t)(longest - longest / CHAIN_REST) * p->n_ctas * 4 <=
                              (int64_t)n_spans * p->attend.n_kv_heads * p->n_tiles * 5;
}

/* The last span of the sequence's chain: it has one at least. begin, end: the sequence's span_start and the next. */
static __device__ __forceinline__ int32_t end_of_chain(int32_t n_spans, int32_t begin, int32_t end) {
    return max(n_spans - (end / CHAIN_REST - begin / CHAIN_REST), 1) - 1;
}

/* Of a batch below 32 sequences: the lane's, loaded at once. */
typedef struct lane_sequence {
    int32_t span_start, q_start, kv_len;
} lane_sequence;

static __device__ __forceinline__ item item_of(const decode_params *p, const lane_sequence *small, int32_t i,
                                               int32_t n_chains) {
    const mb_attention_args *args = &p->attend;
    const int32_t per_span = args->n_kv_heads * p->n_tiles, span = i / per_span, rest = i % per_span;
    const int32_t n = args->n_sequences, lane = threadIdx.x % 32;
    item it;
    it.first_kept = it.is_begun = it.is_left = 0;
    if (n_chains) { /* those are first, because they are long */
        const int is_chain = i < n_chains;
        const int32_t j = is_chain ? i : i - n_chains, which = j / per_span, rest = j % per_span;
        it.kv_head = rest / p->n_tiles;
        it.first = rest % p->n_tiles * ROWS;
        it.group = args->n_heads / args->n_kv_heads;
        it.sequence = is_chain ? which : find_sequence(p->span_start, n, which, CHAIN_REST);
        const int32_t q_end = args->q_start[it.sequence + 1], end = p->span_start[it.sequence + 1];
        it.q_base = args->q_start[it.sequence];
        it.kv_len = args->kv_len[it.sequence];
        it.first_span = p->span_start[it.sequence];
        it.q_len = q_end - it.q_base;
        it.n_spans = (it.kv_len + SPAN - 1) / SPAN;
        it.first_kept = end_of_chain(it.n_spans, it.first_span, end);
        it.i_span = is_chain ? 0 : it.n_spans - end / CHAIN_REST + which;
        it.is_left = is_chain && it.first_kept > 0;
        if (!is_chain && it.i_span == 0)
            it.i_span = it.n_spans; /* the chain has it */
        it.n_blocks = min((int32_t)SPAN_BLOCKS, (it.kv_len - it.i_span * SPAN + BLOCK - 1) / BLOCK);
        return it;
    }
    it.kv_head = rest / p->n_tiles;
    it.first = rest % p->n_tiles * ROWS;
    it.group = args->n_heads / args->n_kv_heads;
    int32_t q_end;
    if (n < 32) {
        const int32_t s = 31 - __clz((int)__ballot_sync(0xffffffff, lane < n && small->span_start <= span));
        it.sequence = s;
        it.q_base = __shfl_sync(0xffffffff, small->q_start, s);
        q_end = __shfl_sync(0xffffffff, small->q_start, s + 1);
        it.kv_len = __shfl_sync(0xffffffff, small->kv_len, s);
        it.first_span = __shfl_sync(0xffffffff, small->span_start, s);
    } else {
        const int32_t s = find_sequence(p->span_start, n, span, 1);
        it.sequence = s;
        it.q_base = args->q_start[s];
        q_end = args->q_start[s + 1];
        it.kv_len = args->kv_len[s];
        it.first_span = p->span_start[s];
    }
    it.q_len = q_end - it.q_base;
    it.i_span = span - it.first_span;
    it.n_spans = (it.kv_len + SPAN - 1) / SPAN;
    it.n_blocks = min((int32_t)SPAN_BLOCKS, (it.kv_len - it.i_span * SPAN + BLOCK - 1) / BLOCK);
    return it;
}

/* The CTA's only item: its number says of which sequence and which span, so that all that the item needs is loaded at
 * once. The sequence may not have the span: then there are no blocks. */
template <class shape, int dim>
static __device__ __forceinline__ void find_one(const decode_params *p, shared_map<shape, dim> *s) {
    const mb_attention_args *args = &p->attend;
    const int lane = threadIdx.x % 32;
    int32_t rest = blockIdx.x;
    item it;
    it.i_span = rest % p->cluster;
    rest /= p->cluster;
    it.first = rest % p->n_tiles * ROWS;
    rest /= p->n_tiles;
    it.kv_head = rest % args->n_kv_heads;
    const int32_t sequence = rest / args->n_kv_heads;
    it.sequence = sequence;
    it.group = args->n_heads / args->n_kv_heads;
    const int32_t *table = args->block_table + (int64_t)sequence * args->max_blocks;
    const int32_t mine = table[min(it.i_span * SPAN_BLOCKS + lane % SPAN_BLOCKS, args->max_blocks - 1)];
    it.kv_len = args->kv_len[sequence];
    it.q_base = args->q_start[sequence];
    it.q_len = args->q_start[sequence + 1] - it.q_base;
    it.first_span = p->span_start[sequence];
    it.n_spans = (it.kv_len + SPAN - 1) / SPAN;
    it.first_kept = it.is_begun = it.is_left = 0;
    it.n_blocks = min((int32_t)SPAN_BLOCKS, (it.kv_len - it.i_span * SPAN + BLOCK - 1) / BLOCK);
#pragma unroll
    for (int b = 0; b < SPAN_BLOCKS; b++)
        it.blocks[b] = __shfl_sync(0xffffffff, mine, b);
    if (it.first >= it.q_len * it.group || it.q_len > args->max_q_len || it.kv_len > args->max_kv_len)
        it.sequence = -1; /* in all CTAs of the cluster */
    if (lane == 0) {
        s->items[0] = it;
        mb_mbarrier_arrive(&s->item_full[0]);
        s->items[1].sequence = -1;
        mb_mbarrier_arrive(&s->item_full[1]);
    }
}

/*
 * The warp that looks for items, some ahead of the others. A CTA's first item is its own number; the others are taken
 * one by one by whoever has time, because SMs are not equally fast.
 *
 * If every CTA has one at most, nothing of this waits for the kernels in front.
 */
template <class shape, int dim>
static __device__ __forceinline__ void find_items(const decode_params *p, shared_map<shape, dim> *s) {
    const mb_attention_args *args = &p->attend;
    const int lane = threadIdx.x % 32;
    const int32_t n = args->n_sequences;
    const int32_t n_ctas = p->n_ctas, own = min(lane, n);
    const lane_sequence small = {p->span_start[own], args->q_start[own], args->kv_len[min(own, n - 1)]};
    const int32_t n_spans = n < 32 ? __shfl_sync(0xffffffff, small.span_start, n) : p->span_start[n];
    const int32_t per_span = args->n_kv_heads * p->n_tiles;
    const int32_t n_chains = has_chains(p, n_spans) ? n * per_span : 0;
    const int32_t n_items = n_chains + (n_chains ? n_spans / CHAIN_REST : n_spans) * per_span;
    uint32_t i_item = 0;
    int32_t i = blockIdx.x, is_waited = 0;
    while (i < n_items) {
        item it = item_of(p, &small, i, n_chains);
        /* (What is beyond the batch's largest is left out.) */
        while (it.i_span < it.n_spans && it.first < it.q_len * it.group && it.q_len <= args->max_q_len &&
               it.kv_len <= args->max_kv_len) {
            const int32_t *table = args->block_table + (int64_t)it.sequence * args->max_blocks;
            const int32_t mine = lane < it.n_blocks ? table[it.i_span * SPAN_BLOCKS + lane] : 0;
            const uint32_t slot = i_item % ITEM_SLOTS;
#pragma unroll
            for (int b = 0; b < SPAN_BLOCKS; b++)
                it.blocks[b] = __shfl_sync(0xffffffff, mine, b);
            if (lane == 0) {
                mb_mbarrier_wait(&s->item_empty[slot], ~(i_item / ITEM_SLOTS) & 1);
                s->items[slot] = it;
                mb_mbarrier_arrive(&s->item_full[slot]);
            }
            __syncwarp();
            i_item++;
            if (!it.is_left)
                break;
            it.i_span++;
            it.is_begun = 1;
            it.is_left = it.i_span < it.first_kept;
            it.n_blocks = min((int32_t)SPAN_BLOCKS, (it.kv_len - it.i_span * SPAN + BLOCK - 1) / BLOCK);
        }
        if (n_items <= n_ctas)
            break;
        if (!is_waited)
            mb_grid_wait(); /* the kernels in front may be of this kind and use the counter */
        is_waited = 1;
        if (lane == 0) {
            /* what is taken early is missing in the end, when others have nothing to do */
            mb_mbarrier_wait(&s->item_empty[i_item % ITEM_SLOTS], ~(i_item / ITEM_SLOTS) & 1);
            i = n_ctas + atomicAdd(p->next_item, 1);
            if (i ==
                n_ctas + n_items - 1) /* every CTA takes one that is not there; this was the last of them */
                *p->next_item = 0;
        }
        i = __shfl_sync(0xffffffff, i, 0);
    }
    if (lane == 0) {
        const uint32_t slot = i_item % ITEM_SLOTS;
        mb_mbarrier_wait(&s->item_empty[slot], ~(i_item / ITEM_SLOTS) & 1);
        s->items[slot].sequence = -1;
        mb_mbarrier_arrive(&s->item_full[slot]);
    }
}

#endif
