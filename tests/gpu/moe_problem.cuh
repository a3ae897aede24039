/*
 * moe_problem.cuh - a random problem of the MoE layer on the GPU, routed, with the output of up to SAMPLES of
 * its tokens from a naive kernel that sums in fp32 and rounds nowhere.
 */
#ifndef MB_TESTS_MOE_PROBLEM_CUH
#define MB_TESTS_MOE_PROBLEM_CUH

#include "ops/moe/moe_sm90.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
};

typedef struct shape {
    int T, H, I, E, K;
    int timed; /* 0: an ugly shape, checked only */
    mb_activation activation;
    enum routing routing;
    unsigned features; /* enum feature, or'ed */
} shape;

#define CUDA(call)                                                                                     \
    do {                                                                                               \
        cudaError_t error_ = (call);                                                                   \
        if (error_ != cudaSuccess) {                                                                   \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
            exit(1);                                                                                   \
        }                                                                                              \
    } while (0)
#define MB(call)                                                                 \
    do {                                                                         \
        if ((call) != MB_OK) {                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, mb_last_error()); \
            exit(1);                                                             \
        }                                                                        \
    } while (0)

static void *allocate(size_t n_bytes) {
    void *pointer = NULL;
    CUDA(cudaMalloc(&pointer, n_bytes ? n_bytes : 1));
    return pointer;
}

static __device__ float random_value(uint64_t seed, uint64_t i) {
    uint64_t z = seed * 0x9e3779b97f4a7c15ull + i * 0xd1342543de82ef95ull + 0x632be59bd9b4e019ull;
    float sum = 0;
    for (int n = 0; n < 2; n++) {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        z ^= z >> 31;
        sum += (float)(uint32_t)z * 0x1p-32f + (float)(uint32_t)(z >> 32) * 0x1p-32f;
    }
    return (sum - 2.0f) * 1.7320508f; /* mean 0, variance 1 */
}

static __global__ void fill_bf16(__nv_bfloat16 *out, int64_t n, uint64_t seed, float scale) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        out[i] = __float2bfloat16(scale * random_value(seed, i));
}

static void *random_bf16(int64_t n, uint64_t seed, float scale) {
    __nv_bfloat16 *out = (__nv_bfloat16 *)allocate(sizeof(*out) * (size_t)n);
    fill_bf16<<<1024, 256>>>(out, n, seed, scale);
    return out;
}

static __global__ void fill_f32(float *out, int64_t n, uint64_t seed) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        out[i] = random_value(seed, i);
}

static __device__ float warp_dot(const __nv_bfloat16 *a, const __nv_bfloat16 *b, const float *c, int n) {
    float sum = 0;
    for (int i = threadIdx.x % 32; i < n; i += 32)
        sum += __bfloat162float(a[i]) * (b ? __bfloat162float(b[i]) : c[i]);
    for (int d = 16; d > 0; d /= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, d);
    return sum;
}

static __device__ float reference_activation(mb_activation activation, float v) {
    switch (activation) {
    case MB_ACT_SWIGLU:
    case MB_ACT_SILU:
        return v / (1.0f + expf(-v));
    case MB_ACT_GEGLU:
    case MB_ACT_GELU:
        return 0.5f * v * (1.0f + tanhf(0.7978845608028654f * (v + 0.044715f * v * v * v)));
    case MB_ACT_RELU2:
        return v > 0 ? v * v : 0;
    default:
        return v > 0 ? v : 0;
    }
}

/* h[s][k][i] of sample s = token first + s * stride; a warp each. */
static __global__ void reference_h(mb_moe_forward_args f, int64_t stride, int gated, float *h) {
    const int s = blockIdx.y / f.top_k, k = blockIdx.y % f.top_k, i = blockIdx.x * 8 + threadIdx.x / 32;
    const int64_t token = s * stride;
    const int e = f.ids[token * f.top_k + k] - f.first_expert;
    if (i >= f.intermediate || e < 0 || e >= f.n_local_experts)
        return;
    const __nv_bfloat16 *x = (const __nv_bfloat16 *)f.x + token * f.hidden;
    const __nv_bfloat16 *w = (const __nv_bfloat16 *)f.w13.data + ((int64_t)e * f.w13.rows + i) * f.hidden;
    const __nv_bfloat16 *bias = (const __nv_bfloat16 *)f.bias13;
    float low =
        warp_dot(x, w, NULL, f.hidden) + (bias ? __bfloat162float(bias[(int64_t)e * f.w13.rows + i]) : 0);
    float value = reference_activation(f.activation, low);
    if (gated) {
        const int64_t up = i + (int64_t)f.intermediate;
        value *= warp_dot(x, w + (int64_t)f.intermediate * f.hidden, NULL, f.hidden) +
                 (bias ? __bfloat162float(bias[(int64_t)e * f.w13.rows + up]) : 0);
    }
    if (threadIdx.x % 32 == 0)
        h[((int64_t)s * f.top_k + k) * f.intermediate + i] = value;
}

