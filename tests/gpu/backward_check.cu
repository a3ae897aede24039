/*
 * backward_check.cu - mb_moe_backward on the GPU.
 *
 *   small cases   all results against the C reference: every activation, with and without biases, both
 *                 16-bit types
 *   grid          E 32 .. 256, H 768 .. 4096, I 256 .. 2048, K 1 .. 16, and some odd sizes, against naive
 *                 kernels in fp64: all of dx, dweights and the biases' gradients, sampled rows of dw13, dw2
 *   in each case  the same bits with p saved and without, of a token in any company; sums that are added to;
 *                 guards behind all outputs and the workspace; no element of an output left unwritten
 *   features      what is NULL, graphs, no tokens, refusals
 *
 * --small, for compute-sanitizer: every kernel with each pair of types, and the edges of tiles once
 * (sanitized_shapes); one saved p, the refusals, no tokens, and one replay of a graph. --only N: case N
 * of the grid.
 */
#include "backward_reference.cuh"
#include "capture.cuh"

/* The published bar of the mean difference in bf16, and fp16's by its eight times finer step. */
static double mean_limit(mb_dtype dtype) {
    return dtype == MB_BF16 ? 3e-2 : 4e-3;
}
static const double CALC_DIFF_LIMIT = 1e-4;

static double worst_mean[N_GRADIENTS], worst_calc_diff[N_GRADIENTS];

static void judge(const backward_problem *p, int which, const difference *d) {
    const double mean = d->apart == 0 ? 0 : d->apart / d->size;
    const double calc = d->squares_apart == 0 ? 0 : d->squares_apart / d->squares;
    char what[64];
    snprintf(what, sizeof(what), "%s: mean relative difference", gradient_names[which]);
    if (!(mean <= mean_limit(p->s.dtype)))
        complain(p->name, what, mean);
    snprintf(what, sizeof(what), "%s: calc_diff", gradient_names[which]);
    if (!(calc <= CALC_DIFF_LIMIT))
        complain(p->name, what, calc);
    worst_mean[which] = fmax(worst_mean[which], mean);
    worst_calc_diff[which] = fmax(worst_calc_diff[which], calc);
}

/* ---- Running ------------------------------------------------------------------------------------------- */

static void run(const backward_problem *p, const mb_moe_backward_args *args) {
    MB(mb_moe_backward(args, p->workspace, p->workspace_bytes, NULL));
    CUDA(cudaDeviceSynchronize());
}

typedef struct prints {
    print of[N_GRADIENTS];
} prints;

/* Of all outputs, none of which may have poison. */
static prints take_prints(const backward_problem *p, const char *when) {
    prints all = {};
    for (int i = 0; i < N_GRADIENTS; i++)
        if (p->out[i].memory) {
            all.of[i] = print_of(&p->out[i]);
            if (all.of[i].n_poison > 0) {
                printf("%s of %s\n", gradient_names[i], when);
                complain(p->name, "elements that nothing or NaN was written to", (double)all.of[i].n_poison);
            }
        }
    return all;
}

static void expect_same(const backward_problem *p, const char *what, const prints *a, const prints *b) {
    for (int i = 0; i < N_GRADIENTS; i++)
        if (p->out[i].memory && a->of[i].sum != b->of[i].sum) {
            printf("%s: %s\n", gradient_names[i], what);
            complain(p->name, what, i);
        }
}

