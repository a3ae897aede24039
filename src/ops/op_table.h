/*
 * op_table.h - the operators that a forward pass calls, as one struct of function pointers.
 *
 * A device fills the table: the CPU with the C references, a GPU with kernels. The model calls the table and
 * nothing else, so a backend is added without touching model/.
 *
 * Every operator: takes a struct of shapes and pointers, runs on `stream`, never allocates, synchronises,
 * prints or exits; T = 0 is legal and does nothing. `workspace` is device memory of at least the bytes that
 * the operator's *_workspace function gives for the same arguments (what pointers in them point at is not
 * looked at, so the sizes can be asked for before memory exists).
 */
#ifndef MB_OPS_OP_TABLE_H
#define MB_OPS_OP_TABLE_H

#include "moebius/ops.h"
#include "ops/attention/attention.h"
#include "ops/embed/embed.h"
#include "ops/gemm/gemm.h"
#include "ops/moe/moe.h"
#include "ops/norm/norm.h"
#include "ops/rope/rope.h"
#include "ops/sample/sample.h"

typedef struct mb_ops {
    const char *name; /* "cpu", "sm90" */

    mb_status (*embed)(const mb_embed_args *args, mb_stream stream);
    mb_status (*rms_norm)(const mb_rms_norm_args *args, mb_stream stream);

    size_t (*gemm_workspace)(const mb_gemm_args *args);
    mb_status (*gemm)(const mb_gemm_args *args, void *workspace, size_t workspace_bytes, mb_stream stream);

    mb_status (*qk_norm_rope_store)(const mb_qk_norm_rope_store_args *args, mb_stream stream);

    size_t (*attention_workspace)(const mb_attention_args *args);
    mb_status (*attention)(const mb_attention_args *args, void *workspace, size_t workspace_bytes,
                           mb_stream stream);

    mb_status (*gated_activation)(const mb_gated_activation_args *args, mb_stream stream);
    size_t (*moe_router_gemm_workspace)(const mb_moe_router_gemm_args *args);
    mb_status (*moe_router_gemm)(const mb_moe_router_gemm_args *args, void *workspace, size_t workspace_bytes,
                                 mb_stream stream);
    mb_status (*moe_route)(const mb_moe_route_args *args, mb_stream stream);
    size_t (*moe_plan_workspace)(const mb_moe_plan_args *args);
    mb_status (*moe_plan)(const mb_moe_plan_args *args, void *workspace, size_t workspace_bytes,
                          mb_stream stream);
    size_t (*grouped_gemm_workspace)(const mb_grouped_gemm_args *args);
    mb_status (*grouped_gemm)(const mb_grouped_gemm_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream);
    mb_status (*moe_reduce)(const mb_moe_reduce_args *args, mb_stream stream);
    size_t (*moe_forward_workspace)(const mb_moe_forward_args *args);
    mb_status (*moe_forward)(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                             mb_stream stream);

    size_t (*sample_workspace)(const mb_sample_args *args);
    mb_status (*sample)(const mb_sample_args *args, void *workspace, size_t workspace_bytes,
                        mb_stream stream);
    mb_status (*log_softmax)(const mb_log_softmax_args *args, mb_stream stream);
} mb_ops;

#endif
