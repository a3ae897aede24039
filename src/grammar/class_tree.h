/*
 * class_tree.h - the tokens' tree as one rule's automaton sees it.
 *
 * For a rule "cat" and "dog" may be the same: letters. Two nodes of the tokens' tree are one node here when
 * every state of the rule that can have come to their parent goes on alike with both. So for a string of limited
 * length a hundred thousand tokens become some hundred nodes, and each state's mask is found by a walk over
 * these.
 *
 * Which states can have come to a node is not known exactly, but by kinds of states: states of a kind tell the
 * same bytes apart, and agree on whether the rule may end there or calls. Too many kinds only make the tree
 * larger.
 */
#ifndef MB_GRAMMAR_CLASS_TREE_H
#define MB_GRAMMAR_CLASS_TREE_H

#include <stdatomic.h>

#include "grammar/automaton.h"
#include "grammar/trie.h"

/*
 * Where the rule may end or call, other rules read on, which tell other things apart. So such a node has the
 * nodes of the tokens' tree that follow, in groups: a byte, the number of nodes with this byte, these nodes.
 */
typedef struct mb_class_node {
    uint32_t first_child, n_children; /* nodes [first_child ..] */
    uint32_t first_token, n_tokens;   /* that end here: words [first_token ..] */
    uint32_t first_group, n_groups;   /* words [first_group ..]: see above */
    uint8_t byte_class;               /* of the rule's */
    uint8_t is_dense;                 /* the tokens are bits [n_words of the tokens' tree], not ids */
} mb_class_node;

typedef struct mb_class_tree {
    mb_class_node *nodes; /* node 0 is the root; a node's children are larger */
    uint32_t *words;
    size_t n_nodes, n_words;
    size_t nodes_capacity, words_capacity;
    size_t n_seen; /* nodes of the tokens' tree that were looked at: the work */
    atomic_int references;
    uint32_t *key; /* [n_key_words] its rule, where grammars share the tree (shared_trees.h) */
    size_t n_key_words;
} mb_class_tree;

/* Working memory for trees of one automaton; NULL: no memory, the sentence is recorded. */
typedef struct mb_class_builder mb_class_builder;
mb_class_builder *mb_class_builder_open(const mb_automaton *automaton, const mb_token_trie *trie);
void mb_class_builder_close(mb_class_builder *builder); /* NULL allowed */

/* is_followed: other rules may read on where this one ends. NULL: no memory, the sentence is recorded. */
mb_class_tree *mb_class_tree_build(mb_class_builder *builder, uint32_t rule, int is_followed);
void mb_class_tree_hold(mb_class_tree *tree);  /* one reference more; mb_class_tree_close gives it back */
void mb_class_tree_close(mb_class_tree *tree); /* NULL allowed */
size_t mb_class_tree_bytes(const mb_class_tree *tree);

#endif
