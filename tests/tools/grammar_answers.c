/*
 * grammar_answers.c - the demo model answers under grammars: a JSON schema on each line of stdin, one
 * answer to each on stdout, in order: {"state": "stop", "text": "..."}. All are sampled at temperature
 * 2, at most 48 tokens; tokens that close something are made likelier, so that most answers end;
 * "length": cut there.
 *
 *   grammar_answers DIRECTORY
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moebius/grammar.h"

enum { MAX_NEW = 48, MAX_PROMPT = 64 };

typedef struct answer {
    uint64_t id;
    char text[MAX_NEW * 64];
    size_t n_bytes;
    mb_state state;
} answer;

static void require(mb_status status) {
    if (status == MB_OK)
        return;
    fprintf(stderr, "grammar_answers: %s\n", mb_last_error());
    exit(1);
}

static void read_answer(const mb_model *model, mb_session *session, answer *a) {
    mb_token tokens[MAX_NEW];
    size_t n;
    require(mb_read(session, a->id, tokens, MAX_NEW, &n, &a->state));
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        size_t n_bytes;
        require(mb_token_bytes(model, tokens[i].id, &bytes, &n_bytes, NULL));
        memcpy(a->text + a->n_bytes, bytes, n_bytes);
        a->n_bytes += n_bytes;
    }
}

static void submit(const mb_model *model, mb_session *session, const char *schema, uint64_t seed, answer *a) {
    static const char text[] = "<|im_start|>user\nWrite JSON.<|im_end|>\n<|im_start|>assistant\n";
    int32_t prompt[MAX_PROMPT];
    static const char *const closing[] = {"\"", "}", "]"};
    mb_logit_bias bias[3];
    mb_request request;
    mb_grammar *grammar;
    for (int i = 0; i < 3; i++) {
        size_t n;
        require(mb_tokenize(model, closing[i], 1, 0, &bias[i].id, 1, &n));
        bias[i].bias = 15;
    }
    mb_request_init(model, &request);
    require(mb_tokenize(model, text, strlen(text), 1, prompt, MAX_PROMPT, &request.n_ids));
    require(mb_grammar_open(model, MB_GRAMMAR_JSON_SCHEMA, schema, strlen(schema), &grammar));
    request.ids = prompt;
    request.max_new_tokens = MAX_NEW;
    request.sampling = (mb_sampling){.temperature = 2,
                                     .top_p = 1,
                                     .repetition_penalty = 1,
                                     .seed = seed,
                                     .logit_bias = bias,
                                     .n_logit_bias = 3};
    request.grammar = grammar;
    require(mb_submit(session, &request, &a->id));
    mb_grammar_close(grammar);
}

static void print_answer(const answer *a) {
    const char *state = a->state == MB_FINISHED_STOP     ? "stop"
                        : a->state == MB_FINISHED_LENGTH ? "length"
                                                         : "failed";
    json_t *line = a->state == MB_FINISHED_STOP
                       ? json_pack("{s:s, s:s%}", "state", state, "text", a->text, a->n_bytes)
                       : json_pack("{s:s}", "state", state);
    char *dumped = line ? json_dumps(line, JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
    puts(dumped ? dumped : "{\"state\":\"not UTF-8\"}");
    free(dumped);
    json_decref(line);
}

int main(int argc, char **argv) {
    mb_model *model;
    mb_session *session;
    char *line = NULL;
    size_t capacity = 0, n = 0;
    answer *answers = NULL;
    int active = 1;
    require(argc == 2 ? MB_OK : MB_ERR_ARGUMENT);
    require(mb_model_open(argv[1], &(mb_model_options){.device = "cpu"}, &model));
    require(mb_session_open(model, NULL, &session));
    for (; getline(&line, &capacity, stdin) > 0; n++) {
        answers = realloc(answers, (n + 1) * sizeof *answers);
        answers[n] = (answer){0};
        submit(model, session, line, n, &answers[n]);
    }
    while (active)
        require(mb_step(session, &active));
    for (size_t i = 0; i < n; i++) {
        read_answer(model, session, &answers[i]);
        print_answer(&answers[i]);
    }
    free(answers);
    free(line);
    mb_session_close(session);
    mb_model_close(model);
    return 0;
}
