/*
 * A session's share of the device's memory, and what is said when it is too small. The device is the slow one
 * of tests/support, whose memory is limited.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/session.h"
#include "model/model.h"
#include "model/qwen3_moe.h"
#include "support/generation.h"
#include "support/slow_device.h"

enum { MIB = 1 << 20, MAX_POSITIONS = 8192 };

static mb_model *model;
static mb_device *cpu;

static int open_model(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.max_positions = MAX_POSITIONS;
    model = tiny_model_open(&options, NULL);
    cpu = model->device;
    return 0;
}

static int close_model(void **state) {
    (void)state;
    model->device = cpu;
    mb_model_close(model);
    return 0;
}

static mb_session_options small_session(void) {
    mb_session_options options;
    mb_session_options_init(&options);
    options.max_sequences = 64;
    options.max_step_tokens = 64;
    options.prefill_chunk = 64;
    return options;
}

static mb_session_memory memory_with(slow_device *slow, const mb_session_options *options) {
    mb_session *session;
    mb_session_memory memory;
    model->device = slow_device_of(slow);
    if (mb_session_open(model, options, &session) != MB_OK)
        fail_msg("%s", mb_last_error());
    mb_session_get_memory(session, &memory);
    mb_session_close(session);
    return memory;
}

static uint64_t token_bytes(const mb_model *of) {
    mb_model_info info;
    mb_model_get_info(of, &info);
    return info.kv_bytes_per_token;
}

/* The cache takes what the fraction leaves, to a block; the figures add up. */
static void test_fraction(void **state) {
    (void)state;
    enum { TOTAL = 64 * MIB };
    slow_device *slow = slow_device_open(TOTAL);
    uint64_t per_token = token_bytes(model);
    mb_session_options options = small_session();
    float fractions[] = {0.5f, 0.92f, 1};
    for (int i = 0; i < 3; i++) {
        options.memory_fraction = fractions[i];
        mb_session_memory memory = memory_with(slow, &options);
        assert_int_equal(memory.device_bytes, TOTAL);
        assert_int_equal(memory.free_bytes, TOTAL - memory.kv_bytes - memory.buffer_bytes);
        assert_int_equal(memory.kv_bytes, per_token * (uint64_t)memory.kv_tokens);
        assert_int_equal(memory.weight_bytes, model->weights.n_bytes);
        double used = (double)(memory.kv_bytes + memory.buffer_bytes);
        assert_true(used <= (double)fractions[i] * TOTAL);
        assert_true(used + 65.0 * (double)per_token > (double)fractions[i] * TOTAL);
    }
    slow_device_close(slow);
}

/* No more than the sequences can fill, which max_context bounds; a smaller one also takes smaller buffers. */
static void test_max_context(void **state) {
    (void)state;
    slow_device *slow = slow_device_open((uint64_t)1024 * MIB);
    mb_session_options options = small_session();
    options.max_sequences = 2;
    mb_session_memory whole = memory_with(slow, &options);
    assert_int_equal(whole.kv_tokens, 2 * MAX_POSITIONS);
    options.max_context = 1000;
    mb_session_memory half = memory_with(slow, &options);
    assert_int_equal(half.kv_tokens, 2 * 1024);
    assert_true(half.buffer_bytes < whole.buffer_bytes);
    options.max_context = 10 * MAX_POSITIONS; /* as the model */
    assert_int_equal(memory_with(slow, &options).kv_tokens, 2 * MAX_POSITIONS);
    slow_device_close(slow);
}

/* A GPU's steps are larger by default; none is larger than its sequences' chunks can fill. */
static void test_step_sizes(void **state) {
    (void)state;
    static const struct {
        int is_gpu;
        int32_t max_sequences, max_step_tokens, prefill_chunk;
        int64_t step_tokens;
    } cases[] = {
        {1, 4, 0, 0, 8192},    {1, 1, 0, 0, 8192},      {0, 4, 0, 0, 2048},    {0, 1, 0, 0, 512},
        {1, 4, 300, 0, 300},   {1, 4, 0, 100, 400},     {0, 4, 5000, 0, 2048}, {0, 4, 0, 4096, 2048},
        {1, 64, 16, 8192, 16}, {0, 3, 100000, 50, 150},
    };
    slow_device *slow = slow_device_open((uint64_t)1024 * MIB);
    int n_sms = slow_device_of(slow)->n_sms;
    mb_session_options options = small_session();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        slow_device_of(slow)->n_sms = cases[i].is_gpu;
        options.max_sequences = cases[i].max_sequences;
        options.max_step_tokens = cases[i].max_step_tokens;
        options.prefill_chunk = cases[i].prefill_chunk;
        assert_int_equal(memory_with(slow, &options).step_tokens, cases[i].step_tokens);
    }
    slow_device_of(slow)->n_sms = n_sms;
    slow_device_close(slow);
}

