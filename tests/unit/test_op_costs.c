/* What operators must move and compute, against figures computed by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "ops/op_table.h"

static const float anything; /* for pointers that are there */

static void is_near(double value, double expected) {
    if (fabs(value - expected) > 1e-9 * fabs(expected))
        fail_msg("%.17g instead of %.17g", value, expected);
}

static void check(mb_op_cost cost, double bytes, double flops, double tflops) {
    is_near(cost.bytes, bytes);
    is_near(cost.flops, flops);
    is_near(cost.tflops, tflops);
}

static mb_weight matrix(int64_t count, int64_t rows, int64_t cols, mb_dtype dtype) {
    return (mb_weight){.data = &anything, .count = count, .rows = rows, .cols = cols, .dtype = dtype};
}

/* 3 rows of 10 fp16 numbers read, of 10 fp32 written, and an id for each; a drawn token has an index more. */
static void embedding(void **state) {
    (void)state;
    mb_embed_args args = {.table = matrix(1, 100, 10, MB_F16), .n_tokens = 3, .dtype = MB_F32};
    check(mb_embed_cost(&args), 3 * (20 + 40 + 4), 0, 45);
    const int32_t draws[3] = {0};
    args.draw_of = draws;
    check(mb_embed_cost(&args), 3 * (20 + 40 + 8), 0, 45);
}

static void norm(void **state) {
    (void)state;
    const int32_t rows[2] = {0};
    mb_rms_norm_args args = {
        .weight = matrix(1, 1, 8, MB_F32), .n_rows = 2, .hidden = 8, .dtype = MB_BF16, .rows = rows};
    check(mb_rms_norm_cost(&args), 2 * 2 * 16 + 32 + 8, 4 * 16, 45);
    int8_t out8[16];
    args.out8 = out8; /* in place of out: 8 bytes and a scale a row */
    check(mb_rms_norm_cost(&args), 2 * (16 + 8 + 4) + 32 + 8, 4 * 16, 45);
    args.out = out8;
    check(mb_rms_norm_cost(&args), 2 * (16 + 16 + 8 + 4) + 32 + 8, 4 * 16, 45);
    args.rows = NULL, args.residual = args.sum = out8; /* read; written */
    check(mb_rms_norm_cost(&args), 2 * (16 + 16 + 8 + 4 + 16 + 16) + 32, 5 * 16, 45);
    args.n_rows = 0;
    check(mb_rms_norm_cost(&args), 0, 0, 45);
}

static void dense_gemm(void **state) {
    (void)state;
    mb_gemm_args args = {.weight = matrix(1, 6, 4, MB_BF16),
                         .n_tokens = 3,
                         .dtype = MB_BF16,
                         .out_dtype = MB_F32,
                         .bias_dtype = MB_BF16};
    check(mb_gemm_cost(&args), 3 * 4 * 2 + 6 * 4 * 2 + 3 * 6 * 4, 2 * 3 * 6 * 4, 700);
    args.bias = &anything;
    args.residual = &anything;
    check(mb_gemm_cost(&args), 24 + 48 + 2 * 72 + 6 * 2, 144 + 2 * 18, 700);
    args.norm_weight = matrix(1, 1, 4, MB_BF16);
    check(mb_gemm_cost(&args), 24 + 48 + 2 * 72 + 6 * 2 + 8, 144 + 2 * 18 + 4 * 12, 700);
    static const int32_t rows[3];
    args.norm_rows = rows;
    check(mb_gemm_cost(&args), 24 + 48 + 2 * 72 + 6 * 2 + 8 + 12, 144 + 2 * 18 + 4 * 12, 700);
    args.n_tokens = 0;
    check(mb_gemm_cost(&args), 0, 0, 700);
}

/* Scales of 2 x 3 blocks; one for all; none where rows and columns have none of their own. */
static void fp8_gemm(void **state) {
    (void)state;
    mb_gemm_args args = {
        .weight = matrix(1, 256, 300, MB_F8_E4M3), .n_tokens = 1, .dtype = MB_BF16, .out_dtype = MB_BF16};
    args.weight.scale = &anything;
    args.weight.scale_rows = args.weight.scale_cols = 128;
    check(mb_gemm_cost(&args), 600 + 256 * 300 + 6 * 4 + 512, 2 * 256 * 300, 1400);
    args.x8 = &anything; /* 300 bytes and three scales in place of 600 */
    check(mb_gemm_cost(&args), 300 + 3 * 4 + 256 * 300 + 6 * 4 + 512, 2 * 256 * 300, 1400);
    args.x8 = NULL;
    args.weight.scale_rows = args.weight.scale_cols = 0;
    check(mb_gemm_cost(&args), 600 + 256 * 300 + 4 + 512, 2 * 256 * 300, 1400);
}

