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

/* A cudaStream_t on the GPU. On the CPU, where a call has finished when it returns, NULL or what the CPU
 * device gives as its stream: its threads (NULL: the calling thread alone). */
typedef void *mb_stream;

/* Columns, and rows at most, of one fp8 block scale. */
enum { MB_F8_BLOCK = 128 };

/*
 * A weight matrix, or E of them one after another: data [count, rows, cols] of dtype, each row of
 * mb_dtype_row_bytes(dtype, cols) bytes. With scales
 *     value(e, r, c) = data[e][r][c] * scale[e][r / scale_rows][c / scale_cols] * global_scale[e]
 * scale is [count, ceil(rows / scale_rows), ceil(cols / scale_cols)] of scale_dtype; scale_rows 0 means all rows,
 * scale_cols 0 all columns. A pointer that is NULL stands for factors of 1.
 *
 *     scales               dtype       scale_dtype  scale_rows x scale_cols  global_scale  taken by the operators
 *     one a matrix         MB_F8_E4M3  MB_F32       0 x 0                                  yes
 *     blocks               MB_F8_E4M3  MB_F32       128 x 128                              yes
 *     one a row            MB_F8_E4M3  MB_F32       1 x 0                                  not yet
 *     MXFP4                MB_F4_E2M1  MB_F8_E8M0   1 x 32                                 not yet
 *     NVFP4                MB_F4_E2M1  MB_F8_E4M3   1 x 16                   given         not yet
 *
 * Blocks are what the FP8 checkpoints of DeepSeek-V3 and Qwen3 call weight_scale_inv. Their scale_rows may be any
 * divisor of 128: merged matrices whose heights are not multiples of 128 have lower blocks. What is not taken is
 * refused with MB_ERR_UNSUPPORTED.
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

/* How MB_F32 times MB_F32 is computed on a GPU. (The CPU computes in fp32 always.) */
typedef enum mb_f32_math {
    /* Tensor cores: factors lose the low 13 bits of their mantissa, weights rounded to nearest, activations
     * cut off; sums in fp32. */
    MB_F32_TF32,
    MB_F32_EXACT, /* fp32 multiply-adds */
} mb_f32_math;

/*
 * The MoE operators. Each takes a struct of shapes and pointers. The pointers say where it runs: on the GPU
 * that holds the first of them, on `stream`, without waiting for it; or on the CPU, where it has finished
 * when it returns. No call allocates, and all can be captured in a CUDA graph. T = 0 is legal and does
 * nothing (but see mb_moe_plan). Same inputs give the same bits.
 * Calls may run at the same time on any number of streams, each with a workspace of its own, and beside other kernels
 * that hold any part of the GPU: no kernel waits for work that has not been started.
 *
 * `workspace` is memory of the same place, 256-byte aligned, contents undefined. The operator's _workspace function
 * says how many bytes: *bytes is enough for every call whose n_tokens or n_rows is that of `most` or less, all other
 * sizes and types the same. Data pointers in `most` only say where the call will run (all NULL: on the CPU).
 * When the arguments are wrong *bytes is not set.
 *
 * Errors: MB_ERR_ARGUMENT for a shape, dtype, alignment or pointer that is wrong, MB_ERR_UNSUPPORTED for what
 * this device cannot do, MB_ERR_CAPACITY for a workspace that is too small, MB_ERR_DEVICE for CUDA's own.
 * On the GPU matrices (x, a, y, out, residual, shared, w13, w2, b, the router's weight) and the plan's tiles
 * must be 16-byte aligned, columns of matrices multiples of 16 bytes. All else (ids, weights of choices,
 * logits, biases, scales, offsets) is aligned as its type. A block scale covers 8 rows or more. Each operator
 * says what more it needs there.
 */

/* Router logits: logits = x weight^T. weight in fp32 takes part with at least 22 bits of mantissa. On the GPU
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
MB_API mb_status mb_moe_route(const mb_moe_route_args *args, mb_stream stream);

/* Rows [first_row, first_row + n_rows) of the sorted order, all of one local expert. 16 bytes. */
typedef struct mb_moe_token_tile {
    int32_t expert, first_row, n_rows, reserved;
} mb_moe_token_tile;

/* Stable counting sort of the T*K choices by expert. Ids outside of [first_expert, first_expert +
 * n_local_experts) are dropped: another rank holds the expert, or there is none (-1 for padding, say). Up to
 * 65536 local experts. T = 0 sets offsets and n_tiles, where they are given, to 0: what follows can read
 * them. */
