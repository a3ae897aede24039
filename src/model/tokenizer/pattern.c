#include "model/tokenizer/pattern.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { MAX_GROUPS = 200, SHOWN = 40 }; /* PCRE2 nests parentheses 250 deep */

/* What stands left of a place in a class. The meaning of a hyphen depends on its left side. */
typedef enum left_side { NOTHING, ONE_CHARACTER, MANY_CHARACTERS } left_side;

typedef struct parser {
    const char *path, *pattern;
    size_t n, i; /* number of bytes, and the next byte to read */
    mb_text_buffer *out;
    unsigned char caseless[MAX_GROUPS + 1]; /* by depth of groups: whether (?i: holds there */
    size_t depth;
} parser;

static int next_is(const parser *p, const char *text) {
    size_t length = strlen(text);
    return length <= p->n - p->i && memcmp(p->pattern + p->i, text, length) == 0;
}

/* Appends the next n_bytes unchanged. */
static void copy(parser *p, size_t n_bytes) {
    mb_text_append(p->out, p->pattern + p->i, n_bytes);
    p->i += n_bytes;
}

/* Appends `text` instead of the next n_bytes. */
static void replace(parser *p, size_t n_bytes, const char *text) {
    mb_text_append_string(p->out, text);
    p->i += n_bytes;
}

static mb_status refuse(const parser *p, size_t at, const char *what) {
    return mb_fail(
        MB_ERR_UNSUPPORTED,
        "%s: the pattern has %s at byte %zu, which regular expression engines read in different ways",
        p->path, what, at);
}

/* ---- Categories --------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    const char *long_name; /* in lower case, without spaces, hyphens and underscores */
} categories[] = {
    {"L", "letter"},
    {"Lu", "uppercaseletter"},
    {"Ll", "lowercaseletter"},
    {"Lt", "titlecaseletter"},
    {"Lm", "modifierletter"},
    {"Lo", "otherletter"},
    {"M", "mark"},
    {"Mn", "nonspacingmark"},
    {"Mc", "spacingmark"},
    {"Me", "enclosingmark"},
    {"N", "number"},
    {"Nd", "decimalnumber"},
    {"Nl", "letternumber"},
    {"No", "othernumber"},
    {"P", "punctuation"},
    {"Pc", "connectorpunctuation"},
    {"Pd", "dashpunctuation"},
    {"Ps", "openpunctuation"},
    {"Pe", "closepunctuation"},
    {"Pi", "initialpunctuation"},
    {"Pf", "finalpunctuation"},
    {"Po", "otherpunctuation"},
    {"S", "symbol"},
    {"Sm", "mathsymbol"},
    {"Sc", "currencysymbol"},
    {"Sk", "modifiersymbol"},
    {"So", "othersymbol"},
    {"Z", "separator"},
    {"Zs", "spaceseparator"},
    {"Zl", "lineseparator"},
    {"Zp", "paragraphseparator"},
    {"C", "other"},
    {"Cc", "control"},
    {"Cf", "format"},
    {"Co", "privateuse"},
    {"Cn", "unassigned"},
};

/* The short name of the category that the text names; NULL when it names none. Oniguruma takes names without
 * regard to case, spaces, hyphens and underscores. */
static const char *category_name(const char *text, size_t n_bytes) {
    char plain[SHOWN];
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        if (text[i] == ' ' || text[i] == '-' || text[i] == '_')
            continue;
        if (n + 1 == sizeof plain)
            return NULL;
        plain[n++] = text[i];
    }
    plain[n] = '\0';
    for (size_t k = 0; k < sizeof categories / sizeof *categories; k++)
        if (strcasecmp(plain, categories[k].name) == 0 || strcasecmp(plain, categories[k].long_name) == 0)
            return categories[k].name;
    return NULL;
}

