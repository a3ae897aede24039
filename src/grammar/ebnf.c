#include "grammar/ebnf.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "grammar/utf8_ranges.h"

enum { MAX_DEPTH = 100, MAX_COUNT = 1 << 20, MAX_RANGES = 1 << 12, MAX_EBNF_RULES = 2048, N_SLOTS = 4096 };

typedef struct parser {
    mb_builder *builder;
    const char *text;
    size_t n, at;
    int depth;
    mb_ebnf_rules rules;
    uint16_t slots[N_SLOTS]; /* of a hash table: rules by name, number + 1 */
} parser;

static const mb_expr *parse_choice(parser *p);

static const mb_expr *fail_at(parser *p, mb_status status, size_t at, const char *why) {
    size_t line = 1, column = 1;
    for (size_t i = 0; i < at; i++)
        if (p->text[i] == '\n')
            line++, column = 1;
        else
            column += ((unsigned char)p->text[i] & 0xc0) != 0x80;
    if (p->builder->pool.status == MB_OK)
        p->builder->pool.status = mb_fail(status, "the grammar: line %zu, column %zu: %s", line, column, why);
    return NULL;
}

/* Where a rule's name stands. Names of any length are allowed; the sentence has the beginning of a long one. */
static void fail_at_name(parser *p, size_t name, size_t n_name, const char *why) {
    enum { MAX_SHOWN = 60 };
    char sentence[MAX_SHOWN + 64];
    snprintf(sentence, sizeof sentence, "the rule \"%.*s%s\" is %s",
             n_name < MAX_SHOWN ? (int)n_name : MAX_SHOWN, p->text + name, n_name > MAX_SHOWN ? "..." : "",
             why);
    fail_at(p, MB_ERR_FORMAT, name, sentence);
}

static int is_good(const parser *p) {
    return p->builder->pool.status == MB_OK;
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

/* White space and comments. */
static void skip_space(parser *p) {
    for (int c = peek(p); c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '#'; c = peek(p))
        if (c == '#')
            while (peek(p) >= 0 && peek(p) != '\n')
                p->at++;
        else
            p->at++;
}

/* ---- Names ------------------------------------------------------------------------------------------ */

static int is_name_char(int c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '-';
}

/* The number of bytes; 0: there is no name. */
static size_t take_name(parser *p) {
    size_t start = p->at;
    while (is_name_char(peek(p)) ||
           (peek(p) == '.' && p->at > start && p->at + 1 < p->n && is_name_char(p->text[p->at + 1])))
        p->at++;
    return p->at - start;
}

static int take_definition_sign(parser *p) {
    if (p->n - p->at < 3 || memcmp(p->text + p->at, "::=", 3) != 0)
        return 0;
    p->at += 3;
    return 1;
}

/* The name at `at` is followed by ::=, so the next rule begins. */
static int begins_rule(parser *p) {
    size_t at = p->at;
    int begins = 0;
    if (take_name(p) > 0) {
        skip_space(p);
        begins = take_definition_sign(p);
    }
    p->at = at;
    return begins;
}

/* The rule of a name, made when it is met first; NULL on failure. */
static mb_ebnf_rule *rule_named(parser *p, size_t name, size_t n_name) {
    mb_ebnf_rules *rules = &p->rules;
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < n_name; i++)
        hash = (hash ^ (unsigned char)p->text[name + i]) * 16777619u;
    size_t slot = hash % N_SLOTS;
    for (; p->slots[slot]; slot = (slot + 1) % N_SLOTS) {
        mb_ebnf_rule *found = &rules->items[p->slots[slot] - 1];
        if (found->n_name == n_name && memcmp(p->text + found->name, p->text + name, n_name) == 0)
            return found;
    }
    if (rules->n == MAX_EBNF_RULES) {
        fail_at(p, MB_ERR_CAPACITY, name, "more than 2048 rules");
        return NULL;
    }
    int rule = mb_rule_add(p->builder, mb_expr_never());
    if (rule < 0 || mb_grammar_grow(&p->builder->pool, (void **)&rules->items, &rules->capacity, rules->n + 1,
                                    sizeof *rules->items) != 0)
        return NULL;
    rules->items[rules->n] = (mb_ebnf_rule){.name = name, .n_name = n_name, .rule = rule};
    p->slots[slot] = (uint16_t)++rules->n;
    return &rules->items[rules->n - 1];
}

