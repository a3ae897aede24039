/* few_load.cuh - how weights and x get to shared memory: by TMA; where a CTA quantises x, by eight warps. */
#ifndef MB_OPS_GEMM_FEW_LOAD_CUH
#define MB_OPS_GEMM_FEW_LOAD_CUH

#include "ops/gemm/few_parts.cuh"
#include "ops/hopper/tma.cuh"
#include "ops/moe/to_fp8.cuh"

/* Where a copy of `copy_steps` steps begins in its tensor map. Of one step: the column. Of several: rows are
 * seen as [steps, 128 bytes], and the step is the third dimension. */
template <int type> static __device__ __forceinline__ int32_t copy_column(int32_t step, int32_t copy_steps) {
    return copy_steps == 1 ? step * k_step<type> : 0;
}
static __device__ __forceinline__ int32_t copy_step(int32_t step, int32_t copy_steps) {
    return copy_steps == 1 ? 0 : step;
}

/* Copies for the stage that begins with this step. The last may bring steps behind the end, zeros. */
template <int n>
static __device__ __forceinline__ int32_t n_copies(const mb_few_plan *plan, int32_t first_step,
                                                   int32_t copy_steps) {
    return (min(plan->n_steps - first_step, stage_steps<n>) + copy_steps - 1) / copy_steps;
}

template <int type, int n>
static __device__ __forceinline__ void stream_weights(const few_params *p, const few_shared *s,
                                                      int32_t rank) {
    const mb_few_plan *plan = &p->plan;
    const int32_t step_bytes = plan->tile_rows * STEP_BYTES, copy_steps = plan->weight_copy_steps;
    stage_cursor stage = {0, 1};
    for (int32_t tile = (int32_t)blockIdx.x; has_round(plan, tile, rank); tile += (int32_t)gridDim.x) {
        const int32_t row = tile * plan->tile_rows;
#pragma unroll 1
        for (int32_t first = 0; first < plan->n_steps; first += stage_steps<n>) {
            uint64_t *full = &s->full[stage.at];
            /* a tile behind the last one: nothing to multiply, but x to share */
            const int32_t copies = row < p->n_outputs ? n_copies<n>(plan, first, copy_steps) : 0;
            mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
            mb_mbarrier_arrive_expect(full, (uint32_t)(copies * copy_steps * step_bytes));
            unsigned char *to = s->weights + stage.at * stage_steps<n> * step_bytes;
            int32_t step = first;
#pragma unroll 1
            for (int32_t i = 0; i < copies; i++) {
                const int32_t column = copy_column<type>(step, copy_steps),
                              third = copy_step(step, copy_steps);
                if (plan->read_once)
                    mb_tma_load_5d_evict_first(to, &p->weights, full, column, row, third, 0, 0);
                else
                    mb_tma_load_5d(to, &p->weights, full, column, row, third, 0, 0);
                to += copy_steps * step_bytes;
                step += copy_steps;
            }
            next_stage(&stage, plan->n_stages);
        }
    }
}

/* Every CTA of a cluster loads a part of the tokens. A part in which there are none is not loaded. */
template <int type, int n>
static __device__ __forceinline__ void stream_x(const few_params *p, const few_shared *s, int32_t rank) {
    constexpr int step_bytes = n * STEP_BYTES;
    const mb_few_plan *plan = &p->plan;
    const int32_t copy_steps = plan->x_copy_steps;
    const int32_t part = n / plan->cluster, n_parts = (p->n_tokens + part - 1) / part;
    const uint16_t all_ctas = (uint16_t)((1 << plan->cluster) - 1);
    stage_cursor stage = {0, 1};
    for (int32_t tile = (int32_t)blockIdx.x; has_round(plan, tile, rank); tile += (int32_t)gridDim.x) {
#pragma unroll 1
        for (int32_t first = 0; first < plan->n_steps; first += stage_steps<n>) {
            uint64_t *full = &s->full[stage.at];
            const int32_t copies = n_copies<n>(plan, first, copy_steps);
            mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
            mb_mbarrier_arrive_expect(full, (uint32_t)(copies * copy_steps * n_parts * part * STEP_BYTES));
            unsigned char *to = s->x + stage.at * stage_steps<n> * step_bytes + rank * part * STEP_BYTES;
            int32_t step = first;
#pragma unroll 1
            for (int32_t i = 0; i < copies; i++) {
                const int32_t column = copy_column<type>(step, copy_steps),
                              third = copy_step(step, copy_steps);
                if (plan->cluster == 1)
                    mb_tma_load_5d(to, &p->x, full, column, 0, third, 0, 0);
                else if (rank < n_parts)
                    mb_tma_load_5d_multicast(to, &p->x, full, all_ctas, column, rank * part, third, 0, 0);
                to += copy_steps * step_bytes;
                step += copy_steps;
            }
            next_stage(&stage, plan->n_stages);
        }
    }
}

/* The scales of x, [T, n_steps] in memory, to [n_steps][n], by the consumers. */
template <int n>
static __device__ __forceinline__ void copy_scales(const few_params *p, const few_shared *s) {
    const int32_t n_steps = p->plan.n_steps;
    for (int32_t i = (int32_t)threadIdx.x; i < p->n_tokens * n_steps; i += CONSUMER_THREADS) {
        const int32_t token = i / n_steps;
        s->x_scale[(i - token * n_steps) * n + token] = p->x_scale[i];
    }
}

/* All of x to fp8, in shared memory, by warp number `warp` of QUANTIZER_WARPS. Half a warp takes 128 columns
 * of a token, as ops/moe/front/quantize.cuh does, with the same bits. */
template <int n>
static __device__ __forceinline__ void quantize_x(const few_params *p, const few_shared *s, int warp) {
    enum { AT_ONCE = 4 };
    const int lane = (int)threadIdx.x % 32, byte = lane % 16 * 8;
    const int32_t n_steps = p->plan.n_steps, n_units = p->n_tokens * n_steps;
#pragma unroll 1
    for (int32_t first = 2 * warp; first < n_units; first += AT_ONCE * 2 * QUANTIZER_WARPS) {
        uint4 packed[AT_ONCE];
        int32_t token[AT_ONCE], step[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int32_t unit = first + 2 * QUANTIZER_WARPS * i + lane / 16;
            token[i] = unit / n_steps;
            step[i] = unit - token[i] * n_steps;
            const int32_t column = step[i] * STEP_BYTES + byte;
            packed[i] = make_uint4(0, 0, 0, 0); /* behind the end of K */
            if (unit < n_units && column < p->k_size)
                packed[i] =
                    *(const uint4 *)((const uint16_t *)p->x_16bit + token[i] * (int64_t)p->k_size + column);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            float v[8];
            widen(packed[i], p->is_f16, v);
            const float largest = largest_of_unit(v), scale = scale_of_unit(largest);
            if (token[i] < p->n_tokens) {
                unsigned char *row = s->x + (step[i] * n + token[i]) * STEP_BYTES;
                *(uint2 *)(row + (byte / 16 ^ token[i] % 8) * 16 + byte % 16) =
                    divide_to_e4m3(v, scale, is_tame(scale, largest));
                if (byte == 0)
                    s->x_scale[step[i] * n + token[i]] = scale;
            }
        }
    }
    mb_fence_async_shared();
}

#endif
