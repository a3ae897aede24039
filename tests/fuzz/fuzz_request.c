/* Any bytes as the body of a request: it is refused with a field and a sentence, or is a
 * generation that fits. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/generation.h"
#include "server/json_read.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static int (*const readers[])(const server_reading *, const json_t *, server_generation *,
                              server_problem *) = {server_read_chat, server_read_completion,
                                                   server_read_messages, server_read_responses};
static const char *const names[] = {"demo", NULL};
static server_reading reading = {.context = 2048, .longest_token = 16, .names = names};

static void open_model(void) {
    mb_model_options options;
    mb_model_options_init(&options);
    options.load = MB_LOAD_TEXT;
    if (mb_model_open("models/demo", &options, &reading.model) != MB_OK ||
        mb_answer_formats_of(reading.model, &reading.formats) != MB_OK)
        abort();
    mb_model_get_info(reading.model, &reading.info);
}

static void check_generation(const server_generation *generation) {
    if (generation->n_prompts == 0 || generation->n_answers < 1 ||
        generation->n_prompts * (size_t)generation->n_answers > SERVER_MAX_ANSWERS)
        abort();
    for (size_t i = 0; i < generation->n_prompts; i++) {
        const server_prompt *prompt = &generation->prompts[i];
        if (prompt->n_ids == 0 || (int64_t)prompt->n_ids + prompt->max_new_tokens > reading.context)
            abort();
        for (size_t k = 0; k < prompt->n_ids; k++)
            if (prompt->ids[k] < 0 || prompt->ids[k] >= reading.info.vocab)
                abort();
    }
}

/* The error object is JSON, and says something. */
static void check_problem(const server_problem *problem) {
    server_text text = {0};
    server_problem_write(problem, &text);
    json_t *root = json_loadb(text.bytes, text.n_bytes, 0, NULL);
    if (root == NULL || problem->status < 400 || problem->message[0] == '\0')
        abort();
    json_decref(root);
    server_text_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    server_problem problem = {0};
    server_generation generation;
    if (reading.model == NULL)
        open_model();
    if (n_bytes < 1)
        return 0;
    json_t *body = server_json_parse((const char *)data + 1, n_bytes - 1, &problem);
    server_generation_init(&generation, reading.model);
    int status = -1;
    if (body != NULL)
        status = readers[data[0] % 4](&reading, body, &generation, &problem);
    if ((status == 0) != (problem.status == 0))
        abort();
    if (status == 0)
        check_generation(&generation);
    else
        check_problem(&problem);
    server_generation_free(&generation);
    json_decref(body);
    return 0;
}
