/* answer.h - tokens of an answer become text, cut before a stop text: on stdout, thinking dimmed on
 * a terminal, and kept. */
#ifndef MB_CLI_ANSWER_H
#define MB_CLI_ANSWER_H

#include "cli/generate.h"
#include "moebius/stop_text.h"

enum { CLI_ANSWER_PRINT = 1, CLI_ANSWER_KEEP = 2 };

typedef struct cli_answer {
    mb_decoder *decoder;
    mb_stop_text *stops;
    int print, keep;
    int dim;       /* stdout is a terminal: show thinking in faint letters */
    int thinking;  /* between <think> and </think> */
    size_t n_held; /* characters of the next tag that have come and are not printed yet */
    char *text;    /* the answer so far, when it is kept; NULL: not one character */
    size_t n_text, capacity;
    int stop; /* after cli_answer_finish: which stop text ended the answer; -1: none */
} cli_answer;

/* what: CLI_ANSWER_PRINT, CLI_ANSWER_KEEP or both. Failures are reported. */
int cli_answer_open(cli_answer *answer, const mb_model *model, const cli_texts *stop_texts, int what);
void cli_answer_close(cli_answer *answer);

/* Starts an answer to `prompt`. When the prompt ends with <think>, the answer starts inside of the
 * thought. */
void cli_answer_begin(cli_answer *answer, const char *prompt);
cli_go cli_answer_push(void *answer, const mb_token *token); /* a cli_token_fn */
int cli_answer_finish(cli_answer *answer);                   /* prints what is held back and ends the line */

#endif
