#include "cli/engine_settings.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "cli/output.h"

#define FIELD(name) offsetof(cli_engine_settings, name)

const cli_option cli_answer_options[] = {
    {.name = "reasoning-parser",
     .value_name = "NAME",
     .kind = CLI_TEXT,
     .offset = FIELD(reasoning_parser),
     .help =
         "How answers mark their reasoning: qwen3 (deepseek_r1 is the same), or none to leave it in the text. Without "
         "it: as the model's "
         "chat template has it."},
    {.name = "tool-call-parser",
     .value_name = "NAME",
     .kind = CLI_TEXT,
     .offset = FIELD(tool_call_parser),
     .help =
         "How answers call tools: hermes (also Qwen3's), qwen3_coder or qwen3_xml. Without it: as the model's "
         "chat template has it."},
    {.name = "enable-auto-tool-choice",
     .kind = CLI_FLAG,
     .offset = FIELD(enable_auto_tool_choice),
     .help = "Let the model decide when to call a tool. It always may; vLLM asks for this option."},
    {0},
};

const cli_option cli_engine_options[] = {
    {.name = "max-model-len",
     .also = "max-context",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = FIELD(max_model_len),
     .minimum = 1,
     .maximum = 16777216,
     .help =
         "Most tokens of a prompt and its answer together. Without it: as the model and the KV cache allow."},
    {.name = "max-num-seqs",
     .also = "max-batch",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = FIELD(max_num_seqs),
     .minimum = 1,
     .maximum = 4096,
     .fallback = "256",
     .help = "Most sequences in one step."},
    {.name = "max-num-batched-tokens",
     .also = "max-step-tokens",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = FIELD(max_num_batched_tokens),
     .minimum = 1,
     .maximum = 1048576,
     .help = "Most tokens in one step. Without it: 2048 on the CPU, 8192 on a GPU."},
    {.name = "prefill-chunk",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = FIELD(prefill_chunk),
     .minimum = 1,
     .maximum = 1048576,
     .help = "Most tokens of one prompt in a step. Without it: 512 on the CPU, 8192 on a GPU."},
    {.name = "kv-tokens",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = FIELD(kv_tokens),
     .minimum = 1,
     .maximum = 2147483584,
     .help =
         "Size of the KV cache in tokens. Without it: 16384 on the CPU, on a GPU what its memory allows."},
    {.name = "gpu-memory-utilization",
     .also = "gpu-memory",
     .value_name = "PART",
     .kind = CLI_NUMBER,
     .offset = FIELD(gpu_memory_utilization),
     .minimum = 0,
     .maximum = 1,
     .ends = CLI_OPEN_BELOW,
     .help =
         "On a GPU: the part of its memory that may be in use, by all programs together, when the server is up. "
         "Without it: 0.92."},
    {.name = "kv-cache-dtype",
     .value_name = "TYPE",
     .kind = CLI_CHOICE,
     .offset = FIELD(kv_cache_dtype),
     .choices = "auto|fp8|fp8_e4m3",
     .fallback = "auto",
     .help = "Another name of --kv-dtype: auto is the type that is computed in, the others are fp8."},
    {.name = "enable-prefix-caching",
     .kind = CLI_FLAG,
     .offset = FIELD(enable_prefix_caching),
     .help = "Keep the KV of prompts for later requests that begin the same. This is the default."},
    {.name = "no-enable-prefix-caching",
     .kind = CLI_FLAG,
     .offset = FIELD(no_enable_prefix_caching),
     .help = "Compute every prompt anew."},
    {.name = "enforce-eager",
     .kind = CLI_FLAG,
     .offset = FIELD(enforce_eager),
     .help = "On a GPU: launch kernel by kernel in place of a CUDA graph for each decode step."},
    {.name = "random-weights",
     .kind = CLI_FLAG,
     .offset = FIELD(random_weights),
     .help =
         "To measure a server without a checkpoint: DIR needs a config.json and a tokenizer, and may be the path of "
         "that config.json. Random weights of its shape are made on the device, always the same ones."},
    {0},
};

int cli_check_engine(const cli_command *command, const cli_engine_settings *given) {
    if (given->enable_prefix_caching && given->no_enable_prefix_caching)
        return cli_usage_error(
            command, "--enable-prefix-caching and --no-enable-prefix-caching contradict each other");
    if (given->kv_tokens.given && given->gpu_memory_utilization.given)
        return cli_usage_error(
            command, "--kv-tokens and --gpu-memory-utilization (--gpu-memory) both give the size of "
                     "the KV cache");
    return -1;
}

int cli_open_for_engine(const char *directory, const cli_model_settings *model_settings,
                        const cli_engine_settings *given, mb_model **model) {
    cli_model_settings settings = *model_settings;
    if (strcmp(given->kv_cache_dtype, "auto") != 0)
        settings.kv_dtype = "fp8";
    return cli_open_part(directory, &settings, given->random_weights ? MB_LOAD_RANDOM : MB_LOAD_ALL, model);
}

int cli_apply_engine(const cli_engine_settings *given, const mb_model *model, mb_session_options *options,
                     mb_answer_formats *formats) {
    mb_model_info info;
    mb_session_options_init(options);
    options->max_sequences = (int32_t)given->max_num_seqs.value;
    options->max_step_tokens = (int32_t)given->max_num_batched_tokens.value;
    options->prefill_chunk = (int32_t)given->prefill_chunk.value;
    options->kv_tokens = given->kv_tokens.value;
    options->graphs = given->enforce_eager ? MB_GRAPHS_NONE : MB_GRAPHS_STEP;
    options->prefix_caching = !given->no_enable_prefix_caching;
    options->max_context = given->max_model_len.value;
    mb_model_get_info(model, &info);
    if (given->gpu_memory_utilization.given && strcmp(info.device, "cpu") == 0)
        return cli_failure(
            "--gpu-memory-utilization (--gpu-memory) goes with a GPU, and the model is on the CPU; "
            "give --kv-tokens");
    if (given->gpu_memory_utilization.given)
        options->memory_fraction = (float)given->gpu_memory_utilization.value;
    if (mb_answer_formats_of(model, formats) != MB_OK ||
        mb_answer_formats_by_name(given->reasoning_parser, given->tool_call_parser, formats) != MB_OK)
        return cli_report_failure();
    return CLI_OK;
}

static int is_relative(const char *name) {
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static void last_part(const char *path, char *name, size_t capacity) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/')
        start--;
    snprintf(name, capacity, "%.*s", (int)(end - start), path + start);
}

void cli_name_of_path(const char *path, char *name, size_t capacity) {
    char resolved[PATH_MAX], folder[PATH_MAX];
    if (cli_folder_of_config(path, folder, sizeof folder))
        path = folder;
    last_part(path, name, capacity);
    if (is_relative(name) && realpath(path, resolved) != NULL)
        last_part(resolved, name, capacity);
}

int cli_check_name_of_path(const char *path, const char *instead) {
    char name[256];
    cli_name_of_path(path, name, sizeof name);
    if (cli_is_utf8(name))
        return CLI_OK;
    return cli_failure("the name of %s is not UTF-8, and every answer's JSON has it; %s", path, instead);
}
