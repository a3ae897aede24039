/*
 * attention_sm90.cu - causal attention over the paged cache with the tensor cores, for 16-bit types. (What
 * they cannot take: attention_any_sm90.cu.)
 *
 *   prefill   four warps take 64 rows of one kv head (a row: a query head of a token) and walk all spans of
 *             the longest row. K and V of a block are loaded once for all four.
 *   decode    a sequence with up to 16 rows a kv head has one warp a span: few sequences fill the GPU.
 *   merge     adds up the spans of decode rows that have several.
 *
 * One launch for each, skipped by the host when the batch cannot have such rows. tile.cuh says why the
 * three give a row the same bits.
 */
#include "base/status.h"
#include "ops/attention/attention_any.h"
#include "ops/attention/tile.cuh"
#include "ops/common/element.cuh"
#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"

enum { N_STAGES = 2, PREFILL_WARPS = 4, PREFILL_ROWS = PREFILL_WARPS * WARP_ROWS };

/* K and V of a block. */
template <int dim> constexpr int stage_bytes = 2 * BLOCK * 2 * dim;

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

/* The rows of a kv head and a sequence that one warp has: `first` and the next 15, token by token. */
typedef struct warp_rows {
    int32_t sequence, kv_head, first;
    int32_t group;  /* query heads of a kv head */
    int32_t q_base; /* the sequence's first token */
    int32_t q_len, kv_len;
} warp_rows;

static __device__ __forceinline__ int32_t rows_of(const warp_rows *w) {
    return w->q_len * w->group;
}

/* Where row r of the warp is in q and out, in heads; -1: there is none. */
static __device__ __forceinline__ int64_t head_of_row(const mb_attention_args *args, const warp_rows *w,
                                                      int r) {
    const int32_t row = w->first + r;
    if (row >= rows_of(w))
        return -1;
    return (int64_t)(w->q_base + row / w->group) * args->n_heads + w->kv_head * w->group + row % w->group;
}

/* Positions that row r sees. */
static __device__ __forceinline__ int32_t visible_to(const warp_rows *w, int r) {
    return w->kv_len - w->q_len + min(w->first + r, rows_of(w) - 1) / w->group + 1;
}

/* The warp's queries into shared memory; rows that are not there become zeros. */
template <int dim>
static __device__ __forceinline__ void load_queries(const mb_attention_args *args, const warp_rows *w,
                                                    unsigned char *q) {
    constexpr int row_bytes = 2 * dim, pieces = row_bytes / 16;
#pragma unroll
    for (int i = threadIdx.x % 32; i < WARP_ROWS * pieces; i += 32) {
        const int r = i / pieces, p = i % pieces;
        const int64_t head = head_of_row(args, w, r);
        const uint4 *from = (const uint4 *)((const char *)args->q + head * row_bytes) + p;
        *(uint4 *)(q + r * row_bytes + (p ^ r % 8) * 16) = head >= 0 ? *from : make_uint4(0, 0, 0, 0);
    }
    __syncwarp();
}

template <int dtype, int dim>
static __device__ __forceinline__ void store_rows(const mb_attention_args *args, const warp_rows *w,
                                                  const row_state<dim> *state) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int64_t head = head_of_row(args, w, lane / 4 + r * 8);
        if (head < 0)
            continue;
        uint32_t *to = (uint32_t *)((uint16_t *)args->out + head * dim) + lane % 4;
#pragma unroll
        for (int n = 0; n < dim / 8; n++)
            to[n * 4] = pack<dtype>(state->sums[n][2 * r] / state->total[r],
                                    state->sums[n][2 * r + 1] / state->total[r]);
    }
}

/* The blocks [begin, end) of the warp's sequence go through the stages, loaded by n_warps warps
 * together; each block is handed to `use`, which all warps of the CTA call. */
