/* A row's result is the same bits whatever its neighbours, the chunks and the number of threads are. */
#include "device/device.h"
#include "ops/common/check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { T = 37, MAX_BYTES = 1 << 24 };

static const mb_dtype activations[] = {MB_F32, MB_BF16, MB_F16};
static const mb_dtype weights[] = {MB_F32, MB_BF16, MB_F16, MB_F8_E4M3};

static mb_device *devices[2];
static const mb_ops *ops; /* the CPU's table */
static mb_stream one_thread, two_threads;

static void gemm(mb_gemm_args *args, void *out, mb_stream stream) {
    static _Alignas(64) char workspace[MAX_BYTES];
    args->out = out;
    size_t needed;
    assert_int_equal(ops->gemm_workspace(args, &needed), MB_OK);
    assert_true(needed <= sizeof workspace);
    assert_int_equal(ops->gemm(args, workspace, sizeof workspace, stream), MB_OK);
}

/* A norm in front has the bits of the norm's operator. all, other: of out's size. */
static void check_norm_in_front(mb_check *check, mb_gemm_args *args, void *all, void *other, size_t bytes) {
    int64_t k = args->weight.cols;
    mb_rms_norm_args norm = {
        .x = args->x,
        .weight = mb_check_weight(check, MB_BF16, 1, 1, k),
        .out = mb_check_alloc(check, (size_t)(args->n_tokens * k) * mb_dtype_bytes(args->dtype)),
        .n_rows = args->n_tokens,
        .hidden = (int32_t)k,
        .eps = 1e-5f,
        .dtype = args->dtype};
    mb_gemm_args normed = *args;
    normed.norm_weight = norm.weight;
    normed.eps = norm.eps;
    gemm(&normed, all, two_threads);
    assert_int_equal(ops->rms_norm(&norm, one_thread), MB_OK);
    normed = *args;
    normed.x = norm.out;
    gemm(&normed, other, one_thread);
    assert_memory_equal(all, other, bytes);
}

static void check_gemm(mb_check *check, mb_dtype dtype, mb_dtype weight_dtype, int64_t n, int64_t k) {
    mb_check_begin(check, "gemm invariance %d %d %d %d", (int)dtype, (int)weight_dtype, (int)n, (int)k);
    size_t row_in = (size_t)k * mb_dtype_bytes(dtype), row_out = (size_t)n * mb_dtype_bytes(dtype);
    char *x = mb_check_values(check, dtype, T * k, -1, 1);
    mb_gemm_args args = {.x = x,
                         .weight = mb_check_weight(check, weight_dtype, 1, n, k),
                         .bias = mb_check_values(check, MB_F32, n, -1, 1),
                         .n_tokens = T,
                         .dtype = dtype,
                         .out_dtype = dtype,
                         .bias_dtype = MB_F32};
    char *all = mb_check_alloc(check, T * row_out), *other = mb_check_alloc(check, T * row_out);
    gemm(&args, all, one_thread);
    gemm(&args, other, two_threads);
    assert_memory_equal(all, other, T * row_out);
    gemm(&args, other, NULL);
    assert_memory_equal(all, other, T * row_out);
    for (int t = 0; t < T; t++) {
        args.x = x + (size_t)t * row_in;
        args.n_tokens = 1;
        gemm(&args, other, t % 2 ? one_thread : two_threads);
        assert_memory_equal(all + (size_t)t * row_out, other, row_out);
    }
    args.x = x + 5 * row_in; /* a piece from the middle */
    args.n_tokens = 30;
    gemm(&args, other, two_threads);
    assert_memory_equal(all + 5 * row_out, other, 30 * row_out);
    check_norm_in_front(check, &args, all, other, 30 * row_out);
    mb_check_end(check, 0, 0);
}

