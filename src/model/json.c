#include "model/json.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/log.h"
#include "model/json_alloc.h"
#include "model/json_prepare.h"

/* Parses once. *root is NULL on failure; `error` says more when the failure is MB_ERR_FORMAT. */
static mb_status load(const char *path, const mb_json_text *text, size_t flags, json_t **root,
                      json_error_t *error) {
    mb_json_enter();
    *root = json_loadb(text->bytes, text->n_bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL | flags, error);
    if (mb_json_leave()) {
        mb_json_free(*root);
        *root = NULL;
        return mb_fail(MB_ERR_MEMORY, "%s: no memory while parsing JSON of %zu bytes", path, text->n_bytes);
    }
    if (*root)
        return MB_OK;
    return mb_fail(MB_ERR_FORMAT, "%s: not valid JSON at line %d, column %d: %s", path, error->line,
                   error->column, error->text);
}

static mb_status parse(const char *path, const char *bytes, size_t n_bytes, int last_key_counts,
                       json_t **root) {
    *root = NULL;
    MB_TRY(mb_lfs_pointer_check(path, bytes, n_bytes));
    MB_TRY(mb_bom_check(path, bytes, n_bytes));
    mb_json_text text;
    json_error_t error = {0};
    mb_status status = mb_json_prepare(path, bytes, n_bytes, &text);
    if (status == MB_OK)
        status = load(path, &text, JSON_REJECT_DUPLICATES, root, &error);
    if (status == MB_ERR_FORMAT && last_key_counts && json_error_code(&error) == json_error_duplicate_key) {
        mb_log(MB_LOG_WARN, "%s: line %d: %s; the last one counts", path, error.line, error.text);
        status = load(path, &text, 0, root, &error);
    }
    mb_free(text.owned);
    return status;
}

mb_status mb_json_parse(const char *path, const char *bytes, size_t n_bytes, json_t **root) {
    return parse(path, bytes, n_bytes, 0, root);
}

mb_status mb_json_parse_config(const char *path, const char *bytes, size_t n_bytes, json_t **root) {
    return parse(path, bytes, n_bytes, 1, root);
}

void mb_json_free(json_t *root) {
    mb_json_enter();
    json_decref(root);
    mb_json_leave();
}

const char *mb_json_number(const json_t *value) {
    const json_t *text =
        json_is_object(value) && json_object_size(value) == 1 ? json_object_get(value, "") : NULL;
    const char *bytes = json_string_value(text);
    return json_string_length(text) > 1 && bytes[0] == '\0' ? bytes + 1 : NULL;
}

int mb_json_is_object(const json_t *value) {
    return json_is_object(value) && !mb_json_number(value);
}

const char *mb_quote(char *buffer, size_t capacity, const char *text) {
    size_t n = 0;
    buffer[n++] = '"';
    for (; *text && n < capacity - 5; text++) /* room for "...\"" and the zero */
        buffer[n++] = *text >= ' ' && *text <= '~' ? *text : '?';
    snprintf(buffer + n, capacity - n, "%s\"", *text ? "..." : "");
    return buffer;
}

const char *mb_json_describe(char *buffer, size_t capacity, const json_t *value) {
    const char *number = mb_json_number(value);
    if (number) {
        int is_cut = strlen(number) >= capacity;
        snprintf(buffer, capacity, "%.*s%s", is_cut ? (int)capacity - 4 : -1, number, is_cut ? "..." : "");
        return buffer;
    }
    switch (json_typeof(value)) {
    case JSON_INTEGER:
        snprintf(buffer, capacity, "%lld", (long long)json_integer_value(value));
        return buffer;
    case JSON_REAL:
        snprintf(buffer, capacity, "%.9g", json_real_value(value));
        if (strspn(buffer, "-0123456789") == strlen(buffer)) /* 32.0 where 32 was wanted must not read "32" */
            snprintf(buffer, capacity, "%.1f", json_real_value(value));
        return buffer;
    case JSON_STRING:
        return mb_quote(buffer, capacity, json_string_value(value));
    case JSON_ARRAY:
        return "an array";
    case JSON_OBJECT:
        return "an object";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        break;
    }
    return "null";
}
