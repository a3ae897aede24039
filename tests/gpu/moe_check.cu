/*
 * moe_check.cu - checks and times the MoE layer on a GPU; one list of cases for both.
 *
 *   moe_check [--only T] [--dtype NAME] [--check] [--small] [--bare] [--parts] [--picked] [--musts]
 *             [--output FILE] [--date YYYY-MM-DD] [--commit ID]
 *
 * Every case runs in every kind (kinds.cuh) with every tile row that suits it, on fresh random data with
 * poisoned outputs and workspace: the plan and the router exactly against the host, the output of up to
 * SAMPLES tokens against naive kernels, every element written, the second run bitwise equal to the first, the
 * forward that routes by itself bitwise equal to the one that is given ids, three tokens alone bitwise equal
 * to the same tokens among all, and all tile rows bitwise equal to each other; of few tokens also with ids
 * that repeat, and layers one after another in a graph. fp8 is judged against a reference that quantises x
 * and h the same way; how far it is from one that does not is printed too. Then no tokens and wrong
 * arguments. The forward given router logits is timed as a graph's replay (timing.cuh). Exit status 1 when
 * anything is wrong.
 *
 * --check times nothing, --small leaves out the cases that are timed (for compute-sanitizer), --bare poisons
 * nothing (for its initcheck), --picked runs only the tile row that the operator would choose, --parts times
 * the forward's kernels one after another, --musts prints what must be reached beside each time.
 */
#include "experts_checks.cuh"
#include "moe_few_checks.cuh"
#include "moe_host_checks.cuh"
#include "moe_musts.cuh"
#include "moe_refusals.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/moe/experts/launch_sm90.h"
#include "ops/moe/experts/pick.h"
#include "timing.cuh"

/* Kinds that a shape is timed in. */
#define ONE(kind) (1u << (kind))
#define BOTH_FP8 (ONE(FP8_TENSOR) | ONE(FP8_BLOCK))

