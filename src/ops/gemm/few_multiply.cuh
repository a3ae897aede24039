/* few_multiply.cuh - the consumers' product over all of K, of 16 bits and of fp8 with block scales. */
#ifndef MB_OPS_GEMM_FEW_MULTIPLY_CUH
#define MB_OPS_GEMM_FEW_MULTIPLY_CUH

#include "ops/gemm/few_parts.cuh"
#include "ops/hopper/memory.cuh"

/* What the consumers carry from tile to tile. */
typedef struct consumer {
    stage_cursor stage; /* the next one to be multiplied */
    int32_t freed;      /* the next one to be given back */
    int32_t n_refills;  /* how many are given back: what nobody loads again is not */
} consumer;

static __device__ __forceinline__ void give_back(const few_params *p, const few_shared *s, consumer *c) {
    const mb_few_plan *plan = &p->plan;
    if (c->n_refills > 0) {
        c->n_refills--;
        mb_mbarrier_arrive(&s->empty[c->freed]);
    }
    if (++c->freed == plan->n_stages)
        c->freed = 0;
}

/* The low words of wgmma's descriptors, of a step's weights and x. The high words are the same for all. */
typedef struct operands {
    uint32_t weights, x;
} operands;

/* Waits for the next stage. step: its first. */
template <int n>
static __device__ __forceinline__ operands wait_stage(const few_params *p, const few_shared *s, consumer *c,
                                                      int32_t step) {
    const mb_few_plan *plan = &p->plan;
    const int32_t at = c->stage.at, x_at = plan->keeps_x ? step : at * stage_steps<n>;
    operands o;
    o.weights = (uint32_t)mb_wgmma_descriptor(mb_shared_address(s->weights) +
                                              (uint32_t)(at * stage_steps<n> * plan->tile_rows * STEP_BYTES));
    o.x = (uint32_t)mb_wgmma_descriptor(mb_shared_address(s->x) + (uint32_t)(x_at * n * STEP_BYTES));
    mb_mbarrier_wait(&s->full[at], c->stage.parity);
    next_stage(&c->stage, plan->n_stages);
    return o;
}

static __device__ __forceinline__ uint64_t descriptor_of(uint32_t low) {
    return (mb_wgmma_descriptor(0) >> 32 << 32) | low;
}

/* The wgmma of a step. They add to sum, or with is_first begin with 0. */
template <int type, int n, int is_first>
static __device__ __forceinline__ void multiply_step(operands o, float (&sum)[n / 2]) {
    mb_wgmma<type, n, !is_first>(sum, descriptor_of(o.weights), descriptor_of(o.x));
#pragma unroll
    for (int i = 1; i < 4; i++)
        mb_wgmma<type, n, 1>(sum, descriptor_of(o.weights + 2 * i), descriptor_of(o.x + 2 * i));
}

/* The operands of the step behind. */
template <int n> static __device__ __forceinline__ operands next_step(operands o, int32_t tile_rows) {
    return operands{o.weights + (uint32_t)tile_rows * STEP_BYTES / 16, o.x + n * STEP_BYTES / 16};
}

/* Full stages are straight code: ptxas serialises wgmma around branches. The rest of K goes step by step. */
template <int n> static __device__ __forceinline__ int32_t full_stages_end(const few_params *p) {
    return p->plan.n_steps / stage_steps<n> * stage_steps<n>;
}

/* 16 bits: one chain along K. A stage is given back when the next one's wgmma are under way. */
template <int type, int n>
static __device__ __forceinline__ void multiply(const few_params *p, const few_shared *s, consumer *c,
                                                float (&sum)[n / 2]) {
    const int32_t n_steps = p->plan.n_steps, tile_rows = p->plan.tile_rows, end = full_stages_end<n>(p);
#pragma unroll 1
    for (int32_t step = 0; step < end; step += stage_steps<n>) {
        operands o = wait_stage<n>(p, s, c, step);
        mb_wgmma_pin(sum);
        mb_wgmma_fence();
#pragma unroll
        for (int i = 0; i < stage_steps<n>; i++) {
            multiply_step<type, n, 0>(o, sum);
            o = next_step<n>(o, tile_rows);
        }
        mb_wgmma_commit();
        mb_wgmma_pin(sum);
        mb_wgmma_wait<1>();
        if (step > 0)
            give_back(p, s, c);
    }
    mb_wgmma_wait<0>();
    mb_wgmma_pin(sum);
    if (end > 0)
        give_back(p, s, c);
    if (end == n_steps)
        return;
    operands o = wait_stage<n>(p, s, c, end);
#pragma unroll 1
    for (int32_t step = end; step < n_steps; step++) {
        mb_wgmma_pin(sum);
        mb_wgmma_fence();
        multiply_step<type, n, 0>(o, sum);
        mb_wgmma_commit();
        mb_wgmma_pin(sum);
        mb_wgmma_wait<0>();
        o = next_step<n>(o, tile_rows);
    }
    mb_wgmma_pin(sum);
    give_back(p, s, c);
}

