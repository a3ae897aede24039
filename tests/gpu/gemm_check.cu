/*
 * gemm_check.cu - checks and times the dense layer of few rows of x on a GPU.
 *
 *   gemm_check [--check | --small | --time] [--dense] [--plans] [--tiles]
 *
 * Check: in bf16, fp16 and fp8 with block scales, with and without bias, residual and norm, out of x's type or
 * fp32: 1 to 64 rows have the bits that they have among 80, which go to the grouped GEMM, behind the norm's own
 * launch; for few CTAs and many; nothing is written behind the last row; a chain of layers captured as a graph
 * gives what it gives with a wait after each launch, fp8 with one scale a matrix too. (ops_check compares with fp64.) Exit status 1 when
 * anything is wrong. --small checks small weights alone (for compute-sanitizer). --dense: more than 64 rows alone.
 *
 * Time: chains of layers of Qwen3's sizes, each link with weights of its own, captured as a graph: us a link,
 * alone, behind the norm and with the norm in it, and the share of the floor, bytes / 3.0 TB/s. --plans: the
 * other hint to L2 too. --tiles: 65 to 1024 rows by every tile of the grouped GEMM.
 */
#include "timing.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ops/gemm/few.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/experts/launch_sm90.h"
#include "ops/moe/experts/pick.h"
#include "ops/moe/moe_sm90.h"
#include "ops/norm/norm.h"

enum { ROWS = 80, GROUPED_ROWS = 1024, MOST_SMALL = 10000 };

static int is_small;

/* ---- A layer */

typedef struct layer {
    mb_gemm_args args; /* x [rows, K], residual and bias are there whether used or not */
    const void *bias, *residual;
    mb_weight norm_weight;
    void *normed, *x8;
    float *x_scale;
    void *workspace, *grouped_workspace; /* of gemm, of the grouped GEMM in its place */
    size_t workspace_bytes, grouped_bytes;
} layer;

static __device__ uint32_t hash(uint64_t i, uint32_t seed) {
    uint64_t h = (i + 1) * 0x9e3779b97f4a7c15u + seed * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(h >> 32);
}

/* Values in [-size, size), of fp8 any bytes but NaN. */
static __global__ void fill(void *to, int64_t n, mb_dtype dtype, float size, uint32_t seed) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const uint32_t h = hash(i, seed);
        const float value = ((float)(h >> 8) * 0x1p-23f - 1) * size;
        if (dtype == MB_BF16)
            ((__nv_bfloat16 *)to)[i] = __float2bfloat16_rn(value);
        else if (dtype == MB_F16)
            ((__half *)to)[i] = __float2half_rn(value);
        else if (dtype == MB_F32)
            ((float *)to)[i] = value;
        else
            ((uint8_t *)to)[i] = (uint8_t)((h & 0x7f) == 0x7f ? h ^ 1 : h);
    }
}

static void *filled(int64_t n, mb_dtype dtype, float size, uint32_t seed) {
    void *to = allocate((size_t)n * mb_dtype_row_bytes(dtype, 1));
    fill<<<1024, 256>>>(to, n, dtype, size, seed);
    CUDA(cudaGetLastError());
    return to;
}

static mb_grouped_gemm_args grouped_of(const layer *l, const mb_gemm_args *args) {
    mb_grouped_gemm_args g = {};
    const int is_fp8 = args->weight.dtype == MB_F8_E4M3;
    g.a = is_fp8 ? l->x8 : args->x;
    g.a_scale = is_fp8 ? l->x_scale : NULL;
    g.b = args->weight;
    g.out = args->out;
    g.n_rows = args->n_tokens;
    g.dtype = is_fp8 ? MB_F8_E4M3 : args->dtype;
    g.out_dtype = args->out_dtype;
    g.activation = MB_ACT_NONE;
    g.f32_math = MB_F32_EXACT;
    return g;
}

/* What the grouped GEMM wants at most, with any tile; 0 where it does not take the layer. */
static size_t grouped_bytes_of(const layer *l) {
    const mb_grouped_gemm_args g = grouped_of(l, &l->args);
    size_t most = 0;
    if (mb_grouped_gemm_sm90_workspace(&g, &most) != MB_OK)
        return 0;
    for (int tile = 0; tile < MB_MOE_N_TILES && g.dtype != MB_F32; tile++) {
        mb_arena arena;
        mb_arena_measure(&arena);
        if (mb_moe_tiles[tile].family == mb_moe_family_of(g.dtype))
            mb_grouped_gemm_sm90_layout(&g, tile, &arena);
        most = arena.used > most ? arena.used : most;
    }
    return most;
}

