/*
 * decode_sm90.cu - decode attention in one launch: from the rows of q, k and v as the projection left them to
 * attention's output.
 *
 * An item is a span of 256 positions (order.cuh) of a sequence and kv head, and up to 16 rows (a row: one
 * query head of one token). A CTA has four warps that compute and four that help them:
 *
 *   finder      which item is next (decode_items.cuh)               some items ahead
 *   producer    requests blocks of K, then of V (TMA)               as the ring has room
 *   maker       norm, rotation, store of new tokens' k and v
 *   consumers   norm, rotate q;  S = Q K^T      largest   P       O += P V
 *                                32 positions   ------ shared ->  32 dimensions
 *                                of each step                     of all positions
 *   counter     counts finished spans: an item behind the consumers
 *
 * Finder and producer do not wait for the kernels in front: blocks of earlier tokens are older than those.
 * In a block that has new tokens their rows are old memory when it arrives, and the consumers put theirs
 * there; the CTA whose rows begin with the first one also stores them into the cache.
 *
 * A sequence's spans are merged by the CTA that finishes last, in order of spans; nobody waits for another.
 * That a span is stored must be visible before it is counted, which takes microseconds while the memory is
 * busy. So the counter waits for that, the consumers have the next item meanwhile, and merge when they have
 * finished it. (Where a sequence can be long, the merge is a second launch: decode_spans.cuh.) Of many
 * sequences the first spans are one CTA's, which adds them up in registers.
 *
 * Few items have a kernel of their own, in which the CTAs of a sequence and kv head are a cluster: they
 * merge from each other's shared memory, and a CTA's number says which item it has.
 *
 * A warp of the tensor cores' accumulators has 16 rows; those that are not there are zeros.
 */
#include "base/status.h"
#include "ops/attention/decode_items.cuh"
#include "ops/attention/decode_prepare.cuh"
#include "ops/attention/decode_products.cuh"
#include "ops/attention/decode_spans.cuh"
#include "ops/common/tensor.h"
#include "ops/common/workspace.h"
#include "ops/hopper/tensor_map.cuh"

/* ---- producer */

template <class shape, int dim>
static __device__ __forceinline__ void produce(const decode_params *p, shared_map<shape, dim> *s) {
    if (threadIdx.x % 32 != 0)
        return;
    mb_tma_prefetch_map(&p->k);
    mb_tma_prefetch_map(&p->v);
    ring at = {0, 0}, arrived = {0, 0};
    uint32_t left = (uint32_t)p->most_asked; /* to be asked for before the next one must have arrived */
    for (uint32_t i_item = 0;; i_item++) {
        mb_mbarrier_wait(&s->item_full[i_item % ITEM_SLOTS], i_item / ITEM_SLOTS & 1);
        const item *it = &s->items[i_item % ITEM_SLOTS];
        if (it->sequence < 0)
            break;
        const int32_t kv_head = it->kv_head, n_blocks = it->n_blocks;
#pragma unroll 1
        for (int b = 0; b < 2 * n_blocks; b++) {
            const int is_v = b >= n_blocks;
            const int32_t block = it->blocks[is_v ? b - n_blocks : b];
            mb_mbarrier_wait(&s->empty[at.stage], ~at.round & 1);
            if (left > 0) {
                left--;
            } else {
                mb_mbarrier_wait(&s->full[arrived.stage], arrived.round & 1);
                advance<shape>(&arrived);
            }
            mb_mbarrier_arrive_expect(&s->full[at.stage], shape::n_bytes);
            unsigned char *stage = stage_of(s, at.stage);
#pragma unroll
            for (int panel = 0; panel < shape::n_panels; panel++)
                mb_tma_load_5d_evict_first(stage + panel * BLOCK * shape::panel_bytes, is_v ? &p->v : &p->k,
                                           &s->full[at.stage],
                                           panel * (shape::panel_bytes / shape::element_bytes), 0,
                                           block * p->attend.n_kv_heads + kv_head, 0, 0);
            advance<shape>(&at);
        }
        mb_mbarrier_arrive(&s->item_empty[i_item % ITEM_SLOTS]);
    }
}

/* ---- consumers */

