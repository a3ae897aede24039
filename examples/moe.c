/* moe.c - routes eight tokens and runs one mixture-of-experts layer on the CPU, with the operators alone. */
#include <moebius/ops.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 8, HIDDEN = 256, INTERMEDIATE = 96, EXPERTS = 32, TOP_K = 4 };

static void check(mb_status status) {
    if (status == MB_OK)
        return;
    fprintf(stderr, "moe: %s\n", mb_last_error());
    exit(1);
}

/* Operators never allocate; their workspace is ours to give, aligned to 256 bytes. */
static void *allocate(size_t n_bytes) {
    void *memory = n_bytes == SIZE_MAX ? NULL : aligned_alloc(256, (n_bytes + 255) / 256 * 256);
    if (!memory && n_bytes > 0) {
        fprintf(stderr, "moe: no memory, or %s\n", mb_last_error());
        exit(1);
    }
    return memory;
}

static float *random_values(size_t n, float range) {
    float *values = allocate(n * sizeof *values);
    for (size_t i = 0; i < n; i++)
        values[i] = range * (2.0f * (float)rand() / (float)RAND_MAX - 1);
    return values;
}

int main(void) {
    float *x = random_values(TOKENS * HIDDEN, 1), *router = random_values(EXPERTS * HIDDEN, 0.1f);
    float *w13 = random_values(EXPERTS * 2 * INTERMEDIATE * HIDDEN, 0.1f);
    float *w2 = random_values(EXPERTS * HIDDEN * INTERMEDIATE, 0.1f);
    static float logits[TOKENS * EXPERTS], weights[TOKENS * TOP_K], out[TOKENS * HIDDEN], alone[HIDDEN];
    static int32_t ids[TOKENS * TOP_K];

    mb_moe_router_gemm_args gemm = {.x = x,
                                    .weight = router,
                                    .logits = logits,
                                    .n_tokens = TOKENS,
                                    .hidden = HIDDEN,
                                    .n_experts = EXPERTS};
    size_t gemm_bytes, layer_bytes;
    check(mb_moe_router_gemm_workspace(&gemm, &gemm_bytes));
    void *gemm_workspace = allocate(gemm_bytes);
    check(mb_moe_router_gemm(&gemm, gemm_workspace, gemm_bytes, NULL));

    mb_moe_route_args route = {.logits = logits,
                               .weights = weights,
                               .ids = ids,
                               .n_tokens = TOKENS,
                               .n_experts = EXPERTS,
                               .top_k = TOP_K,
                               .renormalize = 1};
    mb_moe_forward_args layer = {
        .x = x,
        .weights = weights,
        .ids = ids,
        .w13 = {.data = w13, .count = EXPERTS, .rows = 2 * INTERMEDIATE, .cols = HIDDEN},
        .w2 = {.data = w2, .count = EXPERTS, .rows = HIDDEN, .cols = INTERMEDIATE},
        .out = out,
        .n_tokens = TOKENS,
        .hidden = HIDDEN,
        .intermediate = INTERMEDIATE,
        .top_k = TOP_K,
        .n_experts = EXPERTS,
        .n_local_experts = EXPERTS,
        .activation = MB_ACT_SWIGLU,
        .route = &route, /* the router runs first; without it, weights and ids are inputs */
    };
    check(mb_moe_forward_workspace(&layer, &layer_bytes)); /* enough for fewer tokens as well */
    void *layer_workspace = allocate(layer_bytes);
    check(mb_moe_forward(&layer, layer_workspace, layer_bytes, NULL));
    for (int t = 0; t < TOKENS; t++) {
        printf("token %d:", t);
        for (int k = 0; k < TOP_K; k++)
            printf("  %.3f * expert %d", (double)weights[t * TOP_K + k], ids[t * TOP_K + k]);
        printf("  -> %.4f, %.4f, ...\n", (double)out[t * HIDDEN], (double)out[t * HIDDEN + 1]);
    }

    /* A token's result does not depend on its neighbours, bit for bit: the last one alone. */
    enum { LAST = TOKENS - 1 };
    layer.x = x + LAST * HIDDEN;
    layer.ids = ids + LAST * TOP_K;
    layer.weights = weights + LAST * TOP_K;
    layer.route = NULL;
    layer.out = alone;
    layer.n_tokens = 1;
    check(mb_moe_forward(&layer, layer_workspace, layer_bytes, NULL));
    int same = memcmp(alone, out + LAST * HIDDEN, sizeof alone) == 0;
    printf("token %d alone: %s\n", LAST, same ? "the same bits" : "differs");

    free(layer_workspace);
    free(gemm_workspace);
    free(w2);
    free(w13);
    free(router);
    free(x);
    return same ? 0 : 1;
}