/* scale_rows 0: one scale of the matrix. */
static layer make_layer(mb_dtype dtype, mb_dtype weights, mb_dtype out, int64_t rows, int64_t n, int64_t k,
                        int32_t scale_rows, uint32_t seed) {
    layer l = {};
    const int64_t k_blocks = (k + MB_F8_BLOCK - 1) / MB_F8_BLOCK;
    l.args.x = filled(rows * k, dtype, 2, seed);
    l.args.weight.data = filled(n * k, weights, 1, seed + 1);
    l.args.weight.count = 1;
    l.args.weight.rows = n;
    l.args.weight.cols = k;
    l.args.weight.dtype = weights;
    if (weights == MB_F8_E4M3) {
        const int64_t n_scales = scale_rows ? (n + scale_rows - 1) / scale_rows * k_blocks : 1;
        l.args.weight.scale_rows = scale_rows;
        l.args.weight.scale_cols = scale_rows ? MB_F8_BLOCK : 0;
        l.args.weight.scale = filled(n_scales, MB_F32, 0.01f, seed + 2);
        l.x8 = allocate((size_t)(rows * k));
        l.x_scale = (float *)allocate(sizeof(float) * (size_t)(rows * k_blocks));
    }
    l.bias = filled(n, MB_BF16, 1, seed + 3);
    l.residual = filled(rows * n, out, 4, seed + 4);
    l.norm_weight.data = filled(k, dtype, 1, seed + 5);
    l.norm_weight.count = l.norm_weight.rows = 1;
    l.norm_weight.cols = k;
    l.norm_weight.dtype = dtype;
    l.normed = allocate((size_t)rows * mb_dtype_row_bytes(dtype, k));
    l.args.n_tokens = rows;
    l.args.dtype = dtype;
    l.args.out_dtype = out;
    l.args.bias_dtype = MB_BF16;
    l.args.eps = 1e-6f;
    mb_gemm_args with_norm = l.args;
    with_norm.norm_weight = l.norm_weight;
    l.workspace_bytes = bytes_of(mb_gemm_sm90_workspace, &with_norm);
    l.workspace = allocate(l.workspace_bytes);
    l.grouped_bytes = grouped_bytes_of(&l);
    l.grouped_workspace = allocate(l.grouped_bytes);
    l.args.out = allocate((size_t)((rows + 1) * n) * mb_dtype_row_bytes(out, 1));
    CUDA(cudaDeviceSynchronize());
    return l;
}

