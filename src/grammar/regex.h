/*
 * regex.h - regular expressions become expressions over UTF-8.
 *
 *   characters  as they are; \n \r \t \f \v \0, \xHH, \uHHHH, \u{H...}, \cX; any sign after a backslash
 *   sets        [a-z], [^a-z], . (all but line ends), \d \w \s \D \W \S (of ASCII)
 *   groups      (...), (?:...), (?<name>...), (?P<name>...); alternatives a|b
 *   repeats     * + ? {n} {n,} {n,m}, also lazy: the language is the same
 *   anchors     ^ and $ at the ends of the expression or of one of its outermost alternatives
 *
 * Everything else is refused: back references, look-around, \b, \p{...}, options.
 */
#ifndef MB_GRAMMAR_REGEX_H
#define MB_GRAMMAR_REGEX_H

#include "grammar/expr.h"

/* How one character of a set stands in the text. */
typedef const mb_expr *(*mb_char_spelling)(mb_builder *builder, const mb_char_range *ranges, size_t n);

typedef struct mb_regex_options {
    const char *what;          /* for sentences: "the regular expression", "#/properties/a/pattern" */
    int search;                /* 1: without an anchor, anything may stand before and after */
    mb_char_spelling spelling; /* NULL: as UTF-8 */
} mb_regex_options;

/* pattern: UTF-8. NULL on failure, which is kept in the builder's pool: MB_ERR_FORMAT (not a regular
 * expression), MB_ERR_UNSUPPORTED; the sentence names the byte. */
const mb_expr *mb_regex_parse(mb_builder *builder, const char *pattern, size_t n_bytes,
                              const mb_regex_options *options);

#endif
