/*
 * simt_check.cu - checks and times the router GEMM, the exact fp32 grouped GEMM and the reduction on a GPU.
 *
 *   simt_check [--check] [--small]
 *
 * Inputs are a hash of seed and place, so the host knows every element; outputs are poisoned with NaN. The
 * reduction and the fp32 GEMM without an activation are compared bit for bit with the same chain of fmaf on
 * the host; all else with fp64 sums. Every case runs twice, bitwise equal; tokens alone give the bits that
 * they give among others. Wrong arguments must be refused with a sentence that names them. Times are graph
 * replays with 256 MiB written in between, the median of REPLAYS. Exit status 1 when anything is wrong.
 *
 * --check times nothing, --small runs the small cases only (for compute-sanitizer).
 */
#include "simt_refusals.cuh"
#include "simt_support.cuh"

/* ---- the reduction ---- */

typedef struct reduce_case {
    int T, H, K;
    mb_dtype dtype, out_dtype;
    int residual, shared, in_place, timed;
} reduce_case;

static void launch_reduce(const void *context, cudaStream_t stream) {
    MB(mb_moe_reduce_sm90((const mb_moe_reduce_args *)context, stream));
}

/* No rows: y is NULL, and residual and shared are all there is. */
static void check_reduce_of_no_rows(mb_moe_reduce_args args, const reduce_case *c, const array *residual,
                                    const array *shared, const char *name) {
    const int64_t n = (int64_t)c->T * c->H;
    const size_t out_bytes = mb_dtype_bytes(c->out_dtype) * (size_t)n;
    args.y = NULL;
    CUDA(cudaMemset((void *)args.token_row, 0xff, sizeof(int32_t) * (size_t)(c->T * c->K)));
    CUDA(cudaMemset(args.out, POISON, out_bytes));
    if (c->in_place)
        CUDA(cudaMemcpy(args.out, residual->data, out_bytes, cudaMemcpyDeviceToDevice));
    MB(mb_moe_reduce_sm90(&args, NULL));
    CUDA(cudaDeviceSynchronize());
    void *out = to_host(args.out, out_bytes);
    int64_t n_bad = 0;
    for (int64_t i = 0; i < n_samples(n); i++) {
        const int64_t place = sample(i, n);
        const float sum = (c->residual ? at(residual, place) : 0) + (c->shared ? at(shared, place) : 0);
        n_bad += !(stored(out, c->out_dtype, place) == rounded(sum, c->out_dtype));
    }
    expect(n_bad == 0, "elements of a sum of no rows are wrong", (double)n_bad, name);
    free(out);
}

static void check_reduce(const reduce_case *c, int is_timed) {
    char name[96];
    snprintf(name, sizeof(name), "reduce T %d H %d K %d %s to %s", c->T, c->H, c->K, mb_dtype_name(c->dtype),
             mb_dtype_name(c->out_dtype));
    const int64_t R = (int64_t)c->T * c->K, n = (int64_t)c->T * c->H;
    const size_t out_bytes = mb_dtype_bytes(c->out_dtype) * (size_t)n;
    array y = make(c->dtype, R * c->H, 4), weights = make(MB_F32, R, 1);
    array residual = make(c->out_dtype, n, 1), shared = make(c->out_dtype, n, 2);
    int32_t *token_row = (int32_t *)malloc(sizeof(int32_t) * (size_t)R);
    for (int64_t i = 0; i < R; i++)
        token_row[i] = (int32_t)i;
    for (int64_t i = R - 1; i > 0; i--) {
        const int64_t j = below(i + 1);
        const int32_t swapped = token_row[i];
        token_row[i] = token_row[j];
        token_row[j] = swapped;
    }
    for (int64_t i = 0; i < R && !c->timed; i += 1 + below(7))
        token_row[i] = -1;
    mb_moe_reduce_args args = {};
    args.y = y.data;
    args.weights = (const float *)weights.data;
    args.token_row = (const int32_t *)to_device(token_row, sizeof(int32_t) * (size_t)R);
    args.shared = c->shared ? shared.data : NULL;
    args.out = allocate(out_bytes);
    args.n_tokens = c->T;
    args.hidden = c->H;
    args.top_k = c->K;
    args.dtype = c->dtype;
    args.out_dtype = c->out_dtype;
    if (c->residual)
        args.residual = c->in_place ? args.out : residual.data;

    void *outs[2];
    for (int i = 0; i < 2; i++) {
        CUDA(cudaMemset(args.out, POISON, out_bytes));
        if (c->in_place)
            CUDA(cudaMemcpy(args.out, residual.data, out_bytes, cudaMemcpyDeviceToDevice));
        MB(mb_moe_reduce_sm90(&args, NULL));
        CUDA(cudaDeviceSynchronize());
        outs[i] = to_host(args.out, out_bytes);
    }
    expect(memcmp(outs[0], outs[1], out_bytes) == 0, "differs on repeat", 0, name);
    int64_t n_bad = 0;
    for (int64_t i = 0; i < n_samples(n); i++) {
        const int64_t place = sample(i, n), token = place / c->H, column = place % c->H;
        float sum = 0;
        if (c->residual)
            sum += at(&residual, place);
        if (c->shared)
            sum += at(&shared, place);
        for (int64_t k = token * c->K; k < (token + 1) * c->K; k++)
            if (token_row[k] >= 0)
                sum = fmaf(at(&weights, k), at(&y, (int64_t)token_row[k] * c->H + column), sum);
        n_bad += !(stored(outs[0], c->out_dtype, place) == rounded(sum, c->out_dtype));
    }
    expect(n_bad == 0, "elements are wrong", (double)n_bad, name);
    if (is_timed && c->timed) {
        const double us = timed(launch_reduce, &args);
        const double bytes = (double)R * c->H * mb_dtype_bytes(c->dtype) + (double)out_bytes;
        printf("%-56s %9.1f us %7.3f TB/s\n", name, us, bytes / us * 1e-6);
    }
    if (!c->timed)
        check_reduce_of_no_rows(args, c, &residual, &shared, name);
    void *all[] = {y.data, weights.data, residual.data, shared.data, (void *)args.token_row, args.out};
    for (void *one : all)
        CUDA(cudaFree(one));
    free(outs[0]);
    free(outs[1]);
    free(token_row);
}