/* sum += partial times the scales of its weight rows (low, high) and tokens. */
template <int n>
static __device__ __forceinline__ void promote(uint32_t token_scale, float low, float high,
                                               const float (&partial)[n / 2], float (&sum)[n / 2]) {
#pragma unroll
    for (int j = 0; j < n / 8; j++) {
        const float2 token = mb_load_shared_8(token_scale + j * 8 * (int)sizeof(float));
        sum[4 * j] += partial[4 * j] * (token.x * low);
        sum[4 * j + 1] += partial[4 * j + 1] * (token.y * low);
        sum[4 * j + 2] += partial[4 * j + 2] * (token.x * high);
        sum[4 * j + 3] += partial[4 * j + 3] * (token.y * high);
    }
}

/* Waits until all but the last n_steps - 1 - i of n_steps groups are done. */
template <int n_steps> static __device__ __forceinline__ void wait_for_step(int i) {
    if (n_steps - 1 - i == 3)
        mb_wgmma_wait<3>();
    else if (n_steps - 1 - i == 2)
        mb_wgmma_wait<2>();
    else if (n_steps - 1 - i == 1)
        mb_wgmma_wait<1>();
    else
        mb_wgmma_wait<0>();
}

/* The scales of a thread's two weight rows in some steps. */
template <int n_steps> struct row_scales { float low[n_steps], high[n_steps]; };

template <int n_steps>
static __device__ __forceinline__ row_scales<n_steps> load_scales(const float *low, const float *high) {
    row_scales<n_steps> scales;
#pragma unroll
    for (int i = 0; i < n_steps; i++) {
        scales.low[i] = __ldg(low + i);
        scales.high[i] = __ldg(high + i);
    }
    return scales;
}

/* n_steps steps of fp8, each a chain that begins with 0. All are started; then their sums times their scales
 * are added in order. */
template <int n, int n_steps>
static __device__ __forceinline__ void multiply_steps(operands o, int32_t tile_rows, uint32_t token_scale,
                                                      const row_scales<n_steps> &scales,
                                                      float (&sum)[n / 2]) {
    float partial[n_steps][n / 2];
#pragma unroll
    for (int i = 0; i < n_steps; i++) {
#pragma unroll
        for (int j = 0; j < n / 2; j++)
            partial[i][j] = 0;
        mb_wgmma_pin(partial[i]);
    }
    mb_wgmma_fence();
#pragma unroll
    for (int i = 0; i < n_steps; i++) {
        multiply_step<MB_WGMMA_E4M3, n, 1>(o, partial[i]);
        mb_wgmma_commit();
        o = next_step<n>(o, tile_rows);
    }
#pragma unroll
    for (int i = 0; i < n_steps; i++) {
        wait_for_step<n_steps>(i);
        mb_wgmma_pin(partial[i]);
        promote<n>(token_scale + i * n * (int)sizeof(float), scales.low[i], scales.high[i], partial[i], sum);
    }
}

/* low, high: the scales of this thread's two weight rows, [n_steps]. They arrive while a stage is awaited. */
template <int n>
static __device__ __forceinline__ void multiply_scaled(const few_params *p, const few_shared *s, consumer *c,
                                                       const float *low, const float *high,
                                                       float (&sum)[n / 2]) {
    const int32_t n_steps = p->plan.n_steps, tile_rows = p->plan.tile_rows, end = full_stages_end<n>(p);
    const uint32_t token_scale = mb_shared_address(s->x_scale + threadIdx.x % 4 * 2);
    constexpr int row_bytes = n * (int)sizeof(float);
#pragma unroll 1
    for (int32_t step = 0; step < end; step += stage_steps<n>) {
        const row_scales<stage_steps<n>> scales = load_scales<stage_steps<n>>(low + step, high + step);
        const operands o = wait_stage<n>(p, s, c, step);
        multiply_steps<n, stage_steps<n>>(o, tile_rows, token_scale + step * row_bytes, scales, sum);
        give_back(p, s, c);
    }
    if (end == n_steps)
        return;
    operands o = wait_stage<n>(p, s, c, end);
#pragma unroll 1
    for (int32_t step = end; step < n_steps; step++) {
        const row_scales<1> scales = load_scales<1>(low + step, high + step);
        multiply_steps<n, 1>(o, tile_rows, token_scale + step * row_bytes, scales, sum);
        o = next_step<n>(o, tile_rows);
    }
    give_back(p, s, c);
}

#endif
