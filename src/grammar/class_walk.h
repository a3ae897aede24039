/*
 * class_walk.h - the tokens that a rule can read from one of its states: a walk over the rule's class tree.
 *
 * Most nodes are reached with all that is below them, so their tokens are put into the mask at once. Where
 * little is missing below a node, this is taken out again.
 */
#ifndef MB_GRAMMAR_CLASS_WALK_H
#define MB_GRAMMAR_CLASS_WALK_H

#include "grammar/class_tree.h"

/* A node of a class tree, and the state that has come there. */
typedef struct mb_class_place {
    uint32_t node, state;
} mb_class_place;

/* Working memory of one thread, and what a walk has found; starts as {0}. */
typedef struct mb_class_walk {
    struct mb_class_level *levels;
    uint8_t *how; /* [n_nodes] what to do with a node's tokens */
    size_t how_capacity;
    mb_class_place *calls; /* other rules are called there. What is below is the caller's to look at. */
    size_t n_calls, calls_capacity;
    uint32_t *ends; /* nodes where the rule may end and others may read on */
    size_t n_ends, ends_capacity;
} mb_class_walk;

/* Sets the bits of the tokens, and lists calls and ends. -1: no memory. */
int mb_class_walk_run(mb_class_walk *walk, const mb_class_tree *tree, const mb_automaton *automaton,
                      uint32_t state, uint32_t *bits);
void mb_class_walk_free(mb_class_walk *walk);

#endif
