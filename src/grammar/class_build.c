/* Makes class trees: one pass over the tokens' tree, then the nodes that it found are put in order. */
#include <string.h>

#include "base/alloc.h"
#include "grammar/class_kinds.h"
#include "grammar/class_tree.h"

enum {
    LISTED_PART = 8, /* setting the bits of a list of n_mask_words / 8 tokens takes as long as all words */
    MAX_UNIONS = 4,  /* so many sets of bits make up the set of all tokens below a node, at most */
};

#define NONE UINT32_MAX

/* A node of the class tree, numbered in the order in which they are found. */
typedef struct draft {
    uint32_t parent, first_child, next_sibling; /* NONE */
    uint32_t context;
    uint32_t n_own, n_followers;
    uint32_t recent; /* the child that was found last; NONE */
    uint32_t place;  /* among the tree's nodes */
    uint16_t depth;
    uint8_t byte_class;
} draft;

/* A node of the tokens' tree that belongs to a draft. */
typedef struct member {
    uint32_t draft, node;
} member;

struct mb_class_builder {
    const mb_token_trie *trie;
    mb_class_tree *tree;
    mb_class_kinds kinds;
    draft *drafts;
    size_t n_drafts, drafts_capacity;
    uint32_t *slots; /* [n_slots] of a hash table: drafts by parent and class; NONE */
    size_t n_slots;
    member *ends;      /* [trie->n_nodes] a token ends there */
    member *followers; /* [trie->n_nodes] follows a node of the draft's, where other rules may read on */
    size_t n_ends, n_followers;
    uint32_t *ordered; /* [trie->n_nodes] followers by draft */
    uint32_t *order;   /* [n_drafts] draft of a place; then the next free word of a place's list */
    size_t order_capacity;
};

mb_class_builder *mb_class_builder_open(const mb_automaton *automaton, const mb_token_trie *trie) {
    mb_class_builder *b = mb_calloc(1, sizeof *b);
    if (b) {
        b->trie = trie;
        b->kinds.automaton = automaton;
        b->ends = mb_malloc_array(trie->n_nodes + 1, sizeof *b->ends);
        b->followers = mb_malloc_array(trie->n_nodes + 1, sizeof *b->followers);
        b->ordered = mb_malloc_array(trie->n_nodes + 1, sizeof *b->ordered);
        if (b->ends && b->followers && b->ordered)
            return b;
    }
    mb_class_builder_close(b);
    mb_fail(MB_ERR_MEMORY, "no memory to prepare a grammar's masks");
    return NULL;
}

void mb_class_builder_close(mb_class_builder *b) {
    if (!b)
        return;
    mb_class_kinds_free(&b->kinds);
    mb_free(b->drafts);
    mb_free(b->slots);
    mb_free(b->ends);
    mb_free(b->followers);
    mb_free(b->ordered);
    mb_free(b->order);
    mb_free(b);
}

/* ---- Drafts ----------------------------------------------------------------------------------------- */

static size_t slot_of(const mb_class_builder *b, uint32_t parent, uint8_t byte_class) {
    uint32_t hash = (parent << 8 ^ byte_class) * 0x9e3779b1u;
    return (hash ^ hash >> 15) & (b->n_slots - 1);
}

static int grow_slots(mb_class_builder *b, size_t n_slots) {
    uint32_t *slots = mb_malloc_array(n_slots, sizeof *slots);
    if (!slots)
        return -1;
    memset(slots, 0xff, n_slots * sizeof *slots);
    mb_free(b->slots);
    b->slots = slots;
    b->n_slots = n_slots;
    for (uint32_t i = 1; i < b->n_drafts; i++) {
        size_t slot = slot_of(b, b->drafts[i].parent, b->drafts[i].byte_class);
        while (slots[slot] != NONE)
            slot = (slot + 1) & (n_slots - 1);
        slots[slot] = i;
    }
    return 0;
}

