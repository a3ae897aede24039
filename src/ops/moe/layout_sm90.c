#include "ops/moe/layout_sm90.h"

#include "base/status.h"
#include "ops/common/dtype.h"
#include "ops/common/workspace.h"
#include "ops/moe/arguments.h"
#include "ops/moe/experts/pick.h"
#include "ops/moe/front/plan_sizes.h"

#include <inttypes.h>

static int is_exact(mb_dtype dtype, mb_f32_math math) {
    return dtype == MB_F32 && math == MB_F32_EXACT;
}

static int has_block_scales(const mb_weight *weight) {
    return weight->dtype == MB_F8_E4M3 && weight->scale_rows > 0;
}

/* Counters of the experts' kernel: one for the next item, one for each tile's finished column tiles of the
 * first GEMM, and one for those of each tile, block of outputs and CTA of a pair. */
static int64_t n_counters(int64_t max_tiles, int64_t block_outputs) {
    const int64_t most_ctas = 2;
    return 1 + max_tiles * (1 + mb_f8_blocks(block_outputs) * most_ctas);
}

/* block_outputs: columns that become fp8 with block scales. */
static mb_experts_tiles tiles_layout(int64_t n_rows, int64_t n_groups, int tile, int64_t block_outputs,
                                     mb_arena *arena) {
    mb_experts_tiles t = {.tile = tile, .tile_rows = MB_F32_TILE_ROWS, .tile_step = 1};
    if (tile != MB_EXACT_TILE) {
        t.tile_rows = mb_moe_tiles[tile].max_tokens;
        t.tile_step = mb_moe_tiles[tile].token_step;
    }
    t.max_tiles = mb_moe_max_tiles(n_rows, (int32_t)n_groups, t.tile_rows);
    int64_t counters = n_counters(t.max_tiles, block_outputs);
    if (counters > INT32_MAX)
        arena->overflowed = 1;
    else
        t.n_counters = (int32_t)counters;
    t.tiles = mb_arena_push(arena, (size_t)t.max_tiles, sizeof *t.tiles);
    t.n_tiles = mb_arena_push(arena, 1, sizeof *t.n_tiles);
    t.counters = mb_arena_push(arena, (size_t)t.n_counters, sizeof *t.counters);
    return t;
}

/* For sizing a workspace of most_rows rows or fewer: *n_rows is the most rows that this choice is picked for.
 * Returns 0 when the choices before are picked for all of them. */
static int next_choice(mb_moe_family family, int32_t n_groups, int64_t most_rows, int choice,
                       int64_t *n_rows) {
    if (choice > 0 && mb_moe_choice_most_rows(family, choice - 1, n_groups) >= most_rows)
        return 0;
    int64_t limit = mb_moe_choice_most_rows(family, choice, n_groups);
    *n_rows = limit < most_rows ? limit : most_rows;
    return 1;
}

static mb_status raise_to_measured(const char *op, const mb_arena *measured, size_t *most) {
    size_t bytes = 0;
    MB_TRY(mb_workspace_measured(op, measured, &bytes));
    if (bytes > *most)
        *most = bytes;
    return MB_OK;
}

static int is_aligned(const void *pointer) {
    return (uintptr_t)pointer % 16 == 0;
}

/* ---- One grouped GEMM ---- */

mb_status mb_grouped_gemm_sm90_check_sizes(const mb_grouped_gemm_args *args) {
    MB_TRY(mb_grouped_gemm_check_sizes(args));
    const mb_weight *b = &args->b;
    int64_t column_step = 16 / (int64_t)mb_dtype_bytes(args->dtype);
    /* Rows of out are stored 16 bytes at a time (8 of fp8), rows of b come in groups of eight. */
    int64_t row_step = mb_activation_is_gated(args->activation) ? 16 : 8;
    if (b->cols % column_step != 0 || b->rows % row_step != 0)
        return mb_fail(MB_ERR_ARGUMENT,
                       "grouped_gemm: b is [%" PRId64 ", %" PRId64 ", %" PRId64
                       "]; on sm90 its rows must be a "
                       "multiple of %" PRId64 " and its columns one of %" PRId64,
                       b->count, b->rows, b->cols, row_step, column_step);
    if (b->scale && b->scale_rows % 8 != 0)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "grouped_gemm: b.scale_rows is %d; on sm90 it must be 8, 16, 32, 64 or 128, or 0 for one scale "
            "a matrix",
            b->scale_rows);
    return MB_OK;
}

