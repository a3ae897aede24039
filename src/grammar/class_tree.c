#include "grammar/class_tree.h"

#include <string.h>

#include "base/alloc.h"

enum {
    MAX_KINDS = 64,     /* bits of a set */
    MAX_CONTEXTS = 256, /* what comes then uses the root's */
    MAX_DIFFERENT = 8,  /* targets of one state that are compared; more make finer kinds */
    N_BYTES = 256,
};

typedef uint64_t kind_set;

/* States of a rule that tell the same classes of bytes apart. */
typedef struct state_kind {
    uint8_t same_as[N_BYTES];    /* of a class: the first class that leads to the same state */
    uint8_t leads_on[N_BYTES];   /* not to MB_NO_STATE */
    uint8_t is_final, has_calls; /* some token may go on beyond the rule here */
} state_kind;

/* What the states that can have come to a node tell apart. */
typedef struct node_context {
    kind_set kinds;
    uint8_t same_as[N_BYTES], leads_on[N_BYTES]; /* as above */
    int any_leads_on;
    int goes_beyond;       /* other rules may read on */
    int16_t next[N_BYTES]; /* context after a class; -1: not made yet */
} node_context;

/* Of a node of the class tree while it is made. */
typedef struct pending_node {
    uint32_t first_member, n_members; /* its nodes of the tokens' tree */
    uint32_t context;
} pending_node;

/* A node of the tokens' tree, with what is needed of it where it would be far away. */
typedef struct member {
    uint32_t node;
    int32_t token;
    uint8_t is_alike;
    uint8_t byte_class; /* told apart from others by the parent's context */
} member;

struct mb_class_builder {
    const mb_automaton *automaton;
    const mb_token_trie *trie;
    mb_class_tree *tree;
    const mb_automaton_rule *rule;
    int is_followed;
    uint32_t n_kinds, n_contexts;
    state_kind kinds[MAX_KINDS];
    kind_set next_kinds[MAX_KINDS][N_BYTES]; /* that states of a kind go on to */
    node_context contexts[MAX_CONTEXTS];
    uint16_t pairs[N_BYTES][N_BYTES]; /* all 0 between uses */
    pending_node *pending;            /* [tree->n_nodes] */
    size_t pending_capacity;
    member *members, *children; /* [trie->n_nodes]: of all nodes; below one node, as they come */
    size_t n_members, n_children;
    uint8_t *kind_of; /* [n_states of the rule] */
    size_t kind_of_capacity;
};

mb_class_builder *mb_class_builder_open(const mb_automaton *automaton, const mb_token_trie *trie) {
    mb_class_builder *builder = mb_calloc(1, sizeof *builder);
    if (builder) {
        builder->automaton = automaton;
        builder->trie = trie;
        builder->members = mb_malloc_array(trie->n_nodes + 1, sizeof *builder->members);
        builder->children = mb_malloc_array(trie->n_nodes + 1, sizeof *builder->children);
        if (builder->members && builder->children)
            return builder;
    }
    mb_class_builder_close(builder);
    mb_fail(MB_ERR_MEMORY, "no memory to prepare a grammar's masks");
    return NULL;
}

void mb_class_builder_close(mb_class_builder *builder) {
    if (!builder)
        return;
    mb_free(builder->pending);
    mb_free(builder->members);
    mb_free(builder->children);
    mb_free(builder->kind_of);
    mb_free(builder);
}

void mb_class_tree_hold(mb_class_tree *tree) {
    atomic_fetch_add(&tree->references, 1);
}

void mb_class_tree_close(mb_class_tree *tree) {
    if (!tree || atomic_fetch_sub(&tree->references, 1) > 1)
        return;
    mb_free(tree->key);
    mb_free(tree->nodes);
    mb_free(tree->words);
    mb_free(tree);
}

size_t mb_class_tree_bytes(const mb_class_tree *tree) {
    return sizeof *tree + tree->nodes_capacity * sizeof *tree->nodes +
           tree->words_capacity * sizeof *tree->words;
}

/* ---- Kinds ------------------------------------------------------------------------------------------ */

