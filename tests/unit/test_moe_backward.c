/*
 * mb_moe_backward on the CPU. Gradients are compared with finite differences of a forward in fp64 that shares
 * no code with the operators; that forward is compared with mb_moe_forward.
 */
#include "base/threads.h"
#include "moebius/train.h"
#include "ops/common/dtype.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { T = 6, H = 5, I = 3, E = 4, MAX_K = 3, R = T * MAX_K, N13 = E * 2 * I * H, N2 = E * H * I };

/* All that a gradient is taken of, and the layer's shape. */
typedef struct layer {
    float x[T * H], weights[R], w13[N13], w2[N2], bias13[E * 2 * I], bias2[E * H], d_out[T * H];
    int32_t ids[R];
    int n_tokens, top_k, has_bias;
    int first_expert, n_local;
    mb_activation activation;
} layer;

typedef struct gradients {
    float x[T * H], weights[R], w13[N13], w2[N2], bias13[E * 2 * I], bias2[E * H];
} gradients;

static _Alignas(256) char workspace[1 << 16];

static uint32_t random_state;

static float uniform(void) {
    random_state = random_state * 1664525 + 1013904223;
    return (float)(int32_t)random_state * 0x1p-31f;
}

static void fill(float *values, int n) {
    for (int i = 0; i < n; i++)
        values[i] = uniform();
}

static layer make_layer(mb_activation activation, int has_bias, int top_k) {
    layer l = {.n_tokens = T, .top_k = top_k, .has_bias = has_bias, .n_local = E, .activation = activation};
    random_state = 7 + (uint32_t)activation * 64 + (uint32_t)has_bias * 8 + (uint32_t)top_k;
    fill(l.x, T * H);
    fill(l.weights, R);
    fill(l.w13, N13);
    fill(l.w2, N2);
    fill(l.bias13, E * 2 * I);
    fill(l.bias2, E * H);
    fill(l.d_out, T * H);
    for (int i = 0; i < T * top_k; i++)
        l.ids[i] = (i / top_k * 5 + i % top_k) % E;
    return l;
}

static int width13(const layer *l) {
    return mb_activation_is_gated(l->activation) ? 2 * I : I;
}

static mb_weight weight(const void *data, int64_t count, int64_t rows, int64_t cols, mb_dtype dtype) {
    return (mb_weight){.data = data, .count = count, .rows = rows, .cols = cols, .dtype = dtype};
}

static mb_moe_backward_args arguments(const layer *l, gradients *g) {
    return (mb_moe_backward_args){.x = l->x,
                                  .weights = l->weights,
                                  .ids = l->ids,
                                  .w13 = weight(l->w13, l->n_local, width13(l), H, MB_F32),
                                  .w2 = weight(l->w2, l->n_local, H, I, MB_F32),
                                  .bias13 = l->has_bias ? l->bias13 : NULL,
                                  .bias2 = l->has_bias ? l->bias2 : NULL,
                                  .d_out = l->d_out,
                                  .dx = g->x,
                                  .dweights = g->weights,
                                  .dw13 = g->w13,
                                  .dw2 = g->w2,
                                  .dbias13 = l->has_bias ? g->bias13 : NULL,
                                  .dbias2 = l->has_bias ? g->bias2 : NULL,
                                  .n_tokens = l->n_tokens,
                                  .hidden = H,
                                  .intermediate = I,
                                  .top_k = l->top_k,
                                  .n_experts = E,
                                  .first_expert = l->first_expert,
                                  .n_local_experts = l->n_local,
                                  .dtype = MB_F32,
                                  .grad_dtype = MB_F32,
                                  .activation = l->activation};
}

/* With a workspace of exactly the size that was asked for. */
static void run(const mb_moe_backward_args *args, mb_stream stream) {
    size_t bytes;
    assert_int_equal(mb_moe_backward_workspace(args, &bytes), MB_OK);
    assert_true(bytes <= sizeof workspace);
    memset(workspace, 0xff, sizeof workspace);
    mb_status status = mb_moe_backward(args, workspace, bytes, stream);
    if (status != MB_OK)
        fail_msg("%s", mb_last_error());
    for (size_t i = bytes; i < sizeof workspace; i++)
        assert_int_equal((unsigned char)workspace[i], 0xff);
}

