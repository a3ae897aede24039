/*
 * trie.h - the tokens of a vocabulary as a tree over their bytes, to see at once which tokens an automaton
 * allows.
 *
 * The nodes stand in the order of a depth-first walk, so the nodes below node i are i + 1 to end[i] - 1, and
 * a walk is a loop that jumps to end[i] where the automaton has no way on.
 */
#ifndef MB_GRAMMAR_TRIE_H
#define MB_GRAMMAR_TRIE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mb_token_bytes_of {
    const char *bytes; /* not copied after mb_trie_open has returned: only read by it */
    size_t n_bytes;    /* 0: the token is no text and never allowed */
} mb_token_bytes_of;

typedef struct mb_trie_node {
    uint32_t end;
    int32_t token;  /* that ends here; -1: none */
    uint16_t depth; /* 1: the first byte */
    uint8_t byte;
    uint8_t is_alike; /* other tokens have the same bytes: next_alike */
} mb_trie_node;

enum { MB_TRIE_MAX_DEPTH = 1024 };

typedef struct mb_shared_trees mb_shared_trees;

typedef struct mb_token_trie {
    int32_t vocab;
    size_t n_words; /* of 32 tokens: of a mask */
    mb_trie_node *nodes;
    uint32_t n_nodes;
    int32_t *next_alike;     /* [vocab] the next token with the same bytes; -1: none */
    char *bytes;             /* all tokens' */
    uint32_t *offsets;       /* [vocab + 1] */
    mb_shared_trees *shared; /* of the grammars */
} mb_token_trie;

mb_status mb_trie_open(const mb_token_bytes_of *tokens, int32_t vocab, mb_token_trie **trie);
void mb_trie_close(mb_token_trie *trie); /* NULL allowed */

static inline void mb_set_bit(uint32_t *bits, int32_t token) {
    bits[token / 32] |= 1u << (token % 32);
}

/* The bits of a node's token and of those with the same bytes. */
static inline void mb_trie_set_bits(const mb_token_trie *trie, int32_t token, uint32_t *bits) {
    for (; token >= 0; token = trie->next_alike[token])
        mb_set_bit(bits, token);
}

#endif