static void describe(const mb_class_builder *b, uint32_t state, state_kind *kind) {
    const mb_automaton_state *s = &b->automaton->states[state];
    const uint32_t *row = b->automaton->next + s->row;
    uint8_t different[MAX_DIFFERENT];
    int n_different = 0;
    kind->is_final = s->is_final;
    kind->has_calls = s->n_calls > 0;
    for (uint32_t c = 0; c < b->rule->n_classes; c++) {
        int i = 0;
        while (i < n_different && row[different[i]] != row[c])
            i++;
        kind->same_as[c] = i < n_different ? different[i] : (uint8_t)c;
        kind->leads_on[c] = row[c] != MB_NO_STATE;
        if (i == n_different && n_different < MAX_DIFFERENT)
            different[n_different++] = (uint8_t)c;
    }
}

static int is_same_kind(const state_kind *x, const state_kind *y, size_t n_classes) {
    return x->is_final == y->is_final && x->has_calls == y->has_calls &&
           memcmp(x->same_as, y->same_as, n_classes) == 0 && memcmp(x->leads_on, y->leads_on, n_classes) == 0;
}

/* The last kind takes all states that would need further ones: it tells everything apart. */
static uint32_t add_kind(mb_class_builder *b, const state_kind *described) {
    size_t n_classes = b->rule->n_classes;
    for (uint32_t k = 0; k < b->n_kinds; k++)
        if (is_same_kind(&b->kinds[k], described, n_classes))
            return k;
    if (b->n_kinds < MAX_KINDS - 1) {
        b->kinds[b->n_kinds] = *described;
        return b->n_kinds++;
    }
    state_kind *last = &b->kinds[MAX_KINDS - 1];
    b->n_kinds = MAX_KINDS;
    last->is_final = last->has_calls = 1;
    for (size_t c = 0; c < n_classes; c++) {
        last->same_as[c] = (uint8_t)c;
        last->leads_on[c] = 1;
    }
    return MAX_KINDS - 1;
}

static int find_kinds(mb_class_builder *b) {
    const mb_automaton *a = b->automaton;
    uint32_t first = b->rule->first_state, n = b->rule->n_states;
    if (mb_grow((void **)&b->kind_of, &b->kind_of_capacity, n, 1) != 0)
        return -1;
    memset(b->next_kinds, 0, b->n_kinds * sizeof *b->next_kinds);
    b->n_kinds = 0;
    for (uint32_t i = 0; i < n; i++) {
        state_kind described;
        describe(b, first + i, &described);
        b->kind_of[i] = (uint8_t)add_kind(b, &described);
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t *row = a->next + a->states[first + i].row;
        for (uint32_t c = 0; c < b->rule->n_classes; c++)
            if (row[c] != MB_NO_STATE)
                b->next_kinds[b->kind_of[i]][c] |= (kind_set)1 << b->kind_of[row[c] - first];
    }
    return 0;
}

/* ---- Contexts --------------------------------------------------------------------------------------- */

/* Classes that were alike stay so if this kind has them alike, too. */
static void refine(mb_class_builder *b, node_context *context, const state_kind *kind) {
    uint32_t n = b->rule->n_classes;
    uint8_t before[N_BYTES];
    memcpy(before, context->same_as, n);
    for (uint32_t c = 0; c < n; c++) {
        uint16_t *first = &b->pairs[before[c]][kind->same_as[c]];
        if (*first == 0)
            *first = (uint16_t)(c + 1);
        context->same_as[c] = (uint8_t)(*first - 1);
        context->leads_on[c] |= kind->leads_on[c];
        context->any_leads_on |= kind->leads_on[c];
    }
    for (uint32_t c = 0; c < n; c++)
        b->pairs[before[c]][kind->same_as[c]] = 0;
}

static uint32_t context_of(mb_class_builder *b, kind_set kinds) {
    for (uint32_t i = 0; i < b->n_contexts; i++)
        if (b->contexts[i].kinds == kinds)
            return i;
    if (b->n_contexts == MAX_CONTEXTS)
        return 0;
    node_context *made = &b->contexts[b->n_contexts];
    memset(made, 0, sizeof *made);
    memset(made->next, 0xff, sizeof made->next);
    made->kinds = kinds;
    for (uint32_t k = 0; k < b->n_kinds; k++)
        if (kinds >> k & 1) {
            refine(b, made, &b->kinds[k]);
            made->goes_beyond |= (b->kinds[k].is_final && b->is_followed) || b->kinds[k].has_calls;
        }
    return b->n_contexts++;
}

