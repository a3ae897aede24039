/* consume.cuh - a consumer warpgroup of prefill_sm90.cu: products, softmax, spans, ends of tiles. */
#ifndef MB_OPS_ATTENTION_CONSUME_CUH
#define MB_OPS_ATTENTION_CONSUME_CUH

#include "ops/attention/prefill.cuh"
#include "ops/hopper/cp_async.cuh"
#include "ops/hopper/memory.cuh"
#include "ops/hopper/wgmma.cuh"

/* ---- consumers: the tensor cores */

static __device__ __forceinline__ void take_turn(int warpgroup) {
    mb_named_barrier_sync(TURN_BARRIER + warpgroup, N_CONSUMERS * WARPGROUP);
}
static __device__ __forceinline__ void pass_turn(int warpgroup) {
    mb_named_barrier_arrive(TURN_BARRIER + (warpgroup ^ 1), N_CONSUMERS * WARPGROUP);
}
static __device__ __forceinline__ void sync_group(int warpgroup) {
    mb_named_barrier_sync(GROUP_BARRIER + warpgroup, WARPGROUP);
}

/* The warp has read the stage. */
static __device__ __forceinline__ void release(uint64_t *empty) {
    if (threadIdx.x % 32 == 0)
        mb_mbarrier_arrive(empty);
}

template <int dtype> struct wgmma_type {
    static constexpr int value = dtype == MB_BF16 ? MB_WGMMA_BF16 : MB_WGMMA_F16;
};

/* S = Q K^T of a step. */
template <int dtype, int dim>
static __device__ __forceinline__ void start_scores(float (&scores)[STEP / 2], uint32_t q, uint32_t k) {
    constexpr int type = wgmma_type<dtype>::value, panel_steps = PANEL_DIMS / 16;
    const uint64_t a = mb_wgmma_descriptor(q), b = mb_wgmma_descriptor(k);
    mb_wgmma_pin(scores);
    mb_wgmma_fence();
    mb_wgmma<type, STEP, 0>(scores, a, b);
#pragma unroll
    for (int i = 1; i < dim / 16; i++)
        mb_wgmma<type, STEP, 1>(scores,
                                a + i / panel_steps * (GROUP_ROWS * PANEL_BYTES / 16) + i % panel_steps * 2,
                                b + i / panel_steps * (STEP * PANEL_BYTES / 16) + i % panel_steps * 2);
    mb_wgmma_commit();
}

/* O = P V + (accumulate ? O : 0) of a step. */
template <int dtype, int dim>
static __device__ __forceinline__ void start_values(float (&sums)[dim / 2], uint32_t (&weights)[STEP / 4],
                                                    uint32_t v, int accumulate) {
    const uint64_t b = mb_wgmma_descriptor_across(v, STEP * PANEL_BYTES);
    mb_wgmma_pin(sums);
    mb_wgmma_fence();
#pragma unroll
    for (int i = 0; i < STEP / 16; i++)
        mb_wgmma_across<wgmma_type<dtype>::value, dim>(
            sums, weights[4 * i], weights[4 * i + 1], weights[4 * i + 2], weights[4 * i + 3],
            b + i * (16 * PANEL_BYTES / 16), i > 0 ? 1 : accumulate);
    mb_wgmma_commit();
}

/* ---- consumers: softmax */

/* A span has ended: former, which is that of all spans before, takes it in. factors: for the sums. */
static __device__ __forceinline__ void end_span(const row_pair *span, int is_first, row_pair *former,
                                                merge_factors (&factors)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float total = total_of_lanes(span->total[r]);
        factors[r] = factors_of(former->maximum[r], span->maximum[r]);
        former->total[r] = is_first ? total : merge(&factors[r], former->total[r], total);
        former->maximum[r] = is_first ? span->maximum[r] : factors[r].maximum;
    }
}

/* The sums of the former spans and of this one. Of the former ones the first n_held by four are in registers,
 * `held`, the others in shared memory, `kept`: this thread's, 32 apart. */
template <int dim, int n_held>
static __device__ __forceinline__ void merge_sums(const merge_factors (&f)[2],
                                                  const float (&held)[4 * n_held + 1], const float4 *kept,
                                                  float (&sums)[dim / 2]) {
#pragma unroll
    for (int n = 0; n < dim / 8; n++) {
        const float4 former =
            n < n_held ? make_float4(held[4 * n], held[4 * n + 1], held[4 * n + 2], held[4 * n + 3])
                       : kept[n * 32];
        sums[4 * n] = merge(&f[0], former.x, sums[4 * n]);
        sums[4 * n + 1] = merge(&f[0], former.y, sums[4 * n + 1]);
        sums[4 * n + 2] = merge(&f[1], former.z, sums[4 * n + 2]);
        sums[4 * n + 3] = merge(&f[1], former.w, sums[4 * n + 3]);
    }
}

