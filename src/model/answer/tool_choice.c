/* tool_choice.c - tool_choice as a grammar: the text for MB_GRAMMAR_STRUCTURE that forces calls. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "model/answer/parser.h"
#include "model/answer/tools.h"
#include "model/json.h"

/* A model that likes calls must come to an end. */
enum { MAX_CALLS = 32 };

/* ---- The choice --------------------------------------------------------------------------------------- */

/* What tool_choice says: the use, and the functions that may be called. */
typedef struct choice {
    mb_tool_use use;
    const json_t **functions; /* [n] mb_free */
    size_t n;
    int is_one; /* a named tool */
} choice;

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static mb_status add_function(const json_t *tools, const char *name, choice *to) {
    const json_t *function = mb_tools_find(tools, name);
    char quoted[80];
    if (!function)
        return mb_fail(MB_ERR_ARGUMENT, "tool_choice names the tool %s, which is not among tools",
                       mb_quote(quoted, sizeof quoted, name));
    to->functions[to->n++] = function;
    return MB_OK;
}

static mb_status room_for(size_t n, choice *to) {
    to->functions = mb_malloc_array(n > 0 ? n : 1, sizeof *to->functions);
    return to->functions ? MB_OK : mb_fail(MB_ERR_MEMORY, "no memory for tool_choice");
}

static mb_status choose_all(const json_t *tools, mb_tool_use use, choice *to) {
    to->use = use;
    MB_TRY(room_for(json_array_size(tools), to));
    for (size_t i = 0; i < json_array_size(tools); i++)
        to->functions[to->n++] = mb_tools_function(tools, i);
    return MB_OK;
}

static mb_status choose_allowed(const json_t *tools, const json_t *allowed, choice *to) {
    const json_t *names = json_object_get(allowed, "tools");
    const char *mode = text_of(allowed, "mode");
    if (strcmp(mode, "auto") != 0 && strcmp(mode, "required") != 0)
        return mb_fail(MB_ERR_ARGUMENT,
                       "tool_choice.allowed_tools.mode is neither \"auto\" nor \"required\"");
    if (json_array_size(names) == 0)
        return mb_fail(MB_ERR_ARGUMENT, "tool_choice.allowed_tools.tools is not a list of at least one tool");
    to->use = strcmp(mode, "auto") == 0 ? MB_TOOL_USE_FREE : MB_TOOL_USE_FORCED;
    MB_TRY(room_for(json_array_size(names), to));
    for (size_t i = 0; i < json_array_size(names); i++)
        MB_TRY(
            add_function(tools, text_of(json_object_get(json_array_get(names, i), "function"), "name"), to));
    return MB_OK;
}

static mb_status choose_by_object(const json_t *tools, const json_t *object, choice *to) {
    const char *type = text_of(object, "type");
    if (strcmp(type, "allowed_tools") == 0)
        return choose_allowed(tools, json_object_get(object, "allowed_tools"), to);
    const json_t *name = json_object_get(json_object_get(object, "function"), "name");
    if (strcmp(type, "function") != 0 || !json_is_string(name))
        return mb_fail(MB_ERR_ARGUMENT,
                       "tool_choice is not {\"type\": \"function\", \"function\": {\"name\": "
                       "...}}");
    to->use = MB_TOOL_USE_FORCED;
    to->is_one = 1;
    MB_TRY(room_for(1, to));
    return add_function(tools, json_string_value(name), to);
}

static mb_status choose(const json_t *tools, const json_t *value, choice *to) {
    int has_tools = json_array_size(tools) > 0;
    const char *word = json_string_value(value);
    if (!value || json_is_null(value))
        word = has_tools ? "auto" : "none";
    if (word && strcmp(word, "none") == 0)
        return MB_OK;
    if (!has_tools)
        return mb_fail(MB_ERR_ARGUMENT, "tool_choice needs tools, and the request has none");
    if (word && strcmp(word, "auto") == 0)
        return choose_all(tools, MB_TOOL_USE_FREE, to);
    if (word && strcmp(word, "required") == 0)
        return choose_all(tools, MB_TOOL_USE_FORCED, to);
    if (json_is_object(value))
        return choose_by_object(tools, value, to);
    return mb_fail(MB_ERR_ARGUMENT,
                   "tool_choice is neither \"none\", \"auto\", \"required\" nor an object that "
                   "names a tool");
}

