/*
 * The public operators of moebius/layers.h on the CPU, as a caller outside of the engine has them: each
 * against a loop in fp64, what they refuse and how they say it, nothing to do. More shapes and types:
 * test_ops_cases.
 */
#include "moebius/layers.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* Two sequences: 70 positions, of which 3 are new, and 5, all new. Their blocks are 2, 0 and 1. */
enum {
    T = 8,
    H = 12,
    N = 7,
    S = 2,
    HQ = 4,
    HKV = 2,
    D = 6,
    BLOCKS = 3,
    MAX_BLOCKS = 2,
    HEADS = HQ + 2 * HKV
};
enum { CACHE = BLOCKS * HKV * MB_KV_BLOCK * D, V = 40, ROWS = 3 };

static const int32_t q_start[S + 1] = {0, 3, 8}, kv_len[S] = {70, 5}, span_start[S + 1] = {0, 1, 2};
static const int32_t block_table[S * MAX_BLOCKS] = {2, 0, 1, -1};

static _Alignas(256) char workspace[1 << 16];
static struct {
    float x[T * H], weight[N * H], norm[H], bias[N], residual[T * N], out[T * H];
    float qkv[T * HEADS * D], head_norms[2][D], inv_freq[D / 2], q[T * HQ * D], k[CACHE], v[CACHE];
    float k_again[CACHE], v_again[CACHE], attended[T * HQ * D], attended_again[T * HQ * D];
    float logits[ROWS * V], logprobs[ROWS], all[ROWS * V];
    unsigned char bytes[T * H];
    float scales[T];
    int32_t positions[T], slots[T], counters[64], ids[ROWS], seen[V];
    uint32_t allowed[(V + 31) / 32];
    mb_sample_row rows[ROWS];
} m;

static int set_up(void **state) {
    (void)state;
    memset(&m, 0, sizeof m);
    uint32_t random = 1;
    float *const filled[] = {m.x,   m.weight,        m.norm, m.bias, m.residual,
                             m.qkv, m.head_norms[0], m.k,    m.v,    m.logits};
    const size_t lengths[] = {T * H, N * H, H,     N,       T * N, (size_t)T * HEADS * D,
                              2 * D, CACHE, CACHE, ROWS * V};
    for (size_t a = 0; a < sizeof filled / sizeof *filled; a++)
        for (size_t i = 0; i < lengths[a]; i++) {
            random = random * 1664525 + 1013904223;
            filled[a][i] = (float)(int32_t)random * 0x1p-30f;
        }
    for (int i = 0; i < D / 2; i++)
        m.inv_freq[i] = (float)pow(10000, -2.0 * i / D);
    for (int32_t s = 0, t = 0; s < S; s++)
        for (; t < q_start[s + 1]; t++) {
            m.positions[t] = kv_len[s] - q_start[s + 1] + t;
            m.slots[t] = block_table[s * MAX_BLOCKS + m.positions[t] / MB_KV_BLOCK] * MB_KV_BLOCK +
                         m.positions[t] % MB_KV_BLOCK;
        }
    memcpy(m.k_again, m.k, sizeof m.k);
    memcpy(m.v_again, m.v, sizeof m.v);
    for (int r = 0; r < ROWS; r++)
        m.rows[r] = (mb_sample_row){.top_p = 1, .repetition_penalty = 1, .seed = 7, .position = (uint64_t)r};
    return 0;
}

static mb_rms_norm_args rms_norm(void) {
    return (mb_rms_norm_args){.x = m.x,
                              .weight = {.data = m.norm, .count = 1, .rows = 1, .cols = H},
                              .out = m.out,
                              .n_rows = T,
                              .hidden = H,
                              .eps = 1e-6f};
}

static mb_gemm_args gemm(void) {
    return (mb_gemm_args){.x = m.x,
                          .weight = {.data = m.weight, .count = 1, .rows = N, .cols = H},
                          .bias = m.bias,
                          .residual = m.residual,
                          .out = m.out,
                          .n_tokens = T};
}

