/* Broken tokenizer.json: each case must give its own status and sentence, in bounded time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/alloc.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/utf8.h"

enum { VOCAB = 400 };

/* The spelling of a byte in tokenizer.json, zero-terminated. */
static void spell_byte(int byte, char out[8]) {
    static const char spaced[] = "!~\xA1\xAC\xAE\xFF"; /* the printable ranges */
    int moved = 0x100;
    memset(out, 0, 8);
    for (int b = 0; b <= byte; b++) {
        int printable = 0;
        for (int r = 0; r < 6; r += 2)
            printable |= b >= (unsigned char)spaced[r] && b <= (unsigned char)spaced[r + 1];
        if (b == byte)
            mb_utf8_encode((uint32_t)(printable ? b : moved), out);
        moved += !printable;
    }
}

/* A tokenizer that opens: 256 bytes, "ab" 256, "abc" 257, <|end|> 258 (special), <x> 300. */
static json_t *make_base(void) {
    json_t *vocab = json_object();
    char spelling[8];
    for (int byte = 0; byte < 256; byte++) {
        spell_byte(byte, spelling);
        json_object_set_new(vocab, spelling, json_integer(byte));
    }
    json_object_set_new(vocab, "ab", json_integer(256));
    json_object_set_new(vocab, "abc", json_integer(257));
    json_t *root =
        json_loads("{\"added_tokens\": [{\"id\": 258, \"content\": \"<|end|>\", \"special\": true, "
                   "\"normalized\": false,"
                   "                     \"single_word\": false, \"lstrip\": false, \"rstrip\": false},"
                   "                    {\"id\": 300, \"content\": \"<x>\", \"special\": false}],"
                   " \"normalizer\": {\"type\": \"NFC\"},"
                   " \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": ["
                   "     {\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\p{L}+|\\\\s+\"}, \"behavior\": "
                   "\"Isolated\","
                   "      \"invert\": false},"
                   "     {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": false}]},"
                   " \"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\"},"
                   " \"model\": {\"type\": \"BPE\", \"merges\": [\"a b\", [\"ab\", \"c\"]]}}",
                   0, NULL);
    assert_non_null(root);
    json_object_set_new(json_object_get(root, "model"), "vocab", vocab);
    return root;
}

typedef struct hostile_case {
    const char *path; /* members and indices, separated by /; + appends to an array; "": the whole document */
    const char *value; /* JSON; NULL removes */
    mb_status status;
    const char *sentence; /* part of it */
} hostile_case;

#define PATTERN "pre_tokenizer/pretokenizers/0/pattern/Regex"

