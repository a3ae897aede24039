/*
 * Completion of the command line in bash, zsh and fish, from the commands' tables: commands, options, the
 * values of options that have a few, folders for DIR, and files.
 */
#include <string.h>

#include "cli/options.h"

/* The values of a CLI_CHOICE, separated by spaces: "cpu cuda"; "cuda:N" is for people. */
static void list_choices(const cli_option *option, char *text, size_t capacity) {
    size_t used = 0;
    text[0] = '\0';
    for (const char *choice = option->choices; choice != NULL; choice = strchr(choice, '|')) {
        choice += *choice == '|';
        int length = (int)strcspn(choice, "|");
        if (choice[length - 1] != 'N' && used < capacity)
            used +=
                (size_t)snprintf(text + used, capacity - used, "%s%.*s", used > 0 ? " " : "", length, choice);
    }
}

static int takes_file(const cli_option *option) {
    return option->kind == CLI_TEXT && strcmp(option->value_name, "FILE") == 0;
}

/* A text between single quotes, for a shell, with a backslash before each character of `special`. */
static void print_quoted(FILE *file, const char *text, size_t length, const char *special) {
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '\'')
            fputs("'\\''", file);
        else if (strchr(special, text[i]) != NULL)
            fprintf(file, "\\%c", text[i]);
        else
            fputc(text[i], file);
    }
}

/* The first sentence of an option's help, without its full stop. */
static size_t first_sentence(const char *help) {
    const char *end = strstr(help, ". ");
    size_t length = end != NULL ? (size_t)(end - help) : strlen(help);
    return length > 0 && help[length - 1] == '.' ? length - 1 : length;
}

/* ---- bash --------------------------------------------------------------------------------------------- */

static void print_bash_values(FILE *file, const cli_command *command, const cli_option *option) {
    char choices[256];
    if (option->kind == CLI_FLAG)
        return;
    fprintf(file, "    \"%s --%s\"", command->name, option->name);
    if (option->also != NULL)
        fprintf(file, " | \"%s --%s\"", command->name, option->also);
    if (option->letter != 0)
        fprintf(file, " | \"%s -%c\"", command->name, option->letter);
    if (option->kind == CLI_CHOICE) {
        list_choices(option, choices, sizeof choices);
        fprintf(file, ") mapfile -t COMPREPLY < <(compgen -W '%s' -- \"$word\"); return ;;\n", choices);
    } else if (takes_file(option)) {
        fprintf(file, ") mapfile -t COMPREPLY < <(compgen -f -- \"$word\"); return ;;\n");
    } else {
        fprintf(file, ") return ;;\n");
    }
}

static void print_bash(FILE *file, const cli_command *const *commands, size_t n) {
    fputs(
        "# Completion of moebius in bash. Made by: moebius help --completion bash\n"
        "_moebius() {\n"
        "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}\n"
        "    local commands='",
        file);
    for (size_t i = 0; i < n; i++)
        if (strchr(commands[i]->name, ' ') == NULL)
            fprintf(file, "%s ", commands[i]->name);
    fputs(
        "help'\n"
        "    COMPREPLY=()\n"
        "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
        "        mapfile -t COMPREPLY < <(compgen -W \"$commands --help --version\" -- \"$word\")\n"
        "        return\n"
        "    fi\n"
        "    if [ \"$COMP_CWORD\" -gt 2 ]; then\n"
        "        case \"$command ${COMP_WORDS[2]}\" in 'bench moe' | 'bench serve' | 'bench text' | 'bench train') command+=\" ${COMP_WORDS[2]}\" ;; esac\n"
        "    fi\n"
        "    case \"$command $before\" in\n",
        file);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < commands[i]->n_groups; j++)
            for (const cli_option *option = commands[i]->groups[j].options; option->name != NULL; option++)
                print_bash_values(file, commands[i], option);
    fputs("    esac\n    local options=\n    case \"$command\" in\n", file);
    for (size_t i = 0; i < n; i++) {
        fprintf(file, "    '%s') options='", commands[i]->name);
        for (size_t j = 0; j < commands[i]->n_groups; j++)
            for (const cli_option *option = commands[i]->groups[j].options; option->name != NULL; option++) {
                fprintf(file, "--%s ", option->name);
                if (option->also != NULL)
                    fprintf(file, "--%s ", option->also);
            }
        fputs("--help' ;;\n", file);
    }
    fputs("    help) mapfile -t COMPREPLY < <(compgen -W \"$commands\" -- \"$word\"); return ;;\n"
          "    esac\n"
          "    if [ \"${word#-}\" != \"$word\" ]; then\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"$options\" -- \"$word\")\n"
          "    elif [ \"${command% *}\" = \"$command\" ]; then\n"
          "        mapfile -t COMPREPLY < <(compgen -d -- \"$word\")\n"
          "        [ \"$command\" = bench ] && mapfile -t -O \"${#COMPREPLY[@]}\" COMPREPLY < "
          "<(compgen -W 'moe serve text' -- \"$word\")\n"
          "    fi\n"
          "}\n"
          "complete -o filenames -F _moebius moebius\n",
          file);
}