static gradients backward(const layer *l) {
    gradients g;
    memset(&g, 0xff, sizeof g);
    mb_moe_backward_args args = arguments(l, &g);
    run(&args, NULL);
    return g;
}

/* ---- A forward in fp64 --------------------------------------------------------------------------------- */

static double act(mb_activation activation, double x) {
    switch (activation) {
    case MB_ACT_SWIGLU:
    case MB_ACT_SILU:
        return x / (1 + exp(-x));
    case MB_ACT_GEGLU:
    case MB_ACT_GELU:
        return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case MB_ACT_RELU2:
        return x > 0 ? x * x : 0;
    default:
        return x > 0 ? x : 0;
    }
}

typedef struct doubles {
    double x[T * H], weights[R], w13[N13], w2[N2], bias13[E * 2 * I], bias2[E * H];
} doubles;

/* out may be NULL. Returns the sum of d_out * out. */
static double forward(const layer *l, const doubles *d, double *out) {
    double loss = 0;
    int gated = mb_activation_is_gated(l->activation), width = width13(l);
    for (int i = 0; out && i < T * H; i++)
        out[i] = 0;
    for (int choice = 0; choice < l->n_tokens * l->top_k; choice++) {
        int t = choice / l->top_k, e = l->ids[choice] - l->first_expert;
        double p[2 * I], h[I];
        if (e < 0 || e >= l->n_local)
            continue;
        for (int j = 0; j < width; j++) {
            p[j] = l->has_bias ? d->bias13[e * width + j] : 0;
            for (int c = 0; c < H; c++)
                p[j] += d->w13[(e * width + j) * H + c] * d->x[t * H + c];
        }
        for (int i = 0; i < I; i++)
            h[i] = act(l->activation, p[i]) * (gated ? p[I + i] : 1);
        for (int c = 0; c < H; c++) {
            double y = l->has_bias ? d->bias2[e * H + c] : 0;
            for (int i = 0; i < I; i++)
                y += d->w2[(e * H + c) * I + i] * h[i];
            loss += (double)l->d_out[t * H + c] * d->weights[choice] * y;
            if (out)
                out[t * H + c] += d->weights[choice] * y;
        }
    }
    return loss;
}

static void widen(const float *from, int n, double *to) {
    for (int i = 0; i < n; i++)
        to[i] = (double)from[i];
}

static doubles widened(const layer *l) {
    doubles d;
    widen(l->x, T * H, d.x);
    widen(l->weights, R, d.weights);
    widen(l->w13, N13, d.w13);
    widen(l->w2, N2, d.w2);
    widen(l->bias13, E * 2 * I, d.bias13);
    widen(l->bias2, E * H, d.bias2);
    return d;
}

static void compare(const layer *l, const char *what, doubles *d, double *values, int n, const float *got) {
    const double step = 1e-6;
    for (int i = 0; i < n; i++) {
        double value = values[i];
        values[i] = value + step;
        double above = forward(l, d, NULL);
        values[i] = value - step;
        double below = forward(l, d, NULL);
        values[i] = value;
        double expected = (above - below) / (2 * step);
        if (!(fabs((double)got[i] - expected) <= 2e-6 * (1 + fabs(expected))))
            fail_msg("%s[%d] is %g, the finite difference %g (activation %d, bias %d, top_k %d)", what, i,
                     (double)got[i], expected, (int)l->activation, l->has_bias, l->top_k);
    }
}

static void check_differences(const layer *l) {
    gradients g = backward(l);
    doubles d = widened(l);
    compare(l, "dx", &d, d.x, l->n_tokens * H, g.x);
    compare(l, "dweights", &d, d.weights, l->n_tokens * l->top_k, g.weights);
    compare(l, "dw13", &d, d.w13, l->n_local * width13(l) * H, g.w13);
    compare(l, "dw2", &d, d.w2, l->n_local * H * I, g.w2);
    if (l->has_bias) {
        compare(l, "dbias13", &d, d.bias13, l->n_local * width13(l), g.bias13);
        compare(l, "dbias2", &d, d.bias2, l->n_local * H, g.bias2);
    }
}