static void free_layer(const layer *l) {
    const void *all[] = {l->args.x,
                         l->args.weight.data,
                         l->args.weight.scale,
                         l->bias,
                         l->residual,
                         l->norm_weight.data,
                         l->normed,
                         l->x8,
                         l->x_scale,
                         l->workspace,
                         l->grouped_workspace,
                         l->args.out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        CUDA(cudaFree((void *)all[i]));
}

/* Rows first .. first + n - 1 of the layer. */
static mb_gemm_args rows_of(const layer *l, int64_t first, int64_t n) {
    mb_gemm_args args = l->args;
    args.x = (const char *)args.x + first * (int64_t)mb_dtype_row_bytes(args.dtype, args.weight.cols);
    if (args.residual)
        args.residual = (const char *)args.residual +
                        first * (int64_t)mb_dtype_row_bytes(args.out_dtype, args.weight.rows);
    args.n_tokens = n;
    return args;
}

static void quantize(const layer *l, const mb_gemm_args *args, cudaStream_t stream) {
    mb_moe_quantize_args q = {};
    q.x = args->x;
    q.out = l->x8;
    q.scale = l->x_scale;
    q.n_tokens = args->n_tokens;
    q.hidden = (int32_t)args->weight.cols;
    q.dtype = args->dtype;
    MB(mb_moe_quantize_sm90(&q, stream));
}

/* The norm in front by its own launch, to l->normed; -> the layer behind it. */
static mb_gemm_args launch_norm(const layer *l, const mb_gemm_args *args, cudaStream_t stream) {
    const mb_rms_norm_args norm = mb_gemm_norm(args, l->normed);
    MB(mb_rms_norm_sm90(&norm, stream));
    return mb_gemm_of_normed(args, l->normed);
}

static void run_few(const layer *l, mb_gemm_args args, const mb_few_plan *plan, cudaStream_t stream) {
    if (args.norm_weight.data && !plan->norms)
        args = launch_norm(l, &args, stream);
    if (args.weight.dtype == MB_F8_E4M3 && !plan->quantizes)
        quantize(l, &args, stream);
    MB(mb_few_sm90(&args, plan, l->x8, l->x_scale, stream));
}

/* ---- Bits */

static int64_t n_compared;

/* in_place: the residual lies where out goes. */
static void compare_rows(const char *name, const layer *l, const unsigned char *whole, int64_t first,
                         int64_t n_tokens, const mb_few_plan *plan, int in_place) {
    const size_t row = mb_dtype_row_bytes(l->args.out_dtype, l->args.weight.rows);
    mb_gemm_args args = rows_of(l, first, n_tokens);
    CUDA(cudaMemset(l->args.out, 0xff, (size_t)(n_tokens + 1) * row));
    if (in_place && args.residual) {
        CUDA(cudaMemcpy(args.out, args.residual, (size_t)n_tokens * row, cudaMemcpyDeviceToDevice));
        args.residual = args.out;
    }
    run_few(l, args, plan, NULL);
    CUDA(cudaDeviceSynchronize());
    unsigned char *got = (unsigned char *)download(l->args.out, (size_t)(n_tokens + 1) * row);
    n_compared++;
    if (memcmp(got, whole + (size_t)first * row, (size_t)n_tokens * row) != 0) {
        size_t at = 0;
        int64_t n_differ = 0, first_row = -1, first_byte = 0;
        for (; at < (size_t)n_tokens * row; at++)
            if (got[at] != whole[(size_t)first * row + at]) {
                if (first_row < 0) {
                    first_row = (int64_t)(at / row);
                    first_byte = (int64_t)(at % row);
                }
                n_differ++;
            }
        printf("%s T=%lld %s, %d CTAs, tiles of %d, %d stages: %lld of %zu bytes differ, first row "
               "%lld, output %lld\n",
               name, (long long)n_tokens,
               plan->norms       ? "norms"
               : plan->quantizes ? "quantises"
                                 : "x by TMA",
               plan->n_ctas, plan->tile_rows, plan->n_stages, (long long)n_differ, (size_t)n_tokens * row,
               (long long)first_row,
               (long long)(first_byte / (int64_t)mb_dtype_row_bytes(l->args.out_dtype, 1)));
        complain(name, "other bits than among many rows", (double)n_tokens);
    }
    for (size_t i = 0; i < row; i++)
        if (got[(size_t)n_tokens * row + i] != 0xff) {
            complain(name, "written behind the last row", (double)n_tokens);
            break;
        }
    free(got);
}

/* Rows that are normed in another order. */
static void check_gathered(const char *name, const layer *l, const unsigned char *whole, int64_t n_tokens) {
    const size_t row = mb_dtype_row_bytes(l->args.out_dtype, l->args.weight.rows);
    int32_t rows[ROWS];
    for (int64_t i = 0; i < n_tokens; i++)
        rows[i] = (int32_t)(i * 7 % ROWS);
    mb_gemm_args args = rows_of(l, 0, n_tokens);
    args.norm_rows = (const int32_t *)allocate(sizeof rows);
    CUDA(cudaMemcpy((void *)args.norm_rows, rows, sizeof rows, cudaMemcpyHostToDevice));
    MB(mb_gemm_sm90(&args, l->workspace, l->workspace_bytes, NULL));
    CUDA(cudaDeviceSynchronize());
    unsigned char *got = (unsigned char *)download(args.out, (size_t)n_tokens * row);
    for (int64_t i = 0; i < n_tokens; i++)
        if (memcmp(got + (size_t)i * row, whole + (size_t)rows[i] * row, row) != 0) {
            complain(name, "other bits for gathered rows", (double)n_tokens);
            break;
        }
    free(got);
    CUDA(cudaFree((void *)args.norm_rows));
}

/* As the engine calls it, with the norm in front where there is one: all rows, and some. */
static void check_calls(const char *name, const layer *l, const unsigned char *whole) {
    static const int64_t counts[] = {ROWS, 66, 41, 17, 9, 5, 1};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        const size_t bytes = (size_t)counts[i] * mb_dtype_row_bytes(l->args.out_dtype, l->args.weight.rows);
        const mb_gemm_args args = rows_of(l, 0, counts[i]);
        CUDA(cudaMemset(args.out, 0xff, bytes));
        MB(mb_gemm_sm90(&args, l->workspace, l->workspace_bytes, NULL));
        CUDA(cudaDeviceSynchronize());
        unsigned char *got = (unsigned char *)download(args.out, bytes);
        if (memcmp(got, whole, bytes) != 0)
            complain(name, "the operator gives other bits for rows", (double)counts[i]);
        free(got);
        if (args.norm_weight.data && !args.residual)
            check_gathered(name, l, whole, counts[i]);
    }
}