template <int dim, int n_held>
static __device__ __forceinline__ void keep_sums(const float (&sums)[dim / 2], float (&held)[4 * n_held + 1],
                                                 float4 *kept) {
#pragma unroll
    for (int i = 0; i < 4 * n_held; i++)
        held[i] = sums[i];
#pragma unroll
    for (int n = n_held; n < dim / 8; n++)
        kept[n * 32] = make_float4(sums[4 * n], sums[4 * n + 1], sums[4 * n + 2], sums[4 * n + 3]);
}

/* Softmax of a tile's step i. */
static __device__ __forceinline__ void take_scores(float (&scores)[STEP / 2], int32_t i, int32_t n_unmasked,
                                                   const int32_t (&visible)[2], float factor, row_pair *span,
                                                   float (&correction)[2]) {
    const int32_t in_step[2] = {visible[0] - i * STEP, visible[1] - i * STEP};
    if (i % SPAN_STEPS == 0)
        start_span(span);
    if (i >= n_unmasked)
        soften<1>(scores, in_step, factor, span, correction);
    else
        soften<0>(scores, in_step, factor, span, correction);
}

/* At a span's begin it is of no use, for then the sums start from nothing; but it needs no branch. */
template <int dim>
static __device__ __forceinline__ void rescale(float (&sums)[dim / 2], const float (&correction)[2]) {
#pragma unroll
    for (int j = 0; j < dim / 2; j++)
        sums[j] = __fmul_rn(sums[j], correction[j / 2 % 2]);
}

/* ---- consumers: the ends of a tile */

/* Starts the copies of the warpgroup's queries, rows that are not there as zeros. */
template <int dim>
static __device__ __forceinline__ void load_queries(const mb_attention_args *args, const query_rows *rows,
                                                    uint32_t q) {
    constexpr int pieces = dim / 8, panel_pieces = PANEL_BYTES / 16;
#pragma unroll 4
    for (int i = threadIdx.x % WARPGROUP; i < GROUP_ROWS * pieces; i += WARPGROUP) {
        const int r = i / pieces, piece = i % pieces;
        const int64_t head = head_of_row(args, rows, r);
        const uint32_t to =
            q + (piece / panel_pieces * GROUP_ROWS + r) * PANEL_BYTES + (piece % panel_pieces ^ r % 8) * 16;
        mb_cp_async_16(to, (const uint16_t *)args->q + (head >= 0 ? head * dim + piece * 8 : 0),
                       head >= 0 ? 16 : 0);
    }
    mb_cp_async_commit();
}

/* Values of a stage from position n on become zeros: no row sees them, but they are multiplied by 0, and old
 * memory may be NaN. Both warpgroups do so, each before it multiplies. */
template <int dim> static __device__ __forceinline__ void clear_values(uint32_t v, int32_t n, int warpgroup) {
    constexpr int pieces = dim / 8, panel_pieces = PANEL_BYTES / 16;
    for (int i = n * pieces + (int)threadIdx.x % WARPGROUP; i < STEP * pieces; i += WARPGROUP)
        mb_store_shared_16(v + (i % pieces / panel_pieces * STEP + i / pieces) * PANEL_BYTES +
                               i % panel_pieces * 16,
                           make_uint4(0, 0, 0, 0));
    mb_fence_async_shared();
    sync_group(warpgroup);
}

/* The warp's sixteen rows; `staging` is its own. */
template <int dtype, int dim>
static __device__ __forceinline__ void store_rows(const mb_attention_args *args, const query_rows *rows,
                                                  const row_pair *state, const float (&sums)[dim / 2],
                                                  uint32_t staging) {
    constexpr int pieces = dim / 8, row_bytes = 2 * dim;
    const int lane = threadIdx.x % 32, first = threadIdx.x % WARPGROUP / 32 * WARP_ROWS;
    const float f[2] = {output_factor(args, rows->kv_head, state->total[0]),
                        output_factor(args, rows->kv_head, state->total[1])};
    __syncwarp(); /* the sums of former spans have been read */
#pragma unroll
    for (int n = 0; n < dim / 16; n++) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[i] = pack<dtype>(__fmul_rn(sums[8 * n + 2 * i], f[i % 2]),
                               __fmul_rn(sums[8 * n + 2 * i + 1], f[i % 2]));
        const int r = lane / 8 % 2 * 8 + lane % 8, piece = 2 * n + lane / 16;
        mb_store_matrix_x4(staging + r * row_bytes + (piece ^ r % 8) * 16, a);
    }
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < WARP_ROWS * pieces; i += 32) {
        const int r = i / pieces, piece = i % pieces;
        const int64_t head = head_of_row(args, rows, first + r);
        const uint4 value = mb_load_shared_16(staging + r * row_bytes + (piece ^ r % 8) * 16);
        if (head >= 0)
            *(uint4 *)((uint16_t *)args->out + head * dim + piece * 8) = value;
    }
    __syncwarp(); /* the next tile may keep sums here */
}

#endif
