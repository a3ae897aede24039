#include "model/config.h"

#include <string.h>

#include "model/json.h"
#include "model/json_values.h"
#include "model/quantization.h"
#include "model/rope_scaling.h"

enum {
    SHOWN = 64,
    MAX_WIDTH = 1 << 16, /* hidden size */
    MAX_HEADS = 1024,
    MAX_INTERMEDIATE = 1 << 20,
    MAX_VOCAB = 1 << 24,
    MAX_POSITIONS = 1 << 24,
    MAX_EXPERTS = 1024,
    MAX_TOP_K = 32,
};
#define MAX_PARAMETERS (UINT64_C(1) << 48)

/* The document being read. */
typedef struct reader {
    const char *path;
    const json_t *root;
} reader;

static mb_status read_int(const reader *r, const char *key, int32_t min, int32_t max, int32_t *value) {
    return mb_json_read_int(r->path, r->root, key, min, max, value);
}

static mb_status require_int(const reader *r, const char *key, int32_t min, int32_t max, int32_t *value) {
    if (!mb_json_present(r->root, key))
        return mb_fail(MB_ERR_CONFIG, "%s: \"%s\" is missing; it must be an integer from %d to %d", r->path,
                       key, min, max);
    return read_int(r, key, min, max, value);
}

static mb_status check_architecture(const reader *r) {
    char shown[SHOWN];
    const char *type = NULL;
    MB_TRY(mb_json_read_string(r->path, r->root, "model_type", &type));
    if (type && strcmp(type, "qwen3_moe") != 0)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: \"model_type\" is %s; moebius runs \"qwen3_moe\" (Qwen3MoeForCausalLM) only",
                       r->path, mb_quote(shown, sizeof shown, type));
    const json_t *names = mb_json_present(r->root, "architectures");
    if (!names && !type)
        return mb_fail(
            MB_ERR_CONFIG,
            "%s: neither \"model_type\" nor \"architectures\" is there; is this a model's config.json?",
            r->path);
    if (!names)
        return MB_OK;
    size_t i;
    json_t *name;
    json_array_foreach((json_t *)names, i, name) {
        if (json_is_string(name) && strcmp(json_string_value(name), "Qwen3MoeForCausalLM") == 0)
            return MB_OK;
    }
    const json_t *first =
        json_is_array(names) && json_array_size(names) > 0 ? json_array_get(names, 0) : names;
    return mb_fail(MB_ERR_UNSUPPORTED,
                   "%s: \"architectures\" is %s; moebius runs \"Qwen3MoeForCausalLM\" only", r->path,
                   mb_json_describe(shown, sizeof shown, first));
}

/* A window counts when it is switched on, has a size, and is shorter than what the model can see anyway. */
static mb_status check_sliding_window(const reader *r, int32_t max_positions) {
    int32_t is_used = 0, window = max_positions;
    MB_TRY(mb_json_read_bool(r->path, r->root, "use_sliding_window", &is_used));
    if (!is_used)
        return MB_OK;
    MB_TRY(read_int(r, "sliding_window", 0, INT32_MAX, &window));
    if (window >= max_positions)
        return MB_OK;
    return mb_fail(
        MB_ERR_UNSUPPORTED,
        "%s: \"use_sliding_window\" is true and \"sliding_window\" is %d, less than the %d positions; "
        "only full attention is supported",
        r->path, window, max_positions);
}

/* "layer_types": without it all layers are attention. */
static mb_status read_layer_kinds(const reader *r, mb_config *c) {
    char shown[SHOWN];
    for (int32_t l = 0; l < c->n_layers; l++)
        c->kinds[l] = MB_LAYER_ATTENTION;
    const json_t *types = mb_json_present(r->root, "layer_types");
    if (!types)
        return MB_OK;
    if (!json_is_array(types))
        return mb_fail(MB_ERR_CONFIG,
                       "%s: \"layer_types\" is %s; it must be an array with a name for each of the "
                       "%d layers",
                       r->path, mb_json_describe(shown, sizeof shown, types), c->n_layers);
    if (json_array_size(types) != (size_t)c->n_layers)
        return mb_fail(MB_ERR_CONFIG,
                       "%s: the length of \"layer_types\" is %zu; it must be %d, a name for each layer",
                       r->path, json_array_size(types), c->n_layers);
    size_t i;
    json_t *type;
    json_array_foreach((json_t *)types, i, type) {
        if (!json_is_string(type) || strcmp(json_string_value(type), "full_attention") != 0)
            return mb_fail(MB_ERR_UNSUPPORTED,
                           "%s: \"layer_types\" has %s for layer %zu; only \"full_attention\" is supported",
                           r->path, mb_json_describe(shown, sizeof shown, type), i);
    }
    return MB_OK;
}

