/* read_messages.c - POST /v1/messages: Anthropic's API, translated to a chat. */
#include <stdio.h>
#include <string.h>

#include "server/generation.h"
#include "server/translate.h"

static const char fields[] =
    "model messages system max_tokens stop_sequences stream temperature top_p top_k tools tool_choice thinking "
    "metadata service_tier output_format output_config cache_control chat_template_kwargs priority cache_salt seed "
    "min_p repetition_penalty ignore_eos min_tokens";

/* ---- Blocks of a message ------------------------------------------------------------------------------ */

/* Appends the text of a string or of text blocks to `content`, an array of parts. */
static int add_texts(server_translation *t, const json_t *value, const char *path, json_t *content) {
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (value != NULL && !json_is_array(value) && !json_is_string(value))
        return server_refuse(t->problem, 400, path, "%s is %s; it must be a string or an array of blocks",
                             path, server_json_kind(value));
    for (size_t i = 0; i < n && value != NULL; i++) {
        const json_t *block = json_is_array(value) ? json_array_get(value, i) : NULL;
        const char *text = json_string_value(block != NULL ? json_object_get(block, "text") : value);
        const char *type = block != NULL ? json_string_value(json_object_get(block, "type")) : "text";
        if (type == NULL || strcmp(type, "text") != 0 || text == NULL)
            return server_refuse(t->problem, 400, path,
                                 "%s[%zu] is no text block; the model reads only text: {\"type\": \"text\", "
                                 "\"text\": ...}",
                                 path, i);
        json_t *part = json_object();
        server_put(t, part, "type", server_string("text"));
        server_put(t, part, "text", server_string(text));
        server_append(t, content, part);
    }
    return 0;
}

/* A result is a message of its own, before what the user says after it. */
static int add_result(server_translation *t, const json_t *block, const char *path) {
    const char *id = server_need_string(block, path, "tool_use_id", t->problem);
    if (id == NULL)
        return -1;
    json_t *message = server_add_message(t, "tool");
    server_put(t, message, "tool_call_id", server_string(id));
    return add_texts(t, json_object_get(block, "content"), path, server_array_of(t, message, "content"));
}

static int add_use(server_translation *t, const json_t *block, const char *path, json_t *message) {
    const char *id = server_need_string(block, path, "id", t->problem);
    const char *name = id != NULL ? server_need_string(block, path, "name", t->problem) : NULL;
    json_t *input = json_object_get(block, "input");
    if (name == NULL)
        return -1;
    if (!json_is_object(input))
        return server_refuse(t->problem, 400, path, "%s.input must be an object", path);
    server_add_call(t, message, id, name, json_incref(input));
    return 0;
}

static int add_thinking(server_translation *t, const json_t *block, const char *path, json_t *message) {
    const char *text = server_need_string(block, path, "thinking", t->problem);
    if (text == NULL)
        return -1;
    server_put(t, message, "reasoning_content", server_string(text));
    return 0;
}

/* The message that texts of this role go to: results end one of the user's. */
static json_t *open_message(server_translation *t, const char *role, json_t *message) {
    return message != NULL && server_last_message(t, role) == message ? message : server_add_message(t, role);
}

static int add_block(server_translation *t, const json_t *block, const char *path, const char *role,
                     json_t **message) {
    const char *type = server_need_string(block, path, "type", t->problem);
    int is_assistant = strcmp(role, "assistant") == 0;
    if (type == NULL)
        return -1;
    if (strcmp(type, "tool_result") == 0 && !is_assistant)
        return add_result(t, block, path);
    if (strcmp(type, "redacted_thinking") == 0 && is_assistant)
        return 0; /* nobody but its author can read it */
    *message = open_message(t, role, *message);
    if (strcmp(type, "tool_use") == 0 && is_assistant)
        return add_use(t, block, path, *message);
    if (strcmp(type, "thinking") == 0 && is_assistant)
        return add_thinking(t, block, path, *message);
    const char *text = strcmp(type, "text") == 0 ? server_need_string(block, path, "text", t->problem) : NULL;
    if (text != NULL)
        return add_texts(t, json_object_get(block, "text"), path, server_array_of(t, *message, "content"));
    return server_refuse(t->problem, 400, path,
                         "%s has the type \"%.40s\", which %s message cannot have here", path, type,
                         is_assistant ? "an assistant's" : "a user's");
}

