#include "model/chat/chat_messages.h"

#include <string.h>

#include "base/alloc.h"
#include "model/json.h"
#include "model/json_prepare.h"
#include "model/json_values.h"

enum { SHOWN = 64 };

/* A failure within jansson is noted by the allocator (mb_json_leave), so results are not looked at here. */
static void set(json_t *object, const char *key, json_t *value) {
    json_object_set_new(object, key, value);
}

/* ---- Content ------------------------------------------------------------------------------------------ */

/* The text of a part; NULL after a recorded failure. */
static const json_t *text_of_part(const json_t *part, size_t i, size_t k) {
    const json_t *type = json_object_get(part, "type"), *text = json_object_get(part, "text");
    char shown[SHOWN];
    if (!mb_json_is_object(part) || !json_is_string(type))
        mb_fail(MB_ERR_ARGUMENT,
                "messages[%zu].content[%zu] is %s; a part is {\"type\": \"text\", \"text\": ...}", i, k,
                mb_json_describe(shown, sizeof shown, part));
    else if (strcmp(json_string_value(type), "text") != 0)
        mb_fail(MB_ERR_ARGUMENT, "messages[%zu].content[%zu] is of type %s; the model reads text alone", i, k,
                mb_json_describe(shown, sizeof shown, type));
    else if (!json_is_string(text))
        mb_fail(MB_ERR_ARGUMENT, "messages[%zu].content[%zu].text is %s; it must be a string", i, k,
                text ? mb_json_describe(shown, sizeof shown, text) : "missing");
    else
        return text;
    return NULL;
}

/* The texts of the parts, one below the other, as vLLM joins them. */
static mb_status join_parts(json_t *message, const json_t *parts) {
    json_t *joined = json_string("");
    for (size_t k = 0; k < json_array_size(parts); k++) {
        json_t *longer = json_sprintf("%s%s%s", json_string_value(joined), k > 0 ? "\n" : "",
                                      json_string_value(json_object_get(json_array_get(parts, k), "text")));
        json_decref(joined);
        joined = longer;
    }
    set(message, "content", joined);
    return MB_OK;
}

static mb_status prepare_content(const mb_chat_variant *variant, json_t *message, size_t i) {
    json_t *content = json_object_get(message, "content");
    char shown[SHOWN];
    if (!content)
        return MB_OK;
    if (json_is_array(content)) {
        for (size_t k = 0; k < json_array_size(content); k++)
            if (!text_of_part(json_array_get(content, k), i, k))
                return MB_ERR_ARGUMENT;
        return variant->prints_parts ? MB_OK : join_parts(message, content);
    }
    if (!json_is_string(content))
        return mb_fail(MB_ERR_ARGUMENT, "messages[%zu].content is %s; it must be a string or parts of text",
                       i, mb_json_describe(shown, sizeof shown, content));
    if (!variant->prints_strings && variant->prints_parts)
        set(message, "content", json_pack("[{s:s, s:O}]", "type", "text", "text", content));
    return MB_OK;
}

/* ---- Calls of tools ----------------------------------------------------------------------------------- */

