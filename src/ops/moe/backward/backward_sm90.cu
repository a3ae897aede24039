/*
 * backward_sm90.cu - mb_moe_backward on Hopper: its steps one after another on the stream. Each starts while
 * the one in front of it ends, and waits for that end before it touches memory; so a piece of the workspace
 * can be written over by a later step.
 */
#include "ops/moe/backward/backward_sm90.h"

#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/backward/rows.h"
#include "ops/moe/backward/sums.h"
#include "ops/moe/backward/weights.h"
#include "ops/moe/moe_sm90.h"

#define NAME "moe_backward"

static mb_moe_backward_rows_args rows_of(const mb_moe_backward_args *args, const mb_moe_backward_layout *l) {
    mb_moe_backward_rows_args rows = {};
    rows.d_out = args->d_out;
    rows.row_token = l->plan.row_token;
    rows.row_weight = l->row_weight;
    rows.offsets = l->plan.offsets;
    rows.w2 = args->w2.data;
    rows.p = l->p;
    rows.dp = l->dp;
    rows.hs = l->hs;
    rows.dot = l->dot;
    rows.n_tokens = args->n_tokens;
    rows.n_rows = l->n_rows;
    rows.hidden = args->hidden;
    rows.intermediate = args->intermediate;
    rows.n_experts = args->n_local_experts;
    rows.dtype = args->dtype;
    rows.activation = args->activation;
    return rows;
}

static mb_moe_backward_dx_args dx_of(const mb_moe_backward_args *args, const mb_moe_backward_layout *l) {
    mb_moe_backward_dx_args dx = {};
    dx.dp = l->dp;
    dx.offsets = l->plan.offsets;
    dx.w13 = args->w13.data;
    dx.dx_rows = l->dx_rows;
    dx.n_rows = l->n_rows;
    dx.hidden = args->hidden;
    dx.width13 = (int32_t)l->width13;
    dx.n_experts = args->n_local_experts;
    dx.dtype = args->dtype;
    return dx;
}

/* The largest workspace of the operators that are called. With fewer tokens it is no larger. */
static mb_status find_shared_bytes(const mb_moe_backward_args *args, size_t *bytes) {
    mb_arena arena;
    mb_arena_measure(&arena);
    const mb_moe_backward_layout l = mb_moe_backward_sm90_layout(args, 0, &arena);
    const mb_moe_backward_rows_args rows = rows_of(args, &l);
    const mb_moe_backward_dx_args dx = dx_of(args, &l);
    size_t all[4];
    mb_status status = mb_moe_plan_sm90_workspace(&l.plan, &all[0]);
    if (status == MB_OK)
        status = mb_grouped_gemm_sm90_workspace(&l.gemm, &all[1]);
    if (status == MB_OK)
        status = mb_moe_backward_rows_sm90_workspace(&rows, &all[2]);
    if (status == MB_OK)
        status = mb_moe_backward_dx_sm90_workspace(&dx, &all[3]);
    if (status != MB_OK)
        return mb_fail_context(status, NAME);
    *bytes = 0;
    for (const size_t one : all)
        *bytes = one > *bytes ? one : *bytes;
    return MB_OK;
}

extern "C" mb_status mb_moe_backward_sm90_workspace(const mb_moe_backward_args *most, size_t *bytes) {
    MB_TRY(mb_moe_backward_sm90_check_sizes(most));
    size_t shared_bytes = 0;
    if (most->n_tokens > 0)
        MB_TRY(find_shared_bytes(most, &shared_bytes));
    mb_arena arena;
    mb_arena_measure(&arena);
    if (most->n_tokens > 0)
        mb_moe_backward_sm90_layout(most, shared_bytes, &arena);
    return mb_workspace_measured(NAME, &arena, bytes);
}

/* ---- Steps --------------------------------------------------------------------------------------------- */

/* The plan, p, and from these dp, hs and dweights. */
static mb_status differentiate_rows(const mb_moe_backward_args *args, const mb_moe_backward_layout *l,
                                    size_t shared_bytes, mb_stream stream) {
    MB_TRY(mb_moe_plan_sm90(&l->plan, l->shared, shared_bytes, stream));
    mb_moe_row_weights_args weights = {};
    weights.weights = args->weights;
    weights.token_row = l->plan.token_row;
    weights.row_weight = l->row_weight;
    weights.ones = l->ones;
    weights.dweights = args->dweights;
    weights.n_choices = l->n_rows;
    MB_TRY(mb_moe_row_weights_sm90(&weights, stream));
    if (!args->p)
        MB_TRY(mb_grouped_gemm_sm90(&l->gemm, l->shared, shared_bytes, stream));
    const mb_moe_backward_rows_args rows = rows_of(args, l);
    MB_TRY(mb_moe_backward_rows_sm90(&rows, l->shared, shared_bytes, stream));
    if (!args->dweights)
        return MB_OK;
    mb_moe_dweights_args dweights = {};
    dweights.dot = l->dot;
    dweights.token_row = l->plan.token_row;
    dweights.ids = args->ids;
    dweights.bias2 = args->bias2;
    dweights.d_out = args->d_out;
    dweights.dweights = args->dweights;
    dweights.n_tokens = args->n_tokens;
    dweights.n_rows = l->n_rows;
    dweights.n_parts = (int32_t)l->n_parts;
    dweights.top_k = args->top_k;
    dweights.hidden = args->hidden;
    dweights.first_expert = args->first_expert;
    dweights.dtype = args->dtype;
    return mb_moe_dweights_sm90(&dweights, stream);
}

