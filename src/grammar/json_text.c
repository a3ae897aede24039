#include "grammar/json_text.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "grammar/regex.h"
#include "grammar/utf8_ranges.h"

enum { MAX_INDENT = 20 };

void mb_json_rules_init(mb_json_rules *rules) {
    *rules = (mb_json_rules){-1, -1, -1, -1, -1, -1, -1, -1};
}

static const mb_expr *one_of(mb_builder *b, const char *signs) {
    mb_char_range ranges[16];
    size_t n = strlen(signs);
    for (size_t i = 0; i < n; i++)
        ranges[i] = (mb_char_range){(unsigned char)signs[i], (unsigned char)signs[i]};
    return mb_expr_chars(b, ranges, n);
}

static const mb_expr *regex(mb_builder *b, const char *pattern) {
    const mb_regex_options options = {.what = pattern};
    const mb_expr *expr = mb_regex_parse(b, pattern, strlen(pattern), &options);
    return expr ? expr : mb_expr_never();
}

/* ---- Signs between values --------------------------------------------------------------------------- */

const mb_expr *mb_json_space(mb_builder *b) {
    if (b->json->space < 0)
        b->json->space = mb_rule_add(
            b, mb_expr_pair(b, mb_expr_string(b, "\n"), mb_expr_repeat(b, one_of(b, " \t"), 0, MAX_INDENT)));
    const mb_expr *choices[] = {mb_expr_empty(), mb_expr_string(b, " "), mb_expr_call(b, b->json->space)};
    return mb_expr_choice(b, choices, 3);
}

const mb_expr *mb_json_comma(mb_builder *b) {
    return mb_expr_pair(b, mb_expr_string(b, ","), mb_json_space(b));
}

const mb_expr *mb_json_colon(mb_builder *b) {
    return mb_expr_pair(b, mb_expr_string(b, ":"), mb_json_space(b));
}

const mb_expr *mb_json_brackets(mb_builder *b, const char *brackets, const mb_expr *items, int may_be_empty) {
    const mb_expr *inner[] = {mb_json_space(b), items};
    const mb_expr *content = mb_expr_sequence(b, inner, 2);
    const mb_expr *all[] = {mb_expr_text(b, brackets, 1), may_be_empty ? mb_expr_maybe(b, content) : content,
                            mb_json_space(b), mb_expr_text(b, brackets + 1, 1)};
    return mb_expr_sequence(b, all, 4);
}

/* ---- Strings ---------------------------------------------------------------------------------------- */

/* Those that stand for themselves. */
static const mb_expr *raw_char(mb_builder *b) {
    static const mb_char_range raw[] = {{' ', '!'}, {'#', '['}, {']', MB_LAST_CHAR}};
    return mb_expr_chars(b, raw, 3);
}

static const mb_expr *short_escape(mb_builder *b) {
    return mb_expr_pair(b, mb_expr_string(b, "\\"), one_of(b, "\"\\/bfnrt"));
}

static const mb_expr *long_escape(mb_builder *b) {
    return regex(b, "\\\\u(?:000[1-9a-fA-F]|00[1-9a-fA-F][0-9a-fA-F]|0[1-9a-fA-F][0-9a-fA-F]{2}"
                    "|[1-9a-cA-CeEfF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}"
                    "|[dD][89abAB][0-9a-fA-F]{2}\\\\u[dD][c-fC-F][0-9a-fA-F]{2})");
}

const mb_expr *mb_json_string(mb_builder *b) {
    if (b->json->string < 0) {
        const mb_expr *chars[] = {raw_char(b), short_escape(b), long_escape(b)};
        const mb_expr *parts[] = {mb_expr_string(b, "\""),
                                  mb_expr_repeat(b, mb_expr_choice(b, chars, 3), 0, MB_UNBOUNDED),
                                  mb_expr_string(b, "\"")};
        b->json->string = mb_rule_add(b, mb_expr_sequence(b, parts, 3));
    }
    return mb_expr_call(b, b->json->string);
}

/* After the characters that must be there comes one rule that ends with the closing quote, so that a
 * string's end is known within its rule. */
const mb_expr *mb_json_string_of_length(mb_builder *b, int min, int max) {
    if (min > max)
        return mb_expr_never();
    if (min == 0 && max == MB_UNBOUNDED)
        return mb_json_string(b);
    const mb_expr *kinds[] = {raw_char(b), short_escape(b)};
    const mb_expr *c = mb_expr_choice(b, kinds, 2), *quote = mb_expr_string(b, "\"");
    const mb_expr *rest;
    if (max == MB_UNBOUNDED) {
        if (b->json->string_rest < 0)
            b->json->string_rest =
                mb_rule_add(b, mb_expr_pair(b, mb_expr_repeat(b, c, 0, MB_UNBOUNDED), quote));
        rest = mb_expr_call(b, b->json->string_rest);
    } else {
        int more = max - min < MB_MAX_COUNTDOWN ? max - min : MB_MAX_COUNTDOWN;
        rest = mb_expr_call(b, mb_rule_add_countdown(b, more));
    }
    const mb_expr *all[] = {quote, mb_expr_repeat(b, c, min, min), rest};
    return mb_expr_sequence(b, all, 3);
}

