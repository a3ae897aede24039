/* tools.h - a request's tools: which there are, and what types their parameters may have. */
#ifndef MB_MODEL_ANSWER_TOOLS_H
#define MB_MODEL_ANSWER_TOOLS_H

#include <jansson.h>

#include "base/status.h"

enum {
    MB_TYPE_STRING = 1,
    MB_TYPE_INTEGER = 2,
    MB_TYPE_NUMBER = 4, /* a schema's "number" allows integers, so it sets both bits */
    MB_TYPE_BOOLEAN = 8,
    MB_TYPE_OBJECT = 16,
    MB_TYPE_ARRAY = 32,
    MB_TYPE_NULL = 64,
    MB_TYPE_ANY = 127,
};

/* tools_json in the form of the OpenAI API, checked: names are there and not empty, parameters are an
 * object. *tools is freed with mb_json_free. */
mb_status mb_tools_parse(const char *tools_json, json_t **tools);

/* The "function" object of tool i. */
const json_t *mb_tools_function(const json_t *tools, size_t i);
/* The "function" object of the tool with that name; NULL when there is none. */
const json_t *mb_tools_find(const json_t *tools, const char *name);

/* The schema of a parameter; NULL when the function's schema does not know it. */
const json_t *mb_tools_parameter(const json_t *function, const char *parameter);
/* The types that the function's schema allows a parameter, MB_TYPE_ bits; 0 when the schema does not know
 * it. */
unsigned mb_tools_types(const json_t *function, const char *parameter);

#endif
