#include "server/writer.h"

#include <string.h>

#include "server/engine.h"

void server_write_usage(const server_run *run, server_text *out) {
    long long n_generated = 0, n_prompt = run->n_prompt_tokens;
    for (int32_t i = 0; i < run->n_answers; i++)
        n_generated += run->answers[i].n_generated;
    server_text_printf(out,
                       "\"usage\":{\"prompt_tokens\":%lld,\"total_tokens\":%lld,\"completion_tokens\":%lld,"
                       "\"prompt_tokens_details\":{\"cached_tokens\":%lld}}",
                       n_prompt, n_prompt + n_generated, n_generated, (long long)run->n_cached_tokens);
}

void server_write_done(server_text *out) {
    server_text_puts(out, "data: [DONE]\n\n");
}

void server_write_failed_stream(server_run *run, server_text *out) {
    server_text_puts(out, "data: ");
    server_problem_write(&run->problem, out);
    server_text_puts(out, "\n\n");
    server_write_done(out);
}

void server_write_parts(const server_answer *answer, server_part_kind kind, server_text *out) {
    const server_text *only = NULL;
    server_text joined = {0};
    size_t n = 0;
    for (size_t i = 0; i < answer->n_parts; i++)
        if (answer->parts[i].kind == kind && n++ == 0)
            only = &answer->parts[i].text;
    for (size_t i = 0; i < answer->n_parts && n > 1; i++)
        if (answer->parts[i].kind == kind)
            server_text_put(&joined, answer->parts[i].text.bytes, answer->parts[i].text.n_bytes);
    if (n > 1)
        only = &joined;
    out->failed |= joined.failed;
    server_text_json(out, only != NULL ? only->bytes : "", only != NULL ? only->n_bytes : 0);
    server_text_free(&joined);
}

/* ---- Tokens ------------------------------------------------------------------------------------------- */

static const char *bytes_of(const server_run *run, int32_t id, size_t *n_bytes) {
    const char *bytes;
    if (mb_token_bytes(run->engine->model, id, &bytes, n_bytes, NULL) == MB_OK)
        return bytes;
    *n_bytes = 0;
    return "";
}

size_t server_write_token(const server_run *run, int32_t id, server_text *out) {
    size_t n_bytes, n_characters = 0;
    const char *bytes = bytes_of(run, id, &n_bytes);
    server_text_json(out, bytes, n_bytes);
    for (size_t i = 0; i < n_bytes; i++)
        n_characters += ((unsigned char)bytes[i] & 0xc0) != 0x80;
    return n_characters;
}

static void write_chat_token(const server_run *run, int32_t id, float logprob, server_text *out) {
    size_t n_bytes;
    const char *bytes = bytes_of(run, id, &n_bytes);
    server_text_puts(out, "{\"token\":");
    server_text_json(out, bytes, n_bytes);
    server_text_puts(out, ",\"logprob\":");
    server_text_json_number(out, logprob);
    server_text_puts(out, ",\"bytes\":[");
    for (size_t i = 0; i < n_bytes; i++)
        server_text_printf(out, "%s%d", i > 0 ? "," : "", (unsigned char)bytes[i]);
    server_text_puts(out, "]");
}

void server_write_chat_logprobs(const server_answer *answer, server_text *out) {
    const server_run *run = answer->run;
    int64_t first = (int64_t)answer->prompt->n_ids - 1 + answer->first_token;
    server_text_puts(out, "{\"content\":[");
    for (size_t i = 0; i < answer->n_tokens; i++) {
        server_row row = server_row_at(answer, first + (int64_t)i);
        server_text_puts(out, i > 0 ? "," : "");
        write_chat_token(run, answer->tokens[i].id, answer->tokens[i].logprob, out);
        server_text_puts(out, ",\"top_logprobs\":[");
        for (int32_t k = 0; k < row.n_tops; k++) {
            server_text_puts(out, k > 0 ? "," : "");
            write_chat_token(run, row.tops[k].id, row.tops[k].logprob, out);
            server_text_puts(out, "}");
        }
        server_text_puts(out, "]}");
    }
    server_text_puts(out, "]}");
}

static void write_ranked(const server_run *run, int32_t id, float logprob, int32_t rank, server_text *out) {
    server_text_printf(out, "\"%d\":{\"logprob\":", (int)id);
    server_text_json_number(out, logprob);
    server_text_printf(out, ",\"rank\":%d,\"decoded_token\":", (int)rank);
    server_write_token(run, id, out);
    server_text_puts(out, "}");
}

void server_write_prompt_logprobs(const server_answer *answer, server_text *out) {
    const server_run *run = answer->run;
    const server_prompt *prompt = answer->prompt;
    server_text_puts(out, "[null");
    for (size_t i = 1; i < prompt->n_ids; i++) {
        server_row row = server_row_at(answer, (int64_t)i - 1);
        server_text_puts(out, ",{");
        write_ranked(run, prompt->ids[i], row.chosen, row.rank, out);
        for (int32_t k = 0; k < row.n_tops; k++) {
            if (row.tops[k].id == prompt->ids[i])
                continue;
            server_text_puts(out, ",");
            write_ranked(run, row.tops[k].id, row.tops[k].logprob, k + 1, out);
        }
        server_text_puts(out, "}");
    }
    server_text_puts(out, "]");
}

void server_write_ids(const int32_t *ids, size_t n, server_text *out) {
    server_text_puts(out, "[");
    for (size_t i = 0; i < n; i++)
        server_text_printf(out, "%s%d", i > 0 ? "," : "", (int)ids[i]);
    server_text_puts(out, "]");
}

void server_write_token_ids(const server_answer *answer, server_text *out) {
    server_text_puts(out, "[");
    for (size_t i = 0; i < answer->n_tokens; i++)
        server_text_printf(out, "%s%d", i > 0 ? "," : "", (int)answer->tokens[i].id);
    server_text_puts(out, "]");
}

void server_write_finish(const char *finish, server_text *out) {
    if (finish != NULL)
        server_text_printf(out, ",\"finish_reason\":\"%s\"", finish);
    else
        server_text_puts(out, ",\"finish_reason\":null");
}

void server_write_stop_reason(const server_answer *answer, server_text *out) {
    server_text_puts(out, ",\"stop_reason\":");
    if (answer->stop_string != NULL)
        server_text_json_string(out, answer->stop_string);
    else
        server_text_puts(out, "null");
}