static const hostile_case cases[] = {
    /* the document */
    {"", "[]", MB_ERR_FORMAT, "a tokenizer is a JSON object"},
    {"", "7", MB_ERR_FORMAT, "a tokenizer is a JSON object"},
    {"", "{}", MB_ERR_FORMAT, "\"model\" is missing or not an object"},
    {"model", "[]", MB_ERR_FORMAT, "\"model\" is missing or not an object"},
    {"model", NULL, MB_ERR_FORMAT, "\"model\" is missing or not an object"},
    /* other schemes */
    {"model/type", "\"Unigram\"", MB_ERR_UNSUPPORTED, "\"model\" is \"Unigram\""},
    {"model/type", "3", MB_ERR_UNSUPPORTED, "\"model\" is 3"},
    {"model/dropout", "0.1", MB_ERR_UNSUPPORTED, "\"dropout\" is 0.1"},
    {"model/ignore_merges", "true", MB_ERR_UNSUPPORTED, "\"ignore_merges\" is true"},
    {"model/ignore_merges", "\"no\"", MB_ERR_UNSUPPORTED, "\"ignore_merges\" is \"no\""},
    {"model/continuing_subword_prefix", "\"##\"", MB_ERR_UNSUPPORTED,
     "\"continuing_subword_prefix\" is \"##\""},
    {"model/end_of_word_suffix", "\"</w>\"", MB_ERR_UNSUPPORTED, "\"end_of_word_suffix\" is \"</w>\""},
    {"normalizer", "{\"type\": \"NFKC\"}", MB_ERR_UNSUPPORTED, "\"normalizer\" is \"NFKC\""},
    {"normalizer", "\"NFC\"", MB_ERR_UNSUPPORTED, "\"normalizer\" is \"NFC\""},
    {"pre_tokenizer", "null", MB_ERR_UNSUPPORTED, "\"pre_tokenizer\" is missing"},
    {"pre_tokenizer", "{\"type\": \"ByteLevel\"}", MB_ERR_UNSUPPORTED, "\"pre_tokenizer\" is \"ByteLevel\""},
    {"pre_tokenizer/pretokenizers", "[]", MB_ERR_UNSUPPORTED,
     "\"pre_tokenizer\" is an object; only the byte-level"},
    {"pre_tokenizer/pretokenizers", "{}", MB_ERR_FORMAT,
     "\"pre_tokenizer.pretokenizers\" is an object; it must"},
    {"pre_tokenizer/pretokenizers", NULL, MB_ERR_FORMAT, "\"pre_tokenizer.pretokenizers\" is missing"},
    {"pre_tokenizer/pretokenizers/+", "{\"type\": \"ByteLevel\"}", MB_ERR_UNSUPPORTED,
     "\"pre_tokenizer\" has 3 parts"},
    {"pre_tokenizer/pretokenizers/1", "{\"type\": \"Sequence\", \"pretokenizers\": []}", MB_ERR_UNSUPPORTED,
     "\"pre_tokenizer\" has 1 parts"},
    {"pre_tokenizer/pretokenizers/1",
     "{\"type\": \"Sequence\", \"pretokenizers\": [{}, {}, {}, {}, {}, {}, {}, {}]}", MB_ERR_UNSUPPORTED,
     "\"pre_tokenizer\" is a Sequence of more than 8 parts"},
    {"normalizer",
     "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}, {\"type\": \"Lowercase\"}]}",
     MB_ERR_UNSUPPORTED, "\"normalizer\" is \"Lowercase\""},
    {"decoder", "{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"ByteLevel\"}, {\"type\": \"Fuse\"}]}",
     MB_ERR_UNSUPPORTED, "\"decoder\" has 2 parts"},
    {"decoder", "{\"type\": \"Sequence\", \"decoders\": []}", MB_ERR_UNSUPPORTED, "\"decoder\" is missing"},
    {"decoder", "{\"type\": \"Sequence\"}", MB_ERR_FORMAT, "\"decoder.decoders\" is missing"},
    {"pre_tokenizer/pretokenizers/0/type", "\"Digits\"", MB_ERR_UNSUPPORTED,
     "\"pre_tokenizer\" is \"Digits\""},
    {"pre_tokenizer/pretokenizers/0/pattern", "{\"String\": \" \"}", MB_ERR_UNSUPPORTED,
     "\"pre_tokenizer.pattern\""},
    {"pre_tokenizer/pretokenizers/0/behavior", "\"Removed\"", MB_ERR_UNSUPPORTED,
     "\"pre_tokenizer.behavior\" is \"Removed\""},
    {"pre_tokenizer/pretokenizers/0/invert", "true", MB_ERR_UNSUPPORTED, "\"invert\" is true"},
    {"pre_tokenizer/pretokenizers/1/type", "\"Whitespace\"", MB_ERR_UNSUPPORTED, "is \"Whitespace\""},
    {"pre_tokenizer/pretokenizers/1/use_regex", "true", MB_ERR_UNSUPPORTED, "\"use_regex\" is true"},
    {"pre_tokenizer/pretokenizers/1/use_regex", NULL, MB_ERR_UNSUPPORTED, "\"use_regex\" is missing"},
    {"pre_tokenizer/pretokenizers/1/add_prefix_space", "true", MB_ERR_UNSUPPORTED,
     "\"add_prefix_space\" is true"},
    {"post_processor", "{\"type\": \"BertProcessing\"}", MB_ERR_UNSUPPORTED,
     "\"post_processor\" is \"BertProcessing\""},
    {"post_processor", "{\"type\": \"TemplateProcessing\"}", MB_ERR_UNSUPPORTED, "is not the text alone"},
    {"post_processor", "{\"type\": \"TemplateProcessing\", \"single\": 3}", MB_ERR_UNSUPPORTED,
     "is not the text alone"},
    {"post_processor",
     "{\"type\": \"TemplateProcessing\", \"single\": [{\"Sequence\": {\"id\": \"A\"}}, {\"Sequence\": {\"id\": \"A\"}}]}",
     MB_ERR_UNSUPPORTED, "is not the text alone"},
    {"post_processor",
     "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<s>\"}}, {\"Sequence\": {\"id\": \"A\"}}]}",
     MB_ERR_UNSUPPORTED, "\"post_processor\" adds the token \"<s>\" to every text"},
    {"post_processor",
     "{\"type\": \"Sequence\", \"processors\": [{\"type\": \"ByteLevel\"}, {\"type\": \"TemplateProcessing\", "
     "\"single\": [{\"Sequence\": {\"id\": \"A\"}}, {\"SpecialToken\": {\"id\": \"</s>\"}}]}]}",
     MB_ERR_UNSUPPORTED, "\"post_processor\" adds the token \"</s>\""},
    {"decoder", "null", MB_ERR_UNSUPPORTED, "\"decoder\" is missing"},
    {"decoder", "{\"type\": \"Metaspace\"}", MB_ERR_UNSUPPORTED, "\"decoder\" is \"Metaspace\""},
    /* the pattern */
    {PATTERN, "17", MB_ERR_UNSUPPORTED, "\"Regex\" string"},
    {PATTERN, "\"(\"", MB_ERR_FORMAT, "missing closing parenthesis"},
    {PATTERN, "\"[a\"", MB_ERR_FORMAT, "missing terminating ]"},
    {PATTERN, "\"a{9999999}\"", MB_ERR_FORMAT, "number too big"},
    {PATTERN, "\"(((a{999}){999}){999})\"", MB_ERR_FORMAT, "too large"},
    {PATTERN, "\"*\"", MB_ERR_FORMAT, "quantifier does not follow"},
    {PATTERN, "\"\\\\\"", MB_ERR_UNSUPPORTED, "escape \\? at byte 0"},
    {PATTERN, "\"a\\\\w\"", MB_ERR_UNSUPPORTED, "escape \\w at byte 1"},
    {PATTERN, "\"\\\\p{Han}\"", MB_ERR_UNSUPPORTED, "\\p{Han} at byte 0 is not a general category"},
    {PATTERN, "\"a\\\\P{^Greek}\"", MB_ERR_UNSUPPORTED, "\\P{^Greek} at byte 1 is not a general category"},
    {PATTERN, "\"\\\\p{}\"", MB_ERR_UNSUPPORTED, "\\p{} at byte 0 is not a general category"},
    {PATTERN, "\"\\\\p{L&}\"", MB_ERR_UNSUPPORTED, "\\p{L&} at byte 0 is not a general category"},
    {PATTERN, "\"\\\\pL\"", MB_ERR_UNSUPPORTED, "escape \\p at byte 0 has no name in braces"},
    {PATTERN, "\"\\\\p{L\"", MB_ERR_UNSUPPORTED, "escape \\p at byte 0 has no name in braces"},
    {PATTERN, "\"(?i:a(\\\\p{L}))\"", MB_ERR_UNSUPPORTED, "a category inside of (?i: at byte 6"},
    {PATTERN, "\"\\\\xE9\"", MB_ERR_UNSUPPORTED, "escape \\x at byte 0"},
    {PATTERN, "\"\\\\x{110000}\"", MB_ERR_UNSUPPORTED, "escape \\x at byte 0"},
    {PATTERN, "\"\\\\ud800\"", MB_ERR_UNSUPPORTED, "escape \\u at byte 0"},
    {PATTERN, "\"[]a]\"", MB_ERR_UNSUPPORTED, "a class that begins with ] at byte 0"},
    {PATTERN, "\"[a-\\\\s]\"", MB_ERR_UNSUPPORTED, "a hyphen that is no range at byte 2"},
    {PATTERN, "\"[\\\\s-a]\"", MB_ERR_UNSUPPORTED, "a hyphen that is no range at byte 3"},
    {PATTERN, "\"[a--]\"", MB_ERR_UNSUPPORTED, "a hyphen that is no range at byte 2"},
    {PATTERN, "\"a{2}?\"", MB_ERR_UNSUPPORTED, "a lazy {n}? at byte 3"},
    {PATTERN, "\"(a)\\\\1\"", MB_ERR_UNSUPPORTED, "escape \\1 at byte 3"},
    {PATTERN, "\"(?R)\"", MB_ERR_UNSUPPORTED, "group at byte 0"},
    {PATTERN, "\"(*LIMIT_MATCH=1)a\"", MB_ERR_UNSUPPORTED, "group at byte 0"},
    {PATTERN, "\"(?C1)a\"", MB_ERR_UNSUPPORTED, "group at byte 0"},
    {PATTERN, "\"[a[b]]\"", MB_ERR_UNSUPPORTED, "class within a class at byte 2"},
    {PATTERN, "\"[a&&b]\"", MB_ERR_UNSUPPORTED, "class within a class at byte 2"},
    {PATTERN, "\"a{2}+\"", MB_ERR_UNSUPPORTED, "possessive {n,m}+ at byte 3"},
    /* the vocabulary */
    {"model/vocab", NULL, MB_ERR_FORMAT, "\"model\" has no object \"vocab\""},
    {"model/vocab", "[\"a\"]", MB_ERR_FORMAT, "\"model\" has no object \"vocab\""},
    {"model/vocab", "{}", MB_ERR_FORMAT, "the vocabulary is empty"},
    {"model/vocab/ab", "-1", MB_ERR_FORMAT, "the id of token \"ab\" is -1"},
    {"model/vocab/ab", "9223372036854775807", MB_ERR_FORMAT, "has the id 9223372036854775807"},
    {"model/vocab/ab", "400", MB_ERR_FORMAT, "\"ab\" has the id 400, but the model's vocab_size is 400"},
    {"model/vocab/ab", "1.0", MB_ERR_FORMAT, "the id of token \"ab\" is 1.0"},
    {"model/vocab/ab", "\"256\"", MB_ERR_FORMAT, "the id of token \"ab\" is \"256\""},
    {"model/vocab/ab", "null", MB_ERR_FORMAT, "the id of token \"ab\" is null"},
    {"model/vocab/ab", "257", MB_ERR_FORMAT, "two tokens have the id 257"},
    {"model/vocab/ab", "5", MB_ERR_FORMAT, "two tokens have the id 5"},
    {"model/vocab/ab", NULL, MB_ERR_FORMAT, "no token has the id 256, which lies within the vocabulary"},
    {"model/vocab/abc", "299", MB_ERR_FORMAT, "gaps or doubles: 258 tokens, but ids go up to 299"},
    {"model/vocab/", "258", MB_ERR_FORMAT, "the vocabulary has an empty token (id 258)"},
    {"model/vocab/new", "258", MB_ERR_FORMAT,
     "the id 258 belongs to an added token and to another one, \"new\""},
    {"model/vocab/a b", "259", MB_ERR_FORMAT,
     "token \"a b\" (id 259) has a character that stands for no byte"},
    {"model/vocab/\xE6\xBC\xA2", "259", MB_ERR_FORMAT, "(id 259) has a character that stands for no byte"},
    {"model/vocab/\xC2\xAD", "259", MB_ERR_FORMAT, "(id 259) has a character that stands for no byte"},
    {"model/vocab/<x>", "259", MB_ERR_FORMAT,
     "added token \"<x>\" has the id 300, but 259 in the vocabulary"},
    {"model/vocab/a", NULL, MB_ERR_FORMAT, "no token has the id 97"},
    /* the merges */
    {"model/merges", NULL, MB_ERR_FORMAT, "\"model\" has no array \"merges\""},
    {"model/merges", "{}", MB_ERR_FORMAT, "\"model\" has no array \"merges\""},
    {"model/merges/0", "\"ab\"", MB_ERR_FORMAT, "merge 0 is neither"},
    {"model/merges/0", "\"a b c\"", MB_ERR_FORMAT, "merge 0 is neither"},
    {"model/merges/0", "[\"a\"]", MB_ERR_FORMAT, "merge 0 is neither"},
    {"model/merges/1", "[\"a\", 3]", MB_ERR_FORMAT, "merge 1 is neither"},
    {"model/merges/1", "null", MB_ERR_FORMAT, "merge 1 is neither"},
    {"model/merges/1", "\" b\"", MB_ERR_FORMAT, "whose left part is not in the vocabulary"},
    {"model/merges/1", "\"b \"", MB_ERR_FORMAT, "whose right part is not in the vocabulary"},
    {"model/merges/1", "[\"zz\", \"a\"]", MB_ERR_FORMAT, "merge 1 has \"zz\", whose left part"},
    {"model/merges/1", "[\"a\", \"zz\"]", MB_ERR_FORMAT, "merge 1 has \"zz\", whose right part"},
    {"model/merges/1", "[\"a\", \"\xE6\xBC\xA2\"]", MB_ERR_FORMAT,
     "whose right part is not in the vocabulary"},
    {"model/merges/1", "\"b b\"", MB_ERR_FORMAT, "makes a token that is not in the vocabulary"},
    {"model/merges/1", "\"a b\"", MB_ERR_FORMAT, "merge 1, of tokens 97 and 98, is there twice"},
    /* added tokens */
    {"added_tokens", "{}", MB_ERR_FORMAT, "\"added_tokens\" is an object; it must be an array"},
    {"added_tokens/+", "17", MB_ERR_FORMAT, "\"added_tokens\"[2] has no string \"content\""},
    {"added_tokens/+", "{\"id\": 301}", MB_ERR_FORMAT, "\"added_tokens\"[2] has no string \"content\""},
    {"added_tokens/0/content", "\"\"", MB_ERR_FORMAT, "\"added_tokens\"[0] is an empty token"},
    {"added_tokens/0/content", "\"<x>\"", MB_ERR_FORMAT, "added token \"<x>\" is there twice"},
    {"added_tokens/0/id", NULL, MB_ERR_FORMAT, "the id of token \"<|end|>\" is missing"},
    {"added_tokens/0/id", "-5", MB_ERR_FORMAT, "the id of token \"<|end|>\" is -5"},
    {"added_tokens/0/id", "400", MB_ERR_FORMAT, "has the id 400, but the model's vocab_size is 400"},
    {"added_tokens/0/id", "300", MB_ERR_FORMAT, "two added tokens have the id 300"},
    {"added_tokens/0/id", "97", MB_ERR_FORMAT,
     "the id 97 belongs to an added token and to another one, \"a\""},
    {"added_tokens/0/content", "\"abc\"", MB_ERR_FORMAT,
     "added token \"abc\" has the id 258, but 257 in the"},
    {"added_tokens/0/single_word", "0", MB_ERR_FORMAT,
     "\"single_word\" of added token \"<|end|>\" is not true"},
    {"added_tokens/0/lstrip", "\"yes\"", MB_ERR_FORMAT, "\"lstrip\" of added token"},
    {"added_tokens/0/rstrip", "null", MB_ERR_FORMAT, "\"rstrip\" of added token"},
    {"added_tokens/0/special", "1", MB_ERR_FORMAT,
     "\"special\" of added token \"<|end|>\" is not true or false"},
    {"added_tokens/0/normalized", "\"\"", MB_ERR_FORMAT, "\"normalized\" of added token"},
};