/* A span: the sums of its rows, and each one's maximum and total. */
template <int dtype, int cache_dtype, int dim, class shape>
static __device__ __forceinline__ void
multiply_span(const decode_params *p, shared_map<shape, dim> *s, const item *it, uint32_t i_item, ring *at,
              float (&sums)[dim / N_WARPS / 8][4], float2 (&scales)[2]) {
    constexpr int n_dims = dim / N_WARPS, pieces = n_dims * shape::element_bytes / 16;
    const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint32_t weights = mb_shared_address(s->weights);
    const new_tokens fresh = find_new(it);
    const uint32_t queries = mb_shared_address(s->queries);
    uint32_t q[dim / 16][4];
    load_queries<dim, shape>(queries, q);

    float scores[SPAN_STEPS][QUARTER / 8][4] = {};
#pragma unroll
    for (int step = 0; step < SPAN_STEPS; step++)
#pragma unroll 1
        for (int i = 0; i < STEP_BLOCKS; i++) {
            const int block = step * STEP_BLOCKS + i, first = warp % 2 * QUARTER;
            if (block >= it->n_blocks)
                break;
            mb_mbarrier_wait(&s->full[at->stage], at->round & 1);
            if (warp / 2 == i) {
                unsigned char *stage = stage_of(s, at->stage);
                patch(s, stage, 0, i_item, &fresh, block, first, first + QUARTER, 0, shape::row_bytes / 16);
                multiply_keys<dtype, cache_dtype, dim, shape>(queries, q, stage, first, scores[step]);
            }
            mb_mbarrier_arrive(&s->empty[at->stage]);
            advance<shape>(at);
        }

    const int32_t row = it->first + lane / 4, last = it->q_len * it->group - 1;
    const int32_t before = it->kv_len - it->q_len - it->i_span * SPAN + 1;
    const int32_t n_visible[2] = {before + token_of_row(it, min(row, last)),
                                  before + token_of_row(it, min(row + 8, last))};
    span_factors f;
    soften<dtype>(s, it, n_visible, score_factor(&p->attend, it->kv_head), scores, &f);

#pragma unroll
    for (int n = 0; n < n_dims / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sums[n][i] = 0;
#pragma unroll 1
    for (int block = 0; block < it->n_blocks; block++) {
        if (block == STEP_BLOCKS)
#pragma unroll
            for (int n = 0; n < n_dims / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sums[n][i] = __fmul_rn(sums[n][i], f.steps[1][i / 2].correction);
        const int32_t n = min((int32_t)BLOCK, it->kv_len - it->i_span * SPAN - block * BLOCK);
        const int lane_now = lane_again();
        unsigned char *stage = stage_of(s, at->stage);
        mb_mbarrier_wait(&s->full[at->stage], at->round & 1);
        patch(s, stage, 1, i_item, &fresh, block, 0, BLOCK, warp * pieces, pieces);
        if (n % 16) { /* behind the sequence's end is old memory; 0 times NaN would be NaN */
            for (int i = lane; i < (16 - n % 16) * pieces; i += 32)
                *(uint4 *)(stage + place_of<shape>(n + i / pieces, warp * pieces + i % pieces)) =
                    make_uint4(0, 0, 0, 0);
            mb_fence_async_shared();
            __syncwarp();
        }
        const uint32_t a = weights_of_block(weights, block, lane_now), values = mb_shared_address(stage);
        if (n == BLOCK) {
#pragma unroll
            for (int k = 0; k < BLOCK / 16; k++)
                multiply_values<dtype, cache_dtype, n_dims, shape>(a, values, k, warp, lane_now, sums);
        } else {
#pragma unroll 1
            for (int k = 0; k * 16 < n; k++)
                multiply_values<dtype, cache_dtype, n_dims, shape>(a, values, k, warp, lane_now, sums);
        }
        mb_mbarrier_arrive(&s->empty[at->stage]);
        advance<shape>(at);
    }
#pragma unroll
    for (int r = 0; r < 2; r++)
        scales[r] = make_float2(f.steps[SPAN_STEPS - 1][r].maximum, total_of(s, &f, r));
    /* (A span without new tokens has not waited for them. The maker came here long before.) */
    mb_mbarrier_wait(&s->fresh_full[i_item % ITEM_SLOTS], i_item / ITEM_SLOTS & 1);
}

/* sums and scales: what the chain came to so far, if the span is not its first; then with the span. */
template <int n>
static __device__ __forceinline__ void append(int is_begun, const float (&next)[n][4],
                                              const float2 (&next_scales)[2], float (&sums)[n][4],
                                              float2 (&scales)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const merge_factors by = factors_of(scales[r].x, next_scales[r].x);
        scales[r] =
            is_begun ? make_float2(by.maximum, merge(&by, scales[r].y, next_scales[r].y)) : next_scales[r];
#pragma unroll
        for (int d = 0; d < n; d++)
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++)
                sums[d][i] = is_begun ? merge(&by, sums[d][i], next[d][i]) : next[d][i];
    }
}

