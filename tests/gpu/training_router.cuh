/* training_router.cuh - the router's training operators on the GPU against the C references. */
#ifndef MB_TESTS_TRAINING_ROUTER_CUH
#define MB_TESTS_TRAINING_ROUTER_CUH

#include "front_parts.cuh"
#include "ops/moe/backward/router_sm90.h"

extern "C" {
#include "ops/moe/moe.h"
#include "ops/moe/train.h"
}

enum router_values {
    PLAIN_LOGITS,
    WHOLE_LOGITS,   /* whole numbers: many equal ones */
    ODD_LOGITS,     /* with NaN, -infinity, -0; each token has a finite one */
    LEANING_LOGITS, /* experts of low number are liked more */
};

typedef struct router_shape {
    int T, E, K, max_choices, tile_rows;
    mb_dtype dtype;
    mb_route_order order;
    int renormalize;
    enum router_values values;
    int has_strange_ids; /* one in five is no expert */
} router_shape;

/* On the host; [0] of the copies is what the GPU is given. */
typedef struct router_problem {
    const router_shape *s;
    char name[96];
    void *logits;
    int32_t *ids;
    float *dweights;
    const void *gpu_logits;
    const int32_t *gpu_ids;
    const float *gpu_dweights;
} router_problem;

/* Of each call; the second one must have the bits of the first. */
static int router_runs = 2;

static uint64_t router_seed;
static inline uint32_t dice(uint32_t n) {
    router_seed = router_seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(router_seed >> 33) % n;
}
static inline float uniform_value(void) {
    return (float)dice(1 << 30) * 0x1p-29f - 1;
}

static inline float one_logit(const router_shape *s, int t, int e) {
    float v = 3 * uniform_value();
    if (s->values == WHOLE_LOGITS)
        v = rintf(v);
    if (s->values == LEANING_LOGITS)
        v -= 8 * (float)e / (float)s->E;
    if (s->values == ODD_LOGITS && e != t % s->E) {
        const uint32_t n = dice(32);
        v = n == 0 ? NAN : n == 1 ? -INFINITY : n == 2 ? -0.0f : n == 3 ? 0 : v;
    }
    return v;
}

static inline void make_router(const router_shape *s, router_problem *p) {
    const size_t n = (size_t)s->T * s->E, n_choices = (size_t)s->T * s->K, element = mb_dtype_bytes(s->dtype);
    router_seed = n + (uint64_t)s->K;
    p->s = s;
    snprintf(p->name, sizeof(p->name), "router T=%d E=%d K=%d of %d tile=%d", s->T, s->E, s->K,
             s->max_choices, s->tile_rows);
    p->logits = host_allocate(n * element);
    p->ids = (int32_t *)host_allocate(n_choices * sizeof(int32_t));
    p->dweights = (float *)host_allocate(n_choices * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        const float v = one_logit(s, (int)(i / s->E), (int)(i % s->E));
        uint32_t bits;
        memcpy(&bits, &v, sizeof(bits));
        if (s->dtype == MB_F32)
            ((float *)p->logits)[i] = v;
        else
            ((uint16_t *)p->logits)[i] = v != v ? 0x7fc0 : (uint16_t)(bits >> 16);
    }
    mb_moe_route_args route = {};
    float *weights = (float *)host_allocate(n_choices * sizeof(float));
    route.logits = p->logits;
    route.weights = weights;
    route.ids = p->ids;
    route.n_tokens = s->T;
    route.n_experts = s->E;
    route.top_k = s->K;
    route.logits_dtype = s->dtype;
    route.order = s->order;
    MB(mb_moe_route_ref(&route, NULL));
    free(weights);
    for (size_t i = 0; i < n_choices; i++) {
        p->dweights[i] = uniform_value();
        if (s->has_strange_ids && dice(5) == 0)
            p->ids[i] = dice(2) ? -1 : s->E + (int32_t)dice(3);
    }
    p->gpu_logits = upload(p->logits, n * element);
    p->gpu_ids = (const int32_t *)upload(p->ids, n_choices * sizeof(int32_t));
    p->gpu_dweights = (const float *)upload(p->dweights, n_choices * sizeof(float));
}

