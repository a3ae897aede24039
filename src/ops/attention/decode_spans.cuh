/* decode_spans.cuh - the end of a span: to the output, or kept until the sequence's spans are merged. */
#ifndef MB_OPS_ATTENTION_DECODE_SPANS_CUH
#define MB_OPS_ATTENTION_DECODE_SPANS_CUH

#include "ops/attention/decode_items.cuh"
#include "ops/attention/decode_products.cuh"
#include "ops/common/element.cuh"
#include "ops/hopper/cluster.cuh"
#include "ops/hopper/memory.cuh"

/* Where a row of a span is kept. */
static __device__ __forceinline__ int64_t kept_at(const decode_params *p, const item *it, int32_t span,
                                                  int32_t row) {
    return ((int64_t)(it->first_span + span) * p->attend.n_kv_heads + it->kv_head) * p->most_rows + row;
}

/* The row's place in out, in heads. */
static __device__ __forceinline__ int64_t head_of_row(const decode_params *p, const item *it, int32_t row) {
    const int32_t token = token_of_row(it, row);
    return (int64_t)(it->q_base + token) * p->attend.n_heads + it->kv_head * it->group + row -
           token * it->group;
}

/* A span of `next` and what the spans in front came to. */
static __device__ __forceinline__ void merge_next(float4 *sum, float2 *scale, float4 next,
                                                  float2 next_scale) {
    const merge_factors f = factors_of(scale->x, next_scale.x);
    *scale = make_float2(f.maximum, merge(&f, scale->y, next_scale.y));
    *sum = make_float4(merge(&f, sum->x, next.x), merge(&f, sum->y, next.y), merge(&f, sum->z, next.z),
                       merge(&f, sum->w, next.w));
}

/* The spans of all rows of the item, by all consumers: four dimensions of a row at a time. What other CTAs wrote is
 * not read through L1, which may have what was there before. */
template <int dtype, int dim, class shape>
static __device__ __forceinline__ void merge_spans(const decode_params *p, shared_map<shape, dim> *s,
                                                   const item *it) {
    static_assert(MERGED_HERE * ROWS * sizeof(float2) <= sizeof(s->weights), "no room for all spans' scales");
    const int32_t n_rows = min((int32_t)ROWS, it->q_len * it->group - it->first);
    const int32_t first_kept = it->first_kept, n_spans = it->n_spans - first_kept;
    const int32_t thread = mb_thread_index_again();
    const int32_t stride = p->attend.n_kv_heads * p->most_rows * (dim / 4);
    float2 *scales = (float2 *)s->weights; /* [spans, rows]: P is not needed any more */
#pragma unroll 1
    for (int32_t i = thread; i < n_spans * n_rows; i += N_CONSUMERS)
        scales[i] = __ldcg(p->scales + kept_at(p, it, first_kept + i / n_rows, it->first + i % n_rows));
    const int32_t n = n_rows * (dim / 4);
#pragma unroll 1
    for (int32_t begin = 0; begin < n; begin += N_CONSUMERS) {
        const int32_t i = min(begin + thread, n - 1), r = i / (dim / 4), column = i % (dim / 4);
        const float4 *from =
            (const float4 *)p->sums + kept_at(p, it, first_kept, it->first + r) * (dim / 4) + column;
        float4 sum = {};
        float2 scale = {};
#pragma unroll 1
        for (int32_t first = 0; first < n_spans; first += shape::merged_at_once) {
            float4 next[shape::merged_at_once];
#pragma unroll
            for (int j = 0; j < shape::merged_at_once; j++)
                if (first + j < n_spans) {
                    next[j] = __ldcg(from);
                    from += stride;
                }
            if (begin == 0 && first == 0)
                sync_consumers(); /* the scales are there, which were under way with the first sums */
#pragma unroll
            for (int j = 0; j < shape::merged_at_once; j++)
                if (first + j == 0) {
                    sum = next[j];
                    scale = scales[r];
                } else if (first + j < n_spans) {
                    merge_next(&sum, &scale, next[j], scales[(first + j) * n_rows + r]);
                }
        }
        if (begin + thread >= n)
            continue;
        const float f = output_factor(&p->attend, it->kv_head, scale.y);
        uint2 *to = (uint2 *)((uint16_t *)p->attend.out + head_of_row(p, it, it->first + r) * dim) + column;
        *to = make_uint2(pack<dtype>(__fmul_rn(sum.x, f), __fmul_rn(sum.y, f)),
                         pack<dtype>(__fmul_rn(sum.z, f), __fmul_rn(sum.w, f)));
    }
}

