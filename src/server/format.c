#include "server/format.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "server/json_read.h"

int server_set_grammar(const server_reading *reading, mb_grammar_kind kind, const char *text,
                       const char *field, server_generation *generation, server_problem *problem) {
    if (generation->grammar != NULL)
        return server_refuse(problem, 400, field, "%s is one form too many: the answer can have only one",
                             field);
    mb_status status =
        mb_grammar_open(reading->model, kind, text, text != NULL ? strlen(text) : 0, &generation->grammar);
    if (status == MB_OK)
        return 0;
    return server_refuse(problem, status == MB_ERR_MEMORY ? 503 : 400, field, "%s", mb_last_error());
}

/* The grammar of a JSON value, written out as JSON text. */
static int set_from_json(const server_reading *reading, mb_grammar_kind kind, const json_t *value,
                         const char *field, server_generation *generation, server_problem *problem) {
    char *text = server_json_dump(value, problem);
    if (text == NULL)
        return -1;
    int status = server_set_grammar(reading, kind, text, field, generation, problem);
    mb_free(text);
    return status;
}

/* A schema as an object, or as a string that holds one. */
static int set_schema(const server_reading *reading, const json_t *schema, const char *field,
                      server_generation *generation, server_problem *problem) {
    if (json_is_string(schema))
        return server_set_grammar(reading, MB_GRAMMAR_JSON_SCHEMA, json_string_value(schema), field,
                                  generation, problem);
    if (!json_is_object(schema) && !json_is_boolean(schema))
        return server_refuse(problem, 400, field, "%s has no JSON schema", field);
    return set_from_json(reading, MB_GRAMMAR_JSON_SCHEMA, schema, field, generation, problem);
}

/* ---- OpenAI ------------------------------------------------------------------------------------------- */

static int read_response_format(const server_reading *reading, const json_t *format,
                                server_generation *generation, server_problem *problem) {
    static const char field[] = "response_format";
    const char *type = NULL;
    const json_t *named = NULL;
    if (server_json_string(format, "type", problem, &type) != 0)
        return -1;
    if (type != NULL && strcmp(type, "text") == 0)
        return 0;
    if (type != NULL && strcmp(type, "json_object") == 0)
        return server_set_grammar(reading, MB_GRAMMAR_JSON_OBJECT, NULL, field, generation, problem);
    if (type == NULL || strcmp(type, "json_schema") != 0)
        return server_refuse(
            problem, 400, field,
            "response_format has the type \"%.40s\"; it must be text, json_object or json_schema",
            type != NULL ? type : "");
    if (server_json_object(format, "json_schema", problem, &named) != 0)
        return -1;
    /* Chat completions wrap the schema, responses have it beside the type. */
    return set_schema(reading, server_json_get(named != NULL ? named : format, "schema"), field, generation,
                      problem);
}

/* ---- vLLM --------------------------------------------------------------------------------------------- */

/* One of the forms; `prefix` is "guided_" or "". *n_found counts them. */
static int read_forms(const server_reading *reading, const json_t *object, const char *prefix,
                      server_generation *generation, server_problem *problem) {
    static const struct {
        const char *name;
        mb_grammar_kind kind;
    } forms[] = {{"json", MB_GRAMMAR_JSON_SCHEMA},
                 {"regex", MB_GRAMMAR_REGEX},
                 {"choice", MB_GRAMMAR_CHOICE},
                 {"grammar", MB_GRAMMAR_EBNF}};
    char field[64];
    int json_object = 0;
    snprintf(field, sizeof field, "%sstructural_tag", prefix);
    if (server_json_get(object, field) != NULL)
        return server_refuse(problem, 400, field,
                             "%s is not supported; use a JSON schema, a regular expression or a grammar",
                             field);
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        snprintf(field, sizeof field, "%s%s", prefix, forms[i].name);
        const json_t *value = server_json_get(object, field);
        int status = 0;
        if (value == NULL)
            continue;
        if (forms[i].kind == MB_GRAMMAR_JSON_SCHEMA)
            status = set_schema(reading, value, field, generation, problem);
        else if (forms[i].kind == MB_GRAMMAR_CHOICE)
            status = set_from_json(reading, MB_GRAMMAR_CHOICE, value, field, generation, problem);
        else if (json_is_string(value))
            status = server_set_grammar(reading, forms[i].kind, json_string_value(value), field, generation,
                                        problem);
        else
            status = server_refuse(problem, 400, field, "%s is %s; it must be a string", field,
                                   server_json_kind(value));
        if (status != 0)
            return -1;
    }
    snprintf(field, sizeof field, "%sjson_object", prefix);
    if (server_json_bool(object, field, problem, &json_object) != 0)
        return -1;
    return json_object ? server_set_grammar(reading, MB_GRAMMAR_JSON_OBJECT, NULL, field, generation, problem)
                       : 0;
}

int server_read_format(const server_reading *reading, const json_t *body, server_generation *generation,
                       server_problem *problem) {
    const json_t *format = NULL, *structured = NULL;
    if (server_json_object(body, "response_format", problem, &format) != 0 ||
        server_json_object(body, "structured_outputs", problem, &structured) != 0)
        return -1;
    if (format != NULL && read_response_format(reading, format, generation, problem) != 0)
        return -1;
    if (structured != NULL && read_forms(reading, structured, "", generation, problem) != 0)
        return -1;
    return read_forms(reading, body, "guided_", generation, problem);
}