static inline void free_router(router_problem *p) {
    release_all(p->name);
    free(p->logits);
    free(p->ids);
    free(p->dweights);
}

/* Both sum in fp64 and round once: what is left is fp64's, and a last bit of fp32. */
static inline int is_near(float found, float expected) {
    if (isnan(expected) || isinf(expected))
        return isnan(expected) ? isnan(found) : found == expected;
    return fabs((double)found - expected) <= 2e-7 * fabs((double)expected) + 1e-12;
}

static inline void compare_floats(const char *name, const char *what, const float *gpu, const float *expected,
                                  size_t n) {
    float *found = (float *)download(gpu, n * sizeof(float));
    int n_bad = 0;
    for (size_t i = 0; i < n; i++)
        n_bad += !is_near(found[i], expected[i]);
    if (n_bad)
        complain(name, what, n_bad);
    free(found);
}

static inline void compare_ints(const char *name, const char *what, const int32_t *gpu,
                                const int32_t *expected, size_t n) {
    int32_t *found = (int32_t *)download(gpu, n * sizeof(int32_t));
    int n_bad = 0;
    for (size_t i = 0; i < n; i++)
        n_bad += found[i] != expected[i];
    if (n_bad)
        complain(name, what, n_bad);
    free(found);
}

/* A second run in fresh memory has the same bits. */
static inline void compare_bits(const char *name, const char *what, const void *a, const void *b,
                                size_t n_bytes) {
    void *first = download(a, n_bytes), *second = download(b, n_bytes);
    if (memcmp(first, second, n_bytes))
        complain(name, what, 0);
    free(first);
    free(second);
}

/* ---- Losses and gradient ------------------------------------------------------------------------------- */

static inline mb_moe_router_losses_args losses_of(const router_shape *s) {
    mb_moe_router_losses_args args = {};
    args.n_tokens = s->T;
    args.n_experts = s->E;
    args.top_k = s->K;
    args.logits_dtype = s->dtype;
    return args;
}

/* counts: [E], of the reference. */
static inline void check_losses(const router_problem *p, int32_t *counts) {
    const size_t n_experts = (size_t)p->s->E;
    float expected[2], *found[2];
    mb_moe_router_losses_args args = losses_of(p->s);
    args.logits = p->logits;
    args.ids = p->ids;
    args.counts = counts;
    args.load_balance = &expected[0];
    args.z = &expected[1];
    const size_t host_bytes = bytes_of(mb_moe_router_losses_ref_workspace, &args);
    void *host_workspace = host_allocate(host_bytes);
    MB(mb_moe_router_losses_ref(&args, host_workspace, host_bytes, NULL));
    free(host_workspace);

    const size_t n_bytes = bytes_of(mb_moe_router_losses_sm90_workspace, &args);
    for (int run = 0; run < router_runs; run++) {
        void *workspace = n_bytes ? poisoned(n_bytes) : NULL;
        args.logits = p->gpu_logits;
        args.ids = p->gpu_ids;
        args.counts = (int32_t *)poisoned(n_experts * sizeof(int32_t));
        found[run] = (float *)poisoned(2 * sizeof(float));
        args.load_balance = found[run];
        args.z = found[run] + 1;
        MB(mb_moe_router_losses_sm90(&args, workspace, n_bytes, NULL));
        compare_ints(p->name, "counts", args.counts, counts, n_experts);
        compare_floats(p->name, "losses", found[run], expected, 2);
    }
    compare_bits(p->name, "losses differ in a second run", found[0], found[router_runs - 1],
                 2 * sizeof(float));
    if (n_bytes)
        expect(p->name, "losses: workspace too small",
               mb_moe_router_losses_sm90(&args, poisoned(n_bytes), n_bytes - 1, NULL), MB_ERR_CAPACITY);
    args.load_balance = args.z = NULL; /* neither is asked for */
    MB(mb_moe_router_losses_sm90(&args, n_bytes ? poisoned(n_bytes) : NULL, n_bytes, NULL));
}

