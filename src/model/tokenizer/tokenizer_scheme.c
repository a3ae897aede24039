#include "model/tokenizer/tokenizer_scheme.h"

#include <string.h>

#include "model/json.h"
#include "model/json_values.h"

enum { SHOWN = 64 };

static mb_status unsupported(const char *path, const char *where, const json_t *value, const char *wanted) {
    char shown[SHOWN];
    return mb_fail(MB_ERR_UNSUPPORTED,
                   "%s: \"%s\" is %s; only the byte-level BPE scheme of Qwen is supported, which has %s",
                   path, where, value ? mb_json_describe(shown, sizeof shown, value) : "missing", wanted);
}

/* object[key] must be `wanted`; when it is absent, too, unless it is required. */
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

static mb_status read_split(const char *path, const json_t *split, const json_t **pattern) {
    MB_TRY(expect_type(path, "pre_tokenizer", split, "Split"));
    *pattern = json_object_get(json_object_get(split, "pattern"), "Regex");
    if (!json_is_string(*pattern))
        return unsupported(path, "pre_tokenizer.pattern", json_object_get(split, "pattern"),
                           "a \"Regex\" string");
    const char *behavior = json_string_value(json_object_get(split, "behavior"));
    if (!behavior || strcmp(behavior, "Isolated") != 0)
        return unsupported(path, "pre_tokenizer.behavior", json_object_get(split, "behavior"),
                           "\"Isolated\"");
    return expect_bool(path, split, "invert", 0, 0);
}

static mb_status read_pre_tokenizer(const char *path, const json_t *pre_tokenizer, const json_t **pattern) {
    if (!pre_tokenizer)
        return unsupported(path, "pre_tokenizer", NULL, "a Sequence of Split and ByteLevel");
    MB_TRY(expect_type(path, "pre_tokenizer", pre_tokenizer, "Sequence"));
    const json_t *parts = json_object_get(pre_tokenizer, "pretokenizers");
    if (!json_is_array(parts) || json_array_size(parts) != 2)
        return unsupported(path, "pre_tokenizer.pretokenizers", parts, "a Split and a ByteLevel there");
    MB_TRY(read_split(path, json_array_get(parts, 0), pattern));
    const json_t *byte_level = json_array_get(parts, 1);
    MB_TRY(expect_type(path, "pre_tokenizer", byte_level, "ByteLevel"));
    MB_TRY(expect_bool(path, byte_level, "add_prefix_space", 0, 1));
    return expect_bool(path, byte_level, "use_regex", 0, 1);
}

static mb_status check_model(const char *path, const json_t *model) {
    if (!json_is_object(model))
        return mb_fail(MB_ERR_FORMAT, "%s: \"model\" is missing or not an object", path);
    if (mb_json_present(model, "type"))
        MB_TRY(expect_type(path, "model", model, "BPE"));
    const json_t *dropout = mb_json_present(model, "dropout");
    if (dropout && !(json_is_number(dropout) && json_number_value(dropout) == 0))
        return unsupported(path, "dropout", dropout, "null");
    if (mb_json_present(model, "unk_token"))
        return unsupported(path, "unk_token", json_object_get(model, "unk_token"), "null");
    MB_TRY(expect_empty(path, model, "continuing_subword_prefix"));
    MB_TRY(expect_empty(path, model, "end_of_word_suffix"));
    MB_TRY(expect_bool(path, model, "byte_fallback", 0, 0));
    return expect_bool(path, model, "ignore_merges", 0, 0);
}

mb_status mb_tokenizer_scheme_read(const char *path, const json_t *root, mb_tokenizer_scheme *scheme) {
    if (!json_is_object(root))
        return mb_fail(MB_ERR_FORMAT, "%s: a tokenizer is a JSON object; this is something else", path);
    MB_TRY(check_model(path, json_object_get(root, "model")));
    const json_t *normalizer = mb_json_present(root, "normalizer");
    scheme->uses_nfc = normalizer != NULL;
    if (normalizer)
        MB_TRY(expect_type(path, "normalizer", normalizer, "NFC"));
    MB_TRY(read_pre_tokenizer(path, mb_json_present(root, "pre_tokenizer"), &scheme->pattern));
    const json_t *post_processor = mb_json_present(root, "post_processor");
    if (post_processor)
        MB_TRY(expect_type(path, "post_processor", post_processor, "ByteLevel"));
    const json_t *decoder = mb_json_present(root, "decoder");
    if (!decoder)
        return unsupported(path, "decoder", NULL, "ByteLevel");
    return expect_type(path, "decoder", decoder, "ByteLevel");
}
