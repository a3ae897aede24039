#include "ops/common/dtype.h"
#include "ops/gemm/few.h"

enum {
    ROWS_OF_EIGHT = 8, /* a swizzled box begins and ends at a multiple of so many rows */
    MOST_STAGES = 32,
    LEAST_STAGES = 3,
    /* Of 227 KB. Some 27 KB are left for CTAs of the kernels before and after, or for the sums of x (up to
     * 216 KB then, with 4 rows of 2048 columns). */
    SHARED_BYTES = 200 << 10,
    /* What L2 holds. Larger weights push everything out whatever the hint, and are slower with it. */
    READ_ONCE_BYTES = 50 << 20,
    PIECE = 256,
    MOST_OUTPUTS = 1 << 24, /* with 64 tokens an index of 32 bits is enough */
    MOST_COLUMNS = 1 << 24,
};

static int32_t ceil_div(int64_t a, int64_t b) {
    return (int32_t)((a + b - 1) / b);
}

static int32_t padded(int64_t n_tokens) {
    int32_t tokens = 8;
    while (tokens < n_tokens)
        tokens *= 2;
    return tokens;
}

/* The fewest rounds of tiles of at most 64 rows, then the smallest tiles with so many rounds. */
static void cut_rows(mb_few_plan *plan, int64_t n_outputs, int32_t n_slots) {
    const int32_t n_eights = ceil_div(n_outputs, ROWS_OF_EIGHT), most = MB_FEW_TILE_ROWS / ROWS_OF_EIGHT;
    const int32_t n_rounds = ceil_div(n_eights, (int64_t)n_slots * most);
    const int32_t eights = ceil_div(n_eights, (int64_t)n_slots * n_rounds);
    plan->tile_rows = eights * ROWS_OF_EIGHT;
    plan->n_tiles = ceil_div(n_eights, eights);
    plan->n_ctas = plan->n_tiles < n_slots ? plan->n_tiles : n_slots;
}

/* Whether the CTAs can norm x: few rows, all of whose columns fit beside the weights. */
static int can_norm(const mb_gemm_args *args) {
    const mb_weight *norm = &args->norm_weight;
    const int32_t most_tokens =
        args->weight.dtype == MB_F8_E4M3 ? MB_FEW_NORM_FP8_TOKENS : MB_FEW_NORM_TOKENS;
    return norm->data && (norm->dtype == MB_BF16 || norm->dtype == MB_F16) &&
           (uintptr_t)norm->data % 16 == 0 && args->n_tokens <= most_tokens &&
           padded(args->n_tokens) * (int64_t)mb_dtype_row_bytes(args->dtype, args->weight.cols) <=
               MB_FEW_NORM_BYTES;
}

/* Whether the CTAs can add up the rows that they norm. */
static int can_sum(const mb_gemm_args *args) {
    const mb_moe_reduce_args *sum = args->x_sum;
    return sum && args->n_tokens <= MB_FEW_SUM_TOKENS && sum->top_k <= MB_FEW_SUM_TERMS && sum->y &&
           sum->residual && !sum->shared && sum->residual != sum->out && !args->norm_rows &&
           sum->dtype == args->dtype && sum->out_dtype == args->dtype && sum->hidden == args->weight.cols &&
           sum->n_tokens == args->n_tokens && ((uintptr_t)sum->y | (uintptr_t)sum->residual) % 16 == 0;
}

/* Every CTA does it anew, so only as much as 8 warps load at once. */
static int quantizes(const mb_gemm_args *args) {
    const int64_t row_units = (args->weight.cols + MB_F8_BLOCK - 1) / MB_F8_BLOCK;
    return !args->x8 && args->n_tokens <= MB_FEW_QUANTIZED_TOKENS &&
           args->n_tokens * row_units <= MB_FEW_QUANTIZED_UNITS;
}

static int32_t row_shift(int64_t n_tokens) {
    int32_t shift = 0;
    while (n_tokens << (shift + 1) <= MB_FEW_WARPS_OF_X)
        shift++;
    return shift;
}

