/*
 * params.cuh - what the host hands to the experts' kernel (kernel.cuh): one or two grouped GEMMs
 * over the same token tiles.
 */
#ifndef MB_OPS_MOE_EXPERTS_PARAMS_CUH
#define MB_OPS_MOE_EXPERTS_PARAMS_CUH

#include "moebius/ops.h"

#include <cuda.h>
#include <cuda_runtime.h>

/* What is multiplied, and how: the kernel is compiled once for each. */
enum experts_kind { KIND_BF16, KIND_F16, KIND_TF32, KIND_FP8_TENSOR, KIND_FP8_BLOCK };

/* What the kernel is compiled for. */
enum experts_use {
    USE_GROUPS,   /* the experts, or one grouped GEMM */
    USE_DENSE,    /* one group, given by params->dense; tiles of DENSE_TOKENS tokens a CTA at least */
    USE_SAVING_P, /* the experts of a training step: p is kept; tiles of 256 weight rows of 16 bits */
    USE_ACROSS,   /* one grouped GEMM without bias, K along the rows of the weights: the backward's dx */
    USE_GRADIENT  /* the same with an epilogue of its own: the backward's dp, hs and dot (gradient.cuh) */
};

/* How a finished tile leaves shared memory. */
enum experts_store {
    STORE_16BIT,     /* as it is */
    STORE_FP8_BLOCK, /* quantised, with a scale for each row and 128 columns */
    STORE_FP8_TENSOR,
    STORE_F32, /* it was written from registers already */
};

/* Every activation is v / (1 + 2^-(v (linear + cubic v^2))), v being floor at least, relu2 times v once
 * more: one sequence of instructions, no branches. (With a switch in this place the epilogue took 17 us a
 * tile, all of it fetching instructions.) */
typedef struct activation_shape {
    float linear, cubic; /* cubic is never 0: 0 times the square of a large value could be NaN */
    float floor;
    int32_t squared;
} activation_shape;

typedef struct experts_gemm {
    CUtensorMap weights;
    const void *a;            /* token rows */
    const int32_t *row_index; /* rows of a, or NULL: in order */
    const float *a_scale;     /* KIND_FP8_BLOCK [rows of a, k_blocks], KIND_FP8_TENSOR [1] */
    const float *b_scale;     /* KIND_FP8_BLOCK [E, scale rows, k_blocks], KIND_FP8_TENSOR [E] */
    const void *bias;         /* [E, weight rows] bias_dtype */
    const float *row_weight;
    const void *residual; /* [R, width] of out's type, or NULL; one group only */
    /* Stages of an item behind those of its K, which the gathering warps fill (gather.cuh): of the
     * residual, none for fp32; of the backward's p. */
    int32_t late_steps;
    void *out;                 /* [R, width]; with STORE_FP8_BLOCK of narrow tiles a scratch of 16 bits */
    void *out8;                /* [R, width], STORE_FP8_* */
    float *out_scale;          /* [R, ceil(width / 128)] or, read, [1] */
    int32_t k_size, k_blocks;  /* K, and in blocks of 128 */
    int32_t width;             /* outputs */
    int32_t tile_rows;         /* weight rows of an item; fewer than the tile's in tiles of few tokens only */
    int32_t n_column_tiles;    /* of one expert's matrix: width cut by an item's outputs */
    int32_t scale_shift;       /* log2 of the weight rows of a scale */
    int32_t expert_scale_rows; /* scales' rows of an expert */
    int32_t gated, activated, store;
    int32_t out_is_f16;
    mb_dtype bias_dtype;
    activation_shape activation;
} experts_gemm;

/* One group, whose tiles the host knows: no queue, no tiles in memory. CTA (or pair) i works on items i, i +
 * the number of CTAs, ... Bands of columns, so that CTAs at work at the same time share weights and rows. */
typedef struct experts_dense {
    int32_t n_rows, tile_rows, n_token_tiles, band; /* band: column tiles */
} experts_dense;

/* The gradient of the rows (../backward/): what its epilogue reads and writes beside `out`, which is dp. */
typedef struct experts_gradient {
    const void *p;      /* [R, 2 width or width] */
    void *hs;           /* [R, width] */
    float *dot;         /* [ceil(width / 64), dot_stride]: of each 64 outputs */
    int64_t dot_stride; /* R */
    int32_t gated;      /* p has gates, then ups; dp too */
} experts_gradient;

typedef struct experts_params {
    experts_dense dense;
    experts_gemm gemm[2]; /* the second has no column tiles when there is only one */
    const mb_moe_token_tile *tiles;
    const int32_t *n_tiles;
    int32_t *next_item; /* the work queue */
    /* [max_tiles]: finished column tiles of a token tile's first GEMM, in each CTA of a cluster */
    int32_t *ready;
    /* [max_tiles, scale blocks, CTAs of a cluster]: finished column tiles of a scale block (128 outputs) */
    int32_t *block_done;
    int32_t read_once; /* the weights should not push anything out of L2 */
    void *p;           /* USE_SAVING_P: [R, weight rows], w13 x + bias13 of 16 bits */
    experts_gradient gradient;
} experts_params;

/* Host side: the parameters of an activation. */
activation_shape mb_experts_activation(mb_activation activation);

cudaError_t mb_experts_launch_bf16(const experts_params *params, int tile, int n_processors,
                                   mb_stream stream);
cudaError_t mb_experts_launch_f16(const experts_params *params, int tile, int n_processors, mb_stream stream);
cudaError_t mb_experts_launch_tf32(const experts_params *params, int tile, int n_processors,
                                   mb_stream stream);
cudaError_t mb_experts_launch_fp8_tensor(const experts_params *params, int tile, int n_processors,
                                         mb_stream stream);
cudaError_t mb_experts_launch_fp8_block(const experts_params *params, int tile, int n_processors,
                                        mb_stream stream);
/* Keeps params->p. */
cudaError_t mb_saving_launch_bf16(const experts_params *params, int tile, int n_processors, mb_stream stream);
cudaError_t mb_saving_launch_f16(const experts_params *params, int tile, int n_processors, mb_stream stream);
/* One group, given by params->dense; tiles of 64 tokens a CTA at least. */
cudaError_t mb_dense_launch_bf16(const experts_params *params, int tile, int n_processors, mb_stream stream);
cudaError_t mb_dense_launch_f16(const experts_params *params, int tile, int n_processors, mb_stream stream);
cudaError_t mb_dense_launch_fp8_block(const experts_params *params, int tile, int n_processors,
                                      mb_stream stream);

#endif
