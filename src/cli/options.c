#include "cli/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/suggest.h"

int cli_usage_error(const cli_command *command, const char *format, ...) {
    va_list arguments;
    fprintf(stderr, "moebius %s: ", command->name);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\nTry 'moebius %s --help'.\n", command->name);
    return CLI_USAGE;
}

void cli_describe_values(const cli_option *option, char *text, size_t capacity) {
    double low = option->minimum, high = option->maximum;
    switch (option->kind) {
    case CLI_FLAG:
        snprintf(text, capacity, "no value");
        break;
    case CLI_TEXT:
        snprintf(text, capacity, "a text");
        break;
    case CLI_TEXTS:
        snprintf(text, capacity, "a text that is not empty");
        break;
    case CLI_CHOICE:
        snprintf(text, capacity, "%s%s", strchr(option->choices, '|') ? "one of " : "", option->choices);
        break;
    case CLI_INTEGER:
        snprintf(text, capacity, "a whole number from %.0f to %.0f", low, high);
        break;
    case CLI_IDS:
        snprintf(text, capacity, "whole numbers from %.0f to %.0f, separated by commas", low, high);
        break;
    case CLI_SHAPES:
        snprintf(text, capacity, "five whole numbers from %.0f to %.0f, separated by commas", low, high);
        break;
    case CLI_BIASES:
        snprintf(text, capacity, "ID:BIAS pairs separated by commas, BIAS from %g to %g", low, high);
        break;
    case CLI_NUMBER:
        if (option->ends == CLI_OPEN_BELOW)
            snprintf(text, capacity, "a number above %g, at most %g", low, high);
        else
            snprintf(text, capacity, "a number from %g to %g", low, high);
        break;
    }
}

/* ---- Values ------------------------------------------------------------------------------------------- */

typedef enum verdict { GOOD, MALFORMED, OUT_OF_RANGE, NO_MEMORY } verdict;

/* Parses text[0, length) whole. strtoll alone would allow spaces before the number and anything after it. */
static verdict parse_integer(const cli_option *option, const char *text, size_t length, int64_t *value) {
    char buffer[32];
    size_t digits = strspn(text + (*text == '-'), "0123456789");
    if (digits == 0 || digits + (*text == '-') != length)
        return MALFORMED;
    if (length >= sizeof buffer)
        return OUT_OF_RANGE;
    memcpy(buffer, text, length);
    buffer[length] = '\0';
    errno = 0;
    *value = strtoll(buffer, NULL, 10);
    /* A maximum of INT64_MAX is 2^63 as a double: compared as such, the conversion's own limit decides. */
    if (errno == ERANGE || (double)*value < option->minimum || (double)*value > option->maximum)
        return OUT_OF_RANGE;
    return GOOD;
}

/* Decimal notation only: strtod would also take "nan", "inf" and hexadecimal. */
static verdict parse_number(const cli_option *option, const char *text, size_t length, double *value) {
    char buffer[64], *end;
    if (length == 0 || length >= sizeof buffer || strspn(text, "0123456789+-.eE") < length)
        return MALFORMED;
    memcpy(buffer, text, length);
    buffer[length] = '\0';
    *value = strtod(buffer, &end);
    if (*end != '\0')
        return MALFORMED;
    if (!isfinite(*value) || *value < option->minimum || *value > option->maximum)
        return OUT_OF_RANGE;
    if (option->ends == CLI_OPEN_BELOW && *value == option->minimum)
        return OUT_OF_RANGE;
    return GOOD;
}

static verdict parse_choice(const cli_option *option, const char *text) {
    for (const char *choice = option->choices; choice != NULL; choice = strchr(choice, '|')) {
        choice += *choice == '|';
        size_t length = strcspn(choice, "|");
        if (strlen(text) == length && memcmp(text, choice, length) == 0 && choice[length - 1] != 'N')
            return GOOD;
        if (length > 2 && memcmp(choice + length - 2, ":N", 2) == 0 &&
            strncmp(text, choice, length - 1) == 0) {
            size_t digits = strspn(text + length - 1, "0123456789");
            if (digits >= 1 && digits <= 3 && text[length - 1 + digits] == '\0')
                return GOOD;
        }
    }
    return MALFORMED;
}

