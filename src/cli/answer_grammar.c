#include "cli/answer_grammar.h"

#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "moebius/answer.h"
#include "moebius/grammar.h"

enum { MAX_GRAMMAR_BYTES = 16 << 20 };

/* hint: for the sentence about a file that is not there. */
static mb_status open_file(const mb_model *model, const char *path, mb_grammar_kind kind, const char *hint,
                           mb_grammar **grammar) {
    char *text;
    size_t n_bytes;
    mb_status status = mb_file_read(path, MAX_GRAMMAR_BYTES, &text, &n_bytes);
    if (status == MB_ERR_NOT_FOUND)
        return mb_fail(status, "%s: there is no such file; %s", path, hint);
    if (status != MB_OK)
        return status;
    status = mb_grammar_open(model, kind, text, n_bytes, grammar);
    mb_free(text);
    return status == MB_OK ? MB_OK : mb_fail_context(status, "%s", path);
}

static mb_status open_grammar(const mb_model *model, const cli_answer_form *form, mb_grammar **grammar) {
    if (form->schema_path != NULL)
        return open_file(model, form->schema_path, MB_GRAMMAR_JSON_SCHEMA,
                         "--json-schema takes the file of a schema", grammar);
    if (form->grammar_path != NULL)
        return open_file(model, form->grammar_path, MB_GRAMMAR_EBNF, "--grammar takes the file of a grammar",
                         grammar);
    return mb_grammar_open(model, MB_GRAMMAR_REGEX, form->regex, strlen(form->regex), grammar);
}

int cli_set_grammar(const mb_model *model, const cli_answer_form *form, const char *prompt,
                    mb_request *request) {
    mb_answer_formats formats;
    if (form->schema_path == NULL && form->grammar_path == NULL && form->regex == NULL)
        return CLI_OK;
    mb_status status = open_grammar(model, form, &request->grammar);
    if (status == MB_OK)
        status = mb_answer_formats_of(model, &formats);
    if (status != MB_OK)
        return cli_report_failure();
    request->grammar_after_think = mb_answer_grammar_start(&formats, prompt) == MB_GRAMMAR_AFTER_THINK;
    return CLI_OK;
}
