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

static int32_t row_warps(int64_t n_tokens) {
    int32_t n_warps = MB_FEW_WARPS_OF_X;
    while (n_warps > 1 && n_warps * n_tokens > MB_FEW_WARPS_OF_X)
        n_warps /= 2;
    return n_warps;
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
                          .row_warps = row_warps(args->n_tokens),
                          .n_pieces = ceil_div(weight->cols, PIECE),
                          .read_once = weight->rows * row_bytes <= READ_ONCE_BYTES};
    plan->keeps_x = plan->norms || plan->quantizes;
    cut_rows(plan, weight->rows, n_slots);
    const int32_t stage_steps = MB_FEW_STAGE_STEPS(plan->padded_tokens);
    plan->copy_steps = row_bytes % MB_FEW_STEP_BYTES == 0 ? stage_steps : 1;

    const int64_t step_weights = plan->tile_rows * MB_FEW_STEP_BYTES,
                  step_x = plan->padded_tokens * MB_FEW_STEP_BYTES,
                  all_x = plan->keeps_x ? plan->n_steps * step_x : 0,
                  all_scales = is_fp8 ? (int64_t)plan->n_steps * plan->padded_tokens * 4 : 0,
                  norm_weight = norms ? (int64_t)plan->n_pieces * PIECE * 2 : 0, barriers = 2 * 8;
    const int64_t stage_bytes = stage_steps * (step_weights + (plan->keeps_x ? 0 : step_x)) + barriers;
    const int64_t most =
        (int64_t)ceil_div(plan->n_steps, stage_steps) * ceil_div(plan->n_tiles, plan->n_ctas);
    int64_t n_stages = (SHARED_BYTES - all_scales - norm_weight - all_x) / stage_bytes;
    n_stages = n_stages < MOST_STAGES ? n_stages : MOST_STAGES;
    n_stages = n_stages < most ? n_stages : most;
    if (n_stages < LEAST_STAGES && n_stages < most)
        return 0;
    plan->n_stages = (int32_t)n_stages;
    plan->x_offset = (int32_t)(n_stages * stage_steps * step_weights);
    plan->x_scale_offset =
        (int32_t)(plan->x_offset + (plan->keeps_x ? all_x : n_stages * stage_steps * step_x));
    plan->norm_offset = (int32_t)(plan->x_scale_offset + all_scales);
    plan->barriers_offset = (int32_t)(plan->norm_offset + norm_weight);
    plan->shared_bytes = (int32_t)(plan->barriers_offset + n_stages * barriers);
    const int32_t sum_offset = (plan->shared_bytes + 15) / 16 * 16;
    const int64_t with_sum =
        sum_offset + MB_FEW_SUM_TOKENS * MB_FEW_SUM_TERMS * 8 + args->n_tokens * plan->n_pieces * PIECE * 2;
    if (norms && can_sum(args) && with_sum <= MB_FEW_SHARED_BYTES) {
        plan->sum_offset = sum_offset;
        plan->shared_bytes = (int32_t)with_sum;
    }
    /* wgmma reads 64 rows of every step, whatever lies there. */
    const int32_t last_read = plan->x_offset + (MB_FEW_TILE_ROWS - plan->tile_rows) * MB_FEW_STEP_BYTES;
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
