/* schema_values.c - strings, numbers, arrays and objects of a schema. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "grammar/json_text.h"
#include "grammar/regex.h"
#include "grammar/schema_parts.h"
#include "grammar/utf8_ranges.h"
#include "model/json.h"

/* ---- Rules that must hold together ------------------------------------------------------------------- */

/* A rule of what both the rule `first` (-1: none) and the expression match. */
static int both(mb_builder *b, int first, const mb_expr *expr) {
    int rule = mb_rule_add(b, expr);
    if (rule >= 0)
        b->rules[rule].both_with = first;
    return rule;
}

/* ---- Strings ---------------------------------------------------------------------------------------- */

static const mb_expr *quoted(mb_builder *b, const mb_expr *content) {
    const mb_expr *parts[] = {mb_expr_string(b, "\""), content, mb_expr_string(b, "\"")};
    return mb_expr_sequence(b, parts, 3);
}

static const mb_expr *pattern_expr(mb_schemas *s, const char *pattern, size_t n, const char *path,
                                   int search) {
    const mb_regex_options options = {.what = path, .search = search, .spelling = mb_json_spell_chars};
    const mb_expr *expr = mb_regex_parse(s->builder, pattern, n, &options);
    return expr ? quoted(s->builder, expr) : NULL;
}

/* Adds the part's pattern and format to the rule so far. */
static int add_patterns(mb_schemas *s, const mb_schema_part *part, int rule) {
    const json_t *pattern = json_object_get(part->schema, "pattern"),
                 *format = json_object_get(part->schema, "format");
    const mb_expr *expr = NULL;
    if (pattern && !json_is_string(pattern))
        mb_schema_refuse(s, MB_ERR_FORMAT, part->path, "pattern", "it must be a string");
    if (json_is_string(pattern))
        expr = pattern_expr(s, json_string_value(pattern), json_string_length(pattern),
                            mb_schema_path(s, part->path, "pattern"), 1);
    if (expr)
        rule = both(s->builder, rule, expr);
    const char *known = json_is_string(format) ? mb_format_pattern(json_string_value(format)) : NULL;
    expr = known ? pattern_expr(s, known, strlen(known), mb_schema_path(s, part->path, "format"), 0) : NULL;
    return expr ? both(s->builder, rule, expr) : rule;
}

const mb_expr *mb_schema_string(mb_schemas *s, const mb_part_set *set) {
    mb_builder *b = s->builder;
    int min, max, rule = -1;
    if (!mb_schema_counts(s, set, "minLength", "maxLength", &min, &max))
        return mb_expr_never();
    for (size_t i = 0; i < set->n && b->pool.status == MB_OK; i++)
        rule = add_patterns(s, &set->parts[i], rule);
    if (rule < 0)
        return mb_json_string_of_length(b, min, max);
    if (min > 0 || max != MB_UNBOUNDED) {
        static const mb_char_range all = {0, MB_LAST_CHAR};
        rule = both(b, rule, quoted(b, mb_expr_repeat(b, mb_json_spell_chars(b, &all, 1), min, max)));
    }
    return mb_expr_call(b, rule);
}

/* ---- Numbers ---------------------------------------------------------------------------------------- */

const mb_expr *mb_schema_number(mb_schemas *s, const mb_part_set *set, uint32_t types) {
    mb_builder *b = s->builder;
    mb_bound least, most;
    mb_schema_bounds(s, set, &least, &most);
    int multiple = mb_schema_multiple(s, set), is_bounded = least.is_set || most.is_set;
    if (!(types & MB_IS_INTEGER)) /* no "type" says so */
        return mb_expr_never();
    if (multiple > 1) {
        int rule = both(b, -1, mb_expr_multiples(b, multiple));
        return mb_expr_call(b, both(b, rule, mb_integers_between(b, &least, &most)));
    }
    if (!(types & MB_IS_FRACTION) || multiple == 1)
        return is_bounded ? mb_integers_between(b, &least, &most) : mb_json_integer(b);
    return is_bounded ? mb_decimals_between(b, &least, &most) : mb_json_any_number(b);
}

/* ---- Arrays ----------------------------------------------------------------------------------------- */

/* The positional items of a part, and the schema of those after them (NULL: any). */
static const json_t *first_items(const json_t *schema, const json_t **others) {
    const json_t *items = json_object_get(schema, "items"), *prefix = json_object_get(schema, "prefixItems");
    *others = items;
    if (prefix || !json_is_array(items))
        return prefix;
    *others = json_object_get(schema, "additionalItems"); /* before draft 2020 */
    return items;
}

