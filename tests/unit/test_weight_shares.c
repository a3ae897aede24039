/* Shares of a model: a plan's ranges of heads, columns and experts read exactly these. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/weights/weight_read.h"
#include "support/check_weights.h"
#include "support/fake_device.h"

#define L0 "model.layers.0."

static void check_share_of_layer(const tiny_checkpoint *o, const tiny_tensors *tensors,
                                 const mb_weight_share *share, int is_moe, const mb_layer_weights *w) {
    const mb_range q = {share->heads.first * o->head_dim, share->heads.count * o->head_dim};
    const mb_range kv = {share->kv_heads.first * o->head_dim, share->kv_heads.count * o->head_dim};
    const mb_range hidden = {0, o->hidden}, inner = is_moe ? share->moe_inner : share->inner;
    check_rectangle(tensors, L0 "self_attn.q_proj.weight", &w->qkv, 0, 0, q, hidden);
    check_rectangle(tensors, L0 "self_attn.k_proj.weight", &w->qkv, 0, q.count, kv, hidden);
    check_rectangle(tensors, L0 "self_attn.v_proj.weight", &w->qkv, 0, q.count + kv.count, kv, hidden);
    check_rectangle(tensors, L0 "self_attn.o_proj.weight", &w->o, 0, 0, hidden, q);
    const mb_weight bias = {.data = w->qkv_bias.data,
                            .count = 1,
                            .rows = w->qkv_bias.cols,
                            .cols = 1,
                            .dtype = w->qkv_bias.dtype};
    check_rectangle(tensors, L0 "self_attn.v_proj.bias", &bias, 0, q.count + kv.count, kv, (mb_range){0, 1});
    if (!is_moe) {
        check_rectangle(tensors, L0 "mlp.gate_proj.weight", &w->w13, 0, 0, inner, hidden);
        check_rectangle(tensors, L0 "mlp.up_proj.weight", &w->w13, 0, inner.count, inner, hidden);
        check_rectangle(tensors, L0 "mlp.down_proj.weight", &w->w2, 0, 0, hidden, inner);
        return;
    }
    assert_int_equal(w->w13.count, share->experts.count);
    assert_int_equal(w->router.rows, o->n_experts);
    for (int64_t e = 0; e < share->experts.count; e++) {
        int64_t expert = share->experts.first + e, all = o->moe_intermediate;
        char name[TINY_NAME];
        if (o->merged_experts) {
            const mb_range gate = {expert * 2 * all + inner.first, inner.count},
                           up = {gate.first + all, inner.count};
            const mb_range down = {expert * o->hidden, o->hidden};
            check_rectangle(tensors, L0 "mlp.experts.gate_up_proj", &w->w13, e, 0, gate, hidden);
            check_rectangle(tensors, L0 "mlp.experts.gate_up_proj", &w->w13, e, inner.count, up, hidden);
            check_rectangle(tensors, L0 "mlp.experts.down_proj", &w->w2, e, 0, down, inner);
            continue;
        }
        snprintf(name, sizeof name, L0 "mlp.experts.%d.gate_proj.weight", (int)expert);
        check_rectangle(tensors, name, &w->w13, e, 0, inner, hidden);
        snprintf(name, sizeof name, L0 "mlp.experts.%d.up_proj.weight", (int)expert);
        check_rectangle(tensors, name, &w->w13, e, inner.count, inner, hidden);
        snprintf(name, sizeof name, L0 "mlp.experts.%d.down_proj.weight", (int)expert);
        check_rectangle(tensors, name, &w->w2, e, 0, hidden, inner);
    }
}

/* Plans and reads a share of a one-layer model; wanted: what planning gives. */
static void check_share(const tiny_checkpoint *o, const tiny_tensors *tensors, const mb_weight_share *share,
                        int host_memory, mb_status wanted) {
    char directory[TINY_PATH];
    mb_config config;
    mb_checkpoint checkpoint;
    mb_weight_plan plan;
    mb_layer_weights layer = {0};
    mb_weights w = {.layers = &layer, .n_layers = 1};
    fake_device fake = fake_device_make(host_memory);
    tiny_directory_make(directory);
    tiny_checkpoint_write_tensors(o, tensors, directory);
    tiny_config_parse(o, &config);
    assert_int_equal(mb_checkpoint_open(directory, &checkpoint), MB_OK);
    if (host_memory)
        assert_int_equal(mb_checkpoint_map(&checkpoint), MB_OK);
    mb_status status = mb_weight_plan_make(&checkpoint, &config, share, &w, &plan);
    if (status != wanted)
        fail_msg("%s: %s", mb_status_name(status), mb_last_error());
    if (status == MB_OK) {
        void *memory;
        progress_log log = {.owner = pthread_self()};
        assert_int_equal(fake.device.allocate(&fake.device, plan.n_bytes, &memory), MB_OK);
        assert_int_equal(mb_weight_plan_read(&plan, &checkpoint, &fake.device, memory, 3, log_progress, &log),
                         MB_OK);
        assert_int_equal(log.done, plan.read_bytes);
        mb_weight_plan_place(&plan, memory);
        check_share_of_layer(o, tensors, share, config.is_moe[0], &layer);
        check_rows(tensors, "model.embed_tokens.weight", &w.embedding, 0, 0, o->vocab);
        fake.device.free(&fake.device, memory);
    }
    mb_weight_plan_free(&plan);
    mb_checkpoint_close(&checkpoint);
    tiny_directory_remove(directory);
}

