/* filters.c - the table of filters, and those of single values. */
#include "model/jinja/filters.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/jinja/eval.h"
#include "model/jinja/strings.h"

/* ---- Strings ------------------------------------------------------------------------------------------ */

/* Filters of strings take the text of any value. */
static mb_status text_of(const jinja_given *given, jinja_value *text) {
    const jinja_string *string;
    MB_TRY(jinja_str(given->run, given->self, &string));
    *text = (jinja_value){.kind = JINJA_STRING, .of.string = string};
    return MB_OK;
}

/* The method of strings of this name on the text of the value. */
static mb_status as_method(const jinja_given *given, const char *name, jinja_value *result) {
    jinja_given method = *given;
    MB_TRY(text_of(given, &method.self));
    return jinja_function_find(jinja_string_methods, name, strlen(name))->run(&method, result);
}

static mb_status filter_trim(const jinja_given *given, jinja_value *result) {
    return as_method(given, "strip", result);
}

static mb_status filter_upper(const jinja_given *given, jinja_value *result) {
    return as_method(given, "upper", result);
}

static mb_status filter_lower(const jinja_given *given, jinja_value *result) {
    return as_method(given, "lower", result);
}

static mb_status filter_capitalize(const jinja_given *given, jinja_value *result) {
    return as_method(given, "capitalize", result);
}

static mb_status filter_replace(const jinja_given *given, jinja_value *result) {
    jinja_given method = *given;
    for (int i = 0; i < 2; i++) {
        const jinja_string *string;
        MB_TRY(jinja_str(given->run, given->at[i], &string));
        method.at[i] = (jinja_value){.kind = JINJA_STRING, .of.string = string};
    }
    if (method.at[2].kind == JINJA_NONE)
        method.has[2] = 0;
    return as_method(&method, "replace", result);
}

/* The first letter of each word large; words end at white space, at - and at opening brackets. */
static mb_status filter_title(const jinja_given *given, jinja_value *result) {
    jinja_value text;
    jinja_builder out = {.run = given->run};
    int begins = 1;
    MB_TRY(text_of(given, &text));
    const jinja_string *s = text.of.string;
    for (size_t i = 0, n; i < s->n_bytes; i += n) {
        int32_t code;
        n = jinja_next_char(s->bytes + i, s->n_bytes - i, &code);
        jinja_put_case(&out, s->bytes + i, n, begins ? JINJA_UPPER : JINJA_LOWER);
        begins =
            jinja_is_space(code) || code == '-' || code == '(' || code == '{' || code == '[' || code == '<';
    }
    return jinja_built(&out, result);
}

static mb_status filter_string(const jinja_given *given, jinja_value *result) {
    return text_of(given, result);
}

static mb_status mark(const jinja_given *given, jinja_value text, jinja_value *result) {
    jinja_string *marked = jinja_alloc(&given->run->arena, sizeof *marked);
    if (!marked)
        return jinja_no_memory(given->run);
    *marked = *text.of.string;
    marked->is_markup = 1;
    *result = (jinja_value){.kind = JINJA_STRING, .of.string = marked};
    return MB_OK;
}

static mb_status filter_safe(const jinja_given *given, jinja_value *result) {
    jinja_value text;
    MB_TRY(text_of(given, &text));
    return mark(given, text, result);
}

static mb_status filter_escape(const jinja_given *given, jinja_value *result) {
    jinja_value text;
    MB_TRY(text_of(given, &text));
    if (!text.of.string->is_markup)
        MB_TRY(jinja_escape(given->run, text.of.string, &text));
    return mark(given, text, result);
}

/* A row of so many spaces, or the string that is given instead of a number. */
static mb_status take_indent(const jinja_given *given, int i, int64_t otherwise,
                             const jinja_string **indent) {
    int64_t n = otherwise;
    jinja_value text;
    if (given->has[i] && given->at[i].kind == JINJA_STRING)
        return jinja_take_string(given, i, indent);
    MB_TRY(jinja_take_int(given, i, &n));
    MB_TRY(jinja_text(given->run, " ", &text));
    MB_TRY(jinja_binary(given->run, OP_MULTIPLY, text, jinja_int(n), &text));
    *indent = text.of.string;
    return MB_OK;
}

