/* chat_template.c - which template a checkpoint carries: templates recognised by text, or chosen by name. */
#include "model/chat/chat_template.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/file.h"
#include "model/chat/chatml.h"
#include "model/json.h"

enum { SHOWN = 64 };

static const struct {
    const char *name;
    mb_chat_template which;
} names[] = {
    {"qwen3", MB_CHAT_QWEN3},
    {"qwen3-instruct", MB_CHAT_QWEN3_INSTRUCT},
    {"qwen3-thinking", MB_CHAT_QWEN3_THINKING},
    {"chatml", MB_CHAT_CHATML},
};

mb_status mb_chat_template_by_name(const char *name, mb_chat_template *which) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i].name) == 0) {
            *which = names[i].which;
            return MB_OK;
        }
    char quoted[SHOWN];
    return mb_fail(
        MB_ERR_NOT_FOUND,
        "no chat template is called %s; known are qwen3, qwen3-instruct, qwen3-thinking and chatml",
        mb_quote(quoted, sizeof quoted, name));
}

/* ---- Recognition -------------------------------------------------------------------------------------- */

/* XXH3 (128 bits) of the templates' normal forms. Beside each published template: where it came out first. */
static const struct {
    uint64_t high, low;
    mb_chat_template which;
} known[] = {
    {0x311859bf3cc4b729, 0xa28aeb256d13a61c, MB_CHAT_QWEN3}, /* Qwen3-30B-A3B, April 2025 */
    {0x988384e9358c2f06, 0x47dc6270a025a596, MB_CHAT_QWEN3}, /* the same, July 2025: content may be null */
    {0x3ff0f3e17fb85fc4, 0x839df00d0f4ddbe1, MB_CHAT_QWEN3_INSTRUCT}, /* Qwen3-Instruct-2507 */
    {0xe9934cdcbe1032dd, 0xe972e9d7dbd2fdcb, MB_CHAT_QWEN3_THINKING}, /* Qwen3-Thinking-2507 */
    {0x29e2f2ca43d351f1, 0xc6ec38ff03656a2e, MB_CHAT_QWEN3},          /* tools/demo/chat_template.jinja */
};

/*
 * Feeds the template's normal form to the hash: the template without comments, and without white space
 * outside of string literals. Copies of one template differ in these when they went through editors, or
 * from a JSON string to a file of its own. What these templates render does not change: all of their tags
 * take away the white space before them.
 */
static void hash_normal_form(XXH3_state_t *state, const char *jinja, size_t n_bytes) {
    char quote = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        char c = jinja[i];
        if (quote) {
            if (c == '\\' && i + 1 < n_bytes) {
                XXH3_128bits_update(state, &c, 1);
                c = jinja[++i];
            } else if (c == quote) {
                quote = 0;
            }
        } else if (c == '{' && i + 1 < n_bytes && jinja[i + 1] == '#') {
            for (i += 2; i < n_bytes && !(jinja[i] == '}' && jinja[i - 1] == '#');)
                i++;
            continue;
        } else if (c == ' ' || (c >= '\t' && c <= '\r')) {
            continue;
        } else if (c == '\'' || c == '"') {
            quote = c;
        }
        XXH3_128bits_update(state, &c, 1);
    }
}

mb_chat_template mb_chat_template_recognise(const char *jinja, size_t n_bytes) {
    XXH3_state_t state;
    XXH3_128bits_reset(&state);
    hash_normal_form(&state, jinja, n_bytes);
    XXH128_hash_t hash = XXH3_128bits_digest(&state);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (hash.high64 == known[i].high && hash.low64 == known[i].low)
            return known[i].which;
    return mb_chatml_recognise(jinja, n_bytes) ? MB_CHAT_CHATML : MB_CHAT_UNKNOWN;
}

/* tokenizer_config.json's "chat_template": a string, or a list of {"name", "template"} of which "default"
 * counts. */
static mb_status find_in_config(const char *path, const json_t *root, const json_t **found) {
    *found = json_object_get(root, "chat_template");
    if (!json_is_object(root))
        return mb_fail(MB_ERR_FORMAT, "%s: it holds no JSON object", path);
    if (json_is_array(*found)) {
        size_t i;
        const json_t *list = *found, *item;
        *found = NULL;
        json_array_foreach((json_t *)list, i, item) {
            const char *name = json_string_value(json_object_get(item, "name"));
            if (name && strcmp(name, "default") == 0)
                *found = json_object_get(item, "template");
        }
        if (!*found)
            return mb_fail(MB_ERR_FORMAT, "%s: \"chat_template\" is a list without one named \"default\"",
                           path);
    }
    char shown[SHOWN];
    if (*found && !json_is_null(*found) && !json_is_string(*found))
        return mb_fail(MB_ERR_FORMAT, "%s: \"chat_template\" is %s; it must be a string", path,
                       mb_json_describe(shown, sizeof shown, *found));
    return MB_OK;
}

mb_status mb_chat_template_find(const char *path, const char *bytes, size_t n_bytes, int is_jinja,
                                mb_chat_template *which) {
    *which = MB_CHAT_NONE;
    if (is_jinja) {
        MB_TRY(mb_lfs_pointer_check(path, bytes, n_bytes));
        *which = mb_chat_template_recognise(bytes, n_bytes);
        return MB_OK;
    }
    json_t *root;
    const json_t *found;
    MB_TRY(mb_json_parse_config(path, bytes, n_bytes, &root));
    mb_status status = find_in_config(path, root, &found);
    if (status == MB_OK && json_is_string(found))
        *which = mb_chat_template_recognise(json_string_value(found), json_string_length(found));
    mb_json_free(root);
    return status;
}