mb_status mb_grouped_gemm_sm90_check(const mb_grouped_gemm_args *args) {
    MB_TRY(mb_grouped_gemm_sm90_check_sizes(args));
    if (!is_aligned(args->a) || !is_aligned(args->b.data) || !is_aligned(args->out))
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: a, b and out must be 16-byte aligned");
    return mb_grouped_gemm_check(args);
}

mb_grouped_gemm_layout mb_grouped_gemm_sm90_layout(const mb_grouped_gemm_args *args, int tile,
                                                   mb_arena *arena) {
    int to_fp8 = args->out_dtype == MB_F8_E4M3;
    int64_t width = args->b.rows / (mb_activation_is_gated(args->activation) ? 2 : 1);
    mb_grouped_gemm_layout l;
    l.tiles =
        tiles_layout(args->n_rows, args->b.count,
                     is_exact(args->dtype, args->f32_math) ? MB_EXACT_TILE : tile, to_fp8 ? width : 0, arena);
    l.scratch = to_fp8 ? mb_arena_push(arena, (size_t)args->n_rows, 2 * (size_t)width) : NULL;
    return l;
}

mb_status mb_grouped_gemm_sm90_most_bytes(const mb_grouped_gemm_args *most, size_t *bytes) {
    MB_TRY(mb_grouped_gemm_sm90_check_sizes(most));
    mb_moe_family family = mb_moe_family_of(most->b.dtype);
    mb_grouped_gemm_args args = *most;
    size_t found = 0;
    if (most->b.count == 1 && most->n_rows > 0) { /* mb_moe_pick_dense may pick any tile up to so many rows */
        args.n_rows = most->n_rows < MB_MOE_DENSE_ROWS ? most->n_rows : MB_MOE_DENSE_ROWS;
        for (int tile = 0; tile < MB_MOE_N_TILES; tile++)
            if (mb_moe_tiles[tile].family == family) {
                mb_arena arena;
                mb_arena_measure(&arena);
                mb_grouped_gemm_sm90_layout(&args, tile, &arena);
                MB_TRY(raise_to_measured("grouped_gemm", &arena, &found));
            }
    }
    for (int choice = 0; next_choice(family, (int32_t)most->b.count, most->n_rows, choice, &args.n_rows);
         choice++) {
        mb_arena arena;
        mb_arena_measure(&arena);
        if (args.n_rows > 0)
            mb_grouped_gemm_sm90_layout(&args, mb_moe_choice(family, choice), &arena);
        MB_TRY(raise_to_measured("grouped_gemm", &arena, &found));
    }
    *bytes = found;
    return MB_OK;
}

/* ---- The experts ---- */

static mb_status check_dtypes(const char *op, const mb_moe_experts_args *args) {
    mb_dtype dtype = args->dtype, weights = args->w13.dtype;
    int is_16bit = dtype == MB_BF16 || dtype == MB_F16;
    if (args->w2.dtype != weights || !(weights == dtype || (weights == MB_F8_E4M3 && is_16bit)))
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "%s: x is %s, w13 %s, w2 %s; the weights must be of x's dtype (fp32, bf16, fp16), or both "
            "fp8_e4m3 with x in bf16 or fp16",
            op, mb_dtype_name(dtype), mb_dtype_name(weights), mb_dtype_name(args->w2.dtype));
    if (weights != MB_F8_E4M3)
        return MB_OK;
    if (has_block_scales(&args->w13) != has_block_scales(&args->w2))
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: one of w13 and w2 has block scales, the other per-tensor scales", op);
    if (args->w13.scale_rows % 8 != 0 || args->w2.scale_rows % 8 != 0)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "%s: scale_rows of w13 is %d, of w2 %d; on sm90 they must be 8, 16, 32, 64 or 128, or both 0 for "
            "one scale a matrix",
            op, args->w13.scale_rows, args->w2.scale_rows);
    return MB_OK;
}

