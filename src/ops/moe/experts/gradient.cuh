/*
 * gradient.cuh - the backward's first GEMM: what becomes of dh = w2[e]^T d_out. Consumers' and storers' side.
 *
 * An item has 256 outputs in four rounds of 64. Round i is row block i, so warpgroup i % 2 works on it,
 * alone, in slot i. The producers have brought p in a stage for each round (gather.cuh), behind the
 * stages of K. Results lie in the same stage until the storing warps have copied them, three regions of
 * cta_tokens rows:
 *
 *    in place of the weights   gate of p -> dp's gate      up of p -> dp's up
 *    in place of the tokens                                              hs
 *
 *    consumer 0  | multiply A          | round 0 | round 2 | multiply B
 *    consumer 1  | multiply A          | round 1 | round 3 | multiply B
 *    storers                                     | 0 | 1   | 2 | 3 |
 *    producers        ... K of A | p 0 1 2 3     | K of B: a stage for each round that is stored
 *
 * dot, the sum of h dh over the outputs: a warp adds its 16 outputs in registers, the storing warps the
 * four warps' sums in order, and whoever reads dot the sums of 64 outputs. The order is the same for
 * every tile and number of tokens.
 */
#ifndef MB_OPS_MOE_EXPERTS_GRADIENT_CUH
#define MB_OPS_MOE_EXPERTS_GRADIENT_CUH

#include "ops/hopper/mma.cuh"
#include "ops/moe/experts/epilogue.cuh"
#include "ops/moe/experts/multiply.cuh"

enum { ROUND_OUTPUTS = 64 };

/* Activations with code of their own. */
enum gradient_shape { GRADIENT_GATED_SMOOTH, GRADIENT_GATED_RELU, GRADIENT_SMOOTH, GRADIENT_RELU };
template <int shape>
constexpr int is_gated_shape = shape == GRADIENT_GATED_SMOOTH || shape == GRADIENT_GATED_RELU;

/* An activation and its derivative. */
typedef struct activated {
    float value, slope;
} activated;

/* As activate(): v sigmoid(u), u = v (linear + cubic v^2) in powers of two, so the derivative is sigmoid + v
 * sigmoid (1 - sigmoid) u' ln 2. Of a large v that is the sigmoid, 0 or 1; the square stays finite, so that 0
 * times it is 0. */
static __device__ __forceinline__ activated activate_smooth(const activation_shape *a, float v) {
    const float ln_2 = 0.6931471805599453f, largest_square = 1e18f;
    const float square = fminf(v * v, largest_square);
    const float sigmoid = mb_reciprocal(1.0f + mb_exp2(-v * fmaf(a->cubic, square, a->linear)));
    const float value = v * sigmoid;
    return {value, fmaf(fmaf(-value, sigmoid, value), fmaf(3.0f * ln_2 * a->cubic, square, ln_2 * a->linear),
                        sigmoid)};
}

template <int gated>
static __device__ __forceinline__ activated activate_relu(const activation_shape *a, float v) {
    const float value = mb_max_nan(v, 0.0f);
    if (!gated && a->squared)
        return {value * value, v > 0 ? 2.0f * v : 0.0f};
    return {value, v > 0 ? 1.0f : 0.0f};
}

/* What a thread has of one output for one token. */
typedef struct gradients {
    float gate, up, hs, h;
} gradients;

template <int shape>
static __device__ __forceinline__ gradients gradients_of(const activation_shape *activation, float dh,
                                                         float weight, float gate, float up) {
    constexpr int gated = is_gated_shape<shape>;
    activated a;
    if constexpr (shape == GRADIENT_GATED_SMOOTH || shape == GRADIENT_SMOOTH)
        a = activate_smooth(activation, gate);
    else
        a = activate_relu<gated>(activation, gate);
    const float h = gated ? a.value * up : a.value, weighted = weight * dh;
    return {weighted * (gated ? up * a.slope : a.slope), weighted * a.value, weight * h, h};
}

/*
 * The routing weights of an item's tokens, all in the registers of each warp: lane l has those of tokens
 * 2 l, 2 l + 1, and of the next 64. They are asked for before the product and needed after it. (Loaded
 * where they are needed, they made the warps wait for memory four times a round.)
 */
