/* moebius: the command line. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/bench.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/suggest.h"

/* The last ones are parts of the one before them: moebius bench moe, serve, text and train. */
static const cli_command *const commands[] = {
    &cli_run_command,       &cli_chat_command,        &cli_serve_command,      &cli_batch_command,
    &cli_info_command,      &cli_tokenize_command,    &cli_logprobs_command,   &cli_bench_command,
    &cli_bench_moe_command, &cli_bench_serve_command, &cli_bench_text_command, &cli_bench_train_command,
};
enum { N_COMMANDS = CLI_COUNT(commands) - 4 };

static void print_help(FILE *file) {
    fprintf(file, "moebius %s - runs Qwen3 mixture-of-experts models\n\n", mb_version());
    fprintf(file,
            "Usage: moebius COMMAND DIR [OPTIONS]\n\n"
            "DIR is the folder of a model: a Hugging Face checkpoint of Qwen3MoeForCausalLM as it was\n"
            "downloaded, with config.json, *.safetensors and tokenizer.json; or the name of a model that\n"
            "hf download has fetched, like Qwen/Qwen3-30B-A3B.\n\nCommands\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(file, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(file, "  %-10s explain a command: moebius help run\n\n", "help");
    fprintf(file,
            "Start with\n"
            "  moebius run models/demo -p \"What is 7 + 8?\"\n"
            "  moebius chat models/demo\n\n"
            "Every command explains its options with --help. moebius --version prints the version,\n"
            "moebius help --man a manual page, and moebius help --completion SHELL a script that completes\n"
            "commands and options in bash, zsh or fish.\n");
}

static const cli_command *find_command(const char *name) {
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

static int no_such_command(const char *name) {
    static const char *const others[] = {"help", "--help", "--version"};
    struct stat facts;
    cli_suggestion near;
    cli_suggestion_begin(&near, name, strlen(name));
    for (size_t i = 0; i < N_COMMANDS; i++)
        cli_suggestion_offer(&near, commands[i]->name);
    for (size_t i = 0; i < CLI_COUNT(others); i++)
        cli_suggestion_offer(&near, others[i]);
    fprintf(stderr, "moebius: there is no command \"%.200s\"", name);
    if (near.nearest != NULL)
        fprintf(stderr, "; did you mean %s?", near.nearest);
    else if (stat(name, &facts) == 0 && S_ISDIR(facts.st_mode))
        fprintf(stderr, "; a model's folder follows the command: moebius run %.200s -p \"...\"", name);
    fprintf(stderr, "\nTry 'moebius --help'.\n");
    return CLI_USAGE;
}

static int usage_of_help(void) {
    fprintf(stderr, "moebius help: give a command, --man, or --completion and bash, zsh or fish\n"
                    "Try 'moebius --help'.\n");
    return CLI_USAGE;
}

static int help_main(int argc, char **argv) {
    const cli_command *command;
    if (argc < 2) {
        print_help(stdout);
    } else if (strcmp(argv[1], "--man") == 0 && argc == 2) {
        cli_print_man_page(stdout, commands, CLI_COUNT(commands));
    } else if (strcmp(argv[1], "--completion") == 0) {
        if (argc != 3 || cli_print_completion(stdout, argv[2], commands, CLI_COUNT(commands)) != 0)
            return usage_of_help();
    } else if (argc > 2 && strcmp(argv[1], "bench") == 0 && strcmp(argv[2], "moe") == 0) {
        cli_print_manual(stdout, &cli_bench_moe_command);
    } else if (argc > 2 && strcmp(argv[1], "bench") == 0 && strcmp(argv[2], "serve") == 0) {
        cli_print_manual(stdout, &cli_bench_serve_command);
    } else if (argc > 2 && strcmp(argv[1], "bench") == 0 && strcmp(argv[2], "text") == 0) {
        cli_print_manual(stdout, &cli_bench_text_command);
    } else if (argc > 2 && strcmp(argv[1], "bench") == 0 && strcmp(argv[2], "train") == 0) {
        cli_print_manual(stdout, &cli_bench_train_command);
    } else if ((command = find_command(argv[1])) != NULL) {
        cli_print_manual(stdout, command);
    } else {
        return no_such_command(argv[1]);
    }
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
    signal(SIGPIPE, SIG_IGN); /* when the reader of stdout leaves, write fails; the program does not die */
    return cli_finish_output(dispatch(argc, argv));
}
