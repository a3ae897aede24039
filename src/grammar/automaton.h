/*
 * automaton.h - a compiled grammar: for each rule a deterministic automaton over bytes whose states may call
 * other rules.
 *
 * A state has a transition for each class of bytes, and calls. A call says: here the called rule may match,
 * and afterwards this rule goes on in the state `back`. From every state some text leads to the end: what
 * cannot is left out. Read-only after compiling.
 */
#ifndef MB_GRAMMAR_AUTOMATON_H
#define MB_GRAMMAR_AUTOMATON_H

#include "grammar/expr.h"

#define MB_NO_STATE UINT32_MAX

typedef struct mb_call {
    uint32_t rule, back;
} mb_call;

typedef struct mb_automaton_state {
    uint32_t row; /* first of its transitions in `next` */
    uint32_t rule;
    uint32_t first_call, n_calls;
    uint8_t is_final; /* the rule may end here */
    uint8_t is_end;   /* final, without transitions and calls */
} mb_automaton_state;

typedef struct mb_automaton_rule {
    uint8_t class_of[256]; /* of a byte */
    uint32_t start;        /* MB_NO_STATE: it matches nothing */
    uint32_t n_classes, first_state, n_states;
    uint32_t is_nullable; /* matches the empty text; a caller knows and has gone on already */
} mb_automaton_rule;

typedef struct mb_automaton {
    mb_automaton_rule *rules;
    mb_automaton_state *states;
    uint32_t *next;
    mb_call *calls;
    size_t n_rules, n_states, n_next, n_calls;
    size_t rules_capacity, states_capacity, next_capacity, calls_capacity;
} mb_automaton;

/* Compiles the builder's rules; rule 0 is the grammar. MB_ERR_FORMAT: no text at all matches. On failure
 * *automaton is empty. */
mb_status mb_automaton_build(mb_builder *builder, mb_automaton *automaton);
void mb_automaton_free(mb_automaton *automaton);

static inline uint32_t mb_automaton_next(const mb_automaton *a, uint32_t state, uint8_t byte) {
    const mb_automaton_state *s = &a->states[state];
    return a->next[s->row + a->rules[s->rule].class_of[byte]];
}

#endif
