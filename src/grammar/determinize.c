#include "grammar/determinize.h"

#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/alloc.h"

enum {
    MAX_STATES = 1 << 17, /* of all rules */
    MAX_NEXT = 1 << 24,   /* transitions of all rules */
    FEW_SLOTS = 256,
    MAX_WORK = 1 << 24, /* members of sets that are looked at: about half a second */
};

/* A transition while the rule's classes are not yet known: bytes first to last lead to a state. */
typedef struct span {
    uint32_t target;
    uint8_t first, last;
} span;

typedef struct set {
    uint32_t offset, n; /* members[offset ..] sorted */
    uint32_t first_span, n_spans;
    uint32_t first_call, n_calls;
    uint8_t is_final;
} set;

struct mb_determinizer {
    mb_builder *builder;
    size_t work;
    uint32_t *members;
    size_t n_members, members_capacity;
    set *sets;
    size_t n_sets, sets_capacity;
    span *spans;
    size_t n_spans, spans_capacity;
    mb_call *calls; /* `back` is a set's number */
    size_t n_calls, calls_capacity;
    uint32_t *slots; /* hash table of sets: number + 1 */
    size_t n_slots;
    uint32_t *marks; /* [states of the nfa] generation in which the state was reached */
    size_t marks_capacity;
    uint32_t generation;
    uint32_t *reached, *pending; /* the closure being made, and what is to be followed */
    size_t n_reached, reached_capacity, n_pending, pending_capacity;
};

mb_determinizer *mb_determinizer_open(mb_builder *builder) {
    mb_determinizer *d = mb_calloc(1, sizeof *d);
    if (!d) {
        builder->pool.status = mb_fail(MB_ERR_MEMORY, "no memory to compile a grammar");
        return NULL;
    }
    d->builder = builder;
    return d;
}

void mb_determinizer_close(mb_determinizer *d) {
    if (!d)
        return;
    mb_free(d->members);
    mb_free(d->sets);
    mb_free(d->spans);
    mb_free(d->calls);
    mb_free(d->slots);
    mb_free(d->marks);
    mb_free(d->reached);
    mb_free(d->pending);
    mb_free(d);
}

static int grow(mb_determinizer *d, void *items, size_t *capacity, size_t count, size_t item_bytes) {
    return mb_grammar_grow(&d->builder->pool, items, capacity, count, item_bytes);
}

static int is_ok(const mb_determinizer *d) {
    return d->builder->pool.status == MB_OK;
}

static void count_work(mb_determinizer *d, size_t n) {
    d->work += n;
    if (d->work > MAX_WORK)
        mb_grammar_too_large(&d->builder->pool, "steps of work", MAX_WORK);
}

/* ---- Sets ------------------------------------------------------------------------------------------- */

static void reach(mb_determinizer *d, uint32_t state) {
    if (d->marks[state] == d->generation)
        return;
    if (grow(d, &d->reached, &d->reached_capacity, d->n_reached + 1, sizeof *d->reached) != 0 ||
        grow(d, &d->pending, &d->pending_capacity, d->n_pending + 1, sizeof *d->pending) != 0)
        return;
    d->marks[state] = d->generation;
    d->pending[d->n_pending++] = state;
}

/* Follows empty edges. What has other edges, or is the end, is what makes one set differ from another. */
static void close_set(mb_determinizer *d, const mb_nfa *nfa) {
    while (d->n_pending > 0 && is_ok(d)) {
        uint32_t state = d->pending[--d->n_pending];
        int matters = state == MB_NFA_END;
        for (uint32_t e = nfa->first_edge[state]; e; e = nfa->edges[e - 1].next) {
            const mb_nfa_edge *edge = &nfa->edges[e - 1];
            if (edge->kind == MB_NFA_EMPTY)
                reach(d, edge->target);
            else
                matters = 1;
        }
        if (matters && grow(d, &d->reached, &d->reached_capacity, d->n_reached + 1, sizeof *d->reached) == 0)
            d->reached[d->n_reached++] = state;
        count_work(d, 1);
    }
    d->n_pending = 0;
}

