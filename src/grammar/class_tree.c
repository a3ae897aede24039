#include "grammar/class_tree.h"

#include "base/alloc.h"

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
    return sizeof *tree + tree->n_nodes * sizeof *tree->nodes + tree->words_capacity * sizeof *tree->words;
}

static void put_bits(const uint32_t *restrict from, size_t n_words, int set, uint32_t *restrict bits) {
    if (set)
        for (size_t i = 0; i < n_words; i++)
            bits[i] |= from[i];
    else
        for (size_t i = 0; i < n_words; i++)
            bits[i] &= ~from[i];
}

static void put_list(const uint32_t *ids, size_t n, int set, uint32_t *bits) {
    if (set)
        for (size_t i = 0; i < n; i++)
            bits[ids[i] / 32] |= 1u << ids[i] % 32;
    else
        for (size_t i = 0; i < n; i++)
            bits[ids[i] / 32] &= ~(1u << ids[i] % 32);
}

void mb_class_tree_put_own(const mb_class_tree *tree, uint32_t node, int set, uint32_t *bits) {
    const mb_class_node *n = &tree->nodes[node];
    if (n->own_bits != MB_NO_BITS)
        put_bits(tree->words + n->own_bits, tree->n_mask_words, set, bits);
    else
        put_list(tree->words + n->first_token, n->n_own, set, bits);
}

void mb_class_tree_put_all(const mb_class_tree *tree, uint32_t node, int set, uint32_t *bits) {
    for (uint32_t i = node, end = tree->nodes[node].end; i < end;) {
        const mb_class_node *n = &tree->nodes[i];
        if (n->all_bits != MB_NO_BITS) {
            put_bits(tree->words + n->all_bits, tree->n_mask_words, set, bits);
            i = n->end;
        } else if (n->n_all <= tree->max_listed) {
            put_list(tree->words + n->first_token, n->n_all, set, bits);
            i = n->end;
        } else {
            mb_class_tree_put_own(tree, i++, set, bits);
        }
    }
}