static void check_bits(mb_dtype dtype, mb_dtype weights, mb_dtype out, int64_t n, int64_t k,
                       int32_t scale_rows, int extras, int every) {
    char name[128];
    snprintf(name, sizeof name, "gemm x=%s w=%s out=%s N=%lld K=%lld%s%s%s", mb_dtype_name(dtype),
             mb_dtype_name(weights), mb_dtype_name(out), (long long)n, (long long)k,
             extras & 1 ? " bias" : "", extras & 2 ? " residual" : "", extras & 4 ? " norm" : "");
    layer l = make_layer(dtype, weights, out, ROWS, n, k, scale_rows, (uint32_t)(n + 7 * k));
    l.args.bias = extras & 1 ? l.bias : NULL;
    l.args.residual = extras & 2 ? l.residual : NULL;
    if (extras & 4)
        l.args.norm_weight = l.norm_weight;
    const mb_gemm_args behind = extras & 4 ? launch_norm(&l, &l.args, NULL) : l.args;
    MB(mb_gemm_sm90(&behind, l.workspace, l.workspace_bytes, NULL));
    CUDA(cudaDeviceSynchronize());
    const size_t all_bytes = ROWS * mb_dtype_row_bytes(out, n);
    unsigned char *whole = (unsigned char *)download(l.args.out, all_bytes);
    check_calls(name, &l, whole);
    const int32_t n_processors = mb_n_processors();
    for (int64_t n_tokens = 1; n_tokens <= MB_FEW_TOKENS; n_tokens++) {
        if (!every && n_tokens > 5 && n_tokens % 8 > 1 && n_tokens != 63)
            continue;
        for (int norms = 0; norms < 2; norms++)
            for (int few_ctas = 0; few_ctas < 2; few_ctas++) {
                const mb_gemm_args args = rows_of(&l, 0, n_tokens);
                mb_few_plan plan;
                if (mb_few_plan_with(&args, norms, few_ctas ? 12 : n_processors, &plan))
                    compare_rows(name, &l, whole, (ROWS - n_tokens) / 2, n_tokens, &plan, 0);
            }
        mb_gemm_args args = rows_of(&l, ROWS - n_tokens, n_tokens); /* as it is called */
        mb_few_plan plan;
        if (mb_few_plan_of(&args, n_processors, &plan))
            compare_rows(name, &l, whole, ROWS - n_tokens, n_tokens, &plan, 1);
        else if (weights != MB_F8_E4M3 || n_tokens <= MB_FEW_FP8_TOKENS)
            complain(name, "no plan", (double)n_tokens);
        if (wrong > 20)
            exit(1);
    }
    free(whole);
    free_layer(&l);
}

/* Layers whose out is the next one's x, as a graph and with a wait after each. */
enum { LINKS = 12 };
typedef struct chain {
    layer *links;
    mb_few_plan plan;
    int64_t n_tokens;
    int use_grouped, with_norm, norm_apart; /* with_norm: in the kernel where the plan says so, or apart */
    int as_called;
} chain;

static void launch_link(const chain *c, int i, cudaStream_t stream) {
    const layer *l = &c->links[i];
    mb_gemm_args args = rows_of(l, 0, c->n_tokens);
    if (c->with_norm)
        args.norm_weight = l->norm_weight;
    if (c->norm_apart)
        args = launch_norm(l, &args, stream);
    if (c->as_called)
        MB(mb_gemm_sm90(&args, l->workspace, l->workspace_bytes, stream));
    else if (c->use_grouped) {
        if (args.weight.dtype == MB_F8_E4M3)
            quantize(l, &args, stream);
        const mb_grouped_gemm_args g = grouped_of(l, &args);
        MB(mb_grouped_gemm_sm90(&g, l->grouped_workspace, l->grouped_bytes, stream));
    } else
        run_few(l, args, &c->plan, stream);
}

static int n_links;
static void launch_chain(const void *context, cudaStream_t stream) {
    for (int i = 0; i < n_links; i++)
        launch_link((const chain *)context, i, stream);
}

/* scale_rows 0: one scale a matrix, by the operator as it is called, with one workspace for all links. */
static void check_chain(mb_dtype weights, int32_t scale_rows, int64_t n_tokens) {
    enum { N = 2048 };
    layer links[LINKS];
    for (int i = 0; i < LINKS; i++) {
        links[i] =
            make_layer(MB_BF16, weights, MB_BF16, MB_FEW_TOKENS, N, N, scale_rows, 100u + 10u * (uint32_t)i);
        links[i].args.residual = links[i].residual;
        if (i > 0) {
            CUDA(cudaFree((void *)links[i].args.x));
            links[i].args.x = links[i - 1].args.out;
            CUDA(cudaFree(links[i].workspace));
            links[i].workspace = links[0].workspace;
        }
    }
    chain c = {links, {}, n_tokens, 0, 1, 1};
    c.as_called = scale_rows == 0;
    mb_gemm_args args = rows_of(&links[0], 0, n_tokens);
    if (!mb_few_plan_of(&args, mb_n_processors(), &c.plan))
        complain("gemm chain", "no plan", (double)n_tokens);
    n_links = LINKS;
    const size_t bytes = 2 * (size_t)(n_tokens * N);
    for (int i = 0; i < LINKS; i++) {
        launch_link(&c, i, NULL);
        CUDA(cudaDeviceSynchronize());
    }
    unsigned char *expected = (unsigned char *)download(links[LINKS - 1].args.out, bytes);
    c.norm_apart = 0;
    args.norm_weight = links[0].norm_weight;
    if (!mb_few_plan_of(&args, mb_n_processors(), &c.plan))
        complain("gemm chain", "no plan with a norm", (double)n_tokens);
    const captured graph = capture(launch_chain, &c);
    for (int replay = 0; replay < 20; replay++) {
        for (int i = 0; i < LINKS; i++)
            CUDA(cudaMemsetAsync(links[i].args.out, 0xff, bytes, graph.stream));
        CUDA(cudaGraphLaunch(graph.replay, graph.stream));
        CUDA(cudaStreamSynchronize(graph.stream));
        unsigned char *got = (unsigned char *)download(links[LINKS - 1].args.out, bytes);
        if (memcmp(got, expected, bytes) != 0)
            complain("gemm chain", "a graph gives other bits than one launch after the other",
                     (double)n_tokens);
        free(got);
    }
    free_captured(&graph);
    free(expected);
    for (int i = 0; i < LINKS; i++) {
        if (i > 0)
            links[i].args.x = links[i].workspace = NULL;
        free_layer(&links[i]);
    }
}