static mb_qk_norm_rope_store_args rope(void) {
    return (mb_qk_norm_rope_store_args){.qkv = m.qkv,
                                        .q_norm = {.data = m.head_norms[0], .count = 1, .rows = 1, .cols = D},
                                        .k_norm = {.data = m.head_norms[1], .count = 1, .rows = 1, .cols = D},
                                        .positions = m.positions,
                                        .slots = m.slots,
                                        .inv_freq = m.inv_freq,
                                        .q = m.q,
                                        .k_cache = m.k,
                                        .v_cache = m.v,
                                        .n_tokens = T,
                                        .n_heads = HQ,
                                        .n_kv_heads = HKV,
                                        .head_dim = D,
                                        .eps = 1e-6f,
                                        .rope_scale = 1};
}

static mb_attention_args attention(void) {
    return (mb_attention_args){.q = m.q,
                               .k_cache = m.k,
                               .v_cache = m.v,
                               .q_start = q_start,
                               .kv_len = kv_len,
                               .block_table = block_table,
                               .out = m.attended,
                               .n_tokens = T,
                               .n_sequences = S,
                               .max_blocks = MAX_BLOCKS,
                               .max_q_len = 5,
                               .max_kv_len = 70,
                               .n_heads = HQ,
                               .n_kv_heads = HKV,
                               .head_dim = D,
                               .scale = 0.4f};
}

static mb_decode_attention_args decode(void) {
    const mb_qk_norm_rope_store_args r = rope();
    return (mb_decode_attention_args){.qkv = m.qkv,
                                      .q_norm = r.q_norm,
                                      .k_norm = r.k_norm,
                                      .positions = m.positions,
                                      .slots = m.slots,
                                      .inv_freq = m.inv_freq,
                                      .k_cache = m.k_again,
                                      .v_cache = m.v_again,
                                      .q_start = q_start,
                                      .kv_len = kv_len,
                                      .span_start = span_start,
                                      .block_table = block_table,
                                      .counters = m.counters,
                                      .out = m.attended_again,
                                      .n_tokens = T,
                                      .n_sequences = S,
                                      .max_blocks = MAX_BLOCKS,
                                      .max_q_len = 5,
                                      .max_kv_len = 70,
                                      .n_heads = HQ,
                                      .n_kv_heads = HKV,
                                      .head_dim = D,
                                      .eps = 1e-6f,
                                      .rope_scale = 1,
                                      .scale = 0.4f};
}

static mb_sample_args sample(void) {
    return (mb_sample_args){
        .logits = m.logits, .rows = m.rows, .ids = m.ids, .logprobs = m.logprobs, .n_rows = ROWS, .vocab = V};
}

static mb_count_tokens_args count_tokens(void) {
    static const int32_t ids[6] = {3, 3, 5, 3, 7, 7};
    return (mb_count_tokens_args){.ids = ids, .seen = m.seen, .n_ids = 6, .n_prompt = 3, .vocab = V};
}

static mb_log_softmax_args log_softmax(void) {
    return (mb_log_softmax_args){.logits = m.logits, .out = m.all, .n_rows = ROWS, .vocab = V};
}

static mb_status call_rms_norm(const mb_rms_norm_args *args) {
    return mb_rms_norm(args, NULL);
}
static mb_status call_gemm(const mb_gemm_args *args) {
    return mb_gemm(args, workspace, sizeof workspace, NULL);
}
static mb_status call_rope(const mb_qk_norm_rope_store_args *args) {
    return mb_qk_norm_rope_store(args, NULL);
}
static mb_status call_attention(const mb_attention_args *args) {
    return mb_attention(args, workspace, sizeof workspace, NULL);
}
static mb_status call_decode(const mb_decode_attention_args *args) {
    return mb_decode_attention(args, workspace, sizeof workspace, NULL);
}
static mb_status call_sample(const mb_sample_args *args) {
    return mb_sample(args, workspace, sizeof workspace, NULL);
}
static mb_status call_count_tokens(const mb_count_tokens_args *args) {
    return mb_count_tokens(args, NULL);
}
static mb_status call_log_softmax(const mb_log_softmax_args *args) {
    return mb_log_softmax(args, NULL);
}

static void check_ok(mb_status status) {
    if (status != MB_OK)
        fail_msg("%s", mb_last_error());
}