/* A case's data come from its place in the list: new ones go to the end. */
static const shape shapes[] = {
    {1, 64, 16, 1, 1, 128, 0, MB_ACT_SWIGLU, RANDOM, 0},
    {3, 64, 32, 4, 1, 64, 0, MB_ACT_SWIGLU, RANDOM, F16_BESIDE_FP8},
    {5, 208, 72, 7, 3, 128, 0, MB_ACT_GEGLU, RANDOM, BIAS | RESIDUAL},
    {7, 80, 48, 9, 4, 32, 0, MB_ACT_GELU, RANDOM, SHARED | BF16_LOGITS | F16_BESIDE_FP8},
    {9, 48, 32, 9, 9, 128, 0, MB_ACT_RELU, RANDOM, BIAS | NO_RENORMALIZE},
    {17, 176, 56, 33, 5, 32, 0, MB_ACT_REGLU, RANDOM, NAN_LOGITS},
    {33, 144, 48, 8, 2, 128, 0, MB_ACT_RELU2, RANDOM, BIAS | RESIDUAL | F16_BESIDE_FP8},
    {33, 64, 32, 1024, 32, 128, 0, MB_ACT_RELU, RANDOM, NO_RENORMALIZE},
    {40, 120, 40, 24, 3, 64, 0, MB_ACT_GELU, RANDOM, BIAS | SHARED | IN_PLACE | TOPK_SOFTMAX},
    {70, 272, 88, 160, 6, 32, 0, MB_ACT_SWIGLU, RANDOM,
     RESIDUAL | SHARED | BF16_LOGITS | NO_RENORMALIZE | F16_BESIDE_FP8},
    {130, 256, 128, 60, 4, 128, 0, MB_ACT_SWIGLU, SHARD, BIAS | RESIDUAL},
    {300, 320, 200, 12, 2, 64, 0, MB_ACT_REGLU, SAME_EXPERTS, IN_PLACE | TOPK_SOFTMAX | F16_BESIDE_FP8},
    {600, 96, 64, 11, 1, 128, 0, MB_ACT_SWIGLU, SAME_EXPERTS, SHARED},
    {1500, 128, 64, 160, 6, 128, 0, MB_ACT_SILU, RANDOM, NAN_LOGITS | F16_BESIDE_FP8},
    {2111, 336, 104, 16, 8, 32, 0, MB_ACT_SWIGLU, SHARD, 0},
    {1, 2048, 768, 128, 8, 128, ONE(BF16) | ONE(FP16) | ONE(TF32) | BOTH_FP8, MB_ACT_SWIGLU, RANDOM, 0},
    {2, 2048, 768, 128, 8, 128, ONE(BF16), MB_ACT_SWIGLU, RANDOM, 0},
    {4, 2048, 768, 128, 8, 128, ONE(BF16) | BOTH_FP8, MB_ACT_SWIGLU, RANDOM, 0},
    {8, 2048, 768, 128, 8, 128, ONE(BF16), MB_ACT_SWIGLU, RANDOM, 0},
    {16, 2048, 768, 128, 8, 128, ONE(BF16) | ONE(TF32) | ONE(FP32) | BOTH_FP8, MB_ACT_SWIGLU, RANDOM, 0},
    {64, 2048, 768, 128, 8, 128, ONE(BF16) | BOTH_FP8, MB_ACT_SWIGLU, RANDOM, 0},
    {256, 2048, 768, 128, 8, 128, ONE(BF16) | BOTH_FP8, MB_ACT_SWIGLU, RANDOM, 0},
    {704, 2048, 768, 128, 8, 128, ONE(N_KINDS) - 1, MB_ACT_SWIGLU, RANDOM, 0},
    {1500, 2048, 768, 128, 8, 128, ONE(BF16) | BOTH_FP8, MB_ACT_SWIGLU, RANDOM, 0},
    {2048, 2048, 768, 128, 8, 128, ONE(BF16) | BOTH_FP8, MB_ACT_SWIGLU, RANDOM, 0},
    {4096, 2048, 768, 128, 8, 128, ONE(BF16) | ONE(FP16) | ONE(TF32) | BOTH_FP8, MB_ACT_SWIGLU, RANDOM, 0},
    {16384, 2048, 768, 128, 8, 128, ONE(BF16) | BOTH_FP8, MB_ACT_SWIGLU, RANDOM, 0},
    {4096, 4096, 1024, 128, 8, 128, ONE(BF16) | BOTH_FP8, MB_ACT_SWIGLU, RANDOM, 0},
    {32768, 4096, 1024, 128, 8, 128, ONE(BF16) | BOTH_FP8, MB_ACT_SWIGLU, RANDOM, 0},
    {16384, 4096, 1024, 256, 8, 128, ONE(BF16) | BOTH_FP8, MB_ACT_SWIGLU, RANDOM, 0},
    {1, 4096, 1536, 128, 8, 128, ONE(BF16), MB_ACT_SWIGLU, RANDOM, 0},
    {97, 3072, 1536, 160, 6, 128, ONE(BF16), MB_ACT_SWIGLU, RANDOM, 0},
    {41, 1424, 656, 5, 3, 32, 0, MB_ACT_SWIGLU, RANDOM, BIAS | F16_BESIDE_FP8},
    {19, 656, 1296, 3, 2, 128, 0, MB_ACT_GEGLU, RANDOM, RESIDUAL},
    {4, 80, 40, 128, 8, 128, 0, MB_ACT_SWIGLU, RANDOM, BIAS | BF16_LOGITS | F16_BESIDE_FP8},
    {3, 96, 48, 160, 6, 64, 0, MB_ACT_SWIGLU, SHARD, RESIDUAL | TOPK_SOFTMAX},
    {2, 64, 32, 256, 16, 128, 0, MB_ACT_SWIGLU, RANDOM, NAN_LOGITS | NO_RENORMALIZE},
    {4, 144, 104, 9, 4, 128, 0, MB_ACT_GEGLU, SAME_EXPERTS, SHARED},
    {1, 64, 32, 16, 4, 128, 0, MB_ACT_SWIGLU, SHARD, RESIDUAL | NAN_LOGITS}, /* no expert is ours */
    {2, 64, 32, 300, 3, 128, 0, MB_ACT_SWIGLU, RANDOM, 0},
    {512, 2048, 768, 128, 8, 128, ONE(BF16) | ONE(FP8_BLOCK), MB_ACT_SWIGLU, RANDOM, 0},
    {1024, 2048, 768, 128, 8, 128, ONE(BF16) | ONE(FP8_BLOCK), MB_ACT_SWIGLU, RANDOM, 0},
};

