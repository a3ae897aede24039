/* moebius tokenize: text to token ids and back. */
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/commands.h"
#include "cli/generate.h"
#include "cli/model_settings.h"
#include "cli/output.h"

typedef struct settings {
    const char *text;
    cli_ids decode;
    int no_special, json;
    cli_model_settings model;
} settings;

static const cli_option tokenize_options[] = {
    {.letter = 'p',
     .name = "prompt",
     .value_name = "TEXT",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, text),
     .help = "The text; - or no -p at all reads standard input to its end."},
    {.name = "no-special",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, no_special),
     .help = "Treat the spelling of special tokens (<|im_end|>) as plain text; with --decode, leave special "
             "tokens out."},
    {.name = "decode",
     .value_name = "ID[,...]",
     .kind = CLI_IDS,
     .offset = offsetof(settings, decode),
     .minimum = 0,
     .maximum = INT32_MAX,
     .help = "Print the text of these tokens, and a newline."},
    {.name = "json",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, json),
     .help =
         "Print one JSON object: {\"ids\": [...], \"pieces\": [...]}, or {\"text\": \"...\"} for --decode."},
    {0},
};

static const cli_group groups[] = {
    {"Text", tokenize_options, 0},
    {"Model", cli_model_options, offsetof(settings, model)},
};

/* The text of ids as valid UTF-8 in *text (mb_malloc): bytes that are no character become U+FFFD. */
static int decode(const mb_model *model, const int32_t *ids, size_t count, int skip_special, char **text,
                  size_t *n_text) {
    mb_decoder *decoder;
    void *buffer = NULL;
    size_t capacity = 0, used = 0;
    if (mb_decoder_open(model, skip_special, &decoder) != MB_OK)
        return cli_report_failure();
    int status = CLI_OK;
    for (size_t i = 0; i <= count && status == CLI_OK; i++) {
        const char *piece;
        size_t n_piece;
        mb_status decoded = i < count ? mb_decoder_push(decoder, ids[i], &piece, &n_piece)
                                      : mb_decoder_finish(decoder, &piece, &n_piece);
        if (decoded != MB_OK) {
            status = cli_report_failure();
        } else if (mb_grow(&buffer, &capacity, used + n_piece + 1, 1) != 0) {
            status = cli_failure("no memory for the text of %zu tokens", count);
        } else {
            memcpy((char *)buffer + used, piece, n_piece);
            used += n_piece;
        }
    }
    mb_decoder_close(decoder);
    *text = buffer;
    *n_text = used;
    return status;
}

/* Prints text as a JSON string: readable, and nothing in it can disturb a terminal. */
static int print_quoted(const char *text, size_t n_bytes) {
    json_malloc_t allocate;
    json_free_t release;
    json_t *string = json_stringn(text, n_bytes);
    char *quoted = string != NULL ? json_dumps(string, JSON_ENCODE_ANY) : NULL;
    json_decref(string);
    if (quoted == NULL)
        return cli_failure("no memory for a text of %zu bytes", n_bytes);
    cli_print_text(quoted, strlen(quoted));
    json_get_alloc_funcs(&allocate, &release);
    release(quoted);
    return CLI_OK;
}

static int print_text(const mb_model *model, const settings *given) {
    char *text = NULL;
    size_t n_text = 0;
    int status = decode(model, given->decode.items, given->decode.count, given->no_special, &text, &n_text);
    if (status == CLI_OK && given->json) {
        cli_print("{\"text\": ");
        status = print_quoted(text, n_text);
        cli_print("}");
    } else if (status == CLI_OK) {
        cli_print_text(text, n_text);
    }
    if (status == CLI_OK)
        cli_print("\n");
    mb_free(text);
    return status;
}

static int print_piece(const mb_model *model, int32_t id) {
    char *text = NULL;
    size_t n_text = 0;
    int status = decode(model, &id, 1, 0, &text, &n_text);
    if (status == CLI_OK)
        status = print_quoted(text, n_text);
    mb_free(text);
    return status;
}

static int print_tokens(const mb_model *model, const cli_ids *ids, int json) {
    int status = CLI_OK;
    if (!json) {
        for (size_t i = 0; i < ids->count && status == CLI_OK; i++) {
            cli_print("%8" PRId32 "  ", ids->items[i]);
            status = print_piece(model, ids->items[i]);
            cli_print("\n");
        }
        return status;
    }
    cli_print("{\"ids\": [");
    for (size_t i = 0; i < ids->count; i++)
        cli_print("%s%" PRId32, i > 0 ? ", " : "", ids->items[i]);
    cli_print("], \"pieces\": [");
    for (size_t i = 0; i < ids->count && status == CLI_OK; i++) {
        cli_print("%s", i > 0 ? ", " : "");
        status = print_piece(model, ids->items[i]);
    }
    cli_print("]}\n");
    return status;
}

static int encode_and_print(const mb_model *model, const settings *given) {
    const char *text = given->text;
    char *input = NULL;
    cli_ids ids = {0};
    size_t n_bytes;
    if (text == NULL || strcmp(text, "-") == 0) {
        text = input = cli_read_input(&n_bytes);
        if (input == NULL)
            return CLI_FAILED;
    } else {
        n_bytes = strlen(text);
    }
    int status = cli_encode(model, text, n_bytes, !given->no_special, &ids);
    if (status == CLI_OK)
        status = print_tokens(model, &ids, given->json);
    mb_free(ids.items);
    mb_free(input);
    return status;
}

static int tokenize_main(int argc, char **argv) {
    settings given = {0};
    const char *directory;
    mb_model *model = NULL;
    int status = cli_parse(&cli_tokenize_command, argc, argv, &given, &directory);
    if (status >= 0)
        return status;
    if (given.text != NULL && given.decode.items != NULL)
        status = cli_usage_error(&cli_tokenize_command, "-p and --decode exclude each other");
    else
        status = cli_open_part(directory, &given.model, MB_LOAD_TEXT, &model);
    if (status == CLI_OK)
        status = given.decode.items != NULL ? print_text(model, &given) : encode_and_print(model, &given);
    mb_model_close(model);
    cli_settings_free(&cli_tokenize_command, &given);
    return status;
}

const cli_command cli_tokenize_command = {
    .name = "tokenize",
    .summary = "show the tokens of a text, or the text of tokens",
    .synopsis = "moebius tokenize DIR [-p TEXT] [--no-special] [--json]\n"
                "moebius tokenize DIR --decode ID[,...] [--no-special] [--json]",
    .description =
        "Cuts a text into tokens exactly as the model's tokenizer.json says and prints one a line: id "
        "and piece, the piece as a JSON string. A piece that is only part of a character "
        "shows as U+FFFD. With --decode, prints the text that token ids stand for.",
    .examples = "moebius tokenize models/demo -p \"Hello, world\"\n"
                "moebius tokenize models/demo --json < README.md\n"
                "moebius tokenize models/demo --decode 5,17,42",
    .operand_hint = "the prompt is given with -p TEXT",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = tokenize_main,
};
