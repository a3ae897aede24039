/*
 * moe_check.cu - checks and times the MoE operators on a GPU; one list of cases for both.
 *
 *   moe_check [--only T] [--check] [--small] [--bare] [--parts] [--picked] [--json FILE] [--date YYYY-MM-DD]
 *             [--commit ID]
 *
 * Every case runs with every tile row that suits it, on fresh random data with poisoned outputs and
 * workspace: the plan and the router exactly against the host, the output of up to SAMPLES tokens against a
 * naive kernel (calc_diff <= 1e-5), every element written, the second run bitwise equal to the first, three
 * tokens alone bitwise equal to the same tokens among all, and all tile rows bitwise equal to each other.
 * Then no tokens and wrong arguments. Router plus forward are timed as a graph's replay with the L2 cache
 * flushed in between, the median of REPLAYS. Exit status 1 when anything is wrong.
 *
 * --check times nothing, --small leaves out the cases that are timed (for compute-sanitizer), --bare poisons
 * nothing (for its initcheck), --picked runs only the tile row that the operator would choose.
 */
#include "moe_problem.cuh"
#include "ops/moe/moe_pick.h"

enum { REPLAYS = 31, WARM_UP = 3 };
static const size_t FLUSH_BYTES = 256u << 20;
static const double LARGEST_DIFFERENCE = 1e-5;

