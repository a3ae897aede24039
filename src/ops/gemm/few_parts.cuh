/* few_parts.cuh - what all roles of few_sm90.cu know: sizes, parameters, shared memory, a ring of stages. */
#ifndef MB_OPS_GEMM_FEW_PARTS_CUH
#define MB_OPS_GEMM_FEW_PARTS_CUH

#include "ops/gemm/few.h"
#include "ops/hopper/barrier.cuh"
#include "ops/hopper/wgmma.cuh"

#include <cuda.h>

enum {
    STEP_BYTES = MB_FEW_STEP_BYTES,
    CONSUMER_WARPS = 4,
    CONSUMER_THREADS = 32 * CONSUMER_WARPS,
    X_WARP = CONSUMER_WARPS + 1,
    WARPS_OF_X = MB_FEW_WARPS_OF_X, /* where the CTA norms or quantises: consumers and four more */
    X_THREADS = 32 * WARPS_OF_X,
    SCALES_BARRIER = 1, /* named barrier: x's scales, and where the CTA makes it x, are in shared memory */
};

/* Where x comes from, and what is multiplied. */
enum x_mode {
    X_STREAMED, /* with the weights, stage by stage */
    X_KEPT,     /* the CTA has made all of it */
    X_GROUPED,  /* the same, and the products of several steps are made side by side (few_groups.cuh) */
};

template <int mode> static constexpr int weights_warp = mode == X_STREAMED ? CONSUMER_WARPS : WARPS_OF_X;
template <int mode>
static constexpr int n_threads = 32 * (mode == X_STREAMED ? CONSUMER_WARPS + 2 : WARPS_OF_X + 1);

/* Rows of x that the CTAs add up, as mb_moe_reduce_args has them. */
typedef struct few_sum {
    const void *y, *residual; /* of 16 bits */
    void *out;
    const float *weights;
    const int32_t *token_row;
    int32_t top_k;
} few_sum;

typedef struct few_params {
    CUtensorMap weights, x;
    const void *x_16bit;     /* [T, K], where each CTA norms or quantises */
    const int32_t *rows;     /* [T] of x, or NULL: all in order */
    const void *norm_weight; /* [K] of 16 bits, where each CTA norms */
    const float *x_scale;    /* [T, n_steps], where x comes in fp8 */
    const float *w_scale;
    const void *bias, *residual;
    void *out;
    int32_t n_tokens, n_outputs, k_size;
    int32_t scale_shift; /* log2 of the weight rows of a scale */
    int32_t is_f16, norm_is_f16;
    float eps;
    mb_dtype out_dtype, bias_dtype;
    few_sum sum;
    mb_few_plan plan;
} few_params;

template <int type> static constexpr int k_step = type == MB_WGMMA_E4M3 ? STEP_BYTES : STEP_BYTES / 2;
template <int n> static constexpr int stage_steps = MB_FEW_STAGE_STEPS(n);

typedef struct few_shared {
    unsigned char *weights, *x;
    float *x_scale;
    uint4 *norm_weight; /* eight of 16 bits each */
    float *row_scale, *products;
    uint64_t *full, *empty; /* [n_stages] */
    uint4 *sums;            /* [T][n_pieces][32], eight of 16 bits each */
} few_shared;

static __device__ __forceinline__ few_shared shared_of(const mb_few_plan *plan, unsigned char *base) {
    few_shared s;
    s.weights = base;
    s.x = base + plan->x_offset;
    s.x_scale = (float *)(base + plan->x_scale_offset);
    s.norm_weight = (uint4 *)(base + plan->norm_offset);
    s.row_scale = (float *)(base + plan->row_scale_offset);
    s.products = (float *)(base + plan->products_offset);
    s.full = (uint64_t *)(base + plan->barriers_offset);
    s.empty = s.full + plan->n_stages;
    s.sums = (uint4 *)(base + plan->sum_offset);
    return s;
}

/* The scales of output `index`, [n_steps]. */
static __device__ __forceinline__ const float *scales_of(const few_params *p, int32_t index) {
    return p->w_scale + (int64_t)(min(index, p->n_outputs - 1) >> p->scale_shift) * p->plan.n_steps;
}

/* A stage, and the parity that a barrier of it is waited for with. */
typedef struct stage_cursor {
    int32_t at;
    uint32_t parity;
} stage_cursor;

static __device__ __forceinline__ void next_stage(stage_cursor *stage, int32_t n_stages) {
    if (++stage->at == n_stages) {
        stage->at = 0;
        stage->parity ^= 1;
    }
}

/* A lane for each stage. `full`: an arrival for the weights' bytes and one for x's. */
static __device__ __forceinline__ void init_barriers(const mb_few_plan *plan, const few_shared *s) {
    for (int i = (int)threadIdx.x % 32; i < plan->n_stages; i += 32) {
        mb_mbarrier_init(&s->full[i], plan->keeps_x ? 1 : 2);
        mb_mbarrier_init(&s->empty[i], CONSUMER_THREADS);
    }
    mb_mbarrier_init_fence();
}

#endif