/* p by the grouped GEMM alone. Rows that do not exist keep poison. */
static void *gemm_p(const backward_problem *p) {
    const mb_moe_backward_args *a = &p->args;
    const size_t n_rows = (size_t)(a->n_tokens * a->top_k), bytes = n_rows * (size_t)p->width13 * 2;
    void *out = allocate(bytes);
    CUDA(cudaMemset(out, 0xff, bytes));
    mb_moe_plan_args plan = {};
    plan.ids = a->ids;
    plan.offsets = (int32_t *)allocate(((size_t)a->n_local_experts + 1) * sizeof(int32_t));
    plan.row_token = (int32_t *)allocate(n_rows * sizeof(int32_t));
    plan.token_row = (int32_t *)allocate(n_rows * sizeof(int32_t));
    plan.n_tokens = a->n_tokens;
    plan.top_k = a->top_k;
    plan.n_experts = a->n_experts;
    plan.first_expert = a->first_expert;
    plan.n_local_experts = a->n_local_experts;
    mb_grouped_gemm_args gemm = {};
    gemm.a = a->x;
    gemm.row_index = plan.row_token;
    gemm.offsets = plan.offsets;
    gemm.b = a->w13;
    gemm.bias = a->bias13;
    gemm.out = out;
    gemm.n_rows = (int64_t)n_rows;
    gemm.dtype = gemm.out_dtype = gemm.bias_dtype = a->dtype;
    gemm.activation = MB_ACT_NONE;
    const size_t plan_bytes = bytes_of(mb_moe_plan_workspace, &plan);
    const size_t gemm_bytes = bytes_of(mb_grouped_gemm_workspace, &gemm);
    void *workspace = allocate(plan_bytes > gemm_bytes ? plan_bytes : gemm_bytes);
    MB(mb_moe_plan(&plan, workspace, plan_bytes, NULL));
    MB(mb_grouped_gemm(&gemm, workspace, gemm_bytes, NULL));
    CUDA(cudaDeviceSynchronize());
    const void *all[] = {plan.offsets, plan.row_token, plan.token_row, workspace};
    for (const void *one : all)
        CUDA(cudaFree((void *)one));
    return out;
}

/* p as the forward keeps it. */
static void *forward_p(const backward_problem *p) {
    const mb_moe_backward_args *a = &p->args;
    const size_t bytes = (size_t)(a->n_tokens * a->top_k) * (size_t)p->width13 * 2;
    mb_moe_forward_args f = {};
    f.x = a->x;
    f.weights = (float *)a->weights;
    f.ids = (int32_t *)a->ids;
    f.w13 = a->w13;
    f.w2 = a->w2;
    f.bias13 = a->bias13;
    f.bias2 = a->bias2;
    f.out = allocate((size_t)(a->n_tokens * a->hidden) * 2);
    f.n_tokens = a->n_tokens;
    f.hidden = a->hidden;
    f.intermediate = a->intermediate;
    f.top_k = a->top_k;
    f.n_experts = a->n_experts;
    f.first_expert = a->first_expert;
    f.n_local_experts = a->n_local_experts;
    f.dtype = a->dtype;
    f.activation = a->activation;
    f.p = allocate(bytes);
    CUDA(cudaMemset(f.p, 0xff, bytes));
    const size_t workspace_bytes = bytes_of(mb_moe_forward_workspace, &f);
    void *workspace = allocate(workspace_bytes);
    MB(mb_moe_forward(&f, workspace, workspace_bytes, NULL));
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaFree(workspace));
    CUDA(cudaFree(f.out));
    return f.p;
}

static prints run_fresh(const backward_problem *p, const char *when) {
    reset_outputs(p, 0);
    run(p, &p->args);
    check_guards(p);
    return take_prints(p, when);
}

static void check_with_p(const backward_problem *p, const char *what, void *saved, const prints *expected) {
    mb_moe_backward_args args = p->args;
    args.p = saved;
    reset_outputs(p, 0);
    run(p, &args);
    check_guards(p);
    const prints found = take_prints(p, what);
    expect_same(p, what, &found, expected);
    CUDA(cudaFree(saved));
}

static void check_saved_p(const backward_problem *p, const prints *expected) {
    check_with_p(p, "other bits with p of the grouped GEMM", gemm_p(p), expected);
    check_with_p(p, "other bits with p of the forward", forward_p(p), expected);
}

static void check_added(const backward_problem *p, const reference *r) {
    mb_moe_backward_args args = p->args;
    args.accumulate = 1;
    reset_outputs(p, 1);
    run(p, &args);
    check_guards(p);
    take_prints(p, "a call that adds");
    for (int i = 0; i < N_GRADIENTS; i++)
        if (p->out[i].memory) {
            const difference d = compare_gradient(p, r, i, 1);
            judge(p, i, &d);
        }
}

