/* schema_constants.c - "enum" and "const": which of the values fit the other words, how they stand in the
 * text, and when two schemas exclude each other. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/json_text.h"
#include "grammar/schema_parts.h"
#include "model/json.h"

/* ---- Constants -------------------------------------------------------------------------------------- */

/* The constants of one schema, as an array or a single value. */
static const json_t *constants(const json_t *schema, int *is_single) {
    const json_t *single = json_object_get(schema, "const");
    *is_single = single != NULL;
    return single ? single : json_object_get(schema, "enum");
}

static size_t n_constants(const json_t *values, int is_single) {
    return is_single ? 1 : json_array_size(values);
}

static const json_t *constant(const json_t *values, int is_single, size_t i) {
    return is_single ? values : json_array_get(values, i);
}

/* As JSON schema compares: 1 and 1.0 are one number. */
static int are_equal(const json_t *a, const json_t *b) {
    if (json_is_number(a) && json_is_number(b))
        return json_is_integer(a) && json_is_integer(b) ? json_integer_value(a) == json_integer_value(b)
                                                        : json_number_value(a) == json_number_value(b);
    if (json_is_array(a) && json_is_array(b)) {
        if (json_array_size(a) != json_array_size(b))
            return 0;
        for (size_t i = 0; i < json_array_size(a); i++)
            if (!are_equal(json_array_get(a, i), json_array_get(b, i)))
                return 0;
        return 1;
    }
    if (mb_json_is_object(a) && mb_json_is_object(b)) {
        const char *key;
        json_t *value;
        if (json_object_size(a) != json_object_size(b))
            return 0;
        json_object_foreach((json_t *)a, key, value) {
            const json_t *other = json_object_get(b, key);
            if (!other || !are_equal(value, other))
                return 0;
        }
        return 1;
    }
    return json_equal(a, b);
}

static int is_among(const json_t *value, const json_t *schema) {
    int is_single;
    const json_t *values = constants(schema, &is_single);
    if (!values)
        return 1;
    for (size_t i = 0; i < n_constants(values, is_single); i++)
        if (are_equal(value, constant(values, is_single, i)))
            return 1;
    return 0;
}

static size_t n_characters(const json_t *string) {
    size_t n = 0;
    const char *text = json_string_value(string);
    for (size_t i = 0; i < json_string_length(string); i++)
        n += ((unsigned char)text[i] & 0xc0) != 0x80;
    return n;
}

/* Whether the other words of the parts allow a constant. Those that are not worth their code are refused. */
static int fits(mb_schemas *s, const mb_part_set *set, const json_t *value, uint32_t types) {
    static const char *const words[] = {"pattern",      "properties",  "required", "additionalProperties",
                                        "items",        "prefixItems", "minItems", "maxItems",
                                        "propertyNames"};
    static const uint32_t kinds[] = {MB_IS_STRING, MB_IS_OBJECT, MB_IS_OBJECT, MB_IS_OBJECT, MB_IS_ARRAY,
                                     MB_IS_ARRAY,  MB_IS_ARRAY,  MB_IS_ARRAY,  MB_IS_OBJECT};
    uint32_t type = mb_value_type(value);
    if (!(type & types))
        return 0;
    for (size_t i = 0; i < set->n; i++)
        for (size_t w = 0; w < sizeof words / sizeof *words; w++)
            if ((kinds[w] & type) && json_object_get(set->parts[i].schema, words[w]))
                mb_schema_refuse(s, MB_ERR_UNSUPPORTED, set->parts[i].path, words[w],
                                 "this word is not supported beside enum or const");
    for (size_t i = 0; i < set->n; i++)
        if (!is_among(value, set->parts[i].schema))
            return 0;
    if (type == MB_IS_STRING) {
        int min, max;
        mb_schema_counts(s, set, "minLength", "maxLength", &min, &max);
        size_t n = n_characters(value);
        return n >= (size_t)min && n <= (size_t)max;
    }
    if (json_is_number(value)) {
        mb_bound least, most;
        double number = json_number_value(value);
        int multiple = mb_schema_multiple(s, set);
        mb_schema_bounds(s, set, &least, &most);
        return (!least.is_set || number > least.value || (number == least.value && !least.is_strict)) &&
               (!most.is_set || number < most.value || (number == most.value && !most.is_strict)) &&
               (multiple == 0 || fmod(number, multiple) == 0);
    }
    return 1;
}

