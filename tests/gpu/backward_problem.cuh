/*
 * backward_problem.cuh - random problems of the MoE backward: inputs on the GPU, choices made on the host,
 * outputs with poison in them and guards behind them.
 *
 * The matrices of all problems lie in one pool of random values, which is filled once for each dtype, and
 * the large gradients in another: at E 256, H 4096, I 2048 they are 13 and 26 GB.
 */
#ifndef MB_TESTS_BACKWARD_PROBLEM_CUH
#define MB_TESTS_BACKWARD_PROBLEM_CUH

#include "moebius/train.h"
#include "values.cuh"

enum backward_routing {
    UNIFORM,
    SKEWED,   /* expert e with a probability that falls as 1 / (e + 1) */
    ONE_SET,  /* every token to the first K experts */
    OF_SHARD, /* only experts [E / 4, E / 2) are ours */
    HOLES,    /* some choices are -1 or no expert's, and one token has none at all */
    N_ROUTINGS,
};

typedef struct layer_shape {
    int T, H, I, E, K;
    mb_activation activation;
    enum backward_routing routing;
    mb_dtype dtype, grad_dtype;
    int has_bias, accumulate;
} layer_shape;

/* The choices as rows sorted by local expert, made on the host without the plan under test; on the GPU. */
typedef struct sorted_rows {
    int32_t n; /* rows that exist */
    int32_t *token, *expert;
    int32_t *of_choice; /* [T, K], -1: none */
    int32_t *offsets;   /* [n_local + 1] */
    float *weight;
} sorted_rows;

enum gradient_name { DX, DWEIGHTS, DW13, DW2, DBIAS13, DBIAS2, N_GRADIENTS };
static const char *const gradient_names[] = {"dx", "dweights", "dw13", "dw2", "dbias13", "dbias2"};

typedef struct gradient {
    void *memory;
    int64_t n;
    mb_dtype dtype;
    int is_added; /* takes part in accumulate */
} gradient;

enum { GUARD = 256 };
typedef struct backward_problem {
    char name[128];
    layer_shape s;
    int64_t width13;
    mb_moe_backward_args args; /* accumulate 0, p NULL */
    int32_t *host_ids;
    float *host_weights;
    sorted_rows rows;
    gradient out[N_GRADIENTS];
    void *workspace;
    size_t workspace_bytes; /* as asked for; GUARD more are there */
} backward_problem;

typedef struct pools {
    char *matrices, *gradients;
    size_t matrix_bytes, gradient_bytes;
    mb_dtype dtype; /* of the values in matrices */
    int is_filled;
} pools;

static inline uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}
static inline double next_uniform(uint64_t *state) {
    return (double)(next_random(state) >> 11) * 0x1p-53;
}

/* K different experts for each token: those of the largest u^(1 / w), w being the expert's weight. */
static inline void choose_experts(const layer_shape *s, uint64_t *state, int32_t *ids) {
    double *keys = (double *)host_allocate(sizeof(double) * (size_t)s->E);
    for (int t = 0; t < s->T; t++) {
        for (int e = 0; e < s->E; e++) {
            const double weight = s->routing == SKEWED ? 1.0 / (e + 1) : 1.0;
            keys[e] = s->routing == ONE_SET ? -e : log(next_uniform(state) + 1e-300) / weight;
        }
        for (int k = 0; k < s->K; k++) {
            int best = 0;
            for (int e = 1; e < s->E; e++)
                best = keys[e] > keys[best] ? e : best;
            keys[best] = -INFINITY;
            ids[t * s->K + k] = best;
        }
    }
    free(keys);
    for (int c = 0; s->routing == HOLES && c < s->T * s->K; c++)
        if (c / s->K == s->T / 2 || c % 5 == 3)
            ids[c] = c % 2 ? -1 : 1000000 + c;
}

static inline void *uploaded(const void *host, size_t n_bytes) {
    void *device = allocate(n_bytes);
    CUDA(cudaMemcpy(device, host, n_bytes, cudaMemcpyHostToDevice));
    return device;
}

static inline sorted_rows sort_rows(const backward_problem *p) {
    const int n_choices = p->s.T * p->s.K, first = p->args.first_expert, n_local = p->args.n_local_experts;
    sorted_rows r = {};
    int32_t *token = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)n_choices);
    int32_t *expert = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)n_choices);
    int32_t *of_choice = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)n_choices);
    int32_t *offsets = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)(n_local + 1));
    float *weight = (float *)host_allocate(sizeof(float) * (size_t)n_choices);
    for (int c = 0; c < n_choices; c++)
        of_choice[c] = -1;
    for (int e = 0; e < n_local; e++) {
        offsets[e] = r.n;
        for (int c = 0; c < n_choices; c++)
            if (p->host_ids[c] == first + e) {
                token[r.n] = c / p->s.K;
                expert[r.n] = e;
                weight[r.n] = p->host_weights[c];
                of_choice[c] = r.n++;
            }
    }
    offsets[n_local] = r.n;
    r.token = (int32_t *)uploaded(token, sizeof(int32_t) * (size_t)n_choices);
    r.expert = (int32_t *)uploaded(expert, sizeof(int32_t) * (size_t)n_choices);
    r.of_choice = (int32_t *)uploaded(of_choice, sizeof(int32_t) * (size_t)n_choices);
    r.offsets = (int32_t *)uploaded(offsets, sizeof(int32_t) * (size_t)(n_local + 1));
    r.weight = (float *)uploaded(weight, sizeof(float) * (size_t)n_choices);
    free(token), free(expert), free(of_choice), free(offsets), free(weight);
    return r;
}