/* Tokens first .. first + n - 1 alone have the rows of dx and dweights that they have among all. */
static void check_company(const backward_problem *p, const void *dx, const float *dweights, int64_t first,
                          int64_t n) {
    const int64_t H = p->s.H, K = p->s.K, size = mb_dtype_bytes(p->s.dtype);
    mb_moe_backward_args a = p->args;
    a.n_tokens = n;
    a.x = (const char *)a.x + first * H * size;
    a.d_out = (const char *)a.d_out + first * H * size;
    a.ids += first * K;
    a.weights += first * K;
    a.dw13 = a.dw2 = a.dbias13 = a.dbias2 = NULL;
    CUDA(cudaMemset(a.dx, 0xff, (size_t)(n * H * size)));
    CUDA(cudaMemset(a.dweights, 0xff, (size_t)(n * K) * sizeof(float)));
    CUDA(cudaMemset(p->workspace, 0xff, p->workspace_bytes));
    run(p, &a);
    const double apart = differences(a.dx, (const char *)dx + first * H * size, n * H, p->s.dtype);
    const double others = differences(a.dweights, dweights + first * K, n * K, MB_F32);
    if (apart > 0)
        complain(p->name, "elements of dx that depend on the company", apart);
    if (others > 0)
        complain(p->name, "elements of dweights that depend on the company", others);
}

/* A copy on the GPU. */
static void *copied(const gradient *g) {
    void *copy = allocate(gradient_bytes(g));
    CUDA(cudaMemcpy(copy, g->memory, gradient_bytes(g), cudaMemcpyDeviceToDevice));
    return copy;
}

/* ---- The grid ------------------------------------------------------------------------------------------ */

static void check_case(const layer_shape *s, pools *all, uint64_t seed) {
    backward_problem p;
    make_backward_problem(&p, s, all, seed);
    const prints first = run_fresh(&p, "the first call");
    const reference r = make_reference(&p);
    for (int i = 0; i < N_GRADIENTS; i++)
        if (p.out[i].memory) {
            const difference d = compare_gradient(&p, &r, i, 0);
            judge(&p, i, &d);
        }
    void *dx = copied(&p.out[DX]), *dweights = copied(&p.out[DWEIGHTS]);
    check_saved_p(&p, &first);
    if (s->accumulate)
        check_added(&p, &r);
    check_company(&p, dx, (const float *)dweights, s->T / 3, s->T > 3 ? 2 : 1);
    check_company(&p, dx, (const float *)dweights, 0, (s->T + 1) / 2);
    CUDA(cudaFree(dx));
    CUDA(cudaFree(dweights));
    free_reference(&r);
    free_backward_problem(&p);
}

enum { GRID = 112, ODD = 6, BF16_CASES = 72 };

/* Every value of a side meets every value of the others that its period is prime to, and most of the rest. */
static layer_shape grid_shape(int i) {
    static const int Es[] = {32, 64, 128, 256}, Hs[] = {768, 4096, 1536, 1160, 2048};
    static const int Is[] = {256, 768, 2048, 360, 1024, 512}, Ks[] = {8, 1, 16, 4, 10, 2, 6};
    layer_shape s = {};
    s.E = Es[(i + i / 4) % 4];
    s.H = Hs[i % 5];
    s.I = Is[(i / 2 + i / 12) % 6];
    s.K = Ks[(i / 3) % 7];
    s.activation = (mb_activation)(i % 7);
    s.routing = (enum backward_routing)((i / 7 + i) % N_ROUTINGS);
    s.has_bias = i / 7 % 2;
    s.dtype = i < BF16_CASES ? MB_BF16 : MB_F16;
    s.grad_dtype = i / 3 % 2 ? s.dtype : MB_F32;
    s.accumulate = i / 5 % 2;
    const int most = 2400 / s.K;
    s.T = 17 + i * 61 % 640;
    s.T = s.T < most ? s.T : most;
    return s;
}

