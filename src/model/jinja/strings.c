/* strings.c - characters and pieces of strings: what the methods and filters of strings are made of. */
#define _GNU_SOURCE /* memmem */
#include "model/jinja/strings.h"

#include <string.h>

#include <utf8proc.h>

size_t jinja_next_char(const char *bytes, size_t n_bytes, int32_t *code) {
    if (n_bytes > 0 && (unsigned char)bytes[0] < 0x80) {
        *code = bytes[0];
        return 1;
    }
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)bytes, (utf8proc_ssize_t)n_bytes, code);
    if (n > 0)
        return (size_t)n;
    *code = 0xFFFD; /* templates that are not UTF-8: each byte is a character that nobody knows */
    return n_bytes > 0 ? 1 : 0;
}

/* What Python's str.isspace and \s know. */
int jinja_is_space(int32_t code) {
    if (code < 0x80)
        return code == ' ' || (code >= 9 && code <= 13) || (code >= 28 && code <= 31);
    return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) ||
           code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

size_t jinja_find(const jinja_string *text, const jinja_string *needle, size_t from) {
    if (from > text->n_bytes || needle->n_bytes > text->n_bytes - from)
        return SIZE_MAX;
    if (needle->n_bytes == 0)
        return from;
    const char *found = memmem(text->bytes + from, text->n_bytes - from, needle->bytes, needle->n_bytes);
    return found ? (size_t)(found - text->bytes) : SIZE_MAX;
}

size_t jinja_find_last(const jinja_string *text, const jinja_string *needle, size_t to) {
    if (needle->n_bytes > to)
        return SIZE_MAX;
    for (size_t at = to - needle->n_bytes + 1; at-- > 0;)
        if (needle->n_bytes == 0 || (text->bytes[at] == needle->bytes[0] &&
                                     memcmp(text->bytes + at, needle->bytes, needle->n_bytes) == 0))
            return at;
    return SIZE_MAX;
}

size_t jinja_count_chars(const char *bytes, size_t n_bytes) {
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++)
        n += ((unsigned char)bytes[i] & 0xC0) != 0x80;
    return n;
}

size_t jinja_char_offset(const jinja_string *s, size_t i) {
    if (s->n_chars == s->n_bytes)
        return i < s->n_bytes ? i : s->n_bytes;
    size_t at = 0;
    for (int32_t code; i > 0 && at < s->n_bytes; i--)
        at += jinja_next_char(s->bytes + at, s->n_bytes - at, &code);
    return at;
}

/* ---- Strip -------------------------------------------------------------------------------------------- */

static int is_stripped(const char *bytes, size_t n, int32_t code, const jinja_string *chars) {
    if (!chars)
        return jinja_is_space(code);
    for (size_t i = 0, n_char; i < chars->n_bytes; i += n_char) {
        int32_t other;
        n_char = jinja_next_char(chars->bytes + i, chars->n_bytes - i, &other);
        if (n_char == n && memcmp(chars->bytes + i, bytes, n) == 0)
            return 1;
    }
    return 0;
}

void jinja_strip(const char **bytes, size_t *n_bytes, const jinja_string *chars, int sides) {
    const char *from = *bytes, *to = *bytes + *n_bytes;
    int32_t code;
    while ((sides & JINJA_LEFT) && from < to) {
        size_t n = jinja_next_char(from, (size_t)(to - from), &code);
        if (!is_stripped(from, n, code, chars))
            break;
        from += n;
    }
    while ((sides & JINJA_RIGHT) && to > from) {
        const char *last = to - 1;
        while (last > from && ((unsigned char)*last & 0xC0) == 0x80)
            last--;
        size_t n = (size_t)(to - last);
        jinja_next_char(last, n, &code);
        if (!is_stripped(last, n, code, chars))
            break;
        to = last;
    }
    *bytes = from;
    *n_bytes = (size_t)(to - from);
}

/* ---- Case --------------------------------------------------------------------------------------------- */

static int32_t map_code(int32_t code, jinja_case wanted) {
    return wanted == JINJA_UPPER   ? utf8proc_toupper(code)
           : wanted == JINJA_LOWER ? utf8proc_tolower(code)
                                   : utf8proc_totitle(code);
}

void jinja_put_case(jinja_builder *out, const char *bytes, size_t n_bytes, jinja_case wanted) {
    if (out->status == MB_OK)
        out->status = jinja_charge(out->run, n_bytes / 4);
    for (size_t i = 0, n; i < n_bytes; i += n) {
        int32_t code;
        utf8proc_uint8_t mapped[4];
        n = jinja_next_char(bytes + i, n_bytes - i, &code);
        int32_t other = map_code(code, wanted);
        if (code == 0xDF && wanted != JINJA_LOWER) /* sharp s, the one such letter that people use */
            jinja_put_text(out, wanted == JINJA_UPPER ? "SS" : "Ss");
        else if (other == code)
            jinja_put(out, bytes + i, n);
        else
            jinja_put(out, (const char *)mapped, (size_t)utf8proc_encode_char(other, mapped));
    }
}

int jinja_case_of(int32_t code) {
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT:
        return 1;
    case UTF8PROC_CATEGORY_LL:
        return -1;
    default:
        return 0;
    }
}

/* ---- Split -------------------------------------------------------------------------------------------- */

static mb_status push_piece(jinja_run *run, jinja_list *list, const char *bytes, size_t n_bytes) {
    jinja_value piece;
    MB_TRY(jinja_charge(run, 1));
    MB_TRY(jinja_string_over(run, bytes, n_bytes, &piece));
    return jinja_push(run, list, piece);
}

