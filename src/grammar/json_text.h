/*
 * json_text.h - JSON as it stands in a text: strings, numbers, any value, white space.
 *
 * White space may be a space, or a line break and up to 20 spaces or tabs: an answer can be compact or
 * indented, but not wander off. Numbers have at most 18 digits before and after the point and an
 * exponent of at most two digits, so a 64-bit integer or a double holds them. "\u0000" and halves of
 * surrogate pairs are no characters.
 */
#ifndef MB_GRAMMAR_JSON_TEXT_H
#define MB_GRAMMAR_JSON_TEXT_H

#include "grammar/expr.h"

/* Rules that are made when they are first needed. */
typedef struct mb_json_rules {
    int space, string, number, integer, value, object, array;
    int string_rest; /* any characters and the closing quote */
} mb_json_rules;

void mb_json_rules_init(mb_json_rules *rules);

const mb_expr *mb_json_space(mb_builder *builder); /* maybe white space */
const mb_expr *mb_json_string(mb_builder *builder);
/* Characters; beyond min, at most MB_MAX_COUNTDOWN, however large max is. */
const mb_expr *mb_json_string_of_length(mb_builder *builder, int min, int max);
const mb_expr *mb_json_any_number(mb_builder *builder);
const mb_expr *mb_json_integer(mb_builder *builder);
const mb_expr *mb_json_value(mb_builder *builder);  /* any */
const mb_expr *mb_json_object(mb_builder *builder); /* any */
const mb_expr *mb_json_array(mb_builder *builder);  /* any */

/* One character of a set as a string holds it: spelled in one way only. For regular expressions. */
const mb_expr *mb_json_spell_chars(mb_builder *builder, const mb_char_range *ranges, size_t n);
/* A text with its quotes. */
const mb_expr *mb_json_literal(mb_builder *builder, const char *text, size_t n_bytes);

/* "[" items "]" and "{" members "}" with the white space around. items: what stands between, not empty; when
 * may_be_empty, nothing may. */
const mb_expr *mb_json_brackets(mb_builder *builder, const char *brackets, const mb_expr *items,
                                int may_be_empty);
const mb_expr *mb_json_comma(mb_builder *builder); /* with the white space after */
const mb_expr *mb_json_colon(mb_builder *builder);

#endif
