/* training.c - the public training operators: they run on the CPU, and refuse memory of a GPU. */
#include "base/status.h"
#include "device/device.h"
#include "ops/common/tensor.h"
#include "ops/moe/train.h"

/* The first pointer that is not NULL says where the memory is. */
static mb_status need_cpu(const char *op, const void *const *pointers, int n_pointers) {
    const void *first = NULL;
    for (int i = 0; i < n_pointers && !first; i++)
        first = pointers[i];
#ifdef MOEBIUS_WITH_CUDA
    const mb_ops *gpu_ops = NULL;
    int former = 0;
    if (first)
        MB_TRY(mb_device_cuda_enter(first, &gpu_ops, &former));
    if (gpu_ops) {
        mb_device_cuda_leave(former);
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: the memory is a GPU's, and this operator runs on the CPU only; pass host memory",
                       op);
    }
#else
    (void)op;
#endif
    return MB_OK;
}

#define NEED_CPU(op, ...)                                   \
    MB_TRY(need_cpu(op, (const void *const[]){__VA_ARGS__}, \
                    (int)(sizeof((const void *const[]){__VA_ARGS__}) / sizeof(void *))))

static mb_status check_workspace(const char *op, const void *workspace) {
    enum { ALIGNMENT = 256 };
    MB_REQUIRE((uintptr_t)workspace % ALIGNMENT == 0, "%s: workspace is not aligned to %d bytes", op,
               ALIGNMENT);
    return MB_OK;
}

static mb_status enter_backward(const mb_moe_backward_args *args) {
    MB_TRY(mb_need(args, "moe_backward: args"));
    NEED_CPU("moe_backward", args->x, args->weights, args->ids, args->w13.data, args->w2.data, args->d_out,
             args->dx, args->dweights, args->dw13, args->dw2, args->dbias13, args->dbias2);
    return MB_OK;
}

mb_status mb_moe_backward_workspace(const mb_moe_backward_args *most, size_t *bytes) {
    MB_TRY(mb_need(bytes, "moe_backward: bytes"));
    MB_TRY(enter_backward(most));
    return mb_moe_backward_ref_workspace(most, bytes);
}

mb_status mb_moe_backward(const mb_moe_backward_args *args, void *workspace, size_t workspace_bytes,
                          mb_stream stream) {
    MB_TRY(check_workspace("moe_backward", workspace));
    MB_TRY(enter_backward(args));
    return mb_moe_backward_ref(args, workspace, workspace_bytes, stream);
}

static mb_status enter_router_losses(const mb_moe_router_losses_args *args) {
    MB_TRY(mb_need(args, "moe_router_losses: args"));
    NEED_CPU("moe_router_losses", args->logits, args->ids, args->counts);
    return MB_OK;
}

mb_status mb_moe_router_losses_workspace(const mb_moe_router_losses_args *most, size_t *bytes) {
    MB_TRY(mb_need(bytes, "moe_router_losses: bytes"));
    MB_TRY(enter_router_losses(most));
    return mb_moe_router_losses_ref_workspace(most, bytes);
}

mb_status mb_moe_router_losses(const mb_moe_router_losses_args *args, void *workspace, size_t workspace_bytes,
                               mb_stream stream) {
    MB_TRY(check_workspace("moe_router_losses", workspace));
    MB_TRY(enter_router_losses(args));
    return mb_moe_router_losses_ref(args, workspace, workspace_bytes, stream);
}

mb_status mb_moe_route_backward(const mb_moe_route_backward_args *args, mb_stream stream) {
    MB_TRY(mb_need(args, "moe_route_backward: args"));
    NEED_CPU("moe_route_backward", args->logits, args->ids, args->dlogits);
    return mb_moe_route_backward_ref(args, stream);
}

static mb_status enter_token_rounding(const mb_moe_token_rounding_args *args) {
    MB_TRY(mb_need(args, "moe_token_rounding: args"));
    NEED_CPU("moe_token_rounding", args->logits, args->ids, args->out_ids, args->out_weights, args->counts);
    return MB_OK;
}

mb_status mb_moe_token_rounding_workspace(const mb_moe_token_rounding_args *most, size_t *bytes) {
    MB_TRY(mb_need(bytes, "moe_token_rounding: bytes"));
    MB_TRY(enter_token_rounding(most));
    return mb_moe_token_rounding_ref_workspace(most, bytes);
}

mb_status mb_moe_token_rounding(const mb_moe_token_rounding_args *args, void *workspace,
                                size_t workspace_bytes, mb_stream stream) {
    MB_TRY(check_workspace("moe_token_rounding", workspace));
    MB_TRY(enter_token_rounding(args));
    return mb_moe_token_rounding_ref(args, workspace, workspace_bytes, stream);
}