/* Parts of the set that lie in [first, last]; `out` has room for n. */
static size_t within(const mb_char_range *ranges, size_t n, uint32_t first, uint32_t last,
                     mb_char_range *out) {
    size_t n_out = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t begin = ranges[i].first > first ? ranges[i].first : first;
        uint32_t end = ranges[i].last < last ? ranges[i].last : last;
        if (begin <= end)
            out[n_out++] = (mb_char_range){begin, end};
    }
    return n_out;
}

static void spell_escape(uint32_t c, char out[8]) {
    static const char signs[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
    const char *sign = c ? strchr(signs, (int)c) : NULL;
    if (sign)
        snprintf(out, 8, "\\%c", names[sign - signs]);
    else
        snprintf(out, 8, "\\u%04x", (unsigned)c);
}

static int needs_escape(uint32_t c) {
    return c < ' ' || c == '"' || c == '\\';
}

const mb_expr *mb_json_spell_chars(mb_builder *b, const mb_char_range *ranges, size_t n) {
    mb_expr_list list = {0};
    mb_char_range *raw = mb_grammar_pool_push(&b->pool, 3 * n + 1, sizeof *raw);
    if (!raw)
        return mb_expr_never();
    size_t n_raw = within(ranges, n, ' ', '!', raw);
    n_raw += within(ranges, n, '#', '[', raw + n_raw);
    n_raw += within(ranges, n, ']', MB_LAST_CHAR, raw + n_raw);
    if (n_raw > 0)
        mb_expr_add(b, &list, mb_expr_chars(b, raw, n_raw));
    for (size_t i = 0; i < n; i++)
        for (uint32_t c = ranges[i].first; c <= ranges[i].last && c <= '\\'; c++)
            if (c != 0 && needs_escape(c)) {
                char escape[8];
                spell_escape(c, escape);
                mb_expr_add(b, &list, mb_expr_string(b, escape));
            }
    return mb_expr_list_choice(b, &list);
}

const mb_expr *mb_json_literal(mb_builder *b, const char *text, size_t n_bytes) {
    char *spelled = mb_grammar_pool_push(&b->pool, 6 * n_bytes + 3, 1), *end = spelled;
    if (!spelled)
        return mb_expr_never();
    *end++ = '"';
    for (size_t i = 0; i < n_bytes; i++) {
        if (needs_escape((unsigned char)text[i])) {
            char escape[8];
            spell_escape((unsigned char)text[i], escape);
            size_t n = strlen(escape);
            memcpy(end, escape, n);
            end += n;
        } else {
            *end++ = text[i];
        }
    }
    *end++ = '"';
    return mb_expr_text(b, spelled, (size_t)(end - spelled));
}

/* ---- Numbers and values ----------------------------------------------------------------------------- */

const mb_expr *mb_json_integer(mb_builder *b) {
    if (b->json->integer < 0)
        b->json->integer = mb_rule_add(b, regex(b, "-?(?:0|[1-9][0-9]{0,17})"));
    return mb_expr_call(b, b->json->integer);
}

const mb_expr *mb_json_any_number(mb_builder *b) {
    if (b->json->number < 0)
        b->json->number =
            mb_rule_add(b, regex(b, "-?(?:0|[1-9][0-9]{0,17})(?:\\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,2})?"));
    return mb_expr_call(b, b->json->number);
}

/* Items that a comma separates. */
static const mb_expr *list_of(mb_builder *b, const mb_expr *item) {
    return mb_expr_pair(b, item, mb_expr_repeat(b, mb_expr_pair(b, mb_json_comma(b), item), 0, MB_UNBOUNDED));
}

const mb_expr *mb_json_value(mb_builder *b) {
    if (b->json->value < 0) {
        b->json->value = mb_rule_add(b, mb_expr_never()); /* arrays and objects call the rule */
        if (b->json->value < 0)
            return mb_expr_never();
        const mb_expr *kinds[] = {mb_json_object(b),         mb_json_array(b),
                                  mb_json_string(b),         mb_json_any_number(b),
                                  mb_expr_string(b, "true"), mb_expr_string(b, "false"),
                                  mb_expr_string(b, "null")};
        mb_rule_set(b, b->json->value, mb_expr_choice(b, kinds, 7));
    }
    return mb_expr_call(b, b->json->value);
}

const mb_expr *mb_json_array(mb_builder *b) {
    if (b->json->array < 0) {
        b->json->array = mb_rule_add(b, mb_expr_never());
        if (b->json->array < 0)
            return mb_expr_never();
        mb_rule_set(b, b->json->array, mb_json_brackets(b, "[]", list_of(b, mb_json_value(b)), 1));
    }
    return mb_expr_call(b, b->json->array);
}

const mb_expr *mb_json_object(mb_builder *b) {
    if (b->json->object < 0) {
        b->json->object = mb_rule_add(b, mb_expr_never());
        if (b->json->object < 0)
            return mb_expr_never();
        const mb_expr *member[] = {mb_json_string(b), mb_json_colon(b), mb_json_value(b)};
        mb_rule_set(b, b->json->object,
                    mb_json_brackets(b, "{}", list_of(b, mb_expr_sequence(b, member, 3)), 1));
    }
    return mb_expr_call(b, b->json->object);
}
