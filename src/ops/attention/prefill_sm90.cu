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
 * A turn is the product P V of a step and S of the next one.
 *
 * A span's O is in registers; what the spans in front of it came to waits in shared memory, and the two are
 * merged when a span ends. Only the steps on the diagonal compare positions with what a row sees.
 *
 * Tiles lie in places (rows.cuh). One more thread takes them from a counter, the last place first, where a
 * sequence's rows are longest, and hands them to the others by a ring of two (tile_full, tile_empty). No CTA
 * waits for another.
 */
#include "base/status.h"
#include "ops/attention/consume.cuh"
#include "ops/attention/prefill.h"
#include "ops/common/tensor.h"
#include "ops/hopper/tensor_map.cuh"

/* What a turn begins with: the sums, so that a span's end is hidden by the scores; or the scores, so that
 * their softmax begins while the sums are multiplied. */
enum { VALUES_FIRST, SCORES_FIRST };

/* Of the sums of former spans, this many by four numbers stay in registers: shared memory belongs to the
 * tensor cores and the copies, and all sums' coming and going would take a quarter of its time. */
template <int dim> constexpr int most_held = dim == 64 ? 8 : 10;

/* The warpgroup's rows of the next tile. */
template <int dim>
static __device__ __forceinline__ query_rows wait_tile(shared_map<dim> *s, uint32_t i_tile, int warpgroup) {
    mb_mbarrier_wait(&s->tile_full[stage_of(i_tile)], parity_of(i_tile));
    query_rows rows = s->tiles[stage_of(i_tile)];
    __syncwarp();
    release(&s->tile_empty[stage_of(i_tile)]);
    rows.first += warpgroup * GROUP_ROWS;
    return rows;
}

