/*
 * front_check.cu - checks and times what comes before the experts: router, plan, tiles, x to fp8, and all of
 * them as mb_moe_front_sm90.
 *
 *   front_check [--small] [--check] [--huge] [--plans]
 *
 * Everything is compared exactly with plain code on the host (the router's weights to 1e-6). Outputs are
 * poisoned first, and what lies in front of and behind them must stay as it was. Exit status 1 when anything
 * is wrong. --small checks small shapes only (for compute-sanitizer), --check times nothing, --huge plans
 * 2^31 - 1 rows too.
 */
#include "front_refusals.cuh"
#include "timing.cuh"

static const route_shape route_shapes[] = {
    /* T, E, K, dtype, order, renormalize, values */
    {1, 1, 1, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, SMOOTH},
    {1, 128, 8, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, SMOOTH},
    {5, 7, 3, MB_BF16, MB_ROUTE_TOPK_SOFTMAX, 0, TIES},
    {33, 160, 6, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, TIES},
    {17, 33, 32, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, ODD_VALUES},
    {70, 129, 8, MB_BF16, MB_ROUTE_SOFTMAX_TOPK, 1, ODD_VALUES},
    {40, 256, 8, MB_F32, MB_ROUTE_TOPK_SOFTMAX, 1, TIES},
    {21, 384, 9, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, TIES},
    {9, 512, 32, MB_BF16, MB_ROUTE_SOFTMAX_TOPK, 0, TIES},
    {11, 1000, 32, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, TIES},
    {13, 1024, 32, MB_F32, MB_ROUTE_TOPK_SOFTMAX, 1, ODD_VALUES},
    {128, 128, 8, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, ODD_VALUES},
    {6400, 128, 8, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, TIES}, /* several tokens a warp */
};

static const plan_shape plan_shapes[] = {
    /* T, K, E, first, local, tile_rows, tile_step, ids */
    {0, 2, 8, 0, 8, 16, 8, UNIFORM},
    {0, 2, 3000, 0, 3000, 16, 8, UNIFORM},
    {1, 1, 1, 0, 1, 1, 1, UNIFORM},
    {1, 8, 128, 0, 128, 16, 8, UNIFORM},
    {7, 5, 100, 90, 10, 48, 16, UNIFORM},
    {128, 8, 128, 0, 128, 16, 8, UNIFORM},
    {100, 10, 1024, 0, 1024, 32, 8, UNIFORM},
    {129, 8, 160, 0, 160, 64, 8, UNIFORM},
    {704, 8, 128, 0, 128, 64, 8, UNIFORM},
    {333, 6, 60, 15, 15, 288, 8, UNIFORM},
    {1003, 1, 7, 0, 7, 128, 16, ONE_EXPERT},
    {5000, 4, 11, 4, 3, 128, 16, ONE_EXPERT}, /* none of them is local */
    {4096, 8, 1024, 0, 1024, 0, 0, UNIFORM},
    {3, 8, 4000, 0, 4000, 16, 16, UNIFORM},
    {9, 3, 65536, 0, 65536, 288, 8, UNIFORM},
    {2, 1, 65536, 65000, 536, 16, 8, UNIFORM},
    {3000, 7, 1025, 0, 1025, 24, 8, UNIFORM},
    {6001, 8, 3000, 100, 2500, 16, 8, UNIFORM},
    {5003, 9, 2000, 0, 2000, 96, 32, ONE_EXPERT},
};

static const plan_shape large_plan_shapes[] = {
    {32768, 8, 128, 0, 128, 288, 8, UNIFORM},
    {32768, 8, 128, 32, 32, 288, 8, UNIFORM},
    {100000, 32, 1000, 0, 1000, 64, 8, UNIFORM},
    {3000000, 1, 50000, 0, 50000, 64, 8, RAGGED},
    {1500001, 2, 50000, 20000, 10001, 16, 8, RAGGED},
    {400000, 5, 65536, 0, 65536, 128, 8, UNIFORM},
    {1000000, 3, 20000, 0, 20000, 64, 8, ONE_EXPERT},
    {1048577, 4, 128, 30, 90, 288, 8, UNIFORM}, /* too many choices for the plan of few experts */
};