enum { MERGED_COLUMNS = 32, MERGING_WARPS = 8, MERGED_LONG = 256 };

/*
 * The same as a kernel, for batches with long sequences, so that many SMs read the spans. A CTA has 32 dimensions of a
 * row. Its warps load 256 spans' sums at once. What two spans are multiplied by when they become one follows from the
 * largest maximum so far, which all threads find together; then the first warp adds them up in order.
 */
template <int dtype, int dim>
static __global__ void __launch_bounds__(MERGING_WARPS * 32)
    merge_long(const __grid_constant__ decode_params p) {
    static_assert(MERGED_LONG == MERGING_WARPS * 32, "a thread has a span's scale");
    __shared__ float sums[MERGED_LONG][MERGED_COLUMNS];
    __shared__ float4 factors[MERGED_LONG]; /* former, next, the span's total */
    __shared__ float largest[MERGING_WARPS];
    const mb_attention_args *args = &p.attend;
    mb_grid_launch_dependents();
    const int32_t group = args->n_heads / args->n_kv_heads, sequence = blockIdx.z;
    const int32_t row = blockIdx.x / (dim / MERGED_COLUMNS), column = blockIdx.x % (dim / MERGED_COLUMNS);
    const int32_t thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    item it = {};
    it.kv_head = blockIdx.y;
    it.group = group;
    it.q_base = args->q_start[sequence];
    it.q_len = args->q_start[sequence + 1] - it.q_base;
    it.kv_len = args->kv_len[sequence];
    it.n_spans = (it.kv_len + SPAN - 1) / SPAN;
    it.first_span = p.span_start[sequence];
    if (has_chains(&p, p.span_start[args->n_sequences]))
        it.first_kept = end_of_chain(it.n_spans, it.first_span, p.span_start[sequence + 1]);
    const int32_t n_kept = it.n_spans - it.first_kept;
    mb_grid_wait();
    if (row >= it.q_len * group || n_kept < 2 || it.q_len > args->max_q_len || it.kv_len > args->max_kv_len)
        return;
    const int64_t at = kept_at(&p, &it, it.first_kept, row), stride = (int64_t)args->n_kv_heads * p.most_rows;
    float sum = 0, total = 0, maximum = -CUDART_INF_F;
#pragma unroll 1
    for (int32_t first = 0; first < n_kept; first += MERGED_LONG) {
        const int32_t n = min((int32_t)MERGED_LONG, n_kept - first);
        float next[32];
        const float *from =
            p.sums + (at + (first + warp * 32) * stride) * dim + column * MERGED_COLUMNS + lane;
        const float2 scale =
            thread < n ? __ldcg(p.scales + at + (first + thread) * stride) : make_float2(-CUDART_INF_F, 0);
#pragma unroll
        for (int j = 0; j < 32; j++)
            if (warp * 32 + j < n)
                next[j] = __ldcg(from + j * stride * dim);
        float so_far = scale.x; /* of the warp's spans up to this one */
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const float other = __shfl_up_sync(0xffffffff, so_far, d);
            so_far = lane >= d ? fmaxf(so_far, other) : so_far;
        }
        if (first > 0)
            __syncthreads(); /* the first warp has read the former spans */
        if (lane == 31)
            largest[warp] = so_far;
#pragma unroll
        for (int j = 0; j < 32; j++)
            if (warp * 32 + j < n)
                sums[warp * 32 + j][lane] = next[j];
        __syncthreads();
        float former = __shfl_up_sync(0xffffffff, so_far, 1);
        former = lane == 0 ? -CUDART_INF_F : former;
        former = fmaxf(former, maximum);
        for (int w = 0; w < warp; w++)
            former = fmaxf(former, largest[w]);
        const merge_factors f = factors_of(former, scale.x);
        factors[thread] = make_float4(f.former, f.next, scale.y, 0);
        for (int w = 0; w < MERGING_WARPS; w++)
            maximum = fmaxf(maximum, largest[w]);
        __syncthreads();
        if (warp > 0)
            continue;
        int32_t i = 0;
        if (first == 0) {
            sum = sums[0][lane];
            total = factors[0].z;
            i = 1;
        }
#pragma unroll 8
        for (; i < n; i++) {
            const float4 by = factors[i];
            const merge_factors g = {by.x, by.y, 0};
            total = merge(&g, total, by.z);
            sum = merge(&g, sum, sums[i][lane]);
        }
    }
    if (warp == 0)
        mb_element_store((mb_dtype)dtype, args->out,
                         head_of_row(&p, &it, row) * dim + column * MERGED_COLUMNS + lane,
                         __fmul_rn(sum, output_factor(args, it.kv_head, total)));
}

