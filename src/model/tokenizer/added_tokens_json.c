#include "model/tokenizer/added_tokens_json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "model/json.h"
#include "model/json_values.h"
#include "model/tokenizer/normalize.h"

enum { SHOWN = 64 };

/* A special token that the configuration names: a string, or an object with a string "content". */
typedef struct named_token {
    const char *content;
    const json_t *item;
    size_t order; /* in the configuration */
    int has_role; /* "eos_token" and the like, not one of a list */
} named_token;

/* Tokens that one warning is about: the first of them, and their number. */
typedef struct noted {
    const char *first;
    size_t n;
} noted;

typedef struct reading {
    const mb_added_sources *from;
    mb_tokenizer *tokenizer;
    const json_t *vocabulary;     /* "vocab" of tokenizer.json, an object or NULL */
    named_token *named;           /* by content, each content once */
    const mb_added_token **known; /* the tokens read so far, by content */
    size_t n_named, n_known;
    noted other_ids, other_flags, beyond; /* tokens of the other files, for warnings */
} reading;

static mb_status no_memory(const reading *r) {
    return mb_fail(MB_ERR_MEMORY, "%s: no memory for the added tokens", r->from->path);
}

mb_status mb_token_id_read(const char *path, const char *token, const json_t *value, int32_t vocab,
                           int32_t *id) {
    char quoted[SHOWN], shown[SHOWN];
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < 0)
        return mb_fail(MB_ERR_FORMAT, "%s: the id of token %s is %s; it must be an integer >= 0", path,
                       mb_quote(quoted, sizeof quoted, token),
                       value ? mb_json_describe(shown, sizeof shown, value) : "missing");
    if (number >= vocab)
        return mb_fail(MB_ERR_FORMAT, "%s: token %s has the id %lld, but the model's vocab_size is %d", path,
                       mb_quote(quoted, sizeof quoted, token), (long long)number, vocab);
    *id = (int32_t)number;
    return MB_OK;
}

/* An id as a key of "added_tokens_decoder" spells it, in decimal digits; what is too large becomes
 * INT32_MAX. */
static mb_status read_id_key(const char *path, const char *token, const char *key, int32_t *id) {
    char quoted[SHOWN], shown[SHOWN];
    size_t n = strlen(key);
    if (n < 1 || strspn(key, "0123456789") != n)
        return mb_fail(MB_ERR_FORMAT, "%s: the id of token %s is %s; it must be an integer >= 0", path,
                       mb_quote(quoted, sizeof quoted, token), mb_quote(shown, sizeof shown, key));
    *id = n > 9 ? INT32_MAX : atoi(key);
    return MB_OK;
}

static void note(noted *tokens, const char *content) {
    if (tokens->n++ == 0)
        tokens->first = content;
}

/* A warning about the noted tokens, when there are any. */
static void warn(const char *path, const noted *tokens, const char *what, const char *other_path,
                 const char *end) {
    char quoted[SHOWN];
    if (tokens->n > 0)
        mb_log(MB_LOG_WARN, "%s: token %s%s %s%s%s", path, mb_quote(quoted, sizeof quoted, tokens->first),
               tokens->n > 1 ? " (and others)" : "", what, other_path, end);
}

/* ---- Special tokens by name --------------------------------------------------------------------------- */

static const char *const roles[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                    "pad_token", "cls_token", "mask_token"};
static const char *const lists[] = {"additional_special_tokens", "extra_special_tokens"};

enum { N_ROLES = sizeof roles / sizeof *roles, N_LISTS = sizeof lists / sizeof *lists };

static int compare_named(const void *a, const void *b) {
    const named_token *x = a, *y = b;
    int order = strcmp(x->content, y->content);
    return order ? order : (x->order > y->order) - (x->order < y->order);
}

static int compare_orders(const void *a, const void *b) {
    const named_token *x = a, *y = b;
    return (x->order > y->order) - (x->order < y->order);
}

static void take_named(reading *r, const json_t *item, int has_role) {
    const char *content = json_string_value(json_is_object(item) ? json_object_get(item, "content") : item);
    if (!content || !content[0])
        return;
    r->named[r->n_named] = (named_token){content, item, r->n_named, has_role};
    r->n_named++;
}

