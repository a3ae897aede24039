/* What lies at the edges of the operators' contracts: NaN and infinities, ties, refused arguments (those of
 * the MoE operators are in test_operators_api.c). */
#include "base/alloc.h"
#include "device/device.h"
#include "ops/common/check.h"
#include "ops/moe/block_arguments.h"
#include "ops/sample/philox.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* Known answers published with Random123 (kat_vectors, philox4x32 with 10 rounds). */
static void test_philox(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        mb_philox_block counter;
        memcpy(counter.words, known[i].counter, sizeof counter.words);
        mb_philox_block block = mb_philox(counter, known[i].key[0], known[i].key[1]);
        assert_memory_equal(block.words, known[i].expected, sizeof block.words);
    }
    double sum = 0;
    for (uint64_t position = 0; position < 100000; position++) {
        double u = mb_philox_uniform(42, position);
        assert_true(u >= 0 && u < 1);
        sum += u;
    }
    assert_true(fabs(sum / 100000 - 0.5) < 0.004); /* four standard deviations */
}

static void test_route_not_finite(void **state) {
    (void)state;
    enum { E = 4, K = 3, N = 5 };
    const float logits[N][E] = {{1, NAN, 3, 2},
                                {NAN, NAN, NAN, NAN},
                                {-INFINITY, -INFINITY, -INFINITY, -INFINITY},
                                {0, INFINITY, 0, 0},
                                {5, 5, 5, 5}};
    static const int32_t expected[N][K] = {{2, 3, 0}, {0, 1, 2}, {0, 1, 2}, {1, 0, 2}, {0, 1, 2}};
    for (int variant = 0; variant < 4; variant++) {
        float weights[N][K];
        int32_t ids[N][K], nan_flag = 0;
        mb_moe_route_args args = {.logits = logits,
                                  .weights = &weights[0][0],
                                  .ids = &ids[0][0],
                                  .nan_flag = &nan_flag,
                                  .n_tokens = N,
                                  .n_experts = E,
                                  .top_k = K,
                                  .order = variant & 1 ? MB_ROUTE_TOPK_SOFTMAX : MB_ROUTE_SOFTMAX_TOPK,
                                  .renormalize = variant >> 1};
        assert_int_equal(mb_moe_route_ref(&args, NULL), MB_OK);
        assert_memory_equal(ids, expected, sizeof ids);
        assert_int_equal(nan_flag, 1);
        for (int i = 0; i < N * K; i++)
            assert_true(isfinite(weights[i / K][i % K]));
        assert_true(weights[3][0] == 1 && weights[3][1] == 0);
        nan_flag = 0;
        args.logits = logits[2]; /* without NaN the flag is left alone */
        args.n_tokens = 3;
        assert_int_equal(mb_moe_route_ref(&args, NULL), MB_OK);
        assert_int_equal(nan_flag, 0);
        args.logits = logits;
        args.nan_flag = NULL;
        assert_int_equal(mb_moe_route_ref(&args, NULL), MB_OK);
    }
}

static int32_t sample_one(const float *logits, int32_t vocab, const mb_sample_row *row, float *logprob) {
    _Alignas(64) char workspace[4096];
    int32_t id = -7;
    mb_sample_args args = {logits, row, &id, logprob, 1, vocab};
    size_t needed;
    assert_int_equal(mb_sample_ref_workspace(&args, &needed), MB_OK);
    assert_true(needed <= sizeof workspace);
    assert_int_equal(mb_sample_ref(&args, workspace, sizeof workspace, NULL), MB_OK);
    return id;
}