/* A sequence's spans are a cluster's: each of its CTAs merges a part of the rows, from the shared memory of all. */
template <int dtype, int cache_dtype, int dim, class shape>
static __device__ __forceinline__ void merge_cluster(const decode_params *p, shared_map<shape, dim> *s,
                                                     const item *it, const float2 (&own)[2],
                                                     const float (&sums)[dim / N_WARPS / 8][4]) {
    constexpr int n_dims = dim / N_WARPS;
    const int thread = (int)mb_thread_index_again(), warp = thread / 32, g = thread % 32 / 4, c = thread % 4;
    float2 *kept = (float2 *)s->weights, *scales = (float2 *)s->largest;
    sync_consumers(); /* nobody reads P any more */
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = g + 8 * r;
#pragma unroll
        for (int t = 0; t < n_dims / 16; t++)
#pragma unroll
            for (int u = 0; u < 2; u++) {
                float2 pair;
                const int d = warp * n_dims + pair_of<cache_dtype>(sums, t, u, r, &pair);
                kept[row * (dim / 2) + (d / 2 ^ g * 4)] = pair;
            }
        if (warp == 0 && c == 0)
            scales[row] = own[r];
    }
    mb_cluster_sync();
    const int32_t n_rows = min((int32_t)ROWS, it->q_len * it->group - it->first), n_spans = it->n_spans;
    const uint32_t kept_here = mb_shared_address(kept), scales_here = mb_shared_address(scales);
#pragma unroll 1
    for (int32_t i = it->i_span * N_CONSUMERS + thread; i < n_rows * (dim / 2); i += n_spans * N_CONSUMERS) {
        const int32_t r = i / (dim / 2), d = i % (dim / 2) * 2;
        const uint32_t from = kept_here + (r * (dim / 2) + (d / 2 ^ r % 8 * 4)) * 8;
        float2 next[MOST_CLUSTER], scale[MOST_CLUSTER];
#pragma unroll
        for (int j = 0; j < MOST_CLUSTER; j++)
            if (j < n_spans) {
                next[j] = mb_load_cluster_8(from, j);
                scale[j] = mb_load_cluster_8(scales_here + r * 8, j);
            }
        float2 sum = next[0], so_far = scale[0];
#pragma unroll
        for (int j = 1; j < MOST_CLUSTER; j++)
            if (j < n_spans) {
                const merge_factors by = factors_of(so_far.x, scale[j].x);
                so_far = make_float2(by.maximum, merge(&by, so_far.y, scale[j].y));
                sum = make_float2(merge(&by, sum.x, next[j].x), merge(&by, sum.y, next[j].y));
            }
        const float factor = output_factor(&p->attend, it->kv_head, so_far.y);
        uint16_t *out = (uint16_t *)p->attend.out + head_of_row(p, it, it->first + r) * dim + d;
        *(uint32_t *)out = pack<dtype>(__fmul_rn(sum.x, factor), __fmul_rn(sum.y, factor));
    }
    mb_cluster_sync(); /* nobody reads this CTA's memory any more */
}

