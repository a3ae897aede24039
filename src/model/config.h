/* config.h - config.json and generation_config.json of a Qwen3-MoE checkpoint, checked. */
#ifndef MB_MODEL_CONFIG_H
#define MB_MODEL_CONFIG_H

#include <jansson.h>
#include <stdint.h>

#include "base/status.h"
#include "moebius/ops.h"

enum { MB_MAX_LAYERS = 1024, MB_MAX_EOS = 256, MB_MAX_HEAD_DIM = 512 };

/* What lets a layer's tokens see each other. A model with other kinds beside attention gets them here. */
typedef enum mb_layer_kind { MB_LAYER_ATTENTION } mb_layer_kind;

typedef struct mb_config {
    int32_t hidden, n_layers, n_heads, n_kv_heads, head_dim;
    int32_t vocab, max_positions;
    int32_t n_experts, top_k, moe_intermediate, intermediate;
    uint8_t kinds[MB_MAX_LAYERS];  /* per layer, mb_layer_kind, from layer_types */
    uint8_t is_moe[MB_MAX_LAYERS]; /* per layer, from decoder_sparse_step, mlp_only_layers and n_experts */
    int32_t norm_topk_prob, attention_bias, tie_embeddings;
    float rms_eps;
    mb_activation
        activation; /* from hidden_act: "silu" -> MB_ACT_SWIGLU, "gelu_pytorch_tanh" -> MB_ACT_GEGLU, ... */
    mb_dtype
        dtype; /* "dtype" or "torch_dtype"; other names than those of our types: MB_F32, the tensors tell */
    int32_t fp8_blocks; /* quantization_config says fp8 with 128x128 blocks */

    float inv_freq[MB_MAX_HEAD_DIM / 2]; /* rotary frequencies, scaling (default, linear, yarn) applied */
    float rope_scale;                    /* YaRN's attention factor, else 1 */

    int32_t eos_ids[MB_MAX_EOS], n_eos_ids;
} mb_config;

/* Parses and checks config.json's bytes. `path` is for the error sentence. MB_ERR_FORMAT: not JSON;
 * MB_ERR_CONFIG: a value is missing, of the wrong type or out of range (the sentence names the key);
 * MB_ERR_UNSUPPORTED: another architecture, sliding window, a layer without full attention, unknown rope or
 * quantisation type. A key that is
 * there twice: the last one counts, with a warning. */
mb_status mb_config_parse(const char *path, const char *json, size_t n_bytes, mb_config *config);

/* A setting that the file has wrong is NaN here (top_k: -1). mb_submit refuses these values, so the
 * request must set its own. */
typedef struct mb_generation {
    float temperature, top_p, min_p, repetition_penalty;
    int32_t top_k;     /* 0: off */
    int32_t do_sample; /* 0: greedy */
    int32_t eos_ids[MB_MAX_EOS], n_eos_ids;
} mb_generation;

/* Defaults (greedy; eos of `config`) where the file has no value. json NULL: no file. Fails only when
 * the file is no JSON object; single settings that are wrong give a warning. */
mb_status mb_generation_parse(const char *path, const char *json, size_t n_bytes, const mb_config *config,
                              mb_generation *generation);

/* "eos_token_id" of either file, one id or an array; ids and n_ids [MB_MAX_EOS] stay as they are without it.
 * Ids outside of the vocabulary are left out with a warning, others than integers are MB_ERR_CONFIG. */
mb_status mb_eos_read(const char *path, const json_t *root, int32_t vocab, int32_t *ids, int32_t *n_ids);

#endif