/* ---- zsh ---------------------------------------------------------------------------------------------- */

static void print_zsh_option(FILE *file, const cli_option *option) {
    char choices[256];
    fputs(" \\\n            ", file);
    if (option->letter != 0)
        fprintf(file, "'(-%c --%s)'{-%c,--%s}'[", option->letter, option->name, option->letter, option->name);
    else if (option->also != NULL)
        fprintf(file, "'(--%s --%s)'{--%s,--%s}'[", option->name, option->also, option->name, option->also);
    else
        fprintf(file, "'--%s[", option->name);
    print_quoted(file, option->help, first_sentence(option->help), "[]:\\");
    fputc(']', file);
    if (option->kind != CLI_FLAG)
        fprintf(file, ":%s:", option->name);
    if (option->kind == CLI_CHOICE) {
        list_choices(option, choices, sizeof choices);
        fprintf(file, "(%s)", choices);
    } else if (takes_file(option)) {
        fputs("_files", file);
    }
    fputc('\'', file);
}

static void print_zsh_command(FILE *file, const cli_command *command) {
    fprintf(file, "    '%s%s')\n        _arguments -s", command->name, strchr(command->name, ' ') ? "" : " ");
    for (size_t j = 0; j < command->n_groups; j++)
        for (const cli_option *option = command->groups[j].options; option->name != NULL; option++)
            print_zsh_option(file, option);
    fprintf(file, " \\\n            '(-h --help)'{-h,--help}'[Print the manual page]'%s\n        ;;\n",
            strchr(command->name, ' ') ? "" : " \\\n            '1:folder of a model:_files -/'");
}

static void print_zsh(FILE *file, const cli_command *const *commands, size_t n) {
    fputs("#compdef moebius\n"
          "# Completion of moebius in zsh. Made by: moebius help --completion zsh\n"
          "_moebius() {\n"
          "    local -a commands=(\n",
          file);
    for (size_t i = 0; i < n; i++) {
        if (strchr(commands[i]->name, ' ') != NULL)
            continue;
        fprintf(file, "        '%s:", commands[i]->name);
        print_quoted(file, commands[i]->summary, strlen(commands[i]->summary), ":\\");
        fputs("'\n", file);
    }
    fputs("        'help:explain a command'\n"
          "    )\n"
          "    if (( CURRENT == 2 )); then\n"
          "        _describe command commands\n"
          "        return\n"
          "    fi\n"
          "    local command=\"$words[2] \"\n"
          "    shift words\n"
          "    (( CURRENT-- ))\n"
          "    if [[ \"$command$words[2]\" == bench\\ (moe|serve|text) ]] && (( CURRENT > 2 )); then\n"
          "        command+=$words[2]\n"
          "        shift words\n"
          "        (( CURRENT-- ))\n"
          "    fi\n"
          "    case $command in\n",
          file);
    for (size_t i = 0; i < n; i++)
        print_zsh_command(file, commands[i]);
    fputs("    'help ') _describe command commands ;;\n"
          "    esac\n"
          "}\n"
          "if [[ \"$funcstack[1]\" == _moebius ]]; then _moebius \"$@\"; else compdef _moebius moebius; fi\n",
          file);
}

