/*
 * chatml.c - a reader for the few statements that a plain ChatML template has.
 *
 * The template is read twice over: as text and tags, with Jinja's rules for white space as transformers
 * sets them (trim_blocks, lstrip_blocks); and within tags as tokens. What the template prints is compared
 * on the way with what ChatML prints, so nothing needs to be stored.
 */
#include "model/chat/chatml.h"

#include <ctype.h>
#include <string.h>

enum { NAME_MAX_BYTES = 64 };

/* What ChatML prints for a message, and behind the messages. \1 is the role, \2 the content. */
static const char turn[] = "<|im_start|>\1\n\2<|im_end|>\n", opening[] = "<|im_start|>assistant\n";

typedef struct reader {
    const char *start, *at, *end; /* the template, and what is next */
    const char *wanted;           /* what must be printed next; NULL where nothing may be printed */
    int is_trimmed;               /* the last tag takes the white space that follows */
    int is_behind_block; /* the last tag was a block or a comment, which takes one line end that follows */
    int is_broken;       /* the template is not plain ChatML */
    char message[NAME_MAX_BYTES]; /* the loop's variable; empty outside of the loop */
} reader;

static int starts(const reader *r, const char *text) {
    size_t n = strlen(text);
    return (size_t)(r->end - r->at) >= n && memcmp(r->at, text, n) == 0;
}

static int is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* ---- What is printed ---------------------------------------------------------------------------------- */

/* A zero byte of the template is not the end of what is wanted. */
static void print(reader *r, char c) {
    if (r->wanted && c != '\0' && *r->wanted == c)
        r->wanted++;
    else
        r->is_broken = 1;
}

static void print_text(reader *r, const char *text, size_t n) {
    for (size_t i = 0; i < n && !r->is_broken; i++) {
        if (text[i] == '\r' && i + 1 < n && text[i + 1] == '\n') /* Jinja reads every line end as \n */
            continue;
        if (text[i] == '\1' || text[i] == '\2')
            r->is_broken = 1;
        print(r, text[i] == '\r' ? '\n' : text[i]);
    }
}

/* ---- Text between tags -------------------------------------------------------------------------------- */

/* The start of the next tag, or the end of the template. */
static const char *find_tag(const reader *r) {
    for (const char *p = r->at; p + 1 < r->end; p++)
        if (*p == '{' && (p[1] == '{' || p[1] == '%' || p[1] == '#'))
            return p;
    return r->end;
}

/* Prints the text up to the next tag, as far as the tags on both sides leave it. */
static void read_text(reader *r) {
    const char *tag = find_tag(r), *from = r->at, *to = tag;
    int is_block = tag < r->end && tag[1] != '{';
    if (r->is_trimmed)
        while (from < to && is_space(*from))
            from++;
    else if (r->is_behind_block && from < to && *from == '\n')
        from++;
    else if (r->is_behind_block && from + 1 < to && from[0] == '\r' && from[1] == '\n')
        from += 2;
    if (tag == r->end) { /* the template's last line end is no text */
        if (to > from && to[-1] == '\n')
            to--;
        if (to > from && to[-1] == '\r')
            to--;
    } else if (tag + 2 < r->end && tag[2] == '-') {
        while (to > from && is_space(to[-1]))
            to--;
    } else if (is_block) { /* blanks between a line's start and a block's */
        const char *line = to;
        while (line > r->at && (line[-1] == ' ' || line[-1] == '\t'))
            line--;
        if (line == r->start || (line > r->start && line[-1] == '\n'))
            to = line < from ? from : line;
    }
    print_text(r, from, (size_t)(to - from));
    r->at = tag;
}

/* ---- Tokens within a tag ------------------------------------------------------------------------------ */

static void skip_space(reader *r) {
    while (r->at < r->end && is_space(*r->at))
        r->at++;
}

/* Takes `word` when it is next, a name only when the name ends there. */
static int take(reader *r, const char *word) {
    skip_space(r);
    size_t n = strlen(word);
    if (!starts(r, word))
        return 0;
    int is_name = isalnum((unsigned char)word[n - 1]) || word[n - 1] == '_';
    if (is_name && r->at + n < r->end && (isalnum((unsigned char)r->at[n]) || r->at[n] == '_'))
        return 0;
    r->at += n;
    return 1;
}

static int take_all(reader *r, const char *const *words) {
    for (; *words; words++)
        if (!take(r, *words))
            return 0;
    return 1;
}

/* Takes a name to `name`; 0 when none is next, or one that is too long. */
static int take_name(reader *r, char name[NAME_MAX_BYTES]) {
    skip_space(r);
    size_t n = 0;
    while (r->at + n < r->end && (isalnum((unsigned char)r->at[n]) || r->at[n] == '_'))
        n++;
    if (n == 0 || n >= NAME_MAX_BYTES || isdigit((unsigned char)*r->at))
        return 0;
    memcpy(name, r->at, n);
    name[n] = '\0';
    r->at += n;
    return 1;
}

/* Takes a string literal and prints it; 0 when it is not one of ours. */
static int take_string(reader *r) {
    skip_space(r);
    char quote = r->at < r->end ? *r->at : '\0';
    if (quote != '\'' && quote != '"')
        return 0;
    for (r->at++; r->at < r->end && *r->at != quote; r->at++) {
        char c = *r->at;
        if (c == '\\' && r->at + 1 < r->end) {
            static const char names[] = "nrt\\'\"", meanings[] = "\n\r\t\\'\"";
            const char *name = *++r->at ? strchr(names, *r->at) : NULL;
            if (!name)
                return 0;
            print(r, meanings[name - names]);
        } else {
            print_text(r, &c, 1);
        }
    }
    if (r->at == r->end)
        return 0;
    r->at++;
    return 1;
}

