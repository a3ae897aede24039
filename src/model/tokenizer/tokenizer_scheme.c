#include "model/tokenizer/tokenizer_scheme.h"

#include <string.h>

#include "model/json.h"
#include "model/json_values.h"

enum { SHOWN = 64, MAX_PARTS = 8 };

static mb_status unsupported(const char *path, const char *where, const json_t *value, const char *wanted) {
    char shown[SHOWN];
    return mb_fail(MB_ERR_UNSUPPORTED,
                   "%s: \"%s\" is %s; only the byte-level BPE scheme of Qwen is supported, which has %s",
                   path, where, value ? mb_json_describe(shown, sizeof shown, value) : "missing", wanted);
}

/* object[key] must be `wanted`. A key that is not required may be absent. */
static mb_status expect_bool(const char *path, const json_t *object, const char *key, int wanted,
                             int required) {
    const json_t *value = mb_json_present(object, key);
    if ((!value && !required) || (value && json_is_boolean(value) && json_is_true(value) == wanted))
        return MB_OK;
    return unsupported(path, key, value, wanted ? "true" : "false");
}

/* Absent, null or "". */
static mb_status expect_empty(const char *path, const json_t *object, const char *key) {
    const json_t *value = mb_json_present(object, key);
    if (!value || (json_is_string(value) && json_string_length(value) == 0))
        return MB_OK;
    return unsupported(path, key, value, "null");
}

static int has_type(const json_t *object, const char *type) {
    const char *name = json_string_value(json_object_get(object, "type"));
    return name && strcmp(name, type) == 0;
}

static mb_status expect_type(const char *path, const char *where, const json_t *object, const char *type) {
    if (has_type(object, type))
        return MB_OK;
    const json_t *name = json_object_get(object, "type");
    return unsupported(path, where, name ? name : object, type);
}

/* What a part of the pipeline consists of: itself, or the members of a Sequence, nested ones too. */
typedef struct parts {
    const char *path, *where, *list; /* list: the key that holds a Sequence's members */
    const json_t *items[MAX_PARTS];
    size_t n;
} parts;

/* Recursion is bounded by the parser's limit on nesting. */
static mb_status collect(parts *p, const json_t *value) {
    char shown[SHOWN];
    if (!has_type(value, "Sequence")) {
        if (p->n == MAX_PARTS)
            return mb_fail(MB_ERR_UNSUPPORTED, "%s: \"%s\" is a Sequence of more than %d parts", p->path,
                           p->where, MAX_PARTS);
        p->items[p->n++] = value;
        return MB_OK;
    }
    const json_t *members = json_object_get(value, p->list);
    if (!json_is_array(members))
        return mb_fail(MB_ERR_FORMAT, "%s: \"%s.%s\" is %s; it must be an array", p->path, p->where, p->list,
                       members ? mb_json_describe(shown, sizeof shown, members) : "missing");
    for (size_t i = 0; i < json_array_size(members); i++)
        MB_TRY(collect(p, json_array_get(members, i)));
    return MB_OK;
}

static mb_status collect_parts(const char *path, const json_t *root, const char *where, const char *list,
                               parts *p) {
    *p = (parts){.path = path, .where = where, .list = list};
    const json_t *value = mb_json_present(root, where);
    return value ? collect(p, value) : MB_OK;
}

static mb_status read_split(const char *path, const json_t *split, const char **pattern) {
    const json_t *regex = json_object_get(json_object_get(split, "pattern"), "Regex");
    *pattern = json_string_value(regex);
    if (!*pattern)
        return unsupported(path, "pre_tokenizer.pattern", json_object_get(split, "pattern"),
                           "a \"Regex\" string");
    const char *behavior = json_string_value(json_object_get(split, "behavior"));
    if (!behavior || strcmp(behavior, "Isolated") != 0)
        return unsupported(path, "pre_tokenizer.behavior", json_object_get(split, "behavior"),
                           "\"Isolated\"");
    return expect_bool(path, split, "invert", 0, 0);
}