/* ---- fish --------------------------------------------------------------------------------------------- */

static void print_fish_option(FILE *file, const char *condition, const cli_option *option) {
    char choices[256];
    fprintf(file, "complete -c moebius -n '%s'", condition);
    if (option->letter != 0)
        fprintf(file, " -s %c", option->letter);
    fprintf(file, " -l %s", option->name);
    if (option->also != NULL)
        fprintf(file, " -l %s", option->also);
    if (option->kind == CLI_CHOICE) {
        list_choices(option, choices, sizeof choices);
        fprintf(file, " -x -a '%s'", choices);
    } else if (takes_file(option)) {
        fputs(" -r -F", file);
    } else if (option->kind != CLI_FLAG) {
        fputs(" -x", file);
    }
    fputs(" -d '", file);
    for (const char *help = option->help, *end = help + first_sentence(help); help < end; help++)
        fprintf(file, strchr("'\\", *help) != NULL ? "\\%c" : "%c", *help);
    fputs("'\n", file);
}

static void print_fish(FILE *file, const cli_command *const *commands, size_t n) {
    fputs("# Completion of moebius in fish. Made by: moebius help --completion fish\n"
          "complete -c moebius -f\n"
          "complete -c moebius -n __fish_use_subcommand -l version -d 'Print the version'\n"
          "complete -c moebius -n __fish_use_subcommand -a help -d 'explain a command'\n",
          file);
    for (size_t i = 0; i < n; i++) {
        const cli_command *command = commands[i];
        char condition[128];
        const char *part = strchr(command->name, ' '); /* of "bench moe" */
        if (part != NULL) {
            snprintf(condition, sizeof condition,
                     "__fish_seen_subcommand_from bench; and __fish_seen_subcommand_from %s", part + 1);
            fprintf(file, "complete -c moebius -n '__fish_seen_subcommand_from bench' -a %s -d '%s'\n",
                    part + 1, command->summary);
        } else {
            snprintf(condition, sizeof condition,
                     "__fish_seen_subcommand_from %s; and not __fish_seen_subcommand_from moe%s",
                     command->name,
                     strcmp(command->name, "bench") == 0   ? " serve text train"
                     : strcmp(command->name, "serve") == 0 ? " bench"
                                                           : "");
            fprintf(file, "complete -c moebius -n __fish_use_subcommand -a %s -d '%s'\n", command->name,
                    command->summary);
            fprintf(file, "complete -c moebius -n '__fish_seen_subcommand_from help' -a %s -d '%s'\n",
                    command->name, command->summary);
            fprintf(file, "complete -c moebius -n '%s' -a '(__fish_complete_directories)'\n", condition);
        }
        for (size_t j = 0; j < command->n_groups; j++)
            for (const cli_option *option = command->groups[j].options; option->name != NULL; option++)
                print_fish_option(file, condition, option);
        fprintf(file, "complete -c moebius -n '%s' -s h -l help -d 'Print the manual page'\n", condition);
    }
}

int cli_print_completion(FILE *file, const char *shell, const cli_command *const *commands,
                         size_t n_commands) {
    if (strcmp(shell, "bash") == 0)
        print_bash(file, commands, n_commands);
    else if (strcmp(shell, "zsh") == 0)
        print_zsh(file, commands, n_commands);
    else if (strcmp(shell, "fish") == 0)
        print_fish(file, commands, n_commands);
    else
        return -1;
    return 0;
}