static const mb_expr *parse_call(parser *p) {
    size_t name = p->at, n_name = take_name(p);
    mb_ebnf_rule *rule = rule_named(p, name, n_name);
    if (!rule)
        return NULL;
    mb_ebnf_rules *rules = &p->rules;
    mb_expr *call = (mb_expr *)mb_expr_call(p->builder, rule->rule);
    if (!is_good(p) || mb_grammar_grow(&p->builder->pool, (void **)&rules->calls, &rules->calls_capacity,
                                       rules->n_calls + 1, sizeof *rules->calls) != 0)
        return NULL;
    return rules->calls[rules->n_calls++] = call;
}

/* ---- Characters ------------------------------------------------------------------------------------- */

static int hex_value(int c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    return (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : -1;
}

static int parse_hex(parser *p, size_t start, int n_digits, uint32_t *c) {
    uint32_t value = 0;
    int n = 0;
    for (; n < n_digits && peek(p) >= 0 && hex_value(peek(p)) >= 0; n++)
        value = value << 4 | (uint32_t)hex_value(peek(p)), p->at++;
    if (n < n_digits)
        fail_at(p, MB_ERR_FORMAT, start, "an escape with too few hexadecimal digits");
    else if (value > MB_LAST_CHAR || (value >= 0xd800 && value < 0xe000))
        fail_at(p, MB_ERR_FORMAT, start, "an escape that is no Unicode character");
    *c = value;
    return is_good(p);
}

/* One character of a text or a set, maybe spelled with a backslash. Returns 0 on failure. */
static int parse_char(parser *p, uint32_t *c) {
    static const char names[] = "nrtabfve0", values[] = "\n\r\t\a\b\f\v\x1b";
    size_t start = p->at;
    if (!take(p, '\\')) {
        *c = mb_utf8_decode(p->text, &p->at);
        return 1;
    }
    int sign = peek(p);
    const char *name = sign > 0 ? strchr(names, sign) : NULL;
    if (name || sign == 'x' || sign == 'u' || sign == 'U') {
        p->at++;
        if (!name)
            return parse_hex(p, start, sign == 'x' ? 2 : sign == 'u' ? 4 : 8, c);
        *c = (uint32_t)(unsigned char)values[name - names]; /* "0" is values' terminator */
        return 1;
    }
    if (sign < ' ' || (is_name_char(sign) && sign != '-' && sign != '_')) {
        fail_at(p, MB_ERR_UNSUPPORTED, start, "an escape that is not supported");
        return 0;
    }
    *c = mb_utf8_decode(p->text, &p->at);
    return 1;
}

static const mb_expr *parse_text(parser *p) {
    size_t start = p->at++;
    char *text = NULL;
    size_t n = 0, capacity = 0;
    const mb_expr *expr = NULL;
    while (is_good(p) && peek(p) != '"') {
        uint32_t c;
        if (peek(p) < 0 || peek(p) == '\n') {
            fail_at(p, MB_ERR_FORMAT, start, "a text without its closing quote on the same line");
        } else if (parse_char(p, &c) &&
                   mb_grammar_grow(&p->builder->pool, (void **)&text, &capacity, n + 4, 1) == 0) {
            n += (size_t)mb_utf8_encode(c, (uint8_t *)text + n);
        }
    }
    if (is_good(p)) {
        p->at++;
        expr = mb_expr_text(p->builder, text, n);
    }
    mb_free(text);
    return expr;
}

static int parse_range(parser *p, size_t start, mb_char_range *range) {
    size_t at = p->at;
    if (peek(p) < 0 || peek(p) == '\n')
        return fail_at(p, MB_ERR_FORMAT, start, "a set without its closing bracket on the same line") != NULL;
    if (!parse_char(p, &range->first))
        return 0;
    range->last = range->first;
    if (peek(p) != '-' || p->at + 1 >= p->n || p->text[p->at + 1] == ']')
        return 1;
    p->at++;
    if (peek(p) == '\n' || !parse_char(p, &range->last))
        return fail_at(p, MB_ERR_FORMAT, at, "a range without its end") != NULL;
    if (range->last < range->first)
        fail_at(p, MB_ERR_FORMAT, at, "a range whose end is before its start");
    return is_good(p);
}

static const mb_expr *parse_set(parser *p) {
    size_t start = p->at++, n = 0, capacity = 0;
    int is_negated = take(p, '^');
    mb_grammar_pool *pool = &p->builder->pool;
    mb_char_range *ranges = NULL;
    while (is_good(p) && peek(p) != ']') {
        if (n == MAX_RANGES)
            fail_at(p, MB_ERR_CAPACITY, start, "a set of more than 4096 ranges");
        else if (mb_grammar_grow(pool, (void **)&ranges, &capacity, n + 1, sizeof *ranges) == 0)
            n += (size_t)parse_range(p, start, &ranges[n]);
    }
    if (is_good(p) && n == 0 && !is_negated)
        fail_at(p, MB_ERR_FORMAT, start, "a set without characters");
    const mb_expr *expr = NULL;
    if (is_good(p)) {
        p->at++;
        n = mb_chars_normalise(ranges, n);
        mb_char_range *others = is_negated ? mb_grammar_pool_push(pool, n + 1, sizeof *others) : NULL;
        if (others)
            n = mb_chars_complement(ranges, n, others);
        if (is_good(p))
            expr = mb_expr_chars(p->builder, others ? others : ranges, n);
    }
    mb_free(ranges);
    return expr;
}

/* ---- Items ------------------------------------------------------------------------------ */

static const mb_expr *parse_group(parser *p) {
    size_t start = p->at++;
    if (peek(p) == '=')
        return fail_at(p, MB_ERR_UNSUPPORTED, start, "a look-ahead (= ...) is not supported");
    if (++p->depth > MAX_DEPTH)
        return fail_at(p, MB_ERR_CAPACITY, start, "groups are nested more than 100 deep");
    const mb_expr *expr = parse_choice(p);
    p->depth--;
    if (expr && !take(p, ')'))
        return fail_at(p, MB_ERR_FORMAT, start, "a group without its closing parenthesis");
    return expr;
}

static const mb_expr *parse_item(parser *p) {
    static const mb_char_range any = {0, MB_LAST_CHAR};
    switch (peek(p)) {
    case '"':
        return parse_text(p);
    case '[':
        return parse_set(p);
    case '(':
        return parse_group(p);
    case '.':
        p->at++;
        return mb_expr_chars(p->builder, &any, 1);
    case '*':
    case '+':
    case '?':
    case '{':
        return fail_at(p, MB_ERR_FORMAT, p->at, "nothing stands before the repeat");
    default:
        if (is_name_char(peek(p)))
            return parse_call(p);
        return fail_at(p, MB_ERR_FORMAT, p->at,
                       "neither a \"text\", a [set], a (group), a name, nor name ::= of the next rule");
    }
}

/* Returns -1 when there is no number. */
static int take_number(parser *p) {
    int value = -1;
    for (; peek(p) >= '0' && peek(p) <= '9'; p->at++)
        value = value > MAX_COUNT ? value : (value < 0 ? 0 : value * 10) + (peek(p) - '0');
    return value;
}

static int parse_counts(parser *p, size_t start, int *min, int *max) {
    skip_space(p);
    *min = take_number(p);
    skip_space(p);
    int has_comma = take(p, ',');
    skip_space(p);
    *max = has_comma ? take_number(p) : *min;
    skip_space(p);
    if (!take(p, '}') || (*min < 0 && *max < 0))
        return fail_at(p, MB_ERR_FORMAT, start, "a repeat that is none of {n}, {n,}, {,m} and {n,m}") != NULL;
    if (*min > MAX_COUNT || *max > MAX_COUNT)
        return fail_at(p, MB_ERR_CAPACITY, start, "a count beyond a million") != NULL;
    *min = *min < 0 ? 0 : *min;
    *max = *max < 0 ? MB_UNBOUNDED : *max;
    if (*max < *min)
        fail_at(p, MB_ERR_FORMAT, start, "a repeat whose most is less than its least");
    return is_good(p);
}

static const mb_expr *parse_repeat(parser *p, const mb_expr *item) {
    int min = 0, max = MB_UNBOUNDED;
    skip_space(p);
    size_t start = p->at;
    if (take(p, '{')) {
        if (!parse_counts(p, start, &min, &max))
            return NULL;
    } else if (take(p, '+')) {
        min = 1;
    } else if (take(p, '?')) {
        max = 1;
    } else if (!take(p, '*')) {
        return item;
    }
    skip_space(p);
    if (peek(p) == '*' || peek(p) == '+' || peek(p) == '?' || peek(p) == '{')
        return fail_at(p, MB_ERR_FORMAT, p->at, "a repeat of a repeat; put the first one into (parentheses)");
    return mb_expr_repeat(p->builder, item, min, max);
}

/* ---- Rules ------------------------------------------------------------------------------------------ */

static const mb_expr *parse_sequence(parser *p) {
    mb_expr_list list = {0};
    skip_space(p);
    while (is_good(p) && peek(p) >= 0 && peek(p) != '|' && peek(p) != ')' && !begins_rule(p)) {
        const mb_expr *item = parse_item(p);
        if (item)
            item = parse_repeat(p, item);
        if (item)
            mb_expr_add(p->builder, &list, item);
        skip_space(p);
    }
    return mb_expr_list_sequence(p->builder, &list);
}

static const mb_expr *parse_choice(parser *p) {
    mb_expr_list list = {0};
    do
        mb_expr_add(p->builder, &list, parse_sequence(p));
    while (is_good(p) && take(p, '|'));
    const mb_expr *expr = mb_expr_list_choice(p->builder, &list);
    return is_good(p) ? expr : NULL;
}

static void parse_rule(parser *p) {
    size_t name = p->at, n_name = take_name(p);
    skip_space(p);
    if (n_name == 0 || !take_definition_sign(p)) {
        fail_at(p, MB_ERR_FORMAT, name, "a rule must begin with its name and ::=");
        return;
    }
    mb_ebnf_rule *rule = rule_named(p, name, n_name);
    if (rule && rule->is_defined)
        fail_at_name(p, name, n_name, "defined a second time");
    if (!rule || !is_good(p))
        return;
    size_t index = (size_t)(rule - p->rules.items), first_call = p->rules.n_calls;
    int number = rule->rule;
    const mb_expr *body = parse_choice(p);
    if (body && peek(p) == ')')
        body = fail_at(p, MB_ERR_FORMAT, p->at, "a closing parenthesis without its group");
    if (!body)
        return;
    mb_rule_set(p->builder, number, mb_ebnf_as_loop(p->builder, number, body));
    rule = &p->rules.items[index];
    rule->is_defined = 1;
    rule->first_call = first_call;
    rule->n_calls = p->rules.n_calls - first_call;
}

static const mb_expr *parse_grammar(parser *p) {
    for (skip_space(p); is_good(p) && p->at < p->n;)
        parse_rule(p);
    mb_ebnf_rule *root = NULL;
    for (size_t i = 0; i < p->rules.n && is_good(p); i++) {
        mb_ebnf_rule *rule = &p->rules.items[i];
        if (!rule->is_defined)
            fail_at_name(p, rule->name, rule->n_name, "called, but defined nowhere");
        if (rule->n_name == 4 && memcmp(p->text + rule->name, "root", 4) == 0)
            root = rule;
    }
    if (is_good(p) && !root)
        fail_at(p, MB_ERR_FORMAT, p->n, "there is no rule root, which the answer is to follow");
    return is_good(p) ? mb_ebnf_inline(p->builder, &p->rules, root) : NULL;
}

const mb_expr *mb_ebnf_parse(mb_builder *builder, const char *text, size_t n_bytes) {
    parser p = {.builder = builder, .text = text, .n = n_bytes};
    const mb_expr *expr = parse_grammar(&p);
    mb_free(p.rules.items);
    mb_free(p.rules.calls);
    return expr;
}