/* ---- The structure ------------------------------------------------------------------------------------ */

static void put(mb_text_buffer *out, const char *text) {
    mb_text_append_string(out, text);
}

static void put_escaped(mb_text_buffer *out, const char *text) {
    for (; *text; text++) {
        char escape[8];
        mb_text_append(out, escape, mb_json_escape_byte(*text, escape));
    }
}

static void put_json(mb_text_buffer *out, const json_t *value) {
    char *text;
    if (mb_json_dump_python(value, &text) != MB_OK)
        out->out_of_memory = 1;
    else
        put(out, text);
    mb_free(text);
}

/* The schema as an object that has the wanted members too, when it has none of that name; `in` may be
 * NULL. */
static void put_schema(mb_text_buffer *out, const json_t *in, const char *const *members, size_t n_members) {
    const char *key, *separator = "";
    json_t *value;
    put(out, "{\"json_schema\": {");
    for (size_t i = 0; i < n_members; i += 2)
        if (!json_object_get(in, members[i])) {
            put(out, separator);
            put(out, "\"");
            put(out, members[i]);
            put(out, "\": ");
            put(out, members[i + 1]);
            separator = ", ";
        }
    json_object_foreach((json_t *)in, key, value) {
        put(out, separator);
        put(out, "\"");
        put_escaped(out, key);
        put(out, "\": ");
        put_json(out, value);
        separator = ", ";
    }
    put(out, "}}");
}

/* Without parameters: {}. With properties, no others, as nobody else knows them. A schema that is composed
 * of others stays as it is. */
static void put_arguments(mb_text_buffer *out, const json_t *schema) {
    static const char *const members[] = {"type",  "\"object\"", "additionalProperties",
                                          "false", "properties", "{}"};
    static const char *const composed[] = {"$ref", "anyOf", "oneOf", "allOf", "patternProperties"};
    size_t n = json_object_size(schema) == 0 ? 6 : json_object_get(schema, "properties") ? 4 : 2;
    for (size_t i = 0; i < sizeof composed / sizeof *composed; i++)
        if (json_object_get(schema, composed[i]))
            n = 0;
    put_schema(out, json_is_object(schema) ? schema : NULL, members, n);
}

static void put_json_call(mb_text_buffer *out, const json_t *function) {
    put(out, "{\"sequence\": [{\"text\": \"<tool_call>\\n{\\\"name\\\": \\\"");
    put_escaped(out, text_of(function, "name"));
    put(out, "\\\", \\\"arguments\\\": \"}, ");
    put_arguments(out, json_object_get(function, "parameters"));
    put(out, ", {\"text\": \"}\\n</tool_call>\"}]}");
}

/* Definitions that the parameter's schema may refer to: "#/$defs/..." is meant from the root. */
static void put_parameter_schema(mb_text_buffer *out, const json_t *root, const json_t *schema) {
    static const char *const places[] = {"$defs", "definitions"};
    const char *members[4];
    char *texts[2] = {NULL, NULL};
    size_t n = 0;
    for (size_t i = 0; i < 2; i++) {
        const json_t *definitions = json_object_get(root, places[i]);
        if (!definitions)
            continue;
        if (mb_json_dump_python(definitions, &texts[i]) != MB_OK) {
            out->out_of_memory = 1;
            continue;
        }
        members[n++] = places[i];
        members[n++] = texts[i];
    }
    put_schema(out, json_is_object(schema) ? schema : NULL, members, n);
    mb_free(texts[0]);
    mb_free(texts[1]);
}