template <int dim, int n_warps, class function>
static __device__ __forceinline__ void walk_blocks(const mb_attention_args *args, const warp_rows *w,
                                                   uint32_t shared, int begin, int end, function use) {
    constexpr int matrix_bytes = BLOCK * dim * 2;
    const int32_t *blocks = args->block_table + (int64_t)w->sequence * args->max_blocks;
    const auto load = [&](int block) {
        if (block < end) {
            const int64_t row = ((int64_t)blocks[block] * args->n_kv_heads + w->kv_head) * BLOCK;
            const int n = min(BLOCK, w->kv_len - block * BLOCK);
            const uint32_t to = shared + block % N_STAGES * 2 * matrix_bytes;
            load_block<dim, n_warps * 32>(to, args->k_cache, row, n);
            load_block<dim, n_warps * 32>(to + matrix_bytes, args->v_cache, row, n);
        }
        mb_cp_async_commit();
    };
    load(begin);
    for (int block = begin; block < end; block++) {
        load(block + 1);
        mb_cp_async_wait<1>();
        __syncthreads();
        const uint32_t stage = shared + block % N_STAGES * 2 * matrix_bytes;
        use(block, stage, stage + matrix_bytes);
        __syncthreads(); /* the stage is free */
    }
}

/* ---- prefill */

/* Sequence s has the places from floor(q_start[s] group / PREFILL_ROWS) + s on, one a tile: always
 * enough, and found without a list. */
static __device__ __forceinline__ int32_t place_of(const mb_attention_args *args, int32_t s, int32_t group) {
    return (int32_t)((int64_t)args->q_start[s] * group / PREFILL_ROWS) + s;
}

static __device__ __forceinline__ warp_rows rows_of_sequence(const mb_attention_args *args, int32_t s,
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

static __device__ __forceinline__ int is_decode(const warp_rows *w) {
    return rows_of(w) <= WARP_ROWS;
}

/* All spans in front of the present one: the sums in shared memory, which is looked at once a span. */
template <int dim> struct former_spans {
    float4 *sums; /* [dim / 8][threads], this thread's */
    float maximum[2], total[2];
};

template <int dim>
static __device__ __forceinline__ void keep_former(former_spans<dim> *former, const row_state<dim> *span) {
#pragma unroll
    for (int n = 0; n < dim / 8; n++)
        former->sums[n * PREFILL_WARPS * 32] =
            make_float4(span->sums[n][0], span->sums[n][1], span->sums[n][2], span->sums[n][3]);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        former->maximum[r] = span->maximum[r];
        former->total[r] = span->total[r];
    }
}

/* The span becomes that of all positions so far. */
template <int dim>
static __device__ __forceinline__ void merge_former(const former_spans<dim> *former, row_state<dim> *span) {
    merge_factors f[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        f[r] = factors_of(former->maximum[r], span->maximum[r]);
        span->maximum[r] = f[r].maximum;
        span->total[r] = merge(&f[r], former->total[r], span->total[r]);
    }
#pragma unroll
    for (int n = 0; n < dim / 8; n++) {
        const float4 sums = former->sums[n * PREFILL_WARPS * 32];
        span->sums[n][0] = merge(&f[0], sums.x, span->sums[n][0]);
        span->sums[n][1] = merge(&f[0], sums.y, span->sums[n][1]);
        span->sums[n][2] = merge(&f[1], sums.z, span->sums[n][2]);
        span->sums[n][3] = merge(&f[1], sums.w, span->sums[n][3]);
    }
}

