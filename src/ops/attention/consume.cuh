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
    mb_mbarrier_arrive_warp(empty);
}

template <int dtype> struct wgmma_type {
    static constexpr int value = dtype == MB_BF16 ? MB_WGMMA_BF16 : MB_WGMMA_F16;
};

/* The high words of all descriptors here are the same. */
static __device__ __forceinline__ uint64_t descriptor_of(uint32_t low) {
    return (uint64_t)(uint32_t)(mb_wgmma_descriptor(0) >> 32) << 32 | low;
}

/* S = Q K^T of a step. */
template <int dtype, int dim>
static __device__ __forceinline__ void start_scores(float (&scores)[STEP / 2], uint32_t q, uint32_t k) {
    constexpr int type = wgmma_type<dtype>::value, panel_steps = PANEL_DIMS / 16;
    const uint32_t a = (uint32_t)mb_wgmma_descriptor(q), b = (uint32_t)mb_wgmma_descriptor(k);
    mb_wgmma_pin(scores);
    mb_wgmma_fence();
    mb_wgmma<type, STEP, 0>(scores, descriptor_of(a), descriptor_of(b));
#pragma unroll
    for (int i = 1; i < dim / 16; i++)
        mb_wgmma<type, STEP, 1>(
            scores,
            descriptor_of(a + i / panel_steps * (GROUP_ROWS * PANEL_BYTES / 16) + i % panel_steps * 2),
            descriptor_of(b + i / panel_steps * (STEP * PANEL_BYTES / 16) + i % panel_steps * 2));
    mb_wgmma_commit();
}

/* O = P V + (accumulate ? O : 0) of a step. */
template <int dtype, int dim>
static __device__ __forceinline__ void start_values(float (&sums)[dim / 2], uint32_t (&weights)[STEP / 4],
                                                    uint32_t v, int accumulate) {
    const uint32_t b = (uint32_t)mb_wgmma_descriptor_across(v, STEP * PANEL_BYTES);
    mb_wgmma_pin(sums);
    mb_wgmma_fence();
#pragma unroll
    for (int i = 0; i < STEP / 16; i++)
        mb_wgmma_across<wgmma_type<dtype>::value, dim>(
            sums, weights[4 * i], weights[4 * i + 1], weights[4 * i + 2], weights[4 * i + 3],
            descriptor_of(b + i * (16 * PANEL_BYTES / 16)), i > 0 ? 1 : accumulate);
    mb_wgmma_commit();
}

/* ---- consumers: softmax */

/* What there is before the first span: -0, for the sum of -0 and x is x. */
static __device__ __forceinline__ void forget_spans(row_pair *former) {
    former->maximum[0] = former->maximum[1] = -CUDART_INF_F;
    former->total[0] = former->total[1] = -0.0f;
}

/* A span has ended: former, which is that of all spans before, takes it in. factors: for the sums. */
static __device__ __forceinline__ void end_span(const row_pair *span, row_pair *former,
                                                merge_factors (&factors)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float total = total_of_lanes(span->total[r]);
        factors[r] = factors_of(former->maximum[r], span->maximum[r]);
        former->total[r] = merge(&factors[r], former->total[r], total);
        former->maximum[r] = factors[r].maximum;
    }
}

/* The sums of the former spans and of this one. Of the former ones the first n_held by four are in registers,
 * `held`, the others in shared memory, `kept`: this thread's, 32 apart. */
template <int dim, int n_held>
static __device__ __forceinline__ void merge_sums(const merge_factors (&f)[2],
                                                  const float (&held)[4 * n_held], const float4 *kept,
                                                  float (&sums)[dim / 2]) {
#pragma unroll
    for (int n = 0; n < dim / 8; n++) {
        const float4 former =
            n < n_held ? make_float4(held[4 * n], held[4 * n + 1], held[4 * n + 2], held[4 * n + 3])
                       : kept[(n - n_held) * 32];
        sums[4 * n] = merge(&f[0], former.x, sums[4 * n]);
        sums[4 * n + 1] = merge(&f[0], former.y, sums[4 * n + 1]);
        sums[4 * n + 2] = merge(&f[1], former.z, sums[4 * n + 2]);
        sums[4 * n + 3] = merge(&f[1], former.w, sums[4 * n + 3]);
    }
}

