#include "grammar/mask.h"

#include <string.h>

#include "base/alloc.h"
#include "grammar/shared_trees.h"

enum {
    MAX_KEPT_BYTES = 64 << 20, /* of one grammar; what does not fit is worked out whenever it is needed */
    MAX_PASSES = 4,    /* trees are made beforehand as long as that is so many passes over all tokens */
    FEW_TOKENS = 2048, /* a state that allows no more keeps their ids instead of bits */
};

/* An escape that is a node of the class tree; else it is one of the tokens' tree. */
#define CLASS_NODE (1u << 31)

/* Of one state of the automaton. */
struct mb_mask_entry {
    mb_class_tree *tree; /* of its rule; a reference of the entry's */
    uint32_t n_tokens, n_escapes;
    int is_dense;
    size_t n_bytes;
    /* dense: bits [n_words]; else ids [n_tokens]. Then the escapes [n_escapes]: nodes at which the rule may
     * end and others may read on. */
    uint32_t words[];
};

/* The configurations after the bytes down to a node of the tree. One alone, which is most frequent, is
 * looked up without its set. */
typedef struct mb_mask_level {
    const uint32_t *row;     /* the one configuration's transitions; NULL: there are several, or none */
    const uint8_t *class_of; /* of a byte, in its rule */
    uint32_t node;           /* its node */
    uint32_t mark;           /* the level whose mark counts here: nothing was made since */
    mb_stack_set set;        /* not kept where row is not NULL */
    mb_stack_mark after;     /* what the stack held with the set */
} mb_mask_level;

/* A state within a rule that neither may end here nor calls. */
static int is_inner(const mb_automaton *a, uint32_t state) {
    return state != MB_NO_STATE && !a->states[state].is_final && a->states[state].n_calls == 0;
}

/* ---- Life ------------------------------------------------------------------------------------------- */

static void close_entry(mb_mask_entry *entry) {
    if (entry)
        mb_class_tree_close(entry->tree);
    mb_free(entry);
}

/* Those of the rules that have states: of countdowns one has the states of all. */
static mb_status make_trees(mb_mask_cache *cache) {
    const mb_automaton *a = cache->automaton;
    mb_class_builder *builder = NULL;
    mb_status status = MB_OK;
    size_t n_left = (size_t)MAX_PASSES * cache->trie->n_nodes;
    for (uint32_t r = 0; r < a->n_rules && status == MB_OK && n_left > 0; r++) {
        if (a->rules[r].n_states == 0)
            continue;
        mb_class_tree *tree = mb_shared_trees_get(cache->trie, a, r, cache->is_followed[r], &builder);
        if (tree) {
            n_left -= tree->n_seen < n_left ? tree->n_seen : n_left;
            atomic_fetch_add(&cache->n_bytes, mb_class_tree_bytes(tree));
            atomic_store(&cache->trees[r], tree);
        } else {
            status = MB_ERR_MEMORY;
        }
    }
    mb_class_builder_close(builder);
    return status;
}

/* A rule is followed when a caller goes on after it, or ends there and is followed itself. */
static void find_followed(const mb_automaton *a, uint8_t *is_followed) {
    int changed = 1;
    memset(is_followed, 0, a->n_rules);
    while (changed) {
        changed = 0;
        for (size_t i = 0; i < a->n_states; i++) {
            const mb_automaton_state *s = &a->states[i];
            for (uint32_t k = 0; k < s->n_calls; k++) {
                const mb_call *call = &a->calls[s->first_call + k];
                /* The rule that its states belong to: countdowns share theirs. */
                uint32_t rule = a->states[a->rules[call->rule].start].rule;
                if (!is_followed[rule] && (!a->states[call->back].is_end || is_followed[s->rule]))
                    is_followed[rule] = changed = 1;
            }
        }
    }
}

