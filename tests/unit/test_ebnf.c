/* Grammars of rules (EBNF): what they accept, byte by byte; generated ones against PCRE2; masks against trying
 * every token; sentences with line and column. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/random.h"
#include "grammar/compile.h"
#include "support/made_up_tokens.h"

static mb_token_trie *byte_trie; /* tokens 0 to 255 alone */
static mb_token_trie *small_trie;

static int open_tries(void **state) {
    (void)state;
    byte_trie = made_up_trie(256);
    small_trie = made_up_trie(3000);
    return byte_trie && small_trie ? 0 : -1;
}

static int close_tries(void **state) {
    (void)state;
    mb_trie_close(byte_trie);
    mb_trie_close(small_trie);
    return 0;
}

static mb_grammar *compile(const mb_token_trie *trie, const char *text) {
    mb_grammar *grammar;
    if (mb_grammar_compile(trie, MB_GRAMMAR_EBNF, text, strlen(text), &grammar) != MB_OK)
        fail_msg("%s\n%s", text, mb_last_error());
    return grammar;
}

/* Leaves the state as it was. */
static int accepts(mb_grammar_state *state, const char *text, size_t n_bytes) {
    size_t n = 0;
    while (n < n_bytes && mb_grammar_advance(state, (uint8_t)text[n]) == MB_OK)
        n++;
    int accepted = n == n_bytes && mb_grammar_can_end(state);
    assert_int_equal(mb_grammar_roll_back(state, n), MB_OK);
    return accepted;
}

static void check(const char *text, const char *const *good, const char *const *bad) {
    mb_grammar *grammar = compile(byte_trie, text);
    mb_grammar_state *state;
    assert_int_equal(mb_grammar_state_open(grammar, MB_GRAMMAR_AT_ONCE, &state), MB_OK);
    for (; *good; good++)
        if (!accepts(state, *good, strlen(*good)))
            fail_msg("%s\nrefuses %s", text, *good);
    for (; *bad; bad++)
        if (accepts(state, *bad, strlen(*bad)))
            fail_msg("%s\naccepts %s", text, *bad);
    mb_grammar_state_close(state);
    mb_grammar_close(grammar);
}

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

/* ---- What is accepted ------------------------------------------------------------------------------- */

static void test_items(void **state) {
    (void)state;
    check("root ::= \"a\\n\\x41\\u00e9\\U0001F600\\\"\\\\\" [a-c\\]^-]{2} [^a-z] . # a comment \"\n",
          LIST("a\nA\xc3\xa9\xf0\x9f\x98\x80\"\\a]Zq", "a\nA\xc3\xa9\xf0\x9f\x98\x80\"\\-^\xc3\xa9\n"),
          LIST("", "a\nA\xc3\xa9\xf0\x9f\x98\x80\"\\azZq", "a\nA\xc3\xa9\xf0\x9f\x98\x80\"\\aaaq"));
    check(
        "# first\n\nroot ::= one |\n  two # second\n  | (\"x\"\n  \"y\")+ \"\"\none::=\"1\"?two::=\"2\" {2 , 3}\r\n",
        LIST("", "1", "22", "222", "xy", "xyxy"), LIST("2", "2222", "11", "x", "xyx"));
    check("root ::= a-1.b_c{,2} [0-9] *\na-1.b_c ::= \"<\" [^] \">\"", LIST("", "<\n>", "<<><>>12", "7"),
          LIST("<>", "<a", "<a><b><c>"));
    check("root ::= [-a] [a-] unused? \"\"\nunused ::= \"u\" never\nnever ::= \"n\" never",
          LIST("-a", "aa", "--"), LIST("-au", "-aun"));
}

