/* Any text as a schema, an expression, a choice, a structure or rules, and any choice of tokens that the masks
 * allow: the same text read byte by byte is accepted in a state of its own, going back restores the
 * masks, and a complete answer of a schema is JSON. The input: the kind, the number of bytes for
 * choices, those bytes, the text. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/compile.h"
#include "model/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

enum { N_TOKENS = 300, N_WORDS = (N_TOKENS + 31) / 32, MAX_STEPS = 48, MAX_TEXT = 4096 };

static mb_token_trie *trie;

static void require(int holds, const char *what) {
    if (holds)
        return;
    fprintf(stderr, "%s; %s\n", what, mb_last_error());
    abort();
}

/* The bytes, and some tokens that go beyond a string's or a number's end. */
static void open_trie(void) {
    static const char *const others[] = {"\",",  "\": \"", "\"}", "{\"",   "}}", "],",        "\n  ",
                                         "true", "ab",     "abc", "0,",    "12", "\xc3\xa9x", "</think>",
                                         "\\\"", "[[",     "\":", "null}", "aa", ", \""};
    static uint8_t all[256];
    mb_token_bytes_of tokens[N_TOKENS] = {{0}};
    for (int i = 0; i < 256; i++) {
        all[i] = (uint8_t)i;
        tokens[i] = (mb_token_bytes_of){(const char *)&all[i], 1};
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        tokens[256 + i] = (mb_token_bytes_of){others[i], strlen(others[i])};
    require(mb_trie_open(tokens, N_TOKENS, &trie) == MB_OK, "no tree");
}

static int is_allowed(const uint32_t *bits, int32_t id) {
    return bits[id / 32] >> (id % 32) & 1;
}

/* Sends a text through byte by byte. */
static void check_bytes(mb_grammar *grammar, mb_grammar_start start, const char *text, size_t n,
                        int can_end) {
    mb_grammar_state *state;
    require(mb_grammar_state_open(grammar, start, &state) == MB_OK, "no state");
    for (size_t i = 0; i < n; i++)
        require(mb_grammar_advance(state, (uint8_t)text[i]) == MB_OK, "a byte of allowed tokens is refused");
    require(mb_grammar_can_end(state) == can_end, "tokens and bytes end differently");
    mb_grammar_state_close(state);
}

static void walk(mb_grammar *grammar, mb_grammar_start start, const uint8_t *choices, size_t n_choices) {
    static char text[MAX_TEXT];
    uint32_t bits[N_WORDS], again[N_WORDS];
    size_t n = 0;
    mb_grammar_state *state;
    require(mb_grammar_state_open(grammar, start, &state) == MB_OK, "no state");
    for (size_t step = 0; step < MAX_STEPS && !mb_grammar_is_finished(state); step++) {
        mb_status status = mb_grammar_mask(state, bits, N_WORDS);
        if (status == MB_ERR_CAPACITY) { /* too ambiguous */
            mb_grammar_state_close(state);
            return;
        }
        require(status == MB_OK, "no mask");
        int32_t first = n_choices ? 7 * choices[step % n_choices] % N_TOKENS : 0, id = -1;
        for (int32_t i = 0; i < N_TOKENS && id < 0; i++)
            if (is_allowed(bits, (first + i) % N_TOKENS))
                id = (first + i) % N_TOKENS;
        require(id >= 0, "no token is allowed in the middle of an answer");
        status = mb_grammar_advance(state, id);
        if (status == MB_ERR_CAPACITY) {
            mb_grammar_state_close(state);
            return;
        }
        require(status == MB_OK, "an allowed token is refused");
        if (step % 5 == 4) {
            require(mb_grammar_roll_back(state, 1) == MB_OK, "no way back");
            require(mb_grammar_mask(state, again, N_WORDS) == MB_OK && memcmp(bits, again, sizeof bits) == 0,
                    "going back changes the mask");
            require(mb_grammar_advance(state, id) == MB_OK, "an allowed token is refused after going back");
        }
        memcpy(text + n, trie->bytes + trie->offsets[id], trie->offsets[id + 1] - trie->offsets[id]);
        n += trie->offsets[id + 1] - trie->offsets[id];
    }
    int can_end = mb_grammar_can_end(state);
    check_bytes(grammar, start, text, n, can_end);
    if (can_end && start == MB_GRAMMAR_AT_ONCE && grammar->kind <= MB_GRAMMAR_JSON_OBJECT) {
        json_t *value; /* the same key twice is the model's fault */
        require(mb_json_parse_config("answer", text, n, &value) == MB_OK, "an answer is not JSON");
        mb_json_free(value);
    }
    mb_grammar_state_close(state);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes) {
    if (!trie) {
        setenv("MOEBIUS_LOG", "error", 1);
        open_trie();
    }
    if (n_bytes < 2)
        return 0;
    mb_grammar_kind kind = (mb_grammar_kind)(bytes[0] % 6);
    size_t n_choices = bytes[1] < n_bytes - 2 ? bytes[1] : n_bytes - 2;
    const uint8_t *choices = bytes + 2;
    mb_grammar *grammar;
    mb_status status =
        mb_grammar_compile(trie, kind, (const char *)choices + n_choices, n_bytes - 2 - n_choices, &grammar);
    require(status != MB_ERR_INTERNAL && status != MB_ERR_ARGUMENT, "a text is refused without a reason");
    if (status != MB_OK)
        return 0;
    walk(grammar, MB_GRAMMAR_AT_ONCE, choices, n_choices);
    walk(grammar, MB_GRAMMAR_AFTER_THINK, choices, n_choices);
    mb_grammar_close(grammar);
    return 0;
}