template <int dtype, int cache_dtype, int dim, class shape>
static __device__ __forceinline__ void consume(const decode_params *p, shared_map<shape, dim> *s) {
    constexpr int n_dims = dim / N_WARPS;
    load_constants(&p->rope, s);
    mb_grid_wait();
    ring at = {0, 0};
    float sums[n_dims / 8][4] = {};
    float2 scales[2] = {};
#pragma unroll 1
    for (uint32_t i_item = 0;; i_item++) {
        mb_mbarrier_wait(&s->item_full[i_item % ITEM_SLOTS], i_item / ITEM_SLOTS & 1);
        const item *it = &s->items[i_item % ITEM_SLOTS];
        const int is_end = it->sequence < 0;
        if (!is_end) {
            if (!it->is_begun)
                prepare<dtype, dim>(p, s, it);
            float next[n_dims / 8][4];
            float2 next_scales[2];
            multiply_span<dtype, cache_dtype, dim>(p, s, it, i_item, &at, next, next_scales);
            append(it->is_begun, next, next_scales, sums, scales);
            if (!it->is_left)
                store_rows<dtype, cache_dtype, dim>(p, it, scales, sums);
            __syncwarp();
            mb_mbarrier_arrive(&s->stored[i_item % 2]);
        }
        if (i_item > 0)
            settle<dtype>(p, s, i_item - 1);
        if (is_end)
            break;
    }
}

/* The same for a CTA with one item at most, whose sequence is its cluster's. */
template <int dtype, int cache_dtype, int dim, class shape>
static __device__ __forceinline__ void consume_one(const decode_params *p, shared_map<shape, dim> *s) {
    load_constants(&p->rope, s);
    mb_mbarrier_wait(&s->item_full[0], 0);
    const item *it = &s->items[0];
    query_part<dim> part;
    if (is_short(it))
        begin_short(p, s, it, &part);
    mb_grid_wait();
    if (it->sequence < 0)
        return;
    if (it->i_span >= it->n_spans) {
        if (it->n_spans > 1) { /* as often as in merge_cluster */
            mb_cluster_sync();
            mb_cluster_sync();
        }
        return;
    }
    if (is_short(it))
        end_short<dtype>(p, s, it, &part);
    else
        prepare<dtype, dim>(p, s, it);
    float sums[dim / N_WARPS / 8][4];
    float2 scales[2];
    ring at = {0, 0};
    multiply_span<dtype, cache_dtype, dim>(p, s, it, 0, &at, sums, scales);
    if (it->n_spans == 1)
        store_rows<dtype, cache_dtype, dim>(p, it, scales, sums);
    else
        merge_cluster<dtype, cache_dtype, dim>(p, s, it, scales, sums);
}

/* is_few: a CTA has one item at most. */
template <int dtype, int cache_dtype, int dim, int is_few>
static __global__ void __launch_bounds__(N_THREADS, block_shape<cache_dtype, dim>::ctas_per_sm)
    decode(const __grid_constant__ decode_params p) {
    typedef block_shape<cache_dtype, dim> shape;
    extern __shared__ __align__(1024) unsigned char memory[];
    shared_map<shape, dim> *s = (shared_map<shape, dim> *)memory;
    mb_grid_launch_dependents();
    if (threadIdx.x / 32 == COUNTER)
        ask_for_rows<dim>(&p.rope);
    if (threadIdx.x == 0) {
        for (int i = 0; i < shape::n_stages; i++) {
            mb_mbarrier_init(&s->full[i], 1);
            mb_mbarrier_init(&s->empty[i], N_CONSUMERS);
        }
        for (int i = 0; i < ITEM_SLOTS; i++) {
            mb_mbarrier_init(&s->item_full[i], 1);
            mb_mbarrier_init(&s->fresh_full[i], 32);
            mb_mbarrier_init(&s->item_empty[i], N_CONSUMERS + 32 + 1); /* and maker, producer's lane 0 */
        }
        for (int i = 0; i < 2; i++) {
            mb_mbarrier_init(&s->stored[i], N_CONSUMERS);
            mb_mbarrier_init(&s->counted[i], 1);
        }
        mb_mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < N_CONSUMERS) {
        mb_setmaxnreg_increase<shape::consumer_registers>();
        if (is_few)
            consume_one<dtype, cache_dtype, dim>(&p, s);
        else
            consume<dtype, cache_dtype, dim>(&p, s);
    } else {
        mb_setmaxnreg_decrease<shape::other_registers>();
        const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
        if (warp == PRODUCER)
            produce<shape, dim>(&p, s);
        else if (warp == FINDER && is_few)
            find_one<shape, dim>(&p, s);
        else if (warp == FINDER)
            find_items<shape, dim>(&p, s);
        else if (warp == MAKER)
            make_tokens<dtype, cache_dtype, dim, is_few>(&p, s);
        else if (!is_few)
            count_spans<shape, dim>(&p, s);
    }
}

