#include "ops/moe/backward/rows_layout.h"

#include "base/status.h"
#include "ops/common/workspace.h"

enum { TOKEN_STEP = 16 }; /* tiles are cut at multiples of it: eight rows for each CTA of a pair */

mb_experts_tiles mb_backward_rows_tiles(int64_t n_rows, int32_t n_experts, int32_t tile_rows,
                                        mb_arena *arena) {
    mb_experts_tiles t = {.n_counters = 1, .tile_rows = tile_rows, .tile_step = TOKEN_STEP};
    t.max_tiles = mb_moe_max_tiles(n_rows, n_experts, tile_rows);
    t.tiles = mb_arena_push(arena, (size_t)t.max_tiles, sizeof *t.tiles);
    t.n_tiles = mb_arena_push(arena, 1, sizeof *t.n_tiles);
    t.counters = mb_arena_push(arena, (size_t)t.n_counters, sizeof *t.counters);
    return t;
}

mb_status mb_backward_rows_bytes(const char *op, int64_t n_rows, int32_t n_experts, int32_t tile_rows,
                                 size_t *bytes) {
    mb_arena arena;
    mb_arena_measure(&arena);
    if (n_rows > 0)
        mb_backward_rows_tiles(n_rows, n_experts, tile_rows, &arena);
    return mb_workspace_measured(op, &arena, bytes);
}
