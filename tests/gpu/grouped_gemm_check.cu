/*
 * grouped_gemm_check.cu - checks and times the grouped GEMM on a GPU.
 *
 *   grouped_gemm_check [--dtype NAME] [--check] [--small] [--bare]
 *
 * Every shape in every kind (kinds.cuh) with every dtype of out; the activations take turns, so that each
 * kind and dtype of out meets all eight. Fresh random data, poisoned output and workspace: up to GEMM_SAMPLES
 * rows against a naive kernel, an fp8 out's scales too, every element of the groups' rows written, no byte of
 * other rows, and the second run bitwise equal to the first. Then no rows and wrong arguments. Times are
 * those of a graph's replay (timing.cuh). Exit status 1 when anything is wrong.
 *
 * --check times nothing, --small leaves out the cases that are timed (for compute-sanitizer), --bare poisons
 * nothing (for its initcheck).
 */
#include "gemm_problem.cuh"
#include "gemm_refusals.cuh"
#include "ops/moe/moe_sm90.h"
#include "timing.cuh"

static const gemm_shape shapes[] = {
    {1, 16, 64, 1, 128, DENSE, 0},
    {5, 72, 208, 7, 64, DRAWN, GEMM_BIAS},
    {33, 48, 144, 9, 32, DRAWN, GATHERED | ROW_WEIGHT},
    {64, 128, 256, 4, 128, TAKES_ALL, ZERO_ROW},
    {130, 200, 320, 60, 64, HALF_EMPTY, GATHERED | NARROW_BIAS},
    {257, 264, 136, 1, 128, DENSE, GEMM_BIAS | ROW_WEIGHT},
    {600, 104, 96, 11, 128, DRAWN, GATHERED | ROWS_BEHIND | ZERO_ROW},
    {97, 400, 1424, 5, 32, DRAWN, ROWS_BEFORE | ROWS_BEHIND | NARROW_BIAS},
    {1000, 64, 72, 3, 128, TAKES_ALL, GATHERED | GEMM_BIAS | ROW_WEIGHT},
    {31, 504, 1032, 100, 128, DRAWN, ROWS_BEFORE},
    {700, 24, 40, 2, 64, HALF_EMPTY, ROWS_BEHIND | ROW_WEIGHT},
    {320, 336, 656, 1, 128, DENSE, GATHERED | ZERO_ROW},
};
enum { N_SHAPES = sizeof(shapes) / sizeof(shapes[0]), N_ACTIVATIONS = MB_ACT_NONE + 1 };

typedef struct timed_shape {
    const char *what;
    gemm_shape s;
    mb_activation activation;
    double cublas[2]; /* TFLOP/s of bf16 and fp8 on one H100 SXM; 0: not known */
} timed_shape;

static const timed_shape timed_shapes[] = {
    {"dense", {8192, 8192, 8192, 1, 128, DENSE, 0}, MB_ACT_NONE, {789, 1448}},
    {"T=4096 w13", {32768, 768, 2048, 128, 128, DRAWN, GATHERED}, MB_ACT_SWIGLU, {0, 0}},
    {"T=4096 w2", {32768, 2048, 768, 128, 128, DRAWN, 0}, MB_ACT_NONE, {0, 0}},
    {"T=16384 w13", {131072, 768, 2048, 128, 128, DRAWN, GATHERED}, MB_ACT_SWIGLU, {0, 0}},
    {"T=16384 w2", {131072, 2048, 768, 128, 128, DRAWN, 0}, MB_ACT_NONE, {0, 0}},
};

typedef struct options {
    int check_only, small, bare;
    const char *dtype;
} options;

/* ---- What the output must be */

static int is_poison(const unsigned char *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != 0xff)
            return 0;
    return 1;
}

/* Rows that no group has. */
static void check_untouched(const gemm_problem *p, const char *what, const void *matrix, size_t row_bytes) {
    const int first = p->offsets[0], end = p->offsets[p->s.E];
    unsigned char *before = (unsigned char *)download(matrix, row_bytes * (size_t)first);
    unsigned char *behind = (unsigned char *)download((const char *)matrix + row_bytes * (size_t)end,
                                                      row_bytes * (size_t)(p->s.R - end));
    if (!is_poison(before, row_bytes * (size_t)first) ||
        !is_poison(behind, row_bytes * (size_t)(p->s.R - end)))
        complain(p->name, what, 0);
    free(before);
    free(behind);
}

