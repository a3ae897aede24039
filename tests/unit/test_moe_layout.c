/*
 * Workspaces: what is asked for the largest counts is enough for all smaller ones. The references through
 * the CPU's table, and the layouts of sm_90 (ops/moe/layout_sm90.c), which need no GPU.
 *
 * The bytes that a call needs are those of its own layout: the tile that is picked for its rows.
 */
#include "device/device.h"
#include "ops/moe/backward/router_sm90.h"
#include "ops/moe/experts/pick.h"
#include "ops/moe/front/plan_sizes.h"
#include "ops/moe/layout_sm90.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { H100_PROCESSORS = 132 };

typedef struct setting {
    mb_dtype dtype, weights;
    int32_t scale_rows;
    mb_f32_math f32_math;
    int32_t hidden, intermediate, n_experts, top_k;
} setting;

/* fp8 with block scales, E 1024, K 1 is where one token less once needed 9 984 bytes more. */
static const setting settings[] = {
    {MB_BF16, MB_F8_E4M3, 128, MB_F32_TF32, 2048, 768, 1024, 1},
    {MB_BF16, MB_BF16, 0, MB_F32_TF32, 2048, 768, 128, 8},
    {MB_F16, MB_F8_E4M3, 0, MB_F32_TF32, 64, 16, 1024, 1},
    {MB_F32, MB_F32, 0, MB_F32_TF32, 16, 16, 256, 3},
    {MB_F32, MB_F32, 0, MB_F32_EXACT, 16, 16, 256, 3},
    {MB_BF16, MB_F8_E4M3, 64, MB_F32_TF32, 16, 4096, 3, 2},
    {MB_BF16, MB_BF16, 0, MB_F32_TF32, 16, 16, 1, 1},
    {MB_BF16, MB_F8_E4M3, 128, MB_F32_TF32, 16, 16, 2000, 32},
};
enum { N_SETTINGS = sizeof settings / sizeof settings[0] };

static mb_weight weight_of(const setting *s, int64_t rows, int64_t cols) {
    return (mb_weight){.count = s->n_experts,
                       .rows = rows,
                       .cols = cols,
                       .scale_rows = s->scale_rows,
                       .scale_cols = s->scale_rows > 0 ? MB_F8_BLOCK : 0,
                       .dtype = s->weights};
}

static mb_moe_forward_args forward_of(const setting *s, int64_t n_tokens) {
    return (mb_moe_forward_args){.w13 = weight_of(s, (int64_t)2 * s->intermediate, s->hidden),
                                 .w2 = weight_of(s, s->hidden, s->intermediate),
                                 .n_tokens = n_tokens,
                                 .hidden = s->hidden,
                                 .intermediate = s->intermediate,
                                 .top_k = s->top_k,
                                 .n_experts = s->n_experts,
                                 .n_local_experts = s->n_experts,
                                 .dtype = s->dtype,
                                 .f32_math = s->f32_math};
}

static mb_moe_experts_args experts_of(const setting *s, int64_t n_tokens, int64_t n_rows) {
    return (mb_moe_experts_args){.w13 = weight_of(s, (int64_t)2 * s->intermediate, s->hidden),
                                 .w2 = weight_of(s, s->hidden, s->intermediate),
                                 .n_tokens = n_tokens,
                                 .n_rows = n_rows,
                                 .hidden = s->hidden,
                                 .intermediate = s->intermediate,
                                 .n_local_experts = s->n_experts,
                                 .dtype = s->dtype,
                                 .f32_math = s->f32_math};
}

/* fp8 weights make fp8 of it too. */
static mb_grouped_gemm_args gemm_of(const setting *s, int64_t n_rows) {
    return (mb_grouped_gemm_args){.b = weight_of(s, (int64_t)2 * s->intermediate, s->hidden),
                                  .n_rows = n_rows,
                                  .dtype = s->weights,
                                  .out_dtype = s->weights,
                                  .f32_math = s->f32_math};
}

/* Walks counts from small to large: `most` never falls, and is never less than what a call `needs`. */
typedef struct walk {
    size_t largest_needed, most_before;
} walk;

static void check_step(walk *w, const char *what, int64_t n, size_t needed, size_t most) {
    if (most < w->most_before)
        fail_msg("%s: for %lld it is %zu bytes, for fewer %zu", what, (long long)n, most, w->most_before);
    if (needed > w->largest_needed)
        w->largest_needed = needed;
    if (most < w->largest_needed)
        fail_msg("%s: asked for up to %lld it is %zu bytes, but a call needs %zu", what, (long long)n, most,
                 w->largest_needed);
    w->most_before = most;
}

