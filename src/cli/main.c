/* moebius: the command line. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/output.h"

static const cli_command *const commands[] = {
    &cli_run_command,   &cli_chat_command,     &cli_info_command,
    &cli_bench_command, &cli_tokenize_command, &cli_logprobs_command,
};

static void print_help(FILE *file) {
    fprintf(file, "moebius %s - runs Qwen3 mixture-of-experts models\n\n", mb_version());
    fprintf(file, "Usage: moebius COMMAND DIR [OPTIONS]\n\n"
                  "DIR is the folder of a model: a Hugging Face checkpoint of Qwen3MoeForCausalLM as it was\n"
                  "downloaded, with config.json, *.safetensors and tokenizer.json.\n\nCommands\n");
    for (size_t i = 0; i < CLI_COUNT(commands); i++)
        fprintf(file, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(file, "  %-10s explain a command: moebius help run\n\n", "help");
    fprintf(file, "Start with\n"
                  "  moebius run models/demo -p \"What is 7 + 8?\"\n"
                  "  moebius chat models/demo\n\n"
                  "Every command explains its options with --help. moebius --version prints the version.\n");
}

static const cli_command *find_command(const char *name) {
    for (size_t i = 0; i < CLI_COUNT(commands); i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

static int no_such_command(const char *name) {
    fprintf(stderr, "moebius: there is no command \"%.200s\"\nTry 'moebius --help'.\n", name);
    return CLI_USAGE;
}

static int help_main(int argc, char **argv) {
    if (argc < 2) {
        print_help(stdout);
        return CLI_OK;
    }
    const cli_command *command = find_command(argv[1]);
    if (command == NULL)
        return no_such_command(argv[1]);
    cli_print_manual(stdout, command);
    return CLI_OK;
}

static int dispatch(int argc, char **argv) {
    if (argc < 2) {
        print_help(stderr);
        return CLI_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        return help_main(argc - 1, argv + 1);
    if (strcmp(name, "--version") == 0) {
        cli_print("moebius %s\n", mb_version());
        return CLI_OK;
    }
    const cli_command *command = find_command(name);
    return command != NULL ? command->main(argc - 1, argv + 1) : no_such_command(name);
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* a reader that left is an error of write, not a death */
    return cli_finish_output(dispatch(argc, argv));
}
