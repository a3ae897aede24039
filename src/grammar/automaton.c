#include "grammar/automaton.h"

#include <string.h>

#include "base/alloc.h"
#include "grammar/countdown.h"
#include "grammar/determinize.h"
#include "grammar/nfa.h"

void mb_automaton_free(mb_automaton *a) {
    mb_free(a->rules);
    mb_free(a->states);
    mb_free(a->next);
    mb_free(a->calls);
    *a = (mb_automaton){0};
}

/* A rule that must match together with another one stands after it, and neither calls. */
static void build_rule(mb_builder *builder, mb_determinizer *d, mb_nfa *nfa, mb_nullable *nullable,
                       mb_automaton *a) {
    size_t rule = a->n_rules;
    mb_nfa_build(nfa, nullable, builder->rules[rule].body);
    mb_determinize(d, nfa, a);
    if (builder->rules[rule].both_with >= 0)
        mb_intersect_last(d, (uint32_t)builder->rules[rule].both_with, a);
}

/* The first one has the states of the longest, and all others use them. */
static void build_countdown(mb_builder *builder, int longest, uint32_t *chain, mb_automaton *a) {
    int n = builder->rules[a->n_rules].countdown;
    if (*chain == MB_NO_STATE) {
        *chain = (uint32_t)a->n_rules;
        mb_countdown_append(&builder->pool, longest, n, a);
    } else {
        mb_countdown_append_part(&builder->pool, *chain, longest, n, a);
    }
}

static void build_rules(mb_builder *builder, mb_determinizer *d, mb_automaton *a) {
    mb_nfa nfa = {.builder = builder};
    mb_nullable nullable = {0};
    size_t n_first = builder->n_rules;
    uint8_t *is_paired = mb_grammar_pool_push(&builder->pool, n_first, 1);
    for (size_t i = 0; i < n_first && is_paired; i++)
        if (builder->rules[i].both_with >= 0)
            is_paired[i] = is_paired[builder->rules[i].both_with] = 1;
    mb_nullable_find(builder, &nullable);
    uint32_t chain = MB_NO_STATE;
    int longest = 0;
    for (size_t i = 0; i < n_first; i++)
        longest = longest > builder->rules[i].countdown ? longest : builder->rules[i].countdown;
    while (a->n_rules < builder->n_rules && builder->pool.status == MB_OK) {
        size_t rule = a->n_rules; /* those beyond the first are parts of long repeats */
        nfa.may_call = rule >= n_first || !is_paired[rule];
        if (builder->rules[rule].countdown >= 0)
            build_countdown(builder, longest, &chain, a);
        else
            build_rule(builder, d, &nfa, &nullable, a);
    }
    mb_nfa_free(&nfa);
    mb_free(nullable.of);
}

/* ---- What cannot reach an end ----------------------------------------------------------------------- */

typedef struct ends {
    mb_automaton *a;
    size_t work;          /* transitions that were looked at */
    uint8_t *reaches_end; /* [n_states] */
    uint8_t *reads;       /* [n_rules] the rule can read a byte; others match the empty text alone */
} ends;

static int rule_matches(const ends *e, uint32_t rule) {
    return e->reaches_end[e->a->rules[rule].start];
}

static int state_reaches_end(ends *e, uint32_t state) {
    const mb_automaton *a = e->a;
    const mb_automaton_state *s = &a->states[state];
    e->work += a->rules[s->rule].n_classes + s->n_calls;
    if (s->is_final)
        return 1;
    for (uint32_t c = 0; c < a->rules[s->rule].n_classes; c++)
        if (a->next[s->row + c] != MB_NO_STATE && e->reaches_end[a->next[s->row + c]])
            return 1;
    for (uint32_t i = 0; i < s->n_calls; i++) {
        const mb_call *call = &a->calls[s->first_call + i];
        if (e->reaches_end[call->back] && rule_matches(e, call->rule))
            return 1;
    }
    return 0;
}

/* Most targets have larger numbers, so a pass from the end is often enough. */
static int pass(ends *e, const mb_automaton_rule *rule) {
    int any = 0, changed = 1;
    while (changed) {
        changed = 0;
        for (uint32_t s = rule->first_state + rule->n_states; s-- > rule->first_state;)
            if (!e->reaches_end[s] && state_reaches_end(e, s))
                e->reaches_end[s] = 1, changed = any = 1;
    }
    return any;
}

