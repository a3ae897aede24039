#include "server/generation.h"

#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"

void server_generation_init(server_generation *generation, const mb_model *model) {
    *generation = (server_generation){.n_answers = 1,
                                      .max_new_tokens = -1,
                                      .usual_new_tokens = INT64_MAX,
                                      .skip_special = 1,
                                      .top_logprobs = -1,
                                      .prompt_logprobs = -1};
    mb_request_init(model, &generation->request);
}

void server_generation_free(server_generation *generation) {
    for (size_t i = 0; i < generation->n_prompts; i++) {
        mb_free(generation->prompts[i].ids);
        mb_free(generation->prompts[i].text);
    }
    for (size_t i = 0; i < generation->n_stops; i++)
        mb_free(generation->stops[i]);
    mb_free(generation->prompts);
    mb_free(generation->stops);
    mb_free(generation->stop_ids);
    mb_free(generation->biases);
    mb_free(generation->tools_json);
    mb_free(generation->echoed);
    mb_grammar_close(generation->grammar);
    memset(generation, 0, sizeof *generation);
}

static int refuse_length(const server_reading *reading, const char *field, size_t n_ids,
                         server_problem *problem) {
    return server_refuse(problem, 400, field,
                         "the prompt has %s%zu tokens, and prompt and answer together have room for %" PRId64
                         " in this model's context",
                         n_ids == 0 ? "more than " : "", n_ids == 0 ? (size_t)reading->context : n_ids,
                         reading->context);
}

int server_encode_prompt(const server_reading *reading, char *text, size_t n_bytes, const char *field,
                         server_prompt *prompt, server_problem *problem) {
    prompt->text = text;
    prompt->n_bytes = n_bytes;
    /* Unicode's composition of characters makes a text at most four times shorter. So a text can be known
     * to be too long before it is tokenized. */
    if (n_bytes / 4 / reading->longest_token > (size_t)reading->context)
        return refuse_length(reading, field, 0, problem);
    size_t capacity = (size_t)reading->context + 1, n_ids = 0;
    if (n_bytes + 1 < capacity)
        capacity = n_bytes + 1;
    prompt->ids = mb_malloc_array(capacity, sizeof *prompt->ids);
    if (prompt->ids == NULL)
        return server_refuse(problem, 503, NULL, "no memory for a prompt of %zu bytes", n_bytes);
    mb_status status = mb_tokenize(reading->model, text, n_bytes, 1, prompt->ids, capacity, &n_ids);
    if (status == MB_ERR_CAPACITY)
        return refuse_length(reading, field, n_ids, problem);
    if (status != MB_OK)
        return server_refuse(problem, status == MB_ERR_MEMORY ? 503 : 400, field, "%s", mb_last_error());
    prompt->n_ids = n_ids;
    return 0;
}

int server_decode_prompt(const server_reading *reading, server_prompt *prompt, server_problem *problem) {
    mb_decoder *decoder = NULL;
    server_text text = {0};
    const char *piece;
    size_t n_bytes;
    mb_status status = mb_decoder_open(reading->model, 0, &decoder);
    for (size_t i = 0; i <= prompt->n_ids && status == MB_OK; i++) {
        status = i < prompt->n_ids ? mb_decoder_push(decoder, prompt->ids[i], &piece, &n_bytes)
                                   : mb_decoder_finish(decoder, &piece, &n_bytes);
        if (status == MB_OK)
            server_text_put(&text, piece, n_bytes);
    }
    mb_decoder_close(decoder);
    if (status != MB_OK || text.failed) {
        server_text_free(&text);
        return server_refuse(problem, 503, NULL, "no memory for the prompt's text");
    }
    prompt->text = text.bytes;
    prompt->n_bytes = text.n_bytes;
    return 0;
}

int server_finish_reading(const server_reading *reading, const char *prompt_field,
                          server_generation *generation, server_problem *problem) {
    for (size_t i = 0; i < generation->n_prompts; i++) {
        server_prompt *prompt = &generation->prompts[i];
        int64_t room = reading->context - (int64_t)prompt->n_ids;
        if (prompt->n_ids == 0)
            return server_refuse(problem, 400, prompt_field, "the prompt is empty");
        if (room < (generation->max_new_tokens != 0))
            return refuse_length(reading, prompt_field, prompt->n_ids, problem);
        if (generation->max_new_tokens > room)
            return server_refuse(problem, 400, "max_tokens",
                                 "max_tokens is %" PRId64
                                 ", but the prompt of %zu tokens leaves room for %" PRId64
                                 " in this model's context of %" PRId64 " tokens",
                                 generation->max_new_tokens, prompt->n_ids, room, reading->context);
        prompt->max_new_tokens = generation->max_new_tokens >= 0       ? generation->max_new_tokens
                                 : generation->usual_new_tokens < room ? generation->usual_new_tokens
                                                                       : room;
        if (generation->min_new_tokens > prompt->max_new_tokens)
            return server_refuse(problem, 400, "min_tokens",
                                 "min_tokens is %" PRId64 ", and the answer has at most %" PRId64 " tokens",
                                 generation->min_new_tokens, prompt->max_new_tokens);
    }
    if (generation->n_prompts * (size_t)generation->n_answers > SERVER_MAX_ANSWERS)
        return server_refuse(problem, 400, prompt_field,
                             "%zu prompts with n = %d are more than %d answers; send several requests",
                             generation->n_prompts, (int)generation->n_answers, SERVER_MAX_ANSWERS);
    return 0;
}
