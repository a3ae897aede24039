/* sampling_settings.h - the options that decide how the next token is chosen and when an answer ends. */
#ifndef MB_CLI_SAMPLING_SETTINGS_H
#define MB_CLI_SAMPLING_SETTINGS_H

#include "cli/options.h"

typedef struct cli_sampling_settings {
    cli_integer max_new_tokens, seed, top_k;
    int greedy, ignore_eos;
    cli_number temperature, top_p, min_p;
    cli_number repetition_penalty, presence_penalty, frequency_penalty;
    cli_biases logit_bias;
    cli_ids stop_ids;
    cli_texts stop_texts;
    cli_integer kv_tokens;
} cli_sampling_settings;

extern const cli_option cli_sampling_options[];

/* -1 when the settings make sense together, else the exit status of a reported usage error. */
int cli_check_sampling(const cli_command *command, const cli_sampling_settings *settings);

/* Refuses ids that the model's vocabulary does not have: in a list that an option gave, and in --stop-ids and
 * --logit-bias. CLI_OK, or CLI_FAILED with a sentence printed. */
int cli_check_ids(const char *option, const cli_ids *ids, int32_t vocab);
int cli_check_ids_of_sampling(const cli_sampling_settings *settings, int32_t vocab);

/* Puts what the user gave over the model's defaults in a request made by mb_request_init. Without --seed
 * a fresh one is drawn. The request points into *settings. max_new_tokens is left to the caller. A
 * default that the checkpoint has wrong and no option replaces is a reported failure. */
int cli_apply_sampling(const cli_sampling_settings *settings, mb_request *request);

#endif
