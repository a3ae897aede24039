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
    MB_F8_E8M0, /* scales only: 2^(byte - 127), 255 is NaN */
    MB_F4_E2M1, /* weights only: two elements a byte, the first in the low four bits */
} mb_dtype;

/* Bytes of one element: 4, 2, 2, 1, 1; 0 when an element is less than a byte. */
MB_API size_t mb_dtype_bytes(mb_dtype dtype);
/* Bytes of a row of a matrix, which begins on a byte; 0 when dtype is not an mb_dtype. */
MB_API size_t mb_dtype_row_bytes(mb_dtype dtype, int64_t cols);
/* "fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e8m0", "fp4_e2m1". */
MB_API const char *mb_dtype_name(mb_dtype dtype);

/* On the GPU: a cudaStream_t. On the CPU: NULL, or a stream of the CPU device, whose threads then share the
 * work; with NULL the calling thread does it alone. A call on the CPU has finished when it returns. */
typedef void *mb_stream;

/* An fp8 block scale covers this many columns, and at most this many rows. */
enum { MB_F8_BLOCK = 128 };

/*
 * A weight matrix, or several of one shape: data is [count, rows, cols] of dtype. A row takes
 * mb_dtype_row_bytes(dtype, cols) bytes, and rows follow each other without a gap. With scales
 *     value(e, r, c) = data[e][r][c] * scale[e][r / scale_rows][c / scale_cols] * global_scale[e]
 * scale is [count, ceil(rows / scale_rows), ceil(cols / scale_cols)] of scale_dtype. scale_rows 0 means all
 * rows, scale_cols 0 all columns. Without a scale or global_scale (NULL) the factor is 1.
 *
 *     scales         dtype       scale_dtype  scale_rows, _cols  global_scale  supported
 *     one a matrix   MB_F8_E4M3  MB_F32       0, 0               no            yes
 *     blocks         MB_F8_E4M3  MB_F32       128, 128           no            yes
 *     one a row      MB_F8_E4M3  MB_F32       1, 0               no            not yet
 *     MXFP4          MB_F4_E2M1  MB_F8_E8M0   1, 32              no            not yet
 *     NVFP4          MB_F4_E2M1  MB_F8_E4M3   1, 16              yes           not yet
 *
 * Blocks are the weight_scale_inv of DeepSeek-V3's and Qwen3's FP8 checkpoints. When matrices are merged
 * whose heights are not multiples of 128, blocks may have fewer rows: scale_rows may be any divisor of 128.
 * An operator refuses an unsupported weight with MB_ERR_UNSUPPORTED.
 */
typedef struct mb_weight {
    const void *data;
    const void *scale;
    const float *global_scale; /* [count] */
    int64_t count, rows, cols;
    int32_t scale_rows, scale_cols;
    mb_dtype dtype, scale_dtype;
} mb_weight;

typedef enum mb_activation {
    MB_ACT_SWIGLU, /* silu(gate) * up */
    MB_ACT_GEGLU,  /* gelu_tanh(gate) * up */
    MB_ACT_REGLU,  /* relu(gate) * up */
    MB_ACT_SILU,   /* the following have no up projection: w13 is [E, I, H] */
    MB_ACT_GELU,
    MB_ACT_RELU,
    MB_ACT_RELU2, /* relu(x)^2 */
    MB_ACT_NONE,  /* x; in mb_grouped_gemm only */
} mb_activation;

/* 1 when w13 holds gate rows [0, I) and up rows [I, 2I); 0 when it holds I rows only. */
MB_API int mb_activation_is_gated(mb_activation activation);

typedef enum mb_route_order {
    MB_ROUTE_SOFTMAX_TOPK, /* softmax over E, choose K, optionally divide by their sum (Qwen3) */
    MB_ROUTE_TOPK_SOFTMAX, /* choose K, softmax over the K logits */
} mb_route_order;

/* How a GPU multiplies MB_F32 by MB_F32. (The CPU always computes in fp32.) */
typedef enum mb_f32_math {
    /* Tensor cores: factors lose the low 13 bits of their mantissa. Weights are rounded to nearest,
     * activations are cut off. Sums are fp32. */
    MB_F32_TF32,
    MB_F32_EXACT, /* fp32 multiply-adds */
} mb_f32_math;

