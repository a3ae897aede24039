/* moebius chat: a conversation on the terminal. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "cli/answer.h"
#include "cli/commands.h"
#include "cli/conversation.h"
#include "cli/interrupt.h"
#include "cli/line_editor.h"
#include "cli/model_settings.h"
#include "cli/output.h"
#include "cli/sampling_settings.h"
#include "cli/suggest.h"

typedef struct settings {
    const char *system;
    int no_think;
    cli_model_settings model;
    cli_sampling_settings sampling;
} settings;

static const cli_option chat_options[] = {
    {.name = "system",
     .value_name = "TEXT",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, system),
     .help = "The system message; /system changes it later."},
    {.name = "no-think",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, no_think),
     .help = "Start with thinking off, as /nothink does."},
    {0},
};

static const cli_group groups[] = {
    {"Conversation", chat_options, 0},
    {"Answer", cli_sampling_options, offsetof(settings, sampling)},
    {"Model", cli_model_options, offsetof(settings, model)},
};

typedef struct chat_state {
    const settings *given;
    mb_model *model;
    mb_session *session;
    cli_conversation conversation;
    cli_answer answer;
    int64_t context; /* tokens that prompt and answer may have together */
    int thinking;
    int failed; /* a question could not be answered */
} chat_state;

/* A remark of the program's own, told apart from answers. */
static void remark(const char *text) {
    cli_print("%s%s%s\n", cli_output_faint(), text, cli_output_normal());
    cli_flush();
}

/* ---- One question ------------------------------------------------------------------------------------- */

static void print_figures(const chat_state *chat, const cli_figures *figures) {
    if (chat->given->model.quiet || !cli_messages_are_terminal())
        return;
    fprintf(stderr,
            "%s%zu prompt tokens, %zu generated tokens, %.1f output tokens/s, first token %.3f s%s%s\n",
            cli_messages_faint(), figures->n_prompt, figures->n_new, cli_output_rate(figures),
            figures->n_new > 0 ? figures->first - figures->submitted : 0.0,
            figures->state == MB_CANCELLED ? ", interrupted" : "", cli_messages_normal());
}

/* Decides how long the answer to a prompt may get: -n, or all that the context has left. */
static int find_room(const chat_state *chat, size_t n_prompt, int64_t *n_new) {
    const cli_integer *wanted = &chat->given->sampling.max_new_tokens;
    int64_t room = chat->context - (int64_t)n_prompt;
    if (wanted->given && wanted->value > room)
        return cli_failure("the conversation of %zu tokens and an answer of up to %" PRId64
                           " (-n) do not fit the context of %" PRId64 "; /reset starts a new one",
                           n_prompt, wanted->value, chat->context);
    if (!wanted->given && room <= 0)
        return cli_failure("the conversation has %zu tokens and no longer fits the context of %" PRId64
                           "; /reset starts a new one",
                           n_prompt, chat->context);
    *n_new = wanted->given ? wanted->value : room;
    return CLI_OK;
}

static void explain_length(const chat_state *chat, const cli_figures *figures) {
    if (figures->state != MB_FINISHED_LENGTH)
        return;
    if (chat->given->sampling.max_new_tokens.given)
        remark("[The answer ends here: the limit of -n is reached.]");
    else
        remark("[The answer ends here: the context is full. /reset starts a new conversation.]");
}

/* A prompt is zero-terminated text: the answer goes into the next one without zero bytes. */
static void drop_zero_bytes(cli_answer *answer) {
    size_t n_kept = 0;
    for (size_t i = 0; i < answer->n_text; i++)
        if (answer->text[i] != '\0')
            answer->text[n_kept++] = answer->text[i];
    answer->n_text = n_kept;
}

