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
    {"Answers", cli_sampling_options, offsetof(settings, sampling)},
    {"Model", cli_model_options, offsetof(settings, model)},
};

typedef struct chat_state {
    const settings *given;
    mb_model *model;
    mb_session *session;
    cli_conversation conversation;
    cli_answer answer;
    int64_t context; /* tokens that prompt and answer may have together */
    int thinking, on_terminal;
} chat_state;

/* A remark of the program's own, told apart from answers. */
static void remark(const chat_state *chat, const char *text) {
    cli_print(chat->on_terminal ? "\033[2m%s\033[0m\n" : "%s\n", text);
    cli_flush();
}

/* ---- One question ------------------------------------------------------------------------------------- */

static void print_figures(const chat_state *chat, const cli_figures *figures) {
    if (chat->given->model.quiet || !cli_messages_are_terminal())
        return;
    fprintf(stderr,
            "\033[2m%zu prompt tokens, %zu generated tokens, %.1f output tokens/s, first token %.3f "
            "s%s\033[0m\n",
            figures->n_prompt, figures->n_new, cli_output_rate(figures),
            figures->n_new > 0 ? figures->first - figures->submitted : 0.0,
            figures->state == MB_CANCELLED ? ", interrupted" : "");
}

/* How long the answer to a prompt may get; -1 when the prompt alone fills the context. */
static int64_t room_for_answer(const chat_state *chat, size_t n_prompt) {
    const cli_integer *wanted = &chat->given->sampling.max_new_tokens;
    int64_t room = chat->context - (int64_t)n_prompt;
    if (room <= 0)
        return -1;
    return wanted->given && wanted->value < room ? wanted->value : room;
}

static void explain_length(const chat_state *chat, const cli_figures *figures) {
    if (figures->state != MB_FINISHED_LENGTH)
        return;
    if ((int64_t)(figures->n_prompt + figures->n_new) >= chat->context)
        remark(chat, "[The answer ends here: the context is full. /reset starts a new conversation.]");
    else
        remark(chat, "[The answer ends here: the limit of -n is reached.]");
}

/* Answers the rendered prompt. What was written of the answer, whole or not, joins the conversation. */
static int answer_prompt(chat_state *chat, const char *prompt, const cli_ids *ids) {
    cli_figures figures;
    mb_request request;
    mb_request_init(chat->model, &request);
    cli_apply_sampling(&chat->given->sampling, &request);
    request.ids = ids->items;
    request.n_ids = ids->count;
    request.max_new_tokens = room_for_answer(chat, ids->count);
    if (request.max_new_tokens < 0)
        return cli_failure("the conversation has %zu tokens and no longer fits the context of %" PRId64
                           "; /reset starts a new one",
                           ids->count, chat->context);
    cli_answer_begin(&chat->answer, prompt);
    int status = cli_generate(chat->session, &request, cli_answer_push, &chat->answer, &figures);
    if ((status == CLI_OK || figures.n_new > 0) && cli_answer_finish(&chat->answer) != CLI_OK)
        status = CLI_FAILED;
    if (status != CLI_OK)
        return status;
    cli_interrupt_clear();
    explain_length(chat, &figures);
    print_figures(chat, &figures);
    return cli_conversation_add(&chat->conversation, "the answer", "assistant", chat->answer.text,
                                chat->answer.n_text);
}

/* A question that could not be answered is taken back, so that the next one finds the conversation whole. */
static void ask(chat_state *chat, const char *question) {
    char *prompt = NULL;
    cli_ids ids = {0};
    cli_interrupt_clear();
    if (cli_conversation_add(&chat->conversation, "the question", "user", question, strlen(question)) !=
        CLI_OK)
        return;
    int status = cli_conversation_render(&chat->conversation, chat->model, chat->thinking, &prompt);
    if (status == CLI_OK)
        status = cli_encode(chat->model, prompt, strlen(prompt), 1, &ids);
    if (status == CLI_OK)
        status = answer_prompt(chat, prompt, &ids);
    if (status != CLI_OK)
        cli_conversation_drop_last(&chat->conversation);
    mb_free(ids.items);
    mb_free_text(prompt);
}

/* ---- Commands ----------------------------------------------------------------------------------------- */

typedef enum next { GO_ON, LEAVE } next;

typedef struct slash_command {
    const char *name, *help;
    next (*run)(chat_state *chat, const char *argument);
} slash_command;

static next run_think(chat_state *chat, const char *argument) {
    (void)argument;
    chat->thinking = 1;
    remark(chat, "[Thinking is on.]");
    return GO_ON;
}

static next run_nothink(chat_state *chat, const char *argument) {
    (void)argument;
    chat->thinking = 0;
    remark(chat, "[Thinking is off.]");
    return GO_ON;
}

static next run_reset(chat_state *chat, const char *argument) {
    (void)argument;
    cli_conversation_clear(&chat->conversation);
    remark(chat, "[A new conversation; the system message stays.]");
    return GO_ON;
}

