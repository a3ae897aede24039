/* The manual, from the commands' tables: a command's page as text, and the program's page for man. */
#include <string.h>

#include "cli/options.h"

enum { LINE_WIDTH = 80 };

static const struct {
    const char *status, *meaning;
} exit_statuses[] = {
    {"0", "Success."},
    {"1", "The command failed; a sentence on stderr says why."},
    {"2", "The command line is wrong."},
    {"130", "Interrupted by Ctrl-C."},
};

/* What --help says about an option: its help, the values it takes, its default. */
static void describe_option(const cli_option *option, char *text, size_t capacity) {
    char values[256];
    size_t used = (size_t)snprintf(text, capacity, "%s", option->help);
    if (option->kind != CLI_FLAG && option->kind != CLI_TEXT && option->kind != CLI_TEXTS &&
        used < capacity) {
        cli_describe_values(option, values, sizeof values);
        used += (size_t)snprintf(text + used, capacity - used, " Takes %s.", values);
    }
    if (option->fallback != NULL && used < capacity)
        snprintf(text + used, capacity - used, " Default: %s.", option->fallback);
}

/* ---- As text ------------------------------------------------------------------------------------------ */

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
    char text[1024];
    fprintf(file, "       ");
    if (option->letter != 0)
        fprintf(file, "-%c, ", option->letter);
    if (option->also != NULL)
        fprintf(file, "--%s, ", option->also);
    fprintf(file, "--%s%s%s\n", option->name, option->value_name != NULL ? " " : "",
            option->value_name != NULL ? option->value_name : "");
    describe_option(option, text, sizeof text);
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
    fprintf(file, "\nEXIT STATUS\n");
    for (size_t i = 0; i < CLI_COUNT(exit_statuses); i++)
        fprintf(file, "       %-6s %s\n", exit_statuses[i].status, exit_statuses[i].meaning);
}

/* ---- For man ------------------------------------------------------------------------------------------ */

/* Text as roff shows it unchanged; a line break in it is kept. */
static void print_roff(FILE *file, const char *text) {
    int line_starts = 1;
    for (; *text != '\0'; text++) {
        if (line_starts && (*text == '.' || *text == '\''))
            fputs("\\&", file);
        line_starts = *text == '\n';
        if (*text == '\\')
            fputs("\\e", file);
        else if (*text == '-')
            fputs("\\-", file);
        else
            fputc(*text, file);
    }
}

static void print_roff_lines(FILE *file, const char *text) {
    fputs(".nf\n", file);
    print_roff(file, text);
    fputs("\n.fi\n", file);
}

/* Paragraphs that an empty line separates. */
static void print_roff_paragraphs(FILE *file, const char *text) {
    for (const char *end; (end = strstr(text, "\n\n")) != NULL; text = end + 2) {
        char paragraph[1024];
        snprintf(paragraph, sizeof paragraph, "%.*s", (int)(end - text), text);
        print_roff(file, paragraph);
        fputs("\n.PP\n", file);
    }
    print_roff(file, text);
    fputc('\n', file);
}

static void print_roff_options(FILE *file, const cli_option *option) {
    for (char text[1024]; option->name != NULL; option++) {
        fputs(".TP\n", file);
        if (option->letter != 0)
            fprintf(file, "\\fB\\-%c\\fR, ", option->letter);
        if (option->also != NULL) {
            fputs("\\fB\\-\\-", file);
            print_roff(file, option->also);
            fputs("\\fR, ", file);
        }
        fputs("\\fB\\-\\-", file);
        print_roff(file, option->name);
        fprintf(file, "\\fR%s\\fI%s\\fR\n", option->value_name != NULL ? " " : "",
                option->value_name != NULL ? option->value_name : "");
        describe_option(option, text, sizeof text);
        print_roff(file, text);
        fputc('\n', file);
    }
}

/* How many commands have this group; the first of them in *first. */
static int count_users(const cli_option *options, const cli_command *const *commands, size_t n_commands,
                       size_t *first) {
    int n = 0;
    for (size_t i = n_commands; i-- > 0;)
        for (size_t j = 0; j < commands[i]->n_groups; j++)
            if (commands[i]->groups[j].options == options) {
                *first = i;
                n++;
            }
    return n;
}