/* The value at `path` replaced, removed or appended. */
static void change(json_t **root, const char *path, const char *value) {
    json_t *new = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
    assert_true(!value || new);
    if (path[0] == '\0') {
        json_decref(*root);
        *root = new;
        return;
    }
    json_t *at = *root;
    const char *slash;
    char name[64];
    for (; (slash = strchr(path, '/')) != NULL && strncmp(path, "</", 2) != 0; path = slash + 1) {
        snprintf(name, sizeof name, "%.*s", (int)(slash - path), path);
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(name)) : json_object_get(at, name);
        assert_non_null(at);
    }
    if (strcmp(path, "+") == 0)
        json_array_append_new(at, new);
    else if (json_is_array(at))
        json_array_set_new(at, (size_t)atoi(path), new);
    else if (new)
        json_object_set_new(at, path, new);
    else
        json_object_del(at, path);
}

static mb_status open_text(const char *path, const char *text, int32_t vocab, mb_tokenizer **tokenizer) {
    mb_tokenizer_files files = {.tokenizer = {path, text, strlen(text)}};
    return mb_tokenizer_open(&files, vocab, tokenizer);
}

static mb_status open_changed(const char *path, const char *value, mb_tokenizer **tokenizer) {
    json_t *root = make_base();
    if (path)
        change(&root, path, value);
    char *text = json_dumps(root, JSON_ENCODE_ANY);
    json_decref(root);
    assert_non_null(text);
    mb_status status = open_text("dir/tokenizer.json", text, VOCAB, tokenizer);
    free(text);
    return status;
}

