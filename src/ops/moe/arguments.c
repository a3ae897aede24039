#include "ops/moe/arguments.h"

#include "ops/common/tensor.h"
#include "ops/moe/ref/activation.h"

#include <inttypes.h>
#include <stdio.h>

enum { MAX_ROUTED_EXPERTS = 1024, MAX_ROUTED_TOP_K = 32, MAX_PLANNED_EXPERTS = 65536 };

#define REQUIRE_POINTER(op, field) MB_REQUIRE(args->field, op ": " #field " is NULL")

/* Vectors may start at any element, but not within one: a GPU's load of it would fault. NULL passes. */
#define REQUIRE_ALIGNED(op, field, n_bytes)             \
    MB_REQUIRE((uintptr_t)args->field % (n_bytes) == 0, \
               op ": " #field " is not aligned to %d bytes, its type", (int)(n_bytes))
#define REQUIRE_ALIGNED_4(op, field) REQUIRE_ALIGNED(op, field, 4)

/* Rows are counted by int32. */
static mb_status check_rows(const char *op, int64_t n_tokens, int32_t top_k) {
    MB_REQUIRE(top_k >= 1, "%s: top_k is %d", op, top_k);
    MB_REQUIRE(n_tokens >= 0 && n_tokens <= INT32_MAX / top_k,
               "%s: n_tokens is %" PRId64 ", with top_k %d not in 0 .. %d rows", op, n_tokens, top_k,
               INT32_MAX);
    return MB_OK;
}

static mb_status check_experts(const char *op, int32_t n_experts, int32_t first_expert, int32_t n_local) {
    MB_REQUIRE(n_experts >= 1, "%s: n_experts is %d", op, n_experts);
    MB_REQUIRE(n_local >= 1 && n_local <= MAX_PLANNED_EXPERTS, "%s: n_local_experts is %d, not in 1 .. %d",
               op, n_local, MAX_PLANNED_EXPERTS);
    MB_REQUIRE(first_expert >= 0 && n_local <= n_experts - first_expert,
               "%s: first_expert is %d: local experts [%d, %d + %d) are not within n_experts, %d", op,
               first_expert, first_expert, first_expert, n_local, n_experts);
    return MB_OK;
}

static mb_status check_activation_dtype(const char *op, const char *name, mb_dtype dtype) {
    MB_REQUIRE(mb_dtype_is_activation(dtype), "%s: %s is %s (%d), not fp32, bf16 or fp16", op, name,
               mb_dtype_name(dtype), (int)dtype);
    return MB_OK;
}

/* ---- Router -------------------------------------------------------------------------------------------- */

mb_status mb_moe_router_gemm_check_sizes(const mb_moe_router_gemm_args *args) {
    MB_TRY(check_rows("moe_router_gemm", args->n_tokens, 1));
    MB_REQUIRE(args->hidden >= 1, "moe_router_gemm: hidden is %d", args->hidden);
    MB_REQUIRE(args->n_experts >= 1 && args->n_experts <= MAX_ROUTED_EXPERTS,
               "moe_router_gemm: n_experts is %d, not in 1 .. %d", args->n_experts, MAX_ROUTED_EXPERTS);
    MB_TRY(check_activation_dtype("moe_router_gemm", "dtype", args->dtype));
    return check_activation_dtype("moe_router_gemm", "weight_dtype", args->weight_dtype);
}

mb_status mb_moe_router_gemm_check(const mb_moe_router_gemm_args *args) {
    MB_TRY(mb_moe_router_gemm_check_sizes(args));
    if (args->n_tokens == 0)
        return MB_OK;
    REQUIRE_POINTER("moe_router_gemm", x);
    REQUIRE_POINTER("moe_router_gemm", weight);
    REQUIRE_POINTER("moe_router_gemm", logits);
    REQUIRE_ALIGNED_4("moe_router_gemm", logits);
    REQUIRE_ALIGNED_4("moe_router_gemm", bias);
    return MB_OK;
}

mb_status mb_moe_route_check_sizes(const mb_moe_route_args *args) {
    MB_REQUIRE(args->n_experts >= 1 && args->n_experts <= MAX_ROUTED_EXPERTS,
               "moe_route: n_experts is %d, not in 1 .. %d", args->n_experts, MAX_ROUTED_EXPERTS);
    MB_REQUIRE(args->top_k >= 1 && args->top_k <= MAX_ROUTED_TOP_K && args->top_k <= args->n_experts,
               "moe_route: top_k is %d, not in 1 .. min(n_experts, %d)", args->top_k, MAX_ROUTED_TOP_K);
    MB_TRY(check_rows("moe_route", args->n_tokens, args->top_k));
    MB_REQUIRE(args->logits_dtype == MB_F32 || args->logits_dtype == MB_BF16,
               "moe_route: logits_dtype is %s (%d), not fp32 or bf16", mb_dtype_name(args->logits_dtype),
               (int)args->logits_dtype);
    MB_REQUIRE(args->order == MB_ROUTE_SOFTMAX_TOPK || args->order == MB_ROUTE_TOPK_SOFTMAX,
               "moe_route: order %d is unknown", (int)args->order);
    return MB_OK;
}

mb_status mb_moe_route_check(const mb_moe_route_args *args) {
    MB_TRY(mb_moe_route_check_sizes(args));
    if (args->n_tokens == 0)
        return MB_OK;
    REQUIRE_POINTER("moe_route", logits);
    REQUIRE_POINTER("moe_route", weights);
    REQUIRE_POINTER("moe_route", ids);
    REQUIRE_ALIGNED("moe_route", logits, mb_dtype_bytes(args->logits_dtype));
    REQUIRE_ALIGNED_4("moe_route", weights);
    REQUIRE_ALIGNED_4("moe_route", ids);
    REQUIRE_ALIGNED_4("moe_route", nan_flag);
    return MB_OK;
}

/* ---- Plan and sum -------------------------------------------------------------------------------------- */

mb_status mb_moe_plan_check_sizes(const mb_moe_plan_args *args) {
    MB_TRY(check_rows("moe_plan", args->n_tokens, args->top_k));
    return check_experts("moe_plan", args->n_experts, args->first_expert, args->n_local_experts);
}

mb_status mb_moe_plan_check(const mb_moe_plan_args *args) {
    MB_TRY(mb_moe_plan_check_sizes(args));
    MB_REQUIRE(!args->tiles == !args->n_tiles, "moe_plan: %s is NULL, the other of tiles and n_tiles is not",
               args->tiles ? "n_tiles" : "tiles");
    MB_REQUIRE(!args->tiles || args->tile_rows >= 1, "moe_plan: tile_rows is %d", args->tile_rows);
    MB_REQUIRE(!args->tiles || (args->tile_step >= 1 && args->tile_rows % args->tile_step == 0),
               "moe_plan: tile_step is %d, not a divisor of tile_rows, %d", args->tile_step, args->tile_rows);
    REQUIRE_ALIGNED_4("moe_plan", offsets);
    REQUIRE_ALIGNED_4("moe_plan", n_tiles);
    if (args->n_tokens == 0)
        return MB_OK;
    REQUIRE_POINTER("moe_plan", ids);
    REQUIRE_POINTER("moe_plan", offsets);
    REQUIRE_POINTER("moe_plan", row_token);
    REQUIRE_POINTER("moe_plan", token_row);
    REQUIRE_ALIGNED_4("moe_plan", ids);
    REQUIRE_ALIGNED_4("moe_plan", row_token);
    REQUIRE_ALIGNED_4("moe_plan", token_row);
    return MB_OK;
}

mb_status mb_moe_reduce_check(const mb_moe_reduce_args *args) {
    MB_TRY(check_rows("moe_reduce", args->n_tokens, args->top_k));
    MB_REQUIRE(args->hidden >= 1, "moe_reduce: hidden is %d", args->hidden);
    MB_TRY(check_activation_dtype("moe_reduce", "dtype", args->dtype));
    MB_REQUIRE(args->out_dtype == args->dtype || args->out_dtype == MB_F32,
               "moe_reduce: out_dtype is %s (%d), not dtype's %s or fp32", mb_dtype_name(args->out_dtype),
               (int)args->out_dtype, mb_dtype_name(args->dtype));
    if (args->n_tokens == 0)
        return MB_OK;
    REQUIRE_POINTER("moe_reduce", weights);
    REQUIRE_POINTER("moe_reduce", token_row);
    REQUIRE_POINTER("moe_reduce", out);
    REQUIRE_ALIGNED_4("moe_reduce", weights);
    REQUIRE_ALIGNED_4("moe_reduce", token_row);
    return MB_OK;
}

/* ---- Grouped GEMM -------------------------------------------------------------------------------------- */

static mb_status check_gemm_dtypes(const mb_grouped_gemm_args *args) {
    int is_f8 = args->dtype == MB_F8_E4M3, out_is_f8 = args->out_dtype == MB_F8_E4M3;
    MB_REQUIRE(mb_dtype_is_activation(args->dtype) || is_f8, "grouped_gemm: dtype %d is not an mb_dtype",
               (int)args->dtype);
    MB_REQUIRE(args->b.dtype == args->dtype, "grouped_gemm: b.dtype is %s (%d), not dtype's %s",
               mb_dtype_name(args->b.dtype), (int)args->b.dtype, mb_dtype_name(args->dtype));
    int out_is_right = is_f8 ? mb_dtype_is_activation(args->out_dtype) || out_is_f8
                             : args->out_dtype == MB_F32 || args->out_dtype == args->dtype ||
                                   (out_is_f8 && args->dtype != MB_F32);
    MB_REQUIRE(out_is_right, "grouped_gemm: out_dtype %s (%d) cannot come from dtype %s",
               mb_dtype_name(args->out_dtype), (int)args->out_dtype, mb_dtype_name(args->dtype));
    MB_REQUIRE(args->f32_math == MB_F32_TF32 || args->f32_math == MB_F32_EXACT,
               "grouped_gemm: f32_math %d is unknown", (int)args->f32_math);
    return args->bias ? check_activation_dtype("grouped_gemm", "bias_dtype", args->bias_dtype) : MB_OK;
}

mb_status mb_grouped_gemm_check_sizes(const mb_grouped_gemm_args *args) {
    const mb_weight *b = &args->b;
    MB_REQUIRE(args->n_rows >= 0 && args->n_rows <= INT32_MAX,
               "grouped_gemm: n_rows is %" PRId64 ", not in 0 .. %d", args->n_rows, INT32_MAX);
    MB_REQUIRE(b->count >= 1 && b->count <= MAX_PLANNED_EXPERTS && b->rows >= 1 && b->cols >= 1 &&
                   b->rows <= INT32_MAX && b->cols <= INT32_MAX,
               "grouped_gemm: b is [%" PRId64 ", %" PRId64 ", %" PRId64 "]", b->count, b->rows, b->cols);
    MB_REQUIRE(mb_activation_is_known(args->activation) || args->activation == MB_ACT_NONE,
               "grouped_gemm: activation %d is unknown", (int)args->activation);
    MB_REQUIRE(!mb_activation_is_gated(args->activation) || b->rows % 2 == 0,
               "grouped_gemm: b has %" PRId64 " rows, which do not halve into gate and up", b->rows);
    MB_TRY(check_gemm_dtypes(args));
    return mb_weight_check_shape(b, "grouped_gemm: b", b->count, b->rows, b->cols, b->dtype == MB_F8_E4M3);
}

mb_status mb_grouped_gemm_check(const mb_grouped_gemm_args *args) {
    MB_TRY(mb_grouped_gemm_check_sizes(args));
    if (args->n_rows == 0)
        return MB_OK;
    int is_f8 = args->dtype == MB_F8_E4M3, out_is_f8 = args->out_dtype == MB_F8_E4M3;
    REQUIRE_POINTER("grouped_gemm", a);
    REQUIRE_POINTER("grouped_gemm", b.data);
    REQUIRE_POINTER("grouped_gemm", out);
    MB_REQUIRE(args->out != args->a, "grouped_gemm: out is a");
    MB_REQUIRE(args->offsets || args->b.count == 1, "grouped_gemm: offsets is NULL with %" PRId64 " groups",
               args->b.count);
    MB_REQUIRE(!args->b.scale == !is_f8, "grouped_gemm: b.scale is %s of dtype %s",
               args->b.scale ? "set, but not" : "NULL, but needed", mb_dtype_name(args->dtype));
    MB_REQUIRE(!args->a_scale == !is_f8, "grouped_gemm: a_scale is %s of dtype %s",
               args->a_scale ? "set, but not" : "NULL, but needed", mb_dtype_name(args->dtype));
    MB_REQUIRE(!args->out_scale == !out_is_f8, "grouped_gemm: out_scale is %s of out_dtype %s",
               args->out_scale ? "set, but not" : "NULL, but needed", mb_dtype_name(args->out_dtype));
    REQUIRE_ALIGNED_4("grouped_gemm", a_scale);
    REQUIRE_ALIGNED_4("grouped_gemm", b.scale);
    REQUIRE_ALIGNED_4("grouped_gemm", out_scale);
    REQUIRE_ALIGNED_4("grouped_gemm", row_index);
    REQUIRE_ALIGNED_4("grouped_gemm", offsets);
    REQUIRE_ALIGNED_4("grouped_gemm", row_weight);
    if (args->bias)
        REQUIRE_ALIGNED("grouped_gemm", bias, mb_dtype_bytes(args->bias_dtype));
    return MB_OK;
}

/* ---- Experts and the whole layer ----------------------------------------------------------------------- */

/* What holds of the experts alone and in a layer, which `op` names. */
static mb_status check_experts_of(const char *op, const mb_moe_experts_args *args) {
    char w13[32], w2[32];
    snprintf(w13, sizeof w13, "%s: w13", op);
    snprintf(w2, sizeof w2, "%s: w2", op);
    MB_REQUIRE(args->hidden >= 1, "%s: hidden is %d", op, args->hidden);
    MB_REQUIRE(args->intermediate >= 1, "%s: intermediate is %d", op, args->intermediate);
    MB_REQUIRE(mb_activation_is_known(args->activation), "%s: activation %d is not one of experts", op,
               (int)args->activation);
    MB_TRY(check_activation_dtype(op, "dtype", args->dtype));
    MB_REQUIRE(args->f32_math == MB_F32_TF32 || args->f32_math == MB_F32_EXACT, "%s: f32_math %d is unknown",
               op, (int)args->f32_math);
    int64_t rows13 = (int64_t)args->intermediate * (mb_activation_is_gated(args->activation) ? 2 : 1);
    MB_TRY(mb_weight_check_shape(&args->w13, w13, args->n_local_experts, rows13, args->hidden,
                                 args->w13.dtype == MB_F8_E4M3));
    return mb_weight_check_shape(&args->w2, w2, args->n_local_experts, args->hidden, args->intermediate,
                                 args->w2.dtype == MB_F8_E4M3);
}

mb_status mb_moe_experts_check_sizes(const mb_moe_experts_args *args) {
    MB_TRY(check_rows("moe_experts", args->n_tokens, 1));
    MB_REQUIRE(args->n_rows >= 0 && args->n_rows <= INT32_MAX,
               "moe_experts: n_rows is %" PRId64 ", not in 0 .. %d", args->n_rows, INT32_MAX);
    MB_TRY(check_experts("moe_experts", MAX_PLANNED_EXPERTS, 0, args->n_local_experts));
    return check_experts_of("moe_experts", args);
}

#define REQUIRE_ALIGNED_OF_EXPERTS(op)                        \
    REQUIRE_ALIGNED_4(op, w13.scale);                         \
    REQUIRE_ALIGNED_4(op, w2.scale);                          \
    REQUIRE_ALIGNED_4(op, x_scale);                           \
    REQUIRE_ALIGNED_4(op, h_scale);                           \
    REQUIRE_ALIGNED(op, bias13, mb_dtype_bytes(args->dtype)); \
    REQUIRE_ALIGNED(op, bias2, mb_dtype_bytes(args->dtype));  \
    REQUIRE_ALIGNED(op, p, mb_dtype_bytes(args->dtype))

#define REQUIRE_BOTH_OF_X8(op)                                                                       \
    MB_REQUIRE(!args->x8 == !args->x8_scale, op ": %s is NULL, the other of x8 and x8_scale is not", \
               args->x8 ? "x8_scale" : "x8");                                                        \
    REQUIRE_ALIGNED_4(op, x8_scale)

mb_status mb_moe_experts_check(const mb_moe_experts_args *args) {
    MB_TRY(mb_moe_experts_check_sizes(args));
    if (args->n_rows == 0)
        return MB_OK;
    REQUIRE_POINTER("moe_experts", x);
    REQUIRE_POINTER("moe_experts", offsets);
    REQUIRE_POINTER("moe_experts", w13.data);
    REQUIRE_POINTER("moe_experts", w2.data);
    REQUIRE_POINTER("moe_experts", y);
    MB_REQUIRE(args->y != args->x, "moe_experts: y is x");
    REQUIRE_BOTH_OF_X8("moe_experts");
    MB_REQUIRE(!args->p || (args->p != args->x && args->p != args->y), "moe_experts: p is x or y");
    REQUIRE_ALIGNED_OF_EXPERTS("moe_experts");
    REQUIRE_ALIGNED_4("moe_experts", row_index);
    REQUIRE_ALIGNED_4("moe_experts", offsets);
    MB_REQUIRE(args->row_index || args->n_tokens == args->n_rows,
               "moe_experts: row_index is NULL with n_tokens %" PRId64 " and n_rows %" PRId64, args->n_tokens,
               args->n_rows);
    return MB_OK;
}

mb_moe_experts_args mb_moe_forward_experts(const mb_moe_forward_args *args) {
    return (mb_moe_experts_args){.x = args->x,
                                 .w13 = args->w13,
                                 .w2 = args->w2,
                                 .bias13 = args->bias13,
                                 .bias2 = args->bias2,
                                 .n_tokens = args->n_tokens,
                                 .n_rows = args->n_tokens * args->top_k,
                                 .hidden = args->hidden,
                                 .intermediate = args->intermediate,
                                 .n_local_experts = args->n_local_experts,
                                 .dtype = args->dtype,
                                 .activation = args->activation,
                                 .f32_math = args->f32_math,
                                 .x_scale = args->x_scale,
                                 .h_scale = args->h_scale,
                                 .p = args->p,
                                 .x8 = args->x8,
                                 .x8_scale = args->x8_scale};
}

mb_status mb_moe_forward_check_sizes(const mb_moe_forward_args *args) {
    MB_TRY(check_rows("moe_forward", args->n_tokens, args->top_k));
    MB_TRY(check_experts("moe_forward", args->n_experts, args->first_expert, args->n_local_experts));
    const mb_moe_experts_args experts = mb_moe_forward_experts(args);
    MB_TRY(check_experts_of("moe_forward", &experts));
    const mb_moe_route_args *route = args->route;
    if (!route)
        return MB_OK;
    MB_REQUIRE(route->n_tokens == args->n_tokens,
               "moe_forward: route's n_tokens is %" PRId64 ", the layer's %" PRId64, route->n_tokens,
               args->n_tokens);
    MB_REQUIRE(route->n_experts == args->n_experts, "moe_forward: route's n_experts is %d, the layer's %d",
               route->n_experts, args->n_experts);
    MB_REQUIRE(route->top_k == args->top_k, "moe_forward: route's top_k is %d, the layer's %d", route->top_k,
               args->top_k);
    mb_status status = mb_moe_route_check_sizes(route);
    return status == MB_OK ? MB_OK : mb_fail_context(status, "moe_forward");
}

mb_status mb_moe_forward_check(const mb_moe_forward_args *args) {
    MB_TRY(mb_moe_forward_check_sizes(args));
    if (args->n_tokens == 0)
        return MB_OK;
    REQUIRE_POINTER("moe_forward", x);
    REQUIRE_POINTER("moe_forward", weights);
    REQUIRE_POINTER("moe_forward", ids);
    REQUIRE_POINTER("moe_forward", w13.data);
    REQUIRE_POINTER("moe_forward", w2.data);
    REQUIRE_POINTER("moe_forward", out);
    MB_REQUIRE(args->out != args->x, "moe_forward: out is x");
    REQUIRE_BOTH_OF_X8("moe_forward");
    MB_REQUIRE(!args->p || (args->p != args->x && args->p != args->out), "moe_forward: p is x or out");
    REQUIRE_ALIGNED_OF_EXPERTS("moe_forward");
    REQUIRE_ALIGNED_4("moe_forward", weights);
    REQUIRE_ALIGNED_4("moe_forward", ids);
    if (!args->route)
        return MB_OK;
    MB_REQUIRE(args->route->ids == args->ids, "moe_forward: route's ids are not the layer's ids");
    MB_REQUIRE(args->route->weights == args->weights,
               "moe_forward: route's weights are not the layer's weights");
    mb_status status = mb_moe_route_check(args->route);
    return status == MB_OK ? MB_OK : mb_fail_context(status, "moe_forward");
}