static mb_status read_attention(const reader *r, mb_config *c) {
    MB_TRY(require_int(r, "hidden_size", 1, MAX_WIDTH, &c->hidden));
    MB_TRY(require_int(r, "num_hidden_layers", 1, MB_MAX_LAYERS, &c->n_layers));
    MB_TRY(require_int(r, "num_attention_heads", 1, MAX_HEADS, &c->n_heads));
    MB_TRY(require_int(r, "num_key_value_heads", 1, MAX_HEADS, &c->n_kv_heads));
    MB_TRY(require_int(r, "vocab_size", 1, MAX_VOCAB, &c->vocab));
    if (c->n_heads % c->n_kv_heads != 0)
        return mb_fail(MB_ERR_CONFIG,
                       "%s: \"num_attention_heads\" (%d) is not a multiple of "
                       "\"num_key_value_heads\" (%d)",
                       r->path, c->n_heads, c->n_kv_heads);
    c->head_dim = c->hidden / c->n_heads;
    MB_TRY(read_int(r, "head_dim", 2, MB_MAX_HEAD_DIM, &c->head_dim));
    if (c->head_dim < 2 || c->head_dim > MB_MAX_HEAD_DIM || c->head_dim % 2 != 0)
        return mb_fail(MB_ERR_CONFIG,
                       "%s: \"head_dim\" is %d; it must be an even number from 2 to %d "
                       "(default: hidden_size / num_attention_heads)",
                       r->path, c->head_dim, MB_MAX_HEAD_DIM);
    MB_TRY(read_layer_kinds(r, c));
    c->max_positions = 32768;
    MB_TRY(read_int(r, "max_position_embeddings", 1, MAX_POSITIONS, &c->max_positions));
    MB_TRY(mb_json_read_bool(r->path, r->root, "attention_bias", &c->attention_bias));
    return check_sliding_window(r, c->max_positions);
}

/* "num_experts", or "num_local_experts" as transformers 5 writes it. */
static mb_status read_n_experts(const reader *r, int32_t *n_experts) {
    int32_t old_name = -1, new_name = -1;
    MB_TRY(read_int(r, "num_experts", 0, MAX_EXPERTS, &old_name));
    MB_TRY(read_int(r, "num_local_experts", 0, MAX_EXPERTS, &new_name));
    if (old_name < 0 && new_name < 0)
        return mb_fail(MB_ERR_CONFIG,
                       "%s: \"num_experts\" (or \"num_local_experts\") is missing; it must be an "
                       "integer from 0 to %d",
                       r->path, MAX_EXPERTS);
    if (old_name >= 0 && new_name >= 0 && old_name != new_name)
        return mb_fail(MB_ERR_CONFIG,
                       "%s: \"num_experts\" is %d but \"num_local_experts\" is %d; they are the same "
                       "thing, remove the wrong one",
                       r->path, old_name, new_name);
    *n_experts = new_name >= 0 ? new_name : old_name;
    return MB_OK;
}

/* Which layers are MoE: those that mlp_only_layers does not name and whose number, counted from 1, is a
 * multiple of decoder_sparse_step. */
static mb_status read_moe_layers(const reader *r, mb_config *c) {
    int32_t step = 1;
    MB_TRY(read_int(r, "decoder_sparse_step", 1, MB_MAX_LAYERS, &step));
    for (int32_t l = 0; l < c->n_layers; l++)
        c->is_moe[l] = c->n_experts > 0 && (l + 1) % step == 0;
    const json_t *dense = mb_json_present(r->root, "mlp_only_layers");
    char shown[SHOWN];
    if (dense && !json_is_array(dense))
        return mb_fail(MB_ERR_CONFIG, "%s: \"mlp_only_layers\" is %s; it must be an array of layer numbers",
                       r->path, mb_json_describe(shown, sizeof shown, dense));
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)dense, i, item) {
        json_int_t layer = json_integer_value(item);
        if (!json_is_integer(item) || layer < 0 || layer >= c->n_layers)
            return mb_fail(MB_ERR_CONFIG, "%s: \"mlp_only_layers\" has %s; layers are integers from 0 to %d",
                           r->path, mb_json_describe(shown, sizeof shown, item), c->n_layers - 1);
        c->is_moe[layer] = 0;
    }
    return MB_OK;
}

static int count_moe_layers(const mb_config *c) {
    int count = 0;
    for (int32_t l = 0; l < c->n_layers; l++)
        count += c->is_moe[l];
    return count;
}

