/*
 * layout_sm90.h - what the experts' operators want on sm_90 beyond their contract, and how they cut their workspace.
 * Plain C: tests/unit/test_moe_layout.c looks at all sizes without a GPU.
 *
 * A *_layout function hands out the arena's memory; a measuring arena gives the size. A *_most_bytes function sizes a
 * workspace for all calls with fewer tokens or rows too, which run on smaller tiles: a tile's needs grow with its rows,
 * so the most rows that each tile is picked for decide. All but *_check assume arguments that were checked.
 */
#ifndef MB_OPS_MOE_LAYOUT_SM90_H
#define MB_OPS_MOE_LAYOUT_SM90_H

#include "base/arena.h"
#include "ops/moe/moe_sm90.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Sizes and types, without pointers. */
mb_status mb_grouped_gemm_sm90_check_sizes(const mb_grouped_gemm_args *args);
mb_status mb_moe_experts_sm90_check_sizes(const mb_moe_experts_args *args);
mb_status mb_moe_forward_sm90_check_sizes(const mb_moe_forward_args *args);
/* Pointers too. */
mb_status mb_grouped_gemm_sm90_check(const mb_grouped_gemm_args *args);
mb_status mb_moe_experts_sm90_check(const mb_moe_experts_args *args);
mb_status mb_moe_forward_sm90_check(const mb_moe_forward_args *args);

/* The token tiles of a call of the experts' kernel, or of the exact fp32 GEMM. */
typedef struct mb_experts_tiles {
    mb_moe_token_tile *tiles;
    int32_t *n_tiles;  /* [1] */
    int32_t *counters; /* [n_counters], to be 0 when the kernel starts */
    int64_t max_tiles;
    int32_t n_counters, tile_rows, tile_step;
    int tile; /* row of experts/tiles.def; MB_EXACT_TILE */
} mb_experts_tiles;
enum { MB_EXACT_TILE = -1 };

typedef struct mb_grouped_gemm_layout {
    mb_experts_tiles tiles;
    void *scratch; /* [R, columns of out] of 16 bits, with an fp8 out */
} mb_grouped_gemm_layout;
mb_grouped_gemm_layout mb_grouped_gemm_sm90_layout(const mb_grouped_gemm_args *args, int tile,
                                                   mb_arena *arena);
mb_status mb_grouped_gemm_sm90_most_bytes(const mb_grouped_gemm_args *most, size_t *bytes);

typedef struct mb_moe_experts_layout {
    mb_experts_tiles tiles;
    void *x8;       /* [T, H] fp8, with fp8 weights */
    float *x_scale; /* [T, ceil(H / 128)] with block scales; per tensor the caller's */
    void *h;        /* [R, I] dtype */
    void *h8;       /* [R, I] fp8, with fp8 weights */
    float *h_scale; /* [R, ceil(I / 128)] with block scales; per tensor the caller's */
} mb_moe_experts_layout;
mb_moe_experts_layout mb_moe_experts_sm90_layout(const mb_moe_experts_args *args, int tile, mb_arena *arena);
mb_status mb_moe_experts_sm90_most_bytes(const mb_moe_experts_args *most, size_t *bytes);

/* x to fp8, as an operation of the front: x is NULL when the weights are not fp8. */
mb_moe_quantize_args mb_moe_experts_quantize(const mb_moe_experts_args *args,
                                             const mb_moe_experts_layout *layout);

/* The kernels of one forward, in order, so that a benchmark can stop after any of them. With MB_F32_EXACT the two GEMMs
 * are mb_grouped_gemm_f32_sm90's. */
typedef struct mb_moe_steps {
    mb_moe_front_args front;
    void *front_workspace;
    size_t front_workspace_bytes;
    mb_moe_experts_args experts;
    mb_moe_experts_layout layout;
    mb_moe_reduce_args reduce;
} mb_moe_steps;
/* n_processors: SMs of the GPU. */
mb_moe_steps mb_moe_forward_sm90_layout(const mb_moe_forward_args *args, int tile, int n_processors,
                                        mb_arena *arena);
mb_status mb_moe_forward_sm90_most_bytes(const mb_moe_forward_args *most, int n_processors, size_t *bytes);
mb_status mb_moe_forward_sm90_tile_bytes(const mb_moe_forward_args *args, int tile, int n_processors,
                                         size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
