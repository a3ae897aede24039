/*
 * tokenizer_json.c - opening: tokenizer.json checked and turned into the tokenizer's tables.
 *
 * The ids of the vocabulary, and of added tokens among them, have no gaps and no doubles. Above the
 * vocabulary added tokens keep the ids that the files give them, and gaps are legal: embeddings are often
 * larger than the vocabulary (151,936 rows for Qwen3's 151,669 tokens). The reference numbers tokens behind
 * a gap anew, away from the embeddings that they were trained with.
 */
#include <string.h>

#include "base/alloc.h"
#include "model/json.h"
#include "model/tokenizer/added_tokens_json.h"
#include "model/tokenizer/tokenizer_parts.h"
#include "model/tokenizer/tokenizer_scheme.h"
#include "model/tokenizer/utf8.h"

enum { SHOWN = 64 };

typedef struct loading {
    const char *path;
    int32_t vocab;
    mb_tokenizer *tokenizer;
} loading;

static mb_status no_memory(const loading *l) {
    return mb_fail(MB_ERR_MEMORY, "%s: no memory for the tokenizer", l->path);
}

/* ---- Vocabulary --------------------------------------------------------------------------------------- */

/* The ids of the vocabulary have no gaps, so they are below the number of tokens. */
static mb_status count_tokens(const loading *l, const json_t *tokens, int32_t *n_tokens, size_t *n_bytes) {
    const char *spelling;
    json_t *value;
    int32_t largest = -1;
    *n_bytes = 0;
    json_object_foreach((json_t *)tokens, spelling, value) {
        int32_t id;
        MB_TRY(mb_token_id_read(l->path, spelling, value, l->vocab, &id));
        largest = id > largest ? id : largest;
        *n_bytes += strlen(spelling);
    }
    if (largest < 0)
        return mb_fail(MB_ERR_FORMAT, "%s: the vocabulary is empty", l->path);
    if ((size_t)largest >= json_object_size(tokens) + l->tokenizer->n_added)
        return mb_fail(MB_ERR_FORMAT,
                       "%s: the vocabulary's ids have gaps or doubles: %zu tokens, but ids go up to %d",
                       l->path, json_object_size(tokens), largest);
    *n_tokens = largest + 1;
    return MB_OK;
}

static mb_status read_token(const loading *l, const char *spelling, int32_t id) {
    mb_vocabulary *vocabulary = &l->tokenizer->vocabulary;
    mb_token_text *token = &vocabulary->tokens[id];
    char quoted[SHOWN];
    size_t n_spelling = strlen(spelling);
    if (n_spelling == 0)
        return mb_fail(MB_ERR_FORMAT, "%s: the vocabulary has an empty token (id %d)", l->path, id);
    if (token->bytes)
        return mb_fail(MB_ERR_FORMAT, "%s: two tokens have the id %d, one of them is %s", l->path, id,
                       mb_quote(quoted, sizeof quoted, spelling));
    const mb_added_token *added = mb_tokenizer_added(l->tokenizer, id);
    int is_added = added && strcmp(added->content, spelling) == 0;
    if (added && !is_added)
        return mb_fail(MB_ERR_FORMAT, "%s: the id %d belongs to an added token and to another one, %s",
                       l->path, id, mb_quote(quoted, sizeof quoted, spelling));
    char *bytes = mb_vocabulary_claim(vocabulary, n_spelling);
    ptrdiff_t n = mb_byte_alphabet_decode(spelling, n_spelling, bytes);
    if (n < 0 && !is_added)
        return mb_fail(MB_ERR_FORMAT,
                       "%s: token %s (id %d) has a character that stands for no byte in byte-level BPE",
                       l->path, mb_quote(quoted, sizeof quoted, spelling), id);
    if (n < 0) { /* an added token's bytes are its content; no merge makes them */
        memcpy(bytes, spelling, n_spelling);
        *token = (mb_token_text){bytes, (uint32_t)n_spelling};
        return MB_OK;
    }
    *token = (mb_token_text){bytes, (uint32_t)n};
    if (!mb_vocabulary_index(vocabulary, id))
        return mb_fail(MB_ERR_FORMAT, "%s: token %s (id %d) has the bytes of another token", l->path,
                       mb_quote(quoted, sizeof quoted, spelling), id);
    return MB_OK;
}

/* Every id up to the largest one has a token. Every byte has a token. An added token that also stands in the
 * vocabulary has the vocabulary's id. */
