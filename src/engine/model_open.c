/* model_open.c - mb_model_open, close and info: a checkpoint directory becomes an mb_model. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/log.h"
#include "grammar/store.h"
#include "model/kv_scales.h"
#include "model/model.h"
#include "model/qwen3_moe.h"

/* More than any real file of its kind by far; a larger one is refused before it is read. */
enum { MAX_CONFIG_BYTES = 16 << 20 };

/* Of experts' intermediate sizes, for kernels of every type (layout_sm90.c). */
enum { KERNEL_INNER_MULTIPLE = 16 };

const char *mb_version(void) {
    return MOEBIUS_VERSION;
}

void mb_free_text(char *text) {
    mb_free(text);
}

void mb_model_options_init(mb_model_options *options) {
    *options = (mb_model_options){0};
}

static mb_status check_directory(const char *directory) {
    struct stat info;
    if (stat(directory, &info) != 0)
        return mb_fail(MB_ERR_IO, "%s: %s; give the directory of a Hugging Face checkpoint", directory,
                       errno == ENOENT ? "no such directory" : strerror(errno));
    if (!S_ISDIR(info.st_mode))
        return mb_fail(MB_ERR_IO, "%s: not a directory; give the directory of a Hugging Face checkpoint",
                       directory);
    return MB_OK;
}

static mb_status read_configs(const char *directory, mb_model *model) {
    mb_small_file file;
    MB_TRY(mb_file_read_optional(directory, "config.json", MAX_CONFIG_BYTES, &file));
    if (!file.bytes)
        return mb_fail(MB_ERR_IO, "%s: no such file; %s is not a Hugging Face checkpoint", file.path,
                       directory);
    mb_status status = mb_config_parse(file.path, file.bytes, file.n_bytes, &model->config);
    mb_free(file.bytes);
    MB_TRY(status);

    /* The file has defaults alone: as in transformers, a broken one does not stop the model. */
    MB_TRY(mb_file_read_optional(directory, "generation_config.json", MAX_CONFIG_BYTES, &file));
    status = mb_generation_parse(file.path, file.bytes, file.n_bytes, &model->config, &model->generation);
    mb_free(file.bytes);
    if (status != MB_ERR_FORMAT && status != MB_ERR_CONFIG)
        return status;
    mb_log(MB_LOG_WARN, "%s; the model opens without its settings", mb_last_error());
    return mb_generation_parse(file.path, NULL, 0, &model->config, &model->generation);
}

static mb_status choose_dtype(const char *name, int is_cpu, mb_dtype *dtype) {
    static const mb_dtype compute_types[] = {MB_F32, MB_BF16, MB_F16};
    *dtype = is_cpu ? MB_F32 : MB_BF16;
    if (!name)
        return MB_OK;
    for (size_t i = 0; i < sizeof compute_types / sizeof *compute_types; i++)
        if (strcmp(name, mb_dtype_name(compute_types[i])) == 0) {
            *dtype = compute_types[i];
            return MB_OK;
        }
    return mb_fail(MB_ERR_ARGUMENT, "dtype \"%s\" is not known; choose fp32, bf16 or fp16", name);
}

static mb_status choose_quantization(const char *name, const mb_model *model, int *to_fp8) {
    *to_fp8 = name != NULL;
    if (name && strcmp(name, "fp8") != 0)
        return mb_fail(MB_ERR_ARGUMENT, "quant \"%s\" is not known; choose fp8, or leave it out", name);
    if (name && !model->device->host_memory && model->dtype == MB_F32)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "quant fp8 and dtype fp32 do not go together on a GPU; choose dtype bf16 or fp16");
    return MB_OK;
}

static mb_status choose_kv_dtype(const char *name, mb_model *model) {
    model->kv_dtype = name ? MB_F8_E4M3 : model->dtype;
    if (name && strcmp(name, "fp8") != 0)
        return mb_fail(MB_ERR_ARGUMENT, "kv_dtype \"%s\" is not known; choose fp8, or leave it out", name);
    return MB_OK;
}

/* A model can be asked what fits before its weights are downloaded. */
static mb_status measure_weights(const char *directory, mb_weight_types types, mb_model *model) {
    mb_status status = mb_weights_measure(directory, &model->config, types, &model->weights);
    if (status != MB_ERR_NOT_FOUND)
        return status;
    mb_log(MB_LOG_WARN, "%s: there are no weights; their sizes are worked out from config.json", directory);
    return mb_weights_of_config(&model->config, types, &model->weights);
}