/* The operator's own choice, where there are no tile rows to choose from (fp32). */
enum { NO_TILE = -1 };

typedef struct options {
    int only, check_only, small, bare, parts, picked, musts;
    const char *dtype, *output, *date, *commit;
} options;

static size_t workspace_of(const mb_moe_forward_args *f, int tile) {
    size_t bytes = 0;
    MB(tile == NO_TILE ? mb_moe_forward_sm90_workspace(f, &bytes)
                       : mb_moe_forward_sm90_tile_workspace(f, tile, &bytes));
    return bytes;
}

static mb_status run_forward(const mb_moe_forward_args *f, int tile, void *workspace, size_t workspace_bytes,
                             mb_stream stream) {
    return tile == NO_TILE ? mb_moe_forward_sm90(f, workspace, workspace_bytes, stream)
                           : mb_moe_forward_sm90_tile(f, tile, workspace, workspace_bytes, stream);
}

static mb_moe_steps steps_of(const mb_moe_forward_args *f, int tile, void *workspace) {
    mb_arena arena = {(char *)workspace, SIZE_MAX, 0, 0, 0};
    return mb_moe_forward_sm90_layout(f, tile, mb_n_processors(), &arena);
}

static double output_difference(const problem *p, const float *reference) {
    float *found = download_rows(p->forward.out, p->n_samples, p->stride, p->s.H, p->forward.dtype);
    const double difference = calc_diff(found, reference, (int64_t)p->n_samples * p->s.H);
    free(found);
    return difference;
}

static const void *row_of(const problem *p, const void *matrix, int64_t row) {
    return matrix ? (const char *)matrix + (size_t)(row * p->s.H) * mb_dtype_bytes(p->forward.dtype) : NULL;
}

/* The first, middle and last token, each as a batch of one, against its row of out. */
static void check_alone(const problem *p, int tile, void *workspace, size_t workspace_bytes) {
    const int64_t H = p->s.H, tokens[] = {0, p->s.T / 2, p->s.T - 1};
    const size_t row_bytes = (size_t)H * mb_dtype_bytes(p->forward.dtype);
    void *out = allocate(row_bytes);
    for (int i = 0; i < 3; i++) {
        mb_moe_forward_args one = p->forward;
        one.n_tokens = 1;
        one.x = row_of(p, one.x, tokens[i]);
        one.residual = row_of(p, one.residual, tokens[i]);
        one.shared = row_of(p, one.shared, tokens[i]);
        one.weights += tokens[i] * p->s.K;
        one.ids += tokens[i] * p->s.K;
        one.out = out;
        CUDA(cudaMemset(out, 0xff, row_bytes));
        MB(run_forward(&one, tile, workspace, workspace_bytes, NULL));
        double n = differences(out, row_of(p, p->forward.out, tokens[i]), H, one.dtype);
        if (n > 0)
            complain(p->name, "a token alone differs from itself among others, elements", n);
    }
    CUDA(cudaFree(out));
}

