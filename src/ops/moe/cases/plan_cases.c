#include "ops/common/check.h"

#include <stdlib.h>

typedef struct shape {
    int64_t n_tokens;
    int32_t top_k, n_experts, first_expert, n_local_experts;
    int32_t tile_rows, tile_step; /* 0: no tiles are asked for */
} shape;

typedef struct choice {
    int32_t expert, index;
} choice;

static int compare_choices(const void *left, const void *right) {
    const choice *a = left, *b = right;
    return a->expert != b->expert ? (a->expert < b->expert ? -1 : 1)
                                  : (a->index > b->index) - (a->index < b->index);
}

/* Each expert's tiles: as few as can be, of one size but the last, and that size the least multiple of the
 * step that does it. Returns the first tile behind them. */
static int32_t check_tiles_of(mb_check *check, const mb_moe_plan_args *args, int32_t e, int32_t tile) {
    int32_t row = args->offsets[e], end = args->offsets[e + 1], n_rows = end - row;
    int32_t n = (n_rows + args->tile_rows - 1) / args->tile_rows;
    for (int32_t i = 0; i < n; i++) {
        mb_moe_token_tile t =
            tile + i < *args->n_tiles ? args->tiles[tile + i] : (mb_moe_token_tile){.expert = -1};
        int is_last = i == n - 1, size = t.n_rows;
        int size_is_right = is_last ? row + size == end && size >= 1 && size <= args->tile_rows
                                    : size % args->tile_step == 0 && size <= args->tile_rows &&
                                          (int64_t)size * n >= n_rows &&
                                          (int64_t)(size - args->tile_step) * n < n_rows;
        if (t.expert != e || t.first_row != row || !size_is_right) {
            mb_check_fail(check, "tiles[%d] is {%d, %d, %d}: tile %d of %d of expert %d with rows [%d, %d)",
                          tile + i, t.expert, t.first_row, t.n_rows, i, n, e, args->offsets[e], end);
            return -1;
        }
        row += size;
    }
    return tile + n;
}

static void check_tiles(mb_check *check, const mb_moe_plan_args *args) {
    int64_t max_tiles =
        mb_moe_max_tiles(args->n_tokens * args->top_k, args->n_local_experts, args->tile_rows);
    if (*args->n_tiles < 0 || *args->n_tiles > max_tiles) {
        mb_check_fail(check, "n_tiles is %d, at most %lld were promised", *args->n_tiles,
                      (long long)max_tiles);
        return;
    }
    int32_t tile = 0;
    for (int32_t e = 0; e < args->n_local_experts && tile >= 0; e++)
        tile = check_tiles_of(check, args, e, tile);
    if (tile >= 0 && tile != *args->n_tiles)
        mb_check_fail(check, "n_tiles is %d, expected %d", *args->n_tiles, tile);
}

/* The choices sorted by a comparison, where the operator counts. */
static void check_order(mb_check *check, const mb_moe_plan_args *args) {
    int64_t n = args->n_tokens * args->top_k;
    choice *choices = mb_check_alloc(check, (size_t)n * sizeof *choices);
    int32_t *expected_row = mb_check_alloc(check, (size_t)n * sizeof *expected_row), row = 0;
    for (int64_t i = 0; i < n; i++)
        choices[i] = (choice){args->ids[i], (int32_t)i};
    qsort(choices, (size_t)n, sizeof *choices, compare_choices);
    int64_t at = 0;
    while (at < n && choices[at].expert < args->first_expert)
        expected_row[choices[at++].index] = -1;
    for (int32_t e = 0; e <= args->n_local_experts; e++) {
        if (args->offsets[e] != row) {
            mb_check_fail(check, "offsets[%d] is %d, expected %d", e, args->offsets[e], row);
            return;
        }
        for (; e < args->n_local_experts && at < n && choices[at].expert == args->first_expert + e; at++) {
            if (args->row_token[row] != choices[at].index / args->top_k) {
                mb_check_fail(check, "row_token[%d] is %d", row, args->row_token[row]);
                return;
            }
            expected_row[choices[at].index] = row++;
        }
    }
    while (at < n)
        expected_row[choices[at++].index] = -1;
    for (int64_t i = 0; i < n; i++)
        if (args->token_row[i] != expected_row[i]) {
            mb_check_fail(check, "token_row[%lld] is %d, expected %d", (long long)i, args->token_row[i],
                          expected_row[i]);
            return;
        }
}

