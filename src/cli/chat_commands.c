/* chat_commands.c - the lines of moebius chat that begin with a slash, and what Tab offers. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "cli/chat_state.h"
#include "cli/output.h"
#include "cli/suggest.h"

static const char SPACE[] = " \t\n";

/* What may follow a command on its line. */
typedef enum following_text {
    NO_TEXT,     /* nothing: with text, the whole line is a question */
    A_QUESTION,  /* a question, asked once the command has run */
    AN_ARGUMENT, /* what the command is about; it may be missing */
    A_FILE, /* a path. Only a person's line is such a command: a program's questions must not reach files */
} following_text;

typedef struct slash_command {
    const char *name, *help;
    following_text text;
    chat_next (*run)(chat_state *chat, const char *argument);
} slash_command;

static chat_next run_think(chat_state *chat, const char *argument) {
    (void)argument;
    chat->thinking = 1;
    chat_remark("[Thinking is on.]");
    return CHAT_GO_ON;
}

static chat_next run_nothink(chat_state *chat, const char *argument) {
    (void)argument;
    chat->thinking = 0;
    chat_remark("[Thinking is off.]");
    return CHAT_GO_ON;
}

static void drop_attached(chat_state *chat) {
    mb_free(chat->attached);
    chat->attached = NULL;
    chat->n_attached = 0;
}

static chat_next run_reset(chat_state *chat, const char *argument) {
    (void)argument;
    cli_conversation_clear(&chat->conversation);
    drop_attached(chat);
    chat->figures = (cli_figures){0};
    chat_remark("[A new conversation; the system message stays.]");
    return CHAT_GO_ON;
}

static chat_next run_system(chat_state *chat, const char *argument) {
    if (cli_conversation_set_system(&chat->conversation, argument) == CLI_OK)
        chat_remark(*argument != '\0' ? "[The system message is set.]" : "[There is no system message now.]");
    else
        chat->failed = 1;
    return CHAT_GO_ON;
}

static chat_next run_regen(chat_state *chat, const char *argument) {
    (void)argument;
    chat_ask_again(chat);
    return CHAT_GO_ON;
}

/* ---- Files -------------------------------------------------------------------------------------------- */

/* A path as a person types it, with ~/ for the home folder: freed with mb_free, NULL
 * after a reported failure. */
static char *expand_path(const char *command, const char *typed) {
    const char *home = strncmp(typed, "~/", 2) == 0 ? getenv("HOME") : NULL;
    if (*typed == '\0') {
        cli_failure("%s needs the name of a file", command);
        return NULL;
    }
    size_t n_bytes = strlen(typed) + (home != NULL ? strlen(home) : 0) + 1;
    char *path = mb_malloc(n_bytes);
    if (path == NULL)
        cli_failure("no memory for a name of %zu bytes", n_bytes);
    else
        snprintf(path, n_bytes, "%s%s", home != NULL ? home : "", home != NULL ? typed + 1 : typed);
    return path;
}

/* Appends a file's text and an empty line to what goes in front of the next question. */
static int attach(chat_state *chat, const char *path) {
    enum { MAX_FILE_BYTES = 16 << 20 };
    char *bytes;
    size_t n_bytes;
    if (mb_file_read(path, MAX_FILE_BYTES, &bytes, &n_bytes) != MB_OK)
        return cli_report_failure();
    while (n_bytes > 0 && bytes[n_bytes - 1] == '\n')
        n_bytes--;
    int status = cli_check_text(path, bytes, n_bytes);
    char *longer = status == CLI_OK ? mb_realloc(chat->attached, chat->n_attached + n_bytes + 2) : NULL;
    if (longer != NULL) {
        chat->attached = longer;
        memcpy(longer + chat->n_attached, bytes, n_bytes);
        memcpy(longer + chat->n_attached + n_bytes, "\n\n", 2);
        chat->n_attached += n_bytes + 2;
        chat_remark("[%s: %zu bytes go in front of the next question.]", path, n_bytes);
    } else if (status == CLI_OK) {
        status = cli_failure("%s: no memory for %zu bytes", path, n_bytes);
    }
    mb_free(bytes);
    return status;
}