/* What xgrammar and vLLM's documentation have. */
static void test_json(void **state) {
    (void)state;
    check(
        "root ::= basic_array | basic_object\n"
        "basic_any ::= basic_number | basic_string | basic_boolean | basic_null | basic_array | basic_object\n"
        "basic_integer ::= (\"0\" | \"-\"? [1-9] [0-9]*) \".0\"?\n"
        "basic_number ::= (\"0\" | \"-\"? [1-9] [0-9]*) (\".\" [0-9]+)? ([eE] [+-]? [0-9]+)?\n"
        "basic_string ::= ([\\\"] basic_string_1 [\\\"])\n"
        "basic_string_1 ::= \"\" | [^\"\\\\\\x00-\\x1F] basic_string_1 | \"\\\\\" escape basic_string_1\n"
        "escape ::= [\"\\\\/bfnrt] | \"u\" [A-Fa-f0-9] [A-Fa-f0-9] [A-Fa-f0-9] [A-Fa-f0-9]\n"
        "basic_boolean ::= \"true\" | \"false\"\n"
        "basic_null ::= \"null\"\n"
        "basic_array ::= (\"[\" ws basic_any (ws \",\" ws basic_any)* ws \"]\") | \"[\" ws \"]\"\n"
        "basic_object ::= \"{\" (\"\" | ws basic_string ws \":\" ws basic_any ( ws \",\" ws basic_string ws \":\" ws "
        "basic_any)*) ws \"}\"\n"
        "ws ::= [ \\n\\t]*\n",
        LIST("[]", "{}", "[1, -2.5e3, \"a\\u00e9\\n\xc3\xa9\", {\"b\": [true, null, {}]}]",
             "{\"a\":\n\t1 , \"b\":[]}"),
        LIST("", "1", "[1,]", "{\"a\"}", "[\"\n\"]", "[01]", "[[]", "{\"a\": 1,}"));
    check("root ::= select_statement\n"
          "select_statement ::= \"SELECT \" column \" from \" table \" where \" condition\n"
          "column ::= \"col_1 \" | \"col_2 \"\ntable ::= \"table_1 \" | \"table_2 \"\n"
          "condition ::= column \"= \" number\nnumber ::= \"1 \" | \"2 \"\n",
          LIST("SELECT col_1  from table_2  where col_2 = 1 "),
          LIST("SELECT col_1", "SELECT col_3  from table_2 "));
}

static void test_recursion(void **state) {
    (void)state;
    const char *const good[] = {"1", "1+2", "1+2*3", "(1+2)*3", "((7))+1*(2+3)", NULL};
    const char *const bad[] = {"", "+", "1+", "(1", "1)", "()", "1++2", NULL};
    /* From the right, the left, on both sides, hidden behind what may be empty, and through another rule. */
    check(
        "root ::= term \"+\" root | term\nterm ::= item \"*\" term | item\nitem ::= [0-9] | \"(\" root \")\"",
        good, bad);
    check(
        "root ::= root \"+\" term | term\nterm ::= term \"*\" item | item\nitem ::= [0-9] | \"(\" root \")\"",
        good, bad);
    check("root ::= root [+*] root | [0-9] | \"(\" root \")\"", good, bad);
    check("root ::= \"\"? root [+*] root | root | item\nitem ::= [0-9] | \"(\" root \")\"", good, bad);
    check("root ::= more | item\nmore ::= root [+*] item\nitem ::= [0-9] | \"(\" root \")\"", good, bad);
    check("root ::= \"a\" root \"b\" | \"\"", LIST("", "ab", "aaabbb"), LIST("a", "b", "aab", "abb", "abab"));
    check("root ::= \"a\" root \"a\" | \"b\" root \"b\" | [ab]?", LIST("", "a", "abba", "ababa"),
          LIST("ab", "abb"));
}

/* Some thousand times, which is more than the readings that a state may have. */
static void test_long_recursion(void **unused) {
    (void)unused;
    enum { N = 20000 };
    static const char *const grammars[] = {"root ::= \"xy\" root | \"z\"", "root ::= root \"xy\" | \"xy\"",
                                           "root ::= \"x\" more?\nmore ::= \"y\" root?",
                                           "root ::= item (root)?\nitem ::= \"x\" | \"y\""};
    for (size_t i = 0; i < sizeof grammars / sizeof *grammars; i++) {
        mb_grammar *grammar = compile(byte_trie, grammars[i]);
        mb_grammar_state *state;
        assert_int_equal(mb_grammar_state_open(grammar, MB_GRAMMAR_AT_ONCE, &state), MB_OK);
        for (int k = 0; k < N; k++)
            if (mb_grammar_advance(state, k % 2 ? 'y' : 'x') != MB_OK)
                fail_msg("%s at %d: %s", grammars[i], k, mb_last_error());
        assert_int_equal(mb_grammar_can_end(state), i > 0);
        assert_int_equal(mb_grammar_roll_back(state, N), MB_OK);
        mb_grammar_state_close(state);
        mb_grammar_close(grammar);
    }
}

