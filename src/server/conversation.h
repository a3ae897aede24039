/* conversation.h - messages and tools become a prompt, and say how the answer is divided into parts. */
#ifndef MB_SERVER_CONVERSATION_H
#define MB_SERVER_CONVERSATION_H

#include "server/generation.h"

typedef struct server_conversation {
    /* An array as in the chat API. It is changed: contents that are lists of text parts become strings. */
    json_t *messages;
    const char *field;         /* what problems call the messages */
    const json_t *tools;       /* an array as in the chat API, or NULL */
    const json_t *tool_choice; /* as in the chat API, or NULL */
    int parallel_tool_calls;
    int drops_reasoning;     /* it is generated, but not shown */
    const json_t *kwargs;    /* more variables of the template, an object, or NULL */
    mb_chat_options options; /* of the template; tools_json and kwargs_json are set here */
} server_conversation;

void server_conversation_init(server_conversation *conversation); /* "messages", no tools, defaults */

/* Fills the generation's prompt, and its `parse`. */
int server_read_conversation(const server_reading *reading, const server_conversation *conversation,
                             server_generation *generation, server_problem *problem);

#endif
