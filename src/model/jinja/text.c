/* text.c - values as text: Python's str(), repr() and json.dumps(). Models were trained on exactly these. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <utf8proc.h>

#include "model/jinja/value.h"
#include "model/json.h"

/* ---- Building ----------------------------------------------------------------------------------------- */

void jinja_put(jinja_builder *out, const char *bytes, size_t n_bytes) {
    if (n_bytes == 0 || out->status != MB_OK)
        return;
    if (n_bytes > out->capacity - out->n_bytes) {
        size_t capacity =
            2 * out->capacity > out->n_bytes + n_bytes ? 2 * out->capacity : out->n_bytes + n_bytes + 64;
        char *grown = jinja_alloc(&out->run->arena, capacity);
        if (!grown) {
            out->status = jinja_no_memory(out->run);
            return;
        }
        if (out->n_bytes > 0)
            memcpy(grown, out->bytes, out->n_bytes);
        out->bytes = grown;
        out->capacity = capacity;
    }
    memcpy(out->bytes + out->n_bytes, bytes, n_bytes);
    out->n_bytes += n_bytes;
    out->status = jinja_charge_bytes(out->run, n_bytes);
}

void jinja_put_text(jinja_builder *out, const char *text) {
    jinja_put(out, text, strlen(text));
}

void jinja_put_string(jinja_builder *out, const jinja_string *string) {
    jinja_put(out, string->bytes, string->n_bytes);
}

mb_status jinja_built(jinja_builder *out, jinja_value *value) {
    MB_TRY(out->status);
    return jinja_string_over(out->run, out->bytes, out->n_bytes, value);
}

/* ---- Numbers ------------------------------------------------------------------------------------------ */

/* The digits of a float are found by trying. */
enum { STEPS_OF_A_REAL = 50 };

static void put_real(jinja_builder *out, double real) {
    char text[MB_JSON_REAL_ROOM];
    if (out->status == MB_OK)
        out->status = jinja_charge(out->run, STEPS_OF_A_REAL);
    if (!isfinite(real))
        strcpy(text, isnan(real) ? "nan" : real < 0 ? "-inf" : "inf");
    else
        mb_json_format_real(text, real);
    jinja_put_text(out, text);
}

static void put_integer(jinja_builder *out, int64_t integer) {
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)integer);
    jinja_put_text(out, text);
}

/* ---- repr --------------------------------------------------------------------------------------------- */

static int is_printable(int32_t code) {
    if (code == ' ' || (code > ' ' && code < 0x7F))
        return 1;
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return 0;
    default:
        return 1;
    }
}

static void repr_string(jinja_builder *out, const jinja_string *s) {
    int has_single = s->n_bytes > 0 && memchr(s->bytes, '\'', s->n_bytes) != NULL;
    int has_double = s->n_bytes > 0 && memchr(s->bytes, '"', s->n_bytes) != NULL;
    char quote = has_single && !has_double ? '"' : '\'', escape[16];
    if (out->status == MB_OK)
        out->status = jinja_charge(out->run, s->n_bytes / 4);
    jinja_put(out, &quote, 1);
    for (size_t i = 0, n; i < s->n_bytes; i += n) {
        int32_t code;
        n = jinja_next_char(s->bytes + i, s->n_bytes - i, &code);
        if (code == quote || code == '\\')
            snprintf(escape, sizeof escape, "\\%c", (char)code);
        else if (code == '\n' || code == '\t' || code == '\r')
            snprintf(escape, sizeof escape, "\\%c", code == '\n' ? 'n' : code == '\t' ? 't' : 'r');
        else if (is_printable(code))
            escape[0] = '\0';
        else
            snprintf(escape, sizeof escape,
                     code < 0x100     ? "\\x%02x"
                     : code < 0x10000 ? "\\u%04x"
                                      : "\\U%08x",
                     (unsigned)code);
        if (escape[0])
            jinja_put_text(out, escape);
        else
            jinja_put(out, s->bytes + i, n);
    }
    jinja_put(out, &quote, 1);
}

static mb_status repr_items(jinja_builder *out, const char *open, const jinja_list *list, const char *close) {
    jinja_put_text(out, open);
    for (size_t i = 0; i < list->n; i++) {
        if (i > 0)
            jinja_put_text(out, ", ");
        MB_TRY(jinja_put_repr(out, list->items[i]));
    }
    jinja_put_text(out, close);
    return out->status;
}

static mb_status repr_dict(jinja_builder *out, const jinja_dict *dict) {
    jinja_put_text(out, "{");
    for (size_t i = 0; i < dict->n; i++) {
        if (i > 0)
            jinja_put_text(out, ", ");
        MB_TRY(jinja_put_repr(out, dict->pairs[i].key));
        jinja_put_text(out, ": ");
        MB_TRY(jinja_put_repr(out, dict->pairs[i].value));
    }
    jinja_put_text(out, "}");
    return out->status;
}

