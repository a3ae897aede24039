/* state.c - one answer's place in its grammar. */
#include "base/alloc.h"
#include "grammar/compile.h"

/* The place after a token. */
typedef struct place {
    mb_stack_set set;
    mb_stack_mark mark;
} place;

struct mb_grammar_state {
    mb_grammar *grammar;
    mb_stack stack;
    mb_mask_work work;
    place *places; /* [n_tokens + 1] */
    size_t n_tokens, capacity;
};

static place *last_place(const mb_grammar_state *state) {
    return &state->places[state->n_tokens];
}

static mb_status add_place(mb_grammar_state *state, size_t index, mb_stack_set set) {
    if (state->stack.status != MB_OK)
        return state->stack.status;
    if (mb_grow((void **)&state->places, &state->capacity, index + 1, sizeof *state->places) != 0)
        return mb_fail(MB_ERR_MEMORY, "no memory to follow an answer's grammar");
    state->places[index] = (place){set, mb_stack_get_mark(&state->stack)};
    state->n_tokens = index;
    return MB_OK;
}

mb_status mb_grammar_state_open(mb_grammar *grammar, mb_grammar_start start, mb_grammar_state **state) {
    MB_TRY(mb_need(state, "mb_grammar_state_open: state"));
    *state = NULL;
    MB_TRY(mb_need(grammar, "mb_grammar_state_open: grammar"));
    mb_grammar_state *opened = mb_calloc(1, sizeof *opened);
    if (!opened)
        return mb_fail(MB_ERR_MEMORY, "no memory to follow an answer's grammar");
    mb_grammar_hold(grammar);
    opened->grammar = grammar;
    mb_stack_init(&opened->stack, &grammar->automaton);
    mb_stack_set set =
        mb_stack_start(&opened->stack, start == MB_GRAMMAR_AFTER_THINK ? grammar->think_rule : 0);
    mb_status status = add_place(opened, 0, set);
    if (status != MB_OK) {
        mb_grammar_state_close(opened);
        return status;
    }
    *state = opened;
    return MB_OK;
}

void mb_grammar_state_close(mb_grammar_state *state) {
    if (!state)
        return;
    mb_stack_free(&state->stack);
    mb_mask_work_free(&state->work);
    mb_free(state->places);
    mb_grammar_close(state->grammar);
    mb_free(state);
}

mb_status mb_grammar_mask(mb_grammar_state *state, uint32_t *bits, size_t n_words) {
    MB_TRY(mb_need(state, "mb_grammar_mask: state"));
    MB_TRY(mb_need(bits, "mb_grammar_mask: bits"));
    size_t n_used = state->grammar->masks.trie->n_words;
    if (n_words < n_used)
        return mb_fail(MB_ERR_ARGUMENT, "mb_grammar_mask: n_words is %zu; the vocabulary needs %zu", n_words,
                       n_used);
    for (size_t i = n_used; i < n_words; i++)
        bits[i] = 0;
    return mb_mask_fill(&state->grammar->masks, &state->work, &state->stack, last_place(state)->set, bits);
}

/* The set after the bytes; empty and not ended when the grammar does not allow them. */
static mb_stack_set read_bytes(mb_stack *stack, mb_stack_set set, const char *bytes, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes && (set.n > 0 || i == 0); i++) {
        set = mb_stack_step(stack, set, (uint8_t)bytes[i]);
        if (set.n == 0 && i + 1 < n_bytes)
            set.ended = 0;
    }
    return set;
}

mb_status mb_grammar_advance(mb_grammar_state *state, int32_t id) {
    MB_TRY(mb_need(state, "mb_grammar_advance: state"));
    const mb_token_trie *trie = state->grammar->masks.trie;
    if (id < 0 || id >= trie->vocab)
        return mb_fail(MB_ERR_ARGUMENT, "mb_grammar_advance: id is %d, outside of the vocabulary [0, %d)",
                       (int)id, (int)trie->vocab);
    const char *bytes = trie->bytes + trie->offsets[id];
    size_t n_bytes = trie->offsets[id + 1] - trie->offsets[id];
    mb_stack *stack = &state->stack;
    mb_stack_mark mark = last_place(state)->mark;
    mb_stack_cut(stack, mark);
    mb_stack_set set = last_place(state)->set;
    if (n_bytes > 0)
        set = read_bytes(stack, set, bytes, n_bytes);
    if (stack->status == MB_OK && (n_bytes == 0 || (set.n == 0 && !set.ended))) {
        mb_stack_cut(stack, mark);
        return mb_fail(MB_ERR_ARGUMENT, "mb_grammar_advance: the grammar does not allow token %d here",
                       (int)id);
    }
    /* The sets between the token's bytes are not needed any more. */
    if (stack->status == MB_OK) {
        for (uint32_t i = 0; i < set.n; i++)
            stack->configs[mark.n_configs + i] = stack->configs[set.first + i];
        set.first = (uint32_t)mark.n_configs;
        stack->n_configs = mark.n_configs + set.n;
    }
    return add_place(state, state->n_tokens + 1, set);
}

mb_status mb_grammar_roll_back(mb_grammar_state *state, size_t n_tokens) {
    MB_TRY(mb_need(state, "mb_grammar_roll_back: state"));
    if (n_tokens > state->n_tokens)
        return mb_fail(MB_ERR_ARGUMENT, "mb_grammar_roll_back: n_tokens is %zu, but only %zu were taken in",
                       n_tokens, state->n_tokens);
    state->n_tokens -= n_tokens;
    mb_stack_cut(&state->stack, last_place(state)->mark);
    return MB_OK;
}

int mb_grammar_can_end(const mb_grammar_state *state) {
    return last_place(state)->set.ended != 0;
}

int mb_grammar_is_finished(const mb_grammar_state *state) {
    return last_place(state)->set.ended && last_place(state)->set.n == 0;
}
