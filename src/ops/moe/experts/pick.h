/* pick.h - which tile (a row of tiles.def) runs a shape. Plain host C, from the shape alone. */
#ifndef MB_OPS_MOE_PICK_H
#define MB_OPS_MOE_PICK_H

#include "moebius/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a tile's bytes mean. Every row of a stage is 128 bytes: 64 elements of 16 bits, 128 of fp8, 32 of
 * fp32. */
typedef enum mb_moe_family {
    MB_MOE_16BIT, /* bf16, fp16 */
    MB_MOE_FP8,
    MB_MOE_TF32,
} mb_moe_family;

typedef struct mb_moe_tile {
    const char *name;
    mb_moe_family family;
    int32_t weight_rows, max_tokens; /* of the whole cluster */
    int32_t box_rows;                /* weight rows that one CTA loads at a time */
    int32_t token_step;              /* tokens are padded to a multiple of it */
} mb_moe_tile;

enum {
#define X(family, name, weight_rows, n_warpgroups, cta_tokens, token_step, n_stages, n_ctas) \
    MB_MOE_TILE_##name,
#include "ops/moe/experts/tiles.def"
#undef X
    MB_MOE_N_TILES
};

/* The tile whose kernel can keep p (mb_moe_experts_args). With the others p takes a launch of its own: they
 * are for few rows an expert, where training does not spend its time. */
enum { MB_SAVING_TILE = MB_MOE_TILE_w256_t288 };

extern const mb_moe_tile mb_moe_tiles[MB_MOE_N_TILES];

mb_moe_family mb_moe_family_of(mb_dtype weights);

/* What mb_moe_pick chooses from: the tiles of a family (indices into mb_moe_tiles), for few rows to many. A
 * choice is picked for up to mb_moe_choice_most_rows rows, which for the last one is INT64_MAX. */
enum { MB_MOE_N_CHOICES = 5 };
int mb_moe_choice(mb_moe_family family, int choice);
int64_t mb_moe_choice_most_rows(mb_moe_family family, int choice, int32_t n_local_experts);

/* An index into mb_moe_tiles. */
int mb_moe_pick(mb_moe_family family, int64_t n_rows, int32_t n_local_experts);

/* The same where there is one group, whose items are then known: the tile whose rounds of items are the
 * shortest, above MB_MOE_DENSE_ROWS rows the largest tile. 1 <= n_rows, n_outputs. */
enum { MB_MOE_DENSE_ROWS = 4096 };
int mb_moe_pick_dense(mb_moe_family family, int64_t n_rows, int64_t n_outputs, int32_t n_processors);

/* How one group's plain product is cut (params.cuh, experts_dense). */
typedef struct mb_dense_plan {
    int tile;                /* an index into mb_moe_tiles, of 64 tokens a CTA or more */
    int32_t tile_rows, band; /* rows of a token tile; column tiles of a band */
} mb_dense_plan;

/* The plan whose rounds of items are the shortest. 1 <= n_rows, n_outputs, k_size. Any family but TF32. */
mb_dense_plan mb_dense_plan_of(mb_moe_family family, int64_t n_rows, int64_t n_outputs, int64_t k_size,
                               int32_t n_processors);
/* The same with a given tile. */
mb_dense_plan mb_dense_plan_with(int tile, int64_t n_rows, int64_t n_outputs, int64_t k_size,
                                 int32_t n_processors);

#ifdef __cplusplus
}
#endif
#endif