static void check_near(double got, double expected, double bar, int line) {
    if (!(fabs(got - expected) <= bar))
        fail_msg("line %d: %.9g, not %.9g", line, got, expected);
}
#define NEAR(got, expected, bar) check_near((double)(got), expected, bar, __LINE__)

/* ---- results ------------------------------------------------------------------------------------------- */

static void test_rms_norm(void **state) {
    (void)state;
    mb_rms_norm_args args = rms_norm();
    check_ok(mb_rms_norm(&args, NULL));
    for (int t = 0; t < T; t++) {
        double squares = 0;
        for (int i = 0; i < H; i++)
            squares += pow((double)m.x[t * H + i], 2);
        for (int i = 0; i < H; i++)
            NEAR(m.out[t * H + i], (double)m.x[t * H + i] / sqrt(squares / H + 1e-6) * (double)m.norm[i],
                 1e-6);
    }
}

static void test_gemm(void **state) {
    (void)state;
    mb_gemm_args args = gemm();
    check_ok(call_gemm(&args));
    for (int t = 0; t < T; t++)
        for (int n = 0; n < N; n++) {
            double sum = (double)m.bias[n] + (double)m.residual[t * N + n];
            for (int i = 0; i < H; i++)
                sum += (double)m.x[t * H + i] * (double)m.weight[n * H + i];
            NEAR(m.out[t * N + n], sum, 1e-5);
        }
}

/* Row `position` of a sequence's K or V of a kv head. */
static const float *cached(const float *cache, int s, int position, int head) {
    const int block = block_table[s * MAX_BLOCKS + position / MB_KV_BLOCK];
    return cache + ((block * HKV + head) * MB_KV_BLOCK + position % MB_KV_BLOCK) * D;
}

/* A head of qkv, normed and rotated. */
static void expect_rotated(int t, int head, const float *norm, const float *got) {
    const float *x = m.qkv + (t * HEADS + head) * D;
    double squares = 0, v[D];
    for (int i = 0; i < D; i++)
        squares += (double)x[i] * (double)x[i];
    for (int i = 0; i < D; i++)
        v[i] = (double)x[i] / sqrt(squares / D + 1e-6) * (double)norm[i];
    for (int i = 0; i < D / 2; i++) {
        const double angle = m.positions[t] * (double)m.inv_freq[i], c = cos(angle), s = sin(angle);
        NEAR(got[i], v[i] * c - v[i + D / 2] * s, 2e-5);
        NEAR(got[i + D / 2], v[i + D / 2] * c + v[i] * s, 2e-5);
    }
}

static void expect_attention(int s, int t, int head) {
    const int kv_head = head / (HQ / HKV), n_visible = kv_len[s] - q_start[s + 1] + t + 1;
    const float *q = m.q + (t * HQ + head) * D;
    double total = 0, sums[D] = {0};
    for (int p = 0; p < n_visible; p++) {
        double score = 0;
        for (int i = 0; i < D; i++)
            score += (double)q[i] * (double)cached(m.k, s, p, kv_head)[i];
        const double weight = exp(score * (double)0.4f);
        total += weight;
        for (int i = 0; i < D; i++)
            sums[i] += weight * (double)cached(m.v, s, p, kv_head)[i];
    }
    for (int i = 0; i < D; i++)
        NEAR(m.attended[(t * HQ + head) * D + i], sums[i] / total, 2e-5);
}

static void test_attention(void **state) {
    (void)state;
    mb_qk_norm_rope_store_args store = rope();
    mb_attention_args attend = attention();
    mb_decode_attention_args both = decode();
    check_ok(call_rope(&store));
    check_ok(call_attention(&attend));
    for (int s = 0; s < S; s++)
        for (int t = q_start[s]; t < q_start[s + 1]; t++) {
            for (int h = 0; h < HQ; h++) {
                expect_rotated(t, h, m.head_norms[0], m.q + (t * HQ + h) * D);
                expect_attention(s, t, h);
            }
            for (int h = 0; h < HKV; h++) {
                expect_rotated(t, HQ + h, m.head_norms[1], cached(m.k, s, m.positions[t], h));
                assert_memory_equal(cached(m.v, s, m.positions[t], h), m.qkv + (t * HEADS + HQ + HKV + h) * D,
                                    D * sizeof(float));
            }
        }
    assert_in_range(mb_decode_attention_counters(&both), 1, sizeof m.counters / sizeof *m.counters);
    check_ok(call_decode(&both));
    assert_memory_equal(m.attended_again, m.attended, sizeof m.attended);
    assert_memory_equal(m.k_again, m.k, sizeof m.k);
    assert_memory_equal(m.v_again, m.v, sizeof m.v);
}

