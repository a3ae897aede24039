/*
 * backward_rows_times.cuh - times of the backward's gradients of rows on shapes of layers that are
 * trained, beside the grouped GEMM with the same rows, outputs and K.
 */
#ifndef MB_TESTS_BACKWARD_ROWS_TIMES_CUH
#define MB_TESTS_BACKWARD_ROWS_TIMES_CUH

#include "backward_rows_problem.cuh"
#include "ops/moe/moe_sm90.h"

typedef struct timed_layer {
    int T, H, I, E, K, even; /* even: every expert has as many rows, as after token rounding */
} timed_layer;

static const timed_layer timed_layers[] = {
    {32768, 4096, 1024, 128, 8, 0}, {32768, 2048, 768, 128, 8, 0}, {4096, 4096, 1024, 128, 8, 0},
    {24576, 1536, 256, 128, 8, 0},  {32768, 4096, 512, 128, 8, 0}, {32768, 4096, 2048, 64, 4, 0},
    {24576, 1536, 1024, 32, 2, 0},  {4096, 4096, 1024, 256, 8, 0}, {16384, 4096, 1024, 256, 8, 1},
};

/* Rows sorted by expert, tokens ascending; K different experts for each token. */
static inline void route_evenly(rows_problem *p, const timed_layer *l, uint64_t seed) {
    const int64_t R = (int64_t)l->T * l->K;
    int32_t *choice = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)R);
    p->offsets = (int32_t *)host_allocate(sizeof(int32_t) * ((size_t)l->E + 1));
    p->row_token = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)R);
    int32_t *next = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)l->E);
    for (int64_t t = 0; t < l->T; t++)
        for (int k = 0; k < l->K; k++) {
            int32_t *mine = choice + t * l->K, e;
            int is_new;
            do {
                e = l->even ? (int32_t)((t * l->K + k) % l->E) : (int32_t)(draw(&seed) % (uint32_t)l->E);
                is_new = 1;
                for (int i = 0; i < k; i++)
                    is_new &= mine[i] != e;
            } while (!is_new);
            mine[k] = e;
            p->offsets[e + 1]++;
        }
    for (int e = 0; e < l->E; e++) {
        next[e] = p->offsets[e];
        p->offsets[e + 1] += p->offsets[e];
    }
    for (int64_t i = 0; i < R; i++)
        p->row_token[next[choice[i]]++] = (int32_t)(i / l->K);
    free(next);
    free(choice);
}

/* The median of nine launches after two others, in us. Their arrays are many times the size of L2, so
 * each launch finds little there. */
template <class run> static inline double time_us(const run &launch) {
    enum { TIMED = 9 };
    float times[TIMED];
    cudaEvent_t start, stop;
    CUDA(cudaEventCreate(&start));
    CUDA(cudaEventCreate(&stop));
    for (int i = -2; i < TIMED; i++) {
        CUDA(cudaEventRecord(start));
        launch();
        CUDA(cudaEventRecord(stop));
        CUDA(cudaEventSynchronize(stop));
        if (i >= 0)
            CUDA(cudaEventElapsedTime(&times[i], start, stop));
    }
    for (int i = 0; i < TIMED; i++)
        for (int j = i + 1; j < TIMED; j++)
            if (times[j] < times[i]) {
                const float other = times[i];
                times[i] = times[j];
                times[j] = other;
            }
    CUDA(cudaEventDestroy(start));
    CUDA(cudaEventDestroy(stop));
    return 1e3 * times[TIMED / 2];
}

