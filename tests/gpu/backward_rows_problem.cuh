/*
 * backward_rows_problem.cuh - random inputs of the backward's gradients of rows, the same in fp64 by
 * naive kernels, and what must hold of the outputs.
 */
#ifndef MB_TESTS_BACKWARD_ROWS_PROBLEM_CUH
#define MB_TESTS_BACKWARD_ROWS_PROBLEM_CUH

#include "ops/common/dtype.h"
#include "ops/moe/backward/rows.h"
#include "values.cuh"

enum rows_drawn {
    ROWS_DRAWN,      /* each row draws its expert */
    ROWS_ALL_TO_ONE, /* the middle expert has all */
    ROWS_SKEWED,     /* the first ones have most, some none */
    ROWS_ODD_ONLY,   /* only odd experts have rows */
};
enum rows_feature {
    ROWS_BEFORE_AND_BEHIND = 1, /* rows in front of offsets[0] and behind offsets[E] */
    EXTREMES = 2,               /* p has zeros and values for which an activation is flat */
};

typedef struct rows_shape {
    int T, R, H, I, E;
    enum rows_drawn drawn;
    unsigned features;
} rows_shape;

enum output { DP, HS, DX, DOT, N_OUTPUTS };
static double largest[N_OUTPUTS]; /* calc_diff of all problems */

typedef struct rows_problem {
    char name[128];
    rows_shape s;
    mb_moe_backward_rows_args rows;
    mb_moe_backward_dx_args dx;   /* its dp is random too, not that of rows */
    int32_t *offsets, *row_token; /* on the host */
    int32_t *row_expert;          /* on the device, -1: none */
    void *workspace;
    size_t workspace_bytes;
    void *kept[N_OUTPUTS]; /* outputs of the first run */
} rows_problem;

static inline size_t output_bytes(const rows_problem *p, int output) {
    const size_t R = (size_t)p->s.R, width = (size_t)p->rows.intermediate;
    switch (output) {
    case DP:
        return R * (size_t)p->dx.width13 * 2;
    case HS:
        return R * width * 2;
    case DX:
        return R * (size_t)p->s.H * 2;
    default:
        return R * (size_t)mb_moe_backward_dot_parts((int64_t)width) * sizeof(float);
    }
}

static inline void *output_of(const rows_problem *p, int output) {
    return output == DP ? p->rows.dp : output == HS ? p->rows.hs : output == DX ? p->dx.dx_rows : p->rows.dot;
}

static inline uint32_t draw(uint64_t *state) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*state >> 33);
}

static inline int draw_expert(const rows_shape *s, uint64_t *seed) {
    const int e = (int)(draw(seed) % (uint32_t)s->E);
    switch (s->drawn) {
    case ROWS_ALL_TO_ONE:
        return s->E / 2;
    case ROWS_ODD_ONLY:
        return s->E > 1 ? e / 2 * 2 + 1 < s->E ? e / 2 * 2 + 1 : 1 : 0;
    case ROWS_SKEWED: {
        const int f = (int)(draw(seed) % (uint32_t)s->E), g = (int)(draw(seed) % (uint32_t)s->E);
        return e < f ? e < g ? e : g : f < g ? f : g;
    }
    default:
        return e;
    }
}

static inline void draw_routing(rows_problem *p, uint64_t seed) {
    const int R = p->s.R, E = p->s.E;
    const int first = p->s.features & ROWS_BEFORE_AND_BEHIND ? 5 : 0,
              n = R - first - (p->s.features & ROWS_BEFORE_AND_BEHIND ? R / 5 : 0);
    p->offsets = (int32_t *)host_allocate(sizeof(int32_t) * ((size_t)E + 1));
    p->row_token = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)R);
    for (int i = 0; i < n; i++)
        p->offsets[draw_expert(&p->s, &seed) + 1]++;
    p->offsets[0] = first;
    for (int e = 0; e < E; e++)
        p->offsets[e + 1] += p->offsets[e];
    for (int r = 0; r < R; r++) /* those of no expert are not to be followed */
        p->row_token[r] = r < first || r >= p->offsets[E] ? -1 : (int32_t)(draw(&seed) % (uint32_t)p->s.T);
}