static __global__ void reference_out(mb_moe_forward_args f, int64_t stride, const float *h, float *out) {
    const int s = blockIdx.y, column = blockIdx.x * 8 + threadIdx.x / 32;
    const int64_t token = s * stride;
    if (column >= f.hidden)
        return;
    float sum = 0;
    const int64_t at = token * f.hidden + column;
    if (f.residual)
        sum += __bfloat162float(((const __nv_bfloat16 *)f.residual)[at]);
    if (f.shared)
        sum += __bfloat162float(((const __nv_bfloat16 *)f.shared)[at]);
    for (int k = 0; k < f.top_k; k++) {
        const int e = f.ids[token * f.top_k + k] - f.first_expert;
        if (e < 0 || e >= f.n_local_experts)
            continue;
        const __nv_bfloat16 *w =
            (const __nv_bfloat16 *)f.w2.data + ((int64_t)e * f.hidden + column) * f.intermediate;
        float y = warp_dot(w, NULL, h + ((int64_t)s * f.top_k + k) * f.intermediate, f.intermediate);
        if (f.bias2)
            y += __bfloat162float(((const __nv_bfloat16 *)f.bias2)[(int64_t)e * f.hidden + column]);
        sum += f.weights[token * f.top_k + k] * y;
    }
    if (threadIdx.x % 32 == 0)
        out[(int64_t)s * f.hidden + column] = sum;
}

typedef struct problem {
    shape s;
    mb_moe_route_args route;
    mb_moe_forward_args forward;
    void *logits; /* [T, E] of the route's dtype */
    int32_t *nan_flag;
    float *reference; /* host, [n_samples, H] */
    int n_samples;
    int64_t stride;
    int n_hit; /* distinct local experts that have rows */
    int64_t n_rows;
    void *other_tile_out; /* what an earlier tile row wrote, [T, H], or NULL */
} problem;

/* Logits of random tokens, of the same K experts for every token, or with NaN in two of the tokens. */
static void make_logits(problem *p, uint64_t seed) {
    const shape *s = &p->s;
    const int64_t T = s->T, E = s->E, n = T * E;
    if (s->features & BF16_LOGITS) {
        p->logits = random_bf16(n, seed, 1.0f);
        return;
    }
    p->logits = allocate(sizeof(float) * (size_t)n);
    fill_f32<<<1024, 256>>>((float *)p->logits, n, seed);
    if (s->routing == RANDOM && !(s->features & NAN_LOGITS))
        return;
    float *host = (float *)malloc(sizeof(float) * (size_t)n);
    CUDA(cudaMemcpy(host, p->logits, sizeof(float) * (size_t)n, cudaMemcpyDeviceToHost));
    for (int64_t i = 0; i < n && s->routing == SAME_EXPERTS; i++)
        host[i] = i % E < s->K ? 9.0f - (float)(i % E) : 0.0f;
    if (s->features & NAN_LOGITS) {
        host[0] = NAN; /* the first token's first, and all of the last token's */
        for (int64_t e = 0; e < E; e++)
            host[(T - 1) * E + e] = NAN;
    }
    CUDA(cudaMemcpy(p->logits, host, sizeof(float) * (size_t)n, cudaMemcpyHostToDevice));
    free(host);
}

