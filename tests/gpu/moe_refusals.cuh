/* moe_refusals.cuh - the MoE layer given no tokens, and given what it must refuse with a sentence. */
#ifndef MB_TESTS_MOE_REFUSALS_CUH
#define MB_TESTS_MOE_REFUSALS_CUH

#include "moe_problem.cuh"

/* No tokens: nothing is written, and no pointer is needed. */
static inline void check_no_tokens(const problem *p) {
    mb_moe_forward_args f = p->forward;
    mb_moe_route_args r = p->route;
    void *before = allocate(out_bytes(p));
    CUDA(cudaMemcpy(before, f.out, out_bytes(p), cudaMemcpyDeviceToDevice));
    f.n_tokens = r.n_tokens = 0;
    expect(p->name, "forward of no tokens", mb_moe_forward_sm90(&f, NULL, 0, NULL), MB_OK);
    f.route = &r;
    expect(p->name, "routed forward of no tokens", mb_moe_forward_sm90(&f, NULL, 0, NULL), MB_OK);
    f.route = NULL;
    f.x = f.ids = NULL;
    f.weights = NULL;
    f.out = NULL;
    expect(p->name, "forward of no tokens at NULL", mb_moe_forward_sm90(&f, NULL, 0, NULL), MB_OK);
    r.ids = NULL;
    r.weights = NULL;
    expect(p->name, "route of no tokens", mb_moe_route_sm90(&r, NULL), MB_OK);
    CUDA(cudaDeviceSynchronize());
    if (differences(before, p->forward.out, (int64_t)p->s.T * p->s.H, p->forward.dtype) > 0)
        complain(p->name, "no tokens, but something was written", 0);
    CUDA(cudaFree(before));
}