/* The forward that runs the router itself, against the output, ids, weights and flag of calls apart. */
static void check_routed(const problem *p, int tile, const void *expected, void *workspace,
                         size_t workspace_bytes, int poison) {
    const int64_t n = (int64_t)p->s.T * p->s.K;
    const size_t n_bytes = sizeof(int32_t) * (size_t)n;
    int32_t *ids = (int32_t *)download(p->route.ids, n_bytes);
    int32_t *nan_flag = (int32_t *)download(p->nan_flag, sizeof(int32_t));
    void *weights = allocate(n_bytes);
    CUDA(cudaMemset(p->nan_flag, 0, sizeof(int32_t)));
    CUDA(cudaMemcpy(weights, p->route.weights, n_bytes, cudaMemcpyDeviceToDevice));
    if (poison) {
        CUDA(cudaMemset(p->route.ids, 0xff, n_bytes));
        CUDA(cudaMemset(p->route.weights, 0xff, n_bytes));
        CUDA(cudaMemset(workspace, 0x3f, workspace_bytes));
    }
    mb_moe_forward_args f = fresh_forward(p, poison);
    f.route = &p->route;
    MB(run_forward(&f, tile, workspace, workspace_bytes, NULL));
    CUDA(cudaDeviceSynchronize());
    const double n_out = differences(expected, f.out, (int64_t)p->s.T * p->s.H, f.dtype);
    if (n_out > 0)
        complain(p->name, "elements that the forward with its router computes otherwise", n_out);
    const double n_weights = differences(weights, p->route.weights, n, MB_F32);
    if (n_weights > 0)
        complain(p->name, "weights that the forward's router computes otherwise", n_weights);
    int32_t *found = (int32_t *)download(p->route.ids, n_bytes);
    int32_t *found_flag = (int32_t *)download(p->nan_flag, sizeof(int32_t));
    if (*found_flag != *nan_flag)
        complain(p->name, "nan_flag of the forward's router", *found_flag);
    if (memcmp(ids, found, n_bytes) != 0) {
        complain(p->name, "ids that the forward's router computes otherwise", 0);
        CUDA(cudaMemcpy(p->route.ids, ids, n_bytes, cudaMemcpyHostToDevice));
    }
    free(ids);
    free(nan_flag);
    free(found);
    free(found_flag);
    CUDA(cudaFree(weights));
}

/* The forward that chooses its tile row, against what the rows gave. */
static void check_own_choice(const problem *p, int poison) {
    const size_t workspace_bytes = workspace_of(&p->forward, NO_TILE);
    void *workspace = allocate(workspace_bytes);
    check_routed(p, NO_TILE, p->other_tile_out, workspace, workspace_bytes, poison);
    CUDA(cudaFree(workspace));
}

/* ---- Times */

typedef struct timed_call {
    const mb_moe_forward_args *forward;
    int tile, n_steps; /* 0: all of it */
    mb_moe_steps steps;
    void *workspace;
    size_t workspace_bytes;
} timed_call;

static const char *step_names[] = {"front", "experts", "reduce"};

static void launch(const void *context, cudaStream_t stream) {
    const timed_call *c = (const timed_call *)context;
    const mb_moe_steps *s = &c->steps;
    if (c->n_steps == 0)
        MB(run_forward(c->forward, c->tile, c->workspace, c->workspace_bytes, stream));
    if (c->n_steps >= 1)
        MB(mb_moe_front_sm90(&s->front, s->front_workspace, s->front_workspace_bytes, stream));
    if (c->n_steps >= 2)
        MB(mb_experts_launch(&s->experts, &s->layout, stream));
    if (c->n_steps >= 3)
        MB(mb_moe_reduce_experts_sm90(&s->reduce, stream));
}

