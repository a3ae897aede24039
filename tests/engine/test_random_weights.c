/* Random weights are for measuring: the router of every layer must spread the tokens of one prompt. */
#include "model/qwen3_moe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "support/check_weights.h"
#include "support/tiny_checkpoint.h"

enum { TOKENS = 192, BLOCKS = TOKENS / MB_KV_BLOCK, EXPERTS = 32, TOP_K = 4, LAYERS = 4 };

/* Runs one prompt of random tokens, and counts the last layer's rows for each expert. */
static void count_rows(const mb_config *config, const mb_weights *weights, mb_device *device,
                       int32_t rows[EXPERTS]) {
    static int32_t ids[TOKENS], positions[TOKENS], slots[TOKENS], blocks[BLOCKS];
    static const int32_t q_start[] = {0, TOKENS}, kv_len[] = {TOKENS};
    const mb_kv_layout layout = mb_kv_layout_make(config, MB_F32, MB_F32);
    static const int32_t logit_rows[] = {TOKENS - 1};
    uint64_t state = 5;
    for (int32_t i = 0; i < TOKENS; i++) {
        ids[i] = (int32_t)(tiny_random(&state) % (uint64_t)config->vocab);
        positions[i] = i;
        slots[i] = mb_kv_layout_slot(i, layout.pieces);
    }
    for (int32_t b = 0; b < BLOCKS; b++)
        blocks[b] = b * layout.pieces;
    mb_forward forward;
    mb_stream stream;
    const mb_forward_limits limits = {TOKENS, 1, 1, BLOCKS, MB_F32};
    assert_int_equal(device->stream_open(device, &stream), MB_OK);
    assert_int_equal(mb_forward_init(&forward, config, weights, device, MB_F32, &limits, stream), MB_OK);
    mb_kv_memory kv = {.memory = malloc(BLOCKS * layout.block_bytes), .layout = layout, .n_blocks = BLOCKS};
    float *logits = malloc((size_t)config->vocab * sizeof *logits);
    assert_true(kv.memory && logits);
    const mb_batch batch = {.ids = ids,
                            .positions = positions,
                            .slots = slots,
                            .q_start = q_start,
                            .kv_len = kv_len,
                            .block_table = blocks,
                            .logit_rows = logit_rows,
                            .logits = logits,
                            .n_tokens = TOKENS,
                            .n_sequences = 1,
                            .n_logits = 1,
                            .max_blocks = BLOCKS,
                            .max_q_len = TOKENS,
                            .max_kv_len = TOKENS};
    assert_int_equal(mb_forward_run(&forward, &kv, &batch, stream), MB_OK);
    assert_int_equal(device->synchronize(device, stream), MB_OK);
    for (int32_t e = 0; e < EXPERTS; e++)
        rows[e] = 0;
    for (int32_t i = 0; i < TOKENS * TOP_K; i++)
        rows[forward.route_ids[i]]++;
    free(logits);
    free(kv.memory);
    mb_forward_free(&forward);
    device->stream_close(device, stream);
}

static void test_the_router_spreads(void **state) {
    (void)state;
    mb_device *device;
    assert_int_equal(mb_device_open_cpu(2, &device), MB_OK);
    for (int is_fp8 = 0; is_fp8 < 2; is_fp8++) {
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.hidden = 512;
        options.n_layers = LAYERS;
        options.n_heads = 16;
        options.n_kv_heads = 2;
        options.head_dim = 64;
        options.vocab = 1000;
        options.n_experts = EXPERTS;
        options.top_k = TOP_K;
        options.moe_intermediate = 128;
        options.dtype = is_fp8 ? "F8_E4M3" : "BF16";
        mb_config config;
        mb_weights weights;
        int32_t rows[EXPERTS];
        tiny_config_parse(&options, &config);
        assert_int_equal(mb_weights_random(&config, device, (mb_weight_types){0}, &weights), MB_OK);
        count_rows(&config, &weights, device, rows);
        /* Evenly spread an expert has 24 rows; with tokens that are alike some have none, and some nearly all. */
        for (int32_t e = 0; e < EXPERTS; e++)
            assert_in_range(rows[e], 8, 56);
        mb_weights_free(&weights);
    }
    mb_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_the_router_spreads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
