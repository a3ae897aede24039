#include "support/made_up_tokens.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"

enum { MAX_TOKEN = 48 };

static uint32_t below(uint64_t *random, uint32_t n) {
    return (uint32_t)(mb_random(random) >> 32) % n;
}

/* Syllables, so that words share beginnings as real ones do. */
static size_t add_word(uint64_t *random, char *out, size_t n) {
    static const char *const syllables[] = {"ta", "in",  "er",   "con", "pro", "re", "an",
                                            "th", "ing", "tion", "s",   "e",   "al", "lo",
                                            "mi", "sub", "ver",  "com", "na",  "id"};
    for (uint32_t k = 1 + below(random, 4); k > 0; k--) {
        const char *syllable = syllables[below(random, 20)];
        memcpy(out + n, syllable, strlen(syllable));
        n += strlen(syllable);
    }
    if (below(random, 6) == 0)
        out[0] = (char)(out[0] >= 'a' ? out[0] - 32 : out[0]);
    return n;
}

static size_t add_signs(uint64_t *random, char *out, size_t n) {
    static const char signs[] = "\"\"\"\"{}[]():;,,,...//--==<>\\\\\n\n\t  _'#";
    for (uint32_t k = 1 + below(random, 4); k > 0; k--)
        out[n++] = signs[below(random, sizeof signs - 1)];
    return n;
}

/* Characters of two to four bytes; sometimes the last one is cut. */
static size_t add_script(uint64_t *random, char *out, size_t n) {
    static const char *const characters[] = {
        "\xc3\xa9",     "\xd0\xb6",     "\xd0\xbe",     "\xd7\x90",         "\xe4\xb8\xad",
        "\xe6\x96\x87", "\xe3\x81\x82", "\xed\x95\x9c", "\xf0\x9f\x98\x80", "\xf0\x9f\x9a\x80"};
    for (uint32_t k = 1 + below(random, 3); k > 0; k--) {
        const char *c = characters[below(random, 10)];
        size_t whole = strlen(c), used = k == 1 && below(random, 5) == 0 ? whole - 1 : whole;
        memcpy(out + n, c, used);
        n += used;
    }
    return n;
}

static size_t make_token(uint64_t *random, char *out) {
    size_t n = 0;
    uint32_t kind = below(random, 100);
    if (kind < 45) {
        out[n++] = ' ';
        n = add_word(random, out + 1, 0) + 1;
    } else if (kind < 72) {
        n = add_word(random, out, 0);
    } else if (kind < 84) {
        n = add_script(random, out, 0);
    } else if (kind < 90) {
        n = add_signs(random, out, 0);
    } else if (kind < 95) {
        n = add_signs(random, out, add_word(random, out, 0));
    } else if (kind < 98) {
        n = add_signs(random, out, 0);
        n += add_word(random, out + n, 0);
    } else {
        for (uint32_t k = 1 + below(random, 40); k > 0; k--)
            out[n++] = kind == 98 ? ' ' : '-';
    }
    return n;
}

static mb_token_trie *open_trie(const mb_token_bytes_of *tokens, int32_t n) {
    mb_token_trie *trie;
    assert_int_equal(mb_trie_open(tokens, n, &trie), MB_OK);
    return trie;
}

/* The bytes of tokens 0 to 255, then room for others. */
static char *byte_tokens(mb_token_bytes_of *tokens, size_t room) {
    char *bytes = malloc(256 + room);
    for (int i = 0; i < 256; i++) {
        bytes[i] = (char)i;
        tokens[i] = (mb_token_bytes_of){bytes + i, 1};
    }
    return bytes;
}

mb_token_trie *made_up_trie(int32_t n) {
    uint64_t random = 7;
    mb_token_bytes_of *tokens = malloc((size_t)n * sizeof *tokens);
    char *bytes = byte_tokens(tokens, (size_t)n * MAX_TOKEN), *next = bytes + 256;
    for (int32_t i = 256; i < n; i++) {
        tokens[i] = (mb_token_bytes_of){next, make_token(&random, next)};
        next += tokens[i].n_bytes;
    }
    mb_token_trie *trie = open_trie(tokens, n);
    free(bytes);
    free(tokens);
    return trie;
}

mb_token_trie *trie_of(const char *const *more) {
    mb_token_bytes_of tokens[512];
    int32_t n = 256;
    char *bytes = byte_tokens(tokens, 0);
    for (; more && *more && n < 512; more++, n++)
        tokens[n] = (mb_token_bytes_of){*more, strlen(*more)};
    mb_token_trie *trie = open_trie(tokens, n);
    free(bytes);
    return trie;
}