static void time_forward(const problem *p, int tile, const options *o, void *workspace,
                         size_t workspace_bytes, void *flush, const char *card) {
    const shape *s = &p->s;
    mb_moe_forward_args f = p->forward;
    f.route = &p->route;
    timed_call call = {&f, tile, 0, {}, workspace, workspace_bytes};
    const int picked = tile == NO_TILE || tile == mb_moe_pick(mb_moe_family_of(p->k->weights),
                                                              (int64_t)s->T * s->K, f.n_local_experts);
    const double us = time_graph(launch, &call, flush);
    const double flops = 6.0 * (double)p->n_rows * s->H * s->I;
    const double bytes = 3.0 * p->n_hit * s->H * s->I * (double)mb_dtype_bytes(p->k->weights);
    const double floor = floor_us(p->k, bytes, flops);
    printf("  %9.1f us %7.1f TFLOP/s %7.0f GB/s  floor %8.1f us, %5.1f %% %s", us, flops / us * 1e-6,
           bytes / us * 1e-3, floor, 100 * floor / us, picked ? "<- picked" : "");
    if (o->musts)
        print_must(p, us);
    if (picked && o->parts && tile != NO_TILE) {
        double before = 0;
        call.steps = steps_of(&f, tile, workspace);
        for (call.n_steps = 1; call.n_steps <= 3; call.n_steps++) {
            const double until = time_graph(launch, &call, flush);
            printf("\n%56s until %-8s %9.1f us  (+%.1f)", "", step_names[call.n_steps - 1], until,
                   until - before);
            before = until;
        }
    }
    FILE *json = picked && o->output ? fopen(o->output, "a") : NULL;
    if (!json)
        return;
    fprintf(
        json,
        "{\"bench\":\"moe\",\"who\":\"moebius\",\"commit\":\"%s\",\"card\":\"%s\",\"date\":\"%s\","
        "\"dtype\":\"%s\",\"shape\":{\"T\":%d,\"H\":%d,\"I\":%d,\"E\":%d,\"K\":%d},\"tile\":\"%s\","
        "\"us\":%.1f,\"tflops\":%.1f,\"gbps\":%.0f,\"floor_us\":%.1f,\"how\":\"graph of forward given router "
        "logits, L2 flushed, median of %d\"}\n",
        o->commit, card, o->date, p->k->name, s->T, s->H, s->I, s->E, s->K,
        tile == NO_TILE ? "fp32" : mb_moe_tiles[tile].name, us, flops / us * 1e-6, bytes / us * 1e-3, floor,
        REPLAYS);
    fclose(json);
}

/* ---- One case with one tile row */

static void run_tile(problem *p, int tile, const int32_t *ids, const int32_t *offsets, const options *o,
                     void *flush, const char *card) {
    const shape *s = &p->s;
    const char *tile_name = tile == NO_TILE ? "fp32" : mb_moe_tiles[tile].name;
    mb_moe_forward_args f = p->forward;
    const size_t workspace_bytes = workspace_of(&f, tile);
    const int64_t n_out = (int64_t)s->T * s->H;
    void *workspace = allocate(workspace_bytes), *first = allocate(out_bytes(p));
    for (int repeat = 0; repeat < 2; repeat++) {
        f = fresh_forward(p, !o->bare);
        if (!o->bare)
            CUDA(cudaMemset(workspace, repeat ? 0x7f : 0xff, workspace_bytes));
        CUDA(cudaDeviceSynchronize());
        MB(run_forward(&f, tile, workspace, workspace_bytes, NULL));
        CUDA(cudaDeviceSynchronize());
        if (repeat == 0)
            CUDA(cudaMemcpy(first, f.out, out_bytes(p), cudaMemcpyDeviceToDevice));
    }
    const mb_moe_steps steps = steps_of(&f, tile, workspace);
    if (tile != NO_TILE)
        check_plan(p, &steps.front.plan, ids, offsets);
    if (!o->bare)
        check_experts_alone(p, &steps, offsets[f.n_local_experts]);
    double n = differences(first, f.out, n_out, f.dtype);
    if (n > 0)
        complain(p->name, "elements not written, NaN, or not equal on repeat", n);
    const double difference = output_difference(p, p->reference);
    if (!(difference <= p->k->largest_difference))
        complain(p->name, tile_name, difference);
    printf("%-10s %6d %5d %5d %4d %2d  %-14s diff %.1e", p->k->name, s->T, s->H, s->I, s->E, s->K, tile_name,
           difference);
    if (p->unquantised)
        printf(" (unquantised %.1e)", output_difference(p, p->unquantised));
    check_alone(p, tile, workspace, workspace_bytes);
    check_routed(p, tile, first, workspace, workspace_bytes, !o->bare);
    if (!p->other_tile_out) {
        p->other_tile_out = first;
        first = NULL;
    } else if ((n = differences(p->other_tile_out, f.out, n_out, f.dtype)) > 0)
        complain(p->name, "elements that another tile row computes otherwise", n);
    if (s->timed && !o->check_only)
        time_forward(p, tile, o, workspace, workspace_bytes, flush, card);
    printf("\n");
    fflush(stdout);
    CUDA(cudaFree(workspace));
    CUDA(cudaFree(first));
}

