/* conversation.h - the messages of a chat and their rendering to a prompt. */
#ifndef MB_CLI_CONVERSATION_H
#define MB_CLI_CONVERSATION_H

#include <jansson.h>

#include "cli/options.h"

typedef struct cli_conversation {
    json_t *messages; /* array, as in the OpenAI API; a system message is the first one */
} cli_conversation;

/* All of these report their failures. */
int cli_conversation_open(cli_conversation *conversation);
void cli_conversation_close(cli_conversation *conversation);

/* `what` names the text in the sentence about text that is not UTF-8. The text may be empty, and then
 * NULL. */
int cli_conversation_add(cli_conversation *conversation, const char *what, const char *role, const char *text,
                         size_t n_bytes);
void cli_conversation_drop_last(cli_conversation *conversation);
void cli_conversation_clear(cli_conversation *conversation); /* keeps the system message */

/* Replaces the system message; an empty text removes it. */
int cli_conversation_set_system(cli_conversation *conversation, const char *text);

/* *prompt: free with mb_free_text. */
int cli_conversation_render(const cli_conversation *conversation, const mb_model *model, int thinking,
                            char **prompt);

#endif