/* The grouped GEMM of as many rows, outputs and steps of K, its weights the same bytes read along K. */
static inline double time_plain(const rows_problem *p, int is_dx) {
    mb_grouped_gemm_args g = {};
    g.offsets = p->rows.offsets;
    g.n_rows = p->s.R;
    g.dtype = g.out_dtype = g.b.dtype = p->rows.dtype;
    g.activation = MB_ACT_NONE;
    g.b.count = p->s.E;
    if (is_dx) {
        g.a = p->dx.dp;
        g.b.data = (void *)p->dx.w13;
        g.b.rows = p->s.H;
        g.b.cols = p->dx.width13;
        g.out = p->dx.dx_rows;
    } else {
        g.a = p->rows.d_out;
        g.row_index = p->rows.row_token;
        g.b.data = (void *)p->rows.w2;
        g.b.rows = p->s.I;
        g.b.cols = p->s.H;
        g.out = p->rows.hs;
    }
    const size_t bytes = bytes_of(mb_grouped_gemm_sm90_workspace, &g);
    void *workspace = allocate(bytes);
    const double us = time_us([&] { MB(mb_grouped_gemm_sm90(&g, workspace, bytes, NULL)); });
    CUDA(cudaFree(workspace));
    return us;
}

static inline void time_layer(const timed_layer *l) {
    rows_problem p = {};
    const double R = (double)l->T * l->K, H = l->H, I = l->I, E = l->E;
    p.s = {l->T, l->T * l->K, l->H, l->I, l->E, ROWS_DRAWN, 0};
    p.rows.n_tokens = l->T;
    p.rows.n_rows = p.dx.n_rows = p.s.R;
    p.rows.hidden = p.dx.hidden = l->H;
    p.rows.intermediate = l->I;
    p.dx.width13 = 2 * l->I;
    p.rows.n_experts = p.dx.n_experts = l->E;
    p.rows.dtype = p.dx.dtype = MB_BF16;
    p.rows.activation = MB_ACT_SWIGLU;
    route_evenly(&p, l, 7);
    upload_routing(&p);
    p.rows.d_out = random_values((int64_t)l->T * l->H, MB_BF16, 1, 1.0f);
    p.rows.row_weight = random_scales(p.s.R, 2, 0.125f);
    p.rows.w2 = random_values((int64_t)l->E * l->H * l->I, MB_BF16, 3, 0.02f);
    p.rows.p = random_values((int64_t)p.s.R * 2 * l->I, MB_BF16, 4, 1.0f);
    p.dx.w13 = random_values((int64_t)l->E * l->H * 2 * l->I, MB_BF16, 5, 0.02f);
    allocate_outputs(&p);
    p.dx.dp = p.rows.dp;
    const double rows_us = time_us([&] { run_rows(&p); }), dx_us = time_us([&] { run_dx(&p); }),
                 plain_us = time_plain(&p, 0), plain_dx_us = time_plain(&p, 1);
    const double flops = 2 * R * H * I, rows_bytes = R * I * 10 + 2 * l->T * H + 2 * E * H * I,
                 dx_bytes = R * (4 * I + 2 * H) + 4 * E * H * I;
    printf("%5d %4d %4d %3d %d%s | rows %7.0f us %4.0f TFLOP/s (plain %7.0f, %4.0f), bytes alone %6.0f us"
           " | dx %7.0f us %4.0f (plain %7.0f, %4.0f), bytes alone %6.0f us\n",
           l->T, l->H, l->I, l->E, l->K, l->even ? " even" : "", rows_us, flops / rows_us * 1e-6, plain_us,
           flops / plain_us * 1e-6, rows_bytes * 1e-6 / 3.0, dx_us, 2 * flops / dx_us * 1e-6, plain_dx_us,
           2 * flops / plain_dx_us * 1e-6, dx_bytes * 1e-6 / 3.0);
    fflush(stdout);
    p.dx.dp = NULL;
    p.kept[0] = NULL;
    free_problem(&p);
}

static inline void time_shapes(void) {
    printf(
        "T, H, I, E, K; plain: the grouped GEMM of the same size, weights along K, without p, dp and dot\n");
    for (size_t i = 0; i < sizeof(timed_layers) / sizeof(timed_layers[0]); i++)
        time_layer(&timed_layers[i]);
}

#endif
