/* json_schema.c - schemas to rules: references, alternatives, and which kind of value comes where. */
#include "grammar/json_schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/alloc.h"
#include "grammar/compile.h"
#include "grammar/json_text.h"
#include "grammar/schema_parts.h"
#include "model/json.h"

enum { MAX_PARTS = 256 }; /* of one value */

/* ---- Sentences -------------------------------------------------------------------------------------- */

const mb_expr *mb_schema_refuse(mb_schemas *s, mb_status status, const char *path, const char *word,
                                const char *why) {
    if (s->builder->pool.status != MB_OK)
        return NULL;
    const char *full = word ? mb_schema_path(s, path, word) : path;
    if (s->builder->pool.status == MB_OK)
        s->builder->pool.status = mb_fail(status, "%s: %s", full, why);
    return NULL;
}

const char *mb_schema_path(mb_schemas *s, const char *path, const char *word) {
    size_t n = strlen(path);
    char *joined = mb_grammar_pool_push(&s->builder->pool, n + 2 * strlen(word) + 2, 1);
    if (!joined)
        return "#";
    memcpy(joined, path, n);
    joined[n++] = '/';
    for (; *word; word++) {
        if (*word == '~' || *word == '/')
            joined[n++] = '~';
        joined[n++] = (char)(*word == '~' ? '0' : *word == '/' ? '1' : *word);
    }
    joined[n] = '\0';
    return joined;
}

static int has_failed(const mb_schemas *s) {
    return s->builder->pool.status != MB_OK;
}

/* ---- References ------------------------------------------------------------------------------------- */

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The next word of a JSON pointer in a URI's fragment, unescaped in place; *at moves behind it. */
static char *next_word(char **at) {
    char *word = *at, *out = *at, *in = *at;
    while (*in && *in != '/') {
        if (*in == '%' && hex_digit(in[1]) >= 0 && hex_digit(in[2]) >= 0) {
            *out++ = (char)(hex_digit(in[1]) * 16 + hex_digit(in[2]));
            in += 3;
        } else {
            *out++ = *in++;
        }
    }
    *at = *in ? in + 1 : NULL;
    *out = '\0';
    for (in = out = word; *in; in++) {
        int is_escape = *in == '~' && (in[1] == '0' || in[1] == '1');
        *out++ = (char)(is_escape ? in[1] == '0' ? '~' : '/' : *in);
        in += is_escape;
    }
    *out = '\0';
    return word;
}

const json_t *mb_schema_resolve(const mb_schemas *s, const char *reference) {
    const json_t *at = s->root;
    if (reference[0] != '#' || (reference[1] != '/' && reference[1] != '\0'))
        return NULL;
    if (reference[1] == '\0')
        return at;
    char *copy = mb_strdup(reference + 2), *next = copy;
    if (!copy) {
        s->builder->pool.status = mb_fail(MB_ERR_MEMORY, "no memory to compile a grammar");
        return NULL;
    }
    while (next && at) {
        char *word = next_word(&next), *end = word;
        if (json_is_array(at)) {
            unsigned long index = strtoul(word, &end, 10);
            at = *word && !*end ? json_array_get(at, index) : NULL;
        } else {
            at = json_object_get(at, word);
        }
    }
    mb_free(copy);
    return at;
}

/* ---- Sets of parts ---------------------------------------------------------------------------------- */

void mb_parts_free(mb_part_set *set) {
    mb_free(set->parts);
    *set = (mb_part_set){0};
}

static int push(mb_schemas *s, mb_part_set *set, mb_schema_part part) {
    for (size_t i = 0; i < set->n; i++)
        if (set->parts[i].schema == part.schema && set->parts[i].done == part.done)
            return 0;
    if (set->n == MAX_PARTS) {
        mb_schema_refuse(s, MB_ERR_CAPACITY, part.path, NULL, "too many schemas apply to one value");
        return 0;
    }
    if (mb_grammar_grow(&s->builder->pool, (void **)&set->parts, &set->capacity, set->n + 1,
                        sizeof *set->parts) != 0)
        return 0;
    set->parts[set->n++] = part;
    return 1;
}

