/*
 * normalize.c - NFC on top of utf8proc's tables.
 *
 * The text is normalised in segments. Nothing composes or moves across the border of two segments: every
 * ASCII character begins a segment, and every inert character (unicode_versions.h) is a segment by itself.
 * A segment is decomposed, its marks are sorted by combining class, and the result is composed. The sorting
 * is our own, because utf8proc's is quadratic in the number of marks.
 */
#include "model/tokenizer/normalize.h"

#include <string.h>
#include <utf8proc.h>

#include "base/alloc.h"
#include "model/tokenizer/unicode_versions.h"
#include "model/tokenizer/utf8.h"

enum {
    MAX_DECOMPOSITION =
        18, /* characters that one character may become, with room to spare for canonical ones */
    N_CLASSES = 256,
    SHORT_RUN = 32, /* insertion sort is faster up to here */
};

typedef struct segment {
    utf8proc_int32_t *characters, *sorted; /* `sorted` is scratch memory of the counting sort */
    size_t n, capacity, sorted_capacity;
} segment;

static int combining_class(utf8proc_int32_t character) {
    return (int)utf8proc_get_property(character)->combining_class;
}

static mb_status no_memory(void) {
    return mb_fail(MB_ERR_MEMORY, "no memory to normalise the text");
}

static mb_status append_decomposed(segment *s, uint32_t character) {
    if (mb_grow((void **)&s->characters, &s->capacity, s->n + MAX_DECOMPOSITION, sizeof *s->characters) != 0)
        return no_memory();
    int boundary = 0;
    utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)character, s->characters + s->n,
                                                 MAX_DECOMPOSITION, UTF8PROC_DECOMPOSE, &boundary);
    if (n < 0 || n > MAX_DECOMPOSITION)
        return mb_fail(MB_ERR_INTERNAL, "U+%04X cannot be decomposed: %s", character,
                       n < 0 ? utf8proc_errmsg(n) : "it becomes too many characters");
    s->n += (size_t)n;
    return MB_OK;
}

static void sort_short(utf8proc_int32_t *run, size_t n) {
    for (size_t i = 1; i < n; i++) {
        utf8proc_int32_t moved = run[i];
        int moved_class = combining_class(moved);
        size_t k = i;
        for (; k > 0 && combining_class(run[k - 1]) > moved_class; k--)
            run[k] = run[k - 1];
        run[k] = moved;
    }
}

/* Counting sort: stable and linear. */
static mb_status sort_long(segment *s, utf8proc_int32_t *run, size_t n) {
    if (mb_grow((void **)&s->sorted, &s->sorted_capacity, n, sizeof *s->sorted) != 0)
        return no_memory();
    size_t next[N_CLASSES + 1] = {0};
    for (size_t i = 0; i < n; i++)
        next[combining_class(run[i]) + 1]++;
    for (size_t c = 0; c < N_CLASSES; c++)
        next[c + 1] += next[c];
    for (size_t i = 0; i < n; i++)
        s->sorted[next[combining_class(run[i])]++] = run[i];
    memcpy(run, s->sorted, n * sizeof *run);
    return MB_OK;
}

/* Canonical order: each run of marks sorted by class. */
static mb_status order_marks(segment *s) {
    for (size_t i = 0; i < s->n;) {
        size_t start = i;
        while (i < s->n && combining_class(s->characters[i]) != 0)
            i++;
        if (i - start > SHORT_RUN)
            MB_TRY(sort_long(s, s->characters + start, i - start));
        else
            sort_short(s->characters + start, i - start);
        if (i == start)
            i++;
    }
    return MB_OK;
}

static mb_status flush(segment *s, mb_text_buffer *out) {
    if (s->n == 0)
        return MB_OK;
    MB_TRY(order_marks(s));
    utf8proc_ssize_t n = utf8proc_normalize_utf32(s->characters, (utf8proc_ssize_t)s->n,
                                                  (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    char *end = mb_text_reserve(out, (size_t)n * 4);
    if (!end)
        return no_memory();
    for (utf8proc_ssize_t i = 0; i < n; i++)
        end += utf8proc_encode_char(s->characters[i], (utf8proc_uint8_t *)end);
    out->n_bytes = (size_t)(end - out->bytes);
    s->n = 0;
    return MB_OK;
}

/* Bytes of ASCII at the start that are their own normal form. The last character before other text is left
 * out: a mark may follow and compose with that character. */
static size_t plain_prefix(const char *text, size_t n_bytes) {
    size_t i = 0;
    while (i < n_bytes && (unsigned char)text[i] < 0x80)
        i++;
    return i > 0 && i < n_bytes ? i - 1 : i;
}

static mb_status normalize(const char *text, size_t n_bytes, segment *s, mb_text_buffer *out) {
    for (size_t i = 0; i < n_bytes;) {
        size_t length;
        uint32_t character = mb_utf8_decode(text + i, &length);
        if (character < 0x80) {
            MB_TRY(flush(s, out));
            size_t plain = plain_prefix(text + i, n_bytes - i);
            mb_text_append(out, text + i, plain);
            i += plain;
            if (plain > 0)
                continue;
        }
        if (mb_unicode_is_inert(character)) {
            MB_TRY(flush(s, out));
            mb_text_append(out, text + i, length);
        } else {
            MB_TRY(append_decomposed(s, character));
        }
        i += length;
    }
    return flush(s, out);
}

mb_status mb_normalize_nfc(const char *text, size_t n_bytes, mb_text_buffer *normalized) {
    segment s = {0};
    normalized->n_bytes = 0;
    mb_status status = normalize(text, n_bytes, &s, normalized);
    mb_free(s.characters);
    mb_free(s.sorted);
    if (status == MB_OK && normalized->out_of_memory)
        status = no_memory();
    return status;
}
