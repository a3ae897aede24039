/*
 * translate.h - APIs other than OpenAI's chat completions are read by translation: their body becomes one
 * of the chat API, which read_chat.c reads. A translation holds the body that is made.
 */
#ifndef MB_SERVER_TRANSLATE_H
#define MB_SERVER_TRANSLATE_H

#include "server/json_read.h"

typedef struct server_translation {
    json_t *body, *messages, *tools; /* the latter are part of the body once it is complete */
    json_t *origins;                 /* of each message: the field of the request that it was made of */
    const char *origin;              /* of the messages that are added now; NULL: the whole conversation */
    int failed;                      /* memory ran out */
    server_problem *problem;
} server_translation;

void server_translation_open(server_translation *translation, server_problem *problem);
void server_translation_close(server_translation *translation);
/* Puts messages and tools into the body. Returns 0, or -1 with a problem. */
int server_translation_finish(server_translation *translation);

/* A name of the chat API, and what the request's API calls the same. */
typedef struct server_renaming {
    const char *chat, *here;
} server_renaming;

/* What read_chat.c says of the body that was made is put into the words of the request: messages by their origins,
 * other fields by the names. */
void server_translation_rename(server_translation *translation, const server_renaming *names, size_t n_names);

/* Both take `value` over. Values and targets that are NULL for lack of memory are noted. */
void server_put(server_translation *translation, json_t *object, const char *field, json_t *value);
void server_append(server_translation *translation, json_t *array, json_t *value);
/* Copies a field of the request, when it is there, under its name or another. */
void server_copy(server_translation *translation, const json_t *from, const char *field, json_t *object,
                 const char *name);
/* A string of the request, a literal: never NULL but for lack of memory. */
json_t *server_string(const char *text);

/* A new message at the end, an object with its role. */
json_t *server_add_message(server_translation *translation, const char *role);
/* The last message when it has this role, else NULL. */
json_t *server_last_message(const server_translation *translation, const char *role);
/* The array of this name in `object`, made when there is none. */
json_t *server_array_of(server_translation *translation, json_t *object, const char *name);
/* A tool of the chat API from one whose fields are side by side; `schema` is the name of its parameters. */
void server_add_tool(server_translation *translation, const json_t *tool, const char *schema);
/* A call of an assistant's message; takes `arguments` over. */
void server_add_call(server_translation *translation, json_t *message, const char *id, const char *name,
                     json_t *arguments);
/* {"type": "function", "function": {"name": ...}} */
json_t *server_named_function(server_translation *translation, const char *name);

/* A string that `object` must have; NULL with a problem that calls it PATH.NAME. */
const char *server_need_string(const json_t *object, const char *path, const char *name,
                               server_problem *problem);
/* Writes enable_thinking into the body's chat_template_kwargs. */
void server_put_thinking(server_translation *translation, int is_on);

#endif
