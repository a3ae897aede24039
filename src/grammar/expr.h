/*
 * expr.h - what a grammar is made of before it becomes an automaton: expressions, and rules that expressions
 * call. A schema, a regular expression and a choice all become expressions.
 *
 * Expressions do not change once they are made and may be used in several places. When memory runs out the
 * functions return an expression that may be passed on; the builder's pool keeps the failure.
 */
#ifndef MB_GRAMMAR_EXPR_H
#define MB_GRAMMAR_EXPR_H

#include <stdint.h>

#include "grammar/pool.h"

typedef enum mb_expr_kind {
    MB_EXPR_NEVER,     /* nothing, not even the empty text */
    MB_EXPR_TEXT,      /* these bytes; none of them is the empty text */
    MB_EXPR_BYTE,      /* one byte of a range */
    MB_EXPR_CHARS,     /* one character of a set, in UTF-8 */
    MB_EXPR_SEQUENCE,  /* all items in order */
    MB_EXPR_CHOICE,    /* one of the items */
    MB_EXPR_REPEAT,    /* items[0], min to max times */
    MB_EXPR_CALL,      /* what a rule matches */
    MB_EXPR_MEMBERS,   /* members of an object, see mb_expr_members */
    MB_EXPR_MULTIPLES, /* integers that max divides */
    MB_EXPR_UNTIL,     /* any bytes up to the first occurrence of a text, and with it */
} mb_expr_kind;

enum { MB_UNBOUNDED = 0x7fffffff, MB_LAST_CHAR = 0x10ffff };

typedef struct mb_char_range {
    uint32_t first, last; /* code points, both included */
} mb_char_range;

typedef struct mb_expr {
    mb_expr_kind kind;
    uint32_t n;   /* bytes of a text, ranges, items */
    int min, max; /* of a repeat; first and last byte of a range; min is the rule of a call */
    union {
        const char *text;
        const mb_char_range *ranges; /* sorted, apart */
        const struct mb_expr *const *items;
    } of;
    const uint8_t *flags; /* of members */
} mb_expr;

typedef struct mb_rule {
    const mb_expr *body;
    int both_with; /* another rule that must match the same text; -1: none. Then neither may call rules. */
    int countdown; /* no body: at most so many characters of a JSON string and its closing quote; -1: none */
} mb_rule;

/* A rule `countdown` is one of a chain of automata, each of which goes on to that of one character less. So
 * all strings of a grammar share their states, whatever their lengths. */
enum { MB_MAX_COUNTDOWN = 8192 };

typedef struct mb_builder {
    mb_grammar_pool pool;
    mb_rule *rules; /* growing; rule 0 is the whole grammar */
    size_t n_rules, capacity;
    struct mb_json_rules *json; /* rules of JSON that are made once (json_values.h); or NULL */
} mb_builder;

void mb_builder_free(mb_builder *builder);

const mb_expr *mb_expr_never(void);
const mb_expr *mb_expr_empty(void);
const mb_expr *mb_expr_text(mb_builder *builder, const char *text, size_t n_bytes);
const mb_expr *mb_expr_string(mb_builder *builder, const char *text);                /* zero-terminated */
const mb_expr *mb_expr_until(mb_builder *builder, const char *text, size_t n_bytes); /* n_bytes > 0 */
const mb_expr *mb_expr_byte(mb_builder *builder, int first, int last);
/* The ranges may be in any order and overlap. Surrogates are no characters and are left out. */
const mb_expr *mb_expr_chars(mb_builder *builder, const mb_char_range *ranges, size_t n);
/* The items are copied. */
const mb_expr *mb_expr_sequence(mb_builder *builder, const mb_expr *const *items, size_t n);
const mb_expr *mb_expr_choice(mb_builder *builder, const mb_expr *const *items, size_t n);
const mb_expr *mb_expr_repeat(mb_builder *builder, const mb_expr *item, int min, int max);
/* At least one of the items, in order, with the separator between. Those whose flag is not 0 must be there.
 * After them all, any number of `others` (NULL: none). */
const mb_expr *mb_expr_members(mb_builder *builder, const mb_expr *const *items, const uint8_t *flags,
                               size_t n, const mb_expr *others, const mb_expr *separator);
/* Decimal integers, maybe with a minus, that a number from 1 to 1000 divides. */
const mb_expr *mb_expr_multiples(mb_builder *builder, int divisor);
const mb_expr *mb_expr_call(mb_builder *builder, int rule);
const mb_expr *mb_expr_maybe(mb_builder *builder, const mb_expr *item);
const mb_expr *mb_expr_pair(mb_builder *builder, const mb_expr *first, const mb_expr *second);

/* A new rule; its body may be set later. -1 on failure. */
int mb_rule_add(mb_builder *builder, const mb_expr *body);
int mb_rule_add_countdown(mb_builder *builder, int n_characters); /* at most MB_MAX_COUNTDOWN */
void mb_rule_set(mb_builder *builder, int rule, const mb_expr *body);

/* Items that are collected one by one. mb_expr_list_* end the list and free it. */
typedef struct mb_expr_list {
    const mb_expr **items;
    size_t n, capacity;
} mb_expr_list;

void mb_expr_add(mb_builder *builder, mb_expr_list *list, const mb_expr *item);
const mb_expr *mb_expr_list_sequence(mb_builder *builder, mb_expr_list *list);
const mb_expr *mb_expr_list_choice(mb_builder *builder, mb_expr_list *list);

/* Sets of characters. `out` has room for n + 1 ranges; returns their number. */
size_t mb_chars_normalise(mb_char_range *ranges, size_t n); /* sorts and merges in place */
size_t mb_chars_complement(const mb_char_range *ranges, size_t n, mb_char_range *out);

#endif
