/*
 * few.h - the dense layer of few rows of x, one launch (few_sm90.cu): which calls it takes, and how it cuts
 * them. Plain C, so that tests/unit/test_gemm_few.c can look at all sizes without a GPU.
 */
#ifndef MB_OPS_GEMM_FEW_H
#define MB_OPS_GEMM_FEW_H

#include "ops/gemm/gemm.h"

enum {
    MB_FEW_TOKENS = 64,              /* rows of x, at most */
    MB_FEW_QUANTIZED_TOKENS = 4,     /* fp8 weights: up to so many rows each CTA quantises x for itself */
    MB_FEW_TILE_ROWS = 64,           /* of the weight: what wgmma multiplies */
    MB_FEW_STEP_BYTES = 128,         /* of each row, in a step along K */
    MB_FEW_SHARED_BYTES = 227 << 10, /* what a CTA may have at most */
};

/* Steps in a stage, which is waited for once. */
#define MB_FEW_STAGE_STEPS(padded_tokens) ((padded_tokens) <= 16 ? 4 : 2)

typedef struct mb_few_plan {
    int32_t padded_tokens; /* wgmma's N: 8, 16, 32, 64 */
    int32_t tile_rows;     /* of the weight: a multiple of 8, so that every SM has a tile */
    int32_t n_tiles;
    int32_t n_ctas;    /* CTA i has the tiles i, i + n_ctas, ... */
    int32_t cluster;   /* consecutive CTAs that share x: each loads a part, for all */
    int32_t n_steps;   /* along K, of each tile */
    int32_t n_stages;  /* that are in shared memory, or requested, at once */
    int32_t quantizes; /* 1: each CTA quantises x, and keeps all of it in shared memory */
    int32_t read_once; /* 1: the weights should not push anything out of L2 */
    /* Steps that one copy brings: a stage's where rows are whole steps, else 1. (x of a cluster: 1.) */
    int32_t weight_copy_steps, x_copy_steps;
    /* Shared memory. steps = n_stages * MB_FEW_STAGE_STEPS, of x n_steps where the CTA quantises:
     *     weights [steps][tile_rows][128 bytes], x [steps][padded_tokens][128 bytes],
     *     with fp8 the scales of x [n_steps][padded_tokens], barriers [2][n_stages] */
    int32_t x_offset, x_scale_offset, barriers_offset, shared_bytes;
} mb_few_plan;

#ifdef __cplusplus
extern "C" {
#endif

/* Returns 0 where the kernel does not take the call. The call must be one that goes to the grouped GEMM
 * otherwise, with weights of 16 bits or of fp8. */
int mb_few_plan_of(const mb_gemm_args *args, int32_t n_processors, mb_few_plan *plan);

/* The same with given clusters of CTAs; n_ctas is n_slots at most, a multiple of the cluster. For tests. */
int mb_few_plan_with(const mb_gemm_args *args, int32_t cluster, int32_t n_slots, mb_few_plan *plan);

/* x8, x_scale: x in fp8 [T, K] and its scales [T, ceil(K / 128)], with fp8 weights where the plan does not
 * quantise. */
mb_status mb_few_sm90(const mb_gemm_args *args, const mb_few_plan *plan, const void *x8, const float *x_scale,
                      mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
