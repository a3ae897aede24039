#include "ops/moe/moe_pick.h"

const mb_moe_tile mb_moe_tiles[MB_MOE_N_TILES] = {
#define X(name, weight_rows, n_groups, cta_tokens, n_stages, n_ctas) \
    {#name, weight_rows, (cta_tokens) * (n_ctas), (weight_rows) / (n_ctas), 8 * (n_ctas)},
#include "ops/moe/moe_tiles.def"
#undef X
};

int mb_moe_pick(int64_t n_tokens, int32_t top_k, int32_t n_local_experts) {
    int64_t n_rows = n_tokens * top_k;
    int64_t rows_per_expert = n_rows / n_local_experts;
    /* Routing is uneven: leave room for experts with some more rows than the mean, so that few need a second
     * tile, which reads the weights again. */
    if (rows_per_expert <= 4)
        return MB_MOE_TILE_w64_t16;
    if (rows_per_expert <= 16)
        return MB_MOE_TILE_w128_t32;
    if (rows_per_expert <= 48)
        return MB_MOE_TILE_w128_t64;
    if (rows_per_expert <= 96)
        return MB_MOE_TILE_w128_t128;
    return MB_MOE_TILE_w256_t288;
}
