#include "grammar/class_walk.h"

#include "base/alloc.h"

/* What to do with a node's tokens. */
enum {
    UNREACHED, /* nothing, also with those below */
    OWN,       /* its own are put into the mask; then the nodes below */
    ALL,       /* those below, too */
    REST,      /* as ALL; then what is not reached is taken out */
    CALLS,     /* only its own */
};

/* The node on the way to the one that is looked at. */
typedef struct mb_class_level {
    const uint32_t *row; /* the state's transitions */
    uint32_t node;
    uint32_t cost;    /* of putting in what is reached here and below */
    uint32_t missing; /* cost of what is not */
} mb_class_level;

void mb_class_walk_free(mb_class_walk *walk) {
    mb_free(walk->levels);
    mb_free(walk->how);
    mb_free(walk->calls);
    mb_free(walk->ends);
    *walk = (mb_class_walk){0};
}

static int keep_call(mb_class_walk *walk, uint32_t node, uint32_t state) {
    if (mb_grow((void **)&walk->calls, &walk->calls_capacity, walk->n_calls + 1, sizeof *walk->calls) != 0)
        return -1;
    walk->calls[walk->n_calls++] = (mb_class_place){node, state};
    return 0;
}

static int keep_end(mb_class_walk *walk, uint32_t node) {
    if (mb_grow((void **)&walk->ends, &walk->ends_capacity, walk->n_ends + 1, sizeof *walk->ends) != 0)
        return -1;
    walk->ends[walk->n_ends++] = node;
    return 0;
}

/* All below the level's node has been looked at. */
static void leave(mb_class_walk *walk, const mb_class_tree *tree, mb_class_level *level) {
    uint32_t cost = tree->nodes[level->node].all_cost + level->missing;
    int as_a_whole = cost <= level->cost;
    walk->how[level->node] = !as_a_whole ? OWN : level->missing > 0 ? REST : ALL;
    level[-1].cost += as_a_whole ? cost : level->cost;
    level[-1].missing += level->missing;
}

/* Finds which nodes are reached, and what is cheapest for each. */
static int reach(mb_class_walk *walk, const mb_class_tree *tree, const mb_automaton *a, uint32_t state) {
    mb_class_level *top = walk->levels;
    *top = (mb_class_level){.row = a->next + a->states[state].row};
    for (uint32_t i = 1; i < tree->n_nodes;) {
        const mb_class_node *node = &tree->nodes[i];
        for (; top - walk->levels >= node->depth; top--)
            leave(walk, tree, top);
        uint32_t next = top->row[node->byte_class];
        if (next == MB_NO_STATE) {
            walk->how[i] = UNREACHED;
            top->missing += node->all_cost;
            i = node->end;
            continue;
        }
        const mb_automaton_state *s = &a->states[next];
        if (s->is_final && node->n_groups > 0 && keep_end(walk, i) != 0)
            return -1;
        if (s->n_calls > 0) {
            walk->how[i] = CALLS;
            top->cost += node->own_cost;
            top->missing += node->all_cost;
            if (keep_call(walk, i, next) != 0)
                return -1;
            i = node->end;
            continue;
        }
        *++top = (mb_class_level){.row = a->next + s->row, .node = i, .cost = node->own_cost};
        i++;
    }
    for (; top > walk->levels; top--)
        leave(walk, tree, top);
    return 0;
}

/* Of a node that other rules are called at, all below is missing: the caller looks at it. */
static void take_out(const mb_class_walk *walk, const mb_class_tree *tree, uint32_t node, uint32_t *bits) {
    for (uint32_t i = node + 1, end = tree->nodes[node].end; i < end;) {
        if (walk->how[i] == UNREACHED || walk->how[i] == CALLS) {
            mb_class_tree_put_all(tree, i, 0, bits);
            if (walk->how[i] == CALLS)
                mb_class_tree_put_own(tree, i, 1, bits);
            i = tree->nodes[i].end;
        } else {
            i++;
        }
    }
}

static void put(const mb_class_walk *walk, const mb_class_tree *tree, uint32_t *bits) {
    for (uint32_t i = 1; i < tree->n_nodes;) {
        uint8_t how = walk->how[i];
        if (how == ALL || how == REST)
            mb_class_tree_put_all(tree, i, 1, bits);
        else if (how != UNREACHED)
            mb_class_tree_put_own(tree, i, 1, bits);
        if (how == REST)
            take_out(walk, tree, i, bits);
        i = how == OWN ? i + 1 : tree->nodes[i].end;
    }
}

int mb_class_walk_run(mb_class_walk *walk, const mb_class_tree *tree, const mb_automaton *automaton,
                      uint32_t state, uint32_t *bits) {
    if (!walk->levels)
        walk->levels = mb_malloc_array(MB_TRIE_MAX_DEPTH + 1, sizeof *walk->levels);
    if (!walk->levels ||
        mb_grow((void **)&walk->how, &walk->how_capacity, tree->n_nodes, sizeof *walk->how) != 0)
        return -1;
    walk->n_calls = walk->n_ends = 0;
    if (reach(walk, tree, automaton, state) != 0)
        return -1;
    put(walk, tree, bits);
    return 0;
}