/* ---- the router GEMM ---- */

typedef struct router_case {
    int T, H, E;
    mb_dtype dtype, weight_dtype;
    int bias, timed;
} router_case;

typedef struct router_run {
    mb_moe_router_gemm_args args;
    void *workspace;
    size_t workspace_bytes;
} router_run;

static void launch_router(const void *context, cudaStream_t stream) {
    const router_run *run = (const router_run *)context;
    MB(mb_moe_router_gemm_sm90(&run->args, run->workspace, run->workspace_bytes, stream));
}

/* The logits of tokens [first, first + n_tokens), on the host. */
static float *router_logits(const router_run *all, int64_t first, int64_t n_tokens) {
    router_run run = *all;
    run.args.x =
        (const char *)run.args.x + mb_dtype_bytes(run.args.dtype) * (size_t)(first * run.args.hidden);
    run.args.n_tokens = n_tokens;
    const size_t n_bytes = sizeof(float) * (size_t)(n_tokens * run.args.n_experts);
    CUDA(cudaMemset(run.args.logits, POISON, n_bytes));
    CUDA(cudaMemset(run.workspace, POISON, run.workspace_bytes));
    launch_router(&run, NULL);
    CUDA(cudaDeviceSynchronize());
    return (float *)to_host(run.args.logits, n_bytes);
}