/* --dense, only these: many rows by every tile, also in place, have the bits of as many calls of few rows. */
static void check_dense(mb_dtype dtype, mb_dtype weights, mb_dtype out, int64_t n, int64_t k,
                        int32_t scale_rows, int extras, int64_t n_rows) {
    layer l = make_layer(dtype, weights, out, n_rows, n, k, scale_rows, (uint32_t)(n + 5 * k));
    l.args.bias = extras & 1 ? l.bias : NULL;
    l.args.residual = extras & 2 ? l.residual : NULL;
    const size_t row = mb_dtype_row_bytes(out, n), bytes = (size_t)n_rows * row;
    const int32_t n_processors = mb_n_processors();
    for (int64_t first = 0; first < n_rows; first += MB_FEW_FP8_TOKENS) {
        const int64_t n_few = n_rows - first < MB_FEW_FP8_TOKENS ? n_rows - first : MB_FEW_FP8_TOKENS;
        mb_gemm_args args = rows_of(&l, first, n_few);
        args.out = (char *)args.out + (size_t)first * row;
        MB(mb_gemm_sm90(&args, l.workspace, l.workspace_bytes, NULL));
        CUDA(cudaDeviceSynchronize());
    }
    unsigned char *expected = (unsigned char *)download(l.args.out, bytes);
    const mb_moe_family family = mb_moe_family_of(weights);
    for (int tile = 0; tile <= MB_MOE_N_TILES; tile++)
        for (int way = 0; way < (tile == MB_MOE_N_TILES ? 1 : 3); way++) {
            const int as_called = tile == MB_MOE_N_TILES;
            if (!as_called && (mb_moe_tiles[tile].family != family || mb_moe_tiles[tile].max_tokens < 64))
                continue;
            CUDA(cudaMemset(l.args.out, 0xff, bytes + row));
            mb_gemm_args args = l.args;
            if (args.residual && way != 1) {
                CUDA(cudaMemcpy(args.out, args.residual, bytes, cudaMemcpyDeviceToDevice));
                args.residual = args.out;
            }
            if (as_called)
                MB(mb_gemm_sm90(&args, l.workspace, l.workspace_bytes, NULL));
            else {
                if (weights == MB_F8_E4M3)
                    quantize(&l, &args, NULL);
                mb_dense_plan plan = mb_dense_plan_with(tile, n_rows, n, k, n_processors);
                if (way == 1)
                    plan.tile_rows = mb_moe_tiles[tile].max_tokens;
                if (way == 2)
                    plan.band = 3;
                mb_grouped_gemm_args g = grouped_of(&l, &args);
                g.bias = args.bias;
                g.bias_dtype = args.bias_dtype;
                MB(mb_experts_dense(&g, args.residual, &plan, NULL));
            }
            CUDA(cudaDeviceSynchronize());
            unsigned char *got = (unsigned char *)download(l.args.out, bytes + row);
            n_compared++;
            size_t at = 0;
            while (at < bytes && got[at] == expected[at])
                at++;
            if (at < bytes) {
                int64_t n_differ = 0;
                for (size_t i = at; i < bytes; i++)
                    n_differ += got[i] != expected[i];
                printf("x=%s w=%s out=%s N=%lld K=%lld T=%lld extras %d tile %s way %d: %lld bytes differ, "
                       "first row %zu byte %zu\n",
                       mb_dtype_name(dtype), mb_dtype_name(weights), mb_dtype_name(out), (long long)n,
                       (long long)k, (long long)n_rows, extras,
                       as_called ? "picked" : mb_moe_tiles[tile].name, way, (long long)n_differ, at / row,
                       at % row);
                complain("gemm of many rows", "other bits than few rows", (double)n_rows);
            }
            for (size_t i = 0; i < row; i++)
                if (got[bytes + i] != 0xff) {
                    complain("gemm of many rows", "written behind the last row", (double)n_rows);
                    break;
                }
            free(got);
            if (wrong > 20)
                exit(1);
        }
    free(expected);
    free_layer(&l);
}

static void check_all_dense(void) {
    static const struct {
        int64_t n, k, rows;
    } shapes[] = {{136, 72, 700},    {264, 400, 65}, {1064, 320, 1111}, {2048, 4096, 300},
                  {5120, 2048, 583}, {8, 16, 70},    {520, 64, 2500},   {9216, 1040, 129}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int extras = 0; extras < 4; extras += is_small ? 3 : 1) {
            const int64_t n = shapes[s].n, k = shapes[s].k, rows = shapes[s].rows;
            if (is_small && n * k > MOST_SMALL)
                continue;
            check_dense(MB_BF16, MB_BF16, MB_BF16, n, k, 0, extras, rows);
            check_dense(MB_BF16, MB_BF16, MB_F32, n, k, 0, extras, rows);
            check_dense(MB_F16, MB_F16, MB_F16, n, k, 0, extras, rows);
            if (k % 16 == 0) {
                check_dense(MB_BF16, MB_F8_E4M3, MB_BF16, n, k, 128, extras, rows);
                check_dense(MB_F16, MB_F8_E4M3, extras % 2 ? MB_F32 : MB_F16, n, k, 8 << s % 4, extras, rows);
            }
        }
    printf("bits: %lld calls compared\n", (long long)n_compared);
}

