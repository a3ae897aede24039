#include "model/jinja/lex.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

mb_status jinja_refuse(const jinja_run *run, int line, int column, const char *format, ...) {
    char sentence[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    return mb_fail(MB_ERR_UNSUPPORTED, "%s, line %d, column %d: %s", run->name, line, column, sentence);
}

static mb_status refuse_here(const jinja_lexer *lexer, const char *at, const char *what) {
    return jinja_refuse(lexer->run, lexer->line, (int)(at - lexer->line_start) + 1, "%s", what);
}

mb_status jinja_lexer_init(jinja_lexer *lexer, jinja_run *run, const char *source, size_t n_bytes) {
    char *copy = jinja_alloc(&run->arena, n_bytes + 1);
    if (!copy)
        return jinja_no_memory(run);
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        if (source[i] == '\r') {
            if (i + 1 < n_bytes && source[i + 1] == '\n')
                i++;
            copy[n++] = '\n';
        } else {
            copy[n++] = source[i];
        }
    }
    if (n > 0 && copy[n - 1] == '\n')
        n--;
    *lexer = (jinja_lexer){.run = run,
                           .start = copy,
                           .at = copy,
                           .end = copy + n,
                           .line_start = copy,
                           .line = 1,
                           .at_line_start = 1};
    return MB_OK;
}

/* ---- Bytes -------------------------------------------------------------------------------------------- */

static int starts(const jinja_lexer *lexer, const char *at, const char *text) {
    size_t n = strlen(text);
    return (size_t)(lexer->end - at) >= n && memcmp(at, text, n) == 0;
}

/* Moves on and counts lines. */
static void move_to(jinja_lexer *lexer, const char *to) {
    for (; lexer->at < to; lexer->at++)
        if (*lexer->at == '\n') {
            lexer->line++;
            lexer->line_start = lexer->at + 1;
        }
}

/* The end of the white space that begins here. */
static const char *skip_space(const jinja_lexer *lexer, const char *at) {
    while (at < lexer->end) {
        int32_t code;
        size_t n = jinja_next_char(at, (size_t)(lexer->end - at), &code);
        if (!jinja_is_space(code))
            break;
        at += n;
    }
    return at;
}

/* Where the white space begins that ends at `to`. */
static const char *rstrip(const char *from, const char *to) {
    while (to > from) {
        const char *c = to - 1;
        while (c > from && ((unsigned char)*c & 0xC0) == 0x80)
            c--;
        int32_t code;
        jinja_next_char(c, (size_t)(to - c), &code);
        if (!jinja_is_space(code))
            break;
        to = c;
    }
    return to;
}

/* Without the blanks between a line's start and `to`, when there is nothing else on the line. */
static const char *lstrip_block(const jinja_lexer *lexer, const char *from, const char *to) {
    const char *line = to;
    while (line > from && line[-1] != '\n')
        line--;
    if (line == from && !lexer->at_line_start)
        return to;
    return rstrip(line, to) == line ? line : to;
}

