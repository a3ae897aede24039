#include "ops/moe/front/plan_sizes.h"

#include "ops/common/dtype.h"

uint32_t mb_plan_ctas(int64_t n_choices) {
    int64_t n_ctas = mb_ceil_div(n_choices, PLAN_THREADS);
    return n_choices <= ONE_CTA_CHOICES ? 1 : n_ctas < MAX_PLAN_CTAS ? (uint32_t)n_ctas : MAX_PLAN_CTAS;
}

int mb_plan_is_of_many(const mb_moe_plan_args *args) {
    return args->n_local_experts > FEW_EXPERTS || args->n_tokens * args->top_k >= MANY_CHOICES;
}

/* There are as many groups as shared memory and L2 ask for, and fewer chunks when there are few choices. */
mb_plan_grid mb_plan_grid_of_many(const mb_moe_plan_args *args, int n_processors) {
    int64_t n_choices = args->n_tokens * args->top_k, n_experts = args->n_local_experts,
            n_ctas = n_processors;
    int64_t of_shared = mb_ceil_div(n_experts, MAX_GROUP_EXPERTS);
    int64_t of_rows = mb_ceil_div(n_experts * n_ctas, MAX_CHUNK_EXPERTS);
    int64_t most_chunks = n_ctas / (of_shared > of_rows ? of_shared : of_rows);
    int64_t of_choices = mb_ceil_div(n_choices > 0 ? n_choices : 1, PLACE_WARPS * BATCH);
    int64_t n_chunks = of_choices < most_chunks ? of_choices : most_chunks;
    mb_plan_grid grid;
    grid.n_chunks = (uint32_t)n_chunks;
    grid.n_groups = (uint32_t)(n_ctas / n_chunks);
    grid.chunk_choices = (uint32_t)(mb_ceil_div(n_choices, n_chunks * BATCH) * BATCH);
    grid.group_experts = (uint32_t)mb_ceil_div(n_experts, grid.n_groups);
    return grid;
}

size_t mb_plan_bytes(const mb_moe_plan_args *args, int n_processors) {
    size_t n_experts = (size_t)args->n_local_experts;
    if (mb_plan_is_of_many(args)) /* sums and next_part of the scan, then counts */
        return sizeof(uint64_t) * (MAX_SCAN_CTAS + 1) +
               sizeof(uint32_t) * mb_plan_grid_of_many(args, n_processors).n_chunks * n_experts;
    uint32_t n_ctas = mb_plan_ctas(args->n_tokens * args->top_k);
    return n_ctas == 1 ? 0 : sizeof(int32_t) * n_ctas * n_experts;
}

/* Each of the two plans needs more bytes for more tokens. But the plan of many choices, which is used for
 * more tokens, may need fewer than the other. */
size_t mb_plan_most_bytes(const mb_moe_plan_args *most, int n_processors) {
    size_t bytes = mb_plan_bytes(most, n_processors);
    mb_moe_plan_args fewer = *most;
    fewer.n_tokens = (MANY_CHOICES - 1) / most->top_k;
    if (fewer.n_tokens >= most->n_tokens)
        return bytes;
    size_t of_fewer = mb_plan_bytes(&fewer, n_processors);
    return of_fewer > bytes ? of_fewer : bytes;
}