mb_status mb_mask_cache_init(mb_mask_cache *cache, const mb_automaton *automaton, const mb_token_trie *trie) {
    *cache = (mb_mask_cache){.automaton = automaton, .trie = trie};
    cache->trees = mb_malloc_array(automaton->n_rules, sizeof *cache->trees);
    for (size_t i = 0; cache->trees && i < automaton->n_rules; i++)
        atomic_init(&cache->trees[i], NULL);
    cache->entries = mb_malloc_array(automaton->n_states, sizeof *cache->entries);
    for (size_t i = 0; cache->entries && i < automaton->n_states; i++)
        atomic_init(&cache->entries[i], NULL);
    cache->is_followed = mb_malloc(automaton->n_rules);
    mb_status status = MB_OK;
    if (!cache->trees || !cache->entries || !cache->is_followed)
        status = mb_fail(MB_ERR_MEMORY, "no memory for the masks of a grammar with %zu states",
                         automaton->n_states);
    if (status == MB_OK) {
        find_followed(automaton, cache->is_followed);
        status = make_trees(cache);
    }
    if (status != MB_OK)
        mb_mask_cache_free(cache);
    return status;
}

void mb_mask_cache_free(mb_mask_cache *cache) {
    for (size_t i = 0; cache->trees && i < cache->automaton->n_rules; i++)
        mb_class_tree_close(atomic_load(&cache->trees[i]));
    for (size_t i = 0; cache->entries && i < cache->automaton->n_states; i++)
        close_entry(atomic_load(&cache->entries[i]));
    mb_free(cache->is_followed);
    mb_free(cache->trees);
    mb_free(cache->entries);
    *cache = (mb_mask_cache){0};
}

size_t mb_mask_cache_bytes(const mb_mask_cache *cache) {
    return atomic_load(&((mb_mask_cache *)cache)->n_bytes);
}

void mb_mask_work_free(mb_mask_work *work) {
    mb_stack_free(&work->local);
    mb_free(work->levels);
    mb_class_walk_free(&work->class_walk);
    mb_free(work->bits);
    mb_free(work->escapes);
    *work = (mb_mask_work){0};
}

static mb_status prepare(mb_mask_work *work, const mb_mask_cache *cache) {
    if (!work->levels)
        work->levels = mb_malloc_array(MB_TRIE_MAX_DEPTH + 1, sizeof *work->levels);
    if (!work->bits)
        work->bits = mb_malloc_array(cache->trie->n_words, sizeof *work->bits);
    if (!work->levels || !work->bits)
        return mb_fail(MB_ERR_MEMORY, "no memory to work out a mask");
    work->local.automaton = cache->automaton;
    return MB_OK;
}

/* ---- Walks ------------------------------------------------------------------------------------------ */

typedef struct walk {
    const mb_mask_cache *cache;
    mb_mask_work *work;
    mb_stack *stack;
    uint32_t *bits;
    int keeps_escapes;
} walk;

static void point_at(const mb_automaton *a, mb_mask_level *level, uint32_t state, uint32_t node) {
    const mb_automaton_state *s = &a->states[state];
    level->row = a->next + s->row;
    level->class_of = a->rules[s->rule].class_of;
    level->node = node;
}

static void set_level(const walk *w, uint32_t depth, mb_stack_set set) {
    mb_mask_level *level = &w->work->levels[depth];
    level->set = set;
    level->after = mb_stack_get_mark(w->stack);
    level->mark = depth;
    level->row = NULL;
    if (set.n == 1) {
        mb_stack_config config = w->stack->configs[set.first];
        point_at(w->cache->automaton, level, config.state, config.node);
    }
}

/* What follows the byte at `depth`, in a state that may end or that calls, or with several configurations.
 * Returns 0 when nothing can. */
static int step_set(const walk *w, uint32_t depth, uint8_t byte, uint32_t next) {
    const mb_mask_level *from = &w->work->levels[depth - 1];
    mb_stack_cut(w->stack, w->work->levels[from->mark].after);
    mb_stack_set set = from->row ? mb_stack_at(w->stack, (mb_stack_config){next, from->node})
                                 : mb_stack_step(w->stack, from->set, byte);
    set_level(w, depth, set);
    return set.n > 0 || set.ended;
}