/* All up to a limit beyond the last tile's, then some far beyond. */
static int64_t next_count(int64_t n, int64_t dense_limit) {
    return n < dense_limit ? n + 1 : n + n / 3;
}

static void test_sm90_forward(void **state) {
    (void)state;
    for (int i = 0; i < N_SETTINGS; i++) {
        const setting *s = &settings[i];
        const int64_t dense = 100 * s->n_experts / s->top_k;
        walk w = {0};
        for (int64_t n = 1; n * s->top_k < (1 << 25); n = next_count(n, dense < 120000 ? dense : 120000)) {
            mb_moe_forward_args args = forward_of(s, n);
            int tile = mb_moe_pick(mb_moe_family_of(s->weights), n * s->top_k, s->n_experts);
            size_t needed, most;
            if (mb_moe_forward_sm90_tile_bytes(&args, tile, H100_PROCESSORS, &needed) == MB_ERR_UNSUPPORTED)
                break; /* x of more than 4 GiB */
            assert_int_equal(mb_moe_forward_sm90_most_bytes(&args, H100_PROCESSORS, &most), MB_OK);
            check_step(&w, "moe_forward", n, needed, most);
        }
        assert_true(w.largest_needed > 0);
    }
}

/* The case that was found: the size for one token less than 17408 must not be more than the size for
 * 17408. */
static void test_sm90_forward_at_the_last_tile(void **state) {
    (void)state;
    const setting *s = &settings[0];
    mb_moe_forward_args largest = forward_of(s, 17408), one_less = forward_of(s, 17407);
    size_t most, needed;
    assert_int_equal(mb_moe_forward_sm90_most_bytes(&largest, H100_PROCESSORS, &most), MB_OK);
    int tile = mb_moe_pick(MB_MOE_FP8, 17407, 1024);
    assert_int_equal(mb_moe_forward_sm90_tile_bytes(&one_less, tile, H100_PROCESSORS, &needed), MB_OK);
    assert_true(tile != mb_moe_pick(MB_MOE_FP8, 17408, 1024)); /* or the case has lost its point */
    assert_true(needed <= most);
}

static size_t measured(const mb_arena *arena) {
    assert_false(arena->overflowed);
    return arena->used;
}

static void test_sm90_experts_and_gemm(void **state) {
    (void)state;
    for (int i = 0; i < N_SETTINGS; i++) {
        const setting *s = &settings[i];
        walk of_experts = {0}, of_gemm = {0};
        for (int64_t n = 1; n < (1 << 25); n = next_count(n, 120000)) {
            int tile = mb_moe_pick(mb_moe_family_of(s->weights), n, s->n_experts);
            mb_arena arena;
            size_t most;
            mb_moe_experts_args experts = experts_of(s, n < 1000 ? n : 1000, n);
            mb_arena_measure(&arena);
            mb_moe_experts_sm90_layout(&experts, tile, &arena);
            assert_int_equal(mb_moe_experts_sm90_most_bytes(&experts, &most), MB_OK);
            check_step(&of_experts, "moe_experts", n, measured(&arena), most);

            mb_grouped_gemm_args gemm = gemm_of(s, n);
            mb_arena_measure(&arena);
            mb_grouped_gemm_sm90_layout(&gemm, tile, &arena);
            assert_int_equal(mb_grouped_gemm_sm90_most_bytes(&gemm, &most), MB_OK);
            check_step(&of_gemm, "grouped_gemm", n, measured(&arena), most);
        }
    }
}

/* One group: the tile that is picked is not that of the groups, and may be a smaller one of more rows. */
static void test_sm90_dense_gemm(void **state) {
    (void)state;
    for (int i = 0; i < N_SETTINGS; i++) {
        setting s = settings[i];
        s.n_experts = 1;
        walk w = {0};
        for (int64_t n = 1; n < (1 << 25); n = next_count(n, 5000)) {
            mb_grouped_gemm_args gemm = gemm_of(&s, n);
            size_t most;
            assert_int_equal(mb_grouped_gemm_sm90_most_bytes(&gemm, &most), MB_OK);
            for (int32_t n_processors = 2; n_processors < 160; n_processors += 65) {
                int tile = mb_moe_pick_dense(mb_moe_family_of(s.weights), n, gemm.b.rows, n_processors);
                mb_arena arena;
                mb_arena_measure(&arena);
                mb_grouped_gemm_sm90_layout(&gemm, tile, &arena);
                check_step(&w, "dense gemm", n, measured(&arena), most);
            }
        }
    }
}

