#include "server/text.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

void server_text_free(server_text *text) {
    mb_free(text->bytes);
    *text = (server_text){0};
}

void server_text_clear(server_text *text) {
    text->n_bytes = 0;
    text->failed = 0;
}

void server_text_put(server_text *text, const char *bytes, size_t n_bytes) {
    if (n_bytes == 0 || text->failed)
        return;
    if (n_bytes > SIZE_MAX - text->n_bytes ||
        mb_grow((void **)&text->bytes, &text->capacity, text->n_bytes + n_bytes, 1) != 0) {
        text->failed = 1;
        return;
    }
    memcpy(text->bytes + text->n_bytes, bytes, n_bytes);
    text->n_bytes += n_bytes;
}

void server_text_puts(server_text *text, const char *string) {
    server_text_put(text, string, strlen(string));
}

void server_text_printf(server_text *text, const char *format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (n > 0)
        server_text_put(text, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
}

/* The length of the UTF-8 character at bytes[0], 0 when there is none: no overlong forms, no surrogates. */
static size_t character_length(const unsigned char *bytes, size_t n) {
    unsigned char first = bytes[0];
    if (first < 0x80)
        return 1;
    size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || length > n)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
    if ((first == 0xe0 && bytes[1] < 0xa0) || (first == 0xed && bytes[1] > 0x9f) ||
        (first == 0xf0 && bytes[1] < 0x90) || (first == 0xf4 && bytes[1] > 0x8f))
        return 0;
    return length;
}

static void put_escape(server_text *text, unsigned char byte) {
    static const char names[] = "\b\t\n\f\r\"\\";
    static const char letters[] = "btnfr\"\\";
    const char *found = byte != 0 ? strchr(names, byte) : NULL;
    if (found != NULL)
        server_text_put(text, (char[]){'\\', letters[found - names]}, 2);
    else
        server_text_printf(text, "\\u%04x", byte);
}

void server_text_json(server_text *text, const char *bytes, size_t n_bytes) {
    const unsigned char *from = (const unsigned char *)bytes;
    size_t start = 0, i = 0;
    server_text_put(text, "\"", 1);
    while (i < n_bytes) {
        size_t length = character_length(from + i, n_bytes - i);
        if (length > 0 && from[i] >= 0x20 && from[i] != '"' && from[i] != '\\' && from[i] != 0x7f) {
            i += length;
            continue;
        }
        server_text_put(text, bytes + start, i - start);
        if (length > 0)
            put_escape(text, from[i]);
        else
            server_text_puts(text, "\xef\xbf\xbd");
        start = ++i;
    }
    server_text_put(text, bytes + start, n_bytes - start);
    server_text_put(text, "\"", 1);
}

void server_text_json_string(server_text *text, const char *string) {
    server_text_json(text, string, strlen(string));
}

void server_text_json_number(server_text *text, double value) {
    server_text_printf(text, "%.9g", isfinite(value) ? value : -9999.0);
}

void server_text_drop(server_text *text, size_t n_bytes) {
    text->n_bytes -= n_bytes;
    memmove(text->bytes, text->bytes + n_bytes, text->n_bytes);
}