static void test_sample_edges(void **state) {
    (void)state;
    float logprob;
    mb_sample_row greedy = {.repetition_penalty = 1, .top_p = 1};
    mb_sample_row warm = {.temperature = 1, .repetition_penalty = 1, .top_p = 1};
    const float nan[] = {1, NAN, 3}, infinite[] = {1, INFINITY, 3}, nothing[] = {-INFINITY, -INFINITY};
    const float ties[] = {1, 4, 4, 4}, one_left[] = {-INFINITY, 2, -INFINITY};
    for (int i = 0; i < 2; i++) {
        const mb_sample_row *row = i ? &warm : &greedy;
        assert_int_equal(sample_one(nan, 3, row, &logprob), -1);
        assert_int_equal(sample_one(infinite, 3, row, &logprob), -1);
        assert_int_equal(sample_one(nothing, 2, row, &logprob), -1);
        assert_true(logprob == -INFINITY);
        assert_int_equal(sample_one(one_left, 3, row, &logprob), 1);
        assert_true(logprob == 0);
    }
    assert_int_equal(sample_one(ties, 4, &greedy, &logprob), 1);
    mb_sample_row first_of_ties[] = {warm, warm, warm}; /* each filter alone leaves the first of equal ones */
    first_of_ties[0].top_k = 1;
    first_of_ties[1].top_p = 0.2f;
    first_of_ties[2].top_p = 0;
    for (int i = 0; i < 3; i++)
        for (uint64_t seed = 0; seed < 50; seed++) {
            first_of_ties[i].seed = seed;
            assert_int_equal(sample_one(ties, 4, &first_of_ties[i], &logprob), 1);
        }
    warm.min_p = 5; /* more than any can have: the best ones stay */
    for (warm.seed = 0; warm.seed < 50; warm.seed++)
        assert_true(sample_one(ties, 4, &warm, &logprob) > 0);
    /* Ids outside of the vocabulary are passed over; a bias of -infinity forbids a token. */
    const int32_t bias_ids[] = {-1, 4, 1};
    const float biases[] = {50, 50, -INFINITY};
    greedy.bias_ids = bias_ids;
    greedy.biases = biases;
    greedy.n_bias = 3;
    assert_int_equal(sample_one(ties, 4, &greedy, &logprob), 2);
}

/* What is drawn is counted, and weighs from the next draw on; a row that cannot be drawn from counts nothing.
 */
static void test_sample_counts_what_it_draws(void **state) {
    (void)state;
    enum { V = 4 };
    const float logits[V] = {5, 4.5f, 4.25f, -1}, nan[V] = {NAN, 1, 2, 3};
    static const int32_t expected[] = {0, 1, 2, 0, 1, 2, 0, 1};
    const int32_t ids[] = {0, 3, 3};
    int32_t seen[V];
    float logprob;
    const mb_count_tokens_args count = {.ids = ids, .seen = seen, .n_ids = 3, .n_prompt = 2, .vocab = V};
    assert_int_equal(mb_count_tokens_ref(&count, NULL), MB_OK);
    const mb_sample_row row = {.repetition_penalty = 1, .frequency_penalty = 1, .top_p = 1, .seen = seen};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        assert_int_equal(sample_one(logits, V, &row, &logprob), expected[i]);
        assert_int_equal(sample_one(nan, V, &row, &logprob), -1);
    }
    assert_int_equal(seen[0], 1 + 2 * 3);
    assert_int_equal(seen[1], 2 * 3);
    assert_int_equal(seen[2], 2 * 2);
    assert_int_equal(seen[3], 1 + 2);
}

/* Drawn as often as the probabilities say: a chi-squared test. */
static void test_sample_distribution(void **state) {
    (void)state;
    enum { V = 6, N = 60000 };
    const float logits[V] = {0, 1, 2, 0.5f, -1, 1.5f};
    double probabilities[V], total = 0, chi_squared = 0, counts[V] = {0};
    float logprob;
    for (int i = 0; i < V; i++)
        total += probabilities[i] = exp((double)logits[i]);
    mb_sample_row row = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 5};
    for (row.position = 0; row.position < N; row.position++) {
        int32_t id = sample_one(logits, V, &row, &logprob);
        counts[id]++;
        assert_true(fabs((double)logprob - log(probabilities[id] / total)) < 1e-6);
    }
    for (int i = 0; i < V; i++)
        chi_squared += pow(counts[i] - N * probabilities[i] / total, 2) / (N * probabilities[i] / total);
    assert_true(chi_squared < 20.5); /* 5 degrees of freedom, one in a thousand */
}

