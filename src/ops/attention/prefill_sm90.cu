/*
 * prefill_sm90.cu - attention of whole prompts and chunks with wgmma, keys and values by TMA.
 *
 * A CTA works on tiles of 128 rows of one kv head. Two consumer warpgroups have 64 rows each; one thread of a
 * third brings K and V of 128 positions at a time (order.cuh's step), two steps ahead:
 *
 *   producer    blocks of the cache           k_full, v_full       k_empty, v_empty ^
 *                  |                                                   |
 *   consumers   S = Q K^T      softmax: S becomes P, in registers      O += P V
 *               `------------- the tensor cores, in turns ---------------'
 *
 * The warpgroups take turns: while one has its two products in the tensor cores the other does its softmax.
 * A turn is S of a step and P V of the step before. Softmax begins when S is there; P V is still under way.
 * All steps of all tiles of a CTA are one sequence: a tile's last P V shares its turn with the next tile's S.
 *
 * A span's O is in registers. What the spans in front of it came to is in registers too, but for a part in
 * shared memory, and takes O in when the span ends, among the exponentials of the next step. Only the steps
 * on the diagonal compare positions with what a row sees.
 *
 * Tiles lie in places (rows.cuh). One more thread finds them, one ahead of the consumers, the last place
 * first, where a sequence's rows are longest: from a counter, or in turns where a CTA has few. No CTA waits
 * for another.
 */
#include "base/status.h"
#include "ops/attention/consume.cuh"
#include "ops/attention/prefill.h"
#include "ops/common/tensor.h"
#include "ops/hopper/tensor_map.cuh"

/* Of the sums of former spans, this many by four numbers stay in registers: shared memory belongs to the
 * tensor cores and the copies. */
enum { N_HELD = 8 };

/* What a thread knows of its tile. */
typedef struct tile_view {
    int32_t n_steps, n_unmasked; /* steps; those that every row sees whole */
    int32_t visible[2];          /* to the thread's rows */
    float factor;
} tile_view;

/* Positions that row r of the tile sees. Behind the last row: as many as the last one. */
static __device__ __forceinline__ int32_t visible_in(const query_rows *tile, const tile_start *start,
                                                     float heads_inverse, int r) {
    const int32_t last = count_rows(tile) - 1 - start->token * tile->group;
    return tile->kv_len - tile->q_len + start->token + token_of(min(start->head + r, last), heads_inverse) +
           1;
}

template <int dim>
static __device__ __forceinline__ tile_view view_of(const prefill_params *p, const shared_map<dim> *s,
                                                    uint32_t i_tile, int warpgroup) {
    const int thread = (int)mb_thread_index_again(), first = warpgroup * GROUP_ROWS;
    const int row = first + thread / 32 % 4 * WARP_ROWS + thread % 32 / 4;
    const query_rows *rows = &s->tiles[i_tile % 2];
    const tile_start *start = &s->starts[i_tile % 2];
    return {
        start->n_steps,
        visible_in(rows, start, p->heads_inverse, first) / STEP,
        {visible_in(rows, start, p->heads_inverse, row), visible_in(rows, start, p->heads_inverse, row + 8)},
        score_factor(&p->args, rows->kv_head)};
}

/* The warpgroup's rows of the CTA's tile. */
template <int dim>
static __device__ __forceinline__ query_rows tile_rows(const shared_map<dim> *s, uint32_t i_tile,
                                                       int warpgroup) {
    query_rows rows = s->tiles[i_tile % 2];
    rows.first += warpgroup * GROUP_ROWS;
    return rows;
}

/* A turn: S of the tile's step i + 1, P V of step i, the CTA's step `at`; then softmax. is_end: step i is a
 * span's last. */
