#include "base/status.h"
#include "ops/common/tensor.h"
#include "ops/common/workspace.h"
#include "ops/moe/arguments.h"
#include "ops/moe/moe.h"
#include "ops/moe/ref/ref.h"

#include <inttypes.h>

/* Counting sort: count, prefix sum, place. Serial: T*K ids are read twice, little beside the GEMMs. */

/* An expert's last tile may be any size, all others are full but for evening out. */
int64_t mb_moe_max_tiles(int64_t n_rows, int32_t n_local_experts, int32_t tile_rows) {
    if (n_rows <= 0 || n_local_experts <= 0 || tile_rows <= 0)
        return 0;
    int64_t n_with_rows = n_rows < n_local_experts ? n_rows : n_local_experts;
    return n_with_rows + n_rows / tile_rows;
}

int32_t mb_moe_cut_tiles(const int32_t *offsets, int64_t n_groups, int32_t tile_rows, int32_t tile_step,
                         mb_moe_token_tile *tiles) {
    int32_t n_tiles = 0;
    for (int64_t e = 0; e < n_groups; e++) {
        int64_t row = offsets[e], end = offsets[e + 1], n_rows = end - row;
        int64_t n = (n_rows + tile_rows - 1) / tile_rows, size = n > 0 ? (n_rows + n - 1) / n : 0;
        size = (size + tile_step - 1) / tile_step * tile_step;
        for (; row < end; row += size)
            tiles[n_tiles++] = (mb_moe_token_tile){.expert = (int32_t)e,
                                                   .first_row = (int32_t)row,
                                                   .n_rows = (int32_t)(end - row < size ? end - row : size)};
    }
    return n_tiles;
}

mb_status mb_moe_check_rows(const char *op, const int32_t *offsets, int64_t n_groups, int64_t n_rows,
                            const int32_t *row_index, int64_t n_sources) {
    MB_REQUIRE(offsets[0] >= 0, "%s: offsets[0] is %d", op, offsets[0]);
    for (int64_t e = 0; e < n_groups; e++)
        MB_REQUIRE(offsets[e] <= offsets[e + 1],
                   "%s: offsets[%" PRId64 "] is %d, less than offsets[%" PRId64 "], %d", op, e + 1,
                   offsets[e + 1], e, offsets[e]);
    MB_REQUIRE(offsets[n_groups] <= n_rows, "%s: offsets[%" PRId64 "] is %d, more than n_rows, %" PRId64, op,
               n_groups, offsets[n_groups], n_rows);
    for (int32_t r = offsets[0]; row_index && r < offsets[n_groups]; r++)
        MB_REQUIRE(row_index[r] >= 0 && row_index[r] < n_sources, "%s: row_index[%d] is %d", op, r,
                   row_index[r]);
    return MB_OK;
}

mb_status mb_moe_plan_ref_workspace(const mb_moe_plan_args *most, size_t *bytes) {
    MB_TRY(mb_moe_plan_check_sizes(most));
    *bytes = most->n_tokens > 0 ? (size_t)most->n_local_experts * sizeof(int32_t) : 0;
    return MB_OK;
}

/* No rows: still a plan that the GEMMs behind it can read. */
static void plan_nothing(const mb_moe_plan_args *args) {
    for (int32_t e = 0; args->offsets && e <= args->n_local_experts; e++)
        args->offsets[e] = 0;
    if (args->n_tiles)
        *args->n_tiles = 0;
}

mb_status mb_moe_plan_ref(const mb_moe_plan_args *args, void *workspace, size_t workspace_bytes,
                          mb_stream stream) {
    (void)stream;
    MB_TRY(mb_moe_plan_check(args));
    plan_nothing(args);
    if (args->n_tokens == 0)
        return MB_OK;
    size_t needed;
    MB_TRY(mb_moe_plan_ref_workspace(args, &needed));
    MB_TRY(mb_workspace_check("moe_plan", workspace, workspace_bytes, needed));

    int64_t n_choices = args->n_tokens * args->top_k;
    int32_t n_local = args->n_local_experts, *offsets = args->offsets, *next_row = workspace;
    for (int64_t i = 0; i < n_choices; i++) {
        int64_t e = (int64_t)args->ids[i] - args->first_expert;
        if (e >= 0 && e < n_local)
            offsets[e + 1]++;
    }
    for (int32_t e = 0; e < n_local; e++) {
        next_row[e] = offsets[e];
        offsets[e + 1] += offsets[e];
    }
    for (int64_t i = 0; i < n_choices; i++) {
        int64_t e = (int64_t)args->ids[i] - args->first_expert;
        int is_local = e >= 0 && e < n_local;
        int32_t row = is_local ? next_row[e]++ : -1;
        args->token_row[i] = row;
        if (is_local)
            args->row_token[row] = (int32_t)(i / args->top_k);
    }
    if (args->tiles)
        *args->n_tiles = mb_moe_cut_tiles(offsets, n_local, args->tile_rows, args->tile_step, args->tiles);
    return MB_OK;
}
