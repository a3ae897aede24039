/* store.h - the grammars that a model has compiled, found again by their text; and the tree of its tokens. */
#ifndef MB_GRAMMAR_STORE_H
#define MB_GRAMMAR_STORE_H

#include "grammar/trie.h"
#include "moebius/grammar.h"

typedef struct mb_grammar_store mb_grammar_store;

/* Makes the tree of the tokens when the first grammar is compiled. */
typedef mb_status (*mb_make_trie_fn)(const void *user, mb_token_trie **trie);

mb_status mb_grammar_store_open(mb_grammar_store **store);
void mb_grammar_store_close(mb_grammar_store *store); /* NULL allowed; all grammars are closed before */

/* 1 when the store compiled the grammar. */
int mb_grammar_store_has(mb_grammar_store *store, const mb_grammar *grammar);

/* Any number of threads at once. Compiling does not hold the lock. */
mb_status mb_grammar_store_get(mb_grammar_store *store, mb_make_trie_fn make_trie, const void *user,
                               mb_grammar_kind kind, const char *text, size_t n_bytes, mb_grammar **grammar);

#endif
