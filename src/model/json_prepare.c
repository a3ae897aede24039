#include "model/json_prepare.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

enum { MAX_DEPTH = 100 };

static const char opening[] = "{\"\":\"\\u0000", closing[] = "\"}";

/* Letters, digits, signs and points: what numbers and literals are made of. */
static int is_token_byte(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '+' ||
           c == '-' || c == '.' || c == '_';
}

static size_t token_length(const char *bytes, size_t n_bytes) {
    size_t n = 0;
    while (n < n_bytes && is_token_byte(bytes[n]))
        n++;
    return n;
}

static int equals(const char *token, size_t n, const char *literal) {
    return n == strlen(literal) && memcmp(token, literal, n) == 0;
}

/* An integer by JSON's grammar that does not fit into 64 bits with a sign. */
static int is_large_integer(const char *token, size_t n) {
    enum { DIGITS = 19 }; /* of the largest integer that fits */
    size_t sign = n > 0 && token[0] == '-', n_digits = n - sign;
    if (n_digits < DIGITS || token[sign] == '0')
        return 0;
    for (size_t i = sign; i < n; i++)
        if (token[i] < '0' || token[i] > '9')
            return 0;
    if (n_digits > DIGITS)
        return 1;
    char number[DIGITS + 2] = {0};
    memcpy(number, token, n);
    errno = 0;
    strtoll(number, NULL, 10);
    return errno == ERANGE;
}

static int needs_rewriting(const char *token, size_t n) {
    return is_large_integer(token, n) || equals(token, n, "NaN") || equals(token, n, "Infinity") ||
           equals(token, n, "-Infinity");
}

static size_t put(char *out, size_t at, const char *bytes, size_t n_bytes) {
    if (out)
        memcpy(out + at, bytes, n_bytes);
    return at + n_bytes;
}

/* Bytes of the string that begins at bytes[0], with both quotes; up to the end when it does not end. */
static mb_status string_length(const char *path, const char *bytes, size_t n_bytes, size_t *length) {
    size_t i = 1;
    for (; i < n_bytes && bytes[i] != '"'; i++) {
        if (bytes[i] != '\\')
            continue;
        if (n_bytes - i > 5 && memcmp(bytes + i, "\\u0000", 6) == 0)
            return mb_fail(MB_ERR_FORMAT, "%s: not valid JSON here: a string holds \\u0000; take it out",
                           path);
        i++;
    }
    *length = i < n_bytes ? i + 1 : n_bytes;
    return MB_OK;
}

/* Writes the document to `out`, or only counts when out is NULL. */
static mb_status rewrite(const char *path, const char *bytes, size_t n_bytes, char *out, size_t *n_out,
                         size_t *n_rewritten) {
    size_t depth = 0, at = 0, length;
    *n_rewritten = 0;
    for (size_t i = 0; i < n_bytes; i += length) {
        char c = bytes[i];
        length = 1;
        if (c == '"')
            MB_TRY(string_length(path, bytes + i, n_bytes - i, &length));
        else if (is_token_byte(c))
            length = token_length(bytes + i, n_bytes - i);
        else if (c == '{' || c == '[')
            depth++;
        else if ((c == '}' || c == ']') && depth > 0)
            depth--;
        if (depth > MAX_DEPTH)
            return mb_fail(MB_ERR_FORMAT, "%s: JSON nested deeper than %d levels at byte %zu", path,
                           MAX_DEPTH, i);
        int is_rewritten = is_token_byte(c) && needs_rewriting(bytes + i, length);
        if (is_rewritten)
            at = put(out, at, opening, sizeof opening - 1);
        at = put(out, at, bytes + i, length);
        if (is_rewritten)
            at = put(out, at, closing, sizeof closing - 1);
        *n_rewritten += (size_t)is_rewritten;
    }
    *n_out = at;
    return MB_OK;
}

mb_status mb_json_prepare(const char *path, const char *bytes, size_t n_bytes, mb_json_text *text) {
    *text = (mb_json_text){bytes, n_bytes, NULL};
    size_t n_out, n_rewritten;
    MB_TRY(rewrite(path, bytes, n_bytes, NULL, &n_out, &n_rewritten));
    if (n_rewritten == 0)
        return MB_OK;
    text->owned = mb_malloc(n_out);
    if (!text->owned)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for JSON of %zu bytes", path, n_out);
    text->bytes = text->owned;
    text->n_bytes = n_out;
    return rewrite(path, bytes, n_bytes, text->owned, &n_out, &n_rewritten);
}
