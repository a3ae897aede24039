/* structure.c - choices of strings, and grammars that are composed of others (MB_GRAMMAR_STRUCTURE). */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "grammar/compile.h"
#include "grammar/json_schema.h"
#include "grammar/json_text.h"
#include "grammar/regex.h"
#include "model/json.h"

enum { PATH_BYTES = 512 };

static const mb_expr *refuse(mb_builder *b, const char *path, const char *why) {
    if (b->pool.status == MB_OK)
        b->pool.status = mb_fail(MB_ERR_FORMAT, "%s: %s", path, why);
    return NULL;
}

static json_t *parse_json(mb_builder *b, const char *what, const char *text, size_t n_bytes) {
    json_t *root;
    b->pool.status = mb_json_parse(what, text, n_bytes, &root);
    return root;
}

/* ---- Choice ----------------------------------------------------------------------------------------- */

static const mb_expr *choice_of(mb_builder *b, const json_t *strings) {
    mb_expr_list list = {0};
    size_t i;
    json_t *string;
    if (!json_is_array(strings) || json_array_size(strings) == 0)
        return refuse(b, "the choice", "it must be a JSON array of at least one string");
    json_array_foreach(strings, i, string) {
        if (!json_is_string(string))
            refuse(b, "the choice", "an item is not a string");
        else
            mb_expr_add(b, &list, mb_expr_text(b, json_string_value(string), json_string_length(string)));
    }
    return mb_expr_list_choice(b, &list);
}

const mb_expr *mb_choice_parse(mb_builder *b, const char *text, size_t n_bytes) {
    json_t *root = parse_json(b, "the choice", text, n_bytes);
    const mb_expr *expr = root ? choice_of(b, root) : NULL;
    mb_json_free(root);
    return expr;
}

/* ---- Structure -------------------------------------------------------------------------------------- */

static const mb_expr *part_of(mb_builder *b, const json_t *part, const char *path);

static const mb_expr *items_of(mb_builder *b, const json_t *items, const char *path, int is_choice) {
    mb_expr_list list = {0};
    size_t i;
    json_t *item;
    if (!json_is_array(items))
        return refuse(b, path, "it must be an array of parts");
    json_array_foreach(items, i, item) {
        char below[PATH_BYTES];
        if (snprintf(below, sizeof below, "%s/%zu", path, i) >= PATH_BYTES)
            refuse(b, path, "parts are nested too deep");
        const mb_expr *expr = b->pool.status == MB_OK ? part_of(b, item, below) : NULL;
        if (!expr)
            break;
        mb_expr_add(b, &list, expr);
    }
    return is_choice ? mb_expr_list_choice(b, &list) : mb_expr_list_sequence(b, &list);
}

static int read_count(mb_builder *b, const json_t *part, const char *key, const char *path, int otherwise) {
    const json_t *value = json_object_get(part, key);
    if (!value)
        return otherwise;
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > 1000000)
        refuse(b, path, "min and max must be integers from 0 to 1000000");
    return (int)json_integer_value(value);
}

static const mb_expr *repeat_of(mb_builder *b, const json_t *part, const json_t *item, const char *path) {
    int min = read_count(b, part, "min", path, 0), max = read_count(b, part, "max", path, MB_UNBOUNDED);
    const json_t *separator = json_object_get(part, "separator");
    const mb_expr *one = part_of(b, item, path);
    if (!one || b->pool.status != MB_OK)
        return NULL;
    if (max < min)
        return refuse(b, path, "max is less than min");
    if (!separator || max == 0)
        return mb_expr_repeat(b, one, min, max);
    const mb_expr *between = part_of(b, separator, path);
    if (!between)
        return NULL;
    int others = max == MB_UNBOUNDED ? MB_UNBOUNDED : max - 1;
    const mb_expr *list =
        mb_expr_pair(b, one, mb_expr_repeat(b, mb_expr_pair(b, between, one), min > 0 ? min - 1 : 0, others));
    return min == 0 ? mb_expr_maybe(b, list) : list;
}

static const mb_expr *regex_of(mb_builder *b, const json_t *value, const char *path) {
    const mb_regex_options options = {.what = path};
    return mb_regex_parse(b, json_string_value(value), json_string_length(value), &options);
}

/* UTF-8 up to and with the first occurrence of the text. */
static const mb_expr *until_of(mb_builder *b, const json_t *value, const char *path) {
    static const mb_char_range all = {0, MB_LAST_CHAR};
    if (json_string_length(value) == 0)
        return refuse(b, path, "it must not be empty");
    int characters = mb_rule_add(b, mb_expr_repeat(b, mb_expr_chars(b, &all, 1), 0, MB_UNBOUNDED));
    int rule = mb_rule_add(b, mb_expr_until(b, json_string_value(value), json_string_length(value)));
    if (rule < 0)
        return NULL;
    b->rules[rule].both_with = characters;
    return mb_expr_call(b, rule);
}

static const mb_expr *part_of(mb_builder *b, const json_t *part, const char *path) {
    static const char *const words[] = {"text",   "json_schema", "json_object", "regex",
                                        "choice", "sequence",    "repeat",      "until"};
    enum { TEXT, SCHEMA, OBJECT, REGEX, CHOICE, SEQUENCE, REPEAT, UNTIL, N_WORDS };
    for (int w = 0; w < N_WORDS && mb_json_is_object(part); w++) {
        const json_t *value = json_object_get(part, words[w]);
        char below[PATH_BYTES];
        if (!value)
            continue;
        if (snprintf(below, sizeof below, "%s/%s", path, words[w]) >= PATH_BYTES)
            return refuse(b, path, "parts are nested too deep");
        if ((w == TEXT || w == REGEX || w == UNTIL) && !json_is_string(value))
            return refuse(b, below, "it must be a string");
        switch (w) {
        case TEXT:
            return mb_expr_text(b, json_string_value(value), json_string_length(value));
        case SCHEMA:
            return mb_schema_expr(b, value, below);
        case OBJECT:
            return mb_json_object(b);
        case REGEX:
            return regex_of(b, value, below);
        case UNTIL:
            return until_of(b, value, below);
        case REPEAT:
            return repeat_of(b, part, value, below);
        default:
            return items_of(b, value, below, w == CHOICE);
        }
    }
    return refuse(b, path,
                  "it must be an object with one of text, json_schema, json_object, regex, choice, sequence, "
                  "repeat, until");
}

const mb_expr *mb_structure_parse(mb_builder *b, const char *text, size_t n_bytes) {
    json_t *root = parse_json(b, "the structure", text, n_bytes);
    const mb_expr *expr = root ? part_of(b, root, "#") : NULL;
    mb_json_free(root);
    return expr;
}
