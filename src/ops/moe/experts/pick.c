#include "ops/moe/experts/pick.h"

#include "ops/common/dtype.h"

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

/* CTAs that work on one item. */
static int32_t ctas_of(const mb_moe_tile *tile) {
    return tile->weight_rows / tile->box_rows;
}

/* What a step of 128 bytes along K takes in all rounds of items, in clocks of an H100. A round takes as long
 * as the slowest of: the tensor cores, what L2 sends to one SM, and to all SMs that have an item. */
static double dense_clocks(const mb_moe_tile *tile, int64_t n_rows, int64_t n_outputs, int32_t n_processors) {
    /* A clock. The second is fitted: the picks then take as long as the best tile (Qwen3-30B-A3B's qkv and o,
     * 65 to 1024 rows, 16 bits and fp8), 3 of 36 some 5 % longer. */
    const double sm_bytes = 64, l2_bytes = 7000;
    int32_t n_ctas = ctas_of(tile);
    int64_t n_token_tiles = mb_ceil_div(n_rows, tile->max_tokens);
    int64_t tile_tokens =
        mb_ceil_div(mb_ceil_div(n_rows, n_token_tiles), tile->token_step) * tile->token_step;
    int64_t n_items = n_token_tiles * mb_ceil_div(n_outputs, tile->weight_rows),
            n_slots = n_processors / n_ctas;
    double n_busy = (double)(n_items < n_slots ? n_items : n_slots) * n_ctas;
    double tokens = (double)tile_tokens / n_ctas;
    double multiply = tile->weight_rows / 64 * 2 * (tokens > 32 ? tokens : 32),
           to_one = (tile->weight_rows + tokens) * 128 / sm_bytes,
           to_all = n_busy * (tile->box_rows + tokens) * 128 / l2_bytes;
    double load = to_one > to_all ? to_one : to_all;
    return (double)mb_ceil_div(n_items, n_slots) * (multiply > load ? multiply : load);
}

int mb_moe_pick_dense(mb_moe_family family, int64_t n_rows, int64_t n_outputs, int32_t n_processors) {
    int picked = -1;
    double least = 0;
    if (n_rows > MB_MOE_DENSE_ROWS)
        return mb_moe_choice(family, MB_MOE_N_CHOICES - 1);
    for (int i = 0; i < MB_MOE_N_TILES; i++) {
        const mb_moe_tile *tile = &mb_moe_tiles[i];
        if (tile->family != family || ctas_of(tile) > n_processors)
            continue;
        double clocks = dense_clocks(tile, n_rows, n_outputs, n_processors);
        if (picked < 0 || clocks < least) {
            picked = i;
            least = clocks;
        }
    }
    return picked;
}

/* ---- One group's plain product: the host knows all items */

/* Rows of a tile in each CTA, as the kernel has code for them. */
static int32_t padded_tokens(const mb_moe_tile *tile, int32_t tile_rows) {
    int32_t n_ctas = ctas_of(tile), tokens = (int32_t)mb_ceil_div(mb_ceil_div(tile_rows, n_ctas), 8) * 8;
    if (n_ctas == 1)
        return tokens;
    if (tile->family == MB_MOE_FP8)
        return tokens <= 32 ? tokens : tokens <= 64 ? 64 : 128;
    return tokens < 96 ? (int32_t)mb_ceil_div(tokens, 32) * 32 : tokens;
}

/* Clocks of an H100 for all rounds of items. A step of 128 bytes along K takes as long as the slowest of:
 * the tensor cores, what L2 sends to one SM, and to all SMs that have an item; and with block scales the
 * promotion (all fp8 is taken for that). In a pair a step waits for two CTAs. An item's outputs take a time
 * of their own. The rates are fitted to times of all tiles (gemm_check --time --dense: qkv and o of
 * Qwen3-30B-A3B and 235B, 128 to 8192 rows, 16 bits and fp8): the picks then take as long as the best tile,
 * 4 of 56 up to 7 % longer. */
static double dense_plan_clocks(const mb_moe_tile *tile, int32_t tile_rows, int64_t n_rows, int64_t n_outputs,
                                int64_t k_size, int32_t n_processors) {
    const double sm_bytes = 52, l2_bytes = 9500, store_bytes = 14; /* a clock */
    const double of_pair = 140, of_item = 500;                     /* clocks */
    int32_t n_ctas = ctas_of(tile), tokens = padded_tokens(tile, tile_rows);
    int64_t n_items = mb_ceil_div(n_rows, tile_rows) * mb_ceil_div(n_outputs, tile->weight_rows);
    int64_t n_slots = n_processors / n_ctas, element_bytes = tile->family == MB_MOE_FP8 ? 1 : 2;
    double n_busy = (double)(n_items < n_slots ? n_items : n_slots) * n_ctas;
    double step = tile->weight_rows / 64 * 2 * (tokens > 32 ? tokens : 32);
    double to_one = (tile->weight_rows + tokens) * 128 / sm_bytes;
    double to_all = n_busy * (tile->box_rows + tokens) * 128 / l2_bytes;
    step = to_one > step ? to_one : step;
    step = to_all > step ? to_all : step;
    if (tile->family == MB_MOE_FP8)
        step += 4 * tokens;
    if (n_ctas == 2)
        step += of_pair;
    return (double)mb_ceil_div(n_items, n_slots) * ((double)mb_ceil_div(k_size * element_bytes, 128) * step +
                                                    of_item + tile->weight_rows * tokens * 2 / store_bytes);
}

mb_dense_plan mb_dense_plan_with(int tile, int64_t n_rows, int64_t n_outputs, int64_t k_size,
                                 int32_t n_processors) {
    enum { TRIED = 8, BAND = 8 };
    const mb_moe_tile *t = &mb_moe_tiles[tile];
    mb_dense_plan plan = {tile, 0, 0};
    double least = 0;
    int64_t fewest = mb_ceil_div(n_rows, t->max_tokens);
    for (int64_t n_tiles = fewest; n_tiles < fewest + TRIED; n_tiles++) {
        int32_t tile_rows =
            (int32_t)(mb_ceil_div(mb_ceil_div(n_rows, n_tiles), t->token_step) * t->token_step);
        double clocks = dense_plan_clocks(t, tile_rows, n_rows, n_outputs, k_size, n_processors);
        if (plan.tile_rows == 0 || clocks < least) {
            plan.tile_rows = tile_rows;
            least = clocks;
        }
    }
    int64_t n_columns = mb_ceil_div(n_outputs, t->weight_rows);
    plan.band = (int32_t)mb_ceil_div(n_columns, mb_ceil_div(n_columns, BAND));
    return plan;
}

mb_dense_plan mb_dense_plan_of(mb_moe_family family, int64_t n_rows, int64_t n_outputs, int64_t k_size,
                               int32_t n_processors) {
    mb_dense_plan picked = {-1, 0, 0};
    double least = 0;
    for (int i = 0; i < MB_MOE_N_TILES; i++) {
        const mb_moe_tile *tile = &mb_moe_tiles[i];
        if (tile->family != family || ctas_of(tile) > n_processors || tile->max_tokens < 64)
            continue;
        mb_dense_plan plan = mb_dense_plan_with(i, n_rows, n_outputs, k_size, n_processors);
        double clocks = dense_plan_clocks(tile, plan.tile_rows, n_rows, n_outputs, k_size, n_processors);
        if (picked.tile < 0 || clocks < least) {
            picked = plan;
            least = clocks;
        }
    }
    return picked;
}
