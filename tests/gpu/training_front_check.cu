/*
 * training_front_check.cu - checks and times what training adds around the experts: the router's losses, the
 * gradient of its logits, token rounding, and the forward that keeps p.
 *
 *   training_front_check [--small] [--check]
 *
 * The router's operators against the C references: ids, counts and reports exactly, losses and gradients
 * to the last bit of fp32, weights to 1e-6 (those of the router's own choices with the bits of
 * mb_moe_route on the GPU). The forward with every tile row: out has the same bits with p and without, p
 * is w13 x + bias13 rounded, the same with every tile row. Outputs and workspaces are poisoned, what lies
 * around them must stay as it was, and a second run has the same bits. Exit status 1 when anything is
 * wrong. --check times nothing. --small, for compute-sanitizer: shapes of their own, as few tokens as
 * each kernel and each of its ways needs, every call once. A CTA sorts 1024 tokens for every expert whose
 * count is no multiple, so there are few of those.
 */
#include "training_p.cuh"
#include "training_router.cuh"

#include "timing.cuh"

static const router_shape router_shapes[] = {
    /* T, E, K, places, tile, dtype, order, renormalize, values, strange ids */
    {0, 5, 2, 3, 4, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, PLAIN_LOGITS, 0},
    {0, 1024, 32, 32, 128, MB_BF16, MB_ROUTE_TOPK_SOFTMAX, 0, PLAIN_LOGITS, 0},
    {1, 1, 1, 1, 1, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, PLAIN_LOGITS, 0},
    {1, 1, 1, 1, 8, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, PLAIN_LOGITS, 0},
    {33, 7, 3, 7, 4, MB_BF16, MB_ROUTE_TOPK_SOFTMAX, 0, WHOLE_LOGITS, 1},
    {70, 33, 8, 12, 16, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, ODD_LOGITS, 1},
    {64, 130, 4, 5, 3, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, WHOLE_LOGITS, 0},
    {40, 300, 32, 32, 8, MB_BF16, MB_ROUTE_SOFTMAX_TOPK, 0, ODD_LOGITS, 1},
    {19, 512, 8, 9, 2, MB_BF16, MB_ROUTE_TOPK_SOFTMAX, 1, ODD_LOGITS, 0},
    {9, 1024, 30, 32, 2, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, WHOLE_LOGITS, 1},
    {1300, 16, 4, 5, 128, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, PLAIN_LOGITS, 0},
    {1300, 16, 4, 16, 128, MB_BF16, MB_ROUTE_SOFTMAX_TOPK, 1, WHOLE_LOGITS, 0},
    /* Most listed tokens are full; then more are missing than are listed. */
    {3000, 12, 2, 3, 500, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, LEANING_LOGITS, 0},
    {3000, 6, 1, 2, 1500, MB_BF16, MB_ROUTE_SOFTMAX_TOPK, 1, WHOLE_LOGITS, 1},
    {2500, 24, 1, 2, 700, MB_F32, MB_ROUTE_TOPK_SOFTMAX, 1, LEANING_LOGITS, 0},
    {2100, 8, 2, 4, 100000, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, PLAIN_LOGITS, 0},
};

static const router_shape large_router_shapes[] = {
    {4097, 256, 8, 10, 128, MB_BF16, MB_ROUTE_SOFTMAX_TOPK, 1, PLAIN_LOGITS, 0},
    {16384, 256, 8, 12, 128, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, PLAIN_LOGITS, 0},
    {32768, 128, 8, 9, 128, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, LEANING_LOGITS, 0},
};