/* ---- host */

/* From types and shape alone, as in attention_sm90.cu: the two ways do not give the same bits. */
static int takes(const mb_decode_attention_args *args) {
    return (args->dtype == MB_BF16 || args->dtype == MB_F16) &&
           (args->cache_dtype == args->dtype || args->cache_dtype == MB_F8_E4M3) &&
           (args->head_dim == 64 || args->head_dim == 128) &&
           mb_rotated_dims(args->rotary_dim, args->head_dim) == args->head_dim;
}

static int64_t most_spans(const mb_decode_attention_args *args) {
    return ((int64_t)args->max_kv_len + SPAN - 1) / SPAN;
}

static int32_t most_rows(const mb_decode_attention_args *args) {
    return args->max_q_len * (args->n_heads / args->n_kv_heads);
}

/* Rows of spans that are kept. */
static size_t most_kept(const mb_decode_attention_args *args) {
    if (most_spans(args) < 2)
        return 0;
    return (size_t)args->n_sequences * (size_t)most_spans(args) * (size_t)args->n_kv_heads *
           (size_t)most_rows(args);
}

/* q comes first, a multiple of 256 bytes. */
static size_t q_bytes(const mb_decode_attention_args *args) {
    return (mb_decode_q_bytes(args) + 255) / 256 * 256;
}

mb_status mb_decode_attention_sm90_workspace(const mb_decode_attention_args *most, size_t *bytes) {
    *bytes = 0;
    MB_TRY(mb_decode_attention_check_sizes(most));
    if (takes(most)) {
        *bytes = most_kept(most) * (sizeof(float) * (size_t)most->head_dim + sizeof(float2));
        return MB_OK;
    }
    const mb_attention_args attend = mb_decode_attention_part(most, NULL);
    MB_TRY(mb_attention_sm90_workspace(&attend, bytes));
    *bytes += q_bytes(most);
    return MB_OK;
}

/* Types and shapes that the tensor cores are not used for: the two operators one after the other. */
static mb_status run_parts(const mb_decode_attention_args *args, void *workspace, size_t workspace_bytes,
                           mb_stream stream) {
    const mb_qk_norm_rope_store_args rope = mb_decode_rope_part(args, workspace);
    const mb_attention_args attend = mb_decode_attention_part(args, workspace);
    MB_TRY(mb_qk_norm_rope_store_sm90(&rope, stream));
    return mb_attention_sm90(&attend, (char *)workspace + q_bytes(args), workspace_bytes - q_bytes(args),
                             stream);
}

/* Boxes of a panel of [blocks x kv heads, 64, D]. The arguments do not say how many blocks there are: more
 * than fit into any GPU's memory, 256 GiB of the smallest. */
template <class shape>
static mb_status encode_cache(CUtensorMap *map, const mb_attention_args *args, const void *cache) {
    const mb_tensor_map_encode encode = mb_tensor_map_encoder();
    if (!encode)
        return mb_fail(MB_ERR_DEVICE,
                       "decode_attention: the driver has no cuTensorMapEncodeTiled; CUDA 12 is needed");
    const cuuint64_t sizes[5] = {(cuuint64_t)args->head_dim, BLOCK, 1 << 26, 1, 1};
    const cuuint64_t strides[4] = {shape::row_bytes, shape::n_bytes, shape::n_bytes, shape::n_bytes};
    const cuuint32_t box[5] = {shape::panel_bytes / shape::element_bytes, BLOCK, 1, 1, 1};
    const cuuint32_t element_strides[5] = {1, 1, 1, 1, 1};
    const CUresult result = encode(
        map, shape::element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16, 5,
        (void *)cache, sizes, strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
        shape::panel_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "decode_attention: no tensor map for the cache at %p (driver error %d); it must be 16-byte aligned",
            cache, (int)result);
    return MB_OK;
}

/* CTAs of a cluster, which has a CTA for each span; 0: not in clusters. Two CTAs of several clusters on an
 * SM wait for each other, so there is one an SM, and not on all SMs. */
static int32_t cluster_of(int64_t n_tiles, int64_t n_spans) {
    int32_t cluster = 1;
    while (cluster < n_spans)
        cluster *= 2;
    return cluster <= MOST_CLUSTER && n_tiles * cluster <= mb_n_processors() / 2 ? cluster : 0;
}