/* Timing a tile row far from its regime teaches nothing; checking it on a small shape does. */
static int suits(const problem *p, int tile) {
    const mb_moe_tile *t = &mb_moe_tiles[tile];
    if (t->family != mb_moe_family_of(p->k->weights))
        return 0;
    if (!p->s.timed)
        return 1;
    int32_t largest = 0;
    for (int i = 0; i < MB_MOE_N_TILES; i++)
        if (mb_moe_tiles[i].family == t->family && mb_moe_tiles[i].max_tokens > largest)
            largest = mb_moe_tiles[i].max_tokens;
    const double rows = (double)p->s.T * p->s.K / p->s.E;
    return (rows <= 1.5 * t->max_tokens || 3 * t->max_tokens >= 2 * largest) &&
           (t->max_tokens <= 32 || rows * 10 >= t->max_tokens);
}

static void run_case(const kind *k, const shape *s, uint64_t seed, const options *o, void *flush,
                     const char *card) {
    problem p;
    make_problem(&p, k, s, seed);
    int32_t *ids = check_route(&p), *offsets = count_rows(&p, ids);
    const int picked =
        mb_moe_pick(mb_moe_family_of(k->weights), (int64_t)s->T * s->K, p.forward.n_local_experts);
    if (k->math == MB_F32_EXACT)
        run_tile(&p, NO_TILE, ids, offsets, o, flush, card);
    else
        for (int tile = 0; tile < MB_MOE_N_TILES; tile++)
            if (o->picked ? tile == picked : suits(&p, tile))
                run_tile(&p, tile, ids, offsets, o, flush, card);
    check_own_choice(&p, !o->bare);
    if (s->T <= 4 && !s->timed && k->math != MB_F32_EXACT) {
        check_repeated_ids(&p, !o->bare);
        check_chain(&p);
    }
    if (s->features & BIAS) {
        check_no_tokens(&p);
        check_refusals(&p);
    }
    free(ids);
    free(offsets);
    free_problem(&p);
}

static int parse(int argc, char **argv, options *o) {
    struct {
        const char *name;
        int *flag;
        const char **text;
    } all[] = {
        {"--check", &o->check_only, NULL}, {"--small", &o->small, NULL},   {"--bare", &o->bare, NULL},
        {"--parts", &o->parts, NULL},      {"--picked", &o->picked, NULL}, {"--musts", &o->musts, NULL},
        {"--dtype", NULL, &o->dtype},      {"--output", NULL, &o->output}, {"--date", NULL, &o->date},
        {"--commit", NULL, &o->commit},
    };
    const size_t n = sizeof(all) / sizeof(all[0]);
    for (int i = 1; i < argc; i++) {
        size_t at = 0;
        while (at < n && strcmp(argv[i], all[at].name) != 0)
            at++;
        if (at < n && all[at].flag)
            *all[at].flag = 1;
        else if (at < n && i + 1 < argc)
            *all[at].text = argv[++i];
        else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
            o->only = atoi(argv[++i]);
        else {
            fprintf(stderr, "moe_check: %s is no option, or lacks its value\n", argv[i]);
            return 0;
        }
    }
    return 1;
}

int main(int argc, char **argv) {
    options o = {};
    o.date = o.commit = "";
    if (!parse(argc, argv, &o))
        return 2;
    cudaDeviceProp card;
    CUDA(cudaGetDeviceProperties(&card, 0));
    printf("%s\n                T     H     I    E  K\n", card.name);
    void *flush = allocate(FLUSH_BYTES);
    int n_cases = 0;
    for (int k = 0; k < N_KINDS; k++)
        for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
            const shape *s = &shapes[i];
            if ((o.dtype && strcmp(o.dtype, kinds[k].name) != 0) || (o.only && s->T != o.only) ||
                (s->timed && (o.small || !(s->timed & ONE(k)))))
                continue;
            run_case(&kinds[k], s, 1000 * (i + 1), &o, flush, card.name);
            n_cases++;
        }
    CUDA(cudaFree(flush));
    printf("%s\n", wrong ? "WRONG" : n_cases ? "all right" : "no such case");
    return wrong != 0 || n_cases == 0;
}
