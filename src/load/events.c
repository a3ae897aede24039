#define _GNU_SOURCE /* memmem */
#include "load/events.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

void load_events_free(load_events *events) {
    mb_free(events->bytes);
    *events = (load_events){0};
}

static void take_line(const char *line, size_t n, load_sink sink, void *context) {
    if (n > 0 && line[n - 1] == '\r')
        n--;
    if (n < 5 || memcmp(line, "data:", 5) != 0)
        return;
    size_t skip = n > 5 && line[5] == ' ' ? 6 : 5;
    sink(context, line + skip, n - skip);
}

static void keep(load_events *events, const char *bytes, size_t n_bytes) {
    if (events->failed || n_bytes > LOAD_MAX_EVENT - events->n_bytes ||
        mb_grow((void **)&events->bytes, &events->capacity, events->n_bytes + n_bytes, 1) != 0) {
        events->failed = 1;
        return;
    }
    memcpy(events->bytes + events->n_bytes, bytes, n_bytes);
    events->n_bytes += n_bytes;
}

void load_events_take(load_events *events, const char *bytes, size_t n_bytes, load_sink sink, void *context) {
    const char *end = bytes + n_bytes, *newline;
    while (bytes < end && (newline = memchr(bytes, '\n', (size_t)(end - bytes))) != NULL) {
        if (events->n_bytes > 0) {
            keep(events, bytes, (size_t)(newline - bytes));
            if (!events->failed)
                take_line(events->bytes, events->n_bytes, sink, context);
            events->n_bytes = 0;
        } else {
            take_line(bytes, (size_t)(newline - bytes), sink, context);
        }
        bytes = newline + 1;
    }
    if (bytes < end)
        keep(events, bytes, (size_t)(end - bytes));
}

/* Whether a key of the chunk has a value that begins with `first`, and is no empty string or list. Within a
 * JSON string a quote has a backslash before it, so no text of an answer looks like a key. */
static int has_value(const char *data, size_t n_bytes, const char *key, char first) {
    const char *end = data + n_bytes, *at = data;
    size_t n = strlen(key);
    while ((at = memmem(at, (size_t)(end - at), key, n)) != NULL) {
        at += n;
        while (at < end && (*at == ' ' || *at == ':'))
            at++;
        if (at + 1 < end && *at == first && at[1] != (first == '"' ? '"' : ']'))
            return 1;
    }
    return 0;
}

static int64_t integer_of(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_integer(value) && json_integer_value(value) >= 0 ? json_integer_value(value) : 0;
}

static void read_usage(const json_t *body, load_chunk *chunk) {
    const json_t *usage = json_object_get(body, "usage");
    if (!json_is_object(usage))
        return;
    chunk->has_usage = 1;
    chunk->n_prompt = integer_of(usage, "prompt_tokens");
    chunk->n_output = integer_of(usage, "completion_tokens");
    chunk->n_cached = integer_of(json_object_get(usage, "prompt_tokens_details"), "cached_tokens");
}

static int read_error(const json_t *body, char *message, size_t capacity) {
    const json_t *error = json_object_get(body, "error");
    if (error == NULL || json_is_null(error))
        return 0;
    const json_t *text = json_is_object(error) ? json_object_get(error, "message") : error;
    snprintf(message, capacity, "%.200s",
             json_is_string(text) ? json_string_value(text) : "an error without a message");
    return 1;
}

void load_chunk_read(const char *data, size_t n_bytes, load_chunk *chunk) {
    memset(chunk, 0, sizeof *chunk);
    if (n_bytes == 6 && memcmp(data, "[DONE]", 6) == 0) {
        chunk->is_done = 1;
        return;
    }
    chunk->has_text =
        has_value(data, n_bytes, "\"text\"", '"') || has_value(data, n_bytes, "\"content\"", '"') ||
        has_value(data, n_bytes, "\"reasoning_content\"", '"') ||
        has_value(data, n_bytes, "\"reasoning\"", '"') || has_value(data, n_bytes, "\"tool_calls\"", '[');
    if (!has_value(data, n_bytes, "\"usage\"", '{') && memmem(data, n_bytes, "\"error\"", 7) == NULL)
        return;
    json_t *body = json_loadb(data, n_bytes, 0, NULL);
    read_usage(body, chunk);
    chunk->is_error = read_error(body, chunk->message, sizeof chunk->message);
    json_decref(body);
}

void load_error_message(const char *body, size_t n_bytes, char *message, size_t capacity) {
    json_t *object = json_loadb(n_bytes > 0 ? body : "", n_bytes, 0, NULL);
    if (!json_is_object(object) || !read_error(object, message, capacity)) {
        size_t n = 0;
        while (n < n_bytes && n < 120 && body[n] >= ' ' && body[n] <= '~')
            n++;
        snprintf(message, capacity, "%.*s", (int)n, n > 0 ? body : "");
    }
    json_decref(object);
}
