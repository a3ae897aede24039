/* moe_block_problem.cuh - a MoE block of random values, and the launches that it stands for. */
#ifndef MB_TESTS_MOE_BLOCK_PROBLEM_CUH
#define MB_TESTS_MOE_BLOCK_PROBLEM_CUH

#include "capture.cuh"
#include "ops/gemm/gemm.h"
#include "ops/moe/moe_sm90.h"
#include "values.cuh"

static char subject[192];

static inline void compare(const char *what, const void *a, const void *b, size_t n_bytes) {
    unsigned char *x = (unsigned char *)download(a, n_bytes), *y = (unsigned char *)download(b, n_bytes);
    for (size_t i = 0; i < n_bytes; i++)
        if (x[i] != y[i]) {
            char text[192];
            snprintf(text, sizeof(text), "%s differs, first at byte %zu of %zu", what, i, n_bytes);
            complain(subject, text, 0);
            break;
        }
    free(x);
    free(y);
}

static inline void *poisoned(size_t n_bytes) {
    void *memory = allocate(n_bytes);
    CUDA(cudaMemset(memory, 0xff, n_bytes));
    return memory;
}

static inline void release(const void *const *all, int n) {
    for (int i = 0; i < n; i++)
        CUDA(cudaFree((void *)all[i]));
}

static inline mb_weight norm_weight(int hidden, mb_dtype dtype, uint64_t seed) {
    mb_weight weight = {};
    weight.data = random_values(hidden, dtype, seed, 1);
    weight.count = weight.rows = 1;
    weight.cols = hidden;
    weight.dtype = dtype;
    return weight;
}

typedef struct block_shape {
    int n_tokens, hidden, n_experts, top_k;
    int is_fp8, has_bias;
    int first_expert, n_local; /* n_local 0: all experts are local */
    int avoids_local;          /* 1: the router's bias keeps all choices off the local experts */
    int has_shared, has_no_residual;
    int has_nan;    /* 1: in row 0 of x, and there is a flag for it */
    int gives_sums; /* 1: weights of the choices are not renormalised, and the softmax is over the choices */
} block_shape;

/* forward.route is set by aim_block, since it points into the block. */
typedef struct block {
    mb_rms_norm_args norm;
    mb_moe_router_gemm_args score;
    mb_moe_route_args route;
    mb_moe_forward_args forward;
} block;

static inline int n_local_of(const block_shape *s) {
    return s->n_local > 0 ? s->n_local : s->n_experts;
}

static inline float *router_bias(const block_shape *s, uint64_t seed) {
    if (!s->avoids_local)
        return s->has_bias ? (float *)random_values(s->n_experts, MB_F32, seed, 0.5f) : NULL;
    float *bias = (float *)host_allocate(sizeof(float) * (size_t)s->n_experts);
    for (int e = 0; e < n_local_of(s); e++)
        bias[s->first_expert + e] = -10000;
    float *on_device = (float *)allocate(sizeof(float) * (size_t)s->n_experts);
    CUDA(cudaMemcpy(on_device, bias, sizeof(float) * (size_t)s->n_experts, cudaMemcpyHostToDevice));
    free(bias);
    return on_device;
}

