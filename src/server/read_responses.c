/* read_responses.c - POST /v1/responses: OpenAI's newer API, translated to a chat. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "server/generation.h"
#include "server/translate.h"

static const char fields[] =
    "model input instructions max_output_tokens stream stream_options temperature top_p tools tool_choice "
    "parallel_tool_calls text reasoning store metadata user previous_response_id conversation background prompt "
    "include truncation service_tier safety_identifier prompt_cache_key max_tool_calls top_logprobs "
    "chat_template_kwargs top_k min_p seed stop priority cache_salt repetition_penalty ignore_eos min_tokens";

/* ---- Input -------------------------------------------------------------------------------------------- */

/* The assistant's message that a part of an answer belongs to. */
static json_t *assistant(server_translation *t) {
    json_t *last = server_last_message(t, "assistant");
    return last != NULL ? last : server_add_message(t, "assistant");
}

static int add_message(server_translation *t, const json_t *item, const char *path) {
    const char *role = server_need_string(item, path, "role", t->problem);
    json_t *content = json_object_get(item, "content"), *message = NULL;
    if (role == NULL)
        return -1;
    if (!json_is_string(content) && !json_is_array(content))
        return server_refuse(t->problem, 400, path, "%s.content must be a string or an array of parts", path);
    if (strcmp(role, "developer") == 0)
        role = "system";
    if (strcmp(role, "system") != 0 && strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0)
        return server_refuse(t->problem, 400, path,
                             "%s.role is \"%.40s\"; it must be system, developer, user or assistant", path,
                             role);
    /* An answer's reasoning comes as an item before its text. */
    if (strcmp(role, "assistant") == 0)
        message = server_last_message(t, role);
    if (message == NULL || json_object_get(message, "content") != NULL ||
        json_object_get(message, "tool_calls") != NULL)
        message = server_add_message(t, role);
    server_put(t, message, "content", json_incref(content));
    return 0;
}

static int add_call(server_translation *t, const json_t *item, const char *path) {
    const char *id = server_need_string(item, path, "call_id", t->problem);
    const char *name = id != NULL ? server_need_string(item, path, "name", t->problem) : NULL;
    const char *arguments = name != NULL ? server_need_string(item, path, "arguments", t->problem) : NULL;
    if (arguments == NULL)
        return -1;
    server_add_call(t, assistant(t), id, name, server_string(arguments));
    return 0;
}

static int add_call_output(server_translation *t, const json_t *item, const char *path) {
    const char *id = server_need_string(item, path, "call_id", t->problem);
    json_t *output = json_object_get(item, "output");
    if (id == NULL)
        return -1;
    if (!json_is_string(output) && !json_is_array(output))
        return server_refuse(t->problem, 400, path, "%s.output must be a string or an array of parts", path);
    json_t *message = server_add_message(t, "tool");
    server_put(t, message, "tool_call_id", server_string(id));
    server_put(t, message, "content", json_incref(output));
    return 0;
}

/* Reasoning that came in clear text goes back to the template; what is encrypted is nobody's here. */
static int add_reasoning(server_translation *t, const json_t *item, const char *path) {
    const json_t *content = NULL;
    server_text joined = {0};
    if (server_json_array(item, "content", t->problem, &content) != 0)
        return -1;
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *text = json_object_get(json_array_get(content, i), "text");
        if (json_is_string(text)) {
            server_text_put(&joined, json_string_value(text), json_string_length(text));
            continue;
        }
        server_text_free(&joined);
        return server_refuse(t->problem, 400, path, "%s.content[%zu] has no text", path, i);
    }
    t->failed |= joined.failed;
    if (joined.n_bytes > 0 && !joined.failed)
        server_put(t, server_add_message(t, "assistant"), "reasoning_content",
                   json_stringn_nocheck(joined.bytes, joined.n_bytes));
    server_text_free(&joined);
    return 0;
}