static const quantize_shape quantize_shapes[] = {
    /* T, H, dtype, per tensor's scale or 0 */
    {1, 8, MB_BF16, 0},     {3, 2048, MB_BF16, 0},  {5, 136, MB_F16, 0},        {37, 200, MB_BF16, 0},
    {64, 768, MB_F16, 0},   {17, 4096, MB_F16, 0},  {33, 344, MB_BF16, 0.013f}, {9, 1024, MB_F16, 3e-5f},
    {21, 4096, MB_BF16, 1}, {300, 1048, MB_F16, 0}, {2, 128, MB_BF16, 1e30f},
};

static const tiles_shape tiles_shapes[] = {
    /* groups, mean rows, tile_rows, tile_step, counters, offsets given */
    {1, 0, 16, 8, 3, 0},           {1, 1000003, 64, 8, 0, 0},  {1, 777, 288, 8, 5, 1},
    {5, 300, 64, 16, 100, 1},      {1024, 10, 16, 8, 2000, 1}, {1025, 100, 24, 8, 1, 1},
    {65536, 20, 64, 64, 70000, 1}, {3000, 0, 64, 8, 7, 1},
};

static const front_shape front_shapes[] = {
    /* the router (K, E and T of the plan), then first, local, tile_rows, tile_step, H, per tensor, counters
     */
    {{1, 128, 8, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, SMOOTH}, 1, 0, 128, 16, 8, 2048, 0, 257},
    {{1, 128, 8, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, SMOOTH}, 1, 0, 128, 16, 8, 0, 0, 257},
    {{16, 128, 8, MB_BF16, MB_ROUTE_SOFTMAX_TOPK, 1, TIES}, 1, 32, 32, 16, 8, 2048, 1, 1000},
    {{16, 128, 8, MB_BF16, MB_ROUTE_SOFTMAX_TOPK, 1, TIES}, 0, 0, 128, 16, 8, 2048, 1, 1000},
    /* at most 32 choices: foreign experts, all lanes, several tiles an expert, one expert, many experts */
    {{3, 128, 8, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, TIES}, 1, 32, 64, 16, 8, 0, 0, 257},
    {{4, 128, 8, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, SMOOTH}, 1, 0, 128, 16, 8, 2048, 0, 1000},
    {{32, 2, 1, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, SMOOTH}, 0, 0, 2, 8, 8, 136, 0, 3},
    {{16, 3, 2, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, SMOOTH}, 1, 0, 3, 8, 8, 0, 0, 3},
    {{1, 1, 1, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, SMOOTH}, 1, 0, 1, 16, 8, 0, 0, 3},
    {{3, 1024, 10, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, SMOOTH}, 0, 0, 1024, 16, 8, 256, 0, 70},
    {{33, 200, 31, MB_F32, MB_ROUTE_TOPK_SOFTMAX, 1, ODD_VALUES}, 1, 0, 200, 24, 8, 136, 0, 5},
    {{64, 256, 16, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, TIES}, 1, 0, 256, 32, 8, 0, 0, 0},
    {{8, 1024, 32, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, TIES}, 1, 0, 1024, 16, 8, 256, 0, 70},
    {{8, 1024, 32, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, TIES}, 0, 0, 1024, 16, 8, 256, 0, 70},
    {{129, 128, 8, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, TIES}, 1, 0, 128, 32, 8, 512, 0, 700},
    {{129, 128, 8, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, TIES}, 1, 64, 64, 32, 8, 0, 0, 700},
    {{704, 160, 6, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, SMOOTH}, 0, 0, 160, 64, 8, 520, 0, 3000},
};

#define COUNT(array) ((int)(sizeof(array) / sizeof(array[0])))

typedef struct timed {
    mb_moe_front_args front;
    void *workspace;
    size_t workspace_bytes;
} timed;