static mb_moe_forward_args forward_arguments(const layer *l, float *out) {
    return (mb_moe_forward_args){.x = l->x,
                                 .weights = l->weights,
                                 .ids = l->ids,
                                 .w13 = weight(l->w13, l->n_local, width13(l), H, MB_F32),
                                 .w2 = weight(l->w2, l->n_local, H, I, MB_F32),
                                 .bias13 = l->has_bias ? l->bias13 : NULL,
                                 .bias2 = l->has_bias ? l->bias2 : NULL,
                                 .out = out,
                                 .n_tokens = l->n_tokens,
                                 .hidden = H,
                                 .intermediate = I,
                                 .top_k = l->top_k,
                                 .n_experts = E,
                                 .first_expert = l->first_expert,
                                 .n_local_experts = l->n_local,
                                 .activation = l->activation};
}

/* ---- Tests --------------------------------------------------------------------------------------------- */

static void finite_differences(void **state) {
    (void)state;
    for (int a = MB_ACT_SWIGLU; a <= MB_ACT_RELU2; a++)
        for (int bias = 0; bias <= 1; bias++)
            for (int top_k = 1; top_k <= MAX_K; top_k++) {
                layer l = make_layer((mb_activation)a, bias, top_k);
                check_differences(&l);
            }
}

static void the_forward_is_mb_moe_forward(void **state) {
    (void)state;
    for (int a = MB_ACT_SWIGLU; a <= MB_ACT_RELU2; a++) {
        layer l = make_layer((mb_activation)a, 1, 2);
        doubles d = widened(&l);
        double expected[T * H];
        float out[T * H];
        forward(&l, &d, expected);
        mb_moe_forward_args args = forward_arguments(&l, out);
        assert_int_equal(mb_moe_forward(&args, workspace, sizeof workspace, NULL), MB_OK);
        for (int i = 0; i < T * H; i++)
            assert_true(fabs((double)out[i] - expected[i]) < 1e-5);
    }
}

static void uneven_experts(void **state) {
    (void)state;
    layer l = make_layer(MB_ACT_SWIGLU, 1, 2);
    for (int i = 0; i < T * 2; i++) /* expert 2 takes all: also twice of one token */
        l.ids[i] = 2;
    check_differences(&l);
    gradients g = backward(&l);
    for (int i = 0; i < 2 * 2 * I * H; i++) /* experts 0 and 1 have no rows */
        assert_true(g.w13[i] == 0);
    for (int i = 3 * H * I; i < 4 * H * I; i++)
        assert_true(g.w2[i] == 0);
    const int32_t ragged[] = {0, 1, 0, 3, 0, 1, 0, -1, 0, 3, 9, 0};
    memcpy(l.ids, ragged, sizeof ragged);
    check_differences(&l);
}

static void ids_outside_of_the_local_experts(void **state) {
    (void)state;
    layer l = make_layer(MB_ACT_GEGLU, 1, 3);
    l.first_expert = 1;
    l.n_local = 2;
    l.ids[0] = l.ids[1] = l.ids[2] = 0; /* token 0 has no local expert */
    l.ids[4] = -1;
    l.ids[5] = 1000;
    check_differences(&l);
    gradients g = backward(&l);
    for (int c = 0; c < H; c++)
        assert_true(g.x[c] == 0);
    assert_true(g.weights[0] == 0 && g.weights[4] == 0 && g.weights[5] == 0);
}