static int add_item(server_translation *t, const json_t *item, const char *path) {
    const char *type = "message";
    if (!json_is_object(item))
        return server_refuse(t->problem, 400, path, "%s is %s; it must be an object", path,
                             server_json_kind(item));
    if (server_json_string(item, "type", t->problem, &type) != 0)
        return -1;
    if (strcmp(type, "message") == 0)
        return add_message(t, item, path);
    if (strcmp(type, "function_call") == 0)
        return add_call(t, item, path);
    if (strcmp(type, "function_call_output") == 0)
        return add_call_output(t, item, path);
    if (strcmp(type, "reasoning") == 0)
        return add_reasoning(t, item, path);
    return server_refuse(
        t->problem, 400, path,
        "%s has the type \"%.40s\"; message, function_call, function_call_output and reasoning are "
        "supported",
        path, type);
}

static int add_input(server_translation *t, const json_t *body) {
    const json_t *input = server_json_get(body, "input");
    const char *instructions = NULL;
    char path[32];
    if (server_json_string(body, "instructions", t->problem, &instructions) != 0)
        return -1;
    t->origin = "instructions";
    if (instructions != NULL)
        server_put(t, server_add_message(t, "system"), "content", server_string(instructions));
    t->origin = "input";
    if (json_is_string(input)) {
        server_put(t, server_add_message(t, "user"), "content", json_incref((json_t *)input));
        return 0;
    }
    if (json_array_size(input) == 0)
        return server_refuse(t->problem, 400, "input",
                             "input is missing, empty or neither a string nor an array of items");
    for (size_t i = 0; i < json_array_size(input); i++) {
        snprintf(path, sizeof path, "input[%zu]", i);
        t->origin = path;
        if (add_item(t, json_array_get(input, i), path) != 0)
            return -1;
    }
    t->origin = NULL;
    return 0;
}

/* ---- Tools -------------------------------------------------------------------------------------------- */

static int add_tools(server_translation *t, const json_t *body) {
    const json_t *tools = NULL;
    char path[32];
    if (server_json_array(body, "tools", t->problem, &tools) != 0)
        return -1;
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        snprintf(path, sizeof path, "tools[%zu]", i);
        const char *type = server_need_string(tool, path, "type", t->problem);
        if (type == NULL ||
            (strcmp(type, "function") == 0 && server_need_string(tool, path, "name", t->problem) == NULL))
            return -1;
        if (strcmp(type, "function") != 0)
            return server_refuse(t->problem, 400, path,
                                 "%s has the type \"%.40s\"; only tools of the type function are supported",
                                 path, type);
        server_add_tool(t, tool, "parameters");
    }
    return 0;
}

/* {"type": "function", "name": NAME}, or a choice among some; the chat API wraps the names. */
static int add_choice(server_translation *t, const json_t *body) {
    const json_t *choice = server_json_get(body, "tool_choice"), *tools = NULL;
    const char *type = json_string_value(json_object_get(choice, "type"));
    if (type != NULL && strcmp(type, "function") == 0) {
        const char *name = server_need_string(choice, "tool_choice", "name", t->problem);
        if (name != NULL)
            server_put(t, t->body, "tool_choice", server_named_function(t, name));
        return name != NULL ? 0 : -1;
    }
    if (type == NULL || strcmp(type, "allowed_tools") != 0) {
        server_copy(t, body, "tool_choice", t->body, "tool_choice");
        return 0;
    }
    if (server_json_array(choice, "tools", t->problem, &tools) != 0)
        return -1;
    json_t *made = json_object(), *allowed = json_object(), *named = json_array();
    server_put(t, made, "type", server_string("allowed_tools"));
    server_put(t, made, "allowed_tools", allowed);
    server_put(t, t->body, "tool_choice", made);
    server_copy(t, choice, "mode", allowed, "mode");
    server_put(t, allowed, "tools", named);
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const char *name =
            server_need_string(json_array_get(tools, i), "tool_choice.tools", "name", t->problem);
        if (name == NULL)
            return -1;
        server_append(t, named, server_named_function(t, name));
    }
    return 0;
}

/* ---- Other fields ------------------------------------------------------------------------------------- */

/* What would need a store, other servers or a loop of calls. */
static int refuse_unsupported(const json_t *body, server_problem *problem) {
    static const char *const refused[] = {"previous_response_id", "conversation", "prompt"};
    int background = 0;
    int64_t top_logprobs = 0;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (server_json_get(body, refused[i]) != NULL)
            return server_refuse(problem, 400, refused[i],
                                 "%s is not supported: this server keeps no responses; send the whole input",
                                 refused[i]);
    if (server_json_bool(body, "background", problem, &background) != 0 ||
        server_json_integer(body, "top_logprobs", 0, SERVER_MAX_TOP_LOGPROBS, problem, &top_logprobs) != 0)
        return -1;
    if (background)
        return server_refuse(problem, 400, "background",
                             "background is not supported: this server keeps no "
                             "responses");
    if (top_logprobs > 0)
        return server_refuse(problem, 400, "top_logprobs",
                             "top_logprobs is not supported here; /v1/chat/completions has it");
    return 0;
}