static void expect(const char *what, mb_status got, mb_status wanted, const char *sentence) {
    if (got != wanted || !strstr(mb_last_error(), sentence))
        fail_msg("%s: got %s \"%s\", wanted %s \"...%s...\"", what, mb_status_name(got), mb_last_error(),
                 mb_status_name(wanted), sentence);
}

static void test_base_opens(void **state) {
    (void)state;
    mb_tokenizer *tokenizer;
    assert_int_equal(open_changed(NULL, NULL, &tokenizer), MB_OK);
    assert_int_equal(mb_tokenizer_size(tokenizer), 301);
    mb_tokenizer_close(tokenizer);
}

static void test_cases(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char what[200];
        mb_tokenizer *tokenizer = (mb_tokenizer *)&tokenizer;
        snprintf(what, sizeof what, "%s = %s", cases[i].path, cases[i].value ? cases[i].value : "(removed)");
        mb_status status = open_changed(cases[i].path, cases[i].value, &tokenizer);
        expect(what, status, cases[i].status, cases[i].sentence);
        assert_null(tokenizer);
        if (cases[i].path[0] && !strstr(mb_last_error(), "dir/tokenizer.json"))
            fail_msg("%s: the sentence does not name the file: %s", what, mb_last_error());
    }
}

/* What no json_dumps would write. */
static void test_raw_documents(void **state) {
    (void)state;
    static const hostile_case raw[] = {
        {"", "", MB_ERR_FORMAT, "not valid JSON"},
        {"", "{\"model\": {\"vocab\": {\"a\": 1, \"a\": 2}}}", MB_ERR_FORMAT, "duplicate object key"},
        {"", "{\"model\": {\"vocab\": {\"\\ud800\": 1}}}", MB_ERR_FORMAT, "not valid JSON"},
        {"", "{\"model\": {\"vocab\": {\"\\udc00\\ud800\": 1}}}", MB_ERR_FORMAT, "not valid JSON"},
        {"", "{\"model\": {\"vocab\": {\"a\": 99999999999999999999}}}", MB_ERR_UNSUPPORTED,
         "\"pre_tokenizer\" is missing"},
        {"", "{\"model\": {\"vocab\": {\"a\": NaN}}}", MB_ERR_UNSUPPORTED, "\"pre_tokenizer\" is missing"},
        {"", "{\"model\": {\"merges\": [\"\xff \xff\"]}}", MB_ERR_FORMAT, "unable to decode byte 0xff"},
        {"", "{\"model\"", MB_ERR_FORMAT, "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof raw / sizeof *raw; i++) {
        mb_tokenizer *tokenizer;
        mb_status status = open_text("tokenizer.json", raw[i].value, VOCAB, &tokenizer);
        expect(raw[i].value, status, raw[i].status, raw[i].sentence);
    }
    char *deep = calloc(300001, 1);
    memset(deep, '[', 300000);
    mb_tokenizer *tokenizer;
    expect("deep", open_text("tokenizer.json", deep, VOCAB, &tokenizer), MB_ERR_FORMAT, "nested deeper");
    free(deep);
}

/* Nested repeats: every way of cutting the a's is tried, until the limit on steps. */
static void test_catastrophic_patterns(void **state) {
    (void)state;
    static const char *const patterns[] = {"\"(a+)+$\"", "\"(?:a|a)*b\"", "\"(?:a*)*b\"", "\"(a|aa)*c\"",
                                           "\"(?:(?:a?){30}){30}b\""};
    char text[4096];
    memset(text, 'a', sizeof text);
    memcpy(text + sizeof text - 3, "!bc", 3);
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        mb_tokenizer *tokenizer;
        assert_int_equal(open_changed(PATTERN, patterns[i], &tokenizer), MB_OK);
        int32_t *ids;
        size_t n_ids;
        clock_t start = clock();
        mb_status status = mb_tokenizer_encode(tokenizer, text, sizeof text, 1, &ids, &n_ids);
        expect(patterns[i], status, MB_ERR_CAPACITY, "needs too many steps at byte");
        assert_true((double)(clock() - start) / CLOCKS_PER_SEC <
                    20); /* sanitizers are slow; natively 0.1 s */
        mb_tokenizer_close(tokenizer);
    }
}