typedef struct item_weights {
    float2 low, high;
} item_weights;

/* Of a token and the next one; past the last one 0. */
static __device__ __forceinline__ float2 load_two_weights(const experts_gemm *g, const item *work,
                                                          int token) {
    const float *weight = g->row_weight + work->first_row;
    return {token < work->n_rows ? weight[token] : 0.0f, token + 1 < work->n_rows ? weight[token + 1] : 0.0f};
}
static __device__ __forceinline__ item_weights load_weights(const experts_gemm *g, const item *work) {
    const int lane = threadIdx.x % 32;
    return {load_two_weights(g, work, 2 * lane), load_two_weights(g, work, 64 + 2 * lane)};
}

/* Of the two tokens that this thread has of the item's eight number j. */
static __device__ __forceinline__ float2 two_weights(const item_weights *weights, int j) {
    const float2 mine = j < 8 ? weights->low : weights->high;
    const int owner = 4 * (j % 8) + threadIdx.x % 4;
    return {__shfl_sync(0xffffffff, mine.x, owner), __shfl_sync(0xffffffff, mine.y, owner)};
}

/* The sums over the warp's eight lanes of equal lane % 4 of eight values, one to a lane: lane l gets the sum
 * of value[l / 16 * 4 + l / 8 % 2 * 2 + l / 4 % 2]. The order is the same for all eight. */
static __device__ __forceinline__ float sum_and_deal(float (&value)[8], int lane) {
#pragma unroll
    for (int half = 4; half > 0; half /= 2) {
        const int is_upper = lane & (4 * half);
#pragma unroll
        for (int i = 0; i < half; i++) {
            const float mine = is_upper ? value[half + i] : value[i],
                        other = is_upper ? value[i] : value[half + i];
            value[i] = mine + __shfl_xor_sync(0xffffffff, other, 4 * half);
        }
    }
    return value[0];
}

/*
 * One round: 64 outputs, a warp 16 of them, 16 tokens at a time. An instruction brings (and stores) four
 * 8 x 8 matrices: the warp's first and second eight outputs of eight tokens, and the same of the next
 * eight. `matrices` is where this lane's row of them begins in a region; it moves on by 16 rows.
 */
template <int kind, int n, int shape, class shared>
static __device__ __forceinline__ void emit_gradients(const experts_params *p, shared *s,
                                                      const item_weights *row_weights, uint32_t stage,
                                                      uint32_t slot, float (&sum)[n / 2]) {
    static_assert(n % 32 == 0 && n <= 128, "dot is summed for 32 tokens at a time, a warp has 128 weights");
    const experts_gemm *g = &p->gemm[GEMM_FIRST];
    const int lane = threadIdx.x % 32, warp = threadIdx.x % WARPGROUP / 32;
    const int row = lane / 16 * 8 + lane % 8, chunk = warp * 2 + lane / 8 % 2;
    const uint32_t matrices = row * ROW_BYTES + (chunk ^ (lane % 8)) * 16;
    const uint32_t to_gate = mb_shared_address(s->weights[stage]) + matrices,
                   to_up = to_gate + shared::region_bytes,
                   to_hs = mb_shared_address(s->tokens[stage]) + matrices;
    float *dot = s->dot[slot][warp] + lane / 8 * 8 + lane % 4 * 2 + lane / 4 % 2;
#pragma unroll
    for (int j0 = 0; j0 < n / 8; j0 += 4) {
        float2 weights[4]; /* of eight tokens each, two of which are this thread's */
        float dots[8];
#pragma unroll
        for (int i = 0; i < 4; i++)
            weights[i] = two_weights(row_weights, j0 + i);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int j = j0 + 2 * half;
            const uint32_t offset = j * 8 * ROW_BYTES;
            uint32_t gate[4], up[4] = {0, 0, 0, 0}, hs[4];
            mb_load_matrix_transposed_x4(gate, to_gate + offset);
            if constexpr (is_gated_shape<shape>)
                mb_load_matrix_transposed_x4(up, to_up + offset);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float2 weight = weights[2 * half + i];
                float2 dot_of = {0, 0};
#pragma unroll
                for (int low = 0; low < 2; low++) { /* the thread's first output, then the other one */
                    const float *dh = &sum[4 * (j + i) + 2 * low];
                    const float2 gates = unpack_two<kind>(gate[2 * i + low], 0),
                                 ups = unpack_two<kind>(up[2 * i + low], 0);
                    const gradients x = gradients_of<shape>(&g->activation, dh[0], weight.x, gates.x, ups.x);
                    const gradients y = gradients_of<shape>(&g->activation, dh[1], weight.y, gates.y, ups.y);
                    gate[2 * i + low] = pack<kind>(x.gate, y.gate, 0);
                    up[2 * i + low] = pack<kind>(x.up, y.up, 0);
                    hs[2 * i + low] = pack<kind>(x.hs, y.hs, 0);
                    dot_of.x = fmaf(dh[0], x.h, dot_of.x);
                    dot_of.y = fmaf(dh[1], y.h, dot_of.y);
                }
                dots[4 * half + 2 * i] = dot_of.x;
                dots[4 * half + 2 * i + 1] = dot_of.y;
            }
            mb_store_matrix_transposed_x4(to_gate + offset, gate);
            if constexpr (is_gated_shape<shape>)
                mb_store_matrix_transposed_x4(to_up + offset, up);
            mb_store_matrix_transposed_x4(to_hs + offset, hs);
        }
        dot[8 * j0] = sum_and_deal(dots, lane);
    }
}