#define ASSERT_REFUSED(call, word)                      \
    do {                                                \
        assert_int_equal(call, MB_ERR_ARGUMENT);        \
        assert_non_null(strstr(mb_last_error(), word)); \
    } while (0)

static void test_refused_gemm(void **state) {
    (void)state;
    float x[64] = {0}, w[64] = {0}, out[64], scale[1] = {1};
    _Alignas(64) char workspace[4096];
    const mb_gemm_args good = {
        .x = x, .weight = {.data = w, .count = 1, .rows = 4, .cols = 8}, .out = out, .n_tokens = 2};
    mb_gemm_args bad = good;
    assert_int_equal(mb_gemm_ref(&good, workspace, sizeof workspace, NULL), MB_OK);
    size_t needed;
    assert_int_equal(mb_gemm_ref_workspace(&good, &needed), MB_OK);
    assert_true(needed > 0); /* 8 columns are not a whole vector */
    assert_int_equal(mb_gemm_ref(&good, workspace, needed - 1, NULL), MB_ERR_CAPACITY);
    assert_non_null(strstr(mb_last_error(), "gemm: workspace has"));
    bad.n_tokens = -1;
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "n_tokens");
    bad = good, bad.weight.cols = 0;
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "weight");
    bad = good, bad.weight.count = 2;
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "weight has shape [2, 4, 8]");
    bad = good, bad.weight.dtype = (mb_dtype)17;
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "weight.dtype");
    bad = good, bad.weight.data = NULL;
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "weight.data");
    bad = good, bad.weight.scale = scale, bad.weight.scale_rows = 48;
    bad.weight.scale_cols = 128;
    assert_int_equal(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), MB_ERR_UNSUPPORTED);
    assert_non_null(strstr(mb_last_error(), "gemm: weight.scale_rows is 48"));
    bad.weight.scale_rows = -128;
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "scale_rows");
    bad = good, bad.dtype = MB_F8_E4M3;
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "dtype");
    bad = good, bad.out_dtype = (mb_dtype)-1;
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "out_dtype");
    bad = good, bad.x = NULL;
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "NULL");
    bad = good, bad.norm_weight = (mb_weight){.data = w, .count = 1, .rows = 1, .cols = 9};
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL),
                   "gemm: norm_weight has shape [1, 1, 9]");
    static const int32_t rows[2];
    bad = good, bad.norm_rows = rows;
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "norm_rows without norm_weight");
    bad = good, bad.x8 = x;
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "one of x8 and x8_scale is NULL");
    bad.x8_scale = scale, bad.norm_weight = (mb_weight){.data = w, .count = 1, .rows = 1, .cols = 8};
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "x8 with a norm in front");
    bad = good, bad.norm_weight = (mb_weight){.data = w, .count = 1, .rows = 1, .cols = 8};
    bad.norm_weight.scale = scale;
    ASSERT_REFUSED(mb_gemm_ref(&bad, workspace, sizeof workspace, NULL), "norm_weight");
}