static uint32_t context_after(mb_class_builder *b, uint32_t from, uint8_t class) {
    node_context *context = &b->contexts[from];
    if (context->next[class] < 0) {
        kind_set kinds = 0;
        for (uint32_t k = 0; k < b->n_kinds; k++)
            if (context->kinds >> k & 1)
                kinds |= b->next_kinds[k][class];
        context->next[class] = (int16_t)context_of(b, kinds);
    }
    return (uint32_t)context->next[class];
}

/* ---- Nodes ------------------------------------------------------------------------------------------ */

static uint32_t *add_words(mb_class_tree *tree, size_t n) {
    if (tree->n_words + n > tree->words_capacity &&
        mb_grow((void **)&tree->words, &tree->words_capacity, tree->n_words + n, sizeof *tree->words) != 0)
        return NULL;
    tree->n_words += n;
    return tree->words + tree->n_words - n;
}

/* So many bits take longer to set than all words. */
static int make_dense(const mb_class_builder *b, mb_class_node *node) {
    mb_class_tree *tree = b->tree;
    size_t n_words = b->trie->n_words, n = node->n_tokens;
    uint32_t *bits = add_words(tree, n_words);
    if (!bits)
        return -1;
    const uint32_t *ids = tree->words + node->first_token;
    memset(bits, 0, n_words * sizeof *bits);
    for (size_t i = 0; i < n; i++)
        mb_set_bit(bits, (int32_t)ids[i]);
    memmove(tree->words + node->first_token, bits, n_words * sizeof *bits);
    tree->n_words -= n;
    node->is_dense = 1;
    return 0;
}

static int add_tokens(const mb_class_builder *b, mb_class_node *node, const member *members, uint32_t n) {
    const mb_token_trie *trie = b->trie;
    mb_class_tree *tree = b->tree;
    node->first_token = (uint32_t)tree->n_words;
    for (uint32_t i = 0; i < n; i++) {
        for (int32_t id = members[i].token; id >= 0; id = members[i].is_alike ? trie->next_alike[id] : -1) {
            uint32_t *word = add_words(tree, 1);
            if (!word)
                return -1;
            *word = (uint32_t)id;
            node->n_tokens++;
        }
    }
    return node->n_tokens > trie->n_words / 8 ? make_dense(b, node) : 0;
}

/* The nodes below the members, in groups by their byte. */
static int add_groups(const mb_class_builder *b, mb_class_node *node, const member *members, uint32_t n) {
    const mb_trie_node *nodes = b->trie->nodes;
    uint32_t counts[N_BYTES] = {0}, firsts[N_BYTES], n_words = 0, at = 0;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = members[i].node + 1; k < nodes[members[i].node].end; k = nodes[k].end)
            counts[nodes[k].byte]++;
    for (int byte = 0; byte < N_BYTES; byte++)
        n_words += counts[byte] ? 2 + counts[byte] : 0;
    node->first_group = (uint32_t)b->tree->n_words;
    if (n_words == 0)
        return 0;
    uint32_t *words = add_words(b->tree, n_words);
    if (!words)
        return -1;
    for (uint32_t byte = 0; byte < N_BYTES; byte++) {
        if (counts[byte] == 0)
            continue;
        words[at] = byte;
        words[at + 1] = counts[byte];
        firsts[byte] = at + 2;
        at += 2 + counts[byte];
        node->n_groups++;
    }
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = members[i].node + 1; k < nodes[members[i].node].end; k = nodes[k].end)
            words[firsts[nodes[k].byte]++] = k;
    return 0;
}

