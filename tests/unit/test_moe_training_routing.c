/*
 * The router in training, on the CPU: the gradient of its logits and its losses against finite differences,
 * and the properties of token rounding.
 */
#include "moebius/train.h"
#include "ops/common/dtype.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { T = 7, E = 6, K = 3 };

static _Alignas(256) char workspace[1 << 16];
static uint32_t random_state = 3;

static float uniform(void) {
    random_state = random_state * 1664525 + 1013904223;
    return (float)(int32_t)random_state * 0x1p-31f;
}

/* ---- Gradient of the logits ---------------------------------------------------------------------------- */

typedef struct router {
    float logits[T * E], dweights[T * K];
    int32_t ids[T * K];
    mb_route_order order;
    int32_t renormalize;
    double d_load_balance, d_z;
} router;

static router make_router(mb_route_order order, int32_t renormalize) {
    router r = {.order = order, .renormalize = renormalize};
    float weights[T * K];
    for (int i = 0; i < T * E; i++)
        r.logits[i] = 3 * uniform();
    for (int i = 0; i < T * K; i++)
        r.dweights[i] = uniform();
    mb_moe_route_args route = {.logits = r.logits,
                               .weights = weights,
                               .ids = r.ids,
                               .n_tokens = T,
                               .n_experts = E,
                               .top_k = K,
                               .order = order,
                               .renormalize = renormalize};
    assert_int_equal(mb_moe_route(&route, NULL), MB_OK);
    return r;
}

/* In fp64: sum of dweights * weights, and the losses times their factors. */
static double loss(const router *r, const double *logits, double *load_balance, double *z) {
    double sum = 0, mean[E] = {0}, counts[E] = {0};
    *load_balance = *z = 0;
    for (int t = 0; t < T; t++) {
        double all = 0, chosen = 0;
        for (int e = 0; e < E; e++)
            all += exp(logits[t * E + e]);
        for (int e = 0; e < E; e++)
            mean[e] += exp(logits[t * E + e]) / all / T;
        *z += log(all) * log(all) / T;
        for (int k = 0; k < K; k++)
            if (r->ids[t * K + k] >= 0 && r->ids[t * K + k] < E) {
                chosen += exp(logits[t * E + r->ids[t * K + k]]);
                counts[r->ids[t * K + k]]++;
            }
        double divisor = r->order == MB_ROUTE_TOPK_SOFTMAX || r->renormalize ? chosen : all;
        for (int k = 0; k < K; k++)
            if (r->ids[t * K + k] >= 0 && r->ids[t * K + k] < E)
                sum += (double)r->dweights[t * K + k] * exp(logits[t * E + r->ids[t * K + k]]) / divisor;
    }
    for (int e = 0; e < E; e++)
        *load_balance += E * counts[e] / T * mean[e];
    return sum + r->d_load_balance * *load_balance + r->d_z * *z;
}

static void check_router(const router *r) {
    int32_t counts[E];
    float load_balance, z, dlogits[T * E], d_load_balance = (float)r->d_load_balance, d_z = (float)r->d_z;
    mb_moe_router_losses_args losses = {.logits = r->logits,
                                        .ids = r->ids,
                                        .counts = counts,
                                        .load_balance = &load_balance,
                                        .z = &z,
                                        .n_tokens = T,
                                        .n_experts = E,
                                        .top_k = K};
    assert_int_equal(mb_moe_router_losses(&losses, workspace, sizeof workspace, NULL), MB_OK);
    mb_moe_route_backward_args args = {.logits = r->logits,
                                       .ids = r->ids,
                                       .dweights = r->dweights,
                                       .counts = counts,
                                       .d_load_balance = &d_load_balance,
                                       .d_z = &d_z,
                                       .dlogits = dlogits,
                                       .n_tokens = T,
                                       .n_experts = E,
                                       .top_k = K,
                                       .order = r->order,
                                       .renormalize = r->renormalize};
    assert_int_equal(mb_moe_route_backward(&args, NULL), MB_OK);

    double logits[T * E], expected_balance, expected_z, balance, other_z;
    for (int i = 0; i < T * E; i++)
        logits[i] = (double)r->logits[i];
    loss(r, logits, &expected_balance, &expected_z);
    assert_true(fabs((double)load_balance - expected_balance) <= 1e-6 * expected_balance);
    assert_true(fabs((double)z - expected_z) <= 1e-6 * expected_z);
    for (int i = 0; i < T * E; i++) {
        const double step = 1e-5;
        double value = logits[i];
        logits[i] = value + step;
        double above = loss(r, logits, &balance, &other_z);
        logits[i] = value - step;
        double below = loss(r, logits, &balance, &other_z);
        logits[i] = value;
        double expected = (above - below) / (2 * step);
        if (!(fabs((double)dlogits[i] - expected) <= 1e-6))
            fail_msg("dlogits[%d] is %g, the finite difference %g (order %d, renormalize %d)", i,
                     (double)dlogits[i], expected, (int)r->order, r->renormalize);
    }
}

