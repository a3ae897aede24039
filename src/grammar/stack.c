#include "grammar/stack.h"

#include "base/alloc.h"

enum {
    MAX_CONFIGS = 4096,   /* of one set; a schema with that many alternatives open at once is refused */
    MAX_VISITS = 1 << 14, /* of edges, for one set: a text of n bytes that n^2 calls can end is refused */
};

/* Set while a set is being completed: the rule was called here and has matched nothing yet, so it cannot
 * end. (When it matches the empty text, its caller has gone on without it.) */
#define ENTERED (1u << 31)

void mb_stack_init(mb_stack *stack, const mb_automaton *automaton) {
    *stack = (mb_stack){.automaton = automaton};
}

void mb_stack_free(mb_stack *stack) {
    mb_free(stack->nodes);
    mb_free(stack->edges);
    mb_free(stack->configs);
    *stack = (mb_stack){0};
}

static int grow(mb_stack *stack, void *items, size_t *capacity, size_t count, size_t item_bytes) {
    if (stack->status != MB_OK)
        return -1;
    if (count >= UINT32_MAX || mb_grow(items, capacity, count, item_bytes) != 0) {
        stack->status = mb_fail(MB_ERR_MEMORY, "no memory to follow an answer's grammar");
        return -1;
    }
    return 0;
}

static void add(mb_stack *stack, mb_stack_set *set, uint32_t state, uint32_t node) {
    for (size_t i = set->first; i < stack->n_configs; i++)
        if (stack->configs[i].node == node && stack->configs[i].state == state)
            return;
    if (stack->n_configs - set->first == MAX_CONFIGS && stack->status == MB_OK)
        stack->status = mb_fail(
            MB_ERR_CAPACITY,
            "the grammar is too ambiguous: its text can be read in more than %d ways at once", MAX_CONFIGS);
    if (grow(stack, &stack->configs, &stack->configs_capacity, stack->n_configs + 1,
             sizeof *stack->configs) == 0)
        stack->configs[stack->n_configs++] = (mb_stack_config){state, node};
}

/* One more edge is looked at; 0: these are too many. */
static int visit(mb_stack *stack) {
    if (stack->n_visits++ < MAX_VISITS)
        return 1;
    if (stack->status == MB_OK)
        stack->status =
            mb_fail(MB_ERR_CAPACITY,
                    "the grammar is too ambiguous: so many of its rules can end at one place of the text "
                    "that following them would take too long");
    return 0;
}

static void add_edge(mb_stack *stack, size_t node, uint32_t back, uint32_t parent) {
    for (uint32_t e = stack->nodes[node].first_edge; e && visit(stack); e = stack->edges[e - 1].next)
        if (stack->edges[e - 1].back == back && stack->edges[e - 1].parent == parent)
            return;
    if (grow(stack, &stack->edges, &stack->edges_capacity, stack->n_edges + 1, sizeof *stack->edges) != 0)
        return;
    stack->edges[stack->n_edges++] = (mb_stack_edge){back, parent, stack->nodes[node].first_edge};
    stack->nodes[node].first_edge = (uint32_t)stack->n_edges;
}

/* The node of a call that is made here; first_here: the first node that was made here. Where the caller only
 * ends after the call, the node goes back to the caller's callers: so a rule that calls itself last does not
 * go deeper each time. The edges of a caller from here are not complete yet, and node 0 has none. */
static void call(mb_stack *stack, mb_stack_set *set, size_t first_here, const mb_call *to, uint32_t caller) {
    size_t node = first_here;
    while (node < stack->n_nodes && stack->nodes[node].rule != to->rule)
        node++;
    if (node == stack->n_nodes) {
        if (grow(stack, &stack->nodes, &stack->nodes_capacity, node + 1, sizeof *stack->nodes) != 0)
            return;
        stack->nodes[stack->n_nodes++] = (mb_stack_node){.rule = to->rule};
        add(stack, set, stack->automaton->rules[to->rule].start | ENTERED, (uint32_t)node);
    }
    if (caller == 0 || caller >= first_here || !stack->automaton->states[to->back].is_end) {
        add_edge(stack, node, to->back, caller);
        return;
    }
    for (uint32_t e = stack->nodes[caller].first_edge; e && visit(stack); e = stack->edges[e - 1].next)
        add_edge(stack, node, stack->edges[e - 1].back, stack->edges[e - 1].parent);
}

static void end_node(mb_stack *stack, mb_stack_set *set, uint32_t node) {
    if (node == 0)
        set->ended = 1;
    for (uint32_t e = stack->nodes[node].first_edge; e && visit(stack); e = stack->edges[e - 1].next)
        add(stack, set, stack->edges[e - 1].back, stack->edges[e - 1].parent);
}

/* Adds what follows without a byte from the configurations that are there; then leaves out those that can
 * only end, because their ends have been followed. */
static void complete(mb_stack *stack, mb_stack_set *set) {
    const mb_automaton *a = stack->automaton;
    size_t first_here = stack->n_nodes;
    for (size_t i = set->first; i < stack->n_configs && stack->status == MB_OK; i++) {
        mb_stack_config config = stack->configs[i];
        const mb_automaton_state *s = &a->states[config.state & ~ENTERED];
        if (s->is_final && !(config.state & ENTERED))
            end_node(stack, set, config.node);
        for (uint32_t k = 0; k < s->n_calls; k++)
            call(stack, set, first_here, &a->calls[s->first_call + k], config.node);
    }
    size_t n = set->first;
    for (size_t i = set->first; i < stack->n_configs; i++) {
        mb_stack_config config = stack->configs[i];
        config.state &= ~ENTERED;
        if (!a->states[config.state].is_end)
            stack->configs[n++] = config;
    }
    stack->n_configs = n;
    set->n = (uint32_t)(n - set->first);
    if (stack->status != MB_OK)
        set->n = set->ended = 0;
}

static mb_stack_set begin(mb_stack *stack) {
    stack->n_visits = 0;
    return (mb_stack_set){.first = (uint32_t)stack->n_configs};
}

mb_stack_set mb_stack_start(mb_stack *stack, uint32_t rule) {
    mb_stack_cut(stack, (mb_stack_mark){0});
    mb_stack_set set = begin(stack);
    if (grow(stack, &stack->nodes, &stack->nodes_capacity, 1, sizeof *stack->nodes) != 0)
        return set;
    stack->nodes[stack->n_nodes++] = (mb_stack_node){.rule = rule};
    add(stack, &set, stack->automaton->rules[rule].start | ENTERED, 0);
    set.ended = stack->automaton->rules[rule].is_nullable;
    complete(stack, &set);
    return set;
}

mb_stack_set mb_stack_at(mb_stack *stack, mb_stack_config config) {
    mb_stack_set set = begin(stack);
    add(stack, &set, config.state, config.node);
    complete(stack, &set);
    return set;
}

mb_stack_set mb_stack_step(mb_stack *stack, mb_stack_set from, uint8_t byte) {
    mb_stack_set set = begin(stack);
    for (uint32_t i = 0; i < from.n; i++) {
        mb_stack_config config = stack->configs[from.first + i];
        uint32_t next = mb_automaton_next(stack->automaton, config.state, byte);
        if (next != MB_NO_STATE)
            add(stack, &set, next, config.node);
    }
    complete(stack, &set);
    return set;
}

mb_stack_set mb_stack_return(mb_stack *stack, uint32_t node) {
    mb_stack_set set = begin(stack);
    end_node(stack, &set, node);
    complete(stack, &set);
    return set;
}