static const shape shapes[] = {
    {1, 64, 16, 1, 1, 0, MB_ACT_SWIGLU, RANDOM, 0},
    {3, 64, 32, 4, 1, 0, MB_ACT_SWIGLU, RANDOM, 0},
    {5, 208, 72, 7, 3, 0, MB_ACT_GEGLU, RANDOM, BIAS | RESIDUAL},
    {7, 80, 48, 9, 4, 0, MB_ACT_GELU, RANDOM, SHARED | BF16_LOGITS},
    {9, 48, 32, 9, 9, 0, MB_ACT_RELU, RANDOM, BIAS | NO_RENORMALIZE},
    {17, 176, 56, 33, 5, 0, MB_ACT_REGLU, RANDOM, NAN_LOGITS},
    {33, 144, 48, 8, 2, 0, MB_ACT_RELU2, RANDOM, BIAS | RESIDUAL},
    {33, 64, 32, 1024, 32, 0, MB_ACT_RELU, RANDOM, NO_RENORMALIZE},
    {40, 120, 40, 24, 3, 0, MB_ACT_GELU, RANDOM, BIAS | SHARED | IN_PLACE | TOPK_SOFTMAX},
    {70, 272, 88, 160, 6, 0, MB_ACT_SWIGLU, RANDOM, RESIDUAL | SHARED | BF16_LOGITS | NO_RENORMALIZE},
    {130, 256, 128, 60, 4, 0, MB_ACT_SWIGLU, SHARD, BIAS | RESIDUAL},
    {300, 320, 200, 12, 2, 0, MB_ACT_REGLU, SAME_EXPERTS, IN_PLACE | TOPK_SOFTMAX},
    {600, 96, 64, 11, 1, 0, MB_ACT_SWIGLU, SAME_EXPERTS, SHARED},
    {1500, 128, 64, 160, 6, 0, MB_ACT_SILU, RANDOM, NAN_LOGITS},
    {2111, 336, 104, 16, 8, 0, MB_ACT_SWIGLU, SHARD, 0},
    {1, 2048, 768, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {2, 2048, 768, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {4, 2048, 768, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {8, 2048, 768, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {16, 2048, 768, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {64, 2048, 768, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {256, 2048, 768, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {704, 2048, 768, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {1500, 2048, 768, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {4096, 2048, 768, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {16384, 2048, 768, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {4096, 4096, 1024, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {32768, 4096, 1024, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {16384, 4096, 1024, 256, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {1, 4096, 1536, 128, 8, 1, MB_ACT_SWIGLU, RANDOM, 0},
    {97, 3072, 1536, 160, 6, 1, MB_ACT_SWIGLU, RANDOM, 0},
};

static int wrong; /* checks that failed */

static void complain(const problem *p, const char *what, double value) {
    printf("WRONG T=%d H=%d I=%d E=%d K=%d: %s (%g)\n", p->s.T, p->s.H, p->s.I, p->s.E, p->s.K, what, value);
    wrong++;
}

static float bf16_value(uint16_t bits16) {
    uint32_t bits = (uint32_t)bits16 << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* The router against a plain search on the host. */
static void check_route(problem *p, int32_t *ids) {
    const int T = p->s.T, E = p->s.E, K = p->s.K;
    const int is_bf16 = p->route.logits_dtype == MB_BF16;
    const size_t n_bytes = (size_t)T * E * (is_bf16 ? 2 : 4);
    unsigned char *raw = (unsigned char *)malloc(n_bytes);
    float *logits = (float *)malloc(sizeof(float) * (size_t)T * E);
    float *weights = (float *)malloc(sizeof(float) * (size_t)T * K);
    int32_t nan_flag;
    CUDA(cudaMemcpy(raw, p->logits, n_bytes, cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(weights, p->route.weights, sizeof(float) * (size_t)T * K, cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(ids, p->route.ids, sizeof(int32_t) * (size_t)T * K, cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(&nan_flag, p->nan_flag, sizeof(nan_flag), cudaMemcpyDeviceToHost));
    int has_nan = 0;
    for (size_t i = 0; i < (size_t)T * E; i++) {
        logits[i] = is_bf16 ? bf16_value(((uint16_t *)raw)[i]) : ((float *)raw)[i];
        if (isnan(logits[i])) { /* chosen last */
            logits[i] = -INFINITY;
            has_nan = 1;
        }
    }
    int n_bad = nan_flag != has_nan;
    for (int t = 0; t < T; t++) {
        const float *row = logits + (size_t)t * E;
        char taken[1024] = {0};
        double chosen = 0, all = 0, value[32];
        float largest = 0;
        for (int k = 0; k < K; k++) {
            int best = -1;
            for (int e = 0; e < E; e++)
                if (!taken[e] && (best < 0 || row[e] > row[best]))
                    best = e;
            taken[best] = 1;
            n_bad += ids[t * K + k] != best;
            largest = k == 0 ? row[best] : largest;
            value[k] = row[best] == largest ? 1 : exp((double)row[best] - largest);
            chosen += value[k];
        }
        for (int e = 0; e < E; e++)
            all += row[e] == largest ? 1 : exp((double)row[e] - largest);
        const double sum = p->route.renormalize || p->route.order == MB_ROUTE_TOPK_SOFTMAX ? chosen : all;
        for (int k = 0; k < K; k++)
            n_bad += !(fabs(weights[t * K + k] - value[k] / sum) < 1e-6);
    }
    if (n_bad)
        complain(p, "route", n_bad);
    free(raw);
    free(logits);
    free(weights);
}

/* The plan against a counting sort on the host. */
static void check_plan(problem *p, const mb_moe_steps *steps, const int32_t *ids) {
    const int64_t R = (int64_t)p->s.T * p->s.K;
    const int n_local = p->forward.n_local_experts;
    int32_t *offsets = (int32_t *)malloc(sizeof(int32_t) * (size_t)(n_local + 1));
    int32_t *row_token = (int32_t *)malloc(sizeof(int32_t) * (size_t)R);
    int32_t *token_row = (int32_t *)malloc(sizeof(int32_t) * (size_t)R);
    int32_t *next = (int32_t *)calloc((size_t)n_local + 1, sizeof(int32_t));
    CUDA(cudaMemcpy(offsets, steps->plan.offsets, sizeof(int32_t) * (size_t)(n_local + 1),
                    cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(token_row, steps->plan.token_row, sizeof(int32_t) * (size_t)R, cudaMemcpyDeviceToHost));
    int n_bad = 0;
    for (int64_t i = 0; i < R; i++) {
        int e = ids[i] - p->forward.first_expert;
        if (e >= 0 && e < n_local)
            next[e + 1]++;
    }
    p->n_hit = 0;
    for (int e = 0; e < n_local; e++) {
        p->n_hit += next[e + 1] > 0;
        next[e + 1] += next[e];
        n_bad += offsets[e] != next[e];
    }
    p->n_rows = next[n_local];
    CUDA(cudaMemcpy(row_token, steps->plan.row_token, sizeof(int32_t) * (size_t)p->n_rows,
                    cudaMemcpyDeviceToHost)); /* behind them it is not written */
    n_bad += offsets[n_local] != next[n_local];
    for (int64_t i = 0; i < R; i++) {
        int e = ids[i] - p->forward.first_expert;
        int32_t row = e >= 0 && e < n_local ? next[e]++ : -1;
        n_bad += token_row[i] != row;
        if (row >= 0)
            n_bad += row_token[row] != i / p->s.K;
    }
    if (n_bad)
        complain(p, "plan", n_bad);
    free(offsets);
    free(row_token);
    free(token_row);
    free(next);
}

/* 1 - 2xy / (x^2 + y^2) over the sampled tokens. */
static double output_difference(const problem *p) {
    const int64_t H = p->s.H;
    uint16_t *row = (uint16_t *)malloc(2 * (size_t)H);
    double xy = 0, xx = 0, yy = 0;
    for (int s = 0; s < p->n_samples; s++) {
        CUDA(cudaMemcpy(row, (const uint16_t *)p->forward.out + s * p->stride * H, 2 * (size_t)H,
                        cudaMemcpyDeviceToHost));
        for (int64_t i = 0; i < H; i++) {
            double x = bf16_value(row[i]), y = p->reference[s * H + i];
            xy += x * y;
            xx += x * x;
            yy += y * y;
        }
    }
    free(row);
    return xx + yy == 0 ? 0 : 1 - 2 * xy / (xx + yy);
}

/* Elements that differ or are NaN in either. */
static __global__ void count_differences(const uint16_t *a, const uint16_t *b, int64_t n,
                                         unsigned long long *out) {
    unsigned long long mine = 0;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        mine += a[i] != b[i] || (a[i] & 0x7fff) > 0x7f80;
    if (mine)
        atomicAdd(out, mine);
}

static double differences(const void *a, const void *b, int64_t n) {
    unsigned long long *on_device = (unsigned long long *)allocate(sizeof(*on_device)), found = 0;
    CUDA(cudaMemset(on_device, 0, sizeof(*on_device)));
    count_differences<<<1024, 256>>>((const uint16_t *)a, (const uint16_t *)b, n, on_device);
    CUDA(cudaMemcpy(&found, on_device, sizeof(found), cudaMemcpyDeviceToHost));
    CUDA(cudaFree(on_device));
    return (double)found;
}

typedef struct options {
    int only, check_only, small, bare, parts, picked;
    const char *json, *date, *commit;
} options;

/* The forward's arguments; a residual in place is put into the output first. */
static mb_moe_forward_args prepare(const problem *p, const options *o) {
    mb_moe_forward_args f = p->forward;
    const size_t out_bytes = (size_t)p->s.T * p->s.H * 2;
    if (!o->bare)
        CUDA(cudaMemset(f.out, 0xff, out_bytes));
    if (p->s.features & IN_PLACE) {
        CUDA(cudaMemcpy(f.out, f.residual, out_bytes, cudaMemcpyDeviceToDevice));
        f.residual = f.out;
    }
    return f;
}

static const void *row_of(const void *matrix, int64_t row, int64_t n_columns) {
    return matrix ? (const uint16_t *)matrix + row * n_columns : NULL;
}

/* The first, middle and last token, each as a batch of one, against its row of out. */
static void check_alone(const problem *p, int tile, void *workspace, size_t workspace_bytes) {
    const int64_t H = p->s.H, tokens[] = {0, p->s.T / 2, p->s.T - 1};
    void *out = allocate((size_t)H * 2);
    for (int i = 0; i < 3; i++) {
        mb_moe_forward_args one = p->forward;
        one.n_tokens = 1;
        one.x = row_of(one.x, tokens[i], H);
        one.residual = row_of(one.residual, tokens[i], H);
        one.shared = row_of(one.shared, tokens[i], H);
        one.weights += tokens[i] * p->s.K;
        one.ids += tokens[i] * p->s.K;
        one.out = out;
        CUDA(cudaMemset(out, 0xff, (size_t)H * 2));
        MB(mb_moe_forward_sm90_tile(&one, tile, workspace, workspace_bytes, NULL));
        double n = differences(out, row_of(p->forward.out, tokens[i], H), H);
        if (n > 0)
            complain(p, "a token alone differs from itself among others, elements", n);
    }
    CUDA(cudaFree(out));
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Router and the first n_steps kernels groups of the forward: 1 route, 2 plan, 3 experts, 4 reduce. */
static double time_steps(const problem *p, const mb_moe_steps *steps, int n_steps, void *flush) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    cudaEvent_t start, stop;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaEventCreate(&start));
    CUDA(cudaEventCreate(&stop));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    MB(mb_moe_route_sm90(&p->route, stream));
    if (n_steps >= 2)
        MB(mb_moe_plan_sm90(&steps->plan, &steps->experts.schedule, steps->plan_workspace,
                            steps->plan_workspace_bytes, stream));
    if (n_steps >= 3)
        MB(mb_moe_experts_sm90(&steps->experts, stream));
    if (n_steps >= 4)
        MB(mb_moe_reduce_sm90(&steps->reduce, stream));
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&replay, graph, 0));
    float times[REPLAYS];
    for (int i = -WARM_UP; i < REPLAYS; i++) {
        CUDA(cudaMemsetAsync(flush, i & 0xff, FLUSH_BYTES, stream));
        CUDA(cudaEventRecord(start, stream));
        CUDA(cudaGraphLaunch(replay, stream));
        CUDA(cudaEventRecord(stop, stream));
        CUDA(cudaStreamSynchronize(stream));
        if (i >= 0)
            CUDA(cudaEventElapsedTime(&times[i], start, stop));
    }
    qsort(times, REPLAYS, sizeof(float), ascending);
    CUDA(cudaGraphExecDestroy(replay));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaEventDestroy(start));
    CUDA(cudaEventDestroy(stop));
    CUDA(cudaStreamDestroy(stream));
    return 1e3 * times[REPLAYS / 2];
}

static void run_tile(problem *p, int tile, const int32_t *ids, const options *o, void *flush,
                     const char *card) {
    const shape *s = &p->s;
    mb_moe_forward_args f = p->forward;
    const size_t workspace_bytes = mb_moe_forward_sm90_tile_workspace(&f, tile);
    const int64_t n_out = (int64_t)s->T * s->H;
    void *workspace = allocate(workspace_bytes), *first = allocate((size_t)n_out * 2);
    mb_moe_steps steps;
    for (int repeat = 0; repeat < 2; repeat++) {
        f = prepare(p, o);
        if (!o->bare)
            CUDA(cudaMemset(workspace, repeat ? 0x7f : 0xff, workspace_bytes));
        CUDA(cudaDeviceSynchronize());
        MB(mb_moe_forward_sm90_tile(&f, tile, workspace, workspace_bytes, NULL));
        CUDA(cudaDeviceSynchronize());
        if (repeat == 0) {
            mb_moe_forward_sm90_steps(&f, tile, workspace, &steps);
            check_plan(p, &steps, ids);
            CUDA(cudaMemcpy(first, f.out, (size_t)n_out * 2, cudaMemcpyDeviceToDevice));
        }
    }
    double n = differences(first, f.out, n_out);
    if (n > 0)
        complain(p, "elements not written, NaN, or not equal on repeat", n);
    const double difference = output_difference(p);
    if (!(difference <= LARGEST_DIFFERENCE))
        complain(p, mb_moe_tiles[tile].name, difference);
    check_alone(p, tile, workspace, workspace_bytes);
    if (!p->other_tile_out) {
        p->other_tile_out = first;
        first = NULL;
    } else if ((n = differences(p->other_tile_out, f.out, n_out)) > 0)
        complain(p, "elements that another tile row computes otherwise", n);

    printf("%6d %5d %5d %4d %2d  %-10s diff %.1e", s->T, s->H, s->I, s->E, s->K, mb_moe_tiles[tile].name,
           difference);
    if (s->timed && !o->check_only) {
        const int picked = tile == mb_moe_pick(s->T, s->K, f.n_local_experts);
        const double us = time_steps(p, &steps, 4, flush);
        const double flops = 6.0 * p->n_rows * s->H * s->I;
        const double bytes = 6.0 * p->n_hit * s->H * s->I;
        const double floor_us = fmax(bytes / 3.0e6, flops / 700e6);
        printf("  %9.1f us %7.1f TFLOP/s %7.0f GB/s  floor %8.1f us, %5.1f %% %s", us, flops / us * 1e-6,
               bytes / us * 1e-3, floor_us, 100 * floor_us / us, picked ? "<- picked" : "");
        if (picked && o->parts) {
            double before = 0;
            static const char *names[] = {"route", "plan", "experts", "reduce"};
            for (int n_steps = 1; n_steps <= 4; n_steps++) {
                double until = time_steps(p, &steps, n_steps, flush);
                printf("\n%44s until %-8s %9.1f us  (+%.1f)", "", names[n_steps - 1], until, until - before);
                before = until;
            }
        }
        FILE *json = picked && o->json ? fopen(o->json, "a") : NULL;
        if (json) {
            fprintf(
                json,
                "{\"bench\":\"moe\",\"who\":\"moebius\",\"commit\":\"%s\",\"card\":\"%s\",\"date\":\"%s\","
                "\"dtype\":\"bf16\",\"shape\":{\"T\":%d,\"H\":%d,\"I\":%d,\"E\":%d,\"K\":%d},\"tile\":\"%s\","
                "\"us\":%.1f,\"tflops\":%.1f,\"gbps\":%.0f,\"floor_us\":%.1f,\"how\":\"graph of route and "
                "forward, L2 flushed, median of %d\"}\n",
                o->commit, card, o->date, s->T, s->H, s->I, s->E, s->K, mb_moe_tiles[tile].name, us,
                flops / us * 1e-6, bytes / us * 1e-3, floor_us, REPLAYS);
            fclose(json);
        }
    }
    printf("\n");
    fflush(stdout);
    CUDA(cudaFree(workspace));
    CUDA(cudaFree(first));
}

/* Timing a tile row far from its regime teaches nothing; checking it on a small shape does. */
static int suits(const shape *s, int tile) {
    if (!s->timed)
        return 1;
    const double rows = (double)s->T * s->K / s->E;
    const int max_tokens = mb_moe_tiles[tile].max_tokens;
    return (rows <= 1.5 * max_tokens || tile == MB_MOE_N_TILES - 1) &&
           (max_tokens <= 32 || rows * 10 >= max_tokens);
}

/* ---- no tokens, and what must be refused */

static void expect(const problem *p, const char *what, mb_status found, mb_status expected) {
    if (found == expected && (found == MB_OK || strlen(mb_last_error()) > 20))
        return;
    printf("%s: status %d: %s\n", what, (int)found, found == MB_OK ? "" : mb_last_error());
    complain(p, what, (double)found);
}

/* No tokens: nothing is written, and no pointer is needed. */
static void check_no_tokens(const problem *p) {
    mb_moe_forward_args f = p->forward;
    mb_moe_route_args r = p->route;
    const int64_t n_out = (int64_t)p->s.T * p->s.H;
    void *before = allocate((size_t)n_out * 2);
    CUDA(cudaMemcpy(before, f.out, (size_t)n_out * 2, cudaMemcpyDeviceToDevice));
    f.n_tokens = r.n_tokens = 0;
    expect(p, "forward of no tokens", mb_moe_forward_sm90(&f, NULL, 0, NULL), MB_OK);
    f.x = f.ids = NULL;
    f.weights = NULL;
    f.out = NULL;
    expect(p, "forward of no tokens at NULL", mb_moe_forward_sm90(&f, NULL, 0, NULL), MB_OK);
    r.ids = NULL;
    r.weights = NULL;
    expect(p, "route of no tokens", mb_moe_route_sm90(&r, NULL), MB_OK);
    CUDA(cudaDeviceSynchronize());
    if (differences(before, p->forward.out, n_out) > 0)
        complain(p, "no tokens, but something was written", 0);
    CUDA(cudaFree(before));
}

static void check_refusals(const problem *p) {
    const size_t workspace_bytes = mb_moe_forward_sm90_workspace(&p->forward);
    void *workspace = allocate(workspace_bytes);
#define REFUSED(status, change)                                                                \
    do {                                                                                       \
        mb_moe_forward_args f = p->forward;                                                    \
        f.change;                                                                              \
        expect(p, #change, mb_moe_forward_sm90(&f, workspace, workspace_bytes, NULL), status); \
    } while (0)
#define ROUTE_REFUSED(change)                                             \
    do {                                                                  \
        mb_moe_route_args r = p->route;                                   \
        r.change;                                                         \
        expect(p, #change, mb_moe_route_sm90(&r, NULL), MB_ERR_ARGUMENT); \
    } while (0)
    REFUSED(MB_ERR_UNSUPPORTED, dtype = MB_F16);
    REFUSED(MB_ERR_ARGUMENT, n_tokens = -1);
    REFUSED(MB_ERR_ARGUMENT, top_k = 33);
    REFUSED(MB_ERR_ARGUMENT, hidden = 20);
    REFUSED(MB_ERR_ARGUMENT, intermediate = 20);
    REFUSED(MB_ERR_ARGUMENT, n_local_experts = 0);
    REFUSED(MB_ERR_ARGUMENT, first_expert = -1);
    REFUSED(MB_ERR_ARGUMENT, first_expert = p->s.E);
    REFUSED(MB_ERR_ARGUMENT, activation = (mb_activation)99);
    REFUSED(MB_ERR_ARGUMENT, w13.rows = 8);
    REFUSED(MB_ERR_ARGUMENT, w2.count = 1000);
    REFUSED(MB_ERR_ARGUMENT, ids = NULL);
    REFUSED(MB_ERR_ARGUMENT, out = (void *)p->forward.x);
    REFUSED(MB_ERR_ARGUMENT, x = (const char *)p->forward.x + 2);
    REFUSED(MB_ERR_ARGUMENT, w2.data = (const char *)p->forward.w2.data + 2);
    ROUTE_REFUSED(top_k = 33);
    ROUTE_REFUSED(n_experts = 1025);
    ROUTE_REFUSED(logits_dtype = MB_F16);
    ROUTE_REFUSED(order = (mb_route_order)9);
    ROUTE_REFUSED(ids = NULL);
#undef REFUSED
#undef ROUTE_REFUSED
    expect(p, "workspace too small", mb_moe_forward_sm90(&p->forward, workspace, workspace_bytes - 1, NULL),
           MB_ERR_CAPACITY);
    CUDA(cudaFree(workspace));
    CUDA(cudaDeviceSynchronize()); /* nothing was launched that fails later */
}

int main(int argc, char **argv) {
    options o = {0, 0, 0, 0, 0, 0, NULL, "", ""};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--check") == 0)
            o.check_only = 1;
        else if (strcmp(argv[i], "--small") == 0)
            o.small = 1;
        else if (strcmp(argv[i], "--bare") == 0)
            o.bare = 1;
        else if (strcmp(argv[i], "--parts") == 0)
            o.parts = 1;
        else if (strcmp(argv[i], "--picked") == 0)
            o.picked = 1;
        else if (strcmp(argv[i], "--only") == 0)
            o.only = atoi(value), i++;
        else if (strcmp(argv[i], "--json") == 0)
            o.json = value, i++;
        else if (strcmp(argv[i], "--date") == 0)
            o.date = value, i++;
        else if (strcmp(argv[i], "--commit") == 0)
            o.commit = value, i++;
        else {
            fprintf(stderr, "moe_check: unknown option %s\n", argv[i]);
            return 2;
        }
    }
    cudaDeviceProp card;
    CUDA(cudaGetDeviceProperties(&card, 0));
    printf("%s\n     T     H     I    E  K\n", card.name);
    void *flush = allocate(FLUSH_BYTES);
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        const shape *s = &shapes[i];
        if ((o.only && s->T != o.only) || (o.small && s->timed))
            continue;
        problem p;
        make_problem(&p, s, 1000 * (i + 1));
        int32_t *ids = (int32_t *)malloc(sizeof(int32_t) * (size_t)s->T * s->K);
        check_route(&p, ids);
        for (int tile = 0; tile < MB_MOE_N_TILES; tile++)
            if (o.picked ? tile == mb_moe_pick(s->T, s->K, p.forward.n_local_experts) : suits(s, tile))
                run_tile(&p, tile, ids, &o, flush, card.name);
        if (s->features & BIAS) {
            check_no_tokens(&p);
            check_refusals(&p);
        }
        free(ids);
        free_problem(&p);
    }
    CUDA(cudaFree(flush));
    printf("%s\n", wrong ? "WRONG" : "all right");
    return wrong != 0;
}