static mb_status collect_named(reading *r) {
    const json_t *config = r->from->config;
    size_t n = N_ROLES, i;
    for (size_t k = 0; k < N_LISTS; k++) {
        const json_t *list = json_object_get(config, lists[k]);
        n += json_array_size(list) + json_object_size(list);
    }
    r->named = mb_malloc_array(n, sizeof *r->named);
    if (!r->named)
        return no_memory(r);
    for (size_t k = 0; k < N_ROLES; k++)
        take_named(r, json_object_get(config, roles[k]), 1);
    for (size_t k = 0; k < N_LISTS; k++) {
        const json_t *list = json_object_get(config, lists[k]);
        const char *key;
        json_t *item;
        json_array_foreach((json_t *)list, i, item) take_named(r, item, 0);
        json_object_foreach((json_t *)list, key, item) /* {"image_token": "<image>"} */
            take_named(r, item, 1);
    }
    qsort(r->named, r->n_named, sizeof *r->named, compare_named);
    size_t n_kept = 0;
    for (i = 0; i < r->n_named; i++)
        if (n_kept == 0 || strcmp(r->named[n_kept - 1].content, r->named[i].content) != 0)
            r->named[n_kept++] = r->named[i];
    r->n_named = n_kept;
    return MB_OK;
}

static int compare_to_named(const void *content, const void *named) {
    return strcmp(content, ((const named_token *)named)->content);
}

static const named_token *find_named(const reading *r, const char *content) {
    return r->n_named > 0 ? bsearch(content, r->named, r->n_named, sizeof *r->named, compare_to_named) : NULL;
}

/* ---- Tokens that are known ---------------------------------------------------------------------------- */

static int compare_contents(const void *a, const void *b) {
    return strcmp((*(const mb_added_token *const *)a)->content, (*(const mb_added_token *const *)b)->content);
}

static int compare_to_content(const void *content, const void *token) {
    return strcmp(content, (*(const mb_added_token *const *)token)->content);
}

/* Makes everything read so far known. */
static void index_known(reading *r) {
    for (r->n_known = 0; r->n_known < r->tokenizer->n_added; r->n_known++)
        r->known[r->n_known] = &r->tokenizer->added[r->n_known];
    qsort(r->known, r->n_known, sizeof *r->known, compare_contents);
}

static mb_added_token *find_known(const reading *r, const char *content) {
    const mb_added_token **found =
        r->n_known > 0 ? bsearch(content, r->known, r->n_known, sizeof *r->known, compare_to_content) : NULL;
    return found ? &r->tokenizer->added[*found - r->tokenizer->added] : NULL;
}

/* ---- One token ---------------------------------------------------------------------------------------- */

static mb_status read_flag(const char *path, const json_t *item, const char *content, const char *key,
                           uint8_t *flag) {
    const json_t *value = json_object_get(item, key);
    char quoted[SHOWN];
    if (value && !json_is_boolean(value))
        return mb_fail(MB_ERR_FORMAT, "%s: \"%s\" of added token %s is not true or false", path, key,
                       mb_quote(quoted, sizeof quoted, content));
    if (value)
        *flag = json_is_true(value);
    return MB_OK;
}

/* Flags that are absent stay as they are. */
static mb_status read_flags(const char *path, const json_t *item, mb_added_token *token) {
    MB_TRY(read_flag(path, item, token->content, "special", &token->is_special));
    MB_TRY(read_flag(path, item, token->content, "normalized", &token->is_normalized));
    MB_TRY(read_flag(path, item, token->content, "single_word", &token->is_single_word));
    MB_TRY(read_flag(path, item, token->content, "lstrip", &token->strips_left));
    return read_flag(path, item, token->content, "rstrip", &token->strips_right);
}

/* `where`: the token's place in the file, for sentences. */
static mb_status check_content(const char *path, const char *where, const json_t *content) {
    if (!json_is_string(content))
        return mb_fail(MB_ERR_FORMAT, "%s: %s has no string \"content\"", path, where);
    if (json_string_length(content) == 0)
        return mb_fail(MB_ERR_FORMAT, "%s: %s is an empty token", path, where);
    if (json_string_length(content) > MB_ADDED_TOKEN_MAX_BYTES)
        return mb_fail(MB_ERR_UNSUPPORTED, "%s: %s has %zu bytes, more than %d", path, where,
                       json_string_length(content), MB_ADDED_TOKEN_MAX_BYTES);
    return MB_OK;
}