static inline int32_t *upload(const int32_t *host, int64_t n) {
    int32_t *out = (int32_t *)allocate(sizeof(int32_t) * (size_t)n);
    CUDA(cudaMemcpy(out, host, sizeof(int32_t) * (size_t)n, cudaMemcpyHostToDevice));
    return out;
}

static __global__ void put_extremes(void *p, int64_t n, mb_dtype dtype) {
    const float values[] = {0.0f, -0.0f, 100.0f, -100.0f, 30.0f, -30.0f, 1e-4f, -8.0f};
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n / 5;
         i += (int64_t)gridDim.x * blockDim.x)
        store_value(p, 5 * i + i % 5, dtype, values[i / 5 % 8]);
}

static inline void upload_routing(rows_problem *p) {
    int32_t *expert = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)p->s.R);
    memset(expert, 0xff, sizeof(int32_t) * (size_t)p->s.R);
    for (int e = 0; e < p->s.E; e++)
        for (int r = p->offsets[e]; r < p->offsets[e + 1]; r++)
            expert[r] = e;
    p->row_expert = upload(expert, p->s.R);
    p->rows.offsets = p->dx.offsets = upload(p->offsets, p->s.E + 1);
    p->rows.row_token = upload(p->row_token, p->s.R);
    free(expert);
}

static inline void allocate_outputs(rows_problem *p) {
    p->rows.dp = allocate(output_bytes(p, DP));
    p->rows.hs = allocate(output_bytes(p, HS));
    p->dx.dx_rows = allocate(output_bytes(p, DX));
    p->rows.dot = (float *)allocate(output_bytes(p, DOT));
    const size_t of_rows = bytes_of(mb_moe_backward_rows_sm90_workspace, &p->rows),
                 of_dx = bytes_of(mb_moe_backward_dx_sm90_workspace, &p->dx);
    p->workspace_bytes = of_rows > of_dx ? of_rows : of_dx;
    p->workspace = allocate(p->workspace_bytes);
}

static inline void make_problem(rows_problem *p, const rows_shape *s, mb_activation activation,
                                mb_dtype dtype, uint64_t seed) {
    memset(p, 0, sizeof(*p));
    p->s = *s;
    const int64_t R = s->R, H = s->H, I = s->I, width13 = mb_activation_is_gated(activation) ? 2 * I : I;
    snprintf(p->name, sizeof(p->name), "%s T=%d R=%d H=%d I=%d E=%d activation %d", mb_dtype_name(dtype),
             s->T, s->R, s->H, s->I, s->E, (int)activation);
    draw_routing(p, seed);
    mb_moe_backward_rows_args *a = &p->rows;
    a->n_tokens = s->T;
    a->n_rows = p->dx.n_rows = R;
    a->hidden = p->dx.hidden = s->H;
    a->intermediate = s->I;
    a->n_experts = p->dx.n_experts = s->E;
    a->dtype = p->dx.dtype = dtype;
    a->activation = activation;
    p->dx.width13 = (int32_t)width13;
    upload_routing(p);
    a->d_out = random_values(s->T * H, dtype, seed + 1, 1.0f);
    a->row_weight = random_scales(R, seed + 2, 0.5f);
    a->w2 = random_values(s->E * H * I, dtype, seed + 3, 1.0f / sqrtf((float)H));
    void *values = random_values(R * width13, dtype, seed + 4, 1.5f);
    if (s->features & EXTREMES)
        put_extremes<<<256, 256>>>(values, R * width13, dtype);
    a->p = values;
    p->dx.dp = random_values(R * width13, dtype, seed + 5, 1.0f);
    p->dx.w13 = random_values(s->E * width13 * H, dtype, seed + 6, 1.0f / sqrtf((float)width13));
    allocate_outputs(p);
    for (int i = 0; i < N_OUTPUTS; i++)
        p->kept[i] = allocate(output_bytes(p, i));
    CUDA(cudaGetLastError());
}

static inline void free_all(const void *const *arrays, int n) {
    for (int i = 0; i < n; i++)
        CUDA(cudaFree((void *)arrays[i]));
}

