#include "base/status.h"
#include "ops/moe/arguments.h"
#include "ops/moe/moe.h"
#include "ops/moe/ref/ref.h"

/* One group of all tokens: a dense layer whose weight may have a type of its own. */
static mb_grouped_gemm_args as_grouped_gemm(const mb_moe_router_gemm_args *args) {
    return (mb_grouped_gemm_args){.a = args->x,
                                  .b = {.data = args->weight,
                                        .count = 1,
                                        .rows = args->n_experts,
                                        .cols = args->hidden,
                                        .dtype = args->weight_dtype},
                                  .bias = args->bias,
                                  .out = args->logits,
                                  .n_rows = args->n_tokens,
                                  .dtype = args->dtype,
                                  .out_dtype = MB_F32,
                                  .bias_dtype = MB_F32,
                                  .activation = MB_ACT_NONE};
}

mb_status mb_moe_router_gemm_ref_workspace(const mb_moe_router_gemm_args *most, size_t *bytes) {
    MB_TRY(mb_moe_router_gemm_check_sizes(most));
    mb_grouped_gemm_args gemm = as_grouped_gemm(most);
    mb_status status = mb_grouped_gemm_any_workspace(&gemm, bytes);
    return status == MB_OK ? MB_OK : mb_fail_context(status, "moe_router_gemm");
}

mb_status mb_moe_router_gemm_ref(const mb_moe_router_gemm_args *args, void *workspace, size_t workspace_bytes,
                                 mb_stream stream) {
    MB_TRY(mb_moe_router_gemm_check(args));
    mb_grouped_gemm_args gemm = as_grouped_gemm(args);
    mb_status status = mb_grouped_gemm_any(&gemm, workspace, workspace_bytes, stream);
    return status == MB_OK ? MB_OK : mb_fail_context(status, "moe_router_gemm");
}