static void make_problem(problem *p, const shape *s, uint64_t seed) {
    memset(p, 0, sizeof(*p));
    p->s = *s;
    const int64_t T = s->T, H = s->H, I = s->I, K = s->K;
    const int gated = mb_activation_is_gated(s->activation);
    mb_moe_forward_args *f = &p->forward;
    f->n_tokens = T;
    f->hidden = s->H;
    f->intermediate = s->I;
    f->top_k = s->K;
    f->n_experts = s->E;
    f->first_expert = s->routing == SHARD ? s->E / 4 : 0;
    f->n_local_experts = s->routing == SHARD ? s->E / 2 - s->E / 4 : s->E;
    f->dtype = MB_BF16;
    f->activation = s->activation;
    const int64_t rows13 = gated ? 2 * I : I, n_local = f->n_local_experts;
    f->x = random_bf16(T * H, seed + 1, 1.0f);
    f->w13.data = random_bf16(n_local * rows13 * H, seed + 2, 1.0f / sqrtf((float)H));
    f->w2.data = random_bf16(n_local * H * I, seed + 3, 1.0f / sqrtf((float)I));
    f->w13.count = f->w2.count = n_local;
    f->w13.rows = rows13;
    f->w13.cols = H;
    f->w2.rows = H;
    f->w2.cols = I;
    f->w13.dtype = f->w2.dtype = MB_BF16;
    if (s->features & BIAS) {
        f->bias13 = random_bf16(n_local * rows13, seed + 4, 0.5f);
        f->bias2 = random_bf16(n_local * H, seed + 5, 0.5f);
    }
    if (s->features & (RESIDUAL | IN_PLACE))
        f->residual = random_bf16(T * H, seed + 6, 0.5f);
    if (s->features & SHARED)
        f->shared = random_bf16(T * H, seed + 8, 0.5f);
    f->out = allocate((size_t)(T * H * 2));

    float *weights = (float *)allocate(sizeof(float) * (size_t)(T * K));
    int32_t *ids = (int32_t *)allocate(sizeof(int32_t) * (size_t)(T * K));
    make_logits(p, seed + 7);
    p->nan_flag = (int32_t *)allocate(sizeof(int32_t));
    CUDA(cudaMemset(p->nan_flag, 0, sizeof(int32_t)));
    mb_moe_route_args *r = &p->route;
    r->logits = p->logits;
    r->weights = weights;
    r->ids = ids;
    r->nan_flag = p->nan_flag;
    r->n_tokens = T;
    r->n_experts = s->E;
    r->top_k = s->K;
    r->logits_dtype = s->features & BF16_LOGITS ? MB_BF16 : MB_F32;
    r->order = s->features & TOPK_SOFTMAX ? MB_ROUTE_TOPK_SOFTMAX : MB_ROUTE_SOFTMAX_TOPK;
    r->renormalize = !(s->features & NO_RENORMALIZE);
    f->weights = weights;
    f->ids = ids;
    CUDA(cudaMemset(ids, 0xff, sizeof(int32_t) * (size_t)(T * K)));
    CUDA(cudaMemset(weights, 0xff, sizeof(float) * (size_t)(T * K)));
    MB(mb_moe_route_sm90(r, NULL));
    CUDA(cudaDeviceSynchronize());

    p->n_samples = T < SAMPLES ? (int)T : SAMPLES;
    p->stride = T / p->n_samples;
    float *h = (float *)allocate(sizeof(float) * (size_t)(p->n_samples * K * I));
    float *reference = (float *)allocate(sizeof(float) * (size_t)(p->n_samples * H));
    reference_h<<<dim3((unsigned)(I + 7) / 8, (unsigned)(p->n_samples * K)), 256>>>(*f, p->stride, gated, h);
    reference_out<<<dim3((unsigned)(H + 7) / 8, (unsigned)p->n_samples), 256>>>(*f, p->stride, h, reference);
    CUDA(cudaGetLastError());
    p->reference = (float *)malloc(sizeof(float) * (size_t)(p->n_samples * H));
    CUDA(cudaMemcpy(p->reference, reference, sizeof(float) * (size_t)(p->n_samples * H),
                    cudaMemcpyDeviceToHost));
    CUDA(cudaFree(h));
    CUDA(cudaFree(reference));
}

static void free_problem(problem *p) {
    const mb_moe_forward_args *f = &p->forward;
    const void *all[] = {f->x,   f->w13.data, f->w2.data, f->bias13, f->bias2,    f->residual,      f->shared,
                         f->out, f->weights,  f->ids,     p->logits, p->nan_flag, p->other_tile_out};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        CUDA(cudaFree((void *)all[i]));
    free(p->reference);
}

#endif
