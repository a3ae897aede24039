/* read_chat.c - POST /v1/chat/completions: messages to a prompt. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "server/generation.h"
#include "server/json_read.h"

static const char chat_fields[] =
    "messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls chat_template_kwargs "
    "response_format add_generation_prompt continue_final_message modalities reasoning_effort verbosity "
    "include_reasoning";

/* The text of a content part; NULL with a problem when the part is something else. */
static const json_t *part_text(const json_t *part, const char *field, server_problem *problem) {
    const json_t *type = json_object_get(part, "type");
    const char *name = json_string_value(type);
    const json_t *text =
        json_object_get(part, name != NULL && strcmp(name, "refusal") == 0 ? "refusal" : "text");
    if (!json_is_object(part) || (type != NULL && name == NULL)) {
        server_refuse(problem, 400, field,
                      "%s must be a string or a list of {\"type\": \"text\", \"text\": ...}", field);
        return NULL;
    }
    if (name != NULL && strcmp(name, "text") != 0 && strcmp(name, "input_text") != 0 &&
        strcmp(name, "output_text") != 0 && strcmp(name, "refusal") != 0) {
        server_refuse(problem, 400, field, "%s has a part of type \"%.40s\"; the model reads only text",
                      field, name);
        return NULL;
    }
    if (!json_is_string(text)) {
        server_refuse(problem, 400, field, "%s has a part without \"text\"", field);
        return NULL;
    }
    return text;
}

/* Makes one string of a content that is a list of text parts, joined by line breaks as in vLLM. */
static int flatten_content(json_t *message, size_t i, server_problem *problem) {
    const json_t *content = json_object_get(message, "content");
    char field[64];
    server_text joined = {0};
    int status = 0;
    if (!json_is_array(content))
        return 0;
    snprintf(field, sizeof field, "messages[%zu].content", i);
    for (size_t k = 0; k < json_array_size(content) && status == 0; k++) {
        const json_t *text = part_text(json_array_get(content, k), field, problem);
        if (k > 0)
            server_text_put(&joined, "\n", 1);
        if (text == NULL)
            status = -1;
        else
            server_text_put(&joined, json_string_value(text), json_string_length(text));
    }
    if (status == 0 &&
        (joined.failed || json_object_set_new(message, "content",
                                              json_stringn_nocheck(joined.bytes != NULL ? joined.bytes : "",
                                                                   joined.n_bytes)) != 0))
        status = server_refuse(problem, 503, NULL, "no memory for the messages");
    server_text_free(&joined);
    return status;
}

/* The messages as JSON text, for mb_chat_render. */
static char *read_messages(const json_t *body, server_problem *problem) {
    const json_t *messages = NULL;
    if (server_json_array(body, "messages", problem, &messages) != 0)
        return NULL;
    if (json_array_size(messages) == 0) {
        server_refuse(problem, 400, "messages", "messages is missing or empty; send at least one message");
        return NULL;
    }
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);
        if (!json_is_object(message)) {
            server_refuse(problem, 400, "messages", "messages[%zu] is %s; it must be an object", i,
                          server_json_kind(message));
            return NULL;
        }
        if (flatten_content(message, i, problem) != 0)
            return NULL;
    }
    return server_json_dump(messages, problem);
}

static int read_template_options(const json_t *body, mb_chat_options *options, server_problem *problem) {
    const json_t *kwargs = NULL;
    int continue_message = 0;
    if (server_json_object(body, "chat_template_kwargs", problem, &kwargs) != 0 ||
        server_json_bool(kwargs, "enable_thinking", problem, &options->enable_thinking) != 0 ||
        server_json_bool(body, "add_generation_prompt", problem, &options->add_generation_prompt) != 0 ||
        server_json_bool(body, "continue_final_message", problem, &continue_message) != 0)
        return -1;
    if (continue_message)
        return server_refuse(problem, 400, "continue_final_message",
                             "continue_final_message is not supported");
    return 0;
}

static int render(const server_reading *reading, const json_t *body, server_generation *generation,
                  server_problem *problem) {
    mb_chat_options options;
    char *messages = NULL, *tools_json = NULL, *text = NULL;
    const json_t *tools = NULL;
    int status = -1;
    mb_chat_options_init(&options);
    if (read_template_options(body, &options, problem) != 0 ||
        server_json_array(body, "tools", problem, &tools) != 0)
        return -1;
    messages = read_messages(body, problem);
    if (messages != NULL && json_array_size(tools) > 0)
        options.tools_json = tools_json = server_json_dump(tools, problem);
    generation->prompts = mb_calloc(1, sizeof *generation->prompts);
    if (generation->prompts == NULL)
        server_refuse(problem, 503, NULL, "no memory for a prompt");
    else
        generation->n_prompts = 1;
    if (problem->status == 0) {
        mb_status rendered = mb_chat_render(reading->model, messages, &options, &text);
        if (rendered == MB_OK)
            status = server_encode_prompt(reading, text, strlen(text), "messages", &generation->prompts[0],
                                          problem);
        else
            server_refuse(problem, rendered == MB_ERR_MEMORY ? 503 : 400, "messages", "%s", mb_last_error());
    }
    mb_free(messages);
    mb_free(tools_json);
    return status;
}

static int read_logprobs(const json_t *body, server_generation *generation, server_problem *problem) {
    int logprobs = 0;
    int32_t top = -1;
    if (server_json_bool(body, "logprobs", problem, &logprobs) != 0 ||
        server_json_int32(body, "top_logprobs", 0, SERVER_MAX_TOP_LOGPROBS, problem, &top) != 0)
        return -1;
    if (top > 0 && !logprobs)
        return server_refuse(problem, 400, "top_logprobs", "top_logprobs goes with \"logprobs\": true only");
    if (logprobs)
        generation->top_logprobs = top > 0 ? top : 0;
    return 0;
}

int server_read_chat(const server_reading *reading, const json_t *body, server_generation *generation,
                     server_problem *problem) {
    char known[sizeof chat_fields + 1024];
    snprintf(known, sizeof known, "%s %s", server_shared_fields, chat_fields);
    server_json_warn_unknown(body, known);
    if (server_read_model(reading, body, generation, problem) != 0 ||
        server_read_sampling(reading, body, generation, problem) != 0 ||
        server_read_stream(body, generation, problem) != 0 || read_logprobs(body, generation, problem) != 0 ||
        server_json_integer(body, "max_tokens", 1, INT32_MAX, problem, &generation->max_new_tokens) != 0 ||
        server_json_integer(body, "max_completion_tokens", 1, INT32_MAX, problem,
                            &generation->max_new_tokens) != 0 ||
        render(reading, body, generation, problem) != 0)
        return -1;
    return server_finish_reading(reading, "messages", generation, problem);
}
