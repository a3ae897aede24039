#include "base/status.h"
#include "ops/common/tensor.h"
#include "ops/moe/arguments.h"
#include "ops/moe/backward/backward_sm90.h"
#include "ops/moe/backward/rows.h"

#include <inttypes.h>

enum { MOST_COLUMNS = 1 << 30 };

mb_status mb_moe_backward_sm90_check_sizes(const mb_moe_backward_args *args) {
    MB_TRY(mb_moe_backward_check_sizes(args));
    if (args->dtype != MB_BF16 && args->dtype != MB_F16)
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "moe_backward: dtype is %s; on sm90 it must be bf16 or fp16; pass host memory, or tokens "
            "and weights of 16 bits",
            mb_dtype_name(args->dtype));
    /* The forward takes the same sizes (layout_sm90.c): what it runs can be trained. */
    if (args->hidden < 16 || args->hidden % 8 != 0 || args->intermediate < 16 || args->intermediate % 8 != 0)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "moe_backward: hidden is %d, intermediate %d; on sm90 they must be multiples of 8, and 16 at "
            "least",
            args->hidden, args->intermediate);
    /* Byte offsets within a row are 32 bits in every kernel, with a sign. */
    const int64_t width13 = (int64_t)args->intermediate * (1 + mb_activation_is_gated(args->activation));
    if (args->hidden >= MOST_COLUMNS || width13 >= MOST_COLUMNS)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "moe_backward: hidden is %d, rows of w13 %" PRId64 "; on sm90 both must be below 2^30",
                       args->hidden, width13);
    /* The grouped GEMMs have byte offsets into x and d_out of 32 bits. */
    if (args->n_tokens * args->hidden > ((int64_t)UINT32_MAX + 1) / 2)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "moe_backward: x is [%" PRId64
                       ", %d] in %s; at most 2^32 bytes can be done in one call",
                       args->n_tokens, args->hidden, mb_dtype_name(args->dtype));
    return MB_OK;
}

mb_status mb_moe_backward_sm90_check(const mb_moe_backward_args *args) {
    MB_TRY(mb_moe_backward_sm90_check_sizes(args));
    MB_TRY(mb_moe_backward_check(args));
    const char *op = "moe_backward";
    MB_TRY(mb_matrix_check_sm90(op, "x", args->x, 1));
    MB_TRY(mb_matrix_check_sm90(op, "w13.data", args->w13.data, 1));
    MB_TRY(mb_matrix_check_sm90(op, "w2.data", args->w2.data, 1));
    MB_TRY(mb_matrix_check_sm90(op, "p", args->p, 1));
    MB_TRY(mb_matrix_check_sm90(op, "d_out", args->d_out, 1));
    MB_TRY(mb_matrix_check_sm90(op, "dx", args->dx, 1));
    MB_TRY(mb_matrix_check_sm90(op, "dw13", args->dw13, 1));
    return mb_matrix_check_sm90(op, "dw2", args->dw2, 1);
}

/* A saved p needs no less memory: a workspace's size does not depend on a pointer. */
mb_moe_backward_layout mb_moe_backward_sm90_layout(const mb_moe_backward_args *args, size_t shared_bytes,
                                                   mb_arena *arena) {
    const size_t n_rows = (size_t)args->n_tokens * (size_t)args->top_k;
    const int64_t width13 = (int64_t)args->intermediate * (1 + mb_activation_is_gated(args->activation));
    const size_t row13 = mb_dtype_row_bytes(args->dtype, width13);
    const size_t row2 = mb_dtype_row_bytes(args->dtype, args->intermediate);
    mb_moe_backward_layout l = {.n_rows = (int64_t)n_rows,
                                .width13 = width13,
                                .n_parts = mb_moe_backward_dot_parts(args->intermediate)};
    l.plan = (mb_moe_plan_args){.ids = args->ids,
                                .n_tokens = args->n_tokens,
                                .top_k = args->top_k,
                                .n_experts = args->n_experts,
                                .first_expert = args->first_expert,
                                .n_local_experts = args->n_local_experts};
    l.plan.offsets = mb_arena_push(arena, (size_t)args->n_local_experts + 1, sizeof(int32_t));
    l.plan.row_token = mb_arena_push(arena, n_rows, sizeof(int32_t));
    l.plan.token_row = mb_arena_push(arena, n_rows, sizeof(int32_t));
    l.row_weight = mb_arena_push(arena, n_rows, sizeof(float));
    l.ones = mb_arena_push(arena, n_rows, sizeof(float));
    l.dot = mb_arena_push(arena, n_rows, (size_t)l.n_parts * sizeof(float));
    l.dp = mb_arena_push(arena, n_rows, row13);
    /* p and hs are dead when dx_rows is written. A row of p is a multiple of 16 bytes, so hs is aligned to
     * them. */
    const size_t row = mb_dtype_row_bytes(args->dtype, args->hidden);
    char *rows = mb_arena_push(arena, n_rows, row13 + row2 > row ? row13 + row2 : row);
    l.p = args->p ? args->p : rows;
    l.hs = rows ? rows + n_rows * row13 : NULL;
    l.dx_rows = rows;
    l.shared = mb_arena_push(arena, shared_bytes, 1);
    l.gemm = (mb_grouped_gemm_args){.a = args->x,
                                    .row_index = l.plan.row_token,
                                    .offsets = l.plan.offsets,
                                    .b = args->w13,
                                    .bias = args->bias13,
                                    .out = rows,
                                    .n_rows = l.n_rows,
                                    .dtype = args->dtype,
                                    .out_dtype = args->dtype,
                                    .bias_dtype = args->dtype,
                                    .activation = MB_ACT_NONE};
    return l;
}
