/*
 * grammar_speed.c - how long masks and compilations take, of one thread's processor time.
 *
 *   grammar_speed [VOCABULARY]    of 151 936 made-up tokens, or of a file with a token's bytes in
 *                                 hexadecimal on each line
 *
 * For each grammar: what compiling takes; then random answers, their first masks (each state's is worked out
 * once) and those of further answers. Microseconds: median and the slowest of a hundred.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/median.h"
#include "base/random.h"
#include "grammar/compile.h"
#include "support/made_up_tokens.h"

enum { N_TOKENS = 151936, N_ANSWERS = 24, MAX_TOKENS = 400 };

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static mb_token_trie *read_trie(const char *path) {
    FILE *file = fopen(path, "r");
    mb_token_bytes_of *tokens = calloc(N_TOKENS, sizeof *tokens);
    char line[4096];
    int32_t n = 0;
    if (!file || !tokens)
        exit(1);
    for (; n < N_TOKENS && fgets(line, sizeof line, file); n++) {
        size_t n_bytes = strspn(line, "0123456789abcdef") / 2;
        char *bytes = malloc(n_bytes + 1);
        for (size_t i = 0; i < n_bytes; i++) {
            unsigned value;
            sscanf(line + 2 * i, "%2x", &value);
            bytes[i] = (char)value;
        }
        tokens[n] = (mb_token_bytes_of){bytes, n_bytes};
    }
    fclose(file);
    mb_token_trie *trie;
    if (mb_trie_open(tokens, n, &trie) != MB_OK)
        exit(1);
    return trie;
}

/* About 10 kB: objects of objects with strings, enumerations, numbers and arrays. */
static char *large_schema(void) {
    static const char *const kinds[] = {
        "{\"type\": \"string\", \"maxLength\": 80}",
        "{\"type\": \"integer\", \"minimum\": 0, \"maximum\": 1000000}",
        "{\"enum\": [\"red\", \"green\", \"blue\", \"unknown\"]}",
        "{\"type\": \"string\", \"format\": \"date-time\"}",
        "{\"type\": \"array\", \"items\": {\"type\": \"string\"}, \"maxItems\": 20}",
        "{\"type\": [\"number\", \"null\"]}",
        "{\"type\": \"string\", \"pattern\": \"^[A-Z]{2}[0-9]{4,8}$\"}",
        "{\"anyOf\": [{\"type\": \"boolean\"}, {\"type\": \"string\"}]}"};
    char *text = malloc(1 << 16), *end = text;
    end += sprintf(end, "{\"type\": \"object\", \"properties\": {");
    for (int i = 0; i < 10; i++) {
        end += sprintf(end, "%s\"section_%d\": {\"type\": \"object\", \"properties\": {", i ? ", " : "", i);
        for (int k = 0; k < 14; k++)
            end += sprintf(end, "%s\"field_%d_of_%d\": %s", k ? ", " : "", k, i, kinds[(i + k) % 8]);
        end += sprintf(end, "}, \"required\": [\"field_0_of_%d\", \"field_5_of_%d\"]}", i, i);
    }
    sprintf(end, "}, \"required\": [\"section_0\", \"section_1\"]}");
    return text;
}

static int is_allowed(const uint32_t *bits, int32_t id) {
    return bits[id / 32] >> (id % 32) & 1;
}

static int32_t draw(uint64_t *random, const uint32_t *bits, int32_t vocab) {
    static const char closing[] = "\"}],:";
    if (mb_random(random) % 4 == 0 && is_allowed(bits, closing[mb_random(random) % 5]))
        for (int i = 0; i < 5; i++)
            if (is_allowed(bits, closing[i]))
                return closing[i];
    int32_t first = (int32_t)(mb_random(random) % (uint64_t)vocab);
    for (int32_t i = 0; i < vocab; i++)
        if (is_allowed(bits, (first + i) % vocab))
            return (first + i) % vocab;
    return -1;
}

/* Adds the times of one answer's masks. */
static size_t answer(mb_grammar *grammar, uint64_t seed, double *times) {
    const mb_token_trie *trie = grammar->masks.trie;
    uint32_t *bits = malloc(trie->n_words * sizeof *bits);
    mb_grammar_state *state;
    size_t n = 0;
    mb_grammar_state_open(grammar, MB_GRAMMAR_AT_ONCE, &state);
    while (n < MAX_TOKENS && !mb_grammar_is_finished(state)) {
        double start = now_us();
        mb_grammar_mask(state, bits, trie->n_words);
        times[n++] = now_us() - start;
        int32_t id = draw(&seed, bits, trie->vocab);
        if (id < 0 || mb_grammar_advance(state, id) != MB_OK)
            break;
    }
    mb_grammar_state_close(state);
    free(bits);
    return n;
}

static void print_times(const char *what, double *times, size_t n) {
    double median = mb_median(times, n); /* sorts */
    printf("  %s %7.1f %8.1f", what, median, times[n - 1 - n / 100]);
}

static void measure(const mb_token_trie *trie, const char *name, mb_grammar_kind kind, const char *text) {
    static double times[N_ANSWERS * MAX_TOKENS];
    mb_grammar *grammar;
    double start = now_us();
    if (mb_grammar_compile(trie, kind, text, strlen(text), &grammar) != MB_OK) {
        printf("%s: %s\n", name, mb_last_error());
        return;
    }
    double compiled = now_us() - start;
    size_t n = answer(grammar, 1, times);
    printf("%-22s %5zu bytes  compiled in %8.0f  %6zu states", name, strlen(text), compiled,
           grammar->automaton.n_states);
    print_times("first", times, n);
    n = 0;
    for (uint64_t seed = 1; seed < N_ANSWERS; seed++)
        n += answer(grammar, seed, times + n);
    print_times("then", times, n);
    printf("\n");
    mb_grammar_close(grammar);
}

int main(int argc, char **argv) {
    double start = now_us();
    mb_token_trie *trie = argc > 1 ? read_trie(argv[1]) : made_up_trie(N_TOKENS);
    printf("%d tokens, tree of %u nodes in %.0f us\n", trie->vocab, trie->n_nodes, now_us() - start);
    char *large = large_schema();
    measure(trie, "json_object", MB_GRAMMAR_JSON_OBJECT, "");
    measure(trie, "schema of 10 kB", MB_GRAMMAR_JSON_SCHEMA, large);
    measure(trie, "string", MB_GRAMMAR_JSON_SCHEMA, "{\"type\": \"string\"}");
    measure(trie, "string of up to 60", MB_GRAMMAR_JSON_SCHEMA, "{\"type\": \"string\", \"maxLength\": 60}");
    measure(trie, "string of up to 2000", MB_GRAMMAR_JSON_SCHEMA,
            "{\"type\": \"string\", \"maxLength\": 2000}");
    measure(trie, "pattern", MB_GRAMMAR_JSON_SCHEMA,
            "{\"type\": \"string\", \"pattern\": \"^[a-zA-Z ]{10,200}$\"}");
    measure(
        trie, "any of strings, numbers", MB_GRAMMAR_JSON_SCHEMA,
        "{\"type\": \"array\", \"minItems\": 50, \"items\": {\"anyOf\": [{\"type\": \"string\"}, {\"type\": \"number\"}]}}");
    measure(trie, "regex", MB_GRAMMAR_REGEX, "([A-Z][a-z]+ ){3,20}is (good|bad)\\.");
    measure(trie, "regex of anything", MB_GRAMMAR_REGEX, "(.|\\n)*");
    free(large);
    mb_trie_close(trie);
    return 0;
}
