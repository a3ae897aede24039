/* answer_json.h - an answer and its figures as one JSON object on stdout: moebius run --json. */
#ifndef MB_CLI_ANSWER_JSON_H
#define MB_CLI_ANSWER_JSON_H

#include "cli/answer.h"

typedef struct cli_answer_report {
    const char *model;        /* as the user named it */
    const cli_answer *answer; /* NULL: only ids were asked for */
    const cli_texts *stop_texts;
    const cli_ids *ids; /* of the new tokens */
    const cli_figures *figures;
    const mb_sampling *sampling;
    double started; /* cli_now() at the start of the program */
} cli_answer_report;

/* Failures are reported. */
int cli_print_answer_json(const cli_answer_report *report);

#endif
