/*
 * few.h - the dense layer of few rows of x, one launch (few_sm90.cu): which calls it takes, and how it cuts
 * them. Plain C, so that tests/unit/test_gemm_few.c can look at all sizes without a GPU.
 */
#ifndef MB_OPS_GEMM_FEW_H
#define MB_OPS_GEMM_FEW_H

#include "ops/gemm/gemm.h"

enum {
    MB_FEW_TOKENS = 64,           /* rows of x, at most */
    MB_FEW_FP8_TOKENS = 32,       /* with fp8 weights: above both, the kernel of many rows is faster */
    MB_FEW_FP8_NUMBERS = 1 << 17, /* of x */
    MB_FEW_NORM_TOKENS = 8,       /* with a norm in front: rows of x that each CTA norms for itself, */
    MB_FEW_NORM_FP8_TOKENS = 4,   /* and that it then makes fp8 of, which takes longer */
    MB_FEW_NORM_BYTES = 64 << 10, /* and what they take, normed, in shared memory */
    MB_FEW_QUANTIZED_TOKENS = 8,  /* fp8 weights: rows that each CTA quantises for itself, when they are */
    MB_FEW_QUANTIZED_UNITS = 64,  /* together at most so many pieces of 128 columns */
    MB_FEW_SUM_TOKENS = 4,        /* rows of x that each CTA adds up at most */
    MB_FEW_SUM_TERMS = 8,         /* choices of such a row at most */
    MB_FEW_WARPS_OF_X = 8,        /* that norm or quantise */
    MB_FEW_GROUP_TOKENS = 4, /* fp8: up to so many rows the products of several steps are made at once: */
    MB_FEW_COLUMNS = 8,      /* the columns of a wgmma are steps x rows of x */
    MB_FEW_TILE_ROWS = 64,   /* of the weight: what wgmma multiplies */
    MB_FEW_STEP_BYTES = 128, /* of each row, in a step along K */
    MB_FEW_SHARED_BYTES = 227 << 10, /* what a CTA may have at most */
};

/* Steps in a stage, which is waited for once. */
#define MB_FEW_STAGE_STEPS(padded_tokens) ((padded_tokens) <= 16 ? 4 : 2)

/* Numbers between two columns of products: those of a quarter of a warp are in different banks. */
#define MB_FEW_COLUMN_STRIDE(plan) ((plan)->group_blocks * MB_FEW_TILE_ROWS + 4)

/* n / d without a division, n * d below 2^16, by_d being MB_FEW_BY(d). */
#define MB_FEW_BY(d) (65536u / (uint32_t)(d) + 1)
#define MB_FEW_QUOTIENT(n, by_d) ((int32_t)((uint32_t)(n) * (by_d) >> 16))

typedef struct mb_few_plan {
    int32_t padded_tokens; /* wgmma's N: 8, 16, 32, 64 */
    int32_t tile_rows;     /* of the weight: a multiple of 8, so that every SM has a tile */
    int32_t n_tiles;
    int32_t n_ctas;      /* CTA i has the tiles i, i + n_ctas, ... */
    int32_t n_steps;     /* along K, of each tile */
    int32_t n_stages;    /* that are in shared memory, or requested, at once */
    int32_t norms;       /* 1: each CTA norms x */
    int32_t quantizes;   /* 1: each CTA makes fp8 of x */
    int32_t keeps_x;     /* 1: either. All of x is in shared memory then */
    int32_t row_shift;   /* log2 of the warps that share a row of x, where they norm or quantise */
    int32_t group_steps; /* steps whose products are made at once, 8, 4 or 2. 0: one after the other */
    int32_t group_blocks, n_blocks; /* MB_FEW_TILE_ROWS lines of a group's weights each; of all groups */
    uint32_t by_group_blocks, by_tile_rows; /* n / these: MB_FEW_QUOTIENT */
    int32_t read_once;                      /* 1: the weights should not push anything out of L2 */
    int32_t copy_steps; /* steps that one copy brings: a stage's where rows are whole steps, else 1 */
    /* Shared memory. steps = n_stages * MB_FEW_STAGE_STEPS, of x n_steps where it is kept:
     *     weights [steps][tile_rows][128 bytes], x [steps][padded_tokens][128 bytes],
     *     with fp8 the scales of x [n_steps][padded_tokens],
     *     with a norm its weight [n_pieces][256] of 16 bits, barriers [2][n_stages].
     * With group_steps:
     *     x [groups][MB_FEW_COLUMNS][128 bytes], its scales [T][step_stride],
     *     the weight's scales [tile_rows][step_stride],
     *     the norm's weight, overlaid by the products [groups][MB_FEW_COLUMNS][MB_FEW_COLUMN_STRIDE],
     *     barriers */
    int32_t n_pieces; /* of 256 columns, what a warp norms at once */
    int32_t x_offset, x_scale_offset, norm_offset, row_scale_offset, products_offset, barriers_offset,
        shared_bytes;
    int32_t step_stride; /* n_steps rounded up to 4, 12, 20, ...: eight rows' are in different banks */
    /* Where each CTA adds up x: the sums [T][n_pieces][256] of 16 bits, which products may overlay; 0: x is
     * there. */
    int32_t sum_offset;
} mb_few_plan;

#ifdef __cplusplus
extern "C" {
#endif

/* Returns 0 where the kernel does not take the call, or is not the faster one. The call must be one that goes
 * to the grouped GEMM otherwise, with weights of 16 bits or of fp8. */
int mb_few_plan_of(const mb_gemm_args *args, int32_t n_processors, mb_few_plan *plan);

/* The same with or without the norm in it, n_slots CTAs at most. For tests. */
int mb_few_plan_with(const mb_gemm_args *args, int norms, int32_t n_slots, mb_few_plan *plan);

/* args->x is normed already where the plan does not norm. x8, x_scale: x in fp8 [T, K] and its scales
 * [T, ceil(K / 128)], with fp8 weights where the plan does not quantise. */
mb_status mb_few_sm90(const mb_gemm_args *args, const mb_few_plan *plan, const void *x8, const float *x_scale,
                      mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
