/* answer.h - tokens of an answer become text on stdout, thinking dimmed on a terminal. */
#ifndef MB_CLI_ANSWER_H
#define MB_CLI_ANSWER_H

#include "cli/generate.h"

typedef struct cli_answer {
    mb_decoder *decoder;
    int dim;       /* stdout is a terminal: show thinking in faint letters */
    int thinking;  /* between <think> and </think> */
    size_t n_held; /* characters of the next tag that have come and are not printed yet */
    char *text;    /* the answer so far, when it is kept, without zero bytes; NULL: not one character */
    size_t n_text, capacity;
    int keep;
} cli_answer;

/* keep: collect the text in answer->text. Failures are reported. */
int cli_answer_open(cli_answer *answer, const mb_model *model, int keep);
void cli_answer_close(cli_answer *answer);

/* Starts an answer to `prompt`. When the prompt ends with <think>, the answer starts inside of the
 * thought. */
void cli_answer_begin(cli_answer *answer, const char *prompt);
int cli_answer_push(void *answer, int32_t id); /* a cli_token_fn */
int cli_answer_finish(cli_answer *answer);     /* prints what is held back and ends the line */

#endif
