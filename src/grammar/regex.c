#include "grammar/regex.h"

#include <string.h>

#include "base/alloc.h"
#include "grammar/utf8_ranges.h"

enum { MAX_DEPTH = 100, MAX_COUNT = 1 << 20, MAX_RANGES = 1 << 12 };

typedef struct parser {
    mb_builder *builder;
    const mb_regex_options *options;
    const char *text;
    size_t n, at;
    int depth;
} parser;

/* A set of characters while it is read. */
typedef struct char_set {
    mb_char_range ranges[MAX_RANGES];
    size_t n;
} char_set;

static const mb_expr *parse_choice(parser *p);

static const mb_expr *fail_at(parser *p, mb_status status, size_t at, const char *why) {
    mb_grammar_pool *pool = &p->builder->pool;
    if (pool->status == MB_OK)
        pool->status = mb_fail(status, "%s: %s at byte %zu of %zu", p->options->what, why, at, p->n);
    return NULL;
}

static int peek(const parser *p) {
    return p->at < p->n ? (unsigned char)p->text[p->at] : -1;
}

static int take(parser *p, char wanted) {
    if (peek(p) != (unsigned char)wanted)
        return 0;
    p->at++;
    return 1;
}

static const mb_expr *spell(parser *p, const mb_char_range *ranges, size_t n) {
    if (p->options->spelling)
        return p->options->spelling(p->builder, ranges, n);
    return mb_expr_chars(p->builder, ranges, n);
}

static const mb_expr *any_text(parser *p) {
    mb_char_range all = {0, MB_LAST_CHAR};
    return mb_expr_repeat(p->builder, spell(p, &all, 1), 0, MB_UNBOUNDED);
}

/* ---- Characters ------------------------------------------------------------------------------------- */

