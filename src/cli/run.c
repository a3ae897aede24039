/* moebius run: one prompt, one answer. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/answer_grammar.h"
#include "cli/answer_json.h"
#include "cli/commands.h"
#include "cli/conversation.h"
#include "cli/interrupt.h"
#include "cli/model_settings.h"
#include "cli/output.h"
#include "cli/sampling_settings.h"
#include "moebius/grammar.h"

enum { DEFAULT_NEW_TOKENS = 2048 };

typedef struct settings {
    const char *prompt, *system, *tools;
    cli_ids ids;
    int raw, no_think, print_ids, json;
    cli_answer_form form;
    cli_model_settings model;
    cli_sampling_settings sampling;
} settings;

static const cli_option prompt_options[] = {
    {.letter = 'p',
     .name = "prompt",
     .value_name = "TEXT",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, prompt),
     .help = "The prompt; - reads it from standard input. It becomes a user's message in the model's chat "
             "template, when it has one."},
    {.name = "system",
     .value_name = "TEXT",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, system),
     .help = "A system message in front of the prompt."},
    {.name = "tools",
     .value_name = "FILE",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, tools),
     .help =
         "Definitions of tools that the model may call: a JSON array as in OpenAI's API. The calls are printed "
         "as the model writes them."},
    {.name = "no-think",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, no_think),
     .help = "Ask a model that can think first to answer at once."},
    {.name = "raw",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, raw),
     .help = "Continue the text of -p as it is, without chat template. Special tokens in it count as such."},
    {.name = "ids",
     .value_name = "ID[,...]",
     .kind = CLI_IDS,
     .offset = offsetof(settings, ids),
     .minimum = 0,
     .maximum = INT32_MAX,
     .help = "The prompt as token ids, in place of -p; needs no tokenizer."},
    {.name = "json-schema",
     .value_name = "FILE",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, form.schema_path),
     .help =
         "The answer is a JSON value that the schema in FILE accepts. After the thinking, if the model thinks."},
    {.name = "regex",
     .value_name = "EXPRESSION",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, form.regex),
     .help = "The regular expression matches the answer, from its start to its end."},
    {.name = "grammar",
     .value_name = "FILE",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, form.grammar_path),
     .help = "The answer follows the rule root of the grammar in FILE: GBNF or EBNF, name ::= body."},
    {.name = "print-ids",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, print_ids),
     .help = "Print the ids of the new tokens, separated by commas, in place of their text."},
    {.name = "json",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, json),
     .help = "Print one JSON object when the answer is complete: text, ids, why the answer ended, tokens, "
             "seconds. With --print-ids the text is null, and no tokenizer is needed."},
    {0},
};

static const cli_group groups[] = {
    {"Prompt", prompt_options, 0},
    {"Answer", cli_sampling_options, offsetof(settings, sampling)},
    {"Model", cli_model_options, offsetof(settings, model)},
};

static int check(const settings *given, const char *directory) {
    const cli_command *command = &cli_run_command;
    if (given->prompt == NULL && given->ids.items == NULL)
        return cli_usage_error(command,
                               "the prompt is missing: give -p TEXT, -p - for standard input, or --ids");
    if (given->prompt != NULL && given->ids.items != NULL)
        return cli_usage_error(command, "-p and --ids are two prompts; give one of them");
    int for_template = given->system != NULL || given->tools != NULL || given->no_think;
    if (given->ids.items != NULL && (given->raw || for_template))
        return cli_usage_error(command, "--raw, --system, --tools and --no-think go with -p, not with --ids");
    if (given->raw && for_template)
        return cli_usage_error(
            command, "--system, --tools and --no-think need the chat template that --raw leaves out");
    if (given->print_ids && given->sampling.stop_texts.count > 0)
        return cli_usage_error(
            command, "--stop needs the answer's text, which --print-ids leaves out; use --stop-ids");
    if (given->json && !cli_is_utf8(directory))
        return cli_failure("the answer's JSON names DIR, but \"%s\" is not UTF-8; rename it, or link to it",
                           directory);
    const cli_answer_form *form = &given->form;
    if ((form->schema_path != NULL) + (form->regex != NULL) + (form->grammar_path != NULL) > 1)
        return cli_usage_error(command, "%s and %s are two forms of one answer; give one of them",
                               form->schema_path != NULL ? "--json-schema" : "--regex",
                               form->grammar_path != NULL ? "--grammar" : "--regex");
    return cli_check_sampling(command, &given->sampling);
}

/* The prompt as the model is to see it: *rendered, freed with mb_free_text, or `text` itself when
 * *rendered is NULL. */