template <int dtype, int dim, int is_end>
static __device__ __forceinline__ void
take_step(shared_map<dim> *s, int warpgroup, const tile_view *tile, uint32_t at, int32_t i, uint32_t q,
          float (&scores)[STEP / 2], float (&sums)[dim / 2], uint32_t (&weights)[STEP / 4],
          float (&held)[4 * N_HELD], float4 *kept, row_pair *span, row_pair *former) {
    const uint32_t k_next = mb_shared_address(s->k[stage_of(at + 1)]);
    const uint32_t v = mb_shared_address(s->v[stage_of(at)]);
    mb_mbarrier_wait(&s->k_full[stage_of(at + 1)], parity_of(at + 1));
    mb_mbarrier_wait(&s->v_full[stage_of(at)], parity_of(at));
    take_turn(warpgroup);
    start_scores<dtype, dim>(scores, q, k_next);
    start_values<dtype, dim>(sums, weights, v, is_end);
    pass_turn(warpgroup);
    mb_wgmma_wait<1>(); /* the scores are there, the sums under way */
    mb_wgmma_pin(scores);
    release(&s->k_empty[stage_of(at + 1)]);
    if (i + 1 >= tile->n_unmasked)
        hide(scores, (i + 1) * STEP, tile->visible);
    soften_step<dtype, dim, N_HELD, is_end>(scores, weights, sums, held, kept, span, former, tile->factor,
                                            &s->fresh, &s->v_empty[stage_of(at)]);
}

template <int dtype, int dim>
static __device__ __forceinline__ void consume(const prefill_params *p, shared_map<dim> *s, int warpgroup) {
    const int32_t all[2] = {STEP, STEP};
    const int thread = (int)mb_thread_index_again();
    float4 *kept = &s->former[thread / 32][0][thread % 32];
    float sums[dim / 2] = {}, scores[STEP / 2] = {};
    float held[4 * N_HELD];
    uint32_t weights[STEP / 4];
    uint32_t at = 0; /* steps so far */
    if (warpgroup == N_CONSUMERS - 1)
        pass_turn(warpgroup); /* the first turn is warpgroup 0's */
    mb_mbarrier_wait(&s->tile_full, 0);
    query_rows rows = tile_rows<dim>(s, 0, warpgroup);
    if (rows.sequence < 0)
        return;
    const uint32_t q_first = mb_shared_address(s->q[0][warpgroup]);
    load_queries<dim>(p, &rows, &s->starts[0], warpgroup, q_first);
    tile_view tile = view_of<dim>(p, s, 0, warpgroup);
    release(&s->tile_empty);
    mb_cp_async_wait<0>();
    mb_fence_async_shared();
    sync_group(warpgroup); /* all queries are there */
    mb_mbarrier_wait(&s->k_full[0], 0);
    take_turn(warpgroup);
    start_scores<dtype, dim>(scores, q_first, mb_shared_address(s->k[0]));
    pass_turn(warpgroup);
    row_pair span, former;
    float correction[2];
    forget_spans(&former);
    forget_sums<dim, N_HELD>(held, kept);
    mb_wgmma_wait<0>();
    mb_wgmma_pin(scores);
    release(&s->k_empty[0]);
    if (tile.n_unmasked == 0)
        hide(scores, 0, tile.visible);
    start_span(&span);
    soften<0>(scores, all, tile.factor, &span, correction);
    round_weights<dtype>(scores, weights);
    for (uint32_t i_tile = 0;; i_tile++) {
        const uint32_t q = mb_shared_address(s->q[i_tile % 2][warpgroup]);
        const uint32_t q_next = mb_shared_address(s->q[(i_tile + 1) % 2][warpgroup]);
        const int32_t load_at = tile.n_steps > 3 ? 2 : 0;
        int32_t i = 0;
#pragma unroll 1
        for (;;) {
            if (i == load_at) {
                mb_mbarrier_wait(&s->tile_full, (i_tile + 1) % 2);
                const query_rows next = tile_rows<dim>(s, i_tile + 1, warpgroup);
                if (next.sequence >= 0)
                    load_queries<dim>(p, &next, &s->starts[(i_tile + 1) % 2], warpgroup, q_next);
            }
            if (i == tile.n_steps - 1)
                break;
            take_step<dtype, dim, 0>(s, warpgroup, &tile, at++, i++, q, scores, sums, weights, held, kept,
                                     &span, &former);
            if (i == tile.n_steps - 1)
                break;
            take_step<dtype, dim, 1>(s, warpgroup, &tile, at++, i++, q, scores, sums, weights, held, kept,
                                     &span, &former);
        }
        const int32_t n_there = s->tiles[i_tile % 2].kv_len - i * STEP;
        const uint32_t v = mb_shared_address(s->v[stage_of(at)]);
        const int is_last = s->tiles[(i_tile + 1) % 2].sequence < 0;
        merge_factors f[2];
        mb_mbarrier_wait(&s->v_full[stage_of(at)], parity_of(at));
        if (n_there < STEP)
            clear_values<dim>(v, n_there, warpgroup);
        if (is_last) {
            take_turn(warpgroup);
            start_values<dtype, dim>(sums, weights, v, i % SPAN_STEPS);
            pass_turn(warpgroup);
            end_span(&span, &former, f);
            mb_wgmma_wait<0>();
            mb_wgmma_pin(sums);
            merge_sums<dim, N_HELD>(f, held, kept, sums);
            rows = tile_rows<dim>(s, i_tile, warpgroup);
            store_rows<dtype, dim>(p, &rows, &s->starts[i_tile % 2], warpgroup, &former, sums,
                                   mb_shared_address(s->former[(int)mb_thread_index_again() / 32]));
            break;
        }
        mb_cp_async_wait<0>();
        mb_fence_async_shared();
        sync_group(warpgroup); /* all queries of the next tile are there; nobody reads this one's any more */
        mb_mbarrier_wait(&s->k_full[stage_of(at + 1)], parity_of(at + 1));
        take_turn(warpgroup);
        start_scores<dtype, dim>(scores, q_next, mb_shared_address(s->k[stage_of(at + 1)]));
        start_values<dtype, dim>(sums, weights, v, i % SPAN_STEPS);
        pass_turn(warpgroup);
        end_span(&span, &former, f);
        start_span(&span);
        mb_wgmma_wait<1>();
        mb_wgmma_pin(scores);
        release(&s->k_empty[stage_of(at + 1)]);
        tile = view_of<dim>(p, s, i_tile + 1, warpgroup);
        if (tile.n_unmasked == 0)
            hide(scores, 0, tile.visible);
        soften<0>(scores, all, tile.factor, &span, correction);
        keep_order(&s->fresh, span.total[0], span.total[1]);
        mb_wgmma_wait<0>();
        mb_wgmma_pin(sums);
        release(&s->v_empty[stage_of(at)]);
        round_weights<dtype>(scores, weights);
        merge_sums<dim, N_HELD>(f, held, kept, sums);
        rows = tile_rows<dim>(s, i_tile, warpgroup);
        store_rows<dtype, dim>(p, &rows, &s->starts[i_tile % 2], warpgroup, &former, sums,
                               mb_shared_address(s->former[(int)mb_thread_index_again() / 32]));
        release(&s->tile_empty);
        forget_spans(&former);
        forget_sums<dim, N_HELD>(held, kept);
        at++;
    }
}