static void check_all(void) {
    check_all_dense();
    static const struct {
        int64_t n, k;
        int every;
    } shapes[] = {{136, 72, 1},
                  {264, 400, 1},
                  {16, 64, 0},
                  {1064, 320, 0},
                  {2048, 4096, 0},
                  {5120, 2048, 1},
                  {8456, 256, 0},
                  {9216, 1040, 0},
                  {10000, 512, 0},
                  {8, 8, 0},
                  /* by 12 CTAs tiles of 24, 32, 48, 56 and 64 rows, and by all of 8 or 16 */
                  {288, 3584, 0},
                  {384, 2176, 0},
                  {576, 640, 0},
                  {672, 912, 0},
                  {768, 1296, 0}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int extras = 0; extras < 4; extras += is_small ? 3 : 1) {
            const int64_t n = shapes[s].n, k = shapes[s].k;
            if (is_small && n * k > MOST_SMALL)
                continue;
            const int every = shapes[s].every && extras == 2;
            check_bits(MB_BF16, MB_BF16, MB_BF16, n, k, 0, extras, every);
            check_bits(MB_BF16, MB_BF16, MB_BF16, n, k, 0, extras ^ 4, every);
            check_bits(MB_BF16, MB_BF16, MB_F32, n, k, 0, extras, 0);
            check_bits(MB_F16, MB_F16, extras % 2 ? MB_F32 : MB_F16, n, k, 0, extras ^ 4, 0);
            if (k % 16 == 0) {
                check_bits(MB_BF16, MB_F8_E4M3, MB_BF16, n, k, 128, extras ^ 4, every);
                check_bits(MB_BF16, MB_F8_E4M3, MB_BF16, n, k, 128, extras, every);
                check_bits(MB_F16, MB_F8_E4M3, extras % 2 ? MB_F32 : MB_F16, n, k, 8 << s % 4, extras, 0);
            }
        }
    static const int64_t tokens[] = {1, 3, 8, 16, 33, 64};
    for (int i = 0; i < (is_small ? 2 : 6); i++) {
        check_chain(MB_BF16, 128, tokens[i]);
        check_chain(MB_F8_E4M3, 128, tokens[i]);
        check_chain(MB_F8_E4M3, 0, tokens[i]);
    }
    printf("bits: %lld calls compared\n", (long long)n_compared);
}

/* ---- Times */

static void *flush;

static double time_links(chain *c, int n) {
    n_links = n;
    return time_graph(launch_chain, c, flush) / n;
}

static void time_shape(const char *what, int64_t n, int64_t k, mb_dtype weights, int many_plans) {
    const double bytes = (double)(n * k) * (double)mb_dtype_row_bytes(weights, 1), floor_us = bytes / 3.0e6;
    const int links = bytes > 200e6 ? 2 : 16;
    const mb_dtype out = n > 100000 ? MB_F32 : MB_BF16;
    layer all[16];
    for (int i = 0; i < links; i++)
        all[i] = make_layer(MB_BF16, weights, out, MB_FEW_TOKENS, n, k, 128, 1000u + 10u * (uint32_t)i);
    static const int64_t tokens[] = {1, 2, 4, 8, 16, 17, 32, 64};
    for (int t = 0; t < 8; t++) {
        chain c = {all, {}, tokens[t], 0, 0, 0};
        mb_gemm_args args = rows_of(&all[0], 0, tokens[t]);
        if (!mb_few_plan_with(&args, 0, mb_n_processors(), &c.plan)) {
            printf("%-8s %s T=%lld: no plan\n", what, mb_dtype_name(weights), (long long)tokens[t]);
            continue;
        }
        const mb_few_plan picked = c.plan;
        c.as_called = 1;
        const double called = time_links(&c, links);
        c.as_called = 0;
        const double few = time_links(&c, links);
        c.with_norm = c.norm_apart = 1;
        const double norm_apart = time_links(&c, links);
        c.norm_apart = 0;
        args.norm_weight = all[0].norm_weight;
        double norm_inside = 0;
        if (mb_few_plan_with(&args, 1, mb_n_processors(), &c.plan))
            norm_inside = time_links(&c, links);
        c.with_norm = 0;
        c.use_grouped = 1;
        const double grouped = time_links(&c, links);
        c.use_grouped = 0;
        printf(
            "%-8s %-8s T=%2lld floor %6.1f: called %6.1f us %3.0f %%, few %6.1f, norm apart %6.1f, inside %6.1f, "
            "grouped %6.1f | "
            "tiles %d x %d, %d stages\n",
            what, mb_dtype_name(weights), (long long)tokens[t], floor_us, called, 100 * floor_us / called,
            few, norm_apart, norm_inside, grouped, picked.tile_rows, picked.n_tiles, picked.n_stages);
        if (many_plans) {
            c.plan = picked;
            c.plan.read_once ^= 1;
            printf("    evict_first %d: %6.1f us\n", c.plan.read_once, time_links(&c, links));
        }
    }
    for (int i = 0; i < links; i++)
        free_layer(&all[i]);
}