static void check_router(const router_case *c, int is_timed) {
    char name[96];
    snprintf(name, sizeof(name), "router T %d H %d E %d %s x %s", c->T, c->H, c->E, mb_dtype_name(c->dtype),
             mb_dtype_name(c->weight_dtype));
    const int64_t T = c->T, H = c->H, E = c->E;
    array x = make(c->dtype, T * H, 1), weight = make(c->weight_dtype, E * H, 0.125f),
          bias = make(MB_F32, E, 1);
    router_run run = {};
    run.args.x = x.data;
    run.args.weight = weight.data;
    run.args.bias = c->bias ? bias.data : NULL;
    run.args.logits = (float *)allocate(sizeof(float) * (size_t)(T * E));
    run.args.n_tokens = T;
    run.args.hidden = c->H;
    run.args.n_experts = c->E;
    run.args.dtype = c->dtype;
    run.args.weight_dtype = c->weight_dtype;
    MB(mb_moe_router_gemm_sm90_workspace(&run.args, &run.workspace_bytes));
    run.workspace = allocate(run.workspace_bytes);
    float *first = router_logits(&run, 0, T), *second = router_logits(&run, 0, T);
    expect(memcmp(first, second, sizeof(float) * (size_t)(T * E)) == 0, "differs on repeat", 0, name);
    double worst = 0; /* error against the sum of the terms' magnitudes */
    for (int64_t i = 0; i < n_samples(T * E); i++) {
        const int64_t place = sample(i, T * E), token = place / E, expert = place % E;
        double sum = c->bias ? at(&bias, expert) : 0, magnitude = fabs(sum);
        for (int64_t h = 0; h < H; h++) {
            const double term = (double)at(&x, token * H + h) * at(&weight, expert * H + h);
            sum += term;
            magnitude += fabs(term);
        }
        const double error = fabs(first[place] - sum) / magnitude;
        worst = error <= worst ? worst : isnan(error) ? INFINITY : error;
    }
    expect(worst <= 0x1p-22, "worst error / sum of magnitudes", worst, name);
    const int64_t alone[][2] = {{0, 1},       {T / 2, 1},   {T - 1, 1}, {T / 3, 17},
                                {T / 5, 300}, {T / 7, 600}, {0, 5000}};
    for (const auto &range : alone) {
        if (range[0] + range[1] > T)
            continue;
        float *some = router_logits(&run, range[0], range[1]);
        expect(memcmp(some, first + range[0] * E, sizeof(float) * (size_t)(range[1] * E)) == 0,
               "tokens differ from the same tokens among all: this many", (double)range[1], name);
        free(some);
    }
    if (is_timed && c->timed) {
        const double us = timed(launch_router, &run);
        printf("%-56s %9.1f us %7.1f TFLOP/s, worst error %.1e\n", name, us, 2.0 * T * H * E / us * 1e-6,
               worst);
    }
    void *all[] = {x.data, weight.data, bias.data, run.args.logits, run.workspace};
    for (void *one : all)
        CUDA(cudaFree(one));
    free(first);
    free(second);
}

/* ---- the grouped GEMM ---- */

typedef struct gemm_case {
    int N, K, E, T, top_k; /* T > 0: T tokens' random choices; else group e has e % 5 * 33 rows */
    mb_activation activation;
    int bias, gather, row_weight, timed;
} gemm_case;

static void launch_gemm(const void *context, cudaStream_t stream) {
    const gemm_call *run = (const gemm_call *)context;
    MB(mb_grouped_gemm_f32_sm90(&run->args, run->tiles, run->n_tiles, run->max_tiles, stream));
}

static double activated(mb_activation activation, double v) {
    switch (activation) {
    case MB_ACT_SWIGLU:
    case MB_ACT_SILU:
        return v / (1 + exp(-v));
    case MB_ACT_GEGLU:
    case MB_ACT_GELU:
        return 0.5 * v * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    case MB_ACT_REGLU:
    case MB_ACT_RELU:
        return v > 0 ? v : 0;
    case MB_ACT_RELU2:
        return v > 0 ? v * v : 0;
    default:
        return v;
    }
}

/* Tiles of the groups on the host: a row between groups belongs to none, and one tile is empty. */
static int64_t cut(const gemm_case *c, mb_moe_token_tile **tiles, int32_t *row_group, int64_t *n_rows) {
    int32_t *sizes = (int32_t *)calloc((size_t)c->E, sizeof(int32_t));
    for (int e = 0; e < c->E && c->T == 0; e++)
        sizes[e] = e % 5 * 33;
    for (int64_t t = 0; t < c->T; t++) {
        char taken[1024] = {0};
        for (int k = 0; k < c->top_k;) {
            const int64_t e = below(c->E);
            k += !taken[e];
            sizes[e] += !taken[e];
            taken[e] = 1;
        }
    }
    int64_t n = 0, row = 0, room = 1;
    for (int e = 0; e < c->E; e++)
        room += sizes[e] / MB_F32_TILE_ROWS + 1;
    *tiles = (mb_moe_token_tile *)calloc((size_t)room, sizeof(mb_moe_token_tile));
    for (int e = 0; e < c->E; e++) {
        for (int32_t done = 0; done < sizes[e]; done += MB_F32_TILE_ROWS) {
            const int32_t left = sizes[e] - done;
            (*tiles)[n].expert = e;
            (*tiles)[n].first_row = (int32_t)row + done;
            (*tiles)[n++].n_rows = left < MB_F32_TILE_ROWS ? left : MB_F32_TILE_ROWS;
        }
        for (int32_t i = 0; i < sizes[e]; i++)
            row_group[row + i] = e;
        row += sizes[e];
        if (!c->timed)
            row_group[row++] = -1;
    }
    if (!c->timed)
        n++; /* all zeros: no rows */
    free(sizes);
    *n_rows = row;
    return n;
}

