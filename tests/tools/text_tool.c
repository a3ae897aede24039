/*
 * text_tool.c - the tokenizer and the chat templates for the Python tests: requests on stdin, one JSON line
 * each on stdout. A request is a line of words that ends with a number of bytes N, then those bytes:
 *
 *   open VOCAB N_CONFIG N_ADDED N        tokenizer_config.json, added_tokens.json, tokenizer.json; N counts
 *                                        all three, -1: there is no such file. Answer {}
 *   encode SPECIAL N                     text. Answer {"ids": [...]}
 *   decode SKIP CHUNK N                  ids, separated by spaces; CHUNK: one by one, or all at once.
 *                                        Answer {"text": "..."}
 *   pieces N_PATTERN N                   pattern, then text; N counts both. Answer {"pieces": [bytes, ...]}
 *   builtin NAME N                       nothing. Answer {"text": the template of this name}
 *   template N_CONFIG N                  tokenizer_config.json (N_CONFIG -1: none), then a template (none:
 *                                        the one of the config). N counts both. It is used from here on.
 *                                        Answer {}
 *   render PROMPT THINK N_TOOLS N_KWARGS N
 *                                        tools, chat_template_kwargs, then messages; N counts all, -1:
 *                                        there are none. Answer {"text": "..."}
 *   jinja N_VARIABLES N                  an object of variables, then a template, rendered as it is; N counts
 *                                        both. Answer {"text": "..."}
 *
 * A failure answers {"status": "MB_ERR_...", "error": "..."}.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/chat/chat_template.h"
#include "model/jinja/jinja.h"
#include "model/json.h"
#include "model/tokenizer/pretokenize.h"
#include "model/tokenizer/tokenizer.h"

static mb_tokenizer *tokenizer;
static mb_chat_template *chat_template;

static void reply(json_t *answer) {
    char *line = json_dumps(answer, JSON_COMPACT | JSON_ENSURE_ASCII);
    puts(line ? line : "{}");
    free(line);
    json_decref(answer);
}

static void reply_failure(mb_status status) {
    reply(json_pack("{s:s, s:s}", "status", mb_status_name(status), "error", mb_last_error()));
}

static void reply_text(const char *text, size_t n_bytes) {
    reply(json_pack("{s:s%}", "text", text, n_bytes));
}

static void encode(const char *words, const char *text, size_t n_bytes) {
    int32_t *ids;
    size_t n_ids;
    mb_status status = mb_tokenizer_encode(tokenizer, text, n_bytes, atoi(words), &ids, &n_ids);
    if (status != MB_OK) {
        reply_failure(status);
        return;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < n_ids; i++)
        json_array_append_new(list, json_integer(ids[i]));
    mb_free(ids);
    reply(json_pack("{s:o}", "ids", list));
}

static void decode(const char *words, char *text, size_t n_bytes) {
    int skip_special, one_by_one, is_special;
    if (sscanf(words, "%d %d", &skip_special, &one_by_one) != 2)
        exit(2);
    char *bytes = NULL, *out = NULL;
    size_t capacity = 0, n = 0, out_capacity = 0, n_out = 0;
    mb_utf8_stream stream = {.n_held = 0};
    for (char *id = strtok(text, " "); id; id = strtok(NULL, " ")) {
        const char *token;
        size_t n_token;
        mb_status status = mb_tokenizer_bytes(tokenizer, atoi(id), &token, &n_token, &is_special);
        if (status != MB_OK) {
            reply_failure(status);
            mb_free(bytes);
            mb_free(out);
            return;
        }
        if (is_special && skip_special)
            continue;
        mb_grow((void **)&bytes, &capacity, n + n_token + 1, 1);
        memcpy(bytes + n, token, n_token);
        n += n_token;
        mb_grow((void **)&out, &out_capacity, n_out + 3 * (n_token + 4) + 12, 1);
        if (one_by_one)
            n_out += mb_utf8_stream_push(&stream, token, n_token, out + n_out);
    }
    mb_grow((void **)&out, &out_capacity, n_out + 3 * (n + 4) + 12, 1);
    if (!one_by_one)
        n_out = mb_utf8_stream_push(&stream, bytes, n, out);
    n_out += mb_utf8_stream_finish(&stream, out + n_out);
    reply_text(out, n_out);
    mb_free(bytes);
    mb_free(out);
    (void)n_bytes;
}

/* The bytes of a request's part that begins at *at; NULL when its count is negative. */
static char *take_part(char **at, long n) {
    if (n < 0)
        return NULL;
    char *part = strndup(*at, (size_t)n);
    *at += n;
    return part;
}

static void reply_rendered(mb_status status, char *rendered) {
    if (status != MB_OK) {
        reply_failure(status);
        return;
    }
    reply_text(rendered, strlen(rendered));
    mb_free(rendered);
}

static void render(const char *words, char *text) {
    long n_tools, n_kwargs;
    mb_chat_options options = {0};
    char *rendered = NULL;
    if (sscanf(words, "%d %d %ld %ld", &options.add_generation_prompt, &options.enable_thinking, &n_tools,
               &n_kwargs) != 4)
        exit(2);
    char *tools = take_part(&text, n_tools), *kwargs = take_part(&text, n_kwargs);
    options.tools_json = tools;
    options.kwargs_json = kwargs;
    mb_status status = mb_chat_template_render(chat_template, text, &options, &rendered);
    reply_rendered(status, rendered);
    free(tools);
    free(kwargs);
}

