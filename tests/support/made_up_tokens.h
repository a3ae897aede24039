/* made_up_tokens.h - a vocabulary as byte-pair merging gives one: all bytes, words with and without a space
 * before, pieces of JSON and of programs, other scripts and parts of their characters. Always the same. */
#ifndef TESTS_MADE_UP_TOKENS_H
#define TESTS_MADE_UP_TOKENS_H

#include "grammar/trie.h"

/* Tokens 0 to 255 are the bytes. n >= 256. Freed with mb_trie_close. */
mb_token_trie *made_up_trie(int32_t n);

/* Further tokens after the bytes, as strings; NULL ends them. */
mb_token_trie *trie_of(const char *const *tokens);

#endif