template <int dim, int n_held>
static __device__ __forceinline__ void forget_sums(float (&held)[4 * n_held], float4 *kept) {
#pragma unroll
    for (int i = 0; i < 4 * n_held; i++)
        held[i] = -0.0f;
#pragma unroll
    for (int n = n_held; n < dim / 8; n++)
        kept[(n - n_held) * 32] = make_float4(-0.0f, -0.0f, -0.0f, -0.0f);
}

/* Scores of positions that a row does not see become -infinity. */
static __device__ __forceinline__ void hide(float (&scores)[STEP / 2], int32_t first,
                                            const int32_t (&visible)[2]) {
    const int column = (int)mb_thread_index_again() % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int32_t n = visible[r] - first - column;
#pragma unroll
        for (int j = 0; j < STEP / 8; j++)
#pragma unroll
            for (int c = 0; c < 2; c++)
                scores[4 * j + 2 * r + c] = 8 * j + c < n ? scores[4 * j + 2 * r + c] : -CUDART_INF_F;
    }
}

/* The compiler orders instructions between branches only, and gathers exponentials there. A wait that is over
 * (on a barrier that nobody uses; no sum of P is below 0) has a branch that keeps other work among them. */
static __device__ __forceinline__ void keep_order(uint64_t *fresh, float x, float y) {
    mb_mbarrier_wait(fresh, __any_sync(0xffffffff, x < 0 || y < 0) ? 0 : 1);
}

/* The sums of the former spans take those of this one in, four of the thread's. */
template <int dim, int n_held>
static __device__ __forceinline__ void take_sums(int n, const merge_factors (&f)[2],
                                                 float (&held)[4 * n_held], float4 *kept,
                                                 const float (&sums)[dim / 2]) {
    if (n < n_held) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            held[4 * n + c] = merge(&f[c / 2], held[4 * n + c], sums[4 * n + c]);
            mb_keep_here(held[4 * n + c]);
        }
    } else {
        const float4 former = kept[(n - n_held) * 32];
        kept[(n - n_held) * 32] =
            make_float4(merge(&f[0], former.x, sums[4 * n]), merge(&f[0], former.y, sums[4 * n + 1]),
                        merge(&f[1], former.z, sums[4 * n + 2]), merge(&f[1], former.w, sums[4 * n + 3]));
    }
}

/* Four of the thread's sums are brought to a step's maximum. */
template <int dim>
static __device__ __forceinline__ void rescale(int n, const step_factors (&f)[2], float (&sums)[dim / 2]) {
#pragma unroll
    for (int c = 0; c < 4; c++) {
        sums[4 * n + c] = __fmul_rn(sums[4 * n + c], f[c / 2].correction);
        mb_keep_here(sums[4 * n + c]);
    }
}

/* Softmax of a step. The sums of the step before are under way; they are waited for when half of P is there.
 * Then they are brought to the new maximum or, if that step was its span's last (is_end), added to those of
 * the former spans. */