static int add_message(server_translation *t, const json_t *given, const char *path) {
    const char *role = server_need_string(given, path, "role", t->problem);
    const json_t *content = json_object_get(given, "content");
    json_t *message = NULL;
    char place[96];
    if (role == NULL)
        return -1;
    if (strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0)
        return server_refuse(t->problem, 400, path, "%s.role is \"%.40s\"; it must be user or assistant",
                             path, role);
    snprintf(place, sizeof place, "%s.content", path);
    if (!json_is_array(content) || json_array_size(content) == 0) {
        if (!json_is_string(content) && !json_is_array(content))
            return server_refuse(t->problem, 400, place, "%s must be a string or an array of blocks", place);
        message = server_add_message(t, role);
        return add_texts(t, content, place, server_array_of(t, message, "content"));
    }
    for (size_t i = 0; i < json_array_size(content); i++) {
        snprintf(place, sizeof place, "%.40s.content[%zu]", path, i);
        if (add_block(t, json_array_get(content, i), place, role, &message) != 0)
            return -1;
    }
    return 0;
}

static int add_messages(server_translation *t, const json_t *body) {
    const json_t *messages = NULL, *system = server_json_get(body, "system");
    char path[32];
    if (server_json_array(body, "messages", t->problem, &messages) != 0)
        return -1;
    if (json_array_size(messages) == 0)
        return server_refuse(t->problem, 400, "messages",
                             "messages is missing or empty; send at least one message");
    t->origin = "system";
    if (system != NULL &&
        add_texts(t, system, "system", server_array_of(t, server_add_message(t, "system"), "content")) != 0)
        return -1;
    for (size_t i = 0; i < json_array_size(messages); i++) {
        snprintf(path, sizeof path, "messages[%zu]", i);
        t->origin = path;
        if (add_message(t, json_array_get(messages, i), path) != 0)
            return -1;
    }
    t->origin = NULL;
    if (server_last_message(t, "assistant") != NULL)
        return server_refuse(
            t->problem, 400, "messages",
            "the last message is the assistant's, and going on with it is not supported; let the "
            "last message be the user's");
    return 0;
}

/* ---- Other fields ------------------------------------------------------------------------------------- */

static int add_tools(server_translation *t, const json_t *body) {
    const json_t *tools = NULL;
    char path[32];
    if (server_json_array(body, "tools", t->problem, &tools) != 0)
        return -1;
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        const char *type = "custom";
        snprintf(path, sizeof path, "tools[%zu]", i);
        if (server_json_string(tool, "type", t->problem, &type) != 0 ||
            server_need_string(tool, path, "name", t->problem) == NULL)
            return -1;
        if (strcmp(type, "custom") != 0 || !json_is_object(json_object_get(tool, "input_schema")))
            return server_refuse(
                t->problem, 400, path,
                "%s has no input_schema, or is a tool that Anthropic's servers run; only tools of "
                "the client are supported",
                path);
        server_add_tool(t, tool, "input_schema");
    }
    return 0;
}

static int add_choice(server_translation *t, const json_t *body) {
    const json_t *choice = NULL;
    int one_call = 0;
    if (server_json_object(body, "tool_choice", t->problem, &choice) != 0)
        return -1;
    if (choice == NULL)
        return 0;
    const char *type = server_need_string(choice, "tool_choice", "type", t->problem);
    if (type == NULL || server_json_bool(choice, "disable_parallel_tool_use", t->problem, &one_call) != 0)
        return -1;
    if (one_call)
        server_put(t, t->body, "parallel_tool_calls", json_false());
    if (strcmp(type, "tool") == 0) {
        const char *name = server_need_string(choice, "tool_choice", "name", t->problem);
        if (name != NULL)
            server_put(t, t->body, "tool_choice", server_named_function(t, name));
        return name != NULL ? 0 : -1;
    }
    if (strcmp(type, "any") != 0 && strcmp(type, "auto") != 0 && strcmp(type, "none") != 0)
        return server_refuse(t->problem, 400, "tool_choice",
                             "tool_choice.type is \"%.40s\"; it must be auto, any, tool or none", type);
    server_put(t, t->body, "tool_choice", server_string(strcmp(type, "any") == 0 ? "required" : type));
    return 0;
}

