/*
 * operators.c - the public MoE operators: they look where the memory is, and call that place's op table.
 *
 * The first data pointer of the arguments that is not NULL decides; without any, there is nothing to do,
 * which the CPU does. A GPU's pointer makes that GPU the thread's current one for the time of the call: so a
 * NULL stream is its default stream, and any other stream must be one of its own. Asking costs
 * 0.1 to 0.2 us; in builds with CUDA a process that has not used it yet waits for its start (0.1 s on an
 * H100) at the first call.
 */
#include "base/status.h"
#include "device/device.h"
#include "ops/common/tensor.h"

typedef struct place {
    const mb_ops *ops;
    int former; /* the current GPU before the call, when ops is a GPU's */
} place;

#define POINTERS(...) \
    (const void *const[]){__VA_ARGS__}, (int)(sizeof((const void *const[]){__VA_ARGS__}) / sizeof(void *))

static mb_status enter(const void *const *pointers, int n_pointers, place *where) {
    *where = (place){.ops = &mb_cpu_ops};
    const void *first = NULL;
    for (int i = 0; i < n_pointers && !first; i++)
        first = pointers[i];
#ifdef MOEBIUS_WITH_CUDA
    const mb_ops *gpu_ops = NULL;
    if (first)
        MB_TRY(mb_device_cuda_enter(first, &gpu_ops, &where->former));
    if (gpu_ops)
        where->ops = gpu_ops;
#endif
    return MB_OK;
}

static void leave(const place *where) {
#ifdef MOEBIUS_WITH_CUDA
    if (where->ops != &mb_cpu_ops)
        mb_device_cuda_leave(where->former);
#else
    (void)where;
#endif
}

/* For `return finish(&where, call)`: the call has been made when this runs. */
static mb_status finish(const place *where, mb_status status) {
    leave(where);
    return status;
}

static mb_status check_workspace(const char *op, const void *workspace) {
    enum { ALIGNMENT = 256 };
    MB_REQUIRE((uintptr_t)workspace % ALIGNMENT == 0, "%s: workspace is not aligned to %d bytes", op,
               ALIGNMENT);
    return MB_OK;
}

/* ---- Router -------------------------------------------------------------------------------------------- */

static mb_status enter_router_gemm(const mb_moe_router_gemm_args *args, place *where) {
    MB_TRY(mb_need(args, "moe_router_gemm: args"));
    return enter(POINTERS(args->x, args->weight, args->bias, args->logits), where);
}

mb_status mb_moe_router_gemm_workspace(const mb_moe_router_gemm_args *most, size_t *bytes) {
    place where;
    MB_TRY(mb_need(bytes, "moe_router_gemm: bytes"));
    MB_TRY(enter_router_gemm(most, &where));
    return finish(&where, where.ops->moe_router_gemm_workspace(most, bytes));
}

mb_status mb_moe_router_gemm(const mb_moe_router_gemm_args *args, void *workspace, size_t workspace_bytes,
                             mb_stream stream) {
    place where;
    MB_TRY(check_workspace("moe_router_gemm", workspace));
    MB_TRY(enter_router_gemm(args, &where));
    return finish(&where, where.ops->moe_router_gemm(args, workspace, workspace_bytes, stream));
}

mb_status mb_moe_route(const mb_moe_route_args *args, mb_stream stream) {
    place where;
    MB_TRY(mb_need(args, "moe_route: args"));
    MB_TRY(enter(POINTERS(args->logits, args->weights, args->ids), &where));
    return finish(&where, where.ops->moe_route(args, stream));
}

/* ---- Plan ---------------------------------------------------------------------------------------------- */

static mb_status enter_plan(const mb_moe_plan_args *args, place *where) {
    MB_TRY(mb_need(args, "moe_plan: args"));
    return enter(POINTERS(args->ids, args->offsets, args->row_token, args->token_row, args->tiles), where);
}