static void print_roff_command(FILE *file, const cli_command *command, const cli_command *const *commands,
                               size_t n_commands) {
    size_t first;
    fprintf(file, ".SS moebius %s\n", command->name);
    print_roff_lines(file, command->synopsis);
    fputs(".PP\n", file);
    print_roff_paragraphs(file, command->description);
    for (size_t i = 0; i < command->n_groups; i++) {
        const cli_group *group = &command->groups[i];
        if (count_users(group->options, commands, n_commands, &first) == 1)
            print_roff_options(file, group->options);
        else
            fprintf(file, ".PP\nThe options of \\(lq%s\\(rq below apply too.\n", group->title);
    }
}

/* Each group that several commands share, once. */
static void print_roff_shared(FILE *file, const cli_command *const *commands, size_t n_commands) {
    for (size_t i = 0; i < n_commands; i++) {
        for (size_t j = 0; j < commands[i]->n_groups; j++) {
            const cli_group *group = &commands[i]->groups[j];
            size_t first;
            if (count_users(group->options, commands, n_commands, &first) == 1 || first != i)
                continue;
            fprintf(file, ".SS %s\n", group->title);
            print_roff_options(file, group->options);
        }
    }
}

void cli_print_man_page(FILE *file, const cli_command *const *commands, size_t n_commands) {
    fprintf(
        file,
        ".TH MOEBIUS 1 \"\" \"moebius %s\" \"User Commands\"\n"
        ".SH NAME\nmoebius \\- runs Qwen3 mixture\\-of\\-experts models\n"
        ".SH SYNOPSIS\n\\fBmoebius\\fR \\fICOMMAND\\fR \\fIDIR\\fR [\\fIOPTIONS\\fR]\n"
        ".SH DESCRIPTION\n\\fIDIR\\fR is the folder of a model: a Hugging Face checkpoint of "
        "Qwen3MoeForCausalLM as it was\ndownloaded, with config.json, *.safetensors and tokenizer.json; or the "
        "name of a model that\nhf download has fetched, like Qwen/Qwen3\\-30B\\-A3B.\n"
        "\\fBmoebius\\fR \\fICOMMAND\\fR \\fB\\-\\-help\\fR explains one command.\n"
        ".SH COMMANDS\n",
        mb_version());
    for (size_t i = 0; i < n_commands; i++)
        print_roff_command(file, commands[i], commands, n_commands);
    fputs(".SH OPTIONS OF SEVERAL COMMANDS\n", file);
    print_roff_shared(file, commands, n_commands);
    fputs(".SH EXIT STATUS\n", file);
    for (size_t i = 0; i < CLI_COUNT(exit_statuses); i++)
        fprintf(file, ".TP\n%s\n%s\n", exit_statuses[i].status, exit_statuses[i].meaning);
    fputs(
        ".SH ENVIRONMENT\n"
        ".TP\nNO_COLOR\nWhen it is not empty, nothing is printed in faint letters.\n"
        ".TP\nTERM\nOn a terminal called dumb, no escape sequences are used: chat does not edit lines, and loading "
        "shows no progress bar.\n"
        ".TP\nHF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME\nWhere models are looked up by name, as hf download puts them: "
        "HF_HUB_CACHE, else the folder hub in HF_HOME, else huggingface/hub in XDG_CACHE_HOME or ~/.cache.\n"
        ".TP\nMOEBIUS_HISTORY, XDG_STATE_HOME\nThe file with the lines that were typed into chat: MOEBIUS_HISTORY (empty: "
        "none is kept), else moebius/chat_history in XDG_STATE_HOME or ~/.local/state.\n"
        ".TP\nMOEBIUS_LOG\nWhat is logged on stderr: error, warn (the default), info or debug.\n"
        ".TP\nMOEBIUS_TRACE\nA folder. Every operator's output of every step is written to it, as .npy files.\n"
        ".SH EXAMPLES\n",
        file);
    for (size_t i = 0; i < n_commands; i++)
        print_roff_lines(file, commands[i]->examples);
}
