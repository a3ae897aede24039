#include "model/json.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

enum { MAX_DEPTH = 100 };

/* jansson does not always say that memory ran out, and may even go on without a member: so this thread notes
 * it. */
static _Thread_local int out_of_memory;

static void *allocate(size_t n_bytes) {
    void *pointer = mb_malloc(n_bytes);
    if (!pointer)
        out_of_memory = 1;
    return pointer;
}

static void use_our_allocator(void) {
    json_set_alloc_funcs(allocate, mb_free);
}

/* jansson recurses once per level, so the depth is bounded before it sees the text. */
static mb_status check_depth(const char *path, const char *bytes, size_t n_bytes) {
    size_t depth = 0;
    int in_string = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        char c = bytes[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = 0;
        } else if (c == '"') {
            in_string = 1;
        } else if (c == '{' || c == '[') {
            if (++depth > MAX_DEPTH)
                return mb_fail(MB_ERR_FORMAT, "%s: JSON nested deeper than %d levels at byte %zu", path,
                               MAX_DEPTH, i);
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return MB_OK;
}

mb_status mb_json_parse(const char *path, const char *bytes, size_t n_bytes, json_t **root) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, use_our_allocator);
    *root = NULL;
    MB_TRY(check_depth(path, bytes, n_bytes));
    json_error_t error;
    out_of_memory = 0;
    *root = json_loadb(bytes, n_bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (out_of_memory) {
        json_decref(*root);
        *root = NULL;
        return mb_fail(MB_ERR_MEMORY, "%s: no memory while parsing JSON of %zu bytes", path, n_bytes);
    }
    if (*root)
        return MB_OK;
    return mb_fail(MB_ERR_FORMAT, "%s: not valid JSON at line %d, column %d: %s", path, error.line,
                   error.column, error.text);
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
