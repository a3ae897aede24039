/* parse_tokens.c - the parser's hands: tokens taken one by one, names numbered, nodes made. */
#include <stdio.h>
#include <string.h>

#include "model/jinja/parse.h"
#include "model/json.h"

enum { MAX_NESTING = 100 };

mb_status jinja_advance(jinja_parser *parser) {
    if (parser->has_ahead) {
        parser->token = parser->ahead;
        parser->has_ahead = 0;
        return MB_OK;
    }
    return jinja_lex(&parser->lexer, &parser->token);
}

mb_status jinja_look_ahead(jinja_parser *parser) {
    if (parser->has_ahead)
        return MB_OK;
    MB_TRY(jinja_lex(&parser->lexer, &parser->ahead));
    parser->has_ahead = 1;
    return MB_OK;
}

int jinja_token_is(const jinja_token *token, jinja_token_kind kind, const char *text) {
    return token->kind == kind && token->n_bytes == strlen(text) &&
           memcmp(token->bytes, text, token->n_bytes) == 0;
}

mb_status jinja_unexpected(const jinja_parser *parser, const char *wanted) {
    static const char *const names[] = {[TOKEN_END] = "the end of the template",
                                        [TOKEN_DATA] = "text",
                                        [TOKEN_OUTPUT_BEGIN] = "{{",
                                        [TOKEN_OUTPUT_END] = "the end of the output }}",
                                        [TOKEN_BLOCK_BEGIN] = "{%",
                                        [TOKEN_BLOCK_END] = "the end of the tag %}"};
    const jinja_token *token = &parser->token;
    char text[40], shown[64];
    size_t n = token->n_bytes < sizeof text - 1 ? token->n_bytes : sizeof text - 1;
    const char *here = token->kind <= TOKEN_BLOCK_END ? names[token->kind] : NULL;
    if (!here) {
        memcpy(text, token->bytes, n);
        text[n] = '\0';
        here = mb_quote(shown, sizeof shown, text);
    }
    return jinja_refuse(parser->run, token->line, token->column, "expected %s, but here is %s", wanted, here);
}

mb_status jinja_skip_operator(jinja_parser *parser, const char *text, int *is_taken) {
    *is_taken = jinja_at_operator(parser, text);
    return *is_taken ? jinja_advance(parser) : MB_OK;
}

mb_status jinja_skip_name(jinja_parser *parser, const char *text, int *is_taken) {
    *is_taken = jinja_at_name(parser, text);
    return *is_taken ? jinja_advance(parser) : MB_OK;
}

mb_status jinja_expect_operator(jinja_parser *parser, const char *text) {
    return jinja_at_operator(parser, text) ? jinja_advance(parser) : jinja_unexpected(parser, text);
}

mb_status jinja_expect_name(jinja_parser *parser, const char *text) {
    return jinja_at_name(parser, text) ? jinja_advance(parser) : jinja_unexpected(parser, text);
}

mb_status jinja_expect_kind(jinja_parser *parser, jinja_token_kind kind, const char *what) {
    return parser->token.kind == kind ? jinja_advance(parser) : jinja_unexpected(parser, what);
}

mb_status jinja_take_word(jinja_parser *parser, jinja_value *word) {
    if (parser->token.kind != TOKEN_NAME)
        return jinja_unexpected(parser, "a name");
    MB_TRY(jinja_string_over(parser->run, parser->token.bytes, parser->token.n_bytes, word));
    return jinja_advance(parser);
}

mb_status jinja_intern(jinja_parser *parser, const char *bytes, size_t n_bytes, int *name) {
    mb_jinja *t = parser->template;
    for (*name = 0; *name < t->n_names; ++*name)
        if (t->names[*name]->n_bytes == n_bytes && memcmp(t->names[*name]->bytes, bytes, n_bytes) == 0)
            return MB_OK;
    if (t->n_names == JINJA_MAX_NAMES)
        return jinja_refuse(parser->run, parser->token.line, parser->token.column,
                            "the template has more than %d names", JINJA_MAX_NAMES);
    jinja_value string;
    MB_TRY(jinja_string_over(parser->run, bytes, n_bytes, &string));
    t->names[t->n_names++] = string.of.string;
    return MB_OK;
}

mb_status jinja_take_name(jinja_parser *parser, int *name) {
    if (parser->token.kind != TOKEN_NAME)
        return jinja_unexpected(parser, "a name");
    static const char *const constants[] = {"true", "false", "none", "True", "False", "None"};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (jinja_at_name(parser, constants[i]))
            return jinja_unexpected(parser, "a name");
    MB_TRY(jinja_intern(parser, parser->token.bytes, parser->token.n_bytes, name));
    return jinja_advance(parser);
}

mb_status jinja_new_node(jinja_parser *parser, jinja_node_kind kind, jinja_node **node) {
    *node = jinja_alloc(&parser->run->arena, sizeof **node);
    if (!*node)
        return jinja_no_memory(parser->run);
    **node = (jinja_node){.kind = kind, .line = parser->token.line, .made_before = parser->template->made};
    parser->template->made = *node;
    return MB_OK;
}

mb_status jinja_nest(jinja_parser *parser) {
    if (parser->depth >= MAX_NESTING)
        return jinja_refuse(parser->run, parser->token.line, parser->token.column,
                            "the template nests deeper than %d levels", MAX_NESTING);
    parser->depth++;
    return MB_OK;
}
