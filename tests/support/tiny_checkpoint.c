#include "support/tiny_checkpoint.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"

static int is_moe(const tiny_checkpoint *options, int layer) {
    for (int i = 0; i < options->n_mlp_only_layers; i++)
        if (options->mlp_only_layers[i] == layer)
            return 0;
    return options->n_experts > 0 && (layer + 1) % options->decoder_sparse_step == 0;
}

void tiny_checkpoint_init(tiny_checkpoint *options) {
    *options = (tiny_checkpoint){.hidden = 32,
                                 .n_layers = 2,
                                 .n_heads = 4,
                                 .n_kv_heads = 2,
                                 .head_dim = 16,
                                 .vocab = 64,
                                 .max_positions = 512,
                                 .n_experts = 4,
                                 .top_k = 2,
                                 .moe_intermediate = 24,
                                 .intermediate = 48,
                                 .decoder_sparse_step = 1,
                                 .norm_topk_prob = 1,
                                 .dtype = "F32",
                                 .scale_dtype = "F32",
                                 .scale_name = "weight_scale_inv",
                                 .std = 0.2f,
                                 .seed = 1};
}

/* ---- Random values ------------------------------------------------------------------------------------ */

uint64_t tiny_random(uint64_t *state) {
    return mb_random(state);
}

float tiny_random_float(uint64_t *state) {
    return (float)(tiny_random(state) >> 40) * (2.0f / (1 << 24)) - 1.0f;
}

static uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

/* Enough of fp16 for weights: normal numbers and zero, truncated. */
static uint16_t to_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    int exponent = (int)((bits >> 23) & 0xFF) - 127 + 15;
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
    if (exponent <= 0)
        return sign;
    return (uint16_t)(sign | (exponent << 10) | ((bits >> 13) & 0x3FF));
}

/* mean + spread * uniform; fp8 gets codes of magnitude below 2, which its scales then bring down. */
static void fill(tiny_tensor *tensor, float mean, float spread, uint64_t *state) {
    size_t count = 1;
    for (int i = 0; i < tensor->rank; i++)
        count *= (size_t)tensor->shape[i];
    for (size_t i = 0; i < count; i++) {
        float value = mean + spread * tiny_random_float(state);
        if (strcmp(tensor->dtype, "F32") == 0)
            ((float *)tensor->data)[i] = value;
        else if (strcmp(tensor->dtype, "BF16") == 0)
            ((uint16_t *)tensor->data)[i] = to_bf16(value);
        else if (strcmp(tensor->dtype, "F16") == 0)
            ((uint16_t *)tensor->data)[i] = to_f16(value);
        else if (strcmp(tensor->dtype, "F8_E8M0") == 0)
            ((uint8_t *)tensor->data)[i] = (uint8_t)(122 + tiny_random(state) % 4); /* 1/32 to 1/4 */
        else
            ((uint8_t *)tensor->data)[i] = (uint8_t)(tiny_random(state) & 0xBF);
    }
}

/* ---- The tensors of a model --------------------------------------------------------------------------- */

typedef struct builder {
    const tiny_checkpoint *options;
    tiny_tensors *tensors;
    uint64_t state;
} builder;

static const char *plain_dtype(const tiny_checkpoint *options) {
    return strcmp(options->dtype, "F8_E4M3") == 0 ? "BF16" : options->dtype;
}

__attribute__((format(printf, 5, 6))) static void add_plain(builder *to, float mean, int64_t rows,
                                                            int64_t cols, const char *format, ...) {
    char name[TINY_NAME];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    int64_t matrix[2] = {rows, cols}, vector[1] = {cols};
    int rank = rows > 0 ? 2 : 1;
    tiny_tensor *tensor =
        tiny_tensors_add(to->tensors, name, plain_dtype(to->options), rank, rank == 2 ? matrix : vector);
    fill(tensor, mean, rank == 2 ? to->options->std * sqrtf(3) : 0.2f, &to->state);
}

/* A linear layer's matrix "<name>.weight", in fp8 with "<name>.weight_scale_inv" when the model is. */
static void add_matrix(builder *to, int64_t rows, int64_t cols, const char *name) {
    if (strcmp(to->options->dtype, "F8_E4M3") != 0) {
        add_plain(to, 0, rows, cols, "%s.weight", name);
        return;
    }
    char full[TINY_NAME + 32];
    int64_t shape[2] = {rows, cols}, blocks[2] = {(rows + 127) / 128, (cols + 127) / 128};
    snprintf(full, sizeof full, "%s.weight", name);
    fill(tiny_tensors_add(to->tensors, full, "F8_E4M3", 2, shape), 0, 0, &to->state);
    snprintf(full, sizeof full, "%s.%s", name, to->options->scale_name);
    tiny_tensor *scale = tiny_tensors_add(to->tensors, full, to->options->scale_dtype, 2, blocks);
    fill(scale, to->options->std, to->options->std / 2, &to->state);
}