template <int dtype, int dim>
static __global__ void __launch_bounds__(PREFILL_WARPS * 32) prefill(attention_params p) {
    extern __shared__ __align__(128) unsigned char memory[];
    mb_grid_wait();
    const mb_attention_args &args = p.args;
    const int32_t group = args.n_heads / args.n_kv_heads;
    const int32_t place = gridDim.x - 1 - blockIdx.x; /* long rows first */
    int32_t low = 0, high = args.n_sequences;
    while (high - low > 1) {
        const int32_t middle = low + (high - low) / 2;
        if (place_of(&args, middle, group) <= place)
            low = middle;
        else
            high = middle;
    }
    const int32_t tile_first = (place - place_of(&args, low, group)) * PREFILL_ROWS;
    const warp_rows tile = rows_of_sequence(&args, low, blockIdx.y, tile_first);
    if (tile_first >= rows_of(&tile) || is_decode(&tile))
        return;
    warp_rows w = tile;
    w.first += threadIdx.x / 32 * WARP_ROWS;

    const int lane = threadIdx.x % 32;
    const float scale_log2 = args.scale * 1.4426950408889634f;
    const int32_t visible[2] = {visible_to(&w, lane / 4), visible_to(&w, lane / 4 + 8)};
    const int32_t n_visible = visible_to(&tile, PREFILL_ROWS - 1); /* to the tile's last row */
    const int n_blocks = (n_visible + BLOCK - 1) / BLOCK;
    unsigned char *queries_of_all = memory + N_STAGES * stage_bytes<dim>;
    unsigned char *queries = queries_of_all + threadIdx.x / 32 * WARP_ROWS * 2 * dim;
    load_queries<dim>(&args, &w, queries);
    const uint32_t q = mb_shared_address(queries);
    row_state<dim> span;
    former_spans<dim> former = {(float4 *)(queries_of_all + PREFILL_ROWS * 2 * dim) + threadIdx.x, {}, {}};
    walk_blocks<dim, PREFILL_WARPS>(
        &args, &w, mb_shared_address(memory), 0, n_blocks, [&](int block, uint32_t k, uint32_t v) {
            if (block % SPAN_BLOCKS == 0)
                start_span(&span);
            const int in_block[2] = {visible[0] - block * BLOCK, visible[1] - block * BLOCK};
            attend_block<dtype, dim>(q, k, v, in_block, scale_log2, &span);
            const int is_last = block == n_blocks - 1;
            if (block % SPAN_BLOCKS < SPAN_BLOCKS - 1 && !is_last)
                return;
            finish_span(&span);
            if (block >= SPAN_BLOCKS)
                merge_former(&former, &span);
            if (!is_last)
                keep_former(&former, &span);
        });
    store_rows<dtype, dim>(&args, &w, &span);
    mb_grid_launch_dependents();
}

/* ---- decode */

template <int dtype, int dim> static __global__ void __launch_bounds__(32) decode(attention_params p) {
    extern __shared__ __align__(128) unsigned char memory[];
    mb_grid_wait();
    const mb_attention_args &args = p.args;
    const warp_rows w = rows_of_sequence(&args, blockIdx.z, blockIdx.y, 0);
    const int32_t n_spans = (w.kv_len + SPAN - 1) / SPAN, i_span = blockIdx.x;
    if (i_span >= n_spans || w.q_len == 0 || !is_decode(&w))
        return;

    const int lane = threadIdx.x;
    const float scale_log2 = args.scale * 1.4426950408889634f;
    const int32_t visible[2] = {visible_to(&w, lane / 4), visible_to(&w, lane / 4 + 8)};
    const int begin = i_span * SPAN_BLOCKS, end = min(begin + SPAN_BLOCKS, (w.kv_len + BLOCK - 1) / BLOCK);
    unsigned char *queries = memory + N_STAGES * stage_bytes<dim>;
    load_queries<dim>(&args, &w, queries);
    const uint32_t q = mb_shared_address(queries);
    row_state<dim> span;
    start_span(&span);
    walk_blocks<dim, 1>(&args, &w, mb_shared_address(memory), begin, end,
                        [&](int block, uint32_t k, uint32_t v) {
                            const int in_block[2] = {visible[0] - block * BLOCK, visible[1] - block * BLOCK};
                            attend_block<dtype, dim>(q, k, v, in_block, scale_log2, &span);
                        });
    finish_span(&span);
    if (n_spans == 1) {
        store_rows<dtype, dim>(&args, &w, &span);
        return;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int64_t head = head_of_row(&args, &w, lane / 4 + r * 8);
        if (head < 0)
            continue;
        const int64_t at =
            kept_row(&p.spans, w.sequence, head - (int64_t)w.q_base * args.n_heads, args.n_heads) + i_span;
        if (lane % 4 == 0)
            p.spans.scale[at] = make_float2(span.maximum[r], span.total[r]);
        float2 *to = (float2 *)(p.spans.sums + at * dim) + lane % 4;
#pragma unroll
        for (int n = 0; n < dim / 8; n++)
            to[n * 4] = make_float2(span.sums[n][2 * r], span.sums[n][2 * r + 1]);
    }
    mb_grid_launch_dependents();
}