static void logits_finite_differences(void **state) {
    (void)state;
    for (int order = 0; order <= 1; order++)
        for (int renormalize = 0; renormalize <= 1; renormalize++)
            for (int losses = 0; losses < 4; losses++) {
                router r = make_router((mb_route_order)order, renormalize);
                r.d_load_balance = losses & 1 ? 0.5 : 0;
                r.d_z = losses & 2 ? 0.25 : 0;
                check_router(&r);
                r.ids[1] = -1; /* choices that are none */
                r.ids[K] = E;
                r.ids[2 * K] = r.ids[2 * K + 1] = r.ids[2 * K + 2] = -1;
                check_router(&r);
            }
}

static void balanced_router(void **state) {
    (void)state;
    float logits[E * E] = {0}, load_balance, z;
    int32_t ids[E], counts[E];
    for (int t = 0; t < E; t++)
        ids[t] = t;
    mb_moe_router_losses_args args = {.logits = logits,
                                      .ids = ids,
                                      .counts = counts,
                                      .load_balance = &load_balance,
                                      .z = &z,
                                      .n_tokens = E,
                                      .n_experts = E,
                                      .top_k = 1};
    assert_int_equal(mb_moe_router_losses(&args, workspace, sizeof workspace, NULL), MB_OK);
    assert_true(fabsf(load_balance - 1) < 1e-6f);
    assert_true(fabs((double)z - log(E) * log(E)) < 1e-6);
    for (int e = 0; e < E; e++)
        assert_int_equal(counts[e], 1);
    args.n_tokens = 0;
    assert_int_equal(mb_moe_router_losses(&args, NULL, 0, NULL), MB_OK);
    assert_true(load_balance == 0 && z == 0 && counts[0] == 0);
}

/* ---- Token rounding ------------------------------------------------------------------------------------ */

enum { MANY = 400, EXPERTS = 16, CHOICES = 4, PLACES = 8, TILE = 32 };

typedef struct rounded {
    float logits[MANY * EXPERTS], weights[MANY * CHOICES], out_weights[MANY * PLACES];
    int32_t ids[MANY * CHOICES], out_ids[MANY * PLACES], before[EXPERTS], counts[EXPERTS];
    mb_moe_rounding_report report;
} rounded;

static rounded r;

static void route_many(float lean) {
    for (int i = 0; i < MANY * EXPERTS; i++) /* experts of low ids are liked more */
        r.logits[i] = 2 * uniform() - lean * (float)(i % EXPERTS);
    mb_moe_route_args route = {.logits = r.logits,
                               .weights = r.weights,
                               .ids = r.ids,
                               .n_tokens = MANY,
                               .n_experts = EXPERTS,
                               .top_k = CHOICES,
                               .renormalize = 1};
    assert_int_equal(mb_moe_route(&route, NULL), MB_OK);
    memset(r.before, 0, sizeof r.before);
    for (int i = 0; i < MANY * CHOICES; i++)
        r.before[r.ids[i]]++;
}

static mb_moe_token_rounding_args rounding_args(mb_rounding rounding, int max_choices) {
    return (mb_moe_token_rounding_args){.logits = r.logits,
                                        .ids = r.ids,
                                        .out_ids = r.out_ids,
                                        .out_weights = r.out_weights,
                                        .counts = r.counts,
                                        .report = &r.report,
                                        .n_tokens = MANY,
                                        .n_experts = EXPERTS,
                                        .top_k = CHOICES,
                                        .max_choices = max_choices,
                                        .tile_rows = TILE,
                                        .rounding = rounding,
                                        .renormalize = 1};
}