static void check_gemm(const gemm_case *c, int is_timed) {
    char name[96];
    snprintf(name, sizeof(name), "fp32 GEMM T %d N %d K %d E %d activation %d", c->T, c->N, c->K, c->E,
             (int)c->activation);
    const int64_t most_rows = (int64_t)c->T * c->top_k + (int64_t)c->E * 200, N = c->N, K = c->K;
    const int gated = mb_activation_is_gated(c->activation);
    const int64_t columns = gated ? N / 2 : N;
    int32_t *row_group = (int32_t *)malloc(sizeof(int32_t) * (size_t)most_rows);
    mb_moe_token_tile *tiles;
    int64_t R;
    const int64_t n = cut(c, &tiles, row_group, &R);
    const int32_t n_tiles = (int32_t)n;
    const int64_t a_rows = c->gather ? R / 3 + 1 : R;
    int32_t *row_index = (int32_t *)malloc(sizeof(int32_t) * (size_t)R);
    for (int64_t i = 0; i < R; i++)
        row_index[i] = (int32_t)(c->gather ? below(a_rows) : i);
    array a = make(MB_F32, a_rows * K, 1), b = make(MB_F32, (int64_t)c->E * N * K, K > 512 ? 0.0625f : 0.25f);
    array bias = make(MB_F32, c->E * N, 1), row_weight = make(MB_F32, R, 1);
    const size_t out_bytes = sizeof(float) * (size_t)(R * columns);
    gemm_call run = {};
    run.args.a = a.data;
    run.args.row_index = (const int32_t *)to_device(row_index, sizeof(int32_t) * (size_t)R);
    int32_t *const index_on_device = (int32_t *)run.args.row_index;
    if (!c->gather)
        run.args.row_index = NULL;
    run.args.b.data = b.data;
    run.args.b.count = c->E;
    run.args.b.rows = N;
    run.args.b.cols = K;
    run.args.bias = c->bias ? bias.data : NULL;
    run.args.row_weight = c->row_weight ? (const float *)row_weight.data : NULL;
    run.args.out = allocate(out_bytes);
    run.args.n_rows = R;
    run.args.activation = c->activation;
    run.args.f32_math = MB_F32_EXACT;
    run.tiles = (const mb_moe_token_tile *)to_device(tiles, sizeof(*tiles) * (size_t)n);
    run.n_tiles = (const int32_t *)to_device(&n_tiles, sizeof(n_tiles));
    run.max_tiles = n + 3;

    float *outs[2];
    for (int i = 0; i < 2; i++) {
        CUDA(cudaMemset(run.args.out, POISON, out_bytes));
        launch_gemm(&run, NULL);
        CUDA(cudaDeviceSynchronize());
        outs[i] = (float *)to_host(run.args.out, out_bytes);
    }
    expect(memcmp(outs[0], outs[1], out_bytes) == 0, "differs on repeat", 0, name);
    double worst = 0;
    int64_t n_bad = 0, n_touched = 0;
    for (int64_t i = 0; i < n_samples(R * columns); i++) {
        const int64_t place = sample(i, R * columns), row = place / columns, column = place % columns;
        const int32_t group = row_group[row];
        if (group < 0) { /* of no tile */
            uint32_t bits;
            memcpy(&bits, &outs[0][place], sizeof(bits));
            n_touched += bits != 0xffffffff;
            continue;
        }
        double sum[2] = {0, 0};
        float chain = 0;
        for (int half = 0; half <= gated; half++) {
            const int64_t of_b = (int64_t)group * N + column + half * columns;
            for (int64_t k = 0; k < K; k++) {
                const float left = at(&a, row_index[row] * K + k), right = at(&b, of_b * K + k);
                sum[half] += (double)left * right;
                chain = fmaf(left, right, chain);
            }
            sum[half] += c->bias ? at(&bias, of_b) : 0;
        }
        if (c->activation == MB_ACT_NONE && !c->bias) {
            n_bad += outs[0][place] != (c->row_weight ? chain * at(&row_weight, row) : chain);
            continue;
        }
        const double wanted = activated(c->activation, sum[0]) * (gated ? sum[1] : 1) *
                              (c->row_weight ? at(&row_weight, row) : 1);
        const double error = fabs(outs[0][place] - wanted) / fmax(1, fabs(wanted));
        worst = error <= worst ? worst : isnan(error) ? INFINITY : error;
    }
    expect(n_bad == 0, "elements differ from the chain of fmaf", (double)n_bad, name);
    expect(n_touched == 0, "elements of no tile were written", (double)n_touched, name);
    expect(worst <= 1e-5, "worst error", worst, name);
    if (is_timed && c->timed) {
        int hit = 0;
        for (int64_t i = 0; i < n; i++)
            hit += i == 0 || tiles[i].expert != tiles[i - 1].expert;
        const double us = timed(launch_gemm, &run), bytes = (double)hit * N * K * 4, flops = 2.0 * R * N * K;
        printf("%-56s %9.1f us %7.2f TFLOP/s, weights %.3f TB/s, worst error %.1e\n", name, us,
               flops / us * 1e-6, bytes / us * 1e-6, worst);
    }
    void *all[] = {a.data,          b.data,       bias.data,         row_weight.data,
                   index_on_device, run.args.out, (void *)run.tiles, (void *)run.n_tiles};
    for (void *one : all)
        CUDA(cudaFree(one));
    free(outs[0]);
    free(outs[1]);
    free(tiles);
    free(row_group);
    free(row_index);
}

