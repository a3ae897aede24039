/*
 * schema_parts.h - the inside of json_schema.h: schemas that a value must satisfy all at once.
 *
 * A schema with "$ref" or "allOf" is a set of parts. Parts whose "anyOf" or "oneOf" was taken apart already
 * say so in `done`. Equal sets are one rule, which is how recursion ends.
 */
#ifndef MB_GRAMMAR_SCHEMA_PARTS_H
#define MB_GRAMMAR_SCHEMA_PARTS_H

#include <jansson.h>

#include "grammar/expr.h"

enum { MB_DONE_ANY_OF = 1, MB_DONE_ONE_OF = 2 };

typedef struct mb_schema_part {
    const json_t *schema;
    const char *path; /* for sentences: "#/properties/a" */
    uint32_t done;
} mb_schema_part;

typedef struct mb_part_set {
    mb_schema_part *parts;
    size_t n, capacity;
    int is_never; /* one of them is the schema `false` */
    int depth;    /* of references, while parts are added */
} mb_part_set;

typedef struct mb_part_rule { /* a set that became a rule */
    mb_part_set set;
    uint64_t hash;
    int rule;
} mb_part_rule;

typedef struct mb_schemas {
    mb_builder *builder;
    const json_t *root;
    const char *root_path;
    mb_part_rule *rules; /* in order; those from n_compiled on have no body yet */
    size_t n_rules, n_compiled, capacity;
    uint32_t *slots; /* hash table of rules: number + 1 */
    size_t n_slots;
} mb_schemas;

/* What a value of all these parts looks like, or a call of a rule that will say so. Takes the set over. */
const mb_expr *mb_parts_expr(mb_schemas *s, mb_part_set *set);
/* Adds a schema with what its "$ref" and "allOf" lead to. */
void mb_parts_add(mb_schemas *s, mb_part_set *set, const json_t *schema, const char *path);
void mb_parts_free(mb_part_set *set);

/* Refusals; NULL is returned for callers that return an expression. The sentence begins with the path. */
const mb_expr *mb_schema_refuse(mb_schemas *s, mb_status status, const char *path, const char *word,
                                const char *why);
/* path/word, escaped as a JSON pointer. Lives as long as the builder. */
const char *mb_schema_path(mb_schemas *s, const char *path, const char *word);

/* "type" of the parts together, as bits. Without any "type" the other words tell it. */
enum {
    MB_IS_NULL = 1,
    MB_IS_BOOLEAN = 2,
    MB_IS_INTEGER = 4,
    MB_IS_FRACTION = 8, /* a number that is not written as an integer */
    MB_IS_STRING = 16,
    MB_IS_ARRAY = 32,
    MB_IS_OBJECT = 64,
    MB_IS_NUMBER = MB_IS_INTEGER | MB_IS_FRACTION,
    MB_IS_ANY = 127,
};
uint32_t mb_schema_types(mb_schemas *s, const mb_part_set *set);
/* Of one schema: the bits of "type", 0 when there is none or it is wrong; and those that
 * its words are about. */
uint32_t mb_schema_own_types(const json_t *schema, int *is_wrong);
uint32_t mb_schema_types_of_words(const json_t *schema);
uint32_t mb_value_type(const json_t *value);

/* Words of a part are known, and those that are not supported are refused. */
void mb_schema_check_words(mb_schemas *s, const json_t *schema, const char *path);

/* The kinds of values (schema_*.c). `set` has no anyOf or oneOf that is not done. */
const mb_expr *mb_schema_string(mb_schemas *s, const mb_part_set *set);
const mb_expr *mb_schema_number(mb_schemas *s, const mb_part_set *set, uint32_t types);
const mb_expr *mb_schema_array(mb_schemas *s, const mb_part_set *set);
const mb_expr *mb_schema_object(mb_schemas *s, const mb_part_set *set);
/* Of "enum" and "const" of the parts; NULL, without a failure, when there are none. */
const mb_expr *mb_schema_enum(mb_schemas *s, const mb_part_set *set, uint32_t types);
/* A value as it may stand in the text. */
const mb_expr *mb_schema_literal(mb_schemas *s, const json_t *value, const char *path);

/* The least and the most of a count over all parts: "minLength", "maxLength". 0 on failure. */
int mb_schema_counts(mb_schemas *s, const mb_part_set *set, const char *min_word, const char *max_word,
                     int *min, int *max);

/* 1 when no value that is made of `a` satisfies `b`, as far as types, constants and required properties
 * tell. */
int mb_schemas_are_disjoint(mb_schemas *s, const json_t *a, const json_t *b);
/* What a "$ref" means within the root; NULL: nothing. */
const json_t *mb_schema_resolve(const mb_schemas *s, const char *reference);

/* A number of a schema. */
typedef struct mb_bound {
    double value;
    int is_set, is_strict;
} mb_bound;
void mb_schema_bounds(mb_schemas *s, const mb_part_set *set, mb_bound *least, mb_bound *most);
/* "multipleOf" of the parts as one integer; 0: none, or a failure. */
int mb_schema_multiple(mb_schemas *s, const mb_part_set *set);

/* number_range.c: integers and decimals between bounds, which need not be set. */
const mb_expr *mb_integers_between(mb_builder *b, const mb_bound *least, const mb_bound *most);
const mb_expr *mb_decimals_between(mb_builder *b, const mb_bound *least, const mb_bound *most);

/* schema_format.c: the pattern of a "format"; NULL: one that is only an annotation. */
const char *mb_format_pattern(const char *format);

#endif
