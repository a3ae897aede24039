#include "grammar/expr.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

enum { MAX_RULES = 1 << 17 };

static const mb_expr never = {.kind = MB_EXPR_NEVER};
static const mb_expr empty = {.kind = MB_EXPR_TEXT};

void mb_builder_free(mb_builder *builder) {
    mb_grammar_pool_free(&builder->pool);
    mb_free(builder->rules);
    *builder = (mb_builder){0};
}

/* ---- Expressions ------------------------------------------------------------------------------------ */

const mb_expr *mb_expr_never(void) {
    return &never;
}

const mb_expr *mb_expr_empty(void) {
    return &empty;
}

static mb_expr *new_expr(mb_builder *builder, mb_expr_kind kind) {
    mb_expr *expr = mb_grammar_pool_push(&builder->pool, 1, sizeof *expr);
    if (expr)
        expr->kind = kind;
    return expr;
}

const mb_expr *mb_expr_text(mb_builder *builder, const char *text, size_t n_bytes) {
    if (n_bytes == 0)
        return &empty;
    char *copy = mb_grammar_pool_push(&builder->pool, n_bytes, 1);
    mb_expr *expr = new_expr(builder, MB_EXPR_TEXT);
    if (!copy || !expr)
        return &never;
    memcpy(copy, text, n_bytes);
    expr->n = (uint32_t)n_bytes;
    expr->of.text = copy;
    return expr;
}

const mb_expr *mb_expr_string(mb_builder *builder, const char *text) {
    return mb_expr_text(builder, text, strlen(text));
}

const mb_expr *mb_expr_until(mb_builder *builder, const char *text, size_t n_bytes) {
    mb_expr *expr = (mb_expr *)mb_expr_text(builder, text, n_bytes);
    if (expr->kind == MB_EXPR_TEXT)
        expr->kind = MB_EXPR_UNTIL;
    return expr;
}

const mb_expr *mb_expr_byte(mb_builder *builder, int first, int last) {
    mb_expr *expr = new_expr(builder, MB_EXPR_BYTE);
    if (!expr)
        return &never;
    expr->min = first;
    expr->max = last;
    return expr;
}

static const mb_expr *copy_items(mb_builder *builder, mb_expr_kind kind, const mb_expr *const *items,
                                 size_t n) {
    const mb_expr **copy = mb_grammar_pool_push(&builder->pool, n, sizeof *copy);
    mb_expr *expr = new_expr(builder, kind);
    if (!copy || !expr)
        return &never;
    memcpy(copy, items, n * sizeof *copy);
    expr->n = (uint32_t)n;
    expr->of.items = copy;
    return expr;
}

const mb_expr *mb_expr_sequence(mb_builder *builder, const mb_expr *const *items, size_t n) {
    if (n == 0)
        return &empty;
    for (size_t i = 0; i < n; i++)
        if (items[i]->kind == MB_EXPR_NEVER)
            return &never;
    return n == 1 ? items[0] : copy_items(builder, MB_EXPR_SEQUENCE, items, n);
}

const mb_expr *mb_expr_choice(mb_builder *builder, const mb_expr *const *items, size_t n) {
    if (n == 0)
        return &never;
    return n == 1 ? items[0] : copy_items(builder, MB_EXPR_CHOICE, items, n);
}

const mb_expr *mb_expr_repeat(mb_builder *builder, const mb_expr *item, int min, int max) {
    if (max < min)
        return &never;
    if (max == 0 || (item->kind == MB_EXPR_TEXT && item->n == 0))
        return &empty;
    if (min == 1 && max == 1)
        return item;
    const mb_expr *copied = copy_items(builder, MB_EXPR_REPEAT, &item, 1);
    if (copied->kind != MB_EXPR_REPEAT)
        return &never;
    mb_expr *expr = (mb_expr *)copied;
    expr->min = min;
    expr->max = max;
    return expr;
}

const mb_expr *mb_expr_members(mb_builder *builder, const mb_expr *const *items, const uint8_t *flags,
                               size_t n, const mb_expr *others, const mb_expr *separator) {
    const mb_expr **all = mb_grammar_pool_push(&builder->pool, n + 2, sizeof *all);
    uint8_t *copy = mb_grammar_pool_push(&builder->pool, n + 1, 1);
    mb_expr *expr = new_expr(builder, MB_EXPR_MEMBERS);
    if (!all || !copy || !expr)
        return &never;
    if (n > 0) {
        memcpy(all, items, n * sizeof *all);
        memcpy(copy, flags, n);
    }
    all[n] = others ? others : &never;
    all[n + 1] = separator;
    expr->n = (uint32_t)n;
    expr->of.items = all;
    expr->flags = copy;
    return expr;
}

const mb_expr *mb_expr_multiples(mb_builder *builder, int divisor) {
    mb_expr *expr = new_expr(builder, MB_EXPR_MULTIPLES);
    if (!expr)
        return &never;
    expr->max = divisor;
    return expr;
}

const mb_expr *mb_expr_call(mb_builder *builder, int rule) {
    mb_expr *expr = new_expr(builder, MB_EXPR_CALL);
    if (!expr)
        return &never;
    expr->min = rule;
    return expr;
}

const mb_expr *mb_expr_maybe(mb_builder *builder, const mb_expr *item) {
    return mb_expr_repeat(builder, item, 0, 1);
}