/* Kernels are compiled for up to 128, 256, 512 and 1024 experts. */
static const router_shape small_router_shapes[] = {
    {0, 5, 2, 3, 4, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, PLAIN_LOGITS, 0},
    {35, 7, 3, 7, 4, MB_BF16, MB_ROUTE_TOPK_SOFTMAX, 0, WHOLE_LOGITS, 1}, /* 32 tokens are a CTA's */
    {2, 130, 2, 3, 3, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, ODD_LOGITS, 0},
    {2, 257, 2, 4, 2, MB_BF16, MB_ROUTE_SOFTMAX_TOPK, 0, WHOLE_LOGITS, 0},
    {1, 513, 32, 32, 2, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 0, PLAIN_LOGITS, 0},
    {1400, 3, 1, 2, 1300, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, LEANING_LOGITS, 0}, /* more missing than listed */
};

static const shape p_shapes[] = {
    {1, 64, 16, 1, 1, 0, 0, MB_ACT_SWIGLU, RANDOM, 0}, /* K is one step: all rounds in one stage */
    {5, 208, 72, 7, 3, 0, 0, MB_ACT_GEGLU, RANDOM, BIAS | RESIDUAL},
    {7, 128, 48, 9, 4, 0, 0, MB_ACT_GELU, RANDOM, SHARED}, /* two steps */
    {17, 176, 56, 33, 5, 0, 0, MB_ACT_REGLU, RANDOM, 0},   /* three */
    {33, 144, 304, 8, 2, 0, 0, MB_ACT_RELU2, RANDOM, BIAS | IN_PLACE},
    {40, 120, 40, 24, 3, 0, 0, MB_ACT_SILU, RANDOM, BIAS | TOPK_SOFTMAX},
    {130, 256, 136, 60, 4, 0, 0, MB_ACT_SWIGLU, SHARD, BIAS},
    {300, 320, 200, 12, 2, 0, 0, MB_ACT_RELU, SAME_EXPERTS, BIAS},
    {601, 96, 520, 3, 1, 0, 0, MB_ACT_SWIGLU, RANDOM, BIAS},
};

static const shape large_p_shapes[] = {
    {4096, 1024, 768, 32, 4, 0, 0, MB_ACT_SWIGLU, RANDOM, BIAS},
    {2111, 2048, 512, 16, 8, 0, 0, MB_ACT_GELU, SHARD, 0},
};

/* The first with every tile row. The others with the one that keeps p while it multiplies: K of one step,
 * of two, of three with outputs of two tiles. */
static const shape small_p_shapes[] = {
    {5, 208, 24, 3, 2, 0, 0, MB_ACT_GEGLU, RANDOM, BIAS | RESIDUAL},
    {3, 64, 16, 1, 1, 0, 0, MB_ACT_SWIGLU, RANDOM, 0},
    {7, 128, 48, 3, 2, 0, 0, MB_ACT_GELU, RANDOM, SHARED},
    {17, 176, 136, 3, 2, 0, 0, MB_ACT_REGLU, RANDOM, BIAS | IN_PLACE},
};

#define COUNT(array) ((int)(sizeof(array) / sizeof(array[0])))

/* The steps tell which sets of parts and which roundings: 1 for all of them. */
static void check_router_shape(const router_shape *s, unsigned parts_step, int rounding_step) {
    router_problem p;
    make_router(s, &p);
    int32_t *counts = (int32_t *)host_allocate((size_t)s->E * sizeof(int32_t));
    check_losses(&p, counts);
    free_router(&p);
    for (unsigned parts = 0; parts < 8; parts += parts_step) {
        make_router(s, &p);
        check_gradient(&p, counts, parts);
        free_router(&p);
    }
    for (int rounding = MB_ROUNDING_NONE; rounding <= MB_ROUNDING_BALANCED; rounding += rounding_step) {
        make_router(s, &p);
        check_rounding(&p, (mb_rounding)rounding);
        free_router(&p);
    }
    printf("%s\n", p.name);
    free(counts);
}

/* ---- Times --------------------------------------------------------------------------------------------- */

typedef struct timed_router {
    mb_moe_router_losses_args losses;
    mb_moe_route_backward_args gradient;
    mb_moe_token_rounding_args rounding;
    void *workspace;
    size_t n_bytes;
} timed_router;

