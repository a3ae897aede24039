/* write_messages.c - replies of POST /v1/messages: Anthropic's messages, events and errors. */
#include <string.h>

#include "server/messages.h"
#include "server/writer.h"

/* ---- Errors ------------------------------------------------------------------------------------------- */

static const char *error_type(int status) {
    switch (status) {
    case 401:
        return "authentication_error";
    case 404:
        return "not_found_error";
    case 413:
    case 431:
        return "request_too_large";
    case 503:
        return "overloaded_error";
    default:
        return status < 500 ? "invalid_request_error" : "api_error";
    }
}

void server_messages_problem(const server_problem *problem, server_text *out) {
    server_text_printf(
        out, "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":", error_type(problem->status));
    server_text_json_string(out, problem->message);
    server_text_puts(out, "}}");
}

/* ---- What streams and whole replies share ------------------------------------------------------------- */

static const char *stop_reason(const server_answer *answer) {
    if (answer->stop_string != NULL)
        return "stop_sequence";
    if (strcmp(answer->finish, "length") == 0)
        return "max_tokens";
    return answer->n_calls > 0 ? "tool_use" : "end_turn";
}

static void write_stop(const server_answer *answer, server_text *out) {
    server_text_printf(out, "\"stop_reason\":\"%s\",\"stop_sequence\":", stop_reason(answer));
    if (answer->stop_string != NULL)
        server_text_json_string(out, answer->stop_string);
    else
        server_text_puts(out, "null");
}

/* As Anthropic counts: tokens from the cache are no input tokens. */
static void write_usage(const server_run *run, server_text *out) {
    server_text_printf(out,
                       "\"usage\":{\"input_tokens\":%lld,\"cache_creation_input_tokens\":0,"
                       "\"cache_read_input_tokens\":%lld,\"output_tokens\":%lld}",
                       (long long)(run->n_prompt_tokens - run->n_cached_tokens),
                       (long long)run->n_cached_tokens, (long long)run->answers[0].n_generated);
}

static void begin_message(const server_run *run, server_text *out) {
    server_text_puts(out, "{\"id\":");
    server_text_json_string(out, run->id);
    server_text_puts(out, ",\"type\":\"message\",\"role\":\"assistant\",\"model\":");
    server_text_json_string(out, run->generation.model);
    server_text_puts(out, ",\"content\":[");
}

/* A block's beginning up to its text, which ends it. */
static void write_tool(const char *id, const char *name, server_text *out) {
    server_text_puts(out, "{\"type\":\"tool_use\",\"id\":");
    server_text_json_string(out, id);
    server_text_puts(out, ",\"name\":");
    server_text_json_string(out, name);
    server_text_puts(out, ",\"input\":");
}

/* ---- A stream ----------------------------------------------------------------------------------------- */

static void open_stream(server_run *run, server_text *out) {
    server_text_puts(out, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":");
    begin_message(run, out);
    server_text_puts(out, "],\"stop_reason\":null,\"stop_sequence\":null,");
    write_usage(run, out);
    server_text_puts(out, "}}\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\n");
}

static void begin_event(const char *name, int32_t index, server_text *out) {
    server_text_printf(out, "event: %s\ndata: {\"type\":\"%s\",\"index\":%d", name, name, (int)index);
}

static void begin_block(server_run *run, server_text *out) {
    const server_blocks *blocks = &run->blocks;
    begin_event("content_block_start", blocks->index, out);
    server_text_puts(out, ",\"content_block\":");
    if (blocks->kind == SERVER_CALL) {
        write_tool(blocks->id, blocks->name, out);
        server_text_puts(out, "{}}");
    } else {
        server_text_puts(out, blocks->kind == SERVER_REASONING
                                  ? "{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}"
                                  : "{\"type\":\"text\",\"text\":\"\"}");
    }
    server_text_puts(out, "}\n\n");
}

static void grow_block(server_run *run, const server_text *more, server_text *out) {
    static const char *const deltas[] = {
        [SERVER_CONTENT] = "{\"type\":\"text_delta\",\"text\":",
        [SERVER_REASONING] = "{\"type\":\"thinking_delta\",\"thinking\":",
        [SERVER_CALL] = "{\"type\":\"input_json_delta\",\"partial_json\":",
    };
    begin_event("content_block_delta", run->blocks.index, out);
    server_text_puts(out, ",\"delta\":");
    server_text_puts(out, deltas[run->blocks.kind]);
    server_text_json(out, more->bytes, more->n_bytes);
    server_text_puts(out, "}}\n\n");
}

static void end_block(server_run *run, server_text *out) {
    begin_event("content_block_stop", run->blocks.index, out);
    server_text_puts(out, "}\n\n");
}

static void write_news(server_run *run, server_answer *answer, server_text *out) {
    static const server_block_writer writer = {.begin = begin_block, .grow = grow_block, .end = end_block};
    server_blocks_write(run, answer, &writer, out);
}

static void fail_stream(server_run *run, server_text *out) {
    server_text_puts(out, "event: error\ndata: ");
    server_messages_problem(&run->problem, out);
    server_text_puts(out, "\n\n");
}

static void close_stream(server_run *run, server_text *out) {
    if (strcmp(run->answers[0].finish, "abort") == 0) {
        server_refuse(&run->problem, 503, NULL, "the server is shutting down");
        fail_stream(run, out);
        return;
    }
    server_text_puts(out, "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{");
    write_stop(&run->answers[0], out);
    server_text_puts(out, "},");
    write_usage(run, out);
    server_text_puts(out, "}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
}

/* ---- A whole reply ------------------------------------------------------------------------------------ */

static void write_block(const server_part *part, server_text *out) {
    if (part->kind == SERVER_CALL) { /* the arguments are a JSON object */
        write_tool(part->id, part->name, out);
        server_text_puts(out, part->text.n_bytes == 0 ? "{}" : "");
        server_text_put(out, part->text.bytes, part->text.n_bytes);
    } else {
        server_text_puts(out, part->kind == SERVER_REASONING
                                  ? "{\"type\":\"thinking\",\"signature\":\"\",\"thinking\":"
                                  : "{\"type\":\"text\",\"text\":");
        server_text_json(out, part->text.bytes, part->text.n_bytes);
    }
    server_text_puts(out, "}");
}

static void write_whole(server_run *run, server_text *out) {
    const server_answer *answer = &run->answers[0];
    begin_message(run, out);
    for (size_t i = 0; i < answer->n_parts; i++) {
        server_text_puts(out, i > 0 ? "," : "");
        write_block(&answer->parts[i], out);
    }
    server_text_puts(out, "],");
    write_stop(answer, out);
    server_text_puts(out, ",");
    write_usage(run, out);
    server_text_puts(out, "}");
}

const server_writer server_messages_writer = {
    .id_prefix = "msg_",
    .open = open_stream,
    .news = write_news,
    .close = close_stream,
    .fail = fail_stream,
    .whole = write_whole,
};
