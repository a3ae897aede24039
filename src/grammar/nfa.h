/* nfa.h - one rule as a nondeterministic automaton over bytes (Thompson 1968), with edges that call rules. */
#ifndef MB_GRAMMAR_NFA_H
#define MB_GRAMMAR_NFA_H

#include "grammar/expr.h"

typedef enum mb_nfa_kind { MB_NFA_EMPTY, MB_NFA_BYTES, MB_NFA_CALL } mb_nfa_kind;

typedef struct mb_nfa_edge {
    uint32_t next; /* of the same state: edge number + 1; 0: none */
    uint32_t target;
    uint32_t rule; /* that is called */
    uint8_t kind, first, last;
} mb_nfa_edge;

enum { MB_NFA_START = 0, MB_NFA_END = 1 };

typedef struct mb_nfa {
    mb_builder *builder;
    int may_call;         /* 0: repeats are written out, however many */
    uint32_t *first_edge; /* [n_states] edge number + 1 */
    size_t n_states, states_capacity;
    mb_nfa_edge *edges;
    size_t n_edges, edges_capacity;
} mb_nfa;

/* Which rules match the empty text, [n_rules]; grows when rules are added. */
typedef struct mb_nullable {
    uint8_t *of;
    size_t n, capacity;
} mb_nullable;

void mb_nullable_find(mb_builder *builder, mb_nullable *nullable);

/* Replaces what nfa holds by the expression's automaton, from MB_NFA_START to MB_NFA_END. Long repeats become
 * new rules. Failures are kept in the builder's pool. */
void mb_nfa_build(mb_nfa *nfa, mb_nullable *nullable, const mb_expr *expr);
void mb_nfa_free(mb_nfa *nfa);

#endif
