/* compile.h - a grammar of moebius/grammar.h from its text. */
#ifndef MB_GRAMMAR_COMPILE_H
#define MB_GRAMMAR_COMPILE_H

#include <stdatomic.h>

#include "grammar/mask.h"
#include "moebius/grammar.h"

struct mb_grammar {
    atomic_int references;
    mb_automaton automaton; /* rule 0 is the grammar */
    uint32_t think_rule;    /* text up to </think>, then the grammar */
    mb_mask_cache masks;
    mb_grammar_kind kind; /* with the text: what the cache finds the grammar by */
    char *text;
    size_t n_bytes;
};

/* The trie must outlive the grammar. */
mb_status mb_grammar_compile(const mb_token_trie *trie, mb_grammar_kind kind, const char *text,
                             size_t n_bytes, mb_grammar **grammar);
void mb_grammar_hold(mb_grammar *grammar); /* one reference more; mb_grammar_close gives it back */

/* About what the grammar holds. */
size_t mb_grammar_bytes(const mb_grammar *grammar);

/* Expressions of the kinds whose text is JSON. NULL: the pool has the failure. */
const mb_expr *mb_structure_parse(mb_builder *builder, const char *text, size_t n_bytes);
const mb_expr *mb_choice_parse(mb_builder *builder, const char *text, size_t n_bytes);
const mb_expr *mb_schema_parse(mb_builder *builder, const char *text, size_t n_bytes);

#endif