static void test_gemm(void **state) {
    (void)state;
    mb_check check = {.seed = 11};
    for (int a = 0; a < 3; a++)
        for (int w = 0; w < 4; w++) {
            check_gemm(&check, activations[a], weights[w], 130, 17);
            check_gemm(&check, activations[a], weights[w], 401, 1100); /* enough for two threads */
        }
    check_gemm(&check, MB_BF16, MB_BF16, 2100, 1024); /* one row alone is */
    assert_int_equal(check.n_failed, 0);
}

static void moe(mb_moe_forward_args *args, void *out, mb_stream stream) {
    static _Alignas(64) char workspace[MAX_BYTES];
    args->out = out;
    size_t needed;
    assert_int_equal(ops->moe_forward_workspace(args, &needed), MB_OK);
    assert_true(needed <= sizeof workspace);
    assert_int_equal(ops->moe_forward(args, workspace, sizeof workspace, stream), MB_OK);
}

static void check_moe(mb_check *check, mb_dtype dtype, mb_dtype weight_dtype) {
    enum { H = 200, I = 136, K = 3, E = 7 };
    mb_check_begin(check, "moe invariance %d %d", (int)dtype, (int)weight_dtype);
    size_t row = H * mb_dtype_bytes(dtype);
    int32_t *ids = mb_check_alloc(check, (size_t)T * K * sizeof *ids);
    for (int i = 0; i < T * K; i++)
        ids[i] = (int32_t)(mb_check_random(check) % E);
    char *x = mb_check_values(check, dtype, T * H, -1, 1);
    float *choice_weights = mb_check_values(check, MB_F32, T * K, 0, 1);
    mb_moe_forward_args args = {.x = x,
                                .weights = choice_weights,
                                .ids = ids,
                                .w13 = mb_check_weight(check, weight_dtype, E, 2 * I, H),
                                .w2 = mb_check_weight(check, weight_dtype, E, H, I),
                                .n_tokens = T,
                                .hidden = H,
                                .intermediate = I,
                                .top_k = K,
                                .n_experts = E,
                                .n_local_experts = E,
                                .dtype = dtype};
    char *all = mb_check_alloc(check, T * row), *other = mb_check_alloc(check, T * row);
    moe(&args, all, one_thread);
    for (int repeat = 0; repeat < 5; repeat++) { /* items go to threads in any order */
        moe(&args, other, two_threads);
        assert_memory_equal(all, other, T * row);
    }
    for (int t = 0; t < T; t++) {
        args.x = x + (size_t)t * row;
        args.ids = ids + t * K;
        args.weights = choice_weights + t * K;
        args.n_tokens = 1;
        moe(&args, other, two_threads);
        assert_memory_equal(all + (size_t)t * row, other, row);
    }
    mb_check_end(check, 0, 0);
}

static void test_moe(void **state) {
    (void)state;
    mb_check check = {.seed = 12};
    for (int a = 0; a < 3; a++)
        for (int w = 0; w < 4; w++)
            check_moe(&check, activations[a], weights[w]);
    assert_int_equal(check.n_failed, 0);
}