/* 65 to 1024 rows by a given tile of the grouped GEMM. */
typedef struct tiled {
    const layer *links;
    int64_t n_tokens;
    int tile, n_links;
} tiled;

static void launch_tiled(const void *context, cudaStream_t stream) {
    const tiled *c = (const tiled *)context;
    for (int i = 0; i < c->n_links; i++) {
        const layer *l = &c->links[i];
        const mb_gemm_args args = rows_of(l, 0, c->n_tokens);
        if (args.weight.dtype == MB_F8_E4M3)
            quantize(l, &args, stream);
        const mb_grouped_gemm_args g = grouped_of(l, &args);
        mb_arena arena = {(char *)l->grouped_workspace, l->grouped_bytes, 0, 0, 0};
        const mb_grouped_gemm_layout layout = mb_grouped_gemm_sm90_layout(&g, c->tile, &arena);
        MB(mb_experts_cut_tiles(&layout.tiles, NULL, 1, g.n_rows, stream));
        MB(mb_experts_one_gemm(&g, &layout.tiles, layout.scratch, stream));
    }
}

static void time_tiles(const char *what, int64_t n, int64_t k, mb_dtype weights) {
    enum { N = 8 };
    layer all[N];
    for (int i = 0; i < N; i++)
        all[i] = make_layer(MB_BF16, weights, MB_BF16, GROUPED_ROWS, n, k, 128, 1000u + 10u * (uint32_t)i);
    static const int64_t tokens[] = {65, 96, 128, 192, 256, 384, 512, 768, 1024};
    const mb_moe_family family = mb_moe_family_of(weights);
    for (int t = 0; t < 9; t++) {
        printf("%-8s %-8s T=%4lld picked %s:", what, mb_dtype_name(weights), (long long)tokens[t],
               mb_moe_tiles[mb_moe_pick_dense(family, tokens[t], n, mb_n_processors())].name);
        for (int tile = 0; tile < MB_MOE_N_TILES; tile++)
            if (mb_moe_tiles[tile].family == family) {
                const tiled c = {all, tokens[t], tile, N};
                printf("  %s %.1f%s", mb_moe_tiles[tile].name, time_graph(launch_tiled, &c, flush) / N,
                       tile == mb_moe_pick(family, tokens[t], 1) ? " (before)" : "");
            }
        printf("\n");
    }
    for (int i = 0; i < N; i++)
        free_layer(&all[i]);
}

/* The layer of many rows as it is called, with residual, and by every tile of the dense kernel without. */
typedef struct dense_run {
    const layer *links;
    int64_t n_tokens;
    mb_dense_plan plan;
    int way, n_links; /* 0: as called; 1: by plan; 2: the grouped GEMM with its tiles; 3: plan and residual */
} dense_run;

static void launch_dense(const void *context, cudaStream_t stream) {
    const dense_run *c = (const dense_run *)context;
    for (int i = 0; i < c->n_links; i++) {
        const layer *l = &c->links[i];
        mb_gemm_args args = rows_of(l, 0, c->n_tokens);
        if (c->way == 0) {
            MB(mb_gemm_sm90(&args, l->workspace, l->workspace_bytes, stream));
            continue;
        }
        const mb_grouped_gemm_args g = grouped_of(l, &args);
        if (c->way == 2) {
            mb_arena arena = {(char *)l->grouped_workspace, l->grouped_bytes, 0, 0, 0};
            const mb_grouped_gemm_layout layout = mb_grouped_gemm_sm90_layout(&g, c->plan.tile, &arena);
            MB(mb_experts_cut_tiles(&layout.tiles, NULL, 1, g.n_rows, stream));
            MB(mb_experts_one_gemm(&g, &layout.tiles, layout.scratch, stream));
        } else
            MB(mb_experts_dense(&g, c->way == 3 ? l->residual : NULL, &c->plan, stream));
    }
}

