/* determinize.h - a rule's automaton becomes deterministic: each of its states is a set of states of the
 * nondeterministic one (Rabin and Scott 1959). A call is a letter like a byte is. */
#ifndef MB_GRAMMAR_DETERMINIZE_H
#define MB_GRAMMAR_DETERMINIZE_H

#include "grammar/automaton.h"
#include "grammar/nfa.h"

typedef struct mb_determinizer mb_determinizer;

mb_determinizer *mb_determinizer_open(mb_builder *builder); /* NULL: the pool has the failure */
void mb_determinizer_close(mb_determinizer *determinizer);

/* Appends the rule to the automaton. The empty text is not among what the start state accepts when
 * another rule calls it: the caller looks at is_nullable. */
void mb_determinize(mb_determinizer *determinizer, const mb_nfa *nfa, mb_automaton *automaton);

/* Replaces the automaton's last rule by what it and another one, appended before, both match. Neither has
 * calls. */
void mb_intersect_last(mb_determinizer *determinizer, uint32_t other, mb_automaton *automaton);

#endif