static void run_rounding(const mb_moe_token_rounding_args *args) {
    size_t bytes;
    assert_int_equal(mb_moe_token_rounding_workspace(args, &bytes), MB_OK);
    assert_true(bytes <= sizeof workspace);
    memset(r.out_ids, 0x55, sizeof r.out_ids);
    mb_status status = mb_moe_token_rounding(args, workspace, bytes, NULL);
    if (status != MB_OK)
        fail_msg("%s", mb_last_error());
}

static double probability(int t, int e) {
    double sum = 0;
    for (int i = 0; i < EXPERTS; i++)
        sum += exp((double)r.logits[t * EXPERTS + i]);
    return exp((double)r.logits[t * EXPERTS + e]) / sum;
}

static int has(const int32_t *ids, int n, int e) {
    for (int k = 0; k < n; k++)
        if (ids[k] == e)
            return 1;
    return 0;
}

/* Counts, places, weights and order of what was dropped and added. */
static void check_rounded(int max_choices) {
    int32_t counts[EXPERTS] = {0};
    int64_t processed = 0, dropped = 0, added = 0;
    for (int t = 0; t < MANY; t++) {
        const int32_t *out = r.out_ids + t * max_choices;
        double sum = 0;
        int n = 0;
        for (int k = 0; k < max_choices; k++) {
            int32_t e = out[k];
            assert_in_range(e + 1, 0, EXPERTS);
            if (k < CHOICES)
                assert_true(e == -1 || e == r.ids[t * CHOICES + k]);
            else
                assert_true(e == -1 || !has(r.ids + t * CHOICES, CHOICES, e));
            dropped += k < CHOICES && e == -1;
            added += k >= CHOICES && e >= 0;
            sum += (double)r.out_weights[t * max_choices + k];
            if (e < 0) {
                assert_true(r.out_weights[t * max_choices + k] == 0);
                continue;
            }
            assert_false(has(out, k, e));
            counts[e]++;
            n++;
        }
        assert_true(n == 0 || fabs(sum - 1) < 1e-6);
        processed += n;
    }
    for (int e = 0; e < EXPERTS; e++) {
        assert_int_equal(counts[e], r.counts[e]);
        assert_int_equal(counts[e] % TILE, 0);
        assert_true(abs(counts[e] - r.before[e]) < TILE);
        double least_kept = 2, most_dropped = -1, least_added = 2, most_left = -1;
        for (int t = 0; t < MANY; t++) {
            const int32_t *out = r.out_ids + t * max_choices;
            int was = has(r.ids + t * CHOICES, CHOICES, e), is = has(out, max_choices, e);
            double p = probability(t, e);
            if (was && is)
                least_kept = fmin(least_kept, p);
            else if (was)
                most_dropped = fmax(most_dropped, p);
            else if (is)
                least_added = fmin(least_added, p);
            else if (max_choices > CHOICES && has(out + CHOICES, max_choices - CHOICES, -1))
                most_left = fmax(most_left, p); /* it had a free place, and was not taken */
        }
        assert_true(most_dropped <= least_kept);
        assert_true(most_left <= least_added || least_added > 1);
        assert_true(most_dropped < 0 || least_added > 1); /* never both */
    }
    assert_int_equal(r.report.routed, MANY * CHOICES);
    assert_int_equal(r.report.dropped, dropped);
    assert_int_equal(r.report.added, added);
    assert_int_equal(r.report.processed, processed);
    assert_int_equal(r.report.processed, r.report.routed - dropped + added);
    assert_int_equal(r.report.hardware, processed);
    assert_true(r.report.wasted_ratio == 0);
}