static mb_status filter_indent(const jinja_given *given, jinja_value *result) {
    const jinja_string *indent = NULL;
    int with_first = 0, with_blank = 0;
    jinja_value lines;
    jinja_builder out = {.run = given->run};
    if (given->self.kind != JINJA_STRING)
        return jinja_stop(given->run, "indent is for strings, not for a %s", jinja_type_name(given->self));
    MB_TRY(take_indent(given, 0, 4, &indent));
    MB_TRY(jinja_take_bool(given, 1, &with_first));
    MB_TRY(jinja_take_bool(given, 2, &with_blank));
    jinja_put_string(&out, given->self.of.string);
    jinja_put_text(&out, "\n");
    MB_TRY(jinja_built(&out, &lines));
    jinja_value list;
    MB_TRY(jinja_new_list(given->run, JINJA_LIST, 0, &list));
    MB_TRY(jinja_split_lines(given->run, lines.of.string, 0, list.of.list));
    out = (jinja_builder){.run = given->run};
    for (size_t i = 0; i < list.of.list->n; i++) {
        const jinja_string *line = list.of.list->items[i].of.string;
        if (i > 0)
            jinja_put_text(&out, "\n");
        if (i == 0 ? with_first : with_blank || line->n_bytes > 0)
            jinja_put_string(&out, indent);
        jinja_put_string(&out, line);
    }
    return jinja_built(&out, result);
}

/* As transformers sets it: json.dumps without escapes for HTML. */
static mb_status filter_tojson(const jinja_given *given, jinja_value *result) {
    jinja_json_format format = {0};
    jinja_value item, key;
    jinja_builder out = {.run = given->run};
    MB_TRY(jinja_take_bool(given, 0, &format.ensure_ascii));
    if (given->has[1] && given->at[1].kind != JINJA_NONE)
        MB_TRY(take_indent(given, 1, 0, &format.indent));
    MB_TRY(jinja_text(given->run, format.indent ? "," : ", ", &item));
    MB_TRY(jinja_text(given->run, ": ", &key));
    if (given->has[2] && given->at[2].kind != JINJA_NONE) {
        jinja_list *separators;
        MB_TRY(jinja_iterate(given->run, given->at[2], &separators));
        if (separators->n != 2 || separators->items[0].kind != JINJA_STRING ||
            separators->items[1].kind != JINJA_STRING)
            return jinja_stop(given->run, "the separators of tojson are two strings");
        item = separators->items[0];
        key = separators->items[1];
    }
    MB_TRY(jinja_take_bool(given, 3, &format.sort_keys));
    format.item_separator = item.of.string;
    format.key_separator = key.of.string;
    MB_TRY(jinja_put_json(&out, given->self, &format));
    return jinja_built(&out, result);
}

/* ---- Numbers ------------------------------------------------------------------------------------------ */

/* As Python's float() reads text: white space around, underscores between digits, no hexadecimal. */
static int read_real(const jinja_string *s, double *real) {
    const char *bytes = s->bytes;
    size_t n_bytes = s->n_bytes, n = 0;
    char text[400], *end;
    jinja_strip(&bytes, &n_bytes, NULL, JINJA_LEFT | JINJA_RIGHT);
    if (n_bytes == 0 || n_bytes >= sizeof text || memchr(bytes, 'x', n_bytes) ||
        memchr(bytes, 'X', n_bytes) || memchr(bytes, '(', n_bytes))
        return 0;
    for (size_t i = 0; i < n_bytes; i++) {
        if (bytes[i] == '_' && (i == 0 || i + 1 == n_bytes || bytes[i - 1] < '0' || bytes[i - 1] > '9' ||
                                bytes[i + 1] < '0' || bytes[i + 1] > '9'))
            return 0;
        if (bytes[i] != '_')
            text[n++] = bytes[i];
    }
    text[n] = '\0';
    *real = strtod(text, &end);
    return *end == '\0';
}