static mb_status check_experts_of(const char *op, const mb_moe_experts_args *args) {
    MB_TRY(check_dtypes(op, args));
    int step = args->w13.dtype == MB_F8_E4M3 ? 16 : 8;
    if (args->hidden < 16 || args->hidden % step != 0 || args->intermediate < 16 ||
        args->intermediate % step != 0)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "%s: hidden is %d, intermediate %d; on sm90 they must be multiples of %d and 16 at least", op,
            args->hidden, args->intermediate, step);
    /* The experts' kernel has byte offsets into x of 32 bits. */
    int64_t most_values = ((int64_t)UINT32_MAX + 1) / (int64_t)mb_dtype_bytes(args->w13.dtype);
    if (!is_exact(args->dtype, args->f32_math) && args->n_tokens * args->hidden > most_values)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: x is [%" PRId64 ", %d] in %s; at most 2^32 bytes can be done in one call", op,
                       args->n_tokens, args->hidden, mb_dtype_name(args->w13.dtype));
    return MB_OK;
}

static mb_status check_expert_pointers(const char *op, const mb_moe_experts_args *args) {
    if (args->p && args->w13.dtype != MB_BF16 && args->w13.dtype != MB_F16)
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "%s: p is not NULL and the weights are %s; on sm90 p is kept with bf16 and fp16 weights "
            "only",
            op, mb_dtype_name(args->w13.dtype));
    if (!is_aligned(args->p))
        return mb_fail(MB_ERR_ARGUMENT, "%s: p must be 16-byte aligned", op);
    if (args->w13.dtype == MB_F8_E4M3 && (!args->w13.scale || !args->w2.scale))
        return mb_fail(MB_ERR_ARGUMENT, "%s: %s is fp8 and its scale is NULL", op,
                       args->w13.scale ? "w2" : "w13");
    if (args->w13.dtype == MB_F8_E4M3 && !has_block_scales(&args->w13) && (!args->x_scale || !args->h_scale))
        return mb_fail(MB_ERR_ARGUMENT, "%s: x_scale or h_scale is NULL; per-tensor fp8 needs both", op);
    if (args->x8 && !has_block_scales(&args->w13))
        return mb_fail(MB_ERR_UNSUPPORTED, "%s: x8 is given, but w13 is not fp8 with block scales", op);
    if (!is_aligned(args->x8))
        return mb_fail(MB_ERR_ARGUMENT, "%s: x8 must be 16-byte aligned", op);
    if (!is_aligned(args->x) || !is_aligned(args->w13.data) || !is_aligned(args->w2.data) ||
        !is_aligned(args->y))
        return mb_fail(MB_ERR_ARGUMENT, "%s: x, w13, w2 and y must be 16-byte aligned", op);
    return MB_OK;
}

mb_status mb_moe_experts_sm90_check_sizes(const mb_moe_experts_args *args) {
    MB_TRY(mb_moe_experts_check_sizes(args));
    return check_experts_of("moe_experts", args);
}

mb_status mb_moe_experts_sm90_check(const mb_moe_experts_args *args) {
    MB_TRY(mb_moe_experts_check(args));
    MB_TRY(check_experts_of("moe_experts", args));
    return args->n_rows > 0 ? check_expert_pointers("moe_experts", args) : MB_OK;
}

