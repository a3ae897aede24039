/*
 * attention_sm90.cu - causal attention over the paged cache with the tensor cores, for 16-bit types and a
 * cache of the same type or of e4m3. (What they cannot take: attention_any_sm90.cu.)
 *
 *   widen     brings the blocks of an e4m3 cache to 16 bits, as many sequences at a time as the workspace
 *             has room for (widen_sm90.cu)
 *   prefill   sequences of more than 16 rows a kv head (a row: a query head of a token; prefill_sm90.cu)
 *   decode    the others have one warp a span: few sequences fill the GPU
 *   merge     adds up the spans of decode rows that have several
 *
 * One launch for each, skipped by the host when the batch cannot have such rows. order.cuh says why prefill
 * and decode give a row the same bits.
 */
#include "base/status.h"
#include "ops/attention/attention_any.h"
#include "ops/attention/prefill.h"
#include "ops/attention/tile.cuh"
#include "ops/attention/widen.h"
#include "ops/common/element.cuh"
#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"

/* Finished spans of decode rows, [sequence, its token, query head, span]. */
typedef struct spans {
    float *sums;    /* [.., dim] */
    float2 *scale;  /* maximum, total */
    int32_t most;   /* spans of one row */
    int32_t tokens; /* of one sequence */
} spans;

typedef struct attention_params {
    mb_attention_args args;
    spans spans;
} attention_params;

/* Where the spans of a sequence's row begin; row: its token times the query heads, plus the head. */
static __device__ __forceinline__ int64_t kept_row(const spans *kept, int32_t sequence, int64_t row,
                                                   int32_t n_heads) {
    return ((int64_t)sequence * kept->tokens * n_heads + row) * kept->most;
}

/* ---- decode */

/* Shared memory of the warp: its queries, K and V of a step. */
template <int dim> constexpr int decode_bytes = (WARP_ROWS + 2 * STEP) * 2 * dim;

template <int dtype, int dim> static __global__ void __launch_bounds__(32, 1) decode(attention_params p) {
    extern __shared__ __align__(128) unsigned char memory[];
    mb_grid_wait();
    const mb_attention_args &args = p.args;
    const query_rows w = rows_of_sequence(&args, blockIdx.z, blockIdx.y, 0);
    const int32_t n_spans = (w.kv_len + SPAN - 1) / SPAN, i_span = blockIdx.x;
    if (i_span >= n_spans || w.q_len == 0 || !is_decode(&w))
        return;

    const int lane = threadIdx.x;
    const uint32_t q = mb_shared_address(memory), k = q + WARP_ROWS * 2 * dim, v = k + STEP * 2 * dim;
    const float factor = score_factor(&args, w.kv_head);
    const int32_t begin = i_span * SPAN, end = min(begin + SPAN, w.kv_len);
    load_step<dim>(k, args.k_cache, &args, &w, begin);
    load_step<dim>(v, args.v_cache, &args, &w, begin);
    load_queries<dim>(&args, &w, memory);
    float sums[dim / 2] = {};
    row_pair span;
    start_span(&span);
#pragma unroll 1
    for (int32_t position = begin; position < end; position += STEP) {
        const int32_t n_visible[2] = {visible_to(&w, lane / 4) - position,
                                      visible_to(&w, lane / 4 + 8) - position};
        float scores[STEP / 2], correction[2];
        uint32_t weights[STEP / 4];
        mb_cp_async_wait<1>(); /* K is there, V may be under way */
        __syncwarp();
        multiply_keys<dtype, dim>(q, k, scores);
        __syncwarp();
        if (position + STEP < end)
            load_step<dim>(k, args.k_cache, &args, &w, position + STEP);
        else
            mb_cp_async_commit();
        soften<1>(scores, n_visible, factor, &span, correction);
        round_weights<dtype>(scores, weights);
#pragma unroll
        for (int j = 0; j < dim / 2; j++)
            sums[j] = __fmul_rn(sums[j], correction[j / 2 % 2]);
        mb_cp_async_wait<1>(); /* V is there, the next K may be under way */
        __syncwarp();
        multiply_values<dtype, dim>(weights, v, sums);
        __syncwarp();
        if (position + STEP < end)
            load_step<dim>(v, args.v_cache, &args, &w, position + STEP);
        else
            mb_cp_async_commit();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float total = total_of_lanes(span.total[r]);
        const int64_t head = head_of_row(&args, &w, lane / 4 + r * 8);
        if (head < 0)
            continue;
        if (n_spans == 1) {
            const float f = output_factor(&args, w.kv_head, total);
            uint32_t *to = (uint32_t *)((uint16_t *)args.out + head * dim) + lane % 4;
#pragma unroll
            for (int n = 0; n < dim / 8; n++)
                to[n * 4] =
                    pack<dtype>(__fmul_rn(sums[4 * n + 2 * r], f), __fmul_rn(sums[4 * n + 2 * r + 1], f));
            continue;
        }
        const int64_t at =
            kept_row(&p.spans, w.sequence, head - (int64_t)w.q_base * args.n_heads, args.n_heads) + i_span;
        if (lane % 4 == 0)
            p.spans.scale[at] = make_float2(span.maximum[r], total);
        float2 *to = (float2 *)(p.spans.sums + at * dim) + lane % 4;
#pragma unroll
        for (int n = 0; n < dim / 8; n++)
            to[n * 4] = make_float2(sums[4 * n + 2 * r], sums[4 * n + 2 * r + 1]);
    }
    mb_grid_launch_dependents();
}