template <int dtype, int dim>
static __global__ void __launch_bounds__(N_THREADS, 1) prefill(const __grid_constant__ prefill_params p) {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    shared_map<dim> *s = (shared_map<dim> *)shared_bytes;
    if (threadIdx.x == 0) {
        for (int i = 0; i < N_STAGES; i++) {
            mb_mbarrier_init(&s->k_full[i], 1);
            mb_mbarrier_init(&s->v_full[i], 1);
            mb_mbarrier_init(&s->k_empty[i], N_CONSUMERS * WARPGROUP / 32);
            mb_mbarrier_init(&s->v_empty[i], N_CONSUMERS * WARPGROUP / 32);
        }
        mb_mbarrier_init(&s->tile_full, 1);
        mb_mbarrier_init(&s->tile_empty, N_CONSUMERS * WARPGROUP / 32 + 1);
        mb_mbarrier_init(&s->fresh, 1);
        mb_mbarrier_init_fence();
        mb_tma_prefetch_map(&p.k);
        mb_tma_prefetch_map(&p.v);
    }
    __syncthreads();
    mb_grid_wait();
    const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / WARPGROUP, 0);
    if (warpgroup == N_CONSUMERS) {
        mb_setmaxnreg_decrease<24>();
        if (threadIdx.x == N_CONSUMERS * WARPGROUP)
            produce<dim>(&p, s);
        else if (threadIdx.x == N_CONSUMERS * WARPGROUP + 32)
            find_tiles<dim>(&p, s);
    } else {
        mb_setmaxnreg_increase<240>();
        consume<dtype, dim>(&p, s, warpgroup);
    }
}

/* A kernel of its own, for nothing before prefill knows of the counter. */
typedef struct clear_params {
    uint32_t *counter;
} clear_params;