mb_status mb_moe_plan_workspace(const mb_moe_plan_args *most, size_t *bytes) {
    place where;
    MB_TRY(mb_need(bytes, "moe_plan: bytes"));
    MB_TRY(enter_plan(most, &where));
    return finish(&where, where.ops->moe_plan_workspace(most, bytes));
}

mb_status mb_moe_plan(const mb_moe_plan_args *args, void *workspace, size_t workspace_bytes,
                      mb_stream stream) {
    place where;
    MB_TRY(check_workspace("moe_plan", workspace));
    MB_TRY(enter_plan(args, &where));
    return finish(&where, where.ops->moe_plan(args, workspace, workspace_bytes, stream));
}

/* ---- Grouped GEMM, experts and sum --------------------------------------------------------------------- */

static mb_status enter_grouped_gemm(const mb_grouped_gemm_args *args, place *where) {
    MB_TRY(mb_need(args, "grouped_gemm: args"));
    return enter(POINTERS(args->a, args->offsets, args->b.data, args->out), where);
}

mb_status mb_grouped_gemm_workspace(const mb_grouped_gemm_args *most, size_t *bytes) {
    place where;
    MB_TRY(mb_need(bytes, "grouped_gemm: bytes"));
    MB_TRY(enter_grouped_gemm(most, &where));
    return finish(&where, where.ops->grouped_gemm_workspace(most, bytes));
}

mb_status mb_grouped_gemm(const mb_grouped_gemm_args *args, void *workspace, size_t workspace_bytes,
                          mb_stream stream) {
    place where;
    MB_TRY(check_workspace("grouped_gemm", workspace));
    MB_TRY(enter_grouped_gemm(args, &where));
    return finish(&where, where.ops->grouped_gemm(args, workspace, workspace_bytes, stream));
}

static mb_status enter_experts(const mb_moe_experts_args *args, place *where) {
    MB_TRY(mb_need(args, "moe_experts: args"));
    return enter(POINTERS(args->x, args->offsets, args->w13.data, args->w2.data, args->y), where);
}

mb_status mb_moe_experts_workspace(const mb_moe_experts_args *most, size_t *bytes) {
    place where;
    MB_TRY(mb_need(bytes, "moe_experts: bytes"));
    MB_TRY(enter_experts(most, &where));
    return finish(&where, where.ops->moe_experts_workspace(most, bytes));
}

mb_status mb_moe_experts(const mb_moe_experts_args *args, void *workspace, size_t workspace_bytes,
                         mb_stream stream) {
    place where;
    MB_TRY(check_workspace("moe_experts", workspace));
    MB_TRY(enter_experts(args, &where));
    return finish(&where, where.ops->moe_experts(args, workspace, workspace_bytes, stream));
}

mb_status mb_moe_reduce(const mb_moe_reduce_args *args, mb_stream stream) {
    place where;
    MB_TRY(mb_need(args, "moe_reduce: args"));
    MB_TRY(enter(POINTERS(args->y, args->weights, args->token_row, args->out), &where));
    return finish(&where, where.ops->moe_reduce(args, stream));
}

/* ---- The whole layer ----------------------------------------------------------------------------------- */

static mb_status enter_forward(const mb_moe_forward_args *args, place *where) {
    MB_TRY(mb_need(args, "moe_forward: args"));
    return enter(POINTERS(args->x, args->weights, args->ids, args->w13.data, args->w2.data, args->out),
                 where);
}

mb_status mb_moe_forward_workspace(const mb_moe_forward_args *most, size_t *bytes) {
    place where;
    MB_TRY(mb_need(bytes, "moe_forward: bytes"));
    MB_TRY(enter_forward(most, &where));
    return finish(&where, where.ops->moe_forward_workspace(most, bytes));
}

mb_status mb_moe_forward(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                         mb_stream stream) {
    place where;
    MB_TRY(check_workspace("moe_forward", workspace));
    MB_TRY(enter_forward(args, &where));
    return finish(&where, where.ops->moe_forward(args, workspace, workspace_bytes, stream));
}
