/*
 * A device may have the whole MoE block as one operator, which leaves the sum of its rows to the next
 * layer's first operator (mb_ops, moe_block). Here the CPU does, and the logits have the same bits.
 */
#include "model/qwen3_moe.h"
#include "ops/moe/block_arguments.h"
#include "ops/moe/moe.h"
#include "ops/op_table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/check_weights.h"
#include "support/tiny_checkpoint.h"

enum { TOKENS = 70, BLOCKS = 2, LAYERS = 4, VOCAB = 200, ROWS = 3, MEMORY = 8 << 20 };

static int n_left, n_whole;
static char *memory; /* of the block's rows, until the next block */
static size_t n_used;

static void *cut(size_t n_bytes) {
    void *piece = memory + n_used;
    n_used += (n_bytes + 63) / 64 * 64;
    return piece;
}

static mb_status moe_block(const mb_rms_norm_args *norm, const mb_moe_router_gemm_args *score,
                           const mb_moe_forward_args *args, void *workspace, size_t workspace_bytes,
                           mb_moe_reduce_args *left, mb_stream stream) {
    assert_int_equal(mb_moe_block_check(norm, score, args), MB_OK);
    assert_int_equal(mb_rms_norm_ref(norm, stream), MB_OK);
    assert_int_equal(mb_moe_router_gemm_ref(score, workspace, workspace_bytes, stream), MB_OK);
    n_whole += !left;
    if (!left)
        return mb_moe_forward_ref(args, workspace, workspace_bytes, stream);
    n_left++;
    assert_ptr_not_equal(args->residual, args->out); /* whoever sums reads one and writes the other */
    assert_int_equal(mb_moe_route_ref(args->route, stream), MB_OK);
    size_t n_rows = (size_t)(args->n_tokens * args->top_k);
    n_used = 0;
    mb_moe_plan_args plan = {.ids = args->ids,
                             .n_tokens = args->n_tokens,
                             .top_k = args->top_k,
                             .n_experts = args->n_experts,
                             .n_local_experts = args->n_local_experts,
                             .offsets = cut(((size_t)args->n_local_experts + 1) * 4),
                             .row_token = cut(n_rows * 4),
                             .token_row = cut(n_rows * 4)};
    /* As on a GPU: the call that makes the sum gets the same workspace. */
    void *y = workspace, *rest = cut(0);
    assert_true(n_rows * (size_t)args->hidden * 2 <= workspace_bytes);
    size_t rest_bytes = MEMORY - n_used;
    assert_int_equal(mb_moe_plan_ref(&plan, rest, rest_bytes, stream), MB_OK);
    const mb_moe_experts_args experts = {.x = args->x,
                                         .row_index = plan.row_token,
                                         .offsets = plan.offsets,
                                         .w13 = args->w13,
                                         .w2 = args->w2,
                                         .y = y,
                                         .n_tokens = args->n_tokens,
                                         .n_rows = (int64_t)n_rows,
                                         .hidden = args->hidden,
                                         .intermediate = args->intermediate,
                                         .n_local_experts = args->n_local_experts,
                                         .dtype = args->dtype,
                                         .activation = args->activation,
                                         .f32_math = args->f32_math};
    assert_int_equal(mb_moe_experts_ref(&experts, rest, rest_bytes, stream), MB_OK);
    *left = (mb_moe_reduce_args){.y = y,
                                 .weights = args->weights,
                                 .token_row = plan.token_row,
                                 .residual = args->residual,
                                 .out = args->out,
                                 .n_tokens = args->n_tokens,
                                 .hidden = args->hidden,
                                 .top_k = args->top_k,
                                 .dtype = args->dtype,
                                 .out_dtype = args->dtype};
    return MB_OK;
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
    assert_int_equal(forward.rows_of_x[1] != NULL, device->ops->moe_block != NULL);
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

/* The third layer is dense. */
static void test_moe_block(void **state) {
    (void)state;
    static const int dense_layers[] = {2};
    static float plain[ROWS * VOCAB], in_block[ROWS * VOCAB];
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
    mb_config config;
    mb_weights weights;
    tiny_config_parse(&options, &config);
    assert_int_equal(mb_weights_random(&config, device, (mb_weight_types){0}, &weights), MB_OK);
    memory = calloc(MEMORY, 1);
    assert_non_null(memory);
    const mb_ops *ops = device->ops;
    mb_ops with_block = *ops;
    with_block.moe_block = moe_block;
    const int32_t n_tokens[] = {1, 5, TOKENS};
    for (int i = 0; i < 3; i++) {
        device->ops = ops;
        run(&config, &weights, device, n_tokens[i], plain);
        device->ops = &with_block;
        n_left = n_whole = 0;
        run(&config, &weights, device, n_tokens[i], in_block);
        assert_int_equal(n_left, 2);
        assert_int_equal(n_whole, 1);
        assert_memory_equal(in_block, plain,
                            sizeof(float) * VOCAB * (size_t)(n_tokens[i] < ROWS ? n_tokens[i] : ROWS));
    }
    device->ops = ops;
    free(memory);
    mb_weights_free(&weights);
    mb_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_moe_block)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
