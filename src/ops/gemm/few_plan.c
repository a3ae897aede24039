#include "ops/common/dtype.h"
#include "ops/gemm/few.h"

enum {
    ROWS_OF_EIGHT = 8, /* a swizzled box begins and ends at a multiple of so many rows */
    MOST_STAGES = 32,
    LEAST_STAGES = 3,
    /* Of 227 KB. Some 27 KB are left for CTAs of the kernels before and after. */
    SHARED_BYTES = 200 << 10,
    READ_ONCE_BYTES = 200 << 20,
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
    plan->n_ctas = ceil_div(plan->n_tiles, plan->cluster) * plan->cluster;
    if (plan->n_ctas > n_slots)
        plan->n_ctas = n_slots;
}

int mb_few_plan_with(const mb_gemm_args *args, int32_t cluster, int32_t n_slots, mb_few_plan *plan) {
    const mb_weight *weight = &args->weight;
    const int is_fp8 = weight->dtype == MB_F8_E4M3;
    if (args->n_tokens < 1 || args->n_tokens > MB_FEW_TOKENS || args->dtype == MB_F32 ||
        weight->rows > MOST_OUTPUTS || weight->cols > MOST_COLUMNS ||
        padded(args->n_tokens) % (cluster * ROWS_OF_EIGHT) != 0)
        return 0;
    const int64_t row_bytes = (int64_t)mb_dtype_row_bytes(weight->dtype, weight->cols);
    *plan = (mb_few_plan){.padded_tokens = padded(args->n_tokens),
                          .cluster = cluster,
                          .n_steps = ceil_div(row_bytes, MB_FEW_STEP_BYTES),
                          .quantizes = is_fp8 && args->n_tokens <= MB_FEW_QUANTIZED_TOKENS,
                          .read_once = weight->rows * row_bytes <= READ_ONCE_BYTES};
    cut_rows(plan, weight->rows, n_slots);
    const int32_t stage_steps = MB_FEW_STAGE_STEPS(plan->padded_tokens);
    plan->weight_copy_steps = row_bytes % MB_FEW_STEP_BYTES == 0 ? stage_steps : 1;
    plan->x_copy_steps = cluster == 1 ? plan->weight_copy_steps : 1;

    const int64_t step_weights = plan->tile_rows * MB_FEW_STEP_BYTES,
                  step_x = plan->padded_tokens * MB_FEW_STEP_BYTES,
                  all_x = plan->quantizes ? plan->n_steps * step_x : 0,
                  all_scales = is_fp8 ? (int64_t)plan->n_steps * plan->padded_tokens * 4 : 0,
                  barriers = 2 * 8;
    const int64_t stage_bytes = stage_steps * (step_weights + (plan->quantizes ? 0 : step_x)) + barriers;
    const int64_t most =
        (int64_t)ceil_div(plan->n_steps, stage_steps) * ceil_div(plan->n_tiles, plan->n_ctas);
    int64_t n_stages = (SHARED_BYTES - all_scales - all_x) / stage_bytes;
    n_stages = n_stages < MOST_STAGES ? n_stages : MOST_STAGES;
    n_stages = n_stages < most ? n_stages : most;
    if (n_stages < LEAST_STAGES && n_stages < most)
        return 0;
    plan->n_stages = (int32_t)n_stages;
    plan->x_offset = (int32_t)(n_stages * stage_steps * step_weights);
    plan->x_scale_offset =
        (int32_t)(plan->x_offset + (plan->quantizes ? all_x : n_stages * stage_steps * step_x));
    plan->barriers_offset = (int32_t)(plan->x_scale_offset + all_scales);
    plan->shared_bytes = (int32_t)(plan->barriers_offset + n_stages * barriers);
    /* wgmma reads 64 rows of every step, whatever lies there. */
    const int32_t last_read = plan->x_offset + (MB_FEW_TILE_ROWS - plan->tile_rows) * MB_FEW_STEP_BYTES;
    if (plan->shared_bytes < last_read)
        plan->shared_bytes = last_read;
    return 1;
}

int mb_few_plan_of(const mb_gemm_args *args, int32_t n_processors, mb_few_plan *plan) {
    /* x is read by every CTA: from 17 tokens on as many bytes as the weights, so that two share it. (Not four:
     * an H100 has room for 30 such clusters, 12 of its SMs would stay empty.) */
    const int32_t cluster = args->n_tokens > 16 && n_processors > 1 ? 2 : 1;
    return mb_few_plan_with(args, cluster, n_processors / cluster * cluster, plan);
}