/* 150 positions of one sequence: as one prompt, token by token, in chunks, and beside another sequence. */
static void check_attention(mb_check *check, mb_dtype dtype, int32_t n_heads, int32_t head_dim) {
    enum { N = 150, N_BLOCKS = 3, N_KV = 2 };
    mb_check_begin(check, "attention invariance %d %d %d", (int)dtype, n_heads, head_dim);
    int32_t table[2 * N_BLOCKS] = {2, 0, 1, 1, 2, 0}, q_start[3] = {0, N, N}, kv_len[2] = {N, 0};
    size_t row = (size_t)(n_heads * head_dim) * mb_dtype_bytes(dtype);
    int64_t n_cache = (int64_t)N_BLOCKS * N_KV * MB_KV_BLOCK * head_dim;
    char *q = mb_check_values(check, dtype, (int64_t)N * n_heads * head_dim, -2, 2);
    char *all = mb_check_alloc(check, N * row), *other = mb_check_alloc(check, N * row);
    mb_attention_args args = {.q = q,
                              .k_cache = mb_check_values(check, dtype, n_cache, -2, 2),
                              .v_cache = mb_check_values(check, dtype, n_cache, -2, 2),
                              .q_start = q_start,
                              .kv_len = kv_len,
                              .block_table = table,
                              .out = all,
                              .n_tokens = N,
                              .n_sequences = 1,
                              .max_blocks = N_BLOCKS,
                              .max_q_len = N,
                              .max_kv_len = N,
                              .n_heads = n_heads,
                              .n_kv_heads = N_KV,
                              .head_dim = head_dim,
                              .scale = 0.2f,
                              .dtype = dtype,
                              .cache_dtype = dtype};
    assert_int_equal(ops->attention(&args, NULL, 0, one_thread), MB_OK);
    args.out = other;
    assert_int_equal(ops->attention(&args, NULL, 0, two_threads), MB_OK);
    assert_memory_equal(all, other, N * row);
    static const int32_t chunk_sizes[] = {1, 7, 64, 100};
    for (int c = 0; c < 4; c++)
        for (int32_t start = 0; start < N; start += chunk_sizes[c]) {
            int32_t n = N - start < chunk_sizes[c] ? N - start : chunk_sizes[c];
            q_start[1] = n;
            q_start[2] = n;
            kv_len[0] = start + n;
            args.q = q + (size_t)start * row;
            args.n_tokens = n;
            args.n_sequences = 1 + c % 2;
            args.max_q_len = n;
            args.max_kv_len = start + n;
            assert_int_equal(ops->attention(&args, NULL, 0, two_threads), MB_OK);
            assert_memory_equal(all + (size_t)start * row, other, (size_t)n * row);
        }
    mb_check_end(check, 0, 0);
}

static void test_attention(void **state) {
    (void)state;
    mb_check check = {.seed = 13};
    for (int a = 0; a < 3; a++) {
        check_attention(&check, activations[a], 4, 64);
        check_attention(&check, activations[a], 22, 18); /* more heads than are walked together */
    }
    assert_int_equal(check.n_failed, 0);
}

/* Norm, activation, rotary embedding, router: rows one by one against all at once. */
static void test_rows(void **state) {
    (void)state;
    enum { H = 1500, N_ROWS = 900, E = 100, K = 8 };
    mb_check check = {.seed = 14};
    mb_check_begin(&check, "rows invariance");
    float *x = mb_check_values(&check, MB_F32, N_ROWS * H, -1, 1);
    float *all = mb_check_alloc(&check, (size_t)N_ROWS * H * sizeof *all);
    float *other = mb_check_alloc(&check, (size_t)N_ROWS * H * sizeof *other);

    mb_rms_norm_args norm = {.x = x, .weight = mb_check_weight(&check, MB_BF16, 1, 1, H), .hidden = H};
    norm.n_rows = N_ROWS;
    norm.out = all;
    assert_int_equal(ops->rms_norm(&norm, two_threads), MB_OK);
    for (int r = 0; r < N_ROWS; r++) {
        norm.x = x + r * H;
        norm.n_rows = 1;
        norm.out = other;
        assert_int_equal(ops->rms_norm(&norm, one_thread), MB_OK);
        assert_memory_equal(all + r * H, other, H * sizeof *all);
    }

    /* the same behind a residual */
    float *sum = mb_check_alloc(&check, (size_t)N_ROWS * H * sizeof *sum), one_sum[H];
    const float *residual = mb_check_values(&check, MB_F32, N_ROWS * H, -1, 1);
    norm.x = x;
    norm.residual = residual;
    norm.n_rows = N_ROWS;
    norm.out = all;
    norm.sum = sum;
    assert_int_equal(ops->rms_norm(&norm, two_threads), MB_OK);
    norm.n_rows = 1;
    norm.out = other;
    norm.sum = one_sum;
    for (int r = 0; r < N_ROWS; r++) {
        norm.x = x + r * H;
        norm.residual = residual + r * H;
        assert_int_equal(ops->rms_norm(&norm, one_thread), MB_OK);
        assert_memory_equal(all + r * H, other, H * sizeof *all);
        assert_memory_equal(sum + r * H, one_sum, sizeof one_sum);
    }

    mb_gated_activation_args act = {.x = x, .out = all, .n_rows = N_ROWS, .intermediate = H / 2};
    assert_int_equal(ops->gated_activation(&act, two_threads), MB_OK);
    for (int r = 0; r < N_ROWS; r++) {
        act.x = x + r * H;
        act.n_rows = 1;
        act.out = other;
        assert_int_equal(ops->gated_activation(&act, one_thread), MB_OK);
        assert_memory_equal(all + r * (H / 2), other, H / 2 * sizeof *all);
    }

    int32_t *ids = mb_check_alloc(&check, (size_t)N_ROWS * K * sizeof *ids), one_ids[K];
    mb_moe_route_args route = {
        .logits = x, .weights = all, .ids = ids, .n_tokens = N_ROWS, .n_experts = E, .top_k = K};
    assert_int_equal(ops->moe_route(&route, two_threads), MB_OK);
    for (int r = 0; r < N_ROWS; r++) {
        route.logits = x + r * E;
        route.n_tokens = 1;
        route.weights = other;
        route.ids = one_ids;
        assert_int_equal(ops->moe_route(&route, one_thread), MB_OK);
        assert_memory_equal(ids + r * K, one_ids, sizeof one_ids);
        assert_memory_equal(all + r * K, other, K * sizeof *all);
    }
    mb_check_end(&check, 0, 0);
    assert_int_equal(check.n_failed, 0);
}

