/* write_chat.c - replies of POST /v1/chat/completions. */
#include <string.h>

#include "server/writer.h"

static void begin(const server_run *run, const char *object, server_text *out) {
    server_text_puts(out, "{\"id\":");
    server_text_json_string(out, run->id);
    server_text_printf(out, ",\"object\":\"%s\",\"created\":%lld,\"model\":", object,
                       (long long)run->created);
    server_text_json_string(out, run->generation.model);
    server_text_puts(out, ",\"choices\":[");
}

/* ---- A stream ----------------------------------------------------------------------------------------- */

static void begin_chunk(const server_run *run, int32_t index, server_text *out) {
    server_text_puts(out, "data: ");
    begin(run, "chat.completion.chunk", out);
    server_text_printf(out, "{\"index\":%d,\"delta\":{", (int)index);
}

/* Behind the delta's fields. */
static void end_chunk(const server_run *run, const char *finish, server_text *out) {
    server_write_finish(finish, out);
    server_text_puts(out, "}]");
    if (run->generation.usage_always) {
        server_text_puts(out, ",");
        server_write_usage(run, out);
    }
    server_text_puts(out, "}\n\n");
}

static void open_stream(server_run *run, server_text *out) {
    for (int32_t i = 0; i < run->n_answers; i++) {
        begin_chunk(run, i, out);
        server_text_puts(out, "\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null");
        end_chunk(run, NULL, out);
    }
}

/* Log-probabilities and ids go with the first of several parts. */
static void write_details(const server_answer *answer, int is_first, server_text *out) {
    const server_generation *generation = &answer->run->generation;
    server_text_puts(out, ",\"logprobs\":");
    if (is_first && generation->top_logprobs >= 0 && answer->n_tokens > 0)
        server_write_chat_logprobs(answer, out);
    else
        server_text_puts(out, "null");
    if (is_first && generation->return_token_ids) {
        server_text_puts(out, ",\"token_ids\":");
        server_write_token_ids(answer, out);
    }
}

/* {"index":0,"id":...,"type":"function","function":{"name":...,"arguments":...}}; a call that goes on has its
 * index and arguments alone. */
static void write_call(const server_part *part, int with_index, server_text *out) {
    server_text_puts(out, "{");
    if (with_index)
        server_text_printf(out, "\"index\":%d,", (int)part->call);
    if (part->begins) {
        server_text_puts(out, "\"id\":");
        server_text_json_string(out, part->id);
        server_text_puts(out, ",\"type\":\"function\",");
    }
    server_text_puts(out, "\"function\":{");
    if (part->begins) {
        server_text_puts(out, "\"name\":");
        server_text_json_string(out, part->name);
        server_text_puts(out, ",");
    }
    server_text_puts(out, "\"arguments\":");
    server_text_json(out, part->text.bytes, part->text.n_bytes);
    server_text_puts(out, "}}");
}

static void write_delta(const server_part *part, server_text *out) {
    if (part->kind == SERVER_CALL) {
        server_text_puts(out, "\"tool_calls\":[");
        write_call(part, 1, out);
        server_text_puts(out, "]");
        return;
    }
    if (part->kind == SERVER_REASONING) { /* under its new name in vLLM, too */
        server_text_puts(out, "\"reasoning\":");
        server_text_json(out, part->text.bytes, part->text.n_bytes);
        server_text_puts(out, ",");
    }
    server_text_puts(out, part->kind == SERVER_REASONING ? "\"reasoning_content\":" : "\"content\":");
    server_text_json(out, part->text.bytes, part->text.n_bytes);
}

/* As OpenAI: "tool_calls" in place of "stop", unless the request named the tool. */
static const char *finish_reason(const server_answer *answer) {
    int has_calls = answer->n_calls > 0 && !answer->run->generation.call_was_named;
    return answer->finish != NULL && strcmp(answer->finish, "stop") == 0 && has_calls ? "tool_calls"
                                                                                      : answer->finish;
}