/* Answers the rendered prompt. What was written of the answer, even nothing, joins the conversation. */
static int answer_prompt(chat_state *chat, const char *prompt, const cli_ids *ids) {
    cli_figures figures;
    mb_request request;
    mb_request_init(chat->model, &request);
    request.ids = ids->items;
    request.n_ids = ids->count;
    int status = cli_apply_sampling(&chat->given->sampling, &request);
    if (status == CLI_OK)
        status = find_room(chat, ids->count, &request.max_new_tokens);
    if (status != CLI_OK)
        return status;
    cli_answer_begin(&chat->answer, prompt);
    status = cli_generate(chat->session, &request, cli_answer_push, &chat->answer, &figures);
    if ((status == CLI_OK || figures.n_new > 0) && cli_answer_finish(&chat->answer) != CLI_OK)
        status = CLI_FAILED;
    cli_interrupt_clear(); /* a Ctrl-C since the question was meant for this answer */
    if (status != CLI_OK)
        return status;
    explain_length(chat, &figures);
    print_figures(chat, &figures);
    drop_zero_bytes(&chat->answer);
    return cli_conversation_add(&chat->conversation, "the answer", "assistant", chat->answer.text,
                                chat->answer.n_text);
}

static int try_to_answer(chat_state *chat) {
    char *prompt = NULL;
    cli_ids ids = {0};
    int status = cli_conversation_render(&chat->conversation, chat->model, chat->thinking, &prompt);
    if (status == CLI_OK)
        status = cli_encode(chat->model, prompt, strlen(prompt), 1, &ids);
    if (status == CLI_OK)
        status = answer_prompt(chat, prompt, &ids);
    mb_free(ids.items);
    mb_free_text(prompt);
    return status;
}

/* A question that could not be answered is taken back: the next one finds the conversation as it was. */
static void ask(chat_state *chat, const char *question, size_t n_bytes) {
    int status = cli_conversation_add(&chat->conversation, "the question", "user", question, n_bytes);
    if (status == CLI_OK) {
        status = try_to_answer(chat);
        if (status != CLI_OK)
            cli_conversation_drop_last(&chat->conversation);
    }
    chat->failed |= status != CLI_OK;
}

/* ---- Commands ----------------------------------------------------------------------------------------- */

typedef enum next { GO_ON, LEAVE } next;

/* What may follow a command on its line. */
typedef enum following_text {
    NO_TEXT,    /* nothing: with text, the whole line is a question */
    A_QUESTION, /* a question, asked once the command has run */
    AN_ARGUMENT,
} following_text;

typedef struct slash_command {
    const char *name, *help;
    following_text text;
    next (*run)(chat_state *chat, const char *argument);
} slash_command;

static next run_think(chat_state *chat, const char *argument) {
    (void)argument;
    chat->thinking = 1;
    remark("[Thinking is on.]");
    return GO_ON;
}

static next run_nothink(chat_state *chat, const char *argument) {
    (void)argument;
    chat->thinking = 0;
    remark("[Thinking is off.]");
    return GO_ON;
}

static next run_reset(chat_state *chat, const char *argument) {
    (void)argument;
    cli_conversation_clear(&chat->conversation);
    remark("[A new conversation; the system message stays.]");
    return GO_ON;
}

static next run_system(chat_state *chat, const char *argument) {
    if (cli_conversation_set_system(&chat->conversation, argument) == CLI_OK)
        remark(*argument != '\0' ? "[The system message is set.]" : "[There is no system message now.]");
    else
        chat->failed = 1;
    return GO_ON;
}

static next run_exit(chat_state *chat, const char *argument) {
    (void)chat;
    (void)argument;
    return LEAVE;
}

static next run_help(chat_state *chat, const char *argument);

static const slash_command slash_commands[] = {
    {"/think", "let the model think before it answers; a question can follow on the line", A_QUESTION,
     run_think},
    {"/nothink", "let the model answer at once; a question can follow on the line", A_QUESTION, run_nothink},
    {"/reset", "forget the conversation and start a new one; a question can follow", A_QUESTION, run_reset},
    {"/system", "set the system message to the text that follows; without text, remove it", AN_ARGUMENT,
     run_system},
    {"/help", "show this list", NO_TEXT, run_help},
    {"/exit", "leave; so does Ctrl-D", NO_TEXT, run_exit},
};