static int add_settings(server_translation *t, const json_t *body) {
    const json_t *text = NULL, *reasoning = NULL, *format = NULL;
    const char *effort = NULL;
    int64_t n_tokens = 1;
    if (server_json_object(body, "text", t->problem, &text) != 0 ||
        server_json_object(text, "format", t->problem, &format) != 0 ||
        server_json_object(body, "reasoning", t->problem, &reasoning) != 0 ||
        server_json_string(reasoning, "effort", t->problem, &effort) != 0 ||
        server_json_integer(body, "max_output_tokens", 1, INT32_MAX, t->problem, &n_tokens) != 0)
        return -1;
    server_copy(t, body, "max_output_tokens", t->body, "max_tokens");
    if (format != NULL)
        server_put(t, t->body, "response_format", json_incref((json_t *)format));
    if (server_json_get(body, "chat_template_kwargs") != NULL)
        server_copy(t, body, "chat_template_kwargs", t->body, "chat_template_kwargs");
    else if (effort != NULL)
        server_put_thinking(t, strcmp(effort, "none") != 0);
    return 0;
}

static int translate(server_translation *t, const json_t *body) {
    static const char *const same[] = {
        "model",      "stream",     "temperature", "top_p",    "parallel_tool_calls", "top_k",
        "min_p",      "seed",       "stop",        "priority", "cache_salt",          "repetition_penalty",
        "ignore_eos", "min_tokens", "user"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        server_copy(t, body, same[i], t->body, same[i]);
    if (refuse_unsupported(body, t->problem) != 0 || add_input(t, body) != 0 || add_tools(t, body) != 0 ||
        add_choice(t, body) != 0 || add_settings(t, body) != 0)
        return -1;
    return server_translation_finish(t);
}

/* A response repeats what was asked: the fields of `echoed`, without braces. */
static int keep_echo(const json_t *body, server_generation *generation, server_problem *problem) {
    static const struct {
        const char *name, *absent;
    } kept[] = {{"instructions", "null"},
                {"max_output_tokens", "null"},
                {"metadata", "{}"},
                {"parallel_tool_calls", "true"},
                {"temperature", "null"},
                {"tool_choice", "\"auto\""},
                {"tools", "[]"},
                {"top_p", "null"},
                {"text", "{\"format\":{\"type\":\"text\"}}"},
                {"reasoning", "{\"effort\":null,\"summary\":null}"}};
    server_text text = {0};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        const json_t *value = server_json_get(body, kept[i].name);
        char *dumped = value != NULL ? server_json_dump(value, problem) : NULL;
        server_text_printf(&text, "\"%s\":", kept[i].name);
        server_text_puts(&text, dumped != NULL ? dumped : kept[i].absent);
        server_text_puts(&text, ",");
        mb_free(dumped);
    }
    server_text_put(&text, "", 1);
    if (text.failed || problem->status != 0) {
        server_text_free(&text);
        return server_refuse(problem, 503, NULL, "no memory for the request");
    }
    generation->echoed = text.bytes;
    return 0;
}

int server_read_responses(const server_reading *reading, const json_t *body, server_generation *generation,
                          server_problem *problem) {
    static const server_renaming names[] = {{"max_tokens", "max_output_tokens"},
                                            {"messages", "input"},
                                            {"function.name", "name"},
                                            {"function.parameters", "parameters"},
                                            {"response_format", "text.format"}};
    server_translation translation;
    server_json_warn_unknown(body, fields);
    server_translation_open(&translation, problem);
    int status = translate(&translation, body);
    if (status == 0 && (status = server_read_chat(reading, translation.body, generation, problem)) != 0)
        server_translation_rename(&translation, names, sizeof names / sizeof *names);
    server_translation_close(&translation);
    return status == 0 ? keep_echo(body, generation, problem) : status;
}