/*
 * The MoE operators. Each takes a struct of shapes and pointers. The first pointer says where the operator
 * runs. When the pointer is a GPU's, the operator runs on that GPU and on `stream`, and the call does not
 * wait for it. Else it runs on the CPU, and has finished when the call returns. No call allocates memory.
 * All can be captured in a CUDA graph. T = 0 is legal and does nothing (but see mb_moe_plan). Same inputs
 * give the same bits.
 *
 * Calls may run at the same time on any number of streams, each with a workspace of its own, and beside
 * other kernels that hold any part of the GPU: no kernel waits for work that has not been started.
 *
 * `workspace` is memory of the same place, 256-byte aligned; its contents do not matter. The operator's
 * _workspace function sets *bytes to a size that is enough for `most` and for every call with fewer tokens
 * or rows (n_tokens, n_rows) and all else the same. It reads pointers only to learn where the call will
 * run; all NULL means the CPU. When it fails, *bytes is left alone.
 *
 * Errors: MB_ERR_ARGUMENT for a wrong shape, dtype, alignment or pointer, MB_ERR_UNSUPPORTED for what this
 * device cannot do, MB_ERR_CAPACITY for a workspace that is too small, MB_ERR_DEVICE for an error of CUDA.
 *
 * On the GPU matrices (x, a, y, out, residual, shared, w13, w2, b, the router's weight) and the plan's
 * tiles must be 16-byte aligned, and a matrix's row must be a multiple of 16 bytes. All else (ids, weights
 * of choices, logits, biases, scales, offsets) is aligned as its type. A block scale covers 8 rows or more.
 * Each operator says what more it needs there.
 */

/* Router logits: logits = x weight^T. Of a weight in fp32 at least 22 bits of mantissa are used. On the GPU
 * hidden is a multiple of 8 (of 4 when both dtypes are MB_F32), 16384 at most. */
typedef struct mb_moe_router_gemm_args {
    const void *x;      /* [T, H] dtype */
    const void *weight; /* [E, H] weight_dtype */
    const void *bias;   /* [E] fp32, or NULL */
    float *logits;      /* [T, E] out */
    int64_t n_tokens;
    int32_t hidden, n_experts;    /* E <= 1024 */
    mb_dtype dtype, weight_dtype; /* MB_F32, MB_BF16 or MB_F16 each */
} mb_moe_router_gemm_args;
MB_API mb_status mb_moe_router_gemm_workspace(const mb_moe_router_gemm_args *most, size_t *bytes);
MB_API mb_status mb_moe_router_gemm(const mb_moe_router_gemm_args *args, void *workspace,
                                    size_t workspace_bytes, mb_stream stream);

/* Router: for each token the K experts of largest probability, the largest first. Of equal ones the lower id
 * comes first. */
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
MB_API mb_status mb_moe_route(const mb_moe_route_args *args, mb_stream stream);

/* Rows [first_row, first_row + n_rows) of the sorted order, all of one local expert. 16 bytes. */
typedef struct mb_moe_token_tile {
    int32_t expert, first_row, n_rows, reserved;
} mb_moe_token_tile;

/* Stable counting sort of the T*K choices by expert. Ids outside of [first_expert, first_expert +
 * n_local_experts) are dropped: another rank holds the expert, or there is none (-1 for padding, say). There
 * may be 65536 local experts. T = 0 sets offsets and n_tiles to 0 where they are given, so that the next
 * operator can read them. */
typedef struct mb_moe_plan_args {
    const int32_t *ids; /* [T, K] */
    int32_t *offsets;   /* [n_local_experts + 1] out: rows of local expert e are [offsets[e], offsets[e+1]) */
    int32_t *row_token; /* [R] out: source token of each sorted row; undefined from offsets[n_local] on */
    int32_t *token_row; /* [T, K] out: sorted row of each choice, -1 when dropped */
    int64_t n_tokens;
    int32_t top_k, n_experts, first_expert, n_local_experts;
    /* Or NULL: the rows cut into tiles for a GEMM, experts in order. A tile has tile_rows rows at most.
     * Tiles of one expert are nearly equal; all but the last are a multiple of tile_step, a divisor of
     * tile_rows. */
    mb_moe_token_tile *tiles; /* [mb_moe_max_tiles(...)] out */
    int32_t *n_tiles;         /* [1] out */
    int32_t tile_rows, tile_step;
} mb_moe_plan_args;
/* How many tiles R rows of n_local_experts experts can take at most. */
MB_API int64_t mb_moe_max_tiles(int64_t n_rows, int32_t n_local_experts, int32_t tile_rows);
MB_API mb_status mb_moe_plan_workspace(const mb_moe_plan_args *most, size_t *bytes);
MB_API mb_status mb_moe_plan(const mb_moe_plan_args *args, void *workspace, size_t workspace_bytes,
                             mb_stream stream);