/* \p{X}, \P{X}, \p{^X}; p->i is at the backslash. */
static mb_status translate_category(parser *p) {
    size_t at = p->i, end = at + 2;
    while (end < p->n && p->pattern[end] != '}')
        end++;
    int shown = (int)(end + 1 - at < SHOWN ? end + 1 - at : SHOWN);
    if (end == p->n || p->pattern[at + 2] != '{')
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: the pattern's escape \\%c at byte %zu has no name in braces, as in \\p{L}",
                       p->path, p->pattern[at + 1], at);
    int is_negated = p->pattern[at + 1] == 'P';
    const char *name = p->pattern + at + 3, *category;
    if (*name == '^') {
        is_negated = !is_negated;
        name++;
    }
    category = category_name(name, (size_t)(p->pattern + end - name));
    if (!category)
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "%s: the pattern's %.*s at byte %zu is not a general category of Unicode (\\p{L}, \\p{Lu}, "
            "\\p{M}, \\p{N}, \\p{P}, ...); moebius reads only those exactly as the reference tokenizer does",
            p->path, shown, p->pattern + at, at);
    if (p->caseless[p->depth])
        return refuse(p, at, "a category inside of (?i:");
    mb_text_append_string(p->out, is_negated ? "\\P{" : "\\p{");
    replace(p, end + 1 - at, category);
    mb_text_append_string(p->out, "}");
    return MB_OK;
}

/* ---- Escapes ------------------------------------------------------------------------------------------ */

/* The value of n_digits hexadecimal digits; -1 when another character is among them. */
static long hexadecimal(const char *text, size_t n_digits) {
    long value = 0;
    for (size_t i = 0; i < n_digits; i++) {
        static const char digits[] = "0123456789abcdef0123456789ABCDEF";
        const char *digit = text[i] ? strchr(digits, text[i]) : NULL;
        if (!digit)
            return -1;
        value = value * 16 + (digit - digits) % 16;
    }
    return value;
}

/* The character that \xHH, \x{H...} or \uHHHH at p->i names; the escape's length goes to *n_bytes. -1: the
 * escape is none of these, or names no character. */
static long code_point(const parser *p, size_t *n_bytes) {
    const char *rest = p->pattern + p->i;
    size_t room = p->n - p->i;
    long value = -1;
    if (room >= 3 && memcmp(rest, "\\x{", 3) == 0) {
        const char *end = memchr(rest, '}', room);
        size_t n_digits = end ? (size_t)(end - rest) - 3 : 0;
        *n_bytes = n_digits + 4;
        value = n_digits >= 1 && n_digits <= 8 ? hexadecimal(rest + 3, n_digits) : -1;
    } else if (room >= 4 && rest[1] == 'x') {
        *n_bytes = 4;
        value = hexadecimal(rest + 2, 2);
        if (value >= 0x80) /* Oniguruma means one byte of a character */
            return -1;
    } else if (room >= 6 && rest[1] == 'u') {
        *n_bytes = 6;
        value = hexadecimal(rest + 2, 4);
    }
    return value > 0x10FFFF || (value >= 0xD800 && value < 0xE000) ? -1 : value;
}

/* p->i is at the backslash. *is_one: the escape stands for one character, not for a set. */
static mb_status translate_escape(parser *p, int *is_one) {
    char c = p->n - p->i > 1 ? p->pattern[p->i + 1] : '\0', spelled[24];
    size_t n_bytes = 0;
    long value = -1;
    *is_one = 1;
    if (c && strchr("\\^$.[]|()?*+{}-/'\"#&~!%,:;<=>@_` rntf", c)) {
        copy(p, 2);
    } else if (c && strchr("sSdD", c)) {
        *is_one = 0;
        if (c == 's' || c == 'S')
            copy(p, 2);
        else
            replace(p, 2, c == 'd' ? "\\p{Nd}" : "\\P{Nd}");
    } else if (c == 'p' || c == 'P') {
        *is_one = 0;
        return translate_category(p);
    } else if ((value = code_point(p, &n_bytes)) >= 0) {
        snprintf(spelled, sizeof spelled, "\\x{%lX}", (unsigned long)value);
        replace(p, n_bytes, spelled);
    } else {
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "%s: the pattern's escape \\%c at byte %zu is not one of \\p{category} \\s \\S \\d \\D \\r \\n "
            "\\t \\f \\x{code point} \\uHHHH, which is what moebius reads exactly as the reference "
            "tokenizer does",
            p->path, c > ' ' && c <= '~' ? c : '?', p->i);
    }
    return MB_OK;
}

/* ---- Classes ------------------------------------------------------------------------------------------ */

