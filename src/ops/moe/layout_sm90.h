/*
 * layout_sm90.h - the limits of the experts' operators on sm_90, and how they divide their workspace. Plain
 * C, so that tests/unit/test_moe_layout.c can look at all sizes without a GPU.
 *
 * A *_layout function takes the pieces of one call from an arena; with a measuring arena it gives their
 * size. Its arguments were checked. A *_most_bytes function gives a size that is enough for fewer tokens or
 * rows too. Calls of fewer rows run on smaller tiles. With one tile, more rows need more bytes. So the
 * function takes, for each tile, the most rows that the tile is picked for, and returns the largest size.
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

/* The token tiles of one call of the experts' kernel, or of the exact fp32 GEMM. */
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
    void *x8;       /* [T, H] fp8, with fp8 weights; the caller's where given */
    float *x_scale; /* [T, ceil(H / 128)] with block scales; per tensor the caller's */
    void *h;        /* [R, I] dtype */
    void *h8;       /* [R, I] fp8, with fp8 weights */
    float *h_scale; /* [R, ceil(I / 128)] with block scales; per tensor the caller's */
} mb_moe_experts_layout;
mb_moe_experts_layout mb_moe_experts_sm90_layout(const mb_moe_experts_args *args, int tile, mb_arena *arena);
mb_status mb_moe_experts_sm90_most_bytes(const mb_moe_experts_args *most, size_t *bytes);

/* The arguments for x to fp8; their x is NULL when the weights are not fp8, or x is given in
 * it. */
mb_moe_quantize_args mb_moe_experts_quantize(const mb_moe_experts_args *args,
                                             const mb_moe_experts_layout *layout);

/* The kernels of one forward, in order, so that a benchmark can stop after any of them. With MB_F32_EXACT
 * the two GEMMs are mb_grouped_gemm_f32_sm90's. */
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