static void write_news(server_run *run, server_answer *answer, server_text *out) {
    int n_sent = 0;
    for (size_t i = 0; i < answer->n_parts; i++) {
        const server_part *part = &answer->parts[i];
        if (part->kind == SERVER_CALL && !part->begins && part->text.n_bytes == 0)
            continue; /* the call's end has no chunk */
        begin_chunk(run, answer->index, out);
        write_delta(part, out);
        server_text_puts(out, "}");
        write_details(answer, n_sent++ == 0, out);
        end_chunk(run, NULL, out);
    }
    if (answer->finish == NULL)
        return;
    begin_chunk(run, answer->index, out);
    server_text_puts(out, "}");
    write_details(answer, n_sent == 0, out);
    server_write_stop_reason(answer, out);
    end_chunk(run, finish_reason(answer), out);
}

static void close_stream(server_run *run, server_text *out) {
    if (run->generation.include_usage) {
        server_text_puts(out, "data: ");
        begin(run, "chat.completion.chunk", out);
        server_text_puts(out, "],");
        server_write_usage(run, out);
        server_text_puts(out, "}\n\n");
    }
    server_write_done(out);
}

/* ---- A whole reply ------------------------------------------------------------------------------------ */

static size_t count_parts(const server_answer *answer, server_part_kind kind) {
    size_t n = 0;
    for (size_t i = 0; i < answer->n_parts; i++)
        n += answer->parts[i].kind == kind;
    return n;
}

static void write_message(const server_answer *answer, server_text *out) {
    size_t n_calls = count_parts(answer, SERVER_CALL), n = 0;
    size_t n_reasoning = count_parts(answer, SERVER_REASONING);
    server_text_puts(out, "{\"role\":\"assistant\",\"content\":");
    if (n_calls + n_reasoning > 0 && count_parts(answer, SERVER_CONTENT) == 0)
        server_text_puts(out, "null");
    else
        server_write_parts(answer, SERVER_CONTENT, out);
    if (n_reasoning > 0) {
        server_text_puts(out, ",\"reasoning\":");
        server_write_parts(answer, SERVER_REASONING, out);
        server_text_puts(out, ",\"reasoning_content\":");
        server_write_parts(answer, SERVER_REASONING, out);
    }
    for (size_t i = 0; i < answer->n_parts; i++) {
        if (answer->parts[i].kind != SERVER_CALL)
            continue;
        server_text_puts(out, n++ == 0 ? ",\"tool_calls\":[" : ",");
        write_call(&answer->parts[i], 0, out);
    }
    server_text_puts(out, n > 0 ? "]}" : "}");
}

static void write_choice(const server_answer *answer, server_text *out) {
    server_text_printf(out, "{\"index\":%d,\"message\":", (int)answer->index);
    write_message(answer, out);
    write_details(answer, 1, out);
    server_write_finish(finish_reason(answer), out);
    server_write_stop_reason(answer, out);
    server_text_puts(out, "}");
}

static void write_whole(server_run *run, server_text *out) {
    const server_generation *generation = &run->generation;
    begin(run, "chat.completion", out);
    for (int32_t i = 0; i < run->n_answers; i++) {
        server_text_puts(out, i > 0 ? "," : "");
        write_choice(&run->answers[i], out);
    }
    server_text_puts(out, "],");
    server_write_usage(run, out);
    server_text_puts(out, ",\"prompt_logprobs\":");
    if (generation->prompt_logprobs >= 0)
        server_write_prompt_logprobs(&run->answers[0], out);
    else
        server_text_puts(out, "null");
    if (generation->return_token_ids) {
        server_text_puts(out, ",\"prompt_token_ids\":");
        server_write_ids(generation->prompts[0].ids, generation->prompts[0].n_ids, out);
    }
    server_text_puts(out, generation->has_kv_transfer ? ",\"kv_transfer_params\":{}}"
                                                      : ",\"kv_transfer_params\":null}");
}

const server_writer server_chat_writer = {
    .id_prefix = "chatcmpl-",
    .open = open_stream,
    .news = write_news,
    .close = close_stream,
    .fail = server_write_failed_stream,
    .whole = write_whole,
};