static void open_template(const char *words, char *text, size_t n_bytes) {
    long n_config = strtol(words, NULL, 10);
    char *config = take_part(&text, n_config);
    size_t n = n_bytes - (size_t)(n_config > 0 ? n_config : 0);
    mb_chat_template_close(chat_template);
    mb_status status = mb_chat_template_open_text("template", n > 0 ? text : NULL, n, config, &chat_template);
    if (status != MB_OK)
        reply_failure(status);
    else
        reply(json_object());
    free(config);
}

static void jinja(const char *words, char *text, size_t n_bytes) {
    long n_variables = strtol(words, NULL, 10);
    char *variables = take_part(&text, n_variables), *rendered = NULL;
    json_t *parsed = NULL;
    mb_jinja *template = NULL;
    mb_status status = mb_json_parse("variables", variables, (size_t)n_variables, &parsed);
    if (status == MB_OK)
        status = mb_jinja_parse("template", text, n_bytes - (size_t)n_variables, &template);
    if (status == MB_OK)
        status = mb_jinja_render(template, (const json_t *const[]){parsed}, 1, &rendered);
    reply_rendered(status, rendered);
    mb_jinja_free(template);
    mb_json_free(parsed);
    free(variables);
}

static void builtin(const char *words) {
    char name[32];
    const char *text = sscanf(words, "%31s", name) == 1 ? mb_chat_template_builtin(name) : NULL;
    reply_text(text ? text : "", text ? strlen(text) : 0);
}

static void open_tokenizer(const char *words, const char *json, size_t n_bytes) {
    int vocab;
    long n_config, n_added;
    if (sscanf(words, "%d %ld %ld", &vocab, &n_config, &n_added) != 3)
        exit(2);
    const char *config = n_config >= 0 ? json : NULL;
    json += n_config >= 0 ? n_config : 0;
    const char *added = n_added >= 0 ? json : NULL;
    json += n_added >= 0 ? n_added : 0;
    mb_tokenizer_files files = {
        {"tokenizer.json", json,
         n_bytes - (size_t)(n_config > 0 ? n_config : 0) - (size_t)(n_added > 0 ? n_added : 0)},
        {"tokenizer_config.json", config, (size_t)n_config},
        {"added_tokens.json", added, (size_t)n_added},
    };
    mb_tokenizer_close(tokenizer);
    mb_status status = mb_tokenizer_open(&files, vocab, &tokenizer);
    if (status != MB_OK)
        reply_failure(status);
    else
        reply(json_object());
}

static mb_status append_length(void *list, const char *piece, size_t n_bytes) {
    (void)piece;
    json_array_append_new(list, json_integer((json_int_t)n_bytes));
    return MB_OK;
}

static void cut_pieces(const char *words, const char *bytes, size_t n_bytes) {
    size_t n_pattern = strtoull(words, NULL, 10);
    char *pattern = strndup(bytes, n_pattern);
    mb_pretokenizer *pretokenizer;
    json_t *pieces = json_array();
    mb_status status = mb_pretokenizer_open("pattern", pattern, &pretokenizer);
    if (status == MB_OK)
        status = mb_pretokenize(pretokenizer, bytes + n_pattern, n_bytes - n_pattern, append_length, pieces);
    mb_pretokenizer_close(pretokenizer);
    free(pattern);
    if (status == MB_OK) {
        reply(json_pack("{s:o}", "pieces", pieces));
    } else {
        json_decref(pieces);
        reply_failure(status);
    }
}

int main(void) {
    char line[256];
    while (fgets(line, sizeof line, stdin)) {
        char *last = strrchr(line, ' ');
        if (!last)
            return 2;
        size_t n_bytes = strtoull(last, NULL, 10);
        char *bytes = malloc(n_bytes + 1);
        if (!bytes || fread(bytes, 1, n_bytes, stdin) != n_bytes)
            return 2;
        bytes[n_bytes] = '\0';
        if (strncmp(line, "open ", 5) == 0)
            open_tokenizer(line + 5, bytes, n_bytes);
        else if (strncmp(line, "encode ", 7) == 0)
            encode(line + 7, bytes, n_bytes);
        else if (strncmp(line, "decode ", 7) == 0)
            decode(line + 7, bytes, n_bytes);
        else if (strncmp(line, "pieces ", 7) == 0)
            cut_pieces(line + 7, bytes, n_bytes);
        else if (strncmp(line, "builtin ", 8) == 0)
            builtin(line + 8);
        else if (strncmp(line, "template ", 9) == 0)
            open_template(line + 9, bytes, n_bytes);
        else if (strncmp(line, "render ", 7) == 0)
            render(line + 7, bytes);
        else if (strncmp(line, "jinja ", 6) == 0)
            jinja(line + 6, bytes, n_bytes);
        else
            return 2;
        fflush(stdout);
        free(bytes);
    }
    mb_tokenizer_close(tokenizer);
    mb_chat_template_close(chat_template);
    return 0;
}
