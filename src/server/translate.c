#include "server/translate.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void server_translation_open(server_translation *translation, server_problem *problem) {
    *translation = (server_translation){.body = json_object(),
                                        .messages = json_array(),
                                        .tools = json_array(),
                                        .origins = json_array(),
                                        .problem = problem};
}

void server_translation_close(server_translation *translation) {
    json_decref(translation->body);
    json_decref(translation->messages);
    json_decref(translation->tools);
    json_decref(translation->origins);
}

int server_translation_finish(server_translation *translation) {
    /* Templates want a content, also beside calls alone. */
    for (size_t i = 0; i < json_array_size(translation->messages); i++) {
        json_t *message = json_array_get(translation->messages, i);
        if (json_object_get(message, "content") == NULL)
            server_put(translation, message, "content", server_string(""));
    }
    server_put(translation, translation->body, "messages", json_incref(translation->messages));
    if (json_array_size(translation->tools) > 0)
        server_put(translation, translation->body, "tools", json_incref(translation->tools));
    if (translation->failed)
        server_refuse(translation->problem, 503, NULL, "no memory for the request");
    return translation->problem->status != 0 ? -1 : 0;
}

/* "messages[2]" is the origin of the third message. Returns the bytes read, 0: there is none. */
static size_t read_origin(const server_translation *translation, const char *text, const char **origin) {
    char *end;
    if (strncmp(text, "messages[", 9) != 0)
        return 0;
    unsigned long i = strtoul(text + 9, &end, 10);
    *origin = json_string_value(json_array_get(translation->origins, i));
    return *origin != NULL && *end == ']' ? (size_t)(end + 1 - text) : 0;
}

static int is_in_name(char c) {
    return isalnum((unsigned char)c) || c == '_' || c == '"';
}

/* Copies a sentence or the path of a field. Words of common English are names only where they begin it. */
static void rename_in(const server_translation *translation, const server_renaming *names, size_t n_names,
                      char *text, size_t capacity) {
    char made[sizeof translation->problem->message];
    size_t n = 0;
    for (const char *at = text; *at != '\0' && n + 1 < sizeof made;) {
        const char *name = NULL;
        size_t n_read = 0;
        if (at == text || !is_in_name(at[-1]))
            n_read = read_origin(translation, at, &name);
        for (size_t i = 0; i < n_names && n_read == 0 && (at == text || !is_in_name(at[-1])); i++) {
            size_t length = strlen(names[i].chat);
            if (strncmp(at, names[i].chat, length) == 0 && !is_in_name(at[length]) &&
                (at == text || strpbrk(names[i].chat, "_.") != NULL)) {
                name = names[i].here;
                n_read = length;
            }
        }
        if (n_read > 0)
            n += (size_t)snprintf(made + n, sizeof made - n, "%s", name);
        else
            made[n++] = *at;
        at += n_read > 0 ? n_read : 1;
    }
    made[n < sizeof made ? n : sizeof made - 1] = '\0';
    snprintf(text, capacity, "%s", made);
}

void server_translation_rename(server_translation *translation, const server_renaming *names,
                               size_t n_names) {
    server_problem *problem = translation->problem;
    rename_in(translation, names, n_names, problem->field, sizeof problem->field);
    rename_in(translation, names, n_names, problem->message, sizeof problem->message);
}

void server_put(server_translation *translation, json_t *object, const char *field, json_t *value) {
    translation->failed |= json_object_set_new(object, field, value) != 0;
}

void server_append(server_translation *translation, json_t *array, json_t *value) {
    translation->failed |= json_array_append_new(array, value) != 0;
}

void server_copy(server_translation *translation, const json_t *from, const char *field, json_t *object,
                 const char *name) {
    json_t *value = json_object_get(from, field);
    if (value != NULL)
        server_put(translation, object, name, json_incref(value));
}

json_t *server_string(const char *text) {
    return json_string_nocheck(text);
}

json_t *server_add_message(server_translation *translation, const char *role) {
    json_t *message = json_object();
    server_put(translation, message, "role", server_string(role));
    server_append(translation, translation->messages, message);
    server_append(translation, translation->origins,
                  translation->origin != NULL ? server_string(translation->origin) : json_null());
    return message;
}

json_t *server_last_message(const server_translation *translation, const char *role) {
    size_t n = json_array_size(translation->messages);
    json_t *last = n > 0 ? json_array_get(translation->messages, n - 1) : NULL;
    const char *found = json_string_value(json_object_get(last, "role"));
    return found != NULL && strcmp(found, role) == 0 ? last : NULL;
}

json_t *server_array_of(server_translation *translation, json_t *object, const char *name) {
    if (json_object_get(object, name) == NULL)
        server_put(translation, object, name, json_array());
    return json_object_get(object, name);
}

void server_add_tool(server_translation *translation, const json_t *tool, const char *schema) {
    json_t *made = json_object(), *function = json_object();
    server_copy(translation, tool, "name", function, "name");
    server_copy(translation, tool, "description", function, "description");
    server_copy(translation, tool, schema, function, "parameters");
    server_put(translation, made, "type", server_string("function"));
    server_put(translation, made, "function", function);
    server_append(translation, translation->tools, made);
}

json_t *server_named_function(server_translation *translation, const char *name) {
    json_t *made = json_object(), *function = json_object();
    server_put(translation, function, "name", server_string(name));
    server_put(translation, made, "type", server_string("function"));
    server_put(translation, made, "function", function);
    return made;
}

void server_add_call(server_translation *translation, json_t *message, const char *id, const char *name,
                     json_t *arguments) {
    json_t *call = server_named_function(translation, name);
    server_put(translation, call, "id", server_string(id));
    server_put(translation, json_object_get(call, "function"), "arguments", arguments);
    server_append(translation, server_array_of(translation, message, "tool_calls"), call);
}

const char *server_need_string(const json_t *object, const char *path, const char *name,
                               server_problem *problem) {
    const json_t *value = json_object_get(object, name);
    char field[96];
    if (json_is_string(value))
        return json_string_value(value);
    snprintf(field, sizeof field, "%s.%s", path, name);
    server_refuse(problem, 400, field, "%s is %s; it must be a string", field,
                  value != NULL ? server_json_kind(value) : "missing");
    return NULL;
}

void server_put_thinking(server_translation *translation, int is_on) {
    json_t *kwargs = json_object();
    server_put(translation, kwargs, "enable_thinking", json_boolean(is_on));
    server_put(translation, translation->body, "chat_template_kwargs", kwargs);
}