/* lengths NULL: every choice at random. Else expert e has lengths[e] of them, shuffled. */
static void check_plan(mb_check *check, const shape *s, const int32_t *lengths) {
    mb_check_begin(check, "moe_plan T=%lld K=%d E=%d local=%d+%d tiles=%d/%d%s", (long long)s->n_tokens,
                   s->top_k, s->n_experts, s->first_expert, s->n_local_experts, s->tile_rows, s->tile_step,
                   lengths ? " given lengths" : "");
    size_t n = (size_t)(s->n_tokens * s->top_k), n_filled = 0;
    int64_t max_tiles = mb_moe_max_tiles((int64_t)n, s->n_local_experts, s->tile_rows);
    int32_t *ids = mb_check_alloc(check, n * sizeof *ids);
    for (int32_t e = 0; lengths && e < s->n_experts; e++)
        for (int32_t i = 0; i < lengths[e]; i++)
            ids[n_filled++] = e;
    for (size_t i = 0; i < n; i++) {
        size_t j = i + (size_t)(mb_check_random(check) % (n - i));
        int32_t kept = ids[i];
        ids[i] = lengths ? ids[j] : (int32_t)(mb_check_random(check) % (uint64_t)s->n_experts);
        if (lengths)
            ids[j] = kept;
    }
    mb_moe_plan_args args = {
        .ids = ids,
        .offsets = mb_check_alloc(check, ((size_t)s->n_local_experts + 1) * sizeof(int32_t)),
        .row_token = mb_check_alloc(check, n * sizeof(int32_t)),
        .token_row = mb_check_alloc(check, n * sizeof(int32_t)),
        .n_tokens = s->n_tokens,
        .top_k = s->top_k,
        .n_experts = s->n_experts,
        .first_expert = s->first_expert,
        .n_local_experts = s->n_local_experts,
        .tiles = s->tile_rows ? mb_check_alloc(check, (size_t)max_tiles * sizeof(mb_moe_token_tile)) : NULL,
        .n_tiles = s->tile_rows ? mb_check_alloc(check, sizeof(int32_t)) : NULL,
        .tile_rows = s->tile_rows,
        .tile_step = s->tile_step,
    };
    size_t workspace_bytes = 0;
    mb_check_ok(check, check->ops->moe_plan_workspace(&args, &workspace_bytes));
    void *workspace = mb_check_alloc(check, workspace_bytes);
    MB_CHECK_CALL(check, check->ops->moe_plan(&args, workspace, workspace_bytes, check->stream));
    if (!check->failed && !check->is_skipped)
        check_order(check, &args);
    if (!check->failed && !check->is_skipped && args.tiles)
        check_tiles(check, &args);
    mb_check_end(check, 0, 3.0 * (double)n * sizeof(int32_t));
}

void mb_moe_plan_cases(mb_check *check) {
    static const shape shapes[] = {
        {0, 2, 8, 0, 8, 16, 8},          {1, 1, 1, 0, 1, 1, 1},         {100, 4, 16, 0, 16, 0, 0},
        {100, 4, 16, 12, 3, 32, 8},      {3, 8, 4000, 0, 4000, 16, 16}, {2, 1, 65536, 65000, 536, 16, 8},
        {333, 3, 5, 0, 5, 64, 8}, /* several tiles of each expert */
        {500, 1, 1, 0, 1, 96, 32},       {700, 2, 3, 1, 2, 1, 1},       {40, 6, 160, 0, 160, 7, 7},
        {9, 3, 65536, 0, 65536, 288, 8},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        check_plan(check, &shapes[i], NULL);

    int32_t all_to_one[7] = {0, 0, 0, 1003, 0, 0, 0};
    check_plan(check, &(shape){1003, 1, 7, 0, 7, 128, 16}, all_to_one);
    check_plan(check, &(shape){1003, 1, 7, 4, 3, 128, 16}, all_to_one); /* and none of them is local */

    /* 50 000 experts, their lengths from 0 to 59, every tenth expert empty */
    enum { MANY = 50000 };
    static int32_t lengths[MANY];
    int64_t n_rows = 0;
    for (int32_t e = 0; e < MANY; e++) {
        lengths[e] = e % 10 == 3 ? 0 : (int32_t)(mb_check_random(check) % 60);
        n_rows += lengths[e];
    }
    check_plan(check, &(shape){n_rows, 1, MANY, 0, MANY, 32, 8}, lengths);
    check_plan(check, &(shape){n_rows, 1, MANY, 20000, 10001, 16, 8}, lengths);
}