static const char *item_path(mb_schemas *s, const mb_schema_part *part) {
    return mb_schema_path(s, part->path, "items");
}

/* The item at a position beyond all positional ones, or at one of them. */
static const mb_expr *item_at(mb_schemas *s, const mb_part_set *set, size_t position) {
    mb_part_set item = {0};
    for (size_t i = 0; i < set->n; i++) {
        const json_t *others, *first = first_items(set->parts[i].schema, &others);
        const json_t *schema = position < json_array_size(first) ? json_array_get(first, position) : others;
        if (schema)
            mb_parts_add(s, &item, schema, item_path(s, &set->parts[i]));
    }
    return mb_parts_expr(s, &item);
}

/* How many positions have schemas of their own. */
static size_t count_positions(mb_schemas *s, const mb_part_set *set) {
    enum { MAX_POSITIONS = 1000 };
    size_t n = 0;
    for (size_t i = 0; i < set->n; i++) {
        const json_t *others, *first = first_items(set->parts[i].schema, &others);
        if (first && !json_is_array(first))
            mb_schema_refuse(s, MB_ERR_FORMAT, set->parts[i].path, "prefixItems",
                             "it must be an array of schemas");
        n = n > json_array_size(first) ? n : json_array_size(first);
    }
    if (n > MAX_POSITIONS)
        mb_schema_refuse(s, MB_ERR_CAPACITY, set->parts[0].path, "prefixItems",
                         "more than 1000 are not supported");
    return n;
}

/* As schemas are understood here, a schema with positional items and no word on others has no others. */
static int allows_more(const mb_part_set *set) {
    int is_positional = 0, is_open = 0;
    for (size_t i = 0; i < set->n; i++) {
        const json_t *others, *first = first_items(set->parts[i].schema, &others);
        is_positional |= first != NULL;
        is_open |= others != NULL;
    }
    return is_open || !is_positional;
}

const mb_expr *mb_schema_array(mb_schemas *s, const mb_part_set *set) {
    mb_builder *b = s->builder;
    int min, max;
    if (!mb_schema_counts(s, set, "minItems", "maxItems", &min, &max))
        return mb_expr_never();
    size_t n_positions = count_positions(s, set);
    if (b->pool.status != MB_OK || min > max)
        return mb_expr_never();
    int n = (int)n_positions < max ? (int)n_positions : max;
    const mb_expr *comma = mb_json_comma(b), *content = mb_expr_empty();
    if (max > n && allows_more(set)) {
        const mb_expr *item = item_at(s, set, n_positions);
        int least = min > n ? min - n : 0, most = max == MB_UNBOUNDED ? max : max - n;
        if (n == 0) { /* the first has no comma before it */
            int others = most == MB_UNBOUNDED ? most : most - 1;
            content = mb_expr_pair(
                b, item, mb_expr_repeat(b, mb_expr_pair(b, comma, item), least > 0 ? least - 1 : 0, others));
        } else {
            content = mb_expr_repeat(b, mb_expr_pair(b, comma, item), least, most);
        }
    } else if (min > n) {
        return mb_expr_never();
    }
    for (int i = n; i-- > 0;) {
        const mb_expr *parts[] = {item_at(s, set, (size_t)i), content};
        content = mb_expr_sequence(b, parts, 2);
        if (i > 0)
            content = mb_expr_pair(b, comma, content);
        if (i > 0 && i >= min)
            content = mb_expr_maybe(b, content);
    }
    if (max == 0 || (n == 0 && content == mb_expr_empty()))
        return mb_json_brackets(b, "[]", mb_expr_never(), 1);
    return mb_json_brackets(b, "[]", content, min == 0);
}

/* ---- Objects ---------------------------------------------------------------------------------------- */

static const json_t *property_of(const json_t *schema, const char *name) {
    return json_object_get(json_object_get(schema, "properties"), name);
}

/* A word that must be an object or an array, if it is there. */
static void check_words(mb_schemas *s, const mb_schema_part *part) {
    const json_t *properties = json_object_get(part->schema, "properties");
    const json_t *required = json_object_get(part->schema, "required");
    if (properties && !mb_json_is_object(properties))
        mb_schema_refuse(s, MB_ERR_FORMAT, part->path, "properties", "it must be an object of schemas");
    if (required && !json_is_array(required) && !json_is_boolean(required)) /* draft 3 had a flag */
        mb_schema_refuse(s, MB_ERR_FORMAT, part->path, "required", "it must be an array of names");
    for (size_t i = 0; i < json_array_size(required); i++)
        if (!json_is_string(json_array_get(required, i)))
            mb_schema_refuse(s, MB_ERR_FORMAT, part->path, "required", "it must be an array of names");
}