/* ---- merge: one CTA a token and query head, one thread a dimension */

template <int dtype, int dim> static __global__ void __launch_bounds__(dim) merge_spans(attention_params p) {
    mb_grid_wait();
    const mb_attention_args &args = p.args;
    const int32_t s = blockIdx.z;
    const query_rows w = rows_of_sequence(&args, s, 0, 0);
    const int32_t n_spans = (w.kv_len + SPAN - 1) / SPAN;
    if (!is_decode(&w) || (int32_t)blockIdx.y >= w.q_len || n_spans == 1)
        return;
    const int64_t head = (int64_t)(w.q_base + blockIdx.y) * args.n_heads + blockIdx.x;
    const int64_t first =
        kept_row(&p.spans, s, (int64_t)blockIdx.y * args.n_heads + blockIdx.x, args.n_heads);
    const float *sums = p.spans.sums + first * dim + threadIdx.x;
    float2 scale = p.spans.scale[first];
    float sum = sums[0];
#pragma unroll 4
    for (int32_t i = 1; i < n_spans; i++) {
        const float2 next = p.spans.scale[first + i];
        const merge_factors f = factors_of(scale.x, next.x);
        scale = make_float2(f.maximum, merge(&f, scale.y, next.y));
        sum = merge(&f, sum, sums[(int64_t)i * dim]);
    }
    const int32_t kv_head = (int32_t)blockIdx.x / w.group;
    mb_element_store((mb_dtype)dtype, args.out, head * dim + threadIdx.x,
                     __fmul_rn(sum, output_factor(&args, kv_head, scale.y)));
    mb_grid_launch_dependents();
}

/* ---- host */

/* From types and shape alone: the two ways do not give the same bits. */
static int takes(const mb_attention_args *args) {
    return (args->dtype == MB_BF16 || args->dtype == MB_F16) &&
           (args->cache_dtype == args->dtype || args->cache_dtype == MB_F8_E4M3) &&
           (args->head_dim == 64 || args->head_dim == 128);
}

/* Tokens of a sequence whose rows one warp can take. */
static int32_t most_decode_tokens(const mb_attention_args *args) {
    const int32_t fit = WARP_ROWS / (args->n_heads / args->n_kv_heads);
    return args->max_q_len < fit ? args->max_q_len : fit;
}

static int32_t most_spans(const mb_attention_args *args) {
    return (args->max_kv_len + SPAN - 1) / SPAN;
}

/* Spans that are kept at most: of sequences that may decode, where one can have several. */
static int64_t most_kept(const mb_attention_args *args) {
    return most_spans(args) > 1 && most_decode_tokens(args) > 0
               ? (int64_t)args->n_sequences * most_decode_tokens(args) * args->n_heads * most_spans(args)
               : 0;
}

