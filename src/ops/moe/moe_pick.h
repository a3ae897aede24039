/* moe_pick.h - which tile (a row of moe_tiles.def) runs a shape. Plain host C, from the shape alone. */
#ifndef MB_OPS_MOE_PICK_H
#define MB_OPS_MOE_PICK_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mb_moe_tile {
    const char *name;
    int32_t weight_rows, max_tokens; /* of the whole cluster */
    int32_t box_rows;                /* weight rows that one CTA loads at a time */
    int32_t token_step;              /* tokens are padded to a multiple of it */
} mb_moe_tile;

enum {
#define X(name, weight_rows, n_groups, cta_tokens, n_stages, n_ctas) MB_MOE_TILE_##name,
#include "ops/moe/moe_tiles.def"
#undef X
    MB_MOE_N_TILES
};

extern const mb_moe_tile mb_moe_tiles[MB_MOE_N_TILES];

/* An index into mb_moe_tiles. */
int mb_moe_pick(int64_t n_tokens, int32_t top_k, int32_t n_local_experts);

#ifdef __cplusplus
}
#endif
#endif