/* Rules that end everywhere: refused after some hundred bytes, in place of a time that grows with n^4. */
static void test_ambiguity(void **unused) {
    (void)unused;
    static const char *const grammars[] = {"root ::= root root | \"a\"",
                                           "root ::= ((root)+) | x | x\nx ::= ([ab] x) | (\"ba\" | x | root)",
                                           "root ::= \"aa\" (y \"b\")\nx ::= y | root | root\n"
                                           "y ::= ((x | [ab] | y)){2,3}"};
    for (size_t i = 0; i < sizeof grammars / sizeof *grammars; i++) {
        mb_grammar *grammar = compile(byte_trie, grammars[i]);
        mb_grammar_state *state;
        assert_int_equal(mb_grammar_state_open(grammar, MB_GRAMMAR_AT_ONCE, &state), MB_OK);
        mb_status status = MB_OK;
        for (int k = 0; k < 2000 && status == MB_OK; k++)
            status = mb_grammar_advance(state, 'a');
        assert_int_equal(status, MB_ERR_CAPACITY);
        assert_non_null(strstr(mb_last_error(), "too ambiguous"));
        mb_grammar_state_close(state);
        mb_grammar_close(grammar);
    }
}

/* Rules that call the one before twice, in repeats whose product is beyond any number. */
static void test_huge_repeats(void **unused) {
    (void)unused;
    char *text = calloc(1, 10000), *end = text;
    for (int i = 0; i < 32; i++) {
        end += sprintf(end, "r%d ::= ((((((", i);
        end += i ? sprintf(end, "r%d r%d", i - 1, i - 1) : sprintf(end, "\"x\"");
        end += sprintf(end, "){1048576}){1048576}){1048576}){1048576})){12}\n");
    }
    sprintf(end, "root ::= r31\n");
    mb_grammar_close(compile(byte_trie, text)); /* at once, not after hours */
    free(text);
}

/* ---- Generated grammars ----------------------------------------------------------------------------- */

enum { N_RULES = 4, MAX_TEXT = 2000 };

/* The same grammar for both. */
typedef struct both {
    char ebnf[MAX_TEXT], pcre[MAX_TEXT];
} both;

static uint32_t below(uint64_t *random, uint32_t n) {
    return (uint32_t)(mb_random(random) >> 32) % n;
}

static void append(both *b, const char *ebnf, const char *pcre) {
    assert_true(strlen(b->ebnf) + strlen(ebnf) < MAX_TEXT && strlen(b->pcre) + strlen(pcre) < MAX_TEXT);
    strcat(b->ebnf, ebnf);
    strcat(b->pcre, pcre);
}

/* may_call: something has been read since the rule began, so PCRE2 does not run in circles. */
static void make_choice(uint64_t *random, both *b, int depth, int may_call);

