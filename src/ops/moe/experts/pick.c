#include "ops/moe/experts/pick.h"

const mb_moe_tile mb_moe_tiles[MB_MOE_N_TILES] = {
#define X(family, name, weight_rows, n_warpgroups, cta_tokens, token_step, n_stages, n_ctas) \
    {#name, family, weight_rows, (cta_tokens) * (n_ctas), (weight_rows) / (n_ctas), (token_step) * (n_ctas)},
#include "ops/moe/experts/tiles.def"
#undef X
};

mb_moe_family mb_moe_family_of(mb_dtype weights) {
    return weights == MB_F8_E4M3 ? MB_MOE_FP8 : weights == MB_F32 ? MB_MOE_TF32 : MB_MOE_16BIT;
}

int mb_moe_choice(mb_moe_family family, int choice) {
    static const int tiles[][MB_MOE_N_CHOICES] = {
        [MB_MOE_16BIT] = {MB_MOE_TILE_w64_t16, MB_MOE_TILE_w128_t32, MB_MOE_TILE_w128_t64,
                          MB_MOE_TILE_w128_t128, MB_MOE_TILE_w256_t288},
        [MB_MOE_FP8] = {MB_MOE_TILE_fp8_w64_t16, MB_MOE_TILE_fp8_w128_t32, MB_MOE_TILE_fp8_w128_t64,
                        MB_MOE_TILE_fp8_w128_t128, MB_MOE_TILE_fp8_w256_t256},
        [MB_MOE_TF32] = {MB_MOE_TILE_tf32_w64_t16, MB_MOE_TILE_tf32_w128_t32, MB_MOE_TILE_tf32_w128_t64,
                         MB_MOE_TILE_tf32_w128_t128, MB_MOE_TILE_tf32_w128_t128},
    };
    return tiles[family][choice];
}

/* Routing is uneven: each limit leaves room for experts with some more rows than the mean, so that few need a
 * second tile, which reads the weights again. */
int64_t mb_moe_choice_most_rows(mb_moe_family family, int choice, int32_t n_local_experts) {
    /* (The smallest tile of fp8 loses from one row per expert on: T = 16 140 us, 138 with the next one.) */
    const int64_t most_per_expert[] = {family == MB_MOE_FP8 ? 0 : 4, 16, 48, 96};
    if (choice == MB_MOE_N_CHOICES - 1)
        return INT64_MAX;
    return (most_per_expert[choice] + 1) * n_local_experts - 1;
}

int mb_moe_pick(mb_moe_family family, int64_t n_rows, int32_t n_local_experts) {
    int choice = 0;
    while (n_rows > mb_moe_choice_most_rows(family, choice, n_local_experts))
        choice++;
    return mb_moe_choice(family, choice);
}