static mb_status read_mlp(const reader *r, mb_config *c) {
    MB_TRY(read_n_experts(r, &c->n_experts));
    MB_TRY(read_moe_layers(r, c));
    int n_moe = count_moe_layers(c);
    /* The sizes of the kind of layer that the model does not have may be missing. */
    if (n_moe > 0 || mb_json_present(r->root, "num_experts_per_tok"))
        MB_TRY(require_int(r, "num_experts_per_tok", 1, MAX_TOP_K, &c->top_k));
    if (n_moe > 0 || mb_json_present(r->root, "moe_intermediate_size"))
        MB_TRY(require_int(r, "moe_intermediate_size", 1, MAX_INTERMEDIATE, &c->moe_intermediate));
    if (n_moe < c->n_layers || mb_json_present(r->root, "intermediate_size"))
        MB_TRY(require_int(r, "intermediate_size", 1, MAX_INTERMEDIATE, &c->intermediate));
    if (n_moe > 0 && c->top_k > c->n_experts)
        return mb_fail(MB_ERR_CONFIG, "%s: \"num_experts_per_tok\" is %d, more than the %d experts there are",
                       r->path, c->top_k, c->n_experts);
    MB_TRY(mb_json_read_bool(r->path, r->root, "norm_topk_prob", &c->norm_topk_prob));
    static const struct {
        const char *name;
        mb_activation activation;
    } known[] = {{"silu", MB_ACT_SWIGLU},
                 {"swish", MB_ACT_SWIGLU},
                 {"gelu_pytorch_tanh", MB_ACT_GEGLU},
                 {"relu", MB_ACT_REGLU}};
    const char *name = "silu";
    MB_TRY(mb_json_read_string(r->path, r->root, "hidden_act", &name));
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].name, name) == 0) {
            c->activation = known[i].activation;
            return MB_OK;
        }
    }
    char shown[SHOWN];
    return mb_fail(MB_ERR_UNSUPPORTED,
                   "%s: \"hidden_act\" is %s; supported are \"silu\", \"gelu_pytorch_tanh\" and "
                   "\"relu\"",
                   r->path, mb_quote(shown, sizeof shown, name));
}

/* The files' tensors have types of their own, so a name that is not known is no failure. */
static mb_dtype read_dtype(const reader *r) {
    static const struct {
        const char *name;
        mb_dtype dtype;
    } known[] = {{"float32", MB_F32}, {"bfloat16", MB_BF16}, {"float16", MB_F16}};
    const json_t *item = mb_json_present(r->root, "dtype");
    const char *name = json_string_value(item ? item : mb_json_present(r->root, "torch_dtype"));
    if (name && strncmp(name, "torch.", 6) == 0)
        name += 6;
    for (size_t i = 0; name && i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0)
            return known[i].dtype;
    return MB_F32;
}

/* The ranges above keep every product below 2^63: this bounds what one checkpoint may ask for. */
static mb_status check_parameters(const reader *r, const mb_config *c) {
    uint64_t hidden = (uint64_t)c->hidden;
    uint64_t attention = hidden * (uint64_t)c->head_dim * 2 * (uint64_t)(c->n_heads + c->n_kv_heads);
    uint64_t dense = 3 * hidden * (uint64_t)c->intermediate;
    uint64_t experts = 3 * hidden * (uint64_t)c->moe_intermediate * (uint64_t)c->n_experts;
    uint64_t n_moe = (uint64_t)count_moe_layers(c);
    uint64_t total = 2 * hidden * (uint64_t)c->vocab + (uint64_t)c->n_layers * attention +
                     ((uint64_t)c->n_layers - n_moe) * dense + n_moe * experts;
    if (total >= MAX_PARAMETERS)
        return mb_fail(MB_ERR_CONFIG,
                       "%s: layers, hidden size, experts and vocabulary make %llu parameters, more "
                       "than 2^48; is a size wrong?",
                       r->path, (unsigned long long)total);
    return MB_OK;
}

static mb_status read_config(const reader *r, mb_config *c) {
    MB_TRY(check_architecture(r));
    MB_TRY(read_attention(r, c));
    MB_TRY(read_mlp(r, c));
    MB_TRY(mb_json_read_bool(r->path, r->root, "tie_word_embeddings", &c->tie_embeddings));
    double eps = 1e-6;
    MB_TRY(mb_json_read_double(r->path, r->root, "rms_norm_eps", 1e-30, 1, &eps));
    c->rms_eps = (float)eps;
    c->dtype = read_dtype(r);
    MB_TRY(mb_quantization_read(r->path, r->root, &c->fp8_blocks));
    MB_TRY(mb_rope_scaling_parse(r->path, r->root, c));
    MB_TRY(mb_eos_read(r->path, r->root, c->vocab, c->eos_ids, &c->n_eos_ids));
    return check_parameters(r, c);
}

mb_status mb_config_parse(const char *path, const char *json, size_t n_bytes, mb_config *config) {
    *config = (mb_config){0};
    json_t *root;
    MB_TRY(mb_json_parse_object(path, json, n_bytes, &root));
    reader r = {path, root};
    mb_status status = read_config(&r, config);
    mb_json_free(root);
    return status;
}
