/* write_responses.c - replies of POST /v1/responses. */
#include <string.h>

#include "server/writer.h"

/* ---- Items -------------------------------------------------------------------------------------------- */

typedef struct item {
    server_part_kind kind;
    int32_t index;
    const char *call_id, *name; /* of a call */
    server_text text;           /* borrowed */
    const char *status;
} item;

/* Ids of items are those of the response under another prefix, and the index. */
static void write_id(const server_run *run, server_part_kind kind, int32_t index, server_text *out) {
    const char *prefix = kind == SERVER_CONTENT ? "msg" : kind == SERVER_REASONING ? "rs" : "fc";
    server_text_printf(out, "\"%s_%s_%d\"", prefix, run->id + strlen("resp_"), (int)index);
}

/* A message's or a reasoning's one part. */
static void write_part(server_part_kind kind, const server_text *text, server_text *out) {
    server_text_puts(out, kind == SERVER_REASONING
                              ? "{\"type\":\"reasoning_text\",\"text\":"
                              : "{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],\"text\":");
    server_text_json(out, text->n_bytes > 0 ? text->bytes : "", text->n_bytes);
    server_text_puts(out, "}");
}

/* An item that has only begun has no parts. */
static void write_item(const server_run *run, const item *one, int has_parts, server_text *out) {
    server_text_puts(out, "{\"id\":");
    write_id(run, one->kind, one->index, out);
    server_text_printf(out, ",\"status\":\"%s\",", one->status);
    if (one->kind == SERVER_CALL) {
        server_text_puts(out, "\"type\":\"function_call\",\"call_id\":");
        server_text_json_string(out, one->call_id);
        server_text_puts(out, ",\"name\":");
        server_text_json_string(out, one->name);
        server_text_puts(out, ",\"arguments\":");
        server_text_json(out, one->text.n_bytes > 0 ? one->text.bytes : "", one->text.n_bytes);
        server_text_puts(out, "}");
        return;
    }
    server_text_puts(out, one->kind == SERVER_REASONING
                              ? "\"type\":\"reasoning\",\"summary\":[],\"content\":["
                              : "\"type\":\"message\",\"role\":\"assistant\",\"content\":[");
    if (has_parts)
        write_part(one->kind, &one->text, out);
    server_text_puts(out, "]}");
}

/* ---- The response ------------------------------------------------------------------------------------- */

static void write_usage(const server_run *run, server_text *out) {
    long long n_input = run->n_prompt_tokens, n_output = run->answers[0].n_generated;
    server_text_printf(out,
                       "\"usage\":{\"input_tokens\":%lld,\"input_tokens_details\":{\"cached_tokens\":%lld},"
                       "\"output_tokens\":%lld,\"output_tokens_details\":{\"reasoning_tokens\":0},"
                       "\"total_tokens\":%lld}",
                       n_input, (long long)run->n_cached_tokens, n_output, n_input + n_output);
}

/* "completed", "incomplete" or "failed", once the answer has ended. */
static const char *status_of(const server_run *run) {
    const char *finish = run->answers[0].finish;
    if (run->problem.status != 0)
        return "failed";
    return finish != NULL && strcmp(finish, "length") == 0 ? "incomplete" : "completed";
}

static void begin_response(const server_run *run, const char *status, server_text *out) {
    server_text_puts(out, "{\"id\":");
    server_text_json_string(out, run->id);
    server_text_printf(out,
                       ",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\",\"background\":false,",
                       (long long)run->created, status);
    server_text_puts(out, run->generation.echoed);
    server_text_puts(out,
                     "\"previous_response_id\":null,\"store\":false,\"truncation\":\"disabled\",\"model\":");
    server_text_json_string(out, run->generation.model);
    if (strcmp(status, "failed") == 0) {
        server_text_puts(out, ",\"error\":{\"code\":\"server_error\",\"message\":");
        server_text_json_string(out, run->problem.message);
        server_text_puts(out, "}");
    } else {
        server_text_puts(out, ",\"error\":null");
    }
    server_text_printf(out, ",\"incomplete_details\":%s,\"output\":[",
                       strcmp(status, "incomplete") == 0 ? "{\"reason\":\"max_output_tokens\"}" : "null");
}

/* ---- A stream ----------------------------------------------------------------------------------------- */

static void begin_event(server_run *run, const char *type, server_text *out) {
    server_text_printf(out, "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%lld", type, type,
                       (long long)run->blocks.n_events++);
}

static void end_event(server_text *out) {
    server_text_puts(out, "}\n\n");
}

static void write_response_event(server_run *run, const char *type, const char *status, server_text *out) {
    int has_ended = strcmp(status, "in_progress") != 0;
    begin_event(run, type, out);
    server_text_puts(out, ",\"response\":");
    begin_response(run, status, out);
    server_text_put(out, run->blocks.done.n_bytes > 0 ? run->blocks.done.bytes : "",
                    run->blocks.done.n_bytes);
    server_text_puts(out, "],");
    if (has_ended)
        write_usage(run, out);
    else
        server_text_puts(out, "\"usage\":null");
    server_text_puts(out, "}");
    end_event(out);
}