static next run_help(chat_state *chat, const char *argument) {
    (void)chat;
    (void)argument;
    for (size_t i = 0; i < CLI_COUNT(slash_commands); i++)
        cli_print("%-9s %s\n", slash_commands[i].name, slash_commands[i].help);
    cli_print("%-9s stops an answer\nAny other line is a question, also one that starts with a slash.\n",
              "Ctrl-C");
    return GO_ON;
}

/* The command that a line begins with, or NULL: the line is a question. */
static const slash_command *find_command(const char *line) {
    size_t length = strcspn(line, " \t"), rest = length + strspn(line + length, " \t");
    for (size_t i = 0; i < CLI_COUNT(slash_commands); i++) {
        const slash_command *command = &slash_commands[i];
        if (strlen(command->name) == length && memcmp(command->name, line, length) == 0)
            return line[rest] == '\0' || command->text != NO_TEXT ? command : NULL;
    }
    return NULL;
}

/* A person at a terminal who mistypes a command sees why the model answers. */
static void explain_question(const char *line) {
    cli_suggestion near;
    char text[128];
    cli_suggestion_begin(&near, line, strlen(line));
    for (size_t i = 0; i < CLI_COUNT(slash_commands); i++)
        cli_suggestion_offer(&near, slash_commands[i].name);
    if (*line != '/' || near.nearest == NULL || !cli_output_is_terminal())
        return;
    snprintf(text, sizeof text, "[%s is no command and goes to the model. Did you mean %s?]", line,
             near.nearest);
    remark(text);
}

static next take_line(chat_state *chat, const char *line, size_t n_bytes) {
    char *text = mb_malloc(n_bytes + 1); /* zero-terminated, for commands: questions may hold anything */
    if (text == NULL) {
        cli_failure("no memory for a line of %zu bytes", n_bytes);
        chat->failed = 1;
        return GO_ON;
    }
    memcpy(text, line, n_bytes);
    text[n_bytes] = '\0';
    const char *start = text + strspn(text, " \t");
    const slash_command *command = find_command(start);
    next result = GO_ON;
    if (command != NULL) {
        size_t name_length = strlen(command->name);
        const char *rest = start + name_length + strspn(start + name_length, " \t");
        result = command->run(chat, rest);
        if (command->text == A_QUESTION && *rest != '\0')
            ask(chat, rest, n_bytes - (size_t)(rest - text));
    } else if (start < text + n_bytes) {
        explain_question(start);
        ask(chat, text, n_bytes);
    }
    mb_free(text);
    return result;
}

/* ---- The loop ----------------------------------------------------------------------------------------- */

static int read_and_answer(chat_state *chat) {
    cli_line_editor *editor = cli_line_editor_open("> ");
    if (editor == NULL)
        return cli_failure("no memory for the line editor");
    if (cli_output_is_terminal() && !chat->given->model.quiet)
        remark("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.");
    cli_interrupt_catch(0);
    const char *line;
    size_t n_bytes;
    cli_line got = CLI_LINE_READ;
    for (next go = GO_ON; go == GO_ON && !cli_output_failed();) {
        got = cli_line_editor_read(editor, &line, &n_bytes);
        if (got == CLI_LINE_READ)
            go = take_line(chat, line, n_bytes);
        else if (got != CLI_LINE_INTERRUPTED)
            go = LEAVE;
        cli_flush();
    }
    cli_line_editor_close(editor);
    /* A person has seen the failures; a program that feeds questions is told. */
    return got == CLI_LINE_FAILED || (chat->failed && !isatty(STDIN_FILENO)) ? CLI_FAILED : CLI_OK;
}

/* The KV cache holds the whole context that the model allows, as far as that is small; else 16384 tokens
 * and what -n asks for. On a GPU the library's own default takes what memory is free. */
static int64_t choose_kv_tokens(const settings *given, const mb_model_info *info) {
    enum { USUAL = 16384 };
    if (given->sampling.kv_tokens.given)
        return given->sampling.kv_tokens.value;
    if (info->max_positions <= USUAL)
        return info->max_positions;
    if (strcmp(info->device, "cpu") != 0 || !given->sampling.max_new_tokens.given)
        return 0;
    int64_t wanted = USUAL + given->sampling.max_new_tokens.value;
    return wanted < info->max_positions ? wanted : info->max_positions;
}