/* One item of a consumer warpgroup. n: the number of tokens, padded. */
template <int kind, int n, int n_warpgroups, int n_row_blocks, int n_ctas, class shared>
static __device__ __forceinline__ void consume_gradient(const experts_params *p, shared *s, int warpgroup,
                                                        const item *work, mb_ring_cursor *stage,
                                                        mb_ring_cursor *slot) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]);
    static_assert(n_warpgroups * n_row_blocks == shared::n_slots, "a slot belongs to a round");
    const int is_relu = p->gemm[GEMM_FIRST].activation.floor == 0;
    const item_weights weights = load_weights(&p->gemm[GEMM_FIRST], work);
    float sum[n_row_blocks][n / 2];
#pragma unroll
    for (int m = 0; m < n_row_blocks; m++)
#pragma unroll
        for (int i = 0; i < n / 2; i++)
            sum[m][i] = 0;
    multiply<kind, n, n_warpgroups, n_row_blocks, n_ctas>(s, warpgroup, p->gemm[GEMM_FIRST].k_size, 0, stage,
                                                          sum);
    /* One code for all row blocks, each in its turn in sum[0]: straight on for two of them, a warp waited
     * for its instructions. */
#pragma unroll 1
    for (int m = 0; m < n_row_blocks; m++) {
        mb_ring_cursor mine = *stage;
        for (int w = 0; w < warpgroup; w++)
            mb_ring_advance<n_stages>(&mine);
        mb_mbarrier_wait(&s->staged_empty[slot->at], slot->parity ^ 1);
        /* The other warpgroup's stage of p is not waited for. It is full: threads bring the stages in
         * turn, so their arrivals at a later stage's barrier come after those at an earlier one's. */
        mb_mbarrier_wait(&s->full[mine.at], mine.parity);
        if (is_relu && p->gradient.gated)
            emit_gradients<kind, n, GRADIENT_GATED_RELU>(p, s, &weights, mine.at, slot->at, sum[0]);
        else if (is_relu)
            emit_gradients<kind, n, GRADIENT_RELU>(p, s, &weights, mine.at, slot->at, sum[0]);
        else if (p->gradient.gated)
            emit_gradients<kind, n, GRADIENT_GATED_SMOOTH>(p, s, &weights, mine.at, slot->at, sum[0]);
        else
            emit_gradients<kind, n, GRADIENT_SMOOTH>(p, s, &weights, mine.at, slot->at, sum[0]);
        mb_mbarrier_arrive(&s->staged_full[slot->at]);
#pragma unroll
        for (int w = 0; w < n_warpgroups; w++) {
            mb_ring_advance<shared::n_slots>(slot);
            mb_ring_advance<n_stages>(stage);
        }
#pragma unroll
        for (int next = 1; next < n_row_blocks; next++)
#pragma unroll
            for (int i = 0; i < n / 2; i++)
                sum[next - 1][i] = sum[next][i];
    }
}