/* tokenizer_config.json and added_tokens.json beside a tokenizer that opens. */
static void test_other_files(void **state) {
    (void)state;
    static const struct {
        const char *config, *added;
        mb_status status;
        const char *sentence;
    } others[] = {
        {"[]", NULL, MB_ERR_FORMAT, "dir/tokenizer_config.json: the document is an array"},
        {"{", NULL, MB_ERR_FORMAT, "dir/tokenizer_config.json: not valid JSON"},
        {"{}", "[\"<y>\"]", MB_ERR_FORMAT, "dir/added_tokens.json: the document is an array"},
        {"{}", "\xff", MB_ERR_FORMAT, "dir/added_tokens.json: not valid JSON"},
        {"{\"added_tokens_decoder\": []}", NULL, MB_ERR_FORMAT,
         "\"added_tokens_decoder\" is an array; it must be an object"},
        {"{\"added_tokens_decoder\": {\"301\": \"<y>\"}}", NULL, MB_ERR_FORMAT,
         "\"added_tokens_decoder\".\"301\" has no string \"content\""},
        {"{\"added_tokens_decoder\": {\"301\": {\"content\": \"\"}}}", NULL, MB_ERR_FORMAT,
         "\"added_tokens_decoder\".\"301\" is an empty token"},
        {"{\"added_tokens_decoder\": {\"301\": {\"content\": \"<y>\", \"lstrip\": 1}}}", NULL, MB_ERR_FORMAT,
         "\"lstrip\" of added token \"<y>\" is not true or false"},
        {"{\"added_tokens_decoder\": {\"x\": {\"content\": \"<y>\"}}}", NULL, MB_ERR_FORMAT,
         "the id of token \"<y>\" is \"x\""},
        {"{\"added_tokens_decoder\": {\"-1\": {\"content\": \"<y>\"}}}", NULL, MB_ERR_FORMAT,
         "the id of token \"<y>\" is \"-1\""},
        {"{\"added_tokens_decoder\": {\"400\": {\"content\": \"<y>\"}}}", NULL, MB_OK, ""},
        {"{\"added_tokens_decoder\": {\"99999999999999999999\": {\"content\": \"<y>\"}}}", NULL, MB_OK, ""},
        {NULL, "{\"<y>\": 400}", MB_OK, ""},
        {NULL, "{\"<y>\": 99999999999999999999}", MB_ERR_FORMAT,
         "the id of token \"<y>\" is 99999999999999999999"},
        {"{\"added_tokens_decoder\": {\"300\": {\"content\": \"<y>\"}}}", NULL, MB_ERR_FORMAT,
         "dir/tokenizer.json or dir/tokenizer_config.json: two added tokens have the id 300: \"<"},
        {"{\"added_tokens_decoder\": {\"97\": {\"content\": \"<y>\"}}}", NULL, MB_ERR_FORMAT,
         "the id 97 belongs to an added token and to another one, \"a\""},
        {"{\"added_tokens_decoder\": {\"301\": {\"content\": \"<y>\"}, \"302\": {\"content\": \"<y>\"}}}",
         NULL, MB_ERR_FORMAT, "added token \"<y>\" is there twice"},
        {NULL, "{\"<y>\": \"301\"}", MB_ERR_FORMAT,
         "dir/added_tokens.json: the id of token \"<y>\" is \"301\""},
        {NULL, "{\"<y>\": 300}", MB_ERR_FORMAT,
         "dir/tokenizer.json or dir/added_tokens.json: two added tokens"},
        {NULL, "{\"\": 301}", MB_ERR_UNSUPPORTED, "token \"\" has 0 bytes; it must have 1 to 512"},
        {"{\"eos_token\": 3, \"pad_token\": [], \"extra_special_tokens\": 7, \"additional_special_tokens\": [1]}",
         NULL, MB_OK, ""},
    };
    json_t *root = make_base();
    char *text = json_dumps(root, 0);
    json_decref(root);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        const char *config = others[i].config, *added = others[i].added;
        mb_tokenizer_files files = {{"dir/tokenizer.json", text, strlen(text)},
                                    {"dir/tokenizer_config.json", config, config ? strlen(config) : 0},
                                    {"dir/added_tokens.json", added, added ? strlen(added) : 0}};
        mb_tokenizer *tokenizer;
        expect(config ? config : added, mb_tokenizer_open(&files, VOCAB, &tokenizer), others[i].status,
               others[i].sentence);
        mb_tokenizer_close(tokenizer);
    }
    free(text);
}

