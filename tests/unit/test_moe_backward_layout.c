/*
 * mb_moe_backward on sm_90 without a GPU: what it refuses, and how it divides its workspace
 * (ops/moe/backward/backward_layout.c).
 */
#include "ops/moe/backward/backward_sm90.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { SHARED_BYTES = 5000, E = 8 };

static _Alignas(256) char memory[4096];

static mb_weight weight(int64_t rows, int64_t cols) {
    return (mb_weight){.data = memory, .count = E, .rows = rows, .cols = cols, .dtype = MB_BF16};
}

static mb_moe_backward_args arguments(int64_t n_tokens, int32_t hidden, int32_t intermediate,
                                      mb_activation activation) {
    int32_t width13 = intermediate * (1 + mb_activation_is_gated(activation));
    return (mb_moe_backward_args){.x = memory,
                                  .weights = (float *)memory,
                                  .ids = (int32_t *)memory,
                                  .w13 = weight(width13, hidden),
                                  .w2 = weight(hidden, intermediate),
                                  .d_out = memory,
                                  .dx = memory + 16,
                                  .n_tokens = n_tokens,
                                  .hidden = hidden,
                                  .intermediate = intermediate,
                                  .top_k = 2,
                                  .n_experts = E,
                                  .n_local_experts = E,
                                  .dtype = MB_BF16,
                                  .grad_dtype = MB_F32,
                                  .activation = activation};
}

/* ---- Layout -------------------------------------------------------------------------------------------- */

static size_t measured(const mb_moe_backward_args *args) {
    mb_arena arena;
    mb_arena_measure(&arena);
    mb_moe_backward_sm90_layout(args, SHARED_BYTES, &arena);
    assert_false(arena.overflowed);
    return arena.used;
}

typedef struct piece {
    const void *begin;
    size_t n_bytes;
} piece;

/* All pieces are within the arena, on their alignment and apart, but for dx_rows, which may lie on p and hs. */
static void check_pieces(int32_t hidden, int32_t intermediate, mb_activation activation) {
    static _Alignas(256) char block[1 << 20];
    const mb_moe_backward_args args = arguments(30, hidden, intermediate, activation);
    const size_t bytes = measured(&args), n_rows = 60;
    assert_true(bytes <= sizeof block);
    mb_arena arena;
    mb_arena_init(&arena, block, bytes, 0);
    const mb_moe_backward_layout l = mb_moe_backward_sm90_layout(&args, SHARED_BYTES, &arena);
    assert_false(arena.overflowed);
    assert_int_equal(l.n_rows, n_rows);
    assert_ptr_equal(l.gemm.out, l.p);
    const size_t row13 = (size_t)l.width13 * 2, row2 = (size_t)intermediate * 2;
    const piece pieces[] = {
        {l.plan.offsets, (E + 1) * sizeof(int32_t)},
        {l.plan.row_token, n_rows * sizeof(int32_t)},
        {l.plan.token_row, n_rows * sizeof(int32_t)},
        {l.row_weight, n_rows * sizeof(float)},
        {l.ones, n_rows * sizeof(float)},
        {l.dot, n_rows * (size_t)l.n_parts * sizeof(float)},
        {l.dp, n_rows * row13},
        {l.shared, SHARED_BYTES},
        {l.p, n_rows * row13},
        {l.hs, n_rows * row2},
        {l.dx_rows, n_rows * (size_t)hidden * 2},
    };
    enum { N = sizeof pieces / sizeof pieces[0], DX_ROWS = N - 1, P = N - 3 };
    for (int i = 0; i < N; i++) {
        const char *begin = pieces[i].begin;
        assert_true(begin >= block && begin + pieces[i].n_bytes <= block + bytes);
        assert_int_equal((uintptr_t)begin % 16, 0);
        for (int j = 0; j < i; j++) {
            const char *other = pieces[j].begin;
            if (i == DX_ROWS && j >= P)
                continue;
            assert_true(begin + pieces[i].n_bytes <= other || other + pieces[j].n_bytes <= begin);
        }
    }
}

static void pieces_are_apart(void **state) {
    (void)state;
    check_pieces(512, 64, MB_ACT_SWIGLU); /* dx_rows is the larger */
    check_pieces(24, 248, MB_ACT_SWIGLU); /* p and hs are */
    check_pieces(16, 16, MB_ACT_RELU2);
    check_pieces(104, 72, MB_ACT_GELU);
}

static void a_saved_p_changes_no_size(void **state) {
    (void)state;
    mb_moe_backward_args args = arguments(1000, 2048, 768, MB_ACT_SWIGLU);
    const size_t without = measured(&args);
    args.p = memory;
    assert_int_equal(measured(&args), without);
    mb_arena arena;
    mb_arena_measure(&arena);
    assert_ptr_equal(mb_moe_backward_sm90_layout(&args, 0, &arena).p, memory);
}