/* The small files first: what is wrong with them is said before gigabytes are read. */
static mb_status open_parts(const char *directory, const mb_model_options *options, mb_model *model) {
    MB_TRY(check_directory(directory));
    MB_TRY(read_configs(directory, model));
    MB_TRY(mb_model_open_text(model, directory, options->chat_template));
    if (options->load == MB_LOAD_TEXT) {
        MB_TRY(choose_dtype(options->dtype, 1, &model->dtype));
        return choose_kv_dtype(options->kv_dtype, model);
    }
    MB_TRY(mb_device_open(options->device, options->n_threads, mb_forward_check_device, &model->device));
    MB_TRY(choose_dtype(options->dtype, model->device->host_memory, &model->dtype));
    /* The CPU's operators take weights of any type; kernels take those of the type that is computed with. */
    int is_gpu = model->device->n_sms > 0;
    mb_weight_types types = {.matrix_dtype = model->device->host_memory ? NULL : &model->dtype,
                             .inner_multiple = is_gpu ? KERNEL_INNER_MULTIPLE : 0};
    MB_TRY(choose_kv_dtype(options->kv_dtype, model));
    MB_TRY(choose_quantization(options->quant, model, &types.to_fp8));
    if (options->load == MB_LOAD_SIZES)
        return measure_weights(directory, types, model);
    if (options->load == MB_LOAD_RANDOM)
        MB_TRY(mb_weights_random(&model->config, model->device, types, &model->weights));
    else
        MB_TRY(mb_weights_load(directory, &model->config, model->device, types, options->n_threads,
                               options->progress, options->progress_user, &model->weights));
    if (model->kv_dtype != MB_F8_E4M3)
        return MB_OK;
    return mb_kv_scales_make(&model->config, &model->weights, model->device, &model->kv_scales);
}

mb_status mb_model_open(const char *directory, const mb_model_options *options, mb_model **model) {
    mb_model_options defaults;
    mb_model_options_init(&defaults);
    if (!options)
        options = &defaults;
    if (!model)
        return mb_fail(MB_ERR_ARGUMENT, "mb_model_open: model is NULL");
    *model = NULL;
    if (!directory || !directory[0])
        return mb_fail(MB_ERR_ARGUMENT, "mb_model_open: no directory was given");
    if (options->n_threads < 0)
        return mb_fail(MB_ERR_ARGUMENT, "n_threads is %d; it must be >= 0 (0: one per core)",
                       options->n_threads);
    if (options->load < MB_LOAD_ALL || options->load > MB_LOAD_RANDOM)
        return mb_fail(MB_ERR_ARGUMENT, "load is %d, not an mb_load", (int)options->load);

    mb_model *opened = mb_calloc(1, sizeof *opened);
    if (!opened)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for the model's description", directory);
    opened->load = options->load;
    mb_status status = mb_grammar_store_open(&opened->grammars);
    if (status == MB_OK)
        status = open_parts(directory, options, opened);
    if (status != MB_OK) {
        mb_model_close(opened);
        return status;
    }
    *model = opened;
    return MB_OK;
}

void mb_model_close(mb_model *model) {
    if (!model)
        return;
    if (model->kv_scales)
        model->device->free(model->device, model->kv_scales);
    mb_weights_free(&model->weights);
    mb_grammar_store_close(model->grammars);
    mb_model_close_text(model);
    mb_device_close(model->device);
    mb_free(model);
}

void mb_model_get_info(const mb_model *model, mb_model_info *info) {
    const mb_config *config = &model->config;
    const mb_kv_layout layout = mb_kv_layout_make(config, model->dtype, model->kv_dtype);
    *info = (mb_model_info){
        .architecture = "Qwen3MoeForCausalLM",
        .device = model->device ? model->device->name : "none",
        .dtype = mb_dtype_name(model->dtype),
        .kv_dtype = mb_dtype_name(model->kv_dtype),
        .weight_dtype = model->weights.dtype_name,
        .n_layers = config->n_layers,
        .hidden = config->hidden,
        .n_heads = config->n_heads,
        .n_kv_heads = config->n_kv_heads,
        .head_dim = config->head_dim,
        .n_experts = config->n_experts,
        .top_k = config->top_k,
        .moe_intermediate = config->moe_intermediate,
        .intermediate = config->intermediate,
        .vocab = config->vocab,
        .max_positions = config->max_positions,
        .n_parameters = model->weights.n_parameters,
        .n_active_parameters = model->weights.n_active_parameters,
        .weight_bytes = model->weights.n_bytes,
        .kv_bytes_per_token = mb_kv_layout_token_bytes(&layout),
        .eos_ids = model->generation.eos_ids,
        .n_eos_ids = model->generation.n_eos_ids,
        .has_tokenizer = model->tokenizer != NULL,
        .has_chat_template = model->chat_template != NULL,
        .has_unknown_chat_template = model->chat_failure.sentence != NULL,
        .chat_template_problem = model->chat_failure.sentence,
        .chat_template = model->chat_template ? model->chat_template->source : NULL,
        .tokenizer_problem = model->tokenizer_failure.sentence,
    };
    for (int i = 0; i < config->n_layers; i++)
        info->n_moe_layers += config->is_moe[i];
    if (!model->device ||
        model->device->memory(model->device, &info->device_memory_bytes, &info->device_free_bytes) != MB_OK)
        info->device_memory_bytes = info->device_free_bytes = 0;
}
