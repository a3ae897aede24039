/* weights_multiply.cuh - a consumer warpgroup's product: 64 columns of P by all 256 of the pair's Q, over
 * the rows. */
#ifndef MB_OPS_MOE_BACKWARD_WEIGHTS_MULTIPLY_CUH
#define MB_OPS_MOE_BACKWARD_WEIGHTS_MULTIPLY_CUH

#include "ops/hopper/wgmma_across.cuh"
#include "ops/moe/backward/weights_work.cuh"

/* Gives a stage back to the producers of both CTAs: Q comes from both. Every lane arrives for itself. */
static __device__ __forceinline__ void release_stage(uint64_t *empty) {
#pragma unroll
    for (int cta = 0; cta < N_CTAS; cta++)
        mb_mbarrier_arrive_cluster(empty, cta);
}

/* The stage's operands as descriptors. */
typedef struct stage_operands {
    uint64_t a, b;
} stage_operands;

static __device__ __forceinline__ stage_operands wait_stage(weights_shared *s, int warpgroup,
                                                            const mb_ring_cursor *stage) {
    mb_mbarrier_wait(&s->full[stage->at], stage->parity);
    /* cp.async wrote P by ordinary stores of other threads. By PTX those threads would fence, before they
     * arrive; but cp.async arrives by itself. On sm_90 a fence of the threads that use wgmma, behind
     * their wait, does it: the experts' kernel (multiply.cuh) rests on the same. */
    mb_fence_async_shared();
    return {
        mb_wgmma_descriptor_across(mb_shared_address(s->p[stage->at]) + warpgroup * PANEL_BYTES, PANEL_BYTES),
        mb_wgmma_descriptor_across(mb_shared_address(s->q[stage->at]), PANEL_BYTES)};
}

/* sum += the products of all rows, 16 by 16. A stage is given back only when the next one's wgmma are under
 * way. What the last stage has above the last 16 rows is not multiplied. */
template <int dtype>
static __device__ __forceinline__ void multiply(weights_shared *s, int warpgroup, int32_t n_rows,
                                                mb_ring_cursor *stage, float (&sum)[128]) {
    constexpr int type = dtype == MB_BF16 ? MB_WGMMA_BF16 : MB_WGMMA_F16;
    const int32_t n_k16 = (n_rows + 15) / 16, n_whole = n_k16 / (STEP / 16), n_rest = n_k16 % (STEP / 16);
    uint64_t *previous = nullptr;
#pragma unroll 1
    for (int32_t i = 0; i < n_whole; i++) {
        const stage_operands of = wait_stage(s, warpgroup, stage);
        mb_wgmma_pin(sum);
        mb_wgmma_fence();
#pragma unroll
        for (int k = 0; k < STEP / 16; k++)
            mb_wgmma_both_across<type>(sum, of.a + k * MB_WGMMA_ACROSS_K16, of.b + k * MB_WGMMA_ACROSS_K16);
        mb_wgmma_commit();
        mb_wgmma_pin(sum);
        if (previous) {
            mb_wgmma_wait<1>();
            release_stage(previous);
        }
        previous = &s->empty[stage->at];
        mb_ring_advance<N_STAGES>(stage);
    }
    if (n_rest > 0) {
        const stage_operands of = wait_stage(s, warpgroup, stage);
#pragma unroll 1
        for (int k = 0; k < n_rest; k++) {
            mb_wgmma_pin(sum);
            mb_wgmma_fence();
            mb_wgmma_both_across<type>(sum, of.a + k * MB_WGMMA_ACROSS_K16, of.b + k * MB_WGMMA_ACROSS_K16);
            mb_wgmma_commit();
            mb_wgmma_pin(sum);
        }
        if (previous) {
            mb_wgmma_wait<1>();
            release_stage(previous);
        }
        previous = &s->empty[stage->at];
        mb_ring_advance<N_STAGES>(stage);
    }
    mb_wgmma_wait<0>();
    mb_wgmma_pin(sum);
    if (previous)
        release_stage(previous);
}

#endif
