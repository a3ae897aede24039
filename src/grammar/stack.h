/*
 * stack.h - runs an automaton over bytes when rules call rules: all ways to read the text at once.
 *
 * A configuration is a state and a node. A node is one call of a rule, made at one place of the text. Its
 * edges say who called: the node of the caller and the state in which the caller goes on. All who call the
 * same rule at the same place share the node (Scott and Johnstone, "GLL parsing", 2010), so that recursion
 * and alternatives together stay polynomial. A node's edges are complete when the next byte is read. So all
 * that was there before a byte does not change any more, and going back is cutting arrays off.
 *
 * Node 0 is whatever called first. When its rule ends, the set of configurations is marked as ended.
 */
#ifndef MB_GRAMMAR_STACK_H
#define MB_GRAMMAR_STACK_H

#include "grammar/automaton.h"

typedef struct mb_stack_config {
    uint32_t state, node;
} mb_stack_config;

typedef struct mb_stack_node {
    uint32_t rule;
    uint32_t first_edge; /* number + 1; 0: none */
} mb_stack_node;

typedef struct mb_stack_edge {
    uint32_t back, parent; /* where the caller goes on */
    uint32_t next;         /* of the same node: number + 1 */
} mb_stack_edge;

/* The configurations between two bytes. */
typedef struct mb_stack_set {
    uint32_t first, n; /* stack->configs[first ..] */
    uint32_t ended;    /* what node 0 called may end here */
} mb_stack_set;

typedef struct mb_stack {
    const mb_automaton *automaton;
    mb_status status; /* of the first failure: no memory, or too much ambiguity */
    mb_stack_node *nodes;
    mb_stack_edge *edges;
    mb_stack_config *configs;
    size_t n_nodes, n_edges, n_configs;
    size_t n_visits; /* of edges, for the set that is being made */
    size_t nodes_capacity, edges_capacity, configs_capacity;
} mb_stack;

typedef struct mb_stack_mark {
    size_t n_nodes, n_edges, n_configs;
} mb_stack_mark;

void mb_stack_init(mb_stack *stack, const mb_automaton *automaton);
void mb_stack_free(mb_stack *stack);

static inline mb_stack_mark mb_stack_get_mark(const mb_stack *stack) {
    return (mb_stack_mark){stack->n_nodes, stack->n_edges, stack->n_configs};
}
/* Cuts off all that was made since. */
static inline void mb_stack_cut(mb_stack *stack, mb_stack_mark mark) {
    stack->n_nodes = mark.n_nodes;
    stack->n_edges = mark.n_edges;
    stack->n_configs = mark.n_configs;
}

/* Each function appends a set. A failure is kept in stack->status, and the set is empty. */
mb_stack_set mb_stack_start(mb_stack *stack, uint32_t rule);                  /* node 0 calls the rule */
mb_stack_set mb_stack_at(mb_stack *stack, mb_stack_config config);            /* one configuration */
mb_stack_set mb_stack_step(mb_stack *stack, mb_stack_set from, uint8_t byte); /* after one byte more */
mb_stack_set mb_stack_return(mb_stack *stack, uint32_t node);                 /* the node's rule has ended */

#endif