static mb_status differentiate_weights(const mb_moe_backward_args *args, const mb_moe_backward_layout *l,
                                       mb_stream stream) {
    mb_moe_backward_weights_args w = {};
    w.offsets = l->plan.offsets;
    w.n_experts = args->n_local_experts;
    w.dtype = args->dtype;
    w.out_dtype = args->grad_dtype;
    w.accumulate = args->accumulate;
    w.a = args->d_out;
    w.a_index = l->plan.row_token;
    w.b = l->hs;
    w.out = args->dw2;
    w.m = args->hidden;
    w.n = args->intermediate;
    if (args->dw2)
        MB_TRY(mb_moe_backward_weights_sm90(&w, stream));
    w.a = l->dp;
    w.a_index = NULL;
    w.b = args->x;
    w.b_index = l->plan.row_token;
    w.out = args->dw13;
    w.m = (int32_t)l->width13;
    w.n = args->hidden;
    return args->dw13 ? mb_moe_backward_weights_sm90(&w, stream) : MB_OK;
}

static mb_status differentiate_biases(const mb_moe_backward_args *args, const mb_moe_backward_layout *l,
                                      mb_stream stream) {
    mb_moe_bias_gradient_args b = {};
    b.offsets = l->plan.offsets;
    b.n_experts = args->n_local_experts;
    b.dtype = args->dtype;
    b.out_dtype = args->grad_dtype;
    b.accumulate = args->accumulate;
    b.a = l->dp;
    b.out = args->dbias13;
    b.width = (int32_t)l->width13;
    if (args->dbias13)
        MB_TRY(mb_moe_bias_gradient_sm90(&b, stream));
    b.a = args->d_out;
    b.index = l->plan.row_token;
    b.scale = l->row_weight;
    b.out = args->dbias2;
    b.width = args->hidden;
    return args->dbias2 ? mb_moe_bias_gradient_sm90(&b, stream) : MB_OK;
}

/* Writes over p and hs. */
static mb_status differentiate_tokens(const mb_moe_backward_args *args, const mb_moe_backward_layout *l,
                                      size_t shared_bytes, mb_stream stream) {
    const mb_moe_backward_dx_args dx = dx_of(args, l);
    MB_TRY(mb_moe_backward_dx_sm90(&dx, l->shared, shared_bytes, stream));
    mb_moe_reduce_args reduce = {};
    reduce.y = l->dx_rows;
    reduce.weights = l->ones;
    reduce.token_row = l->plan.token_row;
    reduce.out = args->dx;
    reduce.n_tokens = args->n_tokens;
    reduce.hidden = args->hidden;
    reduce.top_k = args->top_k;
    reduce.dtype = reduce.out_dtype = args->dtype;
    return mb_moe_reduce_sm90(&reduce, stream);
}

/* No tokens: gradients that are not added to what is there are zeros. */
static mb_status clear_gradients(const mb_moe_backward_args *args, mb_stream stream) {
    const size_t grad = mb_dtype_bytes(args->grad_dtype);
    const size_t rows13 = (size_t)args->w13.count * (size_t)args->w13.rows * grad;
    const size_t rows2 = (size_t)args->w2.count * (size_t)args->w2.rows * grad;
    const struct {
        void *array;
        size_t n_bytes;
    } all[] = {{args->dw13, rows13 * (size_t)args->hidden},
               {args->dw2, rows2 * (size_t)args->intermediate},
               {args->dbias13, rows13},
               {args->dbias2, rows2}};
    for (const auto &one : all) {
        if (!one.array)
            continue;
        const cudaError_t error = cudaMemsetAsync(one.array, 0, one.n_bytes, (cudaStream_t)stream);
        if (error != cudaSuccess)
            return mb_fail(MB_ERR_DEVICE, NAME ": cudaMemsetAsync: %s", cudaGetErrorString(error));
    }
    return MB_OK;
}

extern "C" mb_status mb_moe_backward_sm90(const mb_moe_backward_args *args, void *workspace,
                                          size_t workspace_bytes, mb_stream stream) {
    MB_TRY(mb_moe_backward_sm90_check(args));
    if (args->n_tokens == 0)
        return args->accumulate ? MB_OK : clear_gradients(args, stream);
    size_t shared_bytes;
    MB_TRY(find_shared_bytes(args, &shared_bytes));
    mb_arena arena = {(char *)workspace, SIZE_MAX, 0, 0, 0}; /* its end is looked at when all is taken */
    const mb_moe_backward_layout l = mb_moe_backward_sm90_layout(args, shared_bytes, &arena);
    MB_TRY(mb_workspace_check_arena(NAME, workspace, workspace_bytes, &arena));
    mb_status status = differentiate_rows(args, &l, shared_bytes, stream);
    if (status == MB_OK)
        status = differentiate_weights(args, &l, stream);
    if (status == MB_OK)
        status = differentiate_biases(args, &l, stream);
    if (status == MB_OK && args->dx)
        status = differentiate_tokens(args, &l, shared_bytes, stream);
    return status == MB_OK ? MB_OK : mb_fail_context(status, NAME);
}