static void test_sample(void **state) {
    (void)state;
    mb_log_softmax_args softmax = log_softmax();
    mb_sample_args args = sample();
    mb_count_tokens_args count = count_tokens();
    check_ok(mb_log_softmax(&softmax, NULL));
    for (int r = 0; r < ROWS; r++) {
        double total = 0;
        for (int i = 0; i < V; i++)
            total += exp((double)m.logits[r * V + i]);
        for (int i = 0; i < V; i++)
            NEAR(m.all[r * V + i], (double)m.logits[r * V + i] - log(total), 1e-6);
    }
    check_ok(mb_count_tokens(&count, NULL));
    assert_int_equal(m.seen[3], 1 + 2); /* in the prompt, and once in the answer */
    assert_int_equal(m.seen[5], 1);
    assert_int_equal(m.seen[7], 4);
    assert_int_equal(m.seen[0], 0);

    /* Greedy: the largest; the largest that is allowed; with a penalty that no seen token survives. */
    int best = 0, best_of_few = 3;
    for (int i = 0; i < V; i++)
        best = m.logits[i] > m.logits[best] ? i : best;
    m.allowed[0] = 1 << 3 | 1 << 4;
    best_of_few = m.logits[V + 3] >= m.logits[V + 4] ? 3 : 4;
    m.rows[1].allowed = m.allowed;
    m.logits[2 * V + 7] = 100;
    m.rows[2].seen = m.seen;
    m.rows[2].frequency_penalty = 1000;
    check_ok(call_sample(&args));
    assert_int_equal(m.ids[0], best);
    assert_int_equal(m.ids[1], best_of_few);
    assert_int_not_equal(m.ids[2], 7);
    assert_int_equal(m.seen[m.ids[2]] & ~1, 2); /* the token that was drawn is counted */
    NEAR(m.logprobs[0], (double)m.all[best], 1e-6);

    /* A seed draws the same token again; top_k 1 draws the largest. */
    m.rows[0].temperature = m.rows[2].temperature = 2;
    m.rows[0].top_k = 1;
    m.rows[2].seen = NULL;
    m.logits[2 * V + 7] = 0;
    check_ok(call_sample(&args));
    const int32_t drawn = m.ids[2];
    assert_int_equal(m.ids[0], best);
    check_ok(call_sample(&args));
    assert_int_equal(m.ids[2], drawn);
    m.logits[0] = NAN;
    check_ok(call_sample(&args));
    assert_int_equal(m.ids[0], -1);

    /* However high the temperature, what is not allowed is not drawn. */
    m.allowed[0] = 1 << 4;
    m.rows[1].temperature = INFINITY;
    for (m.rows[1].seed = 0; m.rows[1].seed < 16; m.rows[1].seed++) {
        check_ok(call_sample(&args));
        assert_int_equal(m.ids[1], 4);
    }
}

/* ---- refusals ------------------------------------------------------------------------------------------ */

static void check_sentence(const char *start, const char *word, int line) {
    const char *sentence = mb_last_error();
    if (strncmp(sentence, start, strlen(start)) != 0 || !strstr(sentence + strlen(start), word))
        fail_msg("line %d: \"%s\" should start with \"%s\" and name %s", line, sentence, start, word);
}