static chat_next run_read(chat_state *chat, const char *argument) {
    char *path = expand_path("/read", argument);
    if (path != NULL)
        attach(chat, path);
    mb_free(path);
    return CHAT_GO_ON;
}

static chat_next run_save(chat_state *chat, const char *argument) {
    char *path = expand_path("/save", argument);
    if (path != NULL && cli_conversation_save(&chat->conversation, path) == CLI_OK)
        chat_remark("[%zu messages are saved.]", cli_conversation_count(&chat->conversation));
    mb_free(path);
    return CHAT_GO_ON;
}

static chat_next run_load(chat_state *chat, const char *argument) {
    char *path = expand_path("/load", argument);
    if (path != NULL && cli_conversation_load(&chat->conversation, chat->model, path) == CLI_OK) {
        drop_attached(chat);
        chat->figures = (cli_figures){0};
        chat_remark("[A conversation of %zu messages is loaded.]",
                    cli_conversation_count(&chat->conversation));
    }
    mb_free(path);
    return CHAT_GO_ON;
}

/* ---- What is known ------------------------------------------------------------------------------------ */

static chat_next run_status(chat_state *chat, const char *argument) {
    mb_model_info info;
    const cli_figures *figures = &chat->figures;
    (void)argument;
    mb_model_get_info(chat->model, &info);
    cli_print("model         %s on %s, %s\n", chat->directory, info.device, info.dtype);
    cli_print("conversation  %zu messages, %s system message, thinking %s\n",
              cli_conversation_count(&chat->conversation),
              cli_conversation_has_system(&chat->conversation) ? "with a" : "no",
              chat->thinking ? "on" : "off");
    if (chat->n_attached > 0)
        cli_print("attached      %zu bytes, in front of the next question\n", chat->n_attached);
    cli_print("context       %zu of %" PRId64 " tokens used\n", figures->n_prompt + figures->n_new,
              chat->context);
    if (figures->n_prompt > 0)
        cli_print(
            "last answer   %zu prompt tokens (%zu from the cache), %zu generated tokens, %.1f output tokens/s\n",
            figures->n_prompt, figures->n_cached, figures->n_new, cli_output_rate(figures));
    return CHAT_GO_ON;
}

static chat_next run_exit(chat_state *chat, const char *argument) {
    (void)chat;
    (void)argument;
    return CHAT_LEAVE;
}

static chat_next run_help(chat_state *chat, const char *argument);

static const slash_command slash_commands[] = {
    {"/think", "let the model think before it answers; a question can follow on the line", A_QUESTION,
     run_think},
    {"/nothink", "let the model answer at once; a question can follow on the line", A_QUESTION, run_nothink},
    {"/regen", "answer the last question again", NO_TEXT, run_regen},
    {"/reset", "forget the conversation and start a new one; a question can follow", A_QUESTION, run_reset},
    {"/system", "set the system message to the text that follows; without text, remove it", AN_ARGUMENT,
     run_system},
    {"/read", "put the text of a file in front of the next question: /read FILE", A_FILE, run_read},
    {"/save", "write the conversation to a file, as JSON: /save FILE", A_FILE, run_save},
    {"/load", "go on with a conversation that was saved: /load FILE", A_FILE, run_load},
    {"/status", "show the model, the conversation and the last answer's figures", NO_TEXT, run_status},
    {"/help", "show this list", NO_TEXT, run_help},
    {"/exit", "leave; so does Ctrl-D", NO_TEXT, run_exit},
};

