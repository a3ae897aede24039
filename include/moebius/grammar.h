/*
 * grammar.h - structured output: an answer that follows a JSON schema, a regular expression, a choice or rules.
 *
 * A grammar is compiled once and is read-only afterwards; any number of threads and sequences share it. Put
 * it into mb_request.grammar, and the session masks the tokens that the grammar does not allow. Every answer
 * that was not cut off by its length then belongs to the grammar:
 *
 *     mb_grammar *grammar;
 *     mb_grammar_open(model, MB_GRAMMAR_JSON_SCHEMA, schema, strlen(schema), &grammar);
 *     request.grammar = grammar;
 *     mb_submit(session, &request, &id);
 *     mb_grammar_close(grammar);          // the sequence keeps it as long as it needs it
 *
 * Programs that sample by themselves use the state of one sequence: mask, advance, roll back. docs/text.md
 * says, with examples, which schemas and expressions are supported.
 */
#ifndef MOEBIUS_GRAMMAR_H
#define MOEBIUS_GRAMMAR_H

#include "moebius/moebius.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mb_grammar mb_grammar;

typedef enum mb_grammar_kind {
    /* text: a JSON schema. The answer is a value that the schema accepts. Properties come in the order of the
     * schema; white space between values is at most a space, or a line break with an indentation. */
    MB_GRAMMAR_JSON_SCHEMA,
    /* Any JSON object; text is not looked at and may be NULL. */
    MB_GRAMMAR_JSON_OBJECT,
    /* text: a regular expression. It matches the whole answer. */
    MB_GRAMMAR_REGEX,
    /* text: a JSON array of strings. The answer is one of them. */
    MB_GRAMMAR_CHOICE,
    /*
     * text: a JSON value that composes grammars, one of
     *   {"text": "literal"}
     *   {"json_schema": schema}        "$ref" is resolved within this schema
     *   {"json_object": true}
     *   {"regex": "expression"}
     *   {"choice": [part, ...]}        one of the parts
     *   {"sequence": [part, ...]}      all of them, one after the other
     *   {"repeat": part, "min": 0, "max": 8, "separator": part}    max and separator may be left out
     *   {"until": "literal"}           any text up to and with the first occurrence of the literal
     * An enforced tool call, for example, is a sequence of a text, a schema and a text.
     */
    MB_GRAMMAR_STRUCTURE,
    /* text: rules, name ::= body, as llama.cpp's GBNF and xgrammar's EBNF have them. The answer follows the rule
     * `root`. Rules may call each other and themselves. Errors have line and column. */
    MB_GRAMMAR_EBNF,
} mb_grammar_kind;

/* Compiles a grammar, or finds it among those that the model compiled before. The work is bounded in time and
 * memory. The model must have a tokenizer and must outlive the grammar. Thread-safe.
 * Errors: MB_ERR_FORMAT (not a schema, an expression or JSON; the sentence says where), MB_ERR_UNSUPPORTED
 * (outside of the subset; of a schema the sentence has the path to the word, as in
 * #/properties/a/uniqueItems), MB_ERR_CAPACITY (too large when compiled), MB_ERR_MEMORY. *grammar is NULL on
 * error. */
MB_API mb_status mb_grammar_open(const mb_model *model, mb_grammar_kind kind, const char *text,
                                 size_t n_bytes, mb_grammar **grammar);
MB_API void mb_grammar_close(mb_grammar *grammar); /* NULL allowed */

/* Where one answer is in its grammar. One thread at a time. */
typedef struct mb_grammar_state mb_grammar_state;

typedef enum mb_grammar_start {
    MB_GRAMMAR_AT_ONCE,
    /* Free text up to "</think>", then at most two line breaks, then the grammar. */
    MB_GRAMMAR_AFTER_THINK,
} mb_grammar_start;

/* The state holds the grammar, which may be closed. */
MB_API mb_status mb_grammar_state_open(mb_grammar *grammar, mb_grammar_start start, mb_grammar_state **state);
MB_API void mb_grammar_state_close(mb_grammar_state *state); /* NULL allowed */

/* Writes a bit for each token of the model's vocabulary: token i is bit i % 32 of bits[i / 32], 1 when it may
 * come next. n_words is at least (vocab + 31) / 32; what is beyond the vocabulary becomes 0. Special tokens
 * such as <|im_end|> are 0; the caller adds those that end the answer when mb_grammar_can_end. */
MB_API mb_status mb_grammar_mask(mb_grammar_state *state, uint32_t *bits, size_t n_words);

/* Takes in a token. MB_ERR_ARGUMENT: the grammar does not allow it; the state is unchanged. This function and
 * mb_grammar_mask may also fail with MB_ERR_MEMORY, and with MB_ERR_CAPACITY when the text can be read in too
 * many ways at once; then the state can only be closed. */
MB_API mb_status mb_grammar_advance(mb_grammar_state *state, int32_t id);

/* Takes back the last n_tokens tokens. MB_ERR_ARGUMENT: there were not that many. */
MB_API mb_status mb_grammar_roll_back(mb_grammar_state *state, size_t n_tokens);

MB_API int mb_grammar_can_end(const mb_grammar_state *state);     /* the text so far is complete */
MB_API int mb_grammar_is_finished(const mb_grammar_state *state); /* ... and nothing can follow */

#ifdef __cplusplus
}
#endif
#endif