/* The lane's rows to out, or to the kept spans. */
template <int dtype, int cache_dtype, int dim>
static __device__ __forceinline__ void store_rows(const decode_params *p, const item *it,
                                                  const float2 (&scales)[2],
                                                  const float (&sums)[dim / N_WARPS / 8][4]) {
    constexpr int n_dims = dim / N_WARPS;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const int is_alone = it->n_spans - it->first_kept == 1;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float total = scales[r].y, maximum = scales[r].x;
        const int32_t row = it->first + g + 8 * r;
        if (row >= it->q_len * it->group)
            continue;
        const float factor = output_factor(&p->attend, it->kv_head, total);
        const int64_t at = kept_at(p, it, it->i_span, row);
        uint16_t *out = (uint16_t *)p->attend.out + head_of_row(p, it, row) * dim;
#pragma unroll
        for (int t = 0; t < n_dims / 16; t++)
#pragma unroll
            for (int u = 0; u < 2; u++) {
                float2 pair;
                const int d = warp * n_dims + pair_of<cache_dtype>(sums, t, u, r, &pair);
                if (is_alone)
                    *(uint32_t *)(out + d) =
                        pack<dtype>(__fmul_rn(pair.x, factor), __fmul_rn(pair.y, factor));
                else
                    *(float2 *)(p->sums + at * dim + d) = pair;
            }
        if (!is_alone && warp == 0 && c == 0)
            p->scales[at] = make_float2(maximum, total);
    }
}

/* Merges the sequence's spans if item i_item's was the last one of them to be finished. All consumers call it. */
template <int dtype, int dim, class shape>
static __device__ __forceinline__ void settle(const decode_params *p, shared_map<shape, dim> *s,
                                              uint32_t i_item) {
    mb_mbarrier_wait(&s->counted[i_item % 2], i_item / 2 & 1);
    if (s->is_last[i_item % 2]) {
        sync_consumers(); /* nobody reads P of the item after it any more */
        merge_spans<dtype>(p, s, &s->items[i_item % ITEM_SLOTS]);
    }
    __syncwarp();
    mb_mbarrier_arrive(&s->item_empty[i_item % ITEM_SLOTS]);
}

/* The warp that counts finished spans. What the fence waits for takes microseconds while the memory is busy; the
 * consumers have the next item by then. */
template <class shape, int dim>
static __device__ __forceinline__ void count_spans(const decode_params *p, shared_map<shape, dim> *s) {
    if (threadIdx.x % 32 != 0)
        return;
    for (uint32_t i_item = 0;; i_item++) {
        mb_mbarrier_wait(&s->item_full[i_item % ITEM_SLOTS], i_item / ITEM_SLOTS & 1);
        const item *it = &s->items[i_item % ITEM_SLOTS];
        if (it->sequence < 0)
            break;
        mb_mbarrier_wait(&s->stored[i_item % 2], i_item / 2 & 1);
        int32_t is_last = 0;
        if (it->n_spans - it->first_kept > 1 && p->merges_here && !it->is_left) {
            int32_t *counter = p->counters +
                               (it->sequence * p->attend.n_kv_heads + it->kv_head) * p->n_tiles +
                               it->first / ROWS;
            is_last = mb_add_acquire_release(counter, 1) == it->n_spans - it->first_kept - 1;
            if (is_last)
                *counter = 0;
        }
        s->is_last[i_item % 2] = is_last;
        mb_mbarrier_arrive(&s->counted[i_item % 2]);
    }
}

#endif