static void rounding_properties(void **state) {
    (void)state;
    const float leans[] = {0, 0.05f, 0.4f};
    for (int lean = 0; lean < 3; lean++) {
        route_many(leans[lean]);
        for (int mode = MB_ROUNDING_NEAREST; mode <= MB_ROUNDING_BALANCED; mode++)
            for (int places = CHOICES; places <= PLACES; places += PLACES - CHOICES) {
                mb_moe_token_rounding_args args = rounding_args((mb_rounding)mode, places);
                run_rounding(&args);
                check_rounded(places);
                for (int e = 0; e < EXPERTS && places == PLACES; e++) {
                    int over = r.before[e] % TILE, went_up = r.counts[e] > r.before[e];
                    if (mode == MB_ROUNDING_DOWN)
                        assert_false(went_up);
                    if (mode == MB_ROUNDING_UP)
                        assert_int_equal(went_up, over > 0);
                    if (mode == MB_ROUNDING_NEAREST)
                        assert_int_equal(went_up, over >= TILE / 2);
                }
                if (mode == MB_ROUNDING_BALANCED && places == PLACES)
                    assert_true(2 * llabs(r.report.processed - r.report.routed) <= TILE);
                if (mode == MB_ROUNDING_DOWN || places == CHOICES)
                    assert_int_equal(r.report.added, 0);
            }
    }
}

/* The mean change of the total over many routings: balanced keeps it, down loses half a tile an expert. */
static void balanced_keeps_the_expected_total(void **state) {
    (void)state;
    enum { ROUNDS = 60 };
    double balanced = 0, down = 0;
    for (int i = 0; i < ROUNDS; i++) {
        route_many(0.05f);
        mb_moe_token_rounding_args args = rounding_args(MB_ROUNDING_BALANCED, PLACES);
        run_rounding(&args);
        balanced += (double)(r.report.processed - r.report.routed) / ROUNDS;
        args.rounding = MB_ROUNDING_DOWN;
        run_rounding(&args);
        down += (double)(r.report.processed - r.report.routed) / ROUNDS;
    }
    assert_true(fabs(balanced) < TILE / 4.0);
    assert_true(down < -EXPERTS * TILE / 4.0);
}

static void no_rounding_is_the_router(void **state) {
    (void)state;
    route_many(0.05f);
    mb_moe_token_rounding_args args = rounding_args(MB_ROUNDING_NONE, CHOICES);
    run_rounding(&args);
    assert_memory_equal(r.out_ids, r.ids, sizeof r.ids);
    for (int i = 0; i < MANY * CHOICES; i++)
        assert_true(r.out_weights[i] == r.weights[i]); /* so choices that are replayed have the same bits */
    int64_t hardware = 0;
    for (int e = 0; e < EXPERTS; e++)
        hardware += (r.before[e] + TILE - 1) / TILE * TILE;
    assert_int_equal(r.report.hardware, hardware);
    assert_true(fabs(r.report.wasted_ratio - (1 - MANY * CHOICES / (double)hardware)) < 1e-12);
    assert_true(r.report.wasted_ratio > 0);
}

/* Four tokens, two experts: which are dropped and added among equal ones, and what is too few. */
static void rounding_by_hand(void **state) {
    (void)state;
    float logits[4 * 2] = {0, 0, 0, 0, 0, 0, 0, 0}, weights[4 * 2];
    int32_t ids[4] = {0, 0, 0, 1}, out[4 * 2], counts[2];
    mb_moe_rounding_report report;
    mb_moe_token_rounding_args args = {.logits = logits,
                                       .ids = ids,
                                       .out_ids = out,
                                       .out_weights = weights,
                                       .counts = counts,
                                       .report = &report,
                                       .n_tokens = 4,
                                       .n_experts = 2,
                                       .top_k = 1,
                                       .max_choices = 2,
                                       .tile_rows = 2,
                                       .rounding = MB_ROUNDING_DOWN};
    assert_int_equal(mb_moe_token_rounding(&args, workspace, sizeof workspace, NULL), MB_OK);
    const int32_t down[] = {0, -1, 0, -1, -1, -1, -1, -1}; /* token 2 is the last of equal ones */
    assert_memory_equal(out, down, sizeof down);
    assert_true(weights[0] == 0.5f && weights[4] == 0);
    args.rounding = MB_ROUNDING_UP;
    assert_int_equal(mb_moe_token_rounding(&args, workspace, sizeof workspace, NULL), MB_OK);
    const int32_t up[] = {0, 1, 0, -1, 0, -1, 1, 0}; /* token 3 is the only candidate, token 0 the first */
    assert_memory_equal(out, up, sizeof up);
    assert_int_equal(report.processed, 6);
    args.tile_rows = 8; /* more than there are tokens */
    assert_int_equal(mb_moe_token_rounding(&args, workspace, sizeof workspace, NULL), MB_OK);
    assert_int_equal(report.processed, 0);
    assert_true(report.wasted_ratio == 0);
    args.n_tokens = 0;
    assert_int_equal(mb_moe_token_rounding(&args, NULL, 0, NULL), MB_OK);
    assert_int_equal(report.routed, 0);
}