/* The columns of a wgmma are 8 steps of one row of x, 4 of two, or 2 of up to four. */
static void cut_groups(mb_few_plan *plan, int64_t n_tokens) {
    plan->group_steps = MB_FEW_COLUMNS / (n_tokens < 3 ? (int32_t)n_tokens : 4);
    plan->group_blocks = ceil_div(plan->group_steps * plan->tile_rows, MB_FEW_TILE_ROWS);
    plan->by_group_blocks = MB_FEW_BY(plan->group_blocks);
    const int32_t n_full = plan->n_steps / plan->group_steps, rest = plan->n_steps % plan->group_steps;
    plan->n_blocks = n_full * plan->group_blocks + ceil_div(rest * plan->tile_rows, MB_FEW_TILE_ROWS);
}

static int32_t n_groups(const mb_few_plan *plan) {
    return ceil_div(plan->n_steps, plan->group_steps);
}

static int64_t products_bytes(const mb_few_plan *plan) {
    return (int64_t)n_groups(plan) * MB_FEW_COLUMNS * MB_FEW_COLUMN_STRIDE(plan) * 4;
}

/* An odd number of pieces of 16 bytes. */
static int32_t step_stride(int32_t n_steps) {
    return (ceil_div(n_steps, 4) | 1) * 4;
}

/* Places everything in shared memory. Returns 0 where there is too little, or with group_steps, where not all
 * of the CTA's weights are there at once. */
static int place(mb_few_plan *plan, const mb_gemm_args *args) {
    const int is_fp8 = args->weight.dtype == MB_F8_E4M3, groups = plan->group_steps > 0;
    const int32_t stage_steps = MB_FEW_STAGE_STEPS(plan->padded_tokens);
    const int64_t step_weights = plan->tile_rows * MB_FEW_STEP_BYTES,
                  step_x = plan->padded_tokens * MB_FEW_STEP_BYTES,
                  stride_bytes = (int64_t)plan->step_stride * 4,
                  all_x = groups          ? (int64_t)n_groups(plan) * MB_FEW_COLUMNS * MB_FEW_STEP_BYTES
                          : plan->keeps_x ? plan->n_steps * step_x
                                          : 0,
                  all_scales = groups   ? args->n_tokens * stride_bytes
                               : is_fp8 ? (int64_t)plan->n_steps * plan->padded_tokens * 4
                                        : 0,
                  norm_weight = plan->norms ? (int64_t)plan->n_pieces * PIECE * 2 : 0,
                  row_scales = groups ? plan->tile_rows * stride_bytes : 0,
                  products = groups ? products_bytes(plan) : 0,
                  /* the norm's weight has been used when the first product is made */
        overlaid = products > norm_weight ? products : norm_weight, barriers = 2 * 8;
    const int64_t stage_bytes = stage_steps * (step_weights + (plan->keeps_x ? 0 : step_x)) + barriers;
    const int64_t most =
        (int64_t)ceil_div(plan->n_steps, stage_steps) * ceil_div(plan->n_tiles, plan->n_ctas);
    int64_t n_stages = (SHARED_BYTES - all_scales - all_x - row_scales - overlaid) / stage_bytes;
    n_stages = n_stages < MOST_STAGES ? n_stages : MOST_STAGES;
    n_stages = n_stages < most ? n_stages : most;
    if (n_stages < (groups || most < LEAST_STAGES ? most : LEAST_STAGES))
        return 0;
    plan->n_stages = (int32_t)n_stages;
    plan->x_offset = (int32_t)(n_stages * stage_steps * step_weights);
    plan->x_scale_offset =
        (int32_t)(plan->x_offset + (plan->keeps_x ? all_x : n_stages * stage_steps * step_x));
    plan->row_scale_offset = (int32_t)(plan->x_scale_offset + all_scales);
    plan->norm_offset = plan->products_offset = (int32_t)(plan->row_scale_offset + row_scales);
    plan->barriers_offset = (int32_t)(plan->norm_offset + overlaid);
    plan->shared_bytes = (int32_t)(plan->barriers_offset + n_stages * barriers);
    return 1;
}