#define REFUSED(status, change)                                                                      \
    do {                                                                                             \
        mb_moe_forward_args f = p->forward;                                                          \
        f.change;                                                                                    \
        expect(p->name, #change, mb_moe_forward_sm90(&f, workspace, workspace_bytes, NULL), status); \
    } while (0)
#define NO_SUCH(change)                                                                              \
    do {                                                                                             \
        mb_moe_forward_args f = p->forward;                                                          \
        f.change;                                                                                    \
        expect_no_such(p->name, #change, mb_moe_forward_sm90(&f, workspace, workspace_bytes, NULL)); \
    } while (0)
#define ROUTE_REFUSED(change)                                                   \
    do {                                                                        \
        mb_moe_route_args r = p->route;                                         \
        r.change;                                                               \
        expect(p->name, #change, mb_moe_route_sm90(&r, NULL), MB_ERR_ARGUMENT); \
    } while (0)
#define ROUTED_REFUSED(change)                                                                         \
    do {                                                                                               \
        mb_moe_forward_args f = p->forward;                                                            \
        mb_moe_route_args r = p->route;                                                                \
        f.route = &r;                                                                                  \
        r.change;                                                                                      \
        expect(p->name, "route's " #change, mb_moe_forward_sm90(&f, workspace, workspace_bytes, NULL), \
               MB_ERR_ARGUMENT);                                                                       \
    } while (0)

/* dtypes and scales that do not go together. */
static inline void check_dtype_refusals(const problem *p, void *workspace, size_t workspace_bytes) {
    const mb_dtype other = p->forward.dtype == MB_BF16 ? MB_F16 : MB_BF16;
    NO_SUCH(dtype = MB_F8_E4M3);
    NO_SUCH(dtype = (mb_dtype)9);
    NO_SUCH(w13.dtype = (mb_dtype)9);
    if (p->k->weights != MB_F8_E4M3) {
        NO_SUCH(dtype = other);
        NO_SUCH(w13.dtype = other);
        NO_SUCH(w2.dtype = other);
        NO_SUCH(w2.dtype = MB_F8_E4M3);
        return;
    }
    NO_SUCH(dtype = MB_F32);
    NO_SUCH(w2.dtype = p->forward.dtype);
    NO_SUCH(w13.scale = NULL);
    NO_SUCH(w2.scale = NULL);
    REFUSED(MB_ERR_UNSUPPORTED, w2.scale_rows = 48);
    REFUSED(MB_ERR_UNSUPPORTED, w2.scale_cols = 64);
    REFUSED(MB_ERR_UNSUPPORTED, w13.scale_dtype = MB_BF16);
    REFUSED(MB_ERR_ARGUMENT, w13.scale_rows = -1);
    if (p->k == &kinds[FP8_TENSOR]) {
        NO_SUCH(x_scale = NULL);
        NO_SUCH(h_scale = NULL);
        NO_SUCH(w2.scale_rows = 128); /* one matrix so, the other so */
    }
}

static inline void check_refusals(const problem *p) {
    const size_t workspace_bytes = bytes_of(mb_moe_forward_sm90_workspace, &p->forward);
    void *workspace = allocate(workspace_bytes);
    const mb_moe_forward_args *right = &p->forward;
    check_dtype_refusals(p, workspace, workspace_bytes);
    REFUSED(MB_ERR_ARGUMENT, n_tokens = -1);
    const int64_t most_tokens =
        ((int64_t)1 << 32) / (right->hidden * (int64_t)mb_dtype_bytes(right->w13.dtype));
    if (p->k != &kinds[FP32] && most_tokens < INT32_MAX / right->top_k)
        REFUSED(MB_ERR_UNSUPPORTED, n_tokens = most_tokens + 1);
    REFUSED(MB_ERR_ARGUMENT, top_k = 0);
    REFUSED(MB_ERR_ARGUMENT, hidden = 20);
    REFUSED(MB_ERR_ARGUMENT, intermediate = 20);
    REFUSED(MB_ERR_ARGUMENT, n_local_experts = 0);
    REFUSED(MB_ERR_ARGUMENT, first_expert = -1);
    REFUSED(MB_ERR_ARGUMENT, first_expert = p->s.E);
    REFUSED(MB_ERR_ARGUMENT, activation = (mb_activation)99);
    REFUSED(MB_ERR_ARGUMENT, activation = MB_ACT_NONE);
    REFUSED(MB_ERR_ARGUMENT, w13.rows = 8);
    REFUSED(MB_ERR_ARGUMENT, w2.count = 1000);
    REFUSED(MB_ERR_ARGUMENT, ids = NULL);
    REFUSED(MB_ERR_ARGUMENT, weights = NULL);
    REFUSED(MB_ERR_ARGUMENT, w2.data = NULL);
    REFUSED(MB_ERR_ARGUMENT, out = NULL);
    REFUSED(MB_ERR_ARGUMENT, out = (void *)right->x);
    REFUSED(MB_ERR_ARGUMENT, x = (const char *)right->x + 4);
    REFUSED(MB_ERR_ARGUMENT, w2.data = (const char *)right->w2.data + 4);
    ROUTE_REFUSED(top_k = 33);
    ROUTE_REFUSED(n_experts = 1025);
    ROUTE_REFUSED(logits_dtype = MB_F16);
    ROUTE_REFUSED(order = (mb_route_order)9);
    ROUTE_REFUSED(ids = NULL);
    ROUTED_REFUSED(top_k = p->s.K + 1);
    ROUTED_REFUSED(n_tokens = p->s.T + 1);
    ROUTED_REFUSED(n_experts = p->s.E + 1);
    ROUTED_REFUSED(ids = NULL);
    ROUTED_REFUSED(weights = NULL);
    expect(p->name, "workspace too small", mb_moe_forward_sm90(right, workspace, workspace_bytes - 1, NULL),
           MB_ERR_CAPACITY);
    CUDA(cudaFree(workspace));
    CUDA(cudaDeviceSynchronize()); /* nothing was launched that fails later */
}

#undef REFUSED
#undef NO_SUCH
#undef ROUTE_REFUSED
#undef ROUTED_REFUSED

#endif
