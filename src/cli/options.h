/*
 * options.h - command lines: one table per command. The parser, the manual pages and the shells'
 * completions are all made from the table.
 *
 * A command keeps its settings in one struct. Each option of its table says where in that struct the value
 * goes, which values are allowed, and what a person reads about it in --help, so that the three cannot
 * drift. Options that several commands share are groups with a struct of their own inside of the command's.
 */
#ifndef MB_CLI_OPTIONS_H
#define MB_CLI_OPTIONS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "moebius/moebius.h"

/* Exit statuses of the program. */
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_INTERRUPTED = 130 };

/* What a settings struct holds for an option of each kind. `given` tells a value that the user typed
 * from the table's default. */
typedef struct cli_integer {
    int64_t value;
    int given;
} cli_integer;

typedef struct cli_number {
    double value;
    int given;
} cli_number;

typedef struct cli_ids {
    int32_t *items; /* mb_malloc */
    size_t count;
} cli_ids;

typedef struct cli_texts {
    const char **items; /* mb_malloc; the texts are the command line's */
    size_t count;
} cli_texts;

typedef struct cli_biases {
    mb_logit_bias *items; /* mb_malloc */
    size_t count;
} cli_biases;

typedef enum cli_kind {
    CLI_FLAG,    /* int: 1 when present */
    CLI_TEXT,    /* const char *: any text; a file's path when value_name is FILE */
    CLI_TEXTS,   /* cli_texts: any text but an empty one; each mention adds one */
    CLI_CHOICE,  /* const char *: one of `choices`, separated by "|"; "name:N" is name:0, name:1, ... */
    CLI_INTEGER, /* cli_integer in [minimum, maximum] */
    CLI_NUMBER,  /* cli_number in the same, or without its ends */
    CLI_IDS,     /* cli_ids: whole numbers in [minimum, maximum], separated by commas */
    CLI_BIASES,  /* cli_biases: ID:BIAS, separated by commas; the range is the bias's */
    CLI_SHAPES,  /* cli_ids: five whole numbers T,H,I,E,K in [minimum, maximum]; each mention adds five */
} cli_kind;

typedef enum cli_ends { CLI_CLOSED, CLI_OPEN_BELOW } cli_ends;

typedef struct cli_option {
    char letter;            /* 0: none */
    const char *name;       /* without the dashes */
    const char *also;       /* another name that means the same; NULL: none */
    const char *value_name; /* "N"; NULL for flags */
    cli_kind kind;
    size_t offset; /* of the value in its group's settings */
    double minimum, maximum;
    cli_ends ends;
    const char *choices;
    const char *fallback; /* the default, written as a user would; NULL: none */
    const char *help;     /* whole sentences */
} cli_option;

typedef struct cli_group {
    const char *title;
    const cli_option *options; /* the last one has name NULL */
    size_t offset;             /* of the group's struct in the command's settings */
} cli_group;

typedef struct cli_command {
    const char *name;
    const char *summary; /* a few words, no capital, no full stop */
    const char *synopsis;
    const char *description; /* paragraphs separated by an empty line */
    const char *examples;
    const char *operand_hint; /* ends the sentence about an operand too many; NULL: nothing to add */
    const char *const
        *files; /* operands after DIR, all needed: "IN: the requests"; the last is NULL; NULL: none */
    const cli_group *groups;
    size_t n_groups;
    int reads_environment; /* MOEBIUS_MAX_QUEUE is --max-queue, for containers; the command line wins */
    int (*main)(int argc, char **argv); /* argv[0] is the command's name; returns the exit status */
} cli_command;

#define CLI_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Fills *settings (zeroed by the caller) with the defaults and then from argv, and *directory with the
 * one operand DIR (directory NULL: the command takes none); directory[1] and so on get the command's `files`.
 * Returns -1 when the command should go on,
 * else the exit status: --help was printed, or a usage error reported. */
int cli_parse(const cli_command *command, int argc, char **argv, void *settings, const char **directory);

/* Frees the lists in *settings. */
void cli_settings_free(const cli_command *command, void *settings);

/* Reports a mistake in how the program was called, on stderr; returns CLI_USAGE. */
__attribute__((format(printf, 2, 3))) int cli_usage_error(const cli_command *command, const char *format,
                                                          ...);

/* The manual page of one command, as text. */
void cli_print_manual(FILE *file, const cli_command *command);

/* The manual page of the program, for man: moebius.1. */
void cli_print_man_page(FILE *file, const cli_command *const *commands, size_t n_commands);

/* A script that completes the program's command line in `shell`: "bash", "zsh" or "fish". -1: another
 * shell. */
int cli_print_completion(FILE *file, const char *shell, const cli_command *const *commands,
                         size_t n_commands);

/* Writes the values that an option takes, as "a whole number from 0 to 5", to text. */
void cli_describe_values(const cli_option *option, char *text, size_t capacity);

#endif
