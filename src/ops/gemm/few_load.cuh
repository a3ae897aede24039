/* few_load.cuh - how weights and x get to shared memory by TMA. */
#ifndef MB_OPS_GEMM_FEW_LOAD_CUH
#define MB_OPS_GEMM_FEW_LOAD_CUH

#include "ops/gemm/few_parts.cuh"
#include "ops/hopper/tma.cuh"

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
static __device__ __forceinline__ void stream_weights(const few_params *p, const few_shared *s) {
    const mb_few_plan *plan = &p->plan;
    const int32_t step_bytes = plan->tile_rows * STEP_BYTES, copy_steps = plan->copy_steps;
    stage_cursor stage = {0, 1};
    for (int32_t tile = (int32_t)blockIdx.x; tile < plan->n_tiles; tile += (int32_t)gridDim.x) {
        const int32_t row = tile * plan->tile_rows;
#pragma unroll 1
        for (int32_t first = 0; first < plan->n_steps; first += stage_steps<n>) {
            uint64_t *full = &s->full[stage.at];
            const int32_t copies = n_copies<n>(plan, first, copy_steps);
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

template <int type, int n>
static __device__ __forceinline__ void stream_x(const few_params *p, const few_shared *s) {
    constexpr int step_bytes = n * STEP_BYTES;
    const mb_few_plan *plan = &p->plan;
    const int32_t copy_steps = plan->copy_steps;
    stage_cursor stage = {0, 1};
    for (int32_t tile = (int32_t)blockIdx.x; tile < plan->n_tiles; tile += (int32_t)gridDim.x) {
#pragma unroll 1
        for (int32_t first = 0; first < plan->n_steps; first += stage_steps<n>) {
            uint64_t *full = &s->full[stage.at];
            const int32_t copies = n_copies<n>(plan, first, copy_steps);
            mb_mbarrier_wait(&s->empty[stage.at], stage.parity);
            mb_mbarrier_arrive_expect(full, (uint32_t)(copies * copy_steps * step_bytes));
            unsigned char *to = s->x + stage.at * stage_steps<n> * step_bytes;
            int32_t step = first;
#pragma unroll 1
            for (int32_t i = 0; i < copies; i++) {
                mb_tma_load_5d(to, &p->x, full, copy_column<type>(step, copy_steps), 0,
                               copy_step(step, copy_steps), 0, 0);
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

#endif