static void no_tokens(void **state) {
    (void)state;
    layer l = make_layer(MB_ACT_SWIGLU, 1, 2);
    l.n_tokens = 0;
    gradients g = backward(&l);
    for (int i = 0; i < N13; i++)
        assert_true(g.w13[i] == 0);
    for (int i = 0; i < N2; i++)
        assert_true(g.w2[i] == 0);
    assert_true(g.bias13[E * 2 * I - 1] == 0 && g.bias2[E * H - 1] == 0);
    for (int i = 0; i < N13; i++)
        g.w13[i] = 3;
    mb_moe_backward_args args = arguments(&l, &g);
    args.accumulate = 1;
    run(&args, NULL);
    for (int i = 0; i < N13; i++)
        assert_true(g.w13[i] == 3);
}

static void a_row_does_not_depend_on_its_neighbours(void **state) {
    (void)state;
    layer l = make_layer(MB_ACT_SWIGLU, 1, 3);
    gradients all = backward(&l);
    for (int t = 0; t < T; t++) {
        layer alone = l;
        alone.n_tokens = 1;
        memcpy(alone.x, l.x + t * H, H * sizeof(float));
        memcpy(alone.d_out, l.d_out + t * H, H * sizeof(float));
        memcpy(alone.weights, l.weights + t * 3, 3 * sizeof(float));
        memcpy(alone.ids, l.ids + t * 3, 3 * sizeof(int32_t));
        gradients one = backward(&alone);
        assert_memory_equal(one.x, all.x + t * H, H * sizeof(float));
        assert_memory_equal(one.weights, all.weights + t * 3, 3 * sizeof(float));
    }
}

static void added_to_what_is_there(void **state) {
    (void)state;
    layer l = make_layer(MB_ACT_RELU2, 1, 2);
    gradients fresh = backward(&l), added;
    float *there = (float *)&added;
    for (size_t i = 0; i < sizeof added / sizeof(float); i++)
        there[i] = 0;
    mb_moe_backward_args args = arguments(&l, &added);
    args.accumulate = 1;
    run(&args, NULL);
    int n13 = E * I * H; /* relu2 has no up rows */
    assert_memory_equal(added.w13, fresh.w13, (size_t)n13 * sizeof(float));
    assert_memory_equal(added.w2, fresh.w2, sizeof fresh.w2);
    run(&args, NULL);
    for (int i = 0; i < n13; i++)
        assert_true(fabsf(added.w13[i] - 2 * fresh.w13[i]) <= 1e-6f * fabsf(fresh.w13[i]));
    for (int i = 0; i < E * H; i++)
        assert_true(fabsf(added.bias2[i] - 2 * fresh.bias2[i]) <= 1e-6f * fabsf(fresh.bias2[i]) + 1e-7f);
    assert_memory_equal(added.x, fresh.x, sizeof fresh.x); /* dx is never added to */
    assert_memory_equal(added.weights, fresh.weights, T * 2 * sizeof(float));
}

static void what_is_null_is_not_computed(void **state) {
    (void)state;
    layer l = make_layer(MB_ACT_SWIGLU, 1, 2);
    gradients all = backward(&l), some;
    for (int which = 0; which < 6; which++) {
        memset(&some, 0xff, sizeof some);
        mb_moe_backward_args args = arguments(&l, &some);
        args.dx = which == 0 ? some.x : NULL;
        args.dweights = which == 1 ? some.weights : NULL;
        args.dw13 = which == 2 ? some.w13 : NULL;
        args.dw2 = which == 3 ? some.w2 : NULL;
        args.dbias13 = which == 4 ? some.bias13 : NULL;
        args.dbias2 = which == 5 ? some.bias2 : NULL;
        run(&args, NULL);
        assert_true(which != 0 || memcmp(some.x, all.x, sizeof all.x) == 0);
        assert_true(which != 1 || memcmp(some.weights, all.weights, T * 2 * sizeof(float)) == 0);
        assert_true(which != 2 || memcmp(some.w13, all.w13, sizeof all.w13) == 0);
        assert_true(which != 3 || memcmp(some.w2, all.w2, sizeof all.w2) == 0);
        assert_true(which != 4 || memcmp(some.bias13, all.bias13, sizeof all.bias13) == 0);
        assert_true(which != 5 || memcmp(some.bias2, all.bias2, sizeof all.bias2) == 0);
    }
}