static verdict parse_bias(const cli_option *option, const char *text, size_t length, mb_logit_bias *bias) {
    static const cli_option id_range = {.minimum = 0, .maximum = INT32_MAX};
    const char *colon = memchr(text, ':', length);
    if (colon == NULL)
        return MALFORMED;
    int64_t id;
    double value;
    verdict found = parse_integer(&id_range, text, (size_t)(colon - text), &id);
    if (found == GOOD)
        found = parse_number(option, colon + 1, length - (size_t)(colon + 1 - text), &value);
    if (found == GOOD)
        *bias = (mb_logit_bias){(int32_t)id, (float)value};
    return found;
}

/* A list replaces the list of an earlier mention, or the default. */
static verdict parse_list(const cli_option *option, const char *text, void *value) {
    size_t item_bytes = option->kind == CLI_IDS ? sizeof(int32_t) : sizeof(mb_logit_bias);
    size_t count = 1;
    for (const char *comma = text; (comma = strchr(comma, ',')) != NULL; comma++)
        count++;
    char *items = mb_malloc_array(count, item_bytes);
    if (items == NULL)
        return NO_MEMORY;
    verdict found = GOOD;
    for (size_t i = 0; i < count && found == GOOD; i++) {
        size_t length = strcspn(text, ",");
        int64_t id = 0;
        if (option->kind == CLI_BIASES) {
            found = parse_bias(option, text, length, (mb_logit_bias *)items + i);
        } else {
            found = parse_integer(option, text, length, &id);
            ((int32_t *)items)[i] = (int32_t)id;
        }
        text += length + 1;
    }
    if (found != GOOD) {
        mb_free(items);
    } else if (option->kind == CLI_IDS) {
        cli_ids *ids = value;
        mb_free(ids->items);
        *ids = (cli_ids){(int32_t *)items, count};
    } else {
        cli_biases *biases = value;
        mb_free(biases->items);
        *biases = (cli_biases){(mb_logit_bias *)items, count};
    }
    return found;
}

/* A shape is added to those of earlier mentions. */
static verdict parse_shape(const cli_option *option, const char *text, cli_ids *shapes) {
    enum { SIDES = 5 };
    cli_option numbers = {.kind = CLI_IDS, .minimum = option->minimum, .maximum = option->maximum};
    cli_ids shape = {0};
    verdict found = parse_list(&numbers, text, &shape);
    if (found == GOOD && shape.count != SIDES)
        found = MALFORMED;
    if (found == GOOD) {
        int32_t *items = mb_realloc(shapes->items, (shapes->count + SIDES) * sizeof *items);
        if (items != NULL) {
            memcpy(items + shapes->count, shape.items, SIDES * sizeof *items);
            *shapes = (cli_ids){items, shapes->count + SIDES};
        } else {
            found = NO_MEMORY;
        }
    }
    mb_free(shape.items);
    return found;
}

/* A text is added to those of earlier mentions. */
static verdict add_text(const char *text, cli_texts *texts) {
    if (*text == '\0')
        return MALFORMED;
    const char **items = mb_realloc(texts->items, (texts->count + 1) * sizeof *items);
    if (items == NULL)
        return NO_MEMORY;
    items[texts->count] = text;
    *texts = (cli_texts){items, texts->count + 1};
    return GOOD;
}

static verdict set_value(const cli_option *option, const char *text, int given, void *value) {
    cli_integer *integer = value;
    cli_number *number = value;
    verdict found = GOOD;
    switch (option->kind) {
    case CLI_FLAG:
        *(int *)value = 1;
        break;
    case CLI_CHOICE:
        found = parse_choice(option, text);
        /* fall through */
    case CLI_TEXT:
        *(const char **)value = text;
        break;
    case CLI_TEXTS:
        found = add_text(text, value);
        break;
    case CLI_INTEGER:
        found = parse_integer(option, text, strlen(text), &integer->value);
        integer->given = given;
        break;
    case CLI_NUMBER:
        found = parse_number(option, text, strlen(text), &number->value);
        number->given = given;
        break;
    case CLI_IDS:
    case CLI_BIASES:
        found = parse_list(option, text, value);
        break;
    case CLI_SHAPES:
        found = parse_shape(option, text, value);
        break;
    }
    return found;
}

/* ---- The command line --------------------------------------------------------------------------------- */

/* Walks all options of a command: the next one after *i_group, *i_option, or NULL. */
static const cli_option *next_option(const cli_command *command, size_t *i_group, size_t *i_option) {
    while (*i_group < command->n_groups) {
        const cli_group *group = &command->groups[*i_group];
        if (group->options[*i_option].name != NULL)
            return &group->options[(*i_option)++];
        ++*i_group;
        *i_option = 0;
    }
    return NULL;
}