mb_moe_experts_layout mb_moe_experts_sm90_layout(const mb_moe_experts_args *args, int tile, mb_arena *arena) {
    size_t n_tokens = (size_t)args->n_tokens, n_rows = (size_t)args->n_rows;
    int in_blocks = has_block_scales(&args->w13);
    mb_moe_experts_layout l = {.x_scale = (float *)args->x_scale, .h_scale = (float *)args->h_scale};
    l.tiles = tiles_layout(args->n_rows, args->n_local_experts,
                           is_exact(args->dtype, args->f32_math) ? MB_EXACT_TILE : tile,
                           in_blocks ? args->intermediate : 0, arena);
    if (in_blocks) {
        l.x_scale = mb_arena_push(arena, n_tokens, sizeof(float) * (size_t)mb_f8_blocks(args->hidden));
        l.h_scale = mb_arena_push(arena, n_rows, sizeof(float) * (size_t)mb_f8_blocks(args->intermediate));
    }
    if (args->w13.dtype == MB_F8_E4M3) {
        l.x8 = mb_arena_push(arena, n_tokens, mb_dtype_row_bytes(MB_F8_E4M3, args->hidden));
        l.h8 = mb_arena_push(arena, n_rows, mb_dtype_row_bytes(MB_F8_E4M3, args->intermediate));
    }
    l.h = mb_arena_push(arena, n_rows, mb_dtype_row_bytes(args->dtype, args->intermediate));
    if (args->x8) { /* the workspace does with and without */
        l.x8 = (void *)args->x8;
        l.x_scale = (float *)args->x8_scale;
    }
    return l;
}

mb_status mb_moe_experts_sm90_most_bytes(const mb_moe_experts_args *most, size_t *bytes) {
    MB_TRY(mb_moe_experts_sm90_check_sizes(most));
    mb_moe_family family = mb_moe_family_of(most->w13.dtype);
    mb_moe_experts_args args = *most;
    size_t found = 0;
    for (int choice = 0; next_choice(family, most->n_local_experts, most->n_rows, choice, &args.n_rows);
         choice++) {
        mb_arena arena;
        mb_arena_measure(&arena);
        if (args.n_rows > 0)
            mb_moe_experts_sm90_layout(&args, mb_moe_choice(family, choice), &arena);
        MB_TRY(raise_to_measured("moe_experts", &arena, &found));
    }
    *bytes = found;
    return MB_OK;
}

mb_moe_quantize_args mb_moe_experts_quantize(const mb_moe_experts_args *args,
                                             const mb_moe_experts_layout *layout) {
    if (args->w13.dtype != MB_F8_E4M3 || args->x8)
        return (mb_moe_quantize_args){0};
    return (mb_moe_quantize_args){.x = args->x,
                                  .out = layout->x8,
                                  .scale = layout->x_scale,
                                  .n_tokens = args->n_tokens,
                                  .hidden = args->hidden,
                                  .per_tensor = !has_block_scales(&args->w13),
                                  .dtype = args->dtype};
}

/* ---- The whole layer ---- */

mb_status mb_moe_forward_sm90_check_sizes(const mb_moe_forward_args *args) {
    enum { MAX_TOP_K = 32 };
    MB_TRY(mb_moe_forward_check_sizes(args));
    if (args->top_k > MAX_TOP_K)
        return mb_fail(MB_ERR_ARGUMENT, "moe_forward: top_k is %d; on sm90 it must be %d at most",
                       args->top_k, MAX_TOP_K);
    mb_moe_experts_args experts = mb_moe_forward_experts(args);
    return check_experts_of("moe_forward", &experts);
}

