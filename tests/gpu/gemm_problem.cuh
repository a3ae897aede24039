/*
 * gemm_problem.cuh - a random grouped GEMM on the GPU, with the output of up to GEMM_SAMPLES of its rows from
 * a naive kernel that sums in fp64 and rounds nowhere.
 */
#ifndef MB_TESTS_GEMM_PROBLEM_CUH
#define MB_TESTS_GEMM_PROBLEM_CUH

#include "kinds.cuh"
#include "reference.cuh"

enum { GEMM_SAMPLES = 512 };

enum groups {
    DRAWN,      /* each row draws its group: some are empty where there are few rows */
    TAKES_ALL,  /* the middle group has all rows */
    HALF_EMPTY, /* only odd groups have rows */
    DENSE,      /* one group, offsets NULL */
};

enum gemm_feature {
    GEMM_BIAS = 1,   /* fp32 */
    NARROW_BIAS = 2, /* of a's dtype, with fp8 bf16 */
    ROW_WEIGHT = 4,
    GATHERED = 8,
    ROWS_BEHIND = 16, /* offsets[E] < n_rows */
    ROWS_BEFORE = 32, /* offsets[0] > 0 */
    ZERO_ROW = 64,    /* the first row of a is 0 */
};

typedef struct gemm_shape {
    int R, width, K, E; /* width: columns of out. fp8 in or out: width and K are rounded up to 16 */
    int32_t scale_rows; /* of fp8_block */
    enum groups groups;
    unsigned features;
} gemm_shape;

typedef struct gemm_problem {
    char name[128];
    const kind *k;
    gemm_shape s;
    mb_grouped_gemm_args args;
    int32_t *offsets; /* host, [E + 1] */
    int n_samples;
    int64_t stride;
    float *reference; /* host, [n_samples, width]; 0 in rows of no group */
} gemm_problem;

static inline uint32_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*state >> 33);
}

static inline int32_t *upload_ints(const int32_t *host, int64_t n) {
    int32_t *out = (int32_t *)allocate(sizeof(int32_t) * (size_t)n);
    CUDA(cudaMemcpy(out, host, sizeof(int32_t) * (size_t)n, cudaMemcpyHostToDevice));
    return out;
}

static inline int32_t *cut_groups(const gemm_shape *s, uint64_t seed) {
    const int E = s->E, first = s->features & ROWS_BEFORE ? 3 : 0;
    const int n_rows = s->R - first - (s->features & ROWS_BEHIND ? s->R / 4 : 0);
    int32_t *offsets = (int32_t *)host_allocate(sizeof(int32_t) * ((size_t)E + 1));
    for (int r = 0; r < n_rows; r++) {
        int e = s->groups == TAKES_ALL ? E / 2 : (int)(next_random(&seed) % (uint32_t)E);
        e = s->groups == HALF_EMPTY && E > 1 ? e / 2 * 2 + 1 : e;
        offsets[e < E ? e + 1 : E]++;
    }
    offsets[0] = first;
    for (int e = 0; e < E; e++)
        offsets[e + 1] += offsets[e];
    return offsets;
}

/* Rows of a; those that no group has are not to be followed. */
static inline int32_t *draw_rows(const gemm_problem *p, int64_t n_a_rows, uint64_t seed) {
    const int R = p->s.R;
    int32_t *rows = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)R);
    for (int r = 0; r < R; r++)
        rows[r] = r < p->offsets[0] || r >= p->offsets[p->s.E]
                      ? -1
                      : (int32_t)(next_random(&seed) % (uint32_t)n_a_rows);
    int32_t *out = upload_ints(rows, R);
    free(rows);
    return out;
}

/* out[s][column] of sorted row s * stride, a warp each; group[s] is -1 where there is none. a_row is scratch
 * of [n_samples, K]. */
static __global__ void gather_rows(mb_grouped_gemm_args g, int64_t stride, const int32_t *group,
                                   float *a_row) {
    const int64_t K = g.b.cols, s = blockIdx.x, n_blocks = (K + SCALE_BLOCK - 1) / SCALE_BLOCK;
    if (group[s] < 0)
        return;
    const int64_t row = g.row_index ? g.row_index[s * stride] : s * stride;
    for (int64_t i = threadIdx.x; i < K; i += blockDim.x) {
        const float scale = !g.a_scale            ? 1.0f
                            : g.b.scale_rows == 0 ? g.a_scale[0]
                                                  : g.a_scale[row * n_blocks + i / SCALE_BLOCK];
        a_row[s * K + i] = scale * load_value(g.a, row * K + i, g.dtype);
    }
}

static __global__ void reference_rows(mb_grouped_gemm_args g, int64_t stride, const int32_t *group, int gated,
                                      int64_t width, const float *a_row, float *out) {
    const int64_t s = blockIdx.y, column = blockIdx.x * 8 + threadIdx.x / 32;
    const int64_t e = group[s];
    if (column >= width || e < 0)
        return;
    const float *a = a_row + s * g.b.cols;
    const int64_t bias = e * g.b.rows + column;
    double value = weight_dot(g.b, e, column, a) + value_or_0(g.bias, bias, g.bias_dtype);
    value = reference_activation(g.activation, value);
    if (gated)
        value *= weight_dot(g.b, e, column + width, a) + value_or_0(g.bias, bias + width, g.bias_dtype);
    if (g.row_weight)
        value *= g.row_weight[s * stride];
    if (threadIdx.x % 32 == 0)
        out[s * width + column] = (float)value;
}

