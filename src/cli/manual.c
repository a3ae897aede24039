/* The manual page of a command, from its table. */
#include <string.h>

#include "cli/options.h"

enum { LINE_WIDTH = 80 };

/* Prints text wrapped at LINE_WIDTH; a line break in it is kept. */
static void print_wrapped(FILE *file, int indent, const char *text) {
    int column = 0;
    while (*text != '\0') {
        if (*text == '\n') {
            fputc('\n', file);
            column = 0;
            text++;
            continue;
        }
        size_t length = strcspn(text, " \n");
        if (column > 0 && column + 1 + (int)length > LINE_WIDTH) {
            fputc('\n', file);
            column = 0;
        }
        if (column == 0)
            column = fprintf(file, "%*s", indent, "");
        else
            column += fprintf(file, " ");
        column += fprintf(file, "%.*s", (int)length, text);
        text += length;
        text += *text == ' ';
    }
    fputc('\n', file);
}

/* As print_wrapped, without wrapping: for lines that a person copies. */
static void print_lines(FILE *file, int indent, const char *text) {
    while (*text != '\0') {
        size_t length = strcspn(text, "\n");
        fprintf(file, "%*s%.*s\n", length > 0 ? indent : 0, "", (int)length, text);
        text += length;
        text += *text == '\n';
    }
}

static void print_option(FILE *file, const cli_option *option) {
    char values[256], text[1024];
    fprintf(file, "       ");
    if (option->letter != 0)
        fprintf(file, "-%c, ", option->letter);
    fprintf(file, "--%s%s%s\n", option->name, option->value_name != NULL ? " " : "",
            option->value_name != NULL ? option->value_name : "");
    size_t used = (size_t)snprintf(text, sizeof text, "%s", option->help);
    if (option->kind != CLI_FLAG && option->kind != CLI_TEXT && used < sizeof text) {
        cli_describe_values(option, values, sizeof values);
        used += (size_t)snprintf(text + used, sizeof text - used, " Takes %s.", values);
    }
    if (option->fallback != NULL && used < sizeof text)
        snprintf(text + used, sizeof text - used, " Default: %s.", option->fallback);
    print_wrapped(file, 14, text);
}

void cli_print_manual(FILE *file, const cli_command *command) {
    fprintf(file, "NAME\n       moebius %s - %s\n\nSYNOPSIS\n", command->name, command->summary);
    print_lines(file, 7, command->synopsis);
    fprintf(file, "\nDESCRIPTION\n");
    print_wrapped(file, 7, command->description);
    fprintf(file, "\nOPTIONS\n");
    for (size_t i = 0; i < command->n_groups; i++) {
        const cli_group *group = &command->groups[i];
        fprintf(file, "%s   %s\n", i > 0 ? "\n" : "", group->title);
        for (const cli_option *option = group->options; option->name != NULL; option++)
            print_option(file, option);
    }
    fprintf(file, "       -h, --help\n              Print this page.\n");
    fprintf(file, "\nEXAMPLES\n");
    print_lines(file, 7, command->examples);
    fprintf(file, "\nEXIT STATUS\n"
                  "       0      Success.\n"
                  "       1      The command failed; a sentence on stderr says why.\n"
                  "       2      The command line is wrong.\n"
                  "       130    Interrupted by Ctrl-C.\n");
}