/* Where each CTA adds up x, if there is room: behind the norm's weight, where the products come later, or
 * behind all else. */
static void place_sum(mb_few_plan *plan, const mb_gemm_args *args) {
    const int64_t row_bytes = (int64_t)plan->n_pieces * PIECE * 2, sum_bytes = args->n_tokens * row_bytes;
    if (!plan->norms || !can_sum(args))
        return;
    if (plan->group_steps && row_bytes + sum_bytes <= products_bytes(plan)) {
        plan->sum_offset = (int32_t)(plan->norm_offset + row_bytes);
        return;
    }
    const int32_t sum_offset = (plan->shared_bytes + 15) / 16 * 16;
    const int64_t with_sum = sum_offset + sum_bytes;
    if (with_sum <= MB_FEW_SHARED_BYTES) {
        plan->sum_offset = sum_offset;
        plan->shared_bytes = (int32_t)with_sum;
    }
}

int mb_few_plan_with(const mb_gemm_args *args, int norms, int32_t n_slots, mb_few_plan *plan) {
    const mb_weight *weight = &args->weight;
    const int is_fp8 = weight->dtype == MB_F8_E4M3;
    if (args->n_tokens < 1 || args->n_tokens > MB_FEW_TOKENS || args->dtype == MB_F32 ||
        weight->rows > MOST_OUTPUTS || weight->cols > MOST_COLUMNS || (norms && !can_norm(args)))
        return 0;
    const int64_t row_bytes = (int64_t)mb_dtype_row_bytes(weight->dtype, weight->cols);
    *plan = (mb_few_plan){.padded_tokens = padded(args->n_tokens),
                          .n_steps = ceil_div(row_bytes, MB_FEW_STEP_BYTES),
                          .norms = norms,
                          .quantizes = is_fp8 && (norms || quantizes(args)),
                          .row_shift = row_shift(args->n_tokens),
                          .n_pieces = ceil_div(weight->cols, PIECE),
                          .read_once = weight->rows * row_bytes <= READ_ONCE_BYTES};
    plan->keeps_x = plan->norms || plan->quantizes;
    cut_rows(plan, weight->rows, n_slots);
    const int32_t stage_steps = MB_FEW_STAGE_STEPS(plan->padded_tokens);
    plan->copy_steps = row_bytes % MB_FEW_STEP_BYTES == 0 ? stage_steps : 1;
    plan->step_stride = step_stride(plan->n_steps);
    plan->by_tile_rows = MB_FEW_BY(plan->tile_rows);
    if (plan->quantizes && plan->n_tiles == plan->n_ctas && args->n_tokens <= MB_FEW_GROUP_TOKENS)
        cut_groups(plan, args->n_tokens);
    if (plan->group_steps && !place(plan, args))
        plan->group_steps = 0;
    if (!plan->group_steps && !place(plan, args))
        return 0;
    place_sum(plan, args);
    /* wgmma reads 64 rows of every step, or behind a group's last block, whatever lies there. */
    const int32_t rows_behind = plan->group_steps ? MB_FEW_TILE_ROWS : MB_FEW_TILE_ROWS - plan->tile_rows;
    const int32_t last_read = plan->x_offset + rows_behind * MB_FEW_STEP_BYTES;
    if (plan->shared_bytes < last_read)
        plan->shared_bytes = last_read;
    return 1;
}

int mb_few_plan_of(const mb_gemm_args *args, int32_t n_processors, mb_few_plan *plan) {
    if (args->weight.dtype == MB_F8_E4M3 && args->n_tokens > MB_FEW_FP8_TOKENS &&
        args->n_tokens * args->weight.cols > MB_FEW_FP8_NUMBERS)
        return 0;
    return mb_few_plan_with(args, 1, n_processors, plan) || mb_few_plan_with(args, 0, n_processors, plan);
}