static int add_node(mb_class_builder *b, uint32_t context, uint8_t class, uint32_t first, uint32_t n) {
    mb_class_tree *tree = b->tree;
    if (mb_grow((void **)&tree->nodes, &tree->nodes_capacity, tree->n_nodes + 1, sizeof *tree->nodes) != 0 ||
        mb_grow((void **)&b->pending, &b->pending_capacity, tree->n_nodes + 1, sizeof *b->pending) != 0)
        return -1;
    mb_class_node *node = &tree->nodes[tree->n_nodes];
    *node = (mb_class_node){.byte_class = class};
    b->pending[tree->n_nodes++] = (pending_node){first, n, context};
    if (add_tokens(b, node, b->members + first, n) != 0)
        return -1;
    return b->contexts[context].goes_beyond ? add_groups(b, node, b->members + first, n) : 0;
}

/* Lists those of the nodes first, end of first, ... that some state can read, and their classes. */
static void list_children(mb_class_builder *b, const node_context *context, uint32_t first, uint32_t end,
                          uint32_t counts[N_BYTES]) {
    const mb_trie_node *nodes = b->trie->nodes;
    for (uint32_t i = first; i < end; i = nodes[i].end) {
        uint8_t class = b->rule->class_of[nodes[i].byte];
        b->tree->n_seen++;
        if (context->leads_on[class]) {
            class = context->same_as[class];
            b->children[b->n_children++] = (member){i, nodes[i].token, nodes[i].is_alike, class};
            counts[class]++;
        }
    }
}

/* Makes the nodes below a node from its list of children. */
static int add_children(mb_class_builder *b, uint32_t at, uint32_t context, uint32_t counts[N_BYTES]) {
    uint32_t firsts[N_BYTES], first = (uint32_t)b->n_members;
    for (uint32_t c = 0; c < b->rule->n_classes; c++) {
        firsts[c] = first;
        first += counts[c];
    }
    for (size_t i = 0; i < b->n_children; i++)
        b->members[firsts[b->children[i].byte_class]++] = b->children[i];
    b->n_members += b->n_children;
    b->tree->nodes[at].first_child = (uint32_t)b->tree->n_nodes;
    for (uint32_t c = 0; c < b->rule->n_classes; c++) {
        if (counts[c] == 0)
            continue;
        uint32_t next = context_after(b, context, (uint8_t)c);
        if (add_node(b, next, (uint8_t)c, firsts[c] - counts[c], counts[c]) != 0)
            return -1;
        b->tree->nodes[at].n_children++;
    }
    return 0;
}

static int expand(mb_class_builder *b, uint32_t at) {
    const mb_trie_node *nodes = b->trie->nodes;
    const pending_node from = b->pending[at];
    const node_context *context = &b->contexts[from.context];
    uint32_t counts[N_BYTES] = {0};
    b->n_children = 0;
    if (!context->any_leads_on)
        return 0;
    if (at == 0)
        list_children(b, context, 0, b->trie->n_nodes, counts);
    for (uint32_t i = 0; i < from.n_members; i++) {
        uint32_t node = b->members[from.first_member + i].node;
        list_children(b, context, node + 1, nodes[node].end, counts);
    }
    return b->n_children > 0 ? add_children(b, at, from.context, counts) : 0;
}

static int build(mb_class_builder *b) {
    if (find_kinds(b) != 0)
        return -1;
    kind_set all = b->n_kinds == MAX_KINDS ? ~(kind_set)0 : ((kind_set)1 << b->n_kinds) - 1;
    b->n_contexts = 0;
    b->n_members = 0;
    if (add_node(b, context_of(b, all), 0, 0, 0) != 0)
        return -1;
    for (uint32_t i = 0; i < b->tree->n_nodes; i++)
        if (expand(b, i) != 0)
            return -1;
    return 0;
}

mb_class_tree *mb_class_tree_build(mb_class_builder *builder, uint32_t rule, int is_followed) {
    mb_class_tree *tree = mb_calloc(1, sizeof *tree);
    builder->tree = tree;
    builder->rule = &builder->automaton->rules[rule];
    builder->is_followed = is_followed;
    if (tree)
        atomic_init(&tree->references, 1);
    if (tree && build(builder) == 0)
        return tree;
    mb_class_tree_close(tree);
    mb_fail(MB_ERR_MEMORY, "no memory to prepare a grammar's masks");
    return NULL;
}