static int render_prompt(const settings *given, const mb_model *model, const char *text, size_t n_bytes,
                         char **rendered) {
    mb_model_info info;
    cli_conversation conversation;
    mb_model_get_info(model, &info);
    if (given->raw || (!info.has_chat_template && !info.has_unknown_chat_template)) {
        if (given->system != NULL || given->tools != NULL || given->no_think)
            return cli_failure(
                "--system, --tools and --no-think need a chat template, which this model does not have");
        return CLI_OK;
    }
    int status = cli_conversation_open(&conversation);
    if (status == CLI_OK && given->tools != NULL)
        status = cli_conversation_read_tools(&conversation, given->tools);
    if (status == CLI_OK && given->system != NULL)
        status = cli_conversation_set_system(&conversation, given->system);
    if (status == CLI_OK)
        status = cli_conversation_add(&conversation, "the prompt", "user", text, n_bytes);
    if (status == CLI_OK)
        status = cli_conversation_render(&conversation, model, !given->no_think, rendered);
    cli_conversation_close(&conversation);
    return status;
}

/* Decides how long the answer may get, and opens a session that holds prompt and answer. */
static int open_session(const settings *given, mb_model *model, mb_request *request, mb_session **session) {
    mb_model_info info;
    mb_session_options options;
    const cli_sampling_settings *sampling = &given->sampling;
    mb_model_get_info(model, &info);
    int status = cli_check_ids_of_sampling(sampling, info.vocab);
    if (status == CLI_OK && given->ids.items != NULL)
        status = cli_check_ids("--ids", &given->ids, info.vocab);
    if (status != CLI_OK)
        return status;
    int64_t limit = info.max_positions, n_prompt = (int64_t)request->n_ids;
    if (sampling->kv_tokens.given && sampling->kv_tokens.value < limit)
        limit = sampling->kv_tokens.value;
    request->max_new_tokens = sampling->max_new_tokens.value;
    if (!sampling->max_new_tokens.given)
        request->max_new_tokens =
            limit - n_prompt < DEFAULT_NEW_TOKENS ? limit - n_prompt : DEFAULT_NEW_TOKENS;
    const char *which = limit < info.max_positions ? "see --kv-tokens" : "the model's limit";
    if (!sampling->max_new_tokens.given && request->max_new_tokens < 1)
        return cli_failure("the prompt of %" PRId64 " tokens leaves no room for an answer in the %" PRId64
                           " positions that there are (%s)",
                           n_prompt, limit, which);
    if (n_prompt + request->max_new_tokens > limit)
        return cli_failure("the prompt of %" PRId64 " tokens and an answer of up to %" PRId64
                           " (-n) do not fit the %" PRId64 " positions that there are (%s)",
                           n_prompt, request->max_new_tokens, limit, which);
    mb_session_options_init(&options);
    options.max_sequences = 1;
    options.kv_tokens = n_prompt + request->max_new_tokens;
    return mb_session_open(model, &options, session) == MB_OK ? CLI_OK : cli_report_failure();
}

/* What becomes of the new tokens. */
typedef struct sink {
    const settings *given;
    cli_answer answer; /* open unless only ids are printed */
    cli_ids ids;       /* all of them, with --json; else only the count is kept */
    size_t capacity;
} sink;

