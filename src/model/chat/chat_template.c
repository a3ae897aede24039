/* chat_template.c - which template a model has: found in the checkpoint's files, or named by the user. */
#include "model/chat/chat_template.h"

#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "model/json.h"
#include "model/json_alloc.h"
#include "model/tokenizer/utf8.h"

/* More than any real file of its kind by far; a larger one is refused before it is read. */
enum { MAX_CONFIG_BYTES = 16 << 20, MAX_TEMPLATE_BYTES = 4 << 20, SHOWN = 64 };

void mb_chat_template_close(mb_chat_template *template) {
    if (!template)
        return;
    mb_jinja_free(template->usual.parsed);
    mb_jinja_free(template->with_tools.parsed);
    mb_json_free(template->tokens);
    mb_free(template->source);
    mb_free(template);
}

/* ---- tokenizer_config.json ---------------------------------------------------------------------------- */

/* "bos_token" and the like: strings, or objects with the string as "content". */
static mb_status read_tokens(const json_t *config, json_t **tokens) {
    const char *key;
    json_t *value;
    mb_json_enter();
    *tokens = json_object();
    json_object_foreach((json_t *)config, key, value) {
        size_t n = strlen(key);
        const json_t *text = json_is_object(value) ? json_object_get(value, "content") : value;
        if (n > 6 && strcmp(key + n - 6, "_token") == 0 && json_is_string(text))
            json_object_set_new(*tokens, key,
                                json_stringn_nocheck(json_string_value(text), json_string_length(text)));
    }
    return mb_json_leave() ? mb_fail(MB_ERR_MEMORY, "no memory for the special tokens") : MB_OK;
}

/* The template of a name among {"name", "template"} objects; NULL: there is none. */
static const json_t *find_in_list(const json_t *list, const char *wanted) {
    size_t i;
    const json_t *item;
    json_array_foreach((json_t *)list, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, wanted) == 0)
            return json_object_get(item, "template");
    }
    return NULL;
}

/* ---- Sources ------------------------------------------------------------------------------------------ */

/* The texts that a template is made of, still owned by whoever has them. */
typedef struct sources {
    const char *name; /* for sentences: a path */
    const char *usual, *with_tools;
    size_t n_usual, n_with_tools;
} sources;

static mb_status take_text(const char *path, const json_t *value, const char **text, size_t *n_bytes) {
    char shown[SHOWN];
    if (!value || json_is_null(value))
        return MB_OK;
    if (!json_is_string(value))
        return mb_fail(MB_ERR_FORMAT, "%s: \"chat_template\" is %s; it must be a string", path,
                       mb_json_describe(shown, sizeof shown, value));
    *text = json_string_value(value);
    *n_bytes = json_string_length(value);
    return MB_OK;
}

/* "chat_template": a string, or a list with "default" and perhaps "tool_use". */
static mb_status find_in_config(const char *path, const json_t *config, sources *found) {
    const json_t *value = json_object_get(config, "chat_template");
    found->name = path;
    if (!json_is_array(value))
        return take_text(path, value, &found->usual, &found->n_usual);
    MB_TRY(take_text(path, find_in_list(value, "default"), &found->usual, &found->n_usual));
    MB_TRY(take_text(path, find_in_list(value, "tool_use"), &found->with_tools, &found->n_with_tools));
    if (!found->usual)
        return mb_fail(MB_ERR_FORMAT, "%s: \"chat_template\" is a list without one named \"default\"", path);
    return MB_OK;
}

/* *tokens becomes the opened template's. */
static mb_status parse_sources(const sources *from, json_t *tokens, mb_chat_template *template) {
    template->tokens = tokens;
    template->source = mb_malloc(from->n_usual + 1);
    if (!template->source)
        return mb_fail(MB_ERR_MEMORY, "no memory for a chat template of %zu bytes", from->n_usual);
    memcpy(template->source, from->usual, from->n_usual);
    template->source[from->n_usual] = '\0';
    MB_TRY(mb_jinja_parse(from->name, from->usual, from->n_usual, &template->usual.parsed));
    MB_TRY(mb_chat_variant_probe(&template->usual, tokens));
    if (!from->with_tools)
        return MB_OK;
    MB_TRY(mb_jinja_parse(from->name, from->with_tools, from->n_with_tools, &template->with_tools.parsed));
    return mb_chat_variant_probe(&template->with_tools, tokens);
}

/* config: a parsed tokenizer_config.json, or NULL. */
static mb_status open_sources(const sources *from, const json_t *config, mb_chat_template **opened) {
    json_t *tokens;
    mb_status status = read_tokens(config, &tokens);
    mb_chat_template *template = status == MB_OK ? mb_calloc(1, sizeof *template) : NULL;
    if (!template) {
        mb_json_free(tokens);
        return status != MB_OK ? status : mb_fail(MB_ERR_MEMORY, "no memory for a chat template");
    }
    status = parse_sources(from, tokens, template);
    if (status == MB_OK)
        *opened = template;
    else
        mb_chat_template_close(template);
    return status;
}

