/* Threads compile the same grammar at once and follow it, each with an answer of its own: they share what
 * is worked out once, and the masks are those of a thread alone. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "grammar/store.h"
#include "support/made_up_tokens.h"

enum { N_TOKENS = 2000, N_WORDS = (N_TOKENS + 31) / 32, N_THREADS = 4, N_STEPS = 40 };

static const char schema[] =
    "{\"type\": \"array\", \"minItems\": 9, \"items\": {\"anyOf\": [{\"type\": \"string\", "
    "\"maxLength\": 30}, {\"type\": \"number\"}, {\"type\": \"object\"}]}}";

static mb_status make_trie(const void *user, mb_token_trie **trie) {
    (void)user;
    *trie = made_up_trie(N_TOKENS);
    return MB_OK;
}

typedef struct follower {
    mb_grammar_store *store;
    uint64_t seed, hash;
    int failed;
} follower;

static void follow(follower *f, mb_grammar_state *state) {
    uint32_t bits[N_WORDS];
    uint64_t random = f->seed;
    for (int step = 0; step < N_STEPS && !mb_grammar_is_finished(state); step++) {
        f->failed |= mb_grammar_mask(state, bits, N_WORDS) != MB_OK;
        for (int i = 0; i < N_WORDS; i++)
            f->hash = f->hash * 31 + bits[i];
        int32_t id = (int32_t)(mb_random(&random) % N_TOKENS);
        for (int i = 0; i < N_TOKENS && !(bits[id / 32] >> (id % 32) & 1); i++)
            id = (id + 1) % N_TOKENS;
        f->failed |= mb_grammar_advance(state, id) != MB_OK;
    }
}

static void *run(void *user) {
    follower *f = user;
    mb_grammar *grammar = NULL;
    mb_grammar_state *state = NULL;
    f->failed = mb_grammar_store_get(f->store, make_trie, NULL, MB_GRAMMAR_JSON_SCHEMA, schema,
                                     strlen(schema), &grammar) != MB_OK ||
                mb_grammar_state_open(grammar, MB_GRAMMAR_AT_ONCE, &state) != MB_OK;
    mb_grammar_close(grammar);
    if (!f->failed)
        follow(f, state);
    mb_grammar_state_close(state);
    return NULL;
}

static void test_threads_share_a_grammar(void **unused) {
    (void)unused;
    for (int round = 0; round < 4; round++) {
        mb_grammar_store *stores[2];
        follower together[N_THREADS], alone[N_THREADS];
        pthread_t threads[N_THREADS];
        for (int i = 0; i < 2; i++)
            assert_int_equal(mb_grammar_store_open(&stores[i]), MB_OK);
        for (int i = 0; i < N_THREADS; i++) {
            together[i] = (follower){.store = stores[0], .seed = (uint64_t)(round * N_THREADS + i)};
            alone[i] = (follower){.store = stores[1], .seed = together[i].seed};
            assert_int_equal(pthread_create(&threads[i], NULL, run, &together[i]), 0);
        }
        for (int i = 0; i < N_THREADS; i++) {
            pthread_join(threads[i], NULL);
            run(&alone[i]);
            assert_false(together[i].failed || alone[i].failed);
            assert_true(together[i].hash == alone[i].hash);
        }
        for (int i = 0; i < 2; i++)
            mb_grammar_store_close(stores[i]);
    }
}

/* The store keeps a bounded number of grammars; those in use live on without it. */
static void test_many_grammars(void **unused) {
    (void)unused;
    enum { N = 300 };
    mb_grammar_store *store;
    mb_grammar *first, *grammar;
    assert_int_equal(mb_grammar_store_open(&store), MB_OK);
    for (int i = 0; i < N; i++) {
        char text[16];
        size_t n = (size_t)snprintf(text, sizeof text, "x{%d}", i + 1);
        assert_int_equal(
            mb_grammar_store_get(store, make_trie, NULL, MB_GRAMMAR_REGEX, text, n, i ? &grammar : &first),
            MB_OK);
        if (i > 0)
            mb_grammar_close(grammar);
    }
    mb_grammar_state *state;
    assert_int_equal(mb_grammar_state_open(first, MB_GRAMMAR_AT_ONCE, &state), MB_OK);
    mb_grammar_close(first);
    assert_int_equal(mb_grammar_advance(state, 'x'), MB_OK);
    assert_true(mb_grammar_is_finished(state));
    mb_grammar_state_close(state);
    mb_grammar_store_close(store);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads_share_a_grammar),
        cmocka_unit_test(test_many_grammars),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
