#include "model/tokenizer/vocabulary.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/alloc.h"
#include "model/tokenizer/utf8.h"

mb_status mb_vocabulary_init(mb_vocabulary *vocabulary, const char *path, int32_t n_tokens, size_t n_bytes) {
    *vocabulary = (mb_vocabulary){.n_tokens = n_tokens, .n_slots = 16};
    while (vocabulary->n_slots < 2 * (size_t)n_tokens)
        vocabulary->n_slots *= 2;
    vocabulary->tokens = mb_calloc((size_t)n_tokens, sizeof *vocabulary->tokens);
    vocabulary->bytes = mb_malloc(n_bytes);
    vocabulary->slots = mb_malloc_array(vocabulary->n_slots, sizeof *vocabulary->slots);
    if (!vocabulary->tokens || !vocabulary->bytes || !vocabulary->slots) {
        mb_vocabulary_free(vocabulary);
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for a vocabulary of %d tokens", path, n_tokens);
    }
    memset(vocabulary->slots, 0xFF, vocabulary->n_slots * sizeof *vocabulary->slots);
    return MB_OK;
}

void mb_vocabulary_free(mb_vocabulary *vocabulary) {
    mb_free(vocabulary->tokens);
    mb_free(vocabulary->bytes);
    mb_free(vocabulary->slots);
    *vocabulary = (mb_vocabulary){0};
}

char *mb_vocabulary_claim(mb_vocabulary *vocabulary, size_t n_bytes) {
    char *claimed = vocabulary->bytes + vocabulary->n_bytes;
    vocabulary->n_bytes += n_bytes;
    return claimed;
}

/* The slot that holds these bytes, or the empty one where they belong. */
static int32_t *find_slot(const mb_vocabulary *vocabulary, const char *bytes, size_t n_bytes) {
    size_t mask = vocabulary->n_slots - 1, i = (size_t)XXH3_64bits(bytes, n_bytes) & mask;
    for (;; i = (i + 1) & mask) {
        int32_t id = vocabulary->slots[i];
        if (id < 0)
            return &vocabulary->slots[i];
        const mb_token_text *token = &vocabulary->tokens[id];
        if (token->n_bytes == n_bytes && memcmp(token->bytes, bytes, n_bytes) == 0)
            return &vocabulary->slots[i];
    }
}

int mb_vocabulary_index(mb_vocabulary *vocabulary, int32_t id) {
    const mb_token_text *token = &vocabulary->tokens[id];
    int32_t *slot = find_slot(vocabulary, token->bytes, token->n_bytes);
    if (*slot >= 0)
        return 0;
    *slot = id;
    return 1;
}

int32_t mb_vocabulary_find(const mb_vocabulary *vocabulary, const char *bytes, size_t n_bytes) {
    return *find_slot(vocabulary, bytes, n_bytes);
}

enum { FIRST_MOVED = 0x100, N_MOVED = 68 };

/* The byte that character U+0100 + i stands for: the bytes that are not printable in Latin-1, in order. */
static int moved_byte(uint32_t i) {
    if (i < 33)
        return (int)i; /* 0x00 to 0x20 */
    if (i < N_MOVED - 1)
        return (int)(0x7F + i - 33); /* 0x7F to 0xA0 */
    return 0xAD;
}

static int alphabet_byte(uint32_t character) {
    if ((character >= 0x21 && character <= 0x7E) ||
        (character >= 0xA1 && character <= 0xFF && character != 0xAD))
        return (int)character;
    if (character >= FIRST_MOVED && character < FIRST_MOVED + N_MOVED)
        return moved_byte(character - FIRST_MOVED);
    return -1;
}

ptrdiff_t mb_byte_alphabet_decode(const char *spelling, size_t n_bytes, char *bytes) {
    ptrdiff_t n = 0;
    for (size_t i = 0, length; i < n_bytes; i += length) {
        int byte = alphabet_byte(mb_utf8_decode(spelling + i, &length));
        if (byte < 0)
            return -1;
        bytes[n++] = (char)(unsigned char)byte;
    }
    return n;
}