/* What gemm adds up first is refused as the sum alone is. */
static void test_refused_sums(void **state) {
    (void)state;
    float x[16] = {0}, y[32] = {0}, w[32] = {0}, out[8], weights[4] = {0}, scale[1] = {1};
    int32_t token_row[4] = {0, 1, 2, 3};
    _Alignas(64) char workspace[4096];
    const mb_moe_reduce_args right = {
        .y = y, .weights = weights, .token_row = token_row, .out = x, .n_tokens = 2, .hidden = 8, .top_k = 2};
    mb_moe_reduce_args sum = right;
    mb_gemm_args args = {.x = x,
                         .weight = {.data = w, .count = 1, .rows = 4, .cols = 8},
                         .out = out,
                         .n_tokens = 2,
                         .x_sum = &sum};
    assert_int_equal(mb_gemm_ref(&args, workspace, sizeof workspace, NULL), MB_OK);
    static const char *const other = "x is not what x_sum writes";
    sum.out = y;
    ASSERT_REFUSED(mb_gemm_ref(&args, workspace, sizeof workspace, NULL), other);
    sum = right, sum.n_tokens = 1;
    ASSERT_REFUSED(mb_gemm_ref(&args, workspace, sizeof workspace, NULL), other);
    sum = right, sum.hidden = 4;
    ASSERT_REFUSED(mb_gemm_ref(&args, workspace, sizeof workspace, NULL), other);
    sum = right, sum.out_dtype = MB_BF16;
    ASSERT_REFUSED(mb_gemm_ref(&args, workspace, sizeof workspace, NULL), other);
    sum = right, sum.dtype = MB_F8_E4M3;
    ASSERT_REFUSED(mb_gemm_ref(&args, workspace, sizeof workspace, NULL), "gemm: x_sum: moe_reduce: dtype");
    sum = right, sum.top_k = 0;
    ASSERT_REFUSED(mb_gemm_ref(&args, workspace, sizeof workspace, NULL), "top_k is 0");
    sum = right, sum.weights = NULL;
    ASSERT_REFUSED(mb_gemm_ref(&args, workspace, sizeof workspace, NULL), "weights is NULL");
    sum = right, sum.token_row = NULL;
    ASSERT_REFUSED(mb_gemm_ref(&args, workspace, sizeof workspace, NULL), "token_row is NULL");
    sum = right, sum.weights = (const float *)(const void *)((const char *)weights + 2);
    ASSERT_REFUSED(mb_gemm_ref(&args, workspace, sizeof workspace, NULL), "weights is not aligned");
    sum = right, args.x8 = workspace, args.x8_scale = scale;
    ASSERT_REFUSED(mb_gemm_ref(&args, workspace, sizeof workspace, NULL), "x8 beside x_sum");
}

/* A block whose parts do not belong together. */
static void test_refused_blocks(void **state) {
    (void)state;
    static float x[16], normed[16], logits[8], weights[4], scales[2], others[16];
    static int32_t ids[4];
    mb_moe_route_args route = {
        .logits = logits, .weights = weights, .ids = ids, .n_tokens = 2, .n_experts = 4, .top_k = 2};
    const mb_rms_norm_args right_norm = {.x = x, .out = normed, .n_rows = 2, .hidden = 8};
    const mb_moe_router_gemm_args right_score = {
        .x = normed, .logits = logits, .n_tokens = 2, .hidden = 8, .n_experts = 4};
    const mb_moe_forward_args right = {
        .x = normed, .route = &route, .n_tokens = 2, .hidden = 8, .top_k = 2, .n_experts = 4};
    mb_rms_norm_args norm = right_norm;
    mb_moe_router_gemm_args score = right_score;
    mb_moe_forward_args args = right;
    assert_int_equal(mb_moe_block_check(&norm, &score, &args), MB_OK);
    norm.n_rows = 3;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "the norm has 3 rows, the router 2 tokens");
    norm = right_norm, score.n_tokens = 1;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "the router 1 tokens, the layer 2");
    score = right_score, args.n_tokens = 4;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "the layer 4");
    args = right, norm.hidden = 4;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "hidden is 4 in the norm");
    norm = right_norm, score.hidden = 4;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "4 in the router");
    score = right_score, norm.dtype = MB_BF16;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "dtype is bf16 in the norm");
    norm = right_norm, score.dtype = MB_F16;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "fp16 in the router");
    score = right_score, score.n_experts = 8;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "n_experts is 8 in the router, 4");
    score = right_score, args.route = NULL;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "route is NULL");
    args = right, route.logits_dtype = MB_BF16;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "logits_dtype is bf16");
    route.logits_dtype = MB_F32, route.logits = others;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "route's logits");
    route.logits = logits, score.x = others;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "the router's x");
    score = right_score, args.x = others;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "the layer's x is");
    args = right, args.x8 = x, args.x8_scale = scales;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "the layer's x8");
    norm.out8 = x, norm.out8_scale = scales;
    assert_int_equal(mb_moe_block_check(&norm, &score, &args), MB_OK);
    norm = right_norm, norm.residual = x, norm.sum = others, args = right;
    ASSERT_REFUSED(mb_moe_block_check(&norm, &score, &args), "the norm has a residual");
    norm = right_norm, score = right_score, args = right;
    norm.n_rows = score.n_tokens = args.n_tokens = 0;
    norm.out = NULL; /* nothing to do needs no pointers */
    assert_int_equal(mb_moe_block_check(&norm, &score, &args), MB_OK);
}