static inline size_t gradient_bytes(const gradient *g) {
    return (size_t)g->n * mb_dtype_bytes(g->dtype);
}

/* From a pool: a piece of 256-byte steps with room for a guard. */
static inline void *take(char **at, size_t n_bytes) {
    char *piece = *at;
    *at += (n_bytes + GUARD + 255) / 256 * 256;
    return piece;
}

static inline size_t matrix_values(const layer_shape *s) {
    return (size_t)s->E * (size_t)s->H * (size_t)s->I * (mb_activation_is_gated(s->activation) ? 3 : 2);
}

/* Room for every shape of the list. */
static inline pools make_pools(const layer_shape *shapes, int n_shapes) {
    pools all = {};
    for (int i = 0; i < n_shapes; i++) {
        const size_t n = matrix_values(&shapes[i]), room = 4 * (GUARD + 256);
        if (n * 2 + room > all.matrix_bytes)
            all.matrix_bytes = n * 2 + room;
        if (n * mb_dtype_bytes(shapes[i].grad_dtype) + room > all.gradient_bytes)
            all.gradient_bytes = n * mb_dtype_bytes(shapes[i].grad_dtype) + room;
    }
    all.matrices = (char *)allocate(all.matrix_bytes);
    all.gradients = (char *)allocate(all.gradient_bytes);
    return all;
}

static inline void fill_pool(pools *all, mb_dtype dtype) {
    if (all->is_filled && all->dtype == dtype)
        return;
    fill_random<<<4096, 256>>>(all->matrices, (int64_t)(all->matrix_bytes / 2), dtype, 11, 0.025f);
    CUDA(cudaGetLastError());
    all->dtype = dtype;
    all->is_filled = 1;
}

static inline void make_backward_problem(backward_problem *p, const layer_shape *s, pools *all,
                                         uint64_t seed) {
    memset(p, 0, sizeof(*p));
    p->s = *s;
    snprintf(p->name, sizeof(p->name), "T=%d H=%d I=%d E=%d K=%d act %d routing %d%s%s %s %s", s->T, s->H,
             s->I, s->E, s->K, (int)s->activation, (int)s->routing, s->has_bias ? " bias" : "",
             s->accumulate ? " add" : "", mb_dtype_name(s->dtype), mb_dtype_name(s->grad_dtype));
    fill_pool(all, s->dtype);
    const int64_t T = s->T, H = s->H, I = s->I, K = s->K;
    mb_moe_backward_args *a = &p->args;
    p->width13 = mb_activation_is_gated(s->activation) ? 2 * I : I;
    a->n_tokens = T;
    a->hidden = s->H;
    a->intermediate = s->I;
    a->top_k = s->K;
    a->n_experts = s->E;
    a->first_expert = s->routing == OF_SHARD ? s->E / 4 : 0;
    a->n_local_experts = s->routing == OF_SHARD ? s->E / 2 - s->E / 4 : s->E;
    a->dtype = s->dtype;
    a->grad_dtype = s->grad_dtype;
    a->activation = s->activation;
    const int64_t n_local = a->n_local_experts;
    char *matrices = all->matrices, *gradients = all->gradients;
    a->w13.count = a->w2.count = n_local;
    a->w13.dtype = a->w2.dtype = s->dtype;
    a->w13.rows = p->width13;
    a->w13.cols = a->w2.rows = H;
    a->w2.cols = I;
    a->w13.data = take(&matrices, (size_t)(n_local * p->width13 * H) * 2);
    a->w2.data = take(&matrices, (size_t)(n_local * H * I) * 2);
    a->x = random_values(T * H, s->dtype, seed + 1, 1.0f);
    a->d_out = random_values(T * H, s->dtype, seed + 2, 1.0f);
    if (s->has_bias) {
        a->bias13 = random_values(n_local * p->width13, s->dtype, seed + 3, 0.5f);
        a->bias2 = random_values(n_local * H, s->dtype, seed + 4, 0.5f);
    }
    uint64_t state = seed;
    const size_t n_choices = (size_t)(T * K);
    p->host_ids = (int32_t *)host_allocate(sizeof(int32_t) * n_choices);
    p->host_weights = (float *)host_allocate(sizeof(float) * n_choices);
    choose_experts(s, &state, p->host_ids);
    for (size_t c = 0; c < n_choices; c++)
        p->host_weights[c] = (float)next_uniform(&state);
    a->ids = (int32_t *)uploaded(p->host_ids, sizeof(int32_t) * n_choices);
    a->weights = (float *)uploaded(p->host_weights, sizeof(float) * n_choices);
    p->rows = sort_rows(p);
    p->out[DX] = {NULL, T * H, s->dtype, 0};
    p->out[DWEIGHTS] = {NULL, T * K, MB_F32, 0};
    p->out[DW13] = {NULL, n_local * p->width13 * H, s->grad_dtype, 1};
    p->out[DW2] = {NULL, n_local * H * I, s->grad_dtype, 1};
    if (s->has_bias) {
        p->out[DBIAS13] = {NULL, n_local * p->width13, s->grad_dtype, 1};
        p->out[DBIAS2] = {NULL, n_local * H, s->grad_dtype, 1};
    }
    for (int i = 0; i < N_GRADIENTS; i++) {
        gradient *g = &p->out[i];
        if (g->n > 0)
            g->memory = i == DW13 || i == DW2 ? take(&gradients, gradient_bytes(g))
                                              : allocate(gradient_bytes(g) + GUARD);
    }
    a->dx = p->out[DX].memory;
    a->dweights = (float *)p->out[DWEIGHTS].memory;
    a->dw13 = p->out[DW13].memory;
    a->dw2 = p->out[DW2].memory;
    a->dbias13 = p->out[DBIAS13].memory;
    a->dbias2 = p->out[DBIAS2].memory;
    p->workspace_bytes = bytes_of(mb_moe_backward_workspace, a);
    p->workspace = allocate(p->workspace_bytes + GUARD);
}

