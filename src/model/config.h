/* config.h - config.json and generation_config.json of a Qwen3-MoE checkpoint, checked. */
#ifndef MB_MODEL_CONFIG_H
#define MB_MODEL_CONFIG_H

#include <stdint.h>

#include "base/status.h"
#include "moebius/ops.h"

enum { MB_MAX_LAYERS = 1024, MB_MAX_EOS = 8, MB_MAX_HEAD_DIM = 512 };

typedef struct mb_config {
    int32_t hidden, n_layers, n_heads, n_kv_heads, head_dim;
    int32_t vocab, max_positions;
    int32_t n_experts, top_k, moe_intermediate, intermediate;
    uint8_t is_moe[MB_MAX_LAYERS]; /* per layer, from decoder_sparse_step, mlp_only_layers and n_experts */
    int32_t norm_topk_prob, attention_bias, tie_embeddings;
    float rms_eps;
    mb_activation
        activation; /* from hidden_act: "silu" -> MB_ACT_SWIGLU, "gelu_pytorch_tanh" -> MB_ACT_GEGLU, ... */
    mb_dtype dtype; /* "dtype" or "torch_dtype": what the checkpoint says it is */
    int32_t fp8_blocks; /* quantization_config says fp8 with 128x128 blocks */

    float inv_freq[MB_MAX_HEAD_DIM / 2]; /* rotary frequencies, scaling (default, linear, yarn) applied */
    float rope_scale;                    /* YaRN's attention factor, else 1 */

    int32_t bos_id; /* -1: none */
    int32_t eos_ids[MB_MAX_EOS], n_eos_ids;
} mb_config;

/* Parses and checks config.json's bytes. `path` is for the error sentence. MB_ERR_FORMAT: not JSON;
 * MB_ERR_CONFIG: a value is missing, of the wrong type or out of range (the sentence names the key);
 * MB_ERR_UNSUPPORTED: another architecture, sliding window, unknown rope or quantisation type. */
mb_status mb_config_parse(const char *path, const char *json, size_t n_bytes, mb_config *config);

typedef struct mb_generation {
    float temperature, top_p, min_p, repetition_penalty;
    int32_t top_k;
    int32_t do_sample; /* 0: greedy */
    int32_t eos_ids[MB_MAX_EOS], n_eos_ids;
} mb_generation;

/* Defaults (greedy; eos of `config`) where the file has no value. json NULL: no file. */
mb_status mb_generation_parse(const char *path, const char *json, size_t n_bytes, const mb_config *config,
                              mb_generation *generation);

#endif