/* The same seed and position give the same token alone, in a batch, at any place in it. */
static void test_sample(void **state) {
    (void)state;
    enum { N_ROWS = 50, VOCAB = 3000 };
    static _Alignas(64) char workspace[MAX_BYTES];
    mb_check check = {.seed = 15};
    mb_check_begin(&check, "sample invariance");
    float *logits = mb_check_values(&check, MB_F32, N_ROWS * VOCAB, -3, 3);
    mb_sample_row rows[N_ROWS];
    int32_t ids[N_ROWS], id;
    float logprobs[N_ROWS], logprob;
    for (int r = 0; r < N_ROWS; r++)
        rows[r] = (mb_sample_row){.temperature = 1,
                                  .top_p = 0.9f,
                                  .top_k = r % 2 ? 40 : 0,
                                  .repetition_penalty = 1,
                                  .seed = 7,
                                  .position = (uint64_t)r / 2};
    mb_sample_args args = {logits, rows, ids, logprobs, N_ROWS, VOCAB};
    size_t needed;
    assert_int_equal(ops->sample_workspace(&args, &needed), MB_OK);
    assert_true(needed <= sizeof workspace);
    assert_int_equal(ops->sample(&args, workspace, sizeof workspace, two_threads), MB_OK);
    for (int r = 0; r < N_ROWS; r++) {
        mb_sample_args one = {logits + r * VOCAB, rows + r, &id, &logprob, 1, VOCAB};
        assert_int_equal(ops->sample(&one, workspace, sizeof workspace, one_thread), MB_OK);
        assert_int_equal(id, ids[r]);
        assert_memory_equal(&logprob, logprobs + r, sizeof logprob);
    }
    mb_check_end(&check, 0, 0);
    assert_int_equal(check.n_failed, 0);
}

static int open_devices(void **state) {
    (void)state;
    mb_stream *streams[] = {&one_thread, &two_threads};
    for (int i = 0; i < 2; i++)
        if (mb_device_open("cpu", 1 + i, NULL, &devices[i]) != MB_OK ||
            devices[i]->stream_open(devices[i], streams[i]) != MB_OK)
            return -1;
    ops = devices[0]->ops;
    return 0;
}

static int close_devices(void **state) {
    (void)state;
    mb_device_close(devices[0]);
    mb_device_close(devices[1]);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm), cmocka_unit_test(test_moe),    cmocka_unit_test(test_attention),
        cmocka_unit_test(test_rows), cmocka_unit_test(test_sample),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
