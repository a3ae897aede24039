/* write_completion.c - replies of POST /v1/completions. */
#include <string.h>

#include "server/logprobs.h"
#include "server/writer.h"

static void begin(const server_run *run, server_text *out) {
    server_text_puts(out, "{\"id\":");
    server_text_json_string(out, run->id);
    server_text_printf(
        out, ",\"object\":\"text_completion\",\"created\":%lld,\"model\":", (long long)run->created);
    server_text_json_string(out, run->generation.model);
    server_text_puts(out, ",\"choices\":[");
}

/* ---- Log-probabilities: four lists -------------------------------------------------------------------- */

typedef struct lists {
    server_text tokens, logprobs, tops, offsets;
    size_t offset; /* in characters */
    int n;
} lists;

static void add_token(const server_run *run, int32_t id, const float *logprob, const server_row *row,
                      lists *to) {
    const char *comma = to->n++ > 0 ? "," : "";
    int is_listed = 0;
    server_text_puts(&to->tokens, comma);
    server_text_printf(&to->offsets, "%s%zu", comma, to->offset);
    to->offset += server_write_token(run, id, &to->tokens);
    server_text_puts(&to->logprobs, comma);
    server_text_puts(&to->tops, comma);
    if (logprob == NULL) { /* nothing comes before the prompt's first token */
        server_text_puts(&to->logprobs, "null");
        server_text_puts(&to->tops, "null");
        return;
    }
    server_text_json_number(&to->logprobs, *logprob);
    server_text_puts(&to->tops, "{");
    for (int32_t k = 0; k < row->n_tops; k++) {
        is_listed |= row->tops[k].id == id;
        server_text_puts(&to->tops, k > 0 ? "," : "");
        server_write_token(run, row->tops[k].id, &to->tops);
        server_text_puts(&to->tops, ":");
        server_text_json_number(&to->tops, row->tops[k].logprob);
    }
    if (!is_listed) {
        server_text_puts(&to->tops, row->n_tops > 0 ? "," : "");
        server_write_token(run, id, &to->tops);
        server_text_puts(&to->tops, ":");
        server_text_json_number(&to->tops, *logprob);
    }
    server_text_puts(&to->tops, "}");
}

static void add_prompt(const server_answer *answer, lists *to) {
    const server_answer *first =
        &answer->run->answers[answer->index - answer->index % answer->run->generation.n_answers];
    const server_prompt *prompt = answer->prompt;
    for (size_t i = 0; i < prompt->n_ids; i++) {
        server_row row = i > 0 ? server_row_at(first, (int64_t)i - 1) : (server_row){0};
        add_token(answer->run, prompt->ids[i], i > 0 ? &row.chosen : NULL, &row, to);
    }
}

static void put_list(const char *name, server_text *list, server_text *out) {
    server_text_printf(out, "\"%s\":[", name);
    server_text_put(out, list->bytes, list->n_bytes);
    server_text_puts(out, "]");
    out->failed |= list->failed;
    server_text_free(list);
}

static void write_logprobs(server_answer *answer, int with_prompt, server_text *out) {
    const server_run *run = answer->run;
    lists to = {.offset = answer->text_offset};
    int64_t first = (int64_t)answer->prompt->n_ids - 1 + answer->first_token;
    if (run->generation.top_logprobs < 0) {
        server_text_puts(out, "null");
        return;
    }
    if (with_prompt)
        add_prompt(answer, &to);
    for (size_t i = 0; i < answer->n_tokens; i++) {
        server_row row = server_row_at(answer, first + (int64_t)i);
        add_token(run, answer->tokens[i].id, &answer->tokens[i].logprob, &row, &to);
    }
    answer->text_offset = to.offset;
    server_text_puts(out, "{");
    put_list("text_offset", &to.offsets, out);
    server_text_puts(out, ",");
    put_list("token_logprobs", &to.logprobs, out);
    server_text_puts(out, ",");
    put_list("tokens", &to.tokens, out);
    server_text_puts(out, ",");
    put_list("top_logprobs", &to.tops, out);
    server_text_puts(out, "}");
}

/* ---- Choices ------------------------------------------------------------------------------------------ */

/* The text, behind the prompt when it is echoed. */
static void write_text(const server_answer *answer, int with_prompt, server_text *out) {
    server_text joined = {0};
    if (!with_prompt) {
        server_write_parts(answer, SERVER_CONTENT, out);
        return;
    }
    server_text_put(&joined, answer->prompt->text, answer->prompt->n_bytes);
    for (size_t i = 0; i < answer->n_parts; i++)
        server_text_put(&joined, answer->parts[i].text.bytes, answer->parts[i].text.n_bytes);
    server_text_json(out, joined.bytes, joined.n_bytes);
    out->failed |= joined.failed;
    server_text_free(&joined);
}

/* with_prompt: the answer's first piece, and the request wants an echo. */
static void write_choice(server_answer *answer, int with_prompt, server_text *out) {
    const server_generation *generation = &answer->run->generation;
    server_text_printf(out, "{\"index\":%d,\"text\":", (int)answer->index);
    write_text(answer, with_prompt, out);
    server_text_puts(out, ",\"logprobs\":");
    write_logprobs(answer, with_prompt, out);
    server_write_finish(answer->finish, out);
    server_write_stop_reason(answer, out);
    if (generation->return_token_ids) {
        server_text_puts(out, ",\"token_ids\":");
        server_write_token_ids(answer, out);
    }
    if (!generation->stream && generation->prompt_logprobs >= 0 && !generation->echo) {
        server_text_puts(out, ",\"prompt_logprobs\":");
        server_write_prompt_logprobs(answer - answer->index % generation->n_answers, out);
    }
    if (!generation->stream && generation->return_token_ids) {
        server_text_puts(out, ",\"prompt_token_ids\":");
        server_write_ids(answer->prompt->ids, answer->prompt->n_ids, out);
    }
    server_text_puts(out, "}");
}

static void open_stream(server_run *run, server_text *out) {
    (void)run;
    (void)out;
}

static void write_news(server_run *run, server_answer *answer, server_text *out) {
    int is_first = !answer->is_begun;
    answer->is_begun = 1;
    server_text_puts(out, "data: ");
    begin(run, out);
    write_choice(answer, is_first && run->generation.echo, out);
    server_text_puts(out, "]");
    if (run->generation.usage_always) {
        server_text_puts(out, ",");
        server_write_usage(run, out);
    }
    server_text_puts(out, "}\n\n");
}

static void close_stream(server_run *run, server_text *out) {
    if (run->generation.include_usage) {
        server_text_puts(out, "data: ");
        begin(run, out);
        server_text_puts(out, "],");
        server_write_usage(run, out);
        server_text_puts(out, "}\n\n");
    }
    server_write_done(out);
}

static void write_whole(server_run *run, server_text *out) {
    begin(run, out);
    for (int32_t i = 0; i < run->n_answers; i++) {
        server_text_puts(out, i > 0 ? "," : "");
        write_choice(&run->answers[i], run->generation.echo, out);
    }
    server_text_puts(out, "],");
    server_write_usage(run, out);
    server_text_puts(out, run->generation.has_kv_transfer ? ",\"kv_transfer_params\":{}}"
                                                          : ",\"kv_transfer_params\":null}");
}

const server_writer server_completion_writer = {
    .id_prefix = "cmpl-",
    .open = open_stream,
    .news = write_news,
    .close = close_stream,
    .fail = server_write_failed_stream,
    .whole = write_whole,
};
