/* conversation.h - the messages of a chat and their rendering to a prompt. */
#ifndef MB_CLI_CONVERSATION_H
#define MB_CLI_CONVERSATION_H

#include <jansson.h>

#include "cli/options.h"

typedef struct cli_conversation {
    json_t *messages; /* array, as in the OpenAI API; a system message is the first one */
    char *tools_json; /* definitions of tools for the chat template, or NULL */
} cli_conversation;

/* All of these report their failures. */
int cli_conversation_open(cli_conversation *conversation);
void cli_conversation_close(cli_conversation *conversation);

/* Refuses text with zero bytes, text that is not UTF-8, and text that begins with a byte order mark, which the
 * model would read. `what` names it in the sentence. */
int cli_check_text(const char *what, const char *text, size_t n_bytes);

/* `what` names the text in the sentence about text that is not UTF-8. The text may be empty, and then
 * NULL. */
int cli_conversation_add(cli_conversation *conversation, const char *what, const char *role, const char *text,
                         size_t n_bytes);
void cli_conversation_drop_last(cli_conversation *conversation);
void cli_conversation_clear(cli_conversation *conversation); /* keeps the system message */

/* Takes the assistant's message from the end; NULL when another one is there. It is put back, or freed with
 * json_decref. Putting NULL back does nothing. */
json_t *cli_conversation_take_answer(cli_conversation *conversation);
void cli_conversation_put_back(cli_conversation *conversation, json_t *answer);

size_t cli_conversation_count(const cli_conversation *conversation);   /* messages */
int cli_conversation_has_system(const cli_conversation *conversation); /* the first message is one */
int cli_conversation_has_question(
    const cli_conversation *conversation); /* the last message is the user's, or a
                                                                          * tool's */

/* Writes the messages to a file, as a JSON array. A file that is there is replaced when it holds a
 * conversation, else the call fails. */
int cli_conversation_save(const cli_conversation *conversation, const char *path);

/* Replaces the conversation by that of a file: an array of messages, or an object with "messages". On
 * failure, also when the model's chat template refuses the messages, the conversation stays as it was. */
int cli_conversation_load(cli_conversation *conversation, const mb_model *model, const char *path);

/* Takes the tools from a file: a JSON array of definitions, or an object with "tools". */
int cli_conversation_read_tools(cli_conversation *conversation, const char *path);

/* Replaces the system message; an empty text removes it. */
int cli_conversation_set_system(cli_conversation *conversation, const char *text);

/* *prompt: free with mb_free_text. */
int cli_conversation_render(const cli_conversation *conversation, const mb_model *model, int thinking,
                            char **prompt);

#endif