/* As Python's int() reads text in a base. 0: no integer; -1: one beyond 64 bits. */
static int read_integer(const jinja_string *s, int64_t base, int64_t *integer) {
    const char *bytes = s->bytes;
    size_t n_bytes = s->n_bytes;
    jinja_strip(&bytes, &n_bytes, NULL, JINJA_LEFT | JINJA_RIGHT);
    int is_negative = n_bytes > 0 && *bytes == '-', has_digit = 0, has_overflow = 0;
    size_t i = n_bytes > 0 && (*bytes == '-' || *bytes == '+');
    const char letter = base == 16 ? 'x' : base == 8 ? 'o' : base == 2 ? 'b' : 0;
    if (letter && i + 2 < n_bytes && bytes[i] == '0' && (bytes[i + 1] | 0x20) == letter)
        i += 2;
    *integer = 0;
    for (; i < n_bytes; i++) {
        char c = bytes[i] | 0x20;
        int64_t digit = bytes[i] >= '0' && bytes[i] <= '9' ? bytes[i] - '0'
                        : c >= 'a' && c <= 'z'             ? c - 'a' + 10
                                                           : 99;
        if (bytes[i] == '_' && has_digit && i + 1 < n_bytes && bytes[i + 1] != '_')
            continue;
        if (digit >= base)
            return 0;
        has_digit = 1;
        has_overflow |= __builtin_mul_overflow(*integer, base, integer) ||
                        (is_negative ? __builtin_sub_overflow(*integer, digit, integer)
                                     : __builtin_add_overflow(*integer, digit, integer));
    }
    return !has_digit ? 0 : has_overflow ? -1 : 1;
}

/* int(float): *is_number is 0 for NaN and the infinities. */
static mb_status truncate(const jinja_given *given, double real, int *is_number, jinja_value *result) {
    *is_number = isfinite(real);
    if (!*is_number)
        return MB_OK;
    if (fabs(real) >= 9.2e18)
        return jinja_stop(given->run, "an integer needs more than 64 bits");
    *result = jinja_int((int64_t)real);
    return MB_OK;
}

static mb_status filter_int(const jinja_given *given, jinja_value *result) {
    int64_t base = 10, integer;
    double real;
    int is_read = 0;
    MB_TRY(jinja_take_int(given, 1, &base));
    if (base < 2 || base > 36)
        return jinja_stop(given->run, "the base of int is 2 to 36");
    if (jinja_is_undefined(given->self))
        return jinja_stop(given->run, "an undefined value is no integer");
    if (given->self.kind == JINJA_BIG) {
        *result = given->self;
        return MB_OK;
    }
    if (given->self.kind == JINJA_STRING) {
        is_read = read_integer(given->self.of.string, base, &integer);
        if (is_read < 0)
            return jinja_stop(given->run, "an integer needs more than 64 bits");
        if (is_read > 0)
            *result = jinja_int(integer);
        else if (read_real(given->self.of.string, &real))
            MB_TRY(truncate(given, real, &is_read, result));
    } else if (jinja_number(given->self, &real)) {
        is_read = jinja_integer(given->self, &integer);
        if (is_read)
            *result = jinja_int(integer);
        else
            MB_TRY(truncate(given, real, &is_read, result));
    }
    if (!is_read)
        *result = given->has[0] ? given->at[0] : jinja_int(0);
    return MB_OK;
}

static mb_status filter_float(const jinja_given *given, jinja_value *result) {
    double real;
    int is_read = given->self.kind == JINJA_STRING ? read_real(given->self.of.string, &real)
                                                   : jinja_number(given->self, &real);
    if (jinja_is_undefined(given->self))
        return jinja_stop(given->run, "an undefined value is no number");
    *result = is_read ? jinja_real(real) : given->has[0] ? given->at[0] : jinja_real(0);
    return MB_OK;
}

static mb_status filter_abs(const jinja_given *given, jinja_value *result) {
    int64_t integer;
    if (given->self.kind == JINJA_FLOAT)
        *result = jinja_real(fabs(given->self.of.real));
    else if (jinja_integer(given->self, &integer) && integer >= 0)
        *result = jinja_int(integer);
    else
        return jinja_negate(given->run, given->self, result);
    return MB_OK;
}

/* Half to even of the exact value, as printf rounds. */
static double round_real(double real, int64_t precision) {
    char text[400];
    if (!isfinite(real) || precision > 300)
        return real;
    if (precision < 0) {
        double scale = pow(10, -(double)precision);
        return isfinite(scale) ? nearbyint(real / scale) * scale : 0;
    }
    if (fabs(real) > 1e16)
        return real;
    snprintf(text, sizeof text, "%.*f", (int)precision, real);
    return strtod(text, NULL);
}

