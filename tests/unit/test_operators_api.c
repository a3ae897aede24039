/*
 * The public MoE operators (moebius/ops.h) on the CPU: what they refuse and how they say it, nothing to do,
 * and that the pieces give what the whole gives. Their results are checked against fp64 by test_ops_cases.
 */
#include "moebius/ops.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { T = 5, H = 8, I = 4, E = 3, K = 2, R = T * K };

static _Alignas(256) char workspace[1 << 16];

static struct {
    float x[T * H], router[E * H], logits[T * E], weights[R], w13[E * 2 * I * H], w2[E * H * I], out[T * H];
    float h[R * I], y[R * H], other[T * H], scales[E];
    unsigned char bytes[256];
    int32_t ids[R], offsets[E + 1], row_token[R], token_row[R], n_tiles;
    mb_moe_token_tile tiles[R + E];
} m;

static int set_up(void **state) {
    (void)state;
    uint32_t random = 1;
    float *const filled[] = {m.x, m.router, m.w13, m.w2};
    const int lengths[] = {T * H, E * H, E * 2 * I * H, E * H * I};
    for (int a = 0; a < 4; a++)
        for (int i = 0; i < lengths[a]; i++) {
            random = random * 1664525 + 1013904223;
            filled[a][i] = (float)(int32_t)random * 0x1p-31f;
        }
    for (int e = 0; e < E; e++)
        m.scales[e] = 1;
    for (int i = 0; i < R; i++) {
        m.ids[i] = i * 7 % E;
        m.weights[i] = 0.5f;
    }
    return 0;
}

static mb_moe_router_gemm_args router_gemm(void) {
    return (mb_moe_router_gemm_args){
        .x = m.x, .weight = m.router, .logits = m.logits, .n_tokens = T, .hidden = H, .n_experts = E};
}

static mb_moe_route_args route(void) {
    return (mb_moe_route_args){
        .logits = m.logits, .weights = m.weights, .ids = m.ids, .n_tokens = T, .n_experts = E, .top_k = K};
}

static mb_moe_plan_args plan(void) {
    return (mb_moe_plan_args){.ids = m.ids,
                              .offsets = m.offsets,
                              .row_token = m.row_token,
                              .token_row = m.token_row,
                              .n_tokens = T,
                              .top_k = K,
                              .n_experts = E,
                              .n_local_experts = E,
                              .tiles = m.tiles,
                              .n_tiles = &m.n_tiles,
                              .tile_rows = 16,
                              .tile_step = 8};
}

static mb_grouped_gemm_args gemm(void) {
    return (mb_grouped_gemm_args){.a = m.x,
                                  .row_index = m.row_token,
                                  .offsets = m.offsets,
                                  .b = {.data = m.w13, .count = E, .rows = 2 * I, .cols = H},
                                  .out = m.h,
                                  .n_rows = R};
}

static mb_grouped_gemm_args gemm_f8(void) {
    mb_grouped_gemm_args args = gemm();
    args.b = (mb_weight){
        .data = m.bytes, .scale = m.scales, .count = E, .rows = 2 * I, .cols = H, .dtype = MB_F8_E4M3};
    args.a = m.bytes;
    args.a_scale = m.scales;
    args.dtype = MB_F8_E4M3;
    return args;
}

static mb_moe_reduce_args reduce(void) {
    return (mb_moe_reduce_args){.y = m.y,
                                .weights = m.weights,
                                .token_row = m.token_row,
                                .out = m.out,
                                .n_tokens = T,
                                .hidden = H,
                                .top_k = K};
}

static mb_moe_experts_args experts(void) {
    return (mb_moe_experts_args){.x = m.x,
                                 .row_index = m.row_token,
                                 .offsets = m.offsets,
                                 .w13 = {.data = m.w13, .count = E, .rows = 2 * I, .cols = H},
                                 .w2 = {.data = m.w2, .count = E, .rows = H, .cols = I},
                                 .y = m.y,
                                 .n_tokens = T,
                                 .n_rows = R,
                                 .hidden = H,
                                 .intermediate = I,
                                 .n_local_experts = E};
}

static mb_moe_forward_args forward(void) {
    return (mb_moe_forward_args){.x = m.x,
                                 .weights = m.weights,
                                 .ids = m.ids,
                                 .w13 = {.data = m.w13, .count = E, .rows = 2 * I, .cols = H},
                                 .w2 = {.data = m.w2, .count = E, .rows = H, .cols = I},
                                 .out = m.out,
                                 .n_tokens = T,
                                 .hidden = H,
                                 .intermediate = I,
                                 .top_k = K,
                                 .n_experts = E,
                                 .n_local_experts = E};
}

static mb_status call_router_gemm(const mb_moe_router_gemm_args *args) {
    return mb_moe_router_gemm(args, workspace, sizeof workspace, NULL);
}
static mb_status call_route(const mb_moe_route_args *args) {
    return mb_moe_route(args, NULL);
}
static mb_status call_plan(const mb_moe_plan_args *args) {
    return mb_moe_plan(args, workspace, sizeof workspace, NULL);
}
static mb_status call_gemm(const mb_grouped_gemm_args *args) {
    return mb_grouped_gemm(args, workspace, sizeof workspace, NULL);
}
static mb_status call_experts(const mb_moe_experts_args *args) {
    return mb_moe_experts(args, workspace, sizeof workspace, NULL);
}
static mb_status call_reduce(const mb_moe_reduce_args *args) {
    return mb_moe_reduce(args, NULL);
}
static mb_status call_forward(const mb_moe_forward_args *args) {
    return mb_moe_forward(args, workspace, sizeof workspace, NULL);
}