/* A new draft; the caller enters it into the table. NONE: no memory. */
static uint32_t add_draft(mb_class_builder *b, uint32_t parent, uint8_t byte_class, uint32_t context) {
    if (mb_grow((void **)&b->drafts, &b->drafts_capacity, b->n_drafts + 1, sizeof *b->drafts) != 0)
        return NONE;
    uint32_t made = (uint32_t)b->n_drafts++;
    b->drafts[made] = (draft){.parent = parent,
                              .first_child = NONE,
                              .next_sibling = NONE,
                              .recent = NONE,
                              .context = context,
                              .byte_class = byte_class};
    if (parent != NONE) {
        draft *above = &b->drafts[parent];
        b->drafts[made].depth = (uint16_t)(above->depth + 1);
        b->drafts[made].next_sibling = above->first_child;
        above->first_child = made;
    }
    return made;
}

/* The draft that follows `parent` with the class, made if there is none. NONE: no memory. */
static uint32_t look_up(mb_class_builder *b, uint32_t parent, uint8_t byte_class) {
    size_t slot = slot_of(b, parent, byte_class);
    for (; b->slots[slot] != NONE; slot = (slot + 1) & (b->n_slots - 1)) {
        const draft *found = &b->drafts[b->slots[slot]];
        if (found->parent == parent && found->byte_class == byte_class)
            return b->slots[slot];
    }
    uint32_t context = mb_class_context_after(&b->kinds, b->drafts[parent].context, byte_class);
    uint32_t made = add_draft(b, parent, byte_class, context);
    if (made == NONE)
        return NONE;
    b->slots[slot] = made;
    return 2 * b->n_drafts > b->n_slots && grow_slots(b, 2 * b->n_slots) != 0 ? NONE : made;
}

/* As look_up. Neighbours mostly have the same class. */
static uint32_t draft_after(mb_class_builder *b, uint32_t parent, uint8_t byte_class) {
    uint32_t recent = b->drafts[parent].recent;
    if (recent != NONE && b->drafts[recent].byte_class == byte_class)
        return recent;
    uint32_t found = look_up(b, parent, byte_class);
    b->drafts[parent].recent = found;
    return found;
}

static void add_end(mb_class_builder *b, uint32_t at, uint32_t node) {
    const mb_trie_node *n = &b->trie->nodes[node];
    b->ends[b->n_ends++] = (member){at, node};
    for (int32_t id = n->token; id >= 0; id = n->is_alike ? b->trie->next_alike[id] : -1)
        b->drafts[at].n_own++;
}

/* The pass. No state can read what is jumped over. */
static int find_drafts(mb_class_builder *b) {
    const mb_trie_node *nodes = b->trie->nodes;
    const uint8_t *class_of = b->kinds.rule->class_of;
    uint32_t at[MB_TRIE_MAX_DEPTH + 1];
    b->n_drafts = b->n_ends = b->n_followers = 0;
    if (add_draft(b, NONE, 0, 0) == NONE || grow_slots(b, b->n_slots ? b->n_slots : 1024) != 0)
        return -1;
    at[0] = 0;
    for (uint32_t i = 0; i < b->trie->n_nodes;) {
        const mb_trie_node *node = &nodes[i];
        uint32_t parent = at[node->depth - 1];
        const mb_class_context *context = &b->kinds.contexts[b->drafts[parent].context];
        uint8_t byte_class = class_of[node->byte];
        b->tree->n_seen++;
        if (context->goes_beyond && parent != 0) {
            b->followers[b->n_followers++] = (member){parent, i};
            b->drafts[parent].n_followers++;
        }
        if (!context->leads_on[byte_class]) {
            i = node->end;
            continue;
        }
        uint32_t child = draft_after(b, parent, context->same_as[byte_class]);
        if (child == NONE)
            return -1;
        at[node->depth] = child;
        if (node->token >= 0)
            add_end(b, child, i);
        i++;
    }
    return 0;
}