static int compare_numbers(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void enter_slot(mb_determinizer *d, uint32_t number) {
    const set *s = &d->sets[number];
    size_t slot = XXH3_64bits(d->members + s->offset, s->n * sizeof *d->members) & (d->n_slots - 1);
    while (d->slots[slot])
        slot = (slot + 1) & (d->n_slots - 1);
    d->slots[slot] = number + 1;
}

static int grow_slots(mb_determinizer *d) {
    if (d->n_slots > 2 * (d->n_sets + 1))
        return 0;
    size_t n_slots = d->n_slots ? 2 * d->n_slots : FEW_SLOTS;
    uint32_t *slots = mb_calloc(n_slots, sizeof *slots);
    if (!slots) {
        d->builder->pool.status = mb_fail(MB_ERR_MEMORY, "no memory to compile a grammar");
        return -1;
    }
    mb_free(d->slots);
    d->slots = slots;
    d->n_slots = n_slots;
    for (uint32_t i = 0; i < d->n_sets; i++)
        enter_slot(d, i);
    return 0;
}

/* The number of the set of what was reached; a new one when there is none like it. */
static uint32_t number_of_set(mb_determinizer *d, const mb_nfa *nfa) {
    close_set(d, nfa);
    if (!is_ok(d) || grow_slots(d) != 0)
        return 0;
    qsort(d->reached, d->n_reached, sizeof *d->reached, compare_numbers);
    size_t n_bytes = d->n_reached * sizeof *d->reached;
    size_t slot = XXH3_64bits(d->reached, n_bytes) & (d->n_slots - 1);
    for (; d->slots[slot]; slot = (slot + 1) & (d->n_slots - 1)) {
        const set *s = &d->sets[d->slots[slot] - 1];
        if (s->n == d->n_reached && memcmp(d->members + s->offset, d->reached, n_bytes) == 0)
            return d->slots[slot] - 1;
    }
    if (d->n_sets == MAX_STATES) {
        mb_grammar_too_large(&d->builder->pool, "states", MAX_STATES);
        return 0;
    }
    if (grow(d, &d->sets, &d->sets_capacity, d->n_sets + 1, sizeof *d->sets) != 0 ||
        grow(d, &d->members, &d->members_capacity, d->n_members + d->n_reached + 1, sizeof *d->members) != 0)
        return 0;
    memcpy(d->members + d->n_members, d->reached, n_bytes);
    d->sets[d->n_sets] =
        (set){.offset = (uint32_t)d->n_members,
              .n = (uint32_t)d->n_reached,
              .is_final = d->n_reached > 0 && d->reached[0] <= MB_NFA_END &&
                          (d->reached[0] == MB_NFA_END || (d->n_reached > 1 && d->reached[1] == MB_NFA_END))};
    d->n_members += d->n_reached;
    d->slots[slot] = (uint32_t)d->n_sets + 1;
    return (uint32_t)d->n_sets++;
}

static void begin_set(mb_determinizer *d) {
    d->generation++;
    d->n_reached = d->n_pending = 0;
}

/* ---- Edges of a set --------------------------------------------------------------------------------- */

typedef struct borders {
    uint8_t is_first[257]; /* a range of some edge begins at this byte, or the last one ended before it */
} borders;

static void find_spans(mb_determinizer *d, const mb_nfa *nfa, uint32_t number, const borders *b) {
    for (int first = 0; first < 256 && is_ok(d);) {
        int last = first;
        while (last < 255 && !b->is_first[last + 1])
            last++;
        begin_set(d);
        set s = d->sets[number];
        for (uint32_t i = 0; i < s.n; i++)
            for (uint32_t e = nfa->first_edge[d->members[s.offset + i]]; e; e = nfa->edges[e - 1].next) {
                const mb_nfa_edge *edge = &nfa->edges[e - 1];
                if (edge->kind == MB_NFA_BYTES && edge->first <= first && last <= edge->last)
                    reach(d, edge->target);
            }
        count_work(d, s.n);
        if (d->n_pending > 0) {
            uint32_t target = number_of_set(d, nfa);
            if (is_ok(d) && grow(d, &d->spans, &d->spans_capacity, d->n_spans + 1, sizeof *d->spans) == 0)
                d->spans[d->n_spans++] = (span){target, (uint8_t)first, (uint8_t)last};
        }
        first = last + 1;
    }
}

static int calls_already(const mb_determinizer *d, uint32_t number, uint32_t rule) {
    for (size_t i = d->sets[number].first_call; i < d->n_calls; i++)
        if (d->calls[i].rule == rule)
            return 1;
    return 0;
}

static void add_call(mb_determinizer *d, const mb_nfa *nfa, uint32_t number, uint32_t rule) {
    begin_set(d);
    set s = d->sets[number];
    for (uint32_t i = 0; i < s.n; i++)
        for (uint32_t e = nfa->first_edge[d->members[s.offset + i]]; e; e = nfa->edges[e - 1].next) {
            const mb_nfa_edge *edge = &nfa->edges[e - 1];
            if (edge->kind == MB_NFA_CALL && edge->rule == rule)
                reach(d, edge->target);
        }
    count_work(d, s.n);
    uint32_t back = number_of_set(d, nfa);
    if (is_ok(d) && grow(d, &d->calls, &d->calls_capacity, d->n_calls + 1, sizeof *d->calls) == 0)
        d->calls[d->n_calls++] = (mb_call){rule, back};
}

static void expand(mb_determinizer *d, const mb_nfa *nfa, uint32_t number) {
    borders b = {{0}};
    set s = d->sets[number];
    d->sets[number].first_span = (uint32_t)d->n_spans;
    d->sets[number].first_call = (uint32_t)d->n_calls;
    int has_bytes = 0;
    for (uint32_t i = 0; i < s.n; i++)
        for (uint32_t e = nfa->first_edge[d->members[s.offset + i]]; e; e = nfa->edges[e - 1].next) {
            const mb_nfa_edge *edge = &nfa->edges[e - 1];
            if (edge->kind == MB_NFA_BYTES) {
                b.is_first[edge->first] = b.is_first[edge->last + 1] = has_bytes = 1;
            } else if (edge->kind == MB_NFA_CALL && is_ok(d) && !calls_already(d, number, edge->rule)) {
                add_call(d, nfa, number, edge->rule);
            }
        }
    if (has_bytes)
        find_spans(d, nfa, number, &b);
    d->sets[number].n_spans = (uint32_t)d->n_spans - d->sets[number].first_span;
    d->sets[number].n_calls = (uint32_t)d->n_calls - d->sets[number].first_call;
}

/* ---- Output ----------------------------------------------------------------------------------------- */

/* Bytes that no state of the rule tells apart are one class. */
static uint32_t find_classes(const mb_determinizer *d, uint8_t class_of[256]) {
    uint8_t is_first[257] = {0};
    for (size_t i = 0; i < d->n_spans; i++)
        is_first[d->spans[i].first] = is_first[d->spans[i].last + 1] = 1;
    uint32_t n = 0;
    for (int byte = 0; byte < 256; byte++) {
        n += byte > 0 && is_first[byte];
        class_of[byte] = (uint8_t)n;
    }
    return n + 1;
}

/* Appends the sets as a rule. */
static void append_rule(mb_determinizer *d, mb_automaton *a) {
    if (!is_ok(d) || grow(d, &a->rules, &a->rules_capacity, a->n_rules + 1, sizeof *a->rules) != 0)
        return;
    mb_automaton_rule rule = {.first_state = (uint32_t)a->n_states,
                              .start = (uint32_t)a->n_states,
                              .n_states = (uint32_t)d->n_sets,
                              .is_nullable = d->sets[0].is_final};
    rule.n_classes = find_classes(d, rule.class_of);
    size_t n_next = d->n_sets * rule.n_classes;
    if (a->n_states + d->n_sets > MAX_STATES)
        mb_grammar_too_large(&d->builder->pool, "states", MAX_STATES);
    if (a->n_next + n_next > MAX_NEXT)
        mb_grammar_too_large(&d->builder->pool, "transitions", MAX_NEXT);
    if (grow(d, &a->states, &a->states_capacity, a->n_states + d->n_sets, sizeof *a->states) != 0 ||
        grow(d, &a->next, &a->next_capacity, a->n_next + n_next, sizeof *a->next) != 0 ||
        grow(d, &a->calls, &a->calls_capacity, a->n_calls + d->n_calls, sizeof *a->calls) != 0)
        return;
    memset(a->next + a->n_next, 0xff, n_next * sizeof *a->next);
    for (size_t i = 0; i < d->n_sets; i++) {
        const set *s = &d->sets[i];
        uint32_t *row = a->next + a->n_next + i * rule.n_classes;
        for (uint32_t k = 0; k < s->n_spans; k++) {
            const span *w = &d->spans[s->first_span + k];
            for (int c = rule.class_of[w->first]; c <= rule.class_of[w->last]; c++)
                row[c] = rule.first_state + w->target;
        }
        a->states[a->n_states + i] = (mb_automaton_state){.row = (uint32_t)(a->n_next + i * rule.n_classes),
                                                          .rule = (uint32_t)a->n_rules,
                                                          .first_call = (uint32_t)a->n_calls + s->first_call,
                                                          .n_calls = s->n_calls,
                                                          .is_final = s->is_final};
    }
    for (size_t i = 0; i < d->n_calls; i++)
        a->calls[a->n_calls + i] = (mb_call){d->calls[i].rule, rule.first_state + d->calls[i].back};
    a->n_calls += d->n_calls;
    a->n_next += n_next;
    a->n_states += d->n_sets;
    a->rules[a->n_rules++] = rule;
}

static void clear(mb_determinizer *d) {
    d->n_members = d->n_sets = d->n_spans = d->n_calls = 0;
    d->n_slots = d->n_slots > FEW_SLOTS ? FEW_SLOTS : d->n_slots; /* most rules are small */
    if (d->slots)
        memset(d->slots, 0, d->n_slots * sizeof *d->slots);
}

void mb_determinize(mb_determinizer *d, const mb_nfa *nfa, mb_automaton *automaton) {
    clear(d);
    size_t had = d->marks_capacity;
    if (!is_ok(d) || grow(d, &d->marks, &d->marks_capacity, nfa->n_states, sizeof *d->marks) != 0)
        return;
    memset(d->marks + had, 0, (d->marks_capacity - had) * sizeof *d->marks);
    begin_set(d);
    reach(d, MB_NFA_START);
    number_of_set(d, nfa);
    for (uint32_t i = 0; i < d->n_sets && is_ok(d); i++)
        expand(d, nfa, i);
    append_rule(d, automaton);
}

/* ---- Intersection ----------------------------------------------------------------------------------- */

/* A set is a pair of states here. */
static uint32_t number_of_pair(mb_determinizer *d, const mb_automaton *a, uint32_t x, uint32_t y) {
    if (grow_slots(d) != 0 || !is_ok(d))
        return 0;
    uint32_t pair[2] = {x, y};
    size_t slot = XXH3_64bits(pair, sizeof pair) & (d->n_slots - 1);
    for (; d->slots[slot]; slot = (slot + 1) & (d->n_slots - 1))
        if (memcmp(d->members + d->sets[d->slots[slot] - 1].offset, pair, sizeof pair) == 0)
            return d->slots[slot] - 1;
    if (d->n_sets == MAX_STATES) {
        mb_grammar_too_large(&d->builder->pool, "states", MAX_STATES);
        return 0;
    }
    if (grow(d, &d->sets, &d->sets_capacity, d->n_sets + 1, sizeof *d->sets) != 0 ||
        grow(d, &d->members, &d->members_capacity, d->n_members + 2, sizeof *d->members) != 0)
        return 0;
    memcpy(d->members + d->n_members, pair, sizeof pair);
    d->sets[d->n_sets] = (set){
        .offset = (uint32_t)d->n_members, .n = 2, .is_final = a->states[x].is_final && a->states[y].is_final};
    d->n_members += 2;
    d->slots[slot] = (uint32_t)d->n_sets + 1;
    return (uint32_t)d->n_sets++;
}

static void expand_pair(mb_determinizer *d, const mb_automaton *a, uint32_t number) {
    uint32_t x = d->members[d->sets[number].offset], y = d->members[d->sets[number].offset + 1];
    d->sets[number].first_span = (uint32_t)d->n_spans;
    uint32_t last_x = MB_NO_STATE, last_y = MB_NO_STATE;
    for (int byte = 0; byte < 256 && is_ok(d); byte++) {
        uint32_t next_x = mb_automaton_next(a, x, (uint8_t)byte),
                 next_y = mb_automaton_next(a, y, (uint8_t)byte);
        if (next_x == MB_NO_STATE || next_y == MB_NO_STATE)
            next_x = next_y = MB_NO_STATE;
        if (next_x != MB_NO_STATE && next_x == last_x && next_y == last_y) {
            d->spans[d->n_spans - 1].last = (uint8_t)byte;
        } else if (next_x != MB_NO_STATE) {
            uint32_t target = number_of_pair(d, a, next_x, next_y);
            if (grow(d, &d->spans, &d->spans_capacity, d->n_spans + 1, sizeof *d->spans) != 0)
                return;
            d->spans[d->n_spans++] = (span){target, (uint8_t)byte, (uint8_t)byte};
        }
        last_x = next_x;
        last_y = next_y;
    }
    d->sets[number].n_spans = (uint32_t)d->n_spans - d->sets[number].first_span;
    d->sets[number].first_call = 0;
    count_work(d, 16);
}

void mb_intersect_last(mb_determinizer *d, uint32_t other, mb_automaton *a) {
    clear(d);
    if (!is_ok(d))
        return;
    mb_automaton_rule last = a->rules[a->n_rules - 1];
    number_of_pair(d, a, last.start, a->rules[other].start);
    for (uint32_t i = 0; i < d->n_sets && is_ok(d); i++)
        expand_pair(d, a, i);
    /* The last rule's states and transitions make place. */
    a->n_rules--;
    a->n_states = last.first_state;
    a->n_next -= (size_t)last.n_states * last.n_classes;
    append_rule(d, a);
}