static void test_refused_others(void **state) {
    (void)state;
    float x[64] = {0}, out[64], inv_freq[4] = {0};
    int32_t ids[2] = {0, 4}, q_start[3] = {0, 1, 2}, kv_len[2] = {1, 1}, table[2] = {0, 0};
    mb_embed_args embed = {
        .ids = ids, .table = {.data = x, .count = 1, .rows = 4, .cols = 8}, .out = out, .n_tokens = 2};
    ASSERT_REFUSED(mb_embed_ref(&embed, NULL), "ids[1] is 4");
    ids[1] = -1;
    ASSERT_REFUSED(mb_embed_ref(&embed, NULL), "ids[1] is -1");
    const int32_t draw_of[2] = {-1, 0};
    embed.draw_of = draw_of;
    ASSERT_REFUSED(mb_embed_ref(&embed, NULL), "draws is NULL");

    mb_rms_norm_args norm = {.x = x,
                             .rows = ids,
                             .weight = {.data = x, .count = 1, .rows = 1, .cols = 8},
                             .out = x,
                             .n_rows = 1,
                             .hidden = 8};
    ASSERT_REFUSED(mb_rms_norm_ref(&norm, NULL), "out is x");
    norm.rows = NULL, norm.hidden = 9;
    ASSERT_REFUSED(mb_rms_norm_ref(&norm, NULL), "weight");
    norm.hidden = 8, norm.out8 = out;
    ASSERT_REFUSED(mb_rms_norm_ref(&norm, NULL), "one of out8 and out8_scale is NULL");
    norm.out8_scale = inv_freq;
    ASSERT_REFUSED(mb_rms_norm_ref(&norm, NULL), "out8 is given, but dtype is fp32");
    norm.out8 = NULL, norm.out8_scale = NULL, norm.residual = x;
    ASSERT_REFUSED(mb_rms_norm_ref(&norm, NULL), "one of residual and sum is NULL");
    norm.residual = NULL, norm.sum = out;
    ASSERT_REFUSED(mb_rms_norm_ref(&norm, NULL), "one of residual and sum is NULL");
    norm.residual = x, norm.sum = norm.out;
    ASSERT_REFUSED(mb_rms_norm_ref(&norm, NULL), "out is sum");
    norm.sum = out, norm.rows = ids, norm.out = out + 8;
    ASSERT_REFUSED(mb_rms_norm_ref(&norm, NULL), "residual beside rows");

    mb_qk_norm_rope_store_args rope = {.qkv = x,
                                       .positions = ids,
                                       .slots = ids,
                                       .inv_freq = inv_freq,
                                       .q = out,
                                       .k_cache = out,
                                       .v_cache = out,
                                       .n_tokens = 1,
                                       .n_heads = 1,
                                       .n_kv_heads = 1,
                                       .head_dim = 7};
    ASSERT_REFUSED(mb_qk_norm_rope_store_ref(&rope, NULL), "head_dim");
    rope.head_dim = 514;
    ASSERT_REFUSED(mb_qk_norm_rope_store_ref(&rope, NULL), "head_dim");
    rope.head_dim = 8, rope.rotary_dim = 10;
    ASSERT_REFUSED(mb_qk_norm_rope_store_ref(&rope, NULL), "rotary_dim is 10");
    rope.rotary_dim = 3;
    ASSERT_REFUSED(mb_qk_norm_rope_store_ref(&rope, NULL), "rotary_dim is 3");
    rope.rotary_dim = -2;
    ASSERT_REFUSED(mb_qk_norm_rope_store_ref(&rope, NULL), "rotary_dim is -2");
    rope.rotary_dim = 4, rope.cache_dtype = MB_F8_E8M0;
    ASSERT_REFUSED(mb_qk_norm_rope_store_ref(&rope, NULL), "cache_dtype");

    mb_attention_args attention = {.q = x,
                                   .k_cache = x,
                                   .v_cache = x,
                                   .q_start = q_start,
                                   .kv_len = kv_len,
                                   .block_table = table,
                                   .out = out,
                                   .n_tokens = 2,
                                   .n_sequences = 2,
                                   .max_blocks = 1,
                                   .max_q_len = 1,
                                   .max_kv_len = 64,
                                   .n_heads = 3,
                                   .n_kv_heads = 2,
                                   .head_dim = 8};
    ASSERT_REFUSED(mb_attention_ref(&attention, NULL, 0, NULL), "n_heads");
    attention.n_kv_heads = 3, kv_len[1] = 65;
    ASSERT_REFUSED(mb_attention_ref(&attention, NULL, 0, NULL), "kv_len[1] is 65");
    kv_len[1] = 0;
    ASSERT_REFUSED(mb_attention_ref(&attention, NULL, 0, NULL), "kv_len[1] is 0");
    kv_len[1] = 2, attention.max_kv_len = 1;
    ASSERT_REFUSED(mb_attention_ref(&attention, NULL, 0, NULL), "max_kv_len 1");
    attention.max_kv_len = 64, attention.max_q_len = 0;
    ASSERT_REFUSED(mb_attention_ref(&attention, NULL, 0, NULL), "max_q_len is 0");
    kv_len[1] = 1, attention.max_q_len = 1, q_start[2] = 3;
    ASSERT_REFUSED(mb_attention_ref(&attention, NULL, 0, NULL), "q_start");

    q_start[2] = 2, kv_len[0] = 257;
    const int32_t span_start[] = {0, 1, 2};
    int32_t counters[2] = {0};
    mb_decode_attention_args decode = {.qkv = x,
                                       .positions = ids,
                                       .slots = ids,
                                       .inv_freq = inv_freq,
                                       .k_cache = out,
                                       .v_cache = out,
                                       .q_start = q_start,
                                       .kv_len = kv_len,
                                       .span_start = span_start,
                                       .block_table = table,
                                       .out = out,
                                       .n_tokens = 2,
                                       .n_sequences = 2,
                                       .max_blocks = 5,
                                       .max_q_len = 9,
                                       .max_kv_len = 320,
                                       .n_heads = 1,
                                       .n_kv_heads = 1,
                                       .head_dim = 2,
                                       .scale = 1};
    ASSERT_REFUSED(mb_decode_attention_ref(&decode, out, sizeof out, NULL), "max_q_len is 9");
    decode.max_q_len = 1;
    static const float no_scales[] = {0, -1, INFINITY, NAN};
    for (size_t i = 0; i < sizeof no_scales / sizeof no_scales[0]; i++) {
        decode.scale = no_scales[i];
        ASSERT_REFUSED(mb_decode_attention_ref(&decode, out, sizeof out, NULL), "decode_attention: scale is");
    }
    decode.scale = 1, decode.qkv = (const char *)x + 2;
    ASSERT_REFUSED(mb_decode_attention_ref(&decode, out, sizeof out, NULL), "decode_attention: qkv is not");
    decode.qkv = x;
    ASSERT_REFUSED(mb_decode_attention_ref(&decode, out, sizeof out, NULL), "span_start or counters is NULL");
    decode.counters = counters;
    ASSERT_REFUSED(mb_decode_attention_ref(&decode, out, sizeof out, NULL), "span_start[1] is 1, but");
    kv_len[0] = 1;
    assert_int_equal(mb_decode_attention_ref(&decode, NULL, 0, NULL), MB_ERR_CAPACITY);

    mb_log_softmax_args log_softmax = {.logits = x, .out = out, .n_rows = 1};
    ASSERT_REFUSED(mb_log_softmax_ref(&log_softmax, NULL), "vocab");
    mb_sample_args sample = {.logits = x, .n_rows = 1, .vocab = 3};
    ASSERT_REFUSED(mb_sample_ref(&sample, NULL, 0, NULL), "NULL");
    mb_gated_activation_args act = {.x = x, .out = out, .n_rows = 1, .intermediate = -3};
    ASSERT_REFUSED(mb_gated_activation_ref(&act, NULL), "intermediate");
    act.intermediate = 3, act.activation = MB_ACT_NONE;
    ASSERT_REFUSED(mb_gated_activation_ref(&act, NULL), "activation");
}

