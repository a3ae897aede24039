/*
 * tokenizer_encode.c - text to ids. Added tokens are cut out of the raw text. The stretches between them
 * are normalised, and the added tokens that are looked for in normalised text are cut out. What is left is
 * cut into pieces by the pattern, and each piece is merged.
 */
#include <string.h>

#include "base/alloc.h"
#include "model/tokenizer/normalize.h"
#include "model/tokenizer/tokenizer_parts.h"
#include "model/tokenizer/unicode_versions.h"
#include "model/tokenizer/utf8.h"

typedef struct encoding {
    const mb_tokenizer *tokenizer;
    int parse_special;
    mb_text_buffer normalized; /* reused from stretch to stretch */
    mb_bpe_work work;
    int32_t *ids;
    size_t n_ids, capacity;
} encoding;

typedef mb_status (*stretch_fn)(encoding *e, const char *text, size_t n_bytes);

static mb_status reserve_ids(encoding *e, size_t n) {
    if (mb_grow((void **)&e->ids, &e->capacity, e->n_ids + n, sizeof *e->ids) != 0)
        return mb_fail(MB_ERR_MEMORY, "no memory for more than %zu token ids", e->n_ids);
    return MB_OK;
}

static mb_status encode_piece(void *user, const char *piece, size_t n_bytes) {
    encoding *e = user;
    MB_TRY(reserve_ids(e, n_bytes));
    size_t n;
    MB_TRY(mb_bpe_merge(&e->tokenizer->bpe, piece, n_bytes, &e->work, e->ids + e->n_ids, &n));
    e->n_ids += n;
    return MB_OK;
}

static mb_status encode_plain(encoding *e, const char *text, size_t n_bytes) {
    return mb_pretokenize(e->tokenizer->pretokenizer, text, n_bytes, encode_piece, e);
}

/* ---- Added tokens ------------------------------------------------------------------------------------- */

/* A text whose added tokens are being cut out. */
typedef struct cutting {
    const char *text;
    size_t n_bytes;
    size_t done;                     /* everything before this byte has become ids */
    size_t spaces_start, spaces_end; /* the run of white space that was measured last */
} cutting;

/* Start of the character that ends at `end`. */
static size_t step_back(const char *text, size_t end) {
    do
        end--;
    while (((unsigned char)text[end] & 0xC0) == 0x80);
    return end;
}

static int is_word_at(const char *text, size_t i) {
    size_t length;
    return mb_unicode_is_word(mb_utf8_decode(text + i, &length));
}

static int stands_alone(const cutting *c, size_t start, size_t end) {
    return (start == 0 || !is_word_at(c->text, step_back(c->text, start))) &&
           (end == c->n_bytes || !is_word_at(c->text, end));
}

/* The first byte of the white space that ends at `start`, no earlier than what is done. */
static size_t spaces_before(const cutting *c, size_t start) {
    while (start > c->done) {
        size_t length, previous = step_back(c->text, start);
        if (previous < c->done || !mb_unicode_is_space(mb_utf8_decode(c->text + previous, &length)))
            break;
        start = previous;
    }
    return start;
}

/* The end of the white space that starts at `end`. Tokens that are white space themselves ask again and
 * again about one run, so the run is measured once. */
static size_t spaces_behind(cutting *c, size_t end) {
    if (end >= c->spaces_start && end < c->spaces_end)
        return c->spaces_end;
    c->spaces_start = end;
    for (size_t length; end < c->n_bytes; end += length)
        if (!mb_unicode_is_space(mb_utf8_decode(c->text + end, &length)))
            break;
    c->spaces_end = end;
    return end;
}

/* Cuts the matcher's tokens out of the text and gives the stretches between them to `on_stretch`. As in the
 * reference, a match that does not count (a special token as plain text, a part of a word) still hides its
 * text from other tokens; and the search goes on right after a match, even when the match took the white
 * space that follows. */
static mb_status cut_added(encoding *e, const mb_added_matcher *matcher, const char *text, size_t n_bytes,
                           stretch_fn on_stretch) {
    cutting c = {.text = text, .n_bytes = n_bytes};
    size_t from = 0, start;
    const mb_added_token *token;
    while ((token = mb_added_matcher_find(matcher, text, n_bytes, from, &start)) != NULL) {
        size_t end = from = start + token->n_match;
        if (token->is_special && !e->parse_special)
            continue;
        if (token->is_single_word && !stands_alone(&c, start, end))
            continue;
        if (token->strips_left)
            start = spaces_before(&c, start);
        if (token->strips_right)
            end = spaces_behind(&c, end);
        if (start > c.done)
            MB_TRY(on_stretch(e, text + c.done, start - c.done));
        MB_TRY(reserve_ids(e, 1));
        e->ids[e->n_ids++] = token->id;
        c.done = end;
    }
    return c.done < n_bytes ? on_stretch(e, text + c.done, n_bytes - c.done) : MB_OK;
}

/* ---- All of it ---------------------------------------------------------------------------------------- */

static mb_status encode_raw(encoding *e, const char *text, size_t n_bytes) {
    if (e->tokenizer->uses_nfc && !mb_utf8_is_ascii(text, n_bytes)) {
        MB_TRY(mb_normalize_nfc(text, n_bytes, &e->normalized));
        text = e->normalized.bytes;
        n_bytes = e->normalized.n_bytes;
    }
    return cut_added(e, &e->tokenizer->normalized, text, n_bytes, encode_plain);
}

mb_status mb_tokenizer_encode(const mb_tokenizer *tokenizer, const char *text, size_t n_bytes,
                              int parse_special, int32_t **ids, size_t *n_ids) {
    enum { MAX_BYTES = 512 << 20 }; /* a place in a piece has 32 bits, and NFC may lengthen the text */
    *ids = NULL;
    *n_ids = 0;
    if (n_bytes > MAX_BYTES)
        return mb_fail(MB_ERR_CAPACITY, "the text has %zu bytes; at most %d can be tokenized at once",
                       n_bytes, MAX_BYTES);
    size_t valid = mb_utf8_valid_prefix(text, n_bytes);
    if (valid < n_bytes)
        return mb_fail(MB_ERR_FORMAT, "the text is not UTF-8: byte 0x%02X at offset %zu",
                       (unsigned char)text[valid], valid);
    encoding e = {.tokenizer = tokenizer, .parse_special = parse_special};
    mb_status status = cut_added(&e, &tokenizer->raw, text, n_bytes, encode_raw);
    mb_free(e.normalized.bytes);
    mb_bpe_work_free(&e.work);
    if (status != MB_OK || e.n_ids == 0) {
        mb_free(e.ids);
        return status;
    }
    *ids = e.ids;
    *n_ids = e.n_ids;
    return MB_OK;
}