static inline void free_backward_problem(backward_problem *p) {
    const void *all[] = {
        p->args.x,         p->args.d_out,           p->args.bias13,         p->args.bias2,
        p->args.ids,       p->args.weights,         p->rows.token,          p->rows.expert,
        p->rows.of_choice, p->rows.offsets,         p->rows.weight,         p->workspace,
        p->out[DX].memory, p->out[DWEIGHTS].memory, p->out[DBIAS13].memory, p->out[DBIAS2].memory};
    for (const void *one : all)
        CUDA(cudaFree((void *)one));
    free(p->host_ids);
    free(p->host_weights);
}

/* The value at place i of an output to which is added. */
static __device__ inline float start_value(int64_t i, mb_dtype dtype) {
    return rounded(0.5f * random_value(77, (uint64_t)i), dtype);
}

/* Poison everywhere (it is NaN in every dtype), and with accumulate the start values in what is added to. */
static inline void reset_outputs(const backward_problem *p, int accumulate) {
    CUDA(cudaMemset(p->workspace, 0xff, p->workspace_bytes + GUARD));
    for (const gradient &g : p->out) {
        if (!g.memory)
            continue;
        CUDA(cudaMemset(g.memory, 0xff, gradient_bytes(&g) + GUARD));
        if (accumulate && g.is_added)
            fill_random<<<4096, 256>>>(g.memory, g.n, g.dtype, 77, 0.5f);
    }
    CUDA(cudaGetLastError());
}

static inline void check_guard(const backward_problem *p, const char *what, const void *end) {
    unsigned char found[GUARD];
    CUDA(cudaMemcpy(found, end, GUARD, cudaMemcpyDeviceToHost));
    for (int i = 0; i < GUARD; i++)
        if (found[i] != 0xff) {
            complain(p->name, what, i);
            return;
        }
}

/* Of all outputs and the workspace. */
static inline void check_guards(const backward_problem *p) {
    check_guard(p, "the workspace was overrun", (char *)p->workspace + p->workspace_bytes);
    for (int i = 0; i < N_GRADIENTS; i++)
        if (p->out[i].memory)
            check_guard(p, gradient_names[i], (char *)p->out[i].memory + gradient_bytes(&p->out[i]));
}

/* An order-free sum that changes with every bit of the array, and whether poison is left. */
typedef struct print {
    unsigned long long sum, n_poison;
} print;

static __global__ void take_print(const uint32_t *words, int64_t n, int element_bytes, print *out) {
    unsigned long long sum = 0, n_poison = 0;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const uint32_t word = words[i];
        sum += mixed(((uint64_t)i << 32 | word) * 0x9e3779b97f4a7c15ull);
        n_poison +=
            element_bytes == 4 ? word == 0xffffffff : word >> 16 == 0xffff || (word & 0xffff) == 0xffff;
    }
    atomicAdd(&out->sum, sum);
    atomicAdd(&out->n_poison, n_poison);
}

static inline print print_of(const gradient *g) {
    print *on_device = (print *)allocate(sizeof(print)), found;
    CUDA(cudaMemset(on_device, 0, sizeof(print)));
    take_print<<<1056, 512>>>((const uint32_t *)g->memory, (int64_t)(gradient_bytes(g) / 4),
                              (int)mb_dtype_bytes(g->dtype), on_device);
    CUDA(cudaMemcpy(&found, on_device, sizeof(print), cudaMemcpyDeviceToHost));
    CUDA(cudaFree(on_device));
    return found;
}

#endif