static inline void free_problem(rows_problem *p) {
    const void *const arrays[] = {
        p->rows.d_out, p->rows.row_token, p->rows.row_weight, p->rows.offsets, p->rows.w2,  p->rows.p,
        p->rows.dp,    p->rows.hs,        p->rows.dot,        p->dx.dp,        p->dx.w13,   p->dx.dx_rows,
        p->row_expert, p->workspace,      p->kept[DP],        p->kept[HS],     p->kept[DX], p->kept[DOT]};
    free_all(arrays, sizeof(arrays) / sizeof(arrays[0]));
    free(p->offsets);
    free(p->row_token);
}

static inline void poison_outputs(const rows_problem *p, int repeat) {
    CUDA(cudaMemset(p->workspace, repeat ? 0x7f : 0xff, p->workspace_bytes));
    for (int i = 0; i < N_OUTPUTS; i++)
        CUDA(cudaMemset(output_of(p, i), 0xff, output_bytes(p, i)));
}

static inline void run_rows(const rows_problem *p) {
    MB(mb_moe_backward_rows_sm90(&p->rows, p->workspace, p->workspace_bytes, NULL));
}
static inline void run_dx(const rows_problem *p) {
    MB(mb_moe_backward_dx_sm90(&p->dx, p->workspace, p->workspace_bytes, NULL));
}

/* ---- fp64 */

/* The activation and its derivative, as the reference of the backward (moebius/train.h) has them. */
static __device__ inline double activation_and_slope(mb_activation activation, double x, double *slope) {
    switch (activation) {
    case MB_ACT_SWIGLU:
    case MB_ACT_SILU: {
        const double sigmoid = 1 / (1 + exp(-x));
        *slope = sigmoid + x * sigmoid * (1 - sigmoid);
        return x * sigmoid;
    }
    case MB_ACT_GEGLU:
    case MB_ACT_GELU: {
        const double inner = 0.7978845608028654 * (x + 0.044715 * x * x * x), t = tanh(inner);
        *slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
        return 0.5 * x * (1 + t);
    }
    case MB_ACT_RELU2:
        *slope = x > 0 ? 2 * x : 0;
        return x > 0 ? x * x : 0;
    default:
        *slope = x > 0;
        return x > 0 ? x : 0;
    }
}

/* An element is wrong when it is further away than rounding explains. Counts those, and sums what calc_diff
 * wants. */
typedef struct tally {
    unsigned long long n_wrong;
    double apart, size;
} tally;

static __device__ inline void count(tally *t, double found, double right, double allowed) {
    if (!(fabs(found - right) <= allowed))
        atomicAdd(&t->n_wrong, 1ull);
    atomicAdd(&t->apart, (found - right) * (found - right));
    atomicAdd(&t->size, found * found + right * right);
}

/* Of 16 bits: 1 %, and the rounding of sums of values of size 1. */
static __device__ inline void count_16(tally *t, const void *found, int64_t i, mb_dtype dtype, double right) {
    count(t, load_value(found, i, dtype), right, 0.01 * fabs(right) + 2e-3);
}

/* A CTA a row and 64 outputs, a thread an output. */
static __global__ void compare_rows(mb_moe_backward_rows_args a, int gated, const int32_t *row_expert,
                                    tally *tallies) {
    __shared__ double sums[64], sizes[64];
    const int64_t r = blockIdx.x, part = blockIdx.y, i = part * 64 + threadIdx.x, e = row_expert[r];
    const int64_t I = a.intermediate, H = a.hidden, width13 = gated ? 2 * I : I;
    if (e < 0)
        return;
    double of_dot = 0;
    if (i < I) {
        double dh = 0, slope;
        for (int64_t j = 0; j < H; j++)
            dh += (double)load_value(a.d_out, a.row_token[r] * H + j, a.dtype) *
                  load_value(a.w2, (e * H + j) * I + i, a.dtype);
        const double s = a.row_weight[r], up = gated ? load_value(a.p, r * width13 + I + i, a.dtype) : 1;
        const double value =
            activation_and_slope(a.activation, load_value(a.p, r * width13 + i, a.dtype), &slope);
        count_16(&tallies[DP], a.dp, r * width13 + i, a.dtype, s * dh * up * slope);
        if (gated)
            count_16(&tallies[DP], a.dp, r * width13 + I + i, a.dtype, s * dh * value);
        count_16(&tallies[HS], a.hs, r * I + i, a.dtype, s * value * up);
        of_dot = dh * value * up;
    }
    sums[threadIdx.x] = of_dot;
    sizes[threadIdx.x] = fabs(of_dot);
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0, size = 0;
        for (int n = 0; n < 64; n++) {
            sum += sums[n];
            size += sizes[n];
        }
        count(&tallies[DOT], a.dot[part * a.n_rows + r], sum, 1e-4 * size + 1e-5);
    }
}