static chat_next run_help(chat_state *chat, const char *argument) {
    (void)argument;
    for (size_t i = 0; i < CLI_COUNT(slash_commands); i++)
        if (slash_commands[i].text != A_FILE || chat->person)
            cli_print("%-9s %s\n", slash_commands[i].name, slash_commands[i].help);
    if (chat->person)
        cli_print("%-9s completes commands and names of files\n"
                  "%-9s begins a new line, as does Enter after a backslash; pasted text keeps its lines\n",
                  "Tab", "Alt-Enter");
    cli_print("%-9s stops an answer\nAny other line is a question, also one that starts with a slash.\n",
              "Ctrl-C");
    return CHAT_GO_ON;
}

/* ---- Lines -------------------------------------------------------------------------------------------- */

/* The command that a line begins with, or NULL: the line is a question. */
static const slash_command *find_command(const chat_state *chat, const char *line) {
    size_t length = strcspn(line, SPACE), rest = length + strspn(line + length, SPACE);
    for (size_t i = 0; i < CLI_COUNT(slash_commands); i++) {
        const slash_command *command = &slash_commands[i];
        if (strlen(command->name) != length || memcmp(command->name, line, length) != 0)
            continue;
        int is_command =
            command->text == A_FILE ? chat->person : line[rest] == '\0' || command->text != NO_TEXT;
        return is_command ? command : NULL;
    }
    return NULL;
}

/* A person at a terminal who mistypes a command sees why the model answers. */
static void explain_question(const chat_state *chat, const char *line) {
    cli_suggestion near;
    size_t length = strcspn(line, "\n");
    cli_suggestion_begin(&near, line, length);
    for (size_t i = 0; i < CLI_COUNT(slash_commands); i++)
        cli_suggestion_offer(&near, slash_commands[i].name);
    if (*line == '/' && near.nearest != NULL && chat->person)
        chat_remark("[%.*s is no command and goes to the model. Did you mean %s?]", (int)length, line,
                    near.nearest);
}

chat_next chat_take_line(chat_state *chat, const char *line, size_t n_bytes) {
    char *text = mb_malloc(n_bytes + 1); /* zero-terminated, for commands: questions may hold anything */
    if (text == NULL) {
        cli_failure("no memory for a line of %zu bytes", n_bytes);
        chat->failed = 1;
        return CHAT_GO_ON;
    }
    memcpy(text, line, n_bytes);
    text[n_bytes] = '\0';
    const char *start = text + strspn(text, SPACE);
    const slash_command *command = find_command(chat, start);
    chat_next result = CHAT_GO_ON;
    if (command != NULL) {
        size_t name_length = strlen(command->name);
        char *rest = text + (start - text) + name_length;
        rest += strspn(rest, SPACE);
        if (command->text == A_FILE) /* Tab puts a space after a name that is complete */
            for (size_t n = strlen(rest); n > 0 && strchr(SPACE, rest[n - 1]) != NULL; n--)
                rest[n - 1] = '\0';
        result = command->run(chat, rest);
        if (command->text == A_QUESTION && *rest != '\0')
            chat_ask(chat, rest, n_bytes - (size_t)(rest - text));
    } else if (start < text + n_bytes) {
        explain_question(chat, start);
        chat_ask(chat, text, n_bytes);
    }
    mb_free(text);
    return result;
}

void chat_complete(const char *before, cli_candidates *candidates) {
    size_t length = strcspn(before, SPACE), rest = length + strspn(before + length, SPACE);
    if (before[length] == '\0' && *before == '/') {
        candidates->n_typed = length;
        for (size_t i = 0; i < CLI_COUNT(slash_commands); i++)
            cli_candidates_offer(candidates, before, slash_commands[i].name);
        return;
    }
    for (size_t i = 0; i < CLI_COUNT(slash_commands); i++)
        if (slash_commands[i].text == A_FILE && strlen(slash_commands[i].name) == length &&
            memcmp(slash_commands[i].name, before, length) == 0)
            cli_candidates_offer_paths(candidates, before + rest);
}
