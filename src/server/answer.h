/*
 * answer.h - one answer of a run: its tokens become text, the text ends at stop strings, and what is left is
 * divided into parts: content, reasoning, calls of tools.
 */
#ifndef MB_SERVER_ANSWER_H
#define MB_SERVER_ANSWER_H

#include <stdatomic.h>

#include "moebius/answer.h"
#include "moebius/stop_text.h"
#include "server/generation.h"

typedef struct server_run server_run;

typedef enum server_part_kind { SERVER_CONTENT, SERVER_REASONING, SERVER_CALL } server_part_kind;

/* A piece of an answer. A stream's parts are those since the last event; a whole reply's are all,
 * neighbours of one kind joined. */
typedef struct server_part {
    server_part_kind kind;
    server_text text; /* of a call: arguments */
    /* Of a call. A call that goes on over several events has a part in each. */
    int32_t call; /* number, from 0 */
    int begins, ends;
    char id[40], *name; /* name: mb_malloc */
} server_part;

typedef struct server_top {
    int32_t id;
    float logprob;
} server_top;

/* A position's log-probabilities, as on_logprobs saw them. */
typedef struct server_row {
    int is_filled;
    server_top *tops; /* [n_tops] most probable first */
    int32_t n_tops;
    float chosen; /* of a prompt's next token */
    int32_t rank; /* of a prompt's next token, from 1 */
} server_row;

typedef struct server_answer {
    server_run *run;
    const server_prompt *prompt;
    int32_t index; /* in the reply */
    uint64_t id;   /* of the sequence; 0: none */
    atomic_int news;

    mb_decoder *decoder;
    mb_stop_text *stop;
    mb_answer_parser *parser; /* NULL: all is content */
    server_part *parts;
    size_t n_parts, parts_capacity;
    mb_token *tokens; /* since the last event; of a whole reply, all. Kept for log-probabilities and ids */
    size_t n_tokens, tokens_capacity;
    int64_t first_token; /* number of tokens[0] in the answer */
    int64_t n_generated;
    int32_t n_calls;    /* complete ones */
    size_t text_offset; /* of tokens[0] in the answer's text, for completions */

    server_row *rows; /* by position minus first_row; guarded by the run's lock */
    size_t n_rows, rows_capacity;
    int64_t first_row;

    const char *finish;      /* "stop", "length", "abort"; NULL: it goes on */
    const char *stop_string; /* which one ended it, or NULL */
    int is_begun;            /* a writer of a stream notes its first piece */
    int finish_is_sent;
    double first_token_time, last_token_time;
} server_answer;

/* Returns 0, or -1 with a problem of the run. Closing does not release the sequence. */
int server_answer_open(server_run *run, server_answer *answer, int32_t index);
void server_answer_close(server_answer *answer);
void server_answer_clear_parts(server_answer *answer);

/* The next token. A stop string, or a call too many, sets finish. Returns 0, or -1 with
 * a problem of the run. */
int server_answer_token(server_answer *answer, const mb_token *token);
/* The sequence has ended: what was withheld comes out, and finish is set, unless it was before. */
int server_answer_end(server_answer *answer, const char *finish);

/* For writers: the row of position p, which is about token p + 1; without tops when there is none. Valid
 * until the answer is closed, once the token was read. */
server_row server_row_at(const server_answer *answer, int64_t position);

#endif