/*
 * Rows of a, grouped by expert, times their expert's matrix: for sorted row r of group e
 *     v      = a[row_index[r]] b[e]^T + bias[e]         (summed in fp32)
 *     out[r] = row_weight[r] * act(v), gated: act(v[0 .. N/2)) * v[N/2 .. N)
 * An fp8 out is quantised with one scale per row and 128 columns (amax / 448; 1 when all are 0); on the GPU
 * it is first rounded to a's 16-bit type, or to bf16 when a is fp8. One group and offsets NULL: a dense
 * linear layer.
 *
 * offsets[0] may be above 0. Rows of out before offsets[0] and from offsets[E] on are not written. On the
 * GPU b's rows are a multiple of 8 (gated: 16). The rows that row_index names must lie in the first 4 GiB
 * of a, unless f32_math is MB_F32_EXACT.
 *
 * b's dtype is a's. With MB_F8_E4M3 either b has one scale a matrix and a_scale is [1], or b has block
 * scales and a_scale is [rows of a, ceil(K / 128)]; sums of 128 products are then added up in fp32.
 */
typedef struct mb_grouped_gemm_args {
    const void *a;            /* [any, K] dtype; with row_index NULL: [R, K] */
    const float *a_scale;     /* MB_F8_E4M3 only, else NULL */
    const int32_t *row_index; /* [R] rows of a, or NULL: a's rows in order */
    const int32_t *offsets;   /* [E + 1]: group e's rows are [offsets[e], offsets[e+1]) */
    mb_weight b;              /* [E, N, K] */
    const void *bias;         /* [E, N] bias_dtype, or NULL */
    const float *row_weight;  /* [R], or NULL */
    void *out;                /* [R, N, gated N / 2] out_dtype */
    float *out_scale;         /* [R, ceil(columns of out / 128)] out; with an fp8 out only */
    int64_t n_rows;           /* R: at least offsets[E]; rows behind that are not written */
    /* out: MB_F32 or as a; of a 16-bit a also MB_F8_E4M3; of an fp8 a MB_BF16, MB_F16, MB_F32, MB_F8_E4M3 */
    mb_dtype dtype, out_dtype;
    mb_dtype bias_dtype; /* any but fp8; with MB_F32_EXACT on the GPU MB_F32 */
    mb_activation activation;
    mb_f32_math f32_math;
} mb_grouped_gemm_args;
MB_API mb_status mb_grouped_gemm_workspace(const mb_grouped_gemm_args *most, size_t *bytes);
MB_API mb_status mb_grouped_gemm(const mb_grouped_gemm_args *args, void *workspace, size_t workspace_bytes,
                                 mb_stream stream);

/*
 * The experts alone: what mb_moe_forward does between its plan and its sum. For sorted row r of local
 * expert e
 *     y[r] = w2[e] act(w13[e] x[row_index[r]] + bias13[e]) + bias2[e]
 * A rank of an expert-parallel group runs it on the rows that the other ranks sent. Types, rounding and the
 * GPU's needs are those of mb_moe_forward. y has the bits that mb_moe_forward sums.
 *
 * offsets[0] may be above 0. Rows of y and p before offsets[0] and from offsets[n_local_experts] on are not
 * written.
 */
typedef struct mb_moe_experts_args {
    const void *x;            /* [T, H] dtype */
    const int32_t *row_index; /* [R] rows of x, as a plan's row_token; or NULL: x's rows in order, T = R */
    const int32_t *offsets;   /* [n_local_experts + 1]: rows of expert e are [offsets[e], offsets[e + 1]) */
    mb_weight w13;            /* [n_local_experts, 2I or I, H] */
    mb_weight w2;             /* [n_local_experts, H, I] */
    const void *bias13;       /* [n_local_experts, 2I or I] dtype, or NULL */
    const void *bias2;        /* [n_local_experts, H] dtype, or NULL */
    void *y;                  /* [R, H] dtype; may not be x */
    int64_t n_tokens;         /* T */
    int64_t n_rows;           /* R: at least offsets[n_local_experts] */
    int32_t hidden, intermediate, n_local_experts;
    mb_dtype dtype;
    mb_activation activation;
    mb_f32_math f32_math;
    const float *x_scale, *h_scale; /* [1] each, fp8 weights with per-tensor scales only */
    void *p;                        /* [R, 2I or I] dtype out, or NULL; see mb_moe_forward_args */
    const void *x8;                 /* [T, H] MB_F8_E4M3, or NULL; see mb_moe_forward_args */
    const float *x8_scale;          /* [T, ceil(H / 128)]; NULL with x8 NULL */
} mb_moe_experts_args;
MB_API mb_status mb_moe_experts_workspace(const mb_moe_experts_args *most, size_t *bytes);
MB_API mb_status mb_moe_experts(const mb_moe_experts_args *args, void *workspace, size_t workspace_bytes,
                                mb_stream stream);