template <int dtype, int dim, int n_held, int is_end>
static __device__ __forceinline__ void soften_step(float (&scores)[STEP / 2], uint32_t (&weights)[STEP / 4],
                                                   float (&sums)[dim / 2], float (&held)[4 * n_held],
                                                   float4 *kept, row_pair *span, row_pair *former,
                                                   float factor, uint64_t *fresh, uint64_t *v_empty) {
    constexpr int n_chains = 4, n_columns = STEP / 8, half = QUARTERS / 2;
    merge_factors m[2];
    if constexpr (is_end) {
        end_span(span, former, m);
        start_span(span);
    }
    float largest[2][n_chains];
#pragma unroll
    for (int j = 0; j < n_columns; j++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float larger = fmaxf(scores[4 * j + 2 * r], scores[4 * j + 2 * r + 1]);
            largest[r][j % n_chains] = j < n_chains ? larger : fmaxf(largest[r][j % n_chains], larger);
        }
    step_factors f[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float all = fmaxf(fmaxf(largest[r][0], largest[r][1]), fmaxf(largest[r][2], largest[r][3]));
        all = fmaxf(all, __shfl_xor_sync(0xffffffff, all, 1));
        all = fmaxf(all, __shfl_xor_sync(0xffffffff, all, 2));
        f[r] = next_step(span->maximum[r], all, factor);
        span->maximum[r] = f[r].maximum;
    }
    float quarter[2][QUARTERS];
#pragma unroll
    for (int i = 0; i < QUARTERS; i++) {
        if (i >= half)
            keep_order(fresh, quarter[0][i == half ? i - 1 : i - 2], quarter[1][i == half ? i - 1 : i - 2]);
        if (i == half) {
            mb_wgmma_wait<0>();
            mb_wgmma_pin(sums);
            release(v_empty);
        }
#pragma unroll
        for (int c = 0; c < n_columns / QUARTERS; c++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int j = i * (n_columns / QUARTERS) + c;
                float *pair = &scores[4 * j + 2 * r], *sum = &quarter[r][i];
                pair[0] = probability(pair[0], factor, f[r].shift);
                pair[1] = probability(pair[1], factor, f[r].shift);
                *sum = c == 0 ? pair[0] : __fadd_rn(*sum, pair[0]);
                *sum = __fadd_rn(*sum, pair[1]);
            }
        if (i >= half) {
#pragma unroll
            for (int k = 0; k < dim / 8 / half; k++) {
                const int n = (i - half) * (dim / 8 / half) + k;
                if constexpr (is_end)
                    take_sums<dim, n_held>(n, m, held, kept, sums);
                else
                    rescale<dim>(n, f, sums);
            }
#pragma unroll
            for (int k = 0; k < n_columns / half; k++) {
                const int n = (i - half) * (n_columns / half) + k;
                weights[2 * n] = pack<dtype>(scores[4 * n], scores[4 * n + 1]);
                weights[2 * n + 1] = pack<dtype>(scores[4 * n + 2], scores[4 * n + 3]);
            }
        }
        mb_keep_here(quarter[0][i]);
        mb_keep_here(quarter[1][i]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++)
        span->total[r] = add_step(span->total[r], f[r].correction, quarter[r]);
}

/* ---- consumers: the ends of a tile */

/* The token of a row, both counted from a tile's first token on. Exact for less than 2^21 rows. */
static __device__ __forceinline__ int32_t token_of(int32_t row, float heads_inverse) {
    return (int32_t)(((float)row + 0.5f) * heads_inverse);
}

/* Rows r, r + stride .. of a warpgroup's: where they are in q and out, in heads; -1: there is none. */
struct row_walk {
    int32_t row, stride, n_there; /* of the warpgroup's */
    int32_t token, head, group;   /* from the tile's first token on; of the kv head's */
    int32_t step_tokens, step_heads, n_heads;
    int64_t first; /* of the tile's first token and the kv head */

    /* rows: the warpgroup's; its first one is the tile's row `in_tile`. */
    __device__ __forceinline__ row_walk(const prefill_params *p, const query_rows *rows,
                                        const tile_start *start, int in_tile, int r, int stride_) {
        row = r;
        stride = stride_;
        n_there = count_rows(rows) - rows->first;
        group = rows->group;
        n_heads = p->args.n_heads;
        step_tokens = token_of(stride, p->heads_inverse);
        step_heads = stride - step_tokens * group;
        token = token_of(start->head + in_tile + r, p->heads_inverse);
        head = start->head + in_tile + r - token * group;
        first = (int64_t)(rows->q_base + start->token) * n_heads + rows->kv_head * group;
    }
    __device__ __forceinline__ int64_t next() {
        const int64_t at = row < n_there ? first + (token * n_heads + head) : -1;
        row += stride;
        token += step_tokens;
        head += step_heads;
        if (head >= group) {
            head -= group;
            token++;
        }
        return at;
    }
};

/* Starts the copies of the warpgroup's queries, rows that are not there as zeros. */
template <int dim>
static __device__ __forceinline__ void load_queries(const prefill_params *p, const query_rows *rows,
                                                    const tile_start *start, int warpgroup, uint32_t q) {
    constexpr int pieces = dim / 8, panel_pieces = PANEL_BYTES / 16, stride = WARPGROUP / pieces;
    const int thread = (int)mb_thread_index_again() % WARPGROUP, piece = thread % pieces;
    row_walk walk(p, rows, start, warpgroup * GROUP_ROWS, thread / pieces, stride);
#pragma unroll 4
    for (int r = thread / pieces; r < GROUP_ROWS; r += stride) {
        const int64_t head = walk.next();
        const uint32_t to =
            q + (piece / panel_pieces * GROUP_ROWS + r) * PANEL_BYTES + (piece % panel_pieces ^ r % 8) * 16;
        mb_cp_async_16(to, (const uint16_t *)p->args.q + (head >= 0 ? head * dim + piece * 8 : 0),
                       head >= 0 ? 16 : 0);
    }
    mb_cp_async_commit();
}

/* Values of a stage from position n on become zeros: no row sees them, but they are multiplied by 0, and old
 * memory may be NaN. Both warpgroups do so, each before it multiplies. */
template <int dim> static __device__ __forceinline__ void clear_values(uint32_t v, int32_t n, int warpgroup) {
    constexpr int pieces = dim / 8, panel_pieces = PANEL_BYTES / 16;
    for (int i = n * pieces + (int)mb_thread_index_again() % WARPGROUP; i < STEP * pieces; i += WARPGROUP)
        mb_store_shared_16(v + (i % pieces / panel_pieces * STEP + i / pieces) * PANEL_BYTES +
                               i % panel_pieces * 16,
                           make_uint4(0, 0, 0, 0));
    mb_fence_async_shared();
    sync_group(warpgroup);
}

/* The warp's sixteen rows; `staging` is its own. */
template <int dtype, int dim>
static __device__ __forceinline__ void
store_rows(const prefill_params *p, const query_rows *rows, const tile_start *start, int warpgroup,
           const row_pair *state, const float (&sums)[dim / 2], uint32_t staging) {
    constexpr int pieces = dim / 8, row_bytes = 2 * dim, stride = 32 / pieces;
    const int thread = (int)mb_thread_index_again() % WARPGROUP, lane = thread % 32, piece = lane % pieces;
    const float f[2] = {output_factor(&p->args, rows->kv_head, state->total[0]),
                        output_factor(&p->args, rows->kv_head, state->total[1])};
    row_walk walk(p, rows, start, warpgroup * GROUP_ROWS, thread / 32 * WARP_ROWS + lane / pieces, stride);
    __syncwarp(); /* the sums of former spans have been read */
#pragma unroll
    for (int n = 0; n < dim / 16; n++) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[i] = pack<dtype>(__fmul_rn(sums[8 * n + 2 * i], f[i % 2]),
                               __fmul_rn(sums[8 * n + 2 * i + 1], f[i % 2]));
        const int r = lane % 16, to = 2 * n + lane / 16;
        mb_store_matrix_x4(staging + r * row_bytes + (to ^ r % 8) * 16, a);
    }
    __syncwarp();
#pragma unroll 4
    for (int r = lane / pieces; r < WARP_ROWS; r += stride) {
        const int64_t head = walk.next();
        const uint4 value = mb_load_shared_16(staging + r * row_bytes + (piece ^ r % 8) * 16);
        if (head >= 0)
            *(uint4 *)((uint16_t *)p->args.out + head * dim + piece * 8) = value;
    }
    __syncwarp(); /* the next tile may keep sums here */
}

#endif
