/*
 * Every allocation fails once, and from then on, while grammars are compiled and followed. Nothing
 * may leak, each failure is MB_ERR_MEMORY with a sentence, and with memory again the same calls
 * give the same masks.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "grammar/compile.h"
#include "support/made_up_tokens.h"

static struct { long long n_calls, n_live, first_refused, last_refused; } memory;

static void *failing_allocate(void *user, void *pointer, size_t n_bytes) {
    (void)user;
    if (n_bytes == 0) {
        memory.n_live--;
        free(pointer);
        return NULL;
    }
    long long call = ++memory.n_calls;
    if (call >= memory.first_refused && call <= memory.last_refused)
        return NULL;
    void *block = realloc(pointer, n_bytes);
    memory.n_live += block && !pointer;
    return block;
}

static const struct {
    mb_grammar_kind kind;
    const char *text, *answer;
} grammars[] = {
    {MB_GRAMMAR_JSON_SCHEMA,
     "{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"string\", \"pattern\": \"^x+$\", \"maxLength\": 3}, "
     "\"b\": {\"anyOf\": [{\"$ref\": \"#\"}, {\"type\": \"integer\", \"multipleOf\": 3, \"minimum\": 1}]}}, \"required\": "
     "[\"a\"], \"additionalProperties\": {\"enum\": [1, {\"k\": [\"v\"]}]}}",
     "{\"a\": \"xx\", \"b\": {\"a\": \"x\", \"b\": 12}, \"c\": 1}"},
    {MB_GRAMMAR_REGEX, "[a-c]{2,300}|\\d+(?:x{70})?", "abc"},
    {MB_GRAMMAR_STRUCTURE,
     "{\"sequence\": [{\"until\": \"<\"}, {\"choice\": [{\"json_object\": true}, {\"text\": \"x\"}]}]}",
     "ab<{\"a\": [1, 2]}"},
    {MB_GRAMMAR_EBNF,
     "root ::= root \"+\" item | item\nitem ::= [^a-z+()]{1,2} | \"(\" root \")\" | word\nword ::= \"x\" word | \"y\"",
     "1+(2+xxy)+3"},
};
enum { N_GRAMMARS = sizeof grammars / sizeof *grammars, MAX_WORDS = 16 };

static mb_token_trie *trie;

/* A number that all masks on the way of the answer give. */
static mb_status follow(mb_grammar *grammar, const char *answer, uint64_t *hash) {
    uint32_t bits[MAX_WORDS];
    mb_grammar_state *state;
    MB_TRY(mb_grammar_state_open(grammar, MB_GRAMMAR_AT_ONCE, &state));
    mb_status status = MB_OK;
    for (; *answer && status == MB_OK; answer++) {
        status = mb_grammar_mask(state, bits, MAX_WORDS);
        for (size_t i = 0; i < MAX_WORDS && status == MB_OK; i++)
            *hash = *hash * 31 + bits[i];
        if (status == MB_OK)
            status = mb_grammar_advance(state, (unsigned char)*answer);
    }
    if (status == MB_OK)
        assert_true(mb_grammar_can_end(state));
    mb_grammar_state_close(state);
    return status;
}

static mb_status run(int i, uint64_t *hash) {
    mb_grammar *grammar;
    *hash = 0;
    MB_TRY(mb_grammar_compile(trie, grammars[i].kind, grammars[i].text, strlen(grammars[i].text), &grammar));
    mb_status status = follow(grammar, grammars[i].answer, hash);
    mb_grammar_close(grammar);
    return status;
}

/* With new tokens, because grammars share what they find out about the tokens' tree. */
static mb_status run_alone(int i, long long first_refused, long long last_refused, uint64_t *hash) {
    trie = made_up_trie(400);
    memory.n_calls = 0;
    memory.first_refused = first_refused;
    memory.last_refused = last_refused;
    mb_status status = run(i, hash);
    memory.first_refused = memory.last_refused = 0;
    mb_trie_close(trie);
    return status;
}

static void torture(int i, long long last) {
    uint64_t undisturbed, hash;
    long long live = memory.n_live;
    assert_int_equal(run_alone(i, 0, 0, &undisturbed), MB_OK);
    long long n_calls = memory.n_calls;
    assert_true(n_calls > 10);
    for (long long k = 1; k <= n_calls; k++) {
        mb_status status = run_alone(i, k, last ? last : k, &hash);
        if (status == MB_OK)
            assert_int_equal(hash, undisturbed);
        else if (status != MB_ERR_MEMORY || strstr(mb_last_error(), "memory") == NULL)
            fail_msg("allocation %lld of grammar %d: %s, %s", k, i, mb_status_name(status), mb_last_error());
        if (memory.n_live != live)
            fail_msg("allocation %lld of grammar %d: %lld blocks are lost", k, i, memory.n_live - live);
    }
    assert_int_equal(run_alone(i, 0, 0, &hash), MB_OK);
    assert_int_equal(hash, undisturbed);
}

static void test_each_allocation_fails_once(void **state) {
    (void)state;
    for (int i = 0; i < N_GRAMMARS; i++)
        torture(i, 0);
}

static void test_all_allocations_fail_from_one_on(void **state) {
    (void)state;
    for (int i = 0; i < N_GRAMMARS; i++)
        torture(i, INT64_MAX);
}

static void test_the_tokens_tree(void **state) {
    (void)state;
    static const char *const words[] = {"ab", "abc", "\",", NULL};
    long long live = memory.n_live;
    mb_token_bytes_of tokens[3] = {{words[0], 2}, {words[1], 3}, {words[2], 2}};
    for (long long k = 1;; k++) {
        memory.n_calls = 0;
        memory.first_refused = memory.last_refused = k;
        mb_status status = mb_trie_open(tokens, 3, &trie);
        if (status == MB_OK)
            break;
        assert_int_equal(status, MB_ERR_MEMORY);
        assert_null(trie);
        assert_int_equal(memory.n_live, live);
    }
    mb_trie_close(trie);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_allocation_fails_once),
        cmocka_unit_test(test_all_allocations_fail_from_one_on),
        cmocka_unit_test(test_the_tokens_tree),
    };
    mb_set_allocator(failing_allocate, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
