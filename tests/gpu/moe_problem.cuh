/*
 * moe_problem.cuh - a random problem of the MoE layer on the GPU, routed, with the output of up to SAMPLES of
 * its tokens from naive kernels. All kinds of a shape have the same values, but for rounding, and the same
 * routing.
 */
#ifndef MB_TESTS_MOE_PROBLEM_CUH
#define MB_TESTS_MOE_PROBLEM_CUH

#include "kinds.cuh"
#include "ops/moe/moe_sm90.h"
#include "reference.cuh"

enum { SAMPLES = 96 };

enum routing {
    RANDOM,
    SAME_EXPERTS, /* every token to the first K experts */
    SHARD,        /* only experts [E / 4, E / 2) are ours */
};

enum feature {
    BIAS = 1, /* of both matrices */
    RESIDUAL = 2,
    IN_PLACE = 4, /* the residual is the output */
    SHARED = 8,   /* a shared expert's term */
    BF16_LOGITS = 16,
    TOPK_SOFTMAX = 32,
    NO_RENORMALIZE = 64,
    NAN_LOGITS = 128,
    F16_BESIDE_FP8 = 256, /* fp8 weights: activations are fp16, not bf16 */
};

typedef struct shape {
    int T, H, I, E, K;  /* fp8: H and I are rounded up to multiples of 16 */
    int32_t scale_rows; /* of fp8_block */
    unsigned timed;     /* kinds, 1 << kind_name or'ed; 0: an ugly shape, checked only, in every kind */
    mb_activation activation;
    enum routing routing;
    unsigned features; /* enum feature, or'ed */
} shape;

typedef struct problem {
    char name[96];
    const kind *k;
    shape s;
    mb_moe_route_args route;
    mb_moe_forward_args forward; /* with ids and weights that the router gave; its route is NULL */
    int32_t *nan_flag;
    float *reference;   /* host, [n_samples, H] */
    float *unquantised; /* the same with x and h as they are; of fp8 only, else NULL */
    int n_samples;
    int64_t stride;
    int n_hit; /* distinct local experts that have rows */
    int64_t n_rows;
    void *other_tile_out; /* what an earlier tile row wrote, [T, H], or NULL */
} problem;

static inline size_t out_bytes(const problem *p) {
    return (size_t)p->s.T * (size_t)p->s.H * mb_dtype_bytes(p->forward.dtype);
}

/* Logits of random tokens, of the same K experts for every token, or with NaN in two of the tokens. */
static inline void *random_logits(const shape *s, uint64_t seed) {
    const int64_t T = s->T, E = s->E, n = T * E;
    void *logits = random_values(n, s->features & BF16_LOGITS ? MB_BF16 : MB_F32, seed, 1.0f);
    if (s->features & BF16_LOGITS || (s->routing != SAME_EXPERTS && !(s->features & NAN_LOGITS)))
        return logits;
    float *host = (float *)download(logits, sizeof(float) * (size_t)n);
    for (int64_t i = 0; i < n && s->routing == SAME_EXPERTS; i++)
        host[i] = i % E < s->K ? 9.0f - (float)(i % E) : 0.0f;
    if (s->features & NAN_LOGITS) {
        host[0] = NAN; /* the first token's first, and all of the last token's */
        for (int64_t e = 0; e < E; e++)
            host[(T - 1) * E + e] = NAN;
    }
    CUDA(cudaMemcpy(logits, host, sizeof(float) * (size_t)n, cudaMemcpyHostToDevice));
    free(host);
    return logits;
}

static inline void make_route(problem *p, uint64_t seed) {
    const shape *s = &p->s;
    const size_t n = (size_t)s->T * (size_t)s->K;
    p->nan_flag = (int32_t *)allocate(sizeof(int32_t));
    CUDA(cudaMemset(p->nan_flag, 0, sizeof(int32_t)));
    mb_moe_route_args *r = &p->route;
    r->logits = random_logits(s, seed);
    r->weights = (float *)allocate(sizeof(float) * n);
    r->ids = (int32_t *)allocate(sizeof(int32_t) * n);
    r->nan_flag = p->nan_flag;
    r->n_tokens = s->T;
    r->n_experts = s->E;
    r->top_k = s->K;
    r->logits_dtype = s->features & BF16_LOGITS ? MB_BF16 : MB_F32;
    r->order = s->features & TOPK_SOFTMAX ? MB_ROUTE_TOPK_SOFTMAX : MB_ROUTE_SOFTMAX_TOPK;
    r->renormalize = !(s->features & NO_RENORMALIZE);
    CUDA(cudaMemset(r->ids, 0xff, sizeof(int32_t) * n));
    CUDA(cudaMemset(r->weights, 0xff, sizeof(float) * n));
    MB(mb_moe_route_sm90(r, NULL));
    CUDA(cudaDeviceSynchronize());
    p->forward.weights = r->weights;
    p->forward.ids = r->ids;
}