static inline float *reference_gemm(const gemm_problem *p) {
    const mb_grouped_gemm_args *g = &p->args;
    const int64_t width = p->s.width, n = p->n_samples;
    int32_t *groups = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)n);
    for (int64_t s = 0; s < n; s++) {
        const int64_t row = s * p->stride;
        int e = 0;
        while (e < p->s.E && row >= p->offsets[e + 1])
            e++;
        groups[s] = row < p->offsets[0] || e == p->s.E ? -1 : e;
    }
    int32_t *on_device = upload_ints(groups, n);
    float *a_row = (float *)allocate(sizeof(float) * (size_t)(n * p->s.K));
    float *out = (float *)allocate(sizeof(float) * (size_t)(n * width));
    CUDA(cudaMemset(out, 0, sizeof(float) * (size_t)(n * width)));
    gather_rows<<<(unsigned)n, 256>>>(*g, p->stride, on_device, a_row);
    reference_rows<<<dim3((unsigned)(width + 7) / 8, (unsigned)n), 256>>>(
        *g, p->stride, on_device, mb_activation_is_gated(g->activation), width, a_row, out);
    CUDA(cudaGetLastError());
    float *host = (float *)download(out, sizeof(float) * (size_t)(n * width));
    CUDA(cudaFree(on_device));
    CUDA(cudaFree(a_row));
    CUDA(cudaFree(out));
    free(groups);
    return host;
}

static inline size_t gemm_out_bytes(const gemm_problem *p) {
    return (size_t)p->s.R * (size_t)p->s.width * mb_dtype_bytes(p->args.out_dtype);
}

static inline size_t gemm_scale_bytes(const gemm_problem *p) {
    return p->args.out_scale ? sizeof(float) * (size_t)(p->s.R * n_scale_blocks(p->s.width)) : 0;
}

static inline void make_gemm(gemm_problem *p, const kind *k, const gemm_shape *s, mb_activation activation,
                             mb_dtype out_dtype, uint64_t seed) {
    memset(p, 0, sizeof(*p));
    p->k = k;
    p->s = *s;
    if (k->weights == MB_F8_E4M3 || out_dtype == MB_F8_E4M3) {
        p->s.width = (s->width + 15) / 16 * 16;
        p->s.K = (s->K + 15) / 16 * 16;
    }
    const int64_t R = s->R, K = p->s.K, E = s->E, width = p->s.width;
    const int64_t N = mb_activation_is_gated(activation) ? 2 * width : width;
    snprintf(p->name, sizeof(p->name), "%s R=%d N=%d K=%d E=%d activation %d to %s", k->name, s->R, (int)N,
             p->s.K, s->E, (int)activation, mb_dtype_name(out_dtype));
    p->offsets = cut_groups(s, seed);
    mb_grouped_gemm_args *g = &p->args;
    g->dtype = k->weights;
    g->out_dtype = out_dtype;
    g->activation = activation;
    g->f32_math = k->math;
    g->n_rows = R;
    const int by_block = k == &kinds[FP8_BLOCK], is_fp8 = k->weights == MB_F8_E4M3;
    g->b = random_weight(E, N, K, k->weights, by_block ? s->scale_rows : 0, seed + 2);
    const int64_t n_a_rows = s->features & GATHERED ? R / 8 + 1 : R;
    g->a = random_values(n_a_rows * K, g->dtype, seed + 1, is_fp8 ? 128.0f : 1.0f);
    if (s->features & ZERO_ROW)
        CUDA(cudaMemset((void *)g->a, 0, (size_t)K * mb_dtype_bytes(g->dtype)));
    if (is_fp8)
        g->a_scale = random_scales(by_block ? n_a_rows * n_scale_blocks(K) : 1, seed + 4, 1.0f / 128.0f);
    if (s->features & GATHERED)
        g->row_index = draw_rows(p, n_a_rows, seed + 5);
    if (s->groups != DENSE)
        g->offsets = upload_ints(p->offsets, E + 1);
    if (s->features & (GEMM_BIAS | NARROW_BIAS)) {
        g->bias_dtype = s->features & GEMM_BIAS ? MB_F32 : k->activations;
        g->bias = random_values(E * N, g->bias_dtype, seed + 6, 0.5f);
    }
    if (s->features & ROW_WEIGHT)
        g->row_weight = (const float *)random_values(R, MB_F32, seed + 7, 1.0f);
    g->out = allocate(gemm_out_bytes(p));
    if (out_dtype == MB_F8_E4M3)
        g->out_scale = (float *)allocate(sizeof(float) * (size_t)(R * n_scale_blocks(width)));
    p->n_samples = R < GEMM_SAMPLES ? (int)R : GEMM_SAMPLES;
    p->stride = R / p->n_samples;
    p->reference = reference_gemm(p);
}

static inline void free_gemm(gemm_problem *p) {
    const mb_grouped_gemm_args *g = &p->args;
    const void *all[] = {g->a,       g->a_scale, g->row_index,  g->offsets, g->b.data,
                         g->b.scale, g->bias,    g->row_weight, g->out,     g->out_scale};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        CUDA(cudaFree((void *)all[i]));
    free(p->offsets);
    free(p->reference);
}

#endif