static const reduce_case reduce_cases[] = {
    {1, 8, 1, MB_BF16, MB_BF16, 0, 0, 0, 0},        {3, 72, 9, MB_BF16, MB_BF16, 1, 1, 0, 0},
    {5, 1032, 8, MB_BF16, MB_BF16, 1, 0, 1, 0},     {7, 2056, 32, MB_BF16, MB_F32, 1, 1, 0, 0},
    {4, 40, 6, MB_F16, MB_F16, 1, 1, 1, 0},         {33, 136, 2, MB_F16, MB_F32, 0, 1, 0, 0},
    {2, 4, 3, MB_F32, MB_F32, 0, 0, 0, 0},          {19, 516, 17, MB_F32, MB_F32, 1, 1, 1, 0},
    {1, 2048, 8, MB_BF16, MB_BF16, 0, 0, 0, 1},     {4096, 2048, 8, MB_BF16, MB_BF16, 1, 0, 0, 1},
    {32768, 4096, 8, MB_BF16, MB_BF16, 0, 0, 0, 1}, {4096, 2048, 8, MB_F32, MB_F32, 0, 0, 0, 1},
};
static const router_case router_cases[] = {
    {1, 8, 1, MB_BF16, MB_F32, 0, 0},          {3, 4, 5, MB_F32, MB_F32, 1, 0},
    {17, 72, 9, MB_F16, MB_F32, 1, 0},         {40, 264, 60, MB_BF16, MB_BF16, 0, 0},
    {5, 136, 7, MB_F32, MB_BF16, 0, 0},        {21, 520, 33, MB_F16, MB_F16, 1, 0},
    {9, 1032, 160, MB_BF16, MB_F16, 0, 0},     {16, 200, 24, MB_F32, MB_F16, 1, 0},
    {4, 328, 12, MB_F16, MB_BF16, 0, 0},       {700, 72, 9, MB_F16, MB_F32, 1, 0},
    {513, 264, 60, MB_BF16, MB_BF16, 0, 0},    {641, 136, 7, MB_F32, MB_BF16, 0, 0},
    {600, 520, 33, MB_F16, MB_F16, 1, 0},      {777, 104, 160, MB_BF16, MB_F16, 0, 0},
    {1000, 204, 129, MB_F32, MB_F32, 1, 0},    {612, 8, 24, MB_F32, MB_F16, 1, 0},
    {550, 328, 12, MB_F16, MB_BF16, 0, 0},     {9000, 136, 130, MB_BF16, MB_F32, 1, 0},
    {9000, 132, 130, MB_F32, MB_F32, 0, 0},    {9000, 72, 128, MB_F16, MB_F16, 0, 0},
    {37, 72, 20, MB_BF16, MB_BF16, 1, 0},      {3, 8, 1, MB_BF16, MB_BF16, 0, 0},
    {70, 2040, 131, MB_BF16, MB_BF16, 1, 0},   {2100, 520, 40, MB_BF16, MB_BF16, 0, 0},
    {64, 2048, 128, MB_BF16, MB_BF16, 0, 1},   {256, 2048, 128, MB_BF16, MB_BF16, 0, 1},
    {512, 2048, 128, MB_BF16, MB_BF16, 0, 1},  {4096, 2048, 128, MB_BF16, MB_BF16, 0, 1},
    {64, 4096, 128, MB_BF16, MB_BF16, 0, 1},   {512, 4096, 128, MB_BF16, MB_BF16, 0, 1},
    {1, 2048, 128, MB_BF16, MB_F32, 0, 1},     {16, 2048, 128, MB_BF16, MB_F32, 0, 1},
    {1, 4096, 128, MB_BF16, MB_F32, 0, 1},     {1, 2048, 128, MB_BF16, MB_BF16, 0, 1},
    {64, 2048, 128, MB_BF16, MB_F32, 0, 1},    {256, 2048, 128, MB_BF16, MB_F32, 0, 1},
    {511, 2048, 128, MB_BF16, MB_F32, 0, 1},   {512, 2048, 128, MB_BF16, MB_F32, 0, 1},
    {1024, 2048, 128, MB_BF16, MB_F32, 0, 1},  {4096, 2048, 128, MB_BF16, MB_F32, 0, 1},
    {8192, 2048, 128, MB_BF16, MB_F32, 0, 1},  {16384, 2048, 128, MB_BF16, MB_F32, 0, 1},
    {32768, 2048, 128, MB_BF16, MB_F32, 0, 1}, {32768, 2048, 128, MB_BF16, MB_BF16, 0, 1},
    {32768, 2048, 128, MB_F16, MB_F32, 0, 1},  {32768, 2048, 128, MB_F32, MB_F32, 0, 1},
};
static const gemm_case gemm_cases[] = {
    {1, 4, 3, 0, 0, MB_ACT_NONE, 0, 0, 0, 0},
    {2, 4, 7, 0, 0, MB_ACT_SWIGLU, 1, 1, 1, 0},
    {130, 36, 6, 0, 0, MB_ACT_NONE, 0, 1, 1, 0},
    {129, 68, 9, 0, 0, MB_ACT_NONE, 0, 0, 0, 0},
    {250, 100, 5, 0, 0, MB_ACT_GEGLU, 1, 1, 0, 0},
    {66, 32, 5, 0, 0, MB_ACT_REGLU, 0, 0, 1, 0},
    {65, 132, 5, 0, 0, MB_ACT_SILU, 1, 1, 0, 0},
    {257, 64, 5, 0, 0, MB_ACT_GELU, 1, 0, 0, 0},
    {128, 96, 5, 0, 0, MB_ACT_RELU, 0, 1, 0, 0},
    {64, 256, 10, 0, 0, MB_ACT_RELU2, 1, 1, 1, 0},
    {128, 32, 5, 0, 0, MB_ACT_NONE, 1, 0, 1, 0},
    {200, 64, 40, 37, 3, MB_ACT_SWIGLU, 0, 1, 0, 0},
    {1536, 2048, 128, 1, 8, MB_ACT_SWIGLU, 0, 1, 0, 1},
    {2048, 768, 128, 1, 8, MB_ACT_NONE, 0, 0, 0, 1},
    {1536, 2048, 128, 16, 8, MB_ACT_SWIGLU, 0, 1, 0, 1},
    {2048, 768, 128, 16, 8, MB_ACT_NONE, 0, 0, 0, 1},
    {1536, 2048, 128, 64, 8, MB_ACT_SWIGLU, 0, 1, 0, 1},
    {1536, 2048, 128, 704, 8, MB_ACT_SWIGLU, 0, 1, 0, 1},
    {2048, 768, 128, 704, 8, MB_ACT_NONE, 0, 0, 0, 1},
    {1536, 2048, 128, 4096, 8, MB_ACT_SWIGLU, 0, 1, 0, 1},
    {2048, 768, 128, 4096, 8, MB_ACT_NONE, 0, 0, 0, 1},
};

int main(int n_arguments, char **arguments) {
    int is_timed = 1, is_small = 0;
    for (int i = 1; i < n_arguments; i++) {
        is_timed &= strcmp(arguments[i], "--check") != 0;
        is_small |= strcmp(arguments[i], "--small") == 0;
    }
    check_empty();
    check_refusals();
    for (const auto &c : reduce_cases)
        if (!is_small || !c.timed)
            check_reduce(&c, is_timed);
    for (const auto &c : router_cases)
        if (!is_small || !c.timed)
            check_router(&c, is_timed);
    for (const auto &c : gemm_cases)
        if (!is_small || !c.timed)
            check_gemm(&c, is_timed);
    printf(n_failures > 0 ? "WRONG\n" : "all right\n");
    return n_failures > 0;
}