static void test_max_context_bounds_requests(void **state) {
    (void)state;
    mb_session_options options = small_session();
    options.max_context = 100;
    mb_session *session;
    model->device = cpu;
    assert_int_equal(mb_session_open(model, &options, &session), MB_OK);
    generation g;
    uint64_t id;
    generation_init_random(&g, model, 5, 32, -1, 60, 41);
    assert_int_equal(mb_submit(session, &g.request, &id), MB_ERR_CAPACITY);
    assert_non_null(strstr(mb_last_error(), "max_context"));
    g.request.max_new_tokens = 40;
    generation_run_alone(&g, session);
    assert_int_equal(g.n_tokens, 40);
    generation_free(&g);
    assert_session_idle(session);
    mb_session_close(session);
}

static int holds_only(const unsigned char *bytes, size_t n, unsigned char value) {
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != value)
            return 0;
    return 1;
}

/* All that the cache has of 64 positions, K and V of every layer, is one range of bytes, and each piece of a
 * block is written when the block is. In an fp8 cache the first layer's pieces are larger. */
static void check_blocks(mb_dtype kv_dtype) {
    enum { BLOCKS = 5, PROMPT = 70, UNTOUCHED = 0xa5 };
    mb_session_options options = small_session();
    options.kv_tokens = BLOCKS * MB_KV_BLOCK;
    mb_session *session;
    mb_session_memory memory;
    model->device = cpu;
    model->kv_dtype = kv_dtype;
    assert_int_equal(mb_session_open(model, &options, &session), MB_OK);
    mb_session_get_memory(session, &memory);
    size_t block_bytes = MB_KV_BLOCK * (size_t)token_bytes(model), n_layers = (size_t)model->config.n_layers;
    size_t n_values = (size_t)(model->config.n_kv_heads * MB_KV_BLOCK * model->config.head_dim);
    unsigned char *cache = session->runner.kv.memory;
    assert_true(n_layers > 1);
    assert_int_equal(memory.kv_bytes, BLOCKS * block_bytes);
    memset(cache, UNTOUCHED, (size_t)memory.kv_bytes);
    generation g;
    generation_init_random(&g, model, 5, 32, -1, PROMPT, 1);
    generation_run_alone(&g, session);
    int n_touched = 0;
    for (size_t b = 0; b < BLOCKS; b++) {
        const unsigned char *at = cache + b * block_bytes;
        size_t n = 0;
        for (size_t p = 0; p < 2 * n_layers; p++) {
            size_t piece_bytes = n_values * (kv_dtype == MB_F8_E4M3 && p >= 2 ? 1 : sizeof(float));
            n += !holds_only(at, piece_bytes, UNTOUCHED);
            at += piece_bytes;
        }
        assert_true(holds_only(at, (size_t)(cache + (b + 1) * block_bytes - at), UNTOUCHED));
        assert_true(n == 0 || n == 2 * n_layers);
        n_touched += n > 0;
    }
    assert_int_equal(n_touched, (PROMPT + MB_KV_BLOCK - 1) / MB_KV_BLOCK);
    generation_free(&g);
    mb_session_close(session);
    model->kv_dtype = model->dtype;
}

static void test_a_block_is_one_piece(void **state) {
    (void)state;
    check_blocks(MB_F32);
    check_blocks(MB_F8_E4M3);
}

/* Whatever does not fit: what was needed, what is free, which option to lower. Nothing is left behind. */
static void test_out_of_memory(void **state) {
    (void)state;
    static const struct {
        uint64_t total;
        int64_t kv_tokens;
        float fraction;
        const char *words[3];
    } cases[] = {
        {64 * MIB, 1 << 20, 0.92f, {"KV cache", "lower kv_tokens (--kv-tokens)", "free"}},
        {64 * MIB,
         0,
         0.01f,
         {"memory_fraction (--gpu-memory)", "max_step_tokens (--max-step-tokens)", "free"}},
        {400 << 10, 64, 0.92f, {"buffers of a step", "max_sequences (--max-batch)", "free"}},
        {4 << 10, 64, 0.92f, {"activations of a step", "max_context (--max-context)", "free"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        slow_device *slow = slow_device_open(cases[i].total);
        mb_session_options options = small_session();
        options.kv_tokens = cases[i].kv_tokens;
        options.memory_fraction = cases[i].fraction;
        model->device = slow_device_of(slow);
        mb_session *session;
        assert_int_equal(mb_session_open(model, &options, &session), MB_ERR_MEMORY);
        for (int w = 0; w < 3; w++)
            if (!strstr(mb_last_error(), cases[i].words[w]))
                fail_msg("no \"%s\" in: %s", cases[i].words[w], mb_last_error());
        slow_device_close(slow);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fraction),
        cmocka_unit_test(test_max_context),
        cmocka_unit_test(test_a_block_is_one_piece),
        cmocka_unit_test(test_step_sizes),
        cmocka_unit_test(test_max_context_bounds_requests),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