/* parts: 1 of the weights, 2 of load_balance, 4 of z */
static inline void check_gradient(const router_problem *p, const int32_t *counts, unsigned parts) {
    const router_shape *s = p->s;
    const size_t n = (size_t)s->T * s->E;
    const float slopes[2] = {0.7f, -0.3f};
    const float *gpu_slopes = (const float *)upload(slopes, sizeof(slopes));
    float *expected = (float *)host_allocate(n * sizeof(float)), *found[2];
    mb_moe_route_backward_args args = {};
    args.logits = p->logits;
    args.ids = p->ids;
    args.dweights = parts & 1 ? p->dweights : NULL;
    args.counts = counts;
    args.d_load_balance = parts & 2 ? &slopes[0] : NULL;
    args.d_z = parts & 4 ? &slopes[1] : NULL;
    args.dlogits = expected;
    args.n_tokens = s->T;
    args.n_experts = s->E;
    args.top_k = s->K;
    args.logits_dtype = s->dtype;
    args.order = s->order;
    args.renormalize = s->renormalize;
    MB(mb_moe_route_backward_ref(&args, NULL));
    args.logits = p->gpu_logits;
    args.ids = p->gpu_ids;
    args.dweights = parts & 1 ? p->gpu_dweights : NULL;
    args.counts = parts & 2 ? (const int32_t *)upload(counts, (size_t)s->E * sizeof(int32_t)) : NULL;
    args.d_load_balance = parts & 2 ? &gpu_slopes[0] : NULL;
    args.d_z = parts & 4 ? &gpu_slopes[1] : NULL;
    for (int run = 0; run < router_runs; run++) {
        args.dlogits = found[run] = (float *)poisoned(n * sizeof(float));
        MB(mb_moe_route_backward_sm90(&args, NULL));
        compare_floats(p->name, "dlogits", found[run], expected, n);
    }
    compare_bits(p->name, "dlogits differ in a second run", found[0], found[router_runs - 1],
                 n * sizeof(float));
    if (s->T > 1) { /* the last token alone; with T and the counts all parts but that of the weights change */
        mb_moe_route_backward_args last = args;
        const size_t before = (size_t)s->T - 1;
        last.n_tokens = 1;
        last.logits = (const char *)args.logits + before * s->E * mb_dtype_bytes(s->dtype);
        last.ids += before * s->K;
        last.dlogits = (float *)poisoned((size_t)s->E * sizeof(float));
        last.dweights = args.dweights ? args.dweights + before * s->K : NULL;
        last.d_load_balance = last.d_z = args.d_load_balance = args.d_z = NULL;
        args.dlogits = found[0];
        MB(mb_moe_route_backward_sm90(&args, NULL));
        MB(mb_moe_route_backward_sm90(&last, NULL));
        compare_bits(p->name, "dlogits of a token alone", found[0] + before * s->E, last.dlogits,
                     (size_t)s->E * sizeof(float));
    }
    free(expected);
}

/* ---- Token rounding ------------------------------------------------------------------------------------ */

static inline mb_moe_token_rounding_args rounding_of(const router_shape *s, mb_rounding rounding) {
    mb_moe_token_rounding_args args = {};
    args.n_tokens = s->T;
    args.n_experts = s->E;
    args.top_k = s->K;
    args.max_choices = s->max_choices;
    args.tile_rows = s->tile_rows;
    args.rounding = rounding;
    args.logits_dtype = s->dtype;
    args.order = s->order;
    args.renormalize = s->renormalize;
    return args;
}

/* Places from K on stay free, so the router's own weights are the first K of each token. */
static inline void compare_with_route(const router_problem *p, const float *out_weights) {
    const router_shape *s = p->s;
    const size_t n = (size_t)s->T * s->K;
    mb_moe_route_args route = {};
    route.logits = p->gpu_logits;
    route.weights = (float *)poisoned(n * sizeof(float));
    route.ids = (int32_t *)poisoned(n * sizeof(int32_t));
    route.n_tokens = s->T;
    route.n_experts = s->E;
    route.top_k = s->K;
    route.logits_dtype = s->dtype;
    route.order = s->order;
    route.renormalize = s->renormalize;
    MB(mb_moe_route_sm90(&route, NULL));
    float *expected = (float *)download(route.weights, n * sizeof(float)), *found;
    found = (float *)download(out_weights, (size_t)s->T * s->max_choices * sizeof(float));
    int n_bad = 0;
    for (int t = 0; t < s->T; t++)
        n_bad += memcmp(found + (size_t)t * s->max_choices, expected + (size_t)t * s->K,
                        (size_t)s->K * sizeof(float)) != 0;
    if (n_bad)
        complain(p->name, "tokens whose weights do not have the router's bits", n_bad);
    free(expected);
    free(found);
}

