/* chat_state.h - the conversation of moebius chat: what its parts share. */
#ifndef MB_CLI_CHAT_STATE_H
#define MB_CLI_CHAT_STATE_H

#include "cli/answer.h"
#include "cli/candidates.h"
#include "cli/conversation.h"
#include "cli/model_settings.h"
#include "cli/sampling_settings.h"

typedef struct chat_settings {
    const char *system, *tools;
    int no_think;
    cli_model_settings model;
    cli_sampling_settings sampling;
} chat_settings;

typedef struct chat_state {
    const chat_settings *given;
    const char *directory;
    mb_model *model;
    mb_session *session;
    cli_conversation conversation;
    cli_answer answer;
    char *attached; /* texts of /read, which go in front of the next question; NULL: none */
    size_t n_attached;
    int64_t context; /* tokens that prompt and answer may have together */
    int thinking;
    int person;          /* a person types; else a program, whose lines never name files */
    int failed;          /* a question could not be answered */
    uint64_t n_again;    /* how often the last question was answered again */
    cli_figures figures; /* of the last answer; n_prompt 0: there is none */
} chat_state;

/* A remark of the program's own, told apart from answers. */
__attribute__((format(printf, 1, 2))) void chat_remark(const char *format, ...);

/* chat_answer.c: asks a question, after what was attached; or gets another answer to the last one. Failures
 * are reported and leave the conversation as it was. */
void chat_ask(chat_state *chat, const char *question, size_t n_bytes);
void chat_ask_again(chat_state *chat);

/* chat_commands.c */
typedef enum chat_next { CHAT_GO_ON, CHAT_LEAVE } chat_next;

/* Takes a line that was typed: a command or a question. */
chat_next chat_take_line(chat_state *chat, const char *line, size_t n_bytes);
/* What Tab offers: commands, and files for those that take one. */
void chat_complete(const char *before, cli_candidates *candidates);

#endif