static int hex_value(int c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* n_digits 0: any number, up to a closing brace. */
static int parse_hex(parser *p, int n_digits, uint32_t *c) {
    size_t start = p->at;
    int braces = n_digits == 0;
    uint32_t value = 0;
    int n = 0;
    for (; hex_value(peek(p)) >= 0 && (braces || n < n_digits) && value <= MB_LAST_CHAR; n++)
        value = value * 16 + (uint32_t)hex_value(peek(p)), p->at++;
    int complete = braces ? n > 0 && take(p, '}') : n == n_digits;
    if (!complete || value > MB_LAST_CHAR) {
        fail_at(p, MB_ERR_FORMAT, start, "there are no such hexadecimal digits");
        return 0;
    }
    *c = value;
    return 1;
}

/* A surrogate pair that is spelled as two escapes is one character. */
static int parse_unicode_escape(parser *p, uint32_t *c) {
    if (take(p, '{'))
        return parse_hex(p, 0, c);
    if (!parse_hex(p, 4, c))
        return 0;
    if (*c >= 0xd800 && *c < 0xdc00 && p->n - p->at >= 6 && p->text[p->at] == '\\' &&
        p->text[p->at + 1] == 'u') {
        size_t before = p->at;
        uint32_t low;
        p->at += 2;
        if (!parse_hex(p, 4, &low))
            return 0;
        if (low >= 0xdc00 && low < 0xe000)
            *c = 0x10000 + ((*c - 0xd800) << 10) + (low - 0xdc00);
        else
            p->at = before;
    }
    return 1;
}

static int is_letter_or_digit(int c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* What stands after a backslash and is one character. */
static int parse_escaped_char(parser *p, uint32_t *c) {
    static const char names[] = "nrtfv0", values[] = "\n\r\t\f\v";
    size_t start = p->at - 1;
    int sign = peek(p);
    const char *name = sign > 0 ? strchr(names, sign) : NULL;
    if (sign < 0) {
        fail_at(p, MB_ERR_FORMAT, start, "nothing follows the backslash");
        return 0;
    }
    p->at++;
    if (name) {
        *c = (uint32_t)(unsigned char)values[name - names]; /* "0" is values' terminator */
        if (sign == '0' && peek(p) >= '0' && peek(p) <= '9') {
            fail_at(p, MB_ERR_UNSUPPORTED, start, "an octal number is not supported");
            return 0;
        }
        return 1;
    }
    if (sign == 'x')
        return take(p, '{') ? parse_hex(p, 0, c) : parse_hex(p, 2, c);
    if (sign == 'u')
        return parse_unicode_escape(p, c);
    if (sign == 'c' && is_letter_or_digit(peek(p)) && peek(p) > '9') {
        *c = (uint32_t)(unsigned char)p->text[p->at++] & 0x1f;
        return 1;
    }
    if (is_letter_or_digit(sign)) {
        fail_at(p, MB_ERR_UNSUPPORTED, start, "an escape that is not supported");
        return 0;
    }
    p->at--;
    *c = mb_utf8_decode(p->text, &p->at);
    return 1;
}

/* \d, \w, \s and their opposites, the letter of which is at p->at. Returns 0 when there is none. */
static int parse_named_set(parser *p, char_set *set) {
    static const mb_char_range digits[] = {{'0', '9'}};
    static const mb_char_range word[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    static const mb_char_range space[] = {{'\t', '\r'}, {' ', ' '}};
    int sign = peek(p), lower = sign | 0x20;
    const mb_char_range *ranges = lower == 'd' ? digits : lower == 'w' ? word : lower == 's' ? space : NULL;
    size_t n = lower == 'w' ? 4 : lower == 's' ? 2 : 1;
    if (!ranges || sign < 0 || set->n + n + 1 > MAX_RANGES)
        return 0;
    p->at++;
    if (sign == lower) {
        memcpy(set->ranges + set->n, ranges, n * sizeof *ranges);
        set->n += n;
    } else {
        set->n += mb_chars_complement(ranges, n, set->ranges + set->n);
    }
    return 1;
}

/* ---- Sets ------------------------------------------------------------------------------------------- */

/* One character or named set within brackets. *is_char: 1 when it can begin a range. */
static int parse_set_item(parser *p, char_set *set, uint32_t *c, int *is_char) {
    *is_char = 0;
    if (take(p, '\\')) {
        if (parse_named_set(p, set))
            return 1;
        *is_char = 1;
        if (take(p, 'b')) {
            *c = '\b';
            return 1;
        }
        return parse_escaped_char(p, c);
    }
    if (peek(p) == '[' && p->at + 1 < p->n && strchr(":.=", p->text[p->at + 1]) && p->text[p->at + 1]) {
        fail_at(p, MB_ERR_UNSUPPORTED, p->at, "a POSIX class is not supported");
        return 0;
    }
    *is_char = 1;
    *c = mb_utf8_decode(p->text, &p->at);
    return 1;
}

static int parse_set_range(parser *p, char_set *set) {
    size_t start = p->at;
    uint32_t first, last;
    int is_char, ends_range;
    if (!parse_set_item(p, set, &first, &is_char))
        return 0;
    if (!is_char)
        return 1;
    last = first;
    if (peek(p) == '-' && p->at + 1 < p->n && p->text[p->at + 1] != ']') {
        p->at++;
        if (!parse_set_item(p, set, &last, &ends_range))
            return 0;
        if (!ends_range || last < first) {
            fail_at(p, MB_ERR_FORMAT, start, "a range that is none");
            return 0;
        }
    }
    if (set->n == MAX_RANGES) {
        fail_at(p, MB_ERR_CAPACITY, start, "a set with too many ranges");
        return 0;
    }
    set->ranges[set->n++] = (mb_char_range){first, last};
    return 1;
}

static const mb_expr *parse_set(parser *p, char_set *set) {
    size_t start = p->at - 1;
    int is_negated = take(p, '^');
    set->n = 0;
    while (peek(p) != ']') {
        if (peek(p) < 0)
            return fail_at(p, MB_ERR_FORMAT, start, "a set without its closing bracket");
        if (!parse_set_range(p, set))
            return NULL;
    }
    p->at++;
    set->n = mb_chars_normalise(set->ranges, set->n);
    if (!is_negated)
        return spell(p, set->ranges, set->n);
    mb_char_range *others = mb_grammar_pool_push(&p->builder->pool, set->n + 1, sizeof *others);
    return others ? spell(p, others, mb_chars_complement(set->ranges, set->n, others)) : NULL;
}

static const mb_expr *parse_bracket(parser *p) {
    char_set *set = mb_malloc(sizeof *set);
    if (!set) {
        p->builder->pool.status = mb_fail(MB_ERR_MEMORY, "no memory to compile a grammar");
        return NULL;
    }
    const mb_expr *expr = parse_set(p, set);
    mb_free(set);
    return expr;
}

/* ---- Atoms and repeats ------------------------------------------------------------------------------ */

static int parse_group_name(parser *p, size_t start) {
    while (peek(p) != '>') {
        if (!is_letter_or_digit(peek(p)) && peek(p) != '_') {
            fail_at(p, MB_ERR_FORMAT, start, "a group's name that is none");
            return 0;
        }
        p->at++;
    }
    p->at++;
    return 1;
}

static const mb_expr *parse_group(parser *p) {
    size_t start = p->at - 1;
    if (take(p, '?')) {
        int is_python = take(p, 'P');
        int is_named = peek(p) == '<' && p->at + 1 < p->n && !strchr("=!", p->text[p->at + 1]);
        if (is_named) {
            p->at++;
            if (!parse_group_name(p, start))
                return NULL;
        } else if (is_python || !take(p, ':')) {
            return fail_at(p, MB_ERR_UNSUPPORTED, start,
                           "a look-around or an option, which is not supported,");
        }
    }
    if (++p->depth > MAX_DEPTH)
        return fail_at(p, MB_ERR_CAPACITY, start, "groups that are nested too deep");
    const mb_expr *expr = parse_choice(p);
    p->depth--;
    if (expr && !take(p, ')'))
        return fail_at(p, MB_ERR_FORMAT, start, "a group without its closing parenthesis");
    return expr;
}

static const mb_expr *parse_escape(parser *p) {
    char_set set;
    uint32_t c;
    set.n = 0;
    if (parse_named_set(p, &set))
        return spell(p, set.ranges, mb_chars_normalise(set.ranges, set.n));
    if (!parse_escaped_char(p, &c))
        return NULL;
    mb_char_range one = {c, c};
    return spell(p, &one, 1);
}

static const mb_expr *parse_atom(parser *p) {
    static const mb_char_range in_line[] = {{0, 9}, {0xb, 0xc}, {0xe, 0x2027}, {0x202a, MB_LAST_CHAR}};
    size_t start = p->at;
    switch (peek(p)) {
    case '(':
        p->at++;
        return parse_group(p);
    case '[':
        p->at++;
        return parse_bracket(p);
    case '\\':
        p->at++;
        return parse_escape(p);
    case '.':
        p->at++;
        return spell(p, in_line, sizeof in_line / sizeof *in_line);
    case '*':
    case '+':
    case '?':
        return fail_at(p, MB_ERR_FORMAT, start, "nothing to repeat");
    case '^':
    case '$':
        return fail_at(p, MB_ERR_UNSUPPORTED, start,
                       "an anchor within the expression, which is not supported,");
    default:
        break;
    }
    uint32_t c = mb_utf8_decode(p->text, &p->at);
    mb_char_range one = {c, c};
    return spell(p, &one, 1);
}

static int parse_number(parser *p, int *number) {
    size_t start = p->at;
    int value = 0;
    for (; peek(p) >= '0' && peek(p) <= '9' && value <= MAX_COUNT; p->at++)
        value = value * 10 + (peek(p) - '0');
    *number = value;
    return p->at > start;
}

/* {n}, {n,} or {n,m}; a brace that begins none of them is a character. Returns 0 then. */
static int parse_counts(parser *p, int *min, int *max) {
    size_t start = p->at;
    if (!take(p, '{') || !parse_number(p, min)) {
        p->at = start;
        return 0;
    }
    *max = *min;
    if (take(p, ',') && !parse_number(p, max))
        *max = MB_UNBOUNDED;
    if (!take(p, '}')) {
        p->at = start;
        return 0;
    }
    return 1;
}

static const mb_expr *parse_repeats(parser *p, const mb_expr *atom) {
    for (;;) {
        size_t start = p->at;
        int min = 0, max = MB_UNBOUNDED;
        if (take(p, '+'))
            min = 1;
        else if (take(p, '?'))
            max = 1;
        else if (!take(p, '*') && !parse_counts(p, &min, &max))
            return atom;
        if (min > MAX_COUNT || (max > MAX_COUNT && max != MB_UNBOUNDED))
            return fail_at(p, MB_ERR_CAPACITY, start, "a count beyond a million");
        if (max < min)
            return fail_at(p, MB_ERR_FORMAT, start, "a repeat whose most is less than its least");
        if (peek(p) == '+')
            return fail_at(p, MB_ERR_UNSUPPORTED, start, "a possessive repeat, which is not supported,");
        take(p, '?');
        if (peek(p) == '*' || peek(p) == '+' || peek(p) == '?')
            return fail_at(p, MB_ERR_FORMAT, p->at, "a repeat of a repeat");
        atom = mb_expr_repeat(p->builder, atom, min, max);
    }
}

static const mb_expr *parse_sequence(parser *p) {
    mb_expr_list list = {0};
    int is_outer = p->depth == 0, begins = is_outer && take(p, '^'), ends = 0;
    if (is_outer && p->options->search && !begins)
        mb_expr_add(p->builder, &list, any_text(p));
    while (peek(p) >= 0 && peek(p) != '|' && peek(p) != ')' && p->builder->pool.status == MB_OK) {
        if (is_outer && peek(p) == '$' && (p->at + 1 == p->n || p->text[p->at + 1] == '|')) {
            p->at++;
            ends = 1;
            break;
        }
        const mb_expr *atom = parse_atom(p);
        if (atom)
            atom = parse_repeats(p, atom);
        if (atom)
            mb_expr_add(p->builder, &list, atom);
    }
    if (is_outer && p->options->search && !ends)
        mb_expr_add(p->builder, &list, any_text(p));
    return mb_expr_list_sequence(p->builder, &list);
}

static const mb_expr *parse_choice(parser *p) {
    mb_expr_list list = {0};
    do
        mb_expr_add(p->builder, &list, parse_sequence(p));
    while (p->builder->pool.status == MB_OK && take(p, '|'));
    const mb_expr *expr = mb_expr_list_choice(p->builder, &list);
    return p->builder->pool.status == MB_OK ? expr : NULL;
}

const mb_expr *mb_regex_parse(mb_builder *builder, const char *pattern, size_t n_bytes,
                              const mb_regex_options *options) {
    parser p = {.builder = builder, .options = options, .text = pattern, .n = n_bytes};
    const mb_expr *expr = parse_choice(&p);
    if (expr && p.at < p.n)
        return fail_at(&p, MB_ERR_FORMAT, p.at, "a closing parenthesis without its group");
    return expr;
}