/* fp8's values times their scales, which must be what the reference's largest values call for. */
static void apply_scales(const gemm_problem *p, float *found) {
    const int64_t width = p->s.width, n_blocks = n_scale_blocks(width);
    float *scales = download_rows(p->args.out_scale, p->n_samples, p->stride, n_blocks, MB_F32);
    int n_bad = 0;
    for (int64_t s = 0; s < p->n_samples; s++)
        for (int64_t block = 0; block < n_blocks; block++) {
            const int64_t end =
                block * SCALE_BLOCK + SCALE_BLOCK < width ? block * SCALE_BLOCK + SCALE_BLOCK : width;
            const float scale = scales[s * n_blocks + block];
            float largest = 0;
            for (int64_t c = block * SCALE_BLOCK; c < end; c++) {
                largest = fmaxf(largest, fabsf(p->reference[s * width + c]));
                found[s * width + c] *= scale;
            }
            const float right = largest > 0 ? largest / FP8_LARGEST : 1.0f;
            const int64_t row = s * p->stride;
            if (row >= p->offsets[0] && row < p->offsets[p->s.E])
                n_bad += !(fabsf(scale - right) <= 0.01f * right);
        }
    if (n_bad)
        complain(p->name, "scales of out", n_bad);
    free(scales);
}

static double gemm_difference(const gemm_problem *p) {
    const int64_t width = p->s.width;
    float *found = download_rows(p->args.out, p->n_samples, p->stride, width, p->args.out_dtype);
    if (p->args.out_scale)
        apply_scales(p, found);
    for (int64_t s = 0; s < p->n_samples; s++)
        if (s * p->stride < p->offsets[0] || s * p->stride >= p->offsets[p->s.E])
            memset(found + s * width, 0, sizeof(float) * (size_t)width);
    const double difference = calc_diff(found, p->reference, p->n_samples * width);
    free(found);
    return difference;
}

/* Elements of the groups' rows that differ or are NaN. */
static double row_differences(const gemm_problem *p, const void *a, const void *b, int64_t width,
                              mb_dtype dtype) {
    const size_t skip = (size_t)(p->offsets[0] * width) * mb_dtype_bytes(dtype);
    return differences((const char *)a + skip, (const char *)b + skip,
                       (p->offsets[p->s.E] - p->offsets[0]) * width, dtype);
}

static double check_gemm(const gemm_problem *p, int poison) {
    const mb_grouped_gemm_args *g = &p->args;
    const size_t out_bytes = gemm_out_bytes(p), scale_bytes = gemm_scale_bytes(p);
    const int64_t n_blocks = n_scale_blocks(p->s.width);
    const size_t workspace_bytes = bytes_of(mb_grouped_gemm_sm90_workspace, g);
    void *workspace = allocate(workspace_bytes), *first = allocate(out_bytes);
    float *first_scale = (float *)allocate(scale_bytes);
    for (int repeat = 0; repeat < 2; repeat++) {
        if (poison) {
            CUDA(cudaMemset(workspace, repeat ? 0x7f : 0xff, workspace_bytes));
            CUDA(cudaMemset(g->out, 0xff, out_bytes));
            if (g->out_scale)
                CUDA(cudaMemset(g->out_scale, 0xff, scale_bytes));
        }
        MB(mb_grouped_gemm_sm90(g, workspace, workspace_bytes, NULL));
        CUDA(cudaDeviceSynchronize());
        if (repeat == 0) {
            CUDA(cudaMemcpy(first, g->out, out_bytes, cudaMemcpyDeviceToDevice));
            if (g->out_scale)
                CUDA(cudaMemcpy(first_scale, g->out_scale, scale_bytes, cudaMemcpyDeviceToDevice));
        }
    }
    double n = row_differences(p, first, g->out, p->s.width, g->out_dtype);
    if (g->out_scale)
        n += row_differences(p, first_scale, g->out_scale, n_blocks, MB_F32);
    if (n > 0)
        complain(p->name, "elements not written, NaN, or not equal on repeat", n);
    if (poison) {
        check_untouched(p, "rows of no group were written", g->out, out_bytes / (size_t)p->s.R);
        if (g->out_scale)
            check_untouched(p, "scales of no group's rows were written", g->out_scale,
                            scale_bytes / (size_t)p->s.R);
    }
    const double difference = gemm_difference(p);
    const double bar = g->out_dtype == MB_F8_E4M3 ? 1e-3 : p->k->largest_difference;
    if (!(difference <= bar))
        complain(p->name, "too far from the reference", difference);
    CUDA(cudaFree(workspace));
    CUDA(cudaFree(first));
    CUDA(cudaFree(first_scale));
    return difference;
}

/* ---- Times */

typedef struct timed_call {
    const mb_grouped_gemm_args *args;
    void *workspace;
    size_t workspace_bytes;
} timed_call;