static mb_status check_vocabulary(const loading *l) {
    mb_tokenizer *t = l->tokenizer;
    char quoted[SHOWN];
    for (int32_t id = 0; id < t->vocabulary.n_tokens; id++)
        if (!t->vocabulary.tokens[id].bytes && !mb_tokenizer_added(t, id))
            return mb_fail(MB_ERR_FORMAT, "%s: no token has the id %d, which lies within the vocabulary",
                           l->path, id);
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)(unsigned char)byte;
        t->bpe.byte_ids[byte] = mb_vocabulary_find(&t->vocabulary, &c, 1);
        if (t->bpe.byte_ids[byte] < 0)
            return mb_fail(MB_ERR_FORMAT, "%s: the vocabulary has no token for the byte 0x%02X", l->path,
                           byte);
    }
    for (size_t i = 0; i < t->n_added; i++) {
        const mb_added_token *added = &t->added[i];
        char spelled[MB_ADDED_TOKEN_MAX_BYTES];
        ptrdiff_t n = mb_byte_alphabet_decode(added->content, added->n_content, spelled);
        int32_t id = n < 0 ? -1 : mb_vocabulary_find(&t->vocabulary, spelled, (size_t)n);
        if (id >= 0 && id != added->id)
            return mb_fail(MB_ERR_FORMAT, "%s: added token %s has the id %d, but %d in the vocabulary",
                           l->path, mb_quote(quoted, sizeof quoted, added->content), added->id, id);
    }
    return MB_OK;
}

static mb_status read_vocabulary(const loading *l, const json_t *tokens) {
    mb_tokenizer *t = l->tokenizer;
    if (!json_is_object(tokens))
        return mb_fail(MB_ERR_FORMAT, "%s: \"model\" has no object \"vocab\"", l->path);
    int32_t n_tokens = 0;
    size_t n_bytes = 0;
    MB_TRY(count_tokens(l, tokens, &n_tokens, &n_bytes));
    MB_TRY(mb_vocabulary_init(&t->vocabulary, l->path, n_tokens, n_bytes));
    const char *spelling;
    json_t *value;
    json_object_foreach((json_t *)tokens, spelling, value)
        MB_TRY(read_token(l, spelling, (int32_t)json_integer_value(value)));
    MB_TRY(check_vocabulary(l));
    t->n_ids = n_tokens;
    if (t->n_added > 0 && t->added[t->n_added - 1].id >= n_tokens)
        t->n_ids = t->added[t->n_added - 1].id + 1;
    return MB_OK;
}

/* ---- Merges ------------------------------------------------------------------------------------------- */

typedef struct spelled {
    const char *text;
    size_t n_bytes;
} spelled;

/* "left right" or ["left", "right"]. */
static int split_merge(const json_t *item, spelled pair[2]) {
    if (json_is_array(item) && json_array_size(item) == 2) {
        for (size_t side = 0; side < 2; side++) {
            const json_t *text = json_array_get(item, side);
            pair[side] = (spelled){json_string_value(text), json_string_length(text)};
        }
        return pair[0].text && pair[1].text;
    }
    const char *text = json_string_value(item);
    const char *space = text ? strchr(text, ' ') : NULL;
    if (!space || strchr(space + 1, ' '))
        return 0;
    pair[0] = (spelled){text, (size_t)(space - text)};
    pair[1] = (spelled){space + 1, strlen(space + 1)};
    return 1;
}

/* Adds the merge of two tokens to the table. `bytes` has room for both spellings. */
static mb_status read_merge(const loading *l, size_t rank, const spelled pair[2], char *bytes) {
    mb_tokenizer *t = l->tokenizer;
    char quoted[SHOWN];
    int32_t ids[2];
    size_t n_bytes = 0;
    for (int side = 0; side < 2; side++) {
        ptrdiff_t n = mb_byte_alphabet_decode(pair[side].text, pair[side].n_bytes, bytes + n_bytes);
        ids[side] = n <= 0 ? -1 : mb_vocabulary_find(&t->vocabulary, bytes + n_bytes, (size_t)n);
        if (ids[side] < 0)
            return mb_fail(MB_ERR_FORMAT, "%s: merge %zu has %s, whose %s part is not in the vocabulary",
                           l->path, rank, mb_quote(quoted, sizeof quoted, pair[side].text),
                           side ? "right" : "left");
        n_bytes += (size_t)n;
    }
    int32_t merged = mb_vocabulary_find(&t->vocabulary, bytes, n_bytes);
    if (merged < 0)
        return mb_fail(MB_ERR_FORMAT,
                       "%s: merge %zu, of tokens %d and %d, makes a token that is not in the vocabulary",
                       l->path, rank, ids[0], ids[1]);
    if (!mb_bpe_add(&t->bpe, (mb_merge){ids[0], ids[1], (int32_t)rank, merged}))
        return mb_fail(MB_ERR_FORMAT, "%s: merge %zu, of tokens %d and %d, is there twice", l->path, rank,
                       ids[0], ids[1]);
    return MB_OK;
}

