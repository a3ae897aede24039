#include "grammar/shared_trees.h"

#include <pthread.h>
#include <string.h>

#include "base/alloc.h"

enum {
    MAX_KEPT = 16,        /* of about 1 MB each */
    MAX_RULE_STATES = 64, /* rules with more are a single grammar's own */
    WIDE_PART =
        8, /* trees for which less than this part of the tokens was looked at are quickly built again */
};

struct mb_shared_trees {
    pthread_mutex_t lock;
    mb_class_tree *kept[MAX_KEPT];
    size_t n_kept, i_oldest;
};

mb_status mb_shared_trees_open(mb_shared_trees **trees) {
    *trees = mb_calloc(1, sizeof **trees);
    if (*trees && pthread_mutex_init(&(*trees)->lock, NULL) == 0)
        return MB_OK;
    mb_free(*trees);
    *trees = NULL;
    return mb_fail(MB_ERR_MEMORY, "no memory for what a model's grammars share");
}

void mb_shared_trees_close(mb_shared_trees *trees) {
    if (!trees)
        return;
    for (size_t i = 0; i < trees->n_kept; i++)
        mb_class_tree_close(trees->kept[i]);
    pthread_mutex_destroy(&trees->lock);
    mb_free(trees);
}

/* ---- Keys ------------------------------------------------------------------------------------------- */

static size_t key_words(const mb_automaton_rule *rule) {
    return 3 + sizeof rule->class_of / sizeof(uint32_t) + (size_t)rule->n_states * (1 + rule->n_classes);
}

/* All that a tree depends on, wherever in the automaton the rule stands. */
static void write_key(const mb_automaton *a, const mb_automaton_rule *rule, int is_followed, uint32_t *key) {
    *key++ = (uint32_t)is_followed;
    *key++ = rule->n_states;
    *key++ = rule->n_classes;
    memcpy(key, rule->class_of, sizeof rule->class_of);
    key += sizeof rule->class_of / sizeof *key;
    for (uint32_t i = 0; i < rule->n_states; i++) {
        const mb_automaton_state *s = &a->states[rule->first_state + i];
        *key++ = (uint32_t)s->is_final << 1 | (s->n_calls > 0);
        for (uint32_t c = 0; c < rule->n_classes; c++) {
            uint32_t next = a->next[s->row + c];
            *key++ = next == MB_NO_STATE ? MB_NO_STATE : next - rule->first_state;
        }
    }
}

/* With the lock: the kept tree with this key and a reference for the caller; NULL: there is none. */
static mb_class_tree *find(mb_shared_trees *trees, const uint32_t *key, size_t n_words) {
    for (size_t i = 0; i < trees->n_kept; i++) {
        mb_class_tree *tree = trees->kept[i];
        if (tree->n_key_words == n_words && memcmp(tree->key, key, n_words * sizeof *key) == 0) {
            mb_class_tree_hold(tree);
            return tree;
        }
    }
    return NULL;
}

/* With the lock. */
static void keep(mb_shared_trees *trees, mb_class_tree *tree) {
    mb_class_tree_hold(tree);
    if (trees->n_kept < MAX_KEPT) {
        trees->kept[trees->n_kept++] = tree;
        return;
    }
    mb_class_tree_close(trees->kept[trees->i_oldest]);
    trees->kept[trees->i_oldest] = tree;
    trees->i_oldest = (trees->i_oldest + 1) % MAX_KEPT;
}

/* ---- Trees ------------------------------------------------------------------------------------------ */

static mb_class_tree *build(const mb_token_trie *trie, const mb_automaton *automaton, uint32_t rule,
                            int is_followed, mb_class_builder **builder) {
    if (!*builder)
        *builder = mb_class_builder_open(automaton, trie);
    return *builder ? mb_class_tree_build(*builder, rule, is_followed) : NULL;
}

mb_class_tree *mb_shared_trees_get(const mb_token_trie *trie, const mb_automaton *automaton, uint32_t rule,
                                   int is_followed, mb_class_builder **builder) {
    const mb_automaton_rule *r = &automaton->rules[rule];
    mb_shared_trees *trees = trie->shared;
    if (r->n_states > MAX_RULE_STATES)
        return build(trie, automaton, rule, is_followed, builder);
    size_t n_words = key_words(r);
    uint32_t *key = mb_malloc_array(n_words, sizeof *key);
    if (!key) {
        mb_fail(MB_ERR_MEMORY, "no memory to prepare a grammar's masks");
        return NULL;
    }
    write_key(automaton, r, is_followed, key);
    pthread_mutex_lock(&trees->lock);
    mb_class_tree *tree = find(trees, key, n_words);
    pthread_mutex_unlock(&trees->lock);
    if (!tree) {
        tree = build(trie, automaton, rule, is_followed, builder);
        if (tree && tree->n_seen >= trie->n_nodes / WIDE_PART) {
            tree->key = key;
            tree->n_key_words = n_words;
            key = NULL;
            pthread_mutex_lock(&trees->lock);
            keep(trees, tree);
            pthread_mutex_unlock(&trees->lock);
        }
    }
    mb_free(key);
    return tree;
}
