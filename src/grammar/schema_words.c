/* schema_words.c - the words of a schema: which are supported, and the types and counts that they tell. */
#include <math.h>
#include <string.h>

#include "grammar/schema_parts.h"
#include "model/json.h"

/* ---- Known words ------------------------------------------------------------------------------------ */

/* Words that restrict values in ways that are not supported. Unknown words are annotations. */
static const char *const refused[] = {
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "contains",
    "minContains",
    "maxContains",
    "patternProperties",
    "unevaluatedItems",
    "$dynamicRef",
    "$recursiveRef",
    "contentSchema",
    "minProperties",
    "maxProperties",
};

static int says_nothing(const char *word, const json_t *value) {
    if (strcmp(word, "minProperties") == 0)
        return json_is_integer(value) && json_integer_value(value) == 0;
    if (strcmp(word, "patternProperties") == 0 || strcmp(word, "dependentRequired") == 0 ||
        strcmp(word, "dependentSchemas") == 0 || strcmp(word, "dependencies") == 0)
        return mb_json_is_object(value) && json_object_size(value) == 0;
    if (strcmp(word, "unevaluatedItems") == 0)
        return json_is_true(value);
    return 0;
}

void mb_schema_check_words(mb_schemas *s, const json_t *schema, const char *path) {
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const json_t *value = json_object_get(schema, refused[i]);
        if (value && !says_nothing(refused[i], value))
            mb_schema_refuse(s, MB_ERR_UNSUPPORTED, path, refused[i], "this word is not supported");
    }
    /* Without other schemas for the same object the word is additionalProperties. */
    const json_t *unevaluated = json_object_get(schema, "unevaluatedProperties");
    int is_plain = json_object_get(schema, "properties") && !json_object_get(schema, "$ref") &&
                   !json_object_get(schema, "allOf") && !json_object_get(schema, "anyOf") &&
                   !json_object_get(schema, "oneOf");
    if (unevaluated && !json_is_true(unevaluated) && !(json_is_false(unevaluated) && is_plain))
        mb_schema_refuse(s, MB_ERR_UNSUPPORTED, path, "unevaluatedProperties",
                         "only true, or false beside properties and no other schemas, is supported");
    const json_t *unique = json_object_get(schema, "uniqueItems");
    const json_t *most = json_object_get(schema, "maxItems");
    if (unique && !json_is_boolean(unique))
        mb_schema_refuse(s, MB_ERR_FORMAT, path, "uniqueItems", "it must be true or false");
    if (json_is_true(unique) && !(json_is_integer(most) && json_integer_value(most) <= 1))
        mb_schema_refuse(s, MB_ERR_UNSUPPORTED, path, "uniqueItems", "this word is not supported");
}

/* ---- Types ------------------------------------------------------------------------------------------ */

static uint32_t type_of_name(const char *name) {
    static const struct {
        const char *name;
        uint32_t type;
    } types[] = {{"null", MB_IS_NULL},     {"boolean", MB_IS_BOOLEAN}, {"integer", MB_IS_INTEGER},
                 {"number", MB_IS_NUMBER}, {"string", MB_IS_STRING},   {"array", MB_IS_ARRAY},
                 {"object", MB_IS_OBJECT}};
    for (size_t i = 0; name && i < sizeof types / sizeof *types; i++)
        if (strcmp(name, types[i].name) == 0)
            return types[i].type;
    return 0;
}

uint32_t mb_schema_own_types(const json_t *schema, int *is_wrong) {
    const json_t *type = json_object_get(schema, "type");
    uint32_t types = 0;
    *is_wrong = 0;
    if (!type)
        return 0;
    if (json_is_array(type)) {
        *is_wrong = json_array_size(type) == 0;
        for (size_t i = 0; i < json_array_size(type); i++) {
            uint32_t one = type_of_name(json_string_value(json_array_get(type, i)));
            *is_wrong |= one == 0;
            types |= one;
        }
    } else {
        types = type_of_name(json_string_value(type));
        *is_wrong = types == 0;
    }
    if (json_is_true(json_object_get(schema, "nullable"))) /* OpenAPI 3.0 */
        types |= MB_IS_NULL;
    return types;
}

uint32_t mb_schema_types_of_words(const json_t *schema) {
    static const struct {
        const char *word;
        uint32_t type;
    } words[] = {
        {"properties", MB_IS_OBJECT},
        {"required", MB_IS_OBJECT},
        {"additionalProperties", MB_IS_OBJECT},
        {"propertyNames", MB_IS_OBJECT},
        {"items", MB_IS_ARRAY},
        {"prefixItems", MB_IS_ARRAY},
        {"minItems", MB_IS_ARRAY},
        {"maxItems", MB_IS_ARRAY},
        {"additionalItems", MB_IS_ARRAY},
        {"minLength", MB_IS_STRING},
        {"maxLength", MB_IS_STRING},
        {"pattern", MB_IS_STRING},
        {"format", MB_IS_STRING},
        {"minimum", MB_IS_NUMBER},
        {"maximum", MB_IS_NUMBER},
        {"multipleOf", MB_IS_NUMBER},
        {"exclusiveMinimum", MB_IS_NUMBER},
        {"exclusiveMaximum", MB_IS_NUMBER},
    };
    uint32_t types = 0;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (json_object_get(schema, words[i].word))
            types |= words[i].type;
    return types;
}