static int is_required(const mb_part_set *set, const char *name) {
    for (size_t i = 0; i < set->n; i++) {
        const json_t *required = json_object_get(set->parts[i].schema, "required");
        for (size_t k = 0; k < json_array_size(required); k++) {
            const char *one = json_string_value(json_array_get(required, k));
            if (one && strcmp(one, name) == 0)
                return 1;
        }
    }
    return 0;
}

/* What a part says of properties that it does not name: NULL, nothing. */
static const json_t *others_of(const json_t *schema) {
    const json_t *others = json_object_get(schema, "additionalProperties");
    return others ? others : json_object_get(schema, "unevaluatedProperties");
}

/* The value of a property. */
static const mb_expr *property_value(mb_schemas *s, const mb_part_set *set, const char *name) {
    mb_part_set value = {0};
    for (size_t i = 0; i < set->n; i++) {
        const mb_schema_part *part = &set->parts[i];
        const json_t *own = property_of(part->schema, name), *others = others_of(part->schema);
        if (own)
            mb_parts_add(s, &value, own,
                         mb_schema_path(s, mb_schema_path(s, part->path, "properties"), name));
        else if (others)
            mb_parts_add(s, &value, others, mb_schema_path(s, part->path, "additionalProperties"));
    }
    return mb_parts_expr(s, &value);
}

typedef struct members {
    mb_expr_list list;
    const char **names;
    uint8_t *flags; /* of mb_expr_members */
    size_t n, names_capacity, flags_capacity;
} members;

/* Whether one of the first n parts has a schema for the property. */
static int is_named(const mb_part_set *set, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (property_of(set->parts[i].schema, name))
            return 1;
    return 0;
}

static void add_member(mb_schemas *s, const mb_part_set *set, const char *name, members *m) {
    mb_builder *b = s->builder;
    if (mb_grammar_grow(&b->pool, (void **)&m->names, &m->names_capacity, m->n + 1, sizeof *m->names) != 0 ||
        mb_grammar_grow(&b->pool, (void **)&m->flags, &m->flags_capacity, m->n + 1, 1) != 0)
        return;
    const mb_expr *parts[] = {mb_json_literal(b, name, strlen(name)), mb_json_colon(b),
                              property_value(s, set, name)};
    mb_expr_add(b, &m->list, mb_expr_sequence(b, parts, 3));
    m->names[m->n] = name;
    m->flags[m->n++] = is_required(set, name);
}