/* A counter of prefill's and kept spans come first, a multiple of 16 bytes; then the widened cache. */
enum { COUNTER_BYTES = 16 };

static size_t kept_bytes(const mb_attention_args *args) {
    const size_t n_bytes =
        (size_t)most_kept(args) * (sizeof(float) * (size_t)args->head_dim + sizeof(float2));
    return COUNTER_BYTES + (n_bytes + 15) / 16 * 16;
}

mb_status mb_attention_sm90_workspace(const mb_attention_args *most, size_t *bytes) {
    *bytes = 0;
    MB_TRY(mb_attention_check_sizes(most));
    if (takes(most))
        *bytes = kept_bytes(most) + (most->cache_dtype == MB_F8_E4M3 ? mb_attention_widen_bytes(most) : 0);
    return MB_OK;
}

template <int dtype, int dim> static mb_status launch_decode(const attention_params *p, mb_stream stream) {
    const mb_attention_args *args = &p->args;
    const unsigned n_sequences = (unsigned)args->n_sequences;
    MB_TRY(mb_launch_shared_bytes("attention", decode<dtype, dim>, decode_bytes<dim>));
    MB_TRY(mb_launch("attention", decode<dtype, dim>,
                     dim3((unsigned)most_spans(args), (unsigned)args->n_kv_heads, n_sequences), 32,
                     decode_bytes<dim>, stream, p));
    if (most_spans(args) == 1)
        return MB_OK;
    return mb_launch("attention", merge_spans<dtype, dim>,
                     dim3((unsigned)args->n_heads, (unsigned)most_decode_tokens(args), n_sequences), dim, 0,
                     stream, p);
}

/* A cache of 16 bits. */
static mb_status attend(const mb_attention_args *args, void *workspace, mb_stream stream) {
    const int32_t decode_tokens = most_decode_tokens(args);
    if (args->max_q_len > decode_tokens || decode_tokens == 0)
        MB_TRY(mb_attention_prefill(args, (uint32_t *)workspace, stream));
    if (decode_tokens == 0)
        return MB_OK;
    const size_t n_kept = (size_t)most_kept(args);
    float *sums = (float *)((char *)workspace + COUNTER_BYTES);
    const attention_params p = {*args,
                                {sums, n_kept ? (float2 *)(sums + n_kept * (size_t)args->head_dim) : NULL,
                                 most_spans(args), decode_tokens}};
    if (args->dtype == MB_BF16)
        return args->head_dim == 64 ? launch_decode<MB_BF16, 64>(&p, stream)
                                    : launch_decode<MB_BF16, 128>(&p, stream);
    return args->head_dim == 64 ? launch_decode<MB_F16, 64>(&p, stream)
                                : launch_decode<MB_F16, 128>(&p, stream);
}

/* The sequences from `first` on, at most n of them. */
static mb_attention_args some_sequences(const mb_attention_args *args, int32_t first, int32_t n) {
    mb_attention_args some = *args;
    some.n_sequences = args->n_sequences - first < n ? args->n_sequences - first : n;
    some.q_start += first;
    some.kv_len += first;
    some.block_table += (int64_t)first * args->max_blocks;
    return some;
}

mb_status mb_attention_sm90(const mb_attention_args *args, void *workspace, size_t workspace_bytes,
                            mb_stream stream) {
    MB_TRY(mb_attention_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    if (!takes(args) || !(args->scale > 0)) /* the largest score must be that of the largest product */
        return mb_attention_any_sm90(args, stream);
    size_t needed;
    MB_TRY(mb_attention_sm90_workspace(args, &needed));
    MB_TRY(mb_workspace_check("attention", workspace, workspace_bytes, needed));
    if (args->cache_dtype == args->dtype)
        return attend(args, workspace, stream);
    const int32_t n = mb_attention_widen_sequences(args);
    for (int32_t first = 0; first < args->n_sequences; first += n) {
        const mb_attention_args some = some_sequences(args, first, n);
        mb_attention_args widened;
        MB_TRY(mb_attention_widen(&some, (char *)workspace + kept_bytes(args), &widened, stream));
        MB_TRY(attend(&widened, workspace, stream));
    }
    return MB_OK;
}