static __global__ void compare_dx(mb_moe_backward_dx_args a, const int32_t *row_expert, tally *t) {
    const int64_t r = blockIdx.x, i = blockIdx.y * 64 + threadIdx.x, e = row_expert[r], H = a.hidden;
    if (e < 0 || i >= H)
        return;
    double sum = 0;
    for (int64_t j = 0; j < a.width13; j++)
        sum += (double)load_value(a.dp, r * a.width13 + j, a.dtype) *
               load_value(a.w13, (e * a.width13 + j) * H + i, a.dtype);
    count_16(t, a.dx_rows, r * H + i, a.dtype, sum);
}

static inline void compare_with_fp64(const rows_problem *p) {
    static const char *const names[N_OUTPUTS] = {"dp", "hs", "dx_rows", "dot"};
    tally *tallies = (tally *)allocate(N_OUTPUTS * sizeof(tally));
    CUDA(cudaMemset(tallies, 0, N_OUTPUTS * sizeof(tally)));
    compare_rows<<<dim3((unsigned)p->s.R, (unsigned)mb_moe_backward_dot_parts(p->s.I)), 64>>>(
        p->rows, mb_activation_is_gated(p->rows.activation), p->row_expert, tallies);
    compare_dx<<<dim3((unsigned)p->s.R, (unsigned)(p->s.H + 63) / 64), 64>>>(p->dx, p->row_expert,
                                                                             &tallies[DX]);
    CUDA(cudaGetLastError());
    tally *found = (tally *)download(tallies, N_OUTPUTS * sizeof(tally));
    for (int i = 0; i < N_OUTPUTS; i++) {
        const double difference = found[i].size > 0 ? found[i].apart / found[i].size : 0;
        if (found[i].n_wrong)
            complain(p->name, names[i], (double)found[i].n_wrong);
        if (!(difference <= (i == DOT ? 1e-8 : 1e-5)))
            complain(p->name, "calc_diff", difference);
        largest[i] = difference > largest[i] ? difference : largest[i];
    }
    free(found);
    CUDA(cudaFree(tallies));
}

/* ---- What else must hold */

/* Rows that no expert has keep their poison. */
static inline void check_no_other_rows(const rows_problem *p, const char *what, const void *matrix,
                                       int64_t row_bytes) {
    const int first = p->offsets[0], end = p->offsets[p->s.E];
    const size_t before = (size_t)(first * row_bytes), behind = (size_t)((p->s.R - end) * row_bytes);
    unsigned char *bytes = (unsigned char *)host_allocate(before + behind);
    CUDA(cudaMemcpy(bytes, matrix, before, cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(bytes + before, (const char *)matrix + end * row_bytes, behind, cudaMemcpyDeviceToHost));
    size_t n_wrong = 0;
    for (size_t i = 0; i < before + behind; i++)
        n_wrong += bytes[i] != 0xff;
    if (n_wrong) {
        complain(p->name, what, (double)n_wrong);
        printf("  (bytes written to rows of no expert)\n");
    }
    free(bytes);
}

static inline void keep_outputs(const rows_problem *p) {
    for (int i = 0; i < N_OUTPUTS; i++)
        CUDA(cudaMemcpy(p->kept[i], output_of(p, i), output_bytes(p, i), cudaMemcpyDeviceToDevice));
}

static __global__ void count_bytes_apart(const unsigned char *a, const unsigned char *b, size_t n,
                                         unsigned long long *out) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        if (a[i] != b[i])
            atomicAdd(out, 1ull);
}