mb_status jinja_split(jinja_run *run, const jinja_string *s, const jinja_string *separator, int64_t most,
                      jinja_list *list) {
    size_t from = 0, found;
    while ((most < 0 || (int64_t)list->n < most) && (found = jinja_find(s, separator, from)) != SIZE_MAX) {
        MB_TRY(push_piece(run, list, s->bytes + from, found - from));
        from = found + separator->n_bytes;
    }
    MB_TRY(jinja_charge_bytes(run, s->n_bytes));
    return push_piece(run, list, s->bytes + from, s->n_bytes - from);
}

static void reverse(jinja_list *list) {
    for (size_t i = 0; i < list->n / 2; i++) {
        jinja_value item = list->items[i];
        list->items[i] = list->items[list->n - 1 - i];
        list->items[list->n - 1 - i] = item;
    }
}

mb_status jinja_split_right(jinja_run *run, const jinja_string *s, const jinja_string *separator,
                            int64_t most, jinja_list *list) {
    size_t to = s->n_bytes, found;
    MB_TRY(jinja_charge_bytes(run, s->n_bytes));
    while ((most < 0 || (int64_t)list->n < most) && (found = jinja_find_last(s, separator, to)) != SIZE_MAX) {
        size_t from = found + separator->n_bytes;
        MB_TRY(push_piece(run, list, s->bytes + from, to - from));
        to = found;
    }
    MB_TRY(push_piece(run, list, s->bytes, to));
    reverse(list);
    return MB_OK;
}

/* The end of the word that begins at `from`. */
static size_t word_end(const jinja_string *s, size_t from) {
    while (from < s->n_bytes) {
        int32_t code;
        size_t n = jinja_next_char(s->bytes + from, s->n_bytes - from, &code);
        if (jinja_is_space(code))
            break;
        from += n;
    }
    return from;
}

static size_t word_start(const char *bytes, size_t to) {
    while (to > 0) {
        size_t last = to - 1;
        while (last > 0 && ((unsigned char)bytes[last] & 0xC0) == 0x80)
            last--;
        int32_t code;
        jinja_next_char(bytes + last, to - last, &code);
        if (jinja_is_space(code))
            break;
        to = last;
    }
    return to;
}

mb_status jinja_split_words(jinja_run *run, const jinja_string *s, int64_t most, int from_right,
                            jinja_list *list) {
    const char *bytes = s->bytes;
    size_t n_bytes = s->n_bytes;
    MB_TRY(jinja_charge_bytes(run, s->n_bytes));
    jinja_strip(&bytes, &n_bytes, NULL, from_right ? JINJA_RIGHT : JINJA_LEFT);
    while (n_bytes > 0) {
        if (most >= 0 && (int64_t)list->n >= most) { /* the rest, in one piece */
            jinja_strip(&bytes, &n_bytes, NULL, from_right ? JINJA_RIGHT : JINJA_LEFT);
            MB_TRY(push_piece(run, list, bytes, n_bytes));
            break;
        }
        if (from_right) {
            size_t start = word_start(bytes, n_bytes);
            MB_TRY(push_piece(run, list, bytes + start, n_bytes - start));
            n_bytes = start;
        } else {
            const jinja_string rest = {.bytes = bytes, .n_bytes = n_bytes};
            size_t end = word_end(&rest, 0);
            MB_TRY(push_piece(run, list, bytes, end));
            bytes += end;
            n_bytes -= end;
        }
        jinja_strip(&bytes, &n_bytes, NULL, from_right ? JINJA_RIGHT : JINJA_LEFT);
    }
    if (from_right)
        reverse(list);
    return MB_OK;
}

static int is_line_end(int32_t code) {
    return (code >= 10 && code <= 13) || (code >= 28 && code <= 30) || code == 0x85 || code == 0x2028 ||
           code == 0x2029;
}

mb_status jinja_split_lines(jinja_run *run, const jinja_string *s, int keep_ends, jinja_list *list) {
    size_t from = 0;
    for (size_t i = 0, n; i < s->n_bytes; i += n) {
        int32_t code;
        n = jinja_next_char(s->bytes + i, s->n_bytes - i, &code);
        if (!is_line_end(code))
            continue;
        size_t end = i;
        if (code == '\r' && i + 1 < s->n_bytes && s->bytes[i + 1] == '\n')
            n = 2;
        MB_TRY(push_piece(run, list, s->bytes + from, (keep_ends ? i + n : end) - from));
        from = i + n;
    }
    MB_TRY(jinja_charge_bytes(run, s->n_bytes));
    return from < s->n_bytes ? push_piece(run, list, s->bytes + from, s->n_bytes - from) : MB_OK;
}

/* ---- Replace ------------------------------------------------------------------------------------------ */

mb_status jinja_replace(jinja_run *run, const jinja_string *s, const jinja_string *old,
                        const jinja_string *new, int64_t most, jinja_value *value) {
    jinja_builder out = {.run = run};
    size_t from = 0;
    for (int64_t n = 0; most < 0 || n < most; n++) {
        size_t found = jinja_find(s, old, from);
        if (found == SIZE_MAX)
            break;
        MB_TRY(jinja_charge(run, 1));
        jinja_put(&out, s->bytes + from, found - from);
        jinja_put_string(&out, new);
        from = found + old->n_bytes;
        if (old->n_bytes > 0)
            continue;
        if (from == s->n_bytes) /* between all characters, and behind the last */
            break;
        int32_t code;
        size_t n_char = jinja_next_char(s->bytes + from, s->n_bytes - from, &code);
        jinja_put(&out, s->bytes + from, n_char);
        from += n_char;
    }
    MB_TRY(jinja_charge_bytes(run, s->n_bytes));
    jinja_put(&out, s->bytes + from, s->n_bytes - from);
    return jinja_built(&out, value);
}