/* Tokens of equal probability, but with their other logits in another order: the sums of their exponentials
 * round differently. They are equal all the same: the last is dropped, the first is added. */
static void equal_in_another_order(void **state) {
    (void)state;
    enum { TRIALS = 300, N = 8 };
    for (int trial = 0; trial < TRIALS; trial++) {
        float logits[4 * N], weights[4 * 2];
        int32_t ids[4] = {0, 0, 0, 1}, out[4 * 2], counts[N];
        for (int e = 0; e < N; e++) { /* experts 0 and 1 have the same logits in all tokens */
            logits[e] = e < 2 ? 1 : 4 * uniform();
            logits[N + (e < 2 ? e : N + 1 - e)] = logits[e];
        }
        memcpy(logits + 2 * N, logits, 2 * N * sizeof(float));
        mb_moe_token_rounding_args args = {.logits = logits,
                                           .ids = ids,
                                           .out_ids = out,
                                           .out_weights = weights,
                                           .counts = counts,
                                           .n_tokens = 4,
                                           .n_experts = N,
                                           .top_k = 1,
                                           .max_choices = 2,
                                           .tile_rows = 2};
        for (int mode = MB_ROUNDING_UP; mode <= MB_ROUNDING_DOWN; mode++) {
            args.rounding = (mb_rounding)mode;
            assert_int_equal(mb_moe_token_rounding(&args, workspace, sizeof workspace, NULL), MB_OK);
            const int32_t up[] = {0, 1, 0, -1, 0, -1, 1, 0}, down[] = {0, -1, 0, -1, -1, -1, -1, -1};
            assert_memory_equal(out, mode == MB_ROUNDING_UP ? up : down, sizeof up);
        }
    }
}

/* Logits in bf16 give the bits of the same logits in fp32. */
static void bf16_logits(void **state) {
    (void)state;
    static uint16_t narrow[MANY * EXPERTS];
    static float dweights[MANY * CHOICES], dlogits[2][MANY * EXPERTS], weights[2][MANY * PLACES];
    static int32_t ids[2][MANY * PLACES];
    float losses[2][2], one = 1;
    route_many(0.05f);
    mb_store_f32(MB_BF16, narrow, 0, MANY * EXPERTS, r.logits);
    mb_load_f32(MB_BF16, narrow, 0, MANY * EXPERTS, r.logits);
    for (int i = 0; i < MANY * CHOICES; i++)
        dweights[i] = uniform();
    for (int type = 0; type < 2; type++) {
        const void *logits = type ? (const void *)narrow : r.logits;
        mb_dtype dtype = type ? MB_BF16 : MB_F32;
        mb_moe_router_losses_args of_router = {.logits = logits,
                                               .ids = r.ids,
                                               .counts = r.counts,
                                               .load_balance = &losses[type][0],
                                               .z = &losses[type][1],
                                               .n_tokens = MANY,
                                               .n_experts = EXPERTS,
                                               .top_k = CHOICES,
                                               .logits_dtype = dtype};
        assert_int_equal(mb_moe_router_losses(&of_router, workspace, sizeof workspace, NULL), MB_OK);
        mb_moe_route_backward_args backward = {.logits = logits,
                                               .ids = r.ids,
                                               .dweights = dweights,
                                               .counts = r.counts,
                                               .d_load_balance = &one,
                                               .d_z = &one,
                                               .dlogits = dlogits[type],
                                               .n_tokens = MANY,
                                               .n_experts = EXPERTS,
                                               .top_k = CHOICES,
                                               .logits_dtype = dtype};
        assert_int_equal(mb_moe_route_backward(&backward, NULL), MB_OK);
        mb_moe_token_rounding_args args = rounding_args(MB_ROUNDING_NEAREST, PLACES);
        args.logits = logits;
        args.logits_dtype = dtype;
        args.out_ids = ids[type];
        args.out_weights = weights[type];
        run_rounding(&args);
    }
    assert_memory_equal(losses[0], losses[1], sizeof losses[0]);
    assert_memory_equal(dlogits[0], dlogits[1], sizeof dlogits[0]);
    assert_memory_equal(ids[0], ids[1], sizeof ids[0]);
    assert_memory_equal(weights[0], weights[1], sizeof weights[0]);
}