static __global__ void empty(void) {}
static void launch_empty(const void *context, cudaStream_t stream) {
    (void)context;
    empty<<<1, 32, 0, stream>>>();
}
static void launch_route(const void *context, cudaStream_t stream) {
    MB(mb_moe_route_sm90(((const timed *)context)->front.route, stream));
}
static void launch_plan(const void *context, cudaStream_t stream) {
    const timed *t = (const timed *)context;
    MB(mb_moe_plan_sm90(&t->front.plan, t->workspace, t->workspace_bytes, stream));
}
static void launch_quantize(const void *context, cudaStream_t stream) {
    MB(mb_moe_quantize_sm90(&((const timed *)context)->front.quantize, stream));
}
static void launch_route_then_plan(const void *context, cudaStream_t stream) {
    launch_route(context, stream);
    launch_plan(context, stream);
}
static void launch_front(const void *context, cudaStream_t stream) {
    const timed *t = (const timed *)context;
    MB(mb_moe_front_sm90(&t->front, t->workspace, t->workspace_bytes, stream));
}
static void launch_tiles(const void *context, cudaStream_t stream) {
    const mb_moe_plan_args *plan = &((const timed *)context)->front.plan;
    mb_moe_tiles_args tiles = {};
    tiles.offsets = plan->offsets;
    tiles.n_rows = plan->n_tokens * plan->top_k;
    tiles.tiles = plan->tiles;
    tiles.n_tiles = plan->n_tiles;
    tiles.n_groups = plan->n_local_experts;
    tiles.tile_rows = plan->tile_rows;
    tiles.tile_step = plan->tile_step;
    MB(mb_moe_tiles_sm90(&tiles, stream));
}

static void time_tokens(int n_tokens, int hidden, void *flush) {
    const front_shape s = {{n_tokens, 128, 8, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, SMOOTH},
                           1,
                           0,
                           128,
                           n_tokens > 1024 ? 288 : 16,
                           8,
                           hidden,
                           0,
                           1000};
    mb_moe_route_args route;
    timed t = {};
    make_front(&s, &t.front, &route);
    mb_moe_front_args without_fp8 = t.front;
    without_fp8.quantize.x = NULL;
    t.workspace_bytes = bytes_of(mb_moe_plan_sm90_workspace, &t.front.plan);
    t.workspace = poisoned(t.workspace_bytes);
    launch_route(&t, NULL);
    const double route_us = time_graph(launch_route, &t, flush), plan_us = time_graph(launch_plan, &t, flush);
    const double both_us = time_graph(launch_route_then_plan, &t, flush);
    const double tiles_us = time_graph(launch_tiles, &t, flush);
    const double quantize_us = time_graph(launch_quantize, &t, flush);
    const double front8_us = time_graph(launch_front, &t, flush);
    t.front = without_fp8;
    const double front_us = time_graph(launch_front, &t, flush);
    printf("%7d %6d %8.2f %8.2f %11.2f %8.2f %9.2f %9.2f %10.2f\n", n_tokens, hidden, route_us, plan_us,
           both_us, tiles_us, quantize_us, front_us, front8_us);
    release_all("timed front");
}

/* A plan that is checked on the GPU: with top_k 1 a choice is its row's token. */
static __global__ void count_misplaced(const mb_moe_plan_args plan, unsigned long long *wrong_rows) {
    unsigned long long mine = 0;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < plan.n_tokens;
         i += (int64_t)gridDim.x * blockDim.x) {
        const int32_t e = plan.ids[i], row = plan.token_row[i];
        const int is_right = row >= plan.offsets[e] && row < plan.offsets[e + 1] &&
                             plan.row_token[row] == i &&
                             (row == plan.offsets[e] || plan.row_token[row - 1] < i);
        mine += !is_right;
    }
    if (mine)
        atomicAdd(wrong_rows, mine);
}

