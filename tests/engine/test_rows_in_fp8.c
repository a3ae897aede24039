/*
 * A device may want the rows that a product reads in fp8, from the operator that makes them. The norm then
 * writes fp8, and the next layer reads these. Here the CPU wants that.
 */
#include "model/qwen3_moe.h"
#include "ops/op_table.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "support/check_weights.h"
#include "support/tiny_checkpoint.h"

enum { TOKENS = 70, BLOCKS = 2, LAYERS = 3, VOCAB = 200, ROWS = 3 };

/* What the operators of a pass were given. */
static struct calls { int attention, in_place, norms, gemms, experts; } calls;

static int wants_x8(mb_dtype dtype, const mb_weight *weight, int64_t n_tokens) {
    return dtype != MB_F32 && weight->dtype == MB_F8_E4M3 && n_tokens > 1;
}

static mb_status counted_norm(const mb_rms_norm_args *args, mb_stream stream) {
    calls.norms += args->out8 != NULL;
    return mb_rms_norm_ref(args, stream);
}

static mb_status counted_gemm(const mb_gemm_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream) {
    calls.gemms += args->x8 != NULL;
    return mb_gemm_ref(args, workspace, workspace_bytes, stream);
}

static mb_status counted_experts(const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                                 mb_stream stream) {
    calls.experts += args->x8 != NULL;
    return mb_moe_forward_ref(args, workspace, workspace_bytes, stream);
}

/* Logits of the last rows of a prompt of n_tokens. */
static void run(const mb_config *config, const mb_weights *weights, mb_device *device, int32_t n_tokens,
                float logits[ROWS * VOCAB]) {
    int32_t ids[TOKENS], positions[TOKENS], slots[TOKENS], logit_rows[ROWS], blocks[BLOCKS];
    const int32_t q_start[] = {0, n_tokens}, kv_len[] = {n_tokens}, span_start[] = {0, 1};
    const mb_kv_layout layout = mb_kv_layout_make(config, MB_BF16, MB_BF16);
    for (int32_t i = 0; i < n_tokens; i++) {
        ids[i] = i * 7 % VOCAB;
        positions[i] = i;
        slots[i] = mb_kv_layout_slot(i, layout.pieces);
    }
    for (int32_t b = 0; b < BLOCKS; b++)
        blocks[b] = b * layout.pieces;
    int32_t n_logits = n_tokens < ROWS ? n_tokens : ROWS;
    for (int32_t i = 0; i < n_logits; i++)
        logit_rows[i] = n_tokens - n_logits + i;
    mb_forward forward;
    mb_stream stream;
    const mb_forward_limits limits = {TOKENS, 1, ROWS, BLOCKS, MB_BF16};
    assert_int_equal(device->stream_open(device, &stream), MB_OK);
    assert_int_equal(mb_forward_init(&forward, config, weights, device, MB_BF16, &limits, stream), MB_OK);
    mb_kv_memory kv = {.memory = calloc(BLOCKS, layout.block_bytes), .layout = layout, .n_blocks = BLOCKS};
    assert_true(kv.memory);
    const mb_batch batch = {.ids = ids,
                            .positions = positions,
                            .slots = slots,
                            .q_start = q_start,
                            .kv_len = kv_len,
                            .span_start = span_start,
                            .block_table = blocks,
                            .logit_rows = logit_rows,
                            .logits = logits,
                            .n_tokens = n_tokens,
                            .n_sequences = 1,
                            .n_logits = n_logits,
                            .max_blocks = BLOCKS,
                            .max_q_len = n_tokens,
                            .max_kv_len = n_tokens};
    if (mb_forward_run(&forward, &kv, &batch, stream) != MB_OK)
        fail_msg("%s", mb_last_error());
    free(kv.memory);
    mb_forward_free(&forward);
    device->stream_close(device, stream);
}

/* One layer of three is dense. */
static void test_rows_in_fp8(void **state) {
    (void)state;
    static const int dense_layers[] = {1};
    static float plain[ROWS * VOCAB], in_fp8[ROWS * VOCAB];
    mb_device *device;
    assert_int_equal(mb_device_open_cpu(2, &device), MB_OK);
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.hidden = 192;
    options.n_layers = LAYERS;
    options.n_heads = 4;
    options.n_kv_heads = 2;
    options.head_dim = 128;
    options.vocab = VOCAB;
    options.intermediate = 256;
    options.mlp_only_layers = dense_layers;
    options.n_mlp_only_layers = 1;
    options.dtype = "F8_E4M3";
    mb_config config;
    mb_weights weights;
    tiny_config_parse(&options, &config);
    assert_int_equal(mb_weights_random(&config, device, (mb_weight_types){0}, &weights), MB_OK);
    const mb_ops *ops = device->ops;
    mb_ops wanting = *ops;
    wanting.wants_x8 = wants_x8;
    wanting.rms_norm = counted_norm;
    wanting.gemm = counted_gemm;
    wanting.moe_forward = counted_experts;

    run(&config, &weights, device, TOKENS, plain);
    device->ops = &wanting;
    run(&config, &weights, device, TOKENS, in_fp8);
    assert_int_equal(calls.norms, LAYERS);
    assert_int_equal(calls.gemms, 1); /* the dense layer's gate and up */
    assert_int_equal(calls.experts, LAYERS - 1);
    double difference = 0, squares = 0;
    for (int i = 0; i < ROWS * VOCAB; i++) {
        difference += pow((double)(in_fp8[i] - plain[i]), 2);
        squares += pow((double)plain[i], 2);
    }
    assert_true(difference > 0 && difference < 0.1 * 0.1 * squares); /* e4m3: some 2.5 % a product */

    calls = (struct calls){0};
    run(&config, &weights, device, 1, in_fp8); /* nobody wants fp8 */
    assert_int_equal(calls.norms + calls.gemms + calls.experts, 0);
    device->ops = ops;
    mb_weights_free(&weights);
    mb_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows_in_fp8)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