static inline void make_problem(problem *p, const kind *k, const shape *s, uint64_t seed) {
    memset(p, 0, sizeof(*p));
    p->k = k;
    p->s = *s;
    const int is_fp8 = k->weights == MB_F8_E4M3;
    if (is_fp8) {
        p->s.H = (s->H + 15) / 16 * 16;
        p->s.I = (s->I + 15) / 16 * 16;
    }
    const int64_t T = s->T, H = p->s.H, I = p->s.I;
    snprintf(p->name, sizeof(p->name), "%s T=%d H=%d I=%d E=%d K=%d", k->name, s->T, p->s.H, p->s.I, s->E,
             s->K);
    mb_moe_forward_args *f = &p->forward;
    f->n_tokens = T;
    f->hidden = p->s.H;
    f->intermediate = p->s.I;
    f->top_k = s->K;
    f->n_experts = s->E;
    f->first_expert = s->routing == SHARD ? s->E / 4 : 0;
    f->n_local_experts = s->routing == SHARD ? s->E / 2 - s->E / 4 : s->E;
    f->dtype = is_fp8 && s->features & F16_BESIDE_FP8 ? MB_F16 : k->activations;
    f->activation = s->activation;
    f->f32_math = k->math;
    const int64_t rows13 = mb_activation_is_gated(s->activation) ? 2 * I : I, n_local = f->n_local_experts;
    const int32_t scale_rows = k == &kinds[FP8_BLOCK] ? s->scale_rows : 0;
    f->x = random_values(T * H, f->dtype, seed + 1, 1.0f);
    f->w13 = random_weight(n_local, rows13, H, k->weights, scale_rows, seed + 2);
    f->w2 = random_weight(n_local, H, I, k->weights, scale_rows, seed + 3);
    if (k == &kinds[FP8_TENSOR]) { /* a few values saturate */
        f->x_scale = scalar(3.0f / FP8_LARGEST);
        f->h_scale = scalar(24.0f / FP8_LARGEST);
    }
    if (s->features & BIAS) {
        f->bias13 = random_values(n_local * rows13, f->dtype, seed + 4, 0.5f);
        f->bias2 = random_values(n_local * H, f->dtype, seed + 5, 0.5f);
    }
    if (s->features & (RESIDUAL | IN_PLACE))
        f->residual = random_values(T * H, f->dtype, seed + 6, 0.5f);
    if (s->features & SHARED)
        f->shared = random_values(T * H, f->dtype, seed + 8, 0.5f);
    f->out = allocate(out_bytes(p));
    make_route(p, seed + 7);
    p->n_samples = T < SAMPLES ? (int)T : SAMPLES;
    p->stride = T / p->n_samples;
    p->reference = reference_forward(f, p->n_samples, p->stride, is_fp8);
    if (is_fp8)
        p->unquantised = reference_forward(f, p->n_samples, p->stride, 0);
}

static inline void free_problem(problem *p) {
    const mb_moe_forward_args *f = &p->forward;
    const void *all[] = {f->x,       f->w13.data, f->w13.scale, f->w2.data,      f->w2.scale,      f->bias13,
                         f->bias2,   f->residual, f->shared,    f->out,          f->x_scale,       f->h_scale,
                         f->weights, f->ids,      p->nan_flag,  p->route.logits, p->other_tile_out};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        CUDA(cudaFree((void *)all[i]));
    free(p->reference);
    free(p->unquantised);
}

/* What a call of the forward starts from: poison, or the residual when that is in place. */
static inline mb_moe_forward_args fresh_forward(const problem *p, int poison) {
    mb_moe_forward_args f = p->forward;
    if (poison)
        CUDA(cudaMemset(f.out, 0xff, out_bytes(p)));
    if (p->s.features & IN_PLACE) {
        CUDA(cudaMemcpy(f.out, f.residual, out_bytes(p), cudaMemcpyDeviceToDevice));
        f.residual = f.out;
    }
    return f;
}

#endif