template <int dtype, int dim, int order, int n_held>
static __device__ __forceinline__ void consume(const prefill_params *p, shared_map<dim> *s, int warpgroup) {
    const mb_attention_args *args = &p->args;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t q = mb_shared_address(s->q[warpgroup]);
    float4 *kept = &s->former[warp][0][lane];
    float sums[dim / 2] = {}, scores[STEP / 2] = {};
    float held[4 * n_held + 1];
    uint32_t weights[STEP / 4];
    uint32_t at = 0; /* steps so far */
    if (warpgroup == N_CONSUMERS - 1)
        pass_turn(warpgroup); /* the first turn is warpgroup 0's */
    query_rows rows = wait_tile<dim>(s, 0, warpgroup);
    if (rows.sequence >= 0)
        load_queries<dim>(args, &rows, q);
    for (uint32_t i_tile = 1; rows.sequence >= 0; i_tile++) {
        const int32_t n_steps = count_steps(&rows, warpgroup);
        const int row = warp % 4 * WARP_ROWS + lane / 4;
        const int32_t visible[2] = {visible_to(&rows, row), visible_to(&rows, row + 8)};
        const int32_t n_unmasked = visible_to(&rows, 0) / STEP; /* steps that every row sees whole */
        const float factor = score_factor(args, rows.kv_head);
        row_pair span, former = {{0, 0}, {0, 0}};
        merge_factors f[2];
        float correction[2];

        mb_cp_async_wait<0>();
        mb_fence_async_shared();
        sync_group(warpgroup); /* all queries are there */
        mb_mbarrier_wait(&s->k_full[stage_of(at)], parity_of(at));
        take_turn(warpgroup);
        start_scores<dtype, dim>(scores, q, mb_shared_address(s->k[stage_of(at)]));
        pass_turn(warpgroup);
        mb_wgmma_wait<0>();
        mb_wgmma_pin(scores);
        release(&s->k_empty[stage_of(at)]);
        take_scores(scores, 0, n_unmasked, visible, factor, &span, correction);
        round_weights<dtype>(scores, weights);
#pragma unroll 1
        for (int32_t i = 0; i < n_steps - 1; i++, at++) {
            const uint32_t k_next = mb_shared_address(s->k[stage_of(at + 1)]);
            const uint32_t v = mb_shared_address(s->v[stage_of(at)]);
            const int is_end = i % SPAN_STEPS == SPAN_STEPS - 1, is_first = i < SPAN_STEPS;
            mb_mbarrier_wait(&s->v_full[stage_of(at)], parity_of(at));
            mb_mbarrier_wait(&s->k_full[stage_of(at + 1)], parity_of(at + 1));
            take_turn(warpgroup);
            if constexpr (order == SCORES_FIRST) {
                start_scores<dtype, dim>(scores, q, k_next);
                start_values<dtype, dim>(sums, weights, v, i % SPAN_STEPS);
                pass_turn(warpgroup);
                mb_wgmma_wait<1>(); /* the scores are there, the sums under way */
                mb_wgmma_pin(scores);
                release(&s->k_empty[stage_of(at + 1)]);
                if (is_end)
                    end_span(&span, is_first, &former, f);
                take_scores(scores, i + 1, n_unmasked, visible, factor, &span, correction);
                mb_wgmma_wait<0>();
                mb_wgmma_pin(sums);
                release(&s->v_empty[stage_of(at)]);
                if (is_end && !is_first)
                    merge_sums<dim, n_held>(f, held, kept, sums);
                if (is_end)
                    keep_sums<dim, n_held>(sums, held, kept);
            } else {
                start_values<dtype, dim>(sums, weights, v, i % SPAN_STEPS);
                start_scores<dtype, dim>(scores, q, k_next);
                pass_turn(warpgroup);
                mb_wgmma_wait<1>(); /* the sums are there, the scores under way */
                mb_wgmma_pin(sums);
                release(&s->v_empty[stage_of(at)]);
                if (is_end) {
                    end_span(&span, is_first, &former, f);
                    if (!is_first)
                        merge_sums<dim, n_held>(f, held, kept, sums);
                    keep_sums<dim, n_held>(sums, held, kept);
                }
                mb_wgmma_wait<0>();
                mb_wgmma_pin(scores);
                release(&s->k_empty[stage_of(at + 1)]);
                take_scores(scores, i + 1, n_unmasked, visible, factor, &span, correction);
            }
            round_weights<dtype>(scores, weights);
            rescale<dim>(sums, correction);
        }

        const int32_t i = n_steps - 1, n_there = rows.kv_len - i * STEP;
        const uint32_t v = mb_shared_address(s->v[stage_of(at)]);
        mb_mbarrier_wait(&s->v_full[stage_of(at)], parity_of(at));
        if (n_there < STEP)
            clear_values<dim>(v, n_there, warpgroup);
        take_turn(warpgroup);
        start_values<dtype, dim>(sums, weights, v, i % SPAN_STEPS);
        pass_turn(warpgroup);
        /* Meanwhile the next tile's queries: nobody reads these any more. */
        sync_group(warpgroup);
        const query_rows next = wait_tile<dim>(s, i_tile, warpgroup);
        if (next.sequence >= 0)
            load_queries<dim>(args, &next, q);
        mb_wgmma_wait<0>();
        mb_wgmma_pin(sums);
        release(&s->v_empty[stage_of(at)]);
        at++;
        end_span(&span, i < SPAN_STEPS, &former, f);
        if (i >= SPAN_STEPS)
            merge_sums<dim, n_held>(f, held, kept, sums);
        store_rows<dtype, dim>(args, &rows, &former, sums, mb_shared_address(s->former[warp]));
        rows = next;
    }
}

