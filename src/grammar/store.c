#include "grammar/store.h"

#include <pthread.h>
#include <string.h>

#include "base/alloc.h"
#include "grammar/compile.h"

enum {
    MAX_KEPT = 128,
    MAX_KEPT_BYTES = 512 << 20, /* with their masks */
};

struct mb_grammar_store {
    pthread_mutex_t lock;
    mb_token_trie *trie;
    mb_grammar *kept[MAX_KEPT]; /* the last used ones first; each has a reference of the store's */
    size_t n_kept;
};

mb_status mb_grammar_store_open(mb_grammar_store **store) {
    *store = NULL;
    mb_grammar_store *opened = mb_calloc(1, sizeof *opened);
    if (!opened)
        return mb_fail(MB_ERR_MEMORY, "no memory for a model's grammars");
    if (pthread_mutex_init(&opened->lock, NULL) != 0) {
        mb_free(opened);
        return mb_fail(MB_ERR_MEMORY, "the system gave no lock for a model's grammars");
    }
    *store = opened;
    return MB_OK;
}

void mb_grammar_store_close(mb_grammar_store *store) {
    if (!store)
        return;
    for (size_t i = 0; i < store->n_kept; i++)
        mb_grammar_close(store->kept[i]);
    mb_trie_close(store->trie);
    pthread_mutex_destroy(&store->lock);
    mb_free(store);
}

static int is_same(const mb_grammar *grammar, mb_grammar_kind kind, const char *text, size_t n_bytes) {
    return grammar->kind == kind && grammar->n_bytes == n_bytes &&
           (n_bytes == 0 || memcmp(grammar->text, text, n_bytes) == 0);
}

/* With the lock: the kept grammar, moved to the front, with a reference for the caller. */
static mb_grammar *find(mb_grammar_store *store, mb_grammar_kind kind, const char *text, size_t n_bytes) {
    for (size_t i = 0; i < store->n_kept; i++) {
        mb_grammar *grammar = store->kept[i];
        if (!is_same(grammar, kind, text, n_bytes))
            continue;
        memmove(store->kept + 1, store->kept, i * sizeof *store->kept);
        store->kept[0] = grammar;
        mb_grammar_hold(grammar);
        return grammar;
    }
    return NULL;
}

/* With the lock: keeps a new grammar and lets go of those that were used longest ago. */
static void keep(mb_grammar_store *store, mb_grammar *grammar) {
    if (store->n_kept == MAX_KEPT)
        mb_grammar_close(store->kept[--store->n_kept]);
    memmove(store->kept + 1, store->kept, store->n_kept * sizeof *store->kept);
    store->kept[0] = grammar;
    store->n_kept++;
    mb_grammar_hold(grammar);
    size_t n_bytes = 0;
    for (size_t i = 0; i < store->n_kept; i++)
        n_bytes += mb_grammar_bytes(store->kept[i]);
    while (store->n_kept > 1 && n_bytes > MAX_KEPT_BYTES) {
        mb_grammar *last = store->kept[--store->n_kept];
        n_bytes -= mb_grammar_bytes(last);
        mb_grammar_close(last);
    }
}

int mb_grammar_store_has(mb_grammar_store *store, const mb_grammar *grammar) {
    pthread_mutex_lock(&store->lock);
    int has = grammar->masks.trie == store->trie;
    pthread_mutex_unlock(&store->lock);
    return has;
}

mb_status mb_grammar_store_get(mb_grammar_store *store, mb_make_trie_fn make_trie, const void *user,
                               mb_grammar_kind kind, const char *text, size_t n_bytes, mb_grammar **grammar) {
    mb_status status = MB_OK;
    pthread_mutex_lock(&store->lock);
    if (!store->trie)
        status = make_trie(user, &store->trie);
    *grammar = find(store, kind, text, n_bytes);
    pthread_mutex_unlock(&store->lock);
    if (status != MB_OK || *grammar)
        return status;

    MB_TRY(mb_grammar_compile(store->trie, kind, text, n_bytes, grammar));
    pthread_mutex_lock(&store->lock);
    mb_grammar *other = find(store, kind, text, n_bytes); /* of a thread that was faster */
    if (!other)
        keep(store, *grammar);
    pthread_mutex_unlock(&store->lock);
    if (other) {
        mb_grammar_close(*grammar);
        *grammar = other;
    }
    return MB_OK;
}
