#include "grammar/mask.h"

#include <string.h>

#include "base/alloc.h"

enum {
    MAX_KEPT_BYTES = 64 << 20, /* of one grammar's entries; what does not fit is worked out in every step */
    FEW_TOKENS = 2048,         /* a state that allows no more keeps their ids instead of bits */
};

/* Of one state of the automaton. */
struct mb_mask_entry {
    const mb_trie_part *part; /* that the escapes are nodes of */
    uint32_t n_tokens, n_escapes;
    int is_dense;
    size_t n_bytes;
    /* dense: bits [n_words]; else ids [n_tokens]. Then the escapes [n_escapes]: nodes of the tree at which
     * the rule may end, and which have nodes below. */
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

/* ---- Plain characters ------------------------------------------------------------------------------- */

/* The state that all bytes of a range lead to; MB_NO_STATE when there is none or more than one. */
static uint32_t common_next(const mb_automaton *a, uint32_t state, int first, int last) {
    uint32_t next = mb_automaton_next(a, state, (uint8_t)first);
    for (int byte = first + 1; byte <= last && next != MB_NO_STATE; byte++)
        if (mb_automaton_next(a, state, (uint8_t)byte) != next)
            return MB_NO_STATE;
    return next;
}

/* A state within a rule that neither may end here nor calls. */
static int is_inner(const mb_automaton *a, uint32_t state) {
    return state != MB_NO_STATE && !a->states[state].is_final && a->states[state].n_calls == 0;
}

typedef struct lead_range {
    uint8_t first, last;               /* lead bytes */
    uint8_t second_first, second_last; /* what may follow them */
    int n_more;                        /* bytes 80 to bf after the second */
} lead_range;

static const lead_range leads[] = {
    {0xc2, 0xdf, 0x80, 0xbf, 0}, {0xe0, 0xe0, 0xa0, 0xbf, 1}, {0xe1, 0xec, 0x80, 0xbf, 1},
    {0xed, 0xed, 0x80, 0x9f, 1}, {0xee, 0xef, 0x80, 0xbf, 1}, {0xf0, 0xf0, 0x90, 0xbf, 2},
    {0xf1, 0xf3, 0x80, 0xbf, 2}, {0xf4, 0xf4, 0x80, 0x8f, 2},
};
enum { N_LEADS = sizeof leads / sizeof *leads };

static uint32_t find_plain_next(const mb_automaton *a, uint32_t state) {
    if (a->states[state].n_calls > 0)
        return MB_NO_STATE;
    uint32_t next = common_next(a, state, ' ', ' ');
    if (!is_inner(a, next) || common_next(a, state, ' ', '!') != next ||
        common_next(a, state, '#', '[') != next || common_next(a, state, ']', 0x7f) != next)
        return MB_NO_STATE;
    for (int i = 0; i < N_LEADS; i++)
        for (int lead = leads[i].first; lead <= leads[i].last; lead++) {
            uint32_t at = mb_automaton_next(a, state, (uint8_t)lead);
            if (is_inner(a, at))
                at = common_next(a, at, leads[i].second_first, leads[i].second_last);
            for (int k = 0; k < leads[i].n_more && is_inner(a, at); k++)
                at = common_next(a, at, 0x80, 0xbf);
            if (at != next)
                return MB_NO_STATE;
        }
    return next;
}

static int find_takes_plain(const mb_automaton *a, uint32_t state) {
    if (a->states[state].n_calls > 0 || a->states[state].is_final)
        return 1;
    for (int byte = ' '; byte < 0xf5; byte++)
        if (byte != '"' && byte != '\\' && (byte < 0x80 || byte >= 0xc2) &&
            mb_automaton_next(a, state, (uint8_t)byte) != MB_NO_STATE)
            return 1;
    return 0;
}

/* The bits of the plain tokens when these can be told without a walk: any characters may come, or any up to a
 * number and then none. Else NULL. */
static const uint32_t *plain_bits(const mb_mask_cache *cache, uint32_t state) {
    uint32_t at = state;
    for (int n = 0; n < MB_PLAIN_LENGTHS; n++) {
        uint32_t next = cache->plain_next[at];
        if (next == at)
            return cache->trie->plain;
        if (next == MB_NO_STATE)
            return n > 0 && !cache->takes_plain[at] ? cache->trie->plain_of[n] : NULL;
        at = next;
    }
    return cache->trie->plain;
}

/* ---- Life ------------------------------------------------------------------------------------------- */

mb_status mb_mask_cache_init(mb_mask_cache *cache, const mb_automaton *automaton, const mb_token_trie *trie) {
    size_t n = automaton->n_states;
    *cache = (mb_mask_cache){.automaton = automaton, .trie = trie};
    cache->plain_next = mb_malloc_array(n, sizeof *cache->plain_next);
    cache->takes_plain = mb_malloc_array(n, 1);
    cache->entries = mb_malloc_array(n, sizeof *cache->entries);
    if (!cache->plain_next || !cache->takes_plain || !cache->entries) {
        mb_free(cache->entries);
        cache->entries = NULL;
        mb_mask_cache_free(cache);
        return mb_fail(MB_ERR_MEMORY, "no memory for the masks of a grammar with %zu states", n);
    }
    for (uint32_t i = 0; i < n; i++) {
        atomic_init(&cache->entries[i], NULL);
        cache->plain_next[i] = find_plain_next(automaton, i);
        cache->takes_plain[i] = (uint8_t)find_takes_plain(automaton, i);
    }
    return MB_OK;
}

void mb_mask_cache_free(mb_mask_cache *cache) {
    for (size_t i = 0; cache->entries && i < cache->automaton->n_states; i++)
        mb_free(atomic_load(&cache->entries[i]));
    mb_free(cache->entries);
    mb_free(cache->takes_plain);
    mb_free(cache->plain_next);
    *cache = (mb_mask_cache){0};
}

size_t mb_mask_cache_bytes(const mb_mask_cache *cache) {
    return atomic_load(&((mb_mask_cache *)cache)->n_bytes);
}

void mb_mask_work_free(mb_mask_work *work) {
    mb_stack_free(&work->local);
    mb_free(work->levels);
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
    const mb_trie_part *part;
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
    const mb_trie_node *nodes = w->part->nodes;
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
}

/* ---- Entries ---------------------------------------------------------------------------------------- */

static uint32_t count_bits(const uint32_t *bits, size_t n_words) {
    uint32_t n = 0;
    for (size_t i = 0; i < n_words; i++)
        n += (uint32_t)__builtin_popcount(bits[i]);
    return n;
}

static void write_ids(const uint32_t *bits, size_t n_words, uint32_t *ids) {
    for (size_t i = 0; i < n_words; i++)
        for (uint32_t word = bits[i]; word; word &= word - 1)
            *ids++ = (uint32_t)(32 * i) + (uint32_t)__builtin_ctz(word);
}

static mb_mask_entry *new_entry(const mb_mask_cache *cache, const mb_mask_work *work,
                                const mb_trie_part *part) {
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
    *entry = (mb_mask_entry){.part = part,
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

/* The state alone: its node is node 0, of which nothing is known. */
static mb_mask_entry *work_out(const mb_mask_cache *cache, mb_mask_work *work, uint32_t state) {
    const mb_token_trie *trie = cache->trie;
    mb_stack *stack = &work->local;
    const uint32_t *plain = plain_bits(cache, state);
    const mb_trie_part *part = plain ? &trie->other : &trie->all;
    walk w = {cache, part, work, stack, work->bits, 1};
    if (plain)
        memcpy(work->bits, plain, trie->n_words * sizeof *plain);
    else
        memset(work->bits, 0, trie->n_words * sizeof *work->bits);
    work->n_escapes = 0;
    stack->status = MB_OK;
    mb_stack_start(stack, cache->automaton->states[state].rule); /* makes node 0 */
    stack->n_nodes = stack->n_nodes > 0 ? 1 : 0;
    stack->n_edges = stack->n_configs = 0;
    if (stack->status == MB_OK) {
        /* As one set without what its calls begin: each called rule is a configuration of its own. */
        mb_stack_set set = {.n = 1};
        if (mb_grow((void **)&stack->configs, &stack->configs_capacity, 1, sizeof *stack->configs) == 0) {
            stack->configs[stack->n_configs++] = (mb_stack_config){state, 0};
            run(&w, 0, part->n_nodes, 0, set);
        }
    }
    return stack->status == MB_OK ? new_entry(cache, work, part) : NULL;
}

/* Threads that work out the same entry at once: the first one counts. *own: the entry is the caller's to
 * free. NULL: the sentence is recorded. */
static const mb_mask_entry *entry_of(mb_mask_cache *cache, mb_mask_work *work, uint32_t state,
                                     mb_mask_entry **own) {
    mb_mask_entry *entry = atomic_load_explicit(&cache->entries[state], memory_order_acquire), *kept = NULL;
    *own = NULL;
    if (entry)
        return entry;
    entry = work_out(cache, work, state);
    if (!entry)
        return NULL;
    size_t n_bytes = entry->n_bytes;
    if (atomic_fetch_add(&cache->n_bytes, n_bytes) + n_bytes <= MAX_KEPT_BYTES &&
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

/* The bytes that some configuration of the set can read. */
static void find_bytes(const mb_stack *stack, mb_stack_set set, uint8_t is_read[256]) {
    memset(is_read, 0, 256);
    for (uint32_t i = 0; i < set.n; i++)
        for (int byte = 0; byte < 256; byte++)
            is_read[byte] |= mb_automaton_next(stack->automaton, stack->configs[set.first + i].state,
                                               (uint8_t)byte) != MB_NO_STATE;
}

/* The tokens that run beyond the end of the node's rule. */
static void add_escapes(const mb_mask_cache *cache, mb_mask_work *work, mb_stack *stack,
                        const mb_mask_entry *entry, uint32_t node, uint32_t *bits) {
    mb_stack_mark mark = mb_stack_get_mark(stack);
    mb_stack_set set = mb_stack_return(stack, node);
    const mb_trie_node *nodes = entry->part->nodes;
    const uint32_t *escapes = entry->words + (entry->is_dense ? cache->trie->n_words : entry->n_tokens);
    uint8_t is_read[256];
    walk w = {cache, entry->part, work, stack, bits, 0};
    find_bytes(stack, set, is_read);
    for (uint32_t e = 0; e < entry->n_escapes && set.n > 0; e++) {
        uint32_t at = escapes[e];
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
        mb_free(own);
    }
    return stack->status;
}
