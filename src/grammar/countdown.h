/* countdown.h - the rest of a JSON string of limited length, as an automaton that is written down
 * directly. */
#ifndef MB_GRAMMAR_COUNTDOWN_H
#define MB_GRAMMAR_COUNTDOWN_H

#include "grammar/automaton.h"

/* Appends a rule: at most n characters, spelled raw or with a short escape, and the closing quote. It has the
 * states for up to `longest` characters, n <= longest. */
void mb_countdown_append(mb_grammar_pool *pool, int longest, int n, mb_automaton *automaton);

/* Appends a rule for n characters that uses the states of the rule `chain`, which has those for `longest`. */
void mb_countdown_append_part(mb_grammar_pool *pool, uint32_t chain, int longest, int n,
                              mb_automaton *automaton);

#endif