/* As Anthropic's API, thinking is off unless it is asked for. A budget is not kept. */
static int add_thinking_switch(server_translation *t, const json_t *body) {
    const json_t *thinking = NULL;
    if (server_json_object(body, "thinking", t->problem, &thinking) != 0)
        return -1;
    if (server_json_get(body, "chat_template_kwargs") != NULL) {
        server_copy(t, body, "chat_template_kwargs", t->body, "chat_template_kwargs");
        return 0;
    }
    const char *type = "disabled";
    if (thinking != NULL && (type = server_need_string(thinking, "thinking", "type", t->problem)) == NULL)
        return -1;
    if (strcmp(type, "enabled") != 0 && strcmp(type, "disabled") != 0 && strcmp(type, "adaptive") != 0 &&
        strcmp(type, "between_tools") != 0)
        return server_refuse(t->problem, 400, "thinking",
                             "thinking.type is \"%.40s\"; it must be enabled, adaptive or disabled", type);
    server_put_thinking(t, strcmp(type, "disabled") != 0);
    return 0;
}

static int add_stops(server_translation *t, const json_t *body) {
    const json_t *stops = NULL;
    if (server_json_array(body, "stop_sequences", t->problem, &stops) != 0)
        return -1;
    for (size_t i = 0; i < json_array_size(stops); i++) {
        const json_t *stop = json_array_get(stops, i);
        if (!json_is_string(stop) || json_string_length(stop) == 0)
            return server_refuse(t->problem, 400, "stop_sequences",
                                 "stop_sequences[%zu] is no string, or an empty one", i);
    }
    server_copy(t, body, "stop_sequences", t->body, "stop");
    return 0;
}

/* output_format, which is now output_config.format. */
static int add_format(server_translation *t, const json_t *body) {
    const json_t *format = NULL, *config = NULL;
    if (server_json_object(body, "output_format", t->problem, &format) != 0 ||
        server_json_object(body, "output_config", t->problem, &config) != 0 ||
        server_json_object(config, "format", t->problem, &format) != 0)
        return -1;
    if (format != NULL)
        server_put(t, t->body, "response_format", json_incref((json_t *)format));
    return 0;
}

static int translate(server_translation *t, const json_t *body) {
    static const char *const same[] = {
        "model",      "max_tokens", "stream", "temperature",        "top_p",      "top_k",     "priority",
        "cache_salt", "seed",       "min_p",  "repetition_penalty", "ignore_eos", "min_tokens"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        server_copy(t, body, same[i], t->body, same[i]);
    if (add_messages(t, body) != 0 || add_tools(t, body) != 0 || add_choice(t, body) != 0 ||
        add_thinking_switch(t, body) != 0 || add_stops(t, body) != 0 || add_format(t, body) != 0)
        return -1;
    return server_translation_finish(t);
}

int server_read_messages(const server_reading *reading, const json_t *body, server_generation *generation,
                         server_problem *problem) {
    const server_renaming names[] = {{"stop", "stop_sequences"},
                                     {"function.name", "name"},
                                     {"function.parameters", "input_schema"},
                                     {"response_format", server_json_get(body, "output_format") != NULL
                                                             ? "output_format"
                                                             : "output_config.format"}};
    server_translation translation;
    server_json_warn_unknown(body, fields);
    server_translation_open(&translation, problem);
    int status = translate(&translation, body);
    if (status == 0 && (status = server_read_chat(reading, translation.body, generation, problem)) != 0)
        server_translation_rename(&translation, names, sizeof names / sizeof *names);
    server_translation_close(&translation);
    return status;
}
