/* tests.c - what stands behind `is`. */
#include <math.h>

#include "model/jinja/eval.h"
#include "model/jinja/strings.h"

static mb_status is_defined(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(!jinja_is_undefined(given->self));
    return MB_OK;
}

static mb_status is_undefined(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(jinja_is_undefined(given->self));
    return MB_OK;
}

static mb_status is_none(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(given->self.kind == JINJA_NONE);
    return MB_OK;
}

static mb_status is_boolean(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(given->self.kind == JINJA_BOOL);
    return MB_OK;
}

static mb_status is_true(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(given->self.kind == JINJA_BOOL && given->self.of.boolean);
    return MB_OK;
}

static mb_status is_false(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(given->self.kind == JINJA_BOOL && !given->self.of.boolean);
    return MB_OK;
}

static mb_status is_integer(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(given->self.kind == JINJA_INT || given->self.kind == JINJA_BIG);
    return MB_OK;
}

static mb_status is_float(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(given->self.kind == JINJA_FLOAT);
    return MB_OK;
}

static mb_status is_number(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(given->self.kind >= JINJA_BOOL && given->self.kind <= JINJA_FLOAT);
    return MB_OK;
}

static mb_status is_string(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(given->self.kind == JINJA_STRING);
    return MB_OK;
}

static mb_status is_mapping(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(given->self.kind == JINJA_DICT);
    return MB_OK;
}

/* What has a length and items: dicts too, and undefined values. */
static mb_status is_sequence(const jinja_given *given, jinja_value *result) {
    jinja_kind kind = given->self.kind;
    *result = jinja_bool(kind == JINJA_UNDEFINED || kind == JINJA_STRING || kind == JINJA_LIST ||
                         kind == JINJA_TUPLE || kind == JINJA_RANGE || kind == JINJA_DICT);
    return MB_OK;
}

static mb_status is_iterable(const jinja_given *given, jinja_value *result) {
    jinja_kind kind = given->self.kind;
    *result = jinja_bool(kind == JINJA_UNDEFINED || kind == JINJA_STRING || kind == JINJA_DICT ||
                         kind == JINJA_LOOP || jinja_is_listed(given->self));
    return MB_OK;
}

static mb_status is_callable(const jinja_given *given, jinja_value *result) {
    jinja_kind kind = given->self.kind;
    *result = jinja_bool(kind == JINJA_UNDEFINED || kind == JINJA_MACRO || kind == JINJA_FUNCTION ||
                         kind == JINJA_METHOD || kind == JINJA_LOOP);
    return MB_OK;
}

static mb_status is_escaped(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(given->self.kind == JINJA_STRING && given->self.of.string->is_markup);
    return MB_OK;
}

/* The same object; of small values, the same value. */
static mb_status is_same_as(const jinja_given *given, jinja_value *result) {
    jinja_value a = given->self, b = given->at[0];
    int is_equal = a.kind == b.kind;
    if (is_equal && a.kind <= JINJA_STRING)
        MB_TRY(jinja_equal(given->run, a, b, &is_equal));
    else if (is_equal)
        is_equal = a.of.list == b.of.list;
    *result = jinja_bool(is_equal);
    return MB_OK;
}

static mb_status is_in(const jinja_given *given, jinja_value *result) {
    int is_true_ = 0;
    MB_TRY(jinja_contains(given->run, given->at[0], given->self, &is_true_));
    *result = jinja_bool(is_true_);
    return MB_OK;
}

/* Whether self % by is `rest`. */
static mb_status has_rest(const jinja_given *given, jinja_value by, int64_t rest, jinja_value *result) {
    jinja_value modulo;
    int is_equal;
    MB_TRY(jinja_binary(given->run, OP_MODULO, given->self, by, &modulo));
    MB_TRY(jinja_equal(given->run, modulo, jinja_int(rest), &is_equal));
    *result = jinja_bool(is_equal);
    return MB_OK;
}

static mb_status is_odd(const jinja_given *given, jinja_value *result) {
    return has_rest(given, jinja_int(2), 1, result);
}

static mb_status is_even(const jinja_given *given, jinja_value *result) {
    return has_rest(given, jinja_int(2), 0, result);
}

static mb_status is_divisible_by(const jinja_given *given, jinja_value *result) {
    return has_rest(given, given->at[0], 0, result);
}

static mb_status has_case(const jinja_given *given, int wanted, jinja_value *result) {
    const jinja_string *string;
    MB_TRY(jinja_str(given->run, given->self, &string));
    *result = jinja_bool(jinja_has_only_case(string, wanted));
    return jinja_charge_bytes(given->run, string->n_bytes);
}

static mb_status is_upper(const jinja_given *given, jinja_value *result) {
    return has_case(given, 1, result);
}

static mb_status is_lower(const jinja_given *given, jinja_value *result) {
    return has_case(given, -1, result);
}

static mb_status compare(const jinja_given *given, jinja_operator operator, jinja_value * result) {
    int is_true_;
    MB_TRY(jinja_compare(given->run, operator, given->self, given->at[0], &is_true_));
    *result = jinja_bool(is_true_);
    return MB_OK;
}

static mb_status is_equal_to(const jinja_given *given, jinja_value *result) {
    return compare(given, OP_EQUAL, result);
}

static mb_status is_not_equal_to(const jinja_given *given, jinja_value *result) {
    return compare(given, OP_NOT_EQUAL, result);
}

static mb_status is_less(const jinja_given *given, jinja_value *result) {
    return compare(given, OP_LESS, result);
}

static mb_status is_at_most(const jinja_given *given, jinja_value *result) {
    return compare(given, OP_LESS_EQUAL, result);
}

static mb_status is_greater(const jinja_given *given, jinja_value *result) {
    return compare(given, OP_GREATER, result);
}

static mb_status is_at_least(const jinja_given *given, jinja_value *result) {
    return compare(given, OP_GREATER_EQUAL, result);
}

const jinja_function jinja_tests[] = {
    {"defined", is_defined, "", 0},
    {"undefined", is_undefined, "", 0},
    {"none", is_none, "", 0},
    {"boolean", is_boolean, "", 0},
    {"true", is_true, "", 0},
    {"false", is_false, "", 0},
    {"integer", is_integer, "", 0},
    {"float", is_float, "", 0},
    {"number", is_number, "", 0},
    {"string", is_string, "", 0},
    {"mapping", is_mapping, "", 0},
    {"sequence", is_sequence, "", 0},
    {"iterable", is_iterable, "", 0},
    {"callable", is_callable, "", 0},
    {"escaped", is_escaped, "", 0},
    {"sameas", is_same_as, "other", 1},
    {"in", is_in, "seq", 1},
    {"odd", is_odd, "", 0},
    {"even", is_even, "", 0},
    {"divisibleby", is_divisible_by, "num", 1},
    {"upper", is_upper, "", 0},
    {"lower", is_lower, "", 0},
    {"==", is_equal_to, "other", 1},
    {"eq", is_equal_to, "other", 1},
    {"equalto", is_equal_to, "other", 1},
    {"!=", is_not_equal_to, "other", 1},
    {"ne", is_not_equal_to, "other", 1},
    {"<", is_less, "other", 1},
    {"lt", is_less, "other", 1},
    {"lessthan", is_less, "other", 1},
    {"<=", is_at_most, "other", 1},
    {"le", is_at_most, "other", 1},
    {">", is_greater, "other", 1},
    {"gt", is_greater, "other", 1},
    {"greaterthan", is_greater, "other", 1},
    {">=", is_at_least, "other", 1},
    {"ge", is_at_least, "other", 1},
    {NULL, NULL, NULL, 0},
};