static mb_status read_pre_tokenizer(const char *path, const json_t *root, const char **pattern) {
    parts p;
    MB_TRY(collect_parts(path, root, "pre_tokenizer", "pretokenizers", &p));
    if (p.n == 0)
        return unsupported(path, p.where, mb_json_present(root, p.where),
                           "a Sequence of Split and ByteLevel");
    for (size_t i = 0; i < p.n && i < 2; i++)
        MB_TRY(expect_type(path, p.where, p.items[i], i == 0 ? "Split" : "ByteLevel"));
    if (p.n != 2)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: \"pre_tokenizer\" has %zu parts; only the byte-level BPE scheme of Qwen is "
                       "supported, which has a Split and a ByteLevel",
                       path, p.n);
    MB_TRY(read_split(path, p.items[0], pattern));
    MB_TRY(expect_bool(path, p.items[1], "add_prefix_space", 0, 1));
    return expect_bool(path, p.items[1], "use_regex", 0, 1);
}

static mb_status read_normalizer(const char *path, const json_t *root, int *uses_nfc) {
    parts p;
    MB_TRY(collect_parts(path, root, "normalizer", "normalizers", &p));
    for (size_t i = 0; i < p.n; i++)
        MB_TRY(expect_type(path, p.where, p.items[i], "NFC"));
    *uses_nfc = p.n > 0; /* the normal form of a normal form is the same */
    return MB_OK;
}

static mb_status check_decoder(const char *path, const json_t *root) {
    parts p;
    MB_TRY(collect_parts(path, root, "decoder", "decoders", &p));
    if (p.n > 1)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: \"decoder\" has %zu parts; only the byte-level BPE scheme of Qwen is supported, "
                       "which has ByteLevel alone",
                       path, p.n);
    return p.n == 1 ? expect_type(path, p.where, p.items[0], "ByteLevel")
                    : unsupported(path, p.where, NULL, "ByteLevel");
}

/* The template of a single text must be the text alone. Pairs of texts are never encoded here. */
static mb_status check_template(const char *path, const json_t *processor) {
    const json_t *pieces = json_object_get(processor, "single"), *piece;
    char quoted[SHOWN];
    size_t i, n_texts = 0;
    json_array_foreach((json_t *)pieces, i, piece) {
        const json_t *special = json_object_get(piece, "SpecialToken");
        const char *id =
            json_string_value(json_object_get(special ? special : json_object_get(piece, "Sequence"), "id"));
        if (special)
            return mb_fail(MB_ERR_UNSUPPORTED,
                           "%s: \"post_processor\" adds the token %s to every text; moebius adds no tokens",
                           path, mb_quote(quoted, sizeof quoted, id ? id : ""));
        n_texts += id && strcmp(id, "A") == 0;
    }
    if (n_texts != 1 || json_array_size(pieces) != 1)
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "%s: \"post_processor\" is a TemplateProcessing whose \"single\" is not the text alone", path);
    return MB_OK;
}

/* Post-processors add tokens and change offsets. One that adds no token changes no ids. */
static mb_status check_post_processor(const char *path, const json_t *root) {
    parts p;
    MB_TRY(collect_parts(path, root, "post_processor", "processors", &p));
    for (size_t i = 0; i < p.n; i++)
        MB_TRY(has_type(p.items[i], "TemplateProcessing")
                   ? check_template(path, p.items[i])
                   : expect_type(path, p.where, p.items[i], "ByteLevel"));
    return MB_OK;
}

static mb_status check_model(const char *path, const json_t *model) {
    if (!json_is_object(model))
        return mb_fail(MB_ERR_FORMAT, "%s: \"model\" is missing or not an object", path);
    if (mb_json_present(model, "type"))
        MB_TRY(expect_type(path, "model", model, "BPE"));
    const json_t *dropout = mb_json_present(model, "dropout");
    if (dropout && !(json_is_number(dropout) && json_number_value(dropout) == 0))
        return unsupported(path, "dropout", dropout, "null");
    /* "unk_token" and "byte_fallback" are for bytes without a token, and here every byte has one. */
    MB_TRY(expect_empty(path, model, "continuing_subword_prefix"));
    MB_TRY(expect_empty(path, model, "end_of_word_suffix"));
    return expect_bool(path, model, "ignore_merges", 0, 0);
}

mb_status mb_tokenizer_scheme_read(const char *path, const json_t *root, mb_tokenizer_scheme *scheme) {
    if (!json_is_object(root))
        return mb_fail(MB_ERR_FORMAT, "%s: a tokenizer is a JSON object; this is something else", path);
    MB_TRY(check_model(path, json_object_get(root, "model")));
    MB_TRY(read_normalizer(path, root, &scheme->uses_nfc));
    MB_TRY(read_pre_tokenizer(path, root, &scheme->pattern));
    MB_TRY(check_post_processor(path, root));
    return check_decoder(path, root);
}