static void make_item(uint64_t *random, both *b, int depth, int may_call) {
    static const char *const ebnf[] = {"\"a\" ", "\"b\" ", "[ab]", "[^a]", "\"ab\" ", "\"\\xe9\"", "\"\" "};
    static const char *const pcre[] = {"a", "b", "[ab]", "[^a]", "(?:ab)", "\xc3\xa9", "(?:)"};
    static const char *const repeats[][2] = {{" ", ""},   {" ", ""},           {"* ", "*"},       {"? ", "?"},
                                             {"+ ", "+"}, {"{1,2} ", "{1,2}"}, {"{,2} ", "{0,2}"}};
    uint32_t kind = below(random, 10);
    if (kind < 3 && may_call) {
        char name[] = "r0 ", call[] = "(?&r0)";
        name[1] = call[4] = (char)('0' + below(random, N_RULES));
        append(b, name, call);
    } else if (kind < 5 && depth < 2) {
        append(b, "(", "(?:");
        make_choice(random, b, depth + 1, may_call);
        append(b, ")", ")");
    } else {
        uint32_t i = below(random, may_call ? 7 : 6);
        append(b, ebnf[i], pcre[i]);
        return;
    }
    /* A loop over what may be empty is no loop for PCRE2, so only a few repeats of calls and groups. */
    uint32_t i = below(random, 2) ? 3 : 0;
    append(b, repeats[i][0], repeats[i][1]);
}

static void make_choice(uint64_t *random, both *b, int depth, int may_call) {
    for (uint32_t n = 1 + below(random, 3); n > 0; n--) {
        int has_read = may_call;
        for (uint32_t k = 1 + below(random, 3); k > 0; k--) {
            if (!has_read)
                append(b, below(random, 2) ? "\"a\" " : "[a] ", "a");
            else
                make_item(random, b, depth, 1);
            has_read = 1;
        }
        if (n > 1)
            append(b, "| ", "|");
    }
}

static void make_grammar(uint64_t *random, both *b) {
    *b = (both){"root ::= r0\n", "(?(DEFINE)"};
    for (int r = 0; r < N_RULES; r++) {
        char name[16], group[16];
        snprintf(name, sizeof name, "r%d ::= ", r);
        snprintf(group, sizeof group, "(?<r%d>", r);
        append(b, name, group);
        make_choice(random, b, 0, 0);
        append(b, "\n", ")");
    }
    append(b, "", ")^(?&r0)$");
}

static size_t make_subject(uint64_t *random, char *subject) {
    subject[0] = '\0';
    for (uint32_t n = below(random, 9); n > 0; n--)
        strcat(subject, below(random, 8) == 0 ? "\xc3\xa9" : below(random, 3) ? "a" : "b");
    return strlen(subject);
}

static void test_against_pcre2(void **unused) {
    (void)unused;
    uint64_t random = 5;
    int n_accepted = 0;
    for (int round = 0; round < 400; round++) {
        both b;
        char subject[64];
        int error;
        size_t offset;
        make_grammar(&random, &b);
        pcre2_code *code = pcre2_compile((PCRE2_SPTR)b.pcre, PCRE2_ZERO_TERMINATED,
                                         PCRE2_UTF | PCRE2_DOLLAR_ENDONLY, &error, &offset, NULL);
        assert_non_null(code);
        mb_grammar *grammar;
        mb_status status = mb_grammar_compile(byte_trie, MB_GRAMMAR_EBNF, b.ebnf, strlen(b.ebnf), &grammar);
        if (status == MB_ERR_FORMAT && strstr(mb_last_error(), "no text at all")) {
            pcre2_code_free(code);
            continue;
        }
        mb_grammar_state *state;
        assert_int_equal(status, MB_OK);
        assert_int_equal(mb_grammar_state_open(grammar, MB_GRAMMAR_AT_ONCE, &state), MB_OK);
        pcre2_match_data *match = pcre2_match_data_create_from_pattern(code, NULL);
        for (int k = 0; k < 25; k++) {
            size_t n = make_subject(&random, subject);
            int found = pcre2_match(code, (PCRE2_SPTR)subject, n, 0, 0, match, NULL);
            if (found < 0 && found != PCRE2_ERROR_NOMATCH) /* too much work for it */
                continue;
            n_accepted += found > 0;
            if (accepts(state, subject, n) != (found > 0))
                fail_msg("%s\n%s\non \"%s\": PCRE2 says %d", b.ebnf, b.pcre, subject, found);
        }
        pcre2_match_data_free(match);
        pcre2_code_free(code);
        mb_grammar_state_close(state);
        mb_grammar_close(grammar);
    }
    print_message("%d accepted\n", n_accepted);
    assert_true(n_accepted > 500);
}