static void keep_escape(walk *w, uint32_t node) {
    mb_mask_work *work = w->work;
    if (mb_grow((void **)&work->escapes, &work->escapes_capacity, work->n_escapes + 1,
                sizeof *work->escapes) == 0)
        work->escapes[work->n_escapes++] = node;
    else if (w->stack->status == MB_OK)
        w->stack->status = mb_fail(MB_ERR_MEMORY, "no memory to work out a mask");
}

/* Over the nodes first to end - 1, which hang at depth base; what is before them has led to `set`. */
static void run(walk *w, uint32_t first, uint32_t end, uint32_t base, mb_stack_set set) {
    const mb_trie_node *nodes = w->cache->trie->nodes;
    const mb_automaton *a = w->cache->automaton;
    mb_mask_level *levels = w->work->levels;
    set_level(w, 0, set);
    for (uint32_t i = first; i < end;) {
        const mb_trie_node *node = &nodes[i];
        uint32_t depth = node->depth - base;
        const mb_mask_level *from = &levels[depth - 1];
        mb_mask_level *to = &levels[depth];
        uint32_t next = from->row ? from->row[from->class_of[node->byte]] : 0;
        if (next == MB_NO_STATE) {
            i = node->end;
            continue;
        }
        if (from->row && is_inner(a, next)) {
            to->row = a->next + a->states[next].row;
            to->class_of = from->class_of;
            to->node = from->node;
            to->mark = from->mark;
        } else if (from->row && from->node == 0 && a->states[next].is_end) {
            *to = (mb_mask_level){.mark = depth, .set = {.ended = 1}};
        } else if (!step_set(w, depth, node->byte, next)) {
            i = node->end;
            continue;
        }
        if (node->token >= 0)
            mb_trie_set_bits(w->cache->trie, node->token, w->bits);
        if (to->mark == depth && to->set.ended && w->keeps_escapes && node->end > i + 1)
            keep_escape(w, i);
        i = to->mark != depth || to->set.n > 0 ? i + 1 : node->end;
    }
    mb_stack_cut(w->stack, levels[0].after);
}

/* The bytes that some configuration of the set can read. */
static void find_bytes(const mb_stack *stack, mb_stack_set set, uint8_t is_read[256]) {
    memset(is_read, 0, 256);
    for (uint32_t i = 0; i < set.n; i++)
        for (int byte = 0; byte < 256; byte++)
            is_read[byte] |= mb_automaton_next(stack->automaton, stack->configs[set.first + i].state,
                                               (uint8_t)byte) != MB_NO_STATE;
}

/* The tokens that go on from a node of the class tree by reading on from the set, which can read is_read. */
static void run_groups(walk *w, const mb_class_tree *tree, const mb_class_node *from, mb_stack_set set,
                       const uint8_t is_read[256]) {
    const mb_trie_node *nodes = w->cache->trie->nodes;
    const uint32_t *group = tree->words + from->first_group;
    for (uint32_t g = 0; g < from->n_groups; g++, group += 2 + group[1])
        for (uint32_t i = 0; is_read[group[0]] && i < group[1]; i++) {
            uint32_t node = group[2 + i];
            run(w, node, nodes[node].end, nodes[node].depth - 1u, set);
        }
}

/* The tokens that go on from a node at which the state's rule has called others. */
static void run_calls(walk *w, const mb_class_tree *tree, const mb_class_node *node, uint32_t state) {
    uint8_t is_read[256];
    mb_stack_mark mark = mb_stack_get_mark(w->stack);
    mb_stack_set set = mb_stack_at(w->stack, (mb_stack_config){state, 0});
    find_bytes(w->stack, set, is_read);
    run_groups(w, tree, node, set, is_read);
    mb_stack_cut(w->stack, mark);
}

/* Over all tokens, from a state of the tree's rule. */
static void run_rule(walk *w, const mb_class_tree *tree, uint32_t start) {
    mb_class_walk *found = &w->work->class_walk;
    if (mb_class_walk_run(found, tree, w->cache->automaton, start, w->bits) != 0) {
        w->stack->status = mb_fail(MB_ERR_MEMORY, "no memory to work out a mask");
        return;
    }
    for (size_t i = 0; i < found->n_ends && w->keeps_escapes; i++)
        keep_escape(w, found->ends[i] | CLASS_NODE);
    for (size_t i = 0; i < found->n_calls; i++)
        run_calls(w, tree, &tree->nodes[found->calls[i].node], found->calls[i].state);
}

