/* answer_grammar.h - the form of an answer, from the command line. */
#ifndef MB_CLI_ANSWER_GRAMMAR_H
#define MB_CLI_ANSWER_GRAMMAR_H

#include "moebius/moebius.h"

typedef struct cli_answer_form {
    const char *schema_path, *grammar_path, *regex; /* one of them, or none */
} cli_answer_form;

/* Sets the request's grammar, which the caller closes; prompt: as the model sees it.
 * Returns an exit status. */
int cli_set_grammar(const mb_model *model, const cli_answer_form *form, const char *prompt,
                    mb_request *request);

#endif