/* ---- Order ------------------------------------------------------------------------------------------ */

/* Copies the drafts to the tree's nodes, those below a node right after the node. */
static int place_nodes(mb_class_builder *b) {
    mb_class_tree *tree = b->tree;
    tree->nodes = mb_malloc_array(b->n_drafts, sizeof *tree->nodes);
    if (!tree->nodes || mb_grow((void **)&b->order, &b->order_capacity, b->n_drafts, sizeof *b->order) != 0)
        return -1;
    for (uint32_t at = 0; at != NONE;) {
        draft *d = &b->drafts[at];
        d->place = (uint32_t)tree->n_nodes;
        b->order[tree->n_nodes] = at;
        tree->nodes[tree->n_nodes++] = (mb_class_node){.depth = d->depth,
                                                       .byte_class = d->byte_class,
                                                       .n_own = d->n_own,
                                                       .n_all = d->n_own,
                                                       .own_bits = MB_NO_BITS,
                                                       .all_bits = MB_NO_BITS};
        uint32_t next = d->first_child;
        for (; next == NONE && at != NONE; at = b->drafts[at].parent) {
            tree->nodes[b->drafts[at].place].end = (uint32_t)tree->n_nodes;
            next = b->drafts[at].next_sibling;
        }
        at = next;
    }
    return 0;
}

static uint32_t *add_words(mb_class_tree *tree, size_t n) {
    if (tree->n_words + n > tree->words_capacity &&
        mb_grow((void **)&tree->words, &tree->words_capacity, tree->n_words + n, sizeof *tree->words) != 0)
        return NULL;
    tree->n_words += n;
    return tree->words + tree->n_words - n;
}

/* No bits are set. */
static int add_bits(mb_class_tree *tree, uint32_t *first) {
    *first = (uint32_t)tree->n_words;
    uint32_t *bits = add_words(tree, tree->n_mask_words);
    if (bits)
        memset(bits, 0, tree->n_mask_words * sizeof *bits);
    return bits ? 0 : -1;
}

/* From the last node to the first, so a node's children are done: which sets have bits. */
static int choose_bits(mb_class_builder *b) {
    mb_class_tree *tree = b->tree;
    uint32_t many = tree->max_listed;
    for (uint32_t i = (uint32_t)tree->n_nodes; i-- > 1;) {
        mb_class_node *n = &tree->nodes[i];
        mb_class_node *parent = &tree->nodes[b->drafts[b->drafts[b->order[i]].parent].place];
        n->own_cost = n->n_own < many ? n->n_own : many;
        n->all_cost += n->own_cost;
        if (n->n_own > many && add_bits(tree, &n->own_bits) != 0)
            return -1;
        if (n->all_cost > MAX_UNIONS * many) {
            if (add_bits(tree, &n->all_bits) != 0)
                return -1;
            n->all_cost = many;
        }
        parent->n_all += n->n_all;
        parent->all_cost += n->all_cost;
    }
    return 0;
}

static int list_tokens(mb_class_builder *b) {
    const mb_token_trie *trie = b->trie;
    mb_class_tree *tree = b->tree;
    size_t n_listed = 0;
    for (uint32_t i = 0; i < tree->n_nodes; i++)
        n_listed += tree->nodes[i].own_bits == MB_NO_BITS ? tree->nodes[i].n_own : 0;
    uint32_t first = (uint32_t)tree->n_words, *free_words = b->order;
    if (n_listed > 0 && !add_words(tree, n_listed))
        return -1;
    for (uint32_t i = 0; i < tree->n_nodes; i++) {
        mb_class_node *n = &tree->nodes[i];
        n->first_token = free_words[i] = first;
        first += n->own_bits == MB_NO_BITS ? n->n_own : 0;
    }
    for (size_t i = 0; i < b->n_ends; i++) {
        const mb_trie_node *end = &trie->nodes[b->ends[i].node];
        uint32_t place = b->drafts[b->ends[i].draft].place, bits = tree->nodes[place].own_bits;
        for (int32_t id = end->token; id >= 0; id = end->is_alike ? trie->next_alike[id] : -1)
            if (bits != MB_NO_BITS)
                mb_set_bit(tree->words + bits, id);
            else
                tree->words[free_words[place]++] = (uint32_t)id;
    }
    return 0;
}