static int is_name_start(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static int is_digit(char c) {
    return c >= '0' && c <= '9';
}

/* ---- Between tags ------------------------------------------------------------------------------------- */

/* {% raw %} from here: the end of its tag, or NULL. */
static const char *match_raw(const jinja_lexer *lexer, const char *at, const char *word, int *is_trimmed) {
    if (!starts(lexer, at, "{%"))
        return NULL;
    at += 2;
    if (at < lexer->end && (*at == '-' || *at == '+'))
        at++;
    at = skip_space(lexer, at);
    if (!starts(lexer, at, word))
        return NULL;
    at = skip_space(lexer, at + strlen(word));
    *is_trimmed = at < lexer->end && *at == '-';
    if (at < lexer->end && (*at == '-' || (*at == '+' && strcmp(word, "endraw") == 0)))
        at++;
    return starts(lexer, at, "%}") ? at + 2 : NULL;
}

/* The text up to `tag`, as far as the tag leaves it; the lexer then stands at the tag. */
static void take_data(jinja_lexer *lexer, const char *tag, jinja_token *token) {
    const char *from = lexer->at, *to = tag;
    if (tag < lexer->end) {
        char sign = tag + 2 < lexer->end ? tag[2] : ' ';
        if (sign == '-')
            to = rstrip(from, to);
        else if (sign != '+' && tag[1] != '{')
            to = lstrip_block(lexer, from, to);
    }
    *token =
        (jinja_token){.kind = TOKEN_DATA, .line = lexer->line, .bytes = from, .n_bytes = (size_t)(to - from)};
    move_to(lexer, tag);
}

/* The line end that a block or comment takes along. */
static const char *take_line_end(const jinja_lexer *lexer, const char *at) {
    return at < lexer->end && *at == '\n' ? at + 1 : at;
}

static void end_of_tag(jinja_lexer *lexer, const char *end, int is_trimmed) {
    if (is_trimmed)
        end = skip_space(lexer, end);
    lexer->at_line_start = end > lexer->start && end[-1] == '\n';
    move_to(lexer, end);
    lexer->in_tag = 0;
}

static mb_status skip_comment(jinja_lexer *lexer) {
    const char *body = lexer->at + 2;
    if (body < lexer->end && (*body == '-' || *body == '+'))
        body++;
    const char *close = body;
    while (close < lexer->end && !starts(lexer, close, "#}"))
        close++;
    if (close >= lexer->end)
        return refuse_here(lexer, lexer->at, "the comment {# does not end");
    char sign = close > body ? close[-1] : ' ';
    end_of_tag(lexer, sign == '-' || sign == '+' ? close + 2 : take_line_end(lexer, close + 2), sign == '-');
    return MB_OK;
}

/* What {% raw %} holds, as one text. */
static mb_status take_raw(jinja_lexer *lexer, const char *body, int is_trimmed, jinja_token *token) {
    const char *tag = lexer->at;
    end_of_tag(lexer, body, is_trimmed);
    for (const char *close = lexer->at; close < lexer->end; close++) {
        int ends_trimmed;
        const char *end = match_raw(lexer, close, "endraw", &ends_trimmed);
        if (!end)
            continue;
        take_data(lexer, close, token);
        end_of_tag(lexer, end[-3] == '+' || ends_trimmed ? end : take_line_end(lexer, end), ends_trimmed);
        return MB_OK;
    }
    return jinja_refuse(lexer->run, lexer->line, (int)(tag - lexer->line_start) + 1,
                        "{%% raw %%} has no end");
}

static const char *find_tag(const jinja_lexer *lexer) {
    for (const char *p = lexer->at; p + 1 < lexer->end; p++) {
        p = memchr(p, '{', (size_t)(lexer->end - p));
        if (!p || p + 1 >= lexer->end)
            break;
        if (p[1] == '{' || p[1] == '%' || p[1] == '#')
            return p;
    }
    return lexer->end;
}

static mb_status lex_between(jinja_lexer *lexer, jinja_token *token) {
    for (;;) {
        const char *tag = find_tag(lexer), *body;
        if (tag > lexer->at) {
            take_data(lexer, tag, token);
            lexer->at_line_start = 0;
            if (token->n_bytes > 0)
                return MB_OK;
        }
        if (lexer->at == lexer->end) {
            *token = (jinja_token){
                .kind = TOKEN_END, .line = lexer->line, .column = (int)(lexer->at - lexer->line_start) + 1};
            return MB_OK;
        }
        int is_trimmed;
        if (tag[1] == '#') {
            MB_TRY(skip_comment(lexer));
        } else if ((body = match_raw(lexer, tag, "raw", &is_trimmed)) != NULL) {
            MB_TRY(take_raw(lexer, body, is_trimmed, token));
            if (token->n_bytes > 0)
                return MB_OK;
        } else {
            break;
        }
    }
    int is_output = lexer->at[1] == '{';
    *token = (jinja_token){.kind = is_output ? TOKEN_OUTPUT_BEGIN : TOKEN_BLOCK_BEGIN,
                           .line = lexer->line,
                           .column = (int)(lexer->at - lexer->line_start) + 1};
    lexer->in_tag = is_output ? '}' : '%';
    lexer->depth = 0;
    move_to(lexer, lexer->at + 2);
    if (lexer->at < lexer->end && (*lexer->at == '-' || *lexer->at == '+'))
        lexer->at++;
    return MB_OK;
}

/* ---- Within a tag ------------------------------------------------------------------------------------- */

static void put_code(char *out, size_t *n, uint32_t code) {
    if (code < 0x80) {
        out[(*n)++] = (char)code;
    } else if (code < 0x800) {
        out[(*n)++] = (char)(0xC0 | code >> 6);
        out[(*n)++] = (char)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        out[(*n)++] = (char)(0xE0 | code >> 12);
        out[(*n)++] = (char)(0x80 | (code >> 6 & 0x3F));
        out[(*n)++] = (char)(0x80 | (code & 0x3F));
    } else {
        out[(*n)++] = (char)(0xF0 | code >> 18);
        out[(*n)++] = (char)(0x80 | (code >> 12 & 0x3F));
        out[(*n)++] = (char)(0x80 | (code >> 6 & 0x3F));
        out[(*n)++] = (char)(0x80 | (code & 0x3F));
    }
}

/* Digits of the base at *at, at most `most`; -1 when there are none. */
static int64_t take_digits(const char **at, const char *end, int base, int most) {
    char digits[12] = {0};
    int n = 0;
    while (n < most && *at + n < end && (*at)[n] && strchr("0123456789abcdefABCDEF", (*at)[n]) &&
           (base == 16 || (*at)[n] < '0' + base)) {
        digits[n] = (*at)[n];
        n++;
    }
    *at += n;
    return n > 0 ? strtoll(digits, NULL, base) : -1;
}

/* One escape behind its backslash, written to out. NULL on a broken one. */
static const char *take_escape(const char *at, const char *end, char *out, size_t *n) {
    static const char names[] = "nrtabfv\\'\"", meanings[] = "\n\r\t\a\b\f\v\\'\"";
    char c = *at;
    const char *name = c ? strchr(names, c) : NULL;
    if (c == '\n')
        return at + 1;
    if (name) {
        out[(*n)++] = meanings[name - names];
        return at + 1;
    }
    int most = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (most > 0) {
        const char *digits = ++at;
        int64_t code = take_digits(&at, end, 16, most);
        if (at - digits != most || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
            return NULL;
        put_code(out, n, (uint32_t)code);
        return at;
    }
    if (c >= '0' && c <= '7') {
        put_code(out, n, (uint32_t)take_digits(&at, end, 8, 3));
        return at;
    }
    out[(*n)++] = '\\';
    return at;
}

static mb_status lex_string(jinja_lexer *lexer, jinja_token *token) {
    char quote = *lexer->at;
    const char *close = lexer->at + 1;
    for (; close < lexer->end && *close != quote; close++)
        if (*close == '\\' && close + 1 < lexer->end)
            close++;
    if (close >= lexer->end)
        return refuse_here(lexer, lexer->at, "the string does not end");
    char *meaning = jinja_alloc(&lexer->run->arena, (size_t)(close - lexer->at));
    if (!meaning)
        return jinja_no_memory(lexer->run);
    size_t n = 0;
    for (const char *p = lexer->at + 1; p < close;) {
        if (*p != '\\') {
            meaning[n++] = *p++;
            continue;
        }
        const char *behind = take_escape(p + 1, close, meaning, &n);
        if (!behind)
            return refuse_here(lexer, lexer->at, "a string has a broken escape");
        p = behind;
    }
    token->kind = TOKEN_STRING;
    token->n_bytes = (size_t)(close + 1 - lexer->at);
    return jinja_string_over(lexer->run, meaning, n, &token->value);
}

/* Digits with single underscores between them. */
static const char *skip_digits(const char *at, const char *end) {
    while (at < end && (is_digit(*at) || (*at == '_' && at + 1 < end && is_digit(at[1]))))
        at++;
    return at;
}

static mb_status lex_number(jinja_lexer *lexer, jinja_token *token) {
    const char *from = lexer->at, *at = skip_digits(from, lexer->end);
    int is_float = 0;
    if (at + 1 < lexer->end && *at == '.' && is_digit(at[1]) && !(from > lexer->start && from[-1] == '.')) {
        is_float = 1;
        at = skip_digits(at + 1, lexer->end);
    }
    if (at < lexer->end && (*at == 'e' || *at == 'E')) {
        const char *digits = at + 1;
        if (digits < lexer->end && (*digits == '+' || *digits == '-'))
            digits++;
        if (digits < lexer->end && is_digit(*digits)) {
            is_float = 1;
            at = skip_digits(digits, lexer->end);
        }
    }
    char text[64];
    size_t n = 0;
    for (const char *p = from; p < at; p++)
        if (*p != '_' && n < sizeof text)
            text[n++] = *p;
    if (n == sizeof text || (!is_float && n > 18))
        return refuse_here(lexer, from, "a number has too many digits");
    if (!is_float && text[0] == '0' && n > 1 && strspn(text, "0") < n)
        return refuse_here(lexer, from, "an integer begins with 0");
    text[n] = '\0';
    token->kind = TOKEN_NUMBER;
    token->n_bytes = (size_t)(at - from);
    token->value = is_float ? jinja_real(strtod(text, NULL)) : jinja_int(strtoll(text, NULL, 10));
    return MB_OK;
}

static mb_status lex_operator(jinja_lexer *lexer, jinja_token *token) {
    static const char *const operators[] = {"**", "//", "==", "!=", "<=", ">=", "+", "-", "/",
                                            "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                            "<",  ">",  "=",  ".",  ":",  "|",  ",", ";"};
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
        if (starts(lexer, lexer->at, operators[i])) {
            token->kind = TOKEN_OPERATOR;
            token->n_bytes = strlen(operators[i]);
            break;
        }
    if (token->n_bytes == 0)
        return refuse_here(lexer, lexer->at, "a character that has no meaning in a tag");
    char c = *lexer->at;
    if (c == '(' || c == '[' || c == '{') {
        if (lexer->depth == (int)sizeof lexer->open)
            return refuse_here(lexer, lexer->at, "brackets nest too deep");
        lexer->open[lexer->depth++] = c == '(' ? ')' : (char)(c + 2); /* [ \ ] and { | } in ASCII */
    } else if (c == ')' || c == ']' || c == '}') {
        if (lexer->depth == 0 || lexer->open[--lexer->depth] != c)
            return refuse_here(lexer, lexer->at, "a bracket closes that was not opened");
    }
    return MB_OK;
}

/* The end of the tag, when it is here: -%} takes white space along, %} a line end. */
static int lex_tag_end(jinja_lexer *lexer, jinja_token *token) {
    const char *at = lexer->at, *close = lexer->in_tag == '%' ? "%}" : "}}";
    int is_trimmed = *at == '-', keeps_line = *at == '+' && lexer->in_tag == '%';
    if (is_trimmed || keeps_line)
        at++;
    if (lexer->depth > 0 || !starts(lexer, at, close))
        return 0;
    at += 2;
    token->kind = lexer->in_tag == '%' ? TOKEN_BLOCK_END : TOKEN_OUTPUT_END;
    if (lexer->in_tag == '%' && !is_trimmed && !keeps_line)
        at = take_line_end(lexer, at);
    end_of_tag(lexer, at, is_trimmed);
    return 1;
}

mb_status jinja_lex(jinja_lexer *lexer, jinja_token *token) {
    if (!lexer->in_tag)
        return lex_between(lexer, token);
    move_to(lexer, skip_space(lexer, lexer->at));
    *token = (jinja_token){
        .line = lexer->line, .column = (int)(lexer->at - lexer->line_start) + 1, .bytes = lexer->at};
    if (lexer->at == lexer->end)
        return refuse_here(lexer, lexer->at, "the template ends within a tag");
    if (lex_tag_end(lexer, token))
        return MB_OK;
    char c = *lexer->at;
    if (is_name_start(c)) {
        const char *end = lexer->at;
        while (end < lexer->end && (is_name_start(*end) || is_digit(*end)))
            end++;
        token->kind = TOKEN_NAME;
        token->n_bytes = (size_t)(end - lexer->at);
    } else if (is_digit(c)) {
        MB_TRY(lex_number(lexer, token));
    } else if (c == '\'' || c == '"') {
        MB_TRY(lex_string(lexer, token));
    } else {
        MB_TRY(lex_operator(lexer, token));
    }
    move_to(lexer, lexer->at + token->n_bytes);
    return MB_OK;
}