/* Few and many experts, on GPUs of few and many SMs, over the number of choices where the way changes. */
static void test_sm90_plan(void **state) {
    (void)state;
    static const int processors[] = {132, 114, 78, 16};
    static const int32_t n_experts[] = {1, 128, 1024, 1025, 20000, 65536};
    for (int p = 0; p < 4; p++)
        for (int e = 0; e < 6; e++) {
            walk w = {0};
            for (int64_t n = 0; n < (int64_t)1 << 28; n = n < 4096 ? n + 1 : n + n / 511) {
                mb_moe_plan_args args = {
                    .n_tokens = n, .top_k = 8, .n_experts = n_experts[e], .n_local_experts = n_experts[e]};
                check_step(&w, "moe_plan", n, mb_plan_bytes(&args, processors[p]),
                           mb_plan_most_bytes(&args, processors[p]));
            }
            for (int64_t n = MANY_CHOICES - 5; n < MANY_CHOICES + 5; n++) {
                mb_moe_plan_args args = {
                    .n_tokens = n, .top_k = 1, .n_experts = n_experts[e], .n_local_experts = n_experts[e]};
                mb_moe_plan_args before = args;
                before.n_tokens--;
                assert_true(mb_plan_most_bytes(&args, processors[p]) >=
                            mb_plan_bytes(&before, processors[p]));
            }
        }
}

/* The references: a call needs what its own _workspace says. */
static void test_references(void **state) {
    (void)state;
    const mb_ops *ops = &mb_cpu_ops;
    for (int i = 0; i < N_SETTINGS; i++) {
        const setting *s = &settings[i];
        walk walks[6] = {{0}};
        for (int64_t n = 0; n < 5000; n++) {
            size_t bytes[6];
            mb_moe_forward_args forward = forward_of(s, n);
            mb_moe_experts_args experts = experts_of(s, n, n);
            mb_grouped_gemm_args gemm = gemm_of(s, n);
            mb_moe_plan_args plan = {
                .n_tokens = n, .top_k = s->top_k, .n_experts = s->n_experts, .n_local_experts = s->n_experts};
            mb_moe_router_gemm_args router = {
                .n_tokens = n, .hidden = s->hidden, .n_experts = 128, .dtype = MB_BF16};
            mb_gemm_args dense = {.weight = {.count = 1, .rows = 8, .cols = s->hidden + 3}, .n_tokens = n};
            assert_int_equal(ops->moe_forward_workspace(&forward, &bytes[0]), MB_OK);
            assert_int_equal(ops->moe_experts_workspace(&experts, &bytes[1]), MB_OK);
            assert_int_equal(ops->grouped_gemm_workspace(&gemm, &bytes[2]), MB_OK);
            assert_int_equal(ops->moe_plan_workspace(&plan, &bytes[3]), MB_OK);
            assert_int_equal(ops->moe_router_gemm_workspace(&router, &bytes[4]), MB_OK);
            assert_int_equal(ops->gemm_workspace(&dense, &bytes[5]), MB_OK);
            for (int o = 0; o < 6; o++)
                check_step(&walks[o], "a reference", n, bytes[o], bytes[o]);
        }
    }
}