const mb_expr *mb_schema_enum(mb_schemas *s, const mb_part_set *set, uint32_t types) {
    const mb_schema_part *part = NULL;
    int is_single = 0;
    const json_t *values = NULL;
    for (size_t i = 0; i < set->n && !part; i++)
        if ((values = constants(set->parts[i].schema, &is_single)))
            part = &set->parts[i];
    if (!part)
        return NULL;
    if (!is_single && !json_is_array(values))
        return mb_schema_refuse(s, MB_ERR_FORMAT, part->path, "enum", "it must be an array of values");
    mb_expr_list list = {0};
    for (size_t i = 0; i < n_constants(values, is_single) && s->builder->pool.status == MB_OK; i++)
        if (fits(s, set, constant(values, is_single, i), types)) {
            const mb_expr *expr = mb_schema_literal(s, constant(values, is_single, i), part->path);
            if (expr)
                mb_expr_add(s->builder, &list, expr);
        }
    return mb_expr_list_choice(s->builder, &list);
}

static const mb_expr *literal_items(mb_schemas *s, const json_t *value, const char *path) {
    mb_builder *b = s->builder;
    mb_expr_list list = {0};
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)value, i, item) {
        if (i > 0)
            mb_expr_add(b, &list, mb_json_comma(b));
        const mb_expr *expr = mb_schema_literal(s, item, path);
        if (expr)
            mb_expr_add(b, &list, expr);
    }
    const char *key;
    json_object_foreach((json_t *)value, key, item) {
        if (list.n > 0)
            mb_expr_add(b, &list, mb_json_comma(b));
        mb_expr_add(b, &list, mb_json_literal(b, key, strlen(key)));
        mb_expr_add(b, &list, mb_json_colon(b));
        const mb_expr *expr = mb_schema_literal(s, item, path);
        if (expr)
            mb_expr_add(b, &list, expr);
    }
    return mb_expr_list_sequence(b, &list);
}

/* Integral numbers as JSON's integers, so that they are of the type "integer" for every reader. */
static const mb_expr *literal_number(mb_schemas *s, const json_t *value) {
    char text[40];
    double number = json_number_value(value);
    if (json_is_integer(value)) {
        snprintf(text, sizeof text, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    } else if (number == floor(number) && fabs(number) < 1e15) {
        snprintf(text, sizeof text, "%.0f", number);
    } else {
        for (int digits = 15; digits <= 17; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, number);
            if (strtod(text, NULL) == number)
                break;
        }
    }
    return mb_expr_string(s->builder, text);
}

const mb_expr *mb_schema_literal(mb_schemas *s, const json_t *value, const char *path) {
    mb_builder *b = s->builder;
    if (json_is_string(value))
        return mb_json_literal(b, json_string_value(value), json_string_length(value));
    if (json_is_number(value))
        return literal_number(s, value);
    if (json_is_null(value))
        return mb_expr_string(b, "null");
    if (json_is_boolean(value))
        return mb_expr_string(b, json_is_true(value) ? "true" : "false");
    if (mb_json_number(value))
        return mb_schema_refuse(s, MB_ERR_UNSUPPORTED, path, NULL,
                                "a constant is a number that a double does not hold");
    int is_array = json_is_array(value);
    size_t n = is_array ? json_array_size(value) : json_object_size(value);
    const char *brackets = is_array ? "[]" : "{}";
    if (n == 0)
        return mb_expr_string(b, brackets);
    return mb_json_brackets(b, brackets, literal_items(s, value, path), 0);
}