/* Arguments that are JSON in a string, as clients send them, become what they say when it is an object. */
static mb_status parse_arguments(json_t *call) {
    const json_t *arguments = json_object_get(call, "arguments");
    mb_json_text text;
    if (!json_is_string(arguments))
        return MB_OK;
    size_t n = json_string_length(arguments);
    mb_status status =
        mb_json_prepare("arguments", n > 0 ? json_string_value(arguments) : "{}", n > 0 ? n : 2, &text);
    if (status != MB_OK) /* too deep or with a zero byte: no JSON that we read, so it stays a string */
        return status == MB_ERR_MEMORY ? status : MB_OK;
    json_t *parsed = json_loadb(text.bytes, text.n_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    mb_free(text.owned);
    if (mb_json_is_object(parsed))
        set(call, "arguments", parsed);
    else
        json_decref(parsed);
    return MB_OK;
}

static mb_status prepare_call(const mb_chat_variant *variant, json_t *call, size_t i, size_t k) {
    json_t *function = json_object_get(call, "function");
    if (json_is_object(function) && json_object_size(function) > 0)
        call = function;
    if (!json_is_object(call) || !json_is_string(json_object_get(call, "name")))
        return mb_fail(MB_ERR_ARGUMENT,
                       "messages[%zu].tool_calls[%zu] has no function with a string \"name\"", i, k);
    if (!json_object_get(call, "arguments"))
        return mb_fail(MB_ERR_ARGUMENT, "messages[%zu].tool_calls[%zu] has no \"arguments\"", i, k);
    return variant->prints_json_strings ? MB_OK : parse_arguments(call);
}

static mb_status prepare_calls(const mb_chat_variant *variant, json_t *message, size_t i) {
    json_t *calls = json_object_get(message, "tool_calls");
    if (!calls)
        return MB_OK;
    if (!json_is_array(calls))
        return mb_fail(MB_ERR_ARGUMENT, "messages[%zu].tool_calls is not an array", i);
    if (json_array_size(calls) > 0 && !mb_jinja_mentions(variant->parsed, "tool_calls"))
        return mb_fail(
            MB_ERR_ARGUMENT,
            "messages[%zu].tool_calls: the chat template would leave them out; write them into the "
            "content",
            i);
    for (size_t k = 0; k < json_array_size(calls); k++)
        MB_TRY(prepare_call(variant, json_array_get(calls, k), i, k));
    return MB_OK;
}

/* ---- Messages ----------------------------------------------------------------------------------------- */

static mb_status prepare_role(const mb_chat_variant *variant, json_t *message, size_t i) {
    const json_t *role = json_object_get(message, "role");
    char shown[SHOWN];
    if (!json_is_string(role))
        return mb_fail(MB_ERR_ARGUMENT, "messages[%zu].role is %s; it must be a string", i,
                       role ? mb_json_describe(shown, sizeof shown, role) : "missing");
    if (strcmp(json_string_value(role), "developer") == 0 && !variant->prints_developers)
        set(message, "role", json_string("system"));
    return MB_OK;
}

static void drop_nulls(json_t *message) {
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(message, next, key, value) {
        if (json_is_null(value))
            json_object_del(message, key);
    }
}

static void name_reasoning(json_t *message) {
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    json_t *reasoning = NULL;
    for (size_t k = 0; k < sizeof names / sizeof *names && !reasoning; k++)
        reasoning = json_object_get(message, names[k]);
    if (!reasoning)
        return;
    json_object_set(message, "reasoning_content", reasoning);
    if (!json_object_get(message, "thinking"))
        json_object_set(message, "thinking", reasoning);
}

mb_status mb_chat_messages_prepare(const mb_chat_variant *variant, json_t *messages) {
    char shown[SHOWN];
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return mb_fail(MB_ERR_ARGUMENT, "messages must be a JSON array of at least one message");
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);
        if (!mb_json_is_object(message))
            return mb_fail(MB_ERR_ARGUMENT, "messages[%zu] is %s; it must be an object", i,
                           mb_json_describe(shown, sizeof shown, message));
        drop_nulls(message);
        name_reasoning(message);
        MB_TRY(prepare_role(variant, message, i));
        MB_TRY(prepare_content(variant, message, i));
        MB_TRY(prepare_calls(variant, message, i));
    }
    return MB_OK;
}

mb_status mb_chat_messages_check_printed(const json_t *messages, const char *text) {
    static const char *const usual[] = {"system", "user", "assistant", "tool", "developer"};
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *message = json_array_get(messages, i);
        const json_t *role = json_object_get(message, "role"), *content = json_object_get(message, "content");
        int is_usual = 0;
        for (size_t k = 0; k < sizeof usual / sizeof *usual; k++)
            is_usual |= strcmp(json_string_value(role), usual[k]) == 0;
        char shown[SHOWN];
        if (!is_usual && json_is_string(content) && !strstr(text, json_string_value(content)))
            return mb_fail(MB_ERR_ARGUMENT,
                           "messages[%zu].role is %s, and the chat template leaves out "
                           "messages of that role",
                           i, mb_json_describe(shown, sizeof shown, role));
    }
    return MB_OK;
}