const mb_expr *mb_expr_pair(mb_builder *builder, const mb_expr *first, const mb_expr *second) {
    const mb_expr *items[] = {first, second};
    return mb_expr_sequence(builder, items, 2);
}

/* ---- Rules ------------------------------------------------------------------------------------------ */

int mb_rule_add(mb_builder *builder, const mb_expr *body) {
    if (builder->n_rules == MAX_RULES) {
        mb_grammar_too_large(&builder->pool, "rules", MAX_RULES);
        return -1;
    }
    if (mb_grammar_grow(&builder->pool, (void **)&builder->rules, &builder->capacity, builder->n_rules + 1,
                        sizeof *builder->rules) != 0)
        return -1;
    builder->rules[builder->n_rules] = (mb_rule){.body = body, .both_with = -1, .countdown = -1};
    return (int)builder->n_rules++;
}

int mb_rule_add_countdown(mb_builder *builder, int n_characters) {
    for (size_t i = 0; i < builder->n_rules; i++)
        if (builder->rules[i].countdown == n_characters)
            return (int)i;
    int rule = mb_rule_add(builder, &never);
    if (rule >= 0)
        builder->rules[rule].countdown = n_characters;
    return rule;
}

void mb_rule_set(mb_builder *builder, int rule, const mb_expr *body) {
    if (rule >= 0)
        builder->rules[rule].body = body;
}

/* ---- Lists ------------------------------------------------------------------------------------------ */

void mb_expr_add(mb_builder *builder, mb_expr_list *list, const mb_expr *item) {
    if (mb_grammar_grow(&builder->pool, (void **)&list->items, &list->capacity, list->n + 1,
                        sizeof *list->items) == 0)
        list->items[list->n++] = item;
}

const mb_expr *mb_expr_list_sequence(mb_builder *builder, mb_expr_list *list) {
    const mb_expr *expr = mb_expr_sequence(builder, list->items, list->n);
    mb_free(list->items);
    *list = (mb_expr_list){0};
    return expr;
}

const mb_expr *mb_expr_list_choice(mb_builder *builder, mb_expr_list *list) {
    const mb_expr *expr = mb_expr_choice(builder, list->items, list->n);
    mb_free(list->items);
    *list = (mb_expr_list){0};
    return expr;
}

/* ---- Sets of characters ----------------------------------------------------------------------------- */

static int compare_ranges(const void *a, const void *b) {
    uint32_t x = ((const mb_char_range *)a)->first, y = ((const mb_char_range *)b)->first;
    return (x > y) - (x < y);
}

size_t mb_chars_normalise(mb_char_range *ranges, size_t n) {
    size_t n_merged = 0;
    if (n > 0)
        qsort(ranges, n, sizeof *ranges, compare_ranges);
    for (size_t i = 0; i < n; i++) {
        mb_char_range *last = n_merged ? &ranges[n_merged - 1] : NULL;
        if (last && ranges[i].first <= last->last + 1)
            last->last = last->last > ranges[i].last ? last->last : ranges[i].last;
        else
            ranges[n_merged++] = ranges[i];
    }
    return n_merged;
}

size_t mb_chars_complement(const mb_char_range *ranges, size_t n, mb_char_range *out) {
    size_t n_out = 0;
    uint32_t next = 0;
    for (size_t i = 0; i < n; i++) {
        if (ranges[i].first > next)
            out[n_out++] = (mb_char_range){next, ranges[i].first - 1};
        next = ranges[i].last + 1;
    }
    if (next <= MB_LAST_CHAR)
        out[n_out++] = (mb_char_range){next, MB_LAST_CHAR};
    return n_out;
}

/* Without the surrogates, which UTF-8 does not encode. `out` has room for n + 1. */
static size_t without_surrogates(const mb_char_range *ranges, size_t n, mb_char_range *out) {
    enum { FIRST = 0xd800, LAST = 0xdfff };
    size_t n_out = 0;
    for (size_t i = 0; i < n; i++) {
        mb_char_range r = ranges[i];
        if (r.last > MB_LAST_CHAR)
            r.last = MB_LAST_CHAR;
        if (r.first < FIRST && r.last >= FIRST)
            out[n_out++] = (mb_char_range){r.first, FIRST - 1};
        else if (r.last < FIRST)
            out[n_out++] = r;
        if (r.last > LAST && r.first <= MB_LAST_CHAR)
            out[n_out++] = (mb_char_range){r.first > LAST ? r.first : LAST + 1, r.last};
    }
    return n_out;
}

const mb_expr *mb_expr_chars(mb_builder *builder, const mb_char_range *ranges, size_t n) {
    mb_char_range *copy = mb_grammar_pool_push(&builder->pool, 2 * (n + 1), sizeof *copy);
    mb_expr *expr = new_expr(builder, MB_EXPR_CHARS);
    if (!copy || !expr)
        return &never;
    mb_char_range *sorted = copy + n + 1;
    memcpy(sorted, ranges, n * sizeof *sorted);
    n = without_surrogates(sorted, mb_chars_normalise(sorted, n), copy);
    if (n == 0)
        return &never;
    expr->n = (uint32_t)n;
    expr->of.ranges = copy;
    return expr;
}