/* ---- Schemas that exclude each other ---------------------------------------------------------------- */

/* Through references. */
static const json_t *follow(const mb_schemas *s, const json_t *schema) {
    for (int i = 0; i < 16 && mb_json_is_object(schema); i++) {
        const char *reference = json_string_value(json_object_get(schema, "$ref"));
        if (!reference)
            break;
        schema = mb_schema_resolve(s, reference);
    }
    return schema;
}

/* is_made: of values that are made of the schema, not of those that it accepts. */
static uint32_t possible_types(const json_t *schema, int is_made) {
    int is_wrong;
    uint32_t types = mb_schema_own_types(schema, &is_wrong);
    if (types == 0 && is_made)
        types = mb_schema_types_of_words(schema);
    int is_single;
    const json_t *values = constants(schema, &is_single);
    if (values && (is_single || json_is_array(values))) {
        uint32_t of_values = 0;
        for (size_t i = 0; i < n_constants(values, is_single); i++)
            of_values |= mb_value_type(constant(values, is_single, i));
        types = types ? types & of_values : of_values;
    }
    return types ? types : MB_IS_ANY;
}

static int constants_are_disjoint(const json_t *a, const json_t *b) {
    int is_single;
    const json_t *values = constants(a, &is_single);
    if (!values || !constants(b, &is_single))
        return 0;
    values = constants(a, &is_single);
    for (size_t i = 0; i < n_constants(values, is_single); i++)
        if (is_among(constant(values, is_single, i), b))
            return 0;
    return 1;
}

static int requires(const json_t *schema, const char *name) {
    const json_t *required = json_object_get(schema, "required");
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *one = json_string_value(json_array_get(required, i));
        if (one && strcmp(one, name) == 0)
            return 1;
    }
    return 0;
}

/* What is made of a schema with properties has no others, unless it says so. */
static int is_closed(const json_t *schema) {
    const json_t *others = json_object_get(schema, "additionalProperties");
    return json_object_get(schema, "properties") && (!others || json_is_false(others)) &&
           !json_object_get(schema, "allOf") && !json_object_get(schema, "anyOf") &&
           !json_object_get(schema, "oneOf");
}

static int are_disjoint(const mb_schemas *s, const json_t *a, const json_t *b, int depth);

static int objects_are_disjoint(const mb_schemas *s, const json_t *a, const json_t *b, int depth) {
    const json_t *of_a = json_object_get(a, "properties"), *of_b = json_object_get(b, "properties");
    const json_t *required = json_object_get(b, "required");
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        if (name && is_closed(a) && !json_object_get(of_a, name) && !requires(a, name))
            return 1;
    }
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)of_a, name, value) {
        const json_t *other = json_object_get(of_b, name);
        int is_there = requires(a, name);
        if (is_there && !other && json_is_false(json_object_get(b, "additionalProperties")))
            return 1;
        if (other && (is_there || requires(b, name)) && are_disjoint(s, value, other, depth + 1))
            return 1;
    }
    return 0;
}

static int are_disjoint(const mb_schemas *s, const json_t *a, const json_t *b, int depth) {
    a = follow(s, a);
    b = follow(s, b);
    if (json_is_false(a) || json_is_false(b))
        return 1;
    if (!mb_json_is_object(a) || !mb_json_is_object(b) || depth > 8)
        return 0;
    uint32_t both = possible_types(a, 1) & possible_types(b, 0);
    if (both == 0 || constants_are_disjoint(a, b))
        return 1;
    return both == MB_IS_OBJECT && objects_are_disjoint(s, a, b, depth);
}

int mb_schemas_are_disjoint(mb_schemas *s, const json_t *a, const json_t *b) {
    return are_disjoint(s, a, b, 0);
}
