/*
 * class_tree.h - the tokens' tree as one rule's automaton sees it.
 *
 * For a rule "cat" and "dog" may be the same: letters. Two nodes of the tokens' tree are one node here when
 * every state of the rule that can have come to their parent goes on alike with both. So for a string of
 * limited length a hundred thousand tokens become some two thousand nodes, and each state's mask is found by a
 * walk over these (class_walk.h).
 *
 * Which states can have come to a node is not known exactly, but by kinds of states (class_kinds.h). Too many
 * kinds only make the tree larger.
 *
 * The nodes stand in the order of a depth-first walk, as in the tokens' tree, and so do their tokens. Large
 * sets of tokens are kept as bits. Of the sets of all tokens below a node so many have bits that any of them is
 * the union of a few.
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
    uint32_t end;                /* the nodes below are the next ones, up to end - 1 */
    uint16_t depth;              /* 1: the first byte */
    uint8_t byte_class;          /* of the rule's */
    uint32_t n_own, n_all;       /* tokens that end here; here or below */
    uint32_t own_cost, all_cost; /* of putting them into a mask, in tokens put one by one */
    uint32_t first_token;        /* words [first_token ..]: those here and below that have no own_bits */
    uint32_t own_bits, all_bits; /* words [own_bits ..], as many as a mask has; MB_NO_BITS: there are none */
    uint32_t first_group, n_groups; /* words [first_group ..]: see above */
} mb_class_node;

#define MB_NO_BITS UINT32_MAX

typedef struct mb_class_tree {
    mb_class_node *nodes; /* node 0 is the root, which has no tokens itself */
    uint32_t *words;
    size_t n_nodes, n_words, words_capacity;
    size_t n_mask_words;
    uint32_t max_listed; /* no more tokens are kept as a list */
    size_t n_seen;       /* nodes of the tokens' tree that were looked at: the work */
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

/* Sets or clears the bits [n_mask_words] of the tokens that end at the node, or at it and below. */
void mb_class_tree_put_own(const mb_class_tree *tree, uint32_t node, int set, uint32_t *bits);
void mb_class_tree_put_all(const mb_class_tree *tree, uint32_t node, int set, uint32_t *bits);

#endif