template <int dtype, int dim, int order, int n_held>
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
        for (int i = 0; i < N_TILES; i++) {
            mb_mbarrier_init(&s->tile_full[i], 1);
            mb_mbarrier_init(&s->tile_empty[i], N_CONSUMERS * WARPGROUP / 32 + 1);
        }
        mb_mbarrier_init_fence();
        mb_tma_prefetch_map(&p.k);
        mb_tma_prefetch_map(&p.v);
    }
    __syncthreads();
    mb_grid_wait();
    const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / WARPGROUP, 0);
    if (warpgroup == N_CONSUMERS) {
        mb_setmaxnreg_decrease<40>();
        if (threadIdx.x == N_CONSUMERS * WARPGROUP)
            produce<dim>(&p, s);
        else if (threadIdx.x == N_CONSUMERS * WARPGROUP + 32)
            find_tiles<dim>(&p, s);
    } else {
        mb_setmaxnreg_increase<232>();
        consume<dtype, dim, order, n_held>(&p, s, warpgroup);
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

/* For timing only: bit 0 is the turn's order, with bit 1 each tile has a CTA of its own, with bit 2 all sums
 * of former spans are in shared memory, with bit 3 CTAs take tiles in turns. */
extern "C" int mb_attention_prefill_variant;
int mb_attention_prefill_variant = 0;

template <int dtype, int dim, int order, int n_held>
static mb_status launch(const prefill_params *p, mb_stream stream) {
    static_assert(sizeof(shared_map<dim>) <= 227 * 1024, "the tile does not fit into shared memory");
    const auto kernel = prefill<dtype, dim, order, n_held>;
    MB_TRY(mb_launch_shared_bytes("attention", kernel, sizeof(shared_map<dim>)));
    const uint32_t most = mb_attention_prefill_variant & 2 ? p->n_items : (uint32_t)mb_n_processors();
    return mb_launch("attention", kernel, dim3(p->n_items < most ? p->n_items : most), N_THREADS,
                     sizeof(shared_map<dim>), stream, p);
}

template <int dtype, int dim> static mb_status launch_variant(const prefill_params *p, mb_stream stream) {
    switch (mb_attention_prefill_variant & 5) {
    case 0:
        return launch<dtype, dim, VALUES_FIRST, most_held<dim>>(p, stream);
    case 1:
        return launch<dtype, dim, SCORES_FIRST, most_held<dim>>(p, stream);
    case 4:
        return launch<dtype, dim, VALUES_FIRST, 0>(p, stream);
    default:
        return launch<dtype, dim, SCORES_FIRST, 0>(p, stream);
    }
}

mb_status mb_attention_prefill(const mb_attention_args *args, uint32_t *counter, mb_stream stream) {
    const int64_t group = args->n_heads / args->n_kv_heads;
    const int64_t n_places = args->n_tokens * group / TILE_ROWS + args->n_sequences + 1;
    MB_REQUIRE(args->n_tokens * group <= INT32_MAX && n_places * args->n_kv_heads <= INT32_MAX,
               "attention: %lld tokens of %d heads are too many", (long long)args->n_tokens, args->n_heads);
    prefill_params p = {};
    p.args = *args;
    p.n_places = (uint32_t)n_places;
    p.n_items = (uint32_t)(n_places * args->n_kv_heads);
    /* Where every CTA has one tile at most, but for empty places, nobody need count. */
    const int64_t n_tiles = (n_places - args->n_sequences - 1) * args->n_kv_heads;
    if (n_tiles > mb_n_processors() && !(mb_attention_prefill_variant & 10)) {
        const clear_params c = {counter};
        MB_TRY(mb_launch("attention", clear, dim3(1), 1, 0, stream, &c));
        p.next_item = counter;
    }
    MB_TRY(encode_cache(&p.k, args, args->k_cache));
    MB_TRY(encode_cache(&p.v, args, args->v_cache));
    if (args->dtype == MB_BF16)
        return args->head_dim == 64 ? launch_variant<MB_BF16, 64>(&p, stream)
                                    : launch_variant<MB_BF16, 128>(&p, stream);
    return args->head_dim == 64 ? launch_variant<MB_F16, 64>(&p, stream)
                                : launch_variant<MB_F16, 128>(&p, stream);
}