mb_status mb_moe_forward_sm90_check(const mb_moe_forward_args *args) {
    MB_TRY(mb_moe_forward_sm90_check_sizes(args));
    MB_TRY(mb_moe_forward_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    mb_moe_experts_args experts = mb_moe_forward_experts(args);
    MB_TRY(check_expert_pointers("moe_forward", &experts));
    if (!is_aligned(args->residual) || !is_aligned(args->shared) || !is_aligned(args->out))
        return mb_fail(MB_ERR_ARGUMENT, "moe_forward: residual, shared and out must be 16-byte aligned");
    return MB_OK;
}

mb_moe_steps mb_moe_forward_sm90_layout(const mb_moe_forward_args *args, int tile, int n_processors,
                                        mb_arena *arena) {
    mb_moe_steps steps = {.experts = mb_moe_forward_experts(args)};
    mb_moe_experts_args *experts = &steps.experts;
    mb_moe_plan_args *plan = &steps.front.plan;
    size_t n_rows = (size_t)experts->n_rows;
    *plan = (mb_moe_plan_args){.ids = args->ids,
                               .n_tokens = args->n_tokens,
                               .top_k = args->top_k,
                               .n_experts = args->n_experts,
                               .first_expert = args->first_expert,
                               .n_local_experts = args->n_local_experts};
    plan->offsets = mb_arena_push(arena, (size_t)args->n_local_experts + 1, sizeof *plan->offsets);
    plan->row_token = mb_arena_push(arena, n_rows, sizeof *plan->row_token);
    plan->token_row = mb_arena_push(arena, n_rows, sizeof *plan->token_row);
    experts->row_index = plan->row_token;
    experts->offsets = plan->offsets;
    steps.layout = mb_moe_experts_sm90_layout(experts, tile, arena);
    experts->y = mb_arena_push(arena, n_rows, mb_dtype_row_bytes(args->dtype, args->hidden));

    const mb_experts_tiles *tiles = &steps.layout.tiles;
    plan->tiles = tiles->tiles;
    plan->n_tiles = tiles->n_tiles;
    plan->tile_rows = tiles->tile_rows;
    plan->tile_step = tiles->tile_step;
    steps.front.route = args->route;
    steps.front.quantize = mb_moe_experts_quantize(experts, &steps.layout);
    steps.front.counters = tiles->counters;
    steps.front.n_counters = tiles->n_counters;
    steps.front_workspace_bytes = mb_plan_most_bytes(plan, n_processors);
    steps.front_workspace = mb_arena_push(arena, steps.front_workspace_bytes, 1);

    steps.reduce = (mb_moe_reduce_args){.y = experts->y,
                                        .weights = args->weights,
                                        .token_row = plan->token_row,
                                        .residual = args->residual,
                                        .shared = args->shared,
                                        .out = args->out,
                                        .n_tokens = args->n_tokens,
                                        .hidden = args->hidden,
                                        .top_k = args->top_k,
                                        .dtype = args->dtype,
                                        .out_dtype = args->dtype};
    return steps;
}

mb_status mb_moe_forward_sm90_tile_bytes(const mb_moe_forward_args *args, int tile, int n_processors,
                                         size_t *bytes) {
    MB_TRY(mb_moe_forward_sm90_check_sizes(args));
    mb_arena arena;
    mb_arena_measure(&arena);
    if (args->n_tokens > 0)
        mb_moe_forward_sm90_layout(args, tile, n_processors, &arena);
    return mb_workspace_measured("moe_forward", &arena, bytes);
}

mb_status mb_moe_forward_sm90_most_bytes(const mb_moe_forward_args *most, int n_processors, size_t *bytes) {
    MB_TRY(mb_moe_forward_sm90_check_sizes(most));
    mb_moe_family family = mb_moe_family_of(most->w13.dtype);
    mb_moe_forward_args args = *most;
    int64_t most_rows = most->n_tokens * most->top_k, n_rows;
    size_t found = 0;
    for (int choice = 0; next_choice(family, most->n_local_experts, most_rows, choice, &n_rows); choice++) {
        mb_arena arena;
        mb_arena_measure(&arena);
        args.n_tokens = n_rows / most->top_k;
        if (args.n_tokens > 0)
            mb_moe_forward_sm90_layout(&args, mb_moe_choice(family, choice), n_processors, &arena);
        MB_TRY(raise_to_measured("moe_forward", &arena, &found));
    }
    *bytes = found;
    return MB_OK;
}