/* The forward with p and without has the same bits; its p is mb_grouped_gemm's with the plan's rows; and the
 * backward has the same bits with that p as when it computes p again. */
static void check_saved_state(const layer *l) {
    int width = width13(l), n_choices = l->n_tokens * l->top_k;
    float out[2][T * H], p[R * 2 * I], gemm_p[R * 2 * I];
    int32_t offsets[E + 1], row_token[R], token_row[R];
    memset(p, 0xff, sizeof p);
    memset(gemm_p, 0xff, sizeof gemm_p);
    mb_moe_forward_args keep = forward_arguments(l, out[0]), plain = forward_arguments(l, out[1]);
    size_t bytes, plain_bytes;
    keep.p = p;
    assert_int_equal(mb_moe_forward_workspace(&keep, &bytes), MB_OK);
    assert_int_equal(mb_moe_forward_workspace(&plain, &plain_bytes), MB_OK);
    assert_int_equal(bytes, plain_bytes);
    assert_int_equal(mb_moe_forward(&keep, workspace, bytes, NULL), MB_OK);
    assert_int_equal(mb_moe_forward(&plain, workspace, bytes, NULL), MB_OK);
    assert_memory_equal(out[0], out[1], (size_t)(l->n_tokens * H) * sizeof(float));

    mb_moe_plan_args plan = {.ids = l->ids,
                             .offsets = offsets,
                             .row_token = row_token,
                             .token_row = token_row,
                             .n_tokens = l->n_tokens,
                             .top_k = l->top_k,
                             .n_experts = E,
                             .first_expert = l->first_expert,
                             .n_local_experts = l->n_local};
    assert_int_equal(mb_moe_plan(&plan, workspace, sizeof workspace, NULL), MB_OK);
    mb_grouped_gemm_args gemm = {.a = l->x,
                                 .row_index = row_token,
                                 .offsets = offsets,
                                 .b = weight(l->w13, l->n_local, width, H, MB_F32),
                                 .bias = l->has_bias ? l->bias13 : NULL,
                                 .out = gemm_p,
                                 .n_rows = n_choices,
                                 .activation = MB_ACT_NONE};
    assert_int_equal(mb_grouped_gemm(&gemm, workspace, sizeof workspace, NULL), MB_OK);
    assert_memory_equal(p, gemm_p, sizeof p); /* the rows that are not written too */

    gradients again = backward(l), saved;
    memset(&saved, 0xff, sizeof saved);
    mb_moe_backward_args args = arguments(l, &saved);
    args.p = p;
    run(&args, NULL);
    assert_memory_equal(&saved, &again, sizeof saved);
}

static void saved_state(void **state) {
    (void)state;
    for (int a = MB_ACT_SWIGLU; a <= MB_ACT_RELU2; a++)
        for (int bias = 0; bias <= 1; bias++) {
            layer l = make_layer((mb_activation)a, bias, 2);
            check_saved_state(&l);
            l.first_expert = 1, l.n_local = 2;
            check_saved_state(&l);
        }
}