/* Appends a token; its content still belongs to the document. */
static void append(reading *r, mb_added_token token) {
    token.n_content = strlen(token.content);
    r->tokenizer->added[r->tokenizer->n_added++] = token;
}

/* ---- The three files ---------------------------------------------------------------------------------- */

static mb_status read_tokenizer_file(reading *r) {
    const json_t *items = json_object_get(r->from->root, "added_tokens");
    const char *path = r->from->path;
    for (size_t i = 0; i < json_array_size(items); i++) {
        const json_t *item = json_array_get(items, i), *content = json_object_get(item, "content");
        char where[SHOWN];
        snprintf(where, sizeof where, "\"added_tokens\"[%zu]", i);
        MB_TRY(check_content(path, where, content));
        mb_added_token token = {.content = (char *)json_string_value(content)};
        MB_TRY(mb_token_id_read(path, token.content, json_object_get(item, "id"), r->from->vocab, &token.id));
        MB_TRY(read_flags(path, item, &token));
        append(r, token);
    }
    index_known(r);
    return MB_OK;
}

static int has_equal_flags(const mb_added_token *a, const mb_added_token *b) {
    return a->is_special == b->is_special && a->is_normalized == b->is_normalized &&
           a->is_single_word == b->is_single_word && a->strips_left == b->strips_left &&
           a->strips_right == b->strips_right;
}

/* Joins a token of another file to those of tokenizer.json. */
static void join(reading *r, mb_added_token token) {
    mb_added_token *known = find_known(r, token.content);
    const json_t *in_vocabulary = json_object_get(r->vocabulary, token.content);
    json_int_t counts = known                            ? known->id
                        : json_is_integer(in_vocabulary) ? json_integer_value(in_vocabulary)
                                                         : token.id;
    if (counts != token.id)
        note(&r->other_ids, token.content);
    if (counts < 0 || counts >= r->from->vocab) {
        note(&r->beyond, token.content);
        return;
    }
    token.id = (int32_t)counts;
    if (!known) {
        append(r, token);
        return;
    }
    token.n_content = known->n_content;
    if (known->is_special) { /* the reference keeps how a special token is looked for */
        token.is_special = 1;
        token.is_normalized = known->is_normalized;
    }
    if (!has_equal_flags(known, &token))
        note(&r->other_flags, token.content);
    *known = token;
}

static mb_status read_config_file(reading *r, const json_t *decoder) {
    const char *path = r->from->config_path, *key;
    json_t *item;
    json_object_foreach((json_t *)decoder, key, item) {
        char where[SHOWN], quoted[SHOWN];
        snprintf(where, sizeof where, "\"added_tokens_decoder\".%s", mb_quote(quoted, sizeof quoted, key));
        MB_TRY(check_content(path, where, json_object_get(item, "content")));
        mb_added_token token = {.content = (char *)json_string_value(json_object_get(item, "content"))};
        MB_TRY(read_id_key(path, token.content, key, &token.id));
        MB_TRY(read_flag(path, item, token.content, "special", &token.is_special));
        token.is_normalized = !token.is_special;
        MB_TRY(read_flags(path, item, &token));
        join(r, token);
    }
    return MB_OK;
}

static mb_status read_legacy_file(reading *r) {
    const char *path = r->from->legacy_path, *content;
    json_t *id;
    json_object_foreach((json_t *)r->from->legacy, content, id) {
        char quoted[SHOWN];
        if (!content[0] || strlen(content) > MB_ADDED_TOKEN_MAX_BYTES)
            return mb_fail(MB_ERR_UNSUPPORTED, "%s: token %s has %zu bytes; it must have 1 to %d", path,
                           mb_quote(quoted, sizeof quoted, content), strlen(content),
                           MB_ADDED_TOKEN_MAX_BYTES);
        mb_added_token token = {.content = (char *)content, .is_special = find_named(r, content) != NULL};
        MB_TRY(mb_token_id_read(path, content, id, INT32_MAX, &token.id));
        token.is_normalized = !token.is_special;
        const mb_added_token *known = find_known(r, content);
        if (!known || known->id != token.id) /* the flags of tokenizer.json count */
            join(r, token);
    }
    return MB_OK;
}