static void add_experts(builder *to, int layer) {
    const tiny_checkpoint *options = to->options;
    int64_t hidden = options->hidden, inner = options->moe_intermediate, experts = options->n_experts;
    char name[TINY_NAME];
    add_plain(to, 0, experts, hidden, "model.layers.%d.mlp.gate.weight", layer);
    if (options->merged_experts) {
        float spread = options->std * sqrtf(3);
        int64_t gate_up[3] = {experts, 2 * inner, hidden}, down[3] = {experts, hidden, inner};
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.gate_up_proj", layer);
        fill(tiny_tensors_add(to->tensors, name, plain_dtype(options), 3, gate_up), 0, spread, &to->state);
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.down_proj", layer);
        fill(tiny_tensors_add(to->tensors, name, plain_dtype(options), 3, down), 0, spread, &to->state);
        return;
    }
    for (int e = 0; e < options->n_experts; e++) {
        static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
        for (int p = 0; p < 3; p++) {
            snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.%s", layer, e, parts[p]);
            add_matrix(to, p < 2 ? inner : hidden, p < 2 ? hidden : inner, name);
        }
    }
}

static void add_attention(builder *to, int layer) {
    const tiny_checkpoint *options = to->options;
    int64_t q = (int64_t)options->n_heads * options->head_dim;
    int64_t kv = (int64_t)options->n_kv_heads * options->head_dim;
    const char *const names[] = {"q_proj", "k_proj", "v_proj", "o_proj"};
    const int64_t rows[] = {q, kv, kv, options->hidden};
    for (int i = 0; i < 4; i++) {
        char name[TINY_NAME];
        snprintf(name, sizeof name, "model.layers.%d.self_attn.%s", layer, names[i]);
        add_matrix(to, rows[i], i < 3 ? options->hidden : q, name);
        if (options->attention_bias)
            add_plain(to, 0, 0, rows[i], "%s.bias", name);
    }
    add_plain(to, 1, 0, options->head_dim, "model.layers.%d.self_attn.q_norm.weight", layer);
    add_plain(to, 1, 0, options->head_dim, "model.layers.%d.self_attn.k_norm.weight", layer);
}

void tiny_checkpoint_tensors(const tiny_checkpoint *options, tiny_tensors *tensors) {
    *tensors = (tiny_tensors){0};
    builder to = {options, tensors, options->seed};
    add_plain(&to, 0, options->vocab, options->hidden, "model.embed_tokens.weight");
    for (int l = 0; l < options->n_layers; l++) {
        add_plain(&to, 1, 0, options->hidden, "model.layers.%d.input_layernorm.weight", l);
        add_attention(&to, l);
        add_plain(&to, 1, 0, options->hidden, "model.layers.%d.post_attention_layernorm.weight", l);
        if (is_moe(options, l)) {
            add_experts(&to, l);
            continue;
        }
        static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
        for (int p = 0; p < 3; p++) {
            char name[TINY_NAME];
            snprintf(name, sizeof name, "model.layers.%d.mlp.%s", l, parts[p]);
            add_matrix(&to, p < 2 ? options->intermediate : options->hidden,
                       p < 2 ? options->hidden : options->intermediate, name);
        }
    }
    add_plain(&to, 1, 0, options->hidden, "model.norm.weight");
    if (!options->tied)
        add_plain(&to, 0, options->vocab, options->hidden, "lm_head.weight");
}

/* ---- config.json and the directory -------------------------------------------------------------------- */

static const char *torch_dtype(const tiny_checkpoint *options) {
    const char *dtype = plain_dtype(options);
    return strcmp(dtype, "F32") == 0 ? "float32" : strcmp(dtype, "F16") == 0 ? "float16" : "bfloat16";
}