/* A schema that only points at others, as {"$ref": "#/$defs/a", "title": "A"} does, is no part: sets that
 * differ in such schemas alone are one set. */
static int says_something(const json_t *schema) {
    static const char *const words[] = {
        "type",
        "enum",
        "const",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "prefixItems",
        "additionalItems",
        "propertyNames",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "multipleOf",
        "anyOf",
        "oneOf",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "unevaluatedProperties",
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (json_object_get(schema, words[i]))
            return 1;
    return 0;
}

static void follow(mb_schemas *s, mb_part_set *set, const json_t *reference, const char *path) {
    const char *text = json_string_value(reference);
    const json_t *target = text ? mb_schema_resolve(s, text) : NULL;
    if (!text)
        mb_schema_refuse(s, MB_ERR_FORMAT, path, "$ref", "it must be a string");
    else if (!target)
        mb_schema_refuse(s, text[0] == '#' && text[1] == '/' ? MB_ERR_FORMAT : MB_ERR_UNSUPPORTED, path,
                         "$ref",
                         "nothing has this name; references are paths within the schema, as in #/$defs/name");
    else
        mb_parts_add(s, set, target, text);
}

/* Recursion: at most MAX_PARTS deep. */
void mb_parts_add(mb_schemas *s, mb_part_set *set, const json_t *schema, const char *path) {
    if (has_failed(s) || json_is_true(schema))
        return;
    if (json_is_false(schema)) {
        set->is_never = 1;
        return;
    }
    if (!mb_json_is_object(schema)) {
        mb_schema_refuse(s, MB_ERR_FORMAT, path, NULL, "a schema is an object, true or false");
        return;
    }
    if (says_something(schema) && !push(s, set, (mb_schema_part){schema, path, 0}))
        return;
    if (set->depth == MAX_PARTS) {
        mb_schema_refuse(s, MB_ERR_FORMAT, path, NULL,
                         "references that lead to themselves, or too many of them");
        return;
    }
    set->depth++;
    mb_schema_check_words(s, schema, path);
    const json_t *reference = json_object_get(schema, "$ref"), *all = json_object_get(schema, "allOf");
    if (reference)
        follow(s, set, reference, path);
    if (all && !json_is_array(all))
        mb_schema_refuse(s, MB_ERR_FORMAT, path, "allOf", "it must be an array");
    for (size_t i = 0; i < json_array_size(all) && !has_failed(s); i++)
        mb_parts_add(s, set, json_array_get(all, i), mb_schema_path(s, path, "allOf"));
    set->depth--;
}

static int are_same(const mb_part_set *a, const mb_part_set *b) {
    if (a->n != b->n)
        return 0;
    for (size_t i = 0; i < a->n; i++)
        if (a->parts[i].schema != b->parts[i].schema || a->parts[i].done != b->parts[i].done)
            return 0;
    return 1;
}

/* Properties come in the order of the parts, so the order is part of the set. */
static uint64_t hash_of(const mb_part_set *set) {
    uint64_t hash = 0;
    for (size_t i = 0; i < set->n; i++) {
        const void *key[] = {set->parts[i].schema, (const void *)(uintptr_t)set->parts[i].done};
        hash = XXH3_64bits_withSeed(key, sizeof key, hash);
    }
    return hash;
}

static int grow_slots(mb_schemas *s) {
    if (s->n_slots > 2 * (s->n_rules + 1))
        return 0;
    size_t n_slots = s->n_slots ? 2 * s->n_slots : 64;
    uint32_t *slots = mb_calloc(n_slots, sizeof *slots);
    if (!slots) {
        s->builder->pool.status = mb_fail(MB_ERR_MEMORY, "no memory to compile a grammar");
        return -1;
    }
    for (uint32_t i = 0; i < s->n_rules; i++) {
        size_t slot = s->rules[i].hash & (n_slots - 1);
        while (slots[slot])
            slot = (slot + 1) & (n_slots - 1);
        slots[slot] = i + 1;
    }
    mb_free(s->slots);
    s->slots = slots;
    s->n_slots = n_slots;
    return 0;
}

/* The rule of the set, which it takes over. A new one gets its body later. */
static int rule_of(mb_schemas *s, mb_part_set *set) {
    if (grow_slots(s) != 0)
        return -1;
    uint64_t hash = hash_of(set);
    size_t slot = hash & (s->n_slots - 1);
    for (; s->slots[slot]; slot = (slot + 1) & (s->n_slots - 1)) {
        const mb_part_rule *known = &s->rules[s->slots[slot] - 1];
        if (known->hash == hash && are_same(&known->set, set))
            return known->rule;
    }
    int rule = mb_rule_add(s->builder, mb_expr_never());
    if (rule < 0 || mb_grammar_grow(&s->builder->pool, (void **)&s->rules, &s->capacity, s->n_rules + 1,
                                    sizeof *s->rules) != 0)
        return -1;
    s->rules[s->n_rules++] = (mb_part_rule){*set, hash, rule};
    s->slots[slot] = (uint32_t)s->n_rules;
    *set = (mb_part_set){0};
    return rule;
}

/* ---- Alternatives ----------------------------------------------------------------------------------- */

static const char *open_word(const mb_schema_part *part) {
    if (!(part->done & MB_DONE_ANY_OF) && json_object_get(part->schema, "anyOf"))
        return "anyOf";
    if (!(part->done & MB_DONE_ONE_OF) && json_object_get(part->schema, "oneOf"))
        return "oneOf";
    return NULL;
}

static const mb_schema_part *open_part(const mb_part_set *set) {
    for (size_t i = 0; i < set->n; i++)
        if (open_word(&set->parts[i]))
            return &set->parts[i];
    return NULL;
}

/* oneOf is anyOf where no value fits two of the schemas. */
static void check_disjoint(mb_schemas *s, const json_t *branches, const char *path) {
    size_t n = json_array_size(branches);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < n && !has_failed(s); k++)
            if (i != k &&
                !mb_schemas_are_disjoint(s, json_array_get(branches, i), json_array_get(branches, k)))
                mb_schema_refuse(
                    s, MB_ERR_UNSUPPORTED, path, "oneOf",
                    "two of its schemas may accept the same value; use anyOf, or give them different "
                    "types, constants or required properties");
}