typedef struct mb_moe_plan_args {
    const int32_t *ids; /* [T, K] */
    int32_t *offsets;   /* [n_local_experts + 1] out: rows of local expert e are [offsets[e], offsets[e+1]) */
    int32_t *row_token; /* [R] out: source token of each sorted row; behind offsets[n_local] undefined */
    int32_t *token_row; /* [T, K] out: sorted row of each choice, -1 when dropped */
    int64_t n_tokens;
    int32_t top_k, n_experts, first_expert, n_local_experts;
    /* The rows cut into tiles for a GEMM, experts in order, or NULL: at most tile_rows rows each, an expert's
     * tiles of nearly equal size, all but its last a multiple of tile_step (a divisor of tile_rows). */
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
 * and, with an fp8 out, quantised with one scale per row and 128 columns (amax / 448; 1 when all are 0).
 * One group and offsets NULL: a dense linear layer.
 *
 * offsets[0] may be above 0: rows in front of it are not written, as those behind offsets[E]. On the GPU b's
 * rows are a multiple of 8 (gated 16), and with row_index the rows it names lie in the first 4 GiB of a,
 * unless MB_F32_EXACT.
 *
 * dtypes: b's is a's. MB_F8_E4M3: b has per-tensor scales and a_scale is [1], or b has block scales and
 * a_scale is [rows of a, ceil(K / 128)]; sums are then promoted to fp32 every 128 of K.
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
 * The experts alone, what mb_moe_forward does between its plan and its sum: for sorted row r of local expert e
 *     y[r] = w2[e] act(w13[e] x[row_index[r]] + bias13[e]) + bias2[e]
 * A rank of an expert-parallel group calls it on the rows that it was sent. Types, roundings and what the GPU wants
 * are mb_moe_forward's; the bits are those that mb_moe_forward sums.
 *
 * offsets[0] may be above 0, as in mb_grouped_gemm: y's rows in front of it and behind offsets[n_local_experts] are
 * not written.
 */
typedef struct mb_moe_experts_args {
    const void *x; /* [T, H] dtype */
    const int32_t
        *row_index;         /* [R] in [0, T), such as a plan's row_token; or NULL: T = R, x's rows in order */
    const int32_t *offsets; /* [n_local_experts + 1]: rows of expert e are [offsets[e], offsets[e + 1]) */
    mb_weight w13;          /* [n_local_experts, 2I or I, H] */
    mb_weight w2;           /* [n_local_experts, H, I] */
    const void *bias13;     /* [n_local_experts, 2I or I] dtype, or NULL */
    const void *bias2;      /* [n_local_experts, H] dtype, or NULL */
    void *y;                /* [R, H] dtype; may not be x */
    int64_t n_tokens, n_rows; /* T; R, at least offsets[n_local_experts] */
    int32_t hidden, intermediate, n_local_experts;
    mb_dtype dtype;
    mb_activation activation;
    mb_f32_math f32_math;
    const float *x_scale, *h_scale; /* [1] each, fp8 weights with per-tensor scales only */
} mb_moe_experts_args;
MB_API mb_status mb_moe_experts_workspace(const mb_moe_experts_args *most, size_t *bytes);
MB_API mb_status mb_moe_experts(const mb_moe_experts_args *args, void *workspace, size_t workspace_bytes,
                                mb_stream stream);

/* out[t] = residual[t] + shared[t] + sum over k, in order, of weights[t, k] * y[token_row[t, k]]; summed in
 * fp32, rounded once. */
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
 * fp8 weights: activations are bf16 or fp16. On the GPU x and the activated product (rounded to dtype) are
 * quantised to fp8 too: with block scales per row and 128 columns (amax / 448; 1 when all are 0), with
 * per-tensor scales by x_scale and h_scale (value / scale, saturated). The CPU leaves them in dtype, and does
 * not look at x_scale and h_scale.
 *
 * Rounded to dtype before the sum over k: the activated product and each expert's output; on the CPU gate and
 * up too, as Hugging Face does, while the GPU keeps them in fp32 until they are activated.
 *
 * On the GPU: hidden and intermediate are multiples of 8 (of 16 with fp8 weights), 16 at least; K <= 32; x,
 * [T, H] of the weights' dtype, takes up to 4 GiB, unless MB_F32_EXACT.
 */
typedef struct mb_moe_forward_args {
    const void *x;        /* [T, H] dtype */
    const float *weights; /* [T, K] */
    const int32_t *ids;   /* [T, K]; of the local experts, others add nothing, see mb_moe_plan */
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
    /* NULL: weights and ids are given. Else the router runs first and writes them: its ids and weights are
     * ours, and so are its n_tokens, n_experts and top_k. */
    const mb_moe_route_args *route;
} mb_moe_forward_args;
MB_API mb_status mb_moe_forward_workspace(const mb_moe_forward_args *most, size_t *bytes);
MB_API mb_status mb_moe_forward(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                                mb_stream stream);

#ifdef __cplusplus
}
#endif
#endif