static void *value_of(const cli_command *command, size_t i_group, const cli_option *option, void *settings) {
    return (char *)settings + command->groups[i_group].offset + option->offset;
}

static int is_called(const char *is, const char *name, size_t length) {
    return is != NULL && strlen(is) == length && memcmp(is, name, length) == 0;
}

/* The option called `name` (length bytes long: a letter, or a name), and its group. */
static const cli_option *find_option(const cli_command *command, const char *name, size_t length,
                                     int is_letter, size_t *i_group) {
    const cli_option *option;
    size_t i_option = 0;
    *i_group = 0;
    while ((option = next_option(command, i_group, &i_option)) != NULL) {
        if (is_letter ? option->letter == *name
                      : is_called(option->name, name, length) || is_called(option->also, name, length))
            return option;
    }
    return NULL;
}

static int report_value(const cli_command *command, const char *shown, const cli_option *option,
                        const char *value, verdict found) {
    char allowed[256];
    if (found == NO_MEMORY) {
        fprintf(stderr, "moebius: out of memory for the value of %s\n", shown);
        return CLI_FAILED;
    }
    cli_describe_values(option, allowed, sizeof allowed);
    return cli_usage_error(command, "%s: \"%.200s\" is %s; give %s", shown, value,
                           found == OUT_OF_RANGE ? "out of range" : "not understood", allowed);
}

/* There is no such option: perhaps another one was meant, or a long one lacks a dash. */
static int report_unknown(const cli_command *command, const char *argument, int shown_length) {
    size_t i_group = 0, i_option = 0;
    const char *name = argument + strspn(argument, "-");
    cli_suggestion near;
    cli_suggestion_begin(&near, name, strcspn(name, "="));
    for (const cli_option *option; (option = next_option(command, &i_group, &i_option)) != NULL;) {
        cli_suggestion_offer(&near, option->name);
        if (option->also != NULL)
            cli_suggestion_offer(&near, option->also);
    }
    cli_suggestion_offer(&near, "help");
    if (near.nearest == NULL)
        return cli_usage_error(command, "there is no option %.*s", shown_length, argument);
    return cli_usage_error(command, "there is no option %.*s; did you mean --%s?",
                           (int)(name - argument + (ptrdiff_t)near.length), argument, near.nearest);
}

static size_t count_files(const cli_command *command) {
    size_t n = 0;
    while (command->files != NULL && command->files[n] != NULL)
        n++;
    return n;
}

/* An operand that the command does not take; `operands`: those before, as many as it takes. */
static int report_operand(const cli_command *command, const char *argument, int takes_directory,
                          const char *const *operands) {
    const char *hint = command->operand_hint, *semicolon = hint != NULL ? "; " : "";
    if (!takes_directory)
        return cli_usage_error(command, "\"%.200s\" is one operand too many: there are only options%s%s",
                               argument, semicolon, hint != NULL ? hint : "");
    size_t n_files = count_files(command);
    const char *last = n_files > 0 ? command->files[n_files - 1] : "DIR";
    return cli_usage_error(command, "\"%.200s\" is one operand too many: %.*s is \"%.200s\" already%s%s",
                           argument, (int)strcspn(last, ":"), last, operands[n_files], semicolon,
                           hint != NULL ? hint : "");
}

/* -1 when all operands are there. */
static int check_operands(const cli_command *command, const char *const *operands, size_t n) {
    if (n == 0 || *operands[0] == '\0')
        return cli_usage_error(command,
                               "DIR is missing: the folder of a checkpoint, e.g. models/demo, or the name "
                               "of a downloaded model, e.g. Qwen/Qwen3-30B-A3B");
    if (n - 1 < count_files(command)) {
        const char *file = command->files[n - 1];
        int length = (int)strcspn(file, ":");
        return cli_usage_error(command, "%.*s is missing%s", length, file, file + length);
    }
    return -1;
}

