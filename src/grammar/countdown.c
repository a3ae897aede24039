#include "grammar/countdown.h"

#include <string.h>

/* The states of one character. After a lead byte the next one has a range of its own
 * (Unicode 15, table 3-7). */
enum {
    BEFORE,     /* the character */
    ESCAPED,    /* after the backslash */
    ONE_MORE,   /* byte 80 to bf */
    TWO_MORE,   /* two of them */
    THREE_MORE, /* three of them */
    AFTER_E0,   /* a0 to bf, then one more */
    AFTER_ED,   /* 80 to 9f, then one more */
    AFTER_F0,   /* 90 to bf, then two more */
    AFTER_F4,   /* 80 to 8f, then two more */
    N_STATES,
};

/* Classes of bytes. */
enum {
    NEVER,
    RAW,      /* ASCII that is neither below nor part of an escape */
    RAW_NAME, /* ASCII that stands for itself, and after a backslash for something else */
    QUOTE,
    BACKSLASH,
    MORE_80, /* 80 to 8f */
    MORE_90, /* 90 to 9f */
    MORE_A0, /* a0 to bf */
    LEAD_2,
    LEAD_E0,
    LEAD_3,
    LEAD_ED,
    LEAD_F0,
    LEAD_4,
    LEAD_F4,
    N_CLASSES,
};

static int class_of(int byte) {
    if (byte < 0x80) {
        if (byte == '"' || byte == '\\')
            return byte == '"' ? QUOTE : BACKSLASH;
        return byte < ' ' ? NEVER : strchr("/bfnrt", byte) ? RAW_NAME : RAW;
    }
    if (byte < 0xc0)
        return byte < 0x90 ? MORE_80 : byte < 0xa0 ? MORE_90 : MORE_A0;
    if (byte < 0xe0)
        return byte < 0xc2 ? NEVER : LEAD_2;
    if (byte < 0xf0)
        return byte == 0xe0 ? LEAD_E0 : byte == 0xed ? LEAD_ED : LEAD_3;
    return byte == 0xf0 ? LEAD_F0 : byte < 0xf4 ? LEAD_4 : byte == 0xf4 ? LEAD_F4 : NEVER;
}

static void set(uint32_t *row, int first, int last, uint32_t state) {
    for (int c = first; c <= last; c++)
        row[c] = state;
}

/* The rows of one character's states, which begin at `first`. */
static void write_rows(uint32_t *rows, uint32_t first, uint32_t after) {
#define ROW(state) (rows + (state)*N_CLASSES)
    uint32_t *before = ROW(BEFORE), *escaped = ROW(ESCAPED);
    set(before, RAW, RAW_NAME, after);
    set(before, BACKSLASH, BACKSLASH, first + ESCAPED);
    set(before, LEAD_2, LEAD_2, first + ONE_MORE);
    set(before, LEAD_E0, LEAD_E0, first + AFTER_E0);
    set(before, LEAD_3, LEAD_3, first + TWO_MORE);
    set(before, LEAD_ED, LEAD_ED, first + AFTER_ED);
    set(before, LEAD_F0, LEAD_F0, first + AFTER_F0);
    set(before, LEAD_4, LEAD_4, first + THREE_MORE);
    set(before, LEAD_F4, LEAD_F4, first + AFTER_F4);
    set(escaped, RAW_NAME, BACKSLASH, after);
    set(ROW(ONE_MORE), MORE_80, MORE_A0, after);
    set(ROW(TWO_MORE), MORE_80, MORE_A0, first + ONE_MORE);
    set(ROW(THREE_MORE), MORE_80, MORE_A0, first + TWO_MORE);
    set(ROW(AFTER_E0), MORE_A0, MORE_A0, first + ONE_MORE);
    set(ROW(AFTER_ED), MORE_80, MORE_90, first + ONE_MORE);
    set(ROW(AFTER_F0), MORE_90, MORE_A0, first + TWO_MORE);
    set(ROW(AFTER_F4), MORE_80, MORE_80, first + TWO_MORE);
#undef ROW
}

void mb_countdown_append(mb_grammar_pool *pool, int longest, int n, mb_automaton *a) {
    /* All characters' states, then the place after the last one, then the end. */
    uint32_t n_states = (uint32_t)longest * N_STATES + 2, first = (uint32_t)a->n_states,
             last = first + n_states - 2;
    size_t n_next = (size_t)n_states * N_CLASSES;
    if (mb_grammar_grow(pool, (void **)&a->rules, &a->rules_capacity, a->n_rules + 1, sizeof *a->rules) !=
            0 ||
        mb_grammar_grow(pool, (void **)&a->states, &a->states_capacity, a->n_states + n_states,
                        sizeof *a->states) != 0 ||
        mb_grammar_grow(pool, (void **)&a->next, &a->next_capacity, a->n_next + n_next, sizeof *a->next) != 0)
        return;
    mb_automaton_rule rule = {.start = first + (uint32_t)(longest - n) * N_STATES,
                              .n_classes = N_CLASSES,
                              .first_state = first,
                              .n_states = n_states};
    for (int byte = 0; byte < 256; byte++)
        rule.class_of[byte] = (uint8_t)class_of(byte);
    uint32_t *rows = a->next + a->n_next;
    memset(rows, 0xff, n_next * sizeof *rows);
    for (int i = 0; i < longest; i++) {
        uint32_t at = first + (uint32_t)i * N_STATES;
        write_rows(rows + (size_t)i * N_STATES * N_CLASSES, at, at + N_STATES);
        rows[(size_t)i * N_STATES * N_CLASSES + QUOTE] = last + 1;
    }
    rows[(size_t)(n_states - 2) * N_CLASSES + QUOTE] = last + 1;
    for (uint32_t i = 0; i < n_states; i++)
        a->states[first + i] = (mb_automaton_state){.row = (uint32_t)(a->n_next + (size_t)i * N_CLASSES),
                                                    .rule = (uint32_t)a->n_rules,
                                                    .is_final = i == n_states - 1};
    a->n_states += n_states;
    a->n_next += n_next;
    a->rules[a->n_rules++] = rule;
}

void mb_countdown_append_part(mb_grammar_pool *pool, uint32_t chain, int longest, int n, mb_automaton *a) {
    if (mb_grammar_grow(pool, (void **)&a->rules, &a->rules_capacity, a->n_rules + 1, sizeof *a->rules) != 0)
        return;
    mb_automaton_rule rule = a->rules[chain];
    rule.start = rule.first_state + (uint32_t)(longest - n) * N_STATES;
    rule.n_states = 0;
    a->rules[a->n_rules++] = rule;
}