static const layer_shape odd_shapes[ODD] = {
    /* 1000 rows an expert; one row; one expert; all sizes as small as they may be; very many experts */
    {2000, 768, 256, 32, 16, MB_ACT_SWIGLU, UNIFORM, MB_F16, MB_F32, 1, 1},
    {1, 2048, 768, 128, 1, MB_ACT_GEGLU, UNIFORM, MB_F16, MB_F16, 1, 0},
    {700, 1024, 512, 1, 1, MB_ACT_SWIGLU, UNIFORM, MB_F16, MB_F32, 0, 0},
    {33, 16, 16, 7, 3, MB_ACT_RELU2, UNIFORM, MB_F16, MB_F32, 1, 1},
    {300, 64, 32, 50000, 4, MB_ACT_SWIGLU, UNIFORM, MB_F16, MB_F16, 1, 0},
    {257, 776, 264, 12, 12, MB_ACT_REGLU, SKEWED, MB_F16, MB_F32, 0, 0},
};

static void check_grid(int only) {
    layer_shape shapes[GRID + ODD];
    for (int i = 0; i < GRID; i++)
        shapes[i] = grid_shape(i);
    memcpy(shapes + GRID, odd_shapes, sizeof(odd_shapes));
    pools all = make_pools(only >= 0 ? shapes + only : shapes, only >= 0 ? 1 : GRID + ODD);
    for (int i = 0; i < GRID + ODD; i++)
        if (only < 0 || only == i)
            check_case(&shapes[i], &all, 1000 + 10 * (uint64_t)i);
    CUDA(cudaFree(all.matrices));
    CUDA(cudaFree(all.gradients));
}

/* ---- Against the C reference --------------------------------------------------------------------------- */

/* The call on copies of everything on the host; the outputs' host memory goes to `out`. */
static void run_on_host(const backward_problem *p, void **out) {
    const mb_moe_backward_args *a = &p->args;
    const int64_t T = a->n_tokens, H = a->hidden, E = a->n_local_experts;
    mb_moe_backward_args host = *a;
    void *copies[] = {download(a->x, (size_t)(T * H) * 2),
                      download(a->d_out, (size_t)(T * H) * 2),
                      download(a->w13.data, (size_t)(E * p->width13 * H) * 2),
                      download(a->w2.data, (size_t)(E * H * a->intermediate) * 2),
                      a->bias13 ? download(a->bias13, (size_t)(E * p->width13) * 2) : NULL,
                      a->bias2 ? download(a->bias2, (size_t)(E * H) * 2) : NULL};
    host.x = copies[0], host.d_out = copies[1], host.w13.data = copies[2], host.w2.data = copies[3];
    host.bias13 = copies[4], host.bias2 = copies[5];
    host.ids = p->host_ids, host.weights = p->host_weights;
    for (int i = 0; i < N_GRADIENTS; i++)
        out[i] = p->out[i].memory ? host_allocate(gradient_bytes(&p->out[i])) : NULL;
    host.dx = out[DX], host.dweights = (float *)out[DWEIGHTS], host.dw13 = out[DW13], host.dw2 = out[DW2];
    host.dbias13 = out[DBIAS13], host.dbias2 = out[DBIAS2];
    const size_t bytes = (bytes_of(mb_moe_backward_workspace, &host) + 255) / 256 * 256;
    void *workspace = aligned_alloc(256, bytes ? bytes : 256);
    if (!workspace)
        exit(1);
    MB(mb_moe_backward(&host, workspace, bytes, NULL));
    free(workspace);
    for (void *copy : copies)
        free(copy);
}

static float host_value(mb_dtype dtype, const void *array, int64_t i) {
    if (dtype == MB_F32)
        return ((const float *)array)[i];
    return dtype == MB_BF16 ? __bfloat162float(((const __nv_bfloat16 *)array)[i])
                            : __half2float(((const __half *)array)[i]);
}

static void check_against_c(const layer_shape *s, pools *all, uint64_t seed, int has_saved_p) {
    backward_problem p;
    void *expected[N_GRADIENTS];
    make_backward_problem(&p, s, all, seed);
    const prints first = run_fresh(&p, "the first call");
    run_on_host(&p, expected);
    for (int i = 0; i < N_GRADIENTS; i++) {
        if (!p.out[i].memory)
            continue;
        void *found = download(p.out[i].memory, gradient_bytes(&p.out[i]));
        difference d = {};
        for (int64_t at = 0; at < p.out[i].n; at++) {
            const double x = host_value(p.out[i].dtype, expected[i], at);
            const double y = host_value(p.out[i].dtype, found, at);
            d.size += fabs(x);
            d.apart += fabs(x - y);
            d.squares_apart += (x - y) * (x - y);
            d.squares += x * x + y * y;
        }
        judge(&p, i, &d);
        free(found);
        free(expected[i]);
    }
    if (has_saved_p)
        check_saved_p(&p, &first);
    free_backward_problem(&p);
}