static int has_next(const mb_automaton *a, const mb_automaton_state *s) {
    for (uint32_t c = 0; c < a->rules[s->rule].n_classes; c++)
        if (a->next[s->row + c] != MB_NO_STATE)
            return 1;
    return 0;
}

static int can_read(ends *e, uint32_t state) {
    const mb_automaton *a = e->a;
    const mb_automaton_state *s = &a->states[state];
    e->work += a->rules[s->rule].n_classes + s->n_calls;
    for (uint32_t i = 0; i < s->n_calls; i++) {
        const mb_call *call = &a->calls[s->first_call + i];
        if (e->reaches_end[call->back] && rule_matches(e, call->rule) && e->reads[call->rule])
            return 1;
    }
    return has_next(a, s);
}

/* Returns whether a rule was found. */
static int find_reading(ends *e) {
    int changed = 0;
    for (size_t r = e->a->n_rules; r-- > 0;)
        if (!e->reads[r] && can_read(e, e->a->rules[r].start))
            e->reads[r] = 1, changed = 1;
    return changed;
}

static void cut_transitions(ends *e) {
    mb_automaton *a = e->a;
    for (size_t i = 0; i < a->n_next; i++)
        if (a->next[i] != MB_NO_STATE && !e->reaches_end[a->next[i]])
            a->next[i] = MB_NO_STATE;
}

/* Without calls of rules that match nothing; and of those that match the empty text alone, after which the
 * caller has gone on already. */
static void cut_calls(ends *e) {
    mb_automaton *a = e->a;
    for (size_t i = 0; i < a->n_states; i++) {
        mb_automaton_state *s = &a->states[i];
        uint32_t n = 0;
        for (uint32_t k = 0; k < s->n_calls; k++) {
            mb_call call = a->calls[s->first_call + k];
            if (e->reaches_end[call.back] && rule_matches(e, call.rule) && e->reads[call.rule])
                a->calls[s->first_call + n++] = call;
        }
        s->n_calls = n;
        s->is_end = s->is_final && n == 0 && !has_next(a, s);
    }
}

/* Repeats a pass over the rules, from the last to the first, until nothing changes. */
static mb_status repeat(mb_builder *builder, ends *e, int (*pass_over)(ends *)) {
    enum { MAX_WORK = 1 << 28 };
    while (pass_over(e))
        if (e->work > MAX_WORK)
            return mb_grammar_too_large(&builder->pool, "steps of work", MAX_WORK);
    return MB_OK;
}

static int find_ends(ends *e) {
    int changed = 0;
    for (size_t r = e->a->n_rules; r-- > 0;)
        changed |= pass(e, &e->a->rules[r]);
    return changed;
}

static mb_status trim(mb_builder *builder, mb_automaton *a) {
    ends e = {.a = a, .reaches_end = mb_calloc(a->n_states, 1), .reads = mb_calloc(a->n_rules, 1)};
    mb_status status = MB_OK;
    if (!e.reaches_end || !e.reads)
        status = mb_fail(MB_ERR_MEMORY, "no memory to compile a grammar");
    if (status == MB_OK)
        status = repeat(builder, &e, find_ends);
    if (status == MB_OK && !rule_matches(&e, 0))
        status = mb_fail(MB_ERR_FORMAT, "the grammar matches no text at all; it contradicts itself");
    if (status == MB_OK) {
        cut_transitions(&e);
        status = repeat(builder, &e, find_reading);
    }
    if (status == MB_OK)
        cut_calls(&e);
    mb_free(e.reaches_end);
    mb_free(e.reads);
    return status;
}

mb_status mb_automaton_build(mb_builder *builder, mb_automaton *automaton) {
    *automaton = (mb_automaton){0};
    mb_determinizer *d = mb_determinizer_open(builder);
    if (d)
        build_rules(builder, d, automaton);
    mb_determinizer_close(d);
    mb_status status = builder->pool.status;
    if (status == MB_OK)
        status = trim(builder, automaton);
    if (status != MB_OK)
        mb_automaton_free(automaton);
    return status;
}
