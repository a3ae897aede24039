/* generate.h - from a text to a prompt's ids, and from a request to an answer that streams. */
#ifndef MB_CLI_GENERATE_H
#define MB_CLI_GENERATE_H

#include "cli/options.h"

/* Tokenizes text. ids->items is freed with mb_free. Failures are reported. */
int cli_encode(const mb_model *model, const char *text, size_t n_bytes, int parse_special, cli_ids *ids);

/* The most tokens that prompt and answer may have together in this session. */
int64_t cli_context_limit(const mb_model *model, mb_session *session);

typedef struct cli_figures {
    size_t n_prompt, n_new;
    size_t n_cached;               /* tokens of the prompt that the prefix cache had */
    double submitted, first, last; /* cli_now() of the submission, the first and the last token */
    mb_state state;
} cli_figures;

typedef enum cli_go {
    CLI_GO_ON,
    CLI_GO_ENOUGH, /* the answer ends here, as with a stop token */
    CLI_GO_FAILED, /* a failure that was reported */
} cli_go;

typedef cli_go (*cli_token_fn)(void *user, const mb_token *token);

/* Says on stderr why a sequence is in state MB_FAILED. Returns CLI_FAILED. */
int cli_report_failed_sequence(mb_session *session, uint64_t id);

/* Runs one request to its end, to Ctrl-C (state MB_CANCELLED), or until stdout has gone. */
int cli_generate(mb_session *session, const mb_request *request, cli_token_fn on_token, void *user,
                 cli_figures *figures);

/* Tokens of the answer after the first one, per second since the first one. 0 when there are none. */
double cli_output_rate(const cli_figures *figures);

#endif