/* p is what is rounded to dtype anyway, so that the backward sees what the forward saw. */
static void saved_state_of_narrow_types(void **state) {
    (void)state;
    const mb_dtype dtypes[] = {MB_BF16, MB_F16};
    for (int type = 0; type < 2; type++) {
        layer l = make_layer(MB_ACT_GEGLU, 0, 2);
        uint16_t x[T * H], w13[N13], w2[N2], out[2][T * H], p[R * 2 * I];
        float wide_p[R * 2 * I], h[I], y, wide_w2[N2], expected;
        mb_store_f32(dtypes[type], x, 0, T * H, l.x);
        mb_store_f32(dtypes[type], w13, 0, N13, l.w13);
        mb_store_f32(dtypes[type], w2, 0, N2, l.w2);
        mb_load_f32(dtypes[type], w2, 0, N2, wide_w2);
        for (int i = 0; i < T * 2; i++)
            l.ids[i] = i % 2 == 0 ? 1 : -1; /* row t is token t's, of expert 1 */
        for (int keep = 0; keep <= 1; keep++) {
            mb_moe_forward_args args = forward_arguments(&l, NULL);
            args.x = x, args.w13.data = w13, args.w2.data = w2, args.out = out[keep];
            args.dtype = args.w13.dtype = args.w2.dtype = dtypes[type];
            args.p = keep ? p : NULL;
            assert_int_equal(mb_moe_forward(&args, workspace, sizeof workspace, NULL), MB_OK);
        }
        assert_memory_equal(out[0], out[1], sizeof out[0]);
        mb_load_f32(dtypes[type], p, 0, T * 2 * I, wide_p);
        for (int t = 0; t < T; t++) {
            for (int i = 0; i < I; i++) {
                double gate = (double)wide_p[t * 2 * I + i];
                h[i] = (float)(act(MB_ACT_GEGLU, gate) * (double)wide_p[t * 2 * I + I + i]);
            }
            for (int c = 0; c < H; c++) {
                expected = 0;
                for (int i = 0; i < I; i++)
                    expected += l.weights[t * 2] * wide_w2[(H + c) * I + i] * h[i];
                mb_load_f32(dtypes[type], out[1], t * H + c, 1, &y);
                assert_true(fabsf(y - expected) < 0.02f);
            }
        }
    }
}

static void narrow(mb_dtype dtype, const float *values, int n, uint16_t *to) {
    mb_store_f32(dtype, to, 0, n, values);
}

/* Mean absolute difference below 1 % of the mean absolute value: three bits of slack beside bf16's eight. */
static void check_close(const char *what, mb_dtype dtype, const void *got, const float *expected, int n) {
    double difference = 0, size = 0;
    for (int i = 0; i < n; i++) {
        float value;
        mb_load_f32(dtype, got, i, 1, &value);
        difference += fabs((double)value - (double)expected[i]);
        size += fabs((double)expected[i]);
    }
    if (!(difference <= 0.01 * size))
        fail_msg("%s differs by %g of %g", what, difference, size);
}

static void narrow_types(void **state) {
    (void)state;
    const mb_dtype dtypes[] = {MB_BF16, MB_F16};
    for (int type = 0; type < 2; type++)
        for (int narrow_gradients = 0; narrow_gradients <= 1; narrow_gradients++) {
            mb_dtype dtype = dtypes[type], grad_dtype = narrow_gradients ? dtype : MB_F32;
            layer l = make_layer(MB_ACT_SWIGLU, 1, 2);
            uint16_t x[T * H], d_out[T * H], w13[N13], w2[N2], bias13[E * 2 * I], bias2[E * H], dx[T * H];
            float dw13[N13], dw2[N2], dbias13[E * 2 * I], dbias2[E * H], dweights[T * 2];
            struct {
                float *wide;
                uint16_t *narrow;
                int n;
            } inputs[] = {{l.x, x, T * H}, {l.d_out, d_out, T * H},       {l.w13, w13, N13},
                          {l.w2, w2, N2},  {l.bias13, bias13, E * 2 * I}, {l.bias2, bias2, E * H}};
            for (int i = 0; i < 6; i++) {
                narrow(dtype, inputs[i].wide, inputs[i].n, inputs[i].narrow);
                mb_load_f32(dtype, inputs[i].narrow, 0, inputs[i].n, inputs[i].wide);
            }
            gradients expected = backward(&l), unused;
            mb_moe_backward_args args = arguments(&l, &unused);
            args.x = x, args.d_out = d_out, args.bias13 = bias13, args.bias2 = bias2;
            args.w13.data = w13, args.w2.data = w2, args.w13.dtype = args.w2.dtype = dtype;
            args.dtype = dtype, args.grad_dtype = grad_dtype;
            args.dx = dx, args.dw13 = dw13, args.dw2 = dw2, args.dbias13 = dbias13, args.dbias2 = dbias2;
            args.dweights = dweights;
            run(&args, NULL);
            check_close("dx", dtype, dx, expected.x, T * H);
            check_close("dw13", grad_dtype, dw13, expected.w13, N13);
            check_close("dw2", grad_dtype, dw2, expected.w2, N2);
            check_close("dbias13", grad_dtype, dbias13, expected.bias13, E * 2 * I);
            check_close("dbias2", grad_dtype, dbias2, expected.bias2, E * H);
            check_close("dweights", MB_F32, dweights, expected.weights, T * 2);
        }
}