/* Counts that nothing can hold are refused with a sentence; nothing overflows on the way. */
static void test_sizes_that_nothing_holds(void **state) {
    (void)state;
    size_t bytes = 7;
    mb_moe_forward_args forward = forward_of(&settings[1], INT32_MAX);
    assert_int_equal(mb_moe_forward_sm90_most_bytes(&forward, H100_PROCESSORS, &bytes), MB_ERR_ARGUMENT);
    forward.n_tokens = INT64_MAX;
    assert_int_equal(mb_moe_forward_sm90_most_bytes(&forward, H100_PROCESSORS, &bytes), MB_ERR_ARGUMENT);
    forward = forward_of(&settings[1], INT32_MAX / 8);
    assert_int_equal(mb_moe_forward_sm90_most_bytes(&forward, H100_PROCESSORS, &bytes), MB_ERR_UNSUPPORTED);
    assert_non_null(strstr(mb_last_error(), "at most 2^32 bytes"));

    setting huge = settings[4]; /* exact fp32 takes x of any size */
    huge.hidden = huge.intermediate = 1 << 30;
    forward = forward_of(&huge, INT32_MAX / 3);
    assert_int_equal(mb_moe_forward_sm90_most_bytes(&forward, H100_PROCESSORS, &bytes), MB_ERR_ARGUMENT);
    assert_non_null(strstr(mb_last_error(), "too large; ask for fewer"));
    assert_int_equal(mb_cpu_ops.moe_forward_workspace(&forward, &bytes), MB_ERR_ARGUMENT);
    assert_non_null(strstr(mb_last_error(), "moe_forward: "));

    setting wide = settings[0]; /* more counters than int32 counts */
    wide.intermediate = 1 << 24;
    mb_moe_experts_args experts = experts_of(&wide, 16, INT32_MAX);
    assert_int_equal(mb_moe_experts_sm90_most_bytes(&experts, &bytes), MB_ERR_ARGUMENT);
    assert_int_equal(bytes, 7);
}

/* The router's training operators. */
static void test_sm90_router(void **state) {
    (void)state;
    enum { MOST = 9000, STEP = 7 };
    mb_moe_router_losses_args losses = {.n_tokens = MOST, .n_experts = 48, .top_k = 4};
    mb_moe_token_rounding_args rounding = {
        .n_tokens = MOST, .n_experts = 48, .top_k = 4, .max_choices = 6, .tile_rows = 128};
    size_t most_losses, most_rounding, bytes;
    assert_int_equal(mb_moe_router_losses_sm90_workspace(&losses, &most_losses), MB_OK);
    assert_int_equal(mb_moe_token_rounding_sm90_workspace(&rounding, &most_rounding), MB_OK);
    for (int64_t n = 0; n <= MOST; n += STEP) {
        losses.n_tokens = rounding.n_tokens = n;
        assert_int_equal(mb_moe_router_losses_sm90_workspace(&losses, &bytes), MB_OK);
        assert_in_range(bytes, 0, most_losses);
        assert_true(n > 0 || bytes == 0);
        assert_int_equal(mb_moe_token_rounding_sm90_workspace(&rounding, &bytes), MB_OK);
        assert_in_range(bytes, 0, most_rounding);
        assert_true(n > 0 || bytes == 0);
    }
    losses.n_experts = 50000;
    assert_int_equal(mb_moe_router_losses_sm90_workspace(&losses, &bytes), MB_ERR_ARGUMENT);
    rounding.max_choices = 3;
    assert_int_equal(mb_moe_token_rounding_sm90_workspace(&rounding, &bytes), MB_ERR_ARGUMENT);
}

/* A forward that cannot keep p is refused, not computed without. */
static void test_what_is_kept_for_the_backward(void **state) {
    (void)state;
    static _Alignas(16) char memory[48];
    mb_moe_forward_args args = forward_of(&settings[1], 4);
    args.x = args.w13.data = args.w2.data = memory;
    args.weights = (float *)memory, args.ids = (int32_t *)memory, args.out = memory + 16;
    assert_int_equal(mb_moe_forward_sm90_check(&args), MB_OK);
    args.p = memory + 32;
    assert_int_equal(mb_moe_forward_sm90_check(&args), MB_OK);
    args.p = memory + 34;
    assert_int_equal(mb_moe_forward_sm90_check(&args), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(), "moe_forward: p must be 16-byte aligned");
    args = forward_of(&settings[4], 4);
    args.x = args.w13.data = args.w2.data = memory;
    args.weights = (float *)memory, args.ids = (int32_t *)memory, args.out = memory + 16;
    args.p = memory + 32;
    assert_int_equal(mb_moe_forward_sm90_check(&args), MB_ERR_UNSUPPORTED);
    assert_string_equal(mb_last_error(), "moe_forward: p is not NULL and the weights are fp32; on sm90 p is "
                                         "kept with bf16 and fp16 weights only");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sm90_forward),
        cmocka_unit_test(test_sm90_forward_at_the_last_tile),
        cmocka_unit_test(test_sm90_experts_and_gemm),
        cmocka_unit_test(test_sm90_dense_gemm),
        cmocka_unit_test(test_sm90_plan),
        cmocka_unit_test(test_references),
        cmocka_unit_test(test_sizes_that_nothing_holds),
        cmocka_unit_test(test_sm90_router),
        cmocka_unit_test(test_what_is_kept_for_the_backward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