static void test_shares(void **state) {
    (void)state;
    static const mb_weight_share shares[] = {
        {{0, 4}, {0, 2}, {0, 256}, {0, 384}, {0, 4}, {0}},     /* all of it */
        {{0, 2}, {0, 1}, {0, 128}, {0, 128}, {0, 4}, {0}},     /* the first of two */
        {{2, 2}, {1, 1}, {128, 128}, {128, 256}, {0, 4}, {0}}, /* the second, and more */
        {{0, 4}, {0, 2}, {0, 256}, {0, 384}, {1, 2}, {0}},     /* experts in the middle */
        {{3, 1}, {1, 1}, {128, 128}, {256, 128}, {3, 1}, {0}}, /* one of each */
        {{0, 4},
         {0, 2},
         {0, 100},
         {0, 100},
         {2, 2},
         {0}}, /* from the first column: no block begins earlier */
        {{0, 4}, {0, 2}, {128, 72}, {128, 72}, {0, 1}, {0}}, /* heights that are no blocks */
        {{0, 4}, {0, 2}, {64, 64}, {80, 96}, {0, 4}, {0}},   /* columns that begin within a block */
    };
    static const struct {
        const char *dtype;
        int is_dense, has_merged_experts;
        const char *retyped[3]; /* bf16 among fp8 */
        int is_cut;             /* the last share would cut blocks of scales: w2 stays fp8 */
        int to_fp8;
    } variants[] = {
        {"F32", 0, 0, {NULL}, 0, 0},
        {"BF16", 0, 1, {NULL}, 0, 0},
        {"F32", 1, 0, {NULL}, 0, 0},
        {"F8_E4M3", 1, 0, {NULL}, 1, 0},
        {"F8_E4M3", 0, 0, {NULL}, 1, 0},
        {"F8_E4M3", 0, 0, {L0 "mlp.experts.1.down_proj.weight", L0 "self_attn.v_proj.weight"}, 0, 0},
        {"F8_E4M3", 0, 0, {L0 "mlp.experts.1.down_proj.weight", L0 "mlp.experts.2.up_proj.weight"}, 0, 0},
        {"F32", 0, 0, {NULL}, 1, 1},
        {"BF16", 0, 1, {NULL}, 1, 1},
        {"F16", 1, 0, {NULL}, 1, 1},
        {"F8_E4M3", 0, 0, {L0 "mlp.experts.1.down_proj.weight", L0 "self_attn.v_proj.weight"}, 1, 1},
    };
    static const int dense[] = {0};
    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++) {
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.dtype = variants[v].dtype;
        options.n_layers = 1;
        options.hidden = 130;
        options.head_dim = 128;
        options.intermediate = 256;
        options.moe_intermediate = 384;
        options.attention_bias = 1;
        options.mlp_only_layers = dense;
        options.n_mlp_only_layers = variants[v].is_dense;
        options.merged_experts = variants[v].has_merged_experts;
        tiny_tensors tensors;
        tiny_checkpoint_tensors(&options, &tensors);
        for (int i = 0; variants[v].retyped[i]; i++)
            tiny_tensor_retype(&tensors, variants[v].retyped[i], "BF16");
        for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
            int is_cut = i + 1 == sizeof shares / sizeof *shares && variants[v].is_cut;
            mb_weight_share share = shares[i];
            share.types.to_fp8 = variants[v].to_fp8;
            check_share(&options, &tensors, &share, 0, is_cut ? MB_ERR_UNSUPPORTED : MB_OK);
            check_share(&options, &tensors, &share, 1, is_cut ? MB_ERR_UNSUPPORTED : MB_OK);
        }
        tiny_tensors_free(&tensors);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shares)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