static void launch_losses(const void *context, cudaStream_t stream) {
    const timed_router *t = (const timed_router *)context;
    MB(mb_moe_router_losses_sm90(&t->losses, t->workspace, t->n_bytes, stream));
}
static void launch_gradient(const void *context, cudaStream_t stream) {
    MB(mb_moe_route_backward_sm90(&((const timed_router *)context)->gradient, stream));
}
static void launch_rounding(const void *context, cudaStream_t stream) {
    const timed_router *t = (const timed_router *)context;
    MB(mb_moe_token_rounding_sm90(&t->rounding, t->workspace, t->n_bytes, stream));
}

static void time_router(int T, int E, int K, void *flush) {
    const router_shape s = {T, E, K, K + 2, 128, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, PLAIN_LOGITS, 0};
    router_problem p;
    make_router(&s, &p);
    timed_router t = {};
    t.losses = losses_of(&s);
    t.losses.logits = p.gpu_logits;
    t.losses.ids = p.gpu_ids;
    t.losses.counts = (int32_t *)poisoned((size_t)E * sizeof(int32_t));
    t.losses.load_balance = (float *)poisoned(sizeof(float));
    t.losses.z = (float *)poisoned(sizeof(float));
    t.gradient.logits = p.gpu_logits;
    t.gradient.ids = p.gpu_ids;
    t.gradient.dweights = p.gpu_dweights;
    t.gradient.dlogits = (float *)poisoned((size_t)T * E * sizeof(float));
    t.gradient.n_tokens = T;
    t.gradient.n_experts = E;
    t.gradient.top_k = K;
    t.gradient.renormalize = 1;
    t.rounding = rounding_of(&s, MB_ROUNDING_NEAREST);
    t.rounding.logits = p.gpu_logits;
    t.rounding.ids = p.gpu_ids;
    t.rounding.out_ids = (int32_t *)poisoned((size_t)T * s.max_choices * sizeof(int32_t));
    t.rounding.out_weights = (float *)poisoned((size_t)T * s.max_choices * sizeof(float));
    t.rounding.counts = (int32_t *)poisoned((size_t)E * sizeof(int32_t));
    t.n_bytes = bytes_of(mb_moe_token_rounding_sm90_workspace, &t.rounding);
    const size_t losses_bytes = bytes_of(mb_moe_router_losses_sm90_workspace, &t.losses);
    t.n_bytes = t.n_bytes > losses_bytes ? t.n_bytes : losses_bytes;
    t.workspace = poisoned(t.n_bytes);
    const double losses_us = time_graph(launch_losses, &t, flush);
    const double weights_us = time_graph(launch_gradient, &t, flush);
    t.gradient.counts = t.losses.counts;
    t.gradient.d_load_balance = t.losses.load_balance;
    t.gradient.d_z = t.losses.z;
    const double all_us = time_graph(launch_gradient, &t, flush);
    const double nearest_us = time_graph(launch_rounding, &t, flush);
    t.rounding.rounding = MB_ROUNDING_BALANCED;
    const double balanced_us = time_graph(launch_rounding, &t, flush);
    printf("%7d %5d %3d %9.1f %12.1f %12.1f %9.1f %9.1f us\n", T, E, K, losses_us, weights_us, all_us,
           nearest_us, balanced_us);
    free_router(&p);
}

typedef struct timed_forward {
    mb_moe_forward_args forward;
    void *workspace;
    size_t n_bytes;
} timed_forward;

static void launch_forward(const void *context, cudaStream_t stream) {
    const timed_forward *t = (const timed_forward *)context;
    MB(mb_moe_forward_sm90(&t->forward, t->workspace, t->n_bytes, stream));
}

