/* model_settings.h - the options of every command that opens a model, and opening it with a progress bar. */
#ifndef MB_CLI_MODEL_SETTINGS_H
#define MB_CLI_MODEL_SETTINGS_H

#include "cli/options.h"

typedef struct cli_model_settings {
    const char *device, *dtype, *quant, *kv_dtype, *chat_template;
    cli_integer n_threads;
    int quiet;
} cli_model_settings;

extern const cli_option cli_model_options[];

/* Whether path is a file config.json; then `folder` becomes the folder that it lies in. */
int cli_folder_of_config(const char *path, char *folder, size_t capacity);

/* directory: a folder, or the name of a model in the Hugging Face cache; for MB_LOAD_RANDOM also the path of
 * a config.json.
 * On failure *model is NULL, the reason was printed, and CLI_FAILED is returned. The second opens as
 * much of the model as `load` says. */
int cli_open_model(const char *directory, const cli_model_settings *settings, mb_model **model);
int cli_open_part(const char *directory, const cli_model_settings *settings, mb_load load, mb_model **model);

#endif
