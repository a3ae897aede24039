/* json.h - jansson with our allocator, our limits and our error sentences. */
#ifndef MB_MODEL_JSON_H
#define MB_MODEL_JSON_H

#include <jansson.h>
#include <stddef.h>

#include "base/status.h"

/* Parses a whole document (any value at the top). Refused with MB_ERR_FORMAT and line and column:
 * ill-formed JSON or UTF-8, a key twice in one object, NUL in strings, nesting deeper than 100. Accepted
 * as Python's json does: integers of any size, NaN, Infinity and -Infinity (see mb_json_number). */
mb_status mb_json_parse(const char *path, const char *bytes, size_t n_bytes, json_t **root);

/* The same for configuration files. Other programs read these with Python, where a key may be there
 * twice: the last value counts. Here too, and a warning names the key. */
mb_status mb_json_parse_config(const char *path, const char *bytes, size_t n_bytes, json_t **root);

/* Instead of json_decref: the tree lies in memory of our allocator. NULL allowed. */
void mb_json_free(json_t *root);

/* The text of a number that json_t cannot hold (an integer beyond 64 bits, NaN, Infinity, -Infinity), exactly
 * as the document spells it; NULL for every other value. jansson sees an object in its place. */
const char *mb_json_number(const json_t *value);
/* 1 for an object that is not such a number. */
int mb_json_is_object(const json_t *value);

/* For error sentences: text in double quotes, cut to `capacity` and with everything unprintable as '?'.
 * Returns buffer. */
const char *mb_quote(char *buffer, size_t capacity, const char *text);
/* A value as a sentence shows it: 17, "yarn", true, null, an array, an object. */
const char *mb_json_describe(char *buffer, size_t capacity, const json_t *value);

/* As json.dumps(value, ensure_ascii=False) of Python prints it: ", " and ": " between items, shortest floats.
 * This is what |tojson gives in chat templates. *text is freed with mb_free. */
mb_status mb_json_dump_python(const json_t *value, char **text);

/* As Python's repr of a float: the fewest digits that read back as the same number. It must be finite. */
enum { MB_JSON_REAL_ROOM = 64 };
void mb_json_format_real(char text[MB_JSON_REAL_ROOM], double value);

#endif