/* ---- The storing warps' side */

/* n_outputs of each row of a region to memory, 16 bytes a lane. They are read again only after much else has
 * gone through L2, so they are stored to leave L2 first. */
static __device__ __forceinline__ void store_region(void *to, int64_t width, uint32_t region, int32_t n_rows,
                                                    int32_t n_outputs) {
    enum { ROWS = STORE_THREADS / 8 };
    const int thread = threadIdx.x % WARPGROUP, chunk = thread % 8;
    if (chunk * 8 >= n_outputs)
        return;
    uint16_t *out = (uint16_t *)to + chunk * 8;
#pragma unroll 4
    for (int token = thread / 8; token < n_rows; token += ROWS)
        __stcs((uint4 *)(out + token * width), mb_load_shared_16(chunk_at(region, token, chunk)));
}

template <class shared>
static __device__ __forceinline__ void store_round(const experts_params *p, shared *s, const item *work,
                                                   uint32_t stage, uint32_t slot, int32_t output) {
    const experts_gradient *d = &p->gradient;
    const experts_gemm *g = &p->gemm[GEMM_FIRST];
    const int thread = threadIdx.x % WARPGROUP;
    const int32_t n_outputs = min((int32_t)ROUND_OUTPUTS, g->width - output);
    if (n_outputs <= 0)
        return;
    const uint32_t region = mb_shared_address(s->weights[stage]);
    const int64_t width = g->width, width13 = d->gated ? 2 * width : width;
    uint16_t *dp = (uint16_t *)g->out + work->first_row * width13 + output;
    store_region(dp, width13, region, work->n_rows, n_outputs);
    if (d->gated)
        store_region(dp + width, width13, region + shared::region_bytes, work->n_rows, n_outputs);
    store_region((uint16_t *)d->hs + work->first_row * width + output, width,
                 mb_shared_address(s->tokens[stage]), work->n_rows, n_outputs);
    if (thread < work->n_rows) {
        const float(&parts)[4][sizeof(s->dot[0][0]) / sizeof(float)] = s->dot[slot];
        d->dot[output / ROUND_OUTPUTS * d->dot_stride + work->first_row + thread] =
            parts[0][thread] + parts[1][thread] + parts[2][thread] + parts[3][thread];
    }
}

template <int kind, int weight_rows, int n_warpgroups, int n_ctas, class shared>
static __device__ __forceinline__ void store_gradients(const experts_params *p, shared *s) {
    constexpr int n_stages = sizeof(s->full) / sizeof(s->full[0]), n_rounds = weight_rows / ROUND_OUTPUTS;
    const experts_gemm *g = &p->gemm[GEMM_FIRST];
    const int32_t n_k_steps = (g->k_size + traits<kind>::k_step - 1) / traits<kind>::k_step;
    mb_ring_cursor ring = {0, 0}, slot = {0, 0};
    uint32_t stage = 0;
    for (;;) {
        const item *work = wait_item(s, &ring);
        if (work->gemm == NO_MORE)
            break;
        stage = (stage + n_k_steps) % n_stages;
#pragma unroll 1
        for (int i = 0; i < n_rounds; i++) {
            mb_mbarrier_wait(&s->staged_full[slot.at], slot.parity);
            store_round(p, s, work, stage, slot.at, work->column_tile * weight_rows + i * ROUND_OUTPUTS);
            mb_fence_async_shared(); /* ordinary accesses before what the copy engine writes next */
            release_stage<n_ctas, n_warpgroups>(&s->empty[stage]);
            mb_mbarrier_arrive(&s->staged_empty[slot.at]);
            mb_ring_advance<shared::n_slots>(&slot);
            stage = stage + 1 < n_stages ? stage + 1 : 0;
        }
        release_item(s, &ring);
    }
}

#endif