static void time_large_plan(int64_t n_rows, int32_t n_experts, enum ids ids, void *flush, int is_timed) {
    timed t = {};
    mb_moe_plan_args *plan = &t.front.plan;
    const plan_shape s = {n_rows, 1, n_experts, 0, n_experts, 288, 8, ids};
    make_plan(&s, plan);
    t.workspace_bytes = bytes_of(mb_moe_plan_sm90_workspace, plan);
    t.workspace = poisoned(t.workspace_bytes);
    launch_plan(&t, NULL);
    unsigned long long *n_wrong = (unsigned long long *)allocate(sizeof(*n_wrong)), found;
    CUDA(cudaMemset(n_wrong, 0, sizeof(*n_wrong)));
    count_misplaced<<<8 * mb_n_processors(), 256>>>(*plan, n_wrong);
    CUDA(cudaMemcpy(&found, n_wrong, sizeof(found), cudaMemcpyDeviceToHost));
    CUDA(cudaFree(n_wrong));
    if (found)
        complain("large plan", "misplaced rows", (double)found);
    const double us = is_timed ? time_graph(launch_plan, &t, flush) : 0;
    printf("%11lld %6d %-10s %9.1f us, %6.0f GB/s of 16 bytes a row, workspace %.1f MB\n", (long long)n_rows,
           n_experts,
           ids == ONE_EXPERT ? "one expert"
           : ids == RAGGED   ? "ragged"
                             : "uniform",
           us, us > 0 ? 16e-3 * (double)n_rows / us : 0, 1e-6 * (double)t.workspace_bytes);
    release_all("large plan");
}

static void time_all(void *flush) {
    printf("empty graph %.2f us\n", time_graph(launch_empty, NULL, flush));
    printf("      T      H    route     plan route+plan    tiles  quantize     front  front+fp8\n");
    static const int tokens[] = {1, 4, 16, 32, 64, 128, 256, 704, 4096, 32768};
    for (int i = 0; i < COUNT(tokens); i++)
        time_tokens(tokens[i], tokens[i] == 32768 ? 4096 : 2048, flush);
}

static void time_large_plans(int with_huge, void *flush) {
    time_large_plan(3000000, 50000, RAGGED, flush, 1);
    time_large_plan(150000000, 50000, RAGGED, flush, 1);
    time_large_plan(150000000, 50000, ONE_EXPERT, flush, 1);
    time_large_plan(150000000, 4000, RAGGED, flush, 1);
    time_large_plan(150000000, 128, RAGGED, flush, 1);
    if (with_huge) {
        time_large_plan(INT32_MAX, 50000, UNIFORM, flush, 1);
        time_large_plan(INT32_MAX, 128, UNIFORM, flush, 1);
    }
}

static void check_all(int is_small) {
    for (int i = 0; i < COUNT(route_shapes); i++)
        check_route_alone(&route_shapes[i]);
    for (int i = 0; i < COUNT(plan_shapes); i++)
        check_plan_alone(&plan_shapes[i]);
    for (int i = 0; i < COUNT(large_plan_shapes) && !is_small; i++)
        check_plan_alone(&large_plan_shapes[i]);
    for (int i = 0; i < COUNT(quantize_shapes); i++)
        check_quantize_alone(&quantize_shapes[i]);
    for (int i = 0; i < COUNT(tiles_shapes); i++)
        check_tiles_alone(&tiles_shapes[i]);
    for (int i = 0; i < COUNT(front_shapes); i++)
        check_front(&front_shapes[i]);
    check_refusals();
}

int main(int argc, char **argv) {
    int is_small = 0, is_check = 0, is_huge = 0, is_plans = 0;
    for (int i = 1; i < argc; i++) {
        is_small |= strcmp(argv[i], "--small") == 0;
        is_check |= strcmp(argv[i], "--check") == 0;
        is_huge |= strcmp(argv[i], "--huge") == 0;
        is_plans |= strcmp(argv[i], "--plans") == 0;
    }
    if (!is_plans)
        check_all(is_small);
    void *flush = allocate(FLUSH_BYTES);
    if (!is_small && !is_check && !is_plans)
        time_all(flush);
    if (!is_small && !is_check)
        time_large_plans(is_huge, flush);
    CUDA(cudaFree(flush));
    printf("%s\n", wrong ? "WRONG" : "all right");
    return wrong > 0;
}
