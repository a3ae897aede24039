/*
 * json_read.h - the JSON of a request, read field by field. Every reader refuses a wrong value with a
 * sentence that names the field, and counts null as absent, as OpenAI's and vLLM's servers do.
 */
#ifndef MB_SERVER_JSON_READ_H
#define MB_SERVER_JSON_READ_H

#include <jansson.h>
#include <stdint.h>

#include "server/problem.h"

enum { SERVER_JSON_DEPTH = 100 };

/* To be asked before jansson sees a text that anybody may have written: jansson recurses, and takes a hundred bytes
 * for one of "{},{},{}". Returns -1 with a problem when the text is nested deeper than SERVER_JSON_DEPTH, or its
 * values would take hundreds of megabytes; else 0. The text need not be JSON. */
int server_json_check_extent(const char *bytes, size_t n_bytes, server_problem *problem);

/* The document, an object; NULL with a problem when the bytes are not JSON, not UTF-8, no object, or larger than
 * server_json_check_extent allows. A NUL in a string is refused. Free with json_decref. */
json_t *server_json_parse(const char *bytes, size_t n_bytes, server_problem *problem);

/* The value of a field; NULL when it is absent or null. */
const json_t *server_json_get(const json_t *object, const char *field);

/* Each leaves *value as it is when the field is absent, and returns 0, or -1 with a problem. */
int server_json_number(const json_t *object, const char *field, double minimum, double maximum,
                       server_problem *problem, double *value);
int server_json_float(const json_t *object, const char *field, double minimum, double maximum,
                      server_problem *problem, float *value);
int server_json_integer(const json_t *object, const char *field, int64_t minimum, int64_t maximum,
                        server_problem *problem, int64_t *value);
int server_json_int32(const json_t *object, const char *field, int32_t minimum, int32_t maximum,
                      server_problem *problem, int32_t *value);
int server_json_bool(const json_t *object, const char *field, server_problem *problem, int *value);
int server_json_string(const json_t *object, const char *field, server_problem *problem, const char **value);
/* Arrays and objects. */
int server_json_array(const json_t *object, const char *field, server_problem *problem, const json_t **value);
int server_json_object(const json_t *object, const char *field, server_problem *problem,
                       const json_t **value);

/* An array of token ids in [0, vocab). *ids is freed with mb_free; NULL for an empty or absent array. */
int server_json_ids(const json_t *array, const char *field, int32_t vocab, server_problem *problem,
                    int32_t **ids, size_t *n_ids);

/* What a value is, for a sentence: "a string", "null". */
const char *server_json_kind(const json_t *value);

/* Warns once for each name of a field of `object` that is not in `known`, the names separated by spaces, and
 * once more when there are more names than can be remembered. Thread-safe. */
void server_json_warn_unknown(const json_t *object, const char *known);

/* The value as JSON text, freed with mb_free_text; NULL with a problem when there is no memory. */
char *server_json_dump(const json_t *value, server_problem *problem);

#endif