/* Larger than a piece of columns, and with work for several threads. */
static void threads_change_no_bit(void **state) {
    (void)state;
    enum { WIDE_T = 24, WIDE_H = 300, WIDE_I = 270, WIDE_E = 3 };
    static float x[WIDE_T * WIDE_H], w13[WIDE_E * 2 * WIDE_I * WIDE_H], w2[WIDE_E * WIDE_H * WIDE_I];
    static float d_out[WIDE_T * WIDE_H], weights[WIDE_T];
    static struct results {
        float dx[WIDE_T * WIDE_H], dw13[WIDE_E * 2 * WIDE_I * WIDE_H], dw2[WIDE_E * WIDE_H * WIDE_I];
        float dweights[WIDE_T];
    } results[2];
    static _Alignas(256) char memory[1 << 19];
    int32_t ids[WIDE_T];
    random_state = 5;
    fill(x, WIDE_T * WIDE_H);
    fill(w13, WIDE_E * 2 * WIDE_I * WIDE_H);
    fill(w2, WIDE_E * WIDE_H * WIDE_I);
    fill(d_out, WIDE_T * WIDE_H);
    fill(weights, WIDE_T);
    for (int t = 0; t < WIDE_T; t++)
        ids[t] = t % 5 == 0 ? 1 : 2;
    mb_pool *pool;
    assert_int_equal(mb_pool_open(4, &pool), MB_OK);
    for (int run_number = 0; run_number < 2; run_number++) {
        struct results *out = &results[run_number];
        mb_moe_backward_args args = {.x = x,
                                     .weights = weights,
                                     .ids = ids,
                                     .w13 = weight(w13, WIDE_E, 2 * WIDE_I, WIDE_H, MB_F32),
                                     .w2 = weight(w2, WIDE_E, WIDE_H, WIDE_I, MB_F32),
                                     .d_out = d_out,
                                     .dx = out->dx,
                                     .dweights = out->dweights,
                                     .dw13 = out->dw13,
                                     .dw2 = out->dw2,
                                     .n_tokens = WIDE_T,
                                     .hidden = WIDE_H,
                                     .intermediate = WIDE_I,
                                     .top_k = 1,
                                     .n_experts = WIDE_E,
                                     .n_local_experts = WIDE_E};
        assert_int_equal(mb_moe_backward(&args, memory, sizeof memory, run_number ? pool : NULL), MB_OK);
    }
    mb_pool_close(pool);
    assert_memory_equal(&results[0], &results[1], sizeof results[0]);
    for (int i = 0; i < WIDE_I * WIDE_H; i++)
        assert_true(results[0].dw2[i] == 0); /* expert 0 has no rows */
    double dot =
        0; /* without biases the sum of weights . dweights is that of d_out . out, and so of dw2 . w2 */
    double by_weights = 0;
    for (int i = 0; i < WIDE_E * WIDE_H * WIDE_I; i++)
        dot += (double)results[0].dw2[i] * (double)w2[i];
    for (int t = 0; t < WIDE_T; t++)
        by_weights += (double)weights[t] * (double)results[0].dweights[t];
    assert_true(fabs(dot - by_weights) <= 1e-5 * fabs(dot));
    /* Likewise dw13 . w13 is dp . p, and so dx . x. */
    double by_w13 = 0, by_x = 0;
    for (int i = 0; i < WIDE_E * 2 * WIDE_I * WIDE_H; i++)
        by_w13 += (double)results[0].dw13[i] * (double)w13[i];
    for (int i = 0; i < WIDE_T * WIDE_H; i++)
        by_x += (double)results[0].dx[i] * (double)x[i];
    assert_true(fabs(by_w13 - by_x) <= 1e-5 * fabs(by_x));
}

