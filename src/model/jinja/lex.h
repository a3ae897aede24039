/*
 * lex.h - a template's tokens: texts, outputs, blocks, and what is in them.
 *
 * White space is as transformers sets it: a line end behind a block or comment belongs to the tag
 * (trim_blocks), blanks before a block or comment that begins its line too (lstrip_blocks); - takes all white
 * space, + none. One line end at the template's end is dropped. Line ends are read as \n.
 */
#ifndef MB_MODEL_JINJA_LEX_H
#define MB_MODEL_JINJA_LEX_H

#include "model/jinja/value.h"

typedef enum jinja_token_kind {
    TOKEN_END,
    TOKEN_DATA,         /* text between tags, ready to print */
    TOKEN_OUTPUT_BEGIN, /* {{ */
    TOKEN_OUTPUT_END,
    TOKEN_BLOCK_BEGIN, /* {% */
    TOKEN_BLOCK_END,
    TOKEN_NAME,
    TOKEN_STRING,   /* value: its meaning */
    TOKEN_NUMBER,   /* value: an integer or a float */
    TOKEN_OPERATOR, /* bytes: "==" and so on */
} jinja_token_kind;

typedef struct jinja_token {
    jinja_token_kind kind;
    int line, column;  /* from 1; columns count bytes */
    const char *bytes; /* as written */
    size_t n_bytes;
    jinja_value value;
} jinja_token;

typedef struct jinja_lexer {
    jinja_run *run; /* memory, and the template's name */
    const char *start, *at, *end;
    const char *line_start;
    int line;
    int in_tag;        /* 0: between tags; '}' in an output, '%' in a block */
    int at_line_start; /* the last tag took a line end */
    int depth;         /* of the brackets that are open in the tag */
    char open[64];     /* those brackets */
} jinja_lexer;

/* The source must live as long as the tokens; it is copied where line ends or escapes change. */
mb_status jinja_lexer_init(jinja_lexer *lexer, jinja_run *run, const char *source, size_t n_bytes);
mb_status jinja_lex(jinja_lexer *lexer, jinja_token *token);

/* A sentence with name, line and column of the token. MB_ERR_UNSUPPORTED. */
mb_status jinja_refuse(const jinja_run *run, int line, int column, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