static cli_go take_token(void *user, const mb_token *token) {
    sink *to = user;
    size_t n_before = to->ids.count++;
    if (to->given->json) {
        if (mb_grow((void **)&to->ids.items, &to->capacity, to->ids.count, sizeof *to->ids.items) != 0) {
            cli_failure("no memory for an answer of %zu tokens", to->ids.count);
            return CLI_GO_FAILED;
        }
        to->ids.items[n_before] = token->id;
    } else if (to->given->print_ids) {
        cli_print("%s%" PRId32, n_before > 0 ? "," : "", token->id);
        cli_flush();
    }
    return to->given->print_ids ? CLI_GO_ON : cli_answer_push(&to->answer, token);
}

/* The last line, with the figures. Times are what the user waited, from the start of the program. */
static void print_figures(const settings *given, const cli_figures *figures, const mb_request *request,
                          double started) {
    fprintf(stderr, "%s%zu prompt tokens, %zu generated tokens, %.1f output tokens/s", cli_messages_faint(),
            figures->n_prompt, figures->n_new, cli_output_rate(figures));
    if (figures->n_new > 0)
        fprintf(stderr, ", first token %.3f s (loading %.3f s)", figures->first - started,
                figures->submitted - started);
    if (request->sampling.temperature > 0 && !given->sampling.seed.given)
        fprintf(stderr, ", seed %" PRIu64, request->sampling.seed);
    if (figures->state == MB_CANCELLED)
        fprintf(stderr, ", interrupted");
    if (figures->state == MB_FINISHED_LENGTH)
        fprintf(stderr, ", stopped at the limit of %" PRId64 " new tokens", request->max_new_tokens);
    fprintf(stderr, "%s\n", cli_messages_normal());
}

/* The answer to a request that is ready, from its first token to what is printed after the last one. */
static int print_answer(sink *to, mb_session *session, const mb_request *request, const char *prompt,
                        const char *directory, double started) {
    const settings *given = to->given;
    cli_figures figures;
    if (!given->print_ids)
        cli_answer_begin(&to->answer, prompt);
    int status = cli_generate(session, request, take_token, to, &figures);
    if (given->print_ids && !given->json && (status == CLI_OK || figures.n_new > 0))
        cli_print("\n");
    if (!given->print_ids && (status == CLI_OK || figures.n_new > 0) &&
        cli_answer_finish(&to->answer) != CLI_OK)
        status = CLI_FAILED;
    if (status == CLI_OK && given->json)
        status = cli_print_answer_json(&(cli_answer_report){.model = directory,
                                                            .answer = given->print_ids ? NULL : &to->answer,
                                                            .stop_texts = &given->sampling.stop_texts,
                                                            .ids = &to->ids,
                                                            .figures = &figures,
                                                            .sampling = &request->sampling,
                                                            .started = started});
    cli_flush();
    if (status == CLI_OK && !given->model.quiet && !given->json)
        print_figures(given, &figures, request, started);
    return status == CLI_OK && figures.state == MB_CANCELLED ? CLI_INTERRUPTED : status;
}

static int answer_prompt(const settings *given, mb_model *model, const cli_ids *ids, const char *prompt,
                         const char *directory, double started) {
    mb_session *session = NULL;
    sink to = {.given = given};
    mb_model_info info;
    mb_request request;
    mb_request_init(model, &request);
    request.ids = ids->items;
    request.n_ids = ids->count;

    int status = cli_apply_sampling(&given->sampling, &request);
    if (status == CLI_OK)
        status = cli_set_grammar(model, &given->form, prompt, &request);
    if (status == CLI_OK)
        status = open_session(given, model, &request, &session);
    mb_model_get_info(model, &info);
    if (status == CLI_OK && !given->print_ids && !info.has_tokenizer)
        status =
            cli_failure("the checkpoint has no tokenizer.json, so the answer has no text; give --print-ids");
    if (status == CLI_OK && !given->print_ids)
        status = cli_answer_open(&to.answer, model, &given->sampling.stop_texts,
                                 given->json ? CLI_ANSWER_KEEP : CLI_ANSWER_PRINT);
    if (status == CLI_OK) {
        cli_interrupt_catch(1);
        status = print_answer(&to, session, &request, prompt, directory, started);
    }
    cli_answer_close(&to.answer);
    mb_free(to.ids.items);
    mb_session_close(session);
    mb_grammar_close(request.grammar);
    return status;
}

