/*
 * moe_few_checks.cuh - what is checked with few tokens, where kernels are short and so overlap most: layers
 * one after another in a graph; and ids that repeat.
 */
#ifndef MB_TESTS_MOE_FEW_CHECKS_CUH
#define MB_TESTS_MOE_FEW_CHECKS_CUH

#include "capture.cuh"
#include "moe_problem.cuh"
#include "ops/moe/experts/pick.h"

/* Ids that a caller gives may repeat, so that an expert has more rows than there are tokens: up to 17 choices
 * of the first local expert, which are two tiles of the smallest tile row, the others of the last expert. */
static inline void check_repeated_ids(const problem *p, int poison) {
    const int32_t n = p->s.T * p->s.K, first = p->forward.first_expert;
    const size_t n_bytes = sizeof(int32_t) * (size_t)n;
    int32_t *host = (int32_t *)host_allocate(n_bytes), *ids = (int32_t *)allocate(n_bytes);
    for (int32_t i = 0; i < n; i++)
        host[i] = i < 17 ? first : first + p->forward.n_local_experts - 1;
    CUDA(cudaMemcpy(ids, host, n_bytes, cudaMemcpyHostToDevice));
    void *expected = NULL;
    for (int tile = 0; tile < MB_MOE_N_TILES; tile++) {
        if (mb_moe_tiles[tile].family != mb_moe_family_of(p->k->weights))
            continue;
        mb_moe_forward_args f = fresh_forward(p, poison);
        f.ids = ids;
        size_t workspace_bytes = 0;
        MB(mb_moe_forward_sm90_tile_workspace(&f, tile, &workspace_bytes));
        void *workspace = allocate(workspace_bytes);
        MB(mb_moe_forward_sm90_tile(&f, tile, workspace, workspace_bytes, NULL));
        CUDA(cudaFree(workspace));
        if (!expected) {
            expected = allocate(out_bytes(p));
            CUDA(cudaMemcpy(expected, f.out, out_bytes(p), cudaMemcpyDeviceToDevice));
        }
        const double n_apart = differences(expected, f.out, (int64_t)p->s.T * p->s.H, f.dtype);
        if (n_apart > 0)
            complain(p->name, "elements that another tile row computes otherwise from repeated ids", n_apart);
    }
    CUDA(cudaFree(expected));
    CUDA(cudaFree(ids));
    free(host);
}

enum {
    CHAIN_LINKS = 8,
    CHAIN_HIDDEN = 8192, /* of the router GEMM: it should last while the next kernels start */
};

/* Router GEMM and layer in turns, with one of two router weights each: logits, ids, weights and workspace are
 * written again and again, and every kernel starts while the one in front of it runs. */
typedef struct chain {
    mb_moe_router_gemm_args router[2];
    mb_moe_route_args route;
    mb_moe_forward_args forward;
    void *router_workspace, *workspace;
    size_t router_workspace_bytes, workspace_bytes;
    char *outs; /* of the links, link_bytes each */
    size_t link_bytes;
} chain;

static inline void run_link(const chain *c, int which, void *out, cudaStream_t stream) {
    mb_moe_forward_args f = c->forward;
    f.out = out;
    MB(mb_moe_router_gemm_sm90(&c->router[which], c->router_workspace, c->router_workspace_bytes, stream));
    MB(mb_moe_forward_sm90(&f, c->workspace, c->workspace_bytes, stream));
}

static inline void run_links(const void *context, cudaStream_t stream) {
    const chain *c = (const chain *)context;
    for (int i = 0; i < CHAIN_LINKS; i++)
        run_link(c, i % 2, c->outs + (size_t)i * c->link_bytes, stream);
}

static inline chain make_chain(const problem *p) {
    const int64_t T = p->s.T, E = p->s.E;
    const size_t n = (size_t)(T * p->s.K);
    chain c = {};
    c.route = p->route;
    c.route.logits = allocate(sizeof(float) * (size_t)(T * E));
    c.route.logits_dtype = MB_F32;
    c.route.ids = (int32_t *)allocate(sizeof(int32_t) * n);
    c.route.weights = (float *)allocate(sizeof(float) * n);
    mb_moe_router_gemm_args *router = &c.router[0];
    router->x = random_values(T * CHAIN_HIDDEN, MB_BF16, 1, 1.0f);
    router->weight = random_values(E * CHAIN_HIDDEN, MB_BF16, 2, 1.0f / 64);
    router->logits = (float *)c.route.logits;
    router->n_tokens = T;
    router->hidden = CHAIN_HIDDEN;
    router->n_experts = p->s.E;
    router->dtype = router->weight_dtype = MB_BF16;
    c.router[1] = *router;
    c.router[1].weight = random_values(E * CHAIN_HIDDEN, MB_BF16, 3, 1.0f / 64);
    c.router_workspace_bytes = bytes_of(mb_moe_router_gemm_sm90_workspace, router);
    c.router_workspace = allocate(c.router_workspace_bytes);
    c.forward = p->forward;
    c.forward.ids = c.route.ids;
    c.forward.weights = c.route.weights;
    c.forward.route = &p->route; /* of the same sizes */
    c.workspace_bytes = bytes_of(mb_moe_forward_sm90_workspace, &c.forward);
    c.workspace = allocate(c.workspace_bytes);
    c.link_bytes = (out_bytes(p) + 15) / 16 * 16;
    c.outs = (char *)allocate(CHAIN_LINKS * c.link_bytes);
    return c;
}

static inline void check_chain(const problem *p) {
    chain c = make_chain(p);
    c.forward.route = &c.route;
    char *expected = (char *)allocate(2 * c.link_bytes);
    for (int which = 0; which < 2; which++) {
        run_link(&c, which, expected + (size_t)which * c.link_bytes, NULL);
        CUDA(cudaDeviceSynchronize());
    }
    const captured graph = capture(run_links, &c);
    CUDA(cudaGraphLaunch(graph.replay, graph.stream));
    CUDA(cudaStreamSynchronize(graph.stream));
    free_captured(&graph);
    double n_apart = 0;
    for (int i = 0; i < CHAIN_LINKS; i++)
        n_apart += differences(expected + (size_t)(i % 2) * c.link_bytes, c.outs + (size_t)i * c.link_bytes,
                               (int64_t)p->s.T * p->s.H, p->forward.dtype);
    if (n_apart > 0)
        complain(p->name, "elements that differ where layers follow each other in a graph", n_apart);
    const void *all[] = {
        c.outs,        expected,           c.route.logits,     c.route.ids,        c.route.weights,
        c.router[0].x, c.router[0].weight, c.router[1].weight, c.router_workspace, c.workspace};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        CUDA(cudaFree((void *)all[i]));
}

#endif