static mb_status repr_view(jinja_builder *out, const jinja_list *list) {
    jinja_put_text(out, list->type_name);
    return repr_items(out, "([", list, "])");
}

static mb_status repr_range(jinja_builder *out, const jinja_list *range) {
    char text[80];
    int n = snprintf(text, sizeof text, "range(%lld, %lld", (long long)range->start, (long long)range->stop);
    if (range->step != 1)
        n += snprintf(text + n, sizeof text - (size_t)n, ", %lld", (long long)range->step);
    snprintf(text + n, sizeof text - (size_t)n, ")");
    jinja_put_text(out, text);
    return out->status;
}

static mb_status repr_nested(jinja_builder *out, jinja_value v) {
    switch (v.kind) {
    case JINJA_LIST:
        return repr_items(out, "[", v.of.list, "]");
    case JINJA_TUPLE:
        return repr_items(out, "(", v.of.list, v.of.list->n == 1 ? ",)" : ")");
    case JINJA_RANGE:
        return repr_range(out, v.of.list);
    case JINJA_VIEW:
        return repr_view(out, v.of.list);
    case JINJA_DICT:
        return repr_dict(out, v.of.dict);
    case JINJA_NAMESPACE:
        jinja_put_text(out, "<Namespace ");
        MB_TRY(repr_dict(out, v.of.dict));
        jinja_put_text(out, ">");
        return out->status;
    default:
        return jinja_stop(out->run, "a %s has no text%s", jinja_type_name(v),
                          v.kind == JINJA_ITERATOR ? "; use the filter list or join first" : "");
    }
}

mb_status jinja_put_repr(jinja_builder *out, jinja_value v) {
    switch (v.kind) {
    case JINJA_UNDEFINED:
        jinja_put_text(out, "Undefined");
        break;
    case JINJA_NONE:
        jinja_put_text(out, "None");
        break;
    case JINJA_BOOL:
        jinja_put_text(out, v.of.boolean ? "True" : "False");
        break;
    case JINJA_INT:
        put_integer(out, v.of.integer);
        break;
    case JINJA_BIG:
        jinja_put_string(out, v.of.string);
        break;
    case JINJA_FLOAT:
        put_real(out, v.of.real);
        break;
    case JINJA_STRING:
        repr_string(out, v.of.string);
        break;
    default:
        MB_TRY(jinja_enter(out->run));
        MB_TRY(jinja_charge(out->run, 1));
        MB_TRY(repr_nested(out, v));
        jinja_leave(out->run);
    }
    return out->status;
}

mb_status jinja_put_str(jinja_builder *out, jinja_value v) {
    if (v.kind == JINJA_STRING)
        jinja_put_string(out, v.of.string);
    else if (!jinja_is_undefined(v))
        return jinja_put_repr(out, v);
    return out->status;
}

mb_status jinja_str(jinja_run *run, jinja_value v, const jinja_string **string) {
    if (v.kind != JINJA_STRING) {
        jinja_builder out = {.run = run};
        MB_TRY(jinja_put_str(&out, v));
        MB_TRY(jinja_built(&out, &v));
    }
    *string = v.of.string;
    return MB_OK;
}

/* ---- JSON --------------------------------------------------------------------------------------------- */

static void put_unicode_escape(jinja_builder *out, int32_t code) {
    char escape[16];
    if (code >= 0x10000)
        snprintf(escape, sizeof escape, "\\u%04x\\u%04x", 0xD800 + (unsigned)((code - 0x10000) >> 10),
                 0xDC00 + (unsigned)((code - 0x10000) & 0x3FF));
    else
        snprintf(escape, sizeof escape, "\\u%04x", (unsigned)code);
    jinja_put_text(out, escape);
}

static void put_json_string(jinja_builder *out, const jinja_string *s, int ensure_ascii) {
    static const char names[] = {
        ['\b'] = 'b', ['\f'] = 'f', ['\n'] = 'n', ['\r'] = 'r', ['\t'] = 't', ['"'] = '"', ['\\'] = '\\'};
    size_t plain = 0; /* start of what can be copied as it is */
    jinja_put_text(out, "\"");
    for (size_t i = 0, n; i < s->n_bytes; i += n) {
        unsigned char c = (unsigned char)s->bytes[i];
        n = 1;
        if (c >= ' ' && c != '"' && c != '\\' && (c < 0x7F || !ensure_ascii))
            continue;
        jinja_put(out, s->bytes + plain, i - plain);
        int32_t code = c;
        if (c < sizeof names && names[c]) {
            jinja_put(out, (const char[]){'\\', names[c]}, 2);
        } else {
            n = jinja_next_char(s->bytes + i, s->n_bytes - i, &code);
            put_unicode_escape(out, code);
        }
        plain = i + n;
    }
    jinja_put(out, s->bytes + plain, s->n_bytes - plain);
    jinja_put_text(out, "\"");
}

