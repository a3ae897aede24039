/* moebius info: what a checkpoint is, how large, and what fits beside it. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/model_settings.h"
#include "cli/output.h"

typedef struct settings {
    int json;
    cli_model_settings model;
} settings;

static const cli_option info_options[] = {
    {.name = "json",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, json),
     .help = "Print one JSON object: the same figures in bytes, tokens and counts."},
    {0},
};

static const cli_group groups[] = {
    {"Output", info_options, 0},
    {"Model", cli_model_options, offsetof(settings, model)},
};

/* Cards that people ask about, by the memory on their label. */
static const struct {
    const char *name, *key;
    uint64_t bytes;
} cards[] = {
    {"H100 80 GB", "h100_80gb", 80000000000},
    {"H200 141 GB", "h200_141gb", 141000000000},
};

static const struct {
    const char *name;
    unsigned bytes;
} parameter_types[] = {{"fp32", 4}, {"bf16", 2}, {"fp8", 1}};

/* Tokens of KV cache that fit in `memory` bytes beside the weights; 0 when those alone do not. */
static uint64_t tokens_beside(uint64_t memory, uint64_t weight_bytes, uint64_t kv_bytes_per_token) {
    return memory > weight_bytes && kv_bytes_per_token > 0 ? (memory - weight_bytes) / kv_bytes_per_token : 0;
}

static int has_fp8_cache(const mb_model_info *info) {
    return strcmp(info->kv_dtype, "fp8_e4m3") == 0;
}

/* On the cards the cache is kept in bf16, whatever this run computes in, or in fp8 but for the first
 * layer. */
static uint64_t kv_bytes_on_card(const mb_model_info *info) {
    const uint64_t n_layers = (uint64_t)info->n_layers;
    return 2 * (has_fp8_cache(info) ? 2 + (n_layers - 1) : 2 * n_layers) * (uint64_t)info->n_kv_heads *
           (uint64_t)info->head_dim;
}

/* What the cache is kept in where the model computes in `dtype`: "in bf16". */
static const char *describe_cache(const mb_model_info *info, const char *dtype, char *text, size_t capacity) {
    if (!has_fp8_cache(info) || info->n_layers == 1)
        snprintf(text, capacity, "in %s", dtype);
    else
        snprintf(text, capacity, "first layer in %s, others in fp8", dtype);
    return text;
}

static void print_count(const char *label, uint64_t count) {
    static const char *const units[] = {"", " thousand", " million", " billion"};
    double value = (double)count;
    size_t unit = 0;
    while (value >= 1000 && unit + 1 < CLI_COUNT(units)) {
        value /= 1000;
        unit++;
    }
    cli_print("%-20s %.*f%s\n", label, unit > 0 ? 2 : 0, value, units[unit]);
}

static void print_bytes(const char *label, uint64_t n_bytes, const char *remark) {
    char size[CLI_SIZE_TEXT];
    cli_print("%-20s %s%s\n", label, cli_size_text(n_bytes, size), remark);
}

static void print_table(const char *directory, const mb_model_info *info) {
    cli_print("%-20s %s\n", "model", directory);
    cli_print("%-20s %s\n", "architecture", info->architecture);
    cli_print("%-20s %" PRId32 ", of them %" PRId32 " with experts\n", "layers", info->n_layers,
              info->n_moe_layers);
    cli_print("%-20s %" PRId32 "\n", "hidden size", info->hidden);
    cli_print("%-20s %" PRId32 " for queries, %" PRId32 " for keys and values, of %" PRId32 "\n",
              "attention heads", info->n_heads, info->n_kv_heads, info->head_dim);
    cli_print("%-20s %" PRId32 " of size %" PRId32 ", %" PRId32 " for each token\n", "experts",
              info->n_experts, info->moe_intermediate, info->top_k);
    if (info->n_moe_layers < info->n_layers)
        cli_print("%-20s %" PRId32 "\n", "dense layers' size", info->intermediate);
    cli_print("%-20s %" PRId32 "\n", "vocabulary", info->vocab);
    cli_print("%-20s %" PRId32 "\n", "positions", info->max_positions);
    cli_print("%-20s", "end-of-text ids");
    for (int32_t i = 0; i < info->n_eos_ids; i++)
        cli_print("%s %" PRId32, i > 0 ? "," : "", info->eos_ids[i]);
    cli_print("%s\n", info->n_eos_ids > 0 ? "" : " none");
    if (info->tokenizer_problem != NULL)
        cli_print("%-20s cannot be used: %s\n", "tokenizer", info->tokenizer_problem);
    else
        cli_print("%-20s %s\n", "tokenizer", info->has_tokenizer ? "yes" : "no: use token ids");
    if (info->chat_template_problem != NULL)
        cli_print("%-20s cannot be used: %s\n\n", "chat template", info->chat_template_problem);
    else
        cli_print("%-20s %s\n\n", "chat template", info->has_chat_template ? "yes" : "no");

    print_count("parameters", info->n_parameters);
    print_count("active for a token", info->n_active_parameters);
    cli_print("%-20s %s\n", "weights kept in", info->weight_dtype);
    print_bytes("weights as they are", info->weight_bytes, "");
    for (size_t i = 0; i < CLI_COUNT(parameter_types); i++) {
        char label[32];
        snprintf(label, sizeof label, "weights in %s", parameter_types[i].name);
        print_bytes(label, info->n_parameters * parameter_types[i].bytes, "");
    }
    cli_print("\n%-20s %s\n", "device", info->device);
    cli_print("%-20s %s\n", "computes in", info->dtype);
    print_bytes("memory", info->device_memory_bytes, "");
    print_bytes("free memory", info->device_free_bytes, "");
    char remark[96], cache[64];
    snprintf(remark, sizeof remark, " for each token, %s",
             describe_cache(info, info->dtype, cache, sizeof cache));
    print_bytes("KV cache", info->kv_bytes_per_token, remark);

    cli_print("\nWhat fits, in tokens of KV cache over all sequences\n");
    uint64_t here = tokens_beside(info->device_free_bytes, info->weight_bytes, info->kv_bytes_per_token);
    if (here > 0)
        cli_print("%-20s %" PRIu64 "\n", "here", here);
    else
        cli_print("%-20s none: the weights are larger than the free memory\n", "here");
    for (size_t i = 0; i < CLI_COUNT(cards); i++) {
        uint64_t tokens = tokens_beside(cards[i].bytes, info->weight_bytes, kv_bytes_on_card(info));
        if (tokens > 0)
            cli_print("%-20s %" PRIu64 " (these weights, KV cache %s)\n", cards[i].name, tokens,
                      describe_cache(info, "bf16", cache, sizeof cache));
        else
            cli_print("%-20s none: the weights are larger than the card\n", cards[i].name);
    }
}

