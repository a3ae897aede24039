/*
 * tokenizer_encode.c - text to ids: added tokens out of the raw text, NFC of what lies between, added tokens
 * out of the normalised text, then pieces and their merges.
 */
#include <string.h>

#include "base/alloc.h"
#include "model/tokenizer/normalize.h"
#include "model/tokenizer/tokenizer_parts.h"
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

/* Cuts the matcher's tokens out of the text and gives what lies between to `on_stretch`. */
static mb_status cut_added(encoding *e, const mb_added_matcher *matcher, const char *text, size_t n_bytes,
                           stretch_fn on_stretch) {
    size_t done = 0, from = 0, start;
    const mb_added_token *token;
    while ((token = mb_added_matcher_find(matcher, text, n_bytes, from, &start)) != NULL) {
        from = start + token->n_match;
        if (token->is_special && !e->parse_special)
            continue;
        if (start > done)
            MB_TRY(on_stretch(e, text + done, start - done));
        MB_TRY(reserve_ids(e, 1));
        e->ids[e->n_ids++] = token->id;
        done = from;
    }
    return done < n_bytes ? on_stretch(e, text + done, n_bytes - done) : MB_OK;
}

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
    enum { MAX_BYTES = 512 << 20 }; /* places in a piece are 32 bits wide, and NFC may lengthen the text */
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