/* ---- Masks ------------------------------------------------------------------------------------------ */

/* A random answer; at every step each token is tried. */
static void walk(const char *text, uint64_t seed) {
    enum { N_STEPS = 24 };
    mb_grammar *grammar = compile(small_trie, text);
    uint32_t *bits = malloc(small_trie->n_words * sizeof *bits);
    mb_grammar_state *state;
    assert_int_equal(mb_grammar_state_open(grammar, MB_GRAMMAR_AT_ONCE, &state), MB_OK);
    for (int step = 0; step < N_STEPS && !mb_grammar_is_finished(state); step++) {
        int32_t n_allowed = 0, taken = -1;
        assert_int_equal(mb_grammar_mask(state, bits, small_trie->n_words), MB_OK);
        for (int32_t id = 0; id < small_trie->vocab; id++) {
            int allowed = mb_grammar_advance(state, id) == MB_OK;
            if (allowed)
                assert_int_equal(mb_grammar_roll_back(state, 1), MB_OK);
            if (allowed != (int)(bits[id / 32] >> (id % 32) & 1))
                fail_msg("%s\ntoken %d is %s", text, (int)id, allowed ? "allowed, but masked" : "masked in");
            if (allowed && below(&seed, (uint32_t)++n_allowed) == 0)
                taken = id;
        }
        assert_int_equal(mb_grammar_advance(state, taken), MB_OK);
    }
    mb_grammar_state_close(state);
    mb_grammar_close(grammar);
    free(bits);
}

static void test_masks(void **unused) {
    (void)unused;
    static const char *const grammars[] = {
        "root ::= root \" \" word | word\nword ::= [a-z]+ | \"(\" root \")\" | \"\\\"\" [^\"]* \"\\\"\"",
        "root ::= root [ -.] root | [a-z] | \"(\" root \")\"",
        "root ::= line+\nline ::= \"- \" text \"\\n\" | \"  \" line\ntext ::= [^\\n-] text | [^\\n-]",
        "root ::= \"x\" more? \nmore ::= [a-z ] root? | \"y\" more"};
    for (size_t i = 0; i < sizeof grammars / sizeof *grammars; i++)
        for (uint64_t seed = 0; seed < 3; seed++)
            walk(grammars[i], seed);
}

/* ---- Sentences -------------------------------------------------------------------------------------- */

static void refuse(const char *text, mb_status wanted, const char *sentence) {
    mb_grammar *grammar;
    mb_status status = mb_grammar_compile(byte_trie, MB_GRAMMAR_EBNF, text, strlen(text), &grammar);
    if (status != wanted || !strstr(mb_last_error(), sentence))
        fail_msg("%s\nstatus %d: %s", text, (int)status, status ? mb_last_error() : "");
    assert_null(grammar);
}