static const mb_expr *branch_expr(mb_schemas *s, const mb_part_set *set, const mb_schema_part *part,
                                  const json_t *branch, const char *path, uint32_t done) {
    mb_part_set one = {0};
    for (size_t i = 0; i < set->n; i++) {
        mb_schema_part copy = set->parts[i];
        if (&set->parts[i] == part)
            copy.done |= done;
        push(s, &one, copy);
    }
    mb_parts_add(s, &one, branch, path);
    return mb_parts_expr(s, &one);
}

static const mb_expr *alternatives(mb_schemas *s, const mb_part_set *set, const mb_schema_part *part) {
    const char *word = open_word(part), *path = mb_schema_path(s, part->path, word);
    const json_t *branches = json_object_get(part->schema, word);
    int is_any = strcmp(word, "anyOf") == 0;
    if (!json_is_array(branches) || json_array_size(branches) == 0)
        return mb_schema_refuse(s, MB_ERR_FORMAT, part->path, word, "it must be an array of schemas");
    if (!is_any)
        check_disjoint(s, branches, part->path);
    mb_expr_list list = {0};
    for (size_t i = 0; i < json_array_size(branches) && !has_failed(s); i++) {
        char number[24];
        snprintf(number, sizeof number, "%zu", i);
        const mb_expr *expr =
            branch_expr(s, set, part, json_array_get(branches, i), mb_schema_path(s, path, number),
                        is_any ? MB_DONE_ANY_OF : MB_DONE_ONE_OF);
        if (expr)
            mb_expr_add(s->builder, &list, expr);
    }
    return mb_expr_list_choice(s->builder, &list);
}

