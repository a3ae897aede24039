#include "ops/common/tensor.h"
#include "ops/moe/moe.h"

#include <inttypes.h>

/* Counting sort: count, prefix sum, place. Serial: it reads T*K ids twice, and the GEMMs behind it dwarf it.
 */

size_t mb_moe_plan_ref_workspace(const mb_moe_plan_args *args) {
    return args->n_local_experts > 0 ? (size_t)args->n_local_experts * sizeof(int32_t) : 0;
}

mb_status mb_moe_plan_ref(const mb_moe_plan_args *args, void *workspace, size_t workspace_bytes,
                          mb_stream stream) {
    (void)stream;
    MB_REQUIRE(args->top_k >= 1, "moe_plan: top_k is %d", args->top_k);
    MB_REQUIRE(args->n_tokens >= 0 && args->n_tokens <= INT32_MAX / args->top_k,
               "moe_plan: n_tokens is %" PRId64 ", with top_k %d more rows than an int32 counts",
               args->n_tokens, args->top_k);
    MB_REQUIRE(args->n_experts >= 1 && args->first_expert >= 0 && args->n_local_experts >= 1 &&
                   args->n_local_experts <= args->n_experts - args->first_expert,
               "moe_plan: local experts are [%d, %d + %d), not within the %d experts", args->first_expert,
               args->first_expert, args->n_local_experts, args->n_experts);
    MB_REQUIRE(args->offsets, "moe_plan: offsets is NULL");
    size_t needed = mb_moe_plan_ref_workspace(args);
    MB_REQUIRE(workspace && workspace_bytes >= needed, "moe_plan: workspace has %zu bytes, needs %zu",
               workspace_bytes, needed);
    int64_t n_choices = args->n_tokens * args->top_k;
    MB_REQUIRE(n_choices == 0 || (args->ids && args->row_token && args->token_row),
               "moe_plan: ids, row_token or token_row is NULL");

    int32_t n_local = args->n_local_experts, *offsets = args->offsets, *next_row = workspace;
    for (int32_t e = 0; e <= n_local; e++)
        offsets[e] = 0;
    for (int64_t i = 0; i < n_choices; i++) {
        int64_t e = (int64_t)args->ids[i] - args->first_expert;
        if (e >= 0 && e < n_local)
            offsets[e + 1]++;
    }
    for (int32_t e = 0; e < n_local; e++) {
        next_row[e] = offsets[e];
        offsets[e + 1] += offsets[e];
    }
    for (int64_t i = 0; i < n_choices; i++) {
        int64_t e = (int64_t)args->ids[i] - args->first_expert;
        int is_local = e >= 0 && e < n_local;
        int32_t row = is_local ? next_row[e]++ : -1;
        args->token_row[i] = row;
        if (is_local)
            args->row_token[row] = (int32_t)(i / args->top_k);
    }
    return MB_OK;
}