char *tiny_checkpoint_config(const tiny_checkpoint *options) {
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        abort();
    fprintf(f, "{\n  \"architectures\": [\"Qwen3MoeForCausalLM\"],\n  \"model_type\": \"qwen3_moe\",\n");
    fprintf(f, "  \"hidden_size\": %d,\n  \"num_hidden_layers\": %d,\n", options->hidden, options->n_layers);
    fprintf(f, "  \"num_attention_heads\": %d,\n  \"num_key_value_heads\": %d,\n", options->n_heads,
            options->n_kv_heads);
    fprintf(f, "  \"head_dim\": %d,\n  \"vocab_size\": %d,\n", options->head_dim, options->vocab);
    fprintf(f, "  \"max_position_embeddings\": %d,\n", options->max_positions);
    fprintf(f, "  \"%s\": %d,\n", options->new_spelling ? "num_local_experts" : "num_experts",
            options->n_experts);
    fprintf(f, "  \"num_experts_per_tok\": %d,\n  \"moe_intermediate_size\": %d,\n", options->top_k,
            options->moe_intermediate);
    fprintf(f, "  \"intermediate_size\": %d,\n  \"decoder_sparse_step\": %d,\n", options->intermediate,
            options->decoder_sparse_step);
    fprintf(f, "  \"mlp_only_layers\": [");
    for (int i = 0; i < options->n_mlp_only_layers; i++)
        fprintf(f, "%s%d", i ? ", " : "", options->mlp_only_layers[i]);
    fprintf(f, "],\n  \"norm_topk_prob\": %s,\n", options->norm_topk_prob ? "true" : "false");
    fprintf(f, "  \"attention_bias\": %s,\n", options->attention_bias ? "true" : "false");
    fprintf(f, "  \"tie_word_embeddings\": %s,\n", options->tied ? "true" : "false");
    fprintf(f, "  \"hidden_act\": \"silu\",\n  \"rms_norm_eps\": 1e-06,\n");
    if (options->new_spelling)
        fprintf(f, "  \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 10000.0},\n");
    else
        fprintf(f, "  \"rope_theta\": 10000.0,\n  \"rope_scaling\": null,\n");
    if (strcmp(options->dtype, "F8_E4M3") == 0 && strcmp(options->scale_name, "weight_scale") == 0)
        fprintf(
            f,
            "  \"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": "
            "\"float-quantized\", \"ignore\": [\"lm_head\"], \"config_groups\": {\"group_0\": {\"targets\": "
            "[\"Linear\"], \"input_activations\": {\"num_bits\": 8, \"type\": \"float\", \"dynamic\": true}, "
            "\"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"block\", "
            "\"block_structure\": [128, 128], \"dynamic\": false}}}},\n");
    else if (strcmp(options->dtype, "F8_E4M3") == 0)
        fprintf(f, "  \"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", "
                   "\"activation_scheme\": \"dynamic\", \"weight_block_size\": [128, 128]},\n");
    if (options->extra_config)
        fprintf(f, "  %s,\n", options->extra_config);
    fprintf(f, "  \"%s\": \"%s\"\n}\n", options->new_spelling ? "dtype" : "torch_dtype",
            torch_dtype(options));
    if (fclose(f) != 0)
        abort();
    return text;
}

static void write_index(const tiny_tensors *tensors, int n_shards, const char *directory) {
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        abort();
    size_t total = 0;
    for (size_t i = 0; i < tensors->count; i++)
        total += tensors->items[i].n_bytes;
    fprintf(f, "{\"metadata\": {\"total_size\": %zu}, \"weight_map\": {", total);
    size_t per_shard = (tensors->count + (size_t)n_shards - 1) / (size_t)n_shards;
    for (size_t i = 0; i < tensors->count; i++)
        fprintf(f, "%s\"%s\": \"model-%05zu-of-%05d.safetensors\"", i ? ", " : "", tensors->items[i].name,
                i / per_shard + 1, n_shards);
    fprintf(f, "}}\n");
    if (fclose(f) != 0)
        abort();
    tiny_text_write(directory, "model.safetensors.index.json", text);
    free(text);
}

void tiny_checkpoint_write_tensors(const tiny_checkpoint *options, const tiny_tensors *tensors,
                                   const char *directory) {
    char *config = tiny_checkpoint_config(options);
    tiny_text_write(directory, "config.json", config);
    free(config);
    if (options->n_shards == 0) {
        tiny_safetensors_write(tensors, 0, tensors->count, directory, "model.safetensors");
        return;
    }
    size_t per_shard = (tensors->count + (size_t)options->n_shards - 1) / (size_t)options->n_shards;
    for (int s = 0; s < options->n_shards; s++) {
        char name[64];
        size_t first = per_shard * (size_t)s;
        size_t count = first >= tensors->count              ? 0
                       : first + per_shard > tensors->count ? tensors->count - first
                                                            : per_shard;
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", s + 1, options->n_shards);
        if (count > 0)
            tiny_safetensors_write(tensors, first, count, directory, name);
    }
    write_index(tensors, options->n_shards, directory);
}

void tiny_checkpoint_write(const tiny_checkpoint *options, const char *directory) {
    tiny_tensors tensors;
    tiny_checkpoint_tensors(options, &tensors);
    tiny_checkpoint_write_tensors(options, &tensors, directory);
    tiny_tensors_free(&tensors);
}
