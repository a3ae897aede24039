/* write_chat.c - replies of POST /v1/chat/completions. */
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

static void write_news(server_run *run, server_answer *answer, server_text *out) {
    for (size_t i = 0; i < answer->n_parts; i++) {
        const server_part *part = &answer->parts[i];
        begin_chunk(run, answer->index, out);
        server_text_puts(out, "\"content\":");
        server_text_json(out, part->text.bytes, part->text.n_bytes);
        server_text_puts(out, "}");
        write_details(answer, i == 0, out);
        end_chunk(run, NULL, out);
    }
    if (answer->finish == NULL)
        return;
    begin_chunk(run, answer->index, out);
    server_text_puts(out, "}");
    write_details(answer, answer->n_parts == 0, out);
    server_write_stop_reason(answer, out);
    end_chunk(run, answer->finish, out);
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

static void write_choice(const server_answer *answer, server_text *out) {
    server_text_printf(out,
                       "{\"index\":%d,\"message\":{\"role\":\"assistant\",\"content\":", (int)answer->index);
    server_write_parts(answer, SERVER_CONTENT, out);
    server_text_puts(out, "}");
    write_details(answer, 1, out);
    server_write_finish(answer->finish, out);
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
