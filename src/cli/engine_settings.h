/* engine_settings.h - the options of commands that answer many requests at once: serve and batch. */
#ifndef MB_CLI_ENGINE_SETTINGS_H
#define MB_CLI_ENGINE_SETTINGS_H

#include "cli/model_settings.h"
#include "cli/options.h"
#include "moebius/answer.h"

typedef struct cli_engine_settings {
    const char *reasoning_parser, *tool_call_parser;
    int enable_auto_tool_choice;
    cli_integer max_model_len, max_num_seqs, max_num_batched_tokens, prefill_chunk, kv_tokens;
    cli_number gpu_memory_utilization;
    const char *kv_cache_dtype;
    int enable_prefix_caching, no_enable_prefix_caching, enforce_eager, random_weights;
} cli_engine_settings;

/* Two groups of one struct. */
extern const cli_option cli_answer_options[], cli_engine_options[];

/* -1 when the settings make sense together, else the exit status of a reported usage error. */
int cli_check_engine(const cli_command *command, const cli_engine_settings *settings);

/* Opens the model with what both settings say of it, as cli_open_model. */
int cli_open_for_engine(const char *directory, const cli_model_settings *model_settings,
                        const cli_engine_settings *settings, mb_model **model);

/* Fills the options of a session, and the formats of the model's answers. Failures are reported. */
int cli_apply_engine(const cli_engine_settings *settings, const mb_model *model, mb_session_options *options,
                     mb_answer_formats *formats);

/* What a model is called when nobody says: the last part of its path, without slashes at its end; for
 * "." and ".." that of the folder; for a config.json that of the folder it lies in. */
void cli_name_of_path(const char *path, char *name, size_t capacity);

/* CLI_OK, or a failure that was reported, with `instead` for what to do, when JSON cannot have this name. */
int cli_check_name_of_path(const char *path, const char *instead);

#endif