/* ---- Values ----------------------------------------------------------------------------------------- */

static const mb_expr *value_of_types(mb_schemas *s, const mb_part_set *set, uint32_t types) {
    mb_builder *b = s->builder;
    mb_expr_list list = {0};
    if (types & MB_IS_OBJECT)
        mb_expr_add(b, &list, mb_schema_object(s, set));
    if (types & MB_IS_ARRAY && !has_failed(s))
        mb_expr_add(b, &list, mb_schema_array(s, set));
    if (types & MB_IS_STRING && !has_failed(s))
        mb_expr_add(b, &list, mb_schema_string(s, set));
    if (types & MB_IS_NUMBER && !has_failed(s))
        mb_expr_add(b, &list, mb_schema_number(s, set, types));
    if (types & MB_IS_BOOLEAN) {
        mb_expr_add(b, &list, mb_expr_string(b, "true"));
        mb_expr_add(b, &list, mb_expr_string(b, "false"));
    }
    if (types & MB_IS_NULL)
        mb_expr_add(b, &list, mb_expr_string(b, "null"));
    if (has_failed(s))
        list.n = 0;
    return mb_expr_list_choice(b, &list);
}

const mb_expr *mb_parts_expr(mb_schemas *s, mb_part_set *set) {
    const mb_expr *expr = NULL;
    if (has_failed(s) || set->is_never) {
        expr = mb_expr_never();
    } else if (set->n == 0) {
        expr = mb_json_value(s->builder);
    } else if (!open_part(set)) {
        uint32_t types = mb_schema_types(s, set);
        expr = mb_schema_enum(s, set, types);
        if (!expr && !has_failed(s) && types == MB_IS_ANY)
            expr = mb_json_value(s->builder);
        else if (!expr && !has_failed(s) && !(types & (MB_IS_OBJECT | MB_IS_ARRAY)))
            expr = value_of_types(s, set, types);
    }
    if (!expr && !has_failed(s))
        expr = mb_expr_call(s->builder, rule_of(s, set));
    mb_parts_free(set);
    return has_failed(s) ? mb_expr_never() : expr;
}

static void compile_rule(mb_schemas *s, mb_part_rule rule) {
    const mb_schema_part *part = open_part(&rule.set);
    const mb_expr *body =
        part ? alternatives(s, &rule.set, part) : value_of_types(s, &rule.set, mb_schema_types(s, &rule.set));
    if (body)
        mb_rule_set(s->builder, rule.rule, body);
}

const mb_expr *mb_schema_expr(mb_builder *b, const json_t *schema, const char *path) {
    mb_schemas s = {.builder = b, .root = schema, .root_path = path};
    mb_part_set set = {0};
    mb_parts_add(&s, &set, schema, path);
    const mb_expr *expr = mb_parts_expr(&s, &set);
    while (s.n_compiled < s.n_rules && !has_failed(&s))
        compile_rule(&s, s.rules[s.n_compiled++]);
    for (size_t i = 0; i < s.n_rules; i++)
        mb_parts_free(&s.rules[i].set);
    mb_free(s.rules);
    mb_free(s.slots);
    return has_failed(&s) ? NULL : expr;
}

const mb_expr *mb_schema_parse(mb_builder *b, const char *text, size_t n_bytes) {
    json_t *root;
    b->pool.status = mb_json_parse("the schema", text, n_bytes, &root);
    const mb_expr *expr = root ? mb_schema_expr(b, root, "#") : NULL;
    mb_json_free(root);
    return expr;
}