static void open_stream(server_run *run, server_text *out) {
    write_response_event(run, "response.created", "in_progress", out);
    write_response_event(run, "response.in_progress", "in_progress", out);
}

static item open_item(const server_run *run, const char *status) {
    const server_blocks *blocks = &run->blocks;
    return (item){.kind = blocks->kind,
                  .index = blocks->index,
                  .call_id = blocks->id,
                  .name = blocks->name,
                  .text = blocks->text,
                  .status = status};
}

static void write_item_event(server_run *run, const char *type, const char *status, server_text *out) {
    item one = open_item(run, status);
    begin_event(run, type, out);
    server_text_printf(out, ",\"output_index\":%d,\"item\":", (int)one.index);
    write_item(run, &one, strcmp(status, "completed") == 0, out);
    end_event(out);
}

/* An event about the part of the open item. */
static void begin_part_event(server_run *run, const char *type, server_text *out) {
    const server_blocks *blocks = &run->blocks;
    begin_event(run, type, out);
    server_text_puts(out, ",\"item_id\":");
    write_id(run, blocks->kind, blocks->index, out);
    server_text_printf(out, ",\"output_index\":%d", (int)blocks->index);
    if (blocks->kind != SERVER_CALL)
        server_text_puts(out, ",\"content_index\":0");
}

static void write_part_event(server_run *run, const char *type, server_text *out) {
    begin_part_event(run, type, out);
    server_text_puts(out, ",\"part\":");
    write_part(run->blocks.kind, &run->blocks.text, out);
    end_event(out);
}

static const struct {
    const char *delta, *done, *field;
} events[] = {
    [SERVER_CONTENT] = {"response.output_text.delta", "response.output_text.done", "text"},
    [SERVER_REASONING] = {"response.reasoning_text.delta", "response.reasoning_text.done", "text"},
    [SERVER_CALL] = {"response.function_call_arguments.delta", "response.function_call_arguments.done",
                     "arguments"},
};

static void begin_block(server_run *run, server_text *out) {
    write_item_event(run, "response.output_item.added", "in_progress", out);
    if (run->blocks.kind != SERVER_CALL)
        write_part_event(run, "response.content_part.added", out);
}

static void write_text_event(server_run *run, const char *type, const char *field, const server_text *text,
                             server_text *out) {
    begin_part_event(run, type, out);
    server_text_printf(out, ",\"%s\":", field);
    server_text_json(out, text->n_bytes > 0 ? text->bytes : "", text->n_bytes);
    if (run->blocks.kind == SERVER_CONTENT)
        server_text_puts(out, ",\"logprobs\":[]");
    end_event(out);
}

static void grow_block(server_run *run, const server_text *more, server_text *out) {
    write_text_event(run, events[run->blocks.kind].delta, "delta", more, out);
}

static void end_block(server_run *run, server_text *out) {
    server_blocks *blocks = &run->blocks;
    item one = open_item(run, "completed");
    write_text_event(run, events[blocks->kind].done, events[blocks->kind].field, &blocks->text, out);
    if (blocks->kind != SERVER_CALL)
        write_part_event(run, "response.content_part.done", out);
    write_item_event(run, "response.output_item.done", "completed", out);
    server_text_puts(&blocks->done, blocks->index > 0 ? "," : "");
    write_item(run, &one, 1, &blocks->done);
    out->failed |= blocks->done.failed;
}

static void write_news(server_run *run, server_answer *answer, server_text *out) {
    static const server_block_writer writer = {.begin = begin_block, .grow = grow_block, .end = end_block};
    server_blocks_write(run, answer, &writer, out);
}

static void fail_stream(server_run *run, server_text *out) {
    write_response_event(run, "response.failed", "failed", out);
}

static void close_stream(server_run *run, server_text *out) {
    if (strcmp(run->answers[0].finish, "abort") == 0)
        server_refuse(&run->problem, 503, NULL, "the server is shutting down");
    const char *status = status_of(run);
    const char *type = strcmp(status, "failed") == 0       ? "response.failed"
                       : strcmp(status, "incomplete") == 0 ? "response.incomplete"
                                                           : "response.completed";
    write_response_event(run, type, status, out);
}

/* ---- A whole reply ------------------------------------------------------------------------------------ */

static void write_whole(server_run *run, server_text *out) {
    const server_answer *answer = &run->answers[0];
    begin_response(run, status_of(run), out);
    for (size_t i = 0; i < answer->n_parts; i++) {
        const server_part *part = &answer->parts[i];
        item one = {.kind = part->kind,
                    .index = (int32_t)i,
                    .call_id = part->id,
                    .name = part->name,
                    .text = part->text,
                    .status = "completed"};
        server_text_puts(out, i > 0 ? "," : "");
        write_item(run, &one, 1, out);
    }
    server_text_puts(out, "],");
    write_usage(run, out);
    server_text_puts(out, "}");
}

const server_writer server_responses_writer = {
    .id_prefix = "resp_",
    .open = open_stream,
    .news = write_news,
    .close = close_stream,
    .fail = fail_stream,
    .whole = write_whole,
};