static mb_status read_merges(const loading *l, const json_t *merges) {
    if (!json_is_array(merges))
        return mb_fail(MB_ERR_FORMAT, "%s: \"model\" has no array \"merges\"", l->path);
    size_t n = json_array_size(merges);
    if (n > INT32_MAX)
        return mb_fail(MB_ERR_FORMAT, "%s: %zu merges are too many", l->path, n);
    MB_TRY(mb_bpe_init(&l->tokenizer->bpe, l->path, n));
    char *bytes = NULL;
    size_t capacity = 0;
    mb_status status = MB_OK;
    for (size_t rank = 0; rank < n && status == MB_OK; rank++) {
        spelled pair[2];
        if (!split_merge(json_array_get(merges, rank), pair))
            status =
                mb_fail(MB_ERR_FORMAT, "%s: merge %zu is neither \"left right\" nor [\"left\", \"right\"]",
                        l->path, rank);
        else if (mb_grow((void **)&bytes, &capacity, pair[0].n_bytes + pair[1].n_bytes, 1) != 0)
            status = no_memory(l);
        else
            status = read_merge(l, rank, pair, bytes);
    }
    mb_free(bytes);
    return status;
}

/* ---- The whole tokenizer ------------------------------------------------------------------------------ */

static mb_status read_all(const loading *l, const mb_added_sources *sources) {
    const json_t *root = sources->root, *model = json_object_get(root, "model");
    mb_tokenizer_scheme scheme;
    MB_TRY(mb_tokenizer_scheme_read(l->path, root, &scheme));
    l->tokenizer->uses_nfc = scheme.uses_nfc;
    MB_TRY(mb_pretokenizer_open(l->path, scheme.pattern, &l->tokenizer->pretokenizer));
    MB_TRY(mb_added_tokens_read(sources, l->tokenizer));
    MB_TRY(read_vocabulary(l, json_object_get(model, "vocab")));
    return read_merges(l, json_object_get(model, "merges"));
}

static mb_status parse_config(const mb_tokenizer_file *file, json_t **root) {
    return file->bytes ? mb_json_parse_config(file->path, file->bytes, file->n_bytes, root) : MB_OK;
}

static mb_status open(const mb_tokenizer_files *files, const loading *l) {
    json_t *root = NULL, *config = NULL, *legacy = NULL;
    const mb_tokenizer_file *file = &files->tokenizer;
    mb_status status = mb_json_parse(file->path, file->bytes, file->n_bytes, &root);
    if (status == MB_OK)
        status = parse_config(&files->config, &config);
    if (status == MB_OK)
        status = parse_config(&files->added_tokens, &legacy);
    mb_added_sources sources = {
        .path = files->tokenizer.path,
        .config_path = files->config.path,
        .legacy_path = files->added_tokens.path,
        .root = root,
        .config = config,
        .legacy = legacy,
        .vocab = l->vocab,
    };
    if (status == MB_OK)
        status = read_all(l, &sources);
    mb_json_free(legacy);
    mb_json_free(config);
    mb_json_free(root);
    return status;
}

mb_status mb_tokenizer_open(const mb_tokenizer_files *files, int32_t vocab, mb_tokenizer **tokenizer) {
    *tokenizer = NULL;
    loading l = {
        .path = files->tokenizer.path, .vocab = vocab, .tokenizer = mb_calloc(1, sizeof *l.tokenizer)};
    if (!l.tokenizer)
        return no_memory(&l);
    l.tokenizer->n_rows = vocab;
    mb_status status = open(files, &l);
    if (status == MB_OK)
        *tokenizer = l.tokenizer;
    else
        mb_tokenizer_close(l.tokenizer);
    return status;
}