static int open_chat(chat_state *chat, const char *directory) {
    const settings *given = chat->given;
    mb_model_info info;
    mb_session_options options;
    int status = cli_open_model(directory, &given->model, &chat->model);
    if (status != CLI_OK)
        return status;
    mb_model_get_info(chat->model, &info);
    if (info.tokenizer_problem != NULL)
        return cli_failure("%s", info.tokenizer_problem);
    if (!info.has_tokenizer)
        return cli_failure("%s has no tokenizer.json, which a chat needs", directory);
    if (!info.has_chat_template)
        return cli_failure("%s has %s; name one with --chat-template, or use moebius run --raw", directory,
                           info.has_unknown_chat_template ? "a chat template that is not known"
                                                          : "no chat template");
    mb_session_options_init(&options);
    options.max_sequences = 1;
    options.max_step_tokens = options.prefill_chunk;
    status = cli_check_ids_of_sampling(&given->sampling, info.vocab);
    if (status != CLI_OK)
        return status;
    options.kv_tokens = choose_kv_tokens(given, &info);
    if (mb_session_open(chat->model, &options, &chat->session) != MB_OK)
        return cli_report_failure();
    chat->context = cli_context_limit(chat->model, chat->session);
    if (given->sampling.max_new_tokens.given && given->sampling.max_new_tokens.value >= chat->context)
        return cli_failure("an answer of up to %" PRId64 " tokens (-n) can never fit the context of %" PRId64
                           " tokens, with a question in front of it; give a smaller -n%s",
                           given->sampling.max_new_tokens.value, chat->context,
                           chat->context < info.max_positions ? ", or a larger --kv-tokens" : "");
    status = cli_conversation_open(&chat->conversation);
    if (status == CLI_OK && given->system != NULL)
        status = cli_conversation_set_system(&chat->conversation, given->system);
    if (status == CLI_OK)
        status = cli_answer_open(&chat->answer, chat->model, &given->sampling.stop_texts,
                                 CLI_ANSWER_PRINT | CLI_ANSWER_KEEP);
    return status;
}

static int chat_main(int argc, char **argv) {
    settings given = {0};
    const char *directory;
    int status = cli_parse(&cli_chat_command, argc, argv, &given, &directory);
    if (status >= 0)
        return status;
    status = cli_check_sampling(&cli_chat_command, &given.sampling);
    if (status < 0) {
        chat_state chat = {.given = &given, .thinking = !given.no_think};
        status = open_chat(&chat, directory);
        if (status == CLI_OK)
            status = read_and_answer(&chat);
        cli_answer_close(&chat.answer);
        cli_conversation_close(&chat.conversation);
        mb_session_close(chat.session);
        mb_model_close(chat.model);
    }
    cli_settings_free(&cli_chat_command, &given);
    return status;
}

const cli_command cli_chat_command = {
    .name = "chat",
    .summary = "talk with a model",
    .synopsis = "moebius chat DIR [OPTIONS]",
    .description =
        "Reads a line, answers it, and keeps the conversation. Lines can be edited, and the arrow keys bring "
        "back earlier ones. When input is not a terminal, every line of it is a question, and the exit status is 1 "
        "when one of them could not be answered.\n"
        "\n"
        "Some lines are commands: /think and /nothink switch thinking, /reset starts a new conversation, /system "
        "TEXT sets the system message, /help lists the commands, /exit leaves. A question can follow /think, /nothink "
        "and /reset on their line. Every other line goes to the model, also one that starts with a slash. Ctrl-C "
        "stops an answer but not the program; Ctrl-D leaves.",
    .examples = "moebius chat models/demo\n"
                "moebius chat models/demo --system \"Answer in one word.\" --temperature 0.7",
    .operand_hint = "questions are typed, or come from standard input; moebius run takes one with -p",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = chat_main,
};
