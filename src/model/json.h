/* json.h - jansson with our allocator, our limits and our error sentences. */
#ifndef MB_MODEL_JSON_H
#define MB_MODEL_JSON_H

#include <jansson.h>
#include <stddef.h>

#include "base/status.h"

/* Parses a whole document (any value at the top). Refused with MB_ERR_FORMAT and line and column: ill-formed
 * JSON or UTF-8, duplicate keys, NUL in keys, nesting deeper than 100. Free with json_decref. */
mb_status mb_json_parse(const char *path, const char *bytes, size_t n_bytes, json_t **root);

/* For error sentences: text in double quotes, cut to `capacity` and with everything unprintable as '?'.
 * Returns buffer. */
const char *mb_quote(char *buffer, size_t capacity, const char *text);
/* A value as a sentence shows it: 17, "yarn", true, null, an array, an object. */
const char *mb_json_describe(char *buffer, size_t capacity, const json_t *value);

/* As json.dumps(value, ensure_ascii=False) of Python prints it: ", " and ": " between items, shortest floats.
 * This is what |tojson gives in chat templates. *text is freed with mb_free. */
mb_status mb_json_dump_python(const json_t *value, char **text);

#endif
