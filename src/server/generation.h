/*
 * generation.h - what a request wants generated, whichever API it came through: the prompts, how tokens are
 * chosen, where answers end, and what the reply shows. A reader for each API fills it (read_chat.c,
 * read_completion.c), run.c runs it, and a writer for each API (writer.h) makes the reply.
 */
#ifndef MB_SERVER_GENERATION_H
#define MB_SERVER_GENERATION_H

#include <jansson.h>

#include "moebius/answer.h"
#include "moebius/grammar.h"
#include "moebius/moebius.h"
#include "server/problem.h"

enum {
    SERVER_MAX_ANSWERS = 128, /* n times prompts */
    SERVER_MAX_STOPS = 64,
    SERVER_MAX_TOP_LOGPROBS = 20,
};

typedef struct server_prompt {
    int32_t *ids;
    size_t n_ids;
    char *text;             /* zero-terminated; NULL when the prompt came as ids */
    size_t n_bytes;         /* of text */
    int64_t max_new_tokens; /* of each answer */
} server_prompt;

typedef struct server_generation {
    server_prompt *prompts; /* [n_prompts] */
    size_t n_prompts;
    int32_t n_answers; /* to each prompt */

    /* Sampling, penalties, seed, stop_ids, ignore_eos, priority; ids and counts are set for each prompt. Its
     * pointers point into this struct. */
    mb_request request;
    int32_t *stop_ids;
    mb_logit_bias *biases;
    char **stops; /* [n_stops] */
    size_t n_stops;
    int include_stop;         /* the stop string is part of the answer */
    int64_t max_new_tokens;   /* as the request says; -1: usual_new_tokens */
    int64_t usual_new_tokens; /* fewer where the context ends */
    int64_t min_new_tokens;   /* stop strings do not count before */
    int skip_special;         /* special tokens are no text */
    int key;                  /* number of the API key: requests of different keys share no prefix */

    int32_t top_logprobs;    /* alternatives of each token; 0: the token's own; -1: no log-probabilities */
    int32_t prompt_logprobs; /* the same of the prompt; -1: none */
    int echo;                /* the prompt is part of the reply */
    int return_token_ids;

    mb_grammar *grammar; /* that the answer follows, or NULL */
    mb_grammar_start grammar_start;
    int parses; /* answers are divided into reasoning, content and calls, as `parse` says */
    mb_answer_options parse;
    char *tools_json;    /* of parse */
    int drops_reasoning; /* it is not shown */
    int call_was_named;  /* tool_choice named a tool: OpenAI's finish_reason is then "stop" */

    int stream, include_usage, usage_always;
    int has_kv_transfer; /* kv_transfer_params was an empty object, which the reply echoes */
    char model[256];     /* as the request calls it */
    char *echoed;        /* of responses: JSON that the reply repeats, or NULL */
} server_generation;

/* What readers need to know of the server. */
typedef struct server_reading {
    mb_model *model;
    mb_model_info info;
    int64_t context;           /* most tokens of prompt and answer together */
    size_t longest_token;      /* bytes of the longest token, at least 1 */
    mb_answer_formats formats; /* of the model's answers */
    const char *const *names;  /* of the model, as it is served; the last is NULL */
    int any_name;              /* every name is served */
} server_reading;

/* Formats are left to the caller. `names` must live as long; the last is NULL, and "*"
 * stands for every name. */
void server_reading_init(server_reading *reading, mb_model *model, mb_session *session,
                         const char *const *names, int64_t max_model_len);

/* Greedy defaults come from generation_config.json. */
void server_generation_init(server_generation *generation, const mb_model *model);
void server_generation_free(server_generation *generation);

/* The fields that all APIs share: sampling, stops, limits, log-probabilities apart. */
int server_read_model(const server_reading *reading, const json_t *body, server_generation *generation,
                      server_problem *problem);
int server_read_sampling(const server_reading *reading, const json_t *body, server_generation *generation,
                         server_problem *problem);
/* stream and stream_options. */
int server_read_stream(const json_t *body, server_generation *generation, server_problem *problem);
extern const char server_shared_fields[]; /* their names, for server_json_warn_unknown */

/* Turns text into a prompt's ids. Takes over `text` (mb_malloc), also on failure. */
int server_encode_prompt(const server_reading *reading, char *text, size_t n_bytes, const char *field,
                         server_prompt *prompt, server_problem *problem);
/* The text of a prompt that came as ids. */
int server_decode_prompt(const server_reading *reading, server_prompt *prompt, server_problem *problem);
/* Checks lengths against the context and sets each prompt's max_new_tokens: to be called last. */
int server_finish_reading(const server_reading *reading, const char *prompt_field,
                          server_generation *generation, server_problem *problem);

/* The readers: one for each API. */
int server_read_chat(const server_reading *reading, const json_t *body, server_generation *generation,
                     server_problem *problem);
int server_read_completion(const server_reading *reading, const json_t *body, server_generation *generation,
                           server_problem *problem);
/* Anthropic's messages, and OpenAI's responses: read as chats (translate.h). */
int server_read_messages(const server_reading *reading, const json_t *body, server_generation *generation,
                         server_problem *problem);
int server_read_responses(const server_reading *reading, const json_t *body, server_generation *generation,
                          server_problem *problem);

#endif
