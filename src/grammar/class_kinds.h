/*
 * class_kinds.h - what the states of a rule tell apart, for its class tree (class_tree.h).
 *
 * A kind has the states that tell the same bytes apart, and agree on whether the rule may end there or calls.
 * A context has the kinds of the states that can have come to a node of the tree.
 */
#ifndef MB_GRAMMAR_CLASS_KINDS_H
#define MB_GRAMMAR_CLASS_KINDS_H

#include "grammar/automaton.h"

enum {
    MB_MAX_KINDS = 64,           /* bits of a set */
    MB_MAX_CLASS_CONTEXTS = 256, /* what comes then uses the root's */
};

typedef uint64_t mb_kind_set;

typedef struct mb_state_kind {
    uint8_t same_as[256];        /* of a class: the first class that leads to the same state */
    uint8_t leads_on[256];       /* not to MB_NO_STATE */
    uint8_t is_final, has_calls; /* some token may go on beyond the rule here */
} mb_state_kind;

typedef struct mb_class_context {
    mb_kind_set kinds;
    uint8_t same_as[256], leads_on[256]; /* as above, for the states of all kinds */
    int any_leads_on;
    int goes_beyond;   /* other rules may read on */
    int16_t next[256]; /* context after a class; -1: not made yet */
} mb_class_context;

/* Of one rule. Context 0 is the root's: all kinds. */
typedef struct mb_class_kinds {
    const mb_automaton *automaton;
    const mb_automaton_rule *rule;
    int is_followed;
    uint32_t n_kinds, n_contexts;
    mb_state_kind kinds[MB_MAX_KINDS];
    mb_kind_set next_kinds[MB_MAX_KINDS][256]; /* that states of a kind go on to */
    mb_class_context contexts[MB_MAX_CLASS_CONTEXTS];
    uint16_t pairs[256][256]; /* all 0 between uses */
    uint8_t *kind_of;         /* [n_states of the rule] */
    size_t kind_of_capacity;
} mb_class_kinds;

/* Finds the rule's kinds and makes context 0. The struct starts as zeros and can be used for many rules of
 * one automaton. is_followed: other rules may read on where this one ends. -1: no memory. */
int mb_class_kinds_find(mb_class_kinds *kinds, const mb_automaton *automaton, uint32_t rule, int is_followed);
void mb_class_kinds_free(mb_class_kinds *kinds);

uint32_t mb_class_context_make(mb_class_kinds *kinds, uint32_t from, uint8_t byte_class);
static inline uint32_t mb_class_context_after(mb_class_kinds *kinds, uint32_t from, uint8_t byte_class) {
    int16_t next = kinds->contexts[from].next[byte_class];
    return next >= 0 ? (uint32_t)next : mb_class_context_make(kinds, from, byte_class);
}

#endif