/* A tool that cannot fail checks nothing: wrong results, NaN and overruns must be seen. */
static void test_check_can_fail(void **state) {
    (void)state;
    mb_check check = {.seed = 1};
    const double expected[] = {1, 2, 3};
    float right[] = {1, 2, 3}, off[] = {1, 2, 3.0001f}, lost[] = {1, NAN, 3};
    mb_check_begin(&check, "meant to fail (1 of 4)");
    mb_check_compare(&check, "right", MB_F32, right, expected, 3);
    assert_int_equal(check.n_failed, 0);
    mb_check_compare(&check, "off", MB_F32, off, expected, 3);
    assert_int_equal(check.n_failed, 1);
    mb_check_end(&check, 0, 0);
    mb_check_begin(&check, "meant to fail (2 of 4)");
    mb_check_compare(&check, "lost", MB_F32, lost, expected, 3);
    assert_int_equal(check.n_failed, 2);
    mb_check_end(&check, 0, 0);
    mb_check_begin(&check, "meant to fail (3 of 4)");
    char *buffer = mb_check_alloc(&check, 10);
    buffer[10] = 0;
    mb_check_end(&check, 0, 0);
    assert_int_equal(check.n_failed, 3);
    const float row[] = {1, -448, 0.5f}, one = 1, above = 1.0000001f;
    const unsigned char in_fp8[] = {0x38, 0xfe, 0x30}, other[] = {0x38, 0xfe, 0x31};
    mb_check_begin(&check, "meant to fail (4 of 4)");
    mb_check_equal_quantised(&check, "right", in_fp8, &one, MB_F32, row, 1, 3);
    assert_int_equal(check.n_failed, 3);
    mb_check_equal_quantised(&check, "scale", in_fp8, &above, MB_F32, row, 1, 3);
    mb_check_equal_quantised(&check, "value", other, &one, MB_F32, row, 1, 3);
    assert_int_equal(check.n_failed, 4); /* cases, not faults */
    mb_check_end(&check, 0, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox),
        cmocka_unit_test(test_route_not_finite),
        cmocka_unit_test(test_sample_edges),
        cmocka_unit_test(test_refused_gemm),
        cmocka_unit_test(test_refused_sums),
        cmocka_unit_test(test_refused_blocks),
        cmocka_unit_test(test_sample_counts_what_it_draws),
        cmocka_unit_test(test_sample_distribution),
        cmocka_unit_test(test_refused_others),
        cmocka_unit_test(test_check_can_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