static const layer_shape sanitized_shapes[] = {
    /* H of two tiles, the second of 8; I of two tiles, more choices than share a read of d_out; a shard;
     * one expert, whose rows are two steps of the weights' gradients */
    {20, 264, 24, 6, 3, MB_ACT_SWIGLU, HOLES, MB_BF16, MB_F32, 1, 0},
    {12, 24, 264, 12, 9, MB_ACT_GEGLU, UNIFORM, MB_F16, MB_F16, 1, 0},
    {20, 40, 40, 8, 2, MB_ACT_RELU2, OF_SHARD, MB_F16, MB_F32, 1, 0},
    {70, 48, 32, 1, 1, MB_ACT_GELU, UNIFORM, MB_BF16, MB_BF16, 0, 0},
};
enum { SANITIZED = sizeof(sanitized_shapes) / sizeof(sanitized_shapes[0]) };

static void check_sanitized_cases(void) {
    pools all = make_pools(sanitized_shapes, SANITIZED);
    for (int i = 0; i < SANITIZED; i++)
        check_against_c(&sanitized_shapes[i], &all, 500 + 10 * (uint64_t)i, i == 2);
    CUDA(cudaFree(all.matrices));
    CUDA(cudaFree(all.gradients));
}

static void check_small_cases(void) {
    layer_shape shapes[28];
    for (int i = 0; i < 28; i++) {
        layer_shape s = {40 + i,  128,     64,     8,         1 + i % 3, (mb_activation)(i % 7),
                         UNIFORM, MB_BF16, MB_F32, i / 7 % 2, 0};
        s.routing = (enum backward_routing)(i % N_ROUTINGS);
        s.dtype = i < 14 ? MB_BF16 : MB_F16;
        s.grad_dtype = i % 3 ? MB_F32 : s.dtype;
        s.H += i % 5 * 8;
        s.I += i % 4 * 8;
        shapes[i] = s;
    }
    pools all = make_pools(shapes, 28);
    for (int i = 0; i < 28; i++)
        check_against_c(&shapes[i], &all, 10 * (uint64_t)i, 1);
    CUDA(cudaFree(all.matrices));
    CUDA(cudaFree(all.gradients));
}

/* ---- Features ------------------------------------------------------------------------------------------ */

static void check_null_outputs(const backward_problem *p, const prints *expected) {
    for (int which = 0; which < N_GRADIENTS; which++) {
        mb_moe_backward_args a = p->args;
        reset_outputs(p, 0);
        a.dx = which == DX ? a.dx : NULL;
        a.dweights = which == DWEIGHTS ? a.dweights : NULL;
        a.dw13 = which == DW13 ? a.dw13 : NULL;
        a.dw2 = which == DW2 ? a.dw2 : NULL;
        a.dbias13 = which == DBIAS13 ? a.dbias13 : NULL;
        a.dbias2 = which == DBIAS2 ? a.dbias2 : NULL;
        run(p, &a);
        check_guards(p);
        if (print_of(&p->out[which]).sum != expected->of[which].sum)
            complain(p->name, "other bits when nothing else is asked for", which);
    }
}

static void launch_problem(const void *context, cudaStream_t stream) {
    const backward_problem *p = (const backward_problem *)context;
    MB(mb_moe_backward(&p->args, p->workspace, p->workspace_bytes, stream));
}

static void check_graph(const backward_problem *p, const prints *expected, int n_replays) {
    const captured c = capture(launch_problem, p);
    for (int i = 0; i < n_replays; i++) {
        reset_outputs(p, 0);
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaGraphLaunch(c.replay, c.stream));
        CUDA(cudaStreamSynchronize(c.stream));
        const prints found = take_prints(p, "a graph's replay");
        expect_same(p, "other bits in a graph", &found, expected);
    }
    free_captured(&c);
}