/* Notes the tokens of added_tokens.json that stand nowhere else. */
static void find_lost(const reading *r, noted *lost) {
    const char *content;
    json_t *id;
    json_object_foreach((json_t *)r->from->legacy, content, id) {
        if (!find_known(r, content) && !json_object_get(r->vocabulary, content))
            note(lost, content);
    }
}

/* Special tokens that stand nowhere but under their name get the ids that follow. */
static mb_status add_named(reading *r) {
    mb_tokenizer *t = r->tokenizer;
    int64_t next = (int64_t)json_object_size(r->vocabulary);
    char quoted[SHOWN];
    for (size_t i = 0; i < t->n_added; i++)
        next = t->added[i].id >= next ? (int64_t)t->added[i].id + 1 : next;
    qsort(r->named, r->n_named, sizeof *r->named, compare_orders);
    for (size_t i = 0; i < r->n_named; i++) {
        const named_token *named = &r->named[i];
        if (find_known(r, named->content) || json_object_get(r->vocabulary, named->content))
            continue;
        if (next >= r->from->vocab || strlen(named->content) > MB_ADDED_TOKEN_MAX_BYTES) {
            mb_log(
                MB_LOG_WARN,
                "%s: special token %s is in no vocabulary, and the model has no room for it; it is no token",
                r->from->config_path, mb_quote(quoted, sizeof quoted, named->content));
            continue;
        }
        mb_added_token token = {.content = (char *)named->content, .id = (int32_t)next++, .is_special = 1};
        if (json_is_object(named->item))
            MB_TRY(read_flags(r->from->config_path, named->item, &token));
        append(r, token);
    }
    qsort(r->named, r->n_named, sizeof *r->named, compare_named);
    return MB_OK;
}

/* ---- All of it ---------------------------------------------------------------------------------------- */

static mb_status check_type(const char *path, const json_t *value, const char *what, json_type type) {
    char shown[SHOWN];
    if (!value || json_is_null(value) || json_typeof(value) == type)
        return MB_OK;
    return mb_fail(MB_ERR_FORMAT, "%s: %s is %s; it must be an %s", path, what,
                   mb_json_describe(shown, sizeof shown, value), type == JSON_ARRAY ? "array" : "object");
}

static mb_status read_files(reading *r) {
    const mb_added_sources *from = r->from;
    const json_t *decoder = mb_json_present(from->config, "added_tokens_decoder");
    MB_TRY(collect_named(r));
    MB_TRY(read_tokenizer_file(r));
    if (decoder)
        MB_TRY(read_config_file(r, decoder));
    else
        MB_TRY(read_legacy_file(r));
    index_known(r);
    const char *path = decoder ? from->config_path : from->legacy_path;
    noted lost = {0};
    if (decoder)
        find_lost(r, &lost);
    warn(path, &r->other_ids, "has another id in ", from->path, ", which counts");
    warn(path, &r->other_flags, "has other flags in ", from->path, "; the flags of this file count");
    warn(path, &r->beyond, "has an id beyond the model's vocab_size, and is left out", "", "");
    warn(from->legacy_path, &lost, "is left out, as in transformers: the added tokens are those of ",
         from->config_path, "");
    return add_named(r);
}

/* What is looked for in the text: a normalised token is looked for in its normal form. */
static mb_status set_match(mb_added_token *token, int uses_nfc) {
    mb_text_buffer match = {0};
    mb_status status = MB_OK;
    if (token->is_normalized && uses_nfc)
        status = mb_normalize_nfc(token->content, token->n_content, &match);
    else
        mb_text_append(&match, token->content, token->n_content);
    token->n_match = match.n_bytes;
    if (status == MB_OK)
        return mb_text_finish(&match, "an added token", &token->match);
    mb_free(match.bytes);
    return status;
}

/* The tokens' texts, which are the documents' so far, become the tokenizer's own. On failure n_added is the
 * number of tokens that own their texts. */