/* A value and its closing tag. Strings stand there as they are, so they are any text up to the tag. */
static void put_value(mb_text_buffer *out, const json_t *function, const char *key, const json_t *schema) {
    static const char close[] = "\\n</parameter>\\n";
    const json_t *words = json_object_get(schema, "enum");
    if (!(mb_tools_types(function, key) & MB_TYPE_STRING)) {
        put_parameter_schema(out, json_object_get(function, "parameters"), schema);
        put(out, ", {\"text\": \"");
    } else if (json_array_size(words) > 0) {
        put(out, "{\"choice\": [");
        for (size_t i = 0; i < json_array_size(words); i++) {
            const json_t *word = json_array_get(words, i);
            put(out, i > 0 ? ", {\"text\": \"" : "{\"text\": \"");
            char *text = NULL;
            if (!json_is_string(word) && mb_json_dump_python(word, &text) != MB_OK)
                out->out_of_memory = 1;
            put_escaped(out, text ? text : json_is_string(word) ? json_string_value(word) : "");
            put(out, "\"}");
            mb_free(text);
        }
        put(out, "]}, {\"text\": \"");
    } else {
        put(out, "{\"until\": \"");
    }
    put(out, close);
    put(out, "\"}");
}

static int is_required(const json_t *parameters, const char *key) {
    const json_t *required = json_object_get(parameters, "required");
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        if (name && strcmp(name, key) == 0)
            return 1;
    }
    return 0;
}

static void put_xml_call(mb_text_buffer *out, const json_t *function) {
    const json_t *parameters = json_object_get(function, "parameters");
    const char *key;
    json_t *schema;
    put(out, "{\"sequence\": [{\"text\": \"<tool_call>\\n<function=");
    put_escaped(out, text_of(function, "name"));
    put(out, ">\\n\"}, ");
    json_object_foreach(json_object_get(parameters, "properties"), key, schema) {
        int may_be_absent = !is_required(parameters, key);
        put(out, may_be_absent ? "{\"repeat\": " : "");
        put(out, "{\"sequence\": [{\"text\": \"<parameter=");
        put_escaped(out, key);
        put(out, ">\\n\"}, ");
        put_value(out, function, key, schema);
        put(out, "]}");
        put(out, may_be_absent ? ", \"min\": 0, \"max\": 1}, " : ", ");
    }
    put(out, "{\"text\": \"</function>\\n</tool_call>\"}]}");
}

static void put_structure(mb_text_buffer *out, const choice *from, mb_tool_format format, int parallel) {
    char end[80];
    put(out, "{\"repeat\": {\"choice\": [");
    for (size_t i = 0; i < from->n; i++) {
        put(out, i > 0 ? ", " : "");
        (format == MB_TOOLS_XML ? put_xml_call : put_json_call)(out, from->functions[i]);
    }
    snprintf(end, sizeof end, "]}, \"min\": 1, \"max\": %d, \"separator\": {\"text\": \"\\n\"}}",
             from->is_one || !parallel ? 1 : MAX_CALLS);
    put(out, end);
}

mb_status mb_answer_tool_choice(const mb_answer_formats *formats, const char *tools_json,
                                const char *tool_choice, int parallel, mb_tool_use *use, char **structure) {
    MB_TRY(mb_need(use, "mb_answer_tool_choice: use"));
    MB_TRY(mb_need(structure, "mb_answer_tool_choice: structure"));
    *use = MB_TOOL_USE_NONE;
    *structure = NULL;
    MB_TRY(mb_need(formats, "mb_answer_tool_choice: formats"));
    json_t *tools = NULL, *value = NULL;
    choice chosen = {.use = MB_TOOL_USE_NONE};
    mb_status status = tools_json ? mb_tools_parse(tools_json, &tools) : MB_OK;
    if (status == MB_OK && tool_choice)
        status = mb_json_parse("tool_choice", tool_choice, strlen(tool_choice), &value);
    if (status == MB_OK)
        status = choose(tools, value, &chosen);
    if (status == MB_OK && chosen.use == MB_TOOL_USE_FORCED) {
        mb_text_buffer out = {0};
        put_structure(&out, &chosen, formats->tools, parallel);
        status = mb_text_finish(&out, "the grammar of calls", structure);
    }
    if (status == MB_OK)
        *use = chosen.use;
    mb_free(chosen.functions);
    mb_json_free(tools);
    mb_json_free(value);
    return status;
}