static inline void compare_weights(const char *name, const float *gpu, const float *expected, size_t n) {
    float *found = (float *)download(gpu, n * sizeof(float));
    int n_bad = 0;
    for (size_t i = 0; i < n; i++)
        n_bad += !(fabsf(found[i] - expected[i]) < 1e-6f) || (expected[i] == 0 && found[i] != 0);
    if (n_bad)
        complain(name, "weights after rounding", n_bad);
    free(found);
}

static inline void check_rounding(const router_problem *p, mb_rounding rounding) {
    const router_shape *s = p->s;
    const size_t n = (size_t)s->T * s->max_choices, n_experts = (size_t)s->E;
    mb_moe_token_rounding_args args = rounding_of(s, rounding);
    int32_t *ids = (int32_t *)host_allocate(n * sizeof(int32_t));
    int32_t *counts = (int32_t *)host_allocate(n_experts * sizeof(int32_t));
    float *weights = (float *)host_allocate(n * sizeof(float));
    mb_moe_rounding_report report;
    args.logits = p->logits;
    args.ids = p->ids;
    args.out_ids = ids;
    args.out_weights = weights;
    args.counts = counts;
    args.report = &report;
    const size_t host_bytes = bytes_of(mb_moe_token_rounding_ref_workspace, &args);
    void *host_workspace = host_allocate(host_bytes);
    MB(mb_moe_token_rounding_ref(&args, host_workspace, host_bytes, NULL));
    free(host_workspace);

    const size_t n_bytes = bytes_of(mb_moe_token_rounding_sm90_workspace, &args);
    args.logits = p->gpu_logits;
    args.ids = p->gpu_ids;
    for (int run = 0; run < router_runs; run++) {
        void *workspace = n_bytes ? poisoned(n_bytes) : NULL;
        args.out_ids = (int32_t *)poisoned(n * sizeof(int32_t));
        args.out_weights = (float *)poisoned(n * sizeof(float));
        args.counts = (int32_t *)poisoned(n_experts * sizeof(int32_t));
        args.report = (mb_moe_rounding_report *)poisoned(sizeof(report));
        MB(mb_moe_token_rounding_sm90(&args, workspace, n_bytes, NULL));
        compare_ints(p->name, "ids after rounding", args.out_ids, ids, n);
        compare_ints(p->name, "counts after rounding", args.counts, counts, n_experts);
        compare_weights(p->name, args.out_weights, weights, n);
        mb_moe_rounding_report *found = (mb_moe_rounding_report *)download(args.report, sizeof(report));
        if (memcmp(found, &report, sizeof(report)))
            complain(p->name, "report of rounding", (double)rounding);
        free(found);
    }
    if (rounding == MB_ROUNDING_NONE && !s->has_strange_ids && s->T > 0)
        compare_with_route(p, args.out_weights);
    if (n_bytes)
        expect(p->name, "rounding: workspace too small",
               mb_moe_token_rounding_sm90(&args, poisoned(n_bytes), n_bytes - 1, NULL), MB_ERR_CAPACITY);
    free(ids);
    free(counts);
    free(weights);
}

/* Ids that repeat are refused on the CPU. The GPU takes the first: nothing lies elsewhere, and counts are
 * multiples. */