static void check_no_tokens(const backward_problem *p) {
    mb_moe_backward_args a = p->args;
    a.n_tokens = 0;
    reset_outputs(p, 0);
    run(p, &a);
    for (const gradient &g : p->out) {
        if (!g.memory || !g.is_added)
            continue;
        unsigned char *host = (unsigned char *)download(g.memory, gradient_bytes(&g));
        for (size_t i = 0; i < gradient_bytes(&g); i++)
            if (host[i] != 0) {
                complain(p->name, "without tokens a gradient is not zero", (double)i);
                break;
            }
        free(host);
    }
    reset_outputs(p, 1);
    print before[N_GRADIENTS];
    for (int i = DW13; i < N_GRADIENTS; i++)
        before[i] = print_of(&p->out[i]);
    a.accumulate = 1;
    run(p, &a);
    for (int i = DW13; i < N_GRADIENTS; i++)
        if (before[i].sum != print_of(&p->out[i]).sum)
            complain(p->name, "without tokens something was added", i);
    check_guards(p);
}

#define REFUSED(status, change)                                                                        \
    do {                                                                                               \
        mb_moe_backward_args a = p->args;                                                              \
        change;                                                                                        \
        expect(p->name, #change, mb_moe_backward(&a, p->workspace, p->workspace_bytes, NULL), status); \
    } while (0)

static void check_refusals(const backward_problem *p) {
    REFUSED(MB_ERR_UNSUPPORTED, a.dtype = a.grad_dtype = a.w13.dtype = a.w2.dtype = MB_F32);
    REFUSED(MB_ERR_ARGUMENT, a.w13.dtype = MB_F32);
    REFUSED(MB_ERR_ARGUMENT, a.hidden = a.w13.cols = a.w2.rows = 20);
    REFUSED(MB_ERR_ARGUMENT, a.x = (const char *)a.x + 2);
    REFUSED(MB_ERR_ARGUMENT, a.dw13 = (char *)a.dw13 + 4);
    REFUSED(MB_ERR_ARGUMENT, a.d_out = NULL);
    REFUSED(MB_ERR_ARGUMENT, a.dx = (void *)a.x);
    expect(p->name, "a workspace of one byte less",
           mb_moe_backward(&p->args, p->workspace, p->workspace_bytes - 1, NULL), MB_ERR_CAPACITY);
}

static void check_features(int is_small) {
    static const layer_shape shapes[] = {
        {150, 264, 136, 24, 3, MB_ACT_SWIGLU, SKEWED, MB_BF16, MB_F32, 1, 0},
        {15, 40, 24, 4, 2, MB_ACT_SWIGLU, SKEWED, MB_BF16, MB_F32, 1, 0},
    };
    const layer_shape s = shapes[is_small];
    pools all = make_pools(&s, 1);
    backward_problem p;
    make_backward_problem(&p, &s, &all, 5);
    const prints first = run_fresh(&p, "the first call");
    if (!is_small) {
        const prints second = run_fresh(&p, "the second call");
        expect_same(&p, "other bits the second time", &first, &second);
        check_null_outputs(&p, &first);
    }
    check_graph(&p, &first, is_small ? 1 : 3);
    check_no_tokens(&p);
    check_refusals(&p);
    free_backward_problem(&p);
    CUDA(cudaFree(all.matrices));
    CUDA(cudaFree(all.gradients));
}

int main(int argc, char **argv) {
    int is_small = 0, only = -1;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--small") == 0)
            is_small = 1;
        else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
            only = atoi(argv[++i]);
        else {
            fprintf(stderr, "backward_check: %s is no option; --small, --only N\n", argv[i]);
            return 1;
        }
    }
    if (only < 0) {
        check_features(is_small);
        if (is_small)
            check_sanitized_cases();
        else
            check_small_cases();
    }
    if (!is_small)
        check_grid(only < GRID + ODD ? only : -1);
    for (int i = 0; i < N_GRADIENTS; i++)
        printf("%-9s worst mean relative difference %.2e, calc_diff %.2e\n", gradient_names[i], worst_mean[i],
               worst_calc_diff[i]);
    printf(wrong ? "WRONG: %d\n" : "all right\n", wrong);
    return wrong > 0;
}