static inline void check_same_as_kept(const rows_problem *p) {
    unsigned long long *apart = (unsigned long long *)allocate(sizeof(*apart)), found;
    CUDA(cudaMemset(apart, 0, sizeof(*apart)));
    for (int i = 0; i < N_OUTPUTS; i++)
        count_bytes_apart<<<256, 256>>>((const unsigned char *)p->kept[i],
                                        (const unsigned char *)output_of(p, i), output_bytes(p, i), apart);
    CUDA(cudaMemcpy(&found, apart, sizeof(found), cudaMemcpyDeviceToHost));
    if (found)
        complain(p->name, "bytes that differ in the second run", (double)found);
    CUDA(cudaFree(apart));
}

/* ---- Some of a problem's rows, alone */

static __global__ void copy_rows(const unsigned char *from, const int32_t *rows, int64_t row_bytes,
                                 unsigned char *to) {
    for (int64_t i = threadIdx.x; i < row_bytes; i += blockDim.x)
        to[blockIdx.x * row_bytes + i] = from[rows[blockIdx.x] * row_bytes + i];
}

static inline void *chosen_rows(const void *from, const int32_t *rows, int n, int64_t row_bytes) {
    void *to = allocate((size_t)(n * row_bytes));
    if (n > 0)
        copy_rows<<<(unsigned)n, 128>>>((const unsigned char *)from, rows, row_bytes, (unsigned char *)to);
    CUDA(cudaGetLastError());
    return to;
}

/* Every third row of each expert. *chosen: their numbers. Returns how many. */
static inline int make_subset(const rows_problem *p, rows_problem *few, int32_t **chosen) {
    *few = *p;
    few->offsets = (int32_t *)host_allocate(sizeof(int32_t) * ((size_t)p->s.E + 1));
    few->row_token = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)p->s.R);
    *chosen = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)p->s.R);
    int n = 0;
    for (int e = 0; e < p->s.E; e++) {
        for (int r = p->offsets[e] + e % 3; r < p->offsets[e + 1]; r += 3) {
            few->row_token[n] = p->row_token[r];
            (*chosen)[n++] = r;
        }
        few->offsets[e + 1] = n;
    }
    few->s.R = n;
    few->rows.n_rows = few->dx.n_rows = n;
    upload_routing(few);
    int32_t *rows = upload(*chosen, n);
    few->rows.row_weight = (const float *)chosen_rows(p->rows.row_weight, rows, n, sizeof(float));
    few->rows.p = chosen_rows(p->rows.p, rows, n, p->dx.width13 * 2);
    few->dx.dp = chosen_rows(p->dx.dp, rows, n, p->dx.width13 * 2);
    allocate_outputs(few);
    CUDA(cudaFree(rows));
    return n;
}

static inline void free_subset(rows_problem *p) {
    const void *const arrays[] = {p->rows.row_token, p->rows.row_weight, p->rows.offsets, p->rows.p,
                                  p->rows.dp,        p->rows.hs,         p->rows.dot,     p->dx.dp,
                                  p->dx.dx_rows,     p->row_expert,      p->workspace};
    free_all(arrays, sizeof(arrays) / sizeof(arrays[0]));
    free(p->offsets);
    free(p->row_token);
}

static inline double rows_apart(const char *all, const char *few, const int32_t *chosen, int n,
                                size_t row_bytes) {
    double apart = 0;
    for (int i = 0; i < n; i++)
        apart += memcmp(all + (size_t)chosen[i] * row_bytes, few + (size_t)i * row_bytes, row_bytes) != 0;
    return apart;
}

/* The rows that were computed alone have the bits that the first run of all rows gave them. */
static inline void compare_subset(const rows_problem *p, const rows_problem *few, const int32_t *chosen,
                                  int n) {
    for (int i = 0; i < N_OUTPUTS; i++) {
        char *all = (char *)download(p->kept[i], output_bytes(p, i)),
             *some = (char *)download(output_of(few, i), output_bytes(few, i));
        const int64_t n_parts = i == DOT ? mb_moe_backward_dot_parts(p->s.I) : 1;
        double apart = 0;
        for (int64_t part = 0; part < n_parts; part++)
            apart += rows_apart(all + (size_t)(part * p->s.R) * sizeof(float),
                                some + (size_t)(part * n) * sizeof(float), chosen, n,
                                output_bytes(p, i) / (size_t)(p->s.R * n_parts));
        if (apart > 0)
            complain(p->name, i == DOT ? "dot of rows alone" : "rows alone have other bits", apart);
        free(all);
        free(some);
    }
}

#endif
