/* parse.h - what the parsers of statements and of expressions share. */
#ifndef MB_MODEL_JINJA_PARSE_H
#define MB_MODEL_JINJA_PARSE_H

#include "model/jinja/ast.h"
#include "model/jinja/lex.h"

typedef struct jinja_parser {
    mb_jinja *template;
    jinja_run *run;
    jinja_lexer lexer;
    jinja_token token, ahead; /* the current one, and the one behind it when has_ahead */
    int has_ahead;
    int depth, loop_depth;
} jinja_parser;

/* ---- Tokens: parse_tokens.c ---------------------------------------------------------------------------- */

mb_status jinja_advance(jinja_parser *parser);
mb_status jinja_look_ahead(jinja_parser *parser);
int jinja_token_is(const jinja_token *token, jinja_token_kind kind, const char *text);
static inline int jinja_at_operator(const jinja_parser *parser, const char *text) {
    return jinja_token_is(&parser->token, TOKEN_OPERATOR, text);
}
static inline int jinja_at_name(const jinja_parser *parser, const char *text) {
    return jinja_token_is(&parser->token, TOKEN_NAME, text);
}
/* Takes the operator or name when it is there. */
mb_status jinja_skip_operator(jinja_parser *parser, const char *text, int *is_taken);
mb_status jinja_skip_name(jinja_parser *parser, const char *text, int *is_taken);
mb_status jinja_expect_operator(jinja_parser *parser, const char *text);
mb_status jinja_expect_name(jinja_parser *parser, const char *text);
mb_status jinja_expect_kind(jinja_parser *parser, jinja_token_kind kind, const char *what);
/* "expected X, but here is Y" at the current token. */
mb_status jinja_unexpected(const jinja_parser *parser, const char *wanted);
/* The current token must be a name: a string of it, or its number in the template. Advances. */
mb_status jinja_take_word(jinja_parser *parser, jinja_value *word);
mb_status jinja_take_name(jinja_parser *parser, int *name);
mb_status jinja_intern(jinja_parser *parser, const char *bytes, size_t n_bytes, int *name);

mb_status jinja_new_node(jinja_parser *parser, jinja_node_kind kind, jinja_node **node);
mb_status jinja_nest(jinja_parser *parser);

/* Appends to a list by .next. */
static inline void jinja_append(jinja_node ***end, jinja_node *node) {
    **end = node;
    *end = &node->next;
}

/* ---- Expressions: parse_operators.c -------------------------------------------------------------------- */

mb_status jinja_parse_expression(jinja_parser *parser, jinja_node **node);
/* Without a conditional at the top: for x in y if z. */
mb_status jinja_parse_plain_expression(jinja_parser *parser, jinja_node **node);

/* ---- Their parts: parse_expressions.c ------------------------------------------------------------------ */

/* One expression, or a tuple when commas follow; up to the end of the tag or the name `end` (NULL: none). */
mb_status jinja_parse_tuple(jinja_parser *parser, int with_conditional, const char *end, jinja_node **node);
mb_status jinja_parse_primary(jinja_parser *parser, jinja_node **node);
mb_status jinja_parse_postfix(jinja_parser *parser, jinja_node **node);
/* Filters and tests bind closer than operators, but not closer than a sign. */
mb_status jinja_parse_filters_and_tests(jinja_parser *parser, jinja_node **node);
/* A chain of filters on *node, which may be NULL for the text of a block; is_first: the | was left out. */
mb_status jinja_parse_filters(jinja_parser *parser, int is_first, jinja_node **node);

#endif
