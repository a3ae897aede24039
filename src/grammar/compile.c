#include "grammar/compile.h"

#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "grammar/ebnf.h"
#include "grammar/json_text.h"
#include "grammar/regex.h"
#include "grammar/utf8_ranges.h"

/* ---- Kinds ------------------------------------------------------------------------------------------ */

static mb_status check_utf8(const char *text, size_t n_bytes) {
    size_t bad = mb_utf8_first_bad(text, n_bytes);
    if (bad == n_bytes)
        return MB_OK;
    return mb_fail(MB_ERR_FORMAT, "the grammar's text is not UTF-8 at byte %zu of %zu", bad, n_bytes);
}

static const mb_expr *parse_regex(mb_builder *builder, const char *text, size_t n_bytes) {
    const mb_regex_options options = {.what = "the regular expression"};
    builder->pool.status = check_utf8(text, n_bytes);
    return builder->pool.status == MB_OK ? mb_regex_parse(builder, text, n_bytes, &options) : NULL;
}

static const mb_expr *parse_ebnf(mb_builder *builder, const char *text, size_t n_bytes) {
    builder->pool.status = mb_bom_check("the grammar", text, n_bytes);
    if (builder->pool.status == MB_OK)
        builder->pool.status = check_utf8(text, n_bytes);
    return builder->pool.status == MB_OK ? mb_ebnf_parse(builder, text, n_bytes) : NULL;
}

static const mb_expr *parse(mb_builder *builder, mb_grammar_kind kind, const char *text, size_t n_bytes) {
    switch (kind) {
    case MB_GRAMMAR_JSON_SCHEMA:
        return mb_schema_parse(builder, text, n_bytes);
    case MB_GRAMMAR_JSON_OBJECT:
        return mb_json_object(builder);
    case MB_GRAMMAR_REGEX:
        return parse_regex(builder, text, n_bytes);
    case MB_GRAMMAR_CHOICE:
        return mb_choice_parse(builder, text, n_bytes);
    case MB_GRAMMAR_STRUCTURE:
        return mb_structure_parse(builder, text, n_bytes);
    case MB_GRAMMAR_EBNF:
        return parse_ebnf(builder, text, n_bytes);
    }
    builder->pool.status = mb_fail(MB_ERR_ARGUMENT, "kind is %d, not an mb_grammar_kind", (int)kind);
    return NULL;
}

static mb_status build(mb_grammar *grammar, const mb_token_trie *trie, mb_builder *builder) {
    int root = mb_rule_add(builder, mb_expr_never());
    if (root < 0)
        return builder->pool.status;
    const mb_expr *expr = parse(builder, grammar->kind, grammar->text, grammar->n_bytes);
    if (!expr && builder->pool.status == MB_OK)
        return mb_fail(MB_ERR_INTERNAL, "a grammar was refused without a reason");
    if (builder->pool.status != MB_OK)
        return builder->pool.status;
    mb_rule_set(builder, root, expr);
    const mb_expr *thinks[] = {mb_expr_until(builder, "</think>", 8),
                               mb_expr_repeat(builder, mb_expr_string(builder, "\n"), 0, 2),
                               mb_expr_call(builder, root)};
    grammar->think_rule = (uint32_t)mb_rule_add(builder, mb_expr_sequence(builder, thinks, 3));
    if (builder->pool.status != MB_OK)
        return builder->pool.status;
    MB_TRY(mb_automaton_build(builder, &grammar->automaton));
    return mb_mask_cache_init(&grammar->masks, &grammar->automaton, trie);
}

/* ---- Life ------------------------------------------------------------------------------------------- */

mb_status mb_grammar_compile(const mb_token_trie *trie, mb_grammar_kind kind, const char *text,
                             size_t n_bytes, mb_grammar **grammar) {
    *grammar = NULL;
    mb_grammar *compiled = mb_calloc(1, sizeof *compiled);
    if (!compiled)
        return mb_fail(MB_ERR_MEMORY, "no memory for a grammar");
    atomic_init(&compiled->references, 1);
    compiled->kind = kind;
    compiled->n_bytes = n_bytes;
    compiled->text = mb_malloc(n_bytes + 1);
    mb_status status = MB_OK;
    if (!compiled->text) {
        status = mb_fail(MB_ERR_MEMORY, "no memory for a grammar's text (%zu bytes)", n_bytes);
    } else {
        if (n_bytes > 0)
            memcpy(compiled->text, text, n_bytes);
        compiled->text[n_bytes] = '\0';
        mb_json_rules json;
        mb_json_rules_init(&json);
        mb_builder builder = {.json = &json};
        status = build(compiled, trie, &builder);
        mb_builder_free(&builder);
    }
    if (status != MB_OK) {
        mb_grammar_close(compiled);
        return status;
    }
    *grammar = compiled;
    return MB_OK;
}

void mb_grammar_hold(mb_grammar *grammar) {
    atomic_fetch_add(&grammar->references, 1);
}

void mb_grammar_close(mb_grammar *grammar) {
    if (!grammar || atomic_fetch_sub(&grammar->references, 1) > 1)
        return;
    mb_mask_cache_free(&grammar->masks);
    mb_automaton_free(&grammar->automaton);
    mb_free(grammar->text);
    mb_free(grammar);
}

size_t mb_grammar_bytes(const mb_grammar *grammar) {
    const mb_automaton *a = &grammar->automaton;
    return sizeof *grammar + grammar->n_bytes + a->n_next * sizeof *a->next +
           a->n_states * (sizeof *a->states + 16) + a->n_rules * sizeof *a->rules +
           a->n_calls * sizeof *a->calls + mb_mask_cache_bytes(&grammar->masks);
}
