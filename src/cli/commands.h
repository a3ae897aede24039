/* commands.h - the subcommands, one file each. */
#ifndef MB_CLI_COMMANDS_H
#define MB_CLI_COMMANDS_H

#include "cli/options.h"

extern const cli_command cli_run_command;
extern const cli_command cli_chat_command;
extern const cli_command cli_batch_command;
extern const cli_command cli_tokenize_command;
extern const cli_command cli_logprobs_command;
extern const cli_command cli_serve_command;
extern const cli_command cli_info_command;
extern const cli_command cli_bench_command;

#endif