static void refused(const mb_moe_backward_args *args, mb_status status, const char *sentence) {
    assert_int_equal(mb_moe_backward(args, workspace, sizeof workspace, NULL), status);
    assert_string_equal(mb_last_error(), sentence);
}

#define REFUSED(change, status, sentence)                  \
    do {                                                   \
        mb_moe_backward_args args = arguments(&l, &g);     \
        change;                                            \
        refused(&args, status, "moe_backward: " sentence); \
    } while (0)

static void refusals(void **state) {
    (void)state;
    layer l = make_layer(MB_ACT_SWIGLU, 1, 2);
    gradients g;
    REFUSED(args.x = NULL, MB_ERR_ARGUMENT, "x is NULL");
    REFUSED(args.d_out = NULL, MB_ERR_ARGUMENT, "d_out is NULL");
    REFUSED(args.dx = (void *)l.x, MB_ERR_ARGUMENT, "dx is x");
    REFUSED(args.dx = (void *)l.d_out, MB_ERR_ARGUMENT, "dx is d_out");
    REFUSED(args.dw13 = (char *)g.w13 + 1, MB_ERR_ARGUMENT, "dw13 is not aligned to 4 bytes, its type");
    REFUSED(args.hidden = 0, MB_ERR_ARGUMENT, "moe_forward: hidden is 0");
    REFUSED(args.grad_dtype = MB_BF16, MB_ERR_ARGUMENT, "grad_dtype is bf16 (1), not fp32 or dtype's fp32");
    REFUSED(args.accumulate = 2, MB_ERR_ARGUMENT, "accumulate is 2, not 0 or 1");
    REFUSED(args.w2.dtype = MB_F16, MB_ERR_ARGUMENT, "w2.dtype is fp16, not dtype's fp32");
    mb_moe_forward_args forward_args = forward_arguments(&l, g.x);
    forward_args.p = g.x;
    assert_int_equal(mb_moe_forward(&forward_args, workspace, sizeof workspace, NULL), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(), "moe_forward: p is x or out");
    forward_args.p = (char *)g.w13 + 2;
    assert_int_equal(mb_moe_forward(&forward_args, workspace, sizeof workspace, NULL), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(), "moe_forward: p is not aligned to 4 bytes, its type");
    mb_moe_backward_args args = arguments(&l, &g);
    size_t bytes;
    char sentence[100];
    assert_int_equal(mb_moe_backward_workspace(&args, &bytes), MB_OK);
    assert_int_equal(mb_moe_backward(&args, workspace, bytes - 1, NULL), MB_ERR_CAPACITY);
    snprintf(sentence, sizeof sentence, "moe_backward: workspace has %zu bytes, needs %zu", bytes - 1, bytes);
    assert_string_equal(mb_last_error(), sentence);
    assert_int_equal(mb_moe_backward(&args, workspace + 8, bytes, NULL), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(), "moe_backward: workspace is not aligned to 256 bytes");
    assert_int_equal(mb_moe_backward(NULL, workspace, bytes, NULL), MB_ERR_ARGUMENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finite_differences),
        cmocka_unit_test(the_forward_is_mb_moe_forward),
        cmocka_unit_test(uneven_experts),
        cmocka_unit_test(ids_outside_of_the_local_experts),
        cmocka_unit_test(no_tokens),
        cmocka_unit_test(a_row_does_not_depend_on_its_neighbours),
        cmocka_unit_test(added_to_what_is_there),
        cmocka_unit_test(what_is_null_is_not_computed),
        cmocka_unit_test(saved_state),
        cmocka_unit_test(saved_state_of_narrow_types),
        cmocka_unit_test(narrow_types),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(refusals),
    };
#if defined(__SANITIZE_THREAD__)
    cmocka_set_test_filter("threads_change_no_bit"); /* the other tests have one thread */
#endif
    return cmocka_run_group_tests(tests, NULL, NULL);
}
