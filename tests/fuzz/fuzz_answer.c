/* Any bytes as tool_choice and tools; any bytes as an answer, divided in any way: the parts are those of
 * the whole answer, arguments of complete calls are JSON objects, and an answer without tools and reasoning
 * is its content. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/answer/json_scan.h"
#include "moebius/answer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static const char tools[] =
    "[{\"function\": {\"name\": \"f\", \"parameters\": {\"properties\": {\"s\": {\"type\": \"string\"}, \"i\": "
    "{\"type\": \"integer\"}, \"m\": {\"type\": [\"string\", \"null\"]}, \"o\": {}}}}}]";

/* The events' texts, each after a byte that tells its kind when the kind or the call changes. */
typedef struct parts {
    char *bytes;
    size_t n, capacity;
    int last;
    size_t arguments; /* where those of the present call begin */
} parts;

static void add(parts *to, const char *bytes, size_t n) {
    while (to->n + n > to->capacity)
        to->bytes = realloc(to->bytes, to->capacity = to->capacity * 2 + n + 64);
    memcpy(to->bytes + to->n, bytes, n);
    to->n += n;
}

static void drain(mb_answer_parser *parser, parts *to) {
    mb_answer_event event;
    while (mb_answer_next(parser, &event)) {
        int what = (int)event.kind + 16 * (event.call + 1);
        int is_text = event.kind == MB_ANSWER_REASONING || event.kind == MB_ANSWER_CONTENT ||
                      event.kind == MB_ANSWER_ARGUMENTS;
        if (is_text != (event.n_bytes > 0))
            abort();
        char first;
        if (event.kind == MB_ANSWER_CALL_END &&
            (!mb_json_scan_whole(to->bytes + to->arguments, to->n - to->arguments, MB_SCAN_DEPTH, &first) ||
             first != '{'))
            abort();
        if (what != to->last || !is_text)
            add(to, (const char *)&what, sizeof what);
        if (event.kind == MB_ANSWER_CALL) {
            add(to, event.name, strlen(event.name));
            to->arguments = to->n + sizeof what;
        }
        to->last = what;
        add(to, event.text, event.n_bytes);
    }
}

/* piece_at: a byte of the input for each piece, telling its length; NULL: one piece. */
static parts parse(const mb_answer_options *options, const char *text, size_t n_bytes,
                   const uint8_t *piece_at) {
    parts all = {0};
    mb_answer_parser *parser;
    if (mb_answer_open(options, &parser) != MB_OK)
        abort();
    for (size_t at = 0, n; at < n_bytes; at += n) {
        n = piece_at ? (size_t)1 + piece_at[at] % 16 : n_bytes;
        if (n > n_bytes - at)
            n = n_bytes - at;
        if (mb_answer_push(parser, text + at, n) != MB_OK)
            abort();
        drain(parser, &all);
    }
    if (mb_answer_finish(parser) != MB_OK)
        abort();
    drain(parser, &all);
    mb_answer_close(parser);
    return all;
}

static char *copy_text(const char *bytes, size_t n_bytes) {
    char *text = malloc(n_bytes + 1);
    memcpy(text, bytes, n_bytes);
    text[n_bytes] = '\0';
    return text;
}

/* tool_choice, a byte 0x1E, tools: what forces calls is JSON. */
static void choose(const mb_answer_formats *formats, const char *text, size_t n_bytes) {
    const char *separator = n_bytes > 0 ? memchr(text, 0x1E, n_bytes) : NULL;
    size_t n_choice = separator ? (size_t)(separator - text) : n_bytes;
    char *tool_choice = copy_text(text, n_choice);
    char *tools_json = separator ? copy_text(separator + 1, n_bytes - n_choice - 1) : NULL;
    mb_tool_use use;
    char *structure;
    mb_status status = mb_answer_tool_choice(formats, tools_json, tool_choice, 1, &use, &structure);
    if ((structure != NULL) != (status == MB_OK && use == MB_TOOL_USE_FORCED))
        abort();
    char first;
    if (structure &&
        (!mb_json_scan_whole(structure, strlen(structure), MB_SCAN_DEPTH + 20, &first) || first != '{'))
        abort();
    mb_free_text(structure);
    free(tool_choice);
    free(tools_json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes < 1)
        return 0;
    mb_answer_formats formats = {data[0] & 1 ? MB_REASONING_THINK : MB_REASONING_NONE, MB_TOOLS_JSON, 0};
    mb_answer_options options;
    mb_answer_options_init(&formats, &options);
    options.in_reasoning = data[0] >> 1 & 1;
    options.one_call = data[0] >> 2 & 1;
    options.tools_json = data[0] & 8 ? NULL : tools;
    options.id_seed = 1;
    const char *text = (const char *)data + 1;
    if (data[0] & 16) {
        formats.tools = data[0] & 1 ? MB_TOOLS_XML : MB_TOOLS_JSON;
        choose(&formats, text, n_bytes - 1);
        return 0;
    }
    parts whole = parse(&options, text, n_bytes - 1, NULL);
    parts divided = parse(&options, text, n_bytes - 1, data + 1);
    if (whole.n != divided.n || (whole.n > 0 && memcmp(whole.bytes, divided.bytes, whole.n) != 0))
        abort();
    if (!options.tools_json && !(data[0] & 1) && n_bytes > 1 &&
        (whole.n != sizeof(int) + n_bytes - 1 || memcmp(whole.bytes + sizeof(int), text, n_bytes - 1) != 0))
        abort();
    free(whole.bytes);
    free(divided.bytes);
    return 0;
}