/* ---- Entries ---------------------------------------------------------------------------------------- */

/* Written out, because the plain x86-64 that we compile for has no instruction for it. */
static uint32_t count_bits(const uint32_t *bits, size_t n_words) {
    uint32_t n = 0;
    for (size_t i = 0; i < n_words; i++) {
        uint32_t x = bits[i] - (bits[i] >> 1 & 0x55555555u);
        x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
        x = (x + (x >> 4)) & 0x0f0f0f0fu;
        n += (x * 0x01010101u) >> 24;
    }
    return n;
}

static void write_ids(const uint32_t *bits, size_t n_words, uint32_t *ids) {
    for (size_t i = 0; i < n_words; i++)
        for (uint32_t word = bits[i]; word; word &= word - 1)
            *ids++ = (uint32_t)(32 * i) + (uint32_t)__builtin_ctz(word);
}

static mb_mask_entry *new_entry(const mb_mask_cache *cache, const mb_mask_work *work, mb_class_tree *tree) {
    size_t n_words = cache->trie->n_words;
    uint32_t n_tokens = count_bits(work->bits, n_words);
    int is_dense = n_tokens > FEW_TOKENS || n_tokens > n_words;
    size_t n_first = is_dense ? n_words : n_tokens;
    size_t n_bytes = sizeof(mb_mask_entry) + (n_first + work->n_escapes) * sizeof(uint32_t);
    mb_mask_entry *entry = mb_malloc(n_bytes);
    if (!entry) {
        mb_fail(MB_ERR_MEMORY, "no memory for a mask");
        return NULL;
    }
    *entry = (mb_mask_entry){.tree = tree,
                             .n_tokens = n_tokens,
                             .n_escapes = (uint32_t)work->n_escapes,
                             .is_dense = is_dense,
                             .n_bytes = n_bytes};
    if (is_dense)
        memcpy(entry->words, work->bits, n_words * sizeof *work->bits);
    else
        write_ids(work->bits, n_words, entry->words);
    if (work->n_escapes > 0)
        memcpy(entry->words + n_first, work->escapes, work->n_escapes * sizeof *work->escapes);
    return entry;
}

/* The rule's tree, made now if there is none, with a reference for the caller. *is_kept: the cache has it, too.
 * NULL: the sentence is recorded. */
static mb_class_tree *tree_of(mb_mask_cache *cache, uint32_t rule, int *is_kept) {
    mb_class_tree *tree = atomic_load_explicit(&cache->trees[rule], memory_order_acquire), *kept = NULL;
    *is_kept = 1;
    if (tree) {
        mb_class_tree_hold(tree);
        return tree;
    }
    mb_class_builder *builder = NULL;
    tree = mb_shared_trees_get(cache->trie, cache->automaton, rule, cache->is_followed[rule], &builder);
    mb_class_builder_close(builder);
    if (!tree)
        return NULL;
    size_t n_bytes = mb_class_tree_bytes(tree);
    if (atomic_fetch_add(&cache->n_bytes, n_bytes) + n_bytes <= MAX_KEPT_BYTES) {
        mb_class_tree_hold(tree);
        if (atomic_compare_exchange_strong(&cache->trees[rule], &kept, tree))
            return tree;
        mb_class_tree_close(tree);
    }
    atomic_fetch_sub(&cache->n_bytes, n_bytes);
    *is_kept = 0;
    return tree;
}

/* The state alone: its node is node 0, of which nothing is known. Without what its calls begin: each called
 * rule is a configuration of its own. */