static void types_of_products(void **state) {
    (void)state;
    is_near(mb_product_tflops(MB_F32, MB_F32, MB_F32_EXACT), 45);
    is_near(mb_product_tflops(MB_F32, MB_F32, MB_F32_TF32), 350);
    is_near(mb_product_tflops(MB_F32, MB_BF16, MB_F32_EXACT), 45);
    is_near(mb_product_tflops(MB_F16, MB_F16, MB_F32_EXACT), 700);
    is_near(mb_product_tflops(MB_F16, MB_F8_E4M3, MB_F32_EXACT), 1400);
}

/* 4 query heads and 2 kv heads of 8: q and both of k, v in, q out, k and v into an fp8 cache. */
static void rope(void **state) {
    (void)state;
    mb_qk_norm_rope_store_args args = {.n_tokens = 5,
                                       .n_heads = 4,
                                       .n_kv_heads = 2,
                                       .head_dim = 8,
                                       .dtype = MB_BF16,
                                       .cache_dtype = MB_F8_E4M3};
    double bytes = 5 * ((32 + 32) * 2 + 32 * 2 + 32 + 8) + 16;
    check(mb_qk_norm_rope_store_cost(&args), bytes, 5 * 3 * 48, 45);
    args.q_norm = args.k_norm = matrix(1, 1, 8, MB_BF16);
    check(mb_qk_norm_rope_store_cost(&args), bytes + 2 * 16, 5 * 3 * 48 + 5 * 4 * 48, 45);
    args.rotary_dim = 2; /* of 8: a frequency in place of four */
    check(mb_qk_norm_rope_store_cost(&args), bytes + 2 * 16 - 12, 5 * 3 * 12 + 5 * 4 * 48, 45);
}

/* A token that sees 10 positions, and a chunk of 3 behind 4 others: it sees 5, 6 and 7. */
static void attention(void **state) {
    (void)state;
    const int32_t q_start[] = {0, 1, 4}, kv_len[] = {10, 7};
    mb_attention_args args = {.q_start = q_start,
                              .kv_len = kv_len,
                              .n_tokens = 4,
                              .n_sequences = 2,
                              .n_heads = 4,
                              .n_kv_heads = 2,
                              .head_dim = 8,
                              .dtype = MB_BF16,
                              .cache_dtype = MB_F8_E4M3};
    check(mb_attention_cost(&args), 2 * 17 * 16 + 2 * 4 * 32 * 2, 4 * 8 * 4 * (10 + 18), 700);
    args.n_tokens = 0;
    check(mb_attention_cost(&args), 0, 0, 700);
}

/* The same sequences. q goes nowhere, and k and v of the new tokens are not read from the cache. */
static void decode_attention(void **state) {
    (void)state;
    const int32_t q_start[] = {0, 1, 4}, kv_len[] = {10, 7};
    mb_decode_attention_args args = {.q_start = q_start,
                                     .kv_len = kv_len,
                                     .n_tokens = 4,
                                     .n_sequences = 2,
                                     .n_heads = 4,
                                     .n_kv_heads = 2,
                                     .head_dim = 8,
                                     .dtype = MB_BF16,
                                     .cache_dtype = MB_F8_E4M3};
    double qkv = 4 * (32 + 32) * 2, stored = 4 * 32, read = 2 * (17 - 4) * 16, out = 4 * 32 * 2;
    check(mb_decode_attention_cost(&args), qkv + stored + 4 * 8 + 16 + read + out,
          4 * 3 * 48 + 4 * 8 * 4 * (10 + 18), 700);
    args.n_tokens = 0;
    check(mb_decode_attention_cost(&args), 0, 0, 700);
}

static void sampling(void **state) {
    (void)state;
    int32_t seen[1] = {0};
    const uint32_t allowed[1] = {0};
    const mb_sample_row rows[] = {{.temperature = 1}, {.seen = seen, .allowed = allowed, .n_bias = 3}};
    const mb_sample_args args = {.rows = rows, .n_rows = 2, .vocab = 70};
    double plain = 70 * 4 + (double)sizeof *rows + 8;
    check(mb_sample_cost(&args), 2 * plain + 70 * 4 + 3 * 4 + 3 * 8, 2 * 3 * 70, 45);
    const mb_log_softmax_args log_softmax = {.n_rows = 2, .vocab = 70};
    check(mb_log_softmax_cost(&log_softmax), 2 * 2 * 70 * 4, 4 * 2 * 70, 45);
}