static int run(settings *given, const char *directory, double started) {
    mb_model *model = NULL;
    char *input = NULL, *rendered = NULL;
    const char *text = given->prompt;
    size_t n_bytes = text != NULL ? strlen(text) : 0;
    cli_ids encoded = {0};
    int status = CLI_FAILED;
    if (text != NULL && strcmp(text, "-") == 0) {
        text = input = cli_read_input(&n_bytes);
        if (input == NULL)
            goto done;
        if (!given->raw && n_bytes > 0 && input[n_bytes - 1] == '\n')
            n_bytes--; /* the line break that echo adds */
    }
    status = cli_open_model(directory, &given->model, &model);
    if (status == CLI_OK && text != NULL) {
        status = render_prompt(given, model, text, n_bytes, &rendered);
        if (status == CLI_OK && rendered != NULL)
            status = cli_encode(model, rendered, strlen(rendered), 1, &encoded);
        else if (status == CLI_OK)
            status = cli_encode(model, text, n_bytes, 1, &encoded);
        if (status == CLI_OK && encoded.count == 0)
            status = cli_failure("the prompt is empty");
    }
    if (status == CLI_OK)
        status = answer_prompt(given, model, text != NULL ? &encoded : &given->ids,
                               rendered != NULL ? rendered : "", directory, started);
done:
    mb_free(encoded.items);
    mb_free_text(rendered);
    mb_model_close(model);
    mb_free(input);
    return status;
}

static int run_main(int argc, char **argv) {
    double started = cli_now();
    settings given = {0};
    const char *directory;
    int status = cli_parse(&cli_run_command, argc, argv, &given, &directory);
    if (status >= 0)
        return status;
    status = check(&given, directory);
    if (status < 0)
        status = run(&given, directory, started);
    cli_settings_free(&cli_run_command, &given);
    return status;
}

const cli_command cli_run_command = {
    .name = "run",
    .summary = "answer one prompt",
    .synopsis = "moebius run DIR -p TEXT [OPTIONS]\n"
                "moebius run DIR --ids 5,17,42 --print-ids [OPTIONS]",
    .description =
        "Opens the checkpoint in DIR, answers the prompt, and prints the answer as it comes. DIR is a "
        "Hugging Face checkpoint of Qwen3MoeForCausalLM as it was downloaded, or the name of a model that hf download "
        "has fetched into the Hugging Face cache, like Qwen/Qwen3-30B-A3B.\n"
        "\n"
        "A last line on stderr gives the tokens of the prompt, the generated tokens, the output tokens per "
        "second (tokens after the first one, per second since the first one), and the time from the start "
        "of the program to the first token.\n"
        "\n"
        "With --json the answer is printed when it is complete, as one object: text, ids, finish_reason (stop, "
        "length or interrupted), stop (the text of --stop that came, or null), seed (null when nothing is drawn), "
        "usage (prompt_tokens, completion_tokens, total_tokens) and timings (loading, first_token and total in "
        "seconds since the start of the program, output_tokens_per_second).\n"
        "\n"
        "On a terminal, thinking is printed faintly and control characters in the answer are left out. "
        "Ctrl-C ends the answer.",
    .examples = "moebius run models/demo -p \"What is 7 + 8?\"\n"
                "git diff | moebius run models/demo --system \"Summarise.\" -p -\n"
                "moebius run models/demo --raw -p \"Once upon a time\" --temperature 0.8 --seed 1\n"
                "moebius run models/demo -p \"Tell me a story.\" --stop \".\" --json\n"
                "moebius run models/demo -p \"A colour?\" --no-think --regex \"red|green|blue\"\n"
                "moebius run models/demo --ids 5,17,42 -n 24 --greedy --print-ids",
    .operand_hint = "the prompt is given with -p TEXT",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = run_main,
};