static mb_status own_texts(reading *r) {
    mb_tokenizer *t = r->tokenizer;
    size_t n = t->n_added;
    for (t->n_added = 0; t->n_added < n; t->n_added++) {
        mb_added_token *token = &t->added[t->n_added];
        const named_token *named = find_named(r, token->content);
        token->is_special |= named && named->has_role;
        char *content = mb_strdup(token->content);
        if (!content)
            return no_memory(r);
        token->content = content;
        mb_status status = set_match(token, t->uses_nfc);
        if (status != MB_OK) {
            mb_free(content);
            return status;
        }
    }
    return MB_OK;
}

static int compare_ids(const void *a, const void *b) {
    int32_t x = ((const mb_added_token *)a)->id, y = ((const mb_added_token *)b)->id;
    return (x > y) - (x < y);
}

static mb_status check_duplicates(const reading *r) {
    const mb_tokenizer *t = r->tokenizer;
    char quoted[SHOWN], other[SHOWN];
    const char *also = r->from->config ? r->from->config_path : r->from->legacy ? r->from->legacy_path : NULL;
    const char *before = also ? " or " : "", *after = also ? also : "";
    for (size_t i = 1; i < t->n_added; i++)
        if (t->added[i].id == t->added[i - 1].id)
            return mb_fail(MB_ERR_FORMAT, "%s%s%s: two added tokens have the id %d: %s and %s", r->from->path,
                           before, after, t->added[i].id,
                           mb_quote(quoted, sizeof quoted, t->added[i - 1].content),
                           mb_quote(other, sizeof other, t->added[i].content));
    const mb_added_token *twice = mb_added_matcher_duplicate(&t->raw);
    if (!twice)
        twice = mb_added_matcher_duplicate(&t->normalized);
    if (twice)
        return mb_fail(MB_ERR_FORMAT, "%s%s%s: added token %s is there twice", r->from->path, before, after,
                       mb_quote(quoted, sizeof quoted, twice->content));
    return MB_OK;
}

static mb_status read_all(reading *r) {
    mb_tokenizer *t = r->tokenizer;
    mb_status status = read_files(r);
    if (status != MB_OK) {
        t->n_added = 0; /* their texts are the documents' */
        return status;
    }
    MB_TRY(own_texts(r));
    qsort(t->added, t->n_added, sizeof *t->added, compare_ids);
    MB_TRY(mb_added_matcher_init(&t->raw, t->added, t->n_added, 0));
    MB_TRY(mb_added_matcher_init(&t->normalized, t->added, t->n_added, 1));
    return check_duplicates(r);
}

mb_status mb_added_tokens_read(const mb_added_sources *sources, mb_tokenizer *tokenizer) {
    const json_t *items = json_object_get(sources->root, "added_tokens");
    const json_t *vocabulary = json_object_get(json_object_get(sources->root, "model"), "vocab");
    reading r = {.from = sources, .tokenizer = tokenizer, .vocabulary = vocabulary};
    const json_t *decoder = json_object_get(sources->config, "added_tokens_decoder");
    MB_TRY(check_type(sources->path, items, "\"added_tokens\"", JSON_ARRAY));
    MB_TRY(check_type(sources->config_path, sources->config, "the document", JSON_OBJECT));
    MB_TRY(check_type(sources->config_path, decoder, "\"added_tokens_decoder\"", JSON_OBJECT));
    MB_TRY(check_type(sources->legacy_path, sources->legacy, "the document", JSON_OBJECT));
    if (json_array_size(items) > (size_t)sources->vocab)
        return mb_fail(MB_ERR_FORMAT, "%s: %zu added tokens, but the model's vocab_size is %d", sources->path,
                       json_array_size(items), sources->vocab);
    size_t n =
        json_array_size(items) + json_object_size(decoder) + json_object_size(sources->legacy) + N_ROLES;
    for (size_t k = 0; k < N_LISTS; k++) {
        const json_t *list = json_object_get(sources->config, lists[k]);
        n += json_array_size(list) + json_object_size(list);
    }
    tokenizer->added = mb_calloc(n, sizeof *tokenizer->added);
    r.known = mb_malloc_array(n, sizeof *r.known);
    mb_status status = tokenizer->added && r.known ? read_all(&r) : no_memory(&r);
    mb_free(r.known);
    mb_free(r.named);
    return status;
}