/* out[t] = residual[t] + shared[t] + sum over k, in order, of weights[t, k] * y[token_row[t, k]]. The sum is
 * fp32 and rounded once. */
typedef struct mb_moe_reduce_args {
    const void *y;            /* [R, H] dtype; may be NULL when token_row is -1 everywhere: R is 0 */
    const float *weights;     /* [T, K] */
    const int32_t *token_row; /* [T, K], -1: no such row */
    const void *residual;     /* [T, H] out_dtype, or NULL; may be out */
    const void *shared;       /* [T, H] out_dtype, or NULL */
    void *out;                /* [T, H] out_dtype */
    int64_t n_tokens;
    int32_t hidden, top_k;
    mb_dtype dtype, out_dtype; /* MB_F32, MB_BF16 or MB_F16; out's is y's or MB_F32 */
} mb_moe_reduce_args;
MB_API mb_status mb_moe_reduce(const mb_moe_reduce_args *args, mb_stream stream);

/*
 * The experts of one MoE layer: out[t] = residual[t] + shared[t] + sum_k weights[t,k] *
 * w2[e](act(w13[e](x[t]))), e = ids[t,k].
 *
 * With fp8 weights activations are bf16 or fp16. On the GPU x and the activated product are then quantised
 * to fp8: with block scales by one scale per row and 128 columns (amax / 448; 1 when all are 0), with one
 * scale a matrix by x_scale and h_scale (value / scale, saturated). The CPU leaves both in dtype, and does
 * not read x_scale and h_scale.
 *
 * The activated product and each expert's output are rounded to dtype. The CPU rounds gate and up too, as
 * Hugging Face does; the GPU keeps them in fp32 until they are activated.
 *
 * On the GPU hidden and intermediate are multiples of 8 (of 16 with fp8 weights), at least 16, and K is at
 * most 32. x, [T, H] of the weights' dtype, takes at most 4 GiB, unless f32_math is MB_F32_EXACT.
 */
typedef struct mb_moe_forward_args {
    const void *x;        /* [T, H] dtype */
    const float *weights; /* [T, K] */
    const int32_t *ids;   /* [T, K]; ids that are not local experts' add nothing, see mb_moe_plan */
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
    mb_dtype dtype; /* activations: MB_F32, MB_BF16 or MB_F16; weights the same or MB_F8_E4M3 */
    mb_activation activation;
    mb_f32_math f32_math;
    const float *x_scale, *h_scale; /* [1] each, fp8 weights with per-tensor scales only */
    /* NULL: weights and ids are given. Else the router runs first and writes them; its ids, weights,
     * n_tokens, n_experts and top_k must be the same as here. */
    const mb_moe_route_args *route;
    /* [R, 2I or I] dtype out, or NULL. Training keeps it for mb_moe_backward (train.h): w13 x + bias13 of each
     * choice, rounded to dtype, rows in mb_moe_plan's order. The rows of choices that are no local expert's
     * are not written. out has the same bits with p and without, and no call needs more workspace. On the
     * GPU with bf16 and fp16 weights only (else MB_ERR_UNSUPPORTED), and 16-byte aligned. */
    void *p;
    /* x in fp8 already, by what made x: e4m3 times one scale for each row and 128 columns, amax / 448, 1 when all
     * are 0. A GPU then does not quantise x; with the scales and bytes that it would make the result has the same
     * bits. The CPU widens x8, and reads it in place of x. A GPU takes it beside weights with block scales only.
     * x must be given all the same. */
    const void *x8;        /* [T, H] MB_F8_E4M3, or NULL */
    const float *x8_scale; /* [T, ceil(H / 128)]; NULL with x8 NULL */
} mb_moe_forward_args;
MB_API mb_status mb_moe_forward_workspace(const mb_moe_forward_args *most, size_t *bytes);
MB_API mb_status mb_moe_forward(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                                mb_stream stream);

#ifdef __cplusplus
}
#endif
#endif
