#include "grammar/trie.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "grammar/shared_trees.h"

typedef struct sorted_token {
    const uint8_t *bytes;
    uint32_t n_bytes;
    int32_t id;
} sorted_token;

static int compare_tokens(const void *a, const void *b) {
    const sorted_token *x = a, *y = b;
    uint32_t n = x->n_bytes < y->n_bytes ? x->n_bytes : y->n_bytes;
    int order = memcmp(x->bytes, y->bytes, n);
    if (order == 0)
        order = (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
    return order ? order : (x->id > y->id) - (x->id < y->id);
}

static uint32_t common_bytes(const sorted_token *a, const sorted_token *b) {
    uint32_t n = 0, most = a->n_bytes < b->n_bytes ? a->n_bytes : b->n_bytes;
    while (n < most && a->bytes[n] == b->bytes[n])
        n++;
    return n;
}

static int are_equal(const sorted_token *a, const sorted_token *b) {
    return a->n_bytes == b->n_bytes && common_bytes(a, b) == a->n_bytes;
}

/* ---- Nodes ------------------------------------------------------------------------------------------ */

/* tokens: sorted, no two alike. */
static mb_status make_nodes(const sorted_token *tokens, size_t n, mb_token_trie *trie) {
    size_t n_nodes = 0;
    for (size_t i = 0; i < n; i++)
        n_nodes += tokens[i].n_bytes - (i ? common_bytes(&tokens[i - 1], &tokens[i]) : 0);
    trie->nodes = mb_malloc_array(n_nodes + 1, sizeof *trie->nodes);
    if (!trie->nodes)
        return mb_fail(MB_ERR_MEMORY, "no memory for the tokens' tree (%zu nodes)", n_nodes);
    uint32_t path[MB_TRIE_MAX_DEPTH + 1], depth = 0, next = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t common = i ? common_bytes(&tokens[i - 1], &tokens[i]) : 0;
        for (; depth > common; depth--)
            trie->nodes[path[depth]].end = next;
        for (; depth < tokens[i].n_bytes; next++) {
            trie->nodes[next] =
                (mb_trie_node){.token = -1, .depth = (uint16_t)(depth + 1), .byte = tokens[i].bytes[depth]};
            path[++depth] = next;
        }
        trie->nodes[next - 1].token = tokens[i].id;
        trie->nodes[next - 1].is_alike = trie->next_alike[tokens[i].id] >= 0;
    }
    for (; depth > 0; depth--)
        trie->nodes[path[depth]].end = next;
    trie->n_nodes = next;
    return MB_OK;
}

static mb_status make_tree(sorted_token *tokens, size_t n, mb_token_trie *trie) {
    qsort(tokens, n, sizeof *tokens, compare_tokens);
    for (int32_t i = 0; i < trie->vocab; i++)
        trie->next_alike[i] = -1;
    size_t n_different = 0;
    for (size_t i = 0, last = 0; i < n; i++) {
        if (n_different > 0 && are_equal(&tokens[n_different - 1], &tokens[i])) {
            trie->next_alike[last] = tokens[i].id;
        } else {
            tokens[n_different++] = tokens[i];
        }
        last = (size_t)tokens[i].id;
    }
    return make_nodes(tokens, n_different, trie);
}

/* ---- Life ------------------------------------------------------------------------------------------- */

static mb_status allocate(mb_token_trie *trie, size_t n_bytes) {
    size_t vocab = (size_t)trie->vocab;
    trie->next_alike = mb_malloc_array(vocab, sizeof *trie->next_alike);
    trie->bytes = mb_malloc(n_bytes);
    trie->offsets = mb_malloc_array(vocab + 1, sizeof *trie->offsets);
    if (!trie->next_alike || !trie->bytes || !trie->offsets)
        return mb_fail(MB_ERR_MEMORY, "no memory for the tokens' tree (%zu tokens)", vocab);
    return MB_OK;
}

/* Tokens of more than MB_TRIE_MAX_DEPTH bytes are never allowed. */
static size_t used_bytes(const mb_token_bytes_of *token) {
    return token->n_bytes <= MB_TRIE_MAX_DEPTH ? token->n_bytes : 0;
}

static mb_status fill(const mb_token_bytes_of *tokens, mb_token_trie *trie) {
    size_t n_bytes = 0, n = 0;
    for (int32_t i = 0; i < trie->vocab; i++)
        n_bytes += used_bytes(&tokens[i]);
    if (n_bytes > UINT32_MAX)
        return mb_fail(MB_ERR_CAPACITY, "the tokens have %zu bytes in all, more than 4 GB", n_bytes);
    MB_TRY(allocate(trie, n_bytes));
    sorted_token *sorted = mb_malloc_array((size_t)trie->vocab, sizeof *sorted);
    if (!sorted)
        return mb_fail(MB_ERR_MEMORY, "no memory to sort %d tokens", (int)trie->vocab);
    uint32_t offset = 0;
    for (int32_t i = 0; i < trie->vocab; i++) {
        size_t n_used = used_bytes(&tokens[i]);
        trie->offsets[i] = offset;
        if (n_used > 0) {
            memcpy(trie->bytes + offset, tokens[i].bytes, n_used);
            sorted[n++] = (sorted_token){(const uint8_t *)trie->bytes + offset, (uint32_t)n_used, i};
        }
        offset += (uint32_t)n_used;
    }
    trie->offsets[trie->vocab] = offset;
    mb_status status = make_tree(sorted, n, trie);
    mb_free(sorted);
    return status;
}

mb_status mb_trie_open(const mb_token_bytes_of *tokens, int32_t vocab, mb_token_trie **trie) {
    *trie = NULL;
    mb_token_trie *opened = mb_calloc(1, sizeof *opened);
    if (!opened)
        return mb_fail(MB_ERR_MEMORY, "no memory for the tokens' tree");
    opened->vocab = vocab;
    opened->n_words = ((size_t)vocab + 31) / 32;
    mb_status status = fill(tokens, opened);
    if (status == MB_OK)
        status = mb_shared_trees_open(&opened->shared);
    if (status != MB_OK) {
        mb_trie_close(opened);
        return status;
    }
    *trie = opened;
    return MB_OK;
}

void mb_trie_close(mb_token_trie *trie) {
    if (!trie)
        return;
    mb_shared_trees_close(trie->shared);
    mb_free(trie->nodes);
    mb_free(trie->next_alike);
    mb_free(trie->bytes);
    mb_free(trie->offsets);
    mb_free(trie);
}
