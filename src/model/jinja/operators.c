/* operators.c - arithmetic, comparisons, items and slices. */
#include <math.h>
#include <string.h>

#include "model/jinja/eval.h"

/* ---- Arithmetic --------------------------------------------------------------------------------------- */

static mb_status stop_operands(jinja_run *run, const char *operator, jinja_value a, jinja_value b) {
    char shown[2][96];
    jinja_value undefined = jinja_is_undefined(a) ? a : b;
    if (jinja_is_undefined(undefined) && undefined.of.string)
        return jinja_stop(run, "\"%.*s\" is undefined", (int)undefined.of.string->n_bytes,
                          undefined.of.string->bytes);
    return jinja_stop(run, "%s cannot be applied to %s and %s", operator,
                      jinja_describe(shown[0], sizeof shown[0], a),
                      jinja_describe(shown[1], sizeof shown[1], b));
}

static mb_status stop_overflow(jinja_run *run) {
    return jinja_stop(run, "an integer needs more than 64 bits");
}

/* Rounded to minus infinity, as in Python. */
static int64_t floor_divide(int64_t a, int64_t b) {
    int64_t quotient = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

static double floor_modulo(double a, double b) {
    double rest = fmod(a, b);
    if (rest == 0)
        return copysign(0, b);
    return (rest < 0) != (b < 0) ? rest + b : rest;
}

static mb_status integer_power(jinja_run *run, int64_t base, int64_t exponent, jinja_value *value) {
    int64_t power = 1;
    for (; exponent > 0; exponent >>= 1) {
        if ((exponent & 1) && __builtin_mul_overflow(power, base, &power))
            return stop_overflow(run);
        if (exponent > 1 && __builtin_mul_overflow(base, base, &base))
            return stop_overflow(run);
    }
    *value = jinja_int(power);
    return MB_OK;
}

/* Of the sign of b. */
static int64_t floor_remainder(int64_t a, int64_t b) {
    int64_t remainder = a % b;
    return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
}

static mb_status integers(jinja_run *run, jinja_operator operator, int64_t a, int64_t b, jinja_value *value) {
    int64_t result = 0;
    int has_overflow = 0;
    switch (operator) {
    case OP_ADD:
        has_overflow = __builtin_add_overflow(a, b, &result);
        break;
    case OP_SUBTRACT:
        has_overflow = __builtin_sub_overflow(a, b, &result);
        break;
    case OP_MULTIPLY:
        has_overflow = __builtin_mul_overflow(a, b, &result);
        break;
    case OP_POWER:
        if (b >= 0)
            return integer_power(run, a, b, value);
        if (a == 0)
            return jinja_stop(run, "a division by zero");
        *value = jinja_real(pow((double)a, (double)b));
        return MB_OK;
    default:
        if (b == 0)
            return jinja_stop(run, "a division by zero");
        if (operator== OP_DIVIDE) {
            *value = jinja_real((double)a / (double)b);
            return MB_OK;
        }
        if (b == -1) /* the smallest integer has no positive one */
            has_overflow = operator== OP_FLOOR_DIVIDE && __builtin_sub_overflow(0, a, &result);
        else
            result = operator== OP_FLOOR_DIVIDE ? floor_divide(a, b) : floor_remainder(a, b);
    }
    if (has_overflow)
        return stop_overflow(run);
    *value = jinja_int(result);
    return MB_OK;
}

static mb_status reals(jinja_run *run, jinja_operator operator, double a, double b, jinja_value *value) {
    if (b == 0 && (operator== OP_DIVIDE || operator== OP_FLOOR_DIVIDE || operator== OP_MODULO))
        return jinja_stop(run, "a division by zero");
    if (operator== OP_POWER &&((a == 0 && b < 0) || (a < 0 && b != floor(b) && isfinite(a) && isfinite(b))))
        return jinja_stop(run, "a power that is no real number");
    double result = operator== OP_ADD      ? a + b :
                    operator== OP_SUBTRACT ? a - b
                    :
                    operator== OP_MULTIPLY ? a * b
                    :
                    operator== OP_DIVIDE ? a / b
                    :
                    operator== OP_FLOOR_DIVIDE ? (a - floor_modulo(a, b)) / b
                    :
                    operator== OP_MODULO ? floor_modulo(a, b)
                                         : pow(a, b);
    if (operator== OP_FLOOR_DIVIDE)
        result = round(result) == 0 ? copysign(0, a / b) : round(result);
    if (operator== OP_POWER && isinf(result) && isfinite(a) && isfinite(b))
        return jinja_stop(run, "a power that is too large");
    *value = jinja_real(result);
    return MB_OK;
}

/* ---- Strings and lists -------------------------------------------------------------------------------- */

mb_status jinja_escape(jinja_run *run, const jinja_string *string, jinja_value *value) {
    jinja_builder out = {.run = run};
    static const char specials[] = "&<>\"'";
    static const char *const escapes[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
    for (size_t i = 0; i < string->n_bytes; i++) {
        const char *special = string->bytes[i] ? strchr(specials, string->bytes[i]) : NULL;
        if (special)
            jinja_put_text(&out, escapes[special - specials]);
        else
            jinja_put(&out, string->bytes + i, 1);
    }
    return jinja_built(&out, value);
}

static mb_status mark(jinja_run *run, jinja_value *value) {
    jinja_string *marked = jinja_alloc(&run->arena, sizeof *marked);
    if (!marked)
        return jinja_no_memory(run);
    *marked = *value->of.string;
    marked->is_markup = 1;
    value->of.string = marked;
    return MB_OK;
}

static mb_status add_strings(jinja_run *run, jinja_value a, jinja_value b, jinja_value *value) {
    int is_markup = a.of.string->is_markup || b.of.string->is_markup;
    if (is_markup && !a.of.string->is_markup)
        MB_TRY(jinja_escape(run, a.of.string, &a));
    if (is_markup && !b.of.string->is_markup)
        MB_TRY(jinja_escape(run, b.of.string, &b));
    jinja_builder out = {.run = run};
    jinja_put_string(&out, a.of.string);
    jinja_put_string(&out, b.of.string);
    MB_TRY(jinja_built(&out, value));
    return is_markup ? mark(run, value) : MB_OK;
}

static mb_status add_lists(jinja_run *run, jinja_value a, jinja_value b, jinja_value *value) {
    const jinja_list *x = a.of.list, *y = b.of.list;
    MB_TRY(jinja_new_list(run, a.kind, x->n + y->n, value));
    for (size_t i = 0; i < x->n; i++)
        MB_TRY(jinja_push(run, value->of.list, x->items[i]));
    for (size_t i = 0; i < y->n; i++)
        MB_TRY(jinja_push(run, value->of.list, y->items[i]));
    return MB_OK;
}

static mb_status repeat(jinja_run *run, jinja_value v, int64_t times, jinja_value *value) {
    if (times < 0)
        times = 0;
    size_t n = v.kind == JINJA_STRING ? v.of.string->n_bytes : v.of.list->n;
    if (n == 0)
        times = 0;
    MB_TRY(jinja_charge(run, (uint64_t)times));
    if (v.kind == JINJA_STRING) {
        jinja_builder out = {.run = run};
        for (int64_t i = 0; i < times && out.status == MB_OK; i++)
            jinja_put_string(&out, v.of.string);
        return jinja_built(&out, value);
    }
    MB_TRY(jinja_new_list(run, v.kind, 0, value));
    for (int64_t i = 0; i < times; i++) {
        MB_TRY(jinja_charge(run, n / 4));
        for (size_t k = 0; k < n; k++)
            MB_TRY(jinja_push(run, value->of.list, v.of.list->items[k]));
    }
    return MB_OK;
}

static int can_repeat(jinja_value v) {
    return v.kind == JINJA_STRING || v.kind == JINJA_LIST || v.kind == JINJA_TUPLE;
}

mb_status jinja_binary(jinja_run *run, jinja_operator operator, jinja_value a, jinja_value b,
                       jinja_value *value) {
    static const char *const names[] = {"+", "-", "*", "/", "//", "%", "**"};
    int64_t i, j;
    double x, y;
    if (jinja_integer(a, &i) && jinja_integer(b, &j))
        return integers(run, operator, i, j, value);
    if ((a.kind == JINJA_BIG || b.kind == JINJA_BIG) && jinja_number(a, &x) && jinja_number(b, &y))
        return stop_overflow(run);
    if (jinja_number(a, &x) && jinja_number(b, &y))
        return reals(run, operator, x, y, value);
    if (operator== OP_ADD && a.kind == JINJA_STRING && b.kind == JINJA_STRING)
        return add_strings(run, a, b, value);
    if (operator== OP_ADD && a.kind == b.kind &&(a.kind == JINJA_LIST || a.kind == JINJA_TUPLE))
        return add_lists(run, a, b, value);
    if (operator== OP_MULTIPLY && can_repeat(a) && jinja_integer(b, &j))
        return repeat(run, a, j, value);
    if (operator== OP_MULTIPLY && can_repeat(b) && jinja_integer(a, &i))
        return repeat(run, b, i, value);
    return stop_operands(run, names[operator], a, b);
}

mb_status jinja_negate(jinja_run *run, jinja_value v, jinja_value *value) {
    int64_t integer;
    char shown[96];
    if (jinja_integer(v, &integer))
        return integers(run, OP_SUBTRACT, 0, integer, value);
    if (v.kind != JINJA_FLOAT)
        return jinja_stop(run, "%s has no negative", jinja_describe(shown, sizeof shown, v));
    *value = jinja_real(-v.of.real);
    return MB_OK;
}

mb_status jinja_compare(jinja_run *run, jinja_operator operator, jinja_value a, jinja_value b, int *is_true) {
    int order;
    switch (operator) {
    case OP_EQUAL:
        return jinja_equal(run, a, b, is_true);
    case OP_NOT_EQUAL:
        MB_TRY(jinja_equal(run, a, b, is_true));
        *is_true = !*is_true;
        return MB_OK;
    case OP_IN:
        return jinja_contains(run, b, a, is_true);
    case OP_NOT_IN:
        MB_TRY(jinja_contains(run, b, a, is_true));
        *is_true = !*is_true;
        return MB_OK;
    default:
        if (jinja_is_undefined(a) || jinja_is_undefined(b))
            return stop_operands(run, "a comparison", a, b);
        MB_TRY(jinja_order(run, a, b, &order));
        *is_true = order != 2 && (operator== OP_LESS       ? order < 0 :
                                  operator== OP_LESS_EQUAL ? order <= 0
                                  :
                                  operator== OP_GREATER ? order > 0
                                                        : order >= 0);
        return MB_OK;
    }
}

/* ---- Items and slices --------------------------------------------------------------------------------- */

/* Where character i begins. */
static size_t offset_of(const jinja_string *s, size_t i) {
    if (s->n_chars == s->n_bytes)
        return i;
    size_t at = 0;
    for (int32_t code; i > 0 && at < s->n_bytes; i--)
        at += jinja_next_char(s->bytes + at, s->n_bytes - at, &code);
    return at;
}

static mb_status substring(jinja_run *run, const jinja_string *s, size_t from, size_t to,
                           jinja_value *value) {
    size_t begin = offset_of(s, from), end = offset_of(s, to);
    if (s->n_chars != s->n_bytes)
        MB_TRY(jinja_charge(run, end / 8));
    return jinja_string_over(run, s->bytes + begin, end - begin, value);
}

mb_status jinja_get_item(jinja_evaluator *e, jinja_value v, jinja_value key, jinja_value *value) {
    int64_t i, n;
    *value = jinja_undefined(key.kind == JINJA_STRING ? key.of.string : NULL);
    if (v.kind == JINJA_DICT && key.kind != JINJA_LIST && key.kind != JINJA_DICT) {
        jinja_value *found;
        MB_TRY(jinja_dict_find(&e->run, v.of.dict, key, &found));
        if (found) {
            *value = *found;
            return MB_OK;
        }
    }
    if (key.kind == JINJA_STRING)
        return jinja_get_attribute(e, v, key, value);
    int is_sequence =
        v.kind == JINJA_STRING || v.kind == JINJA_LIST || v.kind == JINJA_TUPLE || v.kind == JINJA_RANGE;
    if (jinja_is_undefined(v))
        return jinja_get_attribute(e, v, key, value); /* which says what is undefined */
    if (!is_sequence || !jinja_integer(key, &i))
        return MB_OK;
    MB_TRY(jinja_length(&e->run, v, &n));
    if (i < 0)
        i += n;
    if (i < 0 || i >= n)
        return MB_OK;
    if (v.kind == JINJA_STRING)
        return substring(&e->run, v.of.string, (size_t)i, (size_t)i + 1, value);
    *value = v.of.list->items[i];
    return MB_OK;
}

/* start, stop and step of a slice of n items, as Python's slice.indices gives them. */
static mb_status slice_bounds(jinja_run *run, const jinja_value parts[3], int64_t n, int64_t bounds[3]) {
    int64_t given[3];
    int is_given[3];
    for (int i = 0; i < 3; i++) {
        is_given[i] = parts[i].kind != JINJA_NONE;
        if (is_given[i] && !jinja_integer(parts[i], &given[i]))
            return jinja_stop(run, "the bounds of a slice are integers, not a %s", jinja_type_name(parts[i]));
    }
    int64_t step = is_given[2] ? given[2] : 1;
    if (step == 0)
        return jinja_stop(run, "the step of a slice is 0");
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
    for (int i = 0; i < 2; i++) {
        int64_t at = is_given[i] ? given[i] : (i == 0) == (step > 0) ? low : high;
        if (is_given[i] && at < 0)
            at = at < -n ? low : at + n;
        bounds[i] = at < low ? low : at > high ? high : at;
    }
    bounds[2] = step > n ? n + 1 : step < -n ? -n - 1 : step;
    return MB_OK;
}

static mb_status slice_string(jinja_run *run, const jinja_string *s, const int64_t bounds[3],
                              jinja_value *value) {
    if (bounds[2] == 1)
        return substring(run, s, (size_t)bounds[0], (size_t)(bounds[1] > bounds[0] ? bounds[1] : bounds[0]),
                         value);
    jinja_builder out = {.run = run};
    for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1]; i += bounds[2]) {
        size_t at = offset_of(s, (size_t)i);
        int32_t code;
        MB_TRY(jinja_charge(run, 1 + (s->n_chars != s->n_bytes ? at / 8 : 0)));
        jinja_put(&out, s->bytes + at, jinja_next_char(s->bytes + at, s->n_bytes - at, &code));
    }
    return jinja_built(&out, value);
}

mb_status jinja_get_slice(jinja_run *run, jinja_value v, const jinja_value parts[3], jinja_value *value) {
    int64_t n, bounds[3];
    char shown[96];
    if (v.kind != JINJA_STRING && v.kind != JINJA_LIST && v.kind != JINJA_TUPLE && v.kind != JINJA_RANGE)
        return jinja_stop(run, "%s has no slices", jinja_describe(shown, sizeof shown, v));
    MB_TRY(jinja_length(run, v, &n));
    MB_TRY(slice_bounds(run, parts, n, bounds));
    if (v.kind == JINJA_STRING)
        return slice_string(run, v.of.string, bounds, value);
    MB_TRY(jinja_new_list(run, v.kind, 0, value));
    if (v.kind == JINJA_RANGE) { /* how it prints */
        const jinja_list *range = v.of.list;
        value->of.list->start = range->start + bounds[0] * range->step;
        value->of.list->stop = range->start + bounds[1] * range->step;
        value->of.list->step = range->step * bounds[2];
    }
    for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1]; i += bounds[2])
        MB_TRY(jinja_push(run, value->of.list, v.of.list->items[i]));
    return MB_OK;
}
