/* vocabulary.h - the base tokens of a byte-level BPE: id to bytes, and bytes to id. */
#ifndef MB_MODEL_VOCABULARY_H
#define MB_MODEL_VOCABULARY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mb_token_text {
    const char *bytes; /* NULL: no token has this id */
    uint32_t n_bytes;
} mb_token_text;

typedef struct mb_vocabulary {
    mb_token_text *tokens; /* [n_tokens] by id */
    int32_t n_tokens;
    char *bytes; /* the block that holds all tokens' bytes */
    size_t n_bytes;
    int32_t *slots; /* open addressing over the tokens' bytes: id, or -1 */
    size_t n_slots; /* a power of two */
} mb_vocabulary;

/* Makes room for ids below n_tokens with n_bytes of text in all. */
mb_status mb_vocabulary_init(mb_vocabulary *vocabulary, const char *path, int32_t n_tokens, size_t n_bytes);
void mb_vocabulary_free(mb_vocabulary *vocabulary);

/* The next n_bytes of the block. The caller writes a token's bytes there. */
char *mb_vocabulary_claim(mb_vocabulary *vocabulary, size_t n_bytes);

/* Enters tokens[id], which is set already, into the index by bytes. Returns 0 when another token has the
 * same bytes. */
int mb_vocabulary_index(mb_vocabulary *vocabulary, int32_t id);

/* -1 when there is none. */
int32_t mb_vocabulary_find(const mb_vocabulary *vocabulary, const char *bytes, size_t n_bytes);

/*
 * The byte alphabet. tokenizer.json spells each byte as one printable character (GPT-2's table): a byte
 * that is printable in Latin-1 as that character, the other bytes, in order, as U+0100 and up. Writes the
 * bytes that n_bytes of well-formed spelling stand for, at most n_bytes of them, and returns their number;
 * -1 when a character is not of the alphabet.
 */
ptrdiff_t mb_byte_alphabet_decode(const char *spelling, size_t n_bytes, char *bytes);

#endif
