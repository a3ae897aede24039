/*
 * train.h - training of an MoE layer: the backward of mb_moe_forward and of its router, the router's losses,
 * and token rounding.
 *
 * Words and rules are those of ops.h: T tokens, H hidden, I intermediate, E experts, K choices per token,
 * R = T*K rows. The first pointer says where an operator runs, on the CPU or on a GPU; all other arrays,
 * scalars and the workspace are there too. `workspace` is 256-byte aligned, no call allocates memory, and the
 * same inputs give the same bits: on the CPU with any number of threads, on the GPU in a CUDA graph or not.
 *
 * Errors are those of ops.h. Every array is aligned as its type; on the GPU the matrices (x, d_out, dx, p,
 * w13, w2, dw13, dw2) are 16-byte aligned. Outputs may not overlap inputs or each other. mb_moe_backward says
 * what else it refuses on a GPU. The router's operators take the same sizes and types everywhere.
 */
#ifndef MOEBIUS_TRAIN_H
#define MOEBIUS_TRAIN_H

#include "moebius/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The backward of mb_moe_forward. For choice k of token t, with e = ids[t, k] and s = weights[t, k]
 *     p = w13[e] x[t] + bias13[e]       rounded to dtype, as the forward on the CPU rounds
 *     h = act(p), gated: act(p[0 .. I)) * p[I .. 2I)
 *     y = w2[e] h + bias2[e]            out[t] = sum over k of s y
 * and, given d_out, the gradient of the loss with respect to out:
 *     dh = w2[e]^T d_out[t]
 *     dweights[t, k] = h . dh + bias2[e] . d_out[t]
 *     dp = s dh act'(p), gated: (s dh up act'(gate), s dh act(gate))
 *     dx[t] = sum over k, in order, of w13[e]^T dp
 *     dw13[e] = sum of dp x[t]^T        dbias13[e] = sum of dp        over the rows of e, in sorted order
 *     dw2[e]  = sum of s d_out[t] h^T   dbias2[e]  = sum of s d_out[t]
 * relu's derivative at 0 is 0. A row of dx and of dweights does not depend on the other tokens, bit for bit,
 * nor an expert's gradient on the other experts.
 *
 * On the CPU values between the sums (h, dp) are fp32, sums are fp64, and each result is rounded once. On the
 * GPU s h, dp and each choice's part of dx are rounded to dtype, and sums are fp32. (So with fp16 the
 * caller's loss scale must keep them in range.) Beside what every device refuses, a GPU refuses
 *     dtype MB_F32                                                   MB_ERR_UNSUPPORTED
 *     x, or d_out, of more than 2^32 bytes                           MB_ERR_UNSUPPORTED
 *     hidden, or rows of w13, of 2^30 or more                        MB_ERR_UNSUPPORTED
 *     hidden or intermediate that is no multiple of 8, or below 16   MB_ERR_ARGUMENT
 *     a matrix that is not 16-byte aligned                           MB_ERR_ARGUMENT
 *
 * residual and shared have no part here: the gradient of each is d_out.
 *
 * Ids outside of the local experts get dweights 0 and add nothing. A local expert without rows has gradients
 * of 0. That holds of T = 0 as well: the weights' gradients are zeros, or left as they are with accumulate.
 *
 * The saved state is p alone, R * (2I or I) elements of dtype: mb_moe_forward writes p when its argument p is
 * given. With p NULL the backward computes p again, with the same bits. (The forward on a GPU activates
 * w13 x + bias13 before it is rounded to p. The backward's h is of the rounded p everywhere.) Neither a
 * gathered copy of x nor y is kept. (Saving p alone and taking dweights from h . dh: SonicMoE, Guo et al.
 * 2025, arXiv 2512.14080.)
 */
typedef struct mb_moe_backward_args {
    const void *x;        /* [T, H] dtype */
    const float *weights; /* [T, K] */
    const int32_t *ids;   /* [T, K] */
    mb_weight w13;        /* [n_local_experts, 2I or I, H] dtype, no scales */
    mb_weight w2;         /* [n_local_experts, H, I] dtype, no scales */
    const void *bias13;   /* [n_local_experts, 2I or I] dtype, or NULL */
    const void *bias2;    /* [n_local_experts, H] dtype, or NULL; read for dweights only */
    const void *p;        /* [R, 2I or I] dtype: mb_moe_forward's p, or NULL */
    const void *d_out;    /* [T, H] dtype */
    /* What is NULL is not computed. */
    void *dx;        /* [T, H] dtype out */
    float *dweights; /* [T, K] out */
    void *dw13;      /* [n_local_experts, 2I or I, H] grad_dtype out */
    void *dw2;       /* [n_local_experts, H, I] grad_dtype out */
    void *dbias13;   /* [n_local_experts, 2I or I] grad_dtype out */
    void *dbias2;    /* [n_local_experts, H] grad_dtype out */
    int64_t n_tokens;
    int32_t hidden, intermediate, top_k;
    int32_t n_experts, first_expert, n_local_experts;
    mb_dtype dtype;      /* MB_F32, MB_BF16 or MB_F16 */
    mb_dtype grad_dtype; /* of dw13, dw2 and the biases' gradients: MB_F32 or dtype */
    mb_activation activation;
    /* 1: the weights' and biases' gradients are added to what is there, in fp64 (fp32 on the GPU), and
     * rounded once. 0: they replace it. dx and dweights always replace. (On the GPU a sum in dw13 or dw2 of
     * MB_F32 that is below the smallest normal number becomes 0.) */
    int32_t accumulate;
} mb_moe_backward_args;
MB_API mb_status mb_moe_backward_workspace(const mb_moe_backward_args *most, size_t *bytes);
MB_API mb_status mb_moe_backward(const mb_moe_backward_args *args, void *workspace, size_t workspace_bytes,
                                 mb_stream stream);

/*
 * The router's losses, and how many choices fell on each expert. With q = softmax over E of a token's logits
 *     load_balance = E * sum over e of (counts[e] / T) * (mean over tokens of q[e])
 *     z            = mean over tokens of logsumexp(logits)^2
 * load_balance: Switch Transformer, Fedus et al. 2021, arXiv 2101.03961, eq. 4 to 6, after GShard (Lepikhin
 * et al. 2020, arXiv 2006.16668); for K > 1 as in Hugging Face's load_balancing_loss_func: K when balanced.
 * (Megatron divides by K.) z: ST-MoE, Zoph et al. 2022, arXiv 2202.08906, eq. 5. Both are without their
 * coefficients. Of T = 0 both are 0, and so are the counts. Ids outside of [0, E) are not counted. Sums are
 * fp64: on the CPU over tokens in order, on the GPU over parts of the tokens, which T alone decides.
 */
typedef struct mb_moe_router_losses_args {
    const void *logits;  /* [T, E] logits_dtype */
    const int32_t *ids;  /* [T, K] */
    int32_t *counts;     /* [E] out */
    float *load_balance; /* [1] out, or NULL */
    float *z;            /* [1] out, or NULL */
    int64_t n_tokens;
    int32_t n_experts, top_k; /* as in mb_moe_route */
    mb_dtype logits_dtype;    /* MB_F32 or MB_BF16 */
} mb_moe_router_losses_args;
MB_API mb_status mb_moe_router_losses_workspace(const mb_moe_router_losses_args *most, size_t *bytes);
MB_API mb_status mb_moe_router_losses(const mb_moe_router_losses_args *args, void *workspace,
                                      size_t workspace_bytes, mb_stream stream);

/*
 * The backward of mb_moe_route and of the router's losses: dlogits is the sum of three parts. Ids and counts
 * are constants.
 *   - of the weights: softmax over E, unless order is MB_ROUTE_TOPK_SOFTMAX or renormalize is set. Then a
 *     weight is the softmax over the token's chosen experts; the others' logits get 0 from this part.
 *   - of load_balance and of z, times d_load_balance and d_z: the gradients of the loss with respect to the
 *     values of mb_moe_router_losses, so their coefficients.
 * ids need not be the router's own: replayed choices and those of mb_moe_token_rounding are as good. Ids
 * outside of [0, E) stand for no choice. Computed in fp64, rounded once. A row of dlogits does not depend on
 * the other tokens, but for counts and T. A NaN logit counts as -infinity; the largest of a token is finite.
 */
typedef struct mb_moe_route_backward_args {
    const void *logits;          /* [T, E] logits_dtype */
    const int32_t *ids;          /* [T, K] */
    const float *dweights;       /* [T, K], or NULL: 0 */
    const int32_t *counts;       /* [E] of mb_moe_router_losses; may be NULL when d_load_balance is */
    const float *d_load_balance; /* [1], or NULL: 0 */
    const float *d_z;            /* [1], or NULL: 0 */
    float *dlogits;              /* [T, E] out */
    int64_t n_tokens;
    int32_t n_experts, top_k; /* as in mb_moe_route */
    mb_dtype logits_dtype;    /* MB_F32 or MB_BF16 */
    mb_route_order order;
    int32_t renormalize;
} mb_moe_route_backward_args;
MB_API mb_status mb_moe_route_backward(const mb_moe_route_backward_args *args, mb_stream stream);

typedef enum mb_rounding {
    MB_ROUNDING_NONE,    /* the counts stay; the report is of plain top-k */
    MB_ROUNDING_NEAREST, /* half a tile and more go up */
    MB_ROUNDING_UP,
    MB_ROUNDING_DOWN,
    /* Up or down so that the sum of the counts stays within half a tile of what it was: experts in order,
     * each expert's rounding error is carried to the next. */
    MB_ROUNDING_BALANCED,
} mb_rounding;

/* What a grouped GEMM in tiles of tile_rows does with the choices. */
typedef struct mb_moe_rounding_report {
    int64_t routed;    /* choices that came in */
    int64_t processed; /* choices that went out: routed - dropped + added */
    int64_t hardware;  /* the same, each expert's count rounded up to whole tiles */
    int64_t dropped, added;
    double wasted_ratio; /* 1 - processed / hardware; 0 when both are 0 */
} mb_moe_rounding_report;

/*
 * Token rounding: each expert's count of choices becomes a multiple of tile_rows, so that no tile of its
 * GEMM is padded (SonicMoE, arXiv 2512.14080). Rounding down drops the chosen tokens of least probability,
 * of equal ones the last. Rounding up adds the tokens of largest probability that had not chosen the
 * expert, of equal ones the first. The probability is the softmax over E of the token's logits;
 * probabilities that differ by less than one part in 2^35 may count as equal.
 *
 * Experts are rounded in order. A kept choice keeps its place among its token's K. A dropped one becomes
 * id -1 with weight 0. An added one takes the token's first free place of [K, max_choices). A token
 * without a free place is passed over. Where too few tokens are left, the expert is rounded down instead.
 * So counts are multiples in every case; 0 stays 0.
 *
 * The weights are those of mb_moe_route for the choices that remain: softmax over E, or with renormalize
 * or MB_ROUTE_TOPK_SOFTMAX over the token's remaining choices. So MB_ROUNDING_NONE gives choices that are
 * replayed their weights, for the router's own choices bit for bit. mb_moe_route_backward with out_ids and
 * max_choices is the backward. A token without any choice gets nothing from the experts.
 *
 * A NaN logit counts as -infinity; the largest of a token is finite. Ids outside of [0, E) stand for no
 * choice. A token's ids in [0, E) must differ: MB_ERR_ARGUMENT. A GPU, which does not read them before the
 * kernels run, takes the first of equal ids and lets the others stand for no choice. T * max_choices is at
 * most 2^31 - 1: MB_ERR_ARGUMENT.
 */
typedef struct mb_moe_token_rounding_args {
    const void *logits;             /* [T, E] logits_dtype */
    const int32_t *ids;             /* [T, K] */
    int32_t *out_ids;               /* [T, max_choices] out, -1: no choice */
    float *out_weights;             /* [T, max_choices] out */
    int32_t *counts;                /* [E] out, after rounding */
    mb_moe_rounding_report *report; /* [1] out, or NULL */
    int64_t n_tokens;
    int32_t n_experts, top_k; /* as in mb_moe_route */
    int32_t max_choices;      /* top_k .. min(n_experts, 32); top_k: nothing can be added */
    int32_t tile_rows;        /* at least 1 */
    mb_rounding rounding;
    mb_dtype logits_dtype; /* MB_F32 or MB_BF16 */
    mb_route_order order;
    int32_t renormalize;
} mb_moe_token_rounding_args;
MB_API mb_status mb_moe_token_rounding_workspace(const mb_moe_token_rounding_args *most, size_t *bytes);
MB_API mb_status mb_moe_token_rounding(const mb_moe_token_rounding_args *args, void *workspace,
                                       size_t workspace_bytes, mb_stream stream);

#ifdef __cplusplus
}
#endif
#endif