/* Takes the option at argv[*i] and its value. */
static int parse_option(const cli_command *command, int argc, char **argv, int *i, void *settings) {
    const char *argument = argv[*i];
    int is_letter = argument[1] != '-';
    const char *name = argument + (is_letter ? 1 : 2);
    size_t length = is_letter ? 1 : strcspn(name, "="), i_group;
    const cli_option *option = find_option(command, name, length, is_letter, &i_group);
    int shown_length = (int)(name + length - argument);
    if (option == NULL)
        return report_unknown(command, argument, shown_length);

    char shown[64];
    snprintf(shown, sizeof shown, "%.*s", shown_length, argument);
    const char *value = name + length; /* "=5" of --name=5, "5" of -n5 */
    if (option->kind == CLI_FLAG) {
        if (*value != '\0')
            return cli_usage_error(command, "%s takes no value, but \"%.200s\" follows it", shown, value);
    } else if (*value != '\0') {
        value += !is_letter;
    } else if (*i + 1 < argc) {
        value = argv[++*i];
    } else {
        char allowed[256];
        cli_describe_values(option, allowed, sizeof allowed);
        return cli_usage_error(command, "%s needs a value: %s", shown, allowed);
    }
    verdict found = set_value(option, value, 1, value_of(command, i_group, option, settings));
    return found == GOOD ? -1 : report_value(command, shown, option, value, found);
}

static int set_defaults(const cli_command *command, void *settings) {
    const cli_option *option;
    size_t i_group = 0, i_option = 0;
    while ((option = next_option(command, &i_group, &i_option)) != NULL) {
        if (option->fallback == NULL)
            continue;
        verdict found = set_value(option, option->fallback, 0, value_of(command, i_group, option, settings));
        if (found != GOOD)
            return report_value(command, option->name, option, option->fallback, found);
    }
    return -1;
}

/* The variable that stands for an option: MOEBIUS_MAX_QUEUE for max-queue. */
static const char *variable_of(const cli_option *option, char *name, size_t capacity) {
    size_t n = (size_t)snprintf(name, capacity, "MOEBIUS_%s", option->name);
    for (size_t i = 0; i < n && i < capacity; i++)
        name[i] = name[i] == '-' ? '_' : (char)toupper((unsigned char)name[i]);
    return getenv(name);
}

/* 1 for a flag's variable that switches the flag on. */
static int is_on(const char *value) {
    return strcmp(value, "") != 0 && strcmp(value, "0") != 0 && strcmp(value, "false") != 0;
}

static int set_from_environment(const cli_command *command, void *settings) {
    const cli_option *option;
    size_t i_group = 0, i_option = 0;
    char name[64];
    while ((option = next_option(command, &i_group, &i_option)) != NULL) {
        const char *value = variable_of(option, name, sizeof name);
        if (value == NULL || (option->kind == CLI_FLAG && !is_on(value)))
            continue;
        verdict found = set_value(option, value, 1, value_of(command, i_group, option, settings));
        if (found != GOOD)
            return report_value(command, name, option, value, found);
    }
    return -1;
}

int cli_parse(const cli_command *command, int argc, char **argv, void *settings, const char **directory) {
    int status = set_defaults(command, settings), options_ended = 0;
    if (status < 0 && command->reads_environment)
        status = set_from_environment(command, settings);
    size_t n_operands = 0, most_operands = directory != NULL ? 1 + count_files(command) : 0;
    for (int i = 1; i < argc && status < 0; i++) {
        const char *argument = argv[i];
        if (options_ended || argument[0] != '-' || argument[1] == '\0') {
            if (n_operands == most_operands)
                status = report_operand(command, argument, directory != NULL, directory);
            else
                directory[n_operands++] = argument;
        } else if (strcmp(argument, "--") == 0) {
            options_ended = 1;
        } else if (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0) {
            cli_print_manual(stdout, command);
            status = CLI_OK;
        } else {
            status = parse_option(command, argc, argv, &i, settings);
        }
    }
    if (status < 0 && directory != NULL)
        status = check_operands(command, directory, n_operands);
    if (status >= 0)
        cli_settings_free(command, settings);
    return status;
}

void cli_settings_free(const cli_command *command, void *settings) {
    const cli_option *option;
    size_t i_group = 0, i_option = 0;
    while ((option = next_option(command, &i_group, &i_option)) != NULL) {
        void *value = value_of(command, i_group, option, settings);
        if (option->kind == CLI_IDS || option->kind == CLI_SHAPES) {
            mb_free(((cli_ids *)value)->items);
            *(cli_ids *)value = (cli_ids){0};
        } else if (option->kind == CLI_TEXTS) {
            mb_free(((cli_texts *)value)->items);
            *(cli_texts *)value = (cli_texts){0};
        } else if (option->kind == CLI_BIASES) {
            mb_free(((cli_biases *)value)->items);
            *(cli_biases *)value = (cli_biases){0};
        }
    }
}