/* Row t of x is the same whatever the number of rows. w13 and w2 have the local experts, or more. */
static inline block block_of(const block_shape *s, mb_weight w13, mb_weight w2, uint64_t seed) {
    block b = {};
    const int64_t n_values = (int64_t)s->n_tokens * s->hidden;
    void *x = random_values(n_values, MB_BF16, seed, 2);
    if (s->has_nan)
        CUDA(cudaMemset(x, 0xff, 2));
    b.norm.x = x;
    b.norm.weight = norm_weight(s->hidden, MB_BF16, seed + 1);
    b.norm.n_rows = s->n_tokens;
    b.norm.hidden = s->hidden;
    b.norm.eps = 1e-6f;
    b.norm.dtype = MB_BF16;
    b.score.weight = random_values((int64_t)s->n_experts * s->hidden, MB_BF16, seed + 2, 0.02f);
    b.score.bias = router_bias(s, seed + 3);
    b.score.n_tokens = s->n_tokens;
    b.score.hidden = s->hidden;
    b.score.n_experts = s->n_experts;
    b.score.dtype = b.score.weight_dtype = MB_BF16;
    b.route.n_tokens = s->n_tokens;
    b.route.n_experts = s->n_experts;
    b.route.top_k = s->top_k;
    b.route.renormalize = !s->gives_sums;
    b.route.order = s->gives_sums ? MB_ROUTE_TOPK_SOFTMAX : MB_ROUTE_SOFTMAX_TOPK;
    b.forward.w13 = w13;
    b.forward.w2 = w2;
    b.forward.w13.count = b.forward.w2.count = n_local_of(s);
    b.forward.n_tokens = s->n_tokens;
    b.forward.hidden = s->hidden;
    b.forward.intermediate = (int32_t)w2.cols;
    b.forward.top_k = s->top_k;
    b.forward.n_experts = s->n_experts;
    b.forward.first_expert = s->first_expert;
    b.forward.n_local_experts = n_local_of(s);
    b.forward.dtype = MB_BF16;
    b.forward.activation = MB_ACT_SWIGLU;
    b.forward.residual = s->has_no_residual ? NULL : b.norm.x;
    b.forward.shared = s->has_shared ? random_values(n_values, MB_BF16, seed + 4, 1) : NULL;
    return b;
}

static inline void free_block(const block *b) {
    const void *const all[] = {b->norm.x, b->norm.weight.data, b->score.weight, b->score.bias,
                               b->forward.shared};
    release(all, 5);
}

enum { NORMED, LOGITS, WEIGHTS, IDS, OUT, N_OUTPUTS };

typedef struct block_outputs {
    void *data[N_OUTPUTS];
    size_t n_bytes[N_OUTPUTS];
} block_outputs;

static inline block_outputs new_outputs(const block_shape *s) {
    const size_t t = (size_t)s->n_tokens, h = (size_t)s->hidden, k = (size_t)s->top_k;
    block_outputs o = {{}, {t * h * 2, t * s->n_experts * sizeof(float), t * k * 4, t * k * 4, t * h * 2}};
    for (int i = 0; i < N_OUTPUTS; i++)
        o.data[i] = poisoned(o.n_bytes[i]);
    return o;
}

static inline void aim_block(block *b, const block_outputs *o) {
    b->forward.route = &b->route;
    b->forward.x = b->score.x = b->norm.out = o->data[NORMED];
    b->route.logits = b->score.logits = (float *)o->data[LOGITS];
    b->forward.weights = b->route.weights = (float *)o->data[WEIGHTS];
    b->forward.ids = b->route.ids = (int32_t *)o->data[IDS];
    b->forward.out = o->data[OUT];
}

/* Also for the router, which is given the same memory. */
static inline size_t block_workspace(const block *b) {
    const size_t forward = bytes_of(mb_moe_forward_sm90_workspace, &b->forward),
                 router = bytes_of(mb_moe_router_gemm_sm90_workspace, &b->score);
    return forward > router ? forward : router;
}

static inline void launch_apart(const block *b, void *workspace, size_t bytes, cudaStream_t stream) {
    MB(mb_rms_norm_sm90(&b->norm, stream));
    MB(mb_moe_router_gemm_sm90(&b->score, workspace, bytes, stream));
    MB(mb_moe_forward_sm90(&b->forward, workspace, bytes, stream));
}

static inline mb_weight experts_weight(int count, int rows, int cols, int is_fp8, uint64_t seed) {
    return random_weight(count, rows, cols, is_fp8 ? MB_F8_E4M3 : MB_BF16, is_fp8 ? 128 : 0, seed);
}

static inline void free_weight(const mb_weight *w) {
    const void *const all[] = {w->data, w->scale};
    release(all, 2);
}

#endif
