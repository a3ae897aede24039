/*
 * json_dump.c - JSON as Python's json.dumps(value, ensure_ascii=False) writes it, which is what |tojson of
 * Hugging Face's chat templates does: models were trained on exactly these spaces, escapes and floats.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/json.h"
#include "model/text_buffer.h"

static void append_string(mb_text_buffer *out, const char *text, size_t n_bytes) {
    mb_text_append_string(out, "\"");
    size_t plain = 0; /* start of what can be copied as it is */
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= ' ' && c != '"' && c != '\\')
            continue;
        static const char names[] = {
            ['\b'] = 'b', ['\f'] = 'f', ['\n'] = 'n', ['\r'] = 'r', ['\t'] = 't', ['"'] = '"', ['\\'] = '\\'};
        char escape[8];
        if (names[c])
            snprintf(escape, sizeof escape, "\\%c", names[c]);
        else
            snprintf(escape, sizeof escape, "\\u%04x", c);
        mb_text_append(out, text + plain, i - plain);
        mb_text_append_string(out, escape);
        plain = i + 1;
    }
    mb_text_append(out, text + plain, n_bytes - plain);
    mb_text_append_string(out, "\"");
}

/* float.__repr__: the fewest digits that read back as the same number; scientific outside of 1e-4 to 1e16. */
void mb_json_format_real(char text[MB_JSON_REAL_ROOM], double value) {
    char scientific[40];
    int precision = 0;
    do
        snprintf(scientific, sizeof scientific, "%.*e", precision, value);
    while (strtod(scientific, NULL) != value && ++precision < 17);

    /* [-]d.ddde[+-]xx, the point being the locale's: take the digits and the exponent apart. */
    char digits[24];
    size_t n = 0;
    const char *exponent_at = strchr(scientific, 'e');
    for (const char *c = scientific; c < exponent_at; c++)
        if (isdigit((unsigned char)*c))
            digits[n++] = *c;
    long exponent = strtol(exponent_at + 1, NULL, 10);

    size_t length = 0;
    if (scientific[0] == '-')
        text[length++] = '-';
    if (exponent < -4 || exponent >= 16) {
        text[length++] = digits[0];
        if (n > 1) {
            text[length++] = '.';
            memcpy(text + length, digits + 1, n - 1);
            length += n - 1;
        }
        length += (size_t)snprintf(text + length, MB_JSON_REAL_ROOM - length, "e%c%02ld",
                                   exponent < 0 ? '-' : '+', labs(exponent));
    } else {
        /* Digit i stands at decimal place exponent - i; what is not among the digits is 0. */
        long last = exponent + 1 > (long)n - 1 ? exponent + 1 : (long)n - 1;
        for (long i = exponent < 0 ? exponent : 0; i <= last; i++) {
            if (i == exponent + 1)
                text[length++] = '.';
            text[length++] = i >= 0 && i < (long)n ? digits[i] : '0';
        }
    }
    text[length] = '\0';
}

static void append_value(mb_text_buffer *out, const json_t *value);

static void append_array(mb_text_buffer *out, const json_t *array) {
    size_t i;
    json_t *item;
    mb_text_append_string(out, "[");
    json_array_foreach((json_t *)array, i, item) {
        if (i > 0)
            mb_text_append_string(out, ", ");
        append_value(out, item);
    }
    mb_text_append_string(out, "]");
}

static void append_object(mb_text_buffer *out, const json_t *object) {
    const char *key, *separator = "";
    json_t *item;
    mb_text_append_string(out, "{");
    json_object_foreach((json_t *)object, key, item) { /* in the order of the document */
        mb_text_append_string(out, separator);
        append_string(out, key, strlen(key));
        mb_text_append_string(out, ": ");
        append_value(out, item);
        separator = ", ";
    }
    mb_text_append_string(out, "}");
}

/* Recursion is bounded by mb_json_parse's limit on depth. */
static void append_value(mb_text_buffer *out, const json_t *value) {
    char number[MB_JSON_REAL_ROOM];
    const char *large = mb_json_number(value);
    if (large) { /* Python's integers have no limit: the digits are kept */
        mb_text_append_string(out, large);
        return;
    }
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        append_object(out, value);
        break;
    case JSON_ARRAY:
        append_array(out, value);
        break;
    case JSON_STRING:
        append_string(out, json_string_value(value), json_string_length(value));
        break;
    case JSON_INTEGER:
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(value));
        mb_text_append_string(out, number);
        break;
    case JSON_REAL:
        mb_json_format_real(number, json_real_value(value));
        mb_text_append_string(out, number);
        break;
    case JSON_TRUE:
        mb_text_append_string(out, "true");
        break;
    case JSON_FALSE:
        mb_text_append_string(out, "false");
        break;
    case JSON_NULL:
        mb_text_append_string(out, "null");
        break;
    }
}

mb_status mb_json_dump_python(const json_t *value, char **text) {
    mb_text_buffer out = {0};
    append_value(&out, value);
    return mb_text_finish(&out, "JSON", text);
}
