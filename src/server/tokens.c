#include "server/tokens.h"

#include <string.h>

#include "base/alloc.h"
#include "server/conversation.h"
#include "server/json_read.h"
#include "server/writer.h"

static const char tokenize_fields[] =
    "model prompt messages add_special_tokens add_generation_prompt continue_final_message return_token_strs "
    "tools chat_template_kwargs";
static const char detokenize_fields[] = "model tokens";

/* ---- Readers ------------------------------------------------------------------------------------------ */

static int open_prompt(server_generation *generation, server_problem *problem) {
    generation->prompts = mb_calloc(1, sizeof *generation->prompts);
    if (generation->prompts == NULL)
        return server_refuse(problem, 503, NULL, "no memory for a prompt");
    generation->n_prompts = 1;
    return 0;
}

static int read_text(const server_reading *reading, const char *prompt, server_generation *generation,
                     server_problem *problem) {
    if (open_prompt(generation, problem) != 0)
        return -1;
    char *text = mb_strdup(prompt);
    if (text == NULL)
        return server_refuse(problem, 503, NULL, "no memory for a prompt of %zu bytes", strlen(prompt));
    return server_encode_prompt(reading, text, strlen(text), "prompt", &generation->prompts[0], problem);
}

static int read_messages(const server_reading *reading, const json_t *body, server_generation *generation,
                         server_problem *problem) {
    server_conversation conversation;
    const json_t *messages = NULL;
    int continue_message = 0;
    server_conversation_init(&conversation);
    mb_chat_options *options = &conversation.options;
    if (server_json_array(body, "messages", problem, &messages) != 0 ||
        server_json_array(body, "tools", problem, &conversation.tools) != 0 ||
        server_json_object(body, "chat_template_kwargs", problem, &conversation.kwargs) != 0 ||
        server_json_bool(conversation.kwargs, "enable_thinking", problem, &options->enable_thinking) != 0 ||
        server_json_bool(body, "add_generation_prompt", problem, &options->add_generation_prompt) != 0 ||
        server_json_bool(body, "continue_final_message", problem, &continue_message) != 0)
        return -1;
    if (continue_message)
        return server_refuse(problem, 400, "continue_final_message",
                             "continue_final_message is not supported");
    conversation.messages = json_object_get(body, "messages");
    return server_read_conversation(reading, &conversation, generation, problem);
}

/* The models that are served add no special tokens of their own, so add_special_tokens changes nothing.
 * return_token_strs is kept as return_token_ids. */
static int read_tokenize(const server_reading *reading, const json_t *body, server_generation *generation,
                         server_problem *problem) {
    const char *prompt = NULL;
    int add_special = 1;
    server_json_warn_unknown(body, tokenize_fields);
    if (server_read_model(reading, body, generation, problem) != 0 ||
        server_json_string(body, "prompt", problem, &prompt) != 0 ||
        server_json_bool(body, "add_special_tokens", problem, &add_special) != 0 ||
        server_json_bool(body, "return_token_strs", problem, &generation->return_token_ids) != 0)
        return -1;
    if (prompt != NULL && server_json_get(body, "messages") != NULL)
        return server_refuse(problem, 400, "prompt", "prompt and messages exclude each other");
    if (prompt == NULL && server_json_get(body, "messages") == NULL)
        return server_refuse(problem, 400, "prompt", "prompt is missing; send a prompt or messages");
    return prompt != NULL ? read_text(reading, prompt, generation, problem)
                          : read_messages(reading, body, generation, problem);
}

static int read_detokenize(const server_reading *reading, const json_t *body, server_generation *generation,
                           server_problem *problem) {
    const json_t *tokens = NULL;
    server_json_warn_unknown(body, detokenize_fields);
    if (server_read_model(reading, body, generation, problem) != 0 ||
        server_json_array(body, "tokens", problem, &tokens) != 0)
        return -1;
    if (tokens == NULL)
        return server_refuse(problem, 400, "tokens", "tokens is missing; send an array of token ids");
    if (open_prompt(generation, problem) != 0)
        return -1;
    server_prompt *prompt = &generation->prompts[0];
    if (server_json_ids(tokens, "tokens", reading->info.vocab, problem, &prompt->ids, &prompt->n_ids) != 0)
        return -1;
    return server_decode_prompt(reading, prompt, problem);
}

/* ---- Replies ------------------------------------------------------------------------------------------ */

static void write_strings(mb_model *model, const server_prompt *prompt, server_text *out) {
    const char *bytes;
    size_t n_bytes;
    server_text_puts(out, "[");
    for (size_t i = 0; i < prompt->n_ids; i++) {
        server_text_puts(out, i > 0 ? "," : "");
        if (mb_token_bytes(model, prompt->ids[i], &bytes, &n_bytes, NULL) != MB_OK)
            n_bytes = 0;
        server_text_json(out, n_bytes > 0 ? bytes : "", n_bytes);
    }
    server_text_puts(out, "]");
}

void server_post_tokenize(server_job *job) {
    const server_reading *reading = &job->server->reading;
    server_generation generation;
    server_text out = {0};
    if (server_read_job(job, read_tokenize, &generation) != 0)
        return;
    const server_prompt *prompt = &generation.prompts[0];
    server_text_printf(&out, "{\"count\":%zu,\"max_model_len\":%lld,\"tokens\":", prompt->n_ids,
                       (long long)reading->context);
    server_write_ids(prompt->ids, prompt->n_ids, &out);
    server_text_puts(&out, ",\"token_strs\":");
    if (generation.return_token_ids)
        write_strings(reading->model, prompt, &out);
    else
        server_text_puts(&out, "null");
    server_text_puts(&out, "}");
    server_generation_free(&generation);
    server_reply_whole(job->reply, 200, "application/json", &out);
}

void server_post_detokenize(server_job *job) {
    server_generation generation;
    server_text out = {0};
    if (server_read_job(job, read_detokenize, &generation) != 0)
        return;
    const server_prompt *prompt = &generation.prompts[0];
    server_text_puts(&out, "{\"prompt\":");
    server_text_json(&out, prompt->n_bytes > 0 ? prompt->text : "", prompt->n_bytes);
    server_text_puts(&out, "}");
    server_generation_free(&generation);
    server_reply_whole(job->reply, 200, "application/json", &out);
}