static void activation(void **state) {
    (void)state;
    mb_gated_activation_args args = {
        .n_rows = 3, .intermediate = 10, .activation = MB_ACT_SWIGLU, .dtype = MB_BF16};
    check(mb_gated_activation_cost(&args), 3 * 30 * 2, 4 * 30, 45);
    args.activation = MB_ACT_RELU;
    check(mb_gated_activation_cost(&args), 3 * 20 * 2, 4 * 30, 45);
}

static void router(void **state) {
    (void)state;
    mb_moe_router_gemm_args args = {
        .n_tokens = 2, .hidden = 10, .n_experts = 4, .dtype = MB_BF16, .weight_dtype = MB_F32};
    check(mb_moe_router_gemm_cost(&args), 40 + 160 + 32, 2 * 2 * 10 * 4, 700);
    args.bias = &anything;
    check(mb_moe_router_gemm_cost(&args), 40 + 160 + 32 + 16, 2 * 2 * 10 * 4, 700);
}

/* Three tokens with two experts each. Of eight experts 0, 2 and 5 are hit. */
static void experts(void **state) {
    (void)state;
    const int32_t ids[] = {2, 5, 5, 0, 2, 5};
    mb_moe_forward_args args = {.ids = ids,
                                .w13 = matrix(8, 12, 10, MB_BF16),
                                .w2 = matrix(8, 10, 6, MB_BF16),
                                .n_tokens = 3,
                                .hidden = 10,
                                .intermediate = 6,
                                .top_k = 2,
                                .n_experts = 8,
                                .n_local_experts = 8,
                                .dtype = MB_BF16};
    double choices = 3 * 2 * 8, tokens = 3 * 10 * 2;
    check(mb_moe_forward_cost(&args), 3 * (240 + 120) + 2 * tokens + choices, 6 * 6 * 10 * 6, 700);

    const mb_moe_route_args route = {.logits_dtype = MB_F32};
    args.route = &route;
    args.residual = args.shared = &anything;
    args.bias13 = args.bias2 = &anything;
    check(mb_moe_forward_cost(&args), 3 * (240 + 120 + 24 + 20) + 4 * tokens + choices + 3 * 8 * 4,
          6 * 6 * 10 * 6, 700);

    /* A rank that holds the experts 2, 3 and 4: expert 2 alone is hit, by two choices. */
    args = (mb_moe_forward_args){.ids = ids,
                                 .w13 = matrix(3, 12, 10, MB_F32),
                                 .w2 = matrix(3, 10, 6, MB_F32),
                                 .n_tokens = 3,
                                 .hidden = 10,
                                 .intermediate = 6,
                                 .top_k = 2,
                                 .n_experts = 8,
                                 .first_expert = 2,
                                 .n_local_experts = 3,
                                 .dtype = MB_F32,
                                 .f32_math = MB_F32_EXACT};
    check(mb_moe_forward_cost(&args), 480 + 240 + 2 * 3 * 10 * 4 + choices, 2 * 6 * 10 * 6, 45);
    args.n_tokens = 0;
    check(mb_moe_forward_cost(&args), 0, 0, 45);
}

/* 3 MB at 3 TB/s are one microsecond; 1.4 GFLOP on half an H100 at 700 TFLOP/s are four. */
static void floors(void **state) {
    (void)state;
    const mb_op_cost cost = {.bytes = 3e6, .flops = 1.4e9, .tflops = 700};
    is_near(mb_cost_memory_us(&cost, 3e12), 1);
    is_near(mb_cost_compute_us(&cost, 66), 4);
    is_near(mb_cost_memory_us(&cost, 0), 0);
    is_near(mb_cost_compute_us(&cost, 0), 0);
    const mb_op_cost nothing = {0};
    is_near(mb_cost_compute_us(&nothing, 132), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embedding),  cmocka_unit_test(norm),
        cmocka_unit_test(dense_gemm), cmocka_unit_test(fp8_gemm),
        cmocka_unit_test(rope),       cmocka_unit_test(types_of_products),
        cmocka_unit_test(attention),  cmocka_unit_test(decode_attention),
        cmocka_unit_test(router),     cmocka_unit_test(sampling),
        cmocka_unit_test(activation), cmocka_unit_test(experts),
        cmocka_unit_test(floors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
