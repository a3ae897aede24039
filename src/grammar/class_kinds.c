#include "grammar/class_kinds.h"

#include <string.h>

#include "base/alloc.h"

enum { MAX_DIFFERENT = 8 /* targets of one state that are compared; more make finer kinds */ };

/* ---- Kinds ------------------------------------------------------------------------------------------ */

static void describe(const mb_class_kinds *k, uint32_t state, mb_state_kind *kind) {
    const mb_automaton_state *s = &k->automaton->states[state];
    const uint32_t *row = k->automaton->next + s->row;
    uint8_t different[MAX_DIFFERENT];
    int n_different = 0;
    kind->is_final = s->is_final;
    kind->has_calls = s->n_calls > 0;
    for (uint32_t c = 0; c < k->rule->n_classes; c++) {
        int i = 0;
        while (i < n_different && row[different[i]] != row[c])
            i++;
        kind->same_as[c] = i < n_different ? different[i] : (uint8_t)c;
        kind->leads_on[c] = row[c] != MB_NO_STATE;
        if (i == n_different && n_different < MAX_DIFFERENT)
            different[n_different++] = (uint8_t)c;
    }
}

static int is_same_kind(const mb_state_kind *x, const mb_state_kind *y, size_t n_classes) {
    return x->is_final == y->is_final && x->has_calls == y->has_calls &&
           memcmp(x->same_as, y->same_as, n_classes) == 0 && memcmp(x->leads_on, y->leads_on, n_classes) == 0;
}

/* The last kind takes all states that would need further ones: it tells everything apart. */
static uint32_t add_kind(mb_class_kinds *k, const mb_state_kind *described) {
    size_t n_classes = k->rule->n_classes;
    for (uint32_t i = 0; i < k->n_kinds; i++)
        if (is_same_kind(&k->kinds[i], described, n_classes))
            return i;
    if (k->n_kinds < MB_MAX_KINDS - 1) {
        k->kinds[k->n_kinds] = *described;
        return k->n_kinds++;
    }
    mb_state_kind *last = &k->kinds[MB_MAX_KINDS - 1];
    k->n_kinds = MB_MAX_KINDS;
    last->is_final = last->has_calls = 1;
    for (size_t c = 0; c < n_classes; c++) {
        last->same_as[c] = (uint8_t)c;
        last->leads_on[c] = 1;
    }
    return MB_MAX_KINDS - 1;
}

static void find_kinds(mb_class_kinds *k) {
    const mb_automaton *a = k->automaton;
    uint32_t first = k->rule->first_state, n = k->rule->n_states;
    memset(k->next_kinds, 0, k->n_kinds * sizeof *k->next_kinds);
    k->n_kinds = 0;
    for (uint32_t i = 0; i < n; i++) {
        mb_state_kind described;
        describe(k, first + i, &described);
        k->kind_of[i] = (uint8_t)add_kind(k, &described);
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t *row = a->next + a->states[first + i].row;
        for (uint32_t c = 0; c < k->rule->n_classes; c++)
            if (row[c] != MB_NO_STATE)
                k->next_kinds[k->kind_of[i]][c] |= (mb_kind_set)1 << k->kind_of[row[c] - first];
    }
}

/* ---- Contexts --------------------------------------------------------------------------------------- */

/* Classes that were alike stay so if this kind has them alike, too. */
static void refine(mb_class_kinds *k, mb_class_context *context, const mb_state_kind *kind) {
    uint32_t n = k->rule->n_classes;
    uint8_t before[256];
    memcpy(before, context->same_as, n);
    for (uint32_t c = 0; c < n; c++) {
        uint16_t *first = &k->pairs[before[c]][kind->same_as[c]];
        if (*first == 0)
            *first = (uint16_t)(c + 1);
        context->same_as[c] = (uint8_t)(*first - 1);
        context->leads_on[c] |= kind->leads_on[c];
        context->any_leads_on |= kind->leads_on[c];
    }
    for (uint32_t c = 0; c < n; c++)
        k->pairs[before[c]][kind->same_as[c]] = 0;
}

static uint32_t context_of(mb_class_kinds *k, mb_kind_set kinds) {
    for (uint32_t i = 0; i < k->n_contexts; i++)
        if (k->contexts[i].kinds == kinds)
            return i;
    if (k->n_contexts == MB_MAX_CLASS_CONTEXTS)
        return 0;
    mb_class_context *made = &k->contexts[k->n_contexts];
    memset(made, 0, sizeof *made);
    memset(made->next, 0xff, sizeof made->next);
    made->kinds = kinds;
    for (uint32_t i = 0; i < k->n_kinds; i++)
        if (kinds >> i & 1) {
            refine(k, made, &k->kinds[i]);
            made->goes_beyond |= (k->kinds[i].is_final && k->is_followed) || k->kinds[i].has_calls;
        }
    return k->n_contexts++;
}

uint32_t mb_class_context_make(mb_class_kinds *k, uint32_t from, uint8_t byte_class) {
    mb_kind_set kinds = 0;
    for (uint32_t i = 0; i < k->n_kinds; i++)
        if (k->contexts[from].kinds >> i & 1)
            kinds |= k->next_kinds[i][byte_class];
    uint32_t made = context_of(k, kinds);
    k->contexts[from].next[byte_class] = (int16_t)made;
    return made;
}

int mb_class_kinds_find(mb_class_kinds *k, const mb_automaton *automaton, uint32_t rule, int is_followed) {
    k->automaton = automaton;
    k->rule = &automaton->rules[rule];
    k->is_followed = is_followed;
    if (mb_grow((void **)&k->kind_of, &k->kind_of_capacity, k->rule->n_states, 1) != 0)
        return -1;
    find_kinds(k);
    k->n_contexts = 0;
    context_of(k, k->n_kinds == MB_MAX_KINDS ? ~(mb_kind_set)0 : ((mb_kind_set)1 << k->n_kinds) - 1);
    return 0;
}

void mb_class_kinds_free(mb_class_kinds *k) {
    mb_free(k->kind_of);
    k->kind_of = NULL;
    k->kind_of_capacity = 0;
}