/* From the last node to the first again: each set is made of those below. */
static void fill_bits(mb_class_tree *tree) {
    for (uint32_t i = (uint32_t)tree->n_nodes; i-- > 1;) {
        const mb_class_node *n = &tree->nodes[i];
        if (n->all_bits == MB_NO_BITS)
            continue;
        uint32_t *bits = tree->words + n->all_bits;
        mb_class_tree_put_own(tree, i, 1, bits);
        for (uint32_t child = i + 1; child < n->end; child = tree->nodes[child].end)
            mb_class_tree_put_all(tree, child, 1, bits);
    }
}

/* ---- Groups ----------------------------------------------------------------------------------------- */

static int add_groups(mb_class_builder *b, mb_class_node *node, const uint32_t *followers, uint32_t n) {
    const mb_trie_node *nodes = b->trie->nodes;
    uint32_t counts[256] = {0}, firsts[256], n_words = 0, at = 0;
    for (uint32_t i = 0; i < n; i++)
        counts[nodes[followers[i]].byte]++;
    for (int byte = 0; byte < 256; byte++)
        n_words += counts[byte] ? 2 + counts[byte] : 0;
    node->first_group = (uint32_t)b->tree->n_words;
    uint32_t *words = add_words(b->tree, n_words);
    if (!words)
        return -1;
    for (uint32_t byte = 0; byte < 256; byte++) {
        if (counts[byte] == 0)
            continue;
        words[at] = byte;
        words[at + 1] = counts[byte];
        firsts[byte] = at + 2;
        at += 2 + counts[byte];
        node->n_groups++;
    }
    for (uint32_t i = 0; i < n; i++)
        words[firsts[nodes[followers[i]].byte]++] = followers[i];
    return 0;
}

/* Where other rules may read on: what follows, by draft, then by byte. */
static int group_followers(mb_class_builder *b) {
    uint32_t first = 0;
    for (size_t i = 0; i < b->n_drafts; i++) {
        b->order[i] = first;
        first += b->drafts[i].n_followers;
    }
    for (size_t i = 0; i < b->n_followers; i++)
        b->ordered[b->order[b->followers[i].draft]++] = b->followers[i].node;
    first = 0;
    for (size_t i = 0; i < b->n_drafts; i++) {
        const draft *d = &b->drafts[i];
        if (d->n_followers > 0 &&
            add_groups(b, &b->tree->nodes[d->place], b->ordered + first, d->n_followers) != 0)
            return -1;
        first += d->n_followers;
    }
    return 0;
}

mb_class_tree *mb_class_tree_build(mb_class_builder *b, uint32_t rule, int is_followed) {
    mb_class_tree *tree = b->tree = mb_calloc(1, sizeof *tree);
    if (tree) {
        atomic_init(&tree->references, 1);
        tree->n_mask_words = b->trie->n_words;
        tree->max_listed = (uint32_t)(b->trie->n_words / LISTED_PART);
        if (mb_class_kinds_find(&b->kinds, b->kinds.automaton, rule, is_followed) == 0 &&
            find_drafts(b) == 0 && place_nodes(b) == 0 && choose_bits(b) == 0 && list_tokens(b) == 0 &&
            group_followers(b) == 0) {
            fill_bits(tree);
            return tree;
        }
    }
    mb_class_tree_close(tree);
    mb_fail(MB_ERR_MEMORY, "no memory to prepare a grammar's masks");
    return NULL;
}
