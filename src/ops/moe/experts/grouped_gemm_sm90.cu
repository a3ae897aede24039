/*
 * grouped_gemm_sm90.cu - one grouped (or dense) GEMM by the experts' kernel: the tiles of the groups, then
 * the kernel's first GEMM alone.
 */
#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/arguments.h"
#include "ops/moe/experts/launch_sm90.h"
#include "ops/moe/experts/pick.h"

typedef struct layout {
    mb_moe_token_tile *tiles;
    int32_t *n_tiles, *counters;
    void *scratch;
    int64_t max_tiles, n_counters;
    int32_t tile_rows, tile_step, tile; /* tile -1: exact fp32 */
    size_t bytes;
} layout;

static int64_t width_of(const mb_grouped_gemm_args *args) {
    return args->b.rows / (mb_activation_is_gated(args->activation) ? 2 : 1);
}

static int is_exact(const mb_grouped_gemm_args *args) {
    return args->dtype == MB_F32 && args->f32_math == MB_F32_EXACT;
}

static layout cut_workspace(const mb_grouped_gemm_args *args, int tile, void *workspace) {
    layout l = {};
    const int to_fp8 = args->out_dtype == MB_F8_E4M3;
    const int32_t n_groups = (int32_t)args->b.count;
    l.tile = is_exact(args) ? -1 : tile;
    l.tile_rows = is_exact(args) ? MB_F32_TILE_ROWS : mb_moe_tiles[tile].max_tokens;
    l.tile_step = is_exact(args) ? 1 : mb_moe_tiles[tile].token_step;
    l.max_tiles = mb_moe_max_tiles(args->n_rows, n_groups, l.tile_rows);
    l.n_counters = mb_experts_n_counters(l.max_tiles, to_fp8 ? (int32_t)width_of(args) : 0);
    const size_t sizes[] = {sizeof(mb_moe_token_tile) * (size_t)l.max_tiles, sizeof(int32_t),
                            sizeof(int32_t) * (size_t)l.n_counters,
                            to_fp8 ? 2 * (size_t)args->n_rows * (size_t)width_of(args) : 0};
    void *parts[4];
    for (int i = 0; i < 4; i++) {
        parts[i] = workspace ? (char *)workspace + l.bytes : NULL;
        l.bytes += (sizes[i] + 255) / 256 * 256;
    }
    l.tiles = (mb_moe_token_tile *)parts[0];
    l.n_tiles = (int32_t *)parts[1];
    l.counters = (int32_t *)parts[2];
    l.scratch = parts[3];
    return l;
}

/* What this kernel wants beyond the operator's contract. */
static mb_status check_sizes(const mb_grouped_gemm_args *args) {
    MB_TRY(mb_grouped_gemm_check_sizes(args));
    const mb_weight *b = &args->b;
    const int64_t column_step = 16 / (int64_t)mb_dtype_bytes(args->dtype);
    /* Rows of out are stored 16 bytes at a time (8 of fp8), rows of b come in groups of eight. */
    const int64_t row_step = mb_activation_is_gated(args->activation) ? 16 : 8;
    if (b->cols % column_step != 0 || b->rows % row_step != 0)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "grouped_gemm: b is [%lld, %lld, %lld]; on sm90 its rows must be a multiple of %lld and its "
            "columns one of %lld",
            (long long)b->count, (long long)b->rows, (long long)b->cols, (long long)row_step,
            (long long)column_step);
    if (b->scale && b->scale_rows % 8 != 0)
        return mb_fail(MB_ERR_ARGUMENT,
                       "grouped_gemm: b.scale_rows is %d; on sm90 it must be 8, 16, 32, 64 or 128, or 0 for "
                       "one scale a matrix",
                       b->scale_rows);
    return MB_OK;
}

static mb_status check(const mb_grouped_gemm_args *args) {
    MB_TRY(check_sizes(args));
    if (((uintptr_t)args->a | (uintptr_t)args->b.data | (uintptr_t)args->out) % 16)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: a, b and out must be 16-byte aligned");
    return mb_grouped_gemm_check(args);
}

/* What a tile needs grows with the rows, so the most rows that each tile is picked for decide. */
extern "C" mb_status mb_grouped_gemm_sm90_workspace(const mb_grouped_gemm_args *most, size_t *bytes) {
    MB_TRY(check_sizes(most));
    const mb_moe_family family = mb_moe_family_of(most->b.dtype);
    *bytes = 0;
    int64_t limit = -1;
    for (int choice = 0; limit < most->n_rows; choice++) {
        limit = mb_moe_choice_most_rows(family, choice, (int32_t)most->b.count);
        mb_grouped_gemm_args args = *most;
        if (args.n_rows > limit)
            args.n_rows = limit;
        const size_t needed = cut_workspace(&args, mb_moe_choice(family, choice), NULL).bytes;
        *bytes = needed > *bytes ? needed : *bytes;
    }
    return MB_OK;
}

extern "C" mb_status mb_grouped_gemm_sm90(const mb_grouped_gemm_args *args, void *workspace,
                                          size_t workspace_bytes, mb_stream stream) {
    MB_TRY(check(args));
    if (args->n_rows == 0)
        return MB_OK;
    const int tile = mb_moe_pick(mb_moe_family_of(args->b.dtype), args->n_rows, (int32_t)args->b.count);
    const layout l = cut_workspace(args, tile, workspace);
    MB_TRY(mb_workspace_check("grouped_gemm", workspace, workspace_bytes, l.bytes));
    mb_moe_tiles_args tiles = {};
    tiles.offsets = args->offsets;
    tiles.n_rows = args->n_rows;
    tiles.tiles = l.tiles;
    tiles.n_tiles = l.n_tiles;
    tiles.counters = l.counters;
    tiles.n_counters = (int32_t)l.n_counters;
    tiles.n_groups = (int32_t)args->b.count;
    tiles.tile_rows = l.tile_rows;
    tiles.tile_step = l.tile_step;
    MB_TRY(mb_moe_tiles_sm90(&tiles, stream));
    if (l.tile < 0)
        return mb_grouped_gemm_f32_sm90(args, l.tiles, l.n_tiles, l.max_tiles, stream);
    const mb_experts_rows rows = {l.tiles, l.n_tiles, l.counters, l.max_tiles};
    return mb_experts_one_gemm(args, &rows, l.scratch, l.tile, stream);
}
