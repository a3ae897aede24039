/* moebius logprobs: what the model expects after every token of a prompt. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/commands.h"
#include "cli/generate.h"
#include "cli/model_settings.h"
#include "cli/output.h"
#include "cli/sampling_settings.h"

enum { N_BEST = 5 };

typedef struct settings {
    const char *text;
    cli_ids ids;
    int json;
    cli_model_settings model;
} settings;

static const cli_option logprobs_options[] = {
    {.name = "ids",
     .value_name = "ID[,...]",
     .kind = CLI_IDS,
     .offset = offsetof(settings, ids),
     .minimum = 0,
     .maximum = INT32_MAX,
     .help = "The prompt as token ids; needs no tokenizer."},
    {.letter = 'p',
     .name = "prompt",
     .value_name = "TEXT",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, text),
     .help = "The prompt as text, without chat template; - reads it from standard input."},
    {.name = "json",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, json),
     .help =
         "Print {\"logprobs\": [...]}: for every position of the prompt a row with the natural logarithm of "
         "every token's probability to come next, 9 digits. A value that is not finite is null."},
    {0},
};

static const cli_group groups[] = {
    {"Prompt", logprobs_options, 0},
    {"Model", cli_model_options, offsetof(settings, model)},
};

typedef struct printer {
    const mb_model *model;
    const int32_t *ids;
    int64_t n_rows; /* printed so far */
    int has_tokenizer;
} printer;

static void print_json_row(void *user, int64_t position, const float *logprobs, int32_t vocab) {
    printer *out = user;
    (void)position;
    cli_print(out->n_rows++ == 0 ? "{\"logprobs\": [[" : ",\n[");
    for (int32_t i = 0; i < vocab; i++) {
        if (isfinite(logprobs[i]))
            cli_print("%s%.9g", i > 0 ? "," : "", (double)logprobs[i]);
        else
            cli_print("%snull", i > 0 ? "," : "");
    }
    cli_print("]");
}

/* A token as a person reads it: its text between quotes, with \xNN for every byte that is not printable
 * ASCII. Without a tokenizer, nothing. */
static void print_token(const printer *out, int32_t id) {
    const char *bytes;
    size_t n_bytes;
    if (!out->has_tokenizer || mb_token_bytes(out->model, id, &bytes, &n_bytes, NULL) != MB_OK)
        return;
    cli_print(" \"");
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        if (byte == '"' || byte == '\\')
            cli_print("\\%c", byte);
        else if (byte < 0x20 || byte >= 0x7f)
            cli_print("\\x%02x", byte);
        else
            cli_print("%c", byte);
    }
    cli_print("\"");
}

static void print_table_row(void *user, int64_t position, const float *logprobs, int32_t vocab) {
    printer *out = user;
    int32_t best[N_BEST], n_best = 0;
    for (int32_t id = 0; id < vocab; id++) { /* insertion into the few best so far */
        int32_t place = n_best < N_BEST ? n_best++ : N_BEST;
        while (place > 0 && logprobs[best[place - 1]] < logprobs[id]) {
            if (place < N_BEST)
                best[place] = best[place - 1];
            place--;
        }
        if (place < N_BEST)
            best[place] = id;
    }
    out->n_rows++;
    cli_print("position %" PRId64 ", after token %" PRId32, position, out->ids[position]);
    print_token(out, out->ids[position]);
    cli_print("\n  logprob  probability  token\n");
    for (int32_t i = 0; i < n_best; i++) {
        double logprob = (double)logprobs[best[i]];
        cli_print("%9.4f  %10.4f%%  %" PRId32, logprob, 100 * exp(logprob), best[i]);
        print_token(out, best[i]);
        cli_print("\n");
    }
}

static cli_go take_token(void *user, const mb_token *token) {
    (void)user;
    (void)token;
    return CLI_GO_ON;
}

static int print_logprobs(mb_model *model, const cli_ids *ids, int json) {
    mb_model_info info;
    mb_session *session = NULL;
    mb_session_options options;
    mb_request request;
    cli_figures figures;
    mb_model_get_info(model, &info);
    printer out = {.model = model, .ids = ids->items, .has_tokenizer = info.has_tokenizer};

    int status = cli_check_ids("--ids", ids, info.vocab);
    if (status != CLI_OK)
        return status;
    if (ids->count > (size_t)info.max_positions)
        return cli_failure("the prompt of %zu tokens does not fit the model's %" PRId32 " positions",
                           ids->count, info.max_positions);
    mb_session_options_init(&options);
    options.max_sequences = 1;
    options.kv_tokens = (int64_t)ids->count;
    mb_request_init(model, &request);
    request.ids = ids->items;
    request.n_ids = ids->count;
    request.max_new_tokens = 0;
    request.prompt_logprobs = 1;
    request.on_logprobs = json ? print_json_row : print_table_row;
    request.on_logprobs_user = &out;
    if (mb_session_open(model, &options, &session) != MB_OK)
        return cli_report_failure();
    status = cli_generate(session, &request, take_token, NULL, &figures);
    if (json && out.n_rows > 0)
        cli_print("]}\n");
    mb_session_close(session);
    if (status == CLI_OK && (size_t)out.n_rows != ids->count)
        status = cli_failure("%" PRId64 " of %zu positions got a distribution", out.n_rows, ids->count);
    return status;
}

static int encode_prompt(const mb_model *model, const char *text, cli_ids *ids) {
    size_t n_bytes = strlen(text);
    char *input = NULL;
    if (strcmp(text, "-") == 0 && (text = input = cli_read_input(&n_bytes)) == NULL)
        return CLI_FAILED;
    int status = cli_encode(model, text, n_bytes, 1, ids);
    mb_free(input);
    if (status == CLI_OK && ids->count == 0)
        status = cli_failure("the prompt is empty");
    return status;
}

static int logprobs_main(int argc, char **argv) {
    const cli_command *command = &cli_logprobs_command;
    settings given = {0};
    const char *directory;
    mb_model *model = NULL;
    int status = cli_parse(command, argc, argv, &given, &directory);
    if (status >= 0)
        return status;
    if ((given.text != NULL) == (given.ids.items != NULL))
        status = cli_usage_error(command, "give the prompt either as --ids or as -p TEXT");
    else
        status = cli_open_model(directory, &given.model, &model);
    if (status == CLI_OK && given.text != NULL)
        status = encode_prompt(model, given.text, &given.ids);
    if (status == CLI_OK)
        status = print_logprobs(model, &given.ids, given.json);
    mb_model_close(model);
    cli_settings_free(command, &given);
    return status;
}

const cli_command cli_logprobs_command = {
    .name = "logprobs",
    .summary = "log-probabilities after every token of a prompt",
    .synopsis = "moebius logprobs DIR --ids ID[,...] [--json]\n"
                "moebius logprobs DIR -p TEXT [--json]",
    .description =
        "Runs the prompt through the model once and prints, for every position, the distribution of the "
        "token that comes next: the five most probable tokens as a table, or all of them as JSON. "
        "Row p of the JSON belongs to the token that follows the prompt's p-th one, counted from 0.",
    .examples = "moebius logprobs models/demo -p \"2 + 2 =\"\n"
                "moebius logprobs models/demo --ids 5,17,42 --json > rows.json",
    .operand_hint = "the prompt is given with -p TEXT",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = logprobs_main,
};