/* The workspace of 32768 tokens of a layer with 8 experts of 1024 each: dp, dx_rows, and little else. */
static void rows_are_kept_twice_at_most(void **state) {
    (void)state;
    mb_moe_backward_args args = arguments(32768, 4096, 1024, MB_ACT_SWIGLU);
    args.top_k = 8;
    const size_t n_rows = 32768 * 8, needed = n_rows * (2 * 1024 + 4096) * 2;
    assert_true(measured(&args) < needed + needed / 100);
}

static void fewer_tokens_need_no_more(void **state) {
    (void)state;
    size_t before = 0;
    for (int64_t n = 1; n < 3000; n += 1 + n / 8) {
        mb_moe_backward_args args = arguments(n, 264, 136, MB_ACT_SWIGLU);
        const size_t bytes = measured(&args);
        assert_true(bytes >= before);
        before = bytes;
    }
}

/* Sizes whose product is beyond 64 bits are told, not computed. */
static void sizes_that_nothing_holds(void **state) {
    (void)state;
    mb_moe_backward_args args = arguments(INT32_MAX / 2, 16, INT32_MAX / 8 * 8, MB_ACT_RELU);
    mb_arena arena;
    mb_arena_measure(&arena);
    mb_moe_backward_sm90_layout(&args, SIZE_MAX / 2, &arena);
    assert_true(arena.overflowed);
}

/* ---- Refusals ------------------------------------------------------------------------------------------ */

static void refused(const mb_moe_backward_args *args, mb_status status, const char *sentence) {
    assert_int_equal(mb_moe_backward_sm90_check(args), status);
    assert_string_equal(mb_last_error(), sentence);
}

#define REFUSED(change, status, sentence)                                \
    do {                                                                 \
        mb_moe_backward_args args = arguments(4, 64, 32, MB_ACT_SWIGLU); \
        change;                                                          \
        refused(&args, status, "moe_backward: " sentence);               \
    } while (0)

static void refusals(void **state) {
    (void)state;
    mb_moe_backward_args right = arguments(4, 64, 32, MB_ACT_SWIGLU);
    assert_int_equal(mb_moe_backward_sm90_check(&right), MB_OK);
    REFUSED(args.dtype = args.w13.dtype = args.w2.dtype = MB_F32, MB_ERR_UNSUPPORTED,
            "dtype is fp32; on sm90 it must be bf16 or fp16; pass host memory, or tokens and weights of 16 "
            "bits");
    REFUSED(args.hidden = 60;
            args.w13.cols = args.w2.rows = 60, MB_ERR_ARGUMENT,
            "hidden is 60, intermediate 32; on sm90 they must be multiples of 8, and 16 at least");
    REFUSED(args.intermediate = 8; args.w13.rows = 16;
            args.w2.cols = 8, MB_ERR_ARGUMENT,
            "hidden is 64, intermediate 8; on sm90 they must be multiples of 8, and 16 at least");
    REFUSED(args.n_tokens = (1 << 25) + 1, MB_ERR_UNSUPPORTED,
            "x is [33554433, 64] in bf16; at most 2^32 bytes can be done in one call");
    REFUSED(args.hidden = args.w13.cols = args.w2.rows = 1 << 30, MB_ERR_UNSUPPORTED,
            "hidden is 1073741824, rows of w13 64; on sm90 both must be below 2^30");
    REFUSED(args.intermediate = 1 << 29; args.w2.cols = 1 << 29;
            args.w13.rows = 1 << 30, MB_ERR_UNSUPPORTED,
            "hidden is 64, rows of w13 1073741824; on sm90 both must be below 2^30");
    REFUSED(args.x = memory + 2, MB_ERR_ARGUMENT, "x is not 16-byte aligned, which sm90 needs");
    REFUSED(args.p = memory + 8, MB_ERR_ARGUMENT, "p is not 16-byte aligned, which sm90 needs");
    REFUSED(args.dw2 = memory + 4, MB_ERR_ARGUMENT, "dw2 is not 16-byte aligned, which sm90 needs");
    /* What every device refuses comes with the same sentence. */
    REFUSED(args.d_out = NULL, MB_ERR_ARGUMENT, "d_out is NULL");
    REFUSED(args.accumulate = 2, MB_ERR_ARGUMENT, "accumulate is 2, not 0 or 1");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_are_apart),
        cmocka_unit_test(a_saved_p_changes_no_size),
        cmocka_unit_test(rows_are_kept_twice_at_most),
        cmocka_unit_test(fewer_tokens_need_no_more),
        cmocka_unit_test(sizes_that_nothing_holds),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