/* The arguments after `change` are refused with a sentence that begins with the operator and has `word`. */
#define REFUSED(op, make, change, word)                                      \
    do {                                                                     \
        __typeof__(make()) args = make();                                    \
        change;                                                              \
        assert_int_equal(call_##op(&args), MB_ERR_ARGUMENT);                 \
        check_sentence(mb_last_error(), SENTENCE_##op ": ", word, __LINE__); \
    } while (0)
#define SENTENCE_router_gemm "moe_router_gemm"
#define SENTENCE_route "moe_route"
#define SENTENCE_plan "moe_plan"
#define SENTENCE_gemm "grouped_gemm"
#define SENTENCE_experts "moe_experts"
#define SENTENCE_reduce "moe_reduce"
#define SENTENCE_forward "moe_forward"

static void check_sentence(const char *sentence, const char *start, const char *word, int line) {
    if (strncmp(sentence, start, strlen(start)) != 0 || !strstr(sentence + strlen(start), word))
        fail_msg("line %d: \"%s\" should start with \"%s\" and name %s", line, sentence, start, word);
}

/* The size is refused too, with the same sentence. */
#define SIZE_REFUSED(op, function, make, change, word)                       \
    do {                                                                     \
        REFUSED(op, make, change, word);                                     \
        __typeof__(make()) args = make();                                    \
        change;                                                              \
        size_t bytes = 7;                                                    \
        assert_int_equal(function(&args, &bytes), MB_ERR_ARGUMENT);          \
        assert_int_equal(bytes, 7);                                          \
        check_sentence(mb_last_error(), SENTENCE_##op ": ", word, __LINE__); \
    } while (0)

static const mb_dtype no_dtype = (mb_dtype)9;

static void test_router_gemm_refuses(void **state) {
    (void)state;
    mb_moe_router_gemm_args good = router_gemm();
    assert_int_equal(call_router_gemm(&good), MB_OK);
#define BAD(change, word) SIZE_REFUSED(router_gemm, mb_moe_router_gemm_workspace, router_gemm, change, word)
    BAD(args.n_tokens = -1, "n_tokens is -1");
    BAD(args.n_tokens = (int64_t)1 << 31, "n_tokens");
    BAD(args.hidden = 0, "hidden is 0");
    BAD(args.n_experts = 0, "n_experts");
    BAD(args.n_experts = 1025, "n_experts is 1025");
    BAD(args.dtype = MB_F8_E4M3, "dtype is fp8_e4m3");
    BAD(args.weight_dtype = no_dtype, "weight_dtype is unknown dtype (9)");
#undef BAD
    REFUSED(router_gemm, router_gemm, args.x = NULL, "x is NULL");
    REFUSED(router_gemm, router_gemm, args.weight = NULL, "weight is NULL");
    REFUSED(router_gemm, router_gemm, args.logits = NULL, "logits is NULL");
}

static void test_route_refuses(void **state) {
    (void)state;
    mb_moe_route_args good = route();
    assert_int_equal(call_route(&good), MB_OK);
    REFUSED(route, route, args.n_tokens = -1, "n_tokens is -1");
    REFUSED(route, route, args.n_experts = 1025, "n_experts is 1025");
    REFUSED(route, route, args.top_k = 0, "top_k is 0");
    REFUSED(route, route, args.top_k = E + 1, "top_k is 4");
    REFUSED(route, route, (args.top_k = 33, args.n_experts = 100), "top_k is 33");
    REFUSED(route, route, args.logits_dtype = MB_F16, "logits_dtype is fp16");
    REFUSED(route, route, args.order = (mb_route_order)7, "order 7");
    REFUSED(route, route, args.logits = NULL, "logits is NULL");
    REFUSED(route, route, args.weights = NULL, "weights is NULL");
    REFUSED(route, route, args.ids = NULL, "ids is NULL");
}

static void test_plan_refuses(void **state) {
    (void)state;
    mb_moe_plan_args good = plan();
    assert_int_equal(call_plan(&good), MB_OK);
#define BAD(change, word) SIZE_REFUSED(plan, mb_moe_plan_workspace, plan, change, word)
    BAD(args.top_k = 0, "top_k is 0");
    BAD(args.n_tokens = -1, "n_tokens is -1");
    BAD(args.n_tokens = INT32_MAX / K + 1, "n_tokens");
    BAD(args.n_experts = 0, "n_experts is 0");
    BAD(args.n_local_experts = 0, "n_local_experts is 0");
    BAD((args.n_experts = 70000, args.n_local_experts = 65537), "n_local_experts is 65537");
    BAD(args.first_expert = 1, "first_expert is 1");
    BAD(args.first_expert = -1, "first_expert is -1");
    BAD(args.first_expert = INT32_MAX, "first_expert");
#undef BAD
    REFUSED(plan, plan, args.tiles = NULL, "tiles is NULL");
    REFUSED(plan, plan, args.n_tiles = NULL, "n_tiles is NULL");
    REFUSED(plan, plan, args.tile_rows = 0, "tile_rows is 0");
    REFUSED(plan, plan, args.tile_step = 0, "tile_step is 0");
    REFUSED(plan, plan, args.tile_step = 5, "tile_step is 5");
    REFUSED(plan, plan, args.ids = NULL, "ids is NULL");
    REFUSED(plan, plan, args.offsets = NULL, "offsets is NULL");
    REFUSED(plan, plan, args.row_token = NULL, "row_token is NULL");
    REFUSED(plan, plan, args.token_row = NULL, "token_row is NULL");
}

static void test_gemm_refuses(void **state) {
    (void)state;
    mb_moe_plan_args before = plan();
    assert_int_equal(call_plan(&before), MB_OK);
    mb_grouped_gemm_args good = gemm(), good_f8 = gemm_f8();
    assert_int_equal(call_gemm(&good), MB_OK);
    assert_int_equal(call_gemm(&good_f8), MB_OK);
#define BAD(change, word) SIZE_REFUSED(gemm, mb_grouped_gemm_workspace, gemm, change, word)
    BAD(args.n_rows = -1, "n_rows is -1");
    BAD(args.n_rows = (int64_t)1 << 31, "n_rows");
    BAD(args.b.count = 0, "b is [0, 8, 8]");
    BAD(args.b.rows = 0, "b is [3, 0, 8]");
    BAD(args.b.cols = -8, "b is [3, 8, -8]");
    BAD(args.b.rows = 7, "b has 7 rows");
    BAD(args.activation = (mb_activation)8, "activation 8");
    BAD(args.dtype = no_dtype, "dtype 9");
    BAD(args.b.dtype = MB_BF16, "b.dtype is bf16");
    BAD(args.out_dtype = MB_BF16, "out_dtype bf16");
    BAD(args.out_dtype = MB_F8_E4M3, "out_dtype fp8_e4m3");
    BAD(args.out_dtype = no_dtype, "out_dtype unknown");
    BAD((args.dtype = args.b.dtype = MB_BF16, args.out_dtype = MB_F16), "out_dtype fp16");
    BAD(args.f32_math = (mb_f32_math)2, "f32_math 2");
    BAD((args.bias = m.x, args.bias_dtype = MB_F8_E4M3), "bias_dtype is fp8_e4m3");
    BAD(args.b.scale = m.scales, "b.scale is set");
#undef BAD
    REFUSED(gemm, gemm_f8, args.b.scale = NULL, "b.scale is NULL");
    REFUSED(gemm, gemm_f8, args.b.scale_rows = -8, "b.scale_rows is -8");
    REFUSED(gemm, gemm_f8, args.b.scale_cols = -8, "scale_cols -8");
    REFUSED(gemm, gemm_f8, args.a_scale = NULL, "a_scale is NULL");
    REFUSED(gemm, gemm, args.a_scale = m.scales, "a_scale is set");
    REFUSED(gemm, gemm, args.out_scale = m.scales, "out_scale is set");
    REFUSED(gemm, gemm_f8, args.out_dtype = MB_F8_E4M3, "out_scale is NULL");
    REFUSED(gemm, gemm, args.a = NULL, "a is NULL");
    REFUSED(gemm, gemm, args.b.data = NULL, "b.data is NULL");
    REFUSED(gemm, gemm, args.out = NULL, "out is NULL");
    REFUSED(gemm, gemm, args.out = m.x, "out is a");
    REFUSED(gemm, gemm, args.offsets = NULL, "offsets is NULL");
    /* what a CPU can read before it follows it */
    int32_t falling[] = {0, 5, 4, R}, negative[] = {-1, 5, 6, R}, beyond[] = {0, 5, 6, R + 1};
    REFUSED(gemm, gemm, args.offsets = falling, "offsets[2] is 4, less than offsets[1], 5");
    REFUSED(gemm, gemm, args.offsets = negative, "offsets[0] is -1");
    REFUSED(gemm, gemm, args.offsets = beyond, "offsets[3] is 11, more than n_rows");
    m.row_token[3] = -2;
    REFUSED(gemm, gemm, (void)args, "row_index[3] is -2");
    assert_int_equal(call_plan(&before), MB_OK);
}

/* Layouts that mb_weight can name and no operator takes, in each operator with weights. */
static void test_weights_to_come_are_refused(void **state) {
    (void)state;
    static const struct {
        mb_weight weight; /* its dtype, scales and scale layout */
        const char *word;
    } layouts[] = {
        {{.scale = m.scales, .dtype = MB_F8_E4M3, .scale_rows = 1}, "scale_rows is 1 and scale_cols 0"},
        {{.scale = m.scales, .dtype = MB_F8_E4M3, .scale_rows = 48, .scale_cols = 128}, "scale_rows is 48"},
        {{.scale = m.scales, .dtype = MB_F8_E4M3, .scale_rows = 3, .scale_cols = 128}, "scale_rows is 3"},
        {{.scale = m.scales, .dtype = MB_F8_E4M3, .scale_rows = 128, .scale_cols = 64}, "scale_cols 64"},
        {{.scale = m.scales, .dtype = MB_F8_E4M3, .scale_rows = 128}, "scale_cols 0"},
        {{.scale = m.scales, .dtype = MB_F8_E4M3, .scale_cols = 128}, "scale_rows is 0"},
        {{.scale = m.scales, .dtype = MB_F8_E4M3, .scale_dtype = MB_BF16}, "scales that are not fp32"},
        {{.scale = m.scales, .dtype = MB_F8_E4M3, .scale_dtype = MB_F8_E8M0}, "scales that are not fp32"},
        {{.scale = m.scales, .dtype = MB_F8_E4M3, .global_scale = m.scales}, "a global_scale"},
        {{.dtype = MB_F32, .global_scale = m.scales}, "a global_scale"},
        {{.scale = m.scales, .dtype = MB_F4_E2M1, .scale_rows = 1, .scale_cols = 32}, "dtype is fp4_e2m1"},
        {{.dtype = MB_F8_E8M0}, "dtype is fp8_e8m0"},
    };
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        mb_moe_forward_args whole = forward();
        mb_grouped_gemm_args grouped = gemm_f8();
        mb_weight *const weights[] = {&whole.w13, &whole.w2, &grouped.b};
        static const char *const starts[] = {"moe_forward: w13", "moe_forward: w2", "grouped_gemm: b"};
        for (int which = 0; which < 3; which++) {
            whole = forward();
            grouped = gemm_f8();
            mb_weight changed = layouts[i].weight;
            changed.data = weights[which]->data;
            changed.count = weights[which]->count;
            changed.rows = weights[which]->rows;
            changed.cols = weights[which]->cols;
            *weights[which] = changed;
            if (which == 2 && changed.dtype != MB_F8_E4M3)
                continue; /* grouped_gemm's a has b's dtype, which says it first */
            size_t bytes;
            mb_status sized = which < 2 ? mb_moe_forward_workspace(&whole, &bytes)
                                        : mb_grouped_gemm_workspace(&grouped, &bytes);
            assert_int_equal(sized, MB_ERR_UNSUPPORTED);
            assert_int_equal(which < 2 ? call_forward(&whole) : call_gemm(&grouped), MB_ERR_UNSUPPORTED);
            check_sentence(mb_last_error(), starts[which], layouts[i].word, __LINE__);
        }
    }
}

static void test_experts_refuse(void **state) {
    (void)state;
    mb_moe_plan_args before = plan();
    assert_int_equal(call_plan(&before), MB_OK);
    mb_moe_experts_args good = experts();
    assert_int_equal(call_experts(&good), MB_OK);
#define BAD(change, word) SIZE_REFUSED(experts, mb_moe_experts_workspace, experts, change, word)
    BAD(args.n_tokens = -1, "n_tokens is -1");
    BAD(args.n_tokens = (int64_t)1 << 31, "n_tokens");
    BAD(args.n_rows = -1, "n_rows is -1");
    BAD(args.n_rows = (int64_t)1 << 31, "n_rows");
    BAD(args.hidden = 0, "hidden is 0");
    BAD(args.intermediate = -4, "intermediate is -4");
    BAD(args.n_local_experts = 0, "n_local_experts is 0");
    BAD(args.n_local_experts = 2, "w13 has shape");
    BAD(args.w13.rows = I, "w13 has shape");
    BAD(args.w2.cols = H, "w2 has shape");
    BAD(args.activation = MB_ACT_NONE, "activation 7");
    BAD(args.dtype = MB_F8_E4M3, "dtype is fp8_e4m3");
    BAD(args.f32_math = (mb_f32_math)2, "f32_math 2");
    BAD(args.w13.scale = m.scales, "w13.scale is set");
#undef BAD
    REFUSED(experts, experts, args.x = NULL, "x is NULL");
    REFUSED(experts, experts, args.offsets = NULL, "offsets is NULL");
    REFUSED(experts, experts, args.w13.data = NULL, "w13.data is NULL");
    REFUSED(experts, experts, args.w2.data = NULL, "w2.data is NULL");
    REFUSED(experts, experts, args.y = NULL, "y is NULL");
    REFUSED(experts, experts, args.y = m.x, "y is x");
    REFUSED(experts, experts, args.x8 = m.x, "x8_scale is NULL");
    REFUSED(experts, experts, args.x8_scale = m.scales, "x8 is NULL");
    REFUSED(experts, experts, args.row_index = NULL, "row_index is NULL with n_tokens 5 and n_rows 10");
    int32_t falling[] = {0, 5, 4, R}, beyond[] = {0, 5, 6, R + 1};
    REFUSED(experts, experts, args.offsets = falling, "offsets[2] is 4");
    REFUSED(experts, experts, args.offsets = beyond, "offsets[3] is 11, more than n_rows");
    REFUSED(experts, experts, args.n_tokens = T - 1, "row_index");
    m.row_token[3] = -2;
    REFUSED(experts, experts, (void)args, "row_index[3] is -2");
    assert_int_equal(call_plan(&before), MB_OK);
}

static void test_reduce_refuses(void **state) {
    (void)state;
    mb_moe_plan_args before = plan();
    assert_int_equal(call_plan(&before), MB_OK);
    mb_moe_reduce_args good = reduce();
    assert_int_equal(call_reduce(&good), MB_OK);
    REFUSED(reduce, reduce, args.n_tokens = -1, "n_tokens is -1");
    REFUSED(reduce, reduce, args.top_k = 0, "top_k is 0");
    REFUSED(reduce, reduce, args.hidden = 0, "hidden is 0");
    REFUSED(reduce, reduce, args.dtype = MB_F8_E4M3, "dtype is fp8_e4m3");
    REFUSED(reduce, reduce, args.out_dtype = MB_BF16, "out_dtype is bf16");
    REFUSED(reduce, reduce, args.y = NULL, "y is NULL, but token_row[0] is"); /* see test_reduce_of_no_rows */
    REFUSED(reduce, reduce, args.weights = NULL, "weights is NULL");
    REFUSED(reduce, reduce, args.token_row = NULL, "token_row is NULL");
    REFUSED(reduce, reduce, args.out = NULL, "out is NULL");
}

/* A rank that was sent no row: residual and shared alone. */
static void test_reduce_of_no_rows(void **state) {
    (void)state;
    static float residual[T * H], shared[T * H];
    for (int i = 0; i < T * H; i++) {
        residual[i] = (float)i;
        shared[i] = 0.5f;
    }
    mb_moe_reduce_args args = reduce();
    args.residual = residual;
    args.shared = shared;
    memset(m.token_row, 0xff, sizeof m.token_row);
    for (int with_y = 0; with_y < 2; with_y++) {
        args.y = with_y ? m.y : NULL;
        memset(m.out, 0xff, sizeof m.out);
        assert_int_equal(call_reduce(&args), MB_OK);
        for (int i = 0; i < T * H; i++)
            assert_true(m.out[i] == (float)i + 0.5f);
    }
    m.token_row[3] = 2;
    args.y = NULL;
    assert_int_equal(call_reduce(&args), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(), "moe_reduce: y is NULL, but token_row[3] is 2");
}

/* A vector may start at any element: one byte or two further it cannot be read. */
static void test_vectors_within_an_element_are_refused(void **state) {
    (void)state;
    mb_moe_plan_args before = plan();
    assert_int_equal(call_plan(&before), MB_OK);
#define MISALIGNED(op, make, field, memory) \
    REFUSED(op, make, args.field = (void *)((char *)(memory) + 2), #field " is not aligned to 4 bytes")
    MISALIGNED(router_gemm, router_gemm, logits, m.logits);
    MISALIGNED(router_gemm, router_gemm, bias, m.scales);
    MISALIGNED(route, route, logits, m.logits);
    MISALIGNED(route, route, weights, m.weights);
    MISALIGNED(route, route, ids, m.ids);
    MISALIGNED(route, route, nan_flag, &m.n_tiles);
    MISALIGNED(plan, plan, ids, m.ids);
    MISALIGNED(plan, plan, offsets, m.offsets);
    MISALIGNED(plan, plan, row_token, m.row_token);
    MISALIGNED(plan, plan, token_row, m.token_row);
    MISALIGNED(plan, plan, n_tiles, &m.n_tiles);
    MISALIGNED(gemm, gemm_f8, a_scale, m.scales);
    MISALIGNED(gemm, gemm_f8, b.scale, m.scales);
    MISALIGNED(gemm, gemm, row_index, m.row_token);
    MISALIGNED(gemm, gemm, offsets, m.offsets);
    MISALIGNED(gemm, gemm, row_weight, m.weights);
    MISALIGNED(gemm, gemm, bias, m.other);
    MISALIGNED(experts, experts, row_index, m.row_token);
    MISALIGNED(experts, experts, offsets, m.offsets);
    MISALIGNED(experts, experts, bias13, m.other);
    MISALIGNED(experts, experts, bias2, m.other);
    MISALIGNED(experts, experts, x_scale, m.scales);
    MISALIGNED(experts, experts, h_scale, m.scales);
    MISALIGNED(reduce, reduce, weights, m.weights);
    MISALIGNED(reduce, reduce, token_row, m.token_row);
    MISALIGNED(forward, forward, weights, m.weights);
    MISALIGNED(forward, forward, ids, m.ids);
    MISALIGNED(forward, forward, bias13, m.other);
    MISALIGNED(forward, forward, bias2, m.other);
    MISALIGNED(forward, forward, x_scale, m.scales);
    MISALIGNED(forward, forward, h_scale, m.scales);
#undef MISALIGNED
    REFUSED(route, route, (args.logits_dtype = MB_BF16, args.logits = (char *)m.logits + 1),
            "aligned to 2 bytes");
    mb_moe_route_args of_two_bytes = route();
    of_two_bytes.logits_dtype = MB_BF16;
    of_two_bytes.logits = (char *)m.logits + 2;
    assert_int_equal(call_route(&of_two_bytes), MB_OK);
}

static void test_forward_refuses(void **state) {
    (void)state;
    mb_moe_forward_args good = forward();
    assert_int_equal(call_forward(&good), MB_OK);
#define BAD(change, word) SIZE_REFUSED(forward, mb_moe_forward_workspace, forward, change, word)
    BAD(args.hidden = 0, "hidden is 0");
    BAD(args.intermediate = -4, "intermediate is -4");
    BAD(args.top_k = 0, "top_k is 0");
    BAD(args.n_tokens = -1, "n_tokens is -1");
    BAD(args.n_tokens = (int64_t)1 << 31, "n_tokens");
    BAD(args.first_expert = 1, "first_expert is 1");
    BAD(args.n_local_experts = 4, "first_expert");
    BAD(args.n_experts = 0, "n_experts is 0");
    BAD(args.activation = MB_ACT_NONE, "activation 7");
    BAD(args.activation = (mb_activation)99, "activation 99");
    BAD(args.activation = MB_ACT_RELU, "w13 has shape [3, 8, 8], expected [3, 4, 8]");
    BAD(args.dtype = MB_F8_E4M3, "dtype is fp8_e4m3");
    BAD(args.f32_math = (mb_f32_math)-1, "f32_math");
    BAD(args.w13.cols = 9, "w13");
    BAD(args.w13.dtype = no_dtype, "w13.dtype is 9");
    BAD(args.w2.rows = 9, "w2");
    BAD(args.w13.scale = m.scales, "w13.scale is set");
#undef BAD
    REFUSED(forward, forward, args.x = NULL, "x is NULL");
    REFUSED(forward, forward, args.weights = NULL, "weights is NULL");
    REFUSED(forward, forward, args.ids = NULL, "ids is NULL");
    REFUSED(forward, forward, args.w13.data = NULL, "w13.data is NULL");
    REFUSED(forward, forward, args.w2.data = NULL, "w2.data is NULL");
    REFUSED(forward, forward, args.out = NULL, "out is NULL");
    REFUSED(forward, forward, args.out = m.x, "out is x");
    REFUSED(forward, forward, args.x8 = m.x, "x8_scale is NULL");
    REFUSED(forward, forward, (args.x8 = m.x, args.x8_scale = (const float *)((const char *)m.scales + 1)),
            "x8_scale is not aligned");

    mb_moe_route_args router = route();
#define BAD_ROUTE(change, word) \
    REFUSED(forward, forward, (router = route(), args.route = &router, change), word)
    BAD_ROUTE(router.n_tokens = T - 1, "route's n_tokens is 4");
    BAD_ROUTE(router.n_experts = E + 1, "route's n_experts is 4");
    BAD_ROUTE(router.top_k = 1, "route's top_k is 1");
    BAD_ROUTE(router.ids = m.token_row, "route's ids");
    BAD_ROUTE(router.weights = m.out, "route's weights");
    BAD_ROUTE(router.logits = NULL, "logits is NULL");
#undef BAD_ROUTE
}

static void test_workspaces(void **state) {
    (void)state;
    mb_moe_router_gemm_args router = router_gemm();
    mb_moe_plan_args planned = plan();
    mb_grouped_gemm_args grouped = gemm();
    mb_moe_forward_args whole = forward();
    assert_int_equal(call_plan(&planned), MB_OK);
    mb_moe_experts_args alone = experts();
    size_t sizes[5];
    assert_int_equal(mb_moe_router_gemm_workspace(&router, &sizes[0]), MB_OK);
    assert_int_equal(mb_moe_plan_workspace(&planned, &sizes[1]), MB_OK);
    assert_int_equal(mb_grouped_gemm_workspace(&grouped, &sizes[2]), MB_OK);
    assert_int_equal(mb_moe_forward_workspace(&whole, &sizes[3]), MB_OK);
    assert_int_equal(mb_moe_experts_workspace(&alone, &sizes[4]), MB_OK);
    for (int i = 0; i < 5; i++) {
        assert_true(sizes[i] > 0 && sizes[i] <= sizeof workspace - 256);
        char *const places[] = {workspace, workspace, NULL, workspace + 64};
        const size_t n_bytes[] = {sizes[i], sizes[i] - 1, sizes[i], sizes[i] + 64};
        static const mb_status expected[] = {MB_OK, MB_ERR_CAPACITY, MB_ERR_CAPACITY, MB_ERR_ARGUMENT};
        for (int j = 0; j < 4; j++) {
            mb_status status = i == 0   ? mb_moe_router_gemm(&router, places[j], n_bytes[j], NULL)
                               : i == 1 ? mb_moe_plan(&planned, places[j], n_bytes[j], NULL)
                               : i == 2 ? mb_grouped_gemm(&grouped, places[j], n_bytes[j], NULL)
                               : i == 3 ? mb_moe_forward(&whole, places[j], n_bytes[j], NULL)
                                        : mb_moe_experts(&alone, places[j], n_bytes[j], NULL);
            assert_int_equal(status, expected[j]);
            if (status != MB_OK)
                assert_non_null(strstr(mb_last_error(), "workspace"));
        }
    }
    assert_int_equal(mb_moe_router_gemm_workspace(NULL, &sizes[0]), MB_ERR_ARGUMENT);
    assert_int_equal(mb_moe_plan_workspace(NULL, &sizes[0]), MB_ERR_ARGUMENT);
    assert_int_equal(mb_grouped_gemm_workspace(NULL, &sizes[0]), MB_ERR_ARGUMENT);
    assert_int_equal(mb_moe_forward_workspace(NULL, &sizes[0]), MB_ERR_ARGUMENT);
    assert_int_equal(mb_moe_experts_workspace(NULL, &sizes[0]), MB_ERR_ARGUMENT);
    assert_int_equal(mb_moe_forward_workspace(&whole, NULL), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(), "moe_forward: bytes is NULL");
    assert_int_equal(call_router_gemm(NULL), MB_ERR_ARGUMENT);
    assert_int_equal(call_route(NULL), MB_ERR_ARGUMENT);
    assert_int_equal(call_plan(NULL), MB_ERR_ARGUMENT);
    assert_int_equal(call_gemm(NULL), MB_ERR_ARGUMENT);
    assert_int_equal(call_experts(NULL), MB_ERR_ARGUMENT);
    assert_int_equal(call_reduce(NULL), MB_ERR_ARGUMENT);
    assert_int_equal(call_forward(NULL), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(), "moe_forward: args is NULL");
}

/* Shapes alone: no pointers, no workspace, no work. */
static void test_nothing_to_do(void **state) {
    (void)state;
    mb_moe_router_gemm_args router = {.hidden = H, .n_experts = E};
    mb_moe_route_args routed = {.n_experts = E, .top_k = K};
    mb_moe_plan_args planned = {.top_k = K, .n_experts = E, .n_local_experts = E};
    mb_grouped_gemm_args grouped = {.b = {.count = E, .rows = 4, .cols = H}};
    mb_moe_reduce_args reduced = {.hidden = H, .top_k = K};
    mb_moe_forward_args whole = forward();
    whole.n_tokens = 0;
    whole.x = whole.weights = whole.out = NULL;
    whole.ids = NULL;
    whole.w13.data = whole.w2.data = NULL;
    size_t bytes[4] = {1, 1, 1, 1};
    assert_int_equal(mb_moe_router_gemm_workspace(&router, &bytes[0]), MB_OK);
    assert_int_equal(mb_moe_plan_workspace(&planned, &bytes[1]), MB_OK);
    assert_int_equal(mb_grouped_gemm_workspace(&grouped, &bytes[2]), MB_OK);
    assert_int_equal(mb_moe_forward_workspace(&whole, &bytes[3]), MB_OK);
    assert_true(bytes[0] == 0 && bytes[1] == 0 && bytes[2] == 0 && bytes[3] == 0);
    assert_int_equal(mb_moe_router_gemm(&router, NULL, 0, NULL), MB_OK);
    assert_int_equal(mb_moe_route(&routed, NULL), MB_OK);
    assert_int_equal(mb_moe_plan(&planned, NULL, 0, NULL), MB_OK);
    assert_int_equal(mb_grouped_gemm(&grouped, NULL, 0, NULL), MB_OK);
    assert_int_equal(mb_moe_reduce(&reduced, NULL), MB_OK);
    assert_int_equal(mb_moe_forward(&whole, NULL, 0, NULL), MB_OK);
    mb_moe_experts_args alone = experts();
    alone.n_rows = 0;
    alone.x = alone.y = NULL;
    alone.row_index = alone.offsets = NULL;
    alone.w13.data = alone.w2.data = NULL;
    size_t of_experts = 1;
    assert_int_equal(mb_moe_experts_workspace(&alone, &of_experts), MB_OK);
    assert_int_equal(of_experts, 0);
    assert_int_equal(mb_moe_experts(&alone, NULL, 0, NULL), MB_OK);
    routed.top_k = 0; /* shapes are still looked at */
    assert_int_equal(mb_moe_route(&routed, NULL), MB_ERR_ARGUMENT);

    planned = plan(); /* a plan of nothing can be read */
    planned.n_tokens = 0;
    memset(m.offsets, 0xff, sizeof m.offsets);
    m.n_tiles = -1;
    assert_int_equal(mb_moe_plan(&planned, NULL, 0, NULL), MB_OK);
    for (int e = 0; e <= E; e++)
        assert_int_equal(m.offsets[e], 0);
    assert_int_equal(m.n_tiles, 0);
}

static void test_max_tiles(void **state) {
    (void)state;
    assert_int_equal(mb_moe_max_tiles(0, 8, 16), 0);
    assert_int_equal(mb_moe_max_tiles(1, 8, 16), 1);
    assert_int_equal(mb_moe_max_tiles(100, 8, 16), 8 + 6);
    assert_int_equal(mb_moe_max_tiles(INT32_MAX, 65536, 1), (int64_t)INT32_MAX + 65536);
    assert_int_equal(mb_moe_max_tiles(-1, 8, 16), 0);
    assert_int_equal(mb_moe_max_tiles(100, 8, 0), 0);
}

/* Router, plan, two grouped GEMMs or the experts, and the sum, one after the other; against all in one
 * call. In fp32 nothing is rounded on the way, and both add in the same order: the same bits. */
static void test_pieces_are_the_whole(void **state) {
    (void)state;
    mb_moe_router_gemm_args router = router_gemm();
    mb_moe_route_args routed = route();
    mb_moe_plan_args planned = plan();
    mb_grouped_gemm_args up = gemm(), down = gemm();
    down.a = m.h;
    down.row_index = NULL;
    down.b = (mb_weight){.data = m.w2, .count = E, .rows = H, .cols = I};
    down.out = m.y;
    down.activation = MB_ACT_NONE;
    mb_moe_reduce_args summed = reduce();
    assert_int_equal(call_router_gemm(&router), MB_OK);
    assert_int_equal(call_route(&routed), MB_OK);
    assert_int_equal(call_plan(&planned), MB_OK);
    assert_int_equal(call_gemm(&up), MB_OK);
    assert_int_equal(call_gemm(&down), MB_OK);
    float of_gemms[R * H];
    memcpy(of_gemms, m.y, sizeof of_gemms);
    memset(m.y, 0xff, sizeof m.y);
    mb_moe_experts_args middle = experts();
    assert_int_equal(call_experts(&middle), MB_OK);
    assert_memory_equal(m.y, of_gemms, sizeof of_gemms);
    assert_int_equal(call_reduce(&summed), MB_OK);

    int32_t ids[R];
    float weights[R];
    memcpy(ids, m.ids, sizeof ids);
    memcpy(weights, m.weights, sizeof weights);
    memset(m.ids, 0xff, sizeof m.ids);
    memset(m.weights, 0xff, sizeof m.weights);
    mb_moe_forward_args whole = forward();
    whole.route = &routed;
    whole.out = m.other;
    assert_int_equal(call_forward(&whole), MB_OK);
    assert_memory_equal(m.ids, ids, sizeof ids);
    assert_memory_equal(m.weights, weights, sizeof weights);
    assert_memory_equal(m.other, m.out, sizeof m.out);
    double sum = 0;
    for (int i = 0; i < T * H; i++)
        sum += fabs((double)m.out[i]);
    assert_true(sum > 0.01 && sum < 1000);
}

/* Rows that were gathered by the caller, with rows of nobody around them: the same bits as by row_index,
 * and rows of nobody are left alone. */
static void test_experts_of_gathered_rows(void **state) {
    (void)state;
    enum { BEFORE = 2, BEHIND = 3, ALL = BEFORE + R + BEHIND };
    mb_moe_plan_args planned = plan();
    assert_int_equal(call_plan(&planned), MB_OK);
    mb_moe_experts_args args = experts();
    assert_int_equal(call_experts(&args), MB_OK);
    static float x[ALL * H], y[ALL * H], untouched[ALL * H];
    int32_t offsets[E + 1];
    for (int e = 0; e <= E; e++)
        offsets[e] = m.offsets[e] + BEFORE;
    memset(x, 0xff, sizeof x);
    for (int r = 0; r < R; r++)
        memcpy(x + (BEFORE + r) * H, m.x + m.row_token[r] * H, H * sizeof *x);
    memset(y, 0xff, sizeof y);
    memset(untouched, 0xff, sizeof untouched);
    args.x = x;
    args.row_index = NULL;
    args.offsets = offsets;
    args.y = y;
    args.n_tokens = args.n_rows = ALL;
    assert_int_equal(call_experts(&args), MB_OK);
    assert_memory_equal(y + BEFORE * H, m.y, sizeof m.y);
    assert_memory_equal(y, untouched, BEFORE * H * sizeof *y);
    assert_memory_equal(y + (BEFORE + R) * H, untouched, BEHIND * H * sizeof *y);
}

/* A row of a grouped GEMM alone, as a dense layer with its group's matrix: the same bits as among others. */
static void test_rows_stand_alone(void **state) {
    (void)state;
    enum { GROUPS = 3, N = 300, WIDTH = 75, ROWS = 90 };
    static uint16_t a[ROWS * WIDTH], b[GROUPS * N * WIDTH], all[ROWS * N / 2], alone[N / 2];
    uint32_t random = 7;
    for (int i = 0; i < ROWS * WIDTH + GROUPS * N * WIDTH; i++) {
        random = random * 1664525 + 1013904223;
        uint16_t *place = i < ROWS * WIDTH ? &a[i] : &b[i - ROWS * WIDTH];
        *place = (uint16_t)((random >> 31 << 15) | 0x3e00 | (random >> 16 & 0x1ff)); /* bf16 below 2 */
    }
    int32_t offsets[GROUPS + 1] = {0, 1, 1 + 70, ROWS};
    mb_grouped_gemm_args args = {
        .a = a,
        .offsets = offsets,
        .b = {.data = b, .count = GROUPS, .rows = N, .cols = WIDTH, .dtype = MB_BF16},
        .out = all,
        .n_rows = ROWS,
        .dtype = MB_BF16,
        .out_dtype = MB_BF16};
    assert_int_equal(call_gemm(&args), MB_OK);
    for (int e = 0; e < GROUPS; e++)
        for (int r = offsets[e]; r < offsets[e + 1]; r++) {
            mb_grouped_gemm_args one = args;
            one.a = a + r * WIDTH;
            one.offsets = NULL;
            one.b.data = b + e * N * WIDTH;
            one.b.count = 1;
            one.out = alone;
            one.n_rows = 1;
            assert_int_equal(call_gemm(&one), MB_OK);
            assert_memory_equal(alone, all + r * (N / 2), sizeof alone);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_router_gemm_refuses),
        cmocka_unit_test(test_route_refuses),
        cmocka_unit_test(test_plan_refuses),
        cmocka_unit_test(test_gemm_refuses),
        cmocka_unit_test(test_experts_refuse),
        cmocka_unit_test(test_reduce_refuses),
        cmocka_unit_test(test_reduce_of_no_rows),
        cmocka_unit_test(test_vectors_within_an_element_are_refused),
        cmocka_unit_test(test_forward_refuses),
        cmocka_unit_test(test_workspaces),
        cmocka_unit_test(test_nothing_to_do),
        cmocka_unit_test(test_max_tiles),
        cmocka_unit_test(test_pieces_are_the_whole),
        cmocka_unit_test(test_experts_of_gathered_rows),
        cmocka_unit_test(test_rows_stand_alone),
        cmocka_unit_test(test_weights_to_come_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