static void launch(const void *context, cudaStream_t stream) {
    const timed_call *c = (const timed_call *)context;
    MB(mb_grouped_gemm_sm90(c->args, c->workspace, c->workspace_bytes, stream));
}

static void run_timed(const kind *k, const timed_shape *t, mb_dtype out_dtype, const options *o,
                      void *flush) {
    gemm_problem p;
    make_gemm(&p, k, &t->s, t->activation, out_dtype, 77);
    const double difference = check_gemm(&p, !o->bare);
    printf("%-10s %-12s to %-8s diff %.1e", k->name, t->what, mb_dtype_name(out_dtype), difference);
    if (!o->check_only) {
        timed_call call = {&p.args, NULL, bytes_of(mb_grouped_gemm_sm90_workspace, &p.args)};
        call.workspace = allocate(call.workspace_bytes);
        const double us = time_graph(launch, &call, flush);
        const double flops = 2.0 * t->s.R * (double)p.args.b.rows * t->s.K;
        const double bytes = (double)p.args.b.count * p.args.b.rows * t->s.K * mb_dtype_bytes(k->weights);
        const double floor = floor_us(k, bytes, flops), cublas = t->cublas[k->weights == MB_F8_E4M3];
        printf("  %9.1f us %7.1f TFLOP/s  floor %8.1f us, %5.1f %%", us, flops / us * 1e-6, floor,
               100 * floor / us);
        if (cublas > 0)
            printf("  cuBLAS %.0f TFLOP/s: %.0f %%", cublas, 100 * flops / us * 1e-6 / cublas);
        CUDA(cudaFree(call.workspace));
    }
    printf("\n");
    fflush(stdout);
    free_gemm(&p);
}

/* ---- All cases of a kind */

/* The dtypes of out that the kind can write; how many. */
static int outs_of(const kind *k, mb_dtype outs[4]) {
    int n = 0;
    outs[n++] = k->activations;
    if (k->activations != MB_F32) {
        outs[n++] = MB_F32;
        outs[n++] = MB_F8_E4M3;
    }
    if (k->weights == MB_F8_E4M3)
        outs[n++] = MB_F16;
    return n;
}

static void run_kind(int name, const options *o, void *flush) {
    const kind *k = &kinds[name];
    mb_dtype outs[4];
    const int n_outs = outs_of(k, outs);
    for (int out = 0; out < n_outs; out++) {
        double worst = 0;
        for (int i = 0; i < N_SHAPES; i++) {
            gemm_problem p;
            make_gemm(&p, k, &shapes[i], (mb_activation)((i + 3 * out + name) % N_ACTIVATIONS), outs[out],
                      (uint64_t)(1000 * (i + 1)));
            worst = fmax(worst, check_gemm(&p, !o->bare));
            if (i == 1) /* several groups and a bias */
                check_gemm_refusals(&p);
            free_gemm(&p);
        }
        printf("%-10s %d shapes to %-8s largest diff %.1e\n", k->name, N_SHAPES, mb_dtype_name(outs[out]),
               worst);
        fflush(stdout);
    }
    if (o->small || !(name == BF16 || name == FP8_TENSOR || name == FP8_BLOCK))
        return;
    for (size_t i = 0; i < sizeof(timed_shapes) / sizeof(timed_shapes[0]); i++) {
        const timed_shape *t = &timed_shapes[i];
        run_timed(k, t, MB_BF16, o, flush);
        if (name == FP8_BLOCK && t->activation != MB_ACT_NONE)
            run_timed(k, t, MB_F8_E4M3, o, flush);
    }
}

int main(int argc, char **argv) {
    options o = {};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--check") == 0)
            o.check_only = 1;
        else if (strcmp(argv[i], "--small") == 0)
            o.small = 1;
        else if (strcmp(argv[i], "--bare") == 0)
            o.bare = 1;
        else if (strcmp(argv[i], "--dtype") == 0 && i + 1 < argc)
            o.dtype = argv[++i];
        else {
            fprintf(stderr, "grouped_gemm_check: %s is no option, or lacks its value\n", argv[i]);
            return 2;
        }
    }
    cudaDeviceProp card;
    CUDA(cudaGetDeviceProperties(&card, 0));
    printf("%s\n", card.name);
    void *flush = allocate(FLUSH_BYTES);
    int n_kinds = 0;
    for (int name = 0; name < N_KINDS; name++)
        if (!o.dtype || strcmp(o.dtype, kinds[name].name) == 0) {
            run_kind(name, &o, flush);
            n_kinds++;
        }
    CUDA(cudaFree(flush));
    printf("%s\n", wrong ? "WRONG" : n_kinds ? "all right" : "no such dtype");
    return wrong != 0 || n_kinds == 0;
}