static void time_forward(int T, int H, int I, int E, int K, void *flush) {
    const shape s = {T, H, I, E, K, 0, 0, MB_ACT_SWIGLU, RANDOM, 0};
    problem p;
    make_problem(&p, &kinds[BF16], &s, 3);
    timed_forward t = {};
    t.forward = p.forward;
    t.forward.route = &p.route;
    MB(mb_moe_forward_sm90_workspace(&t.forward, &t.n_bytes));
    t.workspace = allocate(t.n_bytes);
    void *kept = allocate((size_t)T * K * 2 * I * 2);
    const double flops = 6.0 * T * I * H * K;
    double us[2][2];
    for (int run = 0; run < 2; run++) /* in turns: the clock falls */
        for (int saves = 0; saves < 2; saves++) {
            t.forward.p = saves ? kept : NULL;
            us[run][saves] = time_graph(launch_forward, &t, flush);
        }
    printf(
        "%7d %5d %5d %4d %2d  without p %8.1f %8.1f us %5.0f TFLOP/s, with p %8.1f %8.1f us %5.0f TFLOP/s, %+.1f %%\n",
        T, H, I, E, K, us[0][0], us[1][0], flops / us[1][0] * 1e-6, us[0][1], us[1][1],
        flops / us[1][1] * 1e-6, 100 * (us[0][1] + us[1][1]) / (us[0][0] + us[1][0]) - 100);
    CUDA(cudaFree(kept));
    CUDA(cudaFree(t.workspace));
    free_problem(&p);
}

static void check_small(void) {
    enum { NO_PARTS_OR_ALL = 7, NONE_UP_BALANCED = 2 };
    router_runs = 1;
    for (int i = 0; i < COUNT(small_router_shapes); i++)
        check_router_shape(&small_router_shapes[i], NO_PARTS_OR_ALL, NONE_UP_BALANCED);
    for (int i = 0; i < COUNT(small_p_shapes); i++)
        for (int k = 0; k < 2; k++)
            if (i == 0 || i % 2 == k)
                check_p(&kinds[k ? FP16 : BF16], &small_p_shapes[i], 100 * i + 1, i == 0 ? 0 : MB_SAVING_TILE,
                        1);
}

static void check_all(void) {
    for (int i = 0; i < COUNT(router_shapes); i++)
        check_router_shape(&router_shapes[i], 1, 1);
    for (int i = 0; i < COUNT(large_router_shapes); i++)
        check_router_shape(&large_router_shapes[i], 1, 1);
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < COUNT(p_shapes); i++)
            check_p(&kinds[k ? FP16 : BF16], &p_shapes[i], 100 * i + 1, 0, 2);
        for (int i = 0; i < COUNT(large_p_shapes); i++)
            check_p(&kinds[k ? FP16 : BF16], &large_p_shapes[i], 100 * i + 7, 0, 2);
    }
}

int main(int argc, char **argv) {
    int is_small = 0, is_timed = 1;
    for (int i = 1; i < argc; i++) {
        is_small |= strcmp(argv[i], "--small") == 0;
        is_timed &= strcmp(argv[i], "--check") != 0 && strcmp(argv[i], "--small") != 0;
    }
    if (is_small)
        check_small();
    else
        check_all();
    check_repeated_ids();
    check_router_refusals();
    check_p_refusals();
    if (is_timed) {
        void *flush = allocate(FLUSH_BYTES);
        printf("      T     E   K    losses  d of weights  and of both   nearest  balanced\n");
        time_router(4096, 128, 8, flush);
        time_router(32768, 128, 8, flush);
        time_router(16384, 256, 8, flush);
        time_forward(32768, 2048, 768, 128, 8, flush);
        time_forward(24576, 1536, 256, 128, 8, flush);
        time_forward(4096, 4096, 1024, 128, 8, flush);
        time_forward(32768, 4096, 1024, 128, 8, flush);
    }
    printf("%s\n", wrong ? "WRONG" : "all right");
    return wrong > 0;
}
