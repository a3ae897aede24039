/* moebius chat: a conversation on the terminal. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "cli/chat_state.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/line_editor.h"
#include "cli/output.h"

static const cli_option chat_options[] = {
    {.name = "system",
     .value_name = "TEXT",
     .kind = CLI_TEXT,
     .offset = offsetof(chat_settings, system),
     .help = "The system message; /system changes it later."},
    {.name = "tools",
     .value_name = "FILE",
     .kind = CLI_TEXT,
     .offset = offsetof(chat_settings, tools),
     .help =
         "Definitions of tools that the model may call: a JSON array as in OpenAI's API. The calls are printed "
         "as the model writes them."},
    {.name = "no-think",
     .kind = CLI_FLAG,
     .offset = offsetof(chat_settings, no_think),
     .help = "Start with thinking off, as /nothink does."},
    {0},
};

static const cli_group groups[] = {
    {"Conversation", chat_options, 0},
    {"Answer", cli_sampling_options, offsetof(chat_settings, sampling)},
    {"Model", cli_model_options, offsetof(chat_settings, model)},
};

void chat_remark(const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    cli_print("%s", cli_output_faint());
    cli_print_text(text, strlen(text));
    cli_print("%s\n", cli_output_normal());
    cli_flush();
}

static int read_and_answer(chat_state *chat) {
    cli_line_editor *editor = cli_line_editor_open("> ", chat_complete);
    if (editor == NULL)
        return cli_failure("no memory for the line editor");
    if (cli_output_is_terminal() && !chat->given->model.quiet)
        chat_remark("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.");
    cli_interrupt_catch(0);
    const char *line;
    size_t n_bytes;
    cli_line got = CLI_LINE_READ;
    for (chat_next go = CHAT_GO_ON; go == CHAT_GO_ON && !cli_output_failed();) {
        got = cli_line_editor_read(editor, &line, &n_bytes);
        if (got == CLI_LINE_READ)
            go = chat_take_line(chat, line, n_bytes);
        else if (got != CLI_LINE_INTERRUPTED)
            go = CHAT_LEAVE;
        cli_flush();
    }
    cli_line_editor_close(editor);
    /* A person has seen the failures; a program that feeds questions is told. */
    return got == CLI_LINE_FAILED || (chat->failed && !chat->person) ? CLI_FAILED : CLI_OK;
}

/* The KV cache holds the whole context that the model allows, as far as that is small; else 16384 tokens
 * and what -n asks for. On a GPU the library's own default takes what memory is free. */
static int64_t choose_kv_tokens(const chat_settings *given, const mb_model_info *info) {
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
    const chat_settings *given = chat->given;
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
    if (info.chat_template_problem != NULL)
        return cli_failure("%s; choose another with --chat-template", info.chat_template_problem);
    if (!info.has_chat_template)
        return cli_failure(
            "%s has no chat template; choose one with --chat-template, or use moebius run --raw", directory);
    mb_session_options_init(&options);
    options.max_sequences = 1;
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
    if (status == CLI_OK && given->tools != NULL)
        status = cli_conversation_read_tools(&chat->conversation, given->tools);
    if (status == CLI_OK && given->system != NULL)
        status = cli_conversation_set_system(&chat->conversation, given->system);
    if (status == CLI_OK)
        status = cli_answer_open(&chat->answer, chat->model, &given->sampling.stop_texts,
                                 CLI_ANSWER_PRINT | CLI_ANSWER_KEEP);
    return status;
}

static int chat_main(int argc, char **argv) {
    chat_settings given = {0};
    const char *directory;
    int status = cli_parse(&cli_chat_command, argc, argv, &given, &directory);
    if (status >= 0)
        return status;
    status = cli_check_sampling(&cli_chat_command, &given.sampling);
    if (status < 0) {
        chat_state chat = {.given = &given,
                           .directory = directory,
                           .thinking = !given.no_think,
                           .person = isatty(STDIN_FILENO)};
        status = open_chat(&chat, directory);
        if (status == CLI_OK)
            status = read_and_answer(&chat);
        cli_answer_close(&chat.answer);
        cli_conversation_close(&chat.conversation);
        mb_free(chat.attached);
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
        "back earlier ones, also those of earlier chats. Alt-Enter begins a new line within a question, as does Enter "
        "after a backslash; pasted text keeps its lines. Tab completes commands and the names of files. When input is "
        "not a terminal, every line of it is a question, and the exit status is 1 when one of them could not be "
        "answered.\n"
        "\n"
        "Some lines are commands: /think and /nothink switch thinking, /regen answers the last question again, /reset "
        "starts a new conversation, /system TEXT sets the system message, /status shows the model and the last "
        "answer's figures, /help lists the commands, /exit leaves. A question can follow /think, /nothink and /reset on "
        "their line. On a terminal, /read FILE puts the text of a file in front of the next question, /save FILE "
        "writes the conversation as a JSON array of messages, and /load FILE goes on with one. Every other line goes "
        "to the model, also one that starts with a slash. Ctrl-C stops an answer but not the program; Ctrl-D leaves.\n"
        "\n"
        "What is typed on a terminal is kept in moebius/chat_history in $XDG_STATE_HOME or ~/.local/state, readable for "
        "nobody else: the last 1000 lines. MOEBIUS_HISTORY names another file; empty, it keeps none.",
    .examples = "moebius chat models/demo\n"
                "moebius chat models/demo --system \"Answer in one word.\" --temperature 0.7",
    .operand_hint = "questions are typed, or come from standard input; moebius run takes one with -p",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = chat_main,
};