/* ---- merge: one CTA a token and query head, one thread a dimension */

template <int dtype, int dim> static __global__ void __launch_bounds__(dim) merge_spans(attention_params p) {
    mb_grid_wait();
    const mb_attention_args &args = p.args;
    const int32_t s = blockIdx.z;
    const warp_rows w = rows_of_sequence(&args, s, 0, 0);
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
    mb_element_store((mb_dtype)dtype, args.out, head * dim + threadIdx.x, sum / scale.y);
    mb_grid_launch_dependents();
}

/* ---- host */

/* From types and shape alone: the two ways do not give the same bits. */
static int takes(const mb_attention_args *args) {
    return (args->dtype == MB_BF16 || args->dtype == MB_F16) && args->cache_dtype == args->dtype &&
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

mb_status mb_attention_sm90_workspace(const mb_attention_args *most, size_t *bytes) {
    *bytes = 0;
    MB_TRY(mb_attention_check_sizes(most));
    if (takes(most))
        *bytes = (size_t)most_kept(most) * (sizeof(float) * (size_t)most->head_dim + sizeof(float2));
    return MB_OK;
}

template <int dtype, int dim> static mb_status launch(const attention_params *p, mb_stream stream) {
    const mb_attention_args *args = &p->args;
    constexpr size_t shared_bytes = N_STAGES * stage_bytes<dim>, row_bytes = 2 * dim;
    constexpr size_t prefill_bytes = shared_bytes + PREFILL_ROWS * (row_bytes + sizeof(float) * dim);
    constexpr size_t decode_bytes = shared_bytes + WARP_ROWS * row_bytes;
    const unsigned n_kv = (unsigned)args->n_kv_heads, n_sequences = (unsigned)args->n_sequences;
    const int32_t group = args->n_heads / args->n_kv_heads, decode_tokens = most_decode_tokens(args);
    MB_TRY(mb_launch_shared_bytes("attention", prefill<dtype, dim>, prefill_bytes));
    MB_TRY(mb_launch_shared_bytes("attention", decode<dtype, dim>, decode_bytes));
    if (args->max_q_len > decode_tokens || decode_tokens == 0) {
        const int64_t places = args->n_tokens * group / PREFILL_ROWS + args->n_sequences + 1;
        MB_TRY(mb_launch("attention", prefill<dtype, dim>, dim3((unsigned)places, n_kv), PREFILL_WARPS * 32,
                         prefill_bytes, stream, p));
    }
    if (decode_tokens == 0)
        return MB_OK;
    MB_TRY(mb_launch("attention", decode<dtype, dim>, dim3((unsigned)most_spans(args), n_kv, n_sequences), 32,
                     decode_bytes, stream, p));
    if (most_spans(args) == 1)
        return MB_OK;
    return mb_launch("attention", merge_spans<dtype, dim>,
                     dim3((unsigned)args->n_heads, (unsigned)decode_tokens, n_sequences), dim, 0, stream, p);
}

mb_status mb_attention_sm90(const mb_attention_args *args, void *workspace, size_t workspace_bytes,
                            mb_stream stream) {
    MB_TRY(mb_attention_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    if (!takes(args))
        return mb_attention_any_sm90(args, stream);
    size_t needed;
    MB_TRY(mb_attention_sm90_workspace(args, &needed));
    MB_TRY(mb_workspace_check("attention", workspace, workspace_bytes, needed));
    const size_t n_kept = (size_t)most_kept(args);
    float *sums = (float *)workspace;
    const attention_params p = {*args,
                                {sums, n_kept ? (float2 *)(sums + n_kept * (size_t)args->head_dim) : NULL,
                                 most_spans(args), most_decode_tokens(args)}};
    if (args->dtype == MB_BF16)
        return args->head_dim == 64 ? launch<MB_BF16, 64>(&p, stream) : launch<MB_BF16, 128>(&p, stream);
    return args->head_dim == 64 ? launch<MB_F16, 64>(&p, stream) : launch<MB_F16, 128>(&p, stream);
}
