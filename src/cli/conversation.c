#include "cli/conversation.h"

#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "cli/output.h"

int cli_conversation_open(cli_conversation *conversation) {
    *conversation = (cli_conversation){.messages = json_array()};
    return conversation->messages != NULL ? CLI_OK : cli_failure("no memory for the conversation");
}

void cli_conversation_close(cli_conversation *conversation) {
    json_decref(conversation->messages);
    mb_free(conversation->tools_json);
    *conversation = (cli_conversation){0};
}

/* A message; NULL after a reported failure. */
static json_t *make_message(const char *what, const char *role, const char *text, size_t n_bytes) {
    if (mb_begins_with_bom(text, n_bytes)) {
        cli_failure("%s begins with a byte order mark (BOM); save it as UTF-8 without one", what);
        return NULL;
    }
    const char *zero = n_bytes > 0 ? memchr(text, 0, n_bytes) : NULL;
    if (zero != NULL) {
        cli_failure("%s has a zero byte at offset %zu; is it text?", what, (size_t)(zero - text));
        return NULL;
    }
    json_t *content = json_stringn(n_bytes > 0 ? text : "", n_bytes);
    if (content == NULL) {
        cli_failure("%s is not valid UTF-8; save or convert it as UTF-8", what);
        return NULL;
    }
    json_t *message = json_pack("{s:s, s:o}", "role", role, "content", content);
    if (message == NULL)
        cli_failure("no memory for the conversation");
    return message;
}

int cli_check_text(const char *what, const char *text, size_t n_bytes) {
    json_t *message = make_message(what, "user", text, n_bytes);
    int status = message != NULL ? CLI_OK : CLI_FAILED;
    json_decref(message);
    return status;
}

int cli_conversation_add(cli_conversation *conversation, const char *what, const char *role, const char *text,
                         size_t n_bytes) {
    json_t *message = make_message(what, role, text, n_bytes);
    if (message == NULL)
        return CLI_FAILED;
    if (json_array_append_new(conversation->messages, message) != 0)
        return cli_failure("no memory for the conversation");
    return CLI_OK;
}

void cli_conversation_drop_last(cli_conversation *conversation) {
    json_array_remove(conversation->messages, json_array_size(conversation->messages) - 1);
}

static int has_role(const json_t *message, const char *wanted) {
    const char *role = json_string_value(json_object_get(message, "role"));
    return role != NULL && strcmp(role, wanted) == 0;
}

static json_t *last_message(const cli_conversation *conversation) {
    size_t n = json_array_size(conversation->messages);
    return n > 0 ? json_array_get(conversation->messages, n - 1) : NULL;
}

json_t *cli_conversation_take_answer(cli_conversation *conversation) {
    json_t *last = last_message(conversation);
    if (!has_role(last, "assistant"))
        return NULL;
    json_incref(last);
    cli_conversation_drop_last(conversation);
    return last;
}

void cli_conversation_put_back(cli_conversation *conversation, json_t *answer) {
    if (answer != NULL && json_array_append_new(conversation->messages, answer) != 0)
        cli_failure("no memory for the conversation: it has lost its last answer");
}

size_t cli_conversation_count(const cli_conversation *conversation) {
    return json_array_size(conversation->messages);
}

int cli_conversation_has_question(const cli_conversation *conversation) {
    const json_t *last = last_message(conversation);
    return has_role(last, "user") || has_role(last, "tool");
}

int cli_conversation_has_system(const cli_conversation *conversation) {
    return has_role(json_array_get(conversation->messages, 0), "system");
}

void cli_conversation_clear(cli_conversation *conversation) {
    size_t kept = cli_conversation_has_system(conversation) ? 1 : 0;
    while (json_array_size(conversation->messages) > kept)
        cli_conversation_drop_last(conversation);
}

int cli_conversation_set_system(cli_conversation *conversation, const char *text) {
    json_t *message = NULL;
    if (*text != '\0' && (message = make_message("the system message", "system", text, strlen(text))) == NULL)
        return CLI_FAILED;
    if (cli_conversation_has_system(conversation))
        json_array_remove(conversation->messages, 0);
    if (message != NULL && json_array_insert_new(conversation->messages, 0, message) != 0)
        return cli_failure("no memory for the conversation");
    return CLI_OK;
}

int cli_conversation_render(const cli_conversation *conversation, const mb_model *model, int thinking,
                            char **prompt) {
    json_malloc_t allocate;
    json_free_t release;
    mb_chat_options options;
    mb_chat_options_init(&options);
    options.enable_thinking = thinking;
    options.tools_json = conversation->tools_json;
    char *json = json_dumps(conversation->messages, JSON_COMPACT);
    if (json == NULL)
        return cli_failure("no memory for the conversation");
    mb_status status = mb_chat_render(model, json, &options, prompt);
    json_get_alloc_funcs(&allocate, &release);
    release(json);
    return status == MB_OK ? CLI_OK : cli_report_failure();
}