/* The arguments after `change` are refused with a sentence that begins with the operator and has `word`. */
#define REFUSED(name, make, change, word)                      \
    do {                                                       \
        __typeof__(make()) args = make();                      \
        change;                                                \
        assert_int_equal(call_##make(&args), MB_ERR_ARGUMENT); \
        check_sentence(name ": ", word, __LINE__);             \
    } while (0)
/* The size is refused too, and *bytes left alone. */
#define SIZE_REFUSED(name, make, function, change, word)            \
    do {                                                            \
        REFUSED(name, make, change, word);                          \
        __typeof__(make()) args = make();                           \
        change;                                                     \
        size_t bytes = 7;                                           \
        assert_int_equal(function(&args, &bytes), MB_ERR_ARGUMENT); \
        assert_int_equal(bytes, 7);                                 \
        check_sentence(name ": ", word, __LINE__);                  \
    } while (0)

static void test_norm_and_gemm_refuse(void **state) {
    (void)state;
    REFUSED("rms_norm", rms_norm, args.n_rows = -1, "n_rows is -1");
    REFUSED("rms_norm", rms_norm, args.hidden = 0, "hidden is 0");
    REFUSED("rms_norm", rms_norm, args.dtype = MB_F8_E4M3, "dtype fp8_e4m3");
    REFUSED("rms_norm", rms_norm, args.dtype = (mb_dtype)9, "dtype unknown dtype (9)");
    REFUSED("rms_norm", rms_norm, args.x = NULL, "x or out is NULL");
    REFUSED("rms_norm", rms_norm, args.weight.cols = H + 1, "weight has shape [1, 1, 13]");
    REFUSED("rms_norm", rms_norm, args.out8 = m.bytes, "out8_scale is NULL");
    REFUSED("rms_norm", rms_norm, (args.out8 = m.bytes, args.out8_scale = m.scales), "dtype is fp32");
#define BAD(change, word) SIZE_REFUSED("gemm", gemm, mb_gemm_workspace, change, word)
    BAD(args.n_tokens = -1, "n_tokens is -1");
    BAD(args.weight.rows = 0, "weight is [0, 12]");
    BAD(args.weight.rows = INT64_MAX, "weight is [9223372036854775807, 12]");
    BAD(args.weight.cols = INT64_MAX, "weight is [7, 9223372036854775807]");
    BAD(args.dtype = MB_F8_E4M3, "dtype fp8_e4m3");
    BAD(args.out_dtype = MB_F8_E4M3, "out_dtype fp8_e4m3");
    BAD(args.out_dtype = (mb_dtype)9, "out_dtype unknown dtype (9)");
    BAD(args.norm_rows = m.slots, "norm_rows without norm_weight");
#undef BAD
    REFUSED("gemm", gemm, args.x = NULL, "x or out is NULL");
    REFUSED("gemm", gemm, args.weight.data = NULL, "weight.data is NULL");
    REFUSED("gemm", gemm, args.x8 = m.bytes, "x8_scale is NULL");
    REFUSED("gemm", gemm, args.out = m.x, "out is x");
}

static void test_rope_refuses(void **state) {
    (void)state;
#define BAD(change, word) REFUSED("qk_norm_rope_store", rope, change, word)
    BAD(args.n_tokens = -1, "n_tokens is -1");
    BAD(args.n_heads = 0, "n_heads is 0");
    BAD(args.head_dim = 5, "head_dim is 5");
    BAD(args.rotary_dim = 8, "rotary_dim is 8");
    BAD(args.dtype = MB_F8_E4M3, "dtype fp8_e4m3");
    BAD(args.k_scale = m.scales, "k_scale or v_scale is set");
    BAD(args.q_norm.cols = D + 1, "q_norm has shape [1, 1, 7]");
    BAD(args.slots = NULL, "slots");
    BAD(args.q = m.qkv, "q lies in qkv");
    BAD(args.q = m.qkv + T * HEADS * D - 1, "q lies in qkv");
#undef BAD
}

static void test_attention_refuses(void **state) {
    (void)state;
    static const int32_t short_lengths[S] = {2, 5}, long_lengths[S] = {129, 5}, falling[S + 1] = {0, 9, 8};
#define BAD(change, word) SIZE_REFUSED("attention", attention, mb_attention_workspace, change, word)
    BAD(args.n_tokens = -1, "n_tokens is -1");
    BAD(args.n_kv_heads = 3, "n_heads is 4, not a multiple of n_kv_heads, 3");
    BAD(args.n_kv_heads = 0, "n_kv_heads, 0");
    BAD(args.head_dim = 513, "head_dim is 513");
    BAD(args.cache_dtype = MB_F8_E8M0, "cache_dtype fp8_e8m0");
    BAD(args.cache_dtype = (mb_dtype)9, "cache_dtype unknown dtype (9)");
    BAD(args.v_scale = m.scales, "k_scale or v_scale is set");
    BAD(args.n_sequences = 0, "n_sequences is 0");
    BAD(args.max_blocks = 0, "max_blocks is 0");
    BAD(args.max_q_len = 0, "max_q_len is 0");
    BAD(args.max_kv_len = -1, "max_kv_len is -1");
#undef BAD
#define BAD(change, word) REFUSED("attention", attention, change, word)
    BAD(args.block_table = NULL, "block_table");
    BAD(args.out = m.q, "out is q");
    BAD(args.max_q_len = 4, "sequence 1 has 5 queries, max_q_len is 4");
    BAD(args.max_kv_len = 69, "kv_len[0] is 70, max_kv_len 69");
    BAD(args.kv_len = short_lengths, "kv_len[0] is 2, less than its 3 queries");
    BAD((args.kv_len = long_lengths, args.max_kv_len = 129), "more than max_blocks, 2, can hold");
    BAD((args.q_start = falling, args.max_q_len = 9), "q_start falls at sequence 1");
    BAD(args.n_tokens = 7, "q_start runs from 0 to 8");
    static const int32_t far_apart[4] = {0, INT32_MAX, INT32_MIN, T}, longest[3] = {INT32_MAX, INT32_MAX, T};
    BAD((args.q_start = far_apart, args.kv_len = longest, args.n_sequences = 3, args.max_blocks = 1 << 26,
         args.max_q_len = args.max_kv_len = INT32_MAX),
        "q_start falls at sequence 1");
#undef BAD
#define BAD(change, word) \
    SIZE_REFUSED("decode_attention", decode, mb_decode_attention_workspace, change, word)
    BAD(args.max_q_len = 9, "max_q_len is 9");
    BAD(args.n_sequences = -1, "n_sequences is -1");
    BAD((args.n_tokens = 1 << 30, args.n_heads = args.n_kv_heads = 1 << 30, args.head_dim = 512),
        "a workspace for 1073741824 tokens of 1073741824 heads would be too large");
#undef BAD
    static const int32_t wrong_spans[S + 1] = {0, 2, 3};
    REFUSED("decode_attention", decode, args.scale = 0, "scale is 0");
    REFUSED("decode_attention", decode, args.counters = NULL, "counters is NULL");
    REFUSED("decode_attention", decode, args.out = m.qkv, "out lies in qkv");
    REFUSED("decode_attention", decode, args.out = m.qkv + D, "out lies in qkv");
    REFUSED("decode_attention", decode, args.span_start = wrong_spans, "span_start[1] is 2");
    /* Refused before the caches are touched. */
    static const int32_t beyond[S + 1] = {0, 3, 9};
    REFUSED("attention", decode, args.q_start = beyond, "q_start runs from 0 to 9");
    REFUSED("attention", decode, args.kv_len = short_lengths, "kv_len[0] is 2, less than its 3 queries");
    static const int32_t longest_last[S] = {70, INT32_MAX};
    REFUSED("attention", decode, args.kv_len = longest_last, "kv_len[1] is 2147483647, more than max_blocks");
    REFUSED("decode_attention", decode,
            (args.kv_len = longest_last, args.max_blocks = 1 << 26, args.max_kv_len = INT32_MAX),
            "have 8388609 spans");
    assert_memory_equal(m.k_again, m.k, sizeof m.k);
    assert_memory_equal(m.v_again, m.v, sizeof m.v);
    mb_decode_attention_args no_heads = decode();
    no_heads.n_kv_heads = 0;
    assert_int_equal(mb_decode_attention_counters(&no_heads), 0);
    assert_int_equal(mb_decode_attention_counters(NULL), 0);
}

static void test_sampling_refuses(void **state) {
    (void)state;
    SIZE_REFUSED("sample", sample, mb_sample_workspace, args.vocab = 0, "vocab is 0");
    SIZE_REFUSED("sample", sample, mb_sample_workspace, args.n_rows = -1, "n_rows is -1");
    REFUSED("sample", sample, args.rows = NULL, "rows");
    REFUSED("sample", sample, args.rows = (const mb_sample_row *)((const char *)m.rows + 4),
            "rows is not aligned to 8 bytes");
    REFUSED("count_tokens", count_tokens, args.seen = NULL, "seen is NULL");
    REFUSED("count_tokens", count_tokens, args.n_ids = -1, "n_ids is -1");
    REFUSED("log_softmax", log_softmax, args.vocab = -1, "vocab is -1");
    REFUSED("log_softmax", log_softmax, args.out = NULL, "logits or out is NULL");
}

#define SHIFTED(array) ((void *)((char *)(array) + 1))
static void test_misaligned_arrays_are_refused(void **state) {
    (void)state;
#define BAD(name, make, member) \
    REFUSED(name, make, args.member = SHIFTED(args.member), #member " is not aligned to 4 bytes")
    BAD("rms_norm", rms_norm, x);
    BAD("rms_norm", rms_norm, weight.data);
    BAD("gemm", gemm, bias);
    BAD("gemm", gemm, out);
    BAD("gemm", gemm, weight.data);
    BAD("qk_norm_rope_store", rope, slots);
    BAD("qk_norm_rope_store", rope, v_cache);
    BAD("attention", attention, kv_len);
    BAD("attention", attention, q);
    BAD("decode_attention", decode, qkv);
    BAD("decode_attention", decode, counters);
    BAD("sample", sample, logits);
    BAD("count_tokens", count_tokens, ids);
    BAD("log_softmax", log_softmax, out);
#undef BAD
}

static void test_nothing_to_do_and_no_arguments(void **state) {
    (void)state;
    size_t bytes = 7;
    mb_rms_norm_args norm = rms_norm();
    norm.n_rows = 0;
    norm.x = norm.out = NULL;
    assert_int_equal(mb_rms_norm(&norm, NULL), MB_OK);
    mb_gemm_args dense = gemm();
    dense.n_tokens = 0;
    dense.x = dense.out = NULL;
    assert_int_equal(mb_gemm(&dense, NULL, 0, NULL), MB_OK);
    mb_attention_args attend = attention();
    attend.n_tokens = attend.n_sequences = attend.max_q_len = attend.max_kv_len = 0;
    attend.q = attend.out = NULL;
    assert_int_equal(mb_attention(&attend, NULL, 0, NULL), MB_OK);
    mb_sample_args none = {.vocab = V};
    assert_int_equal(mb_sample(&none, NULL, 0, NULL), MB_OK);
    assert_int_equal(mb_attention(NULL, NULL, 0, NULL), MB_ERR_ARGUMENT);
    check_sentence("attention: ", "args is NULL", __LINE__);
    assert_int_equal(mb_attention_workspace(&attend, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_rms_norm(NULL, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_gemm(NULL, NULL, 0, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_qk_norm_rope_store(NULL, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_decode_attention(NULL, NULL, 0, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_sample(NULL, NULL, 0, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_count_tokens(NULL, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_log_softmax(NULL, NULL), MB_ERR_ARGUMENT);

    mb_sample_args some = sample();
    check_ok(mb_sample_workspace(&some, &bytes));
    assert_int_equal(mb_sample(&some, workspace, bytes - 1, NULL), MB_ERR_CAPACITY);
    assert_int_equal(mb_sample(&some, workspace + 16, sizeof workspace - 16, NULL), MB_ERR_ARGUMENT);
    check_sentence("sample: ", "workspace is not aligned", __LINE__);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_rms_norm, set_up),
        cmocka_unit_test_setup(test_gemm, set_up),
        cmocka_unit_test_setup(test_attention, set_up),
        cmocka_unit_test_setup(test_sample, set_up),
        cmocka_unit_test_setup(test_norm_and_gemm_refuse, set_up),
        cmocka_unit_test_setup(test_rope_refuses, set_up),
        cmocka_unit_test_setup(test_attention_refuses, set_up),
        cmocka_unit_test_setup(test_sampling_refuses, set_up),
        cmocka_unit_test_setup(test_misaligned_arrays_are_refused, set_up),
        cmocka_unit_test_setup(test_nothing_to_do_and_no_arguments, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
