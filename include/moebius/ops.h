/*
 * ops.h - the operators' shared types, and the MoE operators' parameters.
 *
 * Words: T tokens, H hidden, I intermediate size of one expert, E experts, K chosen experts per token,
 * R = T*K routed rows. Matrices are row-major; a weight [N, K] multiplies as y = x W^T, as in
 * torch.nn.Linear.
 */
#ifndef MOEBIUS_OPS_H
#define MOEBIUS_OPS_H

#include <stddef.h>
#include <stdint.h>

#include "moebius/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mb_dtype {
    MB_F32,
    MB_BF16,
    MB_F16,
    MB_F8_E4M3, /* OCP FP8 E4M3 "fn": no infinities, max 448 */
} mb_dtype;

/* Bytes of one element: 4, 2, 2, 1. "fp32", "bf16", "fp16", "fp8_e4m3". */
MB_API size_t mb_dtype_bytes(mb_dtype dtype);
MB_API const char *mb_dtype_name(mb_dtype dtype);

/* A cudaStream_t on the GPU. On the CPU, where a call has finished when it returns, NULL or what the CPU
 * device gives as its stream: its threads (NULL: the calling thread alone). */
typedef void *mb_stream;

/*
 * A weight matrix, or E of them one after another: data [count, rows, cols] of dtype.
 * Block scales (MB_F8_E4M3; the layout of DeepSeek-V3 and Qwen3 FP8 checkpoints' weight_scale_inv):
 * value(e, r, c) = fp8(e, r, c) * scale[e][r / scale_rows][c / 128], scale being
 * [count, ceil(rows / scale_rows), ceil(cols / 128)] fp32. scale_rows is 128, or a divisor of 128 when
 * matrices whose heights are not multiples of 128 were merged. scale NULL: no scales.
 */
typedef struct mb_weight {
    const void *data;
    const float *scale;
    int64_t count, rows, cols;
    int32_t scale_rows;
    mb_dtype dtype;
} mb_weight;

typedef enum mb_activation {
    MB_ACT_SWIGLU, /* silu(gate) * up */
    MB_ACT_GEGLU,  /* gelu_tanh(gate) * up */
    MB_ACT_REGLU,  /* relu(gate) * up */
    MB_ACT_SILU,   /* the following have no up projection: w13 is [E, I, H] */
    MB_ACT_GELU,
    MB_ACT_RELU,
    MB_ACT_RELU2, /* relu(x)^2 */
} mb_activation;

/* 1 when w13 holds gate rows [0, I) and up rows [I, 2I); 0 when it holds I rows only. */
MB_API int mb_activation_is_gated(mb_activation activation);

typedef enum mb_route_order {
    MB_ROUTE_SOFTMAX_TOPK, /* softmax over E, choose K, optionally divide by their sum (Qwen3) */
    MB_ROUTE_TOPK_SOFTMAX, /* choose K, softmax over the K logits */
} mb_route_order;

/* Router: for each token the K experts of largest probability, largest first, ties to the lower expert id. */
typedef struct mb_moe_route_args {
    const void *logits; /* [T, E] MB_F32 or MB_BF16 */
    float *weights;     /* [T, K] out */
    int32_t *ids;       /* [T, K] out, always in [0, E) */
    int32_t *nan_flag;  /* [1], set to 1 when a logit is NaN, else left alone; may be NULL */
    int64_t n_tokens;
    int32_t n_experts, top_k; /* 1 <= K <= 32, K <= E <= 1024 */
    mb_dtype logits_dtype;
    mb_route_order order;
    int32_t renormalize; /* divide the K weights by their sum (norm_topk_prob) */
} mb_moe_route_args;

/* Stable counting sort of the T*K choices by expert. Experts outside of [first_expert, first_expert +
 * n_local_experts) are dropped (another rank holds them). */
typedef struct mb_moe_plan_args {
    const int32_t *ids; /* [T, K] in [0, E) */
    int32_t *offsets;   /* [n_local_experts + 1] out: rows of local expert e are [offsets[e], offsets[e+1]) */
    int32_t *row_token; /* [R] out: source token of each sorted row; behind offsets[n_local] undefined */
    int32_t *token_row; /* [T, K] out: sorted row of each choice, -1 when dropped */
    int64_t n_tokens;
    int32_t top_k, n_experts, first_expert, n_local_experts;
} mb_moe_plan_args;

/* The experts of one MoE layer: out[t] = residual[t] + shared[t] + sum_k weights[t,k] *
 * w2[e](act(w13[e](x[t]))), e = ids[t,k]. */
typedef struct mb_moe_forward_args {
    const void *x;        /* [T, H] dtype */
    const float *weights; /* [T, K] */
    const int32_t *ids;   /* [T, K] in [0, E) */
    mb_weight w13;        /* [n_local_experts, 2I or I, H] */
    mb_weight w2;         /* [n_local_experts, H, I] */
    const void *bias13;   /* [n_local_experts, 2I or I] dtype, or NULL */
    const void *bias2;    /* [n_local_experts, H] dtype, or NULL */
    const void *residual; /* [T, H] dtype, or NULL; may be out */
    const void *shared;   /* [T, H] dtype, or NULL: a shared expert's output */
    void *out;            /* [T, H] dtype; may not be x */
    int64_t n_tokens;
    int32_t hidden, intermediate, top_k;
    int32_t n_experts, first_expert, n_local_experts;
    mb_dtype dtype; /* activations: MB_F32, MB_BF16 or MB_F16 */
    mb_activation activation;
} mb_moe_forward_args;

#ifdef __cplusplus
}
#endif
#endif
