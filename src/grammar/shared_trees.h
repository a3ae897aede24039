/*
 * shared_trees.h - class trees that the grammars of one vocabulary share.
 *
 * Most grammars have the same few rules that can read most tokens, such as JSON's string and the reasoning before
 * the answer. A tree is found again by its rule's automaton, which is compared as a whole.
 */
#ifndef MB_GRAMMAR_SHARED_TREES_H
#define MB_GRAMMAR_SHARED_TREES_H

#include "grammar/class_tree.h"

mb_status mb_shared_trees_open(mb_shared_trees **trees);
void mb_shared_trees_close(mb_shared_trees *trees); /* NULL allowed */

/* The rule's tree, found or built; the caller closes it. *builder is opened when it is needed and NULL.
 * NULL: no memory, the sentence is recorded. Thread-safe. */
mb_class_tree *mb_shared_trees_get(const mb_token_trie *trie, const mb_automaton *automaton, uint32_t rule,
                                   int is_followed, mb_class_builder **builder);

#endif
