#include "model/answer/tools.h"

#include <stdlib.h>
#include <string.h>

#include "model/json.h"

/* ---- The list ----------------------------------------------------------------------------------------- */

static mb_status check_tool(const json_t *tool, size_t i) {
    const json_t *function = json_object_get(tool, "function");
    const json_t *type = json_object_get(tool, "type");
    if (!mb_json_is_object(tool))
        return mb_fail(MB_ERR_ARGUMENT, "tools[%zu] is not an object", i);
    if (type && strcmp(json_is_string(type) ? json_string_value(type) : "", "function") != 0)
        return mb_fail(MB_ERR_ARGUMENT, "tools[%zu].type is not \"function\", the only type of tool here", i);
    if (!function || !mb_json_is_object(function))
        return mb_fail(MB_ERR_ARGUMENT, "tools[%zu].function is not an object", i);
    const json_t *name = json_object_get(function, "name");
    if (!json_is_string(name) || json_string_length(name) == 0)
        return mb_fail(MB_ERR_ARGUMENT, "tools[%zu].function.name is not a text of at least one letter", i);
    for (const char *c = json_string_value(name); *c; c++)
        if ((unsigned char)*c <= ' ' || strchr("<>\"\\", *c))
            return mb_fail(MB_ERR_ARGUMENT,
                           "tools[%zu].function.name has a character that no name can have; use letters, "
                           "digits, - and _",
                           i);
    const json_t *parameters = json_object_get(function, "parameters");
    if (parameters && !json_is_null(parameters) && !mb_json_is_object(parameters))
        return mb_fail(MB_ERR_ARGUMENT, "tools[%zu].function.parameters is not an object, a JSON schema", i);
    return MB_OK;
}

mb_status mb_tools_parse(const char *tools_json, json_t **tools) {
    MB_TRY(mb_json_parse("tools", tools_json, strlen(tools_json), tools));
    mb_status status = MB_OK;
    if (!json_is_array(*tools))
        status = mb_fail(MB_ERR_ARGUMENT, "tools is not an array");
    for (size_t i = 0; status == MB_OK && i < json_array_size(*tools); i++)
        status = check_tool(json_array_get(*tools, i), i);
    if (status != MB_OK) {
        mb_json_free(*tools);
        *tools = NULL;
    }
    return status;
}

const json_t *mb_tools_function(const json_t *tools, size_t i) {
    return json_object_get(json_array_get(tools, i), "function");
}

const json_t *mb_tools_find(const json_t *tools, const char *name) {
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *function = mb_tools_function(tools, i);
        if (strcmp(json_string_value(json_object_get(function, "name")), name) == 0)
            return function;
    }
    return NULL;
}

/* ---- Types -------------------------------------------------------------------------------------------- */

/* JSON schema's names, and those of Python that people write instead. */
static unsigned type_by_name(const char *name) {
    static const struct {
        const char *name;
        unsigned types;
    } known[] = {
        {"string", MB_TYPE_STRING},
        {"str", MB_TYPE_STRING},
        {"text", MB_TYPE_STRING},
        {"integer", MB_TYPE_INTEGER},
        {"int", MB_TYPE_INTEGER},
        {"number", MB_TYPE_NUMBER | MB_TYPE_INTEGER},
        {"float", MB_TYPE_NUMBER | MB_TYPE_INTEGER},
        {"boolean", MB_TYPE_BOOLEAN},
        {"bool", MB_TYPE_BOOLEAN},
        {"object", MB_TYPE_OBJECT},
        {"dict", MB_TYPE_OBJECT},
        {"array", MB_TYPE_ARRAY},
        {"list", MB_TYPE_ARRAY},
        {"null", MB_TYPE_NULL},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0)
            return known[i].types;
    return MB_TYPE_ANY;
}

static unsigned type_of_value(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_STRING:
        return MB_TYPE_STRING;
    case JSON_INTEGER:
        return MB_TYPE_INTEGER;
    case JSON_REAL:
        return MB_TYPE_NUMBER;
    case JSON_TRUE:
    case JSON_FALSE:
        return MB_TYPE_BOOLEAN;
    case JSON_ARRAY:
        return MB_TYPE_ARRAY;
    case JSON_NULL:
        return MB_TYPE_NULL;
    case JSON_OBJECT:
        break;
    }
    return mb_json_number(value) ? MB_TYPE_NUMBER | MB_TYPE_INTEGER : MB_TYPE_OBJECT;
}

/* "#/$defs/Color" within the parameters; keys with ~ or % are not looked for. NULL: not there. */
static const json_t *follow(const json_t *root, const char *reference) {
    char key[256];
    if (*reference++ != '#')
        return NULL;
    while (root && *reference == '/') {
        size_t n = strcspn(++reference, "/");
        if (n >= sizeof key)
            return NULL;
        memcpy(key, reference, n);
        key[n] = '\0';
        reference += n;
        root =
            json_is_array(root) ? json_array_get(root, strtoul(key, NULL, 10)) : json_object_get(root, key);
    }
    return root;
}

/* Schemas that refer to themselves or branch without end are cut off at this many looks. */
enum { MAX_LOOKS = 200 };

static unsigned types_of(const json_t *schema, const json_t *root, int *n_looks);

static unsigned any_of(const json_t *schemas, const json_t *root, int *n_looks) {
    unsigned types = 0;
    for (size_t i = 0; i < json_array_size(schemas); i++)
        types |= types_of(json_array_get(schemas, i), root, n_looks);
    return types ? types : MB_TYPE_ANY;
}

static unsigned of_values(const json_t *values) {
    unsigned types = 0;
    for (size_t i = 0; i < json_array_size(values); i++)
        types |= type_of_value(json_array_get(values, i));
    return types ? types : MB_TYPE_ANY;
}

static unsigned of_names(const json_t *type) {
    if (json_is_string(type))
        return type_by_name(json_string_value(type));
    unsigned types = 0;
    for (size_t i = 0; i < json_array_size(type); i++) {
        const json_t *name = json_array_get(type, i);
        types |= json_is_string(name) ? type_by_name(json_string_value(name)) : MB_TYPE_ANY;
    }
    return types ? types : MB_TYPE_ANY;
}

static unsigned types_of(const json_t *schema, const json_t *root, int *n_looks) {
    unsigned types = MB_TYPE_ANY;
    if (!json_is_object(schema) || ++*n_looks > MAX_LOOKS)
        return types;
    const json_t *reference = json_object_get(schema, "$ref"), *constant = json_object_get(schema, "const");
    if (json_is_string(reference))
        types &= types_of(follow(root, json_string_value(reference)), root, n_looks);
    if (constant)
        types &= type_of_value(constant);
    types &= of_names(json_object_get(schema, "type"));
    types &= of_values(json_object_get(schema, "enum"));
    types &= any_of(json_object_get(schema, "anyOf"), root, n_looks);
    types &= any_of(json_object_get(schema, "oneOf"), root, n_looks);
    const json_t *all = json_object_get(schema, "allOf");
    for (size_t i = 0; i < json_array_size(all); i++)
        types &= types_of(json_array_get(all, i), root, n_looks);
    return types ? types : MB_TYPE_ANY;
}

const json_t *mb_tools_parameter(const json_t *function, const char *parameter) {
    const json_t *parameters = json_object_get(function, "parameters");
    return json_object_get(json_object_get(parameters, "properties"), parameter);
}

unsigned mb_tools_types(const json_t *function, const char *parameter) {
    const json_t *schema = mb_tools_parameter(function, parameter);
    int n_looks = 0;
    return schema ? types_of(schema, json_object_get(function, "parameters"), &n_looks) : 0;
}
