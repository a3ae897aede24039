/*
 * op_table.h - the operators that a forward pass or a training step calls, as one struct of function
 * pointers.
 *
 * A device fills the table: the CPU with the C references, a GPU with kernels. The model calls the table
 * and nothing else, so a backend is added without touching model/. A table may have holes while a backend
 * is being written; mb_ops_missing names those that a model would fall into.
 *
 * Every operator takes a struct of shapes and pointers and runs on `stream`. It never allocates,
 * synchronises, prints or exits. T = 0 is legal and does nothing. `workspace` is device memory. The
 * operator's _workspace function sets *bytes to a size that is enough for `most` and for every call with
 * smaller counts (n_tokens, n_rows, n_sequences, ...) and all else the same. It does not read the memory
 * behind the pointers in `most`, so a size can be asked for before the memory exists.
 */
#ifndef MB_OPS_OP_TABLE_H
#define MB_OPS_OP_TABLE_H

#include "moebius/ops.h"
#include "ops/attention/attention.h"
#include "ops/attention/decode_attention.h"
#include "ops/embed/embed.h"
#include "ops/gemm/gemm.h"
#include "ops/moe/moe.h"
#include "ops/moe/train.h"
#include "ops/norm/norm.h"
#include "ops/rope/rope.h"
#include "ops/sample/sample.h"

/* All operators, once: PLAIN(x) without a workspace, WITH_WORKSPACE(x) with one. The argument of x is an
 * mb_x_args. */
#define MB_OPERATORS(PLAIN, WITH_WORKSPACE) \
    PLAIN(embed)                            \
    PLAIN(rms_norm)                         \
    WITH_WORKSPACE(gemm)                    \
    PLAIN(qk_norm_rope_store)               \
    WITH_WORKSPACE(attention)               \
    WITH_WORKSPACE(decode_attention)        \
    PLAIN(gated_activation)                 \
    WITH_WORKSPACE(moe_router_gemm)         \
    PLAIN(moe_route)                        \
    WITH_WORKSPACE(moe_plan)                \
    WITH_WORKSPACE(grouped_gemm)            \
    WITH_WORKSPACE(moe_experts)             \
    PLAIN(moe_reduce)                       \
    WITH_WORKSPACE(moe_forward)             \
    PLAIN(count_tokens)                     \
    WITH_WORKSPACE(sample)                  \
    PLAIN(log_softmax)

/* Likewise, of training. No model calls them, so mb_ops_missing does not ask for them. */
#define MB_TRAINING_OPERATORS(PLAIN, WITH_WORKSPACE) \
    WITH_WORKSPACE(moe_backward)                     \
    WITH_WORKSPACE(moe_router_losses)                \
    PLAIN(moe_route_backward)                        \
    WITH_WORKSPACE(moe_token_rounding)

#define MB_OP_PLAIN(op) mb_status (*op)(const mb_##op##_args *args, mb_stream stream);
#define MB_OP_WITH_WORKSPACE(op)                                            \
    mb_status (*op##_workspace)(const mb_##op##_args *most, size_t *bytes); \
    mb_status (*op)(const mb_##op##_args *args, void *workspace, size_t workspace_bytes, mb_stream stream);

typedef struct mb_ops {
    const char *name; /* "cpu", "sm90" */
    /* Whether gemm and moe_forward, beside such a weight and so many tokens, would rather have x in fp8
     * from what makes it (rms_norm) than in dtype. NULL: never. */
    int (*wants_x8)(mb_dtype dtype, const mb_weight *weight, int64_t n_tokens);
    /* rms_norm, moe_router_gemm and moe_forward in one call; what must hold of them together is in
     * ops/moe/block_arguments.h. The workspace is as large as each of moe_router_gemm and moe_forward wants.
     * left: NULL, or what is left to be summed: gemm's x_sum; n_tokens 0: nothing. gemm adds it up without a
     * launch of its own only where args->out is not args->residual.
     * The entry is NULL: not on this device. */
    mb_status (*moe_block)(const mb_rms_norm_args *norm, const mb_moe_router_gemm_args *score,
                           const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                           mb_moe_reduce_args *left, mb_stream stream);
    MB_OPERATORS(MB_OP_PLAIN, MB_OP_WITH_WORKSPACE)
    MB_TRAINING_OPERATORS(MB_OP_PLAIN, MB_OP_WITH_WORKSPACE)
} mb_ops;

#undef MB_OP_PLAIN
#undef MB_OP_WITH_WORKSPACE

/* How many of MB_OPERATORS the table lacks; their names go to `names`, cut off at its end: "embed, gemm". */
int mb_ops_missing(const mb_ops *ops, char *names, size_t capacity);

#endif