template <int dtype, int cache_dtype, int dim> static mb_status launch(decode_params *p, mb_stream stream) {
    typedef block_shape<cache_dtype, dim> shape;
    const mb_attention_args *args = &p->attend;
    constexpr size_t shared_bytes = stages_at<shape, dim> + shape::n_stages * shape::n_bytes;
    static_assert(shape::ctas_per_sm * (shared_bytes + 1024) <= 228 * 1024, "the CTAs do not fit onto an SM");
    const int64_t n_spans = ((int64_t)args->max_kv_len + SPAN - 1) / SPAN;
    const int64_t n_tiles = (int64_t)args->n_sequences * args->n_kv_heads * p->n_tiles;
    const int64_t n_slots = (int64_t)mb_n_processors() * shape::ctas_per_sm;
    MB_REQUIRE(n_tiles * n_spans <= INT32_MAX - n_slots,
               "decode_attention: %d sequences of %d positions are too many", args->n_sequences,
               args->max_kv_len);
    MB_TRY(encode_cache<shape>(&p->k, args, args->k_cache));
    MB_TRY(encode_cache<shape>(&p->v, args, args->v_cache));
    p->cluster = cluster_of(n_tiles, n_spans);
    const int64_t n_ctas = p->cluster > 0 ? n_tiles * p->cluster : n_tiles * n_spans;
    p->n_ctas = (int32_t)(n_ctas < n_slots ? n_ctas : n_slots);
    static_assert(MOST_ASKED_BYTES / shape::ctas_per_sm >= shape::n_bytes, "a CTA may ask for a block");
    p->most_asked =
        n_ctas > mb_n_processors() ? MOST_ASKED_BYTES / shape::ctas_per_sm / shape::n_bytes : shape::n_stages;
    p->merges_here = n_spans <= MERGED_OF_FEW || (n_spans <= MERGED_HERE && n_tiles * n_spans > 4 * n_slots);
    void (*const kernel)(const decode_params) =
        p->cluster > 0 ? decode<dtype, cache_dtype, dim, 1> : decode<dtype, cache_dtype, dim, 0>;
    MB_TRY(mb_launch_shared_bytes("decode_attention", kernel, shared_bytes));
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3((unsigned)p->n_ctas), N_THREADS, shared_bytes, stream);
    if (p->cluster > 1)
        mb_launch_clusters(&config, (unsigned)p->cluster);
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, *(const decode_params *)p);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "decode_attention: launch of %d CTAs in clusters of %d failed: %s",
                       p->n_ctas, p->cluster, cudaGetErrorString(error));
    if (p->merges_here)
        return MB_OK;
    return mb_launch("decode_attention", merge_long<dtype, dim>,
                     dim3((unsigned)p->most_rows * (dim / MERGED_COLUMNS), (unsigned)args->n_kv_heads,
                          (unsigned)args->n_sequences),
                     MERGING_WARPS * 32, 0, stream, (const decode_params *)p);
}

template <int dtype, int cache_dtype> static mb_status launch_dim(decode_params *p, mb_stream stream) {
    return p->attend.head_dim == 64 ? launch<dtype, cache_dtype, 64>(p, stream)
                                    : launch<dtype, cache_dtype, 128>(p, stream);
}

mb_status mb_decode_attention_sm90(const mb_decode_attention_args *args, void *workspace,
                                   size_t workspace_bytes, mb_stream stream) {
    MB_TRY(mb_decode_attention_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    size_t needed;
    MB_TRY(mb_decode_attention_sm90_workspace(args, &needed));
    MB_TRY(mb_workspace_check("decode_attention", workspace, workspace_bytes, needed));
    if (!takes(args))
        return run_parts(args, workspace, workspace_bytes, stream);
    decode_params p = {};
    p.rope = mb_decode_rope_part(args, NULL);
    p.attend = mb_decode_attention_part(args, NULL);
    p.span_start = args->span_start;
    p.next_item = args->counters;
    p.counters = args->counters + 1;
    p.sums = (float *)workspace;
    p.scales = (float2 *)(p.sums + most_kept(args) * (size_t)args->head_dim);
    p.most_rows = most_rows(args);
    p.n_tiles = (p.most_rows + ROWS - 1) / ROWS;
    if (args->dtype == MB_BF16)
        return args->cache_dtype == MB_BF16 ? launch_dim<MB_BF16, MB_BF16>(&p, stream)
                                            : launch_dim<MB_BF16, MB_F8_E4M3>(&p, stream);
    return args->cache_dtype == MB_F16 ? launch_dim<MB_F16, MB_F16>(&p, stream)
                                       : launch_dim<MB_F16, MB_F8_E4M3>(&p, stream);
}