/* Those with schemas in the order in which the schemas name them, then others that are required. */
static void collect_members(mb_schemas *s, const mb_part_set *set, members *m) {
    for (size_t i = 0; i < set->n; i++) {
        const char *name;
        json_t *value;
        check_words(s, &set->parts[i]);
        json_object_foreach(json_object_get(set->parts[i].schema, "properties"), name,
                            value) if (!is_named(set, i, name)) add_member(s, set, name, m);
    }
    for (size_t i = 0, n_named = m->n; i < set->n; i++) {
        const json_t *required = json_object_get(set->parts[i].schema, "required");
        for (size_t k = 0; k < json_array_size(required); k++) {
            const char *name = json_string_value(json_array_get(required, k));
            int is_known = !name || is_named(set, set->n, name);
            for (size_t j = n_named; j < m->n && !is_known; j++)
                is_known = strcmp(m->names[j], name) == 0;
            if (!is_known)
                add_member(s, set, name, m);
        }
    }
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The raw characters of a string that is none of names first to last - 1, which are sorted and alike in their
 * first `at` bytes. Characters, not bytes, are told apart. */
static const mb_expr *other_name(mb_builder *b, const char *const *names, size_t n, size_t at) {
    static const mb_char_range raw[] = {{' ', '!'}, {'#', '['}, {']', MB_LAST_CHAR}};
    const mb_expr *any = mb_expr_repeat(b, mb_expr_chars(b, raw, 3), 0, MB_UNBOUNDED);
    mb_char_range *next = mb_grammar_pool_push(&b->pool, 2 * n + 4, sizeof *next);
    mb_expr_list list = {0};
    size_t n_next = 0, first = 0;
    if (!next)
        return mb_expr_never();
    if (n == 0)
        return any;
    while (first < n && names[first][at] == '\0')
        first++;
    if (first == 0)
        mb_expr_add(b, &list, mb_expr_empty());
    while (first < n) {
        size_t end = at, last = first + 1;
        uint32_t c = mb_utf8_decode(names[first], &end);
        while (last < n && strncmp(names[first] + at, names[last] + at, end - at) == 0)
            last++;
        mb_char_range one = {c, c};
        next[n_next++] = one;
        if (c >= ' ' && c != '"' && c != '\\')
            mb_expr_add(
                b, &list,
                mb_expr_pair(b, mb_expr_chars(b, &one, 1), other_name(b, names + first, last - first, end)));
        first = last;
    }
    next[n_next++] = (mb_char_range){0, ' ' - 1};
    next[n_next++] = (mb_char_range){'"', '"'};
    next[n_next++] = (mb_char_range){'\\', '\\'};
    n_next = mb_chars_normalise(next, n_next);
    mb_char_range *others = mb_grammar_pool_push(&b->pool, n_next + 1, sizeof *others);
    if (others)
        mb_expr_add(
            b, &list,
            mb_expr_pair(b, mb_expr_chars(b, others, mb_chars_complement(next, n_next, others)), any));
    return mb_expr_list_choice(b, &list);
}

/* A name of a property that has no schema of its own. */
static const mb_expr *free_name(mb_schemas *s, const mb_part_set *set, members *m) {
    mb_builder *b = s->builder;
    mb_part_set names = {0};
    for (size_t i = 0; i < set->n; i++) {
        const json_t *of_names = json_object_get(set->parts[i].schema, "propertyNames");
        if (of_names && m->n > 0)
            mb_schema_refuse(s, MB_ERR_UNSUPPORTED, set->parts[i].path, "propertyNames",
                             "this word is not supported beside properties or required");
        else if (of_names)
            mb_parts_add(s, &names, of_names, mb_schema_path(s, set->parts[i].path, "propertyNames"));
    }
    if (b->pool.status != MB_OK)
        return NULL;
    if (names.n > 0 || names.is_never) {
        const mb_expr *expr = names.is_never ? mb_expr_never() : mb_schema_enum(s, &names, MB_IS_STRING);
        if (!expr && b->pool.status == MB_OK)
            expr = mb_schema_string(s, &names);
        mb_parts_free(&names);
        return expr;
    }
    if (m->n == 0)
        return mb_json_string(b);
    qsort(m->names, m->n, sizeof *m->names, compare_names);
    return quoted(b, other_name(b, m->names, m->n, 0));
}

/* Whether there may be properties that no schema names: when some part says so, or when no part names any. */
static int is_open(const mb_part_set *set, const members *m) {
    int says_so = 0, names_some = 0;
    for (size_t i = 0; i < set->n; i++) {
        const json_t *others = others_of(set->parts[i].schema);
        if (json_is_false(others))
            return 0;
        says_so |= others != NULL;
        names_some |= json_object_get(set->parts[i].schema, "properties") != NULL;
    }
    return says_so || !names_some || m->n == 0;
}

/* The value of such a property. */
static const mb_expr *free_value(mb_schemas *s, const mb_part_set *set) {
    mb_part_set value = {0};
    for (size_t i = 0; i < set->n; i++) {
        const json_t *others = others_of(set->parts[i].schema);
        if (others)
            mb_parts_add(s, &value, others, mb_schema_path(s, set->parts[i].path, "additionalProperties"));
    }
    return mb_parts_expr(s, &value);
}

static const mb_expr *object_of(mb_schemas *s, const mb_part_set *set, members *m) {
    mb_builder *b = s->builder;
    collect_members(s, set, m);
    const mb_expr *free_member = NULL;
    if (b->pool.status == MB_OK && is_open(set, m)) {
        const mb_expr *name = free_name(s, set, m);
        const mb_expr *parts[] = {name ? name : mb_expr_never(), mb_json_colon(b), free_value(s, set)};
        free_member = mb_expr_sequence(b, parts, 3);
    }
    if (b->pool.status != MB_OK)
        return NULL;
    int may_be_empty = memchr(m->flags ? m->flags : (uint8_t *)"", 1, m->n) == NULL;
    if (m->n == 0 && !free_member)
        return mb_json_brackets(b, "{}", mb_expr_never(), 1);
    return mb_json_brackets(b, "{}",
                            mb_expr_members(b, m->list.items, m->flags, m->n, free_member, mb_json_comma(b)),
                            may_be_empty);
}

const mb_expr *mb_schema_object(mb_schemas *s, const mb_part_set *set) {
    members m = {0};
    const mb_expr *expr = object_of(s, set, &m);
    mb_free(m.list.items);
    mb_free(m.names);
    mb_free(m.flags);
    return expr ? expr : mb_expr_never();
}