static void put_json_number(jinja_builder *out, jinja_value v) {
    if (v.kind == JINJA_INT)
        put_integer(out, v.of.integer);
    else if (v.kind == JINJA_BIG)
        jinja_put_string(out, v.of.string);
    else if (isfinite(v.of.real))
        put_real(out, v.of.real);
    else
        jinja_put_text(out, isnan(v.of.real) ? "NaN" : v.of.real < 0 ? "-Infinity" : "Infinity");
}

static mb_status put_json_value(jinja_builder *out, jinja_value v, const jinja_json_format *format,
                                int level);

/* A new line with the indentation of the level, when lines are wanted. */
static void put_json_line(jinja_builder *out, const jinja_json_format *format, int level) {
    if (!format->indent)
        return;
    jinja_put_text(out, "\n");
    for (int i = 0; i < level; i++)
        jinja_put_string(out, format->indent);
}

static mb_status put_json_list(jinja_builder *out, const jinja_list *list, const jinja_json_format *format,
                               int level) {
    jinja_put_text(out, "[");
    for (size_t i = 0; i < list->n; i++) {
        if (i > 0)
            jinja_put_string(out, format->item_separator);
        put_json_line(out, format, level + 1);
        MB_TRY(put_json_value(out, list->items[i], format, level + 1));
    }
    if (list->n > 0)
        put_json_line(out, format, level);
    jinja_put_text(out, "]");
    return out->status;
}

static mb_status put_json_key(jinja_builder *out, jinja_value key, const jinja_json_format *format) {
    if (key.kind == JINJA_STRING) {
        put_json_string(out, key.of.string, format->ensure_ascii);
        return out->status;
    }
    if (key.kind != JINJA_NONE && key.kind != JINJA_BOOL && key.kind != JINJA_INT && key.kind != JINJA_FLOAT)
        return jinja_stop(out->run, "a %s cannot be a key in JSON", jinja_type_name(key));
    jinja_put_text(out, "\"");
    MB_TRY(put_json_value(out, key, format, 0));
    jinja_put_text(out, "\"");
    return out->status;
}

/* The pairs in the order of their keys: insertion, since objects are small; what is moved is charged. */
static mb_status sort_pairs(jinja_run *run, const jinja_dict *dict, jinja_pair **sorted) {
    *sorted = jinja_alloc(&run->arena, (dict->n + 1) * sizeof **sorted);
    if (!*sorted)
        return jinja_no_memory(run);
    for (size_t i = 0; i < dict->n; i++) {
        size_t at = i;
        for (int order; at > 0; at--) {
            MB_TRY(jinja_charge(run, 1));
            MB_TRY(jinja_order(run, (*sorted)[at - 1].key, dict->pairs[i].key, &order));
            if (order <= 0)
                break;
            (*sorted)[at] = (*sorted)[at - 1];
        }
        (*sorted)[at] = dict->pairs[i];
    }
    return MB_OK;
}

static mb_status put_json_dict(jinja_builder *out, const jinja_dict *dict, const jinja_json_format *format,
                               int level) {
    jinja_pair *pairs = dict->pairs;
    if (format->sort_keys)
        MB_TRY(sort_pairs(out->run, dict, &pairs));
    jinja_put_text(out, "{");
    for (size_t i = 0; i < dict->n; i++) {
        if (i > 0)
            jinja_put_string(out, format->item_separator);
        put_json_line(out, format, level + 1);
        MB_TRY(put_json_key(out, pairs[i].key, format));
        jinja_put_string(out, format->key_separator);
        MB_TRY(put_json_value(out, pairs[i].value, format, level + 1));
    }
    if (dict->n > 0)
        put_json_line(out, format, level);
    jinja_put_text(out, "}");
    return out->status;
}

static mb_status put_json_value(jinja_builder *out, jinja_value v, const jinja_json_format *format,
                                int level) {
    switch (v.kind) {
    case JINJA_NONE:
        jinja_put_text(out, "null");
        break;
    case JINJA_BOOL:
        jinja_put_text(out, v.of.boolean ? "true" : "false");
        break;
    case JINJA_INT:
    case JINJA_BIG:
    case JINJA_FLOAT:
        put_json_number(out, v);
        break;
    case JINJA_STRING:
        put_json_string(out, v.of.string, format->ensure_ascii);
        break;
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_DICT:
        MB_TRY(jinja_enter(out->run));
        MB_TRY(jinja_charge(out->run, 1));
        if (v.kind == JINJA_DICT)
            MB_TRY(put_json_dict(out, v.of.dict, format, level));
        else
            MB_TRY(put_json_list(out, v.of.list, format, level));
        jinja_leave(out->run);
        break;
    default:
        return jinja_stop(out->run, "%s %s cannot be written as JSON", jinja_is_undefined(v) ? "an" : "a",
                          jinja_type_name(v));
    }
    return out->status;
}

mb_status jinja_put_json(jinja_builder *out, jinja_value v, const jinja_json_format *format) {
    return put_json_value(out, v, format, 0);
}
