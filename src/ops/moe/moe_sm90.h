/*
 * moe_sm90.h - the MoE operators' Hopper launchers, and what they hand to each other. HOPPER.md tells how the
 * kernels work. The public parameters are in moebius/ops.h.
 */
#ifndef MB_OPS_MOE_SM90_H
#define MB_OPS_MOE_SM90_H

#include "moebius/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows [first_row, first_row + n_rows) of the sorted order, all of one local expert. 16 bytes. */
typedef struct mb_moe_token_tile {
    int32_t expert, first_row, n_rows, reserved;
} mb_moe_token_tile;

/* What the plan leaves for the experts' kernel; device pointers. */
typedef struct mb_moe_schedule {
    mb_moe_token_tile *tiles; /* [max_tiles] out */
    int32_t *n_tiles;         /* [1] out */
    int32_t *next_item;       /* [1] set to 0: the work queue of the experts' kernel */
    int32_t *ready;           /* [max_tiles] set to 0: finished pieces of each tile's intermediate */
    int32_t max_tiles;
    int32_t tile_tokens,
        tile_step; /* at most that many rows a tile; tiles of one expert cut at multiples of step */
} mb_moe_schedule;

mb_status mb_moe_route_sm90(const mb_moe_route_args *args, mb_stream stream);

size_t mb_moe_plan_sm90_workspace(const mb_moe_plan_args *args);
/* schedule may be NULL. */
mb_status mb_moe_plan_sm90(const mb_moe_plan_args *args, const mb_moe_schedule *schedule, void *workspace,
                           size_t workspace_bytes, mb_stream stream);

/* Both grouped GEMMs with the activation between them, in one launch: y = w2(act(w13(x))) for every sorted
 * row. */
typedef struct mb_moe_experts_args {
    const mb_moe_forward_args *forward;
    const int32_t *row_token; /* [R] */
    mb_moe_schedule schedule;
    void *h;  /* [R, I] workspace */
    void *y;  /* [R, H] out */
    int tile; /* row of moe_tiles.def */
} mb_moe_experts_args;
mb_status mb_moe_experts_sm90(const mb_moe_experts_args *args, mb_stream stream);

/* out[t] = residual[t] + shared[t] + sum over k of weights[t, k] * y[token_row[t, k]], in that order, fp32
 * inside. */
typedef struct mb_moe_reduce_args {
    const void *y;            /* [R, H] */
    const float *weights;     /* [T, K] */
    const int32_t *token_row; /* [T, K], -1: no such row */
    const void *residual, *shared;
    void *out;
    int64_t n_tokens;
    int32_t hidden, top_k;
} mb_moe_reduce_args;
mb_status mb_moe_reduce_sm90(const mb_moe_reduce_args *args, mb_stream stream);

size_t mb_moe_forward_sm90_workspace(const mb_moe_forward_args *args);
mb_status mb_moe_forward_sm90(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream);

/* The same with a given row of moe_tiles.def, for tests and benchmarks. */
size_t mb_moe_forward_sm90_tile_workspace(const mb_moe_forward_args *args, int tile);
mb_status mb_moe_forward_sm90_tile(const mb_moe_forward_args *args, int tile, void *workspace,
                                   size_t workspace_bytes, mb_stream stream);

/* The kernels of one forward, in order, so that a benchmark can stop after any of them. */
typedef struct mb_moe_steps {
    mb_moe_plan_args plan;
    void *plan_workspace;
    size_t plan_workspace_bytes;
    mb_moe_experts_args experts;
    mb_moe_reduce_args reduce;
    size_t workspace_bytes; /* that all of this takes */
} mb_moe_steps;
void mb_moe_forward_sm90_steps(const mb_moe_forward_args *args, int tile, void *workspace,
                               mb_moe_steps *steps);

#ifdef __cplusplus
}
#endif
#endif
