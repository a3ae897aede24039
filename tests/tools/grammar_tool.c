/*
 * grammar_tool.c - grammars for the Python tests: a request on each line of stdin, an
 * answer on each of stdout.
 *
 * Request {"kind": "json_schema", "text": "...", "check": ["...", ...], "samples": N, "seed": N}. The answer
 * {"accepts": [true, ...], "samples": ["...", ...], "cut": N}: which texts the grammar accepts; random
 * answers of tokens that its masks allow; how many answers were cut off, because they became too long. A
 * grammar that is refused answers {"status": "MB_ERR_...", "error": "..."}.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "grammar/compile.h"
#include "support/made_up_tokens.h"

enum { N_TOKENS = 8000, MAX_TOKENS = 300, MAX_BYTES = MAX_TOKENS * 64 };

static mb_token_trie *trie;

static int is_allowed(const uint32_t *bits, int32_t id) {
    return bits[id / 32] >> (id % 32) & 1;
}

/* One of the tokens that the mask allows; often one that brings the answer nearer to its end. */
static int32_t draw(uint64_t *random, const uint32_t *bits) {
    static const char closing[] = "\"}],:\"}]0e";
    if (mb_random(random) % 3 == 0) {
        int32_t sign = closing[mb_random(random) % (sizeof closing - 1)];
        if (is_allowed(bits, sign))
            return sign;
    }
    for (int tries = 0; tries < 64; tries++) {
        int32_t id = (int32_t)(mb_random(random) % (tries % 2 ? 256 : N_TOKENS));
        if (is_allowed(bits, id))
            return id;
    }
    int32_t first = (int32_t)(mb_random(random) % N_TOKENS);
    for (int32_t i = 0; i < N_TOKENS; i++)
        if (is_allowed(bits, (first + i) % N_TOKENS))
            return (first + i) % N_TOKENS;
    return -1;
}

static void die(const char *why) {
    fprintf(stderr, "grammar_tool: %s: %s\n", why, mb_last_error());
    exit(1);
}

/* The answer's length; -1 when it was cut. */
static long sample(mb_grammar *grammar, uint64_t *random, char *text) {
    static uint32_t bits[N_TOKENS / 32];
    mb_grammar_state *state;
    long n = 0;
    if (mb_grammar_state_open(grammar, MB_GRAMMAR_AT_ONCE, &state) != MB_OK)
        die("open");
    int ended = 0;
    for (int i = 0; i < MAX_TOKENS && !ended; i++) {
        ended = mb_grammar_is_finished(state) || (mb_grammar_can_end(state) && mb_random(random) % 4 == 0);
        if (ended)
            break;
        if (mb_grammar_mask(state, bits, N_TOKENS / 32) != MB_OK)
            die("mask");
        int32_t id = draw(random, bits);
        if (id < 0 && !mb_grammar_can_end(state))
            die("nothing is allowed, and the answer is not complete");
        if (id < 0)
            break;
        if (mb_grammar_advance(state, id) != MB_OK)
            die("advance");
        size_t n_bytes = trie->offsets[id + 1] - trie->offsets[id];
        memcpy(text + n, trie->bytes + trie->offsets[id], n_bytes);
        n += (long)n_bytes;
    }
    if (!ended && !mb_grammar_can_end(state))
        n = -1;
    mb_grammar_state_close(state);
    return n;
}

static int accepts(mb_grammar *grammar, const char *text, size_t n_bytes) {
    mb_grammar_state *state;
    if (mb_grammar_state_open(grammar, MB_GRAMMAR_AT_ONCE, &state) != MB_OK)
        die("open");
    size_t n = 0;
    while (n < n_bytes && mb_grammar_advance(state, (unsigned char)text[n]) == MB_OK)
        n++;
    int accepted = n == n_bytes && mb_grammar_can_end(state);
    mb_grammar_state_close(state);
    return accepted;
}

static json_t *answer(mb_grammar *grammar, const json_t *request) {
    static char text[MAX_BYTES];
    json_t *accepted = json_array(), *samples = json_array(), *item;
    uint64_t random = (uint64_t)json_integer_value(json_object_get(request, "seed"));
    size_t i;
    int n_cut = 0;
    json_array_foreach(json_object_get(request, "check"), i, item) json_array_append_new(
        accepted, json_boolean(accepts(grammar, json_string_value(item), json_string_length(item))));
    for (json_int_t k = json_integer_value(json_object_get(request, "samples")); k > 0; k--) {
        long n = sample(grammar, &random, text);
        if (n < 0)
            n_cut++;
        else
            json_array_append_new(samples, json_stringn(text, (size_t)n));
    }
    return json_pack("{s:o, s:o, s:i}", "accepts", accepted, "samples", samples, "cut", n_cut);
}

static mb_grammar_kind kind_of(const char *name) {
    static const char *const names[] = {"json_schema", "json_object", "regex", "choice", "structure"};
    for (int i = 0; i < 5; i++)
        if (strcmp(names[i], name) == 0)
            return (mb_grammar_kind)i;
    die("no such kind");
    return MB_GRAMMAR_REGEX;
}

int main(void) {
    char *line = NULL;
    size_t capacity = 0;
    trie = made_up_trie(N_TOKENS);
    while (getline(&line, &capacity, stdin) > 0) {
        json_t *request = json_loads(line, JSON_ALLOW_NUL, NULL);
        const json_t *text = json_object_get(request, "text");
        mb_grammar *grammar;
        mb_status status =
            mb_grammar_compile(trie, kind_of(json_string_value(json_object_get(request, "kind"))),
                               json_string_value(text), json_string_length(text), &grammar);
        json_t *reply = status == MB_OK ? answer(grammar, request)
                                        : json_pack("{s:s, s:s}", "status", mb_status_name(status), "error",
                                                    mb_last_error());
        char *dumped = json_dumps(reply, JSON_COMPACT | JSON_ENSURE_ASCII);
        puts(dumped ? dumped : "{}");
        fflush(stdout);
        free(dumped);
        json_decref(reply);
        json_decref(request);
        mb_grammar_close(grammar);
    }
    free(line);
    mb_trie_close(trie);
    return 0;
}