/* ---- Opening ------------------------------------------------------------------------------------------ */

static mb_status parse_config(const char *path, const char *bytes, size_t n_bytes, json_t **config) {
    MB_TRY(mb_json_parse_config(path, bytes, n_bytes, config));
    if (json_is_object(*config))
        return MB_OK;
    mb_json_free(*config);
    *config = NULL;
    return mb_fail(MB_ERR_FORMAT, "%s: it holds no JSON object", path);
}

mb_status mb_chat_template_open_text(const char *name, const char *jinja, size_t n_bytes, const char *config,
                                     mb_chat_template **opened) {
    json_t *parsed = NULL;
    sources from = {.name = name, .usual = jinja, .n_usual = n_bytes};
    *opened = NULL;
    if (config)
        MB_TRY(parse_config("tokenizer_config.json", config, strlen(config), &parsed));
    mb_status status = jinja ? MB_OK : find_in_config(name, parsed, &from);
    if (status == MB_OK && from.usual)
        status = open_sources(&from, parsed, opened);
    mb_json_free(parsed);
    return status;
}

/* What a checkpoint's folder has. */
typedef struct files {
    mb_small_file config, jinja, tool_use;
    json_t *parsed; /* of the config */
} files;

static mb_status check_text(const char *path, const char *bytes, size_t n_bytes) {
    MB_TRY(mb_lfs_pointer_check(path, bytes, n_bytes));
    size_t n_valid = mb_utf8_valid_prefix(bytes, n_bytes);
    if (n_valid < n_bytes)
        return mb_fail(MB_ERR_FORMAT, "%s: not UTF-8: byte 0x%02X at offset %zu", path,
                       (unsigned)(unsigned char)bytes[n_valid], n_valid);
    return MB_OK;
}

static mb_status read_template(const char *directory, const char *name, mb_small_file *file) {
    MB_TRY(mb_file_read_optional(directory, name, MAX_TEMPLATE_BYTES, file));
    return file->bytes ? check_text(file->path, file->bytes, file->n_bytes) : MB_OK;
}

static mb_status read_config(const char *directory, files *f) {
    MB_TRY(mb_file_read_optional(directory, "tokenizer_config.json", MAX_CONFIG_BYTES, &f->config));
    return f->config.bytes ? parse_config(f->config.path, f->config.bytes, f->config.n_bytes, &f->parsed)
                           : MB_OK;
}

static mb_status open_files(const char *directory, files *f, mb_chat_template **opened) {
    sources from = {0};
    MB_TRY(read_config(directory, f));
    MB_TRY(read_template(directory, "chat_template.jinja", &f->jinja));
    MB_TRY(read_template(directory, "additional_chat_templates/tool_use.jinja", &f->tool_use));
    if (f->jinja.bytes)
        from = (sources){.name = f->jinja.path, .usual = f->jinja.bytes, .n_usual = f->jinja.n_bytes};
    else if (f->parsed)
        MB_TRY(find_in_config(f->config.path, f->parsed, &from));
    if (f->tool_use.bytes) {
        from.with_tools = f->tool_use.bytes;
        from.n_with_tools = f->tool_use.n_bytes;
    }
    return from.usual ? open_sources(&from, f->parsed, opened) : MB_OK;
}

static void free_files(files *f) {
    mb_json_free(f->parsed);
    mb_free(f->config.bytes);
    mb_free(f->jinja.bytes);
    mb_free(f->tool_use.bytes);
}

mb_status mb_chat_template_open(const char *directory, mb_chat_template **opened) {
    files f = {0};
    *opened = NULL;
    mb_status status = open_files(directory, &f, opened);
    free_files(&f);
    return status;
}

static mb_status read_named(const char *name, char **owned, sources *from) {
    char quoted[SHOWN];
    from->name = name;
    from->usual = mb_chat_template_builtin(name);
    if (from->usual) {
        from->n_usual = strlen(from->usual);
        return MB_OK;
    }
    mb_status status = mb_file_read(name, MAX_TEMPLATE_BYTES, owned, &from->n_usual);
    if (status == MB_ERR_NOT_FOUND)
        return mb_fail(MB_ERR_NOT_FOUND,
                       "no chat template is called %s and no file either; known are qwen3, qwen3-instruct, "
                       "qwen3-thinking and chatml",
                       mb_quote(quoted, sizeof quoted, name));
    MB_TRY(status);
    from->usual = *owned;
    return check_text(name, *owned, from->n_usual);
}

mb_status mb_chat_template_open_named(const char *directory, const char *name, mb_chat_template **opened) {
    files f = {0};
    sources from = {0};
    char *owned = NULL;
    *opened = NULL;
    mb_status status = read_named(name, &owned, &from);
    if (status == MB_OK)
        status = read_config(directory, &f);
    if (status == MB_OK)
        status = open_sources(&from, f.parsed, opened);
    mb_free(owned);
    free_files(&f);
    return status;
}