/* m.KEY, m['KEY'] or m["KEY"]. */
static int take_member(reader *r, const char *key) {
    const reader before = *r;
    int is_member = 0;
    if (!take(r, r->message))
        return 0;
    if (take(r, ".")) {
        is_member = take(r, key);
    } else if (take(r, "[")) {
        skip_space(r);
        const char *quote = starts(r, "'") ? "'" : "\"";
        is_member = take(r, quote) && starts(r, key);
        if (is_member) {
            r->at += strlen(key);
            is_member = starts(r, quote) && take(r, quote) && take(r, "]");
        }
    }
    if (!is_member)
        *r = before;
    return is_member;
}

/* The end of a tag that ends with `close`, %} or }}. */
static int take_close(reader *r, const char *close) {
    skip_space(r);
    r->is_trimmed = starts(r, "-");
    if (r->is_trimmed)
        r->at++;
    if (!starts(r, close))
        return 0;
    r->at += 2;
    r->is_behind_block = close[0] == '%';
    return 1;
}

/* ---- Tags --------------------------------------------------------------------------------------------- */

static void open_tag(reader *r) {
    r->at += 2;
    if (starts(r, "-"))
        r->at++;
}

static void read_comment(reader *r) {
    const char *close = NULL;
    for (const char *p = r->at + 2; p + 1 < r->end && !close; p++)
        if (p[0] == '#' && p[1] == '}')
            close = p;
    if (!close) {
        r->is_broken = 1;
        return;
    }
    r->is_trimmed = close[-1] == '-' && close - r->at > 2;
    r->is_behind_block = 1;
    r->at = close + 2;
}

/* A sum of strings, roles and contents. Parentheses change nothing in a sum. */
static void read_output(reader *r) {
    open_tag(r);
    size_t depth = 0;
    do {
        for (; take(r, "("); depth++)
            ;
        if (r->message[0] && take_member(r, "role"))
            print(r, '\1');
        else if (r->message[0] && take_member(r, "content"))
            print(r, '\2');
        else if (!take_string(r))
            r->is_broken = 1;
        for (; depth > 0 && take(r, ")"); depth--)
            ;
    } while (!r->is_broken && (take(r, "+") || take(r, "~")));
    if (depth > 0 || !take_close(r, "}}"))
        r->is_broken = 1;
}

/* Takes a whole block tag of these words. */
static int take_block(reader *r, const char *const *words) {
    const reader before = *r;
    if (r->at < r->end && starts(r, "{%")) {
        open_tag(r);
        if (take_all(r, words) && take_close(r, "%}"))
            return 1;
    }
    *r = before;
    return 0;
}

/* Text, outputs and comments, up to a block or the end. */
static void read_printing(reader *r) {
    for (;;) {
        read_text(r);
        if (r->is_broken || r->at == r->end || starts(r, "{%"))
            return;
        if (starts(r, "{#"))
            read_comment(r);
        else
            read_output(r);
    }
}

/* {% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %} */
static void read_default(reader *r) {
    static const char *const conditions[][7] = {
        {"if", "not", "add_generation_prompt", "is", "defined", NULL},
        {"if", "add_generation_prompt", "is", "not", "defined", NULL},
        {"if", "add_generation_prompt", "is", "undefined", NULL},
    };
    static const char *const sets[][5] = {{"set", "add_generation_prompt", "=", "false", NULL},
                                          {"set", "add_generation_prompt", "=", "False", NULL}};
    static const char *const end[] = {"endif", NULL};
    for (size_t i = 0; i < 3; i++) {
        if (!take_block(r, conditions[i]))
            continue;
        read_printing(r);
        if (!take_block(r, sets[0]) && !take_block(r, sets[1]))
            r->is_broken = 1;
        read_printing(r);
        if (!take_block(r, end))
            r->is_broken = 1;
        read_printing(r);
        return;
    }
}

/* {% for m in messages %} ... {% endfor %} */
static void read_loop(reader *r) {
    static const char *const end[] = {"endfor", NULL};
    if (r->at == r->end || r->is_broken) {
        r->is_broken = 1;
        return;
    }
    open_tag(r);
    if (!take(r, "for") || !take_name(r, r->message) || !take(r, "in") || !take(r, "messages") ||
        !take_close(r, "%}")) {
        r->is_broken = 1;
        return;
    }
    r->wanted = turn;
    read_printing(r);
    if (*r->wanted != '\0' || !take_block(r, end))
        r->is_broken = 1;
    r->message[0] = '\0';
    r->wanted = NULL;
}

/* {% if add_generation_prompt %} ... {% endif %} */
static void read_opening(reader *r) {
    static const char *const conditions[][7] = {
        {"if", "add_generation_prompt", NULL},
        {"if", "add_generation_prompt", "is", "defined", "and", "add_generation_prompt", NULL},
    };
    static const char *const end[] = {"endif", NULL};
    if (!take_block(r, conditions[0]) && !take_block(r, conditions[1])) {
        r->is_broken = 1;
        return;
    }
    r->wanted = opening;
    read_printing(r);
    if (*r->wanted != '\0' || !take_block(r, end))
        r->is_broken = 1;
    r->wanted = NULL;
}

int mb_chatml_recognise(const char *jinja, size_t n_bytes) {
    reader r = {.at = jinja, .end = jinja + n_bytes, .start = jinja};
    read_printing(&r);
    read_default(&r);
    read_loop(&r);
    read_printing(&r);
    if (!r.is_broken)
        read_opening(&r);
    read_printing(&r);
    return !r.is_broken && r.at == r.end;
}