static mb_status translate_class_item(parser *p, left_side *left) {
    char c = p->pattern[p->i];
    size_t at = p->i;
    int is_one = 1;
    if (c == '[' || next_is(p, "&&"))
        return refuse(p, at, "a class within a class");
    if (c == '-') {
        int is_last = next_is(p, "-]");
        replace(p, 1, *left == NOTHING || is_last ? "\\-" : "-");
        if (*left == NOTHING || is_last) {
            *left = MANY_CHARACTERS;
            return MB_OK;
        }
        if (*left != ONE_CHARACTER || p->i == p->n || p->pattern[p->i] == '-')
            return refuse(p, at, "a hyphen that is no range");
        MB_TRY(translate_class_item(p, left)); /* the end of the range */
        if (*left != ONE_CHARACTER)
            return refuse(p, at, "a hyphen that is no range");
        *left = MANY_CHARACTERS;
        return MB_OK;
    }
    if (c == '\\')
        MB_TRY(translate_escape(p, &is_one));
    else
        for (copy(p, 1); p->i < p->n && ((unsigned char)p->pattern[p->i] & 0xC0) == 0x80;)
            copy(p, 1);
    *left = is_one ? ONE_CHARACTER : MANY_CHARACTERS;
    return MB_OK;
}

static mb_status translate_class(parser *p) {
    size_t at = p->i;
    copy(p, next_is(p, "[^") ? 2 : 1);
    if (next_is(p, "]"))
        return refuse(p, at, "a class that begins with ]");
    left_side left = NOTHING;
    while (p->i < p->n && p->pattern[p->i] != ']')
        MB_TRY(translate_class_item(p, &left));
    if (p->i < p->n)
        copy(p, 1);
    return MB_OK;
}

/* ---- Groups and repeats ------------------------------------------------------------------------------- */

static mb_status open_group(parser *p) {
    static const char *const known[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    size_t length = next_is(p, "(?") || next_is(p, "(*") ? 0 : 1;
    unsigned char caseless = p->caseless[p->depth];
    for (size_t i = 0; i < sizeof known / sizeof *known && length == 0; i++)
        if (next_is(p, known[i]))
            length = strlen(known[i]);
    if (length == 0)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: the pattern's group at byte %zu is not one of (?: (?i: (?= (?! (?<= (?<! (?>",
                       p->path, p->i);
    if (p->depth == MAX_GROUPS)
        return mb_fail(MB_ERR_UNSUPPORTED, "%s: the pattern's groups are nested deeper than %d", p->path,
                       MAX_GROUPS);
    p->caseless[++p->depth] = caseless || next_is(p, "(?i:");
    copy(p, length);
    return MB_OK;
}

/* {n}, {n,}, {n,m} or {,m}; every other brace is a character. */
static mb_status translate_brace(parser *p) {
    size_t at = p->i, i = at + 1, n_low, n_high = 0;
    n_low = strspn(p->pattern + i, "0123456789");
    i += n_low;
    int has_comma = p->pattern[i] == ',';
    if (has_comma)
        n_high = strspn(p->pattern + ++i, "0123456789");
    i += n_high;
    if (p->pattern[i] != '}' || n_low + n_high == 0) {
        replace(p, 1, "\\{");
        return MB_OK;
    }
    if (p->pattern[i + 1] == '+')
        return refuse(p, i, "a possessive {n,m}+");
    if (p->pattern[i + 1] == '?' && !has_comma)
        return refuse(p, i, "a lazy {n}?");
    size_t n_most = has_comma ? n_high : n_low; /* digits of the largest count, which end at i */
    if (n_most > 0 &&
        strspn(p->pattern + i - n_most, "0") == n_most) /* PCRE2 10.42 may then miss the match */
        return refuse(p, i, "a repeat of at most 0");
    if (n_low == 0)
        replace(p, 1, "{0");
    copy(p, i + 1 - p->i);
    return MB_OK;
}

mb_status mb_pattern_translate(const char *path, const char *pattern, mb_text_buffer *out) {
    parser p = {.path = path, .pattern = pattern, .n = strlen(pattern), .out = out};
    while (p.i < p.n) {
        char c = pattern[p.i];
        int is_one;
        if (c == '\\') {
            MB_TRY(translate_escape(&p, &is_one));
        } else if (c == '[') {
            MB_TRY(translate_class(&p));
        } else if (c == '(') {
            MB_TRY(open_group(&p));
        } else if (c == '{') {
            MB_TRY(translate_brace(&p));
        } else if (c == '}' || c == ']') {
            replace(&p, 1, c == '}' ? "\\}" : "\\]");
        } else {
            if (c == ')' && p.depth > 0)
                p.depth--;
            copy(&p, 1);
        }
    }
    return MB_OK;
}