static mb_mask_entry *work_out(mb_mask_cache *cache, mb_mask_work *work, uint32_t state, int *may_keep) {
    mb_stack *stack = &work->local;
    uint32_t rule = cache->automaton->states[state].rule;
    walk w = {cache, work, stack, work->bits, cache->is_followed[rule]};
    stack->status = MB_OK;
    mb_class_tree *tree = tree_of(cache, rule, may_keep);
    if (!tree)
        return NULL;
    memset(work->bits, 0, cache->trie->n_words * sizeof *work->bits);
    work->n_escapes = 0;
    mb_stack_start(stack, rule); /* makes node 0 */
    stack->n_nodes = stack->n_nodes > 0 ? 1 : 0;
    stack->n_edges = stack->n_configs = 0;
    if (stack->status == MB_OK)
        run_rule(&w, tree, state);
    mb_mask_entry *entry = stack->status == MB_OK ? new_entry(cache, work, tree) : NULL;
    if (!entry)
        mb_class_tree_close(tree);
    return entry;
}

/* Threads that work out the same entry at once: the first one counts. *own: the entry is the caller's to
 * close. NULL: the sentence is recorded. */
static const mb_mask_entry *entry_of(mb_mask_cache *cache, mb_mask_work *work, uint32_t state,
                                     mb_mask_entry **own) {
    mb_mask_entry *entry = atomic_load_explicit(&cache->entries[state], memory_order_acquire), *kept = NULL;
    int may_keep;
    *own = NULL;
    if (entry)
        return entry;
    entry = work_out(cache, work, state, &may_keep);
    if (!entry)
        return NULL;
    size_t n_bytes = entry->n_bytes;
    if (atomic_fetch_add(&cache->n_bytes, n_bytes) + n_bytes <= MAX_KEPT_BYTES && may_keep &&
        atomic_compare_exchange_strong(&cache->entries[state], &kept, entry))
        return entry;
    atomic_fetch_sub(&cache->n_bytes, n_bytes);
    *own = entry;
    return entry;
}

/* ---- Masks ------------------------------------------------------------------------------------------ */

static void add_entry(const mb_mask_cache *cache, const mb_mask_entry *entry, uint32_t *bits) {
    if (entry->is_dense)
        for (size_t i = 0; i < cache->trie->n_words; i++)
            bits[i] |= entry->words[i];
    else
        for (uint32_t i = 0; i < entry->n_tokens; i++)
            mb_set_bit(bits, (int32_t)entry->words[i]);
}

/* The tokens that run beyond the end of the node's rule. */
static void add_escapes(const mb_mask_cache *cache, mb_mask_work *work, mb_stack *stack,
                        const mb_mask_entry *entry, uint32_t node, uint32_t *bits) {
    mb_stack_mark mark = mb_stack_get_mark(stack);
    mb_stack_set set = mb_stack_return(stack, node);
    const mb_trie_node *nodes = cache->trie->nodes;
    const uint32_t *escapes = entry->words + (entry->is_dense ? cache->trie->n_words : entry->n_tokens);
    uint8_t is_read[256];
    walk w = {cache, work, stack, bits, 0};
    find_bytes(stack, set, is_read);
    for (uint32_t e = 0; e < entry->n_escapes && set.n > 0; e++) {
        uint32_t at = escapes[e];
        if (at & CLASS_NODE) {
            run_groups(&w, entry->tree, &entry->tree->nodes[at & ~CLASS_NODE], set, is_read);
            continue;
        }
        for (uint32_t child = at + 1; child < nodes[at].end; child = nodes[child].end)
            if (is_read[nodes[child].byte])
                run(&w, child, nodes[child].end, nodes[at].depth, set);
    }
    mb_stack_cut(stack, mark);
}

mb_status mb_mask_fill(mb_mask_cache *cache, mb_mask_work *work, mb_stack *stack, mb_stack_set set,
                       uint32_t *bits) {
    MB_TRY(prepare(work, cache));
    memset(bits, 0, cache->trie->n_words * sizeof *bits);
    for (uint32_t i = 0; i < set.n; i++) {
        mb_stack_config config = stack->configs[set.first + i];
        mb_mask_entry *own;
        const mb_mask_entry *entry = entry_of(cache, work, config.state, &own);
        if (!entry)
            return work->local.status != MB_OK ? work->local.status : MB_ERR_MEMORY;
        add_entry(cache, entry, bits);
        if (entry->n_escapes > 0 && config.node != 0)
            add_escapes(cache, work, stack, entry, config.node, bits);
        close_entry(own);
    }
    return stack->status;
}
