/* read_completion.c - POST /v1/completions: prompts as text or token ids. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "server/format.h"
#include "server/json_read.h"

static const char completion_fields[] =
    "prompt suffix echo response_format structured_outputs "
    "guided_json guided_regex guided_choice guided_json_object guided_grammar";

enum { DEFAULT_NEW_TOKENS = 16 }; /* OpenAI's */

/* name: prompt, or prompt[3] */
static int read_prompt(const server_reading *reading, const json_t *value, const char *name,
                       server_prompt *prompt, server_problem *problem) {
    if (json_is_array(value))
        return server_json_ids(value, name, reading->info.vocab, problem, &prompt->ids, &prompt->n_ids);
    if (!json_is_string(value))
        return server_refuse(problem, 400, "prompt",
                             "%s is %s; prompt must be a string, an array of strings, an array of token "
                             "ids, or an array of such arrays",
                             name, server_json_kind(value));
    size_t n_bytes = json_string_length(value);
    char *text = mb_malloc(n_bytes + 1);
    if (text == NULL)
        return server_refuse(problem, 503, NULL, "no memory for a prompt of %zu bytes", n_bytes);
    memcpy(text, json_string_value(value), n_bytes + 1);
    return server_encode_prompt(reading, text, n_bytes, "prompt", prompt, problem);
}

static int read_prompts(const server_reading *reading, const json_t *body, server_generation *generation,
                        server_problem *problem) {
    const json_t *value = server_json_get(body, "prompt");
    int is_list = json_is_array(value) && !json_is_integer(json_array_get(value, 0));
    size_t n = is_list ? json_array_size(value) : 1;
    if (value == NULL || n == 0)
        return server_refuse(problem, 400, "prompt", "prompt is missing or empty");
    if (n > SERVER_MAX_ANSWERS)
        return server_refuse(problem, 400, "prompt", "prompt has %zu prompts; send at most %d", n,
                             SERVER_MAX_ANSWERS);
    generation->prompts = mb_calloc(n, sizeof *generation->prompts);
    if (generation->prompts == NULL)
        return server_refuse(problem, 503, NULL, "no memory for %zu prompts", n);
    generation->n_prompts = n;
    for (size_t i = 0; i < n; i++) {
        char name[40] = "prompt";
        if (is_list)
            snprintf(name, sizeof name, "prompt[%zu]", i);
        if (read_prompt(reading, is_list ? json_array_get(value, i) : value, name, &generation->prompts[i],
                        problem) != 0)
            return -1;
    }
    return 0;
}

int server_read_completion(const server_reading *reading, const json_t *body, server_generation *generation,
                           server_problem *problem) {
    char known[sizeof completion_fields + 1024];
    const char *suffix = "";
    snprintf(known, sizeof known, "%s %s", server_shared_fields, completion_fields);
    server_json_warn_unknown(body, known);
    generation->usual_new_tokens = DEFAULT_NEW_TOKENS;
    if (server_read_model(reading, body, generation, problem) != 0 ||
        server_read_sampling(reading, body, generation, problem) != 0 ||
        server_read_stream(body, generation, problem) != 0 ||
        server_json_string(body, "suffix", problem, &suffix) != 0 ||
        server_json_bool(body, "echo", problem, &generation->echo) != 0 ||
        server_json_int32(body, "logprobs", 0, SERVER_MAX_TOP_LOGPROBS, problem, &generation->top_logprobs) !=
            0 ||
        server_json_integer(body, "max_tokens", 0, INT32_MAX, problem, &generation->max_new_tokens) != 0)
        return -1;
    if (server_read_format(reading, body, generation, problem) != 0)
        return -1;
    if (*suffix != '\0')
        return server_refuse(problem, 400, "suffix", "suffix is not supported");
    if (generation->echo && generation->top_logprobs > generation->prompt_logprobs)
        generation->prompt_logprobs = generation->top_logprobs;
    if (read_prompts(reading, body, generation, problem) != 0)
        return -1;
    for (size_t i = 0; i < generation->n_prompts && generation->echo; i++)
        if (generation->prompts[i].text == NULL &&
            server_decode_prompt(reading, &generation->prompts[i], problem) != 0)
            return -1;
    return server_finish_reading(reading, "prompt", generation, problem);
}