#define LONG_NAME "sixty-letters-are-shown-of-a-name-that-has-more-of-them-----" /* 60 letters */

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *text;
        mb_status status;
        const char *sentence;
    } cases[] = {
        {"", MB_ERR_FORMAT, "line 1, column 1: there is no rule root"},
        {"start: \"a\"", MB_ERR_FORMAT, "line 1, column 1: a rule must begin with its name and ::="},
        {"# c\nroot ::= \"\xc3\xa9\" b\nc ::= \"\"", MB_ERR_FORMAT,
         "line 2, column 14: the rule \"b\" is called, but defined nowhere"},
        {"root ::= a", MB_ERR_FORMAT, "line 1, column 10: the rule \"a\" is called, but defined nowhere"},
        {"root ::= " LONG_NAME "rest", MB_ERR_FORMAT,
         "line 1, column 10: the rule \"" LONG_NAME "...\" is called, but defined nowhere"},
        {"root ::= \"a\"\nroot ::= \"b\"", MB_ERR_FORMAT,
         "line 2, column 1: the rule \"root\" is defined a second time"},
        {"root ::= \"a\n\"", MB_ERR_FORMAT, "line 1, column 10: a text without its closing quote"},
        {"root ::= [a", MB_ERR_FORMAT, "line 1, column 10: a set without its closing bracket"},
        {"root ::= []", MB_ERR_FORMAT, "column 10: a set without characters"},
        {"root ::= [z-a]", MB_ERR_FORMAT, "column 11: a range whose end is before its start"},
        {"root ::= (\"a\"", MB_ERR_FORMAT, "column 10: a group without its closing parenthesis"},
        {"root ::= (\"a\"\nb ::= \"b\"", MB_ERR_FORMAT, "column 10: a group without its closing parenthesis"},
        {"root ::= \"a\")", MB_ERR_FORMAT, "column 13: a closing parenthesis without its group"},
        {"root ::= * \"a\"", MB_ERR_FORMAT, "column 10: nothing stands before the repeat"},
        {"root ::= \"a\"?+", MB_ERR_FORMAT, "column 14: a repeat of a repeat"},
        {"root ::= \"a\"{}", MB_ERR_FORMAT, "column 13: a repeat that is none of"},
        {"root ::= \"a\"{3,2}", MB_ERR_FORMAT, "column 13: a repeat whose most is less"},
        {"root ::= \"a\"{3,20000000000}", MB_ERR_CAPACITY, "column 13: a count beyond a million"},
        {"root ::= \"\\q\"", MB_ERR_UNSUPPORTED, "column 11: an escape that is not supported"},
        {"root ::= \"\\u00\"", MB_ERR_FORMAT, "column 11: an escape with too few"},
        {"root ::= \"\\ud800\"", MB_ERR_FORMAT, "column 11: an escape that is no Unicode"},
        {"root ::= 'a'", MB_ERR_FORMAT, "column 10: neither a \"text\""},
        {"root ::= (= \"a\")", MB_ERR_UNSUPPORTED, "column 10: a look-ahead"},
        {"root ::= \"a\" root", MB_ERR_FORMAT, "matches no text at all"},
        {"root ::= root", MB_ERR_FORMAT, "matches no text at all"},
        {"root ::= \"\xff\"", MB_ERR_FORMAT, "not UTF-8 at byte 10"},
        {"\xef\xbb\xbfroot ::= \"a\"", MB_ERR_FORMAT, "the grammar: begins with a byte order mark (BOM)"},
        {"\xff\xfer", MB_ERR_FORMAT, "the grammar: begins with a byte order mark (BOM); save it as UTF-8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(cases[i].text, cases[i].status, cases[i].sentence);
    char *deep = calloc(1, 100000), *end = deep + sprintf(deep, "root ::= ");
    memset(end, '(', 50000);
    refuse(deep, MB_ERR_CAPACITY, "nested more than 100 deep");
    end = deep;
    for (int i = 0; i < 3000; i++)
        end += sprintf(end, "r%d ::= r%d\n", i, i + 1);
    refuse(deep, MB_ERR_CAPACITY, "line 2048, column 11: more than 2048 rules");
    /* As deep as rules can be: each has two calls, so none takes the place of the call. */
    end = deep + sprintf(deep, "root ::= r0\n");
    for (int i = 0; i < 2000; i++)
        end += sprintf(end, "r%d ::= \"a\" r%d \"b\" | \"c\" root\n", i, i + 1);
    sprintf(end, "r2000 ::= \"d\"");
    mb_grammar_close(compile(byte_trie, deep));
    end = deep + sprintf(deep, "root ::= r0\n"); /* and each is called once */
    for (int i = 0; i < 2000; i++)
        end += sprintf(end, "r%d ::= (\"a\" r%d? \"b\")?\n", i, i + 1);
    sprintf(end, "r2000 ::= \"d\"");
    mb_grammar_close(compile(byte_trie, deep));
    free(deep);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_items),         cmocka_unit_test(test_json),
        cmocka_unit_test(test_recursion),     cmocka_unit_test(test_long_recursion),
        cmocka_unit_test(test_against_pcre2), cmocka_unit_test(test_masks),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_ambiguity),
        cmocka_unit_test(test_huge_repeats),
    };
    return cmocka_run_group_tests(tests, open_tries, close_tries);
}