uint32_t mb_schema_types(mb_schemas *s, const mb_part_set *set) {
    uint32_t types = MB_IS_ANY, of_words = 0;
    int is_typed = 0;
    for (size_t i = 0; i < set->n; i++) {
        int is_wrong;
        uint32_t own = mb_schema_own_types(set->parts[i].schema, &is_wrong);
        if (is_wrong)
            mb_schema_refuse(s, MB_ERR_FORMAT, set->parts[i].path, "type",
                             "it is not the name of a type, nor an array of them");
        is_typed |= own != 0;
        types &= own ? own : MB_IS_ANY;
        of_words |= mb_schema_types_of_words(set->parts[i].schema);
    }
    return !is_typed && of_words ? of_words : types;
}

uint32_t mb_value_type(const json_t *value) {
    if (json_is_null(value))
        return MB_IS_NULL;
    if (json_is_boolean(value))
        return MB_IS_BOOLEAN;
    if (json_is_string(value))
        return MB_IS_STRING;
    if (json_is_array(value))
        return MB_IS_ARRAY;
    if (json_is_integer(value))
        return MB_IS_INTEGER;
    if (json_is_real(value))
        return json_real_value(value) == floor(json_real_value(value)) ? MB_IS_NUMBER : MB_IS_FRACTION;
    return mb_json_is_object(value) ? MB_IS_OBJECT : MB_IS_NUMBER;
}

/* ---- Counts and bounds ------------------------------------------------------------------------------ */

static int read_count(mb_schemas *s, const mb_schema_part *part, const char *word, int otherwise) {
    const json_t *value = json_object_get(part->schema, word);
    double count = json_number_value(value);
    if (!value)
        return otherwise;
    if (!json_is_number(value) || count < 0 || count != floor(count)) {
        mb_schema_refuse(s, MB_ERR_FORMAT, part->path, word, "it must be an integer, 0 or more");
        return otherwise;
    }
    if (count > 1000000 && otherwise == 0)
        mb_schema_refuse(s, MB_ERR_CAPACITY, part->path, word, "more than a million are not supported");
    return count > 1000000 ? otherwise : (int)count;
}

int mb_schema_counts(mb_schemas *s, const mb_part_set *set, const char *min_word, const char *max_word,
                     int *min, int *max) {
    *min = 0;
    *max = MB_UNBOUNDED;
    for (size_t i = 0; i < set->n; i++) {
        int least = read_count(s, &set->parts[i], min_word, 0);
        int most = read_count(s, &set->parts[i], max_word, MB_UNBOUNDED);
        *min = *min > least ? *min : least;
        *max = *max < most ? *max : most;
    }
    return s->builder->pool.status == MB_OK;
}

/* sign 1: the larger bound counts. */
static void take_bound(mb_bound *bound, double value, int is_strict, int sign) {
    if (!bound->is_set || sign * value > sign * bound->value || (value == bound->value && is_strict))
        *bound = (mb_bound){value, 1, is_strict};
}

static void read_bound(mb_schemas *s, const mb_schema_part *part, const char *word, const char *strict_word,
                       int sign, mb_bound *bound) {
    const json_t *value = json_object_get(part->schema, word),
                 *strict = json_object_get(part->schema, strict_word);
    if (value && !json_is_number(value))
        mb_schema_refuse(s, MB_ERR_FORMAT, part->path, word, "it must be a number that a double holds");
    if (strict && !json_is_number(strict) && !json_is_boolean(strict))
        mb_schema_refuse(s, MB_ERR_FORMAT, part->path, strict_word,
                         "it must be a number that a double holds");
    if (json_is_number(value)) /* in draft 4 the strict word is a flag */
        take_bound(bound, json_number_value(value), json_is_true(strict), sign);
    if (json_is_number(strict))
        take_bound(bound, json_number_value(strict), 1, sign);
}

void mb_schema_bounds(mb_schemas *s, const mb_part_set *set, mb_bound *least, mb_bound *most) {
    *least = *most = (mb_bound){0};
    for (size_t i = 0; i < set->n; i++) {
        read_bound(s, &set->parts[i], "minimum", "exclusiveMinimum", 1, least);
        read_bound(s, &set->parts[i], "maximum", "exclusiveMaximum", -1, most);
    }
}

static int64_t common_divisor(int64_t a, int64_t b) {
    return b ? common_divisor(b, a % b) : a;
}

int mb_schema_multiple(mb_schemas *s, const mb_part_set *set) {
    enum { MAX_MULTIPLE = 1000 };
    int64_t multiple = 0;
    for (size_t i = 0; i < set->n; i++) {
        const json_t *value = json_object_get(set->parts[i].schema, "multipleOf");
        double number = json_number_value(value);
        if (!value)
            continue;
        if (!json_is_number(value) || number <= 0) {
            mb_schema_refuse(s, MB_ERR_FORMAT, set->parts[i].path, "multipleOf",
                             "it must be a number above 0");
            return 0;
        }
        int64_t one = number <= MAX_MULTIPLE && number == floor(number) ? (int64_t)number : 0;
        multiple = one == 0        ? MAX_MULTIPLE + 1
                   : multiple == 0 ? one
                                   : multiple / common_divisor(multiple, one) * one;
        if (multiple > MAX_MULTIPLE) {
            mb_schema_refuse(s, MB_ERR_UNSUPPORTED, set->parts[i].path, "multipleOf",
                             "only integers up to 1000 are supported");
            return 0;
        }
    }
    return (int)multiple;
}