static next run_system(chat_state *chat, const char *argument) {
    if (cli_conversation_set_system(&chat->conversation, argument) == CLI_OK)
        remark(chat,
               *argument != '\0' ? "[The system message is set.]" : "[There is no system message now.]");
    return GO_ON;
}

static next run_exit(chat_state *chat, const char *argument) {
    (void)chat;
    (void)argument;
    return LEAVE;
}

static next run_help(chat_state *chat, const char *argument);

static const slash_command slash_commands[] = {
    {"/think", "let the model think before it answers", run_think},
    {"/nothink", "let the model answer at once", run_nothink},
    {"/reset", "forget the conversation and start a new one", run_reset},
    {"/system", "set the system message to the text behind it; without text, remove it", run_system},
    {"/help", "show this list", run_help},
    {"/exit", "leave; so does Ctrl-D", run_exit},
};

static next run_help(chat_state *chat, const char *argument) {
    (void)chat;
    (void)argument;
    for (size_t i = 0; i < CLI_COUNT(slash_commands); i++)
        cli_print("%-9s %s\n", slash_commands[i].name, slash_commands[i].help);
    cli_print("%-9s stops an answer\n", "Ctrl-C");
    return GO_ON;
}

static next take_line(chat_state *chat, const char *line) {
    line += strspn(line, " \t");
    size_t length = strlen(line);
    if (length == 0)
        return GO_ON;
    if (*line != '/') {
        ask(chat, line);
        return GO_ON;
    }
    size_t name_length = strcspn(line, " \t");
    const char *argument = line + name_length + strspn(line + name_length, " \t");
    for (size_t i = 0; i < CLI_COUNT(slash_commands); i++)
        if (strlen(slash_commands[i].name) == name_length &&
            memcmp(slash_commands[i].name, line, name_length) == 0)
            return slash_commands[i].run(chat, argument);
    remark(chat, "[There is no such command; /help lists them.]");
    return GO_ON;
}

/* ---- The loop ----------------------------------------------------------------------------------------- */

static int read_and_answer(chat_state *chat) {
    cli_line_editor *editor = cli_line_editor_open("> ");
    if (editor == NULL)
        return cli_failure("no memory for the line editor");
    if (chat->on_terminal && !chat->given->model.quiet)
        remark(chat, "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.");
    cli_interrupt_catch(0);
    const char *line;
    cli_line got;
    while ((got = cli_line_editor_read(editor, &line)) != CLI_LINE_END && !cli_output_failed()) {
        if (got == CLI_LINE_READ && take_line(chat, line) == LEAVE)
            break;
        cli_flush();
    }
    cli_line_editor_close(editor);
    return CLI_OK;
}

static int open_chat(chat_state *chat, const char *directory) {
    const settings *given = chat->given;
    mb_model_info info;
    mb_session_options options;
    int status = cli_open_model(directory, &given->model, &chat->model);
    if (status != CLI_OK)
        return status;
    mb_model_get_info(chat->model, &info);
    if (!info.has_tokenizer)
        return cli_failure("%s has no tokenizer.json, which a chat needs", directory);
    if (!info.has_chat_template)
        return cli_failure("%s has %s; name one with --chat-template, or use moebius run --raw", directory,
                           info.has_unknown_chat_template ? "a chat template that is not known"
                                                          : "no chat template");
    mb_session_options_init(&options);
    options.max_sequences = 1;
    options.max_step_tokens = options.prefill_chunk;
    options.kv_tokens = given->sampling.kv_tokens.given ? given->sampling.kv_tokens.value : options.kv_tokens;
    if (options.kv_tokens == 0 && info.max_positions <= 16384)
        options.kv_tokens = info.max_positions;
    if (mb_session_open(chat->model, &options, &chat->session) != MB_OK)
        return cli_report_failure();
    chat->context = cli_context_limit(chat->model, chat->session);
    status = cli_conversation_open(&chat->conversation);
    if (status == CLI_OK && given->system != NULL)
        status = cli_conversation_set_system(&chat->conversation, given->system);
    if (status == CLI_OK)
        status = cli_answer_open(&chat->answer, chat->model, 1);
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
        chat_state chat = {
            .given = &given, .thinking = !given.no_think, .on_terminal = cli_output_is_terminal()};
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
        "back "
        "earlier ones. When input is not a terminal, every line of it is a question.\n"
        "\n"
        "Lines that start with a slash are commands: /think and /nothink switch thinking, /reset starts a "
        "new "
        "conversation, /system TEXT sets the system message, /help lists them, /exit leaves. Ctrl-C stops an "
        "answer but not the program; Ctrl-D leaves.",
    .examples = "moebius chat models/demo\n"
                "moebius chat models/demo --system \"Answer in one word.\" --temperature 0.7",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = chat_main,
};