static __global__ void clear(clear_params p) {
    mb_grid_wait();
    *p.counter = 0;
}

/* ---- host */

/* K and V that are read again and again while a wave of CTAs is at them. */
static const int64_t L2_BYTES = 32 << 20;
/* Tiles of a CTA, on average, that are still dealt out in turns. */
enum { MOST_IN_TURNS = 6 };

/* Boxes of 64 positions by 64 dimensions of [blocks x kv heads, 64, D]. The arguments do not say how many
 * blocks there are: more than fit into any GPU's memory. */
static mb_status encode_cache(CUtensorMap *map, const mb_attention_args *args, const void *cache) {
    const mb_tensor_map_encode encode = mb_tensor_map_encoder();
    if (!encode)
        return mb_fail(MB_ERR_DEVICE,
                       "attention: the driver has no cuTensorMapEncodeTiled; CUDA 12 is needed");
    const cuuint64_t row_bytes = 2 * (cuuint64_t)args->head_dim, block_bytes = BLOCK * row_bytes;
    const cuuint64_t sizes[5] = {(cuuint64_t)args->head_dim, 8, 1, BLOCK / 8, 1 << 25};
    const cuuint64_t strides[4] = {row_bytes, block_bytes, 8 * row_bytes, block_bytes};
    const cuuint32_t box[5] = {PANEL_DIMS, 8, 1, BLOCK / 8, 1}, element_strides[5] = {1, 1, 1, 1, 1};
    const CUtensorMapDataType type =
        args->dtype == MB_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    const CUresult result = encode(map, type, 5, (void *)cache, sizes, strides, box, element_strides,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "attention: no tensor map for the cache at %p (driver error %d); it must be 16-byte aligned",
            cache, (int)result);
    return MB_OK;
}

template <int dtype, int dim> static mb_status launch(const prefill_params *p, mb_stream stream) {
    static_assert(sizeof(shared_map<dim>) <= 227 * 1024, "the tile does not fit into shared memory");
    const auto kernel = prefill<dtype, dim>;
    MB_TRY(mb_launch_shared_bytes("attention", kernel, sizeof(shared_map<dim>)));
    const uint32_t most = (uint32_t)mb_n_processors();
    return mb_launch("attention", kernel, dim3(p->n_items < most ? p->n_items : most), N_THREADS,
                     sizeof(shared_map<dim>), stream, p);
}

mb_status mb_attention_prefill(const mb_attention_args *args, uint32_t *counter, mb_stream stream) {
    const int64_t group = args->n_heads / args->n_kv_heads;
    const int64_t n_places = args->n_tokens * group / TILE_ROWS + args->n_sequences + 1;
    MB_REQUIRE(args->n_tokens * group <= INT32_MAX && n_places * args->n_kv_heads <= INT32_MAX,
               "attention: %lld tokens of %d heads are too many", (long long)args->n_tokens, args->n_heads);
    prefill_params p = {};
    p.args = *args;
    p.heads_inverse = 1 / (float)group;
    p.n_places = (uint32_t)n_places;
    p.n_items = (uint32_t)(n_places * args->n_kv_heads);
    p.n_together = (uint32_t)args->n_kv_heads;
    while (p.n_together > 1 && (p.n_together * 4 * (int64_t)args->max_kv_len * args->head_dim > L2_BYTES ||
                                args->n_kv_heads % p.n_together))
        p.n_together--;
    /* Where a CTA has few tiles, counting would cost more than what it evens out. */
    const int64_t n_tiles = (n_places - args->n_sequences - 1) * args->n_kv_heads;
    if (n_tiles > MOST_IN_TURNS * mb_n_processors()) {
        const clear_params c = {counter};
        MB_TRY(mb_launch("attention", clear, dim3(1), 1, 0, stream, &c));
        p.next_item = counter;
    }
    MB_TRY(encode_cache(&p.k, args, args->k_cache));
    MB_TRY(encode_cache(&p.v, args, args->v_cache));
    if (args->dtype == MB_BF16)
        return args->head_dim == 64 ? launch<MB_BF16, 64>(&p, stream) : launch<MB_BF16, 128>(&p, stream);
    return args->head_dim == 64 ? launch<MB_F16, 64>(&p, stream) : launch<MB_F16, 128>(&p, stream);
}