static json_t *make_json(const char *directory, const mb_model_info *info) {
    json_t *eos = json_array(), *fits = json_object(), *sizes = json_object();
    for (int32_t i = 0; i < info->n_eos_ids; i++)
        json_array_append_new(eos, json_integer(info->eos_ids[i]));
    for (size_t i = 0; i < CLI_COUNT(parameter_types); i++)
        json_object_set_new(sizes, parameter_types[i].name,
                            json_integer((json_int_t)(info->n_parameters * parameter_types[i].bytes)));
    json_object_set_new(fits, "here",
                        json_integer((json_int_t)tokens_beside(info->device_free_bytes, info->weight_bytes,
                                                               info->kv_bytes_per_token)));
    for (size_t i = 0; i < CLI_COUNT(cards); i++)
        json_object_set_new(fits, cards[i].key,
                            json_integer((json_int_t)tokens_beside(cards[i].bytes, info->weight_bytes,
                                                                   kv_bytes_on_card(info))));
    json_t *object = json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}",
                               "model", directory, "architecture", info->architecture, "layers",
                               info->n_layers, "moe_layers", info->n_moe_layers, "hidden", info->hidden,
                               "heads", info->n_heads, "kv_heads", info->n_kv_heads, "head_dim",
                               info->head_dim, "experts", info->n_experts, "experts_per_token", info->top_k,
                               "moe_intermediate", info->moe_intermediate, "intermediate", info->intermediate,
                               "vocab", info->vocab, "max_positions", info->max_positions);
    json_t *sized = json_pack(
        "{s:I, s:I, s:s, s:I, s:o, s:s, s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:b, s:b}", "parameters",
        (json_int_t)info->n_parameters, "active_parameters", (json_int_t)info->n_active_parameters,
        "weight_dtype", info->weight_dtype, "weight_bytes", (json_int_t)info->weight_bytes, "bytes_in", sizes,
        "device", info->device, "dtype", info->dtype, "kv_dtype", info->kv_dtype, "device_memory_bytes",
        (json_int_t)info->device_memory_bytes, "device_free_bytes", (json_int_t)info->device_free_bytes,
        "kv_bytes_per_token", (json_int_t)info->kv_bytes_per_token, "kv_tokens_that_fit", fits, "eos_ids",
        eos, "has_tokenizer", info->has_tokenizer, "has_chat_template", info->has_chat_template);
    if (json_object_update(object, sized) != 0) {
        json_decref(object);
        object = NULL;
    }
    json_decref(sized);
    return object;
}

static int print_json(const char *directory, const mb_model_info *info) {
    json_malloc_t allocate;
    json_free_t release;
    json_t *object = make_json(directory, info);
    char *text = object != NULL ? json_dumps(object, JSON_INDENT(2)) : NULL;
    json_decref(object);
    if (text == NULL)
        return cli_failure("the figures of %s cannot be written as JSON: its path is not UTF-8, or no memory",
                           directory);
    cli_print("%s\n", text);
    json_get_alloc_funcs(&allocate, &release);
    release(text);
    return CLI_OK;
}

static int info_main(int argc, char **argv) {
    settings given = {0};
    const char *directory;
    mb_model *model = NULL;
    mb_model_info info;
    int status = cli_parse(&cli_info_command, argc, argv, &given, &directory);
    if (status < 0)
        status = cli_open_part(directory, &given.model, MB_LOAD_SIZES, &model);
    if (model != NULL) {
        mb_model_get_info(model, &info);
        if (given.json)
            status = print_json(directory, &info);
        else
            print_table(directory, &info);
    }
    mb_model_close(model);
    cli_settings_free(&cli_info_command, &given);
    return status;
}

const cli_command cli_info_command = {
    .name = "info",
    .summary = "describe a model: architecture, sizes, what fits in memory",
    .synopsis = "moebius info DIR [--json]",
    .description =
        "Prints the architecture of the checkpoint in DIR, its parameters (all of them, and those that one token "
        "uses), the bytes of the weights as they are and in other types, the KV cache that one token takes, and how "
        "many tokens of KV cache fit beside the weights: here, in the memory free now, and on an H100 and an H200, "
        "by plain arithmetic. Of the weights' files the headers are read and checked, not the weights: this works "
        "where they do not fit, and, from config.json alone, where they are not downloaded yet.",
    .examples = "moebius info models/demo\n"
                "moebius info models/demo --json",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = info_main,
};
