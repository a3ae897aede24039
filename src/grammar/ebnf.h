/*
 * ebnf.h - grammars in the form that llama.cpp (GBNF) and xgrammar read become expressions.
 *
 *   root ::= "the " noun ("s" | "") verb{1,3}   # a comment
 *   noun ::= [a-z]+ | "\u00e9t\u00e9"
 *
 *   names       letters, digits, _ - and ., defined once; the answer follows `root`
 *   items       "text", [a-z], [^a-z], . (any character), a name, (...)
 *   escapes     \n \r \t \a \b \f \v \e \0, \xHH, \uHHHH, \UHHHHHHHH, and any sign after a backslash
 *   repeats     * + ? {n} {n,} {n,m}
 *   white space anywhere; a rule ends where a name and ::= follow
 *
 * Rules may call each other, and themselves.
 */
#ifndef MB_GRAMMAR_EBNF_H
#define MB_GRAMMAR_EBNF_H

#include "grammar/expr.h"

/* text: UTF-8. NULL on failure, which is kept in the builder's pool; the sentence has line and column. */
const mb_expr *mb_ebnf_parse(mb_builder *builder, const char *text, size_t n_bytes);

/* A rule of such a grammar, and what it calls. */
typedef struct mb_ebnf_rule {
    size_t name, n_name; /* where the name stands first */
    int rule;            /* of the builder */
    int is_defined;
    size_t first_call, n_calls; /* of mb_ebnf_rules.calls */
    size_t n_callers;
    int is_on_path, is_done; /* of the search for recursion */
    int is_inlined;          /* where it is called its body stands */
} mb_ebnf_rule;

typedef struct mb_ebnf_rules {
    mb_ebnf_rule *items;
    size_t n, capacity;
    mb_expr **calls; /* in the order of the text */
    size_t n_calls, calls_capacity;
} mb_ebnf_rules;

/* A body that calls its own rule only last, or only first, in some of its alternatives is a loop. */
const mb_expr *mb_ebnf_as_loop(mb_builder *builder, int rule, const mb_expr *body);
/* Puts small bodies in the place of calls, and leaves out what `root` does not need. Returns the grammar. */
const mb_expr *mb_ebnf_inline(mb_builder *builder, mb_ebnf_rules *rules, mb_ebnf_rule *root);

#endif