static void test_token_too_long(void **state) {
    (void)state;
    char value[600] = "\"";
    memset(value + 1, 'x', 513);
    strcpy(value + 514, "\"");
    mb_tokenizer *tokenizer;
    expect("long", open_changed("added_tokens/0/content", value, &tokenizer), MB_ERR_UNSUPPORTED,
           "\"added_tokens\"[0] has 513 bytes, more than 512");
}

/* A million added tokens that start alike: opening and encoding stay quick. */
static void test_million_added_tokens(void **state) {
    (void)state;
    enum { N = 1000000, FIRST = 1000 };
    json_t *root = make_base(), *added = json_array();
    for (int i = 0; i < N; i++) {
        char content[32];
        snprintf(content, sizeof content, "<|extra_%d|>", i);
        json_array_append_new(added, json_pack("{s:i, s:s}", "id", FIRST + i, "content", content));
    }
    json_object_set_new(root, "added_tokens", added);
    char *json = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    assert_non_null(json);

    mb_tokenizer *tokenizer;
    clock_t start = clock();
    assert_int_equal(open_text("tokenizer.json", json, FIRST + N, &tokenizer), MB_OK);
    static const char text[] = "<|extra_7|><|extra_77|><|extra_999999|><|extra_1000000|>";
    int32_t *ids;
    size_t n_ids;
    assert_int_equal(mb_tokenizer_encode(tokenizer, text, strlen(text), 1, &ids, &n_ids), MB_OK);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    assert_int_equal(ids[0], FIRST + 7);
    assert_int_equal(ids[1], FIRST + 77);
    assert_int_equal(ids[2], FIRST + 999999);
    assert_int_equal(n_ids, 3 + strlen("<|extra_1000000|>"));
    assert_true(seconds < 30); /* under a sanitizer; natively about 2 s */
    mb_free(ids);
    mb_tokenizer_close(tokenizer);

    expect("too many", open_text("tokenizer.json", json, 5000, &tokenizer), MB_ERR_FORMAT,
           "1000000 added tokens, but the model's vocab_size is 5000");
    free(json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base_opens),           cmocka_unit_test(test_cases),
        cmocka_unit_test(test_raw_documents),        cmocka_unit_test(test_catastrophic_patterns),
        cmocka_unit_test(test_other_files),          cmocka_unit_test(test_token_too_long),
        cmocka_unit_test(test_million_added_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