/* ---- Refusals ------------------------------------------------------------------------------------------ */

static void refusals(void **state) {
    (void)state;
    route_many(0);
    mb_moe_token_rounding_args args = rounding_args(MB_ROUNDING_UP, CHOICES);
#define REFUSED(change, sentence)                                                                           \
    do {                                                                                                    \
        args = rounding_args(MB_ROUNDING_UP, CHOICES);                                                      \
        change;                                                                                             \
        assert_int_equal(mb_moe_token_rounding(&args, workspace, sizeof workspace, NULL), MB_ERR_ARGUMENT); \
        assert_string_equal(mb_last_error(), "moe_token_rounding: " sentence);                              \
    } while (0)
    REFUSED(args.max_choices = 3, "max_choices is 3, not in top_k, 4, .. min(n_experts, 32)");
    REFUSED(args.max_choices = 17, "max_choices is 17, not in top_k, 4, .. min(n_experts, 32)");
    REFUSED(args.max_choices = 33, "max_choices is 33, not in top_k, 4, .. min(n_experts, 32)");
    REFUSED(args.tile_rows = 0, "tile_rows is 0");
    REFUSED(args.rounding = (mb_rounding)7, "rounding 7 is unknown");
    REFUSED(args.counts = NULL, "counts is NULL");
    REFUSED(args.out_ids = NULL, "out_ids is NULL");
    REFUSED(args.out_ids = r.ids, "out_ids is ids");
    REFUSED(args.n_experts = 0, "moe_route: n_experts is 0, not in 1 .. 1024");
    r.ids[5] = r.ids[4];
    args = rounding_args(MB_ROUNDING_UP, CHOICES);
    assert_int_equal(mb_moe_token_rounding(&args, workspace, sizeof workspace, NULL), MB_ERR_ARGUMENT);
    assert_non_null(strstr(mb_last_error(), "moe_token_rounding: ids of token 1 have expert "));
    assert_int_equal(mb_moe_token_rounding(&args, workspace, 16, NULL), MB_ERR_CAPACITY);

    float one = 1, logits[E] = {0}, dlogits[E];
    int32_t id = 0;
    mb_moe_route_backward_args backward = {.logits = logits,
                                           .ids = &id,
                                           .d_load_balance = &one,
                                           .dlogits = dlogits,
                                           .n_tokens = 1,
                                           .n_experts = E,
                                           .top_k = 1};
    assert_int_equal(mb_moe_route_backward(&backward, NULL), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(), "moe_route_backward: d_load_balance is given, but counts is NULL; "
                                         "pass those of mb_moe_router_losses");
    backward.logits_dtype = MB_F16;
    assert_int_equal(mb_moe_route_backward(&backward, NULL), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(),
                        "moe_route_backward: moe_route: logits_dtype is fp16 (2), not fp32 or bf16");
    mb_moe_router_losses_args losses = {
        .logits = logits, .ids = &id, .n_tokens = 1, .n_experts = E, .top_k = 1};
    assert_int_equal(mb_moe_router_losses(&losses, workspace, sizeof workspace, NULL), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(), "moe_router_losses: counts is NULL");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_finite_differences),
        cmocka_unit_test(balanced_router),
        cmocka_unit_test(rounding_properties),
        cmocka_unit_test(balanced_keeps_the_expected_total),
        cmocka_unit_test(no_rounding_is_the_router),
        cmocka_unit_test(rounding_by_hand),
        cmocka_unit_test(equal_in_another_order),
        cmocka_unit_test(bf16_logits),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
