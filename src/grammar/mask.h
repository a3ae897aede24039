/*
 * mask.h - which tokens of a vocabulary may come next.
 *
 * A configuration allows the tokens that its rule can read, whatever stands below it on the stack: these are
 * found once for each state of the automaton and kept (Dong et al., "XGrammar", 2024), by a walk over the tokens
 * as the rule tells them apart (class_tree.h). A token may also run beyond the rule's end, as the token '",' does
 * from within a string. For those the state keeps the places in the tokens' tree where the rule may end. What is
 * below these places is looked at anew in each step, with the stack that is there.
 */
#ifndef MB_GRAMMAR_MASK_H
#define MB_GRAMMAR_MASK_H

#include <stdatomic.h>

#include "grammar/class_walk.h"
#include "grammar/stack.h"
#include "grammar/trie.h"

typedef struct mb_mask_entry mb_mask_entry;

/* What is kept of a grammar's masks; shared by threads. */
typedef struct mb_mask_cache {
    const mb_automaton *automaton;
    const mb_token_trie *trie;
    uint8_t *is_followed;              /* [n_rules] something may stand after the rule */
    _Atomic(mb_class_tree *) *trees;   /* [n_rules] */
    _Atomic(mb_mask_entry *) *entries; /* [n_states] */
    atomic_size_t n_bytes;
} mb_mask_cache;

/* Makes class trees, too, for some milliseconds; the others are made when they are first needed. */
mb_status mb_mask_cache_init(mb_mask_cache *cache, const mb_automaton *automaton, const mb_token_trie *trie);
void mb_mask_cache_free(mb_mask_cache *cache);
size_t mb_mask_cache_bytes(const mb_mask_cache *cache);

/* Working memory of one thread; starts as {0}. */
typedef struct mb_mask_work {
    mb_stack local; /* to look at a state alone */
    struct mb_mask_level *levels;
    mb_class_walk class_walk;
    uint32_t *bits;
    uint32_t *escapes;
    size_t n_escapes, escapes_capacity;
} mb_mask_work;

void mb_mask_work_free(mb_mask_work *work);

/* Sets the bits [cache->trie->n_words] of the tokens that may come after the set, and clears the others. The
 * stack is as before afterwards. */
mb_status mb_mask_fill(mb_mask_cache *cache, mb_mask_work *work, mb_stack *stack, mb_stack_set set,
                       uint32_t *bits);

#endif