static mb_status filter_round(const jinja_given *given, jinja_value *result) {
    int64_t precision = 0, integer;
    const jinja_string *method = NULL;
    double real;
    MB_TRY(jinja_take_int(given, 0, &precision));
    MB_TRY(jinja_take_string(given, 1, &method));
    int is_common = !method || (method->n_bytes == 6 && memcmp(method->bytes, "common", 6) == 0);
    int is_ceil = method && method->n_bytes == 4 && memcmp(method->bytes, "ceil", 4) == 0;
    int is_floor = method && method->n_bytes == 5 && memcmp(method->bytes, "floor", 5) == 0;
    if (!is_common && !is_ceil && !is_floor)
        return jinja_stop(given->run, "the method of round is common, ceil or floor");
    MB_TRY(jinja_charge(given->run, 50)); /* digits are printed and read */
    if (!jinja_number(given->self, &real))
        return jinja_stop(given->run, "a %s cannot be rounded", jinja_type_name(given->self));
    if (is_common && jinja_integer(given->self, &integer) && precision >= 0) {
        *result = jinja_int(integer);
        return MB_OK;
    }
    double scale = pow(10, (double)precision);
    *result = jinja_real(is_common ? round_real(real, precision)
                         : is_ceil ? ceil(real * scale) / scale
                                   : floor(real * scale) / scale);
    return MB_OK;
}

/* ---- Any values --------------------------------------------------------------------------------------- */

static mb_status filter_default(const jinja_given *given, jinja_value *result) {
    int for_false = 0, is_true = 1;
    MB_TRY(jinja_take_bool(given, 1, &for_false));
    if (for_false)
        MB_TRY(jinja_is_true(given->run, given->self, &is_true));
    *result = given->self;
    if (is_true && !jinja_is_undefined(given->self))
        return MB_OK;
    if (!given->has[0])
        return jinja_text(given->run, "", result);
    *result = given->at[0];
    return MB_OK;
}

static mb_status filter_length(const jinja_given *given, jinja_value *result) {
    int64_t length;
    MB_TRY(jinja_length(given->run, given->self, &length));
    *result = jinja_int(length);
    return MB_OK;
}

const jinja_function jinja_filters[] = {
    {"abs", filter_abs, "", 0},
    {"capitalize", filter_capitalize, "", 0},
    {"count", filter_length, "", 0},
    {"d", filter_default, "default_value boolean", 0},
    {"default", filter_default, "default_value boolean", 0},
    {"dictsort", jinja_filter_dictsort, "case_sensitive by reverse", 0},
    {"e", filter_escape, "", 0},
    {"escape", filter_escape, "", 0},
    {"first", jinja_filter_first, "", 0},
    {"float", filter_float, "default", 0},
    {"indent", filter_indent, "width first blank", 0},
    {"int", filter_int, "default base", 0},
    {"items", jinja_filter_items, "", 0},
    {"join", jinja_filter_join, "d attribute", 0},
    {"last", jinja_filter_last, "", 0},
    {"length", filter_length, "", 0},
    {"list", jinja_filter_list, "", 0},
    {"lower", filter_lower, "", 0},
    {"map", jinja_filter_map, NULL, 0},
    {"max", jinja_filter_max, "case_sensitive attribute", 0},
    {"min", jinja_filter_min, "case_sensitive attribute", 0},
    {"reject", jinja_filter_reject, NULL, 0},
    {"rejectattr", jinja_filter_rejectattr, NULL, 0},
    {"replace", filter_replace, "old new count", 2},
    {"reverse", jinja_filter_reverse, "", 0},
    {"round", filter_round, "precision method", 0},
    {"safe", filter_safe, "", 0},
    {"select", jinja_filter_select, NULL, 0},
    {"selectattr", jinja_filter_selectattr, NULL, 0},
    {"sort", jinja_filter_sort, "reverse case_sensitive attribute", 0},
    {"string", filter_string, "", 0},
    {"sum", jinja_filter_sum, "attribute start", 0},
    {"title", filter_title, "", 0},
    {"tojson", filter_tojson, "ensure_ascii indent separators sort_keys", 0},
    {"trim", filter_trim, "chars", 0},
    {"unique", jinja_filter_unique, "case_sensitive attribute", 0},
    {"upper", filter_upper, "", 0},
    {NULL, NULL, NULL, 0},
};