static void time_dense(const char *what, int64_t n, int64_t k, mb_dtype weights, int big) {
    enum { N = 4 };
    static const int64_t tokens[] = {128, 256, 512, 1024, 2048, 4096, 8192};
    layer all[N];
    for (int i = 0; i < N; i++)
        all[i] = make_layer(MB_BF16, weights, MB_BF16, 8192, n, k, 128, 1000u + 10u * (uint32_t)i);
    for (int i = 0; i < N && weights == MB_F8_E4M3; i++)
        quantize(&all[i], &all[i].args, NULL);
    const mb_moe_family family = mb_moe_family_of(weights);
    const int32_t n_processors = mb_n_processors();
    for (int t = 0; t < 7; t++) {
        const int64_t T = tokens[t];
        dense_run c = {all, T, {}, 0, T >= 2048 ? 2 : N};
        const double tflop = 2e-6 * (double)T * (double)n * (double)k;
        c.plan = mb_dense_plan_of(family, T, n, k, n_processors);
        const double bare = time_graph(launch_dense, &c, flush) / c.n_links;
        for (int i = 0; i < N; i++)
            all[i].args.residual = all[i].residual;
        const double with_residual = time_graph(launch_dense, &c, flush) / c.n_links;
        for (int i = 0; i < N; i++)
            all[i].args.residual = NULL;
        printf("%-8s %-8s T=%4lld picked %s rows %d band %d: %.1f us %.0f TFLOP/s, residual %.1f\n   ", what,
               mb_dtype_name(weights), (long long)T, mb_moe_tiles[c.plan.tile].name, c.plan.tile_rows,
               c.plan.band, bare, tflop / bare, with_residual);
        for (int tile = 0; tile < MB_MOE_N_TILES; tile++) {
            const mb_moe_tile *of = &mb_moe_tiles[tile];
            if (of->family != family || of->max_tokens < 64 || (T > 1024 && of->max_tokens == 64))
                continue;
            c.plan = mb_dense_plan_with(tile, T, n, k, n_processors);
            c.way = 1;
            printf("  %s/%d %.1f", of->name, c.plan.tile_rows,
                   time_graph(launch_dense, &c, flush) / c.n_links);
            c.way = 2;
            printf(" (tiles %.1f)", time_graph(launch_dense, &c, flush) / c.n_links);
        }
        printf("\n");
        if (!big || T < 1024)
            continue;
        c.way = 1;
        const int tile = family == MB_MOE_FP8 ? MB_MOE_TILE_fp8_w256_t256 : MB_MOE_TILE_w256_t288;
        printf("    pair, rows:");
        for (int32_t rows = family == MB_MOE_FP8 ? 256 : 208; rows <= mb_moe_tiles[tile].max_tokens;
             rows += 16) {
            c.plan = mb_dense_plan_with(tile, T, n, k, n_processors);
            c.plan.tile_rows = rows;
            printf(" %d %.1f", rows, time_graph(launch_dense, &c, flush) / c.n_links);
        }
        printf("; bands:");
        for (int32_t band = 4; band <= 64; band *= 2) {
            c.plan = mb_dense_plan_with(tile, T, n, k, n_processors);
            c.plan.band = band;
            printf(" %d %.1f", band, time_graph(launch_dense, &c, flush) / c.n_links);
        }
        printf("\n");
    }
    fflush(stdout);
    for (int i = 0; i < N; i++)
        free_layer(&all[i]);
}

static void time_all_dense(void) {
    static const mb_dtype weights[] = {MB_BF16, MB_F8_E4M3};
    for (int w = 0; w < 2; w++) {
        time_dense("qkv", 5120, 2048, weights[w], 1);
        time_dense("o", 2048, 4096, weights[w], 1);
        time_dense("235B qkv", 9216, 4096, weights[w], 0);
        time_dense("235B o", 4096, 8192, weights[w], 0);
    }
}

int main(int argc, char **argv) {
    int check = 1, timed = 1, plans = 0, tiles = 0, dense = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--check"))
            timed = 0;
        else if (!strcmp(argv[i], "--small"))
            is_small = 1, timed = 0;
        else if (!strcmp(argv[i], "--time"))
            check = 0;
        else if (!strcmp(argv[i], "--plans"))
            plans = 1;
        else if (!strcmp(argv[i], "--tiles"))
            tiles = 1;
        else if (!strcmp(argv[i], "--dense"))
            dense = 1;
        else {
            fprintf(stderr, "gemm_check [--check | --small | --time] [--dense] [--plans] [--tiles]\n");
            return 2;
        }
    }
    if (check && !dense)
        check_all();
    if (timed)
        flush = allocate(FLUSH_BYTES);
    if (dense && check)
        check_all_dense();
    if (dense && timed)
        time_all_dense();
    if (timed && !dense) {
        static const mb_dtype weights[] = {MB_BF16, MB_F8_E4M3};
        for (int w = 0; w < 2; w++) {
            time_shape("qkv", 5120, 2048, weights[w], plans);
            time_shape("o", 2048, 4096, weights[w], plans);
            time_shape("235B qkv", 9216, 4096, weights[w], plans);
            time_shape("235B o", 4096, 8192, weights[w], plans);
            if (tiles) {
                time_tiles("qkv", 5120, 2048, weights[w]);
                time_tiles("o", 2048, 4096, weights[w]);
            }
        }
        time_shape("lm_head", 151936, 2048, MB_BF16, plans);
    }
    printf(wrong ? "%d WRONG\n" : "all right\n", wrong);
    return wrong ? 1 : 0;
}