static inline void check_repeated_ids(void) {
    static const router_shape s = {300, 8, 3, 5, 16, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, PLAIN_LOGITS, 0};
    router_problem p;
    make_router(&s, &p);
    int32_t *ids = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)(s.T * s.K)), counts[8] = {0};
    for (int i = 0; i < s.T * s.K; i++)
        ids[i] = (int32_t)dice(3);
    mb_moe_token_rounding_args args = rounding_of(&s, MB_ROUNDING_NEAREST);
    const size_t n_bytes = bytes_of(mb_moe_token_rounding_sm90_workspace, &args), n = (size_t)(s.T * 5);
    args.logits = p.gpu_logits;
    args.ids = (const int32_t *)upload(ids, sizeof(int32_t) * (size_t)(s.T * s.K));
    args.out_ids = (int32_t *)poisoned(n * sizeof(int32_t));
    args.out_weights = (float *)poisoned(n * sizeof(float));
    args.counts = (int32_t *)poisoned(sizeof(counts));
    MB(mb_moe_token_rounding_sm90(&args, poisoned(n_bytes), n_bytes, NULL));
    int32_t *found = (int32_t *)download(args.out_ids, n * sizeof(int32_t));
    for (size_t i = 0; i < n; i++)
        if (found[i] >= 0 && found[i] < s.E)
            counts[found[i]]++;
    compare_ints("repeated ids", "counts", args.counts, counts, 8);
    for (int e = 0; e < s.E; e++)
        if (counts[e] % s.tile_rows)
            complain("repeated ids", "a count is no multiple", counts[e]);
    free(found);
    free(ids);
    free_router(&p);
}

/* ---- Refusals ------------------------------------------------------------------------------------------ */

static inline void check_router_refusals(void) {
    static const router_shape s = {5, 8, 2, 4, 4, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, PLAIN_LOGITS, 0};
    const char *name = "router's refusals";
    size_t n_bytes;
    int32_t *ints = (int32_t *)poisoned(4096);
    float *floats = (float *)poisoned(4096);
    void *workspace = poisoned(1 << 20);
    mb_moe_router_losses_args losses = losses_of(&s);
    losses.logits = floats;
    losses.ids = losses.counts = ints;
    mb_moe_token_rounding_args rounding = rounding_of(&s, MB_ROUNDING_UP);
    rounding.logits = floats;
    rounding.ids = ints;
    rounding.out_ids = rounding.counts = ints + 512;
    rounding.out_weights = floats;
    mb_moe_route_backward_args gradient = {};
    gradient.logits = floats;
    gradient.ids = ints;
    gradient.dlogits = floats;
    gradient.n_tokens = s.T;
    gradient.n_experts = s.E;
    gradient.top_k = s.K;
#define ROUTER_REFUSED(args, call, change)            \
    do {                                              \
        auto a = args;                                \
        a.change;                                     \
        expect(name, #change, call, MB_ERR_ARGUMENT); \
    } while (0)
#define LOSSES(change) ROUTER_REFUSED(losses, mb_moe_router_losses_sm90(&a, workspace, 1 << 20, NULL), change)
#define ROUNDING(change) \
    ROUTER_REFUSED(rounding, mb_moe_token_rounding_sm90(&a, workspace, 1 << 20, NULL), change)
#define GRADIENT(change) ROUTER_REFUSED(gradient, mb_moe_route_backward_sm90(&a, NULL), change)
    LOSSES(n_experts = 50000);
    LOSSES(n_experts = 1025);
    LOSSES(top_k = 33);
    LOSSES(n_tokens = -1);
    LOSSES(logits_dtype = MB_F16);
    LOSSES(counts = NULL);
    LOSSES(ids = NULL);
    LOSSES(logits = (const char *)floats + 2);
    GRADIENT(n_experts = 50000);
    GRADIENT(dlogits = NULL);
    GRADIENT(d_load_balance = floats);
    GRADIENT(order = (mb_route_order)7);
    ROUNDING(n_experts = 50000);
    ROUNDING(max_choices = 1);
    ROUNDING(max_choices = 9);
    ROUNDING(tile_rows = 0);
    ROUNDING(rounding = (mb_rounding)5);
    ROUNDING(out_ids = ints);
    ROUNDING(report = (mb_moe_rounding_report *)(ints + 1));
    losses.n_experts = rounding.n_experts = 50000;
    expect(name, "losses' workspace", mb_moe_router_losses_sm90_workspace(&losses, &n_bytes),
           MB_ERR_ARGUMENT);
    expect(name, "rounding's workspace", mb_moe_token_rounding_sm90_workspace(&rounding, &n_bytes),
           MB_ERR_ARGUMENT);
    release_all(name);
}

#endif
